"""The usage behind an invoice line: by day, and by what its price tells apart."""

from dataclasses import replace
from fractions import Fraction

from sqlalchemy.orm import Session

from billing.contracts.customer import customers_by_id
from billing.invoices.invoice import Invoice, InvoiceLine
from billing.rating.billable import usage_from
from billing.rating.metered import ADDITIVE, shape_of
from catalog.features import features_by_id
from metering.errors import Issue, NotFoundError
from metering.exact import total
from metering.meter import MeterDefinition, UsageQuery, UsageRow
from metering.usage import query_usage

__all__ = ["LineNotFoundError", "LineWithoutUsageError", "line_of", "usage_behind"]


class LineNotFoundError(NotFoundError):
    pass


class LineWithoutUsageError(NotFoundError):
    pass


def line_of(invoice: Invoice, line_id: str) -> InvoiceLine:
    for line in invoice.lines:
        if line.id == line_id:
            return line
    message = f"the invoice {invoice.id} has no line {line_id!r}"
    raise LineNotFoundError(message, Issue(code="invoice_line_not_found", message=message))


def usage_behind(
    session: Session, invoice: Invoice, line: InvoiceLine
) -> tuple[tuple[str, ...], list[UsageRow]]:
    """The dimensions of the line's price, and its usage by them for each day, in UTC.

    From the beginning of the service period to the line's end, as its metered quantity counts: sums and
    counts add up to that. What has come or gone since the invoice's quantities were snapshotted does not
    count. Raises LineWithoutUsageError for a fee, InvalidError beyond 100,000 rows.
    """
    meter, query = _question(session, invoice, line)
    if query.start == query.end or not query.customers or not Fraction(line.share):
        return query.group_by, []
    then = invoice.quantity_snapshotted_at
    if then is not None and meter.aggregation not in ADDITIVE:
        return query.group_by, query_usage(session, meter, replace(query, as_of=then))
    rows = query_usage(session, meter, query)
    if then is not None and total(row.value for row in rows) != usage_from(line.usage).quantity:
        rows = query_usage(
            session, meter, replace(query, as_of=then)
        )  # no cube has the past: it takes longer
    return query.group_by, rows


def _question(session: Session, invoice: Invoice, line: InvoiceLine) -> tuple[MeterDefinition, UsageQuery]:
    feature = features_by_id(session, [line.feature_id]).get(line.feature_id) if line.feature_id else None
    price = line.rate_card.price
    if price is None or line.usage is None or feature is None or feature.meter is None:
        message = f"{line.name!r} bills no usage"
        raise LineWithoutUsageError(message, Issue(code="line_without_usage", message=message))
    customer = customers_by_id(session, [invoice.customer_id])[invoice.customer_id]
    return feature.meter.definition, UsageQuery(
        start=line.service_start,
        end=line.period_end,
        window_size="DAY",
        conditions=feature.conditions,
        customers=dict.fromkeys(customer.usage_subjects, customer.id),
        group_by=shape_of(price).dimensions,
    )
