"""What apps know of customers: by which words or ids theirs is this one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import ForeignKey, func, select, true
from sqlalchemy.orm import Mapped, Session, joinedload, mapped_column, relationship

from billing.contracts.customer import get_customer
from billing.profiles.app import App, AppNotFoundError, AppType, get_app
from metering.database import Base, Id, Instant
from metering.errors import InvalidError, Issue, NotFoundError

__all__ = [
    "CustomerApp",
    "CustomerAppDetails",
    "CustomerAppNotFoundError",
    "delete_customer_app",
    "list_customer_apps",
    "save_customer_apps",
]


class CustomerApp(Base):
    """`data` of a custom app is the metadata it gave; the sandbox has none."""

    __tablename__ = "customer_apps"

    customer_id: Mapped[Id] = mapped_column(ForeignKey("customers.id"), primary_key=True)
    app_id: Mapped[Id] = mapped_column(ForeignKey("apps.id"), primary_key=True)
    data: Mapped[dict[str, str]]
    created_at: Mapped[Instant]
    updated_at: Mapped[Instant]

    app: Mapped[App] = relationship(lazy="raise")


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerAppDetails:
    """Without an id the one app of the type is meant."""

    type: AppType
    app_id: str | None = None
    data: dict[str, str] = field(default_factory=dict)


class CustomerAppNotFoundError(NotFoundError):
    pass


def list_customer_apps(
    session: Session,
    customer_id: str,
    *,
    app_type: AppType | None = None,
    offset: int = 0,
    limit: int = 100,
) -> tuple[Sequence[CustomerApp], int]:
    """One page, in the order the apps were installed, and how many there are; of installed apps only."""
    customer = get_customer(session, customer_id)
    conditions = (
        CustomerApp.customer_id == customer.id,
        App.deleted_at.is_(None),
        true() if app_type is None else App.type == app_type,
    )
    count = session.scalar(select(func.count()).select_from(CustomerApp).join(App).where(*conditions)) or 0
    query = select(CustomerApp).join(App).options(joinedload(CustomerApp.app)).where(*conditions)
    return session.scalars(query.order_by(App.id).offset(offset).limit(limit)).all(), count


def save_customer_apps(
    session: Session, customer_id: str, wanted: Sequence[CustomerAppDetails], *, now: datetime
) -> list[CustomerApp]:
    """All of these or none; what other apps know of the customer stays."""
    _lock_apps(session, wanted)
    customer = get_customer(session, customer_id, lock=True)
    customer.require_living()
    saved = []
    for i, details in enumerate(wanted):
        app = _app_of(session, details, f"$[{i}]")
        row = session.get(CustomerApp, (customer.id, app.id))
        if row is None:
            row = CustomerApp(customer_id=customer.id, app_id=app.id, created_at=now)
            session.add(row)
        row.app = app
        row.data, row.updated_at = details.data, now
        saved.append(row)
    session.flush()
    return saved


def delete_customer_app(session: Session, customer_id: str, app_id: str) -> None:
    customer = get_customer(session, customer_id, lock=True)
    row = session.get(CustomerApp, (customer.id, app_id))
    if row is None:
        raise CustomerAppNotFoundError(f"the app {app_id!r} knows nothing of {customer.name!r}")
    session.delete(row)
    session.flush()


def _lock_apps(session: Session, wanted: Sequence[CustomerAppDetails]) -> None:
    """In key order, and before the customer: so does whoever makes a profile of an app the default one."""
    named = App.id.in_([details.app_id for details in wanted if details.app_id is not None])
    alone = App.type.in_([details.type for details in wanted if details.app_id is None])
    session.execute(select(App.id).where(named | alone).order_by(App.id).with_for_update(key_share=True))


def _app_of(session: Session, details: CustomerAppDetails, where: str) -> App:
    """Locked, so that it is not uninstalled meanwhile."""
    if details.app_id is None:
        return _only_one(session, details.type, where)
    try:
        app = get_app(session, details.app_id, lock=True)
    except AppNotFoundError as error:
        raise _refused("app_not_found", error.detail, f"{where}.id") from None
    if app.deleted_at is not None:
        raise _refused("app_not_found", f"the app {app.id} was uninstalled", f"{where}.id")
    if app.type != details.type:
        raise _refused("app_type_mismatch", f"the app is of type {app.type}", f"{where}.type")
    return app


def _only_one(session: Session, app_type: AppType, where: str) -> App:
    query = select(App).where(App.type == app_type, App.deleted_at.is_(None)).order_by(App.id).limit(2)
    found = session.scalars(query.with_for_update(key_share=True)).all()
    if not found:
        raise _refused("app_not_found", f"no app of type {app_type} is installed", f"{where}.type")
    if len(found) > 1:
        raise _refused("app_id_required", f"several apps are of type {app_type}: say which", f"{where}.id")
    return found[0]


def _refused(code: str, message: str, field: str) -> InvalidError:
    return InvalidError(message, Issue(code=code, message=message, field=field))
