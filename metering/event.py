"""A usage event: who used how much of what, and when, as a gateway reported it.

The wire format is CloudEvents 1.0 in JSON. Events are decoded and checked here, before anything is stored;
what passes can be stored by PostgreSQL without fail, so one event can never spoil a commit that it shares
with others.
"""

import json
import re
from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal, InvalidOperation
from itertools import accumulate
from typing import Annotated, Literal

import msgspec

from metering.errors import InvalidError, Issue
from metering.period import FIRST_INSTANT, LAST_INSTANT

__all__ = ["CONTENT_TYPES", "Content", "Event", "InvalidEventError", "decode_events"]

Content = Literal["single", "batch", "either"]

CONTENT_TYPES: dict[str, Content] = {
    "application/cloudevents+json": "single",
    "application/cloudevents-batch+json": "batch",
    "application/json": "either",
}
"""What each accepted content type holds: one event, an array of them, or either."""

MAX_NUMBER_DIGITS = 1000
"""A JSON number in `data` has at most this many digits, written out in full."""
MAX_DEPTH = 100
"""Objects and arrays in one another, `data` included: far from where any parser's stack ends."""

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
Type = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Subject = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
"""Type and subject are indexed together, and at 4 bytes a character just fit an index entry's 2,704."""
Instant = Annotated[datetime, msgspec.Meta(tz=True)]
NULL = msgspec.Raw(b"null")


class InvalidEventError(InvalidError):
    """A CloudEvent that can't be stored; the issue's field says which one and where."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A CloudEvent. (source, id) is its identity; `data` is the JSON object as it was sent, or None."""

    id: str
    source: str
    type: str
    subject: str
    time: datetime
    data: bytes | None = None
    specversion: str = "1.0"
    dataschema: str | None = None


class _Wire(msgspec.Struct):
    id: Text
    source: Text
    type: Type
    subject: Subject
    time: Instant | None = None
    data: msgspec.Raw = NULL
    specversion: Text = "1.0"
    datacontenttype: Literal["application/json"] | None = None
    dataschema: Text | None = None
    data_base64: msgspec.Raw = NULL


_single = msgspec.json.Decoder(_Wire)
_batch = msgspec.json.Decoder(list[_Wire])


def decode_events(body: bytes, *, content: Content, now: datetime) -> list[Event]:
    """Decode a request body of one event or an array; `now` is the time of those that carry none.

    Raises InvalidEventError at the first event that is not a storable CloudEvent.
    """
    many = content == "batch" or (content == "either" and body.lstrip()[:1] == b"[")
    try:
        if not body.isascii():
            body.decode()  # the decoder skips over `data`, and so over what is not UTF-8 in it
        wires = _batch.decode(body) if many else [_single.decode(body)]
    except msgspec.ValidationError as error:
        raise _invalid(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidEventError(
            f"The body is not valid JSON: {error}",
            Issue(code="malformed_json", message=str(error), hint="Send UTF-8 JSON."),
        ) from None
    if not wires:
        raise InvalidEventError("no events found", Issue(code="no_events", message="The array is empty."))
    if b"\\" in body:  # elsewhere nothing can stand for U+0000
        _check_names(wires, many)
    return [_checked(wire, _path(i, many), now) for i, wire in enumerate(wires)]


def _path(place: int, many: bool) -> str:
    return f"$[{place}]" if many else "$"


def _invalid(error: msgspec.ValidationError) -> InvalidEventError:
    message, _, place = str(error).partition(" - at `")
    path = place.rstrip("`") or "$"
    if missing := re.search(r"missing required field `(\w+)`", message):
        path = f"{path}.{missing[1]}"
    hint = "A CloudEvent needs id, source, type and subject as text; time is RFC 3339 with a zone."
    issue = Issue(code="invalid_event", message=message, field=path, hint=hint)
    return InvalidEventError(f"{message} at {path}", issue)


def _checked(wire: _Wire, path: str, now: datetime) -> Event:
    if wire.data_base64 is not NULL and bytes(wire.data_base64) != b"null":
        raise _unstorable("data must be a JSON object, not data_base64", f"{path}.data_base64")
    time = wire.time or now
    if not FIRST_INSTANT <= time < LAST_INSTANT:
        raise _unstorable("time must lie between 1970 and 9990", f"{path}.time")
    return Event(
        id=wire.id,
        source=wire.source,
        type=wire.type,
        subject=wire.subject,
        time=time,
        data=None if wire.data is NULL else _checked_data(bytes(wire.data), path),
        specversion=wire.specversion,
        dataschema=wire.dataschema,
    )


def _check_names(wires: Iterable[_Wire], many: bool) -> None:
    for i, wire in enumerate(wires):
        for name in ("id", "source", "type", "subject", "specversion", "dataschema"):
            if "\0" in (getattr(wire, name) or ""):
                place = f"{_path(i, many)}.{name}"
                raise _unstorable(f"{name} must not contain the character U+0000", place)


def _checked_data(raw: bytes, path: str) -> bytes | None:
    if raw == b"null":
        return None
    if raw[:1] != b"{":
        raise _unstorable("data must be a JSON object or null", f"{path}.data")
    check_storable(raw, f"{path}.data")
    return raw


def _unstorable(message: str, path: str) -> InvalidEventError:
    return InvalidEventError(f"{message} at {path}", Issue(code="invalid_event", message=message, field=path))


def check_storable(raw: bytes, path: str) -> None:
    """Refuse the few valid JSON texts that PostgreSQL's jsonb does not hold.

    They are U+0000, half a surrogate pair, numbers of absurd size, and nesting without end. Nearly every
    event passes at the price of a few searches.
    """
    if not _is_suspicious(raw):
        return
    try:
        decoded = json.loads(raw, parse_float=Decimal, parse_int=Decimal, object_pairs_hook=_Members)
    except InvalidOperation:
        raise _unstorable("a number has an exponent beyond all bounds", path) from None
    except RecursionError:
        raise _unstorable(_TOO_DEEP, path) from None
    _check_all(decoded, path)


_SHAPE = bytes.maketrans(b"0123456789E+{", b"9999999999e-[")
"""All digits, exponents, signs and brackets made one, for then a plain search finds them, at memory speed."""
_LONG_EXPONENT = re.compile(rb"\d[eE][+-]?\d{3,}\s*[,}\]]")
_ESCAPE = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")


def _is_suspicious(raw: bytes) -> bool:
    shape = raw.translate(_SHAPE)
    return (
        # An exponent, or what looks like one in a random id.
        ((b"9e999" in shape or b"9e-999" in shape) and _LONG_EXPONENT.search(raw) is not None)
        or (b"\\" in raw and _ESCAPE.search(raw) is not None)
        or (shape.count(b"[") > MAX_DEPTH and _depth(raw) > MAX_DEPTH)
        or (len(raw) >= 500 and b"9" * 500 in shape)
    )


_TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_NO_BRACKETS = bytes(set(range(256)) - set(_STEPS))


def _depth(raw: bytes) -> int:
    """How deep JSON is nested: a body may have many objects side by side."""
    outside_text = _TEXT.sub(b"", raw) if b"\\" in raw else b"".join(raw.split(b'"')[::2])
    brackets = outside_text.translate(None, _NO_BRACKETS)
    return max(accumulate(map(_STEPS.__getitem__, brackets)), default=0)


class _Members(list[tuple[str, object]]):
    """An object's members, those too that a later one of the same name hides: jsonb reads them all."""


_Place = tuple["_Place", str] | None
"""Where a value stands: its parent's place and one step, so that a path costs nothing until it is needed."""
_TOO_DEEP = f"objects and arrays may be nested {MAX_DEPTH} deep"


def _check_all(decoded: object, path: str) -> None:
    """Without recursion: a body may hold millions of values."""
    waiting: list[tuple[object, int, _Place]] = [(decoded, 1, None)]
    while waiting:
        value, depth, place = waiting.pop()
        if problem := _problem(value, depth):
            raise _unstorable(problem, path + _written(place))
        match value:
            case _Members():
                for name, inner in value:
                    waiting.append((name, depth, place))
                    waiting.append((inner, depth + 1, (place, f".{name}")))
            case list():
                waiting.extend((inner, depth + 1, (place, f"[{i}]")) for i, inner in enumerate(value))


def _problem(value: object, depth: int) -> str | None:
    match value:
        case Decimal() if not _within_bounds(value):
            return f"a number may have at most {MAX_NUMBER_DIGITS} digits"
        case str() if not _encodable(value):
            return "text must not contain U+0000 or half a surrogate pair"
        case list() if depth > MAX_DEPTH:
            return _TOO_DEEP
    return None


def _written(place: _Place) -> str:
    steps = []
    while place is not None:
        place, step = place
        steps.append(step)
    return "".join(reversed(steps))


def _within_bounds(number: Decimal) -> bool:
    exponent = number.as_tuple().exponent
    return isinstance(exponent, int) and max(number.adjusted(), -exponent, 0) < MAX_NUMBER_DIGITS


_UNENCODABLE = re.compile("[\0\ud800-\udfff]")


def _encodable(text: str) -> bool:
    return _UNENCODABLE.search(text) is None
