"""The whole catalog: the life of plans, add-ons, unit costs of features."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    _plans()
    _addons()
    _unit_costs()


def _plans() -> None:
    op.add_column("plans", sa.Column("deleted_at", INSTANT))
    op.drop_index("plans_draft_key", "plans")
    where = "effective_from IS NULL AND deleted_at IS NULL"
    op.create_index("plans_draft_key", "plans", ["key"], unique=True, postgresql_where=where)


def _addons() -> None:
    op.create_table(
        "addons",
        sa.Column("id", sa.CHAR(length=26), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("metadata", postgresql.JSONB(), nullable=True),
        sa.Column("instance_type", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("rate_cards", postgresql.JSONB(), nullable=False),
        sa.Column("feature_ids", postgresql.JSONB(), nullable=False),
        sa.Column("effective_from", INSTANT, nullable=True),
        sa.Column("effective_to", INSTANT, nullable=True),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.Column("deleted_at", INSTANT, nullable=True),
        sa.PrimaryKeyConstraint("id", name="addons_pkey"),
    )
    op.create_index("addons_version_key", "addons", ["key", "version"], unique=True)
    for name, where in (
        ("addons_draft_key", "effective_from IS NULL AND deleted_at IS NULL"),
        ("addons_active_key", "effective_from IS NOT NULL AND effective_to IS NULL"),
    ):
        op.create_index(name, "addons", ["key"], unique=True, postgresql_where=where)
    _plan_addons()


def _plan_addons() -> None:
    op.create_table(
        "plan_addons",
        sa.Column("id", sa.CHAR(length=26), nullable=False),
        sa.Column("plan_id", sa.CHAR(length=26), nullable=False),
        sa.Column("addon_id", sa.CHAR(length=26), nullable=False),
        sa.Column("metadata", postgresql.JSONB(), nullable=True),
        sa.Column("from_plan_phase", sa.Text(), nullable=False),
        sa.Column("max_quantity", sa.Integer(), nullable=True),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.Column("deleted_at", INSTANT, nullable=True),
        sa.ForeignKeyConstraint(["plan_id"], ["plans.id"], name="plan_addons_plan_id_fkey"),
        sa.ForeignKeyConstraint(["addon_id"], ["addons.id"], name="plan_addons_addon_id_fkey"),
        sa.PrimaryKeyConstraint("id", name="plan_addons_pkey"),
    )
    op.create_index("plan_addons_plan_id_idx", "plan_addons", ["plan_id"])
    op.create_index("plan_addons_addon_id_idx", "plan_addons", ["addon_id"])
    op.create_index(
        "plan_addons_plan_addon_key",
        "plan_addons",
        ["plan_id", "addon_id"],
        unique=True,
        postgresql_where="deleted_at IS NULL",
    )


def _unit_costs() -> None:
    op.add_column("features", sa.Column("advanced_meter_group_by_filters", postgresql.JSONB()))
    op.add_column("features", sa.Column("unit_cost", postgresql.JSONB()))
    op.create_table(
        "llm_cost_overrides",
        sa.Column("id", sa.CHAR(length=26), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("model_name", sa.Text(), nullable=False),
        sa.Column("pricing", postgresql.JSONB(), nullable=False),
        sa.Column("effective_from", INSTANT, nullable=False),
        sa.Column("effective_to", INSTANT, nullable=True),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.CheckConstraint("effective_from < effective_to", name="llm_cost_overrides_period_check"),
        sa.PrimaryKeyConstraint("id", name="llm_cost_overrides_pkey"),
        sa.UniqueConstraint(
            "provider",
            "model",
            "effective_from",
            name="llm_cost_overrides_provider_model_effective_from_key",
        ),
    )


def downgrade() -> None:
    _no_unit_costs()
    _no_addons()
    _no_plans()


def _no_plans() -> None:
    """Deleted drafts are gone then: a key could have two. Other deleted plans are back, as archived ones."""
    op.execute("DELETE FROM plans WHERE deleted_at IS NOT NULL AND effective_from IS NULL")
    op.drop_index("plans_draft_key", "plans")
    op.create_index(
        "plans_draft_key", "plans", ["key"], unique=True, postgresql_where="effective_from IS NULL"
    )
    op.drop_column("plans", "deleted_at")


def _no_addons() -> None:
    op.drop_table("plan_addons")
    op.drop_table("addons")


def _no_unit_costs() -> None:
    op.drop_table("llm_cost_overrides")
    op.drop_column("features", "unit_cost")
    op.drop_column("features", "advanced_meter_group_by_filters")
