"""Plans: /api/v1/plans."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import Field, StringConstraints
from sqlalchemy.orm import Session

from api.http.auth import admin, reader
from api.http.body import RESOURCE, Body, ExactRoute, Key, Metadata, Page
from api.http.session import Now, Transaction
from api.http.versions import Listing, ValidationError, errors_of
from catalog import plans
from catalog.plans import Plan
from catalog.rate_card import Phase
from catalog.versions import VersionStatus, list_versions
from metering.errors import Issue

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/plans", tags=["Plans"], route_class=ExactRoute)


class ProRatingConfig(Body):
    enabled: bool = True
    mode: Literal["prorate_prices"] = "prorate_prices"


class Alignment(Body):
    """Deprecated by OpenMeter: billables always align."""

    billables_must_align: Literal[True] | None = None


class PlanReplaceUpdate(Body):
    READ_ONLY = RESOURCE | {"version", "status", "effectiveFrom", "effectiveTo", "validationErrors"}

    name: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    description: Annotated[str, StringConstraints(max_length=1024)] | None = None
    metadata: Metadata | None = None
    alignment: Alignment | None = None
    billing_cadence: str
    pro_rating_config: ProRatingConfig = ProRatingConfig()
    settlement_mode: Literal["credit_then_invoice"] = "credit_then_invoice"
    phases: Annotated[list[Phase], Field(min_length=1, max_length=100)]


class PlanCreate(PlanReplaceUpdate):
    key: Key
    currency: str = "USD"


class PlanBody(PlanCreate):
    READ_ONLY = frozenset()

    id: str
    version: int
    status: VersionStatus
    effective_from: datetime | None = None
    effective_to: datetime | None = None
    validation_errors: list[ValidationError]
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None = None


class PlanPage(Page):
    items: list[PlanBody]


def _body(session: Session, plan: Plan, now: datetime) -> PlanBody:
    return _bodies(session, [plan], now)[0]


def _bodies(session: Session, found: Sequence[Plan], now: datetime) -> list[PlanBody]:
    issues = plans.issues_of_plans(session, found)
    misfits = plans.addon_issues_of_plans(session, found, now=now)
    return [_body_of(plan, [*issues[plan.id], *misfits[plan.id]], now) for plan in found]


def _body_of(plan: Plan, issues: Sequence[Issue], now: datetime) -> PlanBody:
    return PlanBody(
        id=plan.id,
        key=plan.key,
        version=plan.version,
        name=plan.name,
        description=plan.description,
        metadata=plan.metadata_,
        alignment=Alignment(billables_must_align=True),
        currency=plan.currency,
        billing_cadence=plan.billing_cadence,
        pro_rating_config=ProRatingConfig(enabled=plan.pro_rating),
        phases=list(plan.phases),
        status=plan.status(now),
        effective_from=plan.effective_from,
        effective_to=plan.effective_to,
        validation_errors=errors_of(issues),
        created_at=plan.created_at,
        updated_at=plan.updated_at,
        deleted_at=plan.deleted_at,
    )


@router.get("", operation_id="listPlans", dependencies=[reader])
def list_all(
    *,
    session: Transaction,
    now: Now,
    listing: Listing,
    status: Annotated[list[VersionStatus] | None, Query()] = None,
    currency: Annotated[list[str] | None, Query()] = None,
) -> PlanPage:
    """Every version; by key and version unless `orderBy` says otherwise."""
    wanted = replace(listing.wanted, statuses=status or (), currencies=currency or ())
    found, count = list_versions(session, Plan, wanted, **listing.options, now=now)
    items = _bodies(session, found, now)
    return PlanPage(total_count=count, page=listing.page, page_size=listing.page_size, items=items)


@router.post("", operation_id="createPlan", status_code=201, dependencies=[admin])
def create(session: Transaction, now: Now, body: PlanCreate) -> PlanBody:
    """A draft: the next version of its key."""
    plan = plans.create_plan(
        session,
        key=body.key,
        name=body.name,
        description=body.description,
        metadata=body.metadata,
        currency=body.currency,
        billing_cadence=body.billing_cadence,
        pro_rating=body.pro_rating_config.enabled,
        phases=tuple(body.phases),
        now=now,
    )
    return _body(session, plan, now)


@router.get("/{planId}", operation_id="getPlan", dependencies=[reader])
def get(
    session: Transaction,
    now: Now,
    planId: str,  # noqa: N803  the wire's name
    include_latest: Annotated[bool, Query(alias="includeLatest")] = False,
) -> PlanBody:
    """By id, or by key: the active version, or the latest with `includeLatest`."""
    return _body(session, plans.get_plan(session, planId, include_latest=include_latest), now)


@router.put("/{planId}", operation_id="updatePlan", dependencies=[admin])
def update(session: Transaction, now: Now, planId: str, body: PlanReplaceUpdate) -> PlanBody:  # noqa: N803
    """Replace a draft."""
    plan = plans.update_plan(
        session,
        plans.get_plan(session, planId, include_latest=True, lock=True),
        name=body.name,
        description=body.description,
        metadata=body.metadata,
        billing_cadence=body.billing_cadence,
        pro_rating=body.pro_rating_config.enabled,
        phases=tuple(body.phases),
        now=now,
    )
    return _body(session, plan, now)


@router.post("/{planId}/publish", operation_id="publishPlan", dependencies=[admin])
def publish(session: Transaction, now: Now, planId: str) -> PlanBody:  # noqa: N803  the wire's name
    """Sell it from now on; the version before it is archived at the same instant."""
    plan = plans.get_plan(session, planId, include_latest=True, lock=True)
    return _body(session, plans.publish_plan(session, plan, now=now), now)


@router.post("/{planId}/archive", operation_id="archivePlan", dependencies=[admin])
def archive(session: Transaction, now: Now, planId: str) -> PlanBody:  # noqa: N803  the wire's name
    """Sell it no more; who has it keeps it."""
    return _body(
        session, plans.archive_plan(session, plans.get_plan(session, planId, lock=True), now=now), now
    )


@router.post("/{planIdOrKey}/next", operation_id="nextPlan", status_code=201, dependencies=[admin])
def next_version(session: Transaction, now: Now, planIdOrKey: str) -> PlanBody:  # noqa: N803  the wire's name
    """A draft of the next version, like the latest."""
    plan = plans.get_plan(session, planIdOrKey, include_latest=True, lock=True)
    return _body(session, plans.next_plan(session, plan, now=now), now)


@router.delete("/{planId}", operation_id="deletePlan", status_code=204, dependencies=[admin])
def delete(session: Transaction, now: Now, planId: str) -> None:  # noqa: N803  the wire's name
    """A draft, or an archived version; who has it keeps it."""
    plans.delete_plan(session, plans.get_plan(session, planId, include_latest=True, lock=True), now=now)
