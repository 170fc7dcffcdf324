"""The devices' updates in one round: bound to first, then handed over, checked and added.

U1  an update is asked for only after its digest was committed to and the set fixed
U2  its receipt is sent when it is on disk, folded, and written down as a row
U3  a refused update leaves no file, no row, and the totals as they were
U4  after a crash the rows and files that are left say the same as before
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import structlog

from coordinator.federation.rounds import (
    Committed,
    DeviceDeclined,
    Round,
    SetFixed,
    State,
    Transition,
    UpdateStored,
)
from coordinator.federation.secure_sum import SecureSum
from coordinator.fleet.fleet import Fleet
from coordinator.store.store import Store
from coordinator.watch.sightings import Sightings
from shared.actors import Workbench
from shared.crypto.sum_cipher import Adder, Scheme, SumContext, cipher_for, key_id_of, opener_for
from shared.crypto.sum_groups import commitment_to, drawn_groups, joined, parted
from shared.errors import (
    DuplicateUpdate,
    LlmOsError,
    NotApproved,
    ProtocolError,
    RoundClosed,
    StorageError,
    WrongKey,
)
from shared.files import digest_of
from shared.job import RunPlan
from shared.types import DeviceId, Digest
from shared.wire import codec
from shared.wire.chunks import Downloads, is_digest
from shared.wire.envelope import Envelope, open_sealed
from shared.wire.messages import (
    Contribution,
    HandOver,
    KeyAnnouncement,
    OpenRequest,
    Receipt,
    Refusal,
    SumSet,
)

log = structlog.get_logger()


class Updates:
    """What one round is owed and has. Driven by the coordinator's thread."""

    def __init__(
        self,
        round_: Round,
        plan: RunPlan,
        *,
        store: Store,
        fleet: Fleet,
        downloads: Downloads,
        bench: Workbench,
        adder: Adder,
        commit: Callable[[Transition], None],
        moved: Callable[[], None],
        watch: Sightings,
    ) -> None:
        """Stand where the round's rows say.

        ``commit`` writes a transition down and lets it have happened; ``moved`` is
        called when the round may have a next step; ``watch`` is told what is refused.
        """
        self._round = round_
        self._plan = plan
        self._store = store
        self._fleet = fleet
        self._downloads = downloads
        self._bench = bench
        self._adder = adder
        self._commit = commit
        self._moved = moved
        self._watch = watch
        self._sum: SecureSum | None = None
        self._fetching: set[DeviceId] = set()

    @property
    def announcement(self) -> KeyAnnouncement | None:
        """What the key holder announced for this round; None in clear."""
        if not self._round.announcement:
            return None
        holder = self._fleet.key_holder
        assert holder is not None
        message = open_sealed(self._round.announcement, expected=holder).message
        assert isinstance(message, KeyAnnouncement)
        return message

    # Commitments

    def offered(self, device: DeviceId, envelope: Envelope, message: Contribution) -> None:
        """A device has an update for us, and binds itself to it."""
        digest, round_ = Digest(message.digest), self._round
        try:
            if message.device != device:
                raise ProtocolError("the contribution names another device than its sender")
            if round_.check_commitment(device, digest):
                self._check_offer(device, message)
                self._commit(Committed(device, digest, envelope.raw))
                self._moved()
            elif device in round_.updates:
                self.answer(device, envelope, Receipt(digest))
            elif round_.fixed is not None and device not in round_.groups:
                raise _not_approved(device)
            elif device in round_.declined:
                raise RoundClosed(f"the update of {device} was refused before")
            elif round_.state not in (State.OPEN, State.FIXING, State.GATHERING):
                raise RoundClosed(f"round {round_.number} of {round_.run} is closed")
        except (RoundClosed, DuplicateUpdate, ProtocolError, NotApproved) as err:
            log.info("update.refused", run=round_.run, device=device, code=err.code)
            if isinstance(err, ProtocolError):  # the others happen to whoever is late
                self._watch.update_refused(device, err)
            self.answer(device, envelope, Refusal(digest, err.code, str(err)))

    def _check_offer(self, device: DeviceId, message: Contribution) -> None:
        announcement = self.announcement
        if not is_digest(message.digest):
            raise ProtocolError("an update is named by its SHA-256")
        others = self._round.commitments.values()
        if any(message.digest == other.digest for other in others) and announcement is not None:
            # The key holder would refuse the whole set for it. In clear two may be the same.
            raise DuplicateUpdate(f"{device} commits to the update of another device")
        expected = cipher_for(self._plan.scheme, self._plan.layout).frame_bytes()
        if message.size != expected:
            raise ProtocolError(f"an update of {message.size} bytes, this run's have {expected}")
        if (message.scheme, message.key_id) != (self._plan.scheme, self._context().key_id):
            raise WrongKey("the update is encrypted under another key or scheme")

    def manifest(self) -> Digest:
        """Blob with the signed commitments of the proposed set."""
        records = [self._round.commitments[device].record for device in self._round.proposed]
        return self._store.keep(codec.encode(records))

    # The set

    def set_in_clear(self) -> SetFixed:
        """The set of a run in clear: one group, or every device one of its own."""
        devices = self._round.proposed
        apart = self._plan.compares_devices
        groups = tuple(range(len(devices))) if apart else (0,) * len(devices)
        return SetFixed(devices, groups, b"", self._bench.now())

    def set_of(self, envelope: Envelope, message: SumSet) -> SetFixed:
        """The set as the key holder fixed it.

        Raises:
            ProtocolError: it is not one of this round's commitments, or its groups
                were not drawn from what the holder had committed to.
        """
        announcement = self.announcement
        assert announcement is not None
        device_of = {
            self._round.commitments[device].digest: device for device in self._round.proposed
        }
        digests = parted(message.digests)
        if message.key_id != announcement.key_id or not device_of.keys() >= set(digests):
            raise ProtocolError("the key holder fixed a set that was not proposed")
        if (
            commitment_to(message.seed) != announcement.draw
            or message.groups != announcement.groups
            or len(digests) < message.groups
        ):
            raise ProtocolError(
                "the key holder drew groups from something else than it committed to"
            )
        groups = drawn_groups(message.seed, digests, message.groups)
        members = [(device_of[digest], number) for number, of in enumerate(groups) for digest in of]
        return SetFixed(
            tuple(device for device, _ in members),
            tuple(number for _, number in members),
            envelope.raw,
            self._bench.now(),
        )

    def turn_away(self) -> None:
        """Tell the devices that the key holder left out, so that they need not wait."""
        for device in self._round.proposed:
            if device not in self._round.groups:
                err = _not_approved(device)
                digest = self._round.commitments[device].digest
                self._send(DeviceId(device), Refusal(digest, err.code, str(err)))

    # Updates

    def ask(self, device: DeviceId) -> None:
        """Show a device the fixed set and ask for its update (U1)."""
        round_ = self._round
        assert round_.fixed is not None
        run, digest = self._plan.run_id, round_.commitments[device].digest
        self._fleet.send(device, HandOver(round_.fixed.signed), run=run, round_=round_.number)
        if device in self._fetching:
            return
        self._fetching.add(device)
        try:
            self._downloads.fetch(
                digest,
                cipher_for(self._plan.scheme, self._plan.layout).frame_bytes(),
                self._file_of(device),
                peer=device,
                now=self._bench.now(),
                finished=partial(self._arrived, device),
                failed=lambda err: self._fetching.discard(device),
            )
        except LlmOsError:
            self._fetching.discard(device)  # or it would never be asked again
            raise

    def _arrived(self, device: DeviceId, path: Path) -> None:
        """An update is complete and on disk: fold it, write it down, send the receipt (U2, U3)."""
        self._fetching.discard(device)
        round_ = self._round
        if round_.state is not State.GATHERING:
            path.unlink(
                missing_ok=True
            )  # too late; its next offer is answered by what became of it
            return
        digest = round_.commitments[device].digest
        try:
            if not round_.check_update(device, digest):
                return
            sums = self.sums()  # of earlier updates: no fault of this one
            sums.fold(path, round_.groups[device])
        except StorageError:
            raise  # not the update's fault: it is asked for again
        except LlmOsError as err:
            path.unlink(missing_ok=True)
            log.warning("update.refused", run=round_.run, device=device, code=err.code)
            self._watch.update_refused(device, err)
            self._commit(DeviceDeclined(device, err.code, "its update was refused"))
            self._send(device, Refusal(digest, err.code, str(err)))
            self._moved()
            return
        try:
            self._commit(UpdateStored(device, digest))
        except StorageError:
            # The total holds an update that no row names: forget it, the files rebuild it.
            self.discard()
            raise
        self._send(device, Receipt(digest))
        self._moved()

    def answer(self, device: DeviceId, envelope: Envelope, message: Receipt | Refusal) -> None:
        """Answer a device's offer, whatever round it is to."""
        self._fleet.save_replay_guard()
        self._fleet.send(device, message, run=envelope.run, round_=envelope.round)

    def _send(self, device: DeviceId, message: Receipt | Refusal) -> None:
        self._fleet.save_replay_guard()
        self._fleet.send(device, message, run=self._plan.run_id, round_=self._round.number)

    # Sums

    def sums(self) -> SecureSum:
        """The running totals; folded again from the files if they are not in memory."""
        if self._sum is None:
            rebuilt = SecureSum(self._adder, self._plan.layout, self._plan.scheme, self._context())
            for device in self._round.updates:
                rebuilt.fold(self._file_of(DeviceId(device)), self._round.groups[device])
            self._sum = rebuilt  # only now: half a sum must never be taken for one
        return self._sum

    def discard(self) -> None:
        """Forget the running totals; the stored updates rebuild them."""
        dropped, self._sum = self._sum, None
        if dropped is not None:
            dropped.discard()

    def open_request(self) -> OpenRequest:
        """Ask the key holder for the sums of the closed round."""
        digests = [self._round.commitments[device].digest for device in self._round.closed]
        totals = [digest_of(self.sums().total(number)) for number in self._round.summed_groups()]
        return OpenRequest(joined(digests), joined(totals))

    def opened_in_clear(self) -> bytes:
        """The groups' sums behind each other, which in clear anybody can read."""
        opener = opener_for(Scheme.CLEAR, self._plan.layout)
        sums = []
        for number in self._round.summed_groups():
            devices = sum(self._round.groups[device] == number for device in self._round.closed)
            total = self.sums().total(number)
            values = opener.open(total, secret_key=b"", context=self._context(), devices=devices)
            sums.append(np.asarray(values, "<i8").tobytes())
        return b"".join(sums)

    def file(self, digest: str) -> Path | None:
        """The file of a closed round's update, for the key holder."""
        for device in self._round.closed:
            if self._round.commitments[device].digest == digest:
                return self._file_of(DeviceId(device))
        return None

    def _context(self) -> SumContext:
        announcement = self.announcement
        key_id = announcement.key_id if announcement is not None else key_id_of(b"")
        return SumContext(self._plan.run_id, self._round.number, key_id)

    def _file_of(self, device: DeviceId) -> Path:
        digest = self._round.commitments[device].digest
        return self._store.update_file(self._plan.run_id, self._round.number, device, digest)


def _not_approved(device: str) -> NotApproved:
    return NotApproved(f"the key holder's operator has not approved {device}")
