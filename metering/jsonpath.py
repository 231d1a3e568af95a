"""The part of JSONPath that names one value in an event's data: `$.tokens`, `$.a['b-c']`, `$.list[0]`."""

import re

from metering.errors import InvalidError, Issue

__all__ = ["InvalidJsonPathError", "Path", "parse_path", "value_at"]

Path = tuple[str | int, ...]
"""The steps from the root: a member's name or an element's index."""

_STEP = re.compile(
    r"""\.(?P<name>[A-Za-z_][\w-]*)
      | \[(?P<index>[0-9]{1,6})\]
      | \['(?P<single>[^'\\\0\ud800-\udfff]+)'\]
      | \["(?P<double>[^"\\\0\ud800-\udfff]+)"\]""",
    re.VERBOSE,
)
"""U+0000 and half a surrogate pair are in no name that PostgreSQL holds."""


class InvalidJsonPathError(InvalidError):
    pass


def parse_path(text: str, field: str = "$") -> Path:
    """Steps of a path that names exactly one value; `field` is where the path itself stands, for errors."""
    if not text.startswith("$"):
        raise _invalid(text, field, "it must start with $")
    steps: list[str | int] = []
    position = 1
    while position < len(text):
        step = _STEP.match(text, position)
        if step is None:
            raise _invalid(text, field, f"can't read it from {text[position:]!r} on")
        steps.append(
            int(step["index"]) if step["index"] else step["name"] or step["single"] or step["double"]
        )
        position = step.end()
    if not steps:
        raise _invalid(text, field, "it must name a member, not the whole of data")
    return tuple(steps)


def _invalid(text: str, field: str, why: str) -> InvalidJsonPathError:
    issue = Issue(
        code="invalid_json_path",
        message=f"{text!r} is not a usable JSONPath: {why}",
        field=field,
        hint="Name one value, for example $.tokens, $.usage.total or $.items[0]['unit-price'].",
    )
    return InvalidJsonPathError(issue.message, issue)


MISSING = object()


def value_at(data: object, path: Path) -> object:
    """The value there, or MISSING. A name steps only into an object, an index only into an array."""
    for step in path:
        if isinstance(step, str) and isinstance(data, dict) and step in data:
            data = data[step]
        elif isinstance(step, int) and isinstance(data, list) and step < len(data):
            data = data[step]
        else:
            return MISSING
    return data
