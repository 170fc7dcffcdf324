"""Alembic keeps the revision; ``schema_version`` stays, to turn earlier programs away.

They would make the table anew where it is missing, and take a later store for one of theirs.
"""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Write a number that no earlier program knows."""
    op.execute("DELETE FROM schema_version")
    op.execute("INSERT INTO schema_version (version) VALUES (5)")
