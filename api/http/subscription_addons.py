"""Add-ons of a subscription: /api/v1/subscriptions/{subscriptionId}/addons."""

from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from typing import Annotated

from fastapi import APIRouter
from pydantic import Field, StringConstraints

from api.http.auth import admin, reader
from api.http.body import Body, ExactRoute, Metadata
from api.http.session import Now, Transaction
from api.http.subscriptions import Timing
from billing.contracts import subscription_addons
from billing.contracts.addon_items import Quantity, quantity_at
from billing.contracts.subscription_addons import SubscriptionAddon
from billing.contracts.subscriptions import Subscription, get_subscription
from catalog.addon import AddonInstanceType
from catalog.rate_card import RateCard

__all__ = ["router"]

router = APIRouter(
    prefix="/api/v1/subscriptions/{subscriptionId}/addons", tags=["Subscriptions"], route_class=ExactRoute
)

Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Description = Annotated[str, StringConstraints(max_length=1024)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]


class AddonId(Body):
    id: str


class SubscriptionAddonCreate(Body):
    name: Name | None = None
    description: Description | None = None
    metadata: Metadata | None = None
    quantity: Count
    timing: Timing
    addon: AddonId


class SubscriptionAddonUpdate(Body):
    """What is left out stays; `timing` is when the quantity changes."""

    name: Name | None = None
    description: Description | None = None
    metadata: Metadata | None = None
    quantity: Count | None = None
    timing: Timing = "immediate"

    @property
    def changes(self) -> dict[str, object]:
        """Of the words; a name can't be taken away."""
        sent = self.model_dump(include={"name", "description", "metadata"} & self.model_fields_set)
        if sent.get("name", "") is None:
            del sent["name"]
        return {"metadata_" if name == "metadata" else name: value for name, value in sent.items()}


class AddonReference(Body):
    id: str
    key: str
    version: int
    instance_type: AddonInstanceType


class TimelineSegment(Body):
    active_from: datetime
    active_to: datetime | None = None
    quantity: int


class SubscriptionAddonRateCard(Body):
    rate_card: RateCard
    affected_subscription_item_ids: list[str]


class SubscriptionAddonBody(Body):
    id: str
    name: str
    description: str | None = None
    metadata: Metadata | None = None
    created_at: datetime
    updated_at: datetime
    active_from: datetime
    active_to: datetime | None = None
    addon: AddonReference
    quantity_at: datetime
    quantity: int
    timeline: list[TimelineSegment]
    subscription_id: str
    rate_cards: list[SubscriptionAddonRateCard]


def _body(bought: SubscriptionAddon, subscription: Subscription, now: datetime) -> SubscriptionAddonBody:
    addon = bought.addon
    timeline = list(_timeline(bought.quantities, subscription.active_to))
    last = timeline[-1]
    return SubscriptionAddonBody(
        id=bought.id,
        name=bought.name,
        description=bought.description,
        metadata=bought.metadata_,
        created_at=bought.created_at,
        updated_at=bought.updated_at,
        active_from=timeline[0].active_from,
        active_to=last.active_to if last.quantity else last.active_from,
        addon=AddonReference.model_validate(addon),
        quantity_at=now,
        quantity=quantity_at(bought.quantities, now),
        timeline=timeline,
        subscription_id=bought.subscription_id,
        rate_cards=[
            SubscriptionAddonRateCard(
                rate_card=card, affected_subscription_item_ids=_affected(card, timeline, subscription)
            )
            for card in addon.rate_cards
        ],
    )


def _timeline(quantities: tuple[Quantity, ...], end: datetime | None) -> Iterator[TimelineSegment]:
    """What was to come after the subscription's end does not come."""
    first, *later = quantities
    kept = [first, *(each for each in later if end is None or each.start < end)]
    for one, following in pairwise([*kept, None]):
        if one is not None:
            until = following.start if following else end and max(end, one.start)
            yield TimelineSegment(active_from=one.start, active_to=until, quantity=one.quantity)


def _affected(card: RateCard, timeline: list[TimelineSegment], subscription: Subscription) -> list[str]:
    """The items of its key that were, are or will be sold with the add-on in them."""
    items = [item for phase in subscription.phases for item in phase.items if item.key == card.key]
    return [
        item.id
        for item in items
        if any(
            segment.quantity
            and (segment.active_to is None or item.active_from < segment.active_to)
            and (item.active_to is None or segment.active_from < item.active_to)
            for segment in timeline
        )
    ]


@router.post("", operation_id="createSubscriptionAddon", status_code=201, dependencies=[admin])
def create(
    session: Transaction,
    now: Now,
    subscriptionId: str,  # noqa: N803  the wire's name
    body: SubscriptionAddonCreate,
) -> SubscriptionAddonBody:
    """Buy an add-on that the plan offers; fees in advance are charged for the rest of their period."""
    bought = subscription_addons.add_addon(
        session,
        subscriptionId,
        addon_id=body.addon.id,
        quantity=body.quantity,
        timing=body.timing,
        name=body.name,
        description=body.description,
        metadata=body.metadata,
        now=now,
    )
    return _body(bought, get_subscription(session, subscriptionId), now)


@router.get("", operation_id="listSubscriptionAddons", dependencies=[reader])
def list_all(session: Transaction, now: Now, subscriptionId: str) -> list[SubscriptionAddonBody]:  # noqa: N803
    """In the order in which they were bought, those of quantity 0 too."""
    subscription = get_subscription(session, subscriptionId)
    found = subscription_addons.addons_of(session, subscriptionId)
    return [_body(bought, subscription, now) for bought in found]


@router.get("/{subscriptionAddonId}", operation_id="getSubscriptionAddon", dependencies=[reader])
def get(
    session: Transaction,
    now: Now,
    subscriptionId: str,  # noqa: N803  the wire's name
    subscriptionAddonId: str,  # noqa: N803  the wire's name
) -> SubscriptionAddonBody:
    subscription = get_subscription(session, subscriptionId)
    bought = subscription_addons.get_subscription_addon(session, subscriptionId, subscriptionAddonId)
    return _body(bought, subscription, now)


@router.patch("/{subscriptionAddonId}", operation_id="updateSubscriptionAddon", dependencies=[admin])
def update(
    session: Transaction,
    now: Now,
    subscriptionId: str,  # noqa: N803  the wire's name
    subscriptionAddonId: str,  # noqa: N803  the wire's name
    body: SubscriptionAddonUpdate,
) -> SubscriptionAddonBody:
    """Change how many there are, 0 to take it away, or what it is called."""
    changed = subscription_addons.update_addon_of(
        session,
        subscriptionId,
        subscriptionAddonId,
        quantity=body.quantity,
        timing=body.timing,
        changes=body.changes,
        now=now,
    )
    return _body(changed, get_subscription(session, subscriptionId), now)
