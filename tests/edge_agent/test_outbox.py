"""The outbox keeps an update whole until it is dropped, whatever process looks into it."""

from __future__ import annotations

import stat
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent import outbox as module
from edge_agent.outbox import Outbox, Waiting
from shared.errors import StorageError
from shared.files import digest_of, write_durably
from shared.types import RoundNumber, RunId

RUN = RunId("run")
FRAME = b"an encrypted update"
KEY_ID, DRAW = "0" * 16, "5eed" * 16

names = st.sampled_from(["run", "run-2", "a"])
rounds = st.integers(1, 12)
frames = st.binary(max_size=8)


def put(outbox: Outbox, run: str = RUN, round_: int = 1, frame: bytes = FRAME) -> Waiting:
    return outbox.put(
        RunId(run), RoundNumber(round_), frame, scheme="public-key", key_id=KEY_ID, draw=DRAW
    )


@settings(max_examples=30, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("put"), names, rounds, frames),
            st.tuples(st.just("drop"), names, rounds, st.just(b"")),
        ),
        max_size=12,
    )
)
def test_it_is_a_table_of_frames_by_run_and_round(steps: list[tuple[str, str, int, bytes]]) -> None:
    expected: dict[tuple[str, int], bytes] = {}
    with TemporaryDirectory() as folder:
        for what, run, round_, frame in steps:
            outbox = Outbox(Path(folder) / "outbox")  # a process that has just started
            if what == "put":
                put(outbox, run, round_, frame)
                expected[run, round_] = frame
            elif (found := outbox.find(RunId(run), RoundNumber(round_))) is not None:
                outbox.drop(found)
                del expected[run, round_]
        outbox = Outbox(Path(folder) / "outbox")
        waiting = outbox.waiting()
        assert [(each.run, each.round) for each in waiting] == sorted(expected)
        for each in waiting:
            frame = expected[each.run, each.round]
            assert (each.digest, each.size) == (digest_of(frame), len(frame))
            assert (each.scheme, each.key_id, each.draw) == ("public-key", KEY_ID, DRAW)
            path = outbox.frame(each.digest)
            assert path is not None
            assert path.read_bytes() == frame


def test_what_was_not_put_is_not_found(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    assert (outbox.waiting(), outbox.frame("ab" * 32)) == ([], None)
    put(outbox)
    assert outbox.find(RUN, RoundNumber(2)) is None
    assert outbox.find(RunId("another"), RoundNumber(1)) is None
    assert outbox.frame("ab" * 32) is None


def test_an_update_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = Outbox(tmp_path).frame(put(Outbox(tmp_path)).digest)
    assert path is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_dropping_leaves_no_file(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    kept, dropped = put(outbox, round_=1), put(outbox, round_=2)
    outbox.drop(dropped)
    assert outbox.waiting() == [kept]
    assert len(list(tmp_path.iterdir())) == 2
    outbox.drop(kept)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("good_writes", [0, 1])
def test_a_full_disk_leaves_nothing_of_the_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good_writes: int
) -> None:
    writes = iter(range(10))

    def until_full(path: Path, data: bytes, *, mode: int = 0o644) -> None:
        if next(writes) >= good_writes:
            raise StorageError("the disk is full")
        write_durably(path, data, mode=mode)

    outbox = Outbox(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_durably", until_full)
        with pytest.raises(StorageError):
            put(outbox)
    assert (outbox.waiting(), list(tmp_path.iterdir())) == ([], [])
    whole = put(outbox)
    assert outbox.waiting() == [whole]


def test_a_frame_whose_description_was_never_written_is_not_in_it(tmp_path: Path) -> None:
    """The power failed between the two files; the round is repeated and puts both."""
    outbox = Outbox(tmp_path)
    whole = put(outbox)
    description = next(tmp_path.glob("*.json"))
    description.unlink()
    assert (outbox.waiting(), outbox.frame(whole.digest)) == ([], None)
    put(outbox, frame=b"the repeat, under other randomness of the cipher")
    assert len(outbox.waiting()) == 1


def test_a_damaged_description_is_named(tmp_path: Path) -> None:
    put(Outbox(tmp_path))
    path = next(tmp_path.glob("*.json"))
    path.write_text("{}")
    with pytest.raises(StorageError, match=path.name):
        Outbox(tmp_path).waiting()
