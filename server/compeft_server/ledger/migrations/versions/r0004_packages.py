"""Experts may be packages, and whole states of versions are kept for clients that have far to go."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0004_packages", "0003_terms_of_experts"


def upgrade() -> None:
    """The experts there are were composed; no whole state was made yet."""
    op.add_column("experts", sa.Column("kind", sa.String(16), nullable=False, server_default="composed"))
    op.create_table(
        "snapshots",
        sa.Column("expert", sa.String(128), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("envelope", sa.LargeBinary, nullable=False),
        sa.Column("payload_bytes", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(["expert", "version"], ["versions.expert", "versions.version"]),
    )
