"""Where the migrations run: on the connection that the caller hands over."""

from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext

import api.keys
import billing.customer_apps
import billing.invoice
import billing.numbering
import billing.payments
import billing.pending
import billing.runs
import billing.subscription_addons
import billing.subscriptions
import billing.tax_rates
import billing.test_clock
import catalog.llm_prices
import catalog.plans
import metering.corrections
import metering.cubes.tables
import metering.events
import metering.quarantine
import metering.subjects
from metering.database import Base, ValueType

TABLES = (
    api.keys,
    billing.customer_apps,
    billing.invoice,
    billing.numbering,
    billing.payments,
    billing.pending,
    billing.runs,
    billing.subscription_addons,
    billing.subscriptions,
    billing.tax_rates,
    billing.test_clock,
    catalog.llm_prices,
    catalog.plans,
    metering.corrections,
    metering.cubes.tables,
    metering.events,
    metering.quarantine,
    metering.subjects,
)
"""Imported for the tables that they, and what they import, declare."""


def render_item(kind: str, thing: Any, _: AutogenContext) -> str | Literal[False]:
    """Our own column types become plain JSONB in a migration, which must not import our code."""
    return "postgresql.JSONB()" if kind == "type" and isinstance(thing, ValueType) else False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_item=render_item,
    compare_type=True,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
