"""The tables, as the newest migration leaves them; a test compares the two on both databases."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

metadata = sa.MetaData()

signpost = sa.Table("schema_version", metadata, sa.Column("version", sa.Integer, nullable=False))
"""For programs from before there were migrations: they read it, and refuse what they do not know."""

devices = sa.Table(
    "devices",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("public_key", sa.LargeBinary, nullable=False, unique=True),
    sa.Column("joined_at", sa.Float, nullable=False),
)

device_standings = sa.Table(
    "device_standings",
    metadata,
    sa.Column("name", sa.String(64), sa.ForeignKey("devices.name"), primary_key=True),
    sa.Column("standing", sa.String(32), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("since", sa.Float, nullable=False),
)
"""How far devices are trusted; one that has no row is."""

tokens = sa.Table(
    "join_tokens",
    metadata,
    sa.Column("secret_sha256", sa.String(64), primary_key=True),
    sa.Column("expires_at", sa.Float, nullable=False),
    sa.Column("used_by", sa.String(64)),
)

keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("prefix", sa.String(32), nullable=False),
    sa.Column("secret_sha256", sa.String(64), nullable=False, unique=True),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float),
    sa.Column("revoked_at", sa.Float),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("tokens_per_minute", sa.BigInteger, nullable=False),
    sa.Column("public_cache", sa.Boolean, nullable=False),
)

key_roles = sa.Table(
    "api_key_roles",
    metadata,
    sa.Column("name", sa.String(64), sa.ForeignKey("api_keys.name"), primary_key=True),
    sa.Column("role", sa.String(32), nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("former_sha256", sa.String(64), unique=True),
    sa.Column("former_ends_at", sa.Float),
)
"""What is known of a key besides; one that has no row was made before there were roles."""

key_quarantines = sa.Table(
    "api_key_quarantines",
    metadata,
    sa.Column("name", sa.String(64), sa.ForeignKey("api_keys.name"), primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("quarantined_at", sa.Float, nullable=False),
)
"""A key that has a row opens nothing, until the row is gone."""

people = sa.Table(
    "people",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("role", sa.String(32), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("password", sa.String(255)),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("last_login_at", sa.Float),
    sa.Column("subject", sa.String(600), unique=True),
)

person_links = sa.Table(
    "person_links",
    metadata,
    sa.Column("secret_sha256", sa.String(64), primary_key=True),
    sa.Column("purpose", sa.String(16), nullable=False),
    sa.Column("name", sa.String(64), sa.ForeignKey("people.name"), index=True),
    sa.Column("expires_at", sa.Float, nullable=False),
)
"""The one that makes the first account is nobody's yet."""

person_sessions = sa.Table(
    "person_sessions",
    metadata,
    sa.Column("secret_sha256", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(64), sa.ForeignKey("people.name"), nullable=False, index=True),
    sa.Column("begun_at", sa.Float, nullable=False),
    sa.Column("used_at", sa.Float, nullable=False),
)

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("run", sa.String(64), primary_key=True),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("probe", sa.String(64), nullable=False),
    sa.Column("submitted_at", sa.Float, nullable=False),
)

milestones = sa.Table(
    "milestones",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run", sa.String(64), sa.ForeignKey("runs.run"), nullable=False, index=True),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.UniqueConstraint("run", "kind"),
)

transitions = sa.Table(
    "transitions",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run", sa.String(64), sa.ForeignKey("runs.run"), nullable=False),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Index("transitions_by_round", "run", "round"),
)

alarms = sa.Table(
    "alarms",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("rule", sa.String(64), nullable=False),
    sa.Column("severity", sa.String(16), nullable=False),
    sa.Column("subject_kind", sa.String(16), nullable=False),
    sa.Column("subject", sa.String(128), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("first_at", sa.Float, nullable=False),
    sa.Column("last_at", sa.Float, nullable=False),
    sa.Column("action", sa.String(32), nullable=False),
    sa.Column("acknowledged_at", sa.Float),
    sa.Column("acknowledged_by", sa.String(80), nullable=False),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("next_try_at", sa.Float),
    sa.Column("sent_at", sa.Float),
)

certificates = sa.Table(
    "certificates",
    metadata,
    sa.Column("serial", sa.String(40), primary_key=True),
    sa.Column("peer", sa.String(64), nullable=False, index=True),
    sa.Column("pem", sa.Text, nullable=False),
    sa.Column("issued_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
)

KEPT: Final = (
    devices,
    device_standings,
    tokens,
    keys,
    key_roles,
    key_quarantines,
    people,
    runs,
    milestones,
    transitions,
    alarms,
    certificates,
)
"""What a backup carries, each after the tables that it refers to."""

PASSING: Final = (person_links, person_sessions)
"""What it does not: links and sessions open something, and are made anew in a moment."""
