"""SQL for what a meter reads in an event's `data`: the same meaning as in metering/meter.py.

A name steps only into an object and an index only into an array; text that is a number counts as one; a
dimension that is missing, or that is an object or an array, is "".
"""

import json
from dataclasses import dataclass, field
from typing import Any

from metering.exact import MAX_TEXT_LENGTH, NUMBER_PATTERN
from metering.jsonpath import parse_path

__all__ = [
    "ALL_EVENTS",
    "NOT_VOIDED",
    "Statement",
    "day_of",
    "digest_of",
    "dimension_of",
    "hour_of",
    "number_of",
    "text_of",
    "value_of",
]

ALL_EVENTS = "(SELECT * FROM events UNION ALL SELECT * FROM retired_events)"

NOT_VOIDED = """NOT EXISTS (
    SELECT FROM voided_events AS v WHERE v.key = e.key AND v.restored_at IS NULL)"""
"""For an event `e`."""


@dataclass(slots=True)
class Statement:
    """SQL being written: values become parameters, never text. `placeholder` is the driver's way of it.

    What comes again is the same parameter, for it may be long. Texts are not: two that are equal by chance
    would make another statement of it, with another plan.
    """

    placeholder: str = ":{}"
    parameters: dict[str, Any] = field(default_factory=dict)
    _names: dict[tuple[str, Any], str] = field(default_factory=dict)

    def bind(self, value: Any, kind: str) -> str:
        name = f"p{len(self.parameters)}"
        if kind != "text":
            name = self._names.setdefault((kind, tuple(value) if kind.endswith("[]") else value), name)
        self.parameters[name] = value
        return f"CAST({self.placeholder.format(name)} AS {kind})"


def value_of(statement: Statement, path: str | None) -> str:
    """The JSON value at a path of `data`, NULL where there is none."""
    if path is None:
        return "CAST(NULL AS jsonb)"
    steps = parse_path(path)
    if any(isinstance(step, int) for step in steps):  # `-> 0` would find a scalar in itself
        strict = "".join(f"[{step}]" if isinstance(step, int) else f".{json.dumps(step)}" for step in steps)
        return (
            f"jsonb_path_query_first(data, {statement.bind(f'strict ${strict}', 'jsonpath')}, '{{}}', true)"
        )
    return "(" + " -> ".join(["data", *(statement.bind(step, "text") for step in steps)]) + ")"


def number_of(value: str) -> str:
    """The number that a JSON value stands for, NULL for anything else."""
    return f"""CASE jsonb_typeof({value})
        WHEN 'number' THEN CAST({value} AS numeric)
        WHEN 'string' THEN CASE
            WHEN length({value} #>> '{{}}') <= {MAX_TEXT_LENGTH} AND {value} #>> '{{}}' ~ '^{NUMBER_PATTERN}$'
            THEN CAST({value} #>> '{{}}' AS numeric) END
        END"""


def text_of(value: str) -> str:
    """A JSON value as the text by which usage is told apart."""
    return f"""CASE jsonb_typeof({value})
        WHEN 'object' THEN '' WHEN 'array' THEN '' WHEN 'null' THEN 'null'
        ELSE coalesce({value} #>> '{{}}', '') END"""


def dimension_of(statement: Statement, path: str) -> str:
    return text_of(value_of(statement, path))


def digest_of(value: str) -> str:
    """128 bits that stand for a distinct value; NULL for JSON null, which UNIQUE_COUNT does not count."""
    return f"""CASE jsonb_typeof({value}) WHEN 'null' THEN NULL
        ELSE substr(sha256(convert_to({text_of(value)}, 'UTF8')), 1, 16) END"""


def hour_of(time: str) -> str:
    return f"date_trunc('hour', {time}, 'UTC')"


def day_of(time: str) -> str:
    return f"date_trunc('day', {time}, 'UTC')"
