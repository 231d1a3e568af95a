"""Subscriptions: /api/v1/subscriptions."""

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import Field, StringConstraints
from sqlalchemy.orm import Session

from api.http.auth import admin, reader
from api.http.body import Body, ExactRoute, Instant, Key, Metadata
from api.http.features import FeatureBody, feature_body
from api.http.plans import Alignment, ProRatingConfig
from api.http.session import Now, Transaction
from billing import subscriptions
from billing.customer import Customer, get_customer
from billing.subscriptions import Subscription, SubscriptionItem, SubscriptionPhase, SubscriptionStatus
from catalog.features import Feature, features_by_id
from catalog.plans import Plan, PlanNotFoundError, get_plan
from catalog.price import Price
from metering.errors import InvalidError, Issue

__all__ = ["SubscriptionBody", "router", "subscription_body"]

router = APIRouter(prefix="/api/v1/subscriptions", tags=["Subscriptions"], route_class=ExactRoute)


class PlanReferenceInput(Body):
    key: Key
    version: Annotated[int, Field(ge=1, lt=2**31)] | None = None


class PlanReference(Body):
    id: str
    key: str
    version: int


class SubscriptionCreate(Body):
    """`timing` is when it begins: at once, or at an instant, also one in the past."""

    plan: PlanReferenceInput
    customer_id: str | None = None
    customer_key: str | None = None
    timing: Literal["immediate"] | Instant = "immediate"
    starting_phase: str | None = None
    billing_anchor: Instant | None = None
    name: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    description: Annotated[str, StringConstraints(max_length=1024)] | None = None
    metadata: Metadata | None = None
    alignment: Alignment | None = None
    settlement_mode: Literal["credit_then_invoice"] | None = None
    cost_basis_mode: Literal["dynamic"] | None = None


class SubscriptionBody(Body):
    id: str
    name: str
    description: str | None = None
    metadata: Metadata | None = None
    created_at: datetime
    updated_at: datetime
    active_from: datetime
    active_to: datetime | None = None
    status: SubscriptionStatus
    customer_id: str
    plan: PlanReference
    currency: str
    billing_cadence: str
    billing_anchor: datetime
    pro_rating_config: ProRatingConfig
    settlement_mode: Literal["credit_then_invoice"] = "credit_then_invoice"
    cost_basis_mode: Literal["dynamic"] = "dynamic"
    cost_basis_pins: tuple[str, ...] = ()


class Included(Body):
    feature: FeatureBody


class ItemBody(Body):
    id: str
    key: str
    name: str
    description: str | None = None
    metadata: Metadata | None = None
    created_at: datetime
    updated_at: datetime
    active_from: datetime
    active_to: datetime | None = None
    feature_key: str | None = None
    billing_cadence: str | None
    price: Price | None
    included: Included | None = None


class PhaseBody(Body):
    id: str
    key: str
    name: str
    description: str | None = None
    metadata: Metadata | None = None
    created_at: datetime
    updated_at: datetime
    active_from: datetime
    active_to: datetime | None = None
    items: list[ItemBody]
    item_timelines: dict[str, list[ItemBody]]


class SubscriptionExpanded(SubscriptionBody):
    phases: list[PhaseBody]


def subscription_body(subscription: Subscription, now: datetime) -> SubscriptionBody:
    plan = subscription.plan
    return SubscriptionBody(
        id=subscription.id,
        name=subscription.name,
        description=subscription.description,
        metadata=subscription.metadata_,
        created_at=subscription.created_at,
        updated_at=subscription.updated_at,
        active_from=subscription.active_from,
        active_to=subscription.active_to,
        status=subscription.status(now),
        customer_id=subscription.customer_id,
        plan=PlanReference(id=plan.id, key=plan.key, version=plan.version),
        currency=subscription.currency,
        billing_cadence=subscription.billing_cadence,
        billing_anchor=subscription.billing_anchor,
        pro_rating_config=ProRatingConfig(enabled=subscription.pro_rating),
    )


def _item_body(item: SubscriptionItem, features: dict[str, Feature]) -> ItemBody:
    card, feature = item.rate_card, features.get(item.feature_id or "")
    return ItemBody(
        id=item.id,
        key=item.key,
        name=card.name,
        description=card.description,
        metadata=None if card.metadata is None else dict(card.metadata),
        created_at=item.created_at,
        updated_at=item.updated_at,
        active_from=item.active_from,
        active_to=item.active_to,
        feature_key=card.feature_key,
        billing_cadence=card.billing_cadence,
        price=card.price,
        included=Included(feature=feature_body(feature)) if feature else None,
    )


def _phase_body(phase: SubscriptionPhase, features: dict[str, Feature]) -> PhaseBody:
    items = [_item_body(item, features) for item in phase.items]
    timelines: dict[str, list[ItemBody]] = {}
    for item in items:
        timelines.setdefault(item.key, []).append(item)
    return PhaseBody(
        id=phase.id,
        key=phase.key,
        name=phase.name,
        description=phase.description,
        metadata=phase.metadata_,
        created_at=phase.created_at,
        updated_at=phase.updated_at,
        active_from=phase.active_from,
        active_to=phase.active_to,
        items=items,
        item_timelines=timelines,
    )


@router.post("", operation_id="createSubscription", status_code=201, dependencies=[admin])
def create(session: Transaction, now: Now, body: SubscriptionCreate) -> SubscriptionBody:
    """Sign a customer up to a plan; the contract copies the plan's phases and prices."""
    customer = _customer(session, body)
    subscription = subscriptions.create_subscription(
        session,
        customer=customer,
        plan=_plan(session, body.plan),
        active_from=now if body.timing == "immediate" else body.timing,
        billing_anchor=body.billing_anchor,
        starting_phase=body.starting_phase,
        name=body.name,
        description=body.description,
        metadata=body.metadata,
        now=now,
    )
    return subscription_body(subscription, now)


def _customer(session: Session, body: SubscriptionCreate) -> Customer:
    """The customer whom id and key name, both if both are given; locked."""
    names = [name for name in (body.customer_id, body.customer_key) if name is not None]
    if not names:
        message = "customerId or customerKey is required"
        raise InvalidError(message, Issue(code="field_required", message=message, field="$.customerId"))
    customer = get_customer(session, names[0], lock=True)
    if body.customer_id not in (None, customer.id) or body.customer_key not in (None, customer.key):
        message = "customerId and customerKey name no one customer"
        raise InvalidError(message, Issue(code="customer_mismatch", message=message, field="$.customerKey"))
    return customer


def _plan(session: Session, meant: PlanReferenceInput) -> Plan:
    """The active version, or the one named; a plan that was never published is found too, to be refused."""
    try:
        return get_plan(session, meant.key, version=meant.version)
    except PlanNotFoundError:
        return get_plan(session, meant.key, version=meant.version, include_latest=True)


@router.get("/{subscriptionId}", operation_id="getSubscription", dependencies=[reader])
def get(session: Transaction, now: Now, subscriptionId: str) -> SubscriptionExpanded:  # noqa: N803
    """With its phases and items."""
    subscription = subscriptions.get_subscription(session, subscriptionId)
    ids = {item.feature_id for phase in subscription.phases for item in phase.items if item.feature_id}
    features = features_by_id(session, ids)
    phases = [_phase_body(phase, features) for phase in subscription.phases]
    return SubscriptionExpanded(**dict(subscription_body(subscription, now)), phases=phases)
