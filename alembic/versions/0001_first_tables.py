"""Events, meters, features, plans, customers, subscriptions, API keys."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.CHAR(length=26), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("hint", sa.Text(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("role IN ('ingest', 'read', 'admin')", name="api_keys_role_check"),
        sa.PrimaryKeyConstraint("id", name="api_keys_pkey"),
        sa.UniqueConstraint("hash", name="api_keys_hash_key"),
    )
    op.create_table(
        "customers",
        sa.Column("id", sa.CHAR(length=26), nullable=False),
        sa.Column("key", sa.Text(), nullable=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("metadata", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("primary_email", sa.Text(), nullable=True),
        sa.Column("currency", sa.Text(), nullable=True),
        sa.Column("billing_address", postgresql.JSONB(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="customers_pkey"),
    )
    op.create_table(
        "events",
        sa.Column("key", sa.UUID(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("data", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("specversion", sa.Text(), nullable=False),
        sa.Column("dataschema", sa.Text(), nullable=True),
        sa.Column("ingested_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("stored_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key", name="events_pkey"),
    )
    op.create_index("events_type_subject_time_idx", "events", ["type", "subject", "time"], unique=False)
    op.create_table(
        "meters",
        sa.Column("id", sa.CHAR(length=26), nullable=False),
        sa.Column("slug", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("metadata", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("aggregation", sa.Text(), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("event_from", sa.DateTime(timezone=True), nullable=True),
        sa.Column("value_property", sa.Text(), nullable=True),
        sa.Column("group_by", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(aggregation = 'COUNT') = (value_property IS NULL)", name="meters_value_property_check"
        ),
        sa.PrimaryKeyConstraint("id", name="meters_pkey"),
    )
    op.create_index("meters_slug_key", "meters", ["slug"], unique=True, postgresql_where="deleted_at IS NULL")
    op.create_table(
        "plans",
        sa.Column("id", sa.CHAR(length=26), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("metadata", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("billing_cadence", sa.Text(), nullable=False),
        sa.Column("pro_rating", sa.Boolean(), nullable=False),
        sa.Column("phases", postgresql.JSONB(), nullable=False),
        sa.Column("feature_ids", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("effective_from", sa.DateTime(timezone=True), nullable=True),
        sa.Column("effective_to", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="plans_pkey"),
    )
    op.create_index(
        "plans_active_key",
        "plans",
        ["key"],
        unique=True,
        postgresql_where="effective_from IS NOT NULL AND effective_to IS NULL",
    )
    op.create_index(
        "plans_draft_key", "plans", ["key"], unique=True, postgresql_where="effective_from IS NULL"
    )
    op.create_index("plans_version_key", "plans", ["key", "version"], unique=True)
    op.create_table(
        "quarantined_entries",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("gateway", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("events", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="quarantined_entries_pkey"),
    )
    op.create_index(
        "quarantined_entries_received_at_idx", "quarantined_entries", ["received_at"], unique=False
    )
    op.create_table(
        "features",
        sa.Column("id", sa.CHAR(length=26), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("metadata", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("meter_id", sa.CHAR(length=26), nullable=True),
        sa.Column("meter_group_by_filters", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("archived_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["meter_id"], ["meters.id"], name="features_meter_id_fkey"),
        sa.PrimaryKeyConstraint("id", name="features_pkey"),
    )
    op.create_index(
        "features_key_key", "features", ["key"], unique=True, postgresql_where="archived_at IS NULL"
    )
    op.create_index("features_meter_id_idx", "features", ["meter_id"], unique=False)
    op.create_table(
        "subject_owners",
        sa.Column("subject_key", sa.Text(), nullable=False),
        sa.Column("customer_id", sa.CHAR(length=26), nullable=False),
        sa.Column("position", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["customer_id"], ["customers.id"], name="subject_owners_customer_id_fkey"),
        sa.PrimaryKeyConstraint("subject_key", name="subject_owners_pkey"),
    )
    op.create_index("subject_owners_customer_id_idx", "subject_owners", ["customer_id"], unique=False)
    op.create_table(
        "subscriptions",
        sa.Column("id", sa.CHAR(length=26), nullable=False),
        sa.Column("customer_id", sa.CHAR(length=26), nullable=False),
        sa.Column("plan_id", sa.CHAR(length=26), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("metadata", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("billing_cadence", sa.Text(), nullable=False),
        sa.Column("billing_anchor", sa.DateTime(timezone=True), nullable=False),
        sa.Column("pro_rating", sa.Boolean(), nullable=False),
        sa.Column("active_from", sa.DateTime(timezone=True), nullable=False),
        sa.Column("active_to", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["customer_id"], ["customers.id"], name="subscriptions_customer_id_fkey"),
        sa.ForeignKeyConstraint(["plan_id"], ["plans.id"], name="subscriptions_plan_id_fkey"),
        sa.PrimaryKeyConstraint("id", name="subscriptions_pkey"),
    )
    op.create_index(
        "subscriptions_customer_id_active_from_idx",
        "subscriptions",
        ["customer_id", "active_from"],
        unique=False,
    )
    op.create_index(
        "subscriptions_open_ended_key",
        "subscriptions",
        ["customer_id"],
        unique=True,
        postgresql_where="active_to IS NULL",
    )
    op.create_table(
        "subscription_phases",
        sa.Column("id", sa.CHAR(length=26), nullable=False),
        sa.Column("subscription_id", sa.CHAR(length=26), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("metadata", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("active_from", sa.DateTime(timezone=True), nullable=False),
        sa.Column("active_to", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["subscription_id"], ["subscriptions.id"], name="subscription_phases_subscription_id_fkey"
        ),
        sa.PrimaryKeyConstraint("id", name="subscription_phases_pkey"),
    )
    op.create_index(
        "subscription_phases_subscription_id_idx", "subscription_phases", ["subscription_id"], unique=False
    )
    op.create_table(
        "subscription_items",
        sa.Column("id", sa.CHAR(length=26), nullable=False),
        sa.Column("phase_id", sa.CHAR(length=26), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("rate_card", postgresql.JSONB(), nullable=False),
        sa.Column("feature_id", sa.CHAR(length=26), nullable=True),
        sa.Column("active_from", sa.DateTime(timezone=True), nullable=False),
        sa.Column("active_to", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["feature_id"], ["features.id"], name="subscription_items_feature_id_fkey"),
        sa.ForeignKeyConstraint(
            ["phase_id"], ["subscription_phases.id"], name="subscription_items_phase_id_fkey"
        ),
        sa.PrimaryKeyConstraint("id", name="subscription_items_pkey"),
    )
    op.create_index("subscription_items_phase_id_idx", "subscription_items", ["phase_id"], unique=False)


def downgrade() -> None:
    for table in (
        "subscription_items",
        "subscription_phases",
        "subscriptions",
        "subject_owners",
        "customers",
        "plans",
        "features",
        "meters",
        "quarantined_entries",
        "events",
        "api_keys",
    ):
        op.drop_table(table)
