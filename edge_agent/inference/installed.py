"""What the device answers with, on its disk.

I1  ``serving.json`` names files that are there and fit each other, also after a power cut:
    they are written first, checked, and named last
I2  what is installed is in force from the next question on, without a restart; a question
    under way ends with what it began with
I3  something damaged never replaces what works: it is logged once, and the old stays

    models/<digest>/    imported models, by the digest of their manifest
    adapters/<digest>   released adapters
    serving.json        which of them answer, and the coordinator's calibration
    calibration.json    the owner's own calibration, for one adapter
    policy.toml         what the owner allows
    answers.csv         what is said for each label
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import structlog

from edge_agent.inference.answering import Equipment, LocalModel, Policy, Templates
from shared.config import Field, Table, read_json, read_toml
from shared.errors import (
    ConfigError,
    DigestMismatch,
    LlmOsError,
    ModelError,
)
from shared.files import (
    appearing_folder,
    digest_of,
    write_durably,
)
from shared.models.adapter import Adapter
from shared.models.calibration import Calibration
from shared.models.graph_session import GraphSession, check_fit
from shared.models.manifest import MANIFEST, Manifest, read_manifest, verify_files
from shared.types import Digest

SERVING: Final = "serving.json"
CALIBRATION: Final = "calibration.json"
POLICY: Final = "policy.toml"
ANSWERS: Final = "answers.csv"
_SHA256: Final = "^[0-9a-f]{64}$"

ValueT = TypeVar("ValueT")

log = structlog.get_logger()


class Serving(Table):
    """Which model and adapter answer, and since when.

    Attributes:
        manifest: The model, by the SHA-256 of its manifest.
        adapter: The adapter.
        calibration: The coordinator's; None before there is one.
        released_at: Seconds since the epoch, when it was put into force here.
        run: The run that the adapter comes from.
        task: What it was trained for, e.g. ``text-classification``.
    """

    manifest: Digest = Field(pattern=_SHA256)
    adapter: Digest = Field(pattern=_SHA256)
    calibration: Calibration | None = None
    released_at: float
    run: str
    task: str

    @classmethod
    def load(cls, home: Path) -> Serving | None:
        """What is installed; None before the first release.

        Raises:
            ConfigError: the file is damaged.
        """
        path = home / SERVING
        return read_json(cls, path.read_bytes(), source=str(path)) if path.exists() else None


class _OwnCalibration(Table):
    """The owner's calibration, and the adapter that it is about."""

    adapter: Digest = Field(pattern=_SHA256)
    calibration: Calibration


def model_folder(home: Path, manifest: Digest) -> Path:
    """Where an installed model is."""
    return home / "models" / manifest


def adapter_file(home: Path, adapter: Digest) -> Path:
    """Where an installed adapter is."""
    return home / "adapters" / adapter


def install_model(home: Path, source: Path) -> Digest:
    """Copy an imported model into the device's home, whole or not at all.

    Returns:
        The digest that names it.

    Raises:
        ModelError: ``source`` is no model, or not the one its manifest describes.
        StorageError: the disk refused.
    """
    manifest, digest = read_manifest(source)
    target = model_folder(home, digest)
    if target.is_dir():
        verify_files(target, manifest)
        return digest
    verify_files(source, manifest)
    with appearing_folder(target) as new:
        new.mkdir()
        for name in (MANIFEST, *manifest.files):
            shutil.copyfile(source / name, new / name)
        verify_files(new, manifest)
    return digest


def install(home: Path, serving: Serving, adapter: bytes) -> None:
    """Put a released adapter into force (I1). Its model must have been installed before.

    Adapters other than this one and the one it replaces are deleted.

    Raises:
        DigestMismatch: the bytes are not the adapter that ``serving`` names.
        UndecodableMessage, NonFiniteUpdate: they are no adapter.
        ModelError: the model is not here, or the adapter was trained on another base.
        ShapeMismatch: the adapter does not fit the model.
        StorageError: the disk refused; what was in force still is.
    """
    if digest_of(adapter) != serving.adapter:
        raise DigestMismatch(f"these bytes are not the adapter {serving.adapter[:12]}")
    manifest, digest = read_manifest(model_folder(home, serving.manifest))
    if digest != serving.manifest:
        raise ModelError(f"the model in {model_folder(home, serving.manifest)} is another one")
    _fitting(adapter, manifest)
    try:
        before = Serving.load(home)
    except ConfigError:
        before = None  # damaged; it is replaced now
    write_durably(adapter_file(home, serving.adapter), adapter)
    write_durably(home / SERVING, serving.model_dump_json(indent=2).encode())
    kept = {serving.adapter} | ({before.adapter} if before is not None else set())
    for file in (home / "adapters").iterdir():
        if file.name not in kept:
            file.unlink(missing_ok=True)


def write_own_calibration(home: Path, adapter: Digest, calibration: Calibration) -> None:
    """Put the owner's calibration into force for one adapter."""
    own = _OwnCalibration(adapter=adapter, calibration=calibration)
    write_durably(home / CALIBRATION, own.model_dump_json(indent=2).encode())


def open_model(home: Path, *, reuse: LocalModel | None = None) -> LocalModel:
    """Open what is installed; of ``reuse`` the session is taken if its model is the same.

    Raises:
        ModelError, ShapeMismatch, UndecodableMessage, ConfigError: nothing is installed, or
            it is damaged.
        DependencyMissing: the extra ``edge`` is not installed.
    """
    serving = Serving.load(home)
    if serving is None:
        raise ModelError("no model was released to it yet")
    encoder = reuse.encoder if reuse is not None else None
    if not isinstance(encoder, GraphSession) or encoder.digest != serving.manifest:
        encoder = GraphSession(model_folder(home, serving.manifest))
        if encoder.digest != serving.manifest:
            raise ModelError(f"the model in {model_folder(home, serving.manifest)} is another one")
    path = adapter_file(home, serving.adapter)
    try:
        data = path.read_bytes()
    except OSError as err:
        raise ModelError(f"cannot read the adapter {path}: {err.strerror}") from err
    if digest_of(data) != serving.adapter:
        raise ModelError(f"the adapter {path} is damaged: another release replaces it")
    loaded = encoder.load_adapter(_fitting(data, encoder.manifest))
    own_path, own = home / CALIBRATION, None
    if own_path.exists():
        own = read_json(_OwnCalibration, own_path.read_bytes(), source=str(own_path))
    calibration = (
        own.calibration if own is not None and own.adapter == loaded.digest else serving.calibration
    )
    return LocalModel(encoder.manifest.name, encoder, loaded, calibration)


def _fitting(data: bytes, manifest: Manifest) -> Adapter:
    adapter = Adapter.from_bytes(data)
    check_fit(adapter, manifest)
    if not adapter.labels:
        raise ModelError("the adapter has no labels, and so nothing to answer questions with")
    return adapter


class Installation:
    """Follows what is on the disk. Any thread may ask for it at any time."""

    def __init__(self, home: Path) -> None:
        """Read nothing yet."""
        self._home = home
        self._loading = threading.Lock()
        self._seen: tuple[object, ...] = ()
        self._equipment: Equipment | None = None

    def current(self) -> Equipment:
        """Return what is in force now (I2, I3). Costs four ``stat`` calls if nothing changed.

        Raises:
            ConfigError, DataError: policy or answers are damaged, and there were none before:
                without a policy it is not known what the owner allows.
        """
        now = self._equipment
        seen = self._state()
        if now is not None and seen == self._seen:
            return now
        # Whoever finds somebody loading goes on with what there is.
        if not self._loading.acquire(blocking=now is None):
            assert now is not None
            return now
        try:
            seen = self._state()
            if self._equipment is None or seen != self._seen:
                self._equipment = self._load(self._equipment)
                self._seen = seen
            return self._equipment
        finally:
            self._loading.release()

    def _state(self) -> tuple[object, ...]:
        return tuple(_state(self._home / name) for name in (SERVING, CALIBRATION, POLICY, ANSWERS))

    def _load(self, before: Equipment | None) -> Equipment:
        policy_path, answers_path = self._home / POLICY, self._home / ANSWERS
        policy = _or_else(
            lambda: read_toml(Policy, policy_path) if policy_path.exists() else Policy(),
            before.policy if before is not None else None,
        )
        templates = _or_else(
            lambda: Templates.read(answers_path) if answers_path.exists() else Templates(),
            before.templates if before is not None else None,
        )
        model = before.model if before is not None else None
        try:
            model, problem = open_model(self._home, reuse=model), ""
        except LlmOsError as err:
            problem = str(err)
            if (self._home / SERVING).exists():
                log.error("model.unusable", code=err.code, error=problem)
            else:
                model = None
        return Equipment(model, policy, templates, problem)


def _or_else(read: Callable[[], ValueT], before: ValueT | None) -> ValueT:
    try:
        return read()
    except LlmOsError as err:
        if before is None:
            raise
        log.error("settings.unusable", code=err.code, error=str(err))
        return before


def _state(path: Path) -> object:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_ino, facts.st_size
