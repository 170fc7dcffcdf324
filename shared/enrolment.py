"""How a peer gets to know the coordinator's servers, and keeps a certificate for them.

J1  nothing is trusted on first use: by what the servers are known is signed with the identity of
    the coordinator that this peer pinned, and is looked at before anything secret is sent
J2  without TLS nothing is sent to another machine
J3  a certificate takes its predecessor's place on disk whole, and only if it is over this peer's key
J4  it is renewed after two thirds of its life, and after its end as well: what a peer asks with is
    its key, and not the certificate
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import structlog

from shared.config import Field, Table, read_json
from shared.crypto.certificates import Certified, certificates_in, read_certificate
from shared.crypto.identity import Identity, fingerprint, parse_public, verify
from shared.errors import (
    AccessDenied,
    BadSignature,
    ConfigError,
    CoordinatorUnavailable,
    DataError,
    LlmOsError,
    StorageError,
    WrongKey,
)
from shared.extras import require
from shared.files import write_durably
from shared.tls import Credentials, client_context, unverified
from shared.types import PublicKey

AUTHORITIES: Final = "ca.pem"
CERTIFICATE: Final = "certificate.pem"
KEY: Final = "identity.key"

TIMEOUT_S: Final = 30.0
LOOK_S: Final = 60.0
"""How often the certificate's age is looked at."""
SLOWEST_RETRY_S: Final = 3600.0
RENEWED_AFTER: Final = 2 / 3
"""Of a certificate's life."""

MOST_ANSWER_BYTES: Final = 64 * 1024

AnswerT = TypeVar("AnswerT", bound=Table)

log = structlog.get_logger()


def trust_statement(authorities: str) -> bytes:
    """What a coordinator signs to say by which certificates its servers are known."""
    return b"llmos trust 1\x00" + authorities.encode("ascii")


class TrustAnswer(Table):
    """Who a coordinator is, and by what its servers are known."""

    coordinator: str
    authorities: str
    signature: str


class CertificateAnswer(Table):
    """A certificate, and where the broker is that takes it."""

    certificate: str
    broker_host: str
    broker_port: int = Field(ge=1, le=65_535)


def is_secured(url: str) -> bool:
    """Whether a coordinator is asked over TLS.

    Raises:
        ConfigError: it is not, and on another machine (J2), or ``url`` is no address.
    """
    try:
        parts = urlsplit(url)
        host, scheme = parts.hostname or "", parts.scheme
        _ = parts.port
    except ValueError:
        host, scheme = "", ""
    if scheme == "https" and host:
        return True
    if scheme != "http" or not host:
        raise ConfigError([f"{url!r} is not an address like https://HOST:PORT"], source="address")
    if not _is_loopback(host):
        raise ConfigError(
            [f"{url}: another machine is asked over https:// alone ('llmos up --tls' there)"],
            source="address",
        )
    return False


def fetch_authorities(url: str, *, coordinator: str) -> tuple[PublicKey, str]:
    """Ask by what the servers are known (J1).

    Args:
        url: The coordinator's address, ``https://…``.
        coordinator: Its fingerprint.

    Returns:
        Its public key, and the certificates of authorities as PEM.

    Raises:
        CoordinatorUnavailable: nobody answers, or not like a coordinator with TLS.
        WrongKey: another coordinator answers, or what it says is not signed by it.
    """
    answer = read_answer(TrustAnswer, ask(url, "GET", "/api/v1/trust", context=unverified()), url)
    try:
        public = parse_public(answer.coordinator)
        signature = base64.b64decode(answer.signature, validate=True)
        statement = trust_statement(answer.authorities)
    except (ConfigError, binascii.Error, ValueError) as err:
        raise CoordinatorUnavailable(f"what answers at {url} is not a coordinator") from err
    if fingerprint(public) != coordinator:
        raise WrongKey("the coordinator that answers is not the one that was pinned")
    try:
        verify(public, signature, statement)
    except BadSignature as err:
        raise WrongKey("by what the servers are known was not signed by the coordinator") from err
    try:
        certificates_in(answer.authorities)
    except DataError as err:
        raise CoordinatorUnavailable(f"what answers at {url} names no authority") from err
    return public, answer.authorities


def ask(
    url: str, method: str, path: str, *, body: dict[str, str] | None = None, context: Any = None
) -> bytes:
    """Ask a coordinator, and give what it answers.

    Args:
        url: Its address.
        method: Of HTTP.
        path: Of the route.
        body: Sent as JSON.
        context: By whom a server is known; ``None`` without TLS.

    Raises:
        CoordinatorUnavailable: nobody answers, or somebody who is not known.
        AccessDenied: it refused.
        DependencyMissing: the HTTP client is not installed.
    """
    response = _asked(url, method, path, body=body, context=context)
    if response.is_success:
        return bytes(response.content[:MOST_ANSWER_BYTES])
    try:
        detail = str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        detail = response.text
    raise AccessDenied(f"the coordinator refused: {detail[:500]}")


@contextmanager
def kept_credentials(enrolled: Enrolled) -> Iterator[Credentials]:
    """What a peer connects with; renewed in time for as long as this runs.

    Raises:
        StorageError: they cannot be read.
    """
    credentials = enrolled.credentials()
    renewal = Renewal(enrolled, on_renewed=credentials.reload)
    renewal.start()
    try:
        yield credentials
    finally:
        renewal.close()


def read_answer(kind: type[AnswerT], content: bytes, url: str) -> AnswerT:
    """Read what a coordinator answered.

    Raises:
        CoordinatorUnavailable: it is no such answer, so ``url`` is another server's.
    """
    try:
        return read_json(kind, content, source="answer")
    except ConfigError as err:
        raise CoordinatorUnavailable(
            f"what answers at {url} is not a coordinator: check the address"
        ) from err


def time_at(url: str, *, context: Any = None) -> float:
    """What time it is at the coordinator, to the second, in seconds since the epoch.

    Raises:
        CoordinatorUnavailable: nobody answers, or it does not say.
        DependencyMissing: the HTTP client is not installed.
    """
    response = _asked(url, "GET", "/healthz", body=None, context=context)
    try:
        return parsedate_to_datetime(response.headers["date"]).timestamp()
    except (KeyError, ValueError) as err:
        raise CoordinatorUnavailable(f"what answers at {url} does not say what time it is") from err


def keep_certificate(home: Path, pem: str, authorities: str, *, name: str, key: PublicKey) -> None:
    """Put a certificate and its authorities into their place (J3).

    Raises:
        DataError: it is none.
        WrongKey: it is for another peer, or signed by another authority.
        StorageError: the disk refused.
    """
    certified = read_certificate(pem, authority=authorities)
    if (certified.name, certified.public_key) != (name, key):
        raise WrongKey("the coordinator answered with somebody else's certificate")
    write_durably(home / AUTHORITIES, authorities.encode("ascii"))
    write_durably(home / CERTIFICATE, pem.encode("ascii"))


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A peer with a certificate, or one that can have it.

    Attributes:
        home: Its folder; the key is there.
        url: The coordinator's address.
        coordinator: Its fingerprint.
        name: The peer's own.
    """

    home: Path
    url: str
    coordinator: str
    name: str

    def certified(self) -> Certified:
        """What the certificate on disk says.

        Raises:
            StorageError: there is none, or it is damaged.
        """
        try:
            pem, authorities = (
                (self.home / each).read_text(encoding="ascii")
                for each in (CERTIFICATE, AUTHORITIES)
            )
            return read_certificate(pem, authority=authorities)
        except (OSError, UnicodeDecodeError, LlmOsError) as err:
            raise StorageError(f"the certificate in {self.home} cannot be read: {err}") from err

    def credentials(self) -> Credentials:
        """To connect with.

        Raises:
            StorageError: they cannot be read.
        """
        home = self.home
        return Credentials(home / AUTHORITIES, home / CERTIFICATE, home / KEY)

    def is_due(self, now: float) -> bool:
        """Whether the certificate is to be renewed (J4); also if it cannot be read."""
        try:
            certified = self.certified()
        except StorageError:
            return True
        life_s = certified.expires_at - certified.issued_at
        return now >= certified.issued_at + life_s * RENEWED_AFTER

    def renew(self) -> CertificateAnswer:
        """Ask for a certificate, and put it into its place.

        Raises:
            CoordinatorUnavailable: nobody answers.
            AccessDenied: the coordinator refused, for this peer was revoked most likely.
            WrongKey: somebody else answers.
            StorageError: the disk refused.
        """
        identity = Identity.load(self.home / KEY)
        _, authorities = fetch_authorities(self.url, coordinator=self.coordinator)
        body = {"request": identity.certificate_request(self.name)}
        answered = ask(
            self.url,
            "POST",
            "/api/v1/certificates",
            body=body,
            context=client_context(authorities),
        )
        answer = read_answer(CertificateAnswer, answered, self.url)
        keep_certificate(
            self.home, answer.certificate, authorities, name=self.name, key=identity.public
        )
        return answer


class Renewal:
    """Renews a certificate in time, on a thread of its own (J4)."""

    def __init__(
        self,
        enrolled: Enrolled,
        *,
        on_renewed: Callable[[], None],
        now: Callable[[], float] = time.time,
        look_s: float = LOOK_S,
    ) -> None:
        """Call :meth:`start` to begin.

        Args:
            enrolled: Whose certificate.
            on_renewed: Called when another one lies in its place.
            now: Seconds since the epoch.
            look_s: How often its age is looked at.
        """
        self._enrolled = enrolled
        self._on_renewed = on_renewed
        self._now = now
        self._look_s = look_s
        self._failures = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="certificate")

    def start(self) -> None:
        """Look from now on."""
        self._thread.start()

    def close(self) -> None:
        """Look no more. A request under way ends by itself."""
        self._over.set()

    def look(self) -> bool:
        """Renew if it is due; whether another certificate is in force."""
        if not self._enrolled.is_due(self._now()):
            return False
        try:
            self._enrolled.renew()
            self._on_renewed()
        except LlmOsError as err:
            self._failures += 1
            log.warning("certificate.not_renewed", code=err.code, error=str(err))
            return False
        self._failures = 0
        log.info("certificate.renewed", expires_at=int(self._enrolled.certified().expires_at))
        return True

    def _keep(self) -> None:
        while True:
            try:
                self.look()
            except Exception:  # whatever it was, a certificate must not end for it
                log.exception("certificate.failing")
                self._failures += 1
            # Devices that lost the same coordinator do not come back in step.
            pause_s = min(self._look_s * 2**self._failures, SLOWEST_RETRY_S)
            if self._over.wait(pause_s * random.uniform(0.5, 1.0)):
                return


def _asked(url: str, method: str, path: str, *, body: dict[str, str] | None, context: Any) -> Any:
    httpx = require("httpx", extra="edge")
    known_by = context if context is not None else True
    try:
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False, verify=known_by) as client:
            return client.request(method, f"{url.rstrip('/')}{path}", json=body)
    except (httpx.HTTPError, httpx.InvalidURL) as err:
        raise CoordinatorUnavailable(
            f"no coordinator answers at {url}: check the address, whether it begins with http:// or "
            f"https://, and that 'llmos up' runs there ({err})"
        ) from err


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
