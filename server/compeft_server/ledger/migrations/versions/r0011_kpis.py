"""Business metrics of experts over time."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0011_kpis", "0010_reporters_and_flow"


def upgrade() -> None:
    """No business metric was kept before."""
    op.create_table(
        "kpis",
        sa.Column("expert", sa.String(128), sa.ForeignKey("experts.expert"), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("unit", sa.String(16), nullable=False),
        sa.Column("goal", sa.Float),
        sa.Column("baseline", sa.Float),
    )
    op.create_table(
        "kpi_values",
        sa.Column("expert", sa.String(128), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("at_ms", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("value", sa.Float, nullable=False),
        sa.ForeignKeyConstraint(["expert", "name"], ["kpis.expert", "kpis.name"]),
    )
