"""Who may use which expert, where channels point, what is retired, who fetched what.

A federation that ran before there was a policy goes on: where members are enrolled, every role keeps what it could do, as rules that
`compeft policy list` shows and the operator can narrow.
"""

import hashlib
import json
import time
from collections.abc import Mapping

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0003_terms_of_experts", "0002_identity"
KEPT = (("edge", "publish"), ("edge", "fetch"), ("conductor", "publish"), ("conductor", "fetch"), ("reader", "fetch"))


def upgrade() -> None:
    """Make the tables; keep a running federation running."""
    op.create_table(
        "channel_moves",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("expert", sa.String(128), sa.ForeignKey("experts.expert"), nullable=False),
        sa.Column("channel", sa.String(16), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
    )
    op.create_table(
        "rules",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("expert", sa.String(128), nullable=False),
        sa.Column("who", sa.String(128), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("effect", sa.String(16), nullable=False),
        sa.Column("from_version", sa.Integer, nullable=False),
        sa.Column("until_ms", sa.BigInteger),
        sa.Column("channel", sa.String(16), nullable=False),
    )
    op.create_table(
        "retirements",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("expert", sa.String(128), sa.ForeignKey("experts.expert"), nullable=False),
        sa.Column("version", sa.Integer),
        sa.Column("retired", sa.Boolean, nullable=False),
    )
    op.create_table(
        "fetches",
        sa.Column("expert", sa.String(128), sa.ForeignKey("experts.expert"), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("keyid", sa.String(32), primary_key=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
    )
    for table in ("channel_moves", "rules", "retirements"):
        op.create_index(f"ix_{table}_expert", table, ["expert"])
    if op.get_bind().execute(sa.text("SELECT 1 FROM keys LIMIT 1")).first():
        _keep_running(op.get_bind(), time.time_ns() // 1_000_000)


def _keep_running(connection: sa.Connection, now_ms: int) -> None:
    """Rules for every role, each with its entry in the audit log (docs/protocol.md, "Policy")."""
    columns = "at_ms, expert, who, action, effect, from_version, channel"
    insert = f"INSERT INTO rules ({columns}) VALUES (:at, '*', :who, :action, 'allow', 0, '')"  # noqa: S608  # a constant
    for role, action in KEPT:
        connection.execute(sa.text(insert), {"at": now_ms, "who": f"role:{role}", "action": action})
        fields = {"who": f"role:{role}", "may": action, "reason": "enrolled before there was a policy"}
        _note(connection, {"at_ms": now_ms, "action": "allow", "subject": "*", "detail": _canonical(fields)})


def _note(connection: sa.Connection, event: dict[str, object]) -> None:
    before = connection.execute(sa.text("SELECT hash FROM audit ORDER BY id DESC LIMIT 1")).scalar() or bytes(32)
    chained = hashlib.sha256(bytes(before) + _canonical(event).encode()).digest()
    insert = "INSERT INTO audit (at_ms, action, subject, detail, hash) VALUES (:at_ms, :action, :subject, :detail, :hash)"
    connection.execute(sa.text(insert), event | {"hash": chained})


def _canonical(fields: Mapping[str, object]) -> str:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))
