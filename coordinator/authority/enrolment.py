"""Who gets a certificate: devices that joined and were not revoked, and the key holder.

E1  a certificate is over the key that joined under its name, and over no other
E2  it is in the store before anybody has it
E3  by what the servers are known is signed with the coordinator's identity, which peers pinned
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from coordinator.authority.authority import Authority
from coordinator.store.store import REVOKED, Store
from shared.crypto.certificates import Requested, read_request
from shared.crypto.identity import Identity
from shared.enrolment import trust_statement
from shared.errors import AccessDenied
from shared.types import PublicKey
from shared.wire import topics

LIFE_S: Final = 7 * 86_400.0
"""Of a peer's certificate. It is renewed after two thirds, so a device may be away for days."""


@dataclass(frozen=True, slots=True)
class Enrolment:
    """Issues certificates, and says by what the servers are known.

    Attributes:
        authority: Signs.
        store: Who joined, and what was issued.
        identity: The coordinator's.
        key_holder: The key holder's public key; ``None``: there is none.
        trusted: Certificates by which the servers are known now, PEM.
        now: Seconds since the epoch.
        life_s: Of what is issued.
    """

    authority: Authority
    store: Store
    identity: Identity
    key_holder: PublicKey | None
    trusted: Callable[[], str]
    now: Callable[[], float]
    life_s: float = LIFE_S

    def signed_trust(self) -> tuple[str, str]:
        """Certificates of authorities as PEM, and the coordinator's signature as base64 (E3)."""
        trusted = self.trusted()
        signature = self.identity.sign(trust_statement(trusted))
        return trusted, base64.b64encode(signature).decode("ascii")

    def certify(self, request: str) -> str:
        """The certificate that was asked for, PEM.

        Who asks again within an hour gets the same one.

        Raises:
            DataError: it is no request for a certificate.
            BadSignature: whoever asks does not have the key.
            AccessDenied: no such peer joined with this key, or it was revoked.
        """
        requested = read_request(request)
        self._check(requested)
        now = self.now()
        recent = self.store.certificates.recent(requested.name, now=now)
        if recent:
            return recent
        issued = self.authority.issue(requested, now=now, life_s=self.life_s)
        self.store.certificates.add(
            issued.serial, requested.name, issued.pem, now=now, expires_at=issued.expires_at
        )
        return issued.pem

    def _check(self, requested: Requested) -> None:
        if requested.name == topics.KEY_HOLDER:
            known = self.key_holder
        else:
            device = self.store.device(requested.name)
            if device is not None and device.standing == REVOKED:
                raise AccessDenied("this device was revoked")
            known = device.public_key if device is not None else None
        if known is None or known != requested.public_key:
            raise AccessDenied("nobody has joined under this name with this key")
