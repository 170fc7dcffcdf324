"""The checks: small functions of what was gathered, each with the thresholds it goes by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Final

from coordinator.security.facts import Facts, is_loopback
from coordinator.security.findings import Finding

DAY_S: Final = 86_400.0
MOST_KEY_DAYS: Final = 365
"""Age of a secret, of a key or the admin's."""
UNUSED_DAYS: Final = 90
SHORTEST_TOKEN: Final = 32
"""Characters; what the coordinator makes has 43."""
FEWEST_DEVICES: Final = 16
"""The default of ``protection.min_devices``, of devices and key holder too."""
CERTIFICATE_DAYS: Final = 30
FEWEST_RSA_BITS: Final = 2048
OUTDATED_DIGESTS: Final = ("md5", "sha1")
CHECKPOINT_S: Final = 3600.0
"""A coordinator signs one at most ten minutes after a record; six times that is no accident."""
BACKUP_DAYS: Final = 7
NOT_BEFORE: Final = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
"""This program did not exist."""
CLOCK_SLACK_S: Final = 120.0
PYTHON_ENDS: Final = {
    (3, 11): datetime(2027, 10, 31, tzinfo=UTC).timestamp(),
    (3, 12): datetime(2028, 10, 31, tzinfo=UTC).timestamp(),
    (3, 13): datetime(2029, 10, 31, tzinfo=UTC).timestamp(),
    (3, 14): datetime(2030, 10, 31, tzinfo=UTC).timestamp(),
}
"""End of security fixes, by PEPs 664, 693, 719 and 745."""
NEED_SECRETS: Final = ("cache", "webhook")


def listening(facts: Facts) -> Iterator[Finding]:
    """Sockets of ours that other machines reach without TLS."""
    for one in facts.listeners:
        if not (is_loopback(one.host) or one.tls):
            yield Finding(
                "listens-beyond-loopback",
                f"{one.process} {one.host}:{one.port}",
                "it listens beyond loopback without TLS",
            )


def connections(facts: Facts) -> Iterator[Finding]:
    """What is configured to pass a network in clear, or to ask for no secret."""
    for one in facts.connections:
        if not (one.tls or is_loopback(one.host)):
            yield Finding(
                "connection-without-tls",
                f"{one.what} {one.host}",
                "what passes there can be read and changed on the way",
            )
        if one.what in NEED_SECRETS and not one.secret:
            yield Finding(
                "connection-without-secret",
                f"{one.what} {one.host or 'on this machine'}",
                "whoever reaches it may read and write there",
            )


def files(facts: Facts) -> Iterator[Finding]:
    """Modes and owners of the home and what is in it."""
    if facts.home_mode & 0o077:
        yield Finding("home-open", facts.home, f"others may enter it (mode {facts.home_mode:o})")
    for item in facts.items:
        if item.is_secret and item.mode & 0o077:
            yield Finding("secret-open", item.name, f"its mode is {item.mode:o}, and not 600")
        elif item.mode & 0o022 and facts.home_mode & 0o011:
            yield Finding("file-writable", item.name, f"others may write it (mode {item.mode:o})")
        if item.owner != facts.home_owner:
            yield Finding(
                "foreign-owner",
                item.name,
                f"it belongs to user {item.owner}, the home to {facts.home_owner}",
            )


def admin_token(facts: Facts) -> Iterator[Finding]:
    """Age and length of the admin token, and where it is shown."""
    if facts.admin_token_made_at is not None:
        days = _days(facts, facts.admin_token_made_at)
        if days > MOST_KEY_DAYS:
            yield Finding("admin-token-old", "admin.token", f"it is {days} days old")
        if facts.admin_token_length < SHORTEST_TOKEN:
            yield Finding(
                "admin-token-weak",
                "admin.token",
                f"it has {facts.admin_token_length} characters, fewer than {SHORTEST_TOKEN}",
            )
    for shown in facts.exposures:
        yield Finding(
            "admin-token-exposed", f"{shown.where} of {shown.process}", "the admin token is in it"
        )


def keys(facts: Facts) -> Iterator[Finding]:
    """Keys that open too much for too long."""
    for fact in facts.keys:
        key, days = fact.key, _days(facts, fact.secret_made_at)
        if key.role == "admin" and key.expires_at is None:
            yield Finding("admin-key-forever", key.name, "it opens everything and never expires")
        if days > MOST_KEY_DAYS:
            yield Finding("key-old", key.name, f"its secret is {days} days old")
        if fact.is_used is False and _days(facts, key.created_at) > UNUSED_DAYS:
            yield Finding(
                "key-unused", key.name, f"it has asked no language model for {UNUSED_DAYS} days"
            )


def key_holder(facts: Facts) -> Iterator[Finding]:
    """Whether whoever holds the keys is somebody else."""
    if facts.key_holder == "same-user":
        yield Finding(
            "key-holder-same-user",
            "key holder",
            "it belongs to the coordinator's user, who can read its keys: encrypted sums hide no "
            "device's update from that user",
        )
    elif facts.key_holder == "same-machine":
        yield Finding(
            "key-holder-same-machine",
            "key holder",
            "it runs on this machine, whose root can read keys and updates",
        )
    if facts.has_key_holder is False:
        yield Finding("no-key-holder", "coordinator", "only runs in clear are possible")


def runs(facts: Facts) -> Iterator[Finding]:
    """Runs under way that protect less than the defaults do."""
    for run in facts.runs:
        if run.min_devices < FEWEST_DEVICES:
            yield Finding(
                "run-min-devices", run.run, f"sums over {run.min_devices} devices are opened"
            )
        if run.scheme == "clear":
            yield Finding("run-in-clear", run.run, "the coordinator sees every device's update")
        if run.noise == "none":
            yield Finding("run-without-noise", run.run, "it has no differential privacy")


def certificates(facts: Facts) -> Iterator[Finding]:
    """Certificates that end, or are made as one no longer makes them."""
    for one in facts.certificates:
        left = (one.ends_at - facts.now) / DAY_S
        if left <= 0:
            yield Finding("certificate-expired", one.name, f"it ended on {_day(one.ends_at)}")
        elif left < CERTIFICATE_DAYS:
            yield Finding("certificate-expires", one.name, f"it ends on {_day(one.ends_at)}")
        if 0 < one.rsa_bits < FEWEST_RSA_BITS or one.digest in OUTDATED_DIGESTS:
            made = f"RSA of {one.rsa_bits} bits, " if one.rsa_bits else ""
            yield Finding("certificate-weak", one.name, f"{made}signed with {one.digest}")


def audit(facts: Facts) -> Iterator[Finding]:
    """Whether the audit log is there, whole, and signed of late."""
    log = facts.audit
    if log is None:
        if facts.has_started:
            yield Finding("audit-missing", "audit", "a coordinator ran here, and there is no log")
        return
    if log.problem:
        yield Finding("audit-damaged", "audit", log.problem)
    elif log.uncovered_since is not None and facts.now - log.uncovered_since > CHECKPOINT_S:
        minutes = int((facts.now - log.uncovered_since) / 60)
        yield Finding(
            "audit-checkpoint-old", "audit", f"no checkpoint covers records {minutes} minutes old"
        )


def backup(facts: Facts) -> Iterator[Finding]:
    """Whether what is here would survive its disk."""
    if not facts.has_started:
        return
    if facts.backup_at is None:
        begun_at = facts.audit.first_record_at if facts.audit is not None else 0.0
        if _days(facts, begun_at) >= BACKUP_DAYS:  # one that was just set up has little to lose
            yield Finding("backup-missing", "backup", "no backup of this home was ever made")
    elif (days := _days(facts, facts.backup_at)) > BACKUP_DAYS:
        yield Finding("backup-old", "backup", f"the last one is {days} days old")


def clock(facts: Facts) -> Iterator[Finding]:
    """Whether the clock can be right."""
    newest = facts.audit.newest_record_at if facts.audit is not None else 0.0
    if facts.now < NOT_BEFORE:
        yield Finding("clock-wrong", "clock", f"it shows {_day(facts.now)}")
    elif newest > facts.now + CLOCK_SLACK_S:
        yield Finding("clock-wrong", "clock", "it is behind the newest record of the audit log")
    if facts.is_clock_synchronised is False:
        yield Finding("clock-unsynchronised", "clock", "the kernel says that nothing sets it")


def versions(facts: Facts) -> Iterator[Finding]:
    """Python and libraries that get no fixes, or are not those we are tested with."""
    name = ".".join(map(str, facts.python))
    ends_at = PYTHON_ENDS.get(facts.python)
    if facts.python < min(PYTHON_ENDS) or (ends_at is not None and facts.now > ends_at):
        yield Finding("python-unsupported", f"Python {name}", "it gets no security fixes any more")
    for library in facts.libraries:
        if not library.fits:
            yield Finding(
                "library-out-of-bounds",
                library.name,
                f"{library.version} is installed, llmos asks for {library.bounds}",
            )


def advisories(facts: Facts) -> Iterator[Finding]:
    """Libraries with known weaknesses, where that was asked for."""
    was_tried = any(what == "advisories" for what, _ in facts.unread)
    if facts.advisories is None and not was_tried:
        yield Finding("advisories-not-asked", "advisories", "nobody was asked about the libraries")
    for one in facts.advisories or ():
        yield Finding("library-vulnerable", f"{one.library} {one.version}", ", ".join(one.ids))


def unread(facts: Facts) -> Iterator[Finding]:
    """What could not be looked at: that nothing was found there means nothing."""
    for what, why in facts.unread:
        yield Finding("not-checked", what, why)


CHECKS: Final[tuple[Callable[[Facts], Iterator[Finding]], ...]] = (
    listening,
    connections,
    files,
    admin_token,
    keys,
    key_holder,
    runs,
    certificates,
    audit,
    backup,
    clock,
    versions,
    advisories,
    unread,
)


def check(facts: Facts) -> list[Finding]:
    """Everything that is not as it should be, the worst first."""
    order = ("critical", "warning", "note")
    found = [finding for each in CHECKS for finding in each(facts)]
    return sorted(found, key=lambda one: order.index(one.severity))


def _days(facts: Facts, since: float) -> int:
    return int((facts.now - since) / DAY_S)


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")
