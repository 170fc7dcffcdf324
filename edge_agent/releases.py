"""A release on its way onto the device: fetched in pieces, checked, then put into force.

Nothing is in force before everything is on disk, so a release that never arrives whole leaves
the device answering as before.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from edge_agent.inference.installed import (
    Serving,
    adapter_file,
    install,
    install_model,
    model_folder,
)
from edge_agent.participate import Home
from shared.actors import Workbench
from shared.config import read_json
from shared.errors import ConfigError, LlmOsError, ProtocolError
from shared.files import write_durably
from shared.models.calibration import Calibration
from shared.models.manifest import MANIFEST, Manifest, read_manifest, verify_files
from shared.types import Digest
from shared.wire.chunks import Downloads, is_digest
from shared.wire.messages import Answering, Release

MANIFEST_LIMIT: Final = 2**20
ADAPTER_LIMIT: Final = 256 * 2**20
MODEL_LIMIT: Final = 8 * 2**30
"""Bytes that a coordinator may have a device fetch; beyond them a release is refused."""

log = structlog.get_logger()


@dataclass(slots=True)
class _Offer:
    """A release that is being fetched."""

    release: Release
    fetched: set[Digest] = field(default_factory=set)
    missing: int = 0
    installing: bool = False


class Releases:
    """What this device answers with, and what it is about to. Driven by the agent's thread."""

    def __init__(
        self, home: Home, downloads: Downloads, bench: Workbench, installed: Callable[[], None]
    ) -> None:
        """Fetch with ``downloads``; ``installed`` is called when a release is in force."""
        self._home = home
        self._downloads = downloads
        self._bench = bench
        self._installed = installed
        self._offer: _Offer | None = None
        self._refused: Release | None = None
        self._clear_up()
        self._check_model()

    def answering(self) -> Answering:
        """What is in force now; nothing, if that is damaged: it is then released anew."""
        try:
            serving = Serving.load(self._home.folder)
        except LlmOsError as err:
            log.error("serving.damaged", error=str(err))
            serving = None
        folder = self._home.folder
        if (
            serving is None
            or not model_folder(folder, serving.manifest).is_dir()
            or not adapter_file(folder, serving.adapter).is_file()
        ):
            return Answering("", "")
        return Answering(serving.adapter, serving.manifest)

    def offered(self, release: Release) -> None:
        """Fetch a release, unless it is in force or on its way.

        Raises:
            ProtocolError: it is malformed or too large.
        """
        if self._offer is not None and self._offer.release == release:
            return
        if release == self._refused:
            return  # it would fail again, after another transfer
        now = self.answering()
        if (now.adapter, now.manifest) == (release.adapter, release.manifest):
            return
        if self._offer is not None and self._offer.installing:
            return  # it is offered again
        self._check(release)
        self._drop()
        for left in self._of_releases():  # of an earlier process
            if not left.name.startswith((self._staging(release).name, self._adapter(release).name)):
                _remove(left)
        self._offer = offer = _Offer(release)
        try:
            self._fetch_first(offer)
        except LlmOsError:
            self._drop()  # or the next offer would be taken for the one under way
            raise

    def _fetch_first(self, offer: _Offer) -> None:
        release = offer.release
        if model_folder(self._home.folder, Digest(release.manifest)).is_dir():
            self._fetch(offer, release.adapter, release.adapter_bytes, self._adapter(release))
            return
        self._fetch(
            offer,
            release.manifest,
            release.manifest_bytes,
            self._staging(release) / MANIFEST,
            then=lambda path: self._fetch_files(offer, path),
        )

    def _check_model(self) -> None:
        """Remove an installed model that is damaged, so that it is released anew."""
        for folder in self._home.folder.glob("models/[0-9a-f]*"):
            try:
                verify_files(folder, read_manifest(folder)[0])
            except LlmOsError as err:
                log.error("model.damaged", error=str(err))
                shutil.rmtree(folder, ignore_errors=True)

    def _check(self, release: Release) -> None:
        if not (is_digest(release.adapter) and is_digest(release.manifest)):
            raise ProtocolError("a release names adapter and manifest by SHA-256")
        if release.manifest_bytes > MANIFEST_LIMIT or release.adapter_bytes > ADAPTER_LIMIT:
            raise ProtocolError("the release is larger than a device takes")
        try:
            read_json(Calibration, release.calibration, source="release")
        except ConfigError as err:
            raise ProtocolError(str(err)) from err

    def _fetch_files(self, offer: _Offer, path: Path) -> None:
        manifest = read_json(Manifest, path.read_bytes(), source="manifest")
        if sum(entry.bytes for entry in manifest.files.values()) > MODEL_LIMIT:
            raise ProtocolError("the released model is larger than a device takes")
        release = offer.release
        self._fetch(offer, release.adapter, release.adapter_bytes, self._adapter(release))
        for name, entry in manifest.files.items():
            self._fetch(offer, entry.sha256, entry.bytes, self._staging(release) / name)

    def _fetch(
        self,
        offer: _Offer,
        digest: str,
        size: int,
        path: Path,
        *,
        then: Callable[[Path], None] | None = None,
    ) -> None:
        def arrived(fetched: Path) -> None:
            if offer is not self._offer:
                return
            try:
                if fetched != path:  # a round was fetching the same adapter
                    write_durably(path, fetched.read_bytes())
                if then is not None:
                    then(path)
            except LlmOsError as err:
                self._refuse(offer, err)
                self._drop()
                return
            # Last: what is here already arrives before the next is asked for.
            offer.missing -= 1
            if offer.missing == 0:
                self._install(offer)

        def failed(err: LlmOsError) -> None:
            log.warning("release.damaged", code=err.code, error=str(err))
            if offer is self._offer:
                self._drop()  # it is offered again

        offer.missing += 1
        offer.fetched.add(Digest(digest))
        self._downloads.fetch(
            Digest(digest),
            size,
            path,
            peer="coordinator",
            now=self._bench.now(),
            finished=arrived,
            failed=failed,
        )

    def _install(self, offer: _Offer) -> None:
        offer.installing = True
        at = self._bench.now()
        self._bench.work(
            lambda: self._put_into_force(offer.release, at),
            lambda result: self._in_force(offer, result),
        )

    def _put_into_force(self, release: Release, at: float) -> None:
        folder, staging = self._home.folder, self._staging(release)
        if staging.is_dir():
            install_model(folder, staging)
        serving = Serving(
            manifest=Digest(release.manifest),
            adapter=Digest(release.adapter),
            calibration=read_json(Calibration, release.calibration, source="release"),
            released_at=at,
            run=release.released_from,
            task=release.task,
        )
        install(folder, serving, self._adapter(release).read_bytes())

    def _in_force(self, offer: _Offer, result: Future[None]) -> None:
        try:
            result.result()
        except LlmOsError as err:
            self._refuse(offer, err)
        else:
            log.info("release.installed", run=offer.release.released_from)
            self._installed()
        finally:
            offer.installing = False
            if offer is self._offer:
                self._drop()

    def _refuse(self, offer: _Offer, err: LlmOsError) -> None:
        log.error("release.refused", code=err.code, error=str(err))
        if not err.retryable:
            self._refused = offer.release

    def _clear_up(self) -> None:
        """Remove what a power cut has left of an installation; a transfer goes on where it was."""
        now = self.answering()
        if now.manifest:
            _remove(self._home.blobs / f"model-{now.manifest}")
            _remove(self._home.blobs / f"released-{now.adapter}")
        for half in (self._home.folder / "models").glob(".*.tmp"):
            _remove(half)

    def _of_releases(self) -> list[Path]:
        return [*self._home.blobs.glob("model-*"), *self._home.blobs.glob("released-*")]

    def _drop(self) -> None:
        """Forget the release under way, and what was fetched of it."""
        offer, self._offer = self._offer, None
        if offer is None:
            return
        for digest in offer.fetched:
            self._downloads.forget("coordinator", digest)
        self._adapter(offer.release).unlink(missing_ok=True)
        shutil.rmtree(self._staging(offer.release), ignore_errors=True)

    def _staging(self, release: Release) -> Path:
        return self._home.blobs / f"model-{release.manifest}"

    def _adapter(self, release: Release) -> Path:
        return self._home.blobs / f"released-{release.adapter}"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
