"""What becomes of one event: which meters count it, who pays for it, and if nobody does, why not.

An event is billed when it is part of the quantity of a charge: a subscription item with a usage price whose
feature takes the event while the item is sold. A unit price of nought bills it too. Whoever agreed to let a
customer have a feature for nothing, or for a flat fee, has decided about its usage as well: it is `included`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal, get_args

from metering.event import Event
from metering.filter_string import FilterString
from metering.meter import MeterDefinition, UsageQuery, fold
from metering.validation import counted_by, data_of

__all__ = ["DELIBERATE", "REASONS", "UNBILLED", "Disposition", "Reason", "Term", "decide"]

Reason = Literal[
    "voided",
    "no_meter",
    "invalid_value",
    "no_customer",
    "no_subscription",
    "included",
    "no_price",
]
"""Why an event is on no invoice; the first of these that holds.

voided: a correction took it out. no_meter: there is none for its type, or none that had begun by its time.
invalid_value: none of these meters, or not the one that a price asks, can use its value. no_customer: its
subject belongs to nobody. no_subscription: its customer had none at its time. included: only rate cards
without a usage price take it. no_price: no rate card takes it, because no feature is made of its meter or
all of their filters exclude it.
"""
REASONS: tuple[Reason, ...] = get_args(Reason)
DELIBERATE: frozenset[Reason] = frozenset({"voided", "included"})
"""Somebody decided so; the others may be somebody's loss."""
UNBILLED: tuple[Reason, ...] = tuple(reason for reason in REASONS if reason not in DELIBERATE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """What a customer agreed to from `start` until `end` (None: until further notice).

    It is an item with a metered feature, or the subscription as such, which has no meter and no item.
    `priced` tells a price on usage from a flat fee and from none.
    """

    subscription_id: str
    start: datetime
    end: datetime | None
    item_id: str | None = None
    feature_key: str | None = None
    meter: MeterDefinition | None = None
    conditions: Mapping[str, FilterString] = field(default_factory=dict)
    priced: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Disposition:
    """`meters` are the slugs of those that count the event, `billed_by` the items that charge for it."""

    meters: tuple[str, ...]
    customer_id: str | None
    billed_by: tuple[Term, ...]
    reason: Reason | None


def decide(
    event: Event,
    *,
    voided: bool,
    meters: Mapping[str, MeterDefinition],
    customer_id: str | None,
    terms: Sequence[Term],
) -> Disposition:
    """`meters` are the living ones by slug, `terms` all that the customer ever agreed to."""
    running = [term for term in terms if _runs(term, event.time)]
    counting = tuple(slug for slug, meter in meters.items() if not voided and _counts(meter, event))
    billed = tuple(term for term in running if not voided and term.priced and _bills(term, event))
    reason = None if billed else _reason(event, voided, meters, customer_id, running)
    return Disposition(meters=counting, customer_id=customer_id, billed_by=billed, reason=reason)


def _reason(
    event: Event,
    voided: bool,
    meters: Mapping[str, MeterDefinition],
    customer_id: str | None,
    running: Sequence[Term],
) -> Reason:
    if voided:
        return "voided"
    if not any(_selects(meter, {}, event) for meter in meters.values()):
        return "no_meter"
    if not any(_counts(meter, event) for meter in meters.values()):
        return "invalid_value"
    if customer_id is None:
        return "no_customer"
    if not any(term.item_id is None for term in running):
        return "no_subscription"
    taking = [term for term in running if _takes(term, event)]
    if any(term.priced for term in taking):
        return "invalid_value"
    return "included" if taking else "no_price"


def _runs(term: Term, time: datetime) -> bool:
    return term.start <= time and (term.end is None or time < term.end)


def _bills(term: Term, event: Event) -> bool:
    return term.meter is not None and _counts(term.meter, event) and _takes(term, event)


def _takes(term: Term, event: Event) -> bool:
    return term.meter is not None and _selects(term.meter, term.conditions, event)


def _counts(meter: MeterDefinition, event: Event) -> bool:
    return bool(counted_by(event.type, data_of(event.data), event.time, [meter]))


def _selects(meter: MeterDefinition, conditions: Mapping[str, FilterString], event: Event) -> bool:
    """Whether it is among the events that the meter looks at, whatever its value."""
    counting = replace(meter, aggregation="COUNT", value_property=None)
    return bool(fold(counting, UsageQuery(conditions=conditions), [event]))
