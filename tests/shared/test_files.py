"""F1 to F3: a file is whole or absent, on disk before anyone is told, and a refusal leaves nothing."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import StorageError
from shared.files import (
    appearing_file,
    appearing_folder,
    append_durably,
    digest_of,
    digest_of_file,
    disk_errors,
    make_folder,
    move_durably,
    write_durably,
)


class Disk:
    """Writes down, in order, what reaches the disk, and refuses when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.order: list[str] = []
        self.refuse: Callable[[str], bool] = lambda _: False
        self.error = errno.ENOSPC
        fsync, replace = os.fsync, Path.replace

        def recorded_fsync(descriptor: int) -> None:
            name = Path(f"/proc/self/fd/{descriptor}").readlink().name
            kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
            self._step(f"sync {kind} {name}")
            fsync(descriptor)

        def recorded_replace(source: Path, target: Path) -> Path:
            self._step(f"rename to {target.name}")
            return replace(source, target)

        monkeypatch.setattr(os, "fsync", recorded_fsync)
        monkeypatch.setattr(Path, "replace", recorded_replace)

    def _step(self, name: str) -> None:
        if self.refuse(name):
            raise OSError(self.error, os.strerror(self.error))
        self.order.append(name)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_content_then_name_then_folder_reach_the_disk(tmp_path: Path, disk: Disk) -> None:
    write_durably(tmp_path / "note", b"x")
    temporary = f".note.{os.getpid()}.tmp"
    assert disk.order == [
        f"sync file {temporary}",
        "rename to note",
        f"sync folder {tmp_path.name}",
    ]


def test_a_folder_that_had_to_be_made_is_on_disk_too(tmp_path: Path, disk: Disk) -> None:
    """Else the file would survive a power loss in a folder that did not."""
    write_durably(tmp_path / "a" / "b" / "note", b"x")
    assert disk.order[:2] == [f"sync folder {tmp_path.name}", "sync folder a"]
    assert disk.order[-1] == "sync folder b"


def test_an_append_is_on_disk_and_so_is_a_new_files_name(tmp_path: Path, disk: Disk) -> None:
    append_durably(tmp_path / "log", b"1\n")
    assert disk.order == ["sync file log", f"sync folder {tmp_path.name}"]
    append_durably(tmp_path / "log", b"2\n")
    assert disk.order[2:] == ["sync file log"]
    assert (tmp_path / "log").read_bytes() == b"1\n2\n"


def test_a_finished_file_is_on_disk_before_it_has_its_name(tmp_path: Path, disk: Disk) -> None:
    (tmp_path / "part").write_bytes(b"x")
    move_durably(tmp_path / "part", tmp_path / "in" / "blob")
    assert disk.order == [
        f"sync folder {tmp_path.name}",
        "sync file part",
        "rename to blob",
        "sync folder in",
    ]
    assert (tmp_path / "in" / "blob").read_bytes() == b"x"


@pytest.mark.parametrize("step", ["sync file", "rename"])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, disk: Disk, step: str, old: bytes | None
) -> None:
    path = tmp_path / "note"
    if old is not None:
        path.write_bytes(old)
    disk.refuse = lambda name: name.startswith(step)
    with pytest.raises(StorageError, match="the disk is full") as caught:
        write_durably(path, b"new")
    assert str(path) in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == (["note"] if old is not None else [])
    assert old is None or path.read_bytes() == old
    disk.refuse = lambda _: False
    write_durably(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_write_that_the_disk_refuses_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fdopen = os.fdopen

    def full(descriptor: int, mode: str) -> object:
        class Full:
            def __init__(self) -> None:
                self.file = fdopen(descriptor, mode)

            def __enter__(self) -> Full:
                return self

            def __exit__(self, *_: object) -> None:
                self.file.close()

            def write(self, data: bytes) -> None:
                self.file.write(data[: len(data) // 2])
                self.file.flush()
                raise OSError(errno.ENOSPC, "No space left on device")

        return Full()

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(StorageError):
        write_durably(tmp_path / "note", b"x" * 1000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("before", [b"", b"1\n"])
def test_an_append_that_fails_leaves_none_of_itself(
    tmp_path: Path, disk: Disk, before: bytes
) -> None:
    path = tmp_path / "log"
    path.write_bytes(before)
    disk.refuse = lambda name: name == "sync file log"
    with pytest.raises(StorageError):
        append_durably(path, b"2\n")
    assert path.read_bytes() == before
    disk.refuse = lambda _: False
    append_durably(path, b"2\n")
    assert path.read_bytes() == before + b"2\n"


LIMITED = """
import resource, sys
from pathlib import Path
from shared.errors import StorageError
from shared.files import append_durably, write_durably
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for step in (
    lambda: write_durably(folder / "note", b"x" * 1001),
    lambda: append_durably(folder / "log", b"x" * 600),
):
    try:
        step()
    except StorageError as err:
        sys.stdout.write(str(err) + "\\n")
    else:
        sys.stdout.write("written\\n")
write_durably(folder / "small", b"x" * 1000)
"""


def test_a_limit_of_the_real_system_leaves_nothing_behind(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands in for a full disk: the kernel itself cuts the write short."""
    (tmp_path / "log").write_bytes(b"y" * 500)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    assert first.startswith("cannot write")
    assert second.startswith("cannot write")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "small"]
    assert (tmp_path / "log").read_bytes() == b"y" * 500


def test_a_process_that_is_killed_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "note"
    path.write_bytes(b"old")
    program = (
        "import os, sys; from pathlib import Path; from shared.files import write_durably\n"
        "os.fsync = lambda _: os.kill(os.getpid(), 9)\n"
        "write_durably(Path(sys.argv[1]), b'new')"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert done.returncode == -9
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission denied"),
        (errno.EFBIG, "larger"),
        (errno.EIO, "health"),
        (errno.ENOTDIR, "where a folder should be"),
        (errno.EEXIST, "where a folder should be"),
    ],
)
def test_what_the_disk_refuses_comes_with_advice(number: int, advice: str) -> None:
    with pytest.raises(StorageError, match=advice) as caught, disk_errors(Path("/x/note")):
        raise OSError(number, "no")
    assert "/x/note" in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)


def test_other_errors_are_nobodys_disk() -> None:
    with pytest.raises(FileNotFoundError), disk_errors(Path("x")):
        raise FileNotFoundError(errno.ENOENT, "no")
    with pytest.raises(ValueError, match="bug"), disk_errors(Path("x")):
        raise ValueError("bug")


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_file_has_its_mode_from_the_first_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    seen: list[int] = []
    replace = Path.replace

    def looked_at(source: Path, target: Path) -> Path:
        seen.append(source.stat().st_mode & 0o777)
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", looked_at)
    write_durably(tmp_path / "note", b"secret", mode=mode)
    assert seen == [mode]


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "note").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_durably(tmp_path / "note", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_making_a_folder_that_is_there_does_nothing(tmp_path: Path, disk: Disk) -> None:
    make_folder(tmp_path)
    assert disk.order == []


@given(st.binary(max_size=5000))
def test_a_digest_is_that_of_the_content(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("digest") / "blob"
    write_durably(path, data)
    assert digest_of_file(path) == digest_of(data) == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("before", [False, True])
def test_a_folder_appears_whole_and_replaces_the_one_before(tmp_path: Path, before: bool) -> None:
    target = tmp_path / "parent" / "model"
    if before:
        target.mkdir(parents=True)
        (target / "old").write_text("old")
    with appearing_folder(target) as new:
        (new / "inner").mkdir(parents=True)
        (new / "inner" / "file").write_text("whole")
        assert (target / "old").exists() is before
    assert (target / "inner" / "file").read_text() == "whole"
    assert [path.name for path in target.parent.iterdir()] == ["model"]
    assert [path.name for path in target.iterdir()] == ["inner"]


def test_a_folder_that_is_not_finished_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("old")

    def half() -> None:
        with appearing_folder(target) as new:
            new.mkdir()
            (new / "file").write_text("half")
            raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        half()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (target / "old").read_text() == "old"


def test_a_folder_is_on_disk_before_it_has_its_name(tmp_path: Path, disk: Disk) -> None:
    with appearing_folder(tmp_path / "model") as new:
        new.mkdir()
        (new / "file").write_text("whole")
    named = disk.order.index("rename to model")
    before, after = disk.order[:named], disk.order[named + 1 :]
    assert before[0] == "sync file file"
    assert before[1].startswith("sync folder .model.")
    assert after == [f"sync folder {tmp_path.name}"]


def test_a_file_written_piece_by_piece_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "there" / "file"
    with appearing_file(target, mode=0o600) as file:
        file.write(b"1")
        assert not target.exists()
        file.write(b"2")
    assert target.read_bytes() == b"12"
    assert target.stat().st_mode & 0o777 == 0o600

    def interrupted() -> None:
        with appearing_file(target) as file:
            file.write(b"3")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_bytes() == b"12"
    assert list(target.parent.iterdir()) == [target]
