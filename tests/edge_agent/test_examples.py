"""The example store takes imports whole, keeps each example once, and keeps its name."""

from __future__ import annotations

import contextlib
import hashlib
import math
import sqlite3
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.examples import Added, ExampleStore, is_held_out
from shared.data_files import Example
from shared.errors import DataError, StorageError

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "device" / "examples.db"


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    imports=st.lists(
        st.lists(
            st.builds(Example, texts, st.sampled_from("ab"), st.sampled_from(["", "zh"])),
            max_size=6,
        ),
        max_size=3,
    )
)
def test_the_store_is_a_list_without_repeats(imports: list[list[Example]], path: Path) -> None:
    path.unlink(missing_ok=True)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    expected: dict[tuple[str, str], Example] = {}
    for one in imports:
        before = len(expected)
        for example in one:
            expected.setdefault((example.text, example.label), example)
        added = ExampleStore(path).add(one)
        assert added == Added(len(expected) - before, len(one) - (len(expected) - before))
    store = ExampleStore(path)
    assert store.examples() == list(expected.values())
    assert store.count == len(expected)


def test_the_same_text_may_have_two_labels(path: Path) -> None:
    store = ExampleStore(path)
    assert store.add([Example("hi", "a"), Example("hi", "b"), Example("hi", "a", "zh")]) == Added(
        2, 1
    )


def test_a_store_keeps_its_identifier_for_life(path: Path, tmp_path: Path) -> None:
    first = ExampleStore(path)
    first.add([Example("hi", "a")])
    assert ExampleStore(path).store_id == first.store_id
    assert ExampleStore(tmp_path / "other.db").store_id != first.store_id


def test_an_import_that_fails_leaves_no_trace(path: Path) -> None:
    store = ExampleStore(path)
    store.add([Example("hi", "a")])

    def broken() -> Iterator[Example]:
        yield Example("new", "a")
        raise DataError("the file ended")

    with pytest.raises(DataError):
        store.add(broken())
    assert store.examples() == [Example("hi", "a")]
    assert store.add([Example("new", "a")]) == Added(1, 0)


def test_the_digest_tells_contents_apart(tmp_path: Path) -> None:
    contents = [
        [],
        [Example("ab", "c")],
        [Example("a", "bc")],
        [Example("ab", "c", "zh")],
        [Example("x", "y"), Example("ab", "c")],
        [Example("ab", "c"), Example("x", "y")],
    ]
    digests = []
    for index, content in enumerate(contents):
        store = ExampleStore(tmp_path / f"{index}.db")
        store.add(content)
        digests.append(store.digest())
    assert len(set(digests)) == len(contents)
    same = ExampleStore(tmp_path / "same.db")
    same.add([Example("ab", "c")])
    same.add([Example("x", "y"), Example("ab", "c")])
    assert same.digest() == digests[-1]


def test_only_its_owner_can_read_it(path: Path) -> None:
    store = ExampleStore(path)
    store.add([Example("secret", "a")])
    with store._connection():
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


def test_writes_wait_for_the_disk(path: Path) -> None:
    with ExampleStore(path)._connection() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_several_threads_may_add_at_once(path: Path) -> None:
    store = ExampleStore(path)
    threads = [
        threading.Thread(target=store.add, args=([Example(f"{n}-{i}", "a") for i in range(50)],))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.count == 200


@pytest.mark.parametrize("content", [b"text,label\nhello,greet\n" * 100, b"x"])
def test_another_file_is_refused_and_left_alone(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(DataError, match="not an example store"):
        ExampleStore(path)
    assert path.read_bytes() == content


def test_another_program_s_database_is_refused_and_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    content = path.read_bytes()
    with pytest.raises(DataError, match="another program's"):
        ExampleStore(path)
    assert path.read_bytes()[100:] == content[100:], "all but the header's journal mode"


def test_a_folder_in_its_place_is_refused(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(DataError, match="is a folder"):
        ExampleStore(path)


def test_a_disk_that_refuses_is_named_and_nothing_is_lost(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ExampleStore(path)
    store.add([Example("hi", "a")])
    connect = sqlite3.connect

    def small(*args: object, **kwargs: object) -> sqlite3.Connection:
        connection = connect(*args, **kwargs)  # type: ignore[call-overload]
        connection.execute("PRAGMA max_page_count = 10")
        return connection  # type: ignore[no-any-return]

    monkeypatch.setattr(sqlite3, "connect", small)
    with pytest.raises(StorageError, match="disk is full"):
        store.add([Example(f"{index}" * 1000, "a") for index in range(100)])
    monkeypatch.undo()
    assert store.examples() == [Example("hi", "a")]


def test_the_held_out_share_is_about_the_share_that_was_asked_for() -> None:
    """False alarms: five standard errors of a proportion; the texts are fixed, so never."""
    for share in (0.0, 0.1, 0.5):
        held = sum(is_held_out(Example(f"text {n}", "a"), share) for n in range(5000))
        assert held / 5000 == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / 5000))


def test_who_is_held_out_follows_from_the_text_alone() -> None:
    drawn = int(hashlib.sha256("退款".encode()).hexdigest()[:16], 16) / 2**64
    for example in (Example("退款", "a"), Example("退款", "b", "zh")):
        assert is_held_out(example, math.nextafter(drawn, 1))
        assert not is_held_out(example, drawn)


def test_a_larger_share_holds_out_whom_a_smaller_one_did() -> None:
    examples = [Example(f"text {n}", "a") for n in range(200)]
    small, large = (
        {one.text for one in examples if is_held_out(one, share)} for share in (0.2, 0.4)
    )
    assert small < large


def test_charges_are_remembered_and_never_fewer(tmp_path: Path) -> None:
    store = ExampleStore(tmp_path / "examples.db")
    assert store.charges == 0
    store.note_charges(3)
    store.note_charges(2)
    assert ExampleStore(tmp_path / "examples.db").charges == 3


def test_a_store_made_before_charges_were_remembered_is_still_read(tmp_path: Path) -> None:
    path = tmp_path / "examples.db"
    before = ExampleStore(path)
    before.add([Example("hi", "a")])
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("ALTER TABLE store DROP COLUMN charges")
        connection.commit()
    store = ExampleStore(path)
    assert (store.store_id, store.charges) == (before.store_id, 0)
    assert store.examples() == [Example("hi", "a")]
