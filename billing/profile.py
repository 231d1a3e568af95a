"""Billing profiles: who invoices, and how. A customer has the default one, or is pinned to another.

Rows and lookup; profile_changes.py makes and changes them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from sqlalchemy import ForeignKey, Index, select
from sqlalchemy.orm import Mapped, Session, joinedload, mapped_column, relationship

from billing.app import App
from billing.customer import Address
from billing.workflow import Workflow
from metering.database import Base, Id, Instant, ValueType
from metering.errors import NotFoundError
from metering.wire import WIRE

__all__ = [
    "BillingProfile",
    "CustomerOverride",
    "Party",
    "ProfileNotFoundError",
    "TaxIdentity",
    "get_profile",
    "profiles_of",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaxIdentity:
    __pydantic_config__: ClassVar = WIRE

    code: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """A supplier, or a customer, as it stands on an invoice."""

    __pydantic_config__: ClassVar = WIRE

    id: str | None = None
    key: str | None = None
    name: str | None = None
    tax_id: TaxIdentity | None = None
    addresses: tuple[Address, ...] = ()


class BillingProfile(Base):
    __tablename__ = "billing_profiles"
    __table_args__ = (
        Index(
            "billing_profiles_default_key",
            "is_default",
            unique=True,
            postgresql_where="is_default AND deleted_at IS NULL",
        ),
    )

    id: Mapped[Id] = mapped_column(primary_key=True)
    name: Mapped[str]
    description: Mapped[str | None]
    metadata_: Mapped[dict[str, str] | None] = mapped_column("metadata")
    supplier: Mapped[Party] = mapped_column(ValueType(Party))
    workflow: Mapped[Workflow] = mapped_column(ValueType(Workflow))
    app_id: Mapped[Id] = mapped_column(ForeignKey("apps.id"))
    is_default: Mapped[bool]
    created_at: Mapped[Instant]
    updated_at: Mapped[Instant]
    deleted_at: Mapped[Instant | None]

    app: Mapped[App] = relationship(lazy="raise")


class CustomerOverride(Base):
    """The customer has this profile; None: the default one, whichever that is."""

    __tablename__ = "customer_overrides"

    customer_id: Mapped[Id] = mapped_column(ForeignKey("customers.id"), primary_key=True)
    billing_profile_id: Mapped[Id | None] = mapped_column(ForeignKey("billing_profiles.id"), index=True)
    created_at: Mapped[Instant]
    updated_at: Mapped[Instant]


class ProfileNotFoundError(NotFoundError):
    pass


def get_profile(session: Session, profile_id: str | None, *, lock: bool = False) -> BillingProfile:
    """By id, deleted ones too; None: the default one."""
    query = select(BillingProfile).options(joinedload(BillingProfile.app))
    if profile_id is None:
        query = query.where(BillingProfile.is_default, BillingProfile.deleted_at.is_(None))
    else:
        query = query.where(BillingProfile.id == profile_id)
    if profile := session.scalar(query.with_for_update(of=BillingProfile) if lock else query):
        return profile
    which = "default billing profile" if profile_id is None else f"billing profile {profile_id!r}"
    raise ProfileNotFoundError(f"no {which}")


def profiles_of(session: Session, customer_ids: Iterable[str]) -> dict[str, BillingProfile]:
    """The profile that each customer is invoiced by."""
    ids = set(customer_ids)
    pins = session.scalars(select(CustomerOverride).where(CustomerOverride.customer_id.in_(ids))).all()
    pinned = {pin.customer_id: pin.billing_profile_id for pin in pins}
    wanted = {pinned.get(customer_id) for customer_id in ids}
    found = {profile_id: get_profile(session, profile_id) for profile_id in wanted}
    return {customer_id: found[pinned.get(customer_id)] for customer_id in ids}
