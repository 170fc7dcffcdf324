"""Links between the documents lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

# [text](target) and ![text](target), and the same as HTML; not inside `code`.
LINK = re.compile(r"""(?:\]\(|(?:href|src)=["'])([^)\s"']+)""")
CODE = re.compile(r"^(`{3,}|~{3,}).*?^\1|`[^`\n]*`", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*$", re.MULTILINE)


def anchor(heading: str) -> str:
    """The fragment that Git forges give a heading."""
    kept = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower())
    return kept.replace(" ", "-")


def anchors(document: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    return {anchor(heading) for heading in HEADING.findall(text)}


def broken_links(document: Path) -> list[str]:
    broken = []
    for target in LINK.findall(CODE.sub("", document.read_text(encoding="utf-8"))):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue  # another site: not ours to keep, and tests stay offline
        path, _, fragment = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        missing = not file.exists() or not file.is_relative_to(ROOT)
        if missing or (fragment and file.suffix == ".md" and fragment not in anchors(file)):
            broken.append(target)
    return broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(document: Path) -> None:
    assert broken_links(document) == []


def test_the_check_sees_broken_links_and_only_those(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "other.md").write_text("# Über `uns`, kurz\n", encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(
        "# Top\n[a](other.md) [b](other.md#über-uns-kurz) [c](#top) [d](https://x.invalid)\n"
        "`[code](nowhere.md)`\n```\n[code](nowhere.md)\n```\n"
        "[e](nowhere.md) [f](other.md#nowhere) [g](#nowhere) ![h](no.png) "
        '<img src="no.svg"> [i](../outside.md)\n',
        encoding="utf-8",
    )
    assert broken_links(page) == [
        "nowhere.md",
        "other.md#nowhere",
        "#nowhere",
        "no.png",
        "no.svg",
        "../outside.md",
    ]
