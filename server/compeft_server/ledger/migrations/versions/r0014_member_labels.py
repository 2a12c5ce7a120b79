"""Labels of members: the tenant that pays for a site, and the link that it is on."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0014_member_labels", "0013_pool_reports"


def upgrade() -> None:
    """No member had a label before."""
    op.create_table(
        "member_labels",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("link", sa.String(64), nullable=False),
    )
    op.create_index("ix_member_labels_name", "member_labels", ["name"])
