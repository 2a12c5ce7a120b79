"""Members have invitations and certificates, and may change their key: a name is that of one key in force, and of any before it."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002_identity", "0001_first_release"
NAMING = {"uq": "uq_%(table_name)s_%(column_0_name)s"}
"""SQLite has no name for the constraint that goes; it is made anew under this one."""


def upgrade() -> None:
    """Keys that are there succeed no other; nobody is invited."""
    unique = "keys_name_key" if op.get_bind().dialect.name == "postgresql" else "uq_keys_name"
    with op.batch_alter_table("keys", naming_convention=NAMING) as keys:
        keys.drop_constraint(unique, type_="unique")
        keys.add_column(sa.Column("succeeds", sa.String(32)))
        keys.create_foreign_key("keys_succeeds", "keys", ["succeeds"], ["keyid"])
    in_force = sa.text("revoked_at_ms IS NULL")
    op.create_index("keys_in_force", "keys", ["name"], unique=True, sqlite_where=in_force, postgresql_where=in_force)
    op.create_table(
        "invitations",
        sa.Column("number", sa.String(16), primary_key=True),
        sa.Column("secret_digest", sa.LargeBinary, nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger, nullable=False),
        sa.Column("withdrawn_at_ms", sa.BigInteger),
        sa.Column("used_at_ms", sa.BigInteger),
        sa.Column("used_by", sa.String(32)),
    )
    op.create_table(
        "certificates",
        sa.Column("serial", sa.String(40), primary_key=True),
        sa.Column("keyid", sa.String(32), sa.ForeignKey("keys.keyid"), nullable=False),
        sa.Column("issued_at_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger, nullable=False),
    )
