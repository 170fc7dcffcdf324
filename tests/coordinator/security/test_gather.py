"""What is gathered is what is there, and what cannot be read is said and stops nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from coordinator.audit.chain import Action, Entry, Fact
from coordinator.audit.verify import LOG
from coordinator.security.facts import Certificate, Connection, RunFact
from coordinator.security.gather import gather, installed_libraries, read_certificates
from coordinator.store.backup import note_backup
from coordinator.store.store import ApiKey, Store
from shared.crypto.identity import Identity
from shared.service import home_lock, secret_token
from tests.support.audit_logs import AT, chain, write

RUN: dict[str, Fact] = {"min_devices": 4, "scheme": "clear", "noise": "none", "simulation": False}
ENTRIES = [
    Entry(Action.COORDINATOR_STARTED, "coordinator", "", {"key_holder": "abc"}),
    Entry(Action.RUN_SUBMITTED, "admin", "open", RUN),
    Entry(Action.RUN_SUBMITTED, "admin", "over", RUN),
    Entry(Action.RUN_SUBMITTED, "admin", "played", RUN | {"simulation": True}),
    Entry(Action.RUN_SUBMITTED, "admin", "refused", RUN),
    Entry(Action.NOT_DONE, "admin", "refused", {"of": 5, "code": "storage"}),
    Entry(Action.KEY_ROTATED, "admin", "notes", {"begins": "llmos_abc"}),
    Entry(Action.RUN_FINISHED, "coordinator", "over"),
]
DAY_S = 86400.0
NOW = AT + 1000 * DAY_S


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A coordinator's home whose coordinator does not run."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    identity = Identity.create(home / "identity.key")
    records, newest = chain(ENTRIES, every=100, signed_by=identity)
    write(home / "audit", [record.to_line() for record in records], newest)
    secret_token(home / "admin.token")
    store = Store(f"sqlite:///{home / 'store.db'}", home)
    begins = {"notes": "abc", "idle": "def", "gone": "ghi", "shut": "jkl"}
    for name, prefix in begins.items():
        store.add_key(ApiKey(name, f"llmos_{prefix}", name * 8, created_at=AT))
    store.revoke_key("gone", now=AT + 1)
    store.quarantine_key("shut", "odd", now=AT + 1)
    store.close()
    return home


def test_of_a_home_everything_is_gathered(home: Path) -> None:
    today = datetime.fromtimestamp(NOW, UTC).date()
    (home / "usage").mkdir()
    use = {"requests": 1, "prompt_tokens": 1, "cached_tokens": 0, "completion_tokens": 1}
    for key, day in (("notes", today), ("idle", today - timedelta(days=91))):
        row = {"key": key, "model": "m", **use}
        (home / "usage" / f"{day}.json").write_text(json.dumps([row]))
    note_backup(home, NOW - 5)
    facts = gather(home, now=NOW)
    assert facts.home_mode == 0o700
    assert {item.name for item in facts.items if item.is_secret} == {"identity.key", "admin.token"}
    assert {item.name for item in facts.items} >= {"store.db", "audit", f"audit/{LOG}"}
    assert facts.runs == (RunFact("open", 4, "clear", "none"),)
    assert {fact.key.name: fact.is_used for fact in facts.keys} == {"notes": True, "idle": False}
    assert {fact.key.name: fact.secret_made_at for fact in facts.keys} == {
        "notes": AT + 7,
        "idle": AT,
    }
    assert facts.audit is not None
    assert (facts.audit.problem, facts.audit.uncovered_since) == ("", None)
    assert facts.audit.first_record_at == AT + 1
    assert (facts.has_started, facts.has_key_holder, facts.backup_at) == (True, True, NOW - 5)
    assert facts.admin_token_length == 43
    assert [what for what, _ in facts.unread] == ["settings"]
    assert facts.connections == ()


def test_a_running_coordinator_tells_with_what_it_works(home: Path) -> None:
    cache = {"what": "cache", "host": "10.0.0.5", "tls": False, "secret": False}
    ready = {"pid": 2**22 + 1, "url": "http://127.0.0.1:8443", "connections": [cache]}
    with home_lock(home):
        (home / "ready.json").write_text(json.dumps(ready))
        facts = gather(home, store_at="", now=NOW)
        assert facts.connections == (Connection("cache", "10.0.0.5", tls=False, secret=False),)
        assert facts.unread == ()
        (home / "ready.json").write_text('{"pid": "none of ours"}')
        assert [what for what, _ in gather(home, now=NOW).unread] == ["settings"]


def test_an_altered_log_is_told_and_read_as_far_as_it_is_whole(home: Path) -> None:
    path = home / "audit" / LOG
    path.write_bytes(path.read_bytes().replace(b'"played"', b'"player"'))
    facts = gather(home, now=NOW)
    assert facts.audit is not None
    assert facts.audit.problem.startswith("record 4: its content is not")
    assert [run.run for run in facts.runs] == ["open", "over"]


def test_records_behind_the_newest_checkpoint_are_uncovered_since_the_first(home: Path) -> None:
    path = home / "audit" / LOG
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    (home / "audit" / "checkpoint").unlink()
    facts = gather(home, now=NOW)
    assert facts.audit is not None
    assert (facts.audit.uncovered_since, facts.audit.newest_record_at) == (AT + 1, AT + 8)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda home: (home / "store.db").write_bytes(b"nothing of a database" * 99), "keys"),
        (lambda home: (home / "store.db").write_bytes(b""), "keys"),
        (lambda home: (home / "store.db").unlink(), "keys"),
        (lambda home: (home / "identity.key").write_bytes(b"\xff"), "signatures of the audit log"),
        (lambda home: (home / "admin.token").write_bytes(b"\xff"), "admin.token"),
        (lambda home: (home / "usage").write_bytes(b""), None),
    ],
)
def test_what_cannot_be_read_is_said_and_the_rest_is_gathered(
    home: Path, break_it: object, said: str | None
) -> None:
    break_it(home)  # type: ignore[operator]
    facts = gather(home, now=NOW)
    assert {what for what, _ in facts.unread} == {"settings"} | ({said} if said else set())
    assert [run.run for run in facts.runs] == ["open"]


def test_of_no_home_it_is_said_that_there_is_none(tmp_path: Path) -> None:
    facts = gather(tmp_path / "nowhere", now=NOW)
    assert [what for what, _ in facts.unread] == ["home"]
    assert not (tmp_path / "nowhere").exists()


def test_nothing_is_written(home: Path) -> None:
    def state() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in home.rglob("*") if path.is_file()}

    before = state()
    gather(home, now=NOW)
    assert {name: data for name, data in state().items() if "store.db-" not in name} == before


def test_a_certificate_is_read_with_its_end_its_key_and_its_digest(tmp_path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "site.example")])
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=10))
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "site.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    ends_at = (begin + timedelta(days=10)).timestamp()
    expected = Certificate("site.pem, certificate 1", ends_at, 2048, "sha256")
    assert list(read_certificates(path)) == [expected]
    (tmp_path / "empty.pem").write_text("")
    facts = gather(tmp_path, certificates=[tmp_path / "empty.pem", tmp_path / "none.pem"], now=NOW)
    assert [what for what, _ in facts.unread if what.startswith("certificate")] == [
        f"certificate {tmp_path / 'empty.pem'}",
        f"certificate {tmp_path / 'none.pem'}",
    ]


def test_installed_libraries_are_those_that_we_ask_for() -> None:
    found = {library.name: library for library in installed_libraries()}
    assert found["numpy"].bounds == "<3,>=1.26"
    assert found["numpy"].fits
