"""Customers: who pays. A customer owns the usage subjects that gateways report; a subject has one owner.

Usage of a customer is that of its subject keys and of its own key. Both live in one table with the subject
as primary key, so that no key can ever pay into two bills.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from sqlalchemy import ForeignKey, bindparam, func, select, true
from sqlalchemy.orm import (
    InstrumentedAttribute,
    Mapped,
    Session,
    joinedload,
    mapped_column,
    relationship,
    selectinload,
)

from metering.database import Base, Id, Instant, ValueType, among
from metering.errors import ConflictError, Issue, NotFoundError
from metering.ids import is_ulid
from metering.wire import WIRE

__all__ = [
    "COUNTRY",
    "LONGEST_ADDRESS",
    "LONGEST_LINE",
    "Address",
    "Customer",
    "CustomerDeletedError",
    "CustomerNotFoundError",
    "CustomerOrder",
    "SubjectOwner",
    "address_issues",
    "customers_by_id",
    "get_customer",
    "list_customers",
    "owners_of",
]


COUNTRY = re.compile(r"[A-Z]{2}")
LONGEST_LINE, LONGEST_ADDRESS = 256, 480
"""Characters of each part of an address, and of all of them: as many wide letters as go on a page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    __pydantic_config__: ClassVar = WIRE

    country: str | None = None
    postal_code: str | None = None
    state: str | None = None
    city: str | None = None
    line1: str | None = None
    line2: str | None = None
    phone_number: str | None = None


def address_issues(address: Address, field: str) -> Iterator[Issue]:
    """What taxes could not be found by, and what no document has room for."""
    if address.country is not None and not COUNTRY.fullmatch(address.country):
        message, hint = f"{address.country!r} is no country", "Write DE, US or the like: ISO 3166."
        yield Issue(code="invalid_country", message=message, field=f"{field}.country", hint=hint)
    parts = {
        "postalCode": address.postal_code or "",
        "state": address.state or "",
        "city": address.city or "",
        "line1": address.line1 or "",
        "line2": address.line2 or "",
        "phoneNumber": address.phone_number or "",
    }
    too_long = [name for name, text in parts.items() if len(text) > LONGEST_LINE]
    for name in too_long:
        message, hint = f"this has at most {LONGEST_LINE} characters", "Shorten it."
        yield Issue(code="invalid_length", message=message, field=f"{field}.{name}", hint=hint)
    if not too_long and sum(map(len, parts.values())) > LONGEST_ADDRESS:
        message, hint = f"an address has at most {LONGEST_ADDRESS} characters", "Shorten its parts."
        yield Issue(code="invalid_length", message=message, field=field, hint=hint)


class Customer(Base):
    __tablename__ = "customers"

    id: Mapped[Id] = mapped_column(primary_key=True)
    key: Mapped[str | None]
    name: Mapped[str]
    description: Mapped[str | None]
    metadata_: Mapped[dict[str, str] | None] = mapped_column("metadata")
    primary_email: Mapped[str | None]
    currency: Mapped[str | None]
    billing_address: Mapped[Address | None] = mapped_column(ValueType(Address))
    created_at: Mapped[Instant]
    updated_at: Mapped[Instant]
    deleted_at: Mapped[Instant | None]

    subjects: Mapped[list["SubjectOwner"]] = relationship(
        lazy="raise", cascade="all, delete-orphan", order_by="SubjectOwner.position"
    )

    def require_living(self) -> None:
        if self.deleted_at is not None:
            message = f"the customer {self.id} was deleted"
            raise CustomerDeletedError(message, Issue(code="customer_deleted", message=message))

    @property
    def subject_keys(self) -> list[str]:
        """The subjects it was given, in the order given."""
        return [owned.subject_key for owned in self.subjects if owned.position is not None]

    @property
    def usage_subjects(self) -> tuple[str, ...]:
        """Every subject whose usage it pays for."""
        return tuple(owned.subject_key for owned in self.subjects)


class SubjectOwner(Base):
    """A subject and the customer who pays for it; `position` is None for the customer's own key."""

    __tablename__ = "subject_owners"

    subject_key: Mapped[str] = mapped_column(primary_key=True)
    customer_id: Mapped[Id] = mapped_column(ForeignKey("customers.id"), index=True)
    position: Mapped[int | None]


class CustomerNotFoundError(NotFoundError):
    pass


class CustomerDeletedError(ConflictError):
    pass


def get_customer(session: Session, name: str, *, by_subject: bool = False, lock: bool = False) -> Customer:
    """By id (deleted ones too), else by key; with `by_subject` else by one of its subjects.

    Who looks may name a subject; who changes or signs up a customer must name the customer.
    """
    ways = ["id", "key"] if is_ulid(name) else ["key"]
    for way in [*ways, "subject"] if by_subject else ways:
        query = (_LOCKED if lock else _READ)[way]
        if customer := session.scalars(query, {"name": name}).unique().one_or_none():
            return customer
    raise CustomerNotFoundError(f"no customer {name!r}")


_WITH_SUBJECT = select(Customer).where(
    Customer.id
    == select(SubjectOwner.customer_id)
    .where(SubjectOwner.subject_key == bindparam("name"))
    .scalar_subquery(),
    Customer.deleted_at.is_(None),
)
_WAYS = {
    "id": select(Customer).where(Customer.id == bindparam("name")),
    "key": _WITH_SUBJECT.where(Customer.key == bindparam("name")),
    "subject": _WITH_SUBJECT,
}
_READ = {way: query.options(joinedload(Customer.subjects)) for way, query in _WAYS.items()}
_LOCKED = {
    way: query.options(selectinload(Customer.subjects)).with_for_update() for way, query in _WAYS.items()
}
"""Whoever has the lock may be changing the subjects: they are read once it is ours."""


def customers_by_id(session: Session, ids: Iterable[str]) -> dict[str, Customer]:
    wanted = list(set(ids))
    found = session.scalars(_BY_IDS, {"ids": wanted}).unique() if wanted else ()
    return {customer.id: customer for customer in found}


_BY_IDS = select(Customer).options(joinedload(Customer.subjects)).where(among(Customer.id, "ids"))


def owners_of(session: Session, subjects: Iterable[str]) -> dict[str, str]:
    """The id of the customer who pays for each subject, for those that have one."""
    query = select(SubjectOwner).where(SubjectOwner.subject_key.in_(set(subjects)))
    return {owned.subject_key: owned.customer_id for owned in session.scalars(query)}


CustomerOrder = Literal["id", "name", "createdAt"]


def list_customers(
    session: Session,
    *,
    key: str | None = None,
    name: str | None = None,
    primary_email: str | None = None,
    subject: str | None = None,
    include_deleted: bool = False,
    order_by: CustomerOrder = "id",
    descending: bool = False,
    offset: int = 0,
    limit: int = 100,
) -> tuple[Sequence[Customer], int]:
    """One page, by id unless ordered otherwise, and how many there are.

    Each text filter is "contains", in any case.
    """
    subjects = select(SubjectOwner.customer_id).where(
        SubjectOwner.subject_key.icontains(subject or "", autoescape=True)
    )
    conditions = [
        Customer.key.icontains(key, autoescape=True) if key else true(),
        Customer.name.icontains(name, autoescape=True) if name else true(),
        Customer.primary_email.icontains(primary_email, autoescape=True) if primary_email else true(),
        Customer.id.in_(subjects) if subject else true(),
        true() if include_deleted else Customer.deleted_at.is_(None),
    ]
    count = session.scalar(select(func.count()).select_from(Customer).where(*conditions)) or 0
    order = [column.desc() if descending else column for column in (_ORDERS[order_by], Customer.id)]
    page = select(Customer).options(selectinload(Customer.subjects)).where(*conditions)
    return session.scalars(page.order_by(*order).offset(offset).limit(limit)).all(), count


_ORDERS: Mapping[CustomerOrder, InstrumentedAttribute[Any]] = {
    "id": Customer.id,
    "name": Customer.name,
    "createdAt": Customer.created_at,
}
