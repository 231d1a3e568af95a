"""Subscriptions: a customer's contract, copied from a plan's version when it begins.

Stored are dated phases and items; everything that is owed follows from them (billing/rating/timeline.py).
Nothing that later happens to the plan reaches a running contract.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import ForeignKey, Index, Select, or_, select
from sqlalchemy.orm import Mapped, Session, joinedload, mapped_column, relationship, selectinload

from billing.contracts.agreement import (
    Agreement,
    CustomPlan,
    PlanNotActiveError,
    agreement_of,
    settle_currency,
)
from billing.contracts.customer import Customer, get_customer
from billing.contracts.edits import ContractSpec, SpecItem, SpecPhase, phase_at, phase_ends, spec_of
from billing.contracts.subscription_rules import (
    SubscriptionAction,
    SubscriptionStatus,
    next_billing_cycle,
    require_action,
    status_of,
    whole_second,
)
from billing.rating.timeline import Contract, ContractItem
from catalog.interval import parse_interval
from catalog.plans import Plan
from catalog.rate_card import RateCard
from metering.database import Base, Id, Instant, ValueType, among, translating
from metering.errors import ConflictError, InvalidError, Issue, NotFoundError
from metering.ids import new_id
from metering.period import Period

__all__ = [
    "OneSubscriptionAtATimeError",
    "PlanNotActiveError",
    "Subscription",
    "SubscriptionItem",
    "SubscriptionNotFoundError",
    "SubscriptionPhase",
    "SubscriptionStatus",
    "begin",
    "billing_period",
    "create_subscription",
    "cycle_of",
    "get_subscription",
    "has_subscription",
    "locked_subscription",
    "phase_ends",
    "require_no_other",
    "subscriptions_of",
]

TICK = datetime.resolution
LONGEST_AGO = timedelta(days=10 * 365)


class Subscription(Base):
    """Active from `active_from` (a whole second) until `active_to`; None: until further notice.

    Without a plan its terms are its own. `before_cancelation` is what was agreed before an end was set that
    is still to come, `without_addons` what was agreed before the first add-on was bought.
    What began before `settled_until` is billed, and too old for late usage; None: nobody has looked since the
    contract was written.
    """

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
    plan_id: Mapped[Id | None] = mapped_column(ForeignKey("plans.id"))
    name: Mapped[str]
    description: Mapped[str | None]
    metadata_: Mapped[dict[str, str] | None] = mapped_column("metadata")
    currency: Mapped[str]
    billing_cadence: Mapped[str]
    billing_anchor: Mapped[Instant]
    pro_rating: Mapped[bool]
    active_from: Mapped[Instant]
    active_to: Mapped[Instant | None]
    before_cancelation: Mapped[ContractSpec | None] = mapped_column(ValueType(ContractSpec))
    without_addons: Mapped[ContractSpec | None] = mapped_column(ValueType(ContractSpec))
    next_billing_at: Mapped[Instant | None]
    settled_until: Mapped[Instant | None]
    created_at: Mapped[Instant]
    updated_at: Mapped[Instant]

    plan: Mapped[Plan | None] = relationship(lazy="raise")
    phases: Mapped[list["SubscriptionPhase"]] = relationship(
        lazy="raise",
        cascade="all, delete-orphan",
        order_by="SubscriptionPhase.active_from, SubscriptionPhase.position",
    )

    def status(self, now: datetime) -> SubscriptionStatus:
        return status_of(self.active_from, self.active_to, now)

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

    @property
    def spec(self) -> ContractSpec:
        return ContractSpec(start=self.active_from, phases=tuple(phase.spec for phase in self.phases))

    def write(self, spec: ContractSpec, *, now: datetime) -> None:
        """Make the phases and items those of `spec`; rows that it names by id stay the rows they are."""
        rows = {phase.id: phase for phase in self.phases}
        self.phases = [
            (rows.get(phase.id or "") or SubscriptionPhase.new(phase.id, now)).written(phase, position, now)
            for position, phase in enumerate(spec.phases)
        ]
        self.updated_at = now
        self.settled_until = None

    def bill_soon(self, now: datetime) -> None:
        """Whatever has become due by a change, or is no longer due, is found by the next billing."""
        self.next_billing_at = min(self.next_billing_at or now, now)


class SubscriptionPhase(Base):
    """`duration` is the calendar time that it was agreed to last: None for the last one."""

    __tablename__ = "subscription_phases"

    id: Mapped[Id] = mapped_column(primary_key=True)
    subscription_id: Mapped[Id] = mapped_column(ForeignKey("subscriptions.id"), index=True)
    position: Mapped[int]
    key: Mapped[str]
    name: Mapped[str]
    description: Mapped[str | None]
    metadata_: Mapped[dict[str, str] | None] = mapped_column("metadata")
    duration: Mapped[str | None]
    active_from: Mapped[Instant]
    active_to: Mapped[Instant | None]
    created_at: Mapped[Instant]
    updated_at: Mapped[Instant]

    items: Mapped[list["SubscriptionItem"]] = relationship(
        lazy="raise", cascade="all, delete-orphan", order_by="SubscriptionItem.position"
    )

    @classmethod
    def new(cls, phase_id: str | None, now: datetime) -> "SubscriptionPhase":
        return cls(id=phase_id or new_id(now), created_at=now, items=[])

    @property
    def spec(self) -> SpecPhase:
        return SpecPhase(
            id=self.id,
            key=self.key,
            name=self.name,
            description=self.description,
            metadata=self.metadata_,
            duration=self.duration,
            start=self.active_from,
            end=self.active_to,
            items=tuple(item.spec for item in self.items),
        )

    def items_at(self, at: datetime) -> list["SubscriptionItem"]:
        """What it sells then; before it begins what it begins with, after its end what it sold last."""
        if self.active_to is not None:
            at = min(at, self.active_to - TICK)
        return [item for item in self.items if item.spec.sold_at(max(at, self.active_from))]

    def written(self, phase: SpecPhase, position: int, now: datetime) -> "SubscriptionPhase":
        _assign(
            self,
            now,
            position=position,
            key=phase.key,
            name=phase.name,
            description=phase.description,
            metadata_=None if phase.metadata is None else dict(phase.metadata),
            duration=phase.duration,
            active_from=phase.start,
            active_to=phase.end,
        )
        rows = {item.id: item for item in self.items}
        self.items = [
            (rows.get(item.id or "") or SubscriptionItem.new(item.id, now)).written(item, place, now)
            for place, item in enumerate(phase.items)
        ]
        return self


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

    @classmethod
    def new(cls, item_id: str | None, now: datetime) -> "SubscriptionItem":
        return cls(id=item_id or new_id(now), created_at=now)

    @property
    def spec(self) -> SpecItem:
        return SpecItem(
            id=self.id,
            key=self.key,
            version=self.version,
            rate_card=self.rate_card,
            feature_id=self.feature_id,
            start=self.active_from,
            end=self.active_to,
        )

    def written(self, item: SpecItem, position: int, now: datetime) -> "SubscriptionItem":
        _assign(
            self,
            now,
            position=position,
            key=item.key,
            version=item.version,
            rate_card=item.rate_card,
            feature_id=item.feature_id,
            active_from=item.start,
            active_to=item.end,
        )
        return self

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


def _assign(row: SubscriptionPhase | SubscriptionItem, now: datetime, **values: object) -> None:
    """What does not change is not written, and does not look as if it had changed."""
    changed = {name: value for name, value in values.items() if getattr(row, name) != value}
    for name, value in changed.items():
        setattr(row, name, value)
    if changed:
        row.updated_at = now


class SubscriptionNotFoundError(NotFoundError):
    pass


class OneSubscriptionAtATimeError(ConflictError):
    pass


def create_subscription(
    session: Session,
    *,
    customer: Customer,
    plan: Plan | CustomPlan,
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
    terms = agreement_of(session, plan, starting_phase=starting_phase, now=now)
    return begin(
        session,
        customer=customer,
        terms=terms,
        active_from=active_from,
        billing_anchor=billing_anchor,
        name=name,
        description=description,
        metadata=metadata,
        now=now,
    )


def begin(
    session: Session,
    *,
    customer: Customer,
    terms: Agreement,
    active_from: datetime,
    billing_anchor: datetime | None = None,
    name: str | None = None,
    description: str | None = None,
    metadata: Mapping[str, str] | None = None,
    now: datetime,
) -> Subscription:
    """The contract of one who agrees to `terms`; the customer must have been loaded with a lock."""
    customer.require_living()
    start = whole_second(active_from)
    _require_recent(start, now)
    require_no_other(session, customer.id, since=start)
    settle_currency(customer, terms)
    stated = metadata if metadata is not None else terms.metadata
    subscription = Subscription(
        id=new_id(now),
        customer_id=customer.id,
        plan=terms.plan,
        name=name or terms.name,
        description=description if description is not None else terms.description,
        metadata_=None if stated is None else dict(stated),
        currency=terms.currency,
        billing_cadence=terms.billing_cadence,
        billing_anchor=whole_second(billing_anchor or start),
        pro_rating=terms.pro_rating,
        active_from=start,
        next_billing_at=start,
        created_at=now,
        phases=[],
    )
    subscription.write(spec_of(terms.phases, start=start, feature_ids=terms.feature_ids), now=now)
    session.add(subscription)
    with translating({"subscriptions_open_ended_key": _another("$.customerId")}):
        session.flush()
    return subscription


def _require_recent(start: datetime, now: datetime) -> None:
    """Every period since the start is billed: a slip of the keyboard must not make a million of them."""
    if start < now - LONGEST_AGO:
        message = f"a subscription can begin at most {LONGEST_AGO.days // 365} years ago"
        raise InvalidError(message, Issue(code="too_long_ago", message=message, field="$.timing"))


def require_no_other(
    session: Session, customer_id: str, *, since: datetime, but: str = "", field: str = "$.customerId"
) -> None:
    """That none but `but` is in force at `since` or later: no usage may be billed by two contracts.

    The lock on the customer makes this safe against two requests at once.
    """
    query = _in_force(customer_id, since).where(Subscription.id != but)
    if session.scalar(query.limit(1)) is not None:
        raise _another(field)


def _another(field: str) -> OneSubscriptionAtATimeError:
    code = "only_single_subscription_allowed_per_customer_at_a_time"
    message = "the customer has a subscription, and can have one at a time"
    hint = "Change it, or cancel it first; a scheduled one can be deleted."
    return OneSubscriptionAtATimeError(message, Issue(code=code, message=message, field=field, hint=hint))


def _in_force(customer_id: str, since: datetime) -> Select[str]:
    """Those that have not ended by then; what ended as it began was never in force."""
    lasting = Subscription.active_to > Subscription.active_from
    return select(Subscription.id).where(
        Subscription.customer_id == customer_id,
        or_(Subscription.active_to.is_(None), (Subscription.active_to > since) & lasting),
    )


def get_subscription(session: Session, subscription_id: str, *, again: bool = False) -> Subscription:
    """With its plan, phases and items; `again`: as they are now, whatever the session has read before."""
    query = _whole().where(Subscription.id == subscription_id).execution_options(populate_existing=again)
    if subscription := session.scalar(query):
        return subscription
    raise SubscriptionNotFoundError(f"no subscription {subscription_id!r}")


def billing_period(subscription: Subscription, at: datetime) -> Period | None:
    """The one that holds `at`, cut where its phase begins and ends; None while the contract does not run."""
    phase = phase_at(subscription.spec, at)
    if phase is None:
        return None
    whole = parse_interval(subscription.billing_cadence).period_of(subscription.billing_anchor, at)
    return Period(start=max(whole.start, phase.start), end=min(whole.end, phase.end or whole.end))


def locked_subscription(
    session: Session, subscription_id: str, action: SubscriptionAction, now: datetime
) -> tuple[Customer, Subscription]:
    """The subscription and its customer, whose lock guards both, if `action` is allowed.

    What the transaction has read of the subscription before it had the lock is read again.
    """
    owner = select(Subscription.customer_id).where(Subscription.id == subscription_id)
    if (customer_id := session.scalar(owner)) is None:
        raise SubscriptionNotFoundError(f"no subscription {subscription_id!r}")
    customer = get_customer(session, customer_id, lock=True)
    subscription = get_subscription(session, subscription_id, again=True)
    require_action(subscription.status(now), action)
    return customer, subscription


def cycle_of(subscription: Subscription, now: datetime, *, within_phase: bool = True) -> datetime:
    """When the subscription's next billing cycle begins: no billing period reaches into another phase."""
    phase = phase_at(subscription.spec, now) if within_phase else None
    return next_billing_cycle(
        subscription.billing_anchor,
        parse_interval(subscription.billing_cadence),
        now,
        phase_end=phase.end if phase else None,
    )


def subscriptions_of(
    session: Session, customer_ids: Iterable[str], *, plans: bool = False
) -> Sequence[Subscription]:
    """All subscriptions that those customers ever had, oldest first, with phases and items; and `plans`."""
    query = _OF_CUSTOMERS.options(selectinload(Subscription.plan)) if plans else _OF_CUSTOMERS
    return session.scalars(query, {"ids": list(customer_ids)}).unique().all()


_OF_CUSTOMERS = (
    select(Subscription)
    .options(joinedload(Subscription.phases).joinedload(SubscriptionPhase.items))
    .where(among(Subscription.customer_id, "ids"))
    .order_by(Subscription.active_from, Subscription.id)
)


def has_subscription(session: Session, customer_id: str, *, since: datetime | None = None) -> bool:
    """Whether there is one that has not ended by `since`; with None, whether there ever was one."""
    if since is not None:
        return session.scalar(_in_force(customer_id, since).limit(1)) is not None
    ever = select(Subscription.id).where(Subscription.customer_id == customer_id)
    return session.scalar(ever.limit(1)) is not None


def _whole() -> Select[Subscription]:
    return select(Subscription).options(
        joinedload(Subscription.plan), selectinload(Subscription.phases).selectinload(SubscriptionPhase.items)
    )
