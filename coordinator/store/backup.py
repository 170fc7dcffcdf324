"""A coordinator in one file: made while it runs or stands still, restored elsewhere.

    K1  rows are of one moment, and every blob and update that they name is in the backup
    K2  a backup is there whole or not at all, and only its owner may read it
    K3  a backup that is torn, altered or incomplete in any bit is refused with every problem
        named, and nothing is written
    K4  nothing is restored over a folder or a database that holds anything, or while a
        coordinator works there; what is restored is there whole or not at all
    K5  rows are written in a form that no database has a part in: what was in SQLite may be
        restored into PostgreSQL, and the other way round, and an older backup by a newer program
    K6  a restored coordinator never uses a sequence number again, whatever it has signed since the
        backup was made: devices and key holder refuse what is not newer than the last

The audit log comes first, so that it lacks rows and never has more than they: the next start writes
down what it lacks. Rows come then and files after them, for a row names a file only when that is on disk, and stays:
adapters, moments and probe sets are never deleted. The exceptions are what a round needs until it
is over: its spooled updates, its key and its opened sums. So these may be deleted between the two
steps, but only after a row was committed which says that the round is over; rows are then read
once more, and no longer name them.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, cast

import sqlalchemy as sa

from coordinator.audit.verify import LOG, NEWEST
from coordinator.store.archive import (
    MANIFEST,
    ArchiveReader,
    ArchiveWriter,
    Member,
    Vanished,
    is_harmless,
)
from coordinator.store.database import Database, store_url
from coordinator.store.migrations import Scripts, build, newest_revision, revision_of, revisions
from coordinator.store.tables import KEPT
from shared.config import Table, read_json
from shared.crypto.identity import Identity
from shared.errors import ConfigError, DataError, LlmOsError, StorageError, UndecodableMessage
from shared.files import appearing_file, appearing_folder, disk_errors, write_durably
from shared.service import home_lock
from shared.types import PublicKey
from shared.wire import codec
from shared.wire.envelope import claimed_sender, open_sealed
from shared.wire.messages import KeyAnnouncement

FORMAT: Final = 1

SMALL_FILES: Final = (
    "identity.key",
    "sequence",
    "replay-guard.json",
    "admin.token",
    "metrics.token",
    "webhook.secret",
    "authority/ca.key",
    "authority/ca.pem",
    "watch.toml",
    "usual.json",
)
"""Files in the home that a coordinator cannot go on without, whose secrets others rely on, or that people wrote."""

AUDIT: Final = (f"audit/{NEWEST}", f"audit/{LOG}")
"""The newest checkpoint before the log: a log that ends before its checkpoint looks cut. What is
written meanwhile is beyond both, and a record of which a part was copied is cut off at the start."""

FOLDERS: Final = ("blobs", "updates", "collections", "audit", "usage")

LAST: Final = "last-backup.json"
"""In the home: when it was backed up last."""

LEFT_OUT: Final = (
    "broker",
    "lock",
    "models",
    "probe-features",
    "ready.json",
    "findings.json",
    "tls",
    LAST,
)
"""What is made anew when it is needed. Rows (``store.db`` and its companions) are not copied as
files."""

_TRIES: Final = 5
_ROW_BYTES: Final = 17 * 1024 * 1024
_LENGTH: Final = 4
_BATCH: Final = 500
_SPOOLED: Final = 32 * 1024 * 1024
_PER_SECOND: Final = 2**20
"""More messages than any coordinator signs in a second, by three orders of magnitude."""

_NAMES: Final = re.compile(
    r"(?:" + "|".join(map(re.escape, (*SMALL_FILES, *AUDIT))) + r")"
    r"|blobs/[0-9a-f]{64}"
    r"|updates/[^/]+/[0-9]+/[^/]+"
    r"|collections/.+"
    r"|usage/[0-9-]{10}\.json"
    r"|rows/(?:" + "|".join(table.name for table in KEPT) + r")"
)

Watch = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


class _Rows(Table):
    columns: tuple[str, ...]
    count: int


class Manifest(Table):
    """What a backup says of itself.

    Attributes:
        format: Of the backup; another number is another form.
        revision: Of the tables that the rows are from.
        made_at: Seconds since the epoch.
        coordinator: Public key as hexadecimal digits.
        rows: Per table.
        members: Name, length in bytes and SHA-256 of every file.
    """

    format: int
    revision: str
    made_at: float
    coordinator: str
    rows: dict[str, _Rows]
    members: tuple[tuple[str, int, str], ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """What a backup holds, for people."""

    coordinator: PublicKey
    made_at: float
    rows: dict[str, int]
    files: int
    bytes: int


@dataclass(slots=True)
class _Named:
    """Which files rows name, and until when (K1)."""

    lasting: dict[str, str] = field(default_factory=dict)
    """Name → SHA-256."""
    of_round: dict[tuple[str, int], dict[str, str]] = field(default_factory=dict)
    over: set[tuple[str, int]] = field(default_factory=set)

    def see(self, table: str, row: dict[str, Any]) -> None:
        """Take a row into account."""
        if table == "runs":
            self._blob(row["probe"])
        elif table == "milestones":
            self._blob(_body(row).get("adapter", ""))
        elif table == "transitions":
            self._transition((row["run"], row["round"]), row["kind"], _body(row))

    def files(self) -> dict[str, str]:
        """Name → SHA-256 of every file that the rows need."""
        needed = dict(self.lasting)
        for of, files in self.of_round.items():
            if of not in self.over:
                needed |= files
        return needed

    def _blob(self, digest: str) -> None:
        if digest:
            self.lasting[f"blobs/{digest}"] = digest

    def _transition(self, of: tuple[str, int], kind: str, body: dict[str, Any]) -> None:
        current = self.of_round.setdefault(of, {})
        match kind:
            case "Planned":
                self._blob(body["adapter"])
            case "AdapterApplied":
                self._blob(body["adapter"])
                self._blob(body["moments"])
                self.over.add(of)
            case "RoundFailed":
                self.over.add(of)
            case "KeyAnnounced" if body["announcement"]:
                digest = _announced_key(body["announcement"])
                current[f"blobs/{digest}"] = digest
            case "SumOpened":
                current[f"blobs/{body['digest']}"] = body["digest"]
            case "UpdateStored":
                run, number = of
                digest = body["digest"]
                name = f"updates/{run}/{number}/{body['device']}.{digest[:16]}"
                current[name] = digest
            case _:
                pass


def _body(row: dict[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = codec.decode(row["body"], limit=_ROW_BYTES)
    return body


def _announced_key(envelope: bytes) -> str:
    message = open_sealed(envelope, expected=claimed_sender(envelope)).message
    assert isinstance(message, KeyAnnouncement)
    return message.digest


# Making one


def make_backup(
    home: Path, *, store_at: str, target: Path, now: float, watch: Watch = lambda *_: None
) -> Summary:
    """Write a coordinator's rows and files into ``target``, while it runs or stands still (K1, K2).

    Args:
        home: The coordinator's folder.
        store_at: URL of the PostgreSQL that keeps the rows; empty if the home does.
        target: The backup; nothing may be there yet.
        now: Seconds since the epoch.
        watch: Told of progress.

    Raises:
        DataError: ``target`` exists, there is no coordinator in ``home``, or files are missing
            that its rows name.
        StorageError: rows or files cannot be read, or the backup cannot be written.
    """
    database = _existing(home, store_at)
    if target.exists():
        raise DataError(f"{target} exists already: choose another name for the backup")
    identity = Identity.load(home / "identity.key").public
    try:
        with appearing_file(target, mode=0o600) as file, contextlib.ExitStack() as spools:
            archive = ArchiveWriter(file)
            for name in AUDIT:
                with contextlib.suppress(Vanished):  # a coordinator that has never started
                    archive.add_file(name, home / name)
            # Beside the backup, and without a name: rows hold what not everybody may read.
            rows, revision = _copied(
                database, home, archive, lambda: spools.enter_context(_spool(target.parent)), watch
            )
            usage = sorted(f"usage/{path.name}" for path in (home / "usage").glob("*.json"))
            for name in (*SMALL_FILES, *usage):
                with contextlib.suppress(Vanished):  # a coordinator that has sent nothing yet
                    archive.add_file(name, home / name)
            for table, (_, _, frames) in rows.items():
                size = frames.tell()
                frames.seek(0)
                archive.add_stream(f"rows/{table}", cast("BinaryIO", frames), size)
            manifest = Manifest(
                format=FORMAT,
                revision=revision,
                made_at=now,
                coordinator=identity.hex(),
                rows={
                    table: _Rows(columns=columns, count=count)
                    for table, (columns, count, _) in rows.items()
                },
                members=tuple((m.name, m.size, m.sha256) for m in archive.members.values()),
            )
            archive.finish(json.dumps(manifest.model_dump(), indent=1).encode())
        return _summary(manifest)
    finally:
        database.close()


def note_backup(home: Path, made_at: float) -> None:
    """Remember in ``home`` that it was backed up, if it can be written."""
    with contextlib.suppress(StorageError):
        write_durably(home / LAST, json.dumps({"made_at": made_at}).encode(), mode=0o600)


def last_backup_at(home: Path) -> float | None:
    """When ``home`` was backed up last, in seconds since the epoch; ``None``: never, as far as it knows."""
    try:
        return float(json.loads((home / LAST).read_bytes())["made_at"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _existing(home: Path, store_at: str) -> Database:
    url = store_url(store_at, home)
    problems = []
    if not (home / "identity.key").exists():
        problems.append(f"there is no coordinator in {home}: name its folder with --home")
    elif not store_at and not (home / "store.db").exists():
        problems.append(f"there is no store.db in {home}: name its PostgreSQL with --store")
    if problems:
        raise DataError("; ".join(problems))
    return Database(url)


_Taken = dict[str, tuple[tuple[str, ...], int, IO[bytes]]]
"""Table → its columns, how many rows, and the rows as frames."""


def _spool(folder: Path) -> IO[bytes]:
    return tempfile.SpooledTemporaryFile(_SPOOLED, dir=str(folder))


def _copied(
    database: Database,
    home: Path,
    archive: ArchiveWriter,
    spool: Callable[[], IO[bytes]],
    watch: Watch,
) -> tuple[_Taken, str]:
    """Rows of one moment, after all files were copied that they name (K1)."""
    for _ in range(_TRIES):
        rows, named, revision = _snapshot(database, spool)
        needed, missing = named.files(), []
        for number, (name, digest) in enumerate(needed.items()):
            watch("copying", number, len(needed))
            if name not in archive.members:
                try:
                    archive.add_file(name, home / name, sha256=digest)
                except Vanished:
                    missing.append(name)
        if not missing:
            _add_other_blobs(home, archive)
            _add_collections(home, archive)
            return rows, revision
    raise DataError(
        "the coordinator lacks files that its rows name, or they are damaged:\n"
        + "\n".join(f"  - {name}" for name in missing)
    )


def _snapshot(database: Database, spool: Callable[[], IO[bytes]]) -> tuple[_Taken, _Named, str]:
    taken: _Taken = {}
    named = _Named()
    with database.snapshot() as connection:
        revision = revision_of(connection)
        if revision is None:
            raise DataError(f"there is no store at {database.name}")
        if revision != newest_revision():
            raise StorageError(
                f"the store at {database.name} is of an earlier program: start the coordinator "
                "once with this one, or back it up with that one"
            )
        for table in KEPT:
            columns = [column for column in table.columns if column.name != "id"]
            names = tuple(column.name for column in columns)
            frames = spool()
            count = 0
            query = sa.select(*columns).order_by(*table.primary_key.columns)
            for row in connection.execution_options(yield_per=_BATCH).execute(query):
                named.see(table.name, dict(zip(names, row, strict=True)))
                data = codec.encode(list(row))
                frames.write(len(data).to_bytes(_LENGTH) + data)
                count += 1
            taken[table.name] = (names, count, frames)
    return taken, named, revision


def _add_other_blobs(home: Path, archive: ArchiveWriter) -> None:
    """Blobs that no row names: a few are about to be named, and the others do no harm."""
    for path in sorted((home / "blobs").glob("*")):
        name = f"blobs/{path.name}"
        if re.fullmatch(r"[0-9a-f]{64}", path.name) and name not in archive.members:
            with contextlib.suppress(Vanished):
                archive.add_file(name, path, sha256=path.name)


def _add_collections(home: Path, archive: ArchiveWriter) -> None:
    """Passages in LanceDB: a version names files that were there before it, and stay for a minute.

    So versions are copied first. If a file went meanwhile, a later version has come: once more.
    """
    folder = home / "collections"
    for _ in range(_TRIES):
        paths = [path for path in folder.rglob("*") if path.is_file()]
        paths.sort(key=lambda path: ("_versions" not in path.parts, path))
        names = [f"collections/{path.relative_to(folder).as_posix()}" for path in paths]
        begin = archive.mark()
        try:
            for name, path in zip(names, paths, strict=True):
                if is_harmless(name):  # a file half written has other names
                    archive.add_file(name, path)
        except Vanished:
            archive.go_back(begin)
            continue
        return
    raise StorageError("the collections of passages change too fast: try again at a quieter time")


# Restoring one


def restore_backup(
    home: Path,
    *,
    store_at: str,
    source: Path,
    now: float,
    watch: Watch = lambda *_: None,
    known: Scripts | None = None,
) -> Summary:
    """Make a coordinator out of a backup, after all of it was checked (K3 to K6).

    Args:
        home: Where; it does not exist, or is empty.
        store_at: URL of a PostgreSQL without a store, for the rows; empty keeps them in the home.
        source: The backup.
        now: Seconds since the epoch; the clock that sequence numbers are taken from.
        watch: Told of progress.
        known: The migrations; by default this program's.

    Raises:
        DataError: the backup cannot be used, with every problem named.
        StorageError: a coordinator works there, something is there already, or it cannot be
            written.
    """
    rows_at = store_url(store_at, home)
    with _opened(source) as file:
        archive, manifest = _checked(source, file, now=now, known=known)
        with contextlib.ExitStack() as stack:
            stack.enter_context(_empty_home(home))
            if store_at:
                database = Database(rows_at)
                stack.callback(database.close)
                stack.enter_context(database.claimed())
                _restore(archive, manifest, home, database, now=now, watch=watch, known=known)
            else:
                _restore(archive, manifest, home, None, now=now, watch=watch, known=known)
    return _summary(manifest)


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[BinaryIO]:
    try:
        file = source.open("rb")
    except OSError as err:
        raise DataError(f"{source} cannot be read: {err.strerror}") from err
    with file:
        yield file


@contextlib.contextmanager
def _empty_home(home: Path) -> Iterator[None]:
    """Keep an empty home to this process, and leave none behind after an error (K4).

    Raises:
        StorageError: a coordinator works in it, or it is not empty.
    """
    before = set(home.iterdir()) if home.is_dir() else None
    try:
        with home_lock(home):
            there = sorted(path.name for path in home.iterdir() if path.name != "lock")
            if there:
                raise StorageError(
                    f"{home} is not empty ({', '.join(there[:5])}): choose another --home"
                )
            yield
    except BaseException:
        if before is None:
            with contextlib.suppress(OSError):
                (home / "lock").unlink()
                home.rmdir()
        else:
            home.mkdir(mode=0o700, exist_ok=True)
            if home / "lock" not in before:
                (home / "lock").unlink(missing_ok=True)
        raise


def _restore(
    archive: ArchiveReader,
    manifest: Manifest,
    home: Path,
    database: Database | None,
    *,
    now: float,
    watch: Watch,
    known: Scripts | None,
) -> None:
    """Write files and rows; the folder gets its name last, but before rows are committed."""
    with contextlib.ExitStack() as stack:

        def fill(connection: sa.Connection) -> None:
            for table in KEPT:
                if table.name in manifest.rows:
                    watch("writing rows", 0, 1)
                    _insert(connection, table.name, archive, manifest.rows[table.name])

        try:
            if database is None:
                with appearing_folder(home) as new:
                    _write_files(archive, manifest, new, now=now, watch=watch)
                    rows = Database(store_url("", new))
                    stack.callback(rows.close)
                    build(rows, manifest.revision, fill, known)
                    rows.close()
                return

            def fill_and_appear(connection: sa.Connection) -> None:
                fill(connection)
                with appearing_folder(home) as new:
                    _write_files(archive, manifest, new, now=now, watch=watch)
                stack.callback(shutil.rmtree, home)

            build(database, manifest.revision, fill_and_appear, known)
            stack.pop_all()  # the rows are committed, so the files stay
        except (sa.exc.SQLAlchemyError, TypeError, ValueError, OverflowError) as err:
            reason = str(getattr(err, "orig", None) or err).partition("\n")[0]
            raise DataError(f"the rows of the backup do not fit the tables: {reason}") from err


def _write_files(
    archive: ArchiveReader, manifest: Manifest, new: Path, *, now: float, watch: Watch
) -> None:
    with disk_errors(new):
        new.mkdir(mode=0o700)
        files = [name for name, _, _ in manifest.members if not name.startswith("rows/")]
        for number, name in enumerate(files):
            watch("writing files", number, len(files))
            path = new / name
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)
            with path.open("wb") as file:
                for piece in archive.pieces(name):
                    file.write(piece)
        kept = int(archive.read("sequence")) if "sequence" in archive.names else 1
        (new / "sequence").write_text(str(sequence_after(kept, now=now)), encoding="ascii")


def sequence_after(kept: int, *, now: float) -> int:
    """A sequence number that no coordinator with this identity has used yet (K6).

    Numbers are used one by one from the one that a life of a coordinator begins with, which is
    1 or follows from the clock: by ``now`` none can have reached the next one that does. So a
    backup may be restored as often as one likes, as long as clocks do not go back.
    """
    return max(kept, math.ceil(now * _PER_SECOND))


def _insert(connection: sa.Connection, name: str, archive: ArchiveReader, rows: _Rows) -> None:
    """Put a table's rows into whatever it looked like when the backup was made (K5)."""
    table = sa.Table(name, sa.MetaData(), autoload_with=connection)
    batch: list[dict[str, Any]] = []
    for row in _frames(archive, name):
        batch.append(dict(zip(rows.columns, row, strict=True)))
        if len(batch) == _BATCH:
            connection.execute(table.insert(), batch)
            batch = []
    if batch:
        connection.execute(table.insert(), batch)


# Checking one


def _checked(
    source: Path, file: BinaryIO, *, now: float, known: Scripts | None
) -> tuple[ArchiveReader, Manifest]:
    """The archive and its manifest, if nothing at all is wrong with them (K3).

    Raises:
        DataError: with every problem.
    """
    try:
        archive = ArchiveReader(file)
        manifest = read_json(Manifest, archive.read(MANIFEST), source="manifest")
        problems = list(_problems(archive, manifest, now=now, known=known))
    except ConfigError as err:
        problems = [f"its manifest: {problem}" for problem in err.problems]
    except DataError as err:
        problems = [str(err)]
    if problems:
        raise DataError(
            f"{source} cannot be restored:\n" + "\n".join(f"  - {problem}" for problem in problems)
        )
    return archive, manifest


def _problems(
    archive: ArchiveReader, manifest: Manifest, *, now: float, known: Scripts | None
) -> Iterator[str]:
    if manifest.format != FORMAT:
        yield f"it has format {manifest.format}, this program knows {FORMAT}"
        return
    if manifest.revision not in revisions(known):
        yield (
            f"its rows are of revision {manifest.revision}, which this program does not know: "
            "restore it with a newer one"
        )
    if manifest.made_at > now:
        yield "it was made later than it is now: set this machine's clock"
    listed = [Member(*member) for member in manifest.members]
    yield from (f"{m.name[:80]!r} has no place in a backup" for m in listed if not _belongs(m.name))
    damaged = list(archive.problems(listed))
    yield from damaged
    if damaged:
        return
    yield from _problems_of_identity(archive, manifest)
    yield from _problems_of_rows(archive, manifest, {m.name: m.sha256 for m in listed})


def _belongs(name: str) -> bool:
    return is_harmless(name) and _NAMES.fullmatch(name) is not None


def _problems_of_identity(archive: ArchiveReader, manifest: Manifest) -> Iterator[str]:
    if "identity.key" not in archive.names:
        yield "identity.key is missing"
    if "sequence" in archive.names and not re.fullmatch(rb"[0-9]{1,18}", archive.read("sequence")):
        yield "sequence is no number"
    if not re.fullmatch("[0-9a-f]{64}", manifest.coordinator):
        yield "its manifest: coordinator is no public key"


def _problems_of_rows(
    archive: ArchiveReader, manifest: Manifest, digests: dict[str, str]
) -> Iterator[str]:
    there = {name.removeprefix("rows/") for name in digests if name.startswith("rows/")}
    yield from (
        f"rows/{table} and the manifest's rows do not go together"
        for table in sorted(there ^ manifest.rows.keys())
    )
    named = _Named()
    for table in sorted(there & manifest.rows.keys()):
        rows, count = manifest.rows[table], 0
        try:
            for row in _frames(archive, table):
                if not isinstance(row, list) or len(row) != len(rows.columns):
                    raise DataError("a row has other columns than the manifest says")
                named.see(table, dict(zip(rows.columns, row, strict=True)))
                count += 1
        except (LlmOsError, KeyError, TypeError, AttributeError, AssertionError) as err:
            yield f"rows/{table}, row {count + 1}: {type(err).__name__}: {err}"
            continue
        if count != rows.count:
            yield f"rows/{table} has {count} rows, its manifest says {rows.count}"
    for name, digest in sorted(named.files().items()):
        if digests.get(name) != digest:
            yield f"{name} is named by a row, and missing"


def _frames(archive: ArchiveReader, table: str) -> Iterator[Any]:
    """A table's rows, decoded within limits.

    Raises:
        UndecodableMessage: they are not rows.
    """
    held = b""
    for piece in archive.pieces(f"rows/{table}"):
        held += piece
        at = 0
        while len(held) - at >= _LENGTH:
            size = int.from_bytes(held[at : at + _LENGTH])
            if size > _ROW_BYTES:
                raise UndecodableMessage(f"a row of {size} bytes")
            if len(held) - at - _LENGTH < size:
                break
            at += _LENGTH
            yield codec.decode(held[at : at + size], limit=_ROW_BYTES, depth=2)
            at += size
        held = held[at:]
    if held:
        raise UndecodableMessage("the last row is torn")


def _summary(manifest: Manifest) -> Summary:
    files: Sequence[int] = [
        size for name, size, _ in manifest.members if not name.startswith("rows/")
    ]
    return Summary(
        coordinator=PublicKey(bytes.fromhex(manifest.coordinator)),
        made_at=manifest.made_at,
        rows={table: rows.count for table, rows in manifest.rows.items()},
        files=len(files),
        bytes=sum(size for _, size, _ in manifest.members),
    )
