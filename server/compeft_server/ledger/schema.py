"""The tables of the ledger. Only `ledger.py` and `membership.py` change rows; a change here needs a migration (migrations/).

`summaries.py`, `listings.py` and the report's `report_rows.py` and `report_extras.py` read them by queries of their own.

Every statement is plain SQLAlchemy: SQLite and PostgreSQL take the same code. Times are milliseconds since the Unix epoch,
digests are 32 raw bytes.
"""

import sqlalchemy as sa

metadata = sa.MetaData()

keys = sa.Table(
    "keys",
    metadata,
    sa.Column("keyid", sa.String(32), primary_key=True),
    sa.Column("public", sa.LargeBinary, nullable=False),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("enrolled_at_ms", sa.BigInteger, nullable=False),
    sa.Column("revoked_at_ms", sa.BigInteger),
    sa.Column("succeeds", sa.String(32), sa.ForeignKey("keys.keyid", name="keys_succeeds")),
    sa.Index(
        "keys_in_force",
        "name",
        unique=True,
        sqlite_where=sa.text("revoked_at_ms IS NULL"),
        postgresql_where=sa.text("revoked_at_ms IS NULL"),
    ),
)

invitations = sa.Table(
    "invitations",
    metadata,
    sa.Column("number", sa.String(16), primary_key=True),
    sa.Column("secret_digest", sa.LargeBinary, nullable=False),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.Column("expires_at_ms", sa.BigInteger, nullable=False),
    sa.Column("withdrawn_at_ms", sa.BigInteger),
    sa.Column("used_at_ms", sa.BigInteger),
    sa.Column("used_by", sa.String(32)),
)

certificates = sa.Table(
    "certificates",
    metadata,
    sa.Column("serial", sa.String(40), primary_key=True),
    sa.Column("keyid", sa.ForeignKey("keys.keyid"), nullable=False),
    sa.Column("issued_at_ms", sa.BigInteger, nullable=False),
    sa.Column("expires_at_ms", sa.BigInteger, nullable=False),
)

experts = sa.Table(
    "experts",
    metadata,
    sa.Column("expert", sa.String(128), primary_key=True),
    sa.Column("base_model_digest", sa.LargeBinary, nullable=False),
    sa.Column("adapter_config_digest", sa.LargeBinary, nullable=False),
    sa.Column("layout", sa.LargeBinary, nullable=False),
    sa.Column("layout_digest", sa.LargeBinary, nullable=False),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False, server_default="composed"),
)

versions = sa.Table(
    "versions",
    metadata,
    sa.Column("expert", sa.ForeignKey("experts.expert"), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("envelope", sa.LargeBinary, nullable=False),
    sa.Column("state_digest", sa.LargeBinary, nullable=False),
    sa.Column("residual_chunks", sa.LargeBinary, nullable=False),
    sa.Column("run", sa.String(128), nullable=False),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("payload_bytes", sa.BigInteger, nullable=False),
    sa.Column("merge_seconds", sa.Float, nullable=False),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.Column("moment_chunks", sa.LargeBinary, nullable=False, server_default=sa.text("''")),
)

snapshots = sa.Table(
    "snapshots",
    metadata,
    sa.Column("expert", sa.String(128), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("envelope", sa.LargeBinary, nullable=False),
    sa.Column("payload_bytes", sa.BigInteger, nullable=False),
    sa.ForeignKeyConstraint(["expert", "version"], ["versions.expert", "versions.version"]),
)

rounds = sa.Table(
    "rounds",
    metadata,
    sa.Column("expert", sa.ForeignKey("experts.expert"), primary_key=True),
    sa.Column("run", sa.String(128), primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("nonce", sa.LargeBinary, nullable=False),
    sa.Column("base_version", sa.Integer, nullable=False),
    sa.Column("deadline_ms", sa.BigInteger, nullable=False),
    sa.Column("opened_at_ms", sa.BigInteger, nullable=False),
    sa.Column("closed_at_ms", sa.BigInteger),
    sa.Column("version", sa.Integer),
    sa.Column("max_staleness", sa.Integer, nullable=False, server_default=sa.text("0")),
)

submissions = sa.Table(
    "submissions",
    metadata,
    sa.Column("update_digest", sa.LargeBinary, primary_key=True),
    sa.Column("expert", sa.ForeignKey("experts.expert"), nullable=False),
    sa.Column("run", sa.String(128), nullable=False),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("keyid", sa.ForeignKey("keys.keyid"), nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("weight", sa.Float, nullable=False),
    sa.Column("envelope", sa.LargeBinary, nullable=False),
    sa.Column("receipt", sa.LargeBinary, nullable=False),
    sa.Column("accepted_at_ms", sa.BigInteger, nullable=False),
    sa.Column("merged_in", sa.Integer),
    sa.UniqueConstraint("expert", "run", "round", "keyid"),
    sa.Index("submissions_of_client", "expert", "keyid", "sequence"),
)

refusals = sa.Table(
    "refusals",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("peer", sa.String(128), nullable=False),
    sa.Column("expert", sa.String(128), nullable=False),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("code", sa.String(32), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)

transfers = sa.Table(
    "transfers",
    metadata,
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
    sa.Column("relayed_bytes", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("flow_bytes", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("flow_seconds", sa.Float, nullable=False, server_default=sa.text("0")),
)

private_rounds = sa.Table(
    "private_rounds",
    metadata,
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

settled = sa.Table(
    "settled",
    metadata,
    sa.Column("expert", sa.ForeignKey("experts.expert"), primary_key=True),
    sa.Column("keyid", sa.ForeignKey("keys.keyid"), primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
)

quality = sa.Table(
    "quality",
    metadata,
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
    sa.Column("num_examples", sa.Float, nullable=False),
    sa.Column("reporter", sa.String(128), nullable=False, server_default=sa.text("''")),
    sa.UniqueConstraint("expert", "run", "version", "arm", "client", "metric"),
)


kpis = sa.Table(
    "kpis",
    metadata,
    sa.Column("expert", sa.ForeignKey("experts.expert"), primary_key=True),
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("unit", sa.String(16), nullable=False),
    sa.Column("goal", sa.Float),
    sa.Column("baseline", sa.Float),
)

kpi_values = sa.Table(
    "kpi_values",
    metadata,
    sa.Column("expert", sa.String(128), primary_key=True),
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("at_ms", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("value", sa.Float, nullable=False),
    sa.ForeignKeyConstraint(["expert", "name"], ["kpis.expert", "kpis.name"]),
)

member_labels = sa.Table(
    "member_labels",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("name", sa.String(128), nullable=False, index=True),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("link", sa.String(64), nullable=False),
)

pool_reports = sa.Table(
    "pool_reports",
    metadata,
    sa.Column("keyid", sa.ForeignKey("keys.keyid"), primary_key=True),
    sa.Column("pool", sa.String(64), primary_key=True),
    sa.Column("hour", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("engine", sa.String(64), nullable=False),
    sa.Column("device", sa.String(128), nullable=False),
    sa.Column("started_at_ms", sa.BigInteger, nullable=False),
    sa.Column("known", sa.BigInteger, nullable=False),
    sa.Column("resident", sa.BigInteger, nullable=False),
    sa.Column("resident_bytes", sa.BigInteger, nullable=False),
    sa.Column("dense_bf16_bytes", sa.BigInteger, nullable=False),
    sa.Column("capacity_bytes", sa.BigInteger, nullable=False),
    sa.Column("switches", sa.BigInteger, nullable=False),
    sa.Column("hits", sa.BigInteger, nullable=False),
    sa.Column("misses", sa.BigInteger, nullable=False),
    sa.Column("switch_seconds", sa.Float, nullable=False),
    sa.Column("decode_seconds", sa.Float, nullable=False),
    sa.Column("device_memory_bytes", sa.BigInteger, nullable=False),
    sa.Column("experts", sa.Text, nullable=False),
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("action", sa.String(32), nullable=False),
    sa.Column("subject", sa.String(256), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
    sa.Column("nodes", sa.LargeBinary, nullable=False, server_default=sa.text("''")),
)

channel_moves = sa.Table(
    "channel_moves",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("expert", sa.ForeignKey("experts.expert"), nullable=False, index=True),
    sa.Column("channel", sa.String(16), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
)

rules = sa.Table(
    "rules",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("expert", sa.String(128), nullable=False, index=True),
    sa.Column("who", sa.String(128), nullable=False),
    sa.Column("action", sa.String(16), nullable=False),
    sa.Column("effect", sa.String(16), nullable=False),
    sa.Column("from_version", sa.Integer, nullable=False),
    sa.Column("until_ms", sa.BigInteger),
    sa.Column("channel", sa.String(16), nullable=False),
)

retirements = sa.Table(
    "retirements",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("expert", sa.ForeignKey("experts.expert"), nullable=False, index=True),
    sa.Column("version", sa.Integer),
    sa.Column("retired", sa.Boolean, nullable=False),
)

fetches = sa.Table(
    "fetches",
    metadata,
    sa.Column("expert", sa.ForeignKey("experts.expert"), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("keyid", sa.String(32), primary_key=True),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
)
