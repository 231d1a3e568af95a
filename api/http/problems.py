"""Errors as `application/problem+json` in OpenMeter's shape: what is wrong, where, and how to mend it.

{"type": "about:blank", "title": "Bad Request", "status": 400, "detail": "...",
 "instance": "urn:request:...", "extensions": {"validationErrors": [{"code", "message", "field", ...}]}}
"""

import re
import reprlib
from collections.abc import Container, Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from metering.errors import (
    ConflictError,
    ForbiddenError,
    InvalidError,
    Issue,
    NotFoundError,
    TollgateError,
    UnavailableError,
)

__all__ = [
    "PROBLEM_RESPONSES",
    "PayloadTooLargeError",
    "UnauthorizedError",
    "handle_errors",
    "issues_of",
    "problem",
    "status_of",
]


_Location = tuple[str | int, ...]
_Error = Mapping[str, Any]
"""As pydantic describes it."""


class UnauthorizedError(TollgateError):
    """No key, or none that works."""


class PayloadTooLargeError(InvalidError):
    pass


_STATUS: Sequence[tuple[type[TollgateError], int]] = (
    (UnauthorizedError, 401),
    (PayloadTooLargeError, 413),
    (InvalidError, 400),
    (NotFoundError, 404),
    (ConflictError, 409),
    (ForbiddenError, 403),
    (UnavailableError, 503),
)

_SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "instance"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "extensions": {"type": "object"},
    },
}
PROBLEM_RESPONSES: dict[int | str, dict[str, Any]] = {
    "default": {"description": "Error", "content": {"application/problem+json": {"schema": _SCHEMA}}}
}


def status_of(error: TollgateError) -> int:
    return next(status for kind, status in _STATUS if isinstance(error, kind))


def problem(
    status: int,
    detail: str,
    *,
    request_id: str,
    issues: Iterable[Issue] = (),
    headers: Mapping[str, str] = {},
) -> Response:
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "instance": f"urn:request:{request_id}",
    }
    if found := [_wire(issue) for issue in issues]:
        body["extensions"] = {"validationErrors": found}
    extra = {"Retry-After": "1"} if status == HTTPStatus.SERVICE_UNAVAILABLE else {}
    extra |= {"WWW-Authenticate": "Bearer"} if status == HTTPStatus.UNAUTHORIZED else {}
    return JSONResponse(
        body, status_code=status, headers={**headers, **extra}, media_type="application/problem+json"
    )


def of_error(error: TollgateError, request_id: str) -> Response:
    return problem(status_of(error), error.detail, request_id=request_id, issues=error.issues)


def _wire(issue: Issue) -> dict[str, str]:
    wire = {"code": issue.code, "message": issue.message, "field": issue.field, "severity": issue.severity}
    return wire | ({"hint": issue.hint} if issue.hint else {})


def handle_errors(app: FastAPI) -> None:
    """One place where every error of a route becomes an answer."""
    app.add_exception_handler(TollgateError, _domain)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(OperationalError, _database)
    app.add_exception_handler(InterfaceError, _database)
    app.add_exception_handler(NoConnectionError, _database)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _unexpected)


def request_id_of(request: Request) -> str:
    return str(request.state.request_id)


def _domain(request: Request, error: Exception) -> Response:
    assert isinstance(error, TollgateError)  # noqa: S101  the type it is registered for
    return of_error(error, request_id_of(request))


def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101  the type it is registered for
    issues = issues_of(error.errors())
    place = f" at {issues[0].field}" if issues[0].field != "$" else ""
    return problem(400, f"{issues[0].message}{place}", request_id=request_id_of(request), issues=issues)


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  the type it is registered for
    detail = str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND:
        detail = f"there is nothing at {request.url.path}; /api/docs lists what is"
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        detail = f"{request.method} is not allowed at {request.url.path}"
    headers = error.headers or {}
    return problem(error.status_code, detail, request_id=request_id_of(request), headers=headers)


def _database(request: Request, error: Exception) -> Response:
    first = str(getattr(error, "orig", error)).partition("\n")[0]
    structlog.get_logger().warning("database_unavailable", error=first, request_id=request_id_of(request))
    return problem(503, "the database is not available; try again", request_id=request_id_of(request))


def _gone(request: Request, _: Exception) -> Response:
    return problem(
        408, "the client went away before the body was complete", request_id=request_id_of(request)
    )


def _unexpected(request: Request, error: Exception) -> Response:
    structlog.get_logger().error("unexpected_error", exc_info=error, request_id=request_id_of(request))
    return problem(500, "", request_id=request_id_of(request))


def issues_of(errors: Sequence[_Error]) -> list[Issue]:
    """What pydantic found, as a client or a person reads it."""
    return list(dict.fromkeys(_issue(found) for found in _of_the_meant_shape(errors)))


def _of_the_meant_shape(errors: Sequence[_Error]) -> list[_Error]:
    """Where one of several shapes is allowed, pydantic lists what is wrong with each of them.

    Only the shape whose `type` (or `op`) was sent is meant; if there is none such, that is what is wrong.
    """
    others = {error["loc"][:-1] for error in errors if _is_another_shape(error)}
    wrong = {place for place, shapes in _branches(errors).items() if shapes <= others}
    meant: list[_Error] = []
    unknown: dict[_Location, list[_Error]] = {}
    for error in errors:
        place = error["loc"][:-2]
        if not _within(error["loc"], others):
            meant.append(error)
        elif _is_another_shape(error) and place in wrong and not _within(place, others):
            unknown.setdefault(place, []).append(error)
    return meant + [_none_of(found) for found in unknown.values()]


def _branches(errors: Sequence[_Error]) -> dict[_Location, set[_Location]]:
    """Each place on the way to an error, and the places right below it."""
    below: dict[_Location, set[_Location]] = {}
    for location in (error["loc"] for error in errors):
        for length in range(len(location)):
            below.setdefault(location[:length], set()).add(location[: length + 1])
    return below


def _is_another_shape(error: _Error) -> bool:
    """Whether it says that the `type` is not that of one of our classes."""
    location = error["loc"]
    return error["type"] == "literal_error" and location[-1] in ("type", "op") and not _is_name(location[-2])


def _is_name(step: str | int) -> bool:
    """Whether it is something that a client sends, and not the name of a class."""
    return isinstance(step, int) or _NAME.fullmatch(step) is not None


def _within(location: _Location, branches: Container[_Location]) -> bool:
    return any(location[:length] in branches for length in range(1, len(location) + 1))


def _none_of(found: Sequence[_Error]) -> _Error:
    """One error of the several that each name one shape."""
    return {**found[0], "ctx": {"expected": " or ".join(error["ctx"]["expected"] for error in found)}}


def _issue(error: _Error) -> Issue:
    kind, field = str(error["type"]), _path(error["loc"])
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        message = f"{error['loc'][-1]!r} is not known here, or not available yet"
        return Issue(code="unknown_field", message=message, field=field, hint="Leave it out.")
    if kind == "missing":
        return Issue(code="field_required", message="this is required", field=field)
    if kind == "literal_error":
        message = f"{reprlib.repr(error['input'])} is not available: use {error['ctx']['expected']}"
        return Issue(code=kind, message=message, field=field)
    return Issue(code=kind, message=str(error["msg"]).removeprefix("Value error, "), field=field)


_NAME = re.compile(r"[a-z$_][\w$-]*")


def _path(location: _Location) -> str:
    """A JSON path of what the client sent: without "body" and without the names of our own classes."""
    path = "$"
    for step in location[1:] if location[:1] in (("body",), ("query",), ("path",), ("header",)) else location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif _is_name(step):
            path += f".{step}"
    return path
