"""Gathers the facts of one installation. It reads only, and never fails: what it cannot read it says."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import re
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from coordinator.audit.chain import Action, Record
from coordinator.audit.verify import LOG, records_of, verify_log
from coordinator.security.checks import UNUSED_DAYS
from coordinator.security.facts import (
    AuditFact,
    Certificate,
    Connection,
    Facts,
    Item,
    KeyFact,
    Library,
    Listener,
    RunFact,
)
from coordinator.security.processes_here import (
    exposures,
    family,
    key_holder_beside,
    listeners,
    running,
)
from coordinator.store.backup import last_backup_at
from coordinator.store.database import Database, store_url
from coordinator.store.store import ApiKey, read_keys
from coordinator.usage import UsageBook
from shared.crypto.identity import Identity
from shared.errors import AuditDamaged, LlmOsError
from shared.extras import require

SECRETS: Final = (
    "identity.key",
    "admin.token",
    "metrics.token",
    "webhook.secret",
    "authority/ca.key",
    "tls/server.key",
)
OTHERS: Final = (
    "sequence",
    "replay-guard.json",
    "store.db",
    "store.db-wal",
    "audit",
    f"audit/{LOG}",
    "audit/checkpoint",
    "blobs",
    "updates",
    "collections",
    "usage",
    "models",
)
_OVER: Final = (Action.RUN_FINISHED, Action.RUN_FAILED, Action.RUN_STOPPED)
_TIME_ERROR: Final = 5
"""What adjtimex(2) returns while nothing sets the clock."""
_EXTRA: Final = re.compile(r"""extra == ['"]([^'"]+)['"]""")
_TIMEX_BYTES: Final = 512
"""More than struct timex has on any architecture; all zero, it changes nothing."""


@dataclass(slots=True)
class _Log:
    """What the records of an audit log say."""

    fact: AuditFact
    rotated_at: dict[str, float] = field(default_factory=dict)
    runs: dict[str, RunFact] = field(default_factory=dict)
    has_key_holder: bool | None = None
    started: bool = False
    _submitted: set[int] = field(default_factory=set)

    def take(self, record: Record) -> None:
        """Take one more into account."""
        action, subject, facts = record.entry.action, record.entry.subject, record.entry.facts
        if action is Action.COORDINATOR_STARTED:
            self.started, self.has_key_holder = True, "key_holder" in facts
        elif action is Action.KEY_ROTATED:
            self.rotated_at[subject] = float(record.at)
        elif action is Action.RUN_SUBMITTED and not facts.get("simulation"):
            self._submitted.add(record.number)
            self.runs[subject] = RunFact(
                run=subject,
                min_devices=int(facts["min_devices"]),
                scheme=str(facts["scheme"]),
                noise=str(facts["noise"]),
            )
        elif action in _OVER or facts.get("of") in self._submitted:
            self.runs.pop(subject, None)
        if action is Action.CHECKPOINT:
            self.fact = replace(self.fact, uncovered_since=None)
        elif self.fact.uncovered_since is None:
            self.fact = replace(self.fact, uncovered_since=float(record.at))
        first_at = self.fact.first_record_at or float(record.at)
        self.fact = replace(self.fact, first_record_at=first_at, newest_record_at=float(record.at))


def gather(
    home: Path,
    *,
    store_at: str = "",
    certificates: Sequence[Path] = (),
    now: float | None = None,
) -> Facts:
    """Everything about the coordinator in ``home`` but advisories, which are asked for elsewhere.

    Args:
        home: The coordinator's folder; it need not be there.
        store_at: URL of the PostgreSQL that keeps the rows; empty if the home does.
        certificates: PEM files of TLS, such as a reverse proxy's.
        now: Seconds since the epoch; by default the clock's.
    """
    now = time.time() if now is None else now
    unread: list[tuple[str, str]] = []
    facts = Facts(
        now=now,
        home=str(home),
        python=sys.version_info[:2],
        libraries=tuple(installed_libraries()),
        is_clock_synchronised=_is_clock_synchronised(),
        certificates=tuple(_certificates([*certificates, *_own_certificates(home)], unread)),
    )
    try:
        status = home.stat()
    except OSError as err:
        unread.append(("home", f"{home}: {err.strerror}"))
        return replace(facts, unread=tuple(unread))
    log = _audit_log(home, unread)
    token = _admin_token(home, unread)
    everyone = running()
    if not everyone:
        unread.append(("processes", "this system does not show them"))
    ready = _ready(home, unread)
    return replace(
        facts,
        home_mode=stat.S_IMODE(status.st_mode),
        home_owner=status.st_uid,
        items=tuple(_items(home)),
        connections=_connections(ready, store_at, unread),
        listeners=tuple(_listeners(ready, family(int(ready["pid"]), everyone))) if ready else (),
        keys=_keys(home, store_at, now, log, unread),
        admin_token_made_at=token[1] if token is not None else None,
        admin_token_length=len(token[0]) if token is not None else 0,
        exposures=tuple(exposures(token[0].encode(), everyone)) if token and token[0] else (),
        key_holder=key_holder_beside(everyone, status.st_uid),
        has_key_holder=log.has_key_holder if log is not None else None,
        runs=tuple(log.runs.values()) if log is not None else (),
        audit=log.fact if log is not None else None,
        has_started=(home / "store.db").exists() or (log is not None and log.started),
        backup_at=last_backup_at(home),
        unread=tuple(unread),
    )


def _items(home: Path) -> Iterator[Item]:
    for name in (*SECRETS, *OTHERS):
        with contextlib.suppress(OSError):
            status = (home / name).stat()
            yield Item(name, stat.S_IMODE(status.st_mode), status.st_uid, name in SECRETS)


def _admin_token(home: Path, unread: list[tuple[str, str]]) -> tuple[str, float] | None:
    """The token and when its file was written."""
    path = home / "admin.token"
    try:
        return path.read_text(encoding="ascii").strip(), path.stat().st_mtime
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as err:
        unread.append(("admin.token", _why(err)))
        return None


def _ready(home: Path, unread: list[tuple[str, str]]) -> dict[str, Any] | None:
    """What a running coordinator tells of itself; ``None``: none runs."""
    if not _is_running(home):
        unread.append(("settings", "no coordinator runs here that could tell with what it started"))
        return None
    try:
        ready = json.loads((home / "ready.json").read_bytes())
        int(ready["pid"])
    except (OSError, ValueError, KeyError, TypeError) as err:
        unread.append(("settings", _why(err)))
        return None
    return dict(ready)


def _is_running(home: Path) -> bool:
    try:
        lock = (home / "lock").open("rb")
    except OSError:
        return False
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        return False


def _connections(
    ready: dict[str, Any] | None, store_at: str, unread: list[tuple[str, str]]
) -> tuple[Connection, ...]:
    found = []
    try:
        found = [Connection.of_json(fields) for fields in (ready or {}).get("connections", ())]
    except (KeyError, TypeError) as err:
        unread.append(("settings", _why(err)))
    if store_at and not any(one.what == "store" for one in found):
        found.append(Connection.of_url("store", store_at))
    return tuple(found)


def _listeners(ready: dict[str, Any], processes: list[Any]) -> Iterator[Listener]:
    secured = set()
    if ready.get("tls") is True:  # its broker too, if it is its own
        secured = {urlsplit(str(ready.get("url", ""))).port, ready.get("broker_port")}
    for one in listeners(processes):
        yield replace(one, tls=one.port in secured)


def _audit_log(home: Path, unread: list[tuple[str, str]]) -> _Log | None:
    path = home / "audit" / LOG
    if not path.exists():
        return None
    try:
        key = Identity.load(home / "identity.key").public
    except LlmOsError as err:
        unread.append(("signatures of the audit log", str(err)))
        key = None
    log = _Log(AuditFact())
    try:
        verdict = verify_log(path, key=key)
        with contextlib.suppress(AuditDamaged):  # as far as it is whole
            for record in records_of(path):
                log.take(record)
    except (LlmOsError, OSError) as err:
        unread.append(("audit log", _why(err)))
        return log
    if verdict.problem is not None:
        place = f"record {verdict.bad_record}: " if verdict.bad_record else ""
        log.fact = replace(log.fact, problem=f"{place}{verdict.problem}")
    return log


def _keys(
    home: Path, store_at: str, now: float, log: _Log | None, unread: list[tuple[str, str]]
) -> tuple[KeyFact, ...]:
    if not store_at and not (home / "store.db").exists():
        unread.append(("keys", "there is no store.db; name its PostgreSQL with --store"))
        return ()
    try:
        database = Database(store_url(store_at, home))
        with contextlib.closing(database):
            keys = [key for key in read_keys(database) if key.opens(now)]
        used = _used(home, now)
    except LlmOsError as err:
        unread.append(("keys", str(err)))
        return ()
    rotated_at = log.rotated_at if log is not None else {}
    return tuple(
        KeyFact(
            key,
            secret_made_at=max(key.created_at, rotated_at.get(key.name, 0.0)),
            is_used=_is_used(key, used),
        )
        for key in keys
    )


def _is_used(key: ApiKey, used: set[str]) -> bool | None:
    """What is counted is what callers ask of language models; of other roles it is not known."""
    return key.name in used if key.role == "caller" else None


def _used(home: Path, now: float) -> set[str]:
    today = datetime.fromtimestamp(now, UTC).date()
    book = UsageBook(home, now=lambda: now)
    return {account.key for account in book.used(today - timedelta(days=UNUSED_DAYS), today)}


def _is_clock_synchronised() -> bool | None:
    """What the kernel says; ``None`` where it does not."""
    with contextlib.suppress(OSError, AttributeError):
        answer = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
        if answer >= 0:
            return bool(answer != _TIME_ERROR)
    return None


def installed_libraries() -> Iterator[Library]:
    """What llmos asks for, of all its extras, as far as it is installed."""
    from packaging.requirements import Requirement

    seen: dict[str, Library] = {}
    try:
        wanted = metadata.requires("llmos") or []
    except metadata.PackageNotFoundError:  # a checkout that was never installed
        wanted = []
    for text in wanted:
        requirement, of_extra = Requirement(text), _EXTRA.search(text)
        name = requirement.name
        here = {"extra": of_extra[1] if of_extra is not None else ""}
        if name == "llmos" or (requirement.marker and not requirement.marker.evaluate(here)):
            continue
        with contextlib.suppress(metadata.PackageNotFoundError):
            version = metadata.version(name)
            fits = requirement.specifier.contains(version, prereleases=True)
            before = seen.get(name)
            if before is None or before.fits:
                seen[name] = Library(name, version, str(requirement.specifier), fits)
    yield from seen.values()


def _own_certificates(home: Path) -> list[Path]:
    """What the coordinator's own servers show, and by what they are known."""
    both = (home / "tls" / name for name in ("server.pem", "trusted.pem"))
    return [path for path in both if path.exists()]


def _certificates(paths: Sequence[Path], unread: list[tuple[str, str]]) -> Iterator[Certificate]:
    for path in paths:
        try:
            yield from read_certificates(path)
        except (OSError, ValueError) as err:
            unread.append((f"certificate {path}", _why(err)))


def read_certificates(path: Path) -> Iterator[Certificate]:
    """The certificates in a PEM file.

    Raises:
        OSError: it cannot be read.
        ValueError: there is none in it.
    """
    x509 = require("cryptography.x509", extra="coordinator")
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    for number, one in enumerate(x509.load_pem_x509_certificates(path.read_bytes()), start=1):
        key = one.public_key()
        digest = one.signature_hash_algorithm
        yield Certificate(
            name=f"{path.name}, certificate {number}",
            ends_at=one.not_valid_after_utc.timestamp(),
            rsa_bits=key.key_size if isinstance(key, RSAPublicKey) else 0,
            digest=digest.name if digest is not None else "none of its own",
        )


def _why(err: Exception) -> str:
    return getattr(err, "strerror", None) or str(err) or type(err).__name__
