"""Errors as `application/problem+json` in OpenMeter's shape: what is wrong, where, and how to mend it.

{"type": "about:blank", "title": "Bad Request", "status": 400, "detail": "...",
 "instance": "urn:request:...", "extensions": {"validationErrors": [{"code", "message", "field", ...}]}}
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import InterfaceError, OperationalError
from starlette.exceptions import HTTPException
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
    "problem",
    "status_of",
]


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
    app.add_exception_handler(Exception, _unexpected)


def request_id_of(request: Request) -> str:
    return str(request.state.request_id)


def _domain(request: Request, error: Exception) -> Response:
    assert isinstance(error, TollgateError)  # noqa: S101  the type it is registered for
    return of_error(error, request_id_of(request))


def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101  the type it is registered for
    issues = list(dict.fromkeys(_issue(found) for found in _of_the_meant_branch(error.errors())))
    detail = f"{issues[0].message} at {issues[0].field}" if issues else "the request is not valid"
    return problem(400, detail, request_id=request_id_of(request), issues=issues)


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
    first = str(getattr(error, "orig", error)).splitlines()[0]
    structlog.get_logger().warning("database_unavailable", error=first, request_id=request_id_of(request))
    return problem(503, "the database is not available; try again", request_id=request_id_of(request))


def _unexpected(request: Request, error: Exception) -> Response:
    structlog.get_logger().error("unexpected_error", exc_info=error, request_id=request_id_of(request))
    return problem(500, "", request_id=request_id_of(request))


def _of_the_meant_branch(errors: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Where one of several shapes is allowed, pydantic lists what is wrong with each of them.

    Only the shape whose `type` was sent is meant; if there is none such, its `type` is what is wrong.
    """
    strange = {error["loc"][:-1] for error in errors if error["type"] == "literal_error"}
    meant = [e for e in errors if not any(e["loc"][: len(branch)] == branch for branch in strange)]
    if meant:
        return meant
    first: dict[str, Mapping[str, Any]] = {}
    for error in errors:
        if error["type"] == "literal_error":
            known = first.setdefault(_path(error["loc"]), {**error, "ctx": {"expected": []}})
            known["ctx"]["expected"].append(error["ctx"]["expected"])
    return [
        {**error, "msg": f"{error['input']!r} is not available: use {' or '.join(error['ctx']['expected'])}"}
        for error in first.values()
    ]


def _issue(error: Mapping[str, Any]) -> Issue:
    kind = str(error["type"])
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        message = f"{error['loc'][-1]!r} is not known here, or not available yet"
        return Issue(code="unknown_field", message=message, field=_path(error["loc"]), hint="Leave it out.")
    if kind == "json_invalid":
        return Issue(code="malformed_json", message="the body is not valid JSON", hint="Send UTF-8 JSON.")
    if kind == "missing":
        return Issue(code="field_required", message="this is required", field=_path(error["loc"]))
    return Issue(code=kind, message=str(error["msg"]), field=_path(error["loc"]))


_NAME = re.compile(r"[a-z$_][\w$-]*")


def _path(location: Sequence[str | int]) -> str:
    """A JSON path of what the client sent: without "body" and without the names of our own classes."""
    path = "$"
    for step in location[1:] if location[:1] in (("body",), ("query",), ("path",), ("header",)) else location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif _NAME.fullmatch(step):
            path += f".{step}"
    return path
