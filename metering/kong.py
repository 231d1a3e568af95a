"""Reads what Kong's http-log plugin posts and turns each log entry into the usage events of its request.

An entry gives one `kong.api_request`, and for each call of an LLM in it one `kong.llm_request` per direction:
the prompt is the half `request`, the completion the half `response`. Both look as Kong's own metering plugin
would send them, so the same meters count either.

Everything in an event but `gateway` is computed from the entry alone, its id too: a batch sent again, or cut
again, gives the same events, which storage then counts once. `data` is built from the names in this file and
from nothing else: no headers, no query strings, no payloads.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from metering.errors import InvalidError, Issue
from metering.event import Event

__all__ = [
    "ANONYMOUS",
    "BadEntryError",
    "QuarantinedEntry",
    "SubjectRule",
    "decode_entries",
    "events_of_entry",
    "read_entries",
]

SubjectRule = Literal["consumer", "custom_id", "username"]
"""Which fact of the consumer is the subject; `consumer` means `consumer:<consumer.id>`, as in Konnect."""

ANONYMOUS = "anonymous"
"""The subject of a request that no rule found a consumer for. Its events are kept, and not billable."""

MAX_AHEAD = timedelta(minutes=5)
"""Clocks differ by this much; an entry dated further ahead waits in quarantine."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EARLIEST_MS = 1_420_070_400_000  # 2015, Kong's first release: what is older was sent in seconds
LATEST_MS = 253_402_300_800_000  # the year 10000, where datetime ends
MAX_COUNT = 10**15
MAX_FRACTION_DIGITS = 20
MAX_NUMBER_LENGTH = 1000

# An event is found by its source and id, through a b-tree, whose entries may take 2704 bytes. At four bytes
# a character, id and source of these lengths still fit.
MAX_REQUEST_ID = 256
MAX_AI_KEY = 128
MAX_WORKSPACE = 128
MAX_SUBJECT = 512

SUBJECTS: Mapping[SubjectRule, tuple[str, str, str]] = {
    "consumer": ("consumer.id", "consumer:", "consumer_id"),
    "custom_id": ("consumer.custom_id", "", "consumer_custom_id"),
    "username": ("consumer.username", "", "consumer_username"),
}
"""Where each rule looks, what it puts before the value, and the subject_type it gives."""

HALVES = (
    (
        "request",
        ("prompt_tokens", "input_tokens", "prompt_token"),
        ("meta.request_model", "meta.response_model"),
    ),
    (
        "response",
        ("completion_tokens", "output_tokens", "completion_token"),
        ("meta.response_model", "meta.request_model"),
    ),
)
"""The halves of an LLM call: type, the names of its count, where its model stands.

The last name of a count is the one that the first versions of AI Proxy logged.
"""

EXACT_STREAMS = frozenset({"anthropic", "bedrock", "cohere", "gemini", "llama2"})
"""Providers that tell Kong their token counts in a stream too; Kong estimates the others' from the text."""

_NUMBER = re.compile(r"-?\d{1,64}(\.\d{1,64})?([eE][+-]?\d{1,3})?", re.ASCII)
_HOST = re.compile(r"[\w.:-]{1,255}", re.ASCII)
_VERSION = re.compile(r"\bkong/(\d{1,4}(?:\.\d{1,4}){1,4})", re.ASCII)
_RAW_BYTE = re.compile("[\udc80-\udcff]")

_encoder = msgspec.json.Encoder(decimal_format="number")


class BadEntryError(InvalidError):
    """An entry that can't be metered, and why; `events` is what could be derived from it all the same."""

    def __init__(self, detail: str, *issues: Issue, events: tuple[Event, ...] = ()) -> None:
        super().__init__(detail, *issues)
        self.events = events


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantinedEntry:
    """All that is kept of a bad entry; the digest recognises it when it comes again."""

    digest: bytes
    reason: str
    request_id: str | None
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What all events of one entry share."""

    id: str
    source: str
    subject: str
    time: datetime
    status: int
    billable: bool
    facts: Mapping[str, object]


# -- the body ------------------------------------------------------------------------------------------------


def decode_entries(body: bytes) -> list[object]:
    """Decode a request body of one entry or an array of them, numbers exact.

    Raises InvalidError if the body is not JSON, or neither an object nor an array. Kong repeats a refused
    batch for a minute and then drops it whole, so what is wrong inside one entry is left for that entry to
    fail by: absurd numbers and NaN become Decimals that aren't finite, and bytes that aren't UTF-8 (Kong
    copies a client's Latin-1 header as it is) become lone surrogates.
    """
    try:
        decoded = _decoder.decode(body.decode(errors="surrogateescape"))
    except (ValueError, RecursionError) as error:
        issue = Issue(code="malformed_json", message=str(error), hint="Send JSON in UTF-8.")
        raise InvalidError(f"The body is not valid JSON: {error}", issue) from None
    if isinstance(decoded, dict | list):
        return [decoded] if isinstance(decoded, dict) else decoded
    issue = Issue(code="invalid_body", message="The body is neither a JSON object nor an array.")
    raise InvalidError(issue.message, issue)


def _exact(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent beyond all bounds
        return Decimal("NaN")


def _integer(text: str) -> int | Decimal:
    # int() takes quadratic time, and refuses more than 4300 digits with an error that would fail the batch.
    return int(text) if len(text) <= MAX_NUMBER_LENGTH else _exact(text)


_decoder = json.JSONDecoder(parse_float=_exact, parse_int=_integer, parse_constant=_exact)


# -- entries -------------------------------------------------------------------------------------------------


def read_entries(
    entries: Sequence[object], *, gateway: str, subject_rules: Sequence[SubjectRule], now: datetime
) -> tuple[list[tuple[Event, ...]], list[QuarantinedEntry]]:
    """Split a batch into the events of its good entries, one tuple each, and its bad entries."""
    good: list[tuple[Event, ...]] = []
    bad: list[QuarantinedEntry] = []
    for entry in entries:
        try:
            good.append(events_of_entry(entry, gateway=gateway, subject_rules=subject_rules, now=now))
        except BadEntryError as error:
            bad.append(_quarantined(entry, error))
    return good, bad


def events_of_entry(
    entry: object, *, gateway: str, subject_rules: Sequence[SubjectRule], now: datetime
) -> tuple[Event, ...]:
    """Derive all events of one entry; `gateway` is the last part of the URL it was posted to.

    Raises BadEntryError if any of them can't be derived or stored. For an entry that is only dated too far
    ahead the error carries the events, to be released later.
    """
    if not isinstance(entry, dict):
        raise _bad("", "the entry is not a JSON object")
    request = _request(entry, gateway, subject_rules)
    events = (_api_request(entry, request), *_llm_requests(entry, request))
    if request.time - now > MAX_AHEAD:
        raise _bad("started_at", "is more than 5 minutes in the future", events)
    return events


def _bad(path: str, problem: str, events: tuple[Event, ...] = ()) -> BadEntryError:
    # Never the offending value: it may be a secret, or be just what PostgreSQL can't store.
    issue = Issue(code="bad_entry", message=problem, field=f"$.{path}".rstrip("."))
    return BadEntryError(f"{path} {problem}".lstrip(), issue, events=events)


def _quarantined(entry: object, error: BadEntryError) -> QuarantinedEntry:
    try:
        request_id = _request_id(entry)
    except BadEntryError:
        request_id = None
    return QuarantinedEntry(
        digest=_digest(entry), reason=error.detail, request_id=request_id, events=error.events
    )


def _digest(entry: object) -> bytes:
    """Blake2b-128 of the entry's canonical JSON: keys sorted, no spaces, ASCII."""
    canonical = json.dumps(_pruned(entry, 64), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(canonical.encode(), digest_size=16).digest()


def _pruned(value: object, depth: int) -> object:
    """Cut off what is nested deeper than any entry of Kong's, for the encoder is recursive."""
    match value:
        case dict():
            return {key: _pruned(inner, depth - 1) for key, inner in value.items()} if depth else "{}"
        case list():
            return [_pruned(inner, depth - 1) for inner in value] if depth else "[]"
        case _:
            return value


# -- what the events of an entry share -----------------------------------------------------------------------


def _request(entry: object, gateway: str, rules: Sequence[SubjectRule]) -> _Request:
    request_id, status = _request_id(entry), _status(entry)
    subject, subject_type = _subject(entry, rules)
    workspace = _bounded(_text(entry, "workspace") or "default", MAX_WORKSPACE, "workspace")
    return _Request(
        id=request_id,
        source=f"kong/http-log/{workspace}",
        subject=subject,
        time=_started_at(entry),
        status=status,
        billable=subject_type != ANONYMOUS and _origin(entry) != "kong" and status < 500,
        facts=_shared_facts(entry, gateway, subject_type),
    )


def _request_id(entry: object) -> str:
    found = _text(entry, "request.id")
    if found is None:
        raise _bad("request.id", "is missing, empty or not text")
    return _bounded(found, MAX_REQUEST_ID, "request.id")


def _started_at(entry: object) -> datetime:
    ms = _number(_at(entry, "started_at"))
    if ms is None:
        raise _bad("started_at", "is missing or not a number")
    if not EARLIEST_MS <= ms < LATEST_MS:
        raise _bad("started_at", "is not a time in milliseconds between the years 2015 and 9999")
    return EPOCH + timedelta(microseconds=int(ms * 1000))


def _status(entry: object) -> int:
    status = _count(_at(entry, "response.status"), maximum=999)
    if status is None:
        raise _bad("response.status", "is missing or not an integer from 0 to 999")
    return status


def _subject(entry: object, rules: Sequence[SubjectRule]) -> tuple[str, str]:
    """The subject and its subject_type, by the first rule that finds one."""
    for path, prefix, subject_type in map(SUBJECTS.__getitem__, rules):
        if found := _text(entry, path):
            return _bounded(prefix + found, MAX_SUBJECT, path), subject_type
    return ANONYMOUS, ANONYMOUS


def _origin(entry: object) -> str | None:
    """Who answered: `upstream`, `kong` itself, or None where an older Kong does not say."""
    origin = _at(entry, "source")
    return origin if origin in ("upstream", "kong") else None


def _shared_facts(entry: object, gateway: str, subject_type: str) -> dict[str, object]:
    return {
        "route_id": _text(entry, "route.id"),
        "route_name": _text(entry, "route.name"),
        "service_id": _text(entry, "service.id"),
        "service_name": _text(entry, "service.name"),
        "workspace": _text(entry, "workspace"),
        "gateway": gateway,
        "gateway_version": _gateway_version(entry),
        "subject_type": subject_type,
        "consumer_id": _text(entry, "consumer.id"),
        "consumer_username": _text(entry, "consumer.username"),
        "consumer_custom_id": _text(entry, "consumer.custom_id"),
    }


def _gateway_version(entry: object) -> str | None:
    """Kong's version, to find what a version with a known bug has counted.

    Each proxy on the way adds itself to the end of `via`, so this Kong's is the last.
    """
    for name in ("via", "server"):
        if versions := _VERSION.findall(_header(entry, name)):
            return str(versions[-1])
    return None


# -- kong.api_request ----------------------------------------------------------------------------------------


def _api_request(entry: object, request: _Request) -> Event:
    facts = {
        "request_method": _text(entry, "request.method"),
        "request_host": _request_host(entry),
        "request_uri": _request_path(entry),
        "request_size_bytes": _count(_at(entry, "request.size")),
        "response_http_status": request.status,
        "response_size_bytes": _count(_at(entry, "response.size")),
        "upstream_status": _text(entry, "upstream_status"),
        "service_port": _count(_at(entry, "service.port")),
        "service_protocol": _text(entry, "service.protocol"),
        "client_ip": _text(entry, "client_ip"),
        "workspace_name": _text(entry, "workspace_name"),
        "latency_ms": _latency(entry),
        "source": _origin(entry),
        **_consumer_groups(entry),
    }
    return _event(request, request.id, "kong.api_request", facts)


def _request_host(entry: object) -> str | None:
    url = _at(entry, "request.url")
    try:
        host = urlsplit(url).hostname if isinstance(url, str) else None
    except ValueError:
        return None
    return host if host and _HOST.fullmatch(host) else None


def _request_path(entry: object) -> str | None:
    """The path as it was received; Kong logs the query string with it.

    Bytes that aren't UTF-8 are percent-encoded, which means the same to a server: otherwise a client could
    keep its requests off the bill by putting one into the URL.
    """
    uri = _at(entry, "request.uri")
    if not isinstance(uri, str) or not uri.startswith("/"):
        return None
    path = re.split(r"[?#]", uri, maxsplit=1)[0]
    return _storable(_RAW_BYTE.sub(lambda raw: f"%{ord(raw[0]) - 0xDC00:02X}", path), "request.uri")


def _latency(entry: object) -> Decimal | None:
    ms = _number(_at(entry, "latencies.request"))
    if ms is None or ms.is_signed() or ms > MAX_COUNT:
        return None
    return ms if int(ms.as_tuple().exponent) >= -MAX_FRACTION_DIGITS else None


def _consumer_groups(entry: object) -> dict[str, object]:
    """Both the first group, to bill by, and all of them joined as in the header X-Consumer-Groups."""
    groups = _at(entry, "consumer_groups")
    if not isinstance(groups, list) or not groups:
        return {}
    if not all(isinstance(name, str) and name for name in groups):
        return {}
    joined = _storable(", ".join(groups), "consumer_groups")
    return {"consumer_group": groups[0], "consumer_groups": joined}


# -- kong.llm_request ----------------------------------------------------------------------------------------


def _llm_requests(entry: object, request: _Request) -> Iterator[Event]:
    """The halves of each LLM call; the plugins that call no LLM (mcp, a2a, guards) log no usage."""
    ai = _at(entry, "ai")
    for key, call in ai.items() if isinstance(ai, dict) else ():
        if isinstance(_at(call, "usage"), dict) or isinstance(_at(call, "usage_exact"), dict):
            yield from _halves(_bounded(_storable(key, "ai"), MAX_AI_KEY, "ai"), call, entry, request)


def _halves(key: str, call: object, entry: object, request: _Request) -> Iterator[Event]:
    text = partial(_text, call, within="ai.*.")
    facts = {
        "provider": text("meta.provider_name"),
        "ai_plugin_id": text("meta.plugin_id"),
        "ai_plugin_name": key,
        "cache_status": text("cache.cache_status"),
        "http_status": request.status,
        "api_request_id": request.id,
    }
    guessed = _streamed(call, entry) and facts["provider"] not in EXACT_STREAMS and not _itemised(call)
    for half, counts, models in HALVES:
        if (found := _tokens(call, counts)) is None:
            continue
        tokens, exact = found
        model = text(models[0]) or text(models[1])
        own = {"type": half, "tokens": tokens, "model": model, "estimated": guessed and not exact}
        yield _event(request, f"{request.id}:{key}:{half}", "kong.llm_request", own | facts)


def _tokens(call: object, names: Sequence[str]) -> tuple[int, bool] | None:
    """The count under one of its names, and whether it comes from `usage_exact`; None if there is no count.

    A filter in front of Kong's estimate writes `usage_exact`; it may know one half only.
    """
    for container in ("usage_exact", "usage"):
        for path in (f"{container}.{name}" for name in names):
            if (found := _at(call, path)) is not None:
                return _checked_tokens(found, path), container == "usage_exact"
    return None


def _checked_tokens(found: object, path: str) -> int:
    tokens = _count(found)
    if tokens is None:
        raise _bad(f"ai.*.{path}", "is not an integer from 0 to 10**15")
    return tokens


def _streamed(call: object, entry: object) -> bool:
    content_type = _header(entry, "content-type").lower()
    return _at(call, "meta.request_mode") == "stream" or content_type.startswith("text/event-stream")


def _itemised(call: object) -> bool:
    """Whether the count is split into details, which only the provider knows, so it is no estimate."""
    usage = _at(call, "usage")
    items = usage.items() if isinstance(usage, dict) else ()
    return any(name.endswith("_details") and isinstance(details, dict) for name, details in items)


# -- events --------------------------------------------------------------------------------------------------


def _event(request: _Request, event_id: str, event_type: str, own: Mapping[str, object]) -> Event:
    facts = {**own, **request.facts, "billable": request.billable}
    return Event(
        id=event_id,
        source=request.source,
        type=event_type,
        subject=request.subject,
        time=request.time,
        data=_encoder.encode({name: fact for name, fact in facts.items() if fact is not None}),
    )


# -- facts: one of the wrong type counts as absent -----------------------------------------------------------


def _at(value: object, path: str) -> object:
    for key in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def _text(value: object, path: str, *, within: str = "") -> str | None:
    """The text at the path, None for the empty one; raises BadEntryError if it can't be stored."""
    text = _at(value, path)
    return _storable(text, within + path) if isinstance(text, str) and text else None


def _storable(text: str, path: str) -> str:
    if "\0" in text or not (text.isascii() or _encodable(text)):
        raise _bad(path, "contains U+0000, half a surrogate pair or bytes that are not UTF-8")
    return text


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _bounded(text: str, limit: int, path: str) -> str:
    if len(text) > limit:
        raise _bad(path, f"makes a name of more than {limit} characters")
    return text


def _header(entry: object, name: str) -> str:
    """A response header's text, its values joined if there are several; never stored as it is."""
    found = _at(entry, "response.headers")
    value = found.get(name) if isinstance(found, dict) else None
    values = value if isinstance(value, list) else [value]
    return ", ".join(each for each in values if isinstance(each, str))


def _number(value: object) -> Decimal | None:
    """A finite number, from a JSON number or its text: old versions of Kong send both."""
    match value:
        case bool():
            return None
        case int() | Decimal():
            number = Decimal(value)
        case float():
            number = Decimal(repr(value))
        case str() if _NUMBER.fullmatch(value):
            number = Decimal(value)
        case _:
            return None
    return number if number.is_finite() else None


def _count(value: object, *, maximum: int = MAX_COUNT) -> int | None:
    number = _number(value)
    if number is None or not 0 <= number <= maximum or number != number.to_integral_value():
        return None
    return int(number)
