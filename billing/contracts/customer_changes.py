"""Creating, changing and deleting customers, and the rules that protect their bills."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import exists, select, update
from sqlalchemy.orm import Session

from billing.contracts.customer import Address, Customer, SubjectOwner, address_issues
from billing.contracts.pending import PendingLine
from billing.contracts.subscriptions import (
    Subscription,
    SubscriptionItem,
    SubscriptionPhase,
    has_subscription,
)
from catalog.money import is_currency
from metering.database import translating
from metering.errors import ConflictError, InvalidError, Issue
from metering.ids import is_ulid, new_id
from metering.subjects import provision_subjects

__all__ = [
    "CustomerDetails",
    "CustomerInUseError",
    "SubjectTakenError",
    "create_customer",
    "delete_customer",
    "taken_away",
    "update_customer",
    "why_kept",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerDetails:
    """What a client may say about a customer; an update replaces all of it."""

    name: str
    key: str | None = None
    description: str | None = None
    metadata: Mapping[str, str] | None = None
    subject_keys: tuple[str, ...] = ()
    primary_email: str | None = None
    currency: str | None = None
    billing_address: Address | None = None


class SubjectTakenError(ConflictError):
    pass


class CustomerInUseError(InvalidError):
    pass


def create_customer(session: Session, details: CustomerDetails, *, now: datetime) -> Customer:
    _check(details)
    customer = Customer(id=new_id(now), created_at=now, subjects=[])
    return _write(session, customer, details, now)


def update_customer(
    session: Session, customer: Customer, details: CustomerDetails, *, now: datetime
) -> Customer:
    """Replace everything; the customer must have been loaded with a lock.

    Subjects may be added at any time. They are not taken away while a subscription runs, nor later while
    their usage may still be billed: whoever had them next would pay for it again.
    """
    _check(details)
    customer.require_living()
    hint = why_kept(session, customer, now)
    issues = [] if hint is None else taken_away(customer, details, hint=hint)
    issues += _currency_changes(customer, details) if _is_billed(session, customer) else []
    if issues:
        raise CustomerInUseError(issues[0].message, *issues)
    return _write(session, customer, details, now)


def delete_customer(session: Session, customer: Customer, *, now: datetime) -> None:
    """Its subjects and key are free again; the customer must have been loaded with a lock.

    No billing looks at it again, so that nothing is given back of what its subjects used. One that was
    deleted stays as it is.
    """
    if customer.deleted_at is not None:
        return
    if has_subscription(session, customer.id, since=now):
        message = "the customer has a subscription"
        raise CustomerInUseError(
            message, Issue(code="customer_in_use", message=message, hint="End it first.")
        )
    ended, by_hand = Subscription.customer_id == customer.id, PendingLine.customer_id == customer.id
    session.execute(update(Subscription).where(ended).values(next_billing_at=None, settled_until=now))
    session.execute(update(PendingLine).where(by_hand).values(next_billing_at=None))
    customer.subjects = []
    customer.deleted_at = customer.updated_at = now
    session.flush()


def _check(details: CustomerDetails) -> None:
    issues = []
    if details.currency is not None and not is_currency(details.currency):
        message = f"{details.currency!r} is no currency"
        issues.append(
            Issue(code="currency_invalid", message=message, field="$.currency", hint="Such as USD.")
        )
    if details.key is not None and is_ulid(details.key):
        issues.append(Issue(code="invalid_key", message="a key can't look like an id", field="$.key"))
    if details.billing_address is not None:
        issues += address_issues(details.billing_address, "$.billingAddress")
    for i, subject in enumerate(details.subject_keys):
        if subject in details.subject_keys[:i]:
            message = f"{subject!r} is given twice"
            issues.append(Issue(code="duplicate_subject", message=message, field=_subject_path(i)))
    if issues:
        raise InvalidError(issues[0].message, *issues)


def why_kept(session: Session, customer: Customer, now: datetime) -> str | None:
    """Until when its usage is looked for at each billing, as a hint; None: it is no more."""
    if has_subscription(session, customer.id, since=now):
        return "End the subscription first: its usage is looked for until two months after that."
    contracts = (
        select(Subscription.active_to)
        .join(SubscriptionPhase, SubscriptionPhase.subscription_id == Subscription.id)
        .join(SubscriptionItem, SubscriptionItem.phase_id == SubscriptionPhase.id)
        .where(Subscription.customer_id == customer.id, Subscription.next_billing_at.is_not(None))
        .where(SubscriptionItem.feature_id.is_not(None))
    )
    by_hand = (
        select(PendingLine.period_end)
        .where(PendingLine.customer_id == customer.id, PendingLine.next_billing_at.is_not(None))
        .where(PendingLine.feature_id.is_not(None))
    )
    ends = [end for query in (contracts, by_hand) for end in session.scalars(query) if end is not None]
    if not ends:
        return None
    return f"It is billed and looked for until two months after {max(ends).isoformat()}: wait until then."


def taken_away(customer: Customer, details: CustomerDetails, *, hint: str) -> list[Issue]:
    """What refuses that the customer loses a subject, or the key."""
    return [
        Issue(
            code="subject_in_use",
            message=f"{owned.subject_key!r} can't be taken away while its usage may still be billed",
            field="$.key" if owned.position is None else "$.usageAttribution.subjectKeys",
            hint=hint,
        )
        for owned in customer.subjects
        if owned.subject_key not in _wanted(details)
    ]


def _is_billed(session: Session, customer: Customer) -> bool:
    """Whether there ever was a subscription, or a line by hand that was not taken back."""
    added = exists().where(PendingLine.customer_id == customer.id, PendingLine.deleted_at.is_(None))
    return has_subscription(session, customer.id) or bool(session.scalar(select(added)))


def _currency_changes(customer: Customer, details: CustomerDetails) -> list[Issue]:
    """What was billed, or is still to be billed, stays in its currency."""
    if customer.currency is None or details.currency in (None, customer.currency):
        return []
    message = f"the customer is billed in {customer.currency}"
    hint = "Leave it out. Who is to pay in another currency is another customer."
    return [Issue(code="currency_mismatch", message=message, field="$.currency", hint=hint)]


def _write(session: Session, customer: Customer, details: CustomerDetails, now: datetime) -> Customer:
    _refuse_taken(session, customer, details)
    customer.key = details.key
    customer.name = details.name
    customer.description = details.description
    customer.metadata_ = None if details.metadata is None else dict(details.metadata)
    customer.primary_email = details.primary_email
    customer.currency = details.currency or customer.currency
    customer.billing_address = details.billing_address
    customer.updated_at = now
    _write_subjects(session, customer, details)
    session.add(customer)
    message = "a subject or key was given to another customer at the same time"
    lost_race = SubjectTakenError(message, Issue(code="subject_taken", message=message, hint="Try again."))
    with translating({"subject_owners_pkey": lost_race}):
        session.flush()
    provision_subjects(session, details.subject_keys, now=now)
    return customer


def _refuse_taken(session: Session, customer: Customer, details: CustomerDetails) -> None:
    """Say who has a key already; the primary key itself guards against those who come at the same time."""
    wanted = _wanted(details)
    query = select(SubjectOwner).where(
        SubjectOwner.subject_key.in_(wanted), SubjectOwner.customer_id != customer.id
    )
    issues = [
        Issue(
            code="subject_taken",
            message=f"{owned.subject_key!r} belongs to the customer {owned.customer_id}",
            field="$.key" if (position := wanted[owned.subject_key]) is None else _subject_path(position),
            hint="A subject has one customer: take it from that one first.",
        )
        for owned in session.scalars(query.order_by(SubjectOwner.subject_key))
    ]
    if issues:
        raise SubjectTakenError(issues[0].message, *issues)


def _subject_path(position: int) -> str:
    return f"$.usageAttribution.subjectKeys[{position}]"


def _wanted(details: CustomerDetails) -> dict[str, int | None]:
    """Each subject that the customer is to own, with its position; its own key comes last, with None."""
    wanted: dict[str, int | None] = {subject: i for i, subject in enumerate(details.subject_keys)}
    if details.key is not None:
        wanted.setdefault(details.key, None)
    return wanted


def _write_subjects(session: Session, customer: Customer, details: CustomerDetails) -> None:
    """In key order: two who claim the same subjects at once wait for each other in one direction only."""
    wanted = _wanted(details)
    owned = {each.subject_key: each for each in customer.subjects}
    for subject in sorted(wanted):
        kept = owned.setdefault(subject, SubjectOwner(subject_key=subject))
        kept.position = wanted[subject]
        session.add(kept)
    customer.subjects = [owned[subject] for subject in wanted]
