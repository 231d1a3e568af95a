"""Usage cubes behind numbered batches, voided events, retired events; leaner indexes for raw events."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    _events()
    op.execute("CREATE INDEX events_subject_time_idx ON events (hashtextextended(subject, 0), time)")
    op.execute("CREATE INDEX events_time_idx ON events USING brin (time)")
    op.execute("CREATE INDEX events_batch_idx ON events USING brin (batch) WITH (pages_per_range = 32)")
    op.execute(
        "CREATE TABLE retired_events (LIKE events INCLUDING STORAGE INCLUDING COMPRESSION,"
        " CONSTRAINT retired_events_pkey PRIMARY KEY (key))"
    )
    op.execute("ALTER TABLE retired_events ALTER batch SET DEFAULT 0")
    op.execute(
        "CREATE INDEX retired_events_subject_time_idx ON retired_events (hashtextextended(subject, 0), time)"
    )
    op.execute("CREATE INDEX retired_events_time_idx ON retired_events USING brin (time)")
    op.create_table(
        "pending_batches",
        sa.Column("batch", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("events", sa.Integer(), nullable=False),
        sa.Column("stored_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("batch", name="pending_batches_pkey"),
    )
    # What is there already, in batches of a size that the cubes can be built from.
    op.execute(
        "UPDATE events SET batch = n FROM ("
        "SELECT key, 1 + row_number() OVER (ORDER BY stored_at, key) / 20000 AS n FROM events"
        ") AS numbered WHERE numbered.key = events.key"
    )
    op.execute(
        "SELECT setval(pg_get_serial_sequence('pending_batches', 'batch'), max(batch)) FROM events"
        " HAVING max(batch) > 0"
    )
    op.create_table(
        "voided_events",
        sa.Column("key", sa.UUID(), nullable=False),
        sa.Column("correction_id", sa.CHAR(length=26), nullable=False),
        sa.Column("voided_at", INSTANT, nullable=False),
        sa.Column("restored_at", INSTANT, nullable=True),
        sa.PrimaryKeyConstraint("key", "correction_id", name="voided_events_pkey"),
    )
    op.create_index("voided_events_correction_id_idx", "voided_events", ["correction_id"])
    _cubes()


def _events() -> None:
    """A new table, since a row is read from its front: what has a fixed length, then what is filtered by."""
    op.execute("ALTER TABLE events RENAME TO old_events")
    op.execute("ALTER TABLE old_events DROP CONSTRAINT events_pkey")
    op.create_table(
        "events",
        sa.Column("key", sa.UUID(), nullable=False),
        sa.Column("batch", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("time", INSTANT, nullable=False),
        sa.Column("ingested_at", INSTANT, nullable=False),
        sa.Column("stored_at", INSTANT, nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("data", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("specversion", sa.Text(), nullable=False),
        sa.Column("dataschema", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("key", name="events_pkey"),
    )
    columns = "key, time, ingested_at, stored_at, type, subject, data, source, id, specversion, dataschema"
    op.execute(f"INSERT INTO events ({columns}) SELECT {columns} FROM old_events")
    op.drop_table("old_events")
    # It grows by thousands of rows a second: a fifth more, the usual measure, is noticed too late.
    op.execute(
        "ALTER TABLE events SET (autovacuum_analyze_scale_factor = 0.02,"
        " autovacuum_vacuum_insert_scale_factor = 0.05)"
    )


def _cubes() -> None:
    op.create_table(
        "usage_cubes",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("value_property", sa.Text(), nullable=True),
        sa.Column("paths", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("too_wide", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("distinct_values", sa.Boolean(), nullable=False),
        sa.Column("latest_values", sa.Boolean(), nullable=False),
        sa.Column("built_to", sa.BigInteger(), nullable=True),
        sa.Column("hours_from", INSTANT, nullable=False),
        sa.Column("closed_to", INSTANT, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="usage_cubes_pkey"),
    )
    op.create_table(
        "usage_cube_hours",
        sa.Column("cube_id", sa.BigInteger(), nullable=False),
        sa.Column("start", INSTANT, nullable=False),
        sa.Column("first", INSTANT, nullable=False),
        sa.Column("last", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("cube_id", "start", name="usage_cube_hours_pkey"),
    )
    op.create_table(
        "usage_series",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("cube_id", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("dimensions", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("id", name="usage_series_pkey"),
    )
    op.create_index("usage_series_cube_id_digest_key", "usage_series", ["cube_id", "digest"], unique=True)
    op.create_index("usage_series_cube_id_subject_idx", "usage_series", ["cube_id", "subject"])
    for table in ("usage_hours", "usage_days"):
        op.create_table(
            table,
            sa.Column("series_id", sa.BigInteger(), nullable=False),
            sa.Column("start", INSTANT, nullable=False),
            sa.Column("events", sa.BigInteger(), nullable=False),
            sa.Column("numbers", sa.BigInteger(), nullable=False),
            sa.Column("sum", sa.Numeric(), nullable=True),
            sa.Column("min", sa.Numeric(), nullable=True),
            sa.Column("max", sa.Numeric(), nullable=True),
            sa.Column("latest", sa.Numeric(), nullable=True),
            sa.Column("latest_time", INSTANT, nullable=True),
            sa.Column("latest_key", sa.UUID(), nullable=True),
            sa.Column("first", INSTANT, nullable=False),
            sa.Column("last", INSTANT, nullable=False),
            sa.PrimaryKeyConstraint("series_id", "start", name=f"{table}_pkey"),
        )
        op.execute(f"ALTER TABLE {table} SET (fillfactor = 70, autovacuum_analyze_scale_factor = 0.05)")
        op.execute(f"CREATE INDEX {table}_start_idx ON {table} USING brin (start)")
    # A subject's month is read from the index alone, 52 pages instead of 515. Hours change too often.
    op.execute("ALTER TABLE usage_days DROP CONSTRAINT usage_days_pkey")
    op.execute(
        "ALTER TABLE usage_days ADD CONSTRAINT usage_days_pkey"
        " PRIMARY KEY (series_id, start) INCLUDE (events, numbers, sum)"
    )
    for table in ("usage_hour_values", "usage_day_values"):
        op.create_table(
            table,
            sa.Column("series_id", sa.BigInteger(), nullable=False),
            sa.Column("start", INSTANT, nullable=False),
            sa.Column("digest", sa.LargeBinary(), nullable=False),
            sa.PrimaryKeyConstraint("series_id", "start", "digest", name=f"{table}_pkey"),
        )


def downgrade() -> None:
    for table in ("usage_day_values", "usage_hour_values", "usage_days", "usage_hours", "usage_series"):
        op.drop_table(table)
    op.drop_table("usage_cube_hours")
    op.drop_table("usage_cubes")
    op.drop_table("voided_events")
    op.drop_table("pending_batches")
    op.execute("INSERT INTO events SELECT * FROM retired_events")
    op.drop_table("retired_events")
    for index in ("events_batch_idx", "events_time_idx", "events_subject_time_idx"):
        op.drop_index(index, table_name="events")
    op.create_index("events_type_subject_time_idx", "events", ["type", "subject", "time"])
    op.drop_column("events", "batch")
