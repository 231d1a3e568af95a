"""Events that were accepted but reach no invoice: all of a period, in one SQL statement.

The rules are those of billing/proof/disposition.py, and a property test holds the two together. Each
customer's timeline is cut where anything in it begins or ends; between two cuts it has the same features all
the time, so that an event meets one row of it. Only features and meters become SQL text, never a customer or
an event.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from psycopg.errors import QueryCanceled
from sqlalchemy import func, or_, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from billing.contracts.subscriptions import SubscriptionItem
from billing.proof.disposition import UNBILLED, Reason
from catalog.features import Feature, features_by_id
from metering.errors import InvalidError, Issue
from metering.expressions import ALL_EVENTS, Statement, number_of, text_of, value_of
from metering.filter_string import condition_sql
from metering.meter import MeterDefinition
from metering.meters import list_meters
from metering.period import Period

__all__ = [
    "Unbilled",
    "UnbilledGroup",
    "UnbilledQuery",
    "WindowTooLongError",
    "count_unbilled",
    "list_unbilled",
]

SECONDS = 20
"""How long it may take: 1 million events of 1,000 customers took 3 to 5 on two busy cores."""


class WindowTooLongError(InvalidError):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class UnbilledQuery:
    """Which events: those whose time lies in `period`; None takes any type or subject."""

    period: Period
    reasons: tuple[Reason, ...] = UNBILLED
    event_type: str | None = None
    subject: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnbilledGroup:
    """Events of one type and subject that are on no invoice for one reason, and one of them as a sample."""

    reason: Reason
    type: str
    subject: str
    customer_id: str | None
    events: int
    first: datetime
    last: datetime
    sample_source: str
    sample_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unbilled:
    """One page of groups, how many groups there are, and how many events lie in them."""

    groups: list[UnbilledGroup]
    count: int
    events: int


def list_unbilled(session: Session, query: UnbilledQuery, *, offset: int = 0, limit: int = 100) -> Unbilled:
    """Largest group first. Raises WindowTooLongError when the period holds too many events to judge."""
    statement = Statement()
    page = f"""
        {_judged(session, statement, query)}, grouped AS (
            SELECT reason, type, subject, customer_id, count(*) AS events, min(time) AS first,
                   max(time) AS last, min(CAST(key AS text) COLLATE "C") AS sample
            FROM judged WHERE reason = ANY({statement.bind(list(query.reasons), "text[]")})
            GROUP BY reason, type, subject, customer_id
        ), page AS (
            SELECT * FROM grouped ORDER BY events DESC, reason, type COLLATE "C", subject COLLATE "C"
            OFFSET {statement.bind(offset, "bigint")} LIMIT {statement.bind(limit, "bigint")}
        )
        SELECT page.reason, page.type, page.subject, page.customer_id, page.events, page.first, page.last,
               e.source AS sample_source, e.id AS sample_id, whole.groups, whole.total
        FROM (SELECT count(*) AS groups, coalesce(sum(events), 0) AS total FROM grouped) AS whole
        LEFT JOIN page ON true
        LEFT JOIN {ALL_EVENTS} AS e ON e.key = CAST(page.sample AS uuid)
        ORDER BY page.events DESC, page.reason, page.type COLLATE "C", page.subject COLLATE "C" """
    rows = _within_time(session, page, statement.parameters)
    groups = [
        UnbilledGroup(**{name: getattr(row, name) for name in UnbilledGroup.__slots__})
        for row in rows
        if row.reason is not None
    ]
    return Unbilled(groups=groups, count=rows[0].groups, events=int(rows[0].total))


def count_unbilled(session: Session, query: UnbilledQuery, *, seconds: float = SECONDS) -> dict[Reason, int]:
    """How many events of the period are on no invoice, by reason; raises as list_unbilled does."""
    statement = Statement()
    counts = f"""
        {_judged(session, statement, query)} SELECT reason, count(*) AS events FROM judged
        WHERE reason = ANY({statement.bind(list(query.reasons), "text[]")}) GROUP BY reason"""
    found = {row.reason: row.events for row in _within_time(session, counts, statement.parameters, seconds)}
    return {reason: found.get(reason, 0) for reason in query.reasons}


def _within_time(
    session: Session, sql: str, parameters: Mapping[str, Any], seconds: float = SECONDS
) -> Sequence[Any]:
    session.execute(select(func.set_config("statement_timeout", f"{int(seconds * 1000)}ms", True)))
    try:
        return session.execute(text(sql), parameters).all()
    except OperationalError as error:
        if not isinstance(error.orig, QueryCanceled):
            raise
        message = f"there are too many events between from and to to judge them in {seconds:g} seconds"
        issue = Issue(code="window_too_long", message=message, field="$.from", hint="Shorten the window.")
        raise WindowTooLongError(f"{message}: shorten the window", issue) from None


@dataclass(slots=True)
class _Read:
    """What is read of an event's `data`: each value once, however many features and meters ask for it."""

    statement: Statement
    paths: dict[str, int] = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)

    def text(self, path: str) -> str:
        return self._column("text", path, text_of)

    def is_number(self, path: str) -> str:
        return self._column("number", path, lambda value: f"{number_of(value)} IS NOT NULL")

    def is_value(self, path: str) -> str:
        """What is missing is one more value for UNIQUE_COUNT."""
        return self._column("value", path, lambda value: f"jsonb_typeof({value}) IS DISTINCT FROM 'null'")

    def _column(self, kind: str, path: str, meaning: Callable[[str], str]) -> str:
        place = self.paths.setdefault(path, len(self.paths))
        self.asked[f"{kind}{place}"] = meaning(f"v{place}")
        return f"e.{kind}{place}"

    def of(self, query: UnbilledQuery) -> str:
        """A table of the events; OFFSET 0 keeps PostgreSQL from reading a value again at each use."""
        values = [f"{value_of(self.statement, path)} AS v{place}" for path, place in self.paths.items()]
        columns = [f"{expression} AS {name}" for name, expression in self.asked.items()]
        return f"""(
            SELECT {", ".join(["key", "type", "subject", "time", *columns])} FROM (
                SELECT {", ".join(["key", "type", "subject", "time", *values])}
                FROM {ALL_EVENTS} AS e WHERE {_where(self.statement, query)} OFFSET 0
            ) AS e OFFSET 0)"""


def _judged(session: Session, statement: Statement, query: UnbilledQuery) -> str:
    """A WITH clause whose last table, `judged`, holds each event with its reason, NULL when it is billed."""
    features = _features(session, query.period)
    meters = [meter.definition for meter in list_meters(session)]
    read = _Read(statement)
    priced, included = (_any_term(read, features, f"contract.{name}") for name in ("priced", "included"))
    billed = _any_term(read, features, "contract.priced", counted=True)
    begun, counted = _any_meter(read, meters), _any_meter(read, meters, counted=True)
    return f"""
        WITH {_contracts(statement, features, query.period)}, judged AS (
            SELECT e.key, e.type, e.subject, e.time, owner.customer_id, CASE
                WHEN voided.key IS NOT NULL THEN 'voided'
                WHEN {billed} THEN NULL
                WHEN NOT {begun} THEN 'no_meter'
                WHEN NOT {counted} THEN 'invalid_value'
                WHEN owner.customer_id IS NULL THEN 'no_customer'
                WHEN contract.subscribed IS NOT TRUE THEN 'no_subscription'
                WHEN {priced} THEN 'invalid_value'
                WHEN {included} THEN 'included'
                ELSE 'no_price' END AS reason
            FROM {read.of(query)} AS e
            LEFT JOIN (SELECT DISTINCT key FROM voided_events WHERE restored_at IS NULL) AS voided
                ON voided.key = e.key
            LEFT JOIN subject_owners AS owner ON owner.subject_key = e.subject
            LEFT JOIN contract ON contract.customer_id = owner.customer_id
                AND contract.since <= e.time AND e.time < contract.until
        )"""


def _where(statement: Statement, query: UnbilledQuery) -> str:
    conditions = [
        f"e.time >= {statement.bind(query.period.start, 'timestamptz')}",
        f"e.time < {statement.bind(query.period.end, 'timestamptz')}",
    ]
    if query.event_type is not None:
        conditions.append(f"e.type = {statement.bind(query.event_type, 'text')}")
    if query.subject is not None:
        subject = statement.bind(query.subject, "text")
        conditions.append(
            f"hashtextextended(e.subject, 0) = hashtextextended({subject}, 0) AND e.subject = {subject}"
        )
    return " AND ".join(conditions)


def _features(session: Session, period: Period) -> list[Feature]:
    """The metered features that anybody has in the period; their places in this list stand for them."""
    sold = select(SubscriptionItem.feature_id).where(
        SubscriptionItem.active_from < period.end,
        or_(SubscriptionItem.active_to.is_(None), SubscriptionItem.active_to > period.start),
    )
    ids = session.scalars(sold.where(SubscriptionItem.feature_id.is_not(None)).distinct())
    found = features_by_id(session, filter(None, ids))
    return [found[feature_id] for feature_id in sorted(found) if found[feature_id].meter]


def _contracts(statement: Statement, features: Sequence[Feature], period: Period) -> str:
    """`contract`: what each customer has from cut to cut within the period, as numbers of features."""
    start = statement.bind(period.start, "timestamptz")
    end = statement.bind(period.end, "timestamptz")
    ids = statement.bind([feature.id for feature in features], "text[]")
    return f"""
        term AS (
            SELECT s.customer_id, CAST(f.number AS int) AS feature, greatest(i.active_from, {start}) AS since,
                   least(i.active_to, {end}) AS until,
                   coalesce(i.rate_card -> 'price' ->> 'type' <> 'flat', false) AS priced
            FROM unnest({ids}) WITH ORDINALITY AS f (id, number)
            JOIN subscription_items AS i ON i.feature_id = f.id
            JOIN subscription_phases AS p ON p.id = i.phase_id
            JOIN subscriptions AS s ON s.id = p.subscription_id
            WHERE greatest(i.active_from, {start}) < least(i.active_to, {end})
            UNION ALL
            SELECT customer_id, NULL, greatest(active_from, {start}), least(active_to, {end}), NULL
            FROM subscriptions WHERE greatest(active_from, {start}) < least(active_to, {end})
        ), cut AS (
            SELECT customer_id, since AS at FROM term UNION SELECT customer_id, until FROM term
        ), segment AS (
            SELECT customer_id, at AS since, lead(at) OVER (PARTITION BY customer_id ORDER BY at) AS until
            FROM cut
        ), contract AS MATERIALIZED (
            SELECT segment.customer_id, segment.since, segment.until,
                   bool_or(term.feature IS NULL) AS subscribed,
                   array_agg(term.feature) FILTER (WHERE term.priced) AS priced,
                   array_agg(term.feature) FILTER (WHERE NOT term.priced) AS included
            FROM segment JOIN term ON term.customer_id = segment.customer_id
                AND term.since <= segment.since AND segment.since < term.until
            GROUP BY segment.customer_id, segment.since, segment.until
        )"""


def _any_term(read: _Read, features: Sequence[Feature], had: str, *, counted: bool = False) -> str:
    """Whether one of the features whose numbers are in the array `had` takes the event; NULL has none."""
    by_type: dict[str, list[str]] = {}
    for number, feature in enumerate(features, start=1):
        if feature.meter is not None:
            meter = feature.meter.definition
            takes = [f"{number} = ANY({had})", *_takes(read, feature, meter)]
            takes += [_counts(read, meter)] if counted else []
            by_type.setdefault(meter.event_type, []).append(" AND ".join(takes))
    return _by_type(read.statement, by_type)


def _any_meter(read: _Read, meters: Iterable[MeterDefinition], *, counted: bool = False) -> str:
    """Whether one of the meters looks at the event, or counts it."""
    by_type: dict[str, list[str]] = {}
    for meter in meters:
        looks = [*_begun(read.statement, meter), *([_counts(read, meter)] if counted else [])]
        by_type.setdefault(meter.event_type, []).append(" AND ".join(looks) or "true")
    return _by_type(read.statement, by_type)


def _by_type(statement: Statement, conditions: Mapping[str, Sequence[str]]) -> str:
    """One of the conditions of the event's type holds. Never NULL."""
    if not conditions:
        return "false"
    cases = []
    for event_type, of_type in conditions.items():
        any_of_them = " OR ".join(f"({condition})" for condition in of_type)
        cases.append(f"WHEN {statement.bind(event_type, 'text')} THEN coalesce({any_of_them}, false)")
    return f"CASE e.type {' '.join(cases)} ELSE false END"


def _takes(read: _Read, feature: Feature, meter: MeterDefinition) -> list[str]:
    return _begun(read.statement, meter) + [
        condition_sql(condition, read.text(meter.group_by[name]), read.statement.bind)
        for name, condition in feature.conditions.items()
    ]


def _begun(statement: Statement, meter: MeterDefinition) -> list[str]:
    if meter.event_from is None:
        return []
    return [f"e.time >= {statement.bind(meter.event_from, 'timestamptz')}"]


def _counts(read: _Read, meter: MeterDefinition) -> str:
    """Whether the meter can use the event's value."""
    if meter.value_property is None:
        return "true"
    if meter.aggregation == "UNIQUE_COUNT":
        return read.is_value(meter.value_property)
    return read.is_number(meter.value_property)
