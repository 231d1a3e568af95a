"""Where the migrations run: on the connection that the caller hands over."""

from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext

import api.keys
import billing.contracts.pending
import billing.contracts.subscription_addons
import billing.contracts.subscriptions
import billing.invoices.invoice
import billing.invoices.numbering
import billing.invoices.payments
import billing.profiles.customer_apps
import billing.runs.records
import billing.runs.test_clock
import billing.taxes.tax_rates
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
    billing.profiles.customer_apps,
    billing.invoices.invoice,
    billing.invoices.numbering,
    billing.invoices.payments,
    billing.contracts.pending,
    billing.runs.records,
    billing.contracts.subscription_addons,
    billing.contracts.subscriptions,
    billing.taxes.tax_rates,
    billing.runs.test_clock,
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
