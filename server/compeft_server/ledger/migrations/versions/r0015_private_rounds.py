"""Terms, clips and seeds of private rounds."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0015_private_rounds", "0014_member_labels"


def upgrade() -> None:
    """No round was private before."""
    op.create_table(
        "private_rounds",
        sa.Column("expert", sa.String(128), primary_key=True),
        sa.Column("run", sa.String(128), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True),
        sa.Column("clip", sa.Float, nullable=False),
        sa.Column("terms", sa.Text, nullable=False),
        sa.Column("data", sa.String(128), nullable=False),
        sa.Column("asked", sa.Integer, nullable=False),
        sa.Column("seed", sa.LargeBinary, nullable=False),
        sa.Column("next_clip", sa.Float, nullable=False),
        sa.ForeignKeyConstraint(["expert", "run", "round"], ["rounds.expert", "rounds.run", "rounds.round"]),
    )
