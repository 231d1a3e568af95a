"""Installing, changing and uninstalling apps."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.orm import Session

from billing.contracts.customer import Customer
from billing.invoices.invoice import Invoice
from billing.invoices.state import FINAL, Status
from billing.profiles.app import App, AppType, get_app, get_listing
from billing.profiles.profile import IS_DEFAULT, BillingProfile, CustomerOverride, get_profile
from billing.profiles.profile_changes import ProfileApps, ProfileDetails, create_profile, wait_for_billing
from metering.database import translating
from metering.errors import ConflictError, InvalidError, Issue
from metering.ids import new_id

__all__ = ["AppDetails", "AppInUseError", "install_app", "uninstall_app", "update_app"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AppDetails:
    """What a client says of an app; a change replaces all of it. The hooks are a custom app's."""

    type: AppType
    name: str
    description: str | None = None
    metadata: Mapping[str, str] | None = None
    draft_sync_hook: bool = False
    issuing_sync_hook: bool = False


class AppInUseError(ConflictError):
    pass


_ONE_SANDBOX = "the sandbox is installed already"
_TAKEN = {
    "apps_sandbox_key": ConflictError(_ONE_SANDBOX, Issue(code="app_already_installed", message=_ONE_SANDBOX))
}


def install_app(
    session: Session, app_type: str, *, name: str | None = None, with_profile: bool = False, now: datetime
) -> App:
    """With a billing profile like the default one, where that is asked for.

    Raises ConflictError for a second sandbox.
    """
    listing = get_listing(app_type)
    app = App(
        id=new_id(now),
        type=listing.type,
        name=name or listing.name,
        description=listing.description,
        draft_sync_hook=False,
        issuing_sync_hook=False,
        created_at=now,
        updated_at=now,
    )
    session.add(app)
    with translating(_TAKEN):
        session.flush()
    if with_profile:
        usual = get_profile(session, None)
        like_it = ProfileDetails(name=app.name, supplier=usual.supplier, workflow=usual.workflow)
        apps = ProfileApps(tax=app.id, invoicing=app.id, payment=app.id)
        create_profile(session, like_it, apps=apps, now=now)
    return app


def update_app(session: Session, app_id: str, details: AppDetails, *, now: datetime) -> App:
    """Invoices that waited for a hook that is no more go on with the next billing run.

    Whoever bills at the moment does not know that the hook is no more: such invoices are waited for.
    """
    app = get_app(session, app_id, lock=True)
    _require_installed(app)
    if app.type != details.type:
        message = f"the app is of type {app.type}, and stays so"
        raise InvalidError(message, Issue(code="app_type_mismatch", message=message, field="$.type"))
    off: list[Status] = ["draft.syncing"] if app.draft_sync_hook and not details.draft_sync_hook else []
    off += ["issuing.syncing"] if app.issuing_sync_hook and not details.issuing_sync_hook else []
    app.name, app.description = details.name, details.description
    app.metadata_ = None if details.metadata is None else dict(details.metadata)
    app.draft_sync_hook, app.issuing_sync_hook = details.draft_sync_hook, details.issuing_sync_hook
    app.updated_at = now
    session.flush()
    if off:
        wait_for_billing(session, _invoiced_through(app))
        held = update(Invoice).where(Invoice.app_id == app.id, Invoice.status.in_(off))
        session.execute(held.values(next_action_at=now), execution_options={"synchronize_session": False})
    return app


def _invoiced_through(app: App) -> ColumnElement[bool]:
    """Customers of whom it has an open invoice, or may be given the next one."""
    pin = CustomerOverride.billing_profile_id
    profiles = select(BillingProfile.id).where(BillingProfile.app_id == app.id)
    open_ = select(Invoice.customer_id).where(Invoice.app_id == app.id, Invoice.status.not_in(FINAL))
    by_default = pin.is_(None) & profiles.where(IS_DEFAULT).exists()
    return or_(pin.in_(profiles), by_default, Customer.id.in_(open_))


def uninstall_app(session: Session, app_id: str, *, now: datetime) -> None:
    """Refused while a billing profile or an invoice that may still change relies on it."""
    app = get_app(session, app_id, lock=True)
    _require_installed(app)
    profiles = select(func.count()).select_from(BillingProfile)
    profiles = profiles.where(BillingProfile.app_id == app.id, BillingProfile.deleted_at.is_(None))
    invoices = select(func.count()).select_from(Invoice)
    invoices = invoices.where(Invoice.app_id == app.id, Invoice.status.not_in(FINAL))
    for what, counted in (("billing profiles", profiles), ("invoices that are not yet final", invoices)):
        if count := session.scalar(counted):
            message = f"{what} rely on the app: {count}"
            raise AppInUseError(message, Issue(code="app_in_use", message=message))
    app.deleted_at = app.updated_at = now
    session.flush()


def _require_installed(app: App) -> None:
    if app.deleted_at is not None:
        message = f"the app {app.id} was uninstalled"
        raise InvalidError(message, Issue(code="app_uninstalled", message=message))
