"""K1 to K6: a backup is a whole coordinator, or it is refused."""

from __future__ import annotations

import io
import json
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.federation.rounds import Planned, RoundFailed, UpdateStored
from coordinator.store import backup
from coordinator.store.archive import MANIFEST, SEAL, ArchiveWriter, Vanished
from coordinator.store.backup import Manifest, make_backup, restore_backup, sequence_after
from coordinator.store.database import Database
from coordinator.store.migrations import newest_revision
from coordinator.store.people import Link, Person, Session
from coordinator.store.store import ApiKey, Store
from coordinator.store.tables import KEPT
from shared.crypto.identity import Identity
from shared.errors import DataError, StorageError
from shared.files import digest_of
from shared.service import home_lock, secret_token
from shared.types import DeviceId, PublicKey, RoundNumber, RunId
from shared.wire.envelope import Post
from shared.wire.messages import Call
from tests.support.audited import DEEDS, Trail
from tests.support.random_stores import fillings
from tests.support.stores import (
    DATABASES,
    SQLITE,
    Place,
    empty_place,
    rows_in,
    sqlite_place,
    with_another,
)

NOW = 1_000_000.0
RUN, ROUND, KITCHEN = RunId("tickets"), RoundNumber(2), DeviceId("kitchen")
UPDATE = b"an encrypted update" * 40


def begin(place: Place) -> tuple[Store, Identity]:
    """A coordinator's home with what every coordinator has in it."""
    identity = Identity.load_or_create(place.folder / "identity.key")
    secret_token(place.folder / "admin.token")
    secret_token(place.folder / "metrics.token")
    Post(identity, place.folder).seal(Call())
    return place.open(), identity


def make_small(place: Place) -> None:
    """A coordinator in the middle of a round."""
    store, _ = begin(place)
    store.join(store.new_token(expires_at=9.0), KITCHEN, PublicKey(bytes(32)), now=1.0)
    store.add_run(RUN, "{}", store.keep(b"probe set"), now=2.0)
    store.add_milestone(RUN, "started", {"adapter": store.keep(b"adapter")}, now=3.0)
    store.commit(RUN, ROUND, Planned(store.keep(b"adapter")), now=4.0)
    spool(store)
    store.commit(RUN, ROUND, UpdateStored(KITCHEN, digest_of(UPDATE)), now=5.0)
    store.close()


def spool(store: Store) -> Path:
    path = store.update_file(RUN, ROUND, KITCHEN, digest_of(UPDATE))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(UPDATE)
    return path


def store_at(place: Place) -> str:
    return "" if place.url.startswith("sqlite") else place.url


def back_up(place: Place, target: Path, **options: Any) -> None:
    make_backup(place.folder, store_at=store_at(place), target=target, now=NOW, **options)


def restore(place: Place, source: Path, **options: Any) -> None:
    restore_backup(place.folder, store_at=store_at(place), source=source, now=NOW + 1, **options)


def rows_of(place: Place) -> dict[str, list[tuple[Any, ...]]]:
    """Every row, in the order in which rows of a run were committed, without numbers of ours."""
    database = Database(place.url)
    with database.reading() as connection:
        rows = {
            table.name: [
                tuple(value for column, value in row._mapping.items() if column != "id")
                for row in connection.execute(table.select().order_by(*table.primary_key.columns))
            ]
            for table in KEPT
        }
    database.close()
    for table in ("devices", "join_tokens", "api_keys", "people", "runs"):
        rows[table].sort(key=repr)  # what these are ordered by depends on the database
    return rows


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(("store.db", "lock", "sequence"))
    }


def is_untouched(place: Place) -> bool:
    """Whether nothing is where something might have been restored."""
    if place.url.startswith("sqlite"):
        return not place.folder.exists()
    database = Database(place.url)
    with database.reading() as connection:
        rows = rows_in(connection)
    database.close()
    return rows == {} and not place.folder.exists()


@pytest.fixture
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Where nothing is yet."""
    with empty_place(getattr(request, "param", SQLITE), tmp_path / "new", request) as place:
        place.folder.rmdir()
        yield place


both_targets = pytest.mark.parametrize("target", DATABASES, indirect=True)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A backup of the small coordinator."""
    folder = tmp_path / "small"
    folder.mkdir()
    make_small(sqlite_place(folder))
    back_up(sqlite_place(folder), tmp_path / "backup.tar")
    return tmp_path / "backup.tar"


# There and back


@pytest.mark.parametrize("there", DATABASES)
@pytest.mark.parametrize("origin", DATABASES)
@settings(max_examples=6, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_is_restored_is_what_was_backed_up(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    origin: str,
    there: str,
    data: st.DataObject,
) -> None:
    fill = data.draw(fillings())
    folder = tmp_path_factory.mktemp("there-and-back")
    with ExitStack() as stack:
        old = stack.enter_context(empty_place(origin, folder / "old", request))
        new = stack.enter_context(empty_place(there, folder / "new", request))
        new.folder.rmdir()
        store, identity = begin(old)
        fill(store, identity)
        store.close()
        back_up(old, folder / "backup.tar")
        restore(new, folder / "backup.tar")
        assert rows_of(new) == rows_of(old)
        needed = {name: files_of(old.folder)[name] for name in named_files(old)}
        restored = files_of(new.folder)
        assert needed.items() <= restored.items() <= files_of(old.folder).items()
        again = new.open()  # and what follows has a number of its own
        for run in again.runs():
            before = len(again.transitions(run.run))
            again.commit(run.run, ROUND, RoundFailed("x", "y"), now=9.0)
            assert len(again.transitions(run.run)) == before + 1
        again.close()


@both_targets
def test_people_come_along_and_nothing_that_opens_an_account(tmp_path: Path, target: Place) -> None:
    place = sqlite_place(tmp_path / "home")
    store, _ = begin(place)
    anna = Person("anna", "admin", "active", "hash of anna's", created_at=1.0)
    store.people.add(anna)
    store.people.add(Person("bert", "viewer", "invited", None, created_at=2.0))
    store.people.add_link(Link("1" * 64, "invite", "bert", expires_at=1e11), now=1.0)
    session = Session("2" * 64, "anna", begun_at=3.0, used_at=3.0)
    store.people.begin(session, password=anna.password, begun_after=0.0, used_after=0.0)
    people = store.people.people()
    back_up(place, tmp_path / "backup.tar")
    store.close()
    held = (tmp_path / "backup.tar").read_bytes()
    assert b"hash of anna's" in held
    assert b"1" * 64 not in held
    assert b"2" * 64 not in held
    restore(target, tmp_path / "backup.tar")
    again = target.open()
    assert again.people.people() == people
    assert again.people.link("1" * 64, now=4.0) is None
    assert again.people.session("2" * 64) is None
    again.people.add_link(Link("3" * 64, "invite", "bert", expires_at=9.0), now=4.0)
    again.close()


def named_files(place: Place) -> list[str]:
    """Blobs and the secrets; updates are needed while their round is not over."""
    return [name for name in files_of(place.folder) if name.startswith("blobs/") or "/" not in name]


def test_a_round_under_way_keeps_its_updates(saved: Path, target: Place) -> None:
    restore(target, saved)
    store = target.open()
    assert spooled(store).read_bytes() == UPDATE
    assert store.counted(RUN, ROUND, KITCHEN) == digest_of(UPDATE)
    store.close()


def spooled(store: Store) -> Path:
    return store.update_file(RUN, ROUND, KITCHEN, digest_of(UPDATE))


def test_a_backup_and_what_is_restored_are_for_their_owner_only(saved: Path, target: Place) -> None:
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    restore(target, saved)
    assert stat.S_IMODE(target.folder.stat().st_mode) == 0o700
    for path in target.folder.rglob("*"):
        if path.is_file() and not path.name.startswith("store.db"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    Identity.load(target.folder / "identity.key")


def test_any_tar_program_can_read_it(saved: Path) -> None:
    with tarfile.open(saved) as archive:
        names = archive.getnames()
        seal = archive.extractfile(SEAL)
        manifest = archive.extractfile(MANIFEST)
        assert seal is not None
        assert manifest is not None
        assert seal.read().decode() == f"{digest_of(manifest.read())}  {MANIFEST}\n"
    assert {"identity.key", "sequence", "admin.token", "metrics.token", "rows/runs"} <= set(names)


def test_an_older_backup_is_restored_by_a_newer_program(
    saved: Path, target: Place, tmp_path: Path
) -> None:
    newer = with_another(
        tmp_path / "migrations",
        f"""
import sqlalchemy as sa
from alembic import op

revision = "9998"
down_revision = "{newest_revision()}"

def upgrade():
    op.add_column("devices", sa.Column("note", sa.Text, server_default="old"))
""",
    )
    restore(target, saved, known=newer)
    database = Database(target.url)
    with database.reading() as connection:
        asked = "SELECT name, note, version_num FROM devices, alembic_version"
        assert connection.exec_driver_sql(asked).all() == [("kitchen", "old", "9998")]
    database.close()


def test_a_backup_of_a_newer_program_is_refused(saved: Path, target: Place) -> None:
    def of_the_future(manifest: dict[str, Any]) -> None:
        manifest["revision"] = "9999"
        manifest["made_at"] = NOW + 60

    with refused(target, "revision 9999, which this program does not know", "clock"):
        restore(target, rewritten(saved, of_the_future))
    with refused(target, "format 2, this program knows 1"):
        restore(target, rewritten(saved, lambda manifest: manifest.update(format=2)))


def test_collections_of_passages_come_along_whole(
    target: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    make_small(sqlite_place(folder))
    for name in ("_versions/1.manifest", "_deletions/1", "data/a.lance", "data/.half.tmp#1"):
        path = folder / "collections" / "letters.lance" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    added: list[str] = []
    add_file = ArchiveWriter.add_file

    def tidied_once(self: ArchiveWriter, name: str, path: Path, **options: Any) -> None:
        if name.endswith("a.lance") and "collections/letters.lance/data/a.lance" not in added:
            path.rename(path.with_name("b.lance"))
        added.append(name)
        add_file(self, name, path, **options)

    monkeypatch.setattr(ArchiveWriter, "add_file", tidied_once)
    back_up(sqlite_place(folder), tmp_path / "backup.tar")
    collections = [name for name in added if name.startswith("collections")]
    assert collections[0] == "collections/letters.lance/_versions/1.manifest"
    restore(target, tmp_path / "backup.tar")
    found = {name for name in files_of(target.folder) if name.startswith("collections")}
    assert found == {
        "collections/letters.lance/_versions/1.manifest",
        "collections/letters.lance/_deletions/1",
        "collections/letters.lance/data/b.lance",
    }


# While a coordinator works


def test_a_round_that_ends_while_files_are_copied_is_read_once_more(
    tmp_path: Path, target: Place
) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    place = sqlite_place(folder)
    make_small(place)
    running = place.open()

    def end_the_round(*_: object) -> None:
        if running.transitions(RUN)[-1].transition != RoundFailed("late", "too few"):
            running.commit(RUN, ROUND, RoundFailed("late", "too few"), now=6.0)
            running.forget_updates(RUN, ROUND)

    with home_lock(folder):
        back_up(place, tmp_path / "backup.tar", watch=end_the_round)
    restore(target, tmp_path / "backup.tar")
    assert rows_of(target) == rows_of(place)
    assert not (target.folder / "updates").exists()
    running.close()


def test_rows_are_of_one_moment_whatever_is_written_meanwhile(
    place: Place, target: Place, tmp_path: Path
) -> None:
    """Written between two tables: a later row must not name a run that is not there."""
    make_small(place)
    running = place.open()
    see = backup._Named.see

    def write_more(named: Any, table: str, row: dict[str, Any]) -> None:
        number = len(running.runs())
        running.add_run(RunId(f"later-{number}"), "{}", running.keep(b"later"), now=7.0)
        running.commit(RunId(f"later-{number}"), ROUND, Planned(running.keep(b"x")), now=8.0)
        see(named, table, row)

    before = rows_of(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backup._Named, "see", write_more)
        back_up(place, tmp_path / "backup.tar")
    running.close()
    assert len(rows_of(place)["runs"]) > 1
    restore(target, tmp_path / "backup.tar")
    assert rows_of(target) == before


@pytest.mark.parametrize("damage", ["gone", "altered"])
def test_files_that_rows_name_and_are_not_there_are_all_told(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    make_small(sqlite_place(folder))
    lost = [folder / "blobs" / digest_of(b"adapter"), next((folder / "updates").rglob("kit*"))]
    for path in lost:
        path.unlink() if damage == "gone" else path.write_bytes(b"something else")
    with pytest.raises(DataError) as caught:
        back_up(sqlite_place(folder), tmp_path / "backup.tar")
    for path in lost:
        assert str(path.relative_to(folder)) in str(caught.value)
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("stage", ["add", "finish"])
def test_a_backup_that_is_interrupted_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    make_small(sqlite_place(folder))

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ArchiveWriter, stage if stage == "finish" else "add_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        back_up(sqlite_place(folder), tmp_path / "backup.tar")
    assert list(tmp_path.iterdir()) == [folder]


def test_what_cannot_be_backed_up_is_said(tmp_path: Path, saved: Path) -> None:
    small = sqlite_place(tmp_path / "small")
    kept = saved.read_bytes()
    with pytest.raises(DataError, match="exists already"):
        back_up(small, saved)
    assert saved.read_bytes() == kept
    with pytest.raises(DataError, match=r"no coordinator in .*empty"):
        back_up(sqlite_place(tmp_path / "empty"), tmp_path / "b.tar")
    (small.folder / "store.db").unlink()
    with pytest.raises(DataError, match=r"no store\.db"):
        back_up(small, tmp_path / "b.tar")
    assert not (small.folder / "store.db").exists()
    assert not (tmp_path / "b.tar").exists()


def test_a_store_of_an_earlier_program_is_not_migrated_for_a_backup(tmp_path: Path) -> None:
    place = sqlite_place(tmp_path)
    make_small(place)
    database = Database(place.url)
    with database.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0004'")
    with pytest.raises(StorageError, match="start the coordinator once"):
        back_up(place, tmp_path / "b.tar")
    with database.reading() as connection:
        asked = "SELECT version_num FROM alembic_version"
        assert connection.exec_driver_sql(asked).scalar() == "0004" != newest_revision()
    database.close()


# Backups that are not what they were


@contextmanager
def refused(target: Place, *problems: str) -> Iterator[None]:
    """Refused with every one of these problems, and nothing is there afterwards."""
    with pytest.raises(DataError) as caught:
        yield
    for problem in problems:
        assert problem in str(caught.value)
    assert is_untouched(target)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup that no test changes."""
    folder = tmp_path_factory.mktemp("whole")
    make_small(sqlite_place(folder))
    back_up(sqlite_place(folder), folder / "backup.tar")
    return folder / "backup.tar"


def attempt(whole: Path, content: bytes) -> None:
    """Restore altered bytes: it must be refused, and leave nothing."""
    altered = whole.with_name("altered.tar")
    altered.write_bytes(content)
    home = whole.with_name("restored")
    with pytest.raises(DataError, match="cannot be restored"):
        restore(sqlite_place(home), altered)
    assert not home.exists()


@settings(max_examples=300)
@given(data=st.data())
def test_a_flipped_bit_is_always_noticed(whole: Path, data: st.DataObject) -> None:
    content = bytearray(whole.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    attempt(whole, bytes(content))


def test_no_byte_of_headers_or_padding_may_be_another(whole: Path) -> None:
    """Where checksums of contents do not reach."""
    content = whole.read_bytes()
    with tarfile.open(whole) as archive:
        (first, *_) = archive.getmembers()
    padding = range(first.offset_data + first.size, first.offset_data + -(-first.size // 512) * 512)
    for at in (*range(0, 512, 5), *padding[::9], *range(len(content) - 1024, len(content), 31)):
        attempt(whole, content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


def test_a_manifest_that_is_another_does_not_fit_its_seal(whole: Path) -> None:
    content = whole.read_bytes()
    assert content.count(b'"made_at": 1000000.0') == 1
    attempt(whole, content.replace(b'"made_at": 1000000.0', b'"made_at": 1000001.0'))


@settings(max_examples=80)
@given(data=st.data())
def test_a_torn_backup_is_always_noticed(whole: Path, data: st.DataObject) -> None:
    content = whole.read_bytes()
    attempt(whole, content[: data.draw(st.integers(0, len(content) - 1))])


@settings(max_examples=20)
@given(more=st.binary(min_size=1, max_size=2000))
def test_something_behind_its_end_is_noticed(whole: Path, more: bytes) -> None:
    attempt(whole, whole.read_bytes() + more)


def members_of(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        found = {}
        for info in archive:
            file = archive.extractfile(info)
            assert file is not None
            found[info.name] = file.read()
    return found


def test_a_member_that_was_taken_out_is_named(whole: Path, target: Place) -> None:
    members = members_of(whole)
    for gone in members:
        with whole.with_name("altered.tar").open("wb+") as file:
            archive = ArchiveWriter(file)
            for name, data in members.items():
                if name != gone:
                    archive.add(name, data)
            file.write(bytes(1024))
        problem = "manifest and a seal" if gone in (MANIFEST, SEAL) else f"{gone} is missing"
        with refused(target, problem):
            restore(target, whole.with_name("altered.tar"))


def rewritten(
    source: Path,
    change: Callable[[dict[str, Any]], object] = lambda _: None,
    *,
    files: Callable[[dict[str, bytes]], object] = lambda _: None,
) -> Path:
    """A backup whose manifest and seal fit what was changed: by somebody who knows the format."""
    members = members_of(source)
    manifest = json.loads(members.pop(MANIFEST))
    del members[SEAL]
    files(members)
    path = source.with_name("rewritten.tar")
    with path.open("wb+") as file:
        archive = ArchiveWriter(file)
        for name, data in members.items():
            archive.add(name, data)
        manifest["members"] = [[m.name, m.size, m.sha256] for m in archive.members.values()]
        change(manifest)
        archive.finish(json.dumps(manifest).encode())
    return path


def test_a_rewritten_backup_with_nothing_changed_is_taken(saved: Path, target: Place) -> None:
    """So that the refusals below are for what was changed."""
    restore(target, rewritten(saved))
    assert target.open().runs()[0].run == RUN


def test_every_problem_is_named_at_once(saved: Path, target: Place) -> None:
    adapter, probe = digest_of(b"adapter"), digest_of(b"probe set")

    def change(files: dict[str, bytes]) -> None:
        del files["identity.key"]
        del files[f"blobs/{adapter}"]
        files[f"blobs/{probe}"] = b"another"
        files["sequence"] = b"many"
        files["models/x"] = b"no place for this"
        files["rows/devices"] += b"\0\0\0\1\xff"

    with refused(
        target,
        "identity.key is missing",
        f"blobs/{adapter} is named by a row, and missing",
        f"blobs/{probe} is named by a row, and missing",
        "sequence is no number",
        "'models/x' has no place in a backup",
        "rows/devices, row 2",
    ):
        restore(target, rewritten(saved, files=change))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: m["members"].append(["blobs/" + "0" * 64, 1, "0" * 64]), "is missing"),
        (lambda m: m["members"].pop(0), "is not in its manifest"),
        (lambda m: m["members"].append(m["members"][0]), "names a file twice"),
        (lambda m: m["members"][0].__setitem__(1, 5), "has another length"),
        (lambda m: m["members"][0].__setitem__(2, "0" * 64), "is damaged"),
        (lambda m: m["members"].append(["../../etc/passwd", 1, ""]), "no place in a backup"),
        (lambda m: m["rows"]["runs"].update(count=7), "rows/runs has 1 rows, its manifest says 7"),
        (lambda m: m["rows"]["runs"].update(columns=["run"]), "other columns"),
        (lambda m: m["rows"].pop("runs"), "rows/runs and the manifest's rows do not go together"),
        (lambda m: m.update(coordinator="x"), "no public key"),
        (lambda m: m.update(more=1), "its manifest: "),
        (lambda m: m.update(made_at=float("nan")), "its manifest: "),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    saved: Path, target: Place, change: Callable[[dict[str, Any]], object], problem: str
) -> None:
    with refused(target, problem):
        restore(target, rewritten(saved, change))


def entry(name: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.mode = 0o600
    for field, value in fields.items():
        setattr(info, field, value)
    return info, b""


@pytest.mark.parametrize(
    "member",
    [
        entry("blobs/link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        entry("blobs/link", type=tarfile.LNKTYPE, linkname="identity.key"),
        entry("blobs", type=tarfile.DIRTYPE),
        entry("blobs/pipe", type=tarfile.FIFOTYPE),
        entry("blobs/dev", type=tarfile.CHRTYPE),
        entry("../outside"),
        entry("/etc/outside"),
        entry("blobs/../../outside"),
        entry("identity.key"),
        entry("blobs/" + "0" * 64, mode=0o4755),
        entry("blobs/" + "0" * 64, uname="root"),
    ],
    ids=lambda member: f"{member[0].type!r} {member[0].name[:20]}",
)
def test_links_paths_and_whatever_else_a_tar_may_hold_are_refused(
    saved: Path, target: Place, member: tuple[tarfile.TarInfo, bytes]
) -> None:
    path = saved.with_name("crafted.tar")
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in {"identity.key": b"x"}.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o600
            archive.addfile(info, io.BytesIO(data))
        archive.addfile(member[0], io.BytesIO(member[1]))
    with refused(target):
        restore(target, path)
    assert not (saved.parent / "outside").exists()


@pytest.mark.parametrize("content", [b"", b"\0" * 1024, b"x" * 5000], ids=["empty", "zeros", "x"])
def test_what_is_no_backup_is_refused(tmp_path: Path, target: Place, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with refused(target, "cannot be restored"):
        restore(target, tmp_path / "file")
    with refused(target, "cannot be read"):
        restore(target, tmp_path / "absent")


# Where something is already


def test_nothing_is_restored_over_a_folder_that_holds_anything(saved: Path, tmp_path: Path) -> None:
    place = sqlite_place(tmp_path / "full")
    place.folder.mkdir()
    (place.folder / "notes").write_text("mine")
    with pytest.raises(StorageError, match=r"is not empty \(notes\)"):
        restore(place, saved)
    assert [path.name for path in place.folder.iterdir()] == ["notes"]
    with pytest.raises(StorageError, match="not empty"):
        restore(sqlite_place(tmp_path / "small"), saved)


def test_nothing_is_restored_where_a_coordinator_works(saved: Path, target: Place) -> None:
    with home_lock(target.folder):
        with pytest.raises(StorageError, match="another process works in"):
            restore(target, saved)
        assert [path.name for path in target.folder.iterdir()] == ["lock"]
    restore(target, saved)
    assert target.open().runs()[0].run == RUN


def test_an_empty_folder_may_be_restored_into(saved: Path, target: Place) -> None:
    target.folder.mkdir()
    (saved.parent / "bad").write_bytes(b"x")
    with pytest.raises(DataError):
        restore(target, saved.parent / "bad")
    assert list(target.folder.iterdir()) == []
    restore(target, saved)
    assert target.open().runs()[0].run == RUN


@pytest.mark.parametrize("target", [DATABASES[1]], indirect=True)
def test_nothing_is_restored_over_a_store_in_postgresql(saved: Path, target: Place) -> None:
    there = Place(target.url, target.folder.with_name("other"))
    there.open().close()
    with pytest.raises(StorageError, match=r"there is a store at postgresql://.* already"):
        restore(target, saved)
    assert not target.folder.exists()


@both_targets
def test_rows_that_contradict_each_other_leave_nothing(saved: Path, target: Place) -> None:
    """The last table's rows do not fit: nothing of those before it stays."""

    def twice(files: dict[str, bytes]) -> None:
        files["rows/devices"] *= 2

    twice_there = rewritten(saved, lambda m: m["rows"]["devices"].update(count=2), files=twice)
    with refused(target, "do not fit the tables"):
        restore(target, twice_there)


@both_targets
@pytest.mark.parametrize("where", ["files", "rows"])
def test_a_restore_that_fails_half_way_leaves_nothing(
    saved: Path, target: Place, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    name = "_write_files" if where == "files" else "_insert"
    does = getattr(backup, name)

    def fails_afterwards(*given: Any, **options: Any) -> None:
        does(*given, **options)
        raise StorageError("the disk is full")

    monkeypatch.setattr(backup, name, fails_afterwards)
    with pytest.raises(StorageError, match="disk is full"):
        restore(target, saved)
    assert is_untouched(target)


@pytest.mark.parametrize("target", [DATABASES[1]], indirect=True)
def test_files_do_not_stay_if_their_rows_cannot_be_committed(
    saved: Path, target: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    appeared: list[bool] = []

    def lose(_self: Any, _connection: Any) -> None:
        appeared.append((target.folder / "identity.key").exists())
        raise StorageError("lost")

    from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

    with monkeypatch.context() as patch:
        patch.setattr(PGDialect_psycopg, "do_commit", lose)
        with pytest.raises(StorageError, match="lost"):
            restore_without_claim(target, saved, patch)
    assert appeared == [True]
    assert is_untouched(target)


def restore_without_claim(target: Place, saved: Path, patch: pytest.MonkeyPatch) -> None:
    """The connection's settings are committed as well, and not what is tested here."""
    from coordinator.store import database

    patch.setattr(database, "_make_postgres_durable", lambda *_: None)
    restore(target, saved)


# Sequence numbers


@given(
    lives=st.lists(st.tuples(st.integers(1, 10_000), st.floats(0.001, 1e6)), min_size=1, max_size=6)
)
def test_no_life_of_a_coordinator_uses_a_number_again(lives: list[tuple[int, float]]) -> None:
    """However often the same backup, or a later one, is restored."""
    now, used, kept = NOW, 4096, 4097
    for signed_per_second, lasts_s in lives:
        first = sequence_after(kept, now=now)
        assert first > used
        used = max(used, first + int(signed_per_second * lasts_s))
        now += lasts_s


def test_what_was_signed_before_is_not_signed_again(saved: Path, target: Place) -> None:
    before = int((saved.parent / "small" / "sequence").read_text())
    restore(target, saved)
    identity = Identity.load(target.folder / "identity.key")
    post = Post(identity, target.folder)
    opened = Post(identity, saved.parent).open(post.seal(Call()), expected=identity.public)
    assert opened.sequence == sequence_after(before, now=NOW + 1) > before


def test_a_vanished_file_is_not_half_in_the_archive() -> None:
    file = io.BytesIO()
    archive = ArchiveWriter(file)
    archive.add("a", b"1")
    length = file.tell()
    with pytest.raises(Vanished):
        archive.add_stream("b", io.BytesIO(b"12"), 3)
    with pytest.raises(Vanished):
        archive.add_stream("b", io.BytesIO(b"12"), 2, sha256="0" * 64)
    assert file.tell() == len(file.getvalue()) == length
    assert list(archive.members) == ["a"]


def test_the_manifest_says_what_is_in_it(saved: Path) -> None:
    manifest = Manifest.model_validate_json(members_of(saved)[MANIFEST])
    assert manifest.revision == newest_revision()
    assert {table: rows.count for table, rows in manifest.rows.items()} == {
        "devices": 1,
        "device_standings": 0,
        "join_tokens": 1,
        "api_keys": 0,
        "api_key_roles": 0,
        "api_key_quarantines": 0,
        "people": 0,
        "runs": 1,
        "milestones": 1,
        "transitions": 2,
        "alarms": 0,
        "certificates": 0,
    }
    assert manifest.made_at == NOW


# The audit log


def test_the_audit_log_comes_along_however_much_is_written_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, there = sqlite_place(tmp_path / "home"), sqlite_place(tmp_path / "there")
    begin(place)[0].close()
    trail, copy = Trail(place.folder), Trail(there.folder)
    store = trail.open(place.url, place.folder)
    DEEDS["token"](store)
    DEEDS["join"](store)
    assert trail.log is not None
    trail.log.checkpoint()
    add_file = ArchiveWriter.add_file

    def meanwhile(self: ArchiveWriter, name: str, path: Path, *, sha256: str = "") -> None:
        add_file(self, name, path, sha256=sha256)
        if name.startswith("audit/"):  # a key is made, and signed for, behind each file
            key = ApiKey(Path(name).stem, "llmos_abcdef", digest_of(name.encode()), created_at=1.0)
            assert trail.log is not None
            store.add_key(key)
            trail.log.checkpoint()

    with monkeypatch.context() as patched:
        patched.setattr(ArchiveWriter, "add_file", meanwhile)
        back_up(place, tmp_path / "backup")
    keys = [key.name for key in store.api_keys()]
    store.close()
    trail.kill()
    restore(there, tmp_path / "backup")
    again = copy.open(there.url, there.folder)
    assert [key.name for key in again.api_keys()] == keys
    made = [subject for _, action, subject in copy.told() if action == "key-made"]
    assert sorted(made) == sorted(keys)
    assert copy.caught_up == [1]  # the key that was made after the log had been copied
    again.close()
    copy.kill()
