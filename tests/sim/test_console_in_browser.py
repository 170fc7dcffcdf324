"""A fleet of real processes, watched and led from the console in a real browser."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.federation.rounds import AdapterApplied
from tests.support.console_pages import Console, console_in_browser
from tests.support.small_fleet import small_scenario
from tests.support.stories import Story, told, wait_for

pytestmark = [
    *(pytest.mark.broker, pytest.mark.browser, pytest.mark.model),
    *(pytest.mark.processes, pytest.mark.slow),
]

LAG_S = 20.0
"""Ten times what a page may lag behind: here others work beside it. Measured: docs/benchmarks.md."""


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    with told(tmp_path, small_scenario(tmp_path, training={"rounds": 4})) as story:
        yield story


@pytest.fixture
def console(story: Story) -> Iterator[Console]:
    with console_in_browser(story.fleet.ready["url"]) as console:
        yield console


def probe_file(story: Story, path: Path) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label", "group"])
        rows.writerows([each.text, each.label, each.group] for each in story.population.probe)
    return path


def test_a_run_moves_another_is_submitted_and_a_device_revoked(
    story: Story, console: Console, tmp_path: Path
) -> None:
    number, _ = story.held()
    console.log_in(story.fleet.client.post("/api/v1/session/first", {})["link"])
    page = console.page

    # A run that moves while it is watched, and how far the page lags behind
    console.open("runs", story.run)
    page.get_by_text(f"Round {number}", exact=False).first.wait_for()
    page.get_by_text("devices train").first.wait_for()
    story.hold_next_from_now()
    applied = wait_for(
        lambda: next(
            (row for at, row in story.rows() if at == number and isinstance(row, AdapterApplied)),
            None,
        ),
        "the round to be applied",
    )
    seen_at = time.monotonic()
    cell = page.locator("table[aria-label='Rounds'] tbody tr", has_text="applied").first
    cell.wait_for()
    lag_s = time.monotonic() - seen_at
    assert lag_s <= LAG_S, "the page lags behind"
    print(f"the page lags behind by {lag_s:.2f} s")  # noqa: T201  shown with -s
    assert applied.accepted
    console.picture("run")
    story.let_go()
    page.get_by_text("finished").first.wait_for()
    console.picture("run-finished")

    # Another, by the form
    console.open("runs", "_new")
    job = story.scenario.job()
    page.get_by_role("textbox", name="Name").fill("by-hand")
    page.get_by_role("textbox", name="Base model").fill(job.model.base)
    page.get_by_role("textbox", name="Rounds", exact=True).fill("1")
    page.get_by_role("textbox", name="Fewest devices", exact=True).fill("3")
    page.get_by_label("File").set_input_files(str(probe_file(story, tmp_path / "probe.csv")))
    page.get_by_label("For simulated devices").check()
    console.picture("submit")
    page.get_by_role("button", name="Submit the run").click()
    page.get_by_role("heading", name="by-hand").wait_for()
    page.get_by_text("finished").first.wait_for()

    # A device that is kept out for good
    console.open("fleet")
    page.get_by_role("link", name=story.devices[2]).wait_for()
    console.picture("fleet")
    page.get_by_role("link", name=story.devices[2]).click()
    page.get_by_role("button", name="Revoke").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    page.get_by_text(f"{story.devices[2]} is revoked").wait_for()
    listed = {each["name"]: each for each in story.fleet.client.get("/api/v1/devices")["items"]}
    assert listed[story.devices[2]]["standing"] == "revoked"
    assert [each["standing"] for each in listed.values()].count("trusted") == 2
    console.was_good()
