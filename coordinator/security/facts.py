"""What is known of an installation: plain values, so that every check is a function of them."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from coordinator.store.store import ApiKey

_ENCRYPTED: Final = frozenset({"rediss", "https", "mqtts"})
_POSTGRES_TLS: Final = frozenset({"require", "verify-ca", "verify-full"})


@dataclass(frozen=True, slots=True)
class Connection:
    """Something that the coordinator offers or uses over a socket.

    Attributes:
        what: ``api``, ``broker``, ``store``, ``vectors``, ``cache``, ``node`` or ``webhook``.
        host: Name or address; empty for a socket of this machine's.
        tls: Whether it is encrypted.
        secret: Whether the other side must show one.
    """

    what: str
    host: str
    tls: bool
    secret: bool

    @classmethod
    def of_url(cls, what: str, url: str, *, secret: bool = False) -> Connection:
        """Of a URL, of which neither password nor path is kept."""
        try:
            parts = urlsplit(url)
            query = parse_qs(parts.query)
            host = parts.hostname or query.get("host", [""])[0]
            secret = secret or bool(parts.password) or "password" in query
        except ValueError:
            return cls(what, "unreadable", tls=False, secret=secret)
        tls = parts.scheme in _ENCRYPTED or query.get("sslmode", [""])[0] in _POSTGRES_TLS
        return cls(what, "" if host.startswith("/") else host, tls, secret)

    @classmethod
    def of_json(cls, fields: Mapping[str, Any]) -> Connection:
        """What ``asdict`` made, out of a file that may have been changed."""
        return cls(
            str(fields["what"]), str(fields["host"]), bool(fields["tls"]), bool(fields["secret"])
        )


def is_loopback(host: str) -> bool:
    """Whether what is sent there stays on this machine."""
    if host in ("", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


@dataclass(frozen=True, slots=True)
class Listener:
    """A TCP socket that really listens, of the coordinator or a process below it."""

    process: str
    host: str
    port: int
    tls: bool = False


@dataclass(frozen=True, slots=True)
class Item:
    """A file or folder below the home.

    Attributes:
        name: Relative to it.
        mode: Permission bits.
        owner: User id.
        is_secret: Whether who reads it may act as the coordinator or an admin.
    """

    name: str
    mode: int
    owner: int
    is_secret: bool = False


@dataclass(frozen=True, slots=True)
class KeyFact:
    """A key, when its secret was made, and whether it was used of late; ``None``: not known."""

    key: ApiKey
    secret_made_at: float
    is_used: bool | None = None


@dataclass(frozen=True, slots=True)
class Exposure:
    """A process that has the admin token where others may read it."""

    process: str
    where: str


@dataclass(frozen=True, slots=True)
class RunFact:
    """A run that is not over and not simulated, as its plan declares it."""

    run: str
    min_devices: int
    scheme: str
    noise: str


@dataclass(frozen=True, slots=True)
class Certificate:
    """One of a TLS file; ``rsa_bits`` is 0 where its key is no RSA key."""

    name: str
    ends_at: float
    rsa_bits: int
    digest: str


@dataclass(frozen=True, slots=True)
class AuditFact:
    """What reading the audit log has shown.

    Attributes:
        problem: The first that is not right; empty: it is whole.
        first_record_at: Seconds since the epoch; 0 for an empty log.
        newest_record_at: The same.
        uncovered_since: When the first record was written that no checkpoint covers; ``None``:
            all are covered.
    """

    problem: str = ""
    newest_record_at: float = 0.0
    uncovered_since: float | None = None
    first_record_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Library:
    """An installed library; ``bounds`` as llmos declares them, ``fits`` whether it keeps them."""

    name: str
    version: str
    bounds: str = ""
    fits: bool = True


@dataclass(frozen=True, slots=True)
class Advisory:
    """Known advisories about an installed library."""

    library: str
    version: str
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the checks look at.

    Attributes:
        now: Seconds since the epoch.
        home: As it is called in findings.
        home_mode: Its permission bits.
        home_owner: User id.
        items: What lies in it.
        listeners: What really listens.
        connections: What is configured.
        keys: That open something now.
        admin_token_made_at: When the file was written; ``None``: there is none.
        admin_token_length: In characters.
        exposures: Where the admin token is shown.
        has_key_holder: Whether the coordinator knows one; ``None``: not known.
        key_holder: Where one was met: ``same-user``, ``same-machine`` or nowhere.
        runs: That are not over.
        certificates: Of TLS files that were given.
        audit: ``None``: there is no log.
        has_started: Whether a coordinator ever ran here.
        backup_at: When the last backup was made; ``None``: never.
        is_clock_synchronised: By the kernel; ``None``: it does not tell.
        python: Major and minor version.
        libraries: That are installed and llmos asks for.
        advisories: That were found; ``None``: not asked for.
        unread: What could not be looked at, and why.
    """

    now: float
    home: str
    home_mode: int = 0o700
    home_owner: int = 0
    items: tuple[Item, ...] = ()
    listeners: tuple[Listener, ...] = ()
    connections: tuple[Connection, ...] = ()
    keys: tuple[KeyFact, ...] = ()
    admin_token_made_at: float | None = None
    admin_token_length: int = 43
    exposures: tuple[Exposure, ...] = ()
    has_key_holder: bool | None = None
    key_holder: str = ""
    runs: tuple[RunFact, ...] = ()
    certificates: tuple[Certificate, ...] = ()
    audit: AuditFact | None = None
    has_started: bool = False
    backup_at: float | None = None
    is_clock_synchronised: bool | None = None
    python: tuple[int, int] = (3, 11)
    libraries: tuple[Library, ...] = ()
    advisories: tuple[Advisory, ...] | None = None
    unread: tuple[tuple[str, str], ...] = ()
