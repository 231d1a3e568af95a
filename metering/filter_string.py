"""A condition on a text, in OpenMeter's words ($eq, $in, $like, $and ...): its meaning in Python and in SQL.

Texts are compared by code point, whatever the database's locale. `$ilike` and `$nilike` fold the 26 letters
of ASCII and no others: that is the same in every locale and every release of PostgreSQL. In a pattern, % is
any text, _ any one character, and a backslash takes the next character literally. Several operators in one
filter must all hold; an empty filter holds always.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from metering.errors import InvalidError, Issue

__all__ = ["FilterString", "condition_sql", "filter_json", "matches", "parse_filter", "parse_filters"]

MAX_NESTING = 5
"""How deep $and and $or may lie in one another."""
MAX_VALUES = 1000
"""Texts in all filters of one request, those of nested filters included."""
MAX_LENGTH = 1024

Bind = Callable[[Any, str], str]
"""Takes a value and its SQL type, and gives the parameter that stands for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterString:
    """`like` and its kin hold patterns that don't end in a lone backslash, as parse_filter sees to it."""

    eq: str | None = None
    ne: str | None = None
    in_: tuple[str, ...] | None = None
    nin: tuple[str, ...] | None = None
    like: str | None = None
    nlike: str | None = None
    ilike: str | None = None
    nilike: str | None = None
    gt: str | None = None
    gte: str | None = None
    lt: str | None = None
    lte: str | None = None
    and_: "tuple[FilterString, ...] | None" = None
    or_: "tuple[FilterString, ...] | None" = None


def _operators(condition: FilterString) -> Iterator[tuple[str, Any]]:
    """Those that are there, by the name of their field."""
    for one in fields(condition):
        if (value := getattr(condition, one.name)) is not None:
            yield one.name, value


_COMPARE: Mapping[str, Callable[[str, str], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}
_COMPARE_SQL: Mapping[str, str] = {"eq": "=", "ne": "<>", "gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_PATTERN_SQL: Mapping[str, str] = {"like": "LIKE", "nlike": "NOT LIKE", "ilike": "LIKE", "nilike": "NOT LIKE"}


def matches(condition: FilterString, text: str) -> bool:
    """Whether the text passes."""
    return all(_holds(name, value, text) for name, value in _operators(condition))


def _holds(name: str, value: Any, text: str) -> bool:
    match name:
        case "in_":
            return text in value
        case "nin":
            return text not in value
        case "like":
            return _is_like(text, value)
        case "nlike":
            return not _is_like(text, value)
        case "ilike":
            return _is_like(_folded(text), _folded(value))
        case "nilike":
            return not _is_like(_folded(text), _folded(value))
        case "and_":
            return all(matches(one, text) for one in value)
        case "or_":
            return any(matches(one, text) for one in value)
        case _:
            return _COMPARE[name](text, value)


_UPPER: Final = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def _folded(text: str) -> str:
    return text.translate(_UPPER)


def _is_like(text: str, pattern: str) -> bool:
    """At most text times pattern: no pattern takes for ever, as a regular expression can."""
    steps = _steps(pattern)
    at = step = 0
    after_any, resume = -1, 0
    while at < len(text):
        if step < len(steps) and steps[step] in (None, text[at]):
            at, step = at + 1, step + 1
        elif step < len(steps) and steps[step] == "":
            after_any, resume = step + 1, at
            step += 1
        elif after_any >= 0:
            resume += 1
            at, step = resume, after_any
        else:
            return False
    return all(one == "" for one in steps[step:])


def _steps(pattern: str) -> list[str | None]:
    """A character stands for itself, None for any one, and "" for any text."""
    steps: list[str | None] = []
    characters = iter(pattern)
    for character in characters:
        match character:
            case "%":
                steps.append("")
            case "_":
                steps.append(None)
            case "\\":
                steps.append(next(characters))
            case _:
                steps.append(character)
    return steps


def condition_sql(condition: FilterString, column: str, bind: Bind) -> str:
    """The same as an SQL condition on `column`, an expression of the type text that is never NULL."""
    parts = [_sql(name, value, f"({column})", bind) for name, value in _operators(condition)]
    return f"({' AND '.join(parts)})" if parts else "true"


def _sql(name: str, value: Any, column: str, bind: Bind) -> str:
    match name:
        case "in_":
            return f"{column} = ANY({bind(list(value), 'text[]')})"
        case "nin":
            return f"{column} <> ALL({bind(list(value), 'text[]')})"
        case "like" | "nlike":
            return f'{column} COLLATE "C" {_PATTERN_SQL[name]} {bind(value, "text")}'
        case "ilike" | "nilike":
            return f'lower({column} COLLATE "C") {_PATTERN_SQL[name]} {bind(_folded(value), "text")}'
        case "and_":
            return _joined(" AND ", "true", value, column, bind)
        case "or_":
            return _joined(" OR ", "false", value, column, bind)
        case "eq" | "ne":  # equality knows no locale, and an index may serve it
            return f"{column} {_COMPARE_SQL[name]} {bind(value, 'text')}"
        case _:
            return f'{column} COLLATE "C" {_COMPARE_SQL[name]} {bind(value, "text")}'


def _joined(word: str, none: str, conditions: tuple[FilterString, ...], column: str, bind: Bind) -> str:
    return f"({word.join(condition_sql(one, column, bind) for one in conditions) or none})"


_FIELDS: Mapping[str, str] = {f"${one.name.rstrip('_')}": one.name for one in fields(FilterString)}
"""OpenMeter's name of each operator, and ours."""


def parse_filter(sent: object, field: str) -> FilterString:
    """The filter that decoded JSON stands for; `field` is where it stands, for errors.

    Raises InvalidError with the place of what is wrong.
    """
    parsed = _parsed(sent, field, nesting=0)
    _require_few([parsed], field)
    return parsed


def parse_filters(sent: object, field: str) -> dict[str, FilterString]:
    """A filter for each of several texts, by its name."""
    if not isinstance(sent, dict):
        raise _invalid("this must be an object", field, 'For example {"model": {"$eq": "gpt-4o"}}.')
    parsed = {name: _parsed(one, f"{field}.{name}", nesting=0) for name, one in sent.items()}
    _require_few(parsed.values(), field)
    return parsed


def filter_json(condition: FilterString) -> dict[str, Any]:
    """The JSON that parse_filter reads back as the same."""
    return {f"${name.rstrip('_')}": _json(name, value) for name, value in _operators(condition)}


def _json(name: str, value: Any) -> Any:
    match name:
        case "and_" | "or_":
            return [filter_json(one) for one in value]
        case "in_" | "nin":
            return list(value)
        case _:
            return value


def _require_few(conditions: Iterable[FilterString], field: str) -> None:
    if sum(map(_size, conditions)) > MAX_VALUES:
        raise _invalid(f"there may be at most {MAX_VALUES} values", field, "Ask in several queries.")


def _parsed(sent: object, field: str, nesting: int) -> FilterString:
    if not isinstance(sent, dict):
        raise _invalid("a filter must be an object", field, 'For example {"$eq": "gpt-4o"}.')
    if nesting > MAX_NESTING:
        raise _invalid(f"$and and $or may be nested at most {MAX_NESTING} deep", field, "Write it flatter.")
    if unknown := [name for name in sent if name not in _FIELDS]:
        known = ", ".join(_FIELDS)
        raise _invalid(f"{unknown[0]!r} is not an operator", f"{field}.{unknown[0]}", f"There are {known}.")
    return FilterString(
        **{
            _FIELDS[name]: _value(name, value, f"{field}.{name}", nesting)
            for name, value in sent.items()
            if value is not None
        }
    )


def _value(name: str, value: object, field: str, nesting: int) -> Any:
    match name:
        case "$in" | "$nin":
            return tuple(_text(one, f"{field}[{i}]") for i, one in enumerate(_list(value, field)))
        case "$and" | "$or":
            if not (filters := _list(value, field)):
                raise _invalid(f"{name} needs at least one filter", field, "Leave it out.")
            return tuple(_parsed(one, f"{field}[{i}]", nesting + 1) for i, one in enumerate(filters))
        case "$like" | "$nlike" | "$ilike" | "$nilike":
            return _pattern(_text(value, field), field)
        case _:
            return _text(value, field)


def _list(value: object, field: str) -> list[object]:
    if not isinstance(value, list):
        raise _invalid("this must be an array", field, "Put it in brackets: [ ... ].")
    return value


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise _invalid("this must be a string", field, "Dimensions are texts: a number goes in quotes.")
    if len(value) > MAX_LENGTH:
        raise _invalid(f"this is longer than {MAX_LENGTH} characters", field, "Shorten it.")
    if any(one == "\0" or "\ud800" <= one <= "\udfff" for one in value):
        raise _invalid("U+0000 and half a surrogate pair are in no text that is stored", field, "Drop it.")
    return value


def _pattern(text: str, field: str) -> str:
    if (len(text) - len(text.rstrip("\\"))) % 2:
        hint = "Write a backslash that stands for itself as two."
        raise _invalid("a pattern can't end with a backslash that escapes nothing", field, hint)
    return text


def _size(condition: FilterString) -> int:
    """How many texts it holds; a filter without any counts as one."""
    size = 0
    for name, value in _operators(condition):
        match name:
            case "and_" | "or_":
                size += sum(_size(one) for one in value)
            case "in_" | "nin":
                size += len(value)
            case _:
                size += 1
    return size or 1


def _invalid(message: str, field: str, hint: str) -> InvalidError:
    issue = Issue(code="invalid_filter", message=message, field=field, hint=hint)
    return InvalidError(f"{message} at {field}", issue)
