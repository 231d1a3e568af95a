"""A contract that was billed stays; what is to be billed again knows from when on.

Lines that were there before are not checked: their contracts may have been deleted.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

NAME = "invoice_lines_subscription_id_fkey"


def upgrade() -> None:
    op.add_column("invoice_lines", sa.Column("bill_again_at", sa.DateTime(timezone=True), nullable=True))
    op.create_foreign_key(
        NAME, "invoice_lines", "subscriptions", ["subscription_id"], ["id"], postgresql_not_valid=True
    )


def downgrade() -> None:
    op.drop_constraint(NAME, "invoice_lines", type_="foreignkey")
    op.drop_column("invoice_lines", "bill_again_at")
