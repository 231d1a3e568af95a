"""Late usage: until when usage is settled, and whose was changed behind that."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "usage_settled",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("settled_until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="usage_settled_pkey"),
    )
    op.create_table(
        "late_subjects",
        sa.Column("hash", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("hash", name="late_subjects_pkey"),
    )


def downgrade() -> None:
    op.drop_table("late_subjects")
    op.drop_table("usage_settled")
