"""What was served is counted once, survives a restart, and waits for no disk."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from coordinator.inference.engine import Finished
from coordinator.inference.front_desk import Served
from coordinator.usage import FOLDER, Account, Meters, UsageBook, Use, account_of
from shared.errors import StorageError
from tests.support.brokers import eventually

DAY_S = 86_400
EVER = (date.min, date.max)


class Days:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.at = 10 * DAY_S + 100.0

    def now(self) -> float:
        return self.at

    def today(self) -> date:
        return datetime.fromtimestamp(self.at, UTC).date()


@pytest.fixture
def days() -> Days:
    return Days()


def served(caller: str = "notes", model: str = "qwen", tokens: int | None = 5) -> Served:
    end = None if tokens is None else Finished("stop", tokens, tokens + 1, tokens - 1)
    return Served(model, caller, "stop" if end else "busy", None, None, 1.0, end)


def book(folder: Path, days: Days, write_s: float = 3600.0) -> UsageBook:
    return UsageBook(folder, now=days.now, write_s=write_s)


def test_what_was_served_survives_a_restart(tmp_path: Path, days: Days) -> None:
    """U1."""
    first = book(tmp_path, days)
    first.served(served())
    first.served(served(tokens=None))
    first.served(served("device:kitchen"))
    expected = {
        Account(days.today(), "notes", "qwen"): Use(2, 5, 4, 6),
        Account(days.today(), "device", "qwen"): Use(1, 5, 4, 6),
    }
    assert first.used(*EVER) == expected
    first.close()
    second = book(tmp_path, days)
    assert second.used(*EVER) == expected
    second.served(served())
    second.close()
    assert book(tmp_path, days).used(*EVER)[Account(days.today(), "notes", "qwen")].requests == 3


def test_it_is_written_without_being_closed(tmp_path: Path, days: Days) -> None:
    """U1: a second process, which knows the disk alone, sees it."""
    first = book(tmp_path, days, write_s=0.01)
    first.served(served())
    assert eventually(lambda: bool(book(tmp_path, days).used(*EVER)))
    first.served(served())
    first.close()
    (use,) = book(tmp_path, days).used(*EVER).values()
    assert use.requests == 2


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from("abc"), st.sampled_from("xy"), st.integers(1, 9)),
        st.sampled_from(["write", "restart", "tomorrow"]),
    ),
    max_size=30,
)


def test_whatever_happens_in_between_each_request_counts_once(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    @settings(
        max_examples=25,
        deadline=None,
        phases=[Phase.generate],
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(steps=STEPS)
    def holds(steps: list[tuple[str, str, int] | str]) -> None:
        folder, days = tmp_path_factory.mktemp("usage"), Days()
        expected: dict[Account, Use] = {}
        kept = book(folder, days)
        for step in steps:
            if isinstance(step, tuple):
                key, model, tokens = step
                kept.served(served(key, model, tokens))
                account = Account(days.today(), key, model)
                more = Use(1, tokens, tokens - 1, tokens + 1)
                expected[account] = expected.get(account, Use()) + more
            elif step == "write":
                kept.write()
            elif step == "restart":
                kept.close()
                kept = book(folder, days)
            else:
                days.at += DAY_S
        assert kept.used(*EVER) == expected
        last = days.today()
        assert kept.used(last, last) == {a: u for a, u in expected.items() if a.day == last}
        kept.close()

    holds()


def test_what_the_disk_does_not_take_is_counted_and_written_later(
    tmp_path: Path, days: Days
) -> None:
    """U2, U3."""
    kept = book(tmp_path, days)
    (tmp_path / FOLDER).mkdir()
    damaged = tmp_path / FOLDER / f"{days.today()}.json"
    damaged.write_text("{")
    kept.served(served())
    with pytest.raises(StorageError, match="move it away"):
        kept.write()
    with pytest.raises(StorageError, match="move it away"):
        kept.used(*EVER)
    damaged.unlink()
    kept.served(served())
    kept.close()
    (use,) = book(tmp_path, days).used(*EVER).values()
    assert use.requests == 2


@pytest.mark.parametrize("text", ["[1]", "3", '[{"key": "a"}]', '[{"key":"a","model":"b","x":1}]'])
def test_a_file_of_something_else_is_refused_by_its_name(
    tmp_path: Path, days: Days, text: str
) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / f"{days.today()}.json").write_text(text)
    (tmp_path / FOLDER / "2026.json").write_text("a neighbour")
    with pytest.raises(StorageError, match=str(days.today())):
        book(tmp_path, days).used(*EVER)


def test_several_meters_are_told_alike(tmp_path: Path, days: Days) -> None:
    books = [book(tmp_path / name, days) for name in ("a", "b")]
    meters = Meters(*books)
    meters.served(served())
    meters.looked_up("qwen", hit=True)
    assert [len(each.used(*EVER)) for each in books] == [1, 1]
    for each in books:
        each.close()
    assert account_of("device:a") == "device"
    assert account_of("devices") == "devices"
