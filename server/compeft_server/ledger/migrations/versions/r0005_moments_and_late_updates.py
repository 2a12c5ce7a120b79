"""Versions keep the moments of the server optimizer; rounds say how late an update may come."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0005_moments_and_late_updates", "0004_packages"


def upgrade() -> None:
    """Versions that are there have no moments; their rounds took no late update."""
    op.add_column("versions", sa.Column("moment_chunks", sa.LargeBinary, nullable=False, server_default=sa.text("''")))
    op.add_column("rounds", sa.Column("max_staleness", sa.Integer, nullable=False, server_default=sa.text("0")))
