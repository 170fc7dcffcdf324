"""TLS 1.3 and nothing older, for whoever listens and whoever connects.

L1  a peer's certificate is checked against named authorities, never against those that the machine
    happens to trust, and never not at all; :func:`unverified` is for what is signed otherwise
L2  a certificate that was exchanged on disk is in force for every connection made after
    :meth:`Credentials.reload`
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from shared.errors import StorageError


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """For whoever listens and knows callers by other means than a certificate.

    Raises:
        StorageError: certificate or key cannot be read, or do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    load_chain(context, certificate, key)
    return context


def client_context(authorities: str) -> ssl.SSLContext:
    """For whoever connects and trusts these authorities alone (L1).

    Args:
        authorities: Certificates as PEM. Each is trusted by itself, an intermediate one too: an
            operator's own certificate need not come with its root.

    Raises:
        StorageError: there is no certificate in it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    believe(context, authorities)
    return context


def believe(context: ssl.SSLContext, authorities: str) -> None:
    """Trust these, too; a certificate that is trusted already does no harm.

    Raises:
        StorageError: there is no certificate in it.
    """
    try:
        context.load_verify_locations(cadata=authorities)
    except (ssl.SSLError, ValueError) as err:
        raise StorageError("the authorities' certificates are damaged: join anew") from err


def unverified() -> ssl.SSLContext:
    """For a question whose answer is signed by a pinned key, and holds no secret itself (L1)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def load_chain(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Show this certificate from now on (L2).

    Raises:
        StorageError: certificate or key cannot be read, or do not belong together.
    """
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as err:  # of which the second is the first's kind, with a reason
        reason = getattr(err, "reason", None) or err.strerror
        raise StorageError(
            f"certificate {certificate} and key {key} cannot be used: {reason}"
        ) from err


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a peer shows, and whom it believes, when it connects.

    Attributes:
        authorities: File with the certificates of whom it believes, PEM.
        certificate: File with its own, PEM.
        key: File with the key of that.
    """

    authorities: Path
    certificate: Path
    key: Path
    context: ssl.SSLContext = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Read the files.

        Raises:
            StorageError: one cannot be read.
        """
        context = client_context(_read(self.authorities))
        load_chain(context, self.certificate, self.key)
        object.__setattr__(self, "context", context)

    def reload(self) -> None:
        """Show and believe what lies in the files now, on every connection from here on (L2).

        Whom it believed before it goes on to believe until the process ends.

        Raises:
            StorageError: as when they were read first.
        """
        believe(self.context, _read(self.authorities))
        load_chain(self.context, self.certificate, self.key)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as err:
        raise StorageError(f"cannot read {path}: join anew") from err
