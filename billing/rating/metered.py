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
from functools import cached_property, partial
from itertools import chain
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
    features: dict[str, _Facts] = {}
    wanted = [_Wanted(demand, _facts(demand, features)) for demand in demands]
    arrivals = _arrivals(session, wanted)
    same = [one.known(arrivals) for one in wanted]
    owners: dict[_Question, dict[str, str]] = {}
    for one, usage in zip(wanted, same, strict=True):
        for question in one.questions if usage is None else ():
            owned = dict.fromkeys(one.demand.subjects, one.demand.customer_id)
            owners.setdefault(question, {}).update(owned)
    answers = _ask(session, owners)
    return [
        one.seen(_usage(one, answers), arrivals) if usage is None else usage
        for one, usage in zip(wanted, same, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Facts:
    """What all questions about a feature that is metered have in common; `text` stands for it."""

    meter_id: str
    meter: MeterDefinition
    conditions: tuple[tuple[str, FilterString], ...]
    text: str


def _facts(demand: Demand, known: dict[str, _Facts]) -> _Facts | None:
    """None where nothing can have been used."""
    feature = demand.feature
    free = isinstance(demand.price, FlatPrice) or not demand.subjects or not demand.period.length
    if free or feature is None or feature.meter is None:
        return None
    if feature.id not in known:
        meter, conditions = feature.meter.definition, tuple(sorted(feature.conditions.items()))
        known[feature.id] = _Facts(feature.meter.id, meter, conditions, repr((meter, conditions)))
    return known[feature.id]


@dataclass(frozen=True)
class _Wanted:
    """A demand, and what its questions are about, if it has any."""

    demand: Demand
    facts: _Facts | None

    @cached_property
    def questions(self) -> "Sequence[_Question]":
        return list(self._questions())

    def _questions(self) -> "Iterator[_Question]":
        """One for the quantity, and what else the price asks."""
        if self.facts is None:
            return
        shape = shape_of(self.demand.price)
        ask = partial(
            _Question,
            meter_id=self.facts.meter_id,
            meter=self.facts.meter,
            conditions=self.facts.conditions,
            period=self.demand.period,
        )
        if shape.dimensions:
            yield ask(kind="quantity", dimensions=shape.dimensions)
        if not shape.dimensions or self.facts.meter.aggregation not in ADDITIVE:
            yield ask(kind="quantity")
        if shape.events:
            yield ask(kind="events")
        if shape.sizes:
            yield ask(kind="sizes")

    @property
    def name(self) -> str:
        """Stands for all that is asked, but for the instant."""
        demand, feature = self.demand, self.facts.text if self.facts else ""
        start, end = demand.period.start.isoformat(), demand.period.end.isoformat()
        asked = repr((feature, sorted(demand.subjects), shape_of(demand.price), start, end))
        return hashlib.blake2b(asked.encode(), digest_size=12).hexdigest()

    def known(self, arrivals: Arrivals) -> Usage | None:
        """What was answered before, if it was the same question and can't have changed."""
        demand = self.demand
        if demand.known is None or (seen := demand.known.seen) is None:
            return None
        same = arrivals.same_since(seen.number, demand.subjects, demand.period.end)
        return demand.known if same and seen.question == self.name else None

    def seen(self, usage: Usage, arrivals: Arrivals) -> Usage:
        """With the step it is of, if it was settled by then."""
        if self.facts is None or self.demand.period.end > arrivals.settled_until:
            return usage
        return replace(usage, seen=Seen(number=arrivals.number, question=self.name))


def _arrivals(session: Session, wanted: Iterable[_Wanted]) -> Arrivals:
    """Of all whose answer may be known; read before anything else is."""
    demands = [one.demand for one in wanted if one.facts]
    known = (one.subjects for one in demands if one.known and one.known.seen)
    return arrivals_of(session, set(chain.from_iterable(known))) if demands else Arrivals()


# -- Questions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """Equal ones have one answer: a meter's id stands for its definition."""

    kind: _Kind
    meter_id: str
    conditions: tuple[tuple[str, FilterString], ...]
    meter: MeterDefinition = field(compare=False)
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


def _usage(wanted: _Wanted, answers: Mapping[_Question, _Answer]) -> Usage:
    """Put together from the answers to its questions."""
    usage = NOTHING
    for question in wanted.questions:
        rows = answers[question].get(wanted.demand.customer_id, ())
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
