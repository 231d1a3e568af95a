"""Subjects: a name and notes for the keys that usage comes with."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "subjects",
        sa.Column("id", sa.CHAR(length=26), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("display_name", sa.Text(), nullable=True),
        sa.Column("metadata", postgresql.JSONB(), nullable=True),
        sa.Column("stripe_customer_id", sa.Text(), nullable=True),
        sa.Column("current_period_start", INSTANT, nullable=True),
        sa.Column("current_period_end", INSTANT, nullable=True),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.Column("deleted_at", INSTANT, nullable=True),
        sa.PrimaryKeyConstraint("id", name="subjects_pkey"),
    )
    op.create_index(
        "subjects_key_key", "subjects", ["key"], unique=True, postgresql_where="deleted_at IS NULL"
    )
    op.execute(PROVISION)


# The customers that are there get the subjects they would be given today; their ids are ULIDs by shape.
PROVISION = """
    INSERT INTO subjects (id, key, created_at, updated_at)
    SELECT '0' || upper(left(md5(owned.subject_key), 25)), owned.subject_key,
           now(), now()
    FROM subject_owners owned WHERE owned.position IS NOT NULL
"""


def downgrade() -> None:
    op.drop_table("subjects")
