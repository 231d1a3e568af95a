"""The events that a usage question counts, as a set: how many, their digest, which of them, and what changed.

A question about usage and a question about its events select the same: by type, subject, time and dimension,
and by what was known at an instant. Keys decide what an event is and events never change, so that two sets of
equal count and digest are the same events. The digest is two sums, so that their order does not matter and
nothing must be sorted; it finds what came or went, and is no proof against somebody who forges events.
"""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from sqlalchemy import text
from sqlalchemy.orm import Session

from metering.event_list import EventCursor
from metering.expressions import ALL_EVENTS, Statement, dimension_of, number_of, text_of, value_of
from metering.filter_string import FilterString, condition_sql
from metering.meter import MeterDefinition
from metering.period import Period

__all__ = ["Asked", "CountedEvent", "EventDigest", "changed_events", "counted_events", "digests_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Whose events of a meter in a period, narrowed by `conditions` on its dimensions.

    `as_of`: as was known at that instant; None: as is known now.
    """

    meter: MeterDefinition
    subjects: tuple[str, ...]
    period: Period
    conditions: Mapping[str, FilterString] = field(default_factory=dict)
    as_of: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventDigest:
    """`digest` is 32 hexadecimal digits; those of nothing are zeros."""

    count: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedEvent:
    """`value` is what the meter reads, None where it can use nothing of the event or counts events alone.

    `voided_at` is None unless the event is void now.
    """

    key: uuid.UUID
    source: str
    id: str
    subject: str
    time: datetime
    stored_at: datetime
    voided_at: datetime | None
    value: Decimal | str | None
    group: Mapping[str, str]

    @property
    def cursor(self) -> EventCursor:
        return EventCursor(self.time, self.key)


MOST = 1_000_000
"""Events of one subject of which a digest is made: 2 seconds' worth. More are not read for it."""


def digests_of(session: Session, asked: Sequence[Asked], *, most: int = MOST) -> list[EventDigest | None]:
    """Of each; None where a subject has more than `most`. One statement for those of one meter, chosen alike.

    It takes 2 microseconds for an event: 20 seconds for 100,000 customers who have 100 each.
    """
    alike: dict[tuple[str, ...], list[int]] = {}
    for place, one in enumerate(asked):
        alike.setdefault(_kind(one), []).append(place)
    found: list[EventDigest | None] = [EventDigest(count=0, digest="0" * 32)] * len(asked)
    for places in alike.values():
        for place, digest in _digests(session, {place: asked[place] for place in places}, most):
            found[place] = digest
    return found


def _kind(asked: Asked) -> tuple[str, ...]:
    """Alike are those whose events are selected by the same expressions."""
    meter, names = asked.meter, sorted(asked.conditions)
    chosen = (f"{name} {meter.group_by[name]} {asked.conditions[name]}" for name in names)
    return (meter.event_type, str(meter.event_from), *chosen)


def _digests(
    session: Session, asked: Mapping[int, Asked], most: int
) -> Iterator[tuple[int, EventDigest | None]]:
    """One row for each subject of each question, which finds its events by the index of subject and time."""
    statement = Statement()
    first = next(iter(asked.values()))
    sql = f"""
        SELECT q.place, max(sums.events) AS most, sum(sums.events) AS events, sum(one) AS one,
               sum(other) AS other
        FROM {_rows(statement, asked)} CROSS JOIN LATERAL (
            SELECT count(*) AS events, coalesce(sum(uuid_hash_extended(key, 0)), 0) AS one,
                   coalesce(sum(uuid_hash_extended(key, 1)), 0) AS other
            FROM (SELECT key FROM {ALL_EVENTS} AS e
                  WHERE hashtextextended(e.subject, 0) = hashtextextended(q.subject, 0)
                    AND e.subject = q.subject AND e.time >= q.start AND e.time < q.until
                    AND {_of_meter(statement, first)} AND {_known("q.as_of")} LIMIT {most + 1}) AS e
        ) AS sums GROUP BY q.place"""
    for row in session.execute(text(sql), statement.parameters):
        digest = _hexadecimal(row.one) + _hexadecimal(row.other)
        yield row.place, None if row.most > most else EventDigest(count=int(row.events), digest=digest)


def _hexadecimal(number: Decimal) -> str:
    return f"{int(number) % 2**64:016x}"


def _rows(statement: Statement, asked: Mapping[int, Asked]) -> str:
    named = [(place, one, subject) for place, one in asked.items() for subject in one.subjects]
    columns = (
        statement.bind([place for place, _, _ in named], "int[]"),
        statement.bind([subject for _, _, subject in named], "text[]"),
        statement.bind([_begin(one) for _, one, _ in named], "timestamptz[]"),
        statement.bind([one.period.end for _, one, _ in named], "timestamptz[]"),
        statement.bind([one.as_of for _, one, _ in named], "timestamptz[]"),
    )
    return f"unnest({', '.join(columns)}) AS q (place, subject, start, until, as_of)"


def _begin(asked: Asked) -> datetime:
    return max(asked.period.start, asked.meter.event_from or asked.period.start)


def _of_meter(statement: Statement, asked: Asked) -> str:
    """Which events its meter looks at, whoever's they are and whenever."""
    of_type = f"e.type = {statement.bind(asked.meter.event_type, 'text')}"
    conditions = [
        condition_sql(condition, dimension_of(statement, asked.meter.group_by[name]), statement.bind)
        for name, condition in asked.conditions.items()
    ]
    return " AND ".join([of_type, *conditions])


def _known(as_of: str) -> str:
    """Of an event `e`: stored by then, and not void then. NULL is now."""
    return f"""e.stored_at <= coalesce({as_of}, 'infinity') AND NOT EXISTS (
        SELECT FROM voided_events AS v WHERE v.key = e.key AND v.voided_at <= coalesce({as_of}, 'infinity')
          AND coalesce(v.restored_at > {as_of}, v.restored_at IS NULL))"""


# -- Which they are ------------------------------------------------------------------------------------------


def counted_events(
    session: Session, asked: Asked, *, after: EventCursor | None = None, limit: int
) -> list[CountedEvent]:
    """The newest first, at most `limit`; `after` goes on behind that place."""
    statement = Statement()
    known = _known(statement.bind(asked.as_of, "timestamptz"))
    return _listed(session, statement, asked, known=known, after=after, limit=limit)


def changed_events(session: Session, asked: Asked, *, limit: int, came: bool) -> list[CountedEvent]:
    """What `came` since the question's `as_of` and counts now, or counted then and does no more."""
    statement = Statement()
    then, now = _known(statement.bind(asked.as_of, "timestamptz")), _known("NULL::timestamptz")
    changed = f"({now}) AND NOT ({then})" if came else f"({then}) AND NOT ({now})"
    return _listed(session, statement, asked, known=changed, after=None, limit=limit)


def _listed(
    session: Session,
    statement: Statement,
    asked: Asked,
    *,
    known: str,
    after: EventCursor | None,
    limit: int,
) -> list[CountedEvent]:
    """By the index of each subject, and of what it finds the newest."""
    bind, meter = statement.bind, asked.meter
    place = ""
    if after is not None:
        place = f"AND (e.time, e.key) < ({bind(after.time, 'timestamptz')}, {bind(after.key, 'uuid')})"
    names = sorted(meter.group_by)
    groups = "".join(
        f", {dimension_of(statement, meter.group_by[name])} AS g{i}" for i, name in enumerate(names)
    )
    sql = f"""
        SELECT e.*, (SELECT min(v.voided_at) FROM voided_events AS v
                     WHERE v.key = e.key AND v.restored_at IS NULL) AS voided_at
        FROM unnest({bind(list(asked.subjects), "text[]")}) AS q (subject) CROSS JOIN LATERAL (
            SELECT e.key, e.source, e.id, e.subject, e.time, e.stored_at,
                   {_value(statement, meter)} AS value{groups}
            FROM {ALL_EVENTS} AS e
            WHERE hashtextextended(e.subject, 0) = hashtextextended(q.subject, 0) AND e.subject = q.subject
              AND e.time >= {bind(_begin(asked), "timestamptz")}
              AND e.time < {bind(asked.period.end, "timestamptz")}
              AND {_of_meter(statement, asked)} AND {known} {place}
            ORDER BY e.time DESC, e.key DESC LIMIT {limit}
        ) AS e ORDER BY e.time DESC, e.key DESC LIMIT {limit}"""
    return [
        CountedEvent(
            key=row.key,
            source=row.source,
            id=row.id,
            subject=row.subject,
            time=row.time,
            stored_at=row.stored_at,
            voided_at=row.voided_at,
            value=row.value,
            group={name: getattr(row, f"g{i}") for i, name in enumerate(names)},
        )
        for row in session.execute(text(sql), statement.parameters)
    ]


def _value(statement: Statement, meter: MeterDefinition) -> str:
    if meter.value_property is None:
        return "CAST(NULL AS text)"
    value = value_of(statement, meter.value_property)
    return text_of(value) if meter.aggregation == "UNIQUE_COUNT" else number_of(value)
