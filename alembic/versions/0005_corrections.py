"""Corrections: what was taken out of usage and brought in, why, when and by whom."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "corrections",
        sa.Column("id", sa.CHAR(length=26), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("selection", postgresql.JSONB(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("staged_events", sa.Integer(), nullable=False),
        sa.Column("voided_events", sa.Integer(), nullable=True),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("closed_at", INSTANT, nullable=True),
        sa.Column("closed_by", sa.Text(), nullable=True),
        sa.Column("reverted_at", INSTANT, nullable=True),
        sa.Column("reverted_by", sa.Text(), nullable=True),
        sa.Column("discarded_at", INSTANT, nullable=True),
        sa.Column("discarded_by", sa.Text(), nullable=True),
        sa.CheckConstraint("kind IN ('void', 'replace')", name="corrections_kind_check"),
        sa.CheckConstraint(
            "status IN ('open', 'closed', 'reverted', 'discarded')", name="corrections_status_check"
        ),
        sa.PrimaryKeyConstraint("id", name="corrections_pkey"),
    )
    op.create_table(
        "correction_events",
        sa.Column("key", sa.UUID(), nullable=False),
        sa.Column("correction_id", sa.CHAR(length=26), nullable=False),
        sa.Column("identity", sa.UUID(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("time", INSTANT, nullable=False),
        sa.Column("data", postgresql.JSONB(), nullable=True),
        sa.Column("specversion", sa.Text(), nullable=False),
        sa.Column("dataschema", sa.Text(), nullable=True),
        sa.Column("staged_at", INSTANT, nullable=False),
        sa.ForeignKeyConstraint(
            ["correction_id"], ["corrections.id"], name="correction_events_correction_id_fkey"
        ),
        sa.PrimaryKeyConstraint("key", name="correction_events_pkey"),
    )
    op.create_index("correction_events_correction_id_idx", "correction_events", ["correction_id"])
    op.create_index("correction_events_identity_idx", "correction_events", ["identity"])


def downgrade() -> None:
    op.drop_table("correction_events")
    op.drop_table("corrections")
