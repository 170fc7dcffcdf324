"""A scope allows what it names, and what begins so where it says so."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from coordinator.api.roles import PERMISSIONS, SCOPE_KINDS, Role, Scopes

ROOT = Path(__file__).parents[3]

names = st.text(st.sampled_from("ab:*/"), min_size=1, max_size=4)
patterns = names.map(lambda name: name.replace("*", "")).filter(bool)


@given(st.lists(st.tuples(patterns, st.booleans()), max_size=3), names)
def test_a_scope_allows_what_a_slow_reading_of_it_allows(
    given_names: list[tuple[str, bool]], asked: str
) -> None:
    written = tuple(name + "*" * open_ended for name, open_ended in given_names)
    slow = not given_names
    for name, open_ended in given_names:
        begins = [asked[:length] for length in range(len(asked) + 1)]
        slow = slow or (name in begins if open_ended else asked == name)
    for kind in SCOPE_KINDS:
        assert Scopes(**{kind: written}).allow(kind, asked) is slow


def test_one_kind_says_nothing_about_another() -> None:
    scopes = Scopes(models=("a",))
    assert not scopes.allow("models", "b")
    assert scopes.allow("tasks", "b")
    assert scopes.allow("collections", "b")


@given(st.fixed_dictionaries({}, optional={k: st.lists(patterns, max_size=3) for k in SCOPE_KINDS}))
def test_scopes_are_read_as_they_were_kept(kept: dict[str, list[str]]) -> None:
    scopes = Scopes.of(kept)
    assert Scopes.of(scopes.kept()) == scopes
    assert scopes.kept() == {kind: names for kind, names in kept.items() if names}


# The table in the documents


def test_the_documents_table_is_the_codes() -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    section = text.partition("### Who may do what\n")[2].partition("\n###")[0]
    rows = re.findall(r"^\| `(\S+) (\S+)` \| ([a-z, ]+) \| (\d+) \|$", section, re.MULTILINE)
    documented = [
        (method, route, set(Role) if roles == "everybody" else set(roles.split(", ")), int(most))
        for method, route, roles, most in rows
    ]
    assert documented == [
        (each.method, each.route.replace(":path}", "}"), set(each.roles), each.body_bytes)
        for each in PERMISSIONS
    ]
