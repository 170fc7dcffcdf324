"""Rows of certificates that were issued: which there are, so that those of a peer can be revoked.

O1  a certificate is here before anybody has it
O2  of one peer there are as few as hold still and were asked for an hour apart
"""

from __future__ import annotations

from collections.abc import Set
from typing import Final

import sqlalchemy as sa

from coordinator.store.database import Database
from coordinator.store.tables import certificates as _certificates

AGAIN_S: Final = 3600.0
"""Who asks again within this gets the same: a request that somebody repeats makes no rows."""


class CertificateRows:
    """Certificates in the store's database."""

    def __init__(self, database: Database) -> None:
        """Keep them in ``database``, whose tables are there."""
        self._database = database

    def add(self, serial: int, peer: str, pem: str, *, now: float, expires_at: float) -> None:
        """Keep one (O1), and forget those of this peer that have expired (O2)."""
        row = {
            "serial": f"{serial:x}",
            "peer": peer,
            "pem": pem,
            "issued_at": now,
            "expires_at": expires_at,
        }
        theirs = _certificates.c.peer == peer
        with self._database.writing() as connection:
            connection.execute(
                _certificates.delete().where(theirs, _certificates.c.expires_at < now)
            )
            connection.execute(_certificates.insert().values(row))

    def recent(self, peer: str, *, now: float) -> str:
        """The newest of this peer, if it was issued within ``AGAIN_S`` (O2); empty: none was."""
        newest = (
            sa.select(_certificates.c.pem)
            .where(
                _certificates.c.peer == peer,
                _certificates.c.issued_at > now - AGAIN_S,
                _certificates.c.issued_at <= now,
                _certificates.c.expires_at > now,
            )
            .order_by(_certificates.c.issued_at.desc())
            .limit(1)
        )
        with self._database.reading() as connection:
            return str(connection.scalar(newest) or "")

    def serials(self, peers: Set[str]) -> list[int]:
        """Of all these peers."""
        every = sa.select(_certificates.c.serial, _certificates.c.peer)
        with self._database.reading() as connection:
            # Few are revoked and every certificate is short-lived: asking for all is one statement,
            # whereas a list of names has its bounds in databases.
            rows = connection.execute(every).all()
        return [int(row.serial, 16) for row in rows if row.peer in peers]
