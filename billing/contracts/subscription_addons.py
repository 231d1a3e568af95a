"""Add-ons that a subscription has: bought, and changed in quantity, each from an instant on.

What they do to the contract is addon_items.py's: the dated items are closed where a quantity changes, and the
next version opens there.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy import ForeignKey, Index, Select, delete, select
from sqlalchemy.orm import Mapped, Session, joinedload, mapped_column, relationship

from billing.contracts.addon_items import BoughtAddon, Quantity, quantity_at, with_addons
from billing.contracts.edits import ContractSpec, phase_at
from billing.contracts.subscription_rules import SubscriptionForbiddenError, Timing, instant_of, whole_second
from billing.contracts.subscriptions import Subscription, cycle_of, locked_subscription
from catalog.addons import Addon
from catalog.plan_addon import check_cards
from catalog.plan_addons import PlanAddon, PlanAddonNotFoundError, get_plan_addon
from metering.database import Base, Id, Instant, ValueType
from metering.errors import ConflictError, InvalidError, Issue, NotFoundError
from metering.ids import new_id

__all__ = [
    "AddonAttachedError",
    "AddonPurchaseError",
    "SubscriptionAddon",
    "SubscriptionAddonNotFoundError",
    "add_addon",
    "addons_of",
    "carry_addons_over",
    "forget_addons",
    "get_subscription_addon",
    "has_addons",
    "update_addon_of",
]


class SubscriptionAddon(Base):
    """`from_phase` and `max_quantity` are what the plan offered when it was bought."""

    __tablename__ = "subscription_addons"
    __table_args__ = (Index("subscription_addons_addon_key", "subscription_id", "addon_id", unique=True),)

    id: Mapped[Id] = mapped_column(primary_key=True)
    subscription_id: Mapped[Id] = mapped_column(ForeignKey("subscriptions.id"))
    addon_id: Mapped[Id] = mapped_column(ForeignKey("addons.id"))
    name: Mapped[str]
    description: Mapped[str | None]
    metadata_: Mapped[dict[str, str] | None] = mapped_column("metadata")
    from_phase: Mapped[str]
    max_quantity: Mapped[int]
    quantities: Mapped[tuple[Quantity, ...]] = mapped_column(ValueType(tuple[Quantity, ...]))
    created_at: Mapped[Instant]
    updated_at: Mapped[Instant]

    addon: Mapped[Addon] = relationship(lazy="raise")

    @property
    def bought(self) -> BoughtAddon:
        return BoughtAddon(
            rate_cards=self.addon.rate_cards,
            feature_ids=self.addon.feature_ids,
            from_phase=self.from_phase,
            quantities=self.quantities,
        )

    def in_force(self, now: datetime) -> bool:
        """Whether there is any of it, now or later."""
        later = (each.quantity for each in self.quantities if each.start > now)
        return any([quantity_at(self.quantities, now), *later])


class SubscriptionAddonNotFoundError(NotFoundError):
    pass


class AddonAttachedError(ConflictError):
    pass


class AddonPurchaseError(InvalidError):
    pass


def add_addon(
    session: Session,
    subscription_id: str,
    *,
    addon_id: str,
    quantity: int,
    timing: Timing,
    name: str | None = None,
    description: str | None = None,
    metadata: Mapping[str, str] | None = None,
    now: datetime,
) -> SubscriptionAddon:
    """Buy an add-on that the subscription's plan offers, from an instant on."""
    _, subscription = locked_subscription(session, subscription_id, "change_addons", now)
    offered = _offer(session, subscription, addon_id, now)
    owned = addons_of(session, subscription_id)
    _refuse_second(owned, offered.addon)
    at = _instant(subscription, timing, now)
    maximum = 1 if offered.addon.instance_type == "single" else offered.max_quantity or 1
    _check_quantity(quantity, maximum, at_least=1)
    _check_fit(subscription, offered, at)
    bought = SubscriptionAddon(
        id=new_id(now),
        subscription_id=subscription.id,
        addon=offered.addon,
        name=name or offered.addon.name,
        description=description,
        metadata_=None if metadata is None else dict(metadata),
        from_phase=offered.from_plan_phase,
        max_quantity=maximum,
        quantities=(Quantity(start=at, quantity=quantity),),
        created_at=now,
        updated_at=now,
    )
    session.add(bought)
    _write(subscription, [*owned, bought], at, now)
    session.flush()
    return bought


def _offer(session: Session, subscription: Subscription, addon_id: str, now: datetime) -> PlanAddon:
    if subscription.plan_id is None:
        message = "a subscription with terms of its own has no add-ons"
        hint = "Edit it instead: PATCH /api/v1/subscriptions/{subscriptionId}."
        raise SubscriptionForbiddenError(
            message, Issue(code="custom_subscription", message=message, hint=hint)
        )
    try:
        offered = get_plan_addon(session, subscription.plan_id, addon_id)
    except PlanAddonNotFoundError:
        offered = None
    if offered is None or offered.addon_id != addon_id:
        message = f"the plan of the subscription offers no add-on {addon_id!r}"
        hint = "GET /api/v1/plans/{planId}/addons lists what it offers."
        raise _refused("addon_not_offered", message, "$.addon.id", hint)
    if (status := offered.addon.status(now)) != "active":
        message = f"the add-on {offered.addon.key!r} is {status}: only an active one is sold"
        raise _refused("addon_invalid_status", message, "$.addon.id", "Offer its active version.")
    return offered


def _refused(code: str, message: str, field: str, hint: str) -> AddonPurchaseError:
    return AddonPurchaseError(message, Issue(code=code, message=message, field=field, hint=hint))


def _refuse_second(owned: Sequence[SubscriptionAddon], addon: Addon) -> None:
    for other in owned:
        if other.addon_id == addon.id:
            message = f"the subscription has the add-on {addon.key!r} already"
            hint = f"Change its quantity: PATCH .../addons/{other.id}."
            issue = Issue(code="addon_already_attached", message=message, field="$.addon.id", hint=hint)
            raise AddonAttachedError(message, issue)


def _instant(subscription: Subscription, timing: Timing, now: datetime) -> datetime:
    at = instant_of(timing, now=now, cycle=cycle_of(subscription, now))
    if at < whole_second(now):
        message = "an add-on can't be sold for what has passed"
        raise _refused("timing_in_the_past", message, "$.timing", "Take now or later.")
    return at


def _check_quantity(quantity: int, maximum: int, *, at_least: int) -> None:
    if quantity < at_least:
        message = f"the quantity is at least {at_least}"
        raise _refused("field_must_be_positive", message, "$.quantity", "Buy one, or none at all.")
    if quantity > maximum:
        message = f"a subscription can have {maximum} of this add-on at most"
        raise _refused("addon_quantity_too_high", message, "$.quantity", f"Take {maximum} or less.")


def _check_fit(subscription: Subscription, offered: PlanAddon, at: datetime) -> None:
    """In a phase that has it, and with cards that can be added to what is sold today."""
    spec = subscription.without_addons or subscription.spec
    phase = phase_at(spec, at)
    first = _first_phase(spec, offered)
    if phase is None or spec.phases.index(phase) < first:
        message = f"the add-on is sold from the phase {offered.from_plan_phase!r} on"
        raise _refused("addon_not_in_phase", message, "$.timing", "Buy it for that phase, or later.")
    if issues := list(_misfits(spec, offered, at)):
        raise AddonPurchaseError(issues[0].message, *issues)


def _first_phase(spec: ContractSpec, offered: PlanAddon) -> int:
    keys = [each.key for each in spec.phases]
    return keys.index(offered.from_plan_phase) if offered.from_plan_phase in keys else 0


def _misfits(spec: ContractSpec, offered: PlanAddon, at: datetime) -> Iterable[Issue]:
    """Each once, however many cards it is wrong with."""
    phases = spec.phases[_first_phase(spec, offered) :]
    sold = (item.rate_card for each in phases for item in each.items if not item.ended_by(at))
    return dict.fromkeys(
        replace(issue, field="$.addon.id")
        for card in sold
        for other in offered.addon.rate_cards
        if other.key == card.key
        for issue in check_cards(card, other, "$.addon")
    )


def _write(
    subscription: Subscription, owned: Sequence[SubscriptionAddon], at: datetime, now: datetime
) -> None:
    base = subscription.without_addons or subscription.spec
    spec = with_addons(subscription.spec, base, [each.bought for each in owned], since=at)
    subscription.without_addons = base if any(each.in_force(now) for each in owned) else None
    subscription.write(spec, now=now)
    subscription.bill_soon(now)


def carry_addons_over(session: Session, before: Subscription, after: Subscription, *, now: datetime) -> None:
    """The contract that follows has, from its beginning on, what the one before would have had of add-ons.

    Each in the version that its plan offers. Raises AddonPurchaseError where it offers none, or not as many.
    """
    at, carried = after.active_from, list[SubscriptionAddon]()
    for owned in addons_of(session, before.id):
        if owned.in_force(at):
            carried.append(_carried(session, owned, after, at, now))
    if not carried:
        return
    session.add_all(carried)
    _write(after, carried, at, now)
    session.flush()


def _carried(
    session: Session, owned: SubscriptionAddon, after: Subscription, at: datetime, now: datetime
) -> SubscriptionAddon:
    offered = _offered_again(session, owned, after)
    maximum = 1 if offered.addon.instance_type == "single" else offered.max_quantity or 1
    now_and_later = [each for each in owned.quantities if each.start > at]
    if quantity := quantity_at(owned.quantities, at):
        now_and_later.insert(0, Quantity(start=at, quantity=quantity))
    if max(each.quantity for each in now_and_later) > maximum:
        message = f"the plan's new version offers {maximum} of the add-on {owned.addon.key!r} at most"
        raise _not_carried("addon_quantity_too_high", message, owned)
    if issues := list(_misfits(after.spec, offered, at)):
        raise _not_carried(issues[0].code, issues[0].message, owned)
    return SubscriptionAddon(
        id=new_id(now),
        subscription_id=after.id,
        addon=offered.addon,
        name=owned.name,
        description=owned.description,
        metadata_=owned.metadata_,
        from_phase=offered.from_plan_phase,
        max_quantity=maximum,
        quantities=tuple(now_and_later),
        created_at=now,
        updated_at=now,
    )


def _offered_again(session: Session, owned: SubscriptionAddon, after: Subscription) -> PlanAddon:
    """The same add-on, or the version of it that is offered now."""
    for named in (owned.addon_id, owned.addon.key):
        try:
            return get_plan_addon(session, after.plan_id or "", named)
        except PlanAddonNotFoundError:
            continue
    message = f"the plan's new version offers no add-on {owned.addon.key!r}, which the subscription has"
    raise _not_carried("addon_not_offered", message, owned)


def _not_carried(code: str, message: str, owned: SubscriptionAddon) -> AddonPurchaseError:
    hint = f"Offer it, or change its quantity first, 0 to end it: PATCH .../addons/{owned.id}."
    return _refused(code, message, "$.targetVersion", hint)


def forget_addons(session: Session, subscription_id: str) -> None:
    """Of a subscription that has not begun and is deleted."""
    session.execute(delete(SubscriptionAddon).where(SubscriptionAddon.subscription_id == subscription_id))


def update_addon_of(
    session: Session,
    subscription_id: str,
    subscription_addon_id: str,
    *,
    quantity: int | None = None,
    timing: Timing = "immediate",
    changes: Mapping[str, object],
    now: datetime,
) -> SubscriptionAddon:
    """Change how many there are from an instant on, 0 to take it away; what was to change later is dropped.

    `changes` are new values of name, description and metadata_.
    """
    _, subscription = locked_subscription(session, subscription_id, "change_addons", now)
    changed = get_subscription_addon(session, subscription_id, subscription_addon_id)
    if quantity is not None:
        at = _instant(subscription, timing, now)
        _check_quantity(quantity, changed.max_quantity, at_least=0)
        kept = (each for each in changed.quantities if each.start < at)
        changed.quantities = (*kept, Quantity(start=at, quantity=quantity))
        _write(subscription, addons_of(session, subscription_id), at, now)
    for name, value in changes.items():
        setattr(changed, name, value)
    changed.updated_at = now
    session.flush()
    return changed


def addons_of(session: Session, subscription_id: str) -> Sequence[SubscriptionAddon]:
    """In the order in which they were bought."""
    query = _whole().where(SubscriptionAddon.subscription_id == subscription_id)
    return session.scalars(query.order_by(SubscriptionAddon.id)).all()


def has_addons(session: Session, subscription: Subscription, now: datetime) -> bool:
    """Whether it has any of an add-on, now or later."""
    if subscription.without_addons is None:
        return False
    return any(each.in_force(now) for each in addons_of(session, subscription.id))


def get_subscription_addon(
    session: Session, subscription_id: str, subscription_addon_id: str
) -> SubscriptionAddon:
    query = _whole().where(
        SubscriptionAddon.subscription_id == subscription_id, SubscriptionAddon.id == subscription_addon_id
    )
    if found := session.scalar(query):
        return found
    message = f"the subscription {subscription_id!r} has no add-on {subscription_addon_id!r}"
    raise SubscriptionAddonNotFoundError(message)


def _whole() -> Select[SubscriptionAddon]:
    return select(SubscriptionAddon).options(joinedload(SubscriptionAddon.addon))
