"""People, the links that let them in, and the sessions of who is in."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "people",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("password", sa.String(255)),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("last_login_at", sa.Float),
        sa.Column("subject", sa.String(600), unique=True),
    )
    op.create_table(
        "person_links",
        sa.Column("secret_sha256", sa.String(64), primary_key=True),
        sa.Column("purpose", sa.String(16), nullable=False),
        sa.Column("name", sa.String(64), sa.ForeignKey("people.name"), index=True),
        sa.Column("expires_at", sa.Float, nullable=False),
    )
    op.create_table(
        "person_sessions",
        sa.Column("secret_sha256", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), sa.ForeignKey("people.name"), nullable=False, index=True),
        sa.Column("begun_at", sa.Float, nullable=False),
        sa.Column("used_at", sa.Float, nullable=False),
    )
