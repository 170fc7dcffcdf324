"""Opens sums over enough devices, and nothing else, ever.

A process that the coordinator's operator does not control. What it promises:

    H1  it never decrypts a ciphertext that was handed to it as a total: it adds
        the devices' signed contributions by itself, and opens its own sums
    H2  only contributions signed by devices that *its own* operator approved
        count, each device once, and at least ``min_devices`` of them in a
        sum, its own number or the run's, whichever is larger
    H3  one set per (run, round), fixed on disk and signed before any ciphertext
        leaves a device; another set is refused for ever
    H4  one opening per set: of each of its disjoint groups one sum, over those
        members whose ciphertexts arrived; who they are is on disk before anything
        is opened, and another choice is refused for ever
    H5  of a group with a value that no honest devices can reach only zeros are
        released, which no honest group sums to; of a round without another group nothing
    H6  a fresh key pair per round, erased after the one opening; the key of a round
        that was never opened is erased when a later round of the run begins, at
        the latest after ``KEY_LIFE_S``
    H7  after a crash at any point it neither opens twice nor loses the only
        opening: the opened sums are on disk before the key is erased
    H8  every opening is a record in an append-only log before its result leaves

Why H1: a total (0, Δ) passes every check of a ciphertext's form, and its
decryption is the secret key. Adding happens in a worker process that never sees
a secret, so that bytes from outside are parsed where no key can leak.

Why H3: ciphertexts can be subtracted by anybody. A device that saw the others'
before it had to name its own could contribute an encryption of zero minus all
but one of them, and the sum would be that one's update.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import structlog

from shared.actors import Workbench
from shared.crypto.sum_cipher import (
    Adder,
    Scheme,
    SumContext,
    SumLayout,
    cipher_for,
    key_id_of,
    opener_for,
)
from shared.crypto.sum_groups import commitment_to, drawn_groups, joined, new_seed, parted
from shared.errors import (
    AlreadyOpened,
    ChildDied,
    CohortTooSmall,
    ConfigError,
    LlmOsError,
    NotApproved,
    PrivacyError,
    ProtocolError,
    StorageError,
    SumOutOfRange,
    WrongKey,
)
from shared.files import append_durably, digest_of, disk_errors, sync_folder, write_durably
from shared.key_holder.approvals import Approvals
from shared.transport.transport import Transport
from shared.types import Digest, PublicKey, RoundNumber, RunId
from shared.wire import codec, topics
from shared.wire.chunks import Downloads, is_digest, serve_blob
from shared.wire.envelope import Envelope, Post, claimed_sender, open_sealed
from shared.wire.messages import (
    BlobChunk,
    BlobRequest,
    Contribution,
    FixRequest,
    KeyAnnouncement,
    KeyRequest,
    Message,
    Opened,
    OpeningRefused,
    OpenRequest,
    SumSet,
)

MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024

MAX_GROUPS: Final = 128
"""Each is a total in memory while it is added."""

KEY_LIFE_S: Final = 7 * 24 * 3600.0
"""A week: longer than a round may take, and an end to what a lost round leaves behind."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Vault:
    """The files of one round, each written once. See H3, H4, H6, H7 for their order."""

    folder: Path

    @property
    def secret(self) -> Path:
        return self.folder / "secret.key"

    @property
    def announced(self) -> Path:
        """The announcement as JSON; its key pair exists or existed."""
        return self.folder / "announced.json"

    @property
    def public(self) -> Path:
        return self.folder / "public.key"

    @property
    def seed(self) -> Path:
        """What the groups are drawn from; shown once the set is fixed."""
        return self.folder / "groups.seed"

    @property
    def fixed(self) -> Path:
        """The one set: device names by digest of their ciphertext."""
        return self.folder / "fixed.json"

    @property
    def chosen(self) -> Path:
        """The digests of the one opening."""
        return self.folder / "chosen.json"

    @property
    def contributions(self) -> Path:
        """Folder of what is being opened."""
        return self.folder / "contributions"

    @property
    def opened(self) -> Path:
        return self.folder / "opened.sum"

    def clean(self) -> None:
        """Erase what must not outlive the opening; does what is left of it after a crash."""
        with disk_errors(self.folder):
            _erase(self.secret)
            if self.contributions.exists():
                shutil.rmtree(self.contributions)


@dataclass(slots=True)
class _Opening:
    """An opening under way: contributions are fetched, then added, then opened.

    Attributes:
        groups: The groups that have any contribution; of each the device names by
            digest.
        totals: Digests of the same groups' totals as the coordinator added them.
    """

    envelope: Envelope
    groups: list[dict[Digest, str]]
    totals: list[Digest]
    files: dict[Digest, Path] = field(default_factory=dict)
    adding: bool = False
    """Everything is here: from now on it ends by itself, with sums or a refusal."""

    @property
    def devices(self) -> int:
        """Contributions in all groups together."""
        return sum(map(len, self.groups))


class KeyHolder:
    """The key holder as an actor. Driven by one thread."""

    def __init__(
        self,
        home: Path,
        *,
        transport: Transport,
        post: Post,
        coordinator: PublicKey,
        min_devices: int,
        bench: Workbench,
        adder: Adder,
    ) -> None:
        """Stand where the files in ``home`` say it stood.

        Args:
            home: Keys, approvals, openings and the log; nobody else may read it.
            transport: Opened by whoever drives this actor.
            post: Seals and opens envelopes.
            coordinator: The only peer it talks to.
            min_devices: Fewest devices in a sum it opens; its operator's choice.
            bench: Clock and place for slow work.
            adder: Adds ciphertexts without any secret.

        Raises:
            ValueError: ``min_devices`` is below 2, which would open one update.
            StorageError: the key of a sum that is opened cannot be erased.
        """
        if min_devices < 2:
            raise ValueError(f"min_devices must be at least 2, not {min_devices}")
        self._home = home
        self._transport = transport
        self._post = post
        self._coordinator = coordinator
        self._min_devices = min_devices
        self._bench = bench
        self._adder = adder
        self._approvals = Approvals(home / "approvals.json")
        self._downloads = Downloads(self._request)
        self._openings: dict[tuple[RunId, RoundNumber], _Opening] = {}
        for vault in self._vaults():
            if vault.opened.exists():
                vault.clean()

    @property
    def topics(self) -> Sequence[str]:
        """Its own branch only."""
        return (topics.down(topics.KEY_HOLDER),)

    def receive(self, topic: str, payload: bytes) -> None:
        """Take one message of the coordinator; everything else is refused and logged."""
        try:
            envelope = self._post.open(payload, expected=self._coordinator)
        except ProtocolError as err:
            log.warning("message.refused", topic=topic[:80], code=err.code, error=str(err))
            return
        self._attempt(envelope, lambda: self._handle(envelope))

    def tick(self) -> float:
        """Ask again for what has stalled."""
        try:
            self._downloads.tick(self._bench.now())
        except StorageError as err:
            log.error("disk.failing", error=str(err))
        return 0.5 if self._downloads.under_way else 5.0

    def close(self) -> None:
        """Nothing to release: everything that matters is on disk."""

    def _handle(self, envelope: Envelope) -> None:
        match envelope.message:
            case BlobChunk() as chunk:
                self._downloads.receive("coordinator", chunk, self._bench.now())
            case BlobRequest() as request:
                self._serve(request)
            case KeyRequest() as request:
                self._announce(envelope, request)
            case FixRequest() as request:
                self._consider_set(envelope, request)
            case OpenRequest() as request:
                self._consider_opening(envelope, request)
            case message:
                log.warning("message.refused", kind=message.kind)

    def _attempt(self, envelope: Envelope, step: Callable[[], None]) -> None:
        """Do what the coordinator asked for, or answer why not.

        A failing disk or worker is no answer: nothing was decided, and the
        coordinator repeats its question until it gets one.
        """
        try:
            try:
                step()
            except (StorageError, ChildDied):
                raise
            except LlmOsError as err:
                self._refuse(envelope, err)
        except StorageError as err:
            log.error("disk.failing", error=str(err))
        except ChildDied as err:
            log.error("worker.died", error=str(err))

    # A round's key

    def _announce(self, envelope: Envelope, request: KeyRequest) -> None:
        vault = self._vault(envelope)
        if not vault.announced.exists():
            self._forget_keys(envelope)
            announcement = self._new_keys(vault, request)
        else:
            announcement = KeyAnnouncement(**json.loads(vault.announced.read_text()))
            if not announcement.answers(request):
                raise WrongKey("this round's key was made for another layout")
        self._send(announcement, envelope)

    def _forget_keys(self, envelope: Envelope) -> None:
        """Erase the keys of rounds that are not opened any more (H6).

        With recorded ciphertexts such a key would open single updates. A coordinator
        that begins a later round has given the earlier ones up.
        """
        for vault in self._vaults():
            run, round_ = RunId(vault.folder.parent.name), RoundNumber(int(vault.folder.name))
            opening = self._openings.get((run, round_))
            if not vault.secret.exists() or (opening is not None and opening.adding):
                continue
            age_s = self._bench.now() - vault.secret.stat().st_mtime
            if age_s > KEY_LIFE_S or (run == envelope.run and round_ < envelope.round):
                # Whatever of an opening is still being fetched is fetched no more.
                self._openings.pop((run, round_), None)
                vault.clean()
                log.info("key.forgotten", run=run, round=round_)

    def _new_keys(self, vault: _Vault, request: KeyRequest) -> KeyAnnouncement:
        try:
            scheme = Scheme(request.scheme)
            layout = SumLayout(
                count=request.count, bits=request.bits, max_devices=request.max_devices
            )
        except (ValueError, ConfigError) as err:
            raise ProtocolError(f"no key can be made for this layout: {err}") from err
        if scheme is Scheme.CLEAR:
            raise ProtocolError("the clear scheme has no keys to hold")
        if not 1 <= request.groups <= MAX_GROUPS:
            raise ProtocolError(f"groups must be 1 to {MAX_GROUPS}, not {request.groups}")
        if not 2 <= request.min_devices <= request.max_devices:
            raise ProtocolError(f"no sum can have {request.min_devices} devices or more")
        seed = new_seed()
        pair = opener_for(scheme, layout).new_key_pair()
        announcement = KeyAnnouncement(
            scheme=scheme,
            count=layout.count,
            bits=layout.bits,
            max_devices=layout.max_devices,
            groups=request.groups,
            min_devices=max(self._min_devices, request.min_devices),
            draw=commitment_to(seed),
            key_id=key_id_of(pair.public),
            digest=digest_of(pair.public),
            size=len(pair.public),
        )
        with disk_errors(vault.folder):
            vault.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_durably(vault.secret, pair.secret, mode=0o600)
        write_durably(vault.public, pair.public)
        write_durably(vault.seed, seed, mode=0o600)
        # Last: from here on key pair and seed are this round's, and no others are ever made (H6).
        write_durably(vault.announced, json.dumps(asdict(announcement)).encode())
        return announcement

    # A set

    def _consider_set(self, envelope: Envelope, request: FixRequest) -> None:
        vault = self._announced_vault(envelope)
        if request.manifest_bytes > MAX_MANIFEST_BYTES:
            raise ProtocolError(f"a manifest of {request.manifest_bytes} bytes is too large")

        def arrived(path: Path) -> None:
            self._attempt(envelope, lambda: self._fix(envelope, path.read_bytes()))

        self._downloads.fetch(
            Digest(request.manifest),
            request.manifest_bytes,
            vault.folder / f"manifest-{request.manifest[:16]}",
            peer="coordinator",
            now=self._bench.now(),
            finished=arrived,
            failed=lambda err: self._refuse(envelope, err),
        )

    def _fix(self, envelope: Envelope, manifest: bytes) -> None:
        """Check the set of contributions, fix it on disk, and sign it (H2, H3)."""
        vault = self._vault(envelope)
        announcement = json.loads(vault.announced.read_text())
        if not (vault.secret.exists() or vault.opened.exists()):
            raise AlreadyOpened(f"the key of round {envelope.round} has been erased")
        contributions = self._checked(envelope, manifest, announcement)
        if not vault.fixed.exists():
            write_durably(vault.fixed, json.dumps(contributions, sort_keys=True).encode())
        elif json.loads(vault.fixed.read_text()) != contributions:
            raise AlreadyOpened(
                f"round {envelope.round} of {envelope.run} was fixed with another set"
            )
        sum_set = SumSet(
            key_id=announcement["key_id"],
            digests=joined(sorted(contributions)),
            groups=announcement["groups"],
            seed=vault.seed.read_bytes(),
        )
        self._send(sum_set, envelope)

    # An opening

    def _consider_opening(self, envelope: Envelope, request: OpenRequest) -> None:
        """Check which members of the set are to be summed, and fix that on disk (H2, H4)."""
        vault = self._announced_vault(envelope)
        if (envelope.run, envelope.round) in self._openings:
            return
        if not vault.fixed.exists():
            raise ProtocolError(f"no set was fixed for round {envelope.round} of {envelope.run}")
        wanted = sorted(parted(request.digests))
        opening = _Opening(envelope, self._groups(vault, wanted), parted(request.totals))
        if len(opening.totals) != len(opening.groups):
            raise ProtocolError("there is one total for each group that has a contribution")
        if not vault.chosen.exists():
            write_durably(vault.chosen, json.dumps(wanted).encode())
        elif json.loads(vault.chosen.read_text()) != wanted:
            raise AlreadyOpened(
                f"other contributions of round {envelope.round} of {envelope.run} were chosen"
            )
        if vault.opened.exists():
            vault.clean()
            self._report(envelope, opening.devices)
            return
        if not vault.secret.exists():
            raise AlreadyOpened(f"the key of round {envelope.round} has been erased")
        self._fetch(opening, vault)

    def _groups(self, vault: _Vault, wanted: Sequence[Digest]) -> list[dict[Digest, str]]:
        """The groups of the fixed set, each with those of its members that are ``wanted``.

        Raises:
            ProtocolError: something is wanted that is not in the set.
            CohortTooSmall: a group has members, and too few to hide one of them.
        """
        announcement = json.loads(vault.announced.read_text())
        names = json.loads(vault.fixed.read_text())
        if not names.keys() >= set(wanted):
            raise ProtocolError("a contribution is to be summed that is not in the fixed set")
        drawn = drawn_groups(vault.seed.read_bytes(), names.keys(), announcement["groups"])
        present = [
            {digest: names[digest] for digest in group if digest in set(wanted)} for group in drawn
        ]
        found = [group for group in present if group]
        smallest = min(map(len, found), default=0)
        required = max(self._min_devices, announcement["min_devices"])
        if smallest < required:
            raise CohortTooSmall(present=smallest, required=required)
        return found

    def _fetch(self, opening: _Opening, vault: _Vault) -> None:
        envelope = opening.envelope
        self._openings[envelope.run, envelope.round] = opening
        size = self._frame_bytes(vault)
        try:
            for digest in sorted(digest for group in opening.groups for digest in group):
                self._downloads.fetch(
                    digest,
                    size,
                    vault.contributions / digest,
                    peer="coordinator",
                    now=self._bench.now(),
                    finished=partial(self._fetched, opening, digest),
                    failed=lambda err: self._abandon(opening, err),
                )
        except LlmOsError:
            # Or the coordinator's next request would be taken for one under way.
            self._openings.pop((envelope.run, envelope.round), None)
            raise

    def _checked(
        self, envelope: Envelope, manifest: bytes, announcement: dict[str, Any]
    ) -> dict[Digest, str]:
        """Names of the devices that count, by the digest of their contribution (H2).

        Devices that nobody approved are left out. Everything else that is wrong is
        the coordinator's doing, and nothing of the set is then fixed.

        Raises:
            NotApproved: too few are left because so many are not approved.
            CohortTooSmall: too few are there in any case.
            ProtocolError: a contribution is forged, not this round's, or there twice.
        """
        records = codec.decode(manifest, limit=MAX_MANIFEST_BYTES)
        if not isinstance(records, list) or not all(isinstance(r, bytes) for r in records):
            raise ProtocolError("the manifest is not a list of contributions")
        approved = self._approvals.read()
        contributions: dict[Digest, str] = {}
        unknown: list[str] = []
        for record in records:
            sender = claimed_sender(record)
            name = approved.get(sender)
            if name is None:
                unknown.append(f"{sender.hex()[:16]}…")
                continue
            message = _contribution(record, sender, name, envelope, announcement)
            if name in contributions.values():
                raise ProtocolError(f"{name} is in the set twice")
            if message.digest in contributions:
                raise ProtocolError("two contributions are the same ciphertext")
            contributions[Digest(message.digest)] = name
        groups = announcement["groups"]
        required = max(self._min_devices, announcement["min_devices"]) * groups
        if unknown:
            log.warning("devices.unapproved", run=envelope.run, keys=unknown)
        if len(contributions) < required:
            if len(records) >= required:
                raise NotApproved(
                    f"{len(contributions)} of the {required} devices that are needed are approved "
                    f"here; nobody approved {', '.join(unknown[:5])}"
                )
            raise CohortTooSmall(present=len(contributions), required=required)
        if len(contributions) > announcement["max_devices"] * groups:
            raise ProtocolError("more devices than the fields of this round can hold")
        return contributions

    def _fetched(self, opening: _Opening, digest: Digest, path: Path) -> None:
        opening.files[digest] = path
        if len(opening.files) < opening.devices or not self._is_current(opening):
            return
        opening.adding = True
        self._bench.work(
            lambda: self._open(opening), lambda result: self._finished(opening, result)
        )

    def _open(self, opening: _Opening) -> bytes:
        """Add what each group sent, and open that (H1, H5). Runs beside the actor."""
        vault, envelope = self._vault(opening.envelope), opening.envelope
        announcement = json.loads(vault.announced.read_text())
        layout, scheme = _layout_of(announcement), Scheme(announcement["scheme"])
        sums: list[bytes] = []
        out_of_reach: SumOutOfRange | None = None
        for number, (group, expected) in enumerate(
            zip(opening.groups, opening.totals, strict=True)
        ):
            context = SumContext(envelope.run, envelope.round, announcement["key_id"], number)
            total = self._added(
                [opening.files[digest] for digest in sorted(group)], layout, scheme, context
            )
            if digest_of(total) != expected:
                raise ProtocolError("the coordinator's total is not the sum of these contributions")
            try:
                values = opener_for(scheme, layout).open(
                    total,
                    secret_key=vault.secret.read_bytes(),
                    context=context,
                    devices=len(group),
                )
            except SumOutOfRange as err:
                # One hostile device must not cost the others' groups their round.
                out_of_reach, values = err, np.zeros(layout.count, np.int64)
            sums.append(np.asarray(values, "<i8").tobytes())
        if out_of_reach is not None and not any(map(any, sums)):
            raise out_of_reach
        return b"".join(sums)

    def _added(
        self, frames: Sequence[Path], layout: SumLayout, scheme: Scheme, context: SumContext
    ) -> bytes:
        self._adder.begin(layout, scheme, context)
        try:
            for frame in frames:
                self._adder.add(context, frame)
            return self._adder.dump(context)
        finally:
            self._adder.discard(context)

    def _finished(self, opening: _Opening, result: Future[bytes]) -> None:
        self._openings.pop((opening.envelope.run, opening.envelope.round), None)
        self._attempt(opening.envelope, lambda: self._conclude(opening, result))

    def _conclude(self, opening: _Opening, result: Future[bytes]) -> None:
        """Log, keep, erase, tell: in this order (H5 to H8)."""
        envelope = opening.envelope
        vault = self._vault(envelope)
        try:
            values = result.result()
        except PrivacyError:
            vault.clean()  # H5: nothing that was added is an honest sum, and no other may be opened
            raise
        self._write_log(envelope, opening, values)
        write_durably(vault.opened, values, mode=0o600)
        vault.clean()
        log.info("sum.opened", run=envelope.run, round=envelope.round)
        self._report(envelope, opening.devices)

    def _abandon(self, opening: _Opening, err: LlmOsError) -> None:
        """Give an opening up whose contributions are not to be had."""
        if self._is_current(opening):
            del self._openings[opening.envelope.run, opening.envelope.round]
            self._refuse(opening.envelope, err)

    def _is_current(self, opening: _Opening) -> bool:
        """Whether nothing came between: of an opening that failed, downloads go on."""
        envelope = opening.envelope
        return self._openings.get((envelope.run, envelope.round)) is opening

    def _report(self, envelope: Envelope, devices: int) -> None:
        data = self._vault(envelope).opened.read_bytes()
        self._send(Opened(digest_of(data), len(data), devices), envelope)

    def _write_log(self, envelope: Envelope, opening: _Opening, values: bytes) -> None:
        share = len(values) // len(opening.groups)
        sums = [values[at : at + share] for at in range(0, len(values), share)]
        record = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "run": envelope.run,
            "round": envelope.round,
            "groups": [
                {
                    "devices": sorted(group.values()),
                    "total": total,
                    "sum": digest_of(opened),
                    "within_reach": any(opened),
                }
                for group, total, opened in zip(opening.groups, opening.totals, sums, strict=True)
            ],
        }
        path = self._home / "openings.jsonl"
        # A line that a power cut tore must not swallow the next one.
        start = b"\n" if _is_torn(path) else b""
        append_durably(path, start + json.dumps(record).encode() + b"\n")

    # Small things

    def _serve(self, request: BlobRequest) -> None:
        """Public keys and opened sums; never anything else of the vault."""
        for vault in self._vaults():
            for path in (vault.public, vault.opened):
                if path.exists() and digest_of(path.read_bytes()) == request.digest:
                    for chunk in serve_blob(request, path):
                        self._publish(self._post.seal(chunk))
                    return
        log.info("blob.withheld", digest=request.digest[:12])

    def _vaults(self) -> list[_Vault]:
        """Vaults, the youngest first: what is asked for is nearly always the last round's."""
        folders = (self._home / "rounds").glob("*/*")
        return [_Vault(f) for f in sorted(folders, key=lambda f: f.stat().st_mtime, reverse=True)]

    def _vault(self, envelope: Envelope) -> _Vault:
        if not topics.is_name(envelope.run) or envelope.round < 1:
            raise ProtocolError("the message names no run and round")
        return _Vault(self._home / "rounds" / envelope.run / str(envelope.round))

    def _announced_vault(self, envelope: Envelope) -> _Vault:
        vault = self._vault(envelope)
        if not vault.announced.exists():
            raise WrongKey(f"no key was made for round {envelope.round} of {envelope.run}")
        return vault

    def _frame_bytes(self, vault: _Vault) -> int:
        announcement = json.loads(vault.announced.read_text())
        return cipher_for(Scheme(announcement["scheme"]), _layout_of(announcement)).frame_bytes()

    def _refuse(self, envelope: Envelope, err: LlmOsError) -> None:
        log.warning(
            "opening.refused", run=envelope.run, round=envelope.round, code=err.code, error=str(err)
        )
        self._send(OpeningRefused(err.code, str(err)), envelope)

    def _send(self, message: Message, envelope: Envelope) -> None:
        self._post.guard.save()
        self._publish(self._post.seal(message, run=envelope.run, round_=envelope.round))

    def _publish(self, sealed: bytes) -> None:
        self._transport.publish(topics.up(topics.KEY_HOLDER), sealed)

    def _request(self, _peer: str, request: BlobRequest) -> None:
        self._publish(self._post.seal(request))


def _contribution(
    record: bytes, sender: PublicKey, name: str, envelope: Envelope, announcement: dict[str, Any]
) -> Contribution:
    """The contribution that ``name`` signed for the round of ``envelope``. Raises ProtocolError."""
    signed = open_sealed(record, expected=sender)
    message = signed.message
    if not isinstance(message, Contribution):
        raise ProtocolError("the manifest holds something else than contributions")
    if (signed.run, signed.round) != (envelope.run, envelope.round):
        raise ProtocolError(f"{name}'s contribution is to another round")
    if (message.key_id, message.scheme) != (announcement["key_id"], announcement["scheme"]):
        raise WrongKey(f"{name}'s contribution is under another key")
    if not is_digest(message.digest):
        raise ProtocolError(f"{name}'s contribution names no ciphertext")
    return message


def _is_torn(log_file: Path) -> bool:
    """Whether the last line of a log was not written to its end."""
    if not log_file.exists() or log_file.stat().st_size == 0:
        return False
    with log_file.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _layout_of(announcement: dict[str, Any]) -> SumLayout:
    return SumLayout(
        count=announcement["count"],
        bits=announcement["bits"],
        max_devices=announcement["max_devices"],
    )


def _erase(secret: Path) -> None:
    """Overwrite and remove a key file. Copies a file system keeps elsewhere are beyond us."""
    if secret.exists():
        with secret.open("r+b") as file:
            file.write(bytes(secret.stat().st_size))
            file.flush()
            os.fsync(file.fileno())
        secret.unlink()
        sync_folder(secret.parent)
