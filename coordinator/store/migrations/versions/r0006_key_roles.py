"""What a key may do, and the secret it had before it was rotated."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "api_key_roles",
        sa.Column("name", sa.String(64), sa.ForeignKey("api_keys.name"), primary_key=True),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("former_sha256", sa.String(64), unique=True),
        sa.Column("former_ends_at", sa.Float),
    )
