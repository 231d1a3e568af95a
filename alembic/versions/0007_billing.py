"""Billing: the life of subscriptions, profiles and apps, invoices, payments, credit notes, runs."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

INSTANT = sa.DateTime(timezone=True)
ID = sa.CHAR(26)


def upgrade() -> None:
    _subscriptions()
    _subscription_addons()
    _profiles()
    _invoices()
    _tax_rates()
    _payments()
    _runs()


def _subscriptions() -> None:
    op.add_column("subscriptions", sa.Column("next_billing_at", INSTANT, nullable=True))
    op.execute("UPDATE subscriptions SET next_billing_at = active_from")
    op.create_index(
        "subscriptions_next_billing_at_idx",
        "subscriptions",
        ["next_billing_at"],
        postgresql_where=sa.text("next_billing_at IS NOT NULL"),
    )
    op.alter_column("subscriptions", "plan_id", nullable=True)
    op.add_column("subscriptions", sa.Column("before_cancelation", JSONB(), nullable=True))
    op.add_column("subscriptions", sa.Column("without_addons", JSONB(), nullable=True))
    op.add_column("subscription_phases", sa.Column("duration", sa.Text(), nullable=True))
    op.execute(EXACT_DURATIONS)


EXACT_DURATIONS = """
    UPDATE subscription_phases
    SET duration = format('P%sDT%sS', length / 86400, length % 86400)
    FROM (SELECT id AS phase, EXTRACT(EPOCH FROM active_to - active_from)::bigint AS length
          FROM subscription_phases WHERE active_to IS NOT NULL) AS lengths
    WHERE id = phase
"""


def _subscription_addons() -> None:
    op.create_table(
        "subscription_addons",
        sa.Column("id", ID, nullable=False),
        sa.Column(
            "subscription_id",
            ID,
            sa.ForeignKey("subscriptions.id", name="subscription_addons_subscription_id_fkey"),
            nullable=False,
        ),
        sa.Column(
            "addon_id",
            ID,
            sa.ForeignKey("addons.id", name="subscription_addons_addon_id_fkey"),
            nullable=False,
        ),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("metadata", JSONB(), nullable=True),
        sa.Column("from_phase", sa.Text(), nullable=False),
        sa.Column("max_quantity", sa.Integer(), nullable=False),
        sa.Column("quantities", JSONB(), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="subscription_addons_pkey"),
    )
    op.create_index(
        "subscription_addons_addon_key", "subscription_addons", ["subscription_id", "addon_id"], unique=True
    )


def _profiles() -> None:
    op.create_table(
        "apps",
        sa.Column("id", ID, nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("metadata", JSONB(), nullable=True),
        sa.Column("draft_sync_hook", sa.Boolean(), nullable=False),
        sa.Column("issuing_sync_hook", sa.Boolean(), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.Column("deleted_at", INSTANT, nullable=True),
        sa.PrimaryKeyConstraint("id", name="apps_pkey"),
    )
    op.create_index(
        "apps_sandbox_key",
        "apps",
        ["type"],
        unique=True,
        postgresql_where=sa.text("type = 'sandbox' AND deleted_at IS NULL"),
    )
    op.create_table(
        "billing_profiles",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("metadata", JSONB(), nullable=True),
        sa.Column("supplier", JSONB(), nullable=False),
        sa.Column("workflow", JSONB(), nullable=False),
        sa.Column(
            "app_id", ID, sa.ForeignKey("apps.id", name="billing_profiles_app_id_fkey"), nullable=False
        ),
        sa.Column("is_default", sa.Boolean(), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.Column("deleted_at", INSTANT, nullable=True),
        sa.PrimaryKeyConstraint("id", name="billing_profiles_pkey"),
    )
    op.create_index(
        "billing_profiles_default_key",
        "billing_profiles",
        ["is_default"],
        unique=True,
        postgresql_where=sa.text("is_default AND deleted_at IS NULL"),
    )
    op.create_table(
        "customer_overrides",
        sa.Column(
            "customer_id",
            ID,
            sa.ForeignKey("customers.id", name="customer_overrides_customer_id_fkey"),
            nullable=False,
        ),
        sa.Column(
            "billing_profile_id",
            ID,
            sa.ForeignKey("billing_profiles.id", name="customer_overrides_billing_profile_id_fkey"),
            nullable=True,
        ),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("customer_id", name="customer_overrides_pkey"),
    )
    op.create_index("customer_overrides_billing_profile_id_idx", "customer_overrides", ["billing_profile_id"])
    op.create_table(
        "customer_apps",
        sa.Column(
            "customer_id",
            ID,
            sa.ForeignKey("customers.id", name="customer_apps_customer_id_fkey"),
            nullable=False,
        ),
        sa.Column("app_id", ID, sa.ForeignKey("apps.id", name="customer_apps_app_id_fkey"), nullable=False),
        sa.Column("data", JSONB(), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("customer_id", "app_id", name="customer_apps_pkey"),
    )
    _sandbox()


def _sandbox() -> None:
    """A fresh database has an app that pretends to collect, and a profile that invoices by it."""
    now = sa.func.transaction_timestamp()
    app = {
        "id": "00000000000000000000000003",
        "type": "sandbox",
        "name": "Sandbox",
        "description": "Pays each invoice at once, or does what its metadata says.",
        "draft_sync_hook": False,
        "issuing_sync_hook": False,
    }
    profile = {
        "id": "00000000000000000000000004",
        "name": "Default",
        "supplier": {"name": "Your company"},
        "workflow": {},
        "app_id": app["id"],
        "is_default": True,
    }
    kinds = {"supplier": JSONB, "workflow": JSONB}
    for name, row in (("apps", app), ("billing_profiles", profile)):
        columns = [sa.column(key, kinds.get(key)) for key in [*row, "created_at", "updated_at"]]
        op.execute(sa.table(name, *columns).insert().values(**row, created_at=now, updated_at=now))


TOTALS = ("amount", "charges", "discounts", "credits", "taxes_inclusive", "taxes_exclusive")


def _invoices() -> None:
    op.execute(sa.schema.CreateSequence(sa.Sequence("draft_numbers")))
    op.create_table(
        "number_sequences",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("scope", name="number_sequences_pkey"),
    )
    op.create_table(
        "invoices",
        sa.Column("id", ID, nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column(
            "customer_id",
            ID,
            sa.ForeignKey("customers.id", name="invoices_customer_id_fkey"),
            nullable=False,
        ),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("number", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("metadata", JSONB(), nullable=True),
        sa.Column("supplier", JSONB(), nullable=False),
        sa.Column("customer", JSONB(), nullable=False),
        sa.Column(
            "billing_profile_id",
            ID,
            sa.ForeignKey("billing_profiles.id", name="invoices_billing_profile_id_fkey"),
            nullable=False,
        ),
        sa.Column("app_id", ID, sa.ForeignKey("apps.id", name="invoices_app_id_fkey"), nullable=False),
        sa.Column("workflow", JSONB(), nullable=False),
        sa.Column("validation_issues", JSONB(), nullable=False),
        sa.Column("external_ids", JSONB(), nullable=False),
        sa.Column(
            "preceding_id",
            ID,
            sa.ForeignKey("invoices.id", name="invoices_preceding_id_fkey"),
            nullable=True,
        ),
        sa.Column("preceding", JSONB(), nullable=True),
        sa.Column("period_start", INSTANT, nullable=True),
        sa.Column("period_end", INSTANT, nullable=True),
        sa.Column("collection_at", INSTANT, nullable=True),
        sa.Column("draft_until", INSTANT, nullable=True),
        sa.Column("due_at", INSTANT, nullable=True),
        sa.Column("next_action_at", INSTANT, nullable=True),
        sa.Column("quantity_snapshotted_at", INSTANT, nullable=True),
        sa.Column("issued_at", INSTANT, nullable=True),
        sa.Column("sent_to_customer_at", INSTANT, nullable=True),
        sa.Column("voided_at", INSTANT, nullable=True),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.Column("deleted_at", INSTANT, nullable=True),
        *(sa.Column(name, sa.Numeric(), nullable=False) for name in TOTALS),
        sa.PrimaryKeyConstraint("id", name="invoices_pkey"),
    )
    op.create_index("invoices_number_key", "invoices", ["number"], unique=True)
    op.create_index("invoices_customer_id_idx", "invoices", ["customer_id"])
    op.create_index("invoices_preceding_id_idx", "invoices", ["preceding_id"])
    op.create_index(
        "invoices_next_action_at_idx",
        "invoices",
        ["next_action_at"],
        postgresql_where=sa.text("next_action_at IS NOT NULL"),
    )
    _invoice_lines()


def _invoice_lines() -> None:
    op.create_table(
        "pending_lines",
        sa.Column("id", ID, nullable=False),
        sa.Column(
            "customer_id",
            ID,
            sa.ForeignKey("customers.id", name="pending_lines_customer_id_fkey"),
            nullable=False,
        ),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("rate_card", JSONB(), nullable=False),
        sa.Column("feature_id", ID, nullable=True),
        sa.Column("period_start", INSTANT, nullable=False),
        sa.Column("period_end", INSTANT, nullable=False),
        sa.Column("invoice_at", INSTANT, nullable=False),
        sa.Column("next_billing_at", INSTANT, nullable=True),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("deleted_at", INSTANT, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pending_lines_pkey"),
    )
    op.create_index(
        "pending_lines_next_billing_at_idx",
        "pending_lines",
        ["next_billing_at"],
        postgresql_where=sa.text("next_billing_at IS NOT NULL"),
    )
    op.create_index("pending_lines_customer_id_idx", "pending_lines", ["customer_id"])
    op.create_table(
        "invoice_lines",
        sa.Column("id", ID, nullable=False),
        sa.Column(
            "invoice_id",
            ID,
            sa.ForeignKey("invoices.id", name="invoice_lines_invoice_id_fkey"),
            nullable=False,
        ),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("identity", sa.Text(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("managed_by", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("metadata", JSONB(), nullable=True),
        sa.Column("subscription_id", ID, nullable=True),
        sa.Column("phase_id", ID, nullable=True),
        sa.Column("item_id", ID, nullable=True),
        sa.Column("feature_id", ID, nullable=True),
        sa.Column("rate_card", JSONB(), nullable=False),
        sa.Column("share", sa.Text(), nullable=False),
        sa.Column("period_start", INSTANT, nullable=False),
        sa.Column("period_end", INSTANT, nullable=False),
        sa.Column("service_start", INSTANT, nullable=False),
        sa.Column("service_end", INSTANT, nullable=False),
        sa.Column("billing_start", INSTANT, nullable=False),
        sa.Column("billing_end", INSTANT, nullable=False),
        sa.Column("invoice_at", INSTANT, nullable=False),
        sa.Column("usage", JSONB(), nullable=True),
        sa.Column("last", sa.Boolean(), nullable=False),
        sa.Column("quantity", sa.Numeric(), nullable=False),
        sa.Column("quantity_before", sa.Numeric(), nullable=False),
        sa.Column("usage_discount", sa.Numeric(), nullable=False),
        sa.Column("usage_discount_before", sa.Numeric(), nullable=False),
        sa.Column("details", JSONB(), nullable=False),
        sa.Column("billed_events", JSONB(), nullable=True),
        sa.Column("taxes", JSONB(), nullable=False),
        sa.Column(
            "credited_line_id",
            ID,
            sa.ForeignKey("invoice_lines.id", name="invoice_lines_credited_line_id_fkey"),
            nullable=True,
        ),
        *(sa.Column(name, sa.Numeric(), nullable=False) for name in TOTALS),
        sa.Column("released_at", INSTANT, nullable=True),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="invoice_lines_pkey"),
    )
    op.create_index("invoice_lines_invoice_id_idx", "invoice_lines", ["invoice_id"])
    op.create_index("invoice_lines_credited_line_id_idx", "invoice_lines", ["credited_line_id"])
    op.create_index("invoice_lines_identity_key", "invoice_lines", ["identity", "sequence"], unique=True)
    op.create_index("invoice_lines_subscription_id_idx", "invoice_lines", ["subscription_id"])


def _runs() -> None:
    op.create_table(
        "billing_runs",
        sa.Column("id", ID, nullable=False),
        sa.Column("now", INSTANT, nullable=False),
        sa.Column("started_at", INSTANT, nullable=False),
        sa.Column("ended_at", INSTANT, nullable=True),
        *(
            sa.Column(name, sa.Integer(), nullable=False)
            for name in ("customers", "created", "issued", "paid", "failed")
        ),
        sa.Column("amounts", JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="billing_runs_pkey"),
    )
    op.create_table(
        "billing_run_failures",
        sa.Column(
            "run_id",
            ID,
            sa.ForeignKey("billing_runs.id", name="billing_run_failures_run_id_fkey", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("customer_id", ID, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "customer_id", name="billing_run_failures_pkey"),
    )
    op.create_table(
        "test_clock",
        sa.Column("id", sa.Boolean(), nullable=False),
        sa.Column("now", INSTANT, nullable=False),
        sa.CheckConstraint("id", name="test_clock_single_check"),
        sa.PrimaryKeyConstraint("id", name="test_clock_pkey"),
    )


def _no_runs() -> None:
    for table in ("test_clock", "billing_run_failures", "billing_runs"):
        op.drop_table(table)


def _tax_rates() -> None:
    op.create_table(
        "tax_rates",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=True),
        sa.Column("country", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=True),
        sa.Column("percent", sa.Numeric(), nullable=False),
        sa.Column("valid_from", INSTANT, nullable=False),
        sa.Column("valid_to", INSTANT, nullable=True),
        sa.Column("metadata", JSONB(), nullable=True),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.Column("deleted_at", INSTANT, nullable=True),
        sa.PrimaryKeyConstraint("id", name="tax_rates_pkey"),
    )
    op.create_index("tax_rates_country_idx", "tax_rates", ["country"])


def _payments() -> None:
    op.create_table(
        "payments",
        sa.Column("id", ID, nullable=False),
        sa.Column(
            "invoice_id",
            ID,
            sa.ForeignKey("invoices.id", name="payments_invoice_id_fkey"),
            nullable=False,
        ),
        sa.Column("amount", sa.Numeric(), nullable=False),
        sa.Column("received_at", INSTANT, nullable=False),
        sa.Column("method", sa.Text(), nullable=True),
        sa.Column("reference", sa.Text(), nullable=True),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="payments_pkey"),
    )
    op.create_index("payments_invoice_id_idx", "payments", ["invoice_id"])
    op.create_index("payments_reference_key", "payments", ["invoice_id", "reference"], unique=True)


def downgrade() -> None:
    _no_runs()
    op.drop_table("payments")
    op.drop_table("tax_rates")
    for table in (
        "invoice_lines",
        "pending_lines",
        "invoices",
        "number_sequences",
        "customer_apps",
        "customer_overrides",
        "billing_profiles",
        "apps",
    ):
        op.drop_table(table)
    op.execute(sa.schema.DropSequence(sa.Sequence("draft_numbers")))
    op.drop_index("subscriptions_next_billing_at_idx", table_name="subscriptions")
    op.drop_column("subscriptions", "next_billing_at")
    _no_subscriptions()


def _no_subscriptions() -> None:
    op.drop_table("subscription_addons")
    op.drop_column("subscription_phases", "duration")
    op.drop_column("subscriptions", "without_addons")
    op.drop_column("subscriptions", "before_cancelation")
    op.alter_column("subscriptions", "plan_id", nullable=False)
