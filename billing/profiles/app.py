"""Apps: who takes an invoice to the customer and collects the money. Sandbox and custom invoicing for now."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from sqlalchemy import Index, func, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from metering.database import Base, Id, Instant
from metering.errors import NotFoundError

__all__ = [
    "LISTINGS",
    "SANDBOX_WISH",
    "App",
    "AppNotFoundError",
    "AppType",
    "Listing",
    "get_app",
    "get_listing",
    "list_apps",
]

AppType = Literal["sandbox", "custom_invoicing"]
SANDBOX_WISH = "openmeter.io/sandbox/target-payment-status"
"""A customer's or an invoice's metadata: paid, failed, uncollectible or action_required."""


class App(Base):
    """Hooks: a draft, or an invoice being issued, waits until the custom app has confirmed it."""

    __tablename__ = "apps"
    __table_args__ = (
        Index(
            "apps_sandbox_key",
            "type",
            unique=True,
            postgresql_where="type = 'sandbox' AND deleted_at IS NULL",
        ),
    )

    id: Mapped[Id] = mapped_column(primary_key=True)
    type: Mapped[str]
    name: Mapped[str]
    description: Mapped[str | None]
    metadata_: Mapped[dict[str, str] | None] = mapped_column("metadata")
    draft_sync_hook: Mapped[bool]
    issuing_sync_hook: Mapped[bool]
    created_at: Mapped[Instant]
    updated_at: Mapped[Instant]
    deleted_at: Mapped[Instant | None]


class AppNotFoundError(NotFoundError):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A type of app that can be installed."""

    type: AppType
    name: str
    description: str


LISTINGS: Mapping[AppType, Listing] = MappingProxyType(
    {
        "sandbox": Listing(
            type="sandbox",
            name="Sandbox",
            description="Pays each invoice at once, or does what its metadata says. Nobody is charged.",
        ),
        "custom_invoicing": Listing(
            type="custom_invoicing",
            name="Custom Invoicing",
            description="A system of your own takes invoices to customers, and calls back.",
        ),
    }
)


def get_listing(app_type: str) -> Listing:
    if found := next((one for one in LISTINGS.values() if one.type == app_type), None):
        return found
    raise AppNotFoundError(f"no app of type {app_type!r} can be installed here")


def get_app(session: Session, app_id: str, *, lock: bool = False) -> App:
    """Uninstalled ones too. Its lock keeps nobody from making invoices that it is to collect."""
    query = select(App).where(App.id == app_id)
    if app := session.scalar(query.with_for_update(key_share=True) if lock else query):
        return app
    raise AppNotFoundError(f"no app {app_id!r}")


def list_apps(session: Session, *, offset: int = 0, limit: int = 100) -> tuple[Sequence[App], int]:
    """One page of those that are installed, in the order they were, and how many there are."""
    installed = App.deleted_at.is_(None)
    count = session.scalar(select(func.count()).select_from(App).where(installed)) or 0
    query = select(App).where(installed).order_by(App.id).offset(offset).limit(limit)
    return session.scalars(query).all(), count
