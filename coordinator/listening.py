"""Where the coordinator listens, and whether over TLS.

G1  without TLS nothing listens on an address that another machine reaches
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coordinator.authority.enrolment import LIFE_S
from coordinator.authority.keeper import GivenCertificate
from shared.errors import ConfigError
from shared.loopback import LOOPBACK

_SHORTEST_LIFE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Listening:
    """Where, and by which names it is known.

    Attributes:
        host: An address of this machine; ``0.0.0.0`` or ``::`` are all of them.
        tls: Whether API and broker speak TLS. Always, where ``host`` is not of loopback.
        names: By which devices and browsers reach it, the first being what devices are told; none
            takes the address, or this machine's own name.
        given: A certificate for the API in place of one that the coordinator makes.
        life_s: Of devices' certificates, in seconds.
    """

    host: str = LOOPBACK
    tls: bool = False
    names: tuple[str, ...] = ()
    given: GivenCertificate | None = None
    life_s: float = LIFE_S

    @classmethod
    def of_options(
        cls,
        host: str,
        *,
        tls: bool,
        names: tuple[str, ...],
        certificate: Path | None,
        private_key: Path | None,
        certificate_hours: float,
    ) -> Listening:
        """Read the options of ``llmos up``; naming every problem.

        Raises:
            ConfigError: they contradict each other, or one is out of range.
        """
        problems = []
        try:
            is_loopback = ipaddress.ip_address(host).is_loopback
        except ValueError:
            problems.append(f"--host: {host!r} is no address, such as 127.0.0.1 or 0.0.0.0")
            is_loopback = True
        tls = tls or not is_loopback
        if (certificate is None) != (private_key is None):
            problems.append("--certificate and --private-key go together")
        if not tls and (names or certificate is not None):
            problems.append("--name, --certificate and --private-key are for --tls")
        if certificate_hours * 3600 < _SHORTEST_LIFE_S:
            problems.append(f"--certificate-hours: at least {_SHORTEST_LIFE_S / 3600:.3f}")
        problems += [f"--name: {name!r} is no name" for name in names if not _is_name(name)]
        if problems:
            raise ConfigError(problems, source="options")
        given = None
        if certificate is not None and private_key is not None:
            given = GivenCertificate(certificate.expanduser(), private_key.expanduser())
        return cls(host, tls=tls, names=names, given=given, life_s=certificate_hours * 3600)

    @property
    def told(self) -> str:
        """What others are told to connect to."""
        if self.names:
            return self.names[0]
        return socket.getfqdn() if self._is_wildcard else self.host

    @property
    def certified(self) -> list[str]:
        """Every name and address that its own certificate is for."""
        mine = [socket.gethostname(), socket.getfqdn()] if self._is_wildcard else [self.host]
        return list(dict.fromkeys([*self.names, *mine, "localhost", "127.0.0.1", "::1"]))

    def url(self, port: int) -> str:
        """Of the API."""
        host = f"[{self.told}]" if ":" in self.told else self.told
        return f"{'https' if self.tls else 'http'}://{host}:{port}"

    @property
    def _is_wildcard(self) -> bool:
        return ipaddress.ip_address(self.host).is_unspecified


def _is_name(text: str) -> bool:
    letters = text.replace("-", "").replace(".", "").replace(":", "")
    return 0 < len(text) <= 253 and letters.isascii() and letters.isalnum()
