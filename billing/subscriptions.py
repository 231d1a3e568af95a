"""Subscriptions: a customer's contract, copied from a plan's version when it begins.

Stored are dated phases and items; everything that is owed follows from them (billing/timeline.py). Nothing
that later happens to the plan reaches a running contract.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import ForeignKey, Index, Select, or_, select
from sqlalchemy.orm import Mapped, Session, joinedload, mapped_column, relationship, selectinload

from billing.customer import Customer
from billing.timeline import Contract, ContractItem
from catalog.interval import Interval, parse_interval
from catalog.plans import Plan
from catalog.rate_card import Phase, RateCard
from metering.database import Base, Id, Instant, ValueType
from metering.errors import ConflictError, InvalidError, Issue, NotFoundError
from metering.ids import new_id

__all__ = [
    "OneSubscriptionAtATimeError",
    "PlanNotActiveError",
    "Subscription",
    "SubscriptionItem",
    "SubscriptionNotFoundError",
    "SubscriptionPhase",
    "SubscriptionStatus",
    "create_subscription",
    "get_subscription",
    "has_subscription",
    "phase_ends",
    "subscriptions_of",
]

SubscriptionStatus = Literal["active", "inactive", "canceled", "scheduled"]


LONGEST_AGO = timedelta(days=10 * 365)


class Subscription(Base):
    """Active from `active_from` (a whole second) until `active_to`; None: until further notice."""

    __tablename__ = "subscriptions"
    __table_args__ = (
        Index(None, "customer_id", "active_from"),
        Index(
            "subscriptions_open_ended_key", "customer_id", unique=True, postgresql_where="active_to IS NULL"
        ),
        Index(None, "next_billing_at", postgresql_where="next_billing_at IS NOT NULL"),
    )

    id: Mapped[Id] = mapped_column(primary_key=True)
    customer_id: Mapped[Id] = mapped_column(ForeignKey("customers.id"))
    plan_id: Mapped[Id] = mapped_column(ForeignKey("plans.id"))
    name: Mapped[str]
    description: Mapped[str | None]
    metadata_: Mapped[dict[str, str] | None] = mapped_column("metadata")
    currency: Mapped[str]
    billing_cadence: Mapped[str]
    billing_anchor: Mapped[Instant]
    pro_rating: Mapped[bool]
    active_from: Mapped[Instant]
    active_to: Mapped[Instant | None]
    next_billing_at: Mapped[Instant | None]
    created_at: Mapped[Instant]
    updated_at: Mapped[Instant]

    plan: Mapped[Plan] = relationship(lazy="raise")
    phases: Mapped[list["SubscriptionPhase"]] = relationship(
        lazy="raise", order_by="SubscriptionPhase.active_from, SubscriptionPhase.position"
    )

    def status(self, now: datetime) -> SubscriptionStatus:
        if self.active_from > now:
            return "scheduled"
        if self.active_to is None:
            return "active"
        return "canceled" if now < self.active_to else "inactive"

    @property
    def contract(self) -> Contract:
        return Contract(
            subscription_id=self.id,
            currency=self.currency,
            billing_anchor=self.billing_anchor,
            billing_cadence=parse_interval(self.billing_cadence),
            prorate=self.pro_rating,
            items=tuple(item.on_timeline(phase) for phase in self.phases for item in phase.items),
        )


class SubscriptionPhase(Base):
    __tablename__ = "subscription_phases"

    id: Mapped[Id] = mapped_column(primary_key=True)
    subscription_id: Mapped[Id] = mapped_column(ForeignKey("subscriptions.id"), index=True)
    position: Mapped[int]
    key: Mapped[str]
    name: Mapped[str]
    description: Mapped[str | None]
    metadata_: Mapped[dict[str, str] | None] = mapped_column("metadata")
    active_from: Mapped[Instant]
    active_to: Mapped[Instant | None]
    created_at: Mapped[Instant]
    updated_at: Mapped[Instant]

    items: Mapped[list["SubscriptionItem"]] = relationship(lazy="raise", order_by="SubscriptionItem.position")


class SubscriptionItem(Base):
    """One version of a rate card in a phase; `feature_id` pins what its key meant when it was agreed."""

    __tablename__ = "subscription_items"

    id: Mapped[Id] = mapped_column(primary_key=True)
    phase_id: Mapped[Id] = mapped_column(ForeignKey("subscription_phases.id"), index=True)
    position: Mapped[int]
    key: Mapped[str]
    version: Mapped[int]
    rate_card: Mapped[RateCard] = mapped_column(ValueType(RateCard))
    feature_id: Mapped[Id | None] = mapped_column(ForeignKey("features.id"))
    active_from: Mapped[Instant]
    active_to: Mapped[Instant | None]
    created_at: Mapped[Instant]
    updated_at: Mapped[Instant]

    def on_timeline(self, phase: SubscriptionPhase) -> ContractItem:
        return ContractItem(
            id=self.id,
            phase_id=phase.id,
            phase_key=phase.key,
            key=self.key,
            version=self.version,
            rate_card=self.rate_card,
            feature_id=self.feature_id,
            start=self.active_from,
            end=self.active_to,
        )


class SubscriptionNotFoundError(NotFoundError):
    pass


class PlanNotActiveError(InvalidError):
    pass


class OneSubscriptionAtATimeError(ConflictError):
    pass


def create_subscription(
    session: Session,
    *,
    customer: Customer,
    plan: Plan,
    active_from: datetime,
    billing_anchor: datetime | None = None,
    starting_phase: str | None = None,
    name: str | None = None,
    description: str | None = None,
    metadata: dict[str, str] | None = None,
    now: datetime,
) -> Subscription:
    """Sign the customer up; the customer must have been loaded with a lock.

    `active_from` may lie in the past (the customer moved here from elsewhere) or in the future.
    """
    customer.require_living()
    _require_active(plan, now)
    start = active_from.replace(microsecond=0)
    _require_recent(start, now)
    _require_no_other(session, customer, since=min(start, now))
    _settle_currency(customer, plan)
    subscription = Subscription(
        id=new_id(now),
        customer_id=customer.id,
        plan=plan,
        name=name or plan.name,
        description=description if description is not None else plan.description,
        metadata_=metadata,
        currency=plan.currency,
        billing_cadence=plan.billing_cadence,
        billing_anchor=(billing_anchor or start).replace(microsecond=0),
        pro_rating=plan.pro_rating,
        active_from=start,
        next_billing_at=start,
        created_at=now,
        updated_at=now,
        phases=_phases(_phases_from(plan, starting_phase), plan, start, now),
    )
    session.add(subscription)
    session.flush()
    return subscription


def _phases_from(plan: Plan, key: str | None) -> tuple[Phase, ...]:
    """The plan's phases without those before `key`."""
    for i, phase in enumerate(plan.phases):
        if key in (None, phase.key):
            return plan.phases[i:]
    message = f"the plan has no phase {key!r}"
    raise InvalidError(message, Issue(code="unknown_phase", message=message, field="$.startingPhase"))


def _phases(
    of_plan: tuple[Phase, ...], plan: Plan, start: datetime, now: datetime
) -> list[SubscriptionPhase]:
    phases = []
    for position, (phase, end) in enumerate(zip(of_plan, phase_ends(of_plan, start), strict=True)):
        phases.append(
            SubscriptionPhase(
                id=new_id(now),
                position=position,
                key=phase.key,
                name=phase.name,
                description=phase.description,
                metadata_=phase.metadata,
                active_from=start,
                active_to=end,
                created_at=now,
                updated_at=now,
                items=_items(plan, phase, start, end, now),
            )
        )
        start = end or start
    return phases


def phase_ends(phases: Iterable[Phase], start: datetime) -> Iterator[datetime | None]:
    """When each phase ends. Months that follow months are counted from one day, so that they don't drift."""
    anchor, months = start, 0
    for phase in phases:
        if phase.duration is None:
            yield None
            continue
        interval = parse_interval(phase.duration)
        months += interval.months
        end = Interval(months, interval.time).after(anchor)
        yield end
        if interval.time:
            anchor, months = end, 0


def _items(
    plan: Plan, phase: Phase, start: datetime, end: datetime | None, now: datetime
) -> list[SubscriptionItem]:
    return [
        SubscriptionItem(
            id=new_id(now),
            position=position,
            key=card.key,
            version=0,
            rate_card=card,
            feature_id=plan.feature_ids[card.feature_key] if card.feature_key else None,
            active_from=start,
            active_to=end,
            created_at=now,
            updated_at=now,
        )
        for position, card in enumerate(phase.rate_cards)
    ]


def _require_active(plan: Plan, now: datetime) -> None:
    status = plan.status(now)
    if status != "active":
        message = f"the plan {plan.key!r} version {plan.version} is {status}: only an active plan is sold"
        hint = "Publish it first: POST /api/v1/plans/{planId}/publish."
        raise PlanNotActiveError(
            message, Issue(code="plan_invalid_status", message=message, field="$.plan", hint=hint)
        )


def _require_recent(start: datetime, now: datetime) -> None:
    """Every period since the start is billed: a slip of the keyboard must not make a million of them."""
    if start < now - LONGEST_AGO:
        message = f"a subscription can begin at most {LONGEST_AGO.days // 365} years ago"
        raise InvalidError(message, Issue(code="too_long_ago", message=message, field="$.timing"))


def _require_no_other(session: Session, customer: Customer, *, since: datetime) -> None:
    """The lock on the customer makes this safe against two requests at once.

    One that has ended must have ended by `since`: no usage may be billed by two contracts.
    """
    if has_subscription(session, customer.id, since=since):
        code = "only_single_subscription_allowed_per_customer_at_a_time"
        message = "the customer has a subscription, and can have one at a time"
        raise OneSubscriptionAtATimeError(message, Issue(code=code, message=message, field="$.customerId"))


def _settle_currency(customer: Customer, plan: Plan) -> None:
    """The first priced subscription fixes the customer's currency."""
    priced = any(card.price is not None for phase in plan.phases for card in phase.rate_cards)
    if not priced:
        return
    if customer.currency not in (None, plan.currency):
        message = f"the customer pays in {customer.currency}, the plan costs {plan.currency}"
        raise InvalidError(message, Issue(code="currency_mismatch", message=message, field="$.plan"))
    customer.currency = plan.currency


def get_subscription(session: Session, subscription_id: str) -> Subscription:
    """With its plan, phases and items."""
    if subscription := session.scalar(_whole().where(Subscription.id == subscription_id)):
        return subscription
    raise SubscriptionNotFoundError(f"no subscription {subscription_id!r}")


def subscriptions_of(session: Session, customer_ids: Iterable[str]) -> Sequence[Subscription]:
    """All subscriptions that those customers ever had, oldest first, whole."""
    query = _whole().where(Subscription.customer_id.in_(set(customer_ids)))
    return session.scalars(query.order_by(Subscription.active_from, Subscription.id)).all()


def has_subscription(session: Session, customer_id: str, *, since: datetime | None = None) -> bool:
    """Whether there is one that has not ended by `since`; with None, whether there ever was one."""
    query = select(Subscription.id).where(Subscription.customer_id == customer_id)
    if since is not None:
        query = query.where(or_(Subscription.active_to.is_(None), Subscription.active_to > since))
    return session.scalar(query.limit(1)) is not None


def _whole() -> Select[Subscription]:
    return select(Subscription).options(
        joinedload(Subscription.plan), selectinload(Subscription.phases).selectinload(SubscriptionPhase.items)
    )
