"""What an invoice was rated by, pinned when it is issued: a digest of the events behind each metered line.

So one can say later whether today's events are those that were billed.
"""

from collections.abc import Mapping, Sequence

from sqlalchemy.orm import Session

from billing.contracts.customer import Customer, customers_by_id
from billing.invoices.invoice import Invoice, InvoiceLine
from catalog.features import Feature, features_by_id
from metering.event_set import Asked, digests_of
from metering.period import Period

__all__ = ["asked_of", "pin_events"]


def pin_events(session: Session, invoices: Sequence[Invoice]) -> None:
    """Give each metered line the digest of the events that it was rated by."""
    every = [(invoice, line) for invoice in invoices for line in invoice.lines if line.usage is not None]
    if not every:
        return
    customers = customers_by_id(session, {invoice.customer_id for invoice, _ in every})
    features = features_by_id(session, {line.feature_id for _, line in every if line.feature_id})
    asked = {
        line: one
        for invoice, line in every
        if (one := asked_of(invoice, line, customers[invoice.customer_id], features)) is not None
    }
    for line, digest in zip(asked, digests_of(session, list(asked.values())), strict=True):
        line.billed_events = digest


def asked_of(
    invoice: Invoice, line: InvoiceLine, customer: Customer, features: Mapping[str, Feature]
) -> Asked | None:
    """All of the service period so far; None for what is not metered, or was taken back as a whole."""
    feature = features.get(line.feature_id or "")
    if line.usage is None or line.share == "0" or feature is None or feature.meter is None:
        return None
    return Asked(
        meter=feature.meter.definition,
        subjects=customer.usage_subjects,
        period=Period(start=line.service_start, end=max(line.service_start, line.period_end)),
        conditions=feature.conditions,
        as_of=None if invoice.quantity_snapshotted_at is None else line.rated_at,
    )
