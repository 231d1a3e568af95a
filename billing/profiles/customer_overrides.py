"""Which billing profile a customer is invoiced by: pinned to one, or the default one whichever that is."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session, selectinload

from billing.contracts.customer import Customer, get_customer
from billing.profiles.profile import (
    BillingProfile,
    CustomerOverride,
    ProfileNotFoundError,
    get_profile,
    profiles_of,
)
from billing.profiles.profile_changes import look_again, require_living
from billing.profiles.profile_rules import is_anchored_alike
from metering.errors import InvalidError, Issue, NotFoundError

__all__ = [
    "CustomerProfile",
    "OverrideFilter",
    "OverrideNotFoundError",
    "OverrideOrder",
    "list_overrides",
    "pin_profile",
    "profile_of",
    "unpin_profile",
]

OverrideOrder = Literal[
    "customerId", "customerName", "customerKey", "customerPrimaryEmail", "customerCreatedAt"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerProfile:
    """A customer with the profile that they are invoiced by, and whether that was said of them."""

    customer: Customer
    override: CustomerOverride | None
    profile: BillingProfile


class OverrideNotFoundError(NotFoundError):
    pass


def profile_of(session: Session, customer_id: str) -> CustomerProfile:
    return _with_profiles(session, [get_customer(session, customer_id)])[0]


def pin_profile(
    session: Session, customer_id: str, *, profile_id: str | None, now: datetime
) -> CustomerProfile:
    """None: to the default one. What is due is looked at anew where it is to be collected otherwise."""
    if profile_id is not None:  # before the customer, as whoever changes a profile locks them
        _require_profile(session, profile_id)
    customer = get_customer(session, customer_id, lock=True)
    customer.require_living()
    before = profiles_of(session, [customer.id])[customer.id]
    override = session.get(CustomerOverride, customer.id)
    if override is None:
        override = CustomerOverride(customer_id=customer.id, created_at=now)
        session.add(override)
    override.billing_profile_id = profile_id
    override.updated_at = now
    return _settled(session, customer, before, now)


def unpin_profile(session: Session, customer_id: str, *, now: datetime) -> None:
    customer = get_customer(session, customer_id, lock=True)
    override = session.get(CustomerOverride, customer.id)
    if override is None:
        message = f"nothing is said of how {customer.name!r} is invoiced"
        raise OverrideNotFoundError(message, Issue(code="customer_override_not_found", message=message))
    before = profiles_of(session, [customer.id])[customer.id]
    session.delete(override)
    _settled(session, customer, before, now)


def _require_profile(session: Session, profile_id: str) -> None:
    """Locked, so that it is not deleted meanwhile."""
    field = "$.billingProfileId"
    try:
        require_living(get_profile(session, profile_id, lock=True), field)
    except ProfileNotFoundError as error:
        issue = Issue(code="profile_not_found", message=error.detail, field=field)
        raise InvalidError(error.detail, issue) from None


def _settled(session: Session, customer: Customer, before: BillingProfile, now: datetime) -> CustomerProfile:
    session.flush()
    found = _with_profiles(session, [customer])[0]
    if not is_anchored_alike(before.workflow, found.profile.workflow):
        look_again(session, Customer.id == customer.id, now=now)
    return found


def _with_profiles(session: Session, customers: Sequence[Customer]) -> list[CustomerProfile]:
    ids = [customer.id for customer in customers]
    profiles = profiles_of(session, ids)
    query = select(CustomerOverride).where(CustomerOverride.customer_id.in_(ids))
    overrides = {override.customer_id: override for override in session.scalars(query)}
    return [
        CustomerProfile(customer=one, override=overrides.get(one.id), profile=profiles[one.id])
        for one in customers
    ]


# -- Lists ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class OverrideFilter:
    """Each narrows the list; the text filters are "contains", in any case.

    `profiles`: who is invoiced by one of these. `everybody`: also those of whom nothing is said.
    """

    profiles: Collection[str] = ()
    customers: Collection[str] = ()
    name: str | None = None
    key: str | None = None
    primary_email: str | None = None
    everybody: bool = True
    unpinned: bool = False


def list_overrides(
    session: Session,
    wanted: OverrideFilter,
    *,
    order_by: OverrideOrder | None = None,
    descending: bool = False,
    offset: int = 0,
    limit: int = 100,
) -> tuple[list[CustomerProfile], int]:
    """One page of living customers, by id unless ordered otherwise, and how many there are."""
    conditions = _conditions(session, wanted)
    counted = select(func.count()).select_from(Customer).outerjoin(CustomerOverride).where(*conditions)
    query = select(Customer).outerjoin(CustomerOverride).where(*conditions)
    query = query.options(selectinload(Customer.subjects))
    order = [_ORDERS[order_by or "customerId"], Customer.id]
    query = query.order_by(*(column.desc() if descending else column.asc() for column in order))
    customers = session.scalars(query.offset(offset).limit(limit)).all()
    return _with_profiles(session, customers), session.scalar(counted) or 0


_ORDERS: Mapping[OverrideOrder, InstrumentedAttribute[Any]] = {
    "customerId": Customer.id,
    "customerName": Customer.name,
    "customerKey": Customer.key,
    "customerPrimaryEmail": Customer.primary_email,
    "customerCreatedAt": Customer.created_at,
}


def _conditions(session: Session, wanted: OverrideFilter) -> list[ColumnElement[bool]]:
    pin = CustomerOverride.billing_profile_id
    found: list[ColumnElement[bool]] = [Customer.deleted_at.is_(None)]
    for column, text in (
        (Customer.name, wanted.name),
        (Customer.key, wanted.key),
        (Customer.primary_email, wanted.primary_email),
    ):
        if text:
            found.append(column.icontains(text, autoescape=True))
    if wanted.customers:
        found.append(Customer.id.in_(wanted.customers))
    if wanted.unpinned:
        found.append(pin.is_(None))
    elif not wanted.everybody:
        found.append(CustomerOverride.customer_id.is_not(None))
    if wanted.profiles:
        by_default = get_profile(session, None).id in wanted.profiles
        pinned = pin.in_(wanted.profiles)
        found.append(or_(pinned, pin.is_(None)) if by_default else pinned)
    return found
