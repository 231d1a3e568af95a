"""Subjects: /api/v1/subjects."""

from datetime import datetime
from typing import Annotated, Any, cast

import msgspec
from fastapi import APIRouter
from fastapi import Body as Sent
from pydantic import StringConstraints

from api.http.auth import admin, reader
from api.http.body import RESOURCE, Body, ExactRoute, Instant, WireResponse
from api.http.session import Now, Transaction
from metering import subjects
from metering.subjects import Subject, SubjectField, SubjectUpsert

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/subjects", tags=["Subjects"], route_class=ExactRoute)

MAX_UPSERTS = 1000
_encoder = msgspec.json.Encoder(decimal_format="number")


class SubjectUpsertBody(Body):
    READ_ONLY = RESOURCE

    key: Annotated[str, StringConstraints(min_length=1, max_length=512)]
    display_name: Annotated[str, StringConstraints(max_length=256)] | None = None
    metadata: dict[str, Any] | None = None
    current_period_start: Instant | None = None
    current_period_end: Instant | None = None
    stripe_customer_id: Annotated[str, StringConstraints(pattern="^cus_", max_length=256)] | None = None

    @property
    def upsert(self) -> SubjectUpsert:
        """A member that is null is given, one that is absent is not."""
        fields = {_COLUMNS.get(name, name) for name in self.model_fields_set - {"key"}}
        return SubjectUpsert(
            key=self.key,
            given=cast("frozenset[SubjectField]", frozenset(fields)),
            display_name=self.display_name,
            metadata_=None if self.metadata is None else _encoder.encode(self.metadata).decode(),
            current_period_start=self.current_period_start,
            current_period_end=self.current_period_end,
            stripe_customer_id=self.stripe_customer_id,
        )


_COLUMNS = {"metadata": "metadata_"}


class SubjectBody(Body):
    id: str
    key: str
    display_name: str | None = None
    metadata: dict[str, Any] | None = None
    current_period_start: datetime | None = None
    current_period_end: datetime | None = None
    stripe_customer_id: str | None = None
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None = None


def _wire(subject: Subject) -> dict[str, object]:
    """The metadata go out as they are stored: with their nulls, and each number digit for digit."""
    return {
        "id": subject.id,
        "key": subject.key,
        "displayName": subject.display_name,
        "metadata": None if subject.metadata_ is None else msgspec.Raw(subject.metadata_.encode()),
        "currentPeriodStart": subject.current_period_start,
        "currentPeriodEnd": subject.current_period_end,
        "stripeCustomerId": subject.stripe_customer_id,
        "createdAt": subject.created_at,
        "updatedAt": subject.updated_at,
        "deletedAt": subject.deleted_at,
    }


@router.get("", operation_id="listSubjects", response_model=list[SubjectBody], dependencies=[reader])
def list_all(session: Transaction) -> WireResponse:
    """All subjects by key."""
    return WireResponse([_wire(subject) for subject in subjects.list_subjects(session)])


@router.post("", operation_id="upsertSubject", response_model=list[SubjectBody], dependencies=[admin])
def upsert(
    session: Transaction, now: Now, body: Annotated[list[SubjectUpsertBody], Sent(max_length=MAX_UPSERTS)]
) -> WireResponse:
    """Create or change subjects by key, all or none: what is absent stays, what is null is cleared."""
    found = subjects.upsert_subjects(session, [sent.upsert for sent in body], now=now)
    return WireResponse([_wire(subject) for subject in found])


@router.get("/{subjectIdOrKey}", operation_id="getSubject", response_model=SubjectBody, dependencies=[reader])
def get(session: Transaction, subjectIdOrKey: str) -> WireResponse:  # noqa: N803  the wire's name
    """By id, else by key."""
    return WireResponse(_wire(subjects.get_subject(session, subjectIdOrKey)))


@router.delete("/{subjectIdOrKey}", operation_id="deleteSubject", status_code=204, dependencies=[admin])
def delete(session: Transaction, now: Now, subjectIdOrKey: str) -> None:  # noqa: N803  the wire's name
    """Its usage stays, and its key is free for a new subject."""
    subjects.delete_subject(session, subjects.get_subject(session, subjectIdOrKey, lock=True), now=now)
