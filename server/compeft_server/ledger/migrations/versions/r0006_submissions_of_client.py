"""How far a client has come is answered from an index, however many updates there are."""

from alembic import op

revision, down_revision = "0006_submissions_of_client", "0005_moments_and_late_updates"


def upgrade() -> None:
    """Nothing but the index."""
    op.create_index("submissions_of_client", "submissions", ["expert", "keyid", "sequence"])
