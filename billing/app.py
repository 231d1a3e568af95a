"""Apps: who takes an invoice to the customer and collects the money. Sandbox and custom invoicing for now."""

from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Mapped, Session, mapped_column

from metering.database import Base, Id, Instant
from metering.errors import NotFoundError

__all__ = ["SANDBOX_WISH", "App", "AppNotFoundError", "AppType", "get_app"]

AppType = Literal["sandbox", "custom_invoicing"]
SANDBOX_WISH = "openmeter.io/sandbox/target-payment-status"
"""A customer's or an invoice's metadata: paid, failed, uncollectible or action_required."""


class App(Base):
    """Hooks: a draft, or an invoice being issued, waits until the custom app has confirmed it."""

    __tablename__ = "apps"

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


def get_app(session: Session, app_id: str, *, lock: bool = False) -> App:
    query = select(App).where(App.id == app_id)
    if app := session.scalar(query.with_for_update() if lock else query):
        return app
    raise AppNotFoundError(f"no app {app_id!r}")
