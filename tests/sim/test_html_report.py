"""report.html: one safe file that shows every part of a report that is there, and no other."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import DependencyMissing
from sim import html_report
from sim.html_report import render_html, write_html
from tests.support.browsers import looked_at, opened
from tests.support.reports import a_whole_report

HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "</title></style><script>document.title='owned'</script>",
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "<!-- --> ]]> &lt;b&gt; &#x3C;",
    "\u202egnp.exe\u202d",
    "\ud800 and \x00",
]

OPTIONAL = {
    "answers": "answers",
    "model": "passes",
    "who_could_see": "privacy",
    "epsilon_by_round": "epsilon",
    "bytes_out": "bytes",
    "history": "devices",
    "stages": "stages",
}
"""Part of a report, and the section it becomes."""

VOID = {"meta", "link", "br", "img", "input"}


class _Outline(HTMLParser):
    """Which elements there are, with which attributes, and all text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.ids: list[str] = []
        self.text: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def outline(page: str) -> _Outline:
    read = _Outline()
    read.feed(page)
    read.close()
    assert not read.open
    return read


def sections(page: str) -> set[str]:
    return set(re.findall(r'<section id="(\w+)"', page))


def test_every_part_of_a_report_is_a_section() -> None:
    read = outline(page := render_html(a_whole_report()))
    assert sections(page) == {*OPTIONAL.values(), "accuracy", "facts"}
    assert len(read.ids) == len(set(read.ids))
    for link in re.findall(r'href="#([\w-]+)"', page):
        assert link in read.ids


@pytest.mark.parametrize("key", OPTIONAL)
def test_what_is_absent_is_left_out(key: str) -> None:
    report = a_whole_report()
    del report[key]
    found = sections(render_html(report))
    assert OPTIONAL[key] not in found
    gone = {"accuracy", "devices"} if key == "history" else {OPTIONAL[key]}
    assert found == {*OPTIONAL.values(), "accuracy", "facts"} - gone


def test_hostile_devices_are_named_and_where_there_are_none_nothing_is_said() -> None:
    report = a_whole_report()
    assert "label-flip by device-2" in render_html(report)
    report["adversary"] = {"kind": "none", "devices": []}
    assert "adversary" not in render_html(report)


def test_even_an_empty_report_is_a_page() -> None:
    assert sections(render_html({})) == {"facts"}


def test_the_page_may_fetch_nothing_and_run_nothing() -> None:
    page = render_html(a_whole_report())
    names = {tag for tag, _ in outline(page).tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy[1]
    assert not re.search(r"https?:|url\(|@import", page)
    assert not any(name in ("style", "src") or name.startswith("on") for name in _attributes(page))


def _attributes(page: str) -> set[str]:
    return {name for _, names in outline(page).tags for name in names}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_what_people_named_stays_text(hostile: str) -> None:
    """The elements are those of the same report with harmless names, one by one."""
    page = render_html(a_whole_report(name=hostile))
    assert outline(page).tags == outline(render_html(a_whole_report(name="harmless"))).tags


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet=st.sampled_from("<>&\"'/=`{}%!-ab \n"), min_size=1, max_size=30))
def test_no_text_becomes_markup(name: str) -> None:
    page = render_html(a_whole_report(name=name))
    assert outline(page).tags == outline(render_html(a_whole_report(name="harmless"))).tags


def test_hostile_text_is_shown_as_it_is() -> None:
    text = "".join(outline(render_html(a_whole_report(name=HOSTILE[0]))).text)
    # The question, the answer, the reason (told, and as a bar), the model, the title.
    assert text.count(HOSTILE[0]) >= 6


def test_long_answers_are_cut_and_many_left_out() -> None:
    report = a_whole_report()
    example = report["answers"]["examples"][0]
    report["answers"]["examples"] = [example | {"answer": "a" * 601}] * 25
    page = render_html(report)
    assert page.count("a" * 600 + " …") == 24
    assert "a" * 601 not in page


@pytest.mark.parametrize("value", ["0.9%", "69.2%", "37.0%", "7.99", "118,539", "12.65", "∞"])
def test_numbers_are_in_tables_too(value: str) -> None:
    report = a_whole_report()
    report["accuracy"]["after"]["en"] = 0.009
    report["epsilon"]["device-2"] = "infinite"
    assert value in "".join(outline(render_html(report)).text)


def test_every_plot_has_words_and_a_table_beside_it() -> None:
    page = render_html(a_whole_report())
    for section in re.findall(r"<section.*?</section>", page, re.DOTALL):
        if 'class="chart"' in section:
            assert "<details>" in section
    assert page.count('class="chart"') == page.count('role="img" aria-label="') == 3 + 1 + 1 + 1 + 1


def test_the_best_known_numbers_are_at_the_top() -> None:
    top = render_html(a_whole_report()).split("<main")[0]
    for value in ("69.2%", "51.9% before; 74.0% centrally", "of 8 allowed", "119 kB", "86.4%"):
        assert value in top, value


def test_a_stand_in_is_never_taken_for_a_large_model() -> None:
    page = render_html(a_whole_report())
    told = re.findall(r"<li>\s*<p class=\"question\">.*?</li>", page, re.DOTALL)
    assert ["stand-in model" in one for one in told] == [False, True]
    assert ["on the device" in one for one in told] == [True, False]
    assert "tiny demo (a stand-in)" in page


@pytest.mark.parametrize(("known", "said"), [(0.62, "0.62"), (None, "none could be certified")])
def test_by_what_it_was_decided_who_answers_is_told(known: float | None, said: str) -> None:
    report = a_whole_report()
    report["answers"] |= {"threshold": known}
    page = render_html(report)
    for value in (said, "2.0%", "pieces of personal data taken out", "out of scope"):
        assert f"{value}" in page, value


def test_repeatable_noise_is_warned_of() -> None:
    assert "noise of this run can be repeated" in render_html(a_whole_report())
    report = a_whole_report()
    report["privacy"]["repeatable_noise"] = False
    assert 'class="warning"' not in render_html(report)


def test_a_run_without_noise_is_not_called_private() -> None:
    report = a_whole_report()
    report["privacy"] |= {"noise": "none"}
    report["epsilon"] = dict.fromkeys(report["epsilon"], "infinite")
    report["epsilon_by_round"] = {"device-1": {"1": "infinite"}}
    page = render_html(report)
    assert "made no promise of privacy" in page
    assert "epsilon" not in sections(page)
    assert "can be repeated" not in page


def test_one_device_without_a_bound_does_not_hide_the_others() -> None:
    report = a_whole_report()
    report["epsilon_by_round"]["device-1"]["2"] = "infinite"
    report["epsilon"]["device-1"] = "infinite"
    page = render_html(report)
    assert "epsilon" in sections(page)
    assert "∞" in page.split("<main")[0]
    assert page.count("<bdi>∞</bdi>") == 2


def test_clear_sums_are_warned_of_and_not_called_encrypted() -> None:
    report = a_whole_report()
    assert "encrypted update is as long" in render_html(report)
    report["protection"]["scheme"] = "clear"
    page = render_html(report)
    assert "Updates travelled in clear" in page
    assert "encrypted update is as long" not in page


def test_a_language_model_has_perplexity() -> None:
    report = a_whole_report(task="causal-lm")
    report["loss"] = {"before": math.log(80), "after": math.log(20)}
    report["history"][-1]["loss"] = math.log(20)
    page = render_html(report)
    assert "perplexity" in sections(page)
    assert "80.0 before" in page.split("<main")[0]
    assert "perplexity of all over 2 rounds: before 80.0, after round 2 20.0." in page
    assert "perplexity" not in sections(render_html(a_whole_report()))


def test_dropouts_declines_refusals_and_failures_are_told() -> None:
    report = a_whole_report()
    report["history"] = [
        {"round": 1, "invited": 5, "reported": 3, "declined": {"privacy.budget": 1}}
        | {"accuracy": {"all": 0.5}, "loss": 1.0, "accepted": False, "reason": "worse by far"},
        {"round": 2, "invited": 5, "reported": 0, "failed": "too few devices"},
    ]
    text = "".join(outline(render_html(report)).text)
    page = render_html(report)
    row = re.search(r"<tr><th scope=\"row\"><bdi>1</bdi></th>(<td><bdi>5</bdi>.*?)</tr>", page)
    assert row is not None
    assert re.findall(r"<bdi>(.*?)</bdi>", row[1])[:4] == ["5", "3", "1", "1"]
    for part in ("privacy.budget (1)", "refused: worse by far", "failed: too few devices"):
        assert part in text, part
    for legend in ("update arrived", "declined", "dropped out or too late"):
        assert legend in text, legend
    assert "3 of 10" in text


def test_it_is_written_whole_beside_the_report(tmp_path: Path) -> None:
    path = write_html(a_whole_report(name="工单 \ud800"), tmp_path / "out")
    assert path == tmp_path / "out" / "report.html"
    assert "工单 ?" in path.read_text(encoding="utf-8")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_it_stays_small_for_the_largest_simulation(tmp_path: Path) -> None:
    report = a_whole_report(devices=200, rounds=100)
    assert len(render_html(report)) < 6_000_000
    assert "median of 200 devices" in render_html(report)


def test_without_jinja_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(module: str, *, extra: str) -> None:
        raise DependencyMissing(module, extra)

    monkeypatch.setattr(html_report, "require", absent)
    with pytest.raises(DependencyMissing, match=re.escape(".[sim]")):
        render_html({})


@pytest.mark.browser
@pytest.mark.parametrize("hostile", ["harmless", *HOSTILE[:3]])
def test_a_browser_reads_the_same_elements_and_complains_of_nothing(
    tmp_path: Path, hostile: str
) -> None:
    seen = opened(write_html(a_whole_report(name=hostile), tmp_path))
    assert seen.console == []
    expected = [tag for tag, _ in outline(render_html(a_whole_report())).tags]
    assert re.findall(r"<([a-z]\w*)[\s>]", seen.dom) == expected


@pytest.mark.browser
def test_the_policy_stops_what_somebody_smuggled_in(tmp_path: Path) -> None:
    page = write_html(a_whole_report(), tmp_path)
    smuggled = "<script>document.title='owned'</script><img src=x.png onerror='document.title=1'>"
    page.write_text(page.read_text().replace("<main", smuggled + "<main"))
    seen = opened(page)
    assert "<title>LLM OS: demo</title>" in seen.dom
    assert len(seen.console) >= 2


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(360, False), (1280, True)])
def test_every_plot_is_drawn_and_nothing_is_cut_off(tmp_path: Path, width: int, dark: bool) -> None:
    seen = looked_at(write_html(a_whole_report(), tmp_path), width=width, dark=dark)
    assert seen["wide"] <= width
    assert seen["page"] == ("rgb(18, 22, 27)" if dark else "rgb(250, 249, 246)")
    assert len(seen["charts"]) == 7
    for chart in seen["charts"]:
        assert chart["height"] > 140, chart["alt"]
        assert chart["strokes"] or chart["fills"]
        assert "none" not in [*chart["strokes"], *chart["fills"]]
        assert all(length > 100 for length in chart["lengths"])
        assert chart["cut"] == []
