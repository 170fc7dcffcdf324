"""A real browser that looks at a page and tells what it saw."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")

_LOOK = """<!doctype html><meta charset="utf-8"><body>
<iframe style="width:{width}px;height:2000px;border:0" src="{page}"></iframe>
<script>
addEventListener("load", () => {{
  const page = document.querySelector("iframe").contentDocument;
  const style = (node) => page.defaultView.getComputedStyle(node);
  const seen = {{
    title: page.title,
    wide: page.documentElement.scrollWidth,
    page: style(page.body).backgroundColor,
    charts: [...page.querySelectorAll("svg.chart")].map((chart) => ({{
      alt: chart.getAttribute("aria-label"),
      height: chart.getBoundingClientRect().height,
      strokes: [...chart.querySelectorAll("polyline")].map((line) => style(line).stroke),
      lengths: [...chart.querySelectorAll("polyline")].map((line) => line.getTotalLength()),
      fills: [...chart.querySelectorAll("rect")].map((bar) => style(bar).fill),
      cut: [...chart.querySelectorAll("text")].filter((text) => {{
        const box = text.getBBox();
        return box.x < -0.5 || box.x + box.width > 480.5 || box.y < 0 || box.y + box.height > 270.5;
      }}).map((text) => text.textContent),
    }})),
  }};
  document.body.textContent = "SEEN" + JSON.stringify(seen) + "SEEN";
}});
</script>"""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a browser made of a page."""

    dom: str
    console: list[str]


def chromium_or_skip() -> str:
    """The browser's program; skips the test where there is none. Mark tests ``browser``."""
    for name in _NAMES:
        if found := shutil.which(name):
            return found
    pytest.skip("no chromium")


def opened(page: Path, *flags: str) -> Seen:
    """Open a page, and return its elements and whatever the console complained about."""
    program = chromium_or_skip()
    # Not pytest's folder: its path may be longer than the socket of the profile allows.
    with tempfile.TemporaryDirectory(prefix="llmos-browser-") as profile:
        done = subprocess.run(
            [
                *(program, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"),
                *("--enable-logging=stderr", "--no-first-run", "--disable-extensions"),
                *("--disable-dev-shm-usage", f"--user-data-dir={profile}"),
                *flags,
                page.as_uri(),
            ],
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=300,
            env=os.environ | {"HOME": profile},
            check=True,
        )
    return Seen(done.stdout, re.findall(r"CONSOLE.*", done.stderr))


def looked_at(page: Path, *, width: int, dark: bool = False) -> dict[str, Any]:
    """Lay a page out, ``width`` pixels wide, and measure what is drawn."""
    frame = page.with_name(f"frame-{width}-{dark}.html")
    frame.write_text(_LOOK.format(width=width, page=page.name), encoding="utf-8")
    flags = ["--allow-file-access-from-files", f"--window-size={max(width, 500)},2000"]
    if dark:
        flags.append("--blink-settings=preferredColorScheme=0")
    found = re.search(r"SEEN(\{.*\})SEEN", opened(frame, *flags).dom, re.DOTALL)
    assert found is not None, "the page could not be looked at"
    seen: dict[str, Any] = json.loads(
        found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    )
    return seen
