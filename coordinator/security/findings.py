"""What a security check can find: a table of stable codes, and a finding.

F1  a code is never used again for something else, and is in docs/security-checks.md
F2  a finding holds no secret: a place, a number, a name, never a token or a key
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final


class Severity(StrEnum):
    """How bad it is; anything but a note is to be acted on."""

    NOTE = "note"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class Rule:
    """What a code stands for."""

    severity: Severity
    advice: str


_NOTE, _WARNING, _CRITICAL = Severity.NOTE, Severity.WARNING, Severity.CRITICAL

RULES: Final[dict[str, Rule]] = {
    "listens-beyond-loopback": Rule(
        _CRITICAL, "listen on loopback, and put a reverse proxy with TLS before it"
    ),
    "connection-without-tls": Rule(
        _WARNING, "use TLS (rediss://, https://, sslmode=verify-full) or keep it on this machine"
    ),
    "connection-without-secret": Rule(_WARNING, "set a password or secret on both sides"),
    "home-open": Rule(_WARNING, "chmod 700 the folder"),
    "secret-open": Rule(_CRITICAL, "chmod 600 the file, and replace the secret in it"),
    "file-writable": Rule(_CRITICAL, "chmod go-w, and look at what is in it"),
    "foreign-owner": Rule(
        _CRITICAL, "chown it to the owner of the home, and look at what is in it"
    ),
    "admin-token-old": Rule(
        _WARNING, "remove admin.token and start the coordinator again: it makes another"
    ),
    "admin-token-weak": Rule(
        _CRITICAL, "remove admin.token and start the coordinator again: it makes another"
    ),
    "admin-token-exposed": Rule(
        _WARNING, "let commands read the file with --home, and give others a key with a role"
    ),
    "admin-key-forever": Rule(_WARNING, "make a key with --days, then revoke this one"),
    "key-old": Rule(_WARNING, "llmos key rotate"),
    "key-unused": Rule(_NOTE, "llmos key revoke, unless it only embeds and classifies"),
    "key-holder-same-user": Rule(
        _WARNING, "let another operator hold the keys, on another machine"
    ),
    "key-holder-same-machine": Rule(
        _WARNING, "let another operator hold the keys, on another machine"
    ),
    "no-key-holder": Rule(_NOTE, "llmos keyholder init, then llmos up --key-holder"),
    "run-min-devices": Rule(_WARNING, "submit it with protection.min_devices of 16 or more"),
    "run-in-clear": Rule(_WARNING, 'submit it with protection.scheme = "public-key"'),
    "run-without-noise": Rule(_WARNING, 'submit it with privacy.noise = "local"'),
    "certificate-expired": Rule(_CRITICAL, "renew it"),
    "certificate-expires": Rule(_WARNING, "renew it, and see why that did not happen by itself"),
    "certificate-weak": Rule(
        _WARNING, "renew it with RSA of 2048 bits or more, or an elliptic curve, and SHA-256"
    ),
    "audit-missing": Rule(_WARNING, "find out who removed the folder audit; start the coordinator"),
    "audit-damaged": Rule(_CRITICAL, "keep the folder audit as evidence; see docs/audit.md"),
    "audit-checkpoint-old": Rule(
        _WARNING, "see in the coordinator's log why it signs none, or start it again"
    ),
    "backup-missing": Rule(_WARNING, "llmos backup, and keep the file elsewhere"),
    "backup-old": Rule(_WARNING, "llmos backup, and keep the file elsewhere"),
    "clock-wrong": Rule(_CRITICAL, "set the clock: keys expire and records are dated by it"),
    "clock-unsynchronised": Rule(_NOTE, "run chrony or systemd-timesyncd on the machine"),
    "python-unsupported": Rule(_WARNING, "install a Python that still gets security fixes"),
    "library-out-of-bounds": Rule(_WARNING, "install llmos again with its constraints.txt"),
    "library-vulnerable": Rule(_WARNING, "read the advisory and install a version without it"),
    "advisories-not-asked": Rule(_NOTE, "add --online to ask for known advisories"),
    "not-checked": Rule(_NOTE, "run it as the coordinator's user, with --home"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        code: In :data:`RULES`.
        subject: What it is about: a file, a key, a run, a library. With the code, its identity.
        detail: What was seen.
    """

    code: str
    subject: str
    detail: str

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return RULES[self.code].severity

    @property
    def advice(self) -> str:
        """What to do."""
        return RULES[self.code].advice

    @property
    def is_to_be_acted_on(self) -> bool:
        """Whether it is more than a note."""
        return self.severity is not Severity.NOTE

    def to_json(self) -> dict[str, Any]:
        """All of it, for machines."""
        return asdict(self) | {"severity": str(self.severity), "advice": self.advice}
