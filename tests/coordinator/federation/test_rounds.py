"""R1 to R5 hold whatever arrives how often in which order, and rows are all of a round."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from coordinator.federation.rounds import (
    AdapterApplied,
    Closed,
    DeviceDeclined,
    Invited,
    KeyAnnounced,
    Planned,
    Round,
    RoundFailed,
    State,
    SumOpened,
    Transition,
    UpdateStored,
)
from shared.errors import (
    CohortTooSmall,
    DuplicateUpdate,
    IllegalTransition,
    LlmOsError,
    RoundClosed,
    RoundNotFound,
)
from shared.types import DeviceId, Digest, RoundNumber, RunId

RUN, NUMBER = RunId("run"), RoundNumber(3)
DEVICES = ("a", "b", "c", "d")
ADAPTER, OTHER = Digest("0" * 64), Digest("1" * 64)
APPLIED = AdapterApplied(OTHER, True, "", {"": 0.5}, 1.0, ADAPTER)


def digest(update: int) -> Digest:
    return Digest(f"{update:064x}")


def open_round(*reported: str, cohort: tuple[str, ...] = DEVICES, min_devices: int = 2) -> Round:
    """A round that takes updates, with those of ``reported`` in it."""
    stored = [UpdateStored(device, digest(7), b"record") for device in reported]
    rows: list[Transition] = [Planned(ADAPTER), KeyAnnounced(b"key"), Invited(cohort, 1.0)]
    return Round.replay(RUN, NUMBER, min_devices, [*rows, *stored])


@dataclass
class Model:
    """What a round is, said once more and without any state machine."""

    min_devices: int
    happened: list[str] = field(default_factory=list)
    cohort: tuple[str, ...] = ()
    updates: dict[str, int] = field(default_factory=dict)
    declined: set[str] = field(default_factory=set)

    @property
    def at(self) -> str:
        return self.happened[-1]

    def takes(self, device: str, update: int) -> bool | type[LlmOsError]:
        """Whether an update is to be stored, is stored already, or why it is refused."""
        if device in self.updates:
            return False if self.updates[device] == update else DuplicateUpdate
        open_for = self.at == "invited" and device in self.cohort and device not in self.declined
        return True if open_for else RoundClosed


class RoundAgainstModel(RuleBasedStateMachine):
    """Everything anybody might do with a round, in any order, possible or not."""

    @initialize(min_devices=st.integers(2, 3))
    def plan(self, min_devices: int) -> None:
        self.rows: list[Transition] = [Planned(ADAPTER)]
        self.round = Round.replay(RUN, NUMBER, min_devices, self.rows)
        self.model = Model(min_devices, ["planned"])

    def attempt(self, transition: Transition, *, possible: bool) -> None:
        """Apply; a refusal must leave everything as it was."""
        before = copy.deepcopy(self.round)
        if possible:
            self.round.apply(transition)
            self.rows.append(transition)
        else:
            with pytest.raises((IllegalTransition, RoundClosed, DuplicateUpdate)):
                self.round.apply(transition)
            assert self.round == before

    @rule()
    def plan_again(self) -> None:
        self.attempt(Planned(OTHER), possible=False)

    @rule()
    def announce(self) -> None:
        possible = self.model.at == "planned"
        self.attempt(KeyAnnounced(b"key"), possible=possible)
        if possible:
            self.model.happened.append("announced")

    @rule(cohort=st.sets(st.sampled_from(DEVICES), min_size=2))
    def invite(self, cohort: set[str]) -> None:
        possible = self.model.at == "announced"
        self.attempt(Invited(tuple(sorted(cohort)), 5.0), possible=possible)
        if possible:
            self.model.happened.append("invited")
            self.model.cohort = tuple(sorted(cohort))

    @rule(device=st.sampled_from(DEVICES))
    def decline(self, device: str) -> None:
        model = self.model
        possible = (
            model.at == "invited"
            and device in model.cohort
            and device not in model.declined
            and device not in model.updates
        )
        self.attempt(DeviceDeclined(device, "busy", "busy"), possible=possible)
        if possible:
            model.declined.add(device)

    @rule(device=st.sampled_from(DEVICES), update=st.integers(0, 1))
    def store(self, device: str, update: int) -> None:
        expected = self.model.takes(device, update)
        if isinstance(expected, bool):
            assert self.round.check_update(DeviceId(device), digest(update)) == expected
        else:
            with pytest.raises(expected):
                self.round.check_update(DeviceId(device), digest(update))
        self.attempt(UpdateStored(device, digest(update), b"r"), possible=expected is True)
        if expected is True:
            self.model.updates[device] = update

    @rule()
    def close(self) -> None:
        model = self.model
        if model.at != "invited":
            with pytest.raises(IllegalTransition):
                self.round.close()
            self.attempt(Closed(tuple(sorted(model.updates))), possible=False)
        elif len(model.updates) < model.min_devices:
            with pytest.raises(CohortTooSmall) as caught:
                self.round.close()
            assert caught.value.present == len(model.updates)
            assert caught.value.required == model.min_devices
            self.attempt(Closed(tuple(sorted(model.updates))), possible=False)
        else:
            assert self.round.close() == Closed(tuple(sorted(model.updates)))
            self.attempt(self.round.close(), possible=True)
            model.happened.append("closed")

    @rule(devices=st.sets(st.sampled_from(DEVICES)))
    def close_over_others(self, devices: set[str]) -> None:
        if devices != self.model.updates.keys():
            self.attempt(Closed(tuple(sorted(devices))), possible=False)

    @rule()
    def open_sum(self) -> None:
        possible = self.model.at == "closed"
        self.attempt(SumOpened(OTHER, len(self.model.updates)), possible=possible)
        if possible:
            self.model.happened.append("opened")

    @rule()
    def apply_adapter(self) -> None:
        possible = self.model.at == "opened"
        self.attempt(APPLIED, possible=possible)
        if possible:
            self.model.happened.append("applied")

    @rule(chance=st.integers(0, 9))
    def fail(self, chance: int) -> None:
        over = self.model.at in {"applied", "failed"}
        if over or chance == 0:
            self.attempt(RoundFailed("lost", "lost"), possible=not over)
            self.model.happened += [] if over else ["failed"]

    @invariant()
    def the_rows_are_all_of_it(self) -> None:
        assert Round.replay(RUN, NUMBER, self.model.min_devices, self.rows) == self.round

    @invariant()
    def it_stands_where_the_model_stands(self) -> None:
        states = {
            "announced": State.INVITING,
            "invited": State.OPEN,
            "closed": State.CLOSING,
        }
        model = self.model
        assert self.round.state == states.get(model.at, model.at)
        assert self.round.is_over == (model.at in {"applied", "failed"})
        assert {name: u.digest for name, u in self.round.updates.items()} == {
            name: digest(update) for name, update in model.updates.items()
        }
        assert self.round.outstanding == [
            name
            for name in model.cohort
            if name not in model.updates and name not in model.declined
        ]

    @invariant()
    def what_is_fixed_is_large_enough_and_was_fixed_first(self) -> None:
        if "closed" in self.model.happened:
            assert self.round.closed == tuple(sorted(self.model.updates))
            assert len(self.round.closed) >= self.model.min_devices
        else:
            assert self.round.closed == ()
            assert self.round.opened is None
            assert self.round.result is None


TestRoundAgainstModel = RoundAgainstModel.TestCase
TestRoundAgainstModel.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def test_a_device_counts_once_and_may_ask_again() -> None:
    round_ = open_round("a")
    assert round_.check_update(DeviceId("b"), digest(7))
    assert not round_.check_update(DeviceId("a"), digest(7))
    with pytest.raises(DuplicateUpdate, match="a has already reported"):
        round_.check_update(DeviceId("a"), digest(8))


def test_a_device_that_was_counted_is_told_so_after_the_set_was_fixed() -> None:
    round_ = open_round("a", "b")
    round_.apply(round_.close())
    assert not round_.check_update(DeviceId("a"), digest(7))
    with pytest.raises(RoundClosed, match="takes no updates any more"):
        round_.check_update(DeviceId("c"), digest(7))


def test_one_device_short_is_not_fixed_and_the_round_stays_open() -> None:
    round_ = open_round("a", "b", min_devices=3)
    with pytest.raises(CohortTooSmall, match="2 of the required 3"):
        round_.close()
    round_.apply(UpdateStored("c", digest(9), b""))
    assert round_.close().devices == ("a", "b", "c")


def test_without_rows_there_is_no_round() -> None:
    with pytest.raises(RoundNotFound, match="no round 3"):
        Round.replay(RUN, NUMBER, 2, [])


def test_rows_that_do_not_begin_with_a_plan_are_not_a_rounds() -> None:
    with pytest.raises(IllegalTransition, match="begins with KeyAnnounced"):
        Round.replay(RUN, NUMBER, 2, [KeyAnnounced(b"")])
