"""Keeps what a broker and a web server with TLS read up to date: certificates, and who is shut out.

K1  a device that was revoked is on the list of revocations and denied by the access list before
``LOOK_S`` seconds have passed, whoever wrote it into the store
K2  a server's certificate is replaced when a third of its life is left, without a restart
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from ssl import SSLContext
from typing import Final

import structlog

from coordinator.authority.authority import Authority, new_server_key
from coordinator.broker.access import access_list
from coordinator.broker.embedded import BrokerFiles
from coordinator.store.store import Store
from shared.crypto.certificates import Requested, certificates_in
from shared.crypto.identity import Identity
from shared.errors import LlmOsError
from shared.files import write_durably
from shared.tls import Credentials, load_chain, server_context
from shared.wire import topics

LOOK_S: Final = 2.0
"""How often the store is asked who was revoked; the promise to operators is a minute."""

SERVER_LIFE_S: Final = 90 * 86_400.0
"""Of a server's certificate; browsers take none of more than 398 days."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class GivenCertificate:
    """A certificate of the operator's own for the HTTP API, in place of the authority's."""

    certificate: Path
    key: Path


@dataclass(slots=True)
class _InForce:
    """What was written last."""

    revoked: frozenset[str] = frozenset()
    renew_at: float = float("-inf")
    given_at: int = 0


@dataclass(slots=True)
class Keeper:
    """Writes the files; tells the broker, and the context of the web server, when they changed."""

    authority: Authority
    store: Store
    identity: Identity
    home: Path
    names: Sequence[str]
    now: Callable[[], float]
    given: GivenCertificate | None = None
    reload_broker: Callable[[], None] = lambda: None
    context: SSLContext = field(init=False)
    """For the web server; what it shows changes with the files."""
    credentials: Credentials = field(init=False)
    """With which the coordinator itself connects to its broker."""
    _in_force: _InForce = field(default_factory=_InForce)
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        """Write everything once.

        Raises:
            ConfigError: a name of the server's is none.
            StorageError: the disk refused, or the operator's certificate cannot be used.
        """
        self._write_certificates()
        self._write_trusted()
        self._write_revocations(self.store.revoked())
        self.context = server_context(*self._shown())
        self.credentials = Credentials(
            self.folder / "trusted.pem", self.folder / "client.pem", self.home / "identity.key"
        )
        self._thread = threading.Thread(target=self._keep, daemon=True, name="certificates")

    @property
    def folder(self) -> Path:
        """Where the files are; all but keys are for everybody to read."""
        return self.home / "tls"

    @property
    def broker_files(self) -> BrokerFiles:
        """What the broker reads."""
        return BrokerFiles(
            authority=self.folder / "ca.pem",
            certificate=self.folder / "server.pem",
            key=self.folder / "server.key",
            revocations=self.folder / "revoked.pem",
            access_list=self.folder / "access.list",
        )

    def trusted(self) -> str:
        """Certificates by which the servers are known: the authority's, and the operator's own."""
        if self.given is None:
            return self.authority.pem
        # Certificates alone: some keep the key in the same file.
        return self.authority.pem + certificates_in(self.given.certificate.read_text("ascii"))

    def start(self) -> None:
        """Look from now on, on a thread of its own."""
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> bool:
        """Write what has changed; whether something had.

        Raises:
            LlmOsError: the store or the disk refused; what was in force is.
        """
        changed = False
        if self.now() >= self._in_force.renew_at:
            self._write_certificates()
            changed = True
            log.info("certificates.renewed", names=list(self.names))
        if changed or self._given_at() != self._in_force.given_at:
            load_chain(self.context, *self._shown())
            self._write_trusted()
            self.credentials.reload()
        revoked = self.store.revoked()
        if revoked != self._in_force.revoked:
            self._write_revocations(revoked)
            changed = True
            log.info("certificates.revoked", devices=len(revoked))
        if changed:
            self.reload_broker()
        return changed

    def _keep(self) -> None:
        while not self._over.wait(LOOK_S):
            try:
                self.look()
            except (LlmOsError, OSError) as err:
                log.error("certificates.failing", error=str(err))
            except Exception:  # whatever it was: without this thread nobody is shut out
                log.exception("certificates.failing")

    def _shown(self) -> tuple[Path, Path]:
        if self.given is not None:
            return self.given.certificate, self.given.key
        return self.broker_files.certificate, self.broker_files.key

    def _given_at(self) -> int:
        return self.given.certificate.stat().st_mtime_ns if self.given is not None else 0

    def _write_certificates(self) -> None:
        now, files = self.now(), self.broker_files
        public, key = new_server_key()
        server = self.authority.issue_for_server(self.names, public, now=now, life_s=SERVER_LIFE_S)
        client = self.authority.issue(
            Requested(topics.COORDINATOR, self.identity.public), now=now, life_s=SERVER_LIFE_S
        )
        write_durably(files.authority, self.authority.pem.encode())
        write_durably(files.key, key, mode=0o600)
        write_durably(files.certificate, server.pem.encode())
        write_durably(self.folder / "client.pem", client.pem.encode())
        self._in_force.renew_at = now + SERVER_LIFE_S * 2 / 3

    def _write_trusted(self) -> None:
        """For command lines on this machine, and for the coordinator itself."""
        given_at = self._given_at()
        write_durably(self.folder / "trusted.pem", self.trusted().encode())
        self._in_force.given_at = given_at

    def _write_revocations(self, revoked: frozenset[str]) -> None:
        serials = self.store.certificates.serials(revoked)
        listed = self.authority.revocations(serials, now=self.now())
        write_durably(self.broker_files.revocations, listed)
        write_durably(self.broker_files.access_list, access_list(revoked).encode(), mode=0o600)
        self._in_force.revoked = revoked
