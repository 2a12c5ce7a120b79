"""What clients were told about their updates outlives the process that told them."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0007_settled", "0006_submissions_of_client"


def upgrade() -> None:
    """Nobody was told anything that an earlier process would have kept."""
    op.create_table(
        "settled",
        sa.Column("expert", sa.String(128), sa.ForeignKey("experts.expert"), primary_key=True),
        sa.Column("keyid", sa.String(32), sa.ForeignKey("keys.keyid"), primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    )
