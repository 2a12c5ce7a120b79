"""A metric says who stated it; a transfer says over which bytes its rate can be measured."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0010_reporters_and_flow", "0009_weights"


def upgrade() -> None:
    """Metrics of packages came from their publishers, whose names were not kept beside them. No flow was measured before."""
    op.add_column("quality", sa.Column("reporter", sa.String(128), nullable=False, server_default=sa.text("''")))
    op.add_column("transfers", sa.Column("flow_bytes", sa.BigInteger, nullable=False, server_default=sa.text("0")))
    op.add_column("transfers", sa.Column("flow_seconds", sa.Float, nullable=False, server_default=sa.text("0")))
    op.execute(
        "UPDATE quality SET reporter = 'its publisher' "
        "WHERE client = '' AND expert IN (SELECT expert FROM experts WHERE kind = 'package')"
    )
