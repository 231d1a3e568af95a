"""The usage that many charges are priced by, asked in few questions.

What a price asks of usage follows from the price alone. Charges of one meter, narrowed alike, over the same
period and told apart by the same dimensions, are one question for all customers together. What was asked
before, and can't have changed since, is not asked again.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Literal, NamedTuple

from sqlalchemy.orm import Session

from billing.rating.pricing import NOTHING, Group, Seen, Usage
from catalog.features import Feature
from catalog.price import FlatPrice, PercentagePrice, Price, dimensions_of
from metering.exact import total
from metering.filter_string import FilterString
from metering.late_usage import Arrivals, arrivals_of
from metering.meter import MeterDefinition, UsageQuery, UsageRow
from metering.period import Period
from metering.usage import (
    Asked,
    TooManyRowsError,
    query_numbers,
    query_together,
    query_usage,
    query_values,
)

__all__ = ["Demand", "Shape", "shape_of", "usage_of"]

SUBJECTS_AT_ONCE = 1000
"""More are asked in several statements: each is planned for the subjects it names."""

ADDITIVE = ("SUM", "COUNT")
"""What groups have adds up to what they have together; a maximum, or distinct values, don't."""

_Kind = Literal["quantity", "events", "sizes"]
_ASK: Mapping[_Kind, Callable[[Session, MeterDefinition, UsageQuery], list[UsageRow]]] = {
    "quantity": query_usage,
    "events": query_numbers,
    "sizes": query_values,
}


class Shape(NamedTuple):
    """What a price asks of usage beside the quantity."""

    dimensions: tuple[str, ...] = ()
    events: bool = False
    sizes: bool = False


def shape_of(price: Price) -> Shape:
    if isinstance(price, PercentagePrice):
        return Shape(events=True, sizes=price.limited)
    return Shape(dimensions=dimensions_of(price))


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a customer, who owns `subjects`, used of a feature in a period, as far as `price` asks.

    `known`: an answer of an earlier time, maybe to another question.
    """

    customer_id: str
    subjects: tuple[str, ...]
    feature: Feature | None
    price: Price
    period: Period
    known: Usage | None = None


def usage_of(session: Session, demands: Sequence[Demand]) -> list[Usage]:
    """The usage of each: nothing at a flat price, of a feature without a meter, or in an empty period."""
    names = _names(demands)
    arrivals = _arrivals(session, demands, names) if any(names) else Arrivals()
    same = [_still(demand, name, arrivals) for demand, name in zip(demands, names, strict=True)]
    owners: dict[_Question, dict[str, str]] = {}
    for demand, usage in zip(demands, same, strict=True):
        for question in _questions(demand) if usage is None else ():
            owned = dict.fromkeys(demand.subjects, demand.customer_id)
            owners.setdefault(question, {}).update(owned)
    answers = _ask(session, owners)
    return [
        _seen(demand, name, _usage(demand, answers), arrivals) if usage is None else usage
        for demand, name, usage in zip(demands, names, same, strict=True)
    ]


# -- What was asked before -----------------------------------------------------------------------------------


def _names(demands: Sequence[Demand]) -> list[str]:
    """What stands for all that each asks, but for the instant; "" where nothing is asked."""
    features: dict[str, str] = {}
    names = []
    for demand in demands:
        if (whole := _whole(demand)) is None:
            names.append("")
            continue
        feature_id = demand.feature.id if demand.feature else ""
        if feature_id not in features:
            features[feature_id] = repr((whole.meter, whole.conditions))
        period, subjects = demand.period, sorted(demand.subjects)
        asked = (features[feature_id], subjects, shape_of(demand.price), period.start.isoformat())
        names.append(_digest(repr((*asked, period.end.isoformat()))))
    return names


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _arrivals(session: Session, demands: Sequence[Demand], names: Sequence[str]) -> Arrivals:
    """Of those whose answer may be known: it is read before anything else is."""
    asked = zip(demands, names, strict=True)
    return arrivals_of(session, {s for demand, name in asked if _was(demand, name) for s in demand.subjects})


def _was(demand: Demand, name: str) -> Seen | None:
    """When the same was asked before."""
    seen = demand.known.seen if demand.known and name else None
    return seen if seen and seen.question == name else None


def _still(demand: Demand, name: str, arrivals: Arrivals) -> Usage | None:
    """What is known, if it can't have changed."""
    seen = _was(demand, name)
    if seen and arrivals.same_since(seen.number, demand.subjects, demand.period.end):
        return demand.known
    return None


def _seen(demand: Demand, name: str, usage: Usage, arrivals: Arrivals) -> Usage:
    """With the step it is of, if it was settled by then."""
    if not name or demand.period.end > arrivals.settled_until:
        return usage
    return replace(usage, seen=Seen(number=arrivals.number, question=name))


# -- Questions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """Equal ones have one answer: a meter's id stands for its definition."""

    kind: _Kind
    meter_id: str
    meter: MeterDefinition = field(compare=False)
    conditions: tuple[tuple[str, FilterString], ...]
    period: Period
    dimensions: tuple[str, ...] = ()

    def query(self, owners: Mapping[str, str]) -> UsageQuery:
        return UsageQuery(
            start=self.period.start,
            end=self.period.end,
            conditions=dict(self.conditions),
            customers=owners,
            group_by=("customer_id", *self.dimensions),
        )

    def asked(self, owners: Mapping[str, str]) -> Asked:
        kind: Literal["value", "numbers"] = "value" if self.kind == "quantity" else "numbers"
        return Asked(kind, self.meter, self.query(owners))


def _questions(demand: Demand) -> Iterator[_Question]:
    """One for the quantity, and what else the price asks."""
    whole, shape = _whole(demand), shape_of(demand.price)
    if whole is None:
        return
    if shape.dimensions:
        yield replace(whole, dimensions=shape.dimensions)
    if not shape.dimensions or whole.meter.aggregation not in ADDITIVE:
        yield whole
    if shape.events:
        yield replace(whole, kind="events")
    if shape.sizes:
        yield replace(whole, kind="sizes")


def _whole(demand: Demand) -> _Question | None:
    """For the quantity alone; None where there can be none."""
    feature = demand.feature
    free = isinstance(demand.price, FlatPrice) or not demand.subjects or not demand.period.length
    if free or feature is None or feature.meter is None:
        return None
    return _Question(
        kind="quantity",
        meter_id=feature.meter.id,
        meter=feature.meter.definition,
        conditions=tuple(sorted(feature.conditions.items())),
        period=demand.period,
    )


# -- Answers -------------------------------------------------------------------------------------------------

_Answer = Mapping[str, Sequence[UsageRow]]
"""The rows of each customer who has any, by id."""


def _ask(session: Session, owners: Mapping[_Question, Mapping[str, str]]) -> dict[_Question, _Answer]:
    portions = [(question, some) for question, owned in owners.items() for some in _portions(owned)]
    found: dict[_Question, dict[str, list[UsageRow]]] = {question: {} for question in owners}
    for (question, _), rows in zip(portions, _rows_of_all(session, portions), strict=True):
        for row in rows:
            found[question].setdefault(row.group["customer_id"], []).append(row)
    return {**found}


def _rows_of_all(
    session: Session, portions: Sequence[tuple[_Question, dict[str, str]]]
) -> list[Iterable[UsageRow]]:
    """Asked together, but for single values, which no cube knows."""
    together = {n: one[0].asked(one[1]) for n, one in enumerate(portions) if one[0].kind != "sizes"}
    answers: dict[int, Iterable[UsageRow]] = {}
    with suppress(TooManyRowsError):
        answers = dict(zip(together, query_together(session, list(together.values())), strict=True))
    return [answers[n] if n in answers else _rows(session, *one) for n, one in enumerate(portions)]


def _portions(owners: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """No customer is in two of them."""
    portion: dict[str, str] = {}
    for subject, customer_id in sorted(owners.items(), key=lambda item: item[1]):
        if len(portion) >= SUBJECTS_AT_ONCE and customer_id not in portion.values():
            yield portion
            portion = {}
        portion[subject] = customer_id
    if portion:
        yield portion


def _rows(session: Session, question: _Question, owners: dict[str, str]) -> Iterable[UsageRow]:
    """Where there are too many for one answer, half of the customers are asked at a time."""
    try:
        return _ASK[question.kind](session, question.meter, question.query(owners))
    except TooManyRowsError:
        ids = sorted(set(owners.values()))
        if len(ids) == 1:
            raise
    middle = ids[len(ids) // 2]
    first = {subject: id_ for subject, id_ in owners.items() if id_ < middle}
    second = {subject: id_ for subject, id_ in owners.items() if id_ >= middle}
    return [*_rows(session, question, first), *_rows(session, question, second)]


def _usage(demand: Demand, answers: Mapping[_Question, _Answer]) -> Usage:
    """Put together from the answers to its questions."""
    usage = NOTHING
    for question in _questions(demand):
        rows = answers[question].get(demand.customer_id, ())
        match question.kind:
            case "quantity" if question.dimensions:
                groups = {_group(row, question.dimensions): row.value for row in rows}
                usage = replace(usage, quantity=total(groups.values()), groups=groups)
            case "quantity":  # after the groups, where these don't add up
                usage = replace(usage, quantity=total(row.value for row in rows))
            case "events":
                usage = replace(usage, events=sum(int(row.value) for row in rows))
            case "sizes":
                usage = replace(usage, sizes={Decimal(row.group["value"]): int(row.value) for row in rows})
    return usage


def _group(row: UsageRow, dimensions: Sequence[str]) -> Group:
    """What has no value in an event, its meter calls ""."""
    return tuple(row.group[name] or None for name in dimensions)
