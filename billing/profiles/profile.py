"""Billing profiles: who invoices, and how. A customer has the default one, or is pinned to another.

Rows and lookup; profile_changes.py makes and changes them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from sqlalchemy import ForeignKey, Index, and_, func, or_, select, true
from sqlalchemy.orm import InstrumentedAttribute, Mapped, Session, joinedload, mapped_column, relationship

from billing.contracts.customer import Address
from billing.profiles.app import App
from billing.profiles.workflow import Workflow
from metering.database import Base, Id, Instant, ValueType, among
from metering.errors import Issue, NotFoundError
from metering.wire import WIRE

__all__ = [
    "IS_DEFAULT",
    "BillingProfile",
    "CustomerOverride",
    "Party",
    "ProfileNotFoundError",
    "ProfileOrder",
    "TaxIdentity",
    "get_profile",
    "list_profiles",
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


IS_DEFAULT = and_(BillingProfile.is_default, BillingProfile.deleted_at.is_(None))
ProfileOrder = Literal["createdAt", "updatedAt", "default", "name"]


class ProfileNotFoundError(NotFoundError):
    pass


def get_profile(session: Session, profile_id: str | None, *, lock: bool = False) -> BillingProfile:
    """By id, deleted ones too; None: the default one. Its lock keeps nobody from making invoices by it."""
    query = select(BillingProfile).options(joinedload(BillingProfile.app))
    query = query.where(IS_DEFAULT if profile_id is None else BillingProfile.id == profile_id)
    locked = query.with_for_update(of=BillingProfile, key_share=True)
    if profile := session.scalar(locked if lock else query):
        return profile
    which = "default billing profile" if profile_id is None else f"billing profile {profile_id!r}"
    code = "default_profile_not_found" if profile_id is None else "profile_not_found"
    raise ProfileNotFoundError(f"no {which}", Issue(code=code, message=f"no {which}"))


def profiles_of(session: Session, customer_ids: Iterable[str]) -> dict[str, BillingProfile]:
    """The profile that each customer is invoiced by; one question, however many there are."""
    ids = set(customer_ids)
    found: dict[str, BillingProfile] = {}
    default = None
    for profile, customer_id in session.execute(_OF_CUSTOMERS, {"ids": list(ids)}):
        default = profile if profile.is_default and not profile.deleted_at else default
        if customer_id is not None:
            found[customer_id] = profile
    return {id_: found.get(id_) or default or get_profile(session, None) for id_ in ids}


_OF_CUSTOMERS = (
    select(BillingProfile, CustomerOverride.customer_id)
    .options(joinedload(BillingProfile.app))
    .outerjoin(
        CustomerOverride,
        and_(
            CustomerOverride.billing_profile_id == BillingProfile.id,
            among(CustomerOverride.customer_id, "ids"),
        ),
    )
    .where(or_(IS_DEFAULT, CustomerOverride.customer_id.is_not(None)))
)


def list_profiles(
    session: Session,
    *,
    include_archived: bool = False,
    order_by: ProfileOrder | None = None,
    descending: bool = False,
    offset: int = 0,
    limit: int = 100,
) -> tuple[Sequence[BillingProfile], int]:
    """One page, in the order they were made unless ordered otherwise, and how many there are."""
    living = true() if include_archived else BillingProfile.deleted_at.is_(None)
    count = session.scalar(select(func.count()).select_from(BillingProfile).where(living)) or 0
    order = [_ORDERS[order_by]] if order_by else []
    order.append(BillingProfile.id)
    query = select(BillingProfile).options(joinedload(BillingProfile.app)).where(living)
    query = query.order_by(*(column.desc() if descending else column.asc() for column in order))
    return session.scalars(query.offset(offset).limit(limit)).all(), count


_ORDERS: Mapping[ProfileOrder, InstrumentedAttribute[Any]] = {
    "createdAt": BillingProfile.created_at,
    "updatedAt": BillingProfile.updated_at,
    "default": BillingProfile.is_default,
    "name": BillingProfile.name,
}
