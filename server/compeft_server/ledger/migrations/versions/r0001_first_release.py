"""The schema of 0.1.0."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0001_first_release", None


def upgrade() -> None:
    """Make every table."""
    op.create_table(
        "keys",
        sa.Column("keyid", sa.String(32), primary_key=True),
        sa.Column("public", sa.LargeBinary, nullable=False),
        sa.Column("name", sa.String(128), nullable=False, unique=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("enrolled_at_ms", sa.BigInteger, nullable=False),
        sa.Column("revoked_at_ms", sa.BigInteger),
    )
    op.create_table(
        "experts",
        sa.Column("expert", sa.String(128), primary_key=True),
        sa.Column("base_model_digest", sa.LargeBinary, nullable=False),
        sa.Column("adapter_config_digest", sa.LargeBinary, nullable=False),
        sa.Column("layout", sa.LargeBinary, nullable=False),
        sa.Column("layout_digest", sa.LargeBinary, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "versions",
        sa.Column("expert", sa.String(128), sa.ForeignKey("experts.expert"), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("envelope", sa.LargeBinary, nullable=False),
        sa.Column("state_digest", sa.LargeBinary, nullable=False),
        sa.Column("residual_chunks", sa.LargeBinary, nullable=False),
        sa.Column("run", sa.String(128), nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("payload_bytes", sa.BigInteger, nullable=False),
        sa.Column("merge_seconds", sa.Float, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "rounds",
        sa.Column("expert", sa.String(128), sa.ForeignKey("experts.expert"), primary_key=True),
        sa.Column("run", sa.String(128), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True),
        sa.Column("nonce", sa.LargeBinary, nullable=False),
        sa.Column("base_version", sa.Integer, nullable=False),
        sa.Column("deadline_ms", sa.BigInteger, nullable=False),
        sa.Column("opened_at_ms", sa.BigInteger, nullable=False),
        sa.Column("closed_at_ms", sa.BigInteger),
        sa.Column("version", sa.Integer),
    )
    op.create_table(
        "submissions",
        sa.Column("update_digest", sa.LargeBinary, primary_key=True),
        sa.Column("expert", sa.String(128), sa.ForeignKey("experts.expert"), nullable=False),
        sa.Column("run", sa.String(128), nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("keyid", sa.String(32), sa.ForeignKey("keys.keyid"), nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("num_examples", sa.BigInteger, nullable=False),
        sa.Column("envelope", sa.LargeBinary, nullable=False),
        sa.Column("receipt", sa.LargeBinary, nullable=False),
        sa.Column("accepted_at_ms", sa.BigInteger, nullable=False),
        sa.Column("merged_in", sa.Integer),
        sa.UniqueConstraint("expert", "run", "round", "keyid"),
    )
    op.create_table(
        "refusals",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("peer", sa.String(128), nullable=False),
        sa.Column("expert", sa.String(128), nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("code", sa.String(32), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
    )
    op.create_table(
        "transfers",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("keyid", sa.String(32), nullable=False),
        sa.Column("expert", sa.String(128), nullable=False),
        sa.Column("run", sa.String(128), nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("direction", sa.String(4), nullable=False),
        sa.Column("dense_fp32_bytes", sa.BigInteger, nullable=False),
        sa.Column("payload_bytes", sa.BigInteger, nullable=False),
        sa.Column("wire_received_bytes", sa.BigInteger, nullable=False),
        sa.Column("wire_sent_bytes", sa.BigInteger, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
    )
    op.create_table(
        "quality",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("expert", sa.String(128), nullable=False),
        sa.Column("run", sa.String(128), nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("arm", sa.String(16), nullable=False),
        sa.Column("client", sa.String(128), nullable=False),
        sa.Column("metric", sa.String(64), nullable=False),
        sa.Column("value", sa.Float, nullable=False),
        sa.Column("num_examples", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("expert", "run", "version", "arm", "client", "metric"),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("subject", sa.String(256), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
    )
