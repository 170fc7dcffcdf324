"""All pages together are the whole listing, each item once, whatever is added meanwhile."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from coordinator.api.listings import Order
from coordinator.api.pages import MOST_ITEMS, Places
from coordinator.federation import rounds
from coordinator.store import store as store_module
from coordinator.store.store import ApiKey, Store
from coordinator.views import events_page, summarise_runs, view_run
from shared.types import DeviceId, Digest, PublicKey, RoundNumber, RunId
from tests.support.coordinator_api import HEADERS, Api, problem
from tests.support.coordinator_plans import small_plan

ADAPTER = Digest("0" * 64)
RUN = RunId("run")
PLAN = small_plan().model_dump_json()
LISTINGS = ("/api/v1/devices", "/api/v1/keys", "/api/v1/runs", f"/api/v1/runs/{RUN}/events")

APPLIED = rounds.AdapterApplied(ADAPTER, True, "", {"": 0.5}, 1.0, ADAPTER)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    api = Api(tmp_path)
    yield api
    api.store.close()


def add_device(store: Store, number: int) -> None:
    name = f"d{number * 7919 % 1000:03}"  # not in the order of the names
    secret = store.new_token(expires_at=2.0)
    store.join(secret, DeviceId(name), PublicKey(number.to_bytes(32)), now=1.0)


def add_key(store: Store, number: int) -> None:
    name = f"k{number * 7919 % 1000:03}"
    store.add_key(ApiKey(name, "llmos_", f"{number:064}", created_at=float(number)))


def add_run(store: Store, number: int) -> None:
    # Two at a time are submitted in the same moment.
    store.add_run(RunId(f"run-{number}"), PLAN, ADAPTER, now=float(number // 2))


def add_event(store: Store, number: int) -> None:
    row = rounds.DeviceDeclined(f"d{number}", "busy", str(number))
    store.commit(RUN, RoundNumber(1 + number // 3), row, now=1.0)


class Listing:
    """One listing: how it grows, and what is in it, read in the plainest way."""

    def __init__(self, path: str, add: Callable[[Store, int], None], name: str) -> None:
        self.path = path
        self.add = add
        self.name = name

    def of(self, item: dict[str, Any]) -> Any:
        return item.get(self.name, item.get("event"))


GROWING = [
    Listing("/api/v1/devices?", add_device, "name"),
    Listing("/api/v1/keys?", add_key, "name"),
    Listing("/api/v1/runs?order=oldest&", add_run, "run"),
    Listing("/api/v1/runs?", add_run, "run"),
    Listing(f"/api/v1/runs/{RUN}/events?", add_event, "reason"),
]


def pages(api: Api, path: str, limits: Iterator[int]) -> Iterator[list[dict[str, Any]]]:
    cursor: str | None = ""
    while cursor is not None:
        answer = api.get(f"{path}limit={next(limits)}&cursor={cursor}")
        assert answer.status_code == 200, answer.text
        yield answer.json()["items"]
        cursor = answer.json()["next"]


def forever(value: int) -> Iterator[int]:
    while True:
        yield value


@pytest.mark.parametrize("listing", GROWING, ids=lambda each: each.path)
def test_every_item_is_on_one_page_whatever_is_added_meanwhile(
    tmp_path_factory: pytest.TempPathFactory, listing: Listing
) -> None:
    """P1."""

    @settings(
        max_examples=4,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        phases=[Phase.generate],  # each example writes a store: shrinking would take minutes
    )
    @given(
        before=st.integers(0, 8),
        limits=st.lists(st.integers(1, 5), min_size=1, max_size=40),
        added=st.lists(st.integers(0, 2), max_size=5),
    )
    def holds(before: int, limits: list[int], added: list[int]) -> None:
        api = Api(tmp_path_factory.mktemp("listing"))
        api.store.add_run(RUN, PLAN, ADAPTER, now=-1.0)
        for number in range(before):
            listing.add(api.store, number)
        (at_first,) = pages(api, listing.path, forever(MOST_ITEMS))
        more, seen, there = iter(added), [], before
        sizes = (limit for _ in forever(0) for limit in limits)
        for page in pages(api, listing.path, sizes):
            seen += [listing.of(item) for item in page]
            for _ in range(next(more, 0)):
                listing.add(api.store, there)
                there += 1
        (at_last,) = pages(api, listing.path, forever(MOST_ITEMS))
        api.store.close()
        assert len(seen) == len(set(seen)), "each once"
        assert {listing.of(item) for item in at_first} <= set(seen)
        whole = [listing.of(item) for item in at_last]
        assert seen == [each for each in whole if each in seen], "in the listing's order"

    holds()


def test_a_whole_listing_is_what_is_in_the_rows(api: Api) -> None:
    for number in range(30):
        for each in GROWING[:3]:
            each.add(api.store, number)
    names = [f"{number * 7919 % 1000:03}" for number in range(30)]
    assert [d["name"] for d in api.items("/api/v1/devices")] == sorted(f"d{n}" for n in names)
    assert [k["name"] for k in api.items("/api/v1/keys")] == sorted(f"k{n}" for n in names)
    oldest = [row.run for row in api.store.runs()]
    assert [r["run"] for r in api.items("/api/v1/runs?order=oldest")] == oldest
    assert [r["run"] for r in api.items("/api/v1/runs")] == oldest[::-1]


HISTORY: list[rounds.Transition] = [
    rounds.Planned(ADAPTER),
    rounds.Invited(("a", "b"), 3.0),
    rounds.Committed("a", ADAPTER, b"record"),
    rounds.RoundFailed("privacy.cohort", "1 of 2"),
]


@pytest.mark.parametrize("limit", range(1, 14))
def test_the_events_of_a_run_come_in_one_order_however_they_are_cut(api: Api, limit: int) -> None:
    store = api.store
    store.add_run(RUN, PLAN, ADAPTER, now=1.0)
    store.add_milestone(RUN, "started", {"loss": 1.0}, now=2.0)
    for number in (1, 2):
        for row in HISTORY:
            store.commit(RUN, RoundNumber(number), row, now=3.0)
    store.add_milestone(RUN, "finished", {"adapter": ADAPTER}, now=4.0)
    store.add_milestone(RUN, "released", {"accuracy": 0.5}, now=5.0)
    found = [
        (item["round"], item["event"])
        for page in pages(api, LISTINGS[3] + "?", forever(limit))
        for item in page
    ]
    steps = ["planned", "invited", "committed", "round-failed"]
    assert found == [
        (0, "submitted"),
        (0, "started"),
        *((number, step) for number in (1, 2) for step in steps),
        (0, "finished"),
        (0, "released"),
    ]


def test_a_page_reads_no_more_rows_than_it_shows(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    store = api.store
    store.add_run(RUN, PLAN, ADAPTER, now=1.0)
    for number in range(60):
        add_event(store, number)
    store.commit(RUN, RoundNumber(20), APPLIED, now=1.0)
    read: list[int] = []
    inner = store_module._stored_transition

    def counted(row: Any) -> Any:
        read.append(row.id)
        return inner(row)

    monkeypatch.setattr(store_module, "_stored_transition", counted)
    found = events_page(store, store.run(RUN), (3, 10, 0), limit=7)
    assert [event["round"] for _, event in found] == [10, 10, 10, 11, 11, 11, 12]
    assert len(read) == 7
    read.clear()
    (summary,) = summarise_runs(store, store.runs_after(limit=5))
    assert (summary.round, summary.accuracy) == (20, {"": 0.5})
    assert len(read) == 1


def test_a_summary_says_what_the_whole_view_says(api: Api) -> None:
    store = api.store
    for number, ending in enumerate(("finished", "failed", "stopped", "", "")):
        run = RunId(f"run-{number}")
        store.add_run(run, PLAN, ADAPTER, now=float(number))
        if number < 4:
            store.add_milestone(run, "started", {"accuracy": {"": 0.1}, "loss": 2.0}, now=9.0)
            for at in range(number):
                store.commit(run, RoundNumber(at + 1), rounds.Planned(ADAPTER), now=10.0)
                store.commit(run, RoundNumber(at + 1), APPLIED, now=11.0)
        if ending:
            store.add_milestone(run, ending, {"reason": "why", "adapter": ADAPTER}, now=12.0)
    rows = store.runs()
    for row, summary in zip(rows, summarise_runs(store, rows), strict=True):
        view = view_run(store, row)
        same = ("run", "task", "state", "reason", "submitted_at", "adapter", "release")
        assert [getattr(view, name) for name in same] == [getattr(summary, name) for name in same]
        assert summary.round == len(view.rounds)
        assert summary.accuracy == (view.rounds[-1].accuracy if view.rounds else {})
    assert [each.run for each in store.open_runs(limit=9)] == ["run-3", "run-4"]


# Cursors


def forged(*parts: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts, separators=(",", ":")).encode()).decode()


@pytest.mark.parametrize("path", LISTINGS)
@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=201",
        "limit=many",
        "cursor=x",
        "cursor=%00",
        "cursor=" + "A" * 601,
        "cursor=" + forged("devices"),
        "cursor=" + forged("devices", "a\ud800"),
        "cursor=" + forged("devices", "a\0"),
        "cursor=" + forged("devices", "a") + "!",
        "cursor=" + forged("keys", 3),
        "cursor=" + forged("runs-newest", float("nan"), "a"),
        "cursor=" + forged("runs-newest", 10**30, "a"),
        "cursor=" + forged("runs-oldest", 1.0, "run-1"),
        "cursor=" + forged("events another", 1, 1, 1),
        "cursor=" + forged("events run", -1, 1, 2**63),
        "cursor=" + base64.urlsafe_b64encode(b"[" * 400).decode(),
        "cursor=" + base64.urlsafe_b64encode(b"{}").decode(),
        "cursor=" + base64.urlsafe_b64encode(b"1" * 400).decode(),
    ],
)
def test_what_is_no_place_in_a_listing_is_refused_by_its_name(
    api: Api, path: str, query: str
) -> None:
    """P2."""
    api.store.add_run(RUN, PLAN, ADAPTER, now=1.0)
    answer = api.client.get(f"{path}?{query}", headers=HEADERS)
    assert answer.status_code == 422, answer.text
    assert problem(answer)["detail"].startswith(query.partition("=")[0] + ": ")


def test_a_cursor_of_one_order_is_no_place_in_the_other(api: Api) -> None:
    for number in range(3):
        add_run(api.store, number)
    following = api.get("/api/v1/runs?limit=1").json()["next"]
    assert api.get(f"/api/v1/runs?limit=1&cursor={following}").status_code == 200
    turned = api.get(f"/api/v1/runs?limit=1&order={Order.OLDEST}&cursor={following}")
    assert turned.status_code == 422
    assert Places("runs-newest", float, str).read(following) == (1.0, "run-2")
