"""The add-ons that a plan offers: /api/v1/plans/{planId}/addons."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter
from pydantic import Field
from sqlalchemy.orm import Session

from api.http.addons import AddonBody, addon_bodies
from api.http.auth import admin, reader
from api.http.body import RESOURCE, Body, ExactRoute, Metadata, Page
from api.http.session import Now, Transaction
from api.http.versions import Listing, ValidationError, errors_of
from catalog import plan_addons, plans
from catalog.plan_addon import PlanTerms
from catalog.plan_addons import PlanAddon
from catalog.plans import Plan

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/plans/{planId}/addons", tags=["Plans"], route_class=ExactRoute)

MAX_QUANTITY = 2**31 - 1


class PlanAddonReplaceUpdate(Body):
    READ_ONLY = RESOURCE | {"addon", "validationErrors"}

    from_plan_phase: str
    max_quantity: Annotated[int, Field(ge=1, le=MAX_QUANTITY)] | None = None
    metadata: Metadata | None = None


class PlanAddonCreate(PlanAddonReplaceUpdate):
    addon_id: str


class PlanAddonBody(PlanAddonReplaceUpdate):
    READ_ONLY = frozenset()

    addon: AddonBody
    validation_errors: list[ValidationError]
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None = None


class PlanAddonPage(Page):
    items: list[PlanAddonBody]


def _bodies(session: Session, plan: Plan, offers: Sequence[PlanAddon], now: datetime) -> list[PlanAddonBody]:
    terms = plans.plan_terms(session, plan, now=now)
    addons = addon_bodies(session, [offer.addon for offer in offers], now)
    return [
        PlanAddonBody(
            addon=addon,
            from_plan_phase=offer.from_plan_phase,
            max_quantity=offer.max_quantity,
            metadata=offer.metadata_,
            validation_errors=_errors(terms, offer, now),
            created_at=offer.created_at,
            updated_at=offer.updated_at,
            deleted_at=offer.deleted_at,
        )
        for offer, addon in zip(offers, addons, strict=True)
    ]


def _errors(terms: PlanTerms, offer: PlanAddon, now: datetime) -> list[ValidationError]:
    """What is wrong is told while it can be mended."""
    if terms.status == "archived" or offer.deleted_at is not None:
        return []
    return errors_of(plan_addons.plan_addon_issues(terms, offer, now=now))


def _body(session: Session, plan: Plan, offer: PlanAddon, now: datetime) -> PlanAddonBody:
    return _bodies(session, plan, [offer], now)[0]


@router.get("", operation_id="listPlanAddons", dependencies=[reader])
def list_all(session: Transaction, now: Now, planId: str, listing: Listing) -> PlanAddonPage:  # noqa: N803
    """Narrowed by the ids, keys and versions of add-ons."""
    plan = plans.get_plan(session, planId, include_latest=True)
    found, count = plan_addons.list_plan_addons(session, plan.id, listing.wanted, now=now, **listing.options)
    items = _bodies(session, plan, found, now)
    return PlanAddonPage(total_count=count, page=listing.page, page_size=listing.page_size, items=items)


@router.post("", operation_id="createPlanAddon", status_code=201, dependencies=[admin])
def create(session: Transaction, now: Now, planId: str, body: PlanAddonCreate) -> PlanAddonBody:  # noqa: N803
    """Offer an add-on that fits; a draft may offer one that it fits only later."""
    plan = plans.get_plan(session, planId, include_latest=True, lock=True)
    offer = plan_addons.create_plan_addon(
        session,
        plan_id=plan.id,
        plan=plans.plan_terms(session, plan, now=now),
        addon_id=body.addon_id,
        from_plan_phase=body.from_plan_phase,
        max_quantity=body.max_quantity,
        metadata=body.metadata,
        now=now,
    )
    return _body(session, plan, offer, now)


@router.get("/{planAddonId}", operation_id="getPlanAddon", dependencies=[reader])
def get(
    session: Transaction,
    now: Now,
    planId: str,  # noqa: N803  the wire's name
    planAddonId: str,  # noqa: N803  the wire's name
) -> PlanAddonBody:
    """By the add-on's id or key."""
    plan = plans.get_plan(session, planId, include_latest=True)
    return _body(session, plan, plan_addons.get_plan_addon(session, plan.id, planAddonId), now)


@router.put("/{planAddonId}", operation_id="updatePlanAddon", dependencies=[admin])
def update(
    session: Transaction,
    now: Now,
    planId: str,  # noqa: N803  the wire's name
    planAddonId: str,  # noqa: N803  the wire's name
    body: PlanAddonReplaceUpdate,
) -> PlanAddonBody:
    """Replace from which phase on it is offered, and how many."""
    plan = plans.get_plan(session, planId, include_latest=True, lock=True)
    offer = plan_addons.update_plan_addon(
        session,
        plan_addons.get_plan_addon(session, plan.id, planAddonId, lock=True),
        plan=plans.plan_terms(session, plan, now=now),
        from_plan_phase=body.from_plan_phase,
        max_quantity=body.max_quantity,
        metadata=body.metadata,
        now=now,
    )
    return _body(session, plan, offer, now)


@router.delete("/{planAddonId}", operation_id="deletePlanAddon", status_code=204, dependencies=[admin])
def delete(session: Transaction, now: Now, planId: str, planAddonId: str) -> None:  # noqa: N803
    """Offer it no more; who has it keeps it."""
    plan = plans.get_plan(session, planId, include_latest=True, lock=True)
    offer = plan_addons.get_plan_addon(session, plan.id, planAddonId, lock=True)
    plan_addons.delete_plan_addon(session, offer, now=now)
