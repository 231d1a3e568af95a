"""Usage as a table for spreadsheets: one line for each row, with every digit of the value."""

import csv
import io
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from metering.exact import plain
from metering.meter import UsageRow

__all__ = ["MEDIA_TYPE", "harmless", "instant_text", "preferred", "usage_csv", "wants_csv"]

MEDIA_TYPE = "text/csv"

_OWNERS = ("subject", "customer_id")
_RANGE = re.compile(r"\s*([^\s;,/]+)/([^\s;,/]+)\s*(;[^,]*)?")
_QUALITY = re.compile(r";\s*q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*(?:;|$)", re.IGNORECASE)
_FORMULA = re.compile(r"[=@\t\r]|[+-](?![0-9.]*$)")
"""How a text begins that a spreadsheet would run; a number with a sign is none."""


def wants_csv(accept: str) -> bool:
    """Whether an Accept header prefers CSV to JSON; whoever has no preference gets JSON."""
    return _rank(accept, MEDIA_TYPE) > _rank(accept, "application/json")


def preferred(accept: str, *media_types: str) -> str:
    """The one that an Accept header likes best; whoever has no preference gets the first."""
    return max(media_types, key=lambda media_type: _rank(accept, media_type))


class _Rank(NamedTuple):
    """Compared from the left: of two that are liked equally, the one that is named, or named first."""

    quality: float = 0
    specificity: int = 0
    earliness: int = 0


def _rank(accept: str, media_type: str) -> _Rank:
    """By the most specific range that has it, as RFC 9110 says."""
    kind, _, subtype = media_type.partition("/")
    patterns = {("*", "*"): 0, (kind, "*"): 1, (kind, subtype): 2}
    fitting = [
        (patterns[name], _Rank(_quality(found[3] or ""), patterns[name], -position))
        for position, found in enumerate(_RANGE.finditer(accept))
        if (name := (found[1].lower(), found[2].lower())) in patterns
    ]
    rank = max(fitting, default=(0, _Rank()))[1]
    return rank if rank.quality else _Rank()


def _quality(parameters: str) -> float:
    found = _QUALITY.search(parameters)
    return float(found[1]) if found else 1.0


def usage_csv(rows: Sequence[UsageRow], group_by: Sequence[str]) -> str:
    """RFC 4180, with a header; owners come before the other dimensions, the value last."""
    names = [name for name in _OWNERS if name in group_by]
    names += [name for name in group_by if name not in _OWNERS]
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["window_start", "window_end", *names, "value"])
    for row in rows:
        groups = [harmless(row.group[name]) for name in names]
        writer.writerow(
            [instant_text(row.window.start), instant_text(row.window.end), *groups, plain(row.value)]
        )
    return table.getvalue()


def harmless(text: str) -> str:
    """A text that whoever sent an event chose, as text and not as a formula: behind an apostrophe."""
    return f"'{text}" if _FORMULA.match(text) else text


def instant_text(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")
