"""Usage from what is stored: the reference fold of metering/meter.py, said in one SQL statement.

Whole days and hours come from a usage cube. What a window cuts out of an hour, and what has been stored
since the cube was folded, comes from the events themselves. An answer is what is known at one instant.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from operator import itemgetter
from typing import Literal

from sqlalchemy.orm import Session

from metering.exact import plain
from metering.expressions import ALL_EVENTS, Statement
from metering.meter import (
    MeterDefinition,
    UsageQuery,
    UsageRow,
    average,
    check_query,
    empty_answer,
    in_order,
    span,
)
from metering.period import FIRST_INSTANT, LAST_INSTANT, Period, WindowSize, window_of, windows, zone_of
from metering.usage_answers import MAX_ROWS, TooManyRowsError, answer_of, answers_of, require_few, text_of
from metering.usage_question import FIRST, LAST, NUMBERS, VALUE, Found, Question
from metering.usage_sql import from_events, within

__all__ = [
    "Asked",
    "TooManyRowsError",
    "query_numbers",
    "query_together",
    "query_usage",
    "query_values",
    "usage_groups",
]


def query_usage(session: Session, meter: MeterDefinition, query: UsageQuery) -> list[UsageRow]:
    """The rows that answer `query`, ordered by window and group."""
    check_query(meter, query)
    cut: Sequence[Period] = ()
    if query.window_size and query.window_size != "MINUTE":  # minutes need no calendar
        cut = _calendar(session, meter, query, query.window_size)
        if not cut:
            return []
        # Without a snapshot, the next statement may see events before and behind the calendar.
        query = replace(query, start=query.start or cut[0].start, end=query.end or cut[-1].end)
    question = Question(meter, query, cut)
    return _value(question, answer_of(session, question))


def usage_groups(session: Session, meter: MeterDefinition, query: UsageQuery, name: str) -> list[str]:
    """The values that a dimension (or "subject") has in the events which `query` selects, in order."""
    asked = replace(query, group_by=(name,), window_size=None)
    check_query(meter, asked)
    question = Question(replace(meter, aggregation="COUNT"), asked)
    return sorted(found[1] for found in answer_of(session, question))


def query_values(session: Session, meter: MeterDefinition, query: UsageQuery) -> list[UsageRow]:
    """How many events have each number as their value, which joins the group as "value", in digits.

    No cube knows single values: they are read from the events.
    """
    check_query(meter, query)
    question = Question(replace(meter, aggregation="SUM"), query)
    statement = Statement()
    events = from_events(statement, question, ALL_EVENTS, [within(statement, question.period)])
    keys = ", ".join([*question.keys[1:], "sum"])
    sql = f"""SELECT {keys}, count(*) FROM ({events}) AS events WHERE sum IS NOT NULL
        GROUP BY {keys} LIMIT {MAX_ROWS + 1}"""
    rows = session.execute(text_of(sql), statement.parameters).all()
    require_few(rows)
    names, window = query.group_by, question.period
    return in_order(
        UsageRow(
            window=window,
            group=dict(zip((*names, "value"), (*keys, plain(size)), strict=True)),
            value=Decimal(count),
        )
        for *keys, size, count in rows
    )


def query_numbers(session: Session, meter: MeterDefinition, query: UsageQuery) -> list[UsageRow]:
    """How many events have a number as their value, for each group."""
    question = _of_numbers(meter, query)
    return _numbers(question, answer_of(session, question))


@dataclass(frozen=True, slots=True)
class Asked:
    """One of many questions: for the value of a meter, or how many events have a number as theirs."""

    kind: Literal["value", "numbers"]
    meter: MeterDefinition
    query: UsageQuery


TOGETHER, MENTIONED = 32, 4096
"""Questions in one statement, and subjects that all of them name."""


def query_together(session: Session, asked: Sequence[Asked]) -> list[list[UsageRow]]:
    """What query_usage and query_numbers answer to each, which must have a start, an end, and no window size.

    Two statements answer many; what is alike but for adjacent periods is read but once.
    """
    answers: list[list[UsageRow]] = [[] for _ in asked]
    for some in _portions(_in_rows(asked)):
        for row, found in zip(some, answers_of(session, [row.question for row in some]), strict=True):
            for n, question, its in row.divided(found):
                answers[n] = _value(question, its) if asked[n].kind == "value" else _numbers(question, its)
    return answers


@dataclass(frozen=True, slots=True)
class _Row:
    """Questions whose periods follow each other, by their numbers, as one."""

    members: Mapping[int, Question]

    @property
    def question(self) -> Question:
        every = list(self.members.values())
        if len(every) == 1:
            return every[0]
        query = replace(every[0].query, end=every[-1].query.end)
        return Question(every[0].meter, query, [_asked_period(one) for one in every], in_a_row=True)

    def divided(self, found: Sequence[Found]) -> Iterator[tuple[int, Question, Sequence[Found]]]:
        if len(self.members) == 1:
            yield from ((n, question, found) for n, question in self.members.items())
            return
        parts: dict[int, list[Found]] = {window: [] for window in range(1, len(self.members) + 1)}
        for one in found:
            parts[one[0]].append(one)
        for (n, question), its in zip(self.members.items(), parts.values(), strict=True):
            yield n, question, its


def _in_rows(asked: Sequence[Asked]) -> Iterator[_Row]:
    """Those of many subjects are added up by series, which can't tell periods apart."""
    alike = defaultdict[tuple[object, ...], list[tuple[int, Question]]](list)
    for n, one in enumerate(asked):
        of = _of_value if one.kind == "value" else _of_numbers
        alike[_likeness(one)].append((n, of(one.meter, one.query)))
    for every in alike.values():
        members: dict[int, Question] = {}
        end = None
        for n, question in sorted(every, key=lambda one: _asked_period(one[1]).start):
            period = _asked_period(question)
            if members and (period.start != end or not question.of_few):
                yield _Row(members)
                members = {}
            members[n], end = question, period.end
        yield _Row(members)


def _asked_period(question: Question) -> Period:
    """Also where the meter counts only from a later instant on."""
    start, end = question.query.start, question.query.end
    return Period(start=start or FIRST_INSTANT, end=end or LAST_INSTANT)


def _portions(rows: Iterable[_Row]) -> Iterator[list[_Row]]:
    portion: list[_Row] = []
    mentioned = 0
    for row in rows:
        subjects = len(row.question.query.counted_subjects or ())
        if portion and (len(portion) == TOGETHER or mentioned + subjects > MENTIONED):
            yield portion
            portion, mentioned = [], 0
        portion.append(row)
        mentioned += subjects
    if portion:
        yield portion


def _likeness(asked: Asked) -> tuple[object, ...]:
    """Equal where nothing differs but the period."""
    meter, query = asked.meter, asked.query
    return (
        asked.kind,
        meter.event_type,
        meter.aggregation,
        meter.value_property,
        meter.event_from,
        tuple(meter.group_by.items()),
        query.subjects,
        None if query.customers is None else tuple(query.customers.items()),
        tuple(query.filters.items()),
        tuple(query.conditions.items()),
        query.group_by,
        query.as_of,
    )


def _of_value(meter: MeterDefinition, query: UsageQuery) -> Question:
    check_query(meter, query)
    return Question(meter, query)


def _of_numbers(meter: MeterDefinition, query: UsageQuery) -> Question:
    check_query(meter, query)
    return Question(replace(meter, aggregation="AVG"), query)


def _value(question: Question, found: Sequence[Found]) -> list[UsageRow]:
    return _rows(question, found) or empty_answer(question.meter, question.query)


def _numbers(question: Question, found: Sequence[Found]) -> list[UsageRow]:
    names = question.query.group_by
    return [
        UsageRow(
            window=question.period,
            group=dict(zip(names, one[1:VALUE], strict=True)),
            value=Decimal(one[NUMBERS]),
        )
        for one in found
        if one[VALUE] is not None
    ]


def _calendar(
    session: Session, meter: MeterDefinition, query: UsageQuery, size: WindowSize
) -> Sequence[Period]:
    """The windows that the answer may have, computed here: PostgreSQL knows other rules for skipped and
    repeated midnights, and maybe another edition of the time zones."""
    start, end = query.start, query.end
    if start is None or end is None:
        everything = replace(query, window_size=None, group_by=())
        rows = answer_of(session, Question(replace(meter, aggregation="COUNT"), everything))
        if not rows:
            return ()
        first, last = rows[0][FIRST], rows[0][LAST]
        start, end = start or first, end or window_of(last, "MINUTE", zone_of("UTC")).end
    return list(windows(Period(start=start, end=end), size, zone_of(query.zone)))


def _rows(question: Question, found: Sequence[Found]) -> list[UsageRow]:
    names = question.query.group_by
    if not question.spanning:  # keys are in the order of windows and groups, and quicker to compare
        found = sorted(found, key=itemgetter(slice(0, VALUE)))
    averaging = question.meter.aggregation == "AVG"
    rows = [
        UsageRow(
            window=_period(question, one),
            group=dict(zip(names, one[1:VALUE], strict=True)),
            value=average(one[VALUE], one[NUMBERS]) if averaging else one[VALUE],
        )
        for one in found
        if one[VALUE] is not None
    ]
    return in_order(rows) if question.spanning else rows


def _period(question: Question, found: Found) -> Period:
    match question.query.window_size:
        case None:
            return span(question.query, found[FIRST], found[LAST])
        case "MINUTE":
            return window_of(found[0], "MINUTE", zone_of(question.query.zone))
        case _:
            return question.cut[int(found[0]) - 1]
