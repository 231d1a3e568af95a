"""What differs between two versions of a thing in the catalog, a line for each place, for a person to read.

phases[0].rateCards[1].price.amount: 0.1 -> 0.2
+ description: for teams
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["differences", "shown"]


def differences(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Of two JSON values. Things that have a key are compared with those of the same key; their place is
    where they are afterwards, or where they were."""
    if before == after:
        return
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in [*before, *(name for name in after if name not in before)]:
            yield from _member(before, after, name, f"{path}.{name}" if path else name)
    elif not isinstance(before, list) or not isinstance(after, list):
        yield f"{path}: {shown(before)} -> {shown(after)}"
    elif _have_keys(before) and _have_keys(after):
        yield from _keyed(before, after, path)
    else:
        yield from _listed(before, after, path)


def _member(before: Mapping[str, Any], after: Mapping[str, Any], name: str, path: str) -> Iterator[str]:
    if name not in after:
        yield f"- {path}: {shown(before[name])}"
    elif name not in before:
        yield f"+ {path}: {shown(after[name])}"
    else:
        yield from differences(before[name], after[name], path)


def _have_keys(items: Sequence[Any]) -> bool:
    """Each has one, and its own."""
    keys = [item.get("key") for item in items if isinstance(item, Mapping)]
    return None not in keys and len(set(keys)) == len(items)


def _keyed(before: Sequence[Any], after: Sequence[Any], path: str) -> Iterator[str]:
    old, new = ({item["key"]: item for item in items} for items in (before, after))
    for i, item in enumerate(before):
        if item["key"] not in new:
            yield f"- {path}[{i}]: {shown(item)}"
    for i, item in enumerate(after):
        if item["key"] in old:
            yield from differences(old[item["key"]], item, f"{path}[{i}]")
        else:
            yield f"+ {path}[{i}]: {shown(item)}"
    stayed = [key for key in old if key in new]
    if stayed != (order := [key for key in new if key in old]):
        yield f"{path}, in another order: {', '.join(stayed)} -> {', '.join(order)}"


def _listed(before: Sequence[Any], after: Sequence[Any], path: str) -> Iterator[str]:
    for i, (old, new) in enumerate(zip(before, after, strict=False)):
        yield from differences(old, new, f"{path}[{i}]")
    for i in range(len(after), len(before)):
        yield f"- {path}[{i}]: {shown(before[i])}"
    for i in range(len(before), len(after)):
        yield f"+ {path}[{i}]: {shown(after[i])}"


def shown(value: Any) -> str:
    """A plain word as it is; all else as JSON, so that nothing in it can pass for another line."""
    if isinstance(value, str) and _WORD.fullmatch(value):
        return value
    return json.dumps(value, ensure_ascii=False).translate(_ESCAPED)


_WORD = re.compile(r"[\w.$%/+-]+")
_ESCAPED = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029)}
"""Control characters that JSON lets be, and a terminal may not."""
