"""What is left to bill of a charge that never had its last line, although its period is over.

A charge that was billed in between needs no last line, if nothing more was used: there is nothing to say. So
the usage of its whole period is looked at; and what came too late for the look at its end is no omission.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy.orm import Session

from billing.contracts.customer import Customer
from billing.invoices.invoice import InvoiceLine, lines_by_identity
from billing.rating.billable import Billable, due_line, usage_from
from billing.rating.metered import Demand, usage_of
from billing.rating.pricing import Usage
from catalog.features import Feature, features_by_id
from metering.exact import total
from metering.meter import UsageQuery
from metering.usage import query_usage

__all__ = ["Unfinished", "not_said"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """A charge that has lines, none of them its last; `due`: when it should have had one."""

    customer_id: str
    billable: Billable
    due: datetime


def not_said(
    session: Session, charges: Sequence[Unfinished], customers: Mapping[str, Customer]
) -> list[Unfinished]:
    """Those that billing should have ended with another line. Usage of all is asked together."""
    if not charges:
        return []
    lines = lines_by_identity(session, (one.billable.identity for one in charges))
    features = features_by_id(session, {one.billable.feature_id or "" for one in charges})
    usage = usage_of(session, [_demand(one, customers, features) for one in charges])
    return [
        one
        for one, used in zip(charges, usage, strict=True)
        if _says(one, used, lines[one.billable.identity])
        and _was_known(session, one, lines[one.billable.identity], customers, features)
    ]


def _demand(one: Unfinished, customers: Mapping[str, Customer], features: Mapping[str, Feature]) -> Demand:
    return Demand(
        customer_id=one.customer_id,
        subjects=customers[one.customer_id].usage_subjects,
        feature=features.get(one.billable.feature_id or ""),
        price=one.billable.price,
        period=one.billable.service,
    )


def _says(one: Unfinished, usage: Usage, lines: Sequence[InvoiceLine]) -> bool:
    """Whether a last line would bill anything."""
    return bool(due_line(one.billable, usage, lines, until=one.billable.service.end, last=True).details)


def _was_known(
    session: Session,
    one: Unfinished,
    lines: Sequence[InvoiceLine],
    customers: Mapping[str, Customer],
    features: Mapping[str, Feature],
) -> bool:
    """Whether it was to be said when the charge was due, and still when a line of it was rated after that."""
    counted = [line for line in lines if line.released_at is None]
    billed = usage_from(counted[-1].usage)
    if _says(one, billed, lines):
        return True
    subjects = customers[one.customer_id].usage_subjects
    feature = features.get(one.billable.feature_id or "")
    if not subjects or feature is None or feature.meter is None:
        return False
    query = UsageQuery(
        start=one.billable.service.start,
        end=one.billable.service.end,
        subjects=subjects,
        conditions=feature.conditions,
    )
    looks = {one.due, max([one.due, *(line.rated_at for line in counted)])}
    known = (query_usage(session, feature.meter.definition, replace(query, as_of=at)) for at in looks)
    return all(total(row.value for row in rows) != billed.quantity for rows in known)
