"""Subscriptions: /api/v1/subscriptions."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import Field, StringConstraints
from sqlalchemy.orm import Session

from api.http.auth import admin, reader
from api.http.body import Body, ExactRoute, Instant, Key, Metadata
from api.http.features import FeatureBody, feature_body
from api.http.plans import Alignment, ProRatingConfig
from api.http.session import Now, Transaction
from billing.contracts import subscription_changes, subscriptions
from billing.contracts.agreement import CustomPlan
from billing.contracts.customer import Customer, get_customer
from billing.contracts.edits import (
    AddItem,
    AddPhase,
    RemoveItem,
    RemovePhase,
    StretchPhase,
    UnscheduleEdit,
)
from billing.contracts.subscription_rules import instant_of
from billing.contracts.subscription_rules import next_billing_cycle as cycle_after
from billing.contracts.subscriptions import (
    Subscription,
    SubscriptionItem,
    SubscriptionPhase,
    SubscriptionStatus,
)
from catalog.discount import Discounts
from catalog.features import Feature, features_by_id
from catalog.interval import interval_of
from catalog.plans import Plan, PlanNotFoundError, get_plan
from catalog.price import Price
from catalog.rate_card import Phase
from catalog.tax import TaxConfig
from metering.errors import InvalidError, Issue

__all__ = ["SubscriptionBody", "Timing", "router", "subscription_body"]

router = APIRouter(prefix="/api/v1/subscriptions", tags=["Subscriptions"], route_class=ExactRoute)

Timing = Literal["immediate", "next_billing_cycle"] | Instant
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Description = Annotated[str, StringConstraints(max_length=1024)]


class PlanReferenceInput(Body):
    key: Key
    version: Annotated[int, Field(ge=1, lt=2**31)] | None = None


class PlanReference(Body):
    id: str
    key: str
    version: int


class CustomPlanInput(Body):
    """Terms for one customer; the rules are those of a plan."""

    name: Name
    description: Description | None = None
    metadata: Metadata | None = None
    alignment: Alignment | None = None
    currency: str = "USD"
    billing_cadence: str
    pro_rating_config: ProRatingConfig = ProRatingConfig()
    settlement_mode: Literal["credit_then_invoice"] = "credit_then_invoice"
    phases: Annotated[list[Phase], Field(min_length=1, max_length=100)]

    @property
    def terms(self) -> CustomPlan:
        return CustomPlan(
            name=self.name,
            description=self.description,
            metadata=self.metadata,
            currency=self.currency,
            billing_cadence=self.billing_cadence,
            pro_rating=self.pro_rating_config.enabled,
            phases=tuple(self.phases),
        )


class Terms(Body):
    """What is agreed: `plan`, with what may be said besides, or `customPlan`."""

    plan: PlanReferenceInput | None = None
    custom_plan: CustomPlanInput | None = None
    starting_phase: Annotated[str, StringConstraints(min_length=1)] | None = None
    billing_anchor: Instant | None = None
    name: Name | None = None
    description: Description | None = None
    metadata: Metadata | None = None
    alignment: Alignment | None = None
    settlement_mode: Literal["credit_then_invoice"] | None = None
    cost_basis_mode: Literal["dynamic"] | None = None


class SubscriptionCreate(Terms):
    """`timing` is when it begins: at once, or at an instant, also one in the past."""

    customer_id: str | None = None
    customer_key: str | None = None
    timing: Timing = "immediate"


class SubscriptionChange(Terms):
    timing: Timing


class SubscriptionCancel(Body):
    timing: Timing = "immediate"


class SubscriptionMigrate(Body):
    timing: Timing = "immediate"
    target_version: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    starting_phase: Annotated[str, StringConstraints(min_length=1)] | None = None
    billing_anchor: Instant | None = None


class SubscriptionEdit(Body):
    customizations: Annotated[
        list[AddItem | RemoveItem | AddPhase | RemovePhase | StretchPhase | UnscheduleEdit],
        Field(max_length=100),
    ]
    timing: Timing = "immediate"


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
    plan: PlanReference | None = None
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
    discounts: Discounts | None = None
    tax_config: TaxConfig | None = None
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


class AlignedPeriod(Body):
    from_: Annotated[datetime, Field(alias="from")]
    to: datetime


class SubscriptionAlignment(Body):
    billables_must_align: Literal[True] = True
    current_aligned_billing_period: AlignedPeriod | None = None


class SubscriptionExpanded(SubscriptionBody):
    alignment: SubscriptionAlignment
    phases: list[PhaseBody]


class SubscriptionChangeResponse(Body):
    current: SubscriptionBody
    next: SubscriptionExpanded


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
        plan=PlanReference(id=plan.id, key=plan.key, version=plan.version) if plan else None,
        currency=subscription.currency,
        billing_cadence=subscription.billing_cadence,
        billing_anchor=subscription.billing_anchor,
        pro_rating_config=ProRatingConfig(enabled=subscription.pro_rating),
    )


def _expanded(
    session: Session, subscription: Subscription, now: datetime, at: datetime
) -> SubscriptionExpanded:
    """With its phases, and of each the items that it sells at `at`, or sold when it ended."""
    ids = {item.feature_id for phase in subscription.phases for item in phase.items if item.feature_id}
    features = features_by_id(session, ids)
    return SubscriptionExpanded(
        **dict(subscription_body(subscription, now)),
        alignment=_alignment(subscription, at),
        phases=[_phase_body(phase, features, at) for phase in subscription.phases],
    )


def _alignment(subscription: Subscription, at: datetime) -> SubscriptionAlignment:
    """While it runs, with the billing period that holds `at`, cut where its phase begins and ends."""
    period = subscriptions.billing_period(subscription, at)
    aligned = AlignedPeriod(from_=period.start, to=period.end) if period else None
    return SubscriptionAlignment(current_aligned_billing_period=aligned)


def _item_body(item: SubscriptionItem, features: Mapping[str, Feature]) -> ItemBody:
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
        discounts=card.discounts,
        tax_config=card.tax_config,
        included=Included(feature=feature_body(feature)) if feature else None,
    )


def _phase_body(phase: SubscriptionPhase, features: Mapping[str, Feature], at: datetime) -> PhaseBody:
    timelines: dict[str, list[ItemBody]] = {}
    for item in phase.items:
        timelines.setdefault(item.key, []).append(_item_body(item, features))
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
        items=[_item_body(item, features) for item in phase.items_at(at)],
        item_timelines=timelines,
    )


@router.post("", operation_id="createSubscription", status_code=201, dependencies=[admin])
def create(session: Transaction, now: Now, body: SubscriptionCreate) -> SubscriptionBody:
    """Sign a customer up to a plan, or to terms of their own; the contract copies phases and prices."""
    customer = _customer(session, body)
    terms = _terms(session, body)
    subscription = subscriptions.create_subscription(
        session,
        customer=customer,
        plan=terms,
        active_from=_start(body, terms, now),
        billing_anchor=body.billing_anchor,
        starting_phase=body.starting_phase,
        name=body.name,
        description=body.description,
        metadata=body.metadata,
        now=now,
    )
    return subscription_body(subscription, now)


def _start(body: SubscriptionCreate, terms: Plan | CustomPlan, now: datetime) -> datetime:
    """The next billing cycle is counted from the anchor: without one, none has begun."""
    cadence = interval_of(terms.billing_cadence)
    if body.timing != "next_billing_cycle" or cadence is None:
        return instant_of(body.timing, now=now, cycle=now)
    if body.billing_anchor is None:
        message = "there is no billing cycle before the subscription, unless it has an anchor"
        hint = "Give a billingAnchor to count from, or say when it begins."
        raise InvalidError(
            message,
            Issue(
                code="subscription_billing_anchor_is_required", message=message, field="$.timing", hint=hint
            ),
        )
    return cycle_after(body.billing_anchor, cadence, now)


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


def _terms(session: Session, body: Terms) -> Plan | CustomPlan:
    match body.plan, body.custom_plan:
        case PlanReferenceInput() as meant, None:
            return _plan(session, meant)
        case None, CustomPlanInput() as custom if body.starting_phase is None:
            return custom.terms
        case None, CustomPlanInput():
            message = "a customPlan begins with its first phase"
            raise InvalidError(message, Issue(code="unknown_field", message=message, field="$.startingPhase"))
        case None, None:
            message = "plan or customPlan is required"
            raise InvalidError(message, Issue(code="field_required", message=message, field="$.plan"))
        case _:
            message = "either plan or customPlan, not both"
            raise InvalidError(message, Issue(code="unknown_field", message=message, field="$.customPlan"))


def _plan(session: Session, meant: PlanReferenceInput) -> Plan:
    """The active version, or the one named; a plan that was never published is found too, to be refused."""
    try:
        return get_plan(session, meant.key, version=meant.version)
    except PlanNotFoundError:
        return get_plan(session, meant.key, version=meant.version, include_latest=True)


@router.get("/{subscriptionId}", operation_id="getSubscription", dependencies=[reader])
def get(
    session: Transaction,
    now: Now,
    subscriptionId: str,  # noqa: N803  the wire's name
    at: Annotated[Instant | None, Query()] = None,
) -> SubscriptionExpanded:
    """With its phases, and the items that they sell `at` an instant: now, unless told otherwise."""
    return _expanded(session, subscriptions.get_subscription(session, subscriptionId), now, at or now)


@router.patch("/{subscriptionId}", operation_id="editSubscription", dependencies=[admin])
def edit(session: Transaction, now: Now, subscriptionId: str, body: SubscriptionEdit) -> SubscriptionBody:  # noqa: N803
    """All of the customizations, in their order, or none of them."""
    edited = subscription_changes.edit_subscription(
        session, subscriptionId, body.customizations, timing=body.timing, now=now
    )
    return subscription_body(edited, now)


@router.delete("/{subscriptionId}", operation_id="deleteSubscription", status_code=204, dependencies=[admin])
def delete(session: Transaction, now: Now, subscriptionId: str) -> None:  # noqa: N803  the wire's name
    """Only while it is scheduled."""
    subscription_changes.delete_subscription(session, subscriptionId, now=now)


@router.post("/{subscriptionId}/cancel", operation_id="cancelSubscription", dependencies=[admin])
def cancel(
    session: Transaction,
    now: Now,
    subscriptionId: str,  # noqa: N803  the wire's name
    body: SubscriptionCancel | None = None,
) -> SubscriptionBody:
    """At once, with the billing cycle, or at any instant of its life."""
    timing = body.timing if body else "immediate"
    return subscription_body(
        subscription_changes.cancel_subscription(session, subscriptionId, timing=timing, now=now), now
    )


@router.post(
    "/{subscriptionId}/unschedule-cancelation",
    operation_id="unscheduleCancelation",
    dependencies=[admin],
)
def unschedule_cancelation(session: Transaction, now: Now, subscriptionId: str) -> SubscriptionBody:  # noqa: N803
    """It goes on as it was agreed."""
    return subscription_body(
        subscription_changes.unschedule_cancelation(session, subscriptionId, now=now), now
    )


@router.post("/{subscriptionId}/restore", operation_id="restoreSubscription", dependencies=[admin])
def restore(session: Transaction, now: Now, subscriptionId: str) -> SubscriptionBody:  # noqa: N803
    """It goes on as it was agreed, and what was to follow it is deleted."""
    return subscription_body(subscription_changes.restore_subscription(session, subscriptionId, now=now), now)


@router.post("/{subscriptionId}/change", operation_id="changeSubscription", dependencies=[admin])
def change(
    session: Transaction,
    now: Now,
    subscriptionId: str,  # noqa: N803  the wire's name
    body: SubscriptionChange,
) -> SubscriptionChangeResponse:
    """End it, and begin another at the same instant; both are billed on the same days."""
    changed = subscription_changes.change_subscription(
        session,
        subscriptionId,
        plan=_terms(session, body),
        timing=body.timing,
        billing_anchor=body.billing_anchor,
        starting_phase=body.starting_phase,
        name=body.name,
        description=body.description,
        metadata=body.metadata,
        now=now,
    )
    return _changed(session, changed, now)


@router.post("/{subscriptionId}/migrate", operation_id="migrateSubscription", dependencies=[admin])
def migrate(
    session: Transaction,
    now: Now,
    subscriptionId: str,  # noqa: N803  the wire's name
    body: SubscriptionMigrate | None = None,
) -> SubscriptionChangeResponse:
    """To a newer version of its plan."""
    asked = body or SubscriptionMigrate()
    migrated = subscription_changes.migrate_subscription(
        session,
        subscriptionId,
        timing=asked.timing,
        target_version=asked.target_version,
        starting_phase=asked.starting_phase,
        billing_anchor=asked.billing_anchor,
        now=now,
    )
    return _changed(session, migrated, now)


def _changed(
    session: Session, changed: tuple[Subscription, Subscription], now: datetime
) -> SubscriptionChangeResponse:
    current, following = changed
    return SubscriptionChangeResponse(
        current=subscription_body(current, now), next=_expanded(session, following, now, now)
    )
