"""A condition on an instant, in OpenMeter's words ($gt, $gte, $lt, $lte, $and, $or), in Python and in SQL.

Several operators in one filter must all hold; an empty filter holds always.
"""

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any

from metering.errors import InvalidError, Issue

__all__ = ["FilterTime", "bounds_of", "instant_sql", "is_within", "parse_time_filter"]

MAX_NESTING = 5
"""How deep $and and $or may lie in one another."""
MAX_FILTERS = 100
"""Filters in one $and or $or."""
FIRST_YEAR, LAST_YEAR = 1900, 9998

TICK = timedelta(microseconds=1)
"""The shortest time there is, for Python and PostgreSQL alike."""

Bind = Callable[[Any, str], str]
Bounds = tuple[datetime | None, datetime | None]
"""From the first (included) to the second (excluded); None is no bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterTime:
    gt: datetime | None = None
    gte: datetime | None = None
    lt: datetime | None = None
    lte: datetime | None = None
    and_: "tuple[FilterTime, ...] | None" = None
    or_: "tuple[FilterTime, ...] | None" = None


_COMPARE: Mapping[str, Callable[[datetime, datetime], bool]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}
_COMPARE_SQL: Mapping[str, str] = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}


def _operators(condition: FilterTime) -> Iterator[tuple[str, Any]]:
    """Those that are there, by the name of their field."""
    for one in fields(condition):
        if (value := getattr(condition, one.name)) is not None:
            yield one.name, value


def is_within(condition: FilterTime, instant: datetime) -> bool:
    """Whether the instant passes."""
    return all(_holds(name, value, instant) for name, value in _operators(condition))


def _holds(name: str, value: Any, instant: datetime) -> bool:
    match name:
        case "and_":
            return all(is_within(one, instant) for one in value)
        case "or_":
            return any(is_within(one, instant) for one in value)
        case _:
            return _COMPARE[name](instant, value)


def instant_sql(condition: FilterTime, column: str, bind: Bind) -> str:
    """The same as an SQL condition on `column`, a timestamptz that is never NULL."""
    parts = [_sql(name, value, column, bind) for name, value in _operators(condition)]
    return f"({' AND '.join(parts)})" if parts else "true"


def _sql(name: str, value: Any, column: str, bind: Bind) -> str:
    if name in _COMPARE_SQL:
        return f"{column} {_COMPARE_SQL[name]} {bind(value, 'timestamptz')}"
    word = " AND " if name == "and_" else " OR "
    return f"({word.join(instant_sql(one, column, bind) for one in value)})"


def bounds_of(condition: FilterTime) -> Bounds:
    """A period outside of which no instant passes."""
    return _narrowest([_bounds(name, value) for name, value in _operators(condition)])


def _bounds(name: str, value: Any) -> Bounds:
    match name:
        case "gt":
            return value + TICK, None
        case "gte":
            return value, None
        case "lt":
            return None, value
        case "lte":
            return None, value + TICK
        case "and_":
            return _narrowest([bounds_of(one) for one in value])
        case _:
            return _widest([bounds_of(one) for one in value])


def _narrowest(periods: list[Bounds]) -> Bounds:
    starts = [start for start, _ in periods if start is not None]
    ends = [end for _, end in periods if end is not None]
    return max(starts, default=None), min(ends, default=None)


def _widest(periods: list[Bounds]) -> Bounds:
    starts = [start for start, _ in periods if start is not None]
    ends = [end for _, end in periods if end is not None]
    return (
        min(starts) if len(starts) == len(periods) else None,
        max(ends) if len(ends) == len(periods) else None,
    )


_FIELDS: Mapping[str, str] = {f"${one.name.rstrip('_')}": one.name for one in fields(FilterTime)}
"""OpenMeter's name of each operator, and ours."""


def parse_time_filter(sent: object, field: str) -> FilterTime:
    """The filter that decoded JSON stands for; `field` is where it stands, for errors.

    Raises InvalidError with the place of what is wrong.
    """
    return _parsed(sent, field, nesting=0)


def _parsed(sent: object, field: str, nesting: int) -> FilterTime:
    if not isinstance(sent, dict):
        raise _invalid("a filter must be an object", field, 'For example {"$gte": "2026-03-01T00:00:00Z"}.')
    if nesting > MAX_NESTING:
        raise _invalid(f"$and and $or may be nested at most {MAX_NESTING} deep", field, "Write it flatter.")
    if unknown := [name for name in sent if name not in _FIELDS]:
        known = ", ".join(_FIELDS)
        raise _invalid(f"{unknown[0]!r} is not an operator", f"{field}.{unknown[0]}", f"There are {known}.")
    return FilterTime(
        **{
            _FIELDS[name]: _value(name, value, f"{field}.{name}", nesting)
            for name, value in sent.items()
            if value is not None
        }
    )


def _value(name: str, value: object, field: str, nesting: int) -> Any:
    if name not in ("$and", "$or"):
        return _instant(value, field)
    if not isinstance(value, list) or not 0 < len(value) <= MAX_FILTERS:
        hint = "Put filters in brackets: [ ... ]."
        raise _invalid(f"{name} takes an array of 1 to {MAX_FILTERS} filters", field, hint)
    return tuple(_parsed(one, f"{field}[{i}]", nesting + 1) for i, one in enumerate(value))


_RFC_3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)


def _instant(value: object, field: str) -> datetime:
    hint = "For example 2026-03-01T00:00:00Z."
    if not isinstance(value, str) or not _RFC_3339.fullmatch(value):
        raise _invalid("this must be an RFC 3339 time with a zone", field, hint)
    try:
        instant = datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise _invalid("there is no such time", field, hint) from None
    if not FIRST_YEAR <= instant.year <= LAST_YEAR:
        raise _invalid(f"the year must be from {FIRST_YEAR} to {LAST_YEAR}", field, hint)
    return instant


def _invalid(message: str, field: str, hint: str) -> InvalidError:
    issue = Issue(code="invalid_filter", message=message, field=field, hint=hint)
    return InvalidError(f"{message} at {field}", issue)
