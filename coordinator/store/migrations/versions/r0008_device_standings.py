"""How far a device is trusted."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "device_standings",
        sa.Column("name", sa.String(64), sa.ForeignKey("devices.name"), primary_key=True),
        sa.Column("standing", sa.String(32), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("since", sa.Float, nullable=False),
    )
