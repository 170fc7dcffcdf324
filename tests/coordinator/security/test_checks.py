"""Each finding is there when its facts are, and not when they are not."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.security.checks import (
    BACKUP_DAYS,
    CERTIFICATE_DAYS,
    CHECKPOINT_S,
    DAY_S,
    FEWEST_DEVICES,
    MOST_KEY_DAYS,
    NOT_BEFORE,
    PYTHON_ENDS,
    SHORTEST_TOKEN,
    UNUSED_DAYS,
    check,
)
from coordinator.security.facts import (
    Advisory,
    AuditFact,
    Certificate,
    Connection,
    Exposure,
    Facts,
    Item,
    KeyFact,
    Library,
    Listener,
    RunFact,
    is_loopback,
)
from coordinator.security.findings import RULES, Severity
from coordinator.store.store import ApiKey

NOW = NOT_BEFORE + 300 * DAY_S
CLEAN = Facts(
    now=NOW,
    home="/home/of/it",
    items=(Item("admin.token", 0o600, 0, is_secret=True), Item("store.db", 0o644, 0)),
    listeners=(Listener("llmos", "127.0.0.1", 8443), Listener("mosquitto", "::1", 1883)),
    connections=(
        Connection("broker", "127.0.0.1", tls=False, secret=False),
        Connection("store", "db.example", tls=True, secret=True),
        Connection("cache", "localhost", tls=False, secret=True),
    ),
    admin_token_made_at=NOW - DAY_S,
    has_key_holder=True,
    runs=(RunFact("tickets", FEWEST_DEVICES, "public-key", "local"),),
    certificates=(Certificate("site.pem", NOW + 90 * DAY_S, 4096, "sha256"),),
    audit=AuditFact("", NOW - 10, NOW - 10),
    has_started=True,
    backup_at=NOW - DAY_S,
    is_clock_synchronised=True,
    libraries=(Library("numpy", "2.1"),),
    advisories=(),
)


def key(age_days: float, *, rotated_days: float | None = None, **more: object) -> KeyFact:
    """A caller's key that was made so many days ago."""
    used = more.pop("is_used", True)
    made_at = NOW - age_days * DAY_S
    kept = replace(ApiKey("notes", "llmos_abc", "0" * 64, made_at), **more)  # type: ignore[arg-type]
    secret_at = made_at if rotated_days is None else NOW - rotated_days * DAY_S
    return KeyFact(kept, secret_at, used)  # type: ignore[arg-type]


def connection(what: str, host: str, *, tls: bool = False, secret: bool = True) -> Facts:
    return replace(CLEAN, connections=(Connection(what, host, tls, secret),))


def item(mode: int, owner: int = 0, *, is_secret: bool = False, home_mode: int = 0o700) -> Facts:
    return replace(CLEAN, items=(Item("file", mode, owner, is_secret),), home_mode=home_mode)


def run(devices: int = 16, scheme: str = "public-key", noise: str = "local") -> Facts:
    return replace(CLEAN, runs=(RunFact("tickets", devices, scheme, noise),))


def certificate(days: float, bits: int = 2048, digest: str = "sha256") -> Facts:
    return replace(CLEAN, certificates=(Certificate("site.pem", NOW + days * DAY_S, bits, digest),))


def listener(host: str, *, tls: bool = False) -> Facts:
    return replace(CLEAN, listeners=(Listener("llmos", host, 8443, tls),))


CASES: list[tuple[str, Facts, Facts]] = [
    ("listens-beyond-loopback", listener("0.0.0.0"), listener("::ffff:127.0.0.1")),  # noqa: S104
    ("listens-beyond-loopback", listener("::"), listener("192.0.2.1", tls=True)),
    ("connection-without-tls", connection("node", "gpu.example"), connection("node", "::1")),
    ("connection-without-tls", connection("store", "10.0.0.5"), connection("store", "")),
    (
        "connection-without-secret",
        connection("cache", "localhost", secret=False),
        connection("broker", "localhost", secret=False),
    ),
    (
        "connection-without-secret",
        connection("webhook", "hook.example", tls=True, secret=False),
        connection("webhook", "hook.example", tls=True),
    ),
    ("home-open", replace(CLEAN, home_mode=0o750), CLEAN),
    ("secret-open", item(0o640, is_secret=True), item(0o640)),
    ("file-writable", item(0o622, home_mode=0o755), item(0o622, home_mode=0o700)),
    ("foreign-owner", item(0o600, owner=1000), item(0o600)),
    (
        "admin-token-old",
        replace(CLEAN, admin_token_made_at=NOW - (MOST_KEY_DAYS + 1) * DAY_S),
        replace(CLEAN, admin_token_made_at=NOW - MOST_KEY_DAYS * DAY_S),
    ),
    (
        "admin-token-weak",
        replace(CLEAN, admin_token_length=SHORTEST_TOKEN - 1),
        replace(CLEAN, admin_token_length=SHORTEST_TOKEN),
    ),
    ("admin-token-exposed", replace(CLEAN, exposures=(Exposure("sh", "environment"),)), CLEAN),
    (
        "admin-key-forever",
        replace(CLEAN, keys=(key(1, role="admin"),)),
        replace(CLEAN, keys=(key(1, role="admin", expires_at=NOW + 1), key(1))),
    ),
    (
        "key-old",
        replace(CLEAN, keys=(key(MOST_KEY_DAYS + 1),)),
        replace(CLEAN, keys=(key(MOST_KEY_DAYS + 1, rotated_days=1), key(MOST_KEY_DAYS))),
    ),
    (
        "key-unused",
        replace(CLEAN, keys=(key(UNUSED_DAYS + 1, is_used=False),)),
        replace(
            CLEAN,
            keys=(
                key(UNUSED_DAYS, is_used=False),
                key(UNUSED_DAYS + 1),
                key(UNUSED_DAYS + 1, is_used=None),
            ),
        ),
    ),
    ("key-holder-same-user", replace(CLEAN, key_holder="same-user"), CLEAN),
    ("key-holder-same-machine", replace(CLEAN, key_holder="same-machine"), CLEAN),
    (
        "no-key-holder",
        replace(CLEAN, has_key_holder=False),
        replace(CLEAN, has_key_holder=None),
    ),
    ("run-min-devices", run(devices=FEWEST_DEVICES - 1), run(devices=FEWEST_DEVICES)),
    ("run-in-clear", run(scheme="clear"), run()),
    ("run-without-noise", run(noise="none"), run(noise="distributed")),
    ("certificate-expired", certificate(0), certificate(1)),
    ("certificate-expires", certificate(CERTIFICATE_DAYS - 1), certificate(CERTIFICATE_DAYS)),
    ("certificate-weak", certificate(90, bits=1024), certificate(90, bits=0)),
    ("certificate-weak", certificate(90, digest="sha1"), certificate(90)),
    ("audit-missing", replace(CLEAN, audit=None), replace(CLEAN, audit=None, has_started=False)),
    ("audit-damaged", replace(CLEAN, audit=AuditFact("record 3: altered")), CLEAN),
    (
        "audit-checkpoint-old",
        replace(CLEAN, audit=AuditFact("", NOW, NOW - CHECKPOINT_S - 1)),
        replace(CLEAN, audit=AuditFact("", NOW - 2 * CHECKPOINT_S, None)),
    ),
    (
        "backup-missing",
        replace(CLEAN, backup_at=None),
        replace(CLEAN, backup_at=None, has_started=False),
    ),
    (
        "backup-missing",
        replace(CLEAN, backup_at=None, audit=AuditFact(first_record_at=NOW - BACKUP_DAYS * DAY_S)),
        replace(CLEAN, backup_at=None, audit=AuditFact(first_record_at=NOW - 6 * DAY_S)),
    ),
    (
        "backup-old",
        replace(CLEAN, backup_at=NOW - (BACKUP_DAYS + 1) * DAY_S),
        replace(CLEAN, backup_at=NOW - BACKUP_DAYS * DAY_S),
    ),
    ("clock-wrong", replace(CLEAN, now=NOT_BEFORE - 1), CLEAN),
    (
        "clock-wrong",
        replace(CLEAN, audit=AuditFact("", NOW + 180)),
        replace(CLEAN, audit=AuditFact("", NOW + 60)),
    ),
    (
        "clock-unsynchronised",
        replace(CLEAN, is_clock_synchronised=False),
        replace(CLEAN, is_clock_synchronised=None),
    ),
    ("python-unsupported", replace(CLEAN, python=(3, 10)), replace(CLEAN, python=(3, 99))),
    (
        "python-unsupported",
        replace(CLEAN, now=PYTHON_ENDS[3, 11] + 1),
        replace(CLEAN, now=PYTHON_ENDS[3, 11]),
    ),
    (
        "library-out-of-bounds",
        replace(CLEAN, libraries=(Library("numpy", "1.0", ">=1.26", fits=False),)),
        CLEAN,
    ),
    (
        "library-vulnerable",
        replace(CLEAN, advisories=(Advisory("numpy", "1.0", ("PYSEC-1",)),)),
        CLEAN,
    ),
    ("advisories-not-asked", replace(CLEAN, advisories=None), CLEAN),
    ("not-checked", replace(CLEAN, unread=(("keys", "permission denied"),)), CLEAN),
]


def codes(facts: Facts) -> list[str]:
    return [finding.code for finding in check(facts)]


def test_nothing_is_found_where_everything_is_right() -> None:
    assert check(CLEAN) == []


@pytest.mark.parametrize(("code", "bad", "good"), CASES)
def test_a_finding_is_there_with_its_facts_and_only_then(
    code: str, bad: Facts, good: Facts
) -> None:
    assert code in codes(bad)
    assert code not in codes(good)


def test_every_code_has_a_case() -> None:
    assert {code for code, _, _ in CASES} == set(RULES)


def test_the_worst_comes_first_and_only_notes_are_not_to_be_acted_on() -> None:
    found = check(replace(CLEAN, advisories=None, backup_at=None, admin_token_length=3))
    assert [one.severity for one in found] == [
        Severity.CRITICAL,
        Severity.WARNING,
        Severity.NOTE,
    ]
    assert [one.is_to_be_acted_on for one in found] == [True, True, False]
    assert found[0].to_json() == {
        "code": "admin-token-weak",
        "severity": "critical",
        "subject": "admin.token",
        "detail": "it has 3 characters, fewer than 32",
        "advice": RULES["admin-token-weak"].advice,
    }


def test_advisories_that_could_not_be_had_are_not_said_to_be_unasked_for() -> None:
    facts = replace(CLEAN, advisories=None, unread=(("advisories", "no answer"),))
    assert codes(facts) == ["not-checked"]


def test_the_page_has_the_codes_severities_and_advice_of_the_program() -> None:
    """F1."""
    page = Path(__file__).parents[3] / "docs" / "security-checks.md"
    rows = re.findall(
        r"^\| `([a-z-]+)` \| (\w+) \| .+ \| (.+) \|$", page.read_text(encoding="utf-8"), re.M
    )
    assert rows == [(code, str(rule.severity), rule.advice) for code, rule in RULES.items()]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://cache.example:6379/0", ("cache.example", False, False)),
        ("rediss://:hidden@cache.example/0", ("cache.example", True, True)),
        ("postgresql://me:hidden@db.example/llmos", ("db.example", False, True)),
        ("postgresql://db.example/llmos?sslmode=verify-full", ("db.example", True, False)),
        ("postgresql://db.example/llmos?sslmode=prefer", ("db.example", False, False)),
        ("postgresql:///llmos?host=/run/postgresql&password=hidden", ("", False, True)),
        ("https://node.example/v1", ("node.example", True, False)),
        ("http://[::1", ("unreadable", False, False)),
    ],
)
def test_of_a_url_host_tls_and_whether_there_is_a_password_are_kept(
    url: str, expected: tuple[str, bool, bool]
) -> None:
    """F2: of who may enter, nothing."""
    found = Connection.of_url("cache", url)
    assert (found.host, found.tls, found.secret) == expected
    assert "hidden" not in repr(found)


@given(st.ip_addresses())
def test_an_address_is_loopback_when_the_library_says_so(address: object) -> None:
    assert is_loopback(str(address)) == (
        str(address).startswith("127.")
        or str(address) == "::1"
        or bool(getattr(getattr(address, "ipv4_mapped", None), "is_loopback", False))
    )
