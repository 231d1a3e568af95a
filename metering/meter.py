"""What a meter counts, and the reference fold: the plain-Python meaning of every usage question.

metering/usage.py answers the same questions in SQL; a property test holds the two together. The rules are
OpenMeter's: numeric text counts as a number; a value that is missing, null or no number is passed over by
SUM, AVG, MIN, MAX and LATEST, while COUNT counts the event all the same; a missing dimension is "".
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal, assert_never

from metering.errors import InvalidError, Issue
from metering.event import Event
from metering.exact import EXACT, number_of, plain, total
from metering.filter_string import FilterString, matches
from metering.ids import event_key
from metering.jsonpath import MISSING, parse_path, value_at
from metering.period import Period, WindowSize, window_of, zone_of

__all__ = ["Aggregation", "MeterDefinition", "UsageQuery", "UsageRow", "check_meter", "check_query", "fold"]

Aggregation = Literal["SUM", "COUNT", "UNIQUE_COUNT", "AVG", "MIN", "MAX", "LATEST"]

AVERAGE_DIGITS = 50
"""An average is a quotient, the one usage value that can't always be exact: it has this many digits."""

_DIMENSION = re.compile(r"[A-Za-z_][0-9A-Za-z_]*")
RESERVED_DIMENSIONS = ("subject", "customer_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterDefinition:
    """How events become a quantity: those of one type, the value at a JSONPath, by dimensions."""

    event_type: str
    aggregation: Aggregation
    value_property: str | None = None
    group_by: Mapping[str, str] = field(default_factory=dict)
    event_from: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageQuery:
    """One question to a meter: which events, cut by which windows, grouped by which dimensions.

    `filters` maps a dimension to the values it may have, `conditions` to what its text must fulfil.
    `subjects` None means every subject, empty means none. `customers` says who owns which subject: then
    only their usage counts. `group_by` may hold "subject", and "customer_id" where customers are given.
    `as_of` asks for what was known at that instant; what the fold is given is all that was known.
    """

    start: datetime | None = None
    end: datetime | None = None
    window_size: WindowSize | None = None
    zone: str = "UTC"
    subjects: tuple[str, ...] | None = None
    filters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    conditions: Mapping[str, FilterString] = field(default_factory=dict)
    customers: Mapping[str, str] | None = None
    group_by: tuple[str, ...] = ()
    as_of: datetime | None = None

    @property
    def counted_subjects(self) -> tuple[str, ...] | None:
        """The subjects whose usage counts, None for all."""
        if self.customers is None:
            return self.subjects
        return tuple(s for s in self.customers if self.subjects is None or s in self.subjects)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRow:
    """`group` holds the value of each dimension that was asked for, "subject" among them."""

    window: Period
    group: Mapping[str, str]
    value: Decimal


def check_meter(meter: MeterDefinition) -> list[Issue]:
    """Everything that is wrong with a definition."""
    issues = []
    if meter.aggregation == "COUNT" and meter.value_property is not None:
        issues.append(
            _issue("COUNT counts events and takes no valueProperty", "$.valueProperty", "Leave it out.")
        )
    if meter.aggregation != "COUNT" and meter.value_property is None:
        hint = "Name the value in data, for example $.tokens."
        issues.append(_issue(f"{meter.aggregation} needs a valueProperty", "$.valueProperty", hint))
    paths = {"$.valueProperty": meter.value_property} | {
        f"$.groupBy.{k}": v for k, v in meter.group_by.items()
    }
    for where, path in paths.items():
        if path is not None:
            issues += _path_issues(path, where)
    for key, path in meter.group_by.items():
        if not _DIMENSION.fullmatch(key) or key in RESERVED_DIMENSIONS:
            hint = "Letters, digits and underscores, not first a digit; subject and customer_id are reserved."
            issues.append(_issue(f"{key!r} can't name a dimension", f"$.groupBy.{key}", hint))
        if path == meter.value_property:
            issues.append(
                _issue("the value can't also be a dimension", f"$.groupBy.{key}", "Drop one of them.")
            )
    return issues


def _path_issues(path: str, where: str) -> tuple[Issue, ...]:
    try:
        parse_path(path, where)
    except InvalidError as error:
        return error.issues
    return ()


def _issue(message: str, where: str, hint: str) -> Issue:
    return Issue(code="invalid_meter", message=message, field=where, hint=hint)


def check_query(meter: MeterDefinition, query: UsageQuery) -> None:
    """Raise InvalidError when the meter can't be asked that."""
    named = [(name, "$.groupBy") for name in query.group_by if not _is_owner(query, name)]
    named += [(name, "$.filterGroupBy") for name in query.filters]
    named += [(name, "$.advancedMeterGroupByFilters") for name in query.conditions]
    for name, where in named:
        if name not in meter.group_by:
            known = ", ".join(sorted(meter.group_by)) or "none"
            hint = f"This meter's dimensions: {known}."
            issue = Issue(
                code="unknown_group_by", message=f"unknown group by: {name}", field=where, hint=hint
            )
            raise InvalidError(issue.message, issue)
    if query.start and query.end and query.start >= query.end:
        message = "from must be before to"
        raise InvalidError(message, Issue(code="empty_period", message=message, field="$.to"))
    zone_of(query.zone)


def _is_owner(query: UsageQuery, name: str) -> bool:
    return name == "subject" or (name == "customer_id" and query.customers is not None)


def fold(meter: MeterDefinition, query: UsageQuery, events: Iterable[Event]) -> list[UsageRow]:
    """The rows that answer `query` over these events: the definition of what SQL must say."""
    check_query(meter, query)
    groups: dict[tuple[Period | None, tuple[str, ...]], list[_Counted]] = defaultdict(list)
    for event in events:
        data = json.loads(event.data or b"{}", parse_float=Decimal)
        if _selected(meter, query, event, data):
            window = _window(query, event.time)
            group = tuple(_key(meter, query, name, event, data) for name in query.group_by)
            groups[window, group].append(_counted(meter, event, data))
    rows = [
        UsageRow(
            window=window or _span(query, [c.time for c in counted]),
            group=dict(zip(query.group_by, group, strict=True)),
            value=value,
        )
        for (window, group), counted in groups.items()
        if (value := _aggregate(meter.aggregation, counted)) is not None
    ]
    return in_order(rows) or empty_answer(meter, query)


def in_order(rows: Iterable[UsageRow]) -> list[UsageRow]:
    """By window, and within one by the values of its group."""
    return sorted(rows, key=lambda row: (row.window.start, tuple(row.group.values())))


def empty_answer(meter: MeterDefinition, query: UsageQuery) -> list[UsageRow]:
    """No events: counting says 0 over a period that is known, everything else says nothing."""
    counting = meter.aggregation in ("COUNT", "UNIQUE_COUNT")
    if counting and query.start and query.end and not query.window_size and not query.group_by:
        return [UsageRow(window=Period(start=query.start, end=query.end), group={}, value=Decimal(0))]
    return []


@dataclass(frozen=True, slots=True)
class _Counted:
    time: datetime
    order: int
    number: Decimal | None
    text: str | None


def _counted(meter: MeterDefinition, event: Event, data: object) -> _Counted:
    value = MISSING if meter.value_property is None else value_at(data, parse_path(meter.value_property))
    text = None if value is None else text_of(value)
    return _Counted(event.time, event_key(event.source, event.id).int, number_of(value), text)


def _selected(meter: MeterDefinition, query: UsageQuery, event: Event, data: object) -> bool:
    starts = [start for start in (query.start, meter.event_from) if start is not None]
    return (
        event.type == meter.event_type
        and all(event.time >= start for start in starts)
        and (query.end is None or event.time < query.end)
        and (query.counted_subjects is None or event.subject in query.counted_subjects)
        and all(_dimension(meter, name, data) in allowed for name, allowed in query.filters.items())
        and all(
            matches(condition, _dimension(meter, name, data)) for name, condition in query.conditions.items()
        )
    )


def _key(meter: MeterDefinition, query: UsageQuery, name: str, event: Event, data: object) -> str:
    if name == "subject":
        return event.subject
    if name == "customer_id" and query.customers is not None:
        return query.customers[event.subject]
    return _dimension(meter, name, data)


def _dimension(meter: MeterDefinition, name: str, data: object) -> str:
    return text_of(value_at(data, parse_path(meter.group_by[name])))


def text_of(value: object) -> str:
    """A JSON value as a dimension: text as it is, numbers by their digits, nothing and structures as ""."""
    match value:
        case str():
            return value
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | Decimal():
            return plain(Decimal(value))
        case _:
            return ""


def _window(query: UsageQuery, time: datetime) -> Period | None:
    return window_of(time, query.window_size, zone_of(query.zone)) if query.window_size else None


def _span(query: UsageQuery, times: list[datetime]) -> Period:
    return span(query, min(times), max(times))


def span(query: UsageQuery, first: datetime, last: datetime) -> Period:
    """The window of a query without windowSize: what was asked for, else the minutes that hold the events."""
    start = query.start or first.replace(second=0, microsecond=0)
    return Period(start=start, end=query.end or last.replace(second=0, microsecond=0) + timedelta(minutes=1))


def _aggregate(aggregation: Aggregation, counted: list[_Counted]) -> Decimal | None:
    numbers = [c.number for c in counted if c.number is not None]
    match aggregation:
        case "COUNT":
            return Decimal(len(counted))
        case "UNIQUE_COUNT":
            return Decimal(len({c.text for c in counted if c.text is not None}))
        case "SUM":
            return total(numbers) if numbers else None
        case "AVG":
            return average(total(numbers), len(numbers)) if numbers else None
        case "MIN":
            return min(numbers, default=None)
        case "MAX":
            return max(numbers, default=None)
        case "LATEST":
            latest = max(
                (c for c in counted if c.number is not None), key=lambda c: (c.time, c.order), default=None
            )
            return latest.number if latest else None
    assert_never(aggregation)


def average(amount: Decimal, count: int) -> Decimal:
    context = EXACT.copy()
    context.prec = max(AVERAGE_DIGITS, len(amount.as_tuple().digits))
    context.clear_traps()
    return context.divide(amount, Decimal(count))
