"""Transfers say what others carried on inside their own messages."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0008_relayed_bytes", "0007_settled"


def upgrade() -> None:
    """Nothing was carried by others before."""
    op.add_column("transfers", sa.Column("relayed_bytes", sa.BigInteger, nullable=False, server_default=sa.text("0")))
