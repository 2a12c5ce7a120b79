"""Weights of updates and of measured values are real numbers of 0 or more, by whichever metric a strategy weighs."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0009_weights", "0008_relayed_bytes"


def upgrade() -> None:
    """The number of examples that was recorded is the weight that it was merged with."""
    with op.batch_alter_table("submissions") as table:
        table.alter_column(
            "num_examples", new_column_name="weight", existing_type=sa.BigInteger, type_=sa.Float, existing_nullable=False
        )
    with op.batch_alter_table("quality") as table:
        table.alter_column("num_examples", existing_type=sa.BigInteger, type_=sa.Float, existing_nullable=False)
