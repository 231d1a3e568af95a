"""What the lists and the answers of plans and of add-ons have in common."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict
from urllib.parse import unquote

from fastapi import Depends, Query, Request
from starlette.datastructures import QueryParams

from api.http.body import Body, PageNumber, PageSize
from catalog.versions import VersionFilter, VersionOrder
from metering.errors import InvalidError, Issue

__all__ = ["Listing", "ValidationError", "errors_of"]


class ValidationError(Body):
    field: str
    code: str
    message: str
    attributes: dict[str, str] | None = None


def errors_of(issues: Iterable[Issue]) -> list[ValidationError]:
    return [_error(issue) for issue in issues]


def _error(issue: Issue) -> ValidationError:
    attributes = {"severity": issue.severity} | ({"hint": issue.hint} if issue.hint else {})
    return ValidationError(field=issue.field, code=issue.code, message=issue.message, attributes=attributes)


class _Page(TypedDict):
    order_by: VersionOrder | None
    descending: bool
    offset: int
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listing:
    """A page of versions, and in which order."""

    wanted: VersionFilter
    order_by: VersionOrder | None
    descending: bool
    page: int
    page_size: int

    @property
    def options(self) -> _Page:
        return {
            "order_by": self.order_by,
            "descending": self.descending,
            "offset": (self.page - 1) * self.page_size,
            "limit": self.page_size,
        }


def _listing(
    *,
    request: Request,
    id_: Annotated[list[str] | None, Query(alias="id")] = None,
    key: Annotated[list[str] | None, Query()] = None,
    key_version: Annotated[str | None, Query(alias="keyVersion")] = None,
    include_deleted: Annotated[bool, Query(alias="includeDeleted")] = False,
    order: Literal["ASC", "DESC"] = "ASC",
    order_by: Annotated[VersionOrder | None, Query(alias="orderBy")] = None,
    page: PageNumber = 1,
    page_size: PageSize = 100,
) -> _Listing:
    wanted = VersionFilter(
        ids=id_ or (),
        keys=key or (),
        key_versions=_key_versions(request.query_params, key_version),
        include_deleted=include_deleted,
    )
    return _Listing(
        wanted=wanted, order_by=order_by, descending=order == "DESC", page=page, page_size=page_size
    )


Listing = Annotated[_Listing, Depends(_listing)]

_NAMED = re.compile(r"keyVersion\[([^]]+)\]")
_NUMBERS = re.compile(r"[0-9]{1,9}(,[0-9]{1,9})*")


def _key_versions(query: QueryParams, text: str | None) -> dict[str, list[int]]:
    """`keyVersion[pro]=1`, again or with commas for more; OpenMeter's Python SDK writes {'pro': [1]}."""
    found = {key: [int(number) for number in numbers] for key, numbers in _mapping(text).items()}
    for name, value in query.multi_items():
        if named := _NAMED.fullmatch(name):
            if not _NUMBERS.fullmatch(value):
                raise _not_versions(f"$.{name}")
            found.setdefault(named[1], []).extend(map(int, value.split(",")))
    return found


def _mapping(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        found = json.loads(unquote(text).replace("'", '"'))
    except (ValueError, RecursionError):
        raise _not_versions("$.keyVersion") from None
    if not isinstance(found, dict) or not all(map(_are_numbers, found.values())):
        raise _not_versions("$.keyVersion")
    return found


def _are_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(number) is int for number in value)


def _not_versions(field: str) -> InvalidError:
    message = "this is not a list of versions"
    hint = "Write keyVersion[pro]=1,2 for versions 1 and 2 of the key pro."
    return InvalidError(message, Issue(code="invalid_key_version", message=message, field=field, hint=hint))
