"""The two routes that take in usage, as a lean ASGI callable in front of everything else.

`POST /api/v1/events` takes CloudEvents and answers 204; `POST /api/v1/ingest/kong/{source}` takes what Kong's
http-log plugin sends and answers 200 with counts. Both answer after COMMIT.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import repeat
from typing import Any, NoReturn, TypeVar

import structlog
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope

from api.clock import Clock
from api.flusher import Flusher
from api.http.auth import authorize
from api.http.problems import PROBLEM_RESPONSES, PayloadTooLargeError
from metering.errors import InvalidError, Issue
from metering.event import CONTENT_TYPES, Content, decode_events
from metering.events import Batch, keyed
from metering.kong import QuarantinedEntry, SubjectRule, decode_entries, read_entries

__all__ = ["MAX_BODY", "OPENAPI_PATHS", "Ingest", "body_too_large"]

MAX_BODY = 10 * 1024 * 1024
"""Bytes of a request body."""

LARGE_BODY = 256 * 1024
BODY_SECONDS = 60.0
MAX_ENTRIES = 10_000
"""Log entries in one body: Kong's batches hold hundreds."""

_KONG = re.compile(r"/api/v1/ingest/kong/([A-Za-z0-9][A-Za-z0-9._-]{0,63})")

_STORED = Response(status_code=204)

log = structlog.get_logger()
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ingest:
    flusher: Flusher
    kong_subject: Sequence[SubjectRule]
    clock: Clock

    def takes(self, scope: Scope) -> bool:
        path = scope["path"]
        return scope["method"] == "POST" and (path == "/api/v1/events" or _KONG.fullmatch(path) is not None)

    async def __call__(self, scope: Scope, receive: Receive) -> Response:
        """The answer; raises TollgateError. The caller's role is known."""
        headers = dict(scope["headers"])
        authorize(scope["state"]["role"], "ingest")
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await _read(headers, receive)
        except TimeoutError:
            raise InvalidError("the body took too long to arrive") from None
        if kong := _KONG.fullmatch(scope["path"]):
            return await self._kong(kong[1], body)
        return await self._events(headers.get(b"content-type", b"").decode("latin-1"), body)

    async def _events(self, content_type: str, body: bytes) -> Response:
        content = CONTENT_TYPES.get(content_type.partition(";")[0].strip().lower())
        if content is None:
            _refuse_content_type(content_type)
        await self.flusher.store([await _aside_if_large(_events_of, body, content, await self.clock.read())])
        return _STORED

    async def _kong(self, gateway: str, body: bytes) -> Response:
        now = await self.clock.read()
        groups, bad = await _aside_if_large(_kong_entries_of, body, gateway, self.kong_subject, now)
        receipt = await self.flusher.store(groups, quarantined=[(gateway, entry) for entry in bad])
        if bad:
            log.warning("quarantined", gateway=gateway, entries=len(bad), first=bad[0].reason)
        counts = {"stored": receipt.stored, "duplicate": receipt.duplicate, "quarantined": len(bad)}
        return JSONResponse(counts)


async def _aside_if_large(decode: Callable[..., T], body: bytes, *arguments: object) -> T:
    """A large body is decoded by another thread, so that nobody else has to wait for it."""
    if len(body) > LARGE_BODY:
        return await asyncio.to_thread(decode, body, *arguments)
    return decode(body, *arguments)


def _events_of(body: bytes, content: Content, now: datetime) -> Batch:
    return keyed(zip(decode_events(body, content=content, now=now), repeat(now)))


def _kong_entries_of(
    body: bytes, gateway: str, rules: Sequence[SubjectRule], now: datetime
) -> tuple[list[Batch], list[QuarantinedEntry]]:
    sent = decode_entries(body)
    if len(sent) > MAX_ENTRIES:
        raise too_many_entries()
    entries, bad = read_entries(sent, gateway=gateway, subject_rules=rules, now=now)
    return [keyed(zip(entry, repeat(now))) for entry in entries], bad


def _refuse_content_type(content_type: str) -> NoReturn:
    message = f"can't read events from {content_type!r}" if content_type else "the Content-Type is missing"
    issue = Issue(
        code="content_type", message=message, field="$", hint=f"Send one of {', '.join(CONTENT_TYPES)}."
    )
    raise InvalidError(message, issue)


def body_too_large() -> PayloadTooLargeError:
    message = f"a request body may have {MAX_BODY // 1024 // 1024} MB at most"
    return PayloadTooLargeError(
        message, Issue(code="body_too_large", message=message, hint="Send smaller batches.")
    )


def too_many_entries() -> PayloadTooLargeError:
    message = f"a body may have {MAX_ENTRIES} entries at most"
    return PayloadTooLargeError(
        message, Issue(code="too_many_entries", message=message, hint="Lower max_batch_size.")
    )


async def _read(headers: dict[bytes, bytes], receive: Receive) -> bytes:
    declared = headers.get(b"content-length", b"0")
    if declared.isdigit() and int(declared) > MAX_BODY:
        raise body_too_large()
    chunks, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise InvalidError("the client went away before the body was complete")
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > MAX_BODY:
            raise body_too_large()
        more = message.get("more_body", False)
    return b"".join(chunks)


_EVENT: dict[str, Any] = {
    "type": "object",
    "required": ["id", "source", "type", "subject"],
    "properties": {
        "id": {"type": "string", "minLength": 1},
        "source": {"type": "string", "minLength": 1},
        "specversion": {"type": "string", "default": "1.0"},
        "type": {"type": "string", "minLength": 1, "maxLength": 128},
        "subject": {"type": "string", "minLength": 1, "maxLength": 512},
        "time": {"type": ["string", "null"], "format": "date-time"},
        "datacontenttype": {"enum": ["application/json", None]},
        "dataschema": {"type": ["string", "null"]},
        "data": {"type": ["object", "null"]},
    },
}
_EVENTS = {"type": "array", "items": _EVENT, "minItems": 1}
_SECURITY: list[dict[str, list[str]]] = [{"HTTPBearer": []}]

OPENAPI_PATHS: dict[str, Any] = {
    "/api/v1/events": {
        "post": {
            "tags": ["Events"],
            "operationId": "ingestEvents",
            "summary": "Report usage as CloudEvents; stored once by (source, id), all of a batch or nothing.",
            "security": _SECURITY,
            "requestBody": {
                "required": True,
                "content": {
                    "application/cloudevents+json": {"schema": _EVENT},
                    "application/cloudevents-batch+json": {"schema": _EVENTS},
                    "application/json": {"schema": {"anyOf": [_EVENT, _EVENTS]}},
                },
            },
            "responses": {"204": {"description": "Committed"}, **PROBLEM_RESPONSES},
        }
    },
    "/api/v1/ingest/kong/{source}": {
        "post": {
            "tags": ["Events"],
            "operationId": "ingestKong",
            "summary": "Where Kong's http-log plugin posts: one log entry, or an array of them.",
            "security": _SECURITY,
            "parameters": [
                {
                    "name": "source",
                    "in": "path",
                    "required": True,
                    "schema": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"},
                }
            ],
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": {"anyOf": [{"type": "object"}, {"type": "array"}]}}
                },
            },
            "responses": {
                "200": {
                    "description": "Committed; a bad entry is quarantined and harms no other",
                    "content": {
                        "application/json": {
                            "schema": {
                                "type": "object",
                                "required": ["stored", "duplicate", "quarantined"],
                                "properties": {
                                    name: {"type": "integer"}
                                    for name in ("stored", "duplicate", "quarantined")
                                },
                            }
                        }
                    },
                },
                **PROBLEM_RESPONSES,
            },
        }
    },
}
