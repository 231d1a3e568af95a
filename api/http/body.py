"""How bodies travel: camelCase, numbers exact, and what is absent left out instead of null."""

import json
import re
from collections.abc import Callable, Container, Coroutine, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, ClassVar

import msgspec
from fastapi import Query, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    StringConstraints,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError
from starlette.responses import JSONResponse, Response

from metering.errors import InvalidError, Issue
from metering.event import check_storable
from metering.exact import plain
from metering.wire import camel

__all__ = [
    "RESOURCE",
    "Body",
    "ExactRoute",
    "Instant",
    "Key",
    "Metadata",
    "Page",
    "PageNumber",
    "PageSize",
    "SpelledAs",
    "WireResponse",
    "decimal_text",
    "page_of",
    "present",
]


def _in_utc(at: datetime) -> datetime:
    """Checked after it was converted, so that what has passed once passes again."""
    try:
        at = at.astimezone(UTC)
        known = FIRST_YEAR <= at.year <= LAST_YEAR
    except OverflowError:
        known = False
    if not known:
        raise ValueError(f"the year must be from {FIRST_YEAR} to {LAST_YEAR}")
    return at


FIRST_YEAR, LAST_YEAR = 1900, 2999
Instant = Annotated[AwareDatetime, AfterValidator(_in_utc)]
"""An instant that a client sends. Answers carry plain datetimes: what is stored is not judged again."""
Key = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(?:[_-][a-z0-9]+)*$", max_length=64)]
Metadata = dict[str, str]
PageNumber = Annotated[int, Query(ge=1, le=1_000_000)]
PageSize = Annotated[int, Query(alias="pageSize", ge=1, le=1000)]

NULLABLE = frozenset({"price", "billingCadence", "duration", "subject", "flatPrice", "unitPrice", "cost"})
"""Members that OpenMeter's schema requires and lets be null; any other that is None is left out."""
OMITTED_IF_EMPTY = frozenset({"groupBy"})
"""A list: tiers without one are OpenMeter's, whose schema does not know it. A meter's is an object."""


class Body(BaseModel):
    """The base of request and response bodies. Unknown members are refused, never silently dropped."""

    READ_ONLY: ClassVar[frozenset[str]] = frozenset()
    """What a client may send back as it got it, and what is passed over as OpenMeter does."""

    model_config = ConfigDict(
        alias_generator=camel, populate_by_name=True, extra="forbid", from_attributes=True
    )

    @model_validator(mode="before")
    @classmethod
    def _without_read_only(cls, sent: Any) -> Any:
        if isinstance(sent, Decimal):  # FastAPI would read its attributes, and find none that is wrong
            raise PydanticCustomError("model_attributes_type", "Input should be a valid dictionary")
        if isinstance(sent, dict) and cls.READ_ONLY:
            return {name: value for name, value in sent.items() if name not in cls.READ_ONLY}
        return sent


@dataclass(frozen=True, slots=True)
class SpelledAs:
    """Annotates a dict that is already what the wire has of a `kind`: documented, and validated, as one."""

    kind: Any

    def __get_pydantic_core_schema__(self, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler.generate_schema(self.kind)


RESOURCE = frozenset({"id", "createdAt", "updatedAt", "deletedAt", "annotations"})


class Page(Body):
    """What every paginated list says of itself."""

    total_count: int
    page: int
    page_size: int


class _ExactRequest(Request):
    """Its JSON has every number exact; NaN, Infinity and what PostgreSQL can't hold are refused."""

    _decoded: Any = None

    async def decode(self) -> None:
        """Raises InvalidError that says what is wrong and where; FastAPI would only say that something is."""
        if body := await self.body():
            _require_json(self.headers.get("content-type", ""))
            try:
                text = body.decode("utf-8-sig")  # as it is checked here: json.loads would also take UTF-16
                check_storable(body, "$")
                self._decoded = json.loads(text, parse_float=_exact, parse_constant=_refuse)
            except (ValueError, RecursionError) as error:
                issue = Issue(code="malformed_json", message=str(error), hint="Send UTF-8 JSON.")
                raise InvalidError(f"The body is not valid JSON: {error}", issue) from None

    async def json(self) -> Any:
        return self._decoded


def _exact(number: str) -> Decimal:
    try:
        return Decimal(number)
    except InvalidOperation:
        raise ValueError("a number has an exponent beyond all bounds") from None


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _require_json(content_type: str) -> None:
    media_type = content_type.partition(";")[0].strip().lower()
    if not re.fullmatch(r"application/(.+\+)?json", media_type):
        message = f"can't read JSON from {content_type!r}" if content_type else "the Content-Type is missing"
        raise InvalidError(
            message, Issue(code="content_type", message=message, hint="Send application/json.")
        )


class ExactRoute(APIRoute):
    """A route whose JSON numbers don't pass through floats."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        known = {*_query_parameters(self.dependant), *HARMLESS_PARAMETERS}

        async def exactly(request: Request) -> Response:
            _refuse_unknown(request, known)
            exact = _ExactRequest(request.scope, request.receive)
            await exact.body()
            if self.body_field is not None:
                await exact.decode()
            # With its body complete: a request in here may wait for the database, but for no slow client.
            async with request.app.state.permits:
                return await handle(exact)

        return exactly


def _query_parameters(dependant: Dependant) -> Iterator[str]:
    """Those of the route and of what it depends on."""
    yield from (field.alias for field in dependant.query_params)
    for other in dependant.dependencies:
        yield from _query_parameters(other)


HARMLESS_PARAMETERS = frozenset({"order", "orderBy", "page", "pageSize", "includeDeleted", "clientId"})
"""OpenMeter's, which here change nothing that a client could be misled by."""


_FILTER = re.compile(r"filterGroupBy\[[^]]+\]")
_KEY_VERSION = re.compile(r"keyVersion\[[^]]+\]")


def _refuse_unknown(request: Request, known: Container[str]) -> None:
    """A filter that is not understood would widen the answer."""
    for name in request.query_params:
        filters = request.url.path.endswith("/query") and _FILTER.fullmatch(name)
        if name not in known and not filters and not ("keyVersion" in known and _KEY_VERSION.fullmatch(name)):
            message = f"the parameter {name!r} is not known here, or not available yet"
            raise InvalidError(message, Issue(code="unknown_field", message=message, field=f"$.{name}"))


class WireResponse(JSONResponse):
    """JSON without absent members; a Decimal is written as a number, digit for digit."""

    def render(self, content: Any) -> bytes:
        return _encoder.encode(present(content))


_encoder = msgspec.json.Encoder(decimal_format="number")


def present(content: Any) -> Any:
    """Without members that are absent: None, unless OpenMeter has them be null."""
    match content:
        case dict():
            return {
                name: value if isinstance(value, str) else present(value)
                for name, value in content.items()
                if (name in NULLABLE if value is None else value != [] or name not in OMITTED_IF_EMPTY)
            }
        case list() | tuple():
            return [present(item) for item in content]
        case _:
            return content


def decimal_text(number: Decimal) -> str:
    """A decimal as the wire's Numeric: digits, no exponent, no needless zeros."""
    text = plain(number)
    return text.rstrip("0").rstrip(".") if "." in text else text


def page_of(page: int, page_size: int) -> dict[str, int]:
    return {"offset": (page - 1) * page_size, "limit": page_size}
