"""The built console in Chromium against the real application: people, keys, a chat, both languages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.api.live import WEB_SOCKETS
from coordinator.store.alarms import Alarm
from shared.loopback import LOOPBACK, served
from tests.support.console_pages import PASSWORD, Console, console_in_browser
from tests.support.coordinator_api import Api

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return Api(tmp_path)


@pytest.fixture
def base(api: Api) -> Iterator[str]:
    with served(api.app, 0, extra="coordinator", **WEB_SOCKETS) as port:
        yield f"http://{LOOPBACK}:{port}"
        api.live.close()


@pytest.fixture
def console(base: str) -> Iterator[Console]:
    with console_in_browser(base) as console:
        yield console


def first_link(api: Api) -> str:
    return api.people.first_link().secret


def test_a_link_opens_the_console_once_and_a_password_from_then_on(
    api: Api, console: Console
) -> None:
    link, page = first_link(api), console.page
    console.log_in(link)
    assert link not in page.url
    page.get_by_text("No device has joined yet").wait_for()
    page.get_by_role("button", name="Log out").first.click()
    page.get_by_role("heading", name="Log in").wait_for()
    console.open("login", link)
    page.get_by_text("This link no longer works").wait_for()
    console.open()
    page.reload()
    page.get_by_label("Name").fill("ada")
    page.get_by_label("Password").fill("not my sentence")
    page.get_by_role("button", name="Log in").click()
    page.get_by_text("Name or password is wrong.").wait_for()
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("heading", name="Fleet").wait_for()
    console.was_good()


def test_a_device_comes_and_goes_without_a_reload(api: Api, console: Console) -> None:
    console.log_in(first_link(api))
    console.page.get_by_text("Live", exact=True).first.wait_for()
    assert api.join().is_success
    console.page.get_by_role("link", name="kitchen").wait_for()
    assert api.client.delete("/api/v1/devices/kitchen", headers=api_headers(api)).is_success
    console.page.get_by_text("revoked").wait_for()
    console.was_good()


def api_headers(api: Api) -> dict[str, str]:
    return {"Authorization": f"Bearer {api.services.admin_token}"}


def test_a_key_is_made_used_and_revoked(api: Api, console: Console) -> None:
    console.log_in(first_link(api))
    page = console.page
    console.open("keys")
    page.get_by_role("button", name="New key").click()
    page.get_by_label("Name").fill("till")
    page.get_by_label("Days that it is valid").fill("")  # the clock here is not the browser's
    page.get_by_role("button", name="Make the key").click()
    secret = page.get_by_role("dialog", name="The secret of till").locator("code").inner_text()
    assert api.ask(secret).status_code == 200
    page.get_by_role("button", name="I have kept it").click()
    assert secret not in page.content()
    page.get_by_role("button", name="Revoke till?").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    page.get_by_text("till is revoked").wait_for()
    assert api.ask(secret).status_code == 401
    console.was_good()


def test_a_key_is_kept_out_and_let_in_again(api: Api, console: Console) -> None:
    secret = api.make_key("till")["key"]
    console.log_in(first_link(api))
    page = console.page
    console.open("keys")
    page.get_by_role("button", name="Quarantine till?").click()
    page.get_by_label("Why").fill("odd")
    page.get_by_role("dialog").get_by_role("button", name="Quarantine").click()
    page.get_by_text("till is in quarantine").wait_for()
    assert api.ask(secret).status_code == 401
    page.get_by_role("button", name="Let till out of quarantine?").click()
    page.get_by_role("dialog").get_by_role("button", name="Let out").click()
    page.get_by_text("till is valid again").wait_for()
    assert api.ask(secret).status_code == 200
    console.was_good()


def raised(api: Api, rule: str, kind: str, name: str, severity: str = "warning") -> None:
    detail = "protocol.signature: the signature does not fit"
    api.store.alarms.add(Alarm(0, rule, severity, kind, name, detail, 7, 900.0, 990.0))


def test_an_alarm_comes_by_itself_and_goes_when_it_is_acknowledged(
    api: Api, console: Console
) -> None:
    console.log_in(first_link(api))
    page = console.page
    console.open("alarms")
    page.get_by_text("Nothing is wrong").wait_for()
    raised(api, "bad-signatures", "device", "kitchen")
    raised(api, "sum-out-of-range", "run", "tickets", "critical")
    page.get_by_role("link", name="Alarms 2 open").first.wait_for()
    page.get_by_text("Sum out of range").wait_for()
    console.picture("alarms")
    page.get_by_role("button", name="Acknowledge alarm 2").click()
    page.get_by_role("link", name="Alarms 1 open").first.wait_for()
    page.get_by_text("Sum out of range").wait_for(state="detached")
    page.get_by_label("Show those that were acknowledged too").check()
    page.get_by_text("acknowledged by person:ada").wait_for()
    console.was_good()


def test_a_conversation_comes_in_pieces_and_is_counted(api: Api, console: Console) -> None:
    console.log_in(first_link(api))
    page = console.page
    console.open("playground")
    page.get_by_label("Your question").fill("hello")
    page.get_by_label("Your question").press("Enter")
    page.get_by_text("First token after").wait_for()
    answer = page.locator('[data-by="assistant"] p').inner_text()
    assert answer.strip() not in {"", "…"}
    console.picture("playground")
    console.open("serving")
    page.locator("dt", has_text="Requests").first.wait_for()
    console.until(
        lambda: page.locator("dt:text-is('Requests') + dd").inner_text() == "1", "one request"
    )
    page.get_by_text("person:ada").wait_for()
    console.was_good()


def test_everything_can_be_read_in_chinese_and_the_choice_stays(api: Api, console: Console) -> None:
    console.log_in(first_link(api))
    page = console.page
    page.get_by_label("Language").first.select_option("zh")
    page.get_by_role("heading", name="设备群").wait_for()
    assert page.evaluate("document.documentElement.lang") == "zh-Hans"
    page.reload()
    page.get_by_role("heading", name="设备群").wait_for()
    for place in (
        "runs",
        "runs/_new",
        "models",
        "playground",
        "serving",
        "alarms",
        "audit",
        "keys",
        "people",
    ):
        console.open(place)
        page.locator("h1").wait_for()
        text = page.locator("main").inner_text()
        assert any("\u4e00" <= letter <= "\u9fff" for letter in text), place
    console.was_good()


@pytest.mark.parametrize("width", [360, 1280])
def test_no_page_is_wider_than_its_window(api: Api, base: str, width: int) -> None:
    api.join()
    api.submit()
    raised(api, "bad-signatures", "device", "a-long-name-" * 4)
    with console_in_browser(base, viewport={"width": width, "height": 800}) as console:
        console.log_in(first_link(api))
        places = ("fleet", "fleet/kitchen", "runs", "runs/trial", "runs/_new", "models")
        for place in (*places, "playground", "serving", "alarms", "audit", "keys", "people"):
            console.open(place)
            console.page.locator("h1").wait_for()
            console.page.wait_for_timeout(300)
            wide = console.page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, place
        console.was_good()
