"""The whole catalog: the life of plans, add-ons, unit costs of features."""

import sqlalchemy as sa
from alembic import op

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
    pass


def _addons() -> None:
    pass


def _unit_costs() -> None:
    pass


def downgrade() -> None:
    _no_unit_costs()
    _no_addons()
    _no_plans()


def _no_plans() -> None:
    pass


def _no_addons() -> None:
    pass


def _no_unit_costs() -> None:
    pass
