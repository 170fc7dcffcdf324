"""D1, D2 and D4 on PostgreSQL: lost connections, settings that would lose rows, and passwords."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from coordinator.federation.rounds import Closed, Planned
from coordinator.store import database as database_module
from coordinator.store.database import Database, _make_postgres_durable, store_url
from coordinator.store.store import Store
from shared.errors import ConfigError, DependencyMissing, StorageError
from shared.types import RoundNumber, RunId
from tests.support.stores import DIGEST, POSTGRES, RUN, Place, empty_place

pytestmark = pytest.mark.postgres

ROUND = RoundNumber(1)


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with empty_place(POSTGRES, tmp_path, request) as place:
        yield place


@pytest.fixture
def beside(place: Place, store: Store) -> Iterator[Database]:
    """Another program's way to the same database."""
    database = Database(place.url)
    yield database
    database.close()


def end_connections(beside: Database) -> None:
    """As an administrator, a failing network or a restart of the server does."""
    with beside.reading() as connection:
        connection.execute(
            sa.text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid != pg_backend_pid() AND backend_type = 'client backend'"
            )
        ).all()


# Connections that are lost


def test_a_connection_that_was_lost_in_between_is_made_again(
    store: Store, beside: Database
) -> None:
    store.commit(RUN, ROUND, Planned(DIGEST), now=1.0)
    end_connections(beside)
    assert len(store.transitions(RUN)) == 1
    end_connections(beside)
    store.commit(RUN, ROUND, Closed(("a",)), now=2.0)
    assert [row.at for row in store.transitions(RUN)] == [1.0, 2.0]


def test_a_connection_lost_in_a_transaction_leaves_nothing_of_it(
    store: Store, beside: Database
) -> None:
    heard: list[Any] = []
    store.subscribe(heard.append)

    def lose(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT INTO transitions"):
            end_connections(beside)

    sa.event.listen(store.database.engine, "after_cursor_execute", lose)
    with pytest.raises(StorageError, match="refused to write"):
        store.commit(RUN, ROUND, Planned(DIGEST), now=1.0)
    sa.event.remove(store.database.engine, "after_cursor_execute", lose)
    assert store.transitions(RUN) == []
    assert heard == []
    store.commit(RUN, ROUND, Planned(DIGEST), now=2.0)
    assert [row.at for row in store.transitions(RUN)] == [2.0]


class LosesCommits:
    """A dialect's ``do_commit`` after which the connection is gone, once."""

    def __init__(self, store: Store, beside: Database, *, arrives: bool) -> None:
        self._commit = store.database.engine.dialect.do_commit
        self._beside = beside
        self._arrives = arrives
        self._left = 1

    def __call__(self, connection: Any) -> None:
        if self._left:
            self._left -= 1
            if self._arrives:
                self._commit(connection)
            end_connections(self._beside)
        self._commit(connection)
        if self._arrives:
            # Only now does the client touch the connection again, and finds that it is gone.
            connection.execute("SELECT 1")


@pytest.mark.parametrize("arrives", [True, False], ids=["and was made", "and was not made"])
def test_a_commit_whose_answer_was_lost(
    store: Store, beside: Database, monkeypatch: pytest.MonkeyPatch, arrives: bool
) -> None:
    heard: list[Any] = []
    store.subscribe(heard.append)
    lossy = LosesCommits(store, beside, arrives=arrives)
    with monkeypatch.context() as patch:
        patch.setattr(store.database.engine.dialect, "do_commit", lossy)
        if arrives:
            store.commit(RUN, ROUND, Planned(DIGEST), now=1.0)
        else:
            with pytest.raises(StorageError, match="broke off"):
                store.commit(RUN, ROUND, Planned(DIGEST), now=1.0)
    assert len(store.transitions(RUN)) == len(heard) == int(arrives)
    store.commit(RUN, ROUND, Closed(("a",)), now=2.0)
    assert len(store.transitions(RUN)) == len(heard) == 1 + arrives


def unreachable(patch: pytest.MonkeyPatch, store: Store) -> None:
    """The server is away as long as the patch is there."""

    def refuse(*_: Any) -> Any:
        raise sa.exc.OperationalError("connect", None, Exception("away"))

    patch.setattr(store.database.engine, "connect", refuse)
    patch.setattr(database_module, "_ASK_AGAIN_S", (0.0, 0.0))


@pytest.mark.parametrize("arrives", [True, False], ids=["and was made", "and was not made"])
def test_nothing_is_written_until_it_is_known_what_became_of_a_commit(
    place: Place, store: Store, beside: Database, monkeypatch: pytest.MonkeyPatch, arrives: bool
) -> None:
    lossy = LosesCommits(store, beside, arrives=arrives)
    with monkeypatch.context() as patch:
        patch.setattr(store.database.engine.dialect, "do_commit", lossy)
        unreachable(patch, store)
        with pytest.raises(StorageError, match="asked before the next write"):
            store.commit(RUN, ROUND, Planned(DIGEST), now=1.0)
        with pytest.raises(StorageError, match="does not say yet"):
            store.commit(RUN, ROUND, Planned(DIGEST), now=2.0)
    if arrives:
        for _ in range(2):
            with pytest.raises(StorageError, match="start it again"):
                store.commit(RUN, ROUND, Planned(DIGEST), now=3.0)
        store.close()
        store = place.open()
    else:
        store.commit(RUN, ROUND, Planned(DIGEST), now=1.0)
    assert [row.at for row in store.transitions(RUN)] == [1.0]
    store.commit(RUN, ROUND, Closed(("a",)), now=4.0)
    assert [row.at for row in store.transitions(RUN)] == [1.0, 4.0]
    store.close()


def test_a_server_that_is_away_is_a_storage_error_for_readers_too(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreachable(monkeypatch, store)
    for ask in (store.devices, store.runs, lambda: store.transitions(RunId("x"))):
        with pytest.raises(StorageError, match="refused to read: away"):
            ask()


# What a commit waits for


@pytest.mark.parametrize(
    ("given", "used"),
    [("off", "on"), ("local", "on"), ("remote_write", "on"), ("remote_apply", "remote_apply")],
)
def test_a_commit_waits_for_the_disk_whatever_the_server_would_do(
    place: Place, given: str, used: str
) -> None:
    place.open().close()
    database = Database(f"{place.url}%20-csynchronous_commit%3D{given}")
    with database.writing() as connection:
        assert connection.scalar(sa.text("SHOW synchronous_commit")) == used
    with database.snapshot() as connection:
        assert connection.scalar(sa.text("SHOW synchronous_commit")) == used
    database.close()


def test_a_server_that_does_not_wait_for_its_disk_is_refused() -> None:
    class Cursor:
        def __enter__(self) -> Cursor:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def execute(self, statement: str) -> Cursor:
            assert statement == "SHOW fsync"
            return self

        def fetchone(self) -> tuple[str]:
            return ("off",)

    class Connection:
        def cursor(self) -> Cursor:
            return Cursor()

    with pytest.raises(StorageError, match="fsync=off"):
        _make_postgres_durable(Connection(), None)


def test_a_snapshot_stays_as_it_was_while_others_write(store: Store) -> None:
    count = sa.text("SELECT count(*) FROM transitions")
    with store.database.snapshot() as connection:
        assert connection.scalar(count) == 0
        store.commit(RUN, ROUND, Planned(DIGEST), now=1.0)
        assert connection.scalar(count) == 0


# One coordinator


def test_a_store_is_claimed_by_one_coordinator_at_a_time(place: Place, store: Store) -> None:
    other = place.open()
    with store.database.claimed():
        refused = pytest.raises(StorageError, match="another coordinator works with the store")
        with refused, other.database.claimed():
            pass
        store.commit(RUN, ROUND, Planned(DIGEST), now=1.0)
    with other.database.claimed():
        pass
    other.close()


# URLs and passwords

PASSWORD = "s3cr/t @%"  # noqa: S105
QUOTED = "s3cr%2Ft%20%40%25"


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_every_way_to_write_the_url_is_taken(place: Place, scheme: str) -> None:
    url = place.url.replace("postgresql", scheme, 1)
    assert store_url(url, place.folder) == url
    store = Store(url, place.folder)
    store.add_run(RUN, "{}", DIGEST, now=1.0)
    store.close()


def test_no_url_means_a_file_in_the_home(tmp_path: Path) -> None:
    assert store_url("", tmp_path) == f"sqlite:///{tmp_path}/store.db"


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://me:{PASSWORD}@host/database",
        f"sqlite:///{PASSWORD}",
        f"postgresql://me:{PASSWORD}@host:port/database",
        f"host=x password={PASSWORD}",
        PASSWORD,
    ],
)
def test_a_url_that_cannot_be_used_is_refused_and_not_repeated(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="--store") as caught:
        store_url(url, tmp_path)
    assert_no_password(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{QUOTED}@127.0.0.1:1/database",
        f"postgresql://me@127.0.0.1:1/database?password={QUOTED}",
    ],
)
def test_a_server_that_does_not_answer_is_named_without_its_password(
    tmp_path: Path, url: str
) -> None:
    with pytest.raises(StorageError, match="cannot open the store at postgresql://") as caught:
        Store(url, tmp_path)
    assert_no_password(caught.value)
    assert "s3cr" not in repr(Database(url))


def test_a_failure_that_repeats_the_password_is_told_without_it() -> None:
    database = Database(f"postgresql://me:{QUOTED}@127.0.0.1:1/database")
    for written in (PASSWORD, QUOTED, "s3cr%2Ft+%40%25"):
        text = database.reason(ValueError(f"no entry for {written} there\nand more"))
        assert text == "no entry for *** there"


def assert_no_password(err: Exception) -> None:
    """Not in the message, nor in what a traceback would show."""
    shown = "".join(traceback.format_exception(err))
    told = [line for line in shown.splitlines() if not line.startswith("    ")]
    assert "s3cr" not in str(err)
    assert not any("s3cr" in line for line in told)


def test_without_the_extra_it_says_which_one_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(DependencyMissing, match="postgres"):
        Store("postgresql://host/database", tmp_path)
