"""Corrections: /api/v1/corrections. Take events out of all usage, or replace them, and back again."""

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BeforeValidator, Field, StringConstraints
from sqlalchemy import select

from api.http.auth import admin, reader, token_of
from api.http.body import Body, ExactRoute, Instant, Page, PageNumber, PageSize, page_of
from api.http.ingest import OPENAPI_PATHS
from api.http.session import Now, Snapshot, Transaction
from api.keys import ApiKey, hash_of
from metering import corrections
from metering.correction import (
    MAX_IDENTITIES,
    MAX_SUBJECTS,
    EventIdentity,
    Kind,
    Selection,
    Status,
)
from metering.corrections import Correction, Preview
from metering.errors import InvalidError, Issue
from metering.event import CONTENT_TYPES, decode_events

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/corrections", tags=["Corrections"], route_class=ExactRoute)

Name = Annotated[str, StringConstraints(min_length=1, max_length=1024)]


class EventIdentityBody(Body):
    source: Name
    id: Name


class SelectionBody(Body):
    """Either `events`, or a window with `from` and `to` and one of `source`, `type` and `subjects`."""

    events: Annotated[list[EventIdentityBody], Field(max_length=MAX_IDENTITIES)] | None = None
    source: Name | None = None
    type: Name | None = None
    subjects: Annotated[list[Name], Field(max_length=MAX_SUBJECTS)] | None = None
    from_: Instant | None = Field(None, alias="from")
    to: Instant | None = None


class CorrectionCreate(Body):
    kind: Kind
    selection: SelectionBody
    reason: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    close: bool = False


def _or_absent(items: Any) -> Any:
    return items or None


class StoredSelectionBody(SelectionBody):
    events: Annotated[list[EventIdentityBody] | None, BeforeValidator(_or_absent)] = None
    subjects: Annotated[list[str] | None, BeforeValidator(_or_absent)] = None
    from_: datetime | None = Field(None, alias="from")
    to: datetime | None = None


class CorrectionBody(Body):
    id: str
    kind: Kind
    status: Status
    selection: StoredSelectionBody
    reason: str
    staged_events: int
    voided_events: int | None = None
    created_at: datetime
    created_by: str
    closed_at: datetime | None = None
    closed_by: str | None = None
    reverted_at: datetime | None = None
    reverted_by: str | None = None
    discarded_at: datetime | None = None
    discarded_by: str | None = None


class CorrectionPage(Page):
    items: list[CorrectionBody]


class StagedBody(Body):
    staged: int
    duplicate: int


class SummaryGroupBody(Body):
    type: str
    subject: str
    events: int
    already_void: int


class SummaryBody(Body):
    events: int
    already_void: int
    first: datetime | None = None
    last: datetime | None = None
    groups: list[SummaryGroupBody]


class PreviewBody(Body):
    voided: SummaryBody
    backfilled: SummaryBody


def _who(request: Request, session: Transaction) -> str:
    """Who asks, for the record: the name and id of the key; "admin" has the server's own, or needs none."""
    token = token_of(request.headers.get("authorization"))
    if token is None:
        return "anonymous"
    key = session.scalar(select(ApiKey).where(ApiKey.hash == hash_of(token)))
    return f"{key.name} ({key.id})" if key else "admin"


Who = Annotated[str, Depends(_who, scope="function")]


def _body(correction: Correction) -> CorrectionBody:
    return CorrectionBody.model_validate(correction)


def _preview_body(preview: Preview) -> PreviewBody:
    return PreviewBody.model_validate(preview)


def _selection(sent: SelectionBody) -> Selection:
    return Selection(
        events=tuple(EventIdentity(source=one.source, id=one.id) for one in sent.events or ()),
        source=sent.source,
        type=sent.type,
        subjects=tuple(sent.subjects or ()),
        from_=sent.from_,
        to=sent.to,
    )


@router.get("", operation_id="listCorrections", dependencies=[reader])
def list_all(
    *,
    session: Transaction,
    status: Annotated[list[Status] | None, Query()] = None,
    page: PageNumber = 1,
    page_size: PageSize = 100,
) -> CorrectionPage:
    """The newest first."""
    found, count = corrections.list_corrections(session, statuses=status or (), **page_of(page, page_size))
    items = [_body(one) for one in found]
    return CorrectionPage(total_count=count, page=page, page_size=page_size, items=items)


@router.post("", operation_id="createCorrection", status_code=201, dependencies=[admin])
def create(session: Transaction, now: Now, who: Who, body: CorrectionCreate) -> CorrectionBody:
    """Open a session, which changes nothing yet. With `close` a void is made and closed in one step."""
    correction = corrections.create_correction(
        session,
        kind=body.kind,
        selection=_selection(body.selection),
        reason=body.reason,
        close=body.close,
        by=who,
        now=now,
    )
    return _body(correction)


@router.get("/{correctionId}", operation_id="getCorrection", dependencies=[reader])
def get(session: Transaction, correctionId: str) -> CorrectionBody:  # noqa: N803  the wire's name
    return _body(corrections.get_correction(session, correctionId))


@router.get("/{correctionId}/preview", operation_id="previewCorrection", dependencies=[reader])
def preview(session: Snapshot, correctionId: str) -> PreviewBody:  # noqa: N803  the wire's name
    """What closing an open correction would change now: how many events, of whom, and from when to when."""
    return _preview_body(corrections.preview_correction(session, correctionId))


async def _sent(request: Request) -> bytes:
    return await request.body()


@router.post(
    "/{correctionId}/events",
    operation_id="stageCorrectionEvents",
    dependencies=[admin],
    openapi_extra={"requestBody": OPENAPI_PATHS["/api/v1/events"]["post"]["requestBody"]},
)
def stage(
    request: Request,
    session: Transaction,
    now: Now,
    correctionId: str,  # noqa: N803  the wire's name
    body: Annotated[bytes, Depends(_sent)],
) -> StagedBody:
    """Send the CloudEvents that a replacement brings in. They count once it is closed."""
    content = _content(request.headers.get("content-type", ""))
    events = decode_events(body, content=content, now=now)
    listed = body.lstrip()[:1] == b"["
    _, fresh = corrections.stage_events(
        session,
        correctionId,
        events=events,
        places=[f"$[{i}]" if listed else "$" for i in range(len(events))],
        now=now,
    )
    return StagedBody(staged=fresh, duplicate=len(events) - fresh)


def _content(content_type: str) -> Literal["single", "batch", "either"]:
    if content := CONTENT_TYPES.get(content_type.partition(";")[0].strip().lower()):
        return content
    message = f"can't read events from {content_type!r}" if content_type else "the Content-Type is missing"
    hint = f"Send one of {', '.join(CONTENT_TYPES)}."
    raise InvalidError(message, Issue(code="content_type", message=message, hint=hint))


@router.post("/{correctionId}/close", operation_id="closeCorrection", dependencies=[admin])
def close(session: Transaction, now: Now, who: Who, correctionId: str) -> CorrectionBody:  # noqa: N803
    """Make the change: all of it, at this instant."""
    return _body(corrections.close_correction(session, correctionId, by=who, now=now))


@router.post("/{correctionId}/revert", operation_id="revertCorrection", dependencies=[admin])
def revert(session: Transaction, now: Now, who: Who, correctionId: str) -> CorrectionBody:  # noqa: N803
    """Take a closed correction back: usage is as if it had never been."""
    return _body(corrections.revert_correction(session, correctionId, by=who, now=now))


@router.post("/{correctionId}/discard", operation_id="discardCorrection", dependencies=[admin])
def discard(session: Transaction, now: Now, who: Who, correctionId: str) -> CorrectionBody:  # noqa: N803
    """Give an open correction up."""
    return _body(corrections.discard_correction(session, correctionId, by=who, now=now))
