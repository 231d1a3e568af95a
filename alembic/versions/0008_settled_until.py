"""Subscriptions: until when all is settled, so that a billing looks no further back. Lines: when rated."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("subscriptions", sa.Column("settled_until", sa.DateTime(timezone=True), nullable=True))
    op.add_column("invoice_lines", sa.Column("rated_at", sa.DateTime(timezone=True), nullable=True))
    op.execute(RATED_AT)
    op.alter_column("invoice_lines", "rated_at", nullable=False)
    op.drop_index("invoice_lines_subscription_id_idx", table_name="invoice_lines")
    op.create_index(
        "invoice_lines_subscription_id_service_start_idx",
        "invoice_lines",
        ["subscription_id", "service_start"],
    )


def downgrade() -> None:
    op.drop_index("invoice_lines_subscription_id_service_start_idx", table_name="invoice_lines")
    op.create_index("invoice_lines_subscription_id_idx", "invoice_lines", ["subscription_id"])
    op.drop_column("invoice_lines", "rated_at")
    op.drop_column("subscriptions", "settled_until")


RATED_AT = """
    UPDATE invoice_lines AS l SET rated_at = coalesce(i.quantity_snapshotted_at, i.created_at)
    FROM invoices AS i WHERE i.id = l.invoice_id"""
