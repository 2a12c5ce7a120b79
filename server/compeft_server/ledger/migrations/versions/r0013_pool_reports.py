"""What members' pools of experts hold and do."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0013_pool_reports", "0012_merkle_log"


def upgrade() -> None:
    """No pool was reported before."""
    counts = ("known", "resident", "resident_bytes", "dense_bf16_bytes", "capacity_bytes", "switches", "hits", "misses")
    op.create_table(
        "pool_reports",
        sa.Column("keyid", sa.String(32), sa.ForeignKey("keys.keyid"), primary_key=True),
        sa.Column("pool", sa.String(64), primary_key=True),
        sa.Column("hour", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("engine", sa.String(64), nullable=False),
        sa.Column("device", sa.String(128), nullable=False),
        sa.Column("started_at_ms", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in counts),
        sa.Column("switch_seconds", sa.Float, nullable=False),
        sa.Column("decode_seconds", sa.Float, nullable=False),
        sa.Column("device_memory_bytes", sa.BigInteger, nullable=False),
        sa.Column("experts", sa.Text, nullable=False),
    )
