"""Usage from stored events: the reference fold of metering/meter.py, said in one SQL statement."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.orm import Session

from metering.errors import InvalidError, Issue
from metering.exact import MAX_TEXT_LENGTH, NUMBER_PATTERN
from metering.jsonpath import parse_path
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
from metering.period import Period, WindowSize, window_of, windows, zone_of

__all__ = ["query_usage"]

MAX_ROWS = 100_000

_AGGREGATES: Mapping[str, str] = {
    "COUNT": "CAST(count(*) AS numeric)",
    "UNIQUE_COUNT": "CAST(count(DISTINCT text) AS numeric)",
    "SUM": "sum(number)",
    "AVG": "sum(number)",
    "MIN": "min(number)",
    "MAX": "max(number)",
    "LATEST": "(array_agg(number ORDER BY time DESC, key DESC) FILTER (WHERE number IS NOT NULL))[1]",
}

_NUMBER = f"""
    CASE jsonb_typeof(value)
    WHEN 'number' THEN CAST(value AS numeric)
    WHEN 'string' THEN CASE
        WHEN length(value #>> '{{}}') <= {MAX_TEXT_LENGTH} AND value #>> '{{}}' ~ '^{NUMBER_PATTERN}$'
        THEN CAST(value #>> '{{}}' AS numeric) END
    END"""


@dataclass(slots=True)
class _Statement:
    """SQL being written: values become parameters, never text."""

    parameters: dict[str, Any] = field(default_factory=dict)

    def bind(self, value: Any, kind: str) -> str:
        name = f"p{len(self.parameters)}"
        self.parameters[name] = value
        return f"CAST(:{name} AS {kind})"


def query_usage(session: Session, meter: MeterDefinition, query: UsageQuery) -> list[UsageRow]:
    """The rows that answer `query`, ordered by window and group, as of this transaction's snapshot."""
    check_query(meter, query)
    cut: Sequence[Period] = ()
    if query.window_size and query.window_size != "MINUTE":  # minutes need no calendar
        cut = _calendar(session, meter, query, query.window_size)
        if not cut:
            return []
        # Without a snapshot, the next statement may see events before and behind the calendar.
        query = replace(query, start=query.start or cut[0].start, end=query.end or cut[-1].end)
    statement = _Statement()
    keys = [_window(statement, query, cut)]
    keys += [_dimension(statement, meter, name) for name in query.group_by]
    names = [f"k{i}" for i in range(len(keys))]
    sql = f"""
        WITH selected AS (
            SELECT time, key, {_value(statement, meter)} AS value,
                   {", ".join(f"{key} AS {name}" for key, name in zip(keys, names, strict=True))}
            FROM events WHERE {_where(statement, meter, query)}
        ), counted AS (
            SELECT *, {_NUMBER} AS number,
                   CASE jsonb_typeof(value) WHEN 'null' THEN NULL ELSE {_text("value")} END AS text
            FROM selected
        )
        SELECT {", ".join(names)}, {_AGGREGATES[meter.aggregation]} AS value, count(number) AS numbers,
               min(time) AS first, max(time) AS last
        FROM counted GROUP BY {", ".join(names)} LIMIT {MAX_ROWS + 1}"""
    found = session.execute(text(sql), statement.parameters).all()
    if len(found) > MAX_ROWS:
        message = f"the answer has more than {MAX_ROWS} rows"
        hint = "Shorten the period, filter, or group by less."
        raise InvalidError(message, Issue(code="too_many_rows", message=message, hint=hint))
    rows = [_row(meter, query, cut, one) for one in found if one.value is not None]
    return in_order(rows) or empty_answer(meter, query)


def _calendar(
    session: Session, meter: MeterDefinition, query: UsageQuery, size: WindowSize
) -> Sequence[Period]:
    """The windows that the answer may have, computed here: PostgreSQL knows other rules for skipped and
    repeated midnights, and maybe another edition of the time zones."""
    start, end = query.start, query.end
    if start is None or end is None:
        statement = _Statement()
        sql = f"SELECT min(time), max(time) FROM events WHERE {_where(statement, meter, query)}"
        first, last = session.execute(text(sql), statement.parameters).one()
        if first is None:
            return ()
        start, end = start or first, end or window_of(last, "MINUTE", zone_of("UTC")).end
    return list(windows(Period(start=start, end=end), size, zone_of(query.zone)))


def _window(statement: _Statement, query: UsageQuery, cut: Sequence[Period]) -> str:
    match query.window_size:
        case None:
            return "0"
        case "MINUTE":
            return "date_bin('1 minute', time, timestamptz '2000-01-01T00:00:00Z')"
        case _:
            starts = statement.bind([window.start for window in cut], "timestamptz[]")
            return f"width_bucket(time, {starts})"


def _dimension(statement: _Statement, meter: MeterDefinition, name: str) -> str:
    return "subject" if name == "subject" else _text(_at(statement, meter.group_by[name]))


def _text(value: str) -> str:
    return f"""CASE jsonb_typeof({value}) WHEN 'object' THEN '' WHEN 'array' THEN '' WHEN 'null' THEN 'null'
        ELSE coalesce({value} #>> '{{}}', '') END"""


def _value(statement: _Statement, meter: MeterDefinition) -> str:
    return _at(statement, meter.value_property) if meter.value_property else "CAST(NULL AS jsonb)"


def _at(statement: _Statement, path: str) -> str:
    """One value of `data`: a name steps only into an object, an index only into an array.

    `-> 0` would find a scalar in itself; a strict jsonpath does not.
    """
    steps = parse_path(path)
    if any(isinstance(step, int) for step in steps):
        path = "".join(f"[{step}]" if isinstance(step, int) else f".{json.dumps(step)}" for step in steps)
        return f"jsonb_path_query_first(data, {statement.bind(f'strict ${path}', 'jsonpath')}, '{{}}', true)"
    return "(" + " -> ".join(["data", *(statement.bind(step, "text") for step in steps)]) + ")"


def _where(statement: _Statement, meter: MeterDefinition, query: UsageQuery) -> str:
    conditions = [f"type = {statement.bind(meter.event_type, 'text')}"]
    conditions += [
        f"time >= {statement.bind(start, 'timestamptz')}"
        for start in (query.start, meter.event_from)
        if start
    ]
    if query.end:
        conditions.append(f"time < {statement.bind(query.end, 'timestamptz')}")
    if query.subjects is not None:
        conditions.append(f"subject = ANY({statement.bind(list(query.subjects), 'text[]')})")
    for name, allowed in query.filters.items():
        values = statement.bind(list(allowed), "text[]")
        conditions.append(f"{_dimension(statement, meter, name)} = ANY({values})")
    return " AND ".join(conditions)


def _row(meter: MeterDefinition, query: UsageQuery, cut: Sequence[Period], found: Row[Any]) -> UsageRow:
    group = dict(zip(query.group_by, found[1 : 1 + len(query.group_by)], strict=True))
    value = average(found.value, found.numbers) if meter.aggregation == "AVG" else found.value
    return UsageRow(window=_period(query, cut, found), group=group, value=value)


def _period(query: UsageQuery, cut: Sequence[Period], found: Row[Any]) -> Period:
    match query.window_size:
        case None:
            return span(query, found.first, found.last)
        case "MINUTE":
            return window_of(found.k0, "MINUTE", zone_of(query.zone))
        case _:
            return cut[int(found.k0) - 1]
