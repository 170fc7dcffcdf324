"""Keys that open nothing for now."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "api_key_quarantines",
        sa.Column("name", sa.String(64), sa.ForeignKey("api_keys.name"), primary_key=True),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("quarantined_at", sa.Float, nullable=False),
    )
