"""Plans: /api/v1/plans."""

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import Field, StringConstraints
from sqlalchemy.orm import Session

from api.http.auth import admin, reader
from api.http.body import RESOURCE, Body, ExactRoute, Key, Metadata, Page, PageNumber, PageSize, page_of
from api.http.session import Now, Transaction
from api.http.versions import ValidationError, errors_of
from catalog import plans
from catalog.plans import Plan, PlanStatus
from catalog.rate_card import Phase

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
    status: PlanStatus
    effective_from: datetime | None = None
    effective_to: datetime | None = None
    validation_errors: list[ValidationError]
    created_at: datetime
    updated_at: datetime


class PlanPage(Page):
    items: list[PlanBody]


def _body(session: Session, plan: Plan, now: datetime) -> PlanBody:
    status = plan.status(now)
    return PlanBody(
        id=plan.id,
        key=plan.key,
        version=plan.version,
        name=plan.name,
        description=plan.description,
        metadata=plan.metadata_,
        currency=plan.currency,
        billing_cadence=plan.billing_cadence,
        pro_rating_config=ProRatingConfig(enabled=plan.pro_rating),
        phases=list(plan.phases),
        status=status,
        effective_from=plan.effective_from,
        effective_to=plan.effective_to,
        validation_errors=errors_of(plans.plan_issues(session, plan)) if status == "draft" else [],
        created_at=plan.created_at,
        updated_at=plan.updated_at,
    )


@router.get("", operation_id="listPlans", dependencies=[reader])
def list_all(
    *,
    session: Transaction,
    now: Now,
    id_: Annotated[list[str] | None, Query(alias="id")] = None,
    key: Annotated[list[str] | None, Query()] = None,
    status: Annotated[list[PlanStatus] | None, Query()] = None,
    currency: Annotated[list[str] | None, Query()] = None,
    page: PageNumber = 1,
    page_size: PageSize = 100,
) -> PlanPage:
    found, count = plans.list_plans(
        session,
        ids=id_ or (),
        keys=key or (),
        statuses=status or (),
        currencies=currency or (),
        now=now,
        **page_of(page, page_size),
    )
    items = [_body(session, plan, now) for plan in found]
    return PlanPage(total_count=count, page=page, page_size=page_size, items=items)


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
