"""The built console in a real browser, which tells of everything that it asked for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from coordinator.api.console import BUILT
from tests.support.browsers import chromium_or_skip

if TYPE_CHECKING:
    from playwright.sync_api import Page

PATIENCE_MS: Final = 60_000
PASSWORD: Final = "a long sentence of mine"  # noqa: S105  a test's own
SHOTS: Final = "LLMOS_SCREENSHOTS"
"""Names a folder for pictures of the pages, which are then made anew."""


class Console:
    """One page, and what happened in it that must not."""

    def __init__(self, page: Page, base: str) -> None:
        self.page = page
        self.base = base
        self.foreign: list[str] = []
        self.errors: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("request", lambda request: self._asked(request.url))
        page.on("websocket", lambda socket: self._asked(socket.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda said: self._said(said.type, said.text))

    def _asked(self, url: str) -> None:
        host = self.base.partition("://")[2]
        if url.partition("://")[2].partition("/")[0] != host:
            self.foreign.append(url)

    def _said(self, kind: str, text: str) -> None:
        # A refusal that a page shows is told by the browser too.
        if kind == "error" and "status of 4" not in text:
            self.errors.append(text)

    def open(self, *place: str) -> None:
        """Go to a page of the console."""
        self.page.goto(f"{self.base}/console/#/{'/'.join(place)}")

    def log_in(self, link: str, name: str = "ada") -> None:
        """Open a first link, choose name and password, and come in."""
        self.open("login", link)
        self.page.get_by_label("Name").fill(name)
        self.page.get_by_label("Password", exact=True).fill(PASSWORD)
        self.page.get_by_label("The password once more").fill(PASSWORD)
        self.page.get_by_role("button", name="Set password and log in").click()
        self.page.get_by_role("heading", name="Fleet").wait_for()

    def until(self, holds: Callable[[], bool], what: str) -> float:
        """Wait for something on the page; gives the seconds that it took."""
        began = time.monotonic()
        while not holds():
            assert time.monotonic() - began < PATIENCE_MS / 1000, f"waited for {what}"
            self.page.wait_for_timeout(20)
        return time.monotonic() - began

    def picture(self, name: str) -> None:
        """Keep what the page looks like, where somebody wants that."""
        if folder := os.environ.get(SHOTS):
            self.page.wait_for_timeout(600)  # until charts are drawn
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)

    def was_good(self) -> None:
        """Nothing of another host was asked for, and nothing went wrong in a script."""
        assert self.foreign == []
        assert self.errors == []


@contextmanager
def console_in_browser(base: str, **options: object) -> Iterator[Console]:
    """The console of the coordinator at ``base``. Mark tests ``browser``."""
    program = chromium_or_skip()
    if not (BUILT / "index.html").exists():
        pytest.skip("the console was not built: make console")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic"],
        )
        size = {"width": 1280, "height": 900}
        context = browser.new_context(**({"viewport": size, "locale": "en-GB"} | options))
        yield Console(context.new_page(), base)
        browser.close()
