"""R1 to R5 hold whatever arrives how often in which order, and rows are all of a round."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from coordinator.federation.rounds import (
    AdapterApplied,
    Closed,
    Committed,
    DeviceDeclined,
    Invited,
    KeyAnnounced,
    Planned,
    Proposed,
    Quorum,
    Round,
    RoundFailed,
    SetFixed,
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
from tests.support.plans import a_plan

RUN, NUMBER = RunId("run"), RoundNumber(3)
DEVICES = ("a", "b", "c", "d")
ADAPTER, OTHER = Digest("0" * 64), Digest("1" * 64)
TWO = Quorum(2, 2, 1)
APPLIED = AdapterApplied(OTHER, True, "", {"": 0.5}, 1.0, ADAPTER)


def digest(update: int) -> Digest:
    return Digest(f"{update:064x}")


def bound_round(*committed: str, cohort: tuple[str, ...] = DEVICES, quorum: Quorum = TWO) -> Round:
    """A round in which devices bind themselves to updates, and those of ``committed`` have."""
    bound = [Committed(device, digest(7), b"record") for device in committed]
    rows: list[Transition] = [Planned(ADAPTER), KeyAnnounced(b"key"), Invited(cohort, 1.0)]
    return Round.replay(RUN, NUMBER, quorum, [*rows, *bound])


def gathering_round(groups: dict[str, int], *reported: str, quorum: Quorum = TWO) -> Round:
    """A round whose set is fixed in these groups, with updates of those in ``reported``."""
    members = sorted(groups, key=groups.__getitem__)
    round_ = bound_round(*sorted(groups), quorum=quorum)
    round_.apply(round_.propose())
    round_.apply(SetFixed(tuple(members), tuple(groups[d] for d in members), b"signed", 2.0))
    for device in reported:
        round_.apply(UpdateStored(device, digest(7)))
    return round_


@dataclass
class Model:
    """What a round is, said once more and without any state machine."""

    quorum: Quorum
    happened: list[str] = field(default_factory=list)
    cohort: tuple[str, ...] = ()
    bound: dict[str, int] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)
    updates: set[str] = field(default_factory=set)
    declined: set[str] = field(default_factory=set)

    @property
    def at(self) -> str:
        return self.happened[-1]

    def binds(self, device: str, update: int) -> bool | type[LlmOsError]:
        """Whether a commitment is to be written down, is already, or why it is refused."""
        if device in self.bound:
            return False if self.bound[device] == update else DuplicateUpdate
        open_for = self.at == "invited" and device in self.cohort and device not in self.declined
        return True if open_for else RoundClosed

    def takes(self, device: str, update: int) -> bool | type[LlmOsError]:
        """Whether an update is to be stored, is stored already, or why it is refused."""
        if device in self.bound and self.bound[device] != update:
            return DuplicateUpdate
        if device in self.updates:
            return False
        due = device in self.groups and device not in self.declined
        return True if due and self.at == "fixed" else RoundClosed

    def summed(self) -> tuple[str, ...]:
        """Who would be summed now: members of groups that have enough updates."""
        by_group: dict[int, list[str]] = {}
        for device in sorted(self.updates):
            by_group.setdefault(self.groups[device], []).append(device)
        kept = [by_group[g] for g in sorted(by_group) if len(by_group[g]) >= self.quorum.per_group]
        if len(kept) < self.quorum.groups:
            return ()
        return tuple(device for group in kept for device in group)


class RoundAgainstModel(RuleBasedStateMachine):
    """Everything anybody might do with a round, in any order, possible or not."""

    @initialize(devices=st.integers(2, 3), per_group=st.integers(1, 2), groups=st.integers(1, 2))
    def plan(self, devices: int, per_group: int, groups: int) -> None:
        self.quorum = Quorum(devices, per_group, groups)
        self.rows: list[Transition] = [Planned(ADAPTER)]
        self.round = Round.replay(RUN, NUMBER, self.quorum, self.rows)
        self.model = Model(self.quorum, ["planned"])

    def attempt(self, transition: Transition, *, possible: bool) -> None:
        """Apply; a refusal must leave everything as it was."""
        before = copy.deepcopy(self.round)
        if possible:
            self.round.apply(transition)
            self.rows.append(transition)
        else:
            with pytest.raises((IllegalTransition, RoundClosed, DuplicateUpdate, CohortTooSmall)):
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

    @rule(cohort=st.sets(st.sampled_from(DEVICES), min_size=3))
    def invite(self, cohort: set[str]) -> None:
        possible = self.model.at == "announced"
        self.attempt(Invited(tuple(sorted(cohort)), 5.0), possible=possible)
        if possible:
            self.model.happened.append("invited")
            self.model.cohort = tuple(sorted(cohort))

    @rule(device=st.sampled_from(DEVICES), chance=st.integers(0, 2))
    def decline(self, device: str, chance: int) -> None:
        model = self.model
        owes = {
            "invited": set(model.cohort) - model.bound.keys(),
            "fixed": model.groups.keys() - model.updates,
        }.get(model.at, set())
        possible = device in owes - model.declined
        if not possible or chance == 0:
            self.attempt(DeviceDeclined(device, "busy", "busy"), possible=possible)
            if possible:
                model.declined.add(device)

    @rule(device=st.sampled_from(DEVICES), update=st.integers(0, 1))
    def bind(self, device: str, update: int) -> None:
        expected = self.model.binds(device, update)
        if isinstance(expected, bool):
            assert self.round.check_commitment(DeviceId(device), digest(update)) == expected
        else:
            with pytest.raises(expected):
                self.round.check_commitment(DeviceId(device), digest(update))
        self.attempt(Committed(device, digest(update), b"r"), possible=expected is True)
        if expected is True:
            self.model.bound[device] = update

    @rule()
    def propose(self) -> None:
        model = self.model
        devices = tuple(sorted(model.bound))
        enough = len(devices) >= self.quorum.devices
        if model.at == "invited" and not enough:
            with pytest.raises(CohortTooSmall) as caught:
                self.round.propose()
            assert (caught.value.present, caught.value.required) == (
                len(devices),
                self.quorum.devices,
            )
        elif model.at != "invited":
            with pytest.raises(IllegalTransition):
                self.round.propose()
        else:
            assert self.round.propose() == Proposed(devices)
        possible = model.at == "invited" and enough
        self.attempt(Proposed(devices), possible=possible)
        if possible:
            model.happened.append("proposed")

    @rule(devices=st.sets(st.sampled_from(DEVICES)))
    def propose_others(self, devices: set[str]) -> None:
        if devices != self.model.bound.keys():
            self.attempt(Proposed(tuple(sorted(devices))), possible=False)

    @rule(left_out=st.sets(st.sampled_from(DEVICES), max_size=1), groups=st.integers(1, 2))
    def fix(self, left_out: set[str], groups: int) -> None:
        model = self.model
        members = sorted(model.bound.keys() - left_out)
        dealt = sorted((number % groups, device) for number, device in enumerate(members))
        fixed = SetFixed(tuple(d for _, d in dealt), tuple(g for g, _ in dealt), b"s", 9.0)
        possible = model.at == "proposed"
        self.attempt(fixed, possible=possible)
        if possible:
            model.happened.append("fixed")
            model.groups = {device: group for group, device in dealt}

    @rule(device=st.sampled_from(DEVICES))
    def fix_with_a_stranger_or_one_twice(self, device: str) -> None:
        members = (*sorted(self.model.bound), device)
        self.attempt(SetFixed(members, (0,) * len(members), b"s", 9.0), possible=False)

    @rule(device=st.sampled_from(DEVICES), update=st.integers(0, 1))
    def store(self, device: str, update: int) -> None:
        expected = self.model.takes(device, update)
        if isinstance(expected, bool):
            assert self.round.check_update(DeviceId(device), digest(update)) == expected
        else:
            with pytest.raises(expected):
                self.round.check_update(DeviceId(device), digest(update))
        self.attempt(UpdateStored(device, digest(update)), possible=expected is True)
        if expected is True:
            self.model.updates.add(device)

    @rule()
    def close(self) -> None:
        model = self.model
        summed = model.summed()
        possible = model.at == "fixed" and bool(summed)
        if possible:
            assert self.round.close() == Closed(summed)
        else:
            expected = CohortTooSmall if model.at == "fixed" else IllegalTransition
            with pytest.raises(expected):
                self.round.close()
        self.attempt(Closed(summed), possible=possible)
        if possible:
            model.happened.append("closed")

    @rule(devices=st.sets(st.sampled_from(DEVICES)))
    def close_over_others(self, devices: set[str]) -> None:
        if devices != set(self.model.summed()):
            self.attempt(Closed(tuple(sorted(devices))), possible=False)

    @rule()
    def open_sum(self) -> None:
        possible = self.model.at == "closed"
        self.attempt(SumOpened(OTHER, len(self.round.closed)), possible=possible)
        if possible:
            self.model.happened.append("opened")

    @rule()
    def apply_adapter(self) -> None:
        possible = self.model.at == "opened"
        self.attempt(APPLIED, possible=possible)
        if possible:
            self.model.happened.append("applied")

    @rule(chance=st.integers(0, 19))
    def fail(self, chance: int) -> None:
        over = self.model.at in {"applied", "failed"}
        if over or chance == 0:
            self.attempt(RoundFailed("lost", "lost"), possible=not over)
            self.model.happened += [] if over else ["failed"]

    @invariant()
    def the_rows_are_all_of_it(self) -> None:
        assert Round.replay(RUN, NUMBER, self.quorum, self.rows) == self.round

    @invariant()
    def it_stands_where_the_model_stands(self) -> None:
        states = {
            "announced": State.INVITING,
            "invited": State.OPEN,
            "proposed": State.FIXING,
            "fixed": State.GATHERING,
            "closed": State.CLOSING,
        }
        model = self.model
        assert self.round.state == states.get(model.at, model.at)
        assert self.round.is_over == (model.at in {"applied", "failed"})
        assert {name: bound.digest for name, bound in self.round.commitments.items()} == {
            name: digest(update) for name, update in model.bound.items()
        }
        assert self.round.updates.keys() == model.updates
        assert self.round.groups == model.groups
        owing, done = (
            (model.groups, model.updates) if model.groups else (model.cohort, model.bound.keys())
        )
        if "fixed" not in model.happened or model.groups:
            assert sorted(self.round.outstanding) == sorted(set(owing) - done - model.declined)

    @invariant()
    def what_is_summed_is_large_enough_and_was_fixed_first(self) -> None:
        if "closed" in self.model.happened:
            assert self.round.closed == self.model.summed()
            groups = [self.model.groups[device] for device in self.round.closed]
            assert groups == sorted(groups)
            assert min(groups.count(group) for group in groups) >= self.quorum.per_group
            assert self.round.summed_groups() == sorted(set(groups))
        else:
            assert self.round.closed == ()
            assert self.round.opened is None
            assert self.round.result is None

    @invariant()
    def nothing_is_stored_that_was_not_committed_to_before_the_set_was_fixed(self) -> None:
        for device, stored in self.round.updates.items():
            assert stored.digest == self.round.commitments[device].digest
            assert device in self.round.proposed


TestRoundAgainstModel = RoundAgainstModel.TestCase
TestRoundAgainstModel.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def test_a_device_is_bound_once_and_may_ask_again() -> None:
    round_ = bound_round("a")
    assert round_.check_commitment(DeviceId("b"), digest(7))
    assert not round_.check_commitment(DeviceId("a"), digest(7))
    with pytest.raises(DuplicateUpdate, match="a has already committed"):
        round_.check_commitment(DeviceId("a"), digest(8))


def test_a_device_that_was_counted_is_told_so_after_the_round_was_closed() -> None:
    round_ = gathering_round({"a": 0, "b": 0}, "a", "b")
    round_.apply(round_.close())
    assert not round_.check_update(DeviceId("a"), digest(7))
    with pytest.raises(RoundClosed, match="takes no updates any more"):
        round_.check_update(DeviceId("c"), digest(7))


def test_one_commitment_short_is_not_proposed_and_the_round_stays_open() -> None:
    round_ = bound_round("a", "b", quorum=Quorum(3, 3, 1))
    with pytest.raises(CohortTooSmall, match="2 of the required 3"):
        round_.propose()
    round_.apply(Committed("c", digest(9), b""))
    assert round_.propose().devices == ("a", "b", "c")


def test_one_update_short_is_not_closed_and_more_may_come() -> None:
    round_ = gathering_round({"a": 0, "b": 0, "c": 0}, "a", "b", quorum=Quorum(3, 3, 1))
    with pytest.raises(CohortTooSmall, match="2 of the required 3"):
        round_.close()
    round_.apply(UpdateStored("c", digest(7)))
    assert round_.close().devices == ("a", "b", "c")


def test_an_update_cannot_be_chosen_after_the_set_was_fixed() -> None:
    """Neither by a device that is in the set, nor by one that comes late."""
    round_ = gathering_round({"a": 0, "b": 0}, "a")
    with pytest.raises(DuplicateUpdate):
        round_.check_update(DeviceId("b"), digest(8))
    with pytest.raises(RoundClosed):
        round_.check_update(DeviceId("c"), digest(8))
    with pytest.raises(RoundClosed):
        round_.check_commitment(DeviceId("c"), digest(8))


@pytest.mark.parametrize(
    ("devices", "groups"), [(("a", "b", "c"), (0, 1, 0)), (("a", "b", "b"), (0, 0, 1))]
)
def test_a_set_out_of_order_or_with_a_device_in_two_groups_is_not_fixed(
    devices: tuple[str, ...], groups: tuple[int, ...]
) -> None:
    round_ = bound_round("a", "b", "c")
    round_.apply(round_.propose())
    with pytest.raises(IllegalTransition, match="ordered by group"):
        round_.apply(SetFixed(devices, groups, b"signed", 2.0))
    assert round_.state is State.FIXING


def test_a_group_without_enough_updates_is_left_out_and_the_others_are_summed() -> None:
    groups = {"a": 0, "b": 0, "c": 1, "d": 1}
    round_ = gathering_round(groups, "a", "b", "c", quorum=Quorum(4, 2, 1))
    assert round_.close() == Closed(("a", "b"))
    round_ = gathering_round(groups, "a", "b", "c", quorum=Quorum(4, 2, 2))
    with pytest.raises(CohortTooSmall, match="2 of the required 4"):
        round_.close()


@pytest.mark.parametrize(
    ("tables", "quorum"),
    [
        ({"protection": {"min_devices": 3}}, Quorum(3, 3, 1)),
        (
            {"protection": {"min_devices": 3, "groups": 4}, "server": {"rule": "median"}},
            Quorum(12, 3, 3),
        ),
        (
            {
                "protection": {"min_devices": 2, "groups": 7},
                "server": {"rule": "multikrum", "malicious": 2},
            },
            Quorum(14, 2, 7),
        ),
        ({"protection": {"scheme": "clear", "min_devices": 3}}, Quorum(3, 3, 1)),
        (
            {
                "protection": {"scheme": "clear", "min_devices": 6},
                "server": {"rule": "trimmed-mean", "malicious": 2},
            },
            Quorum(6, 1, 6),
        ),
    ],
)
def test_what_a_round_needs_follows_from_rule_and_protection(
    tables: dict[str, Any], quorum: Quorum
) -> None:
    assert Quorum.of(a_plan(**tables)) == quorum


def test_without_rows_there_is_no_round() -> None:
    with pytest.raises(RoundNotFound, match="no round 3"):
        Round.replay(RUN, NUMBER, Quorum(2, 2, 1), [])


def test_rows_that_do_not_begin_with_a_plan_are_not_a_rounds() -> None:
    with pytest.raises(IllegalTransition, match="begins with KeyAnnounced"):
        Round.replay(RUN, NUMBER, Quorum(2, 2, 1), [KeyAnnounced(b"")])
