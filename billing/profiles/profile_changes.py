"""Creating, changing and deleting billing profiles.

There is one default profile, always: making another the default takes it from the one before, in the same
transaction. Invoices that exist keep what they were made with; what is due is looked at anew where the
instants of collection change.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Select, func, select, update
from sqlalchemy.orm import Session

from billing.contracts.customer import Customer
from billing.contracts.pending import PendingLine
from billing.contracts.subscriptions import Subscription
from billing.profiles.app import App, AppNotFoundError, get_app
from billing.profiles.profile import IS_DEFAULT, BillingProfile, CustomerOverride, Party, get_profile
from billing.profiles.profile_rules import check_supplier, check_workflow, is_anchored_alike, normal
from billing.profiles.workflow import Workflow
from metering.database import translating
from metering.errors import ConflictError, InvalidError, Issue
from metering.ids import new_id

__all__ = [
    "ProfileApps",
    "ProfileDetails",
    "create_profile",
    "delete_profile",
    "look_again",
    "require_living",
    "update_profile",
    "wait_for_billing",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileDetails:
    """What a client says of a profile; a change replaces all of it."""

    name: str
    description: str | None = None
    metadata: Mapping[str, str] | None = None
    supplier: Party
    workflow: Workflow
    default: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileApps:
    """The ids of the apps that do each; for now one does all three."""

    tax: str
    invoicing: str
    payment: str


def create_profile(
    session: Session, details: ProfileDetails, *, apps: ProfileApps, now: datetime
) -> BillingProfile:
    _check(details)
    app = _app_of(session, apps)
    before = _take_default(session, now) if details.default else None
    profile = BillingProfile(id=new_id(now), app_id=app.id, app=app, created_at=now)
    _write(session, profile, details, now)
    if before is not None and not is_anchored_alike(before.workflow, profile.workflow):
        look_again(session, _invoiced_by(profile), now=now)
    return profile


def update_profile(
    session: Session, profile_id: str, details: ProfileDetails, *, now: datetime
) -> BillingProfile:
    """Replace everything but its app."""
    _check(details)
    profile = get_profile(session, profile_id, lock=True)
    require_living(profile)
    if profile.is_default and not details.default:
        message, hint = "there is always a default profile", "Make another one the default."
        code = "default_profile_cannot_be_unset"
        raise InvalidError(message, Issue(code=code, message=message, field="$.default", hint=hint))
    earlier = {profile.workflow}
    if details.default and not profile.is_default:
        earlier |= {before.workflow for before in [_take_default(session, now)] if before is not None}
    _write(session, profile, details, now)
    if not all(is_anchored_alike(one, profile.workflow) for one in earlier):
        look_again(session, _invoiced_by(profile), now=now)
    return profile


def delete_profile(session: Session, profile_id: str, *, now: datetime) -> None:
    """Neither the default one, nor one that a customer is pinned to."""
    profile = get_profile(session, profile_id, lock=True)
    require_living(profile)
    if profile.is_default:
        message, hint = "the default profile can't be deleted", "Make another one the default before."
        code = "default_profile_cannot_be_deleted"
        raise InvalidError(message, Issue(code=code, message=message, hint=hint))
    pinned = select(func.count()).select_from(CustomerOverride).join(Customer)
    pinned = pinned.where(CustomerOverride.billing_profile_id == profile.id, Customer.deleted_at.is_(None))
    if count := session.scalar(pinned):
        message = f"customers are pinned to this profile: {count}"
        raise InvalidError(message, Issue(code="profile_referenced", message=message, hint="Unpin them."))
    profile.deleted_at = profile.updated_at = now
    session.flush()


def require_living(profile: BillingProfile, field: str = "$") -> None:
    if profile.deleted_at is not None:
        message = f"the billing profile {profile.id} was deleted"
        raise InvalidError(message, Issue(code="profile_already_deleted", message=message, field=field))


def look_again(session: Session, customers: ColumnElement[bool], *, now: datetime) -> None:
    """Have the billing run decide anew when something falls due for these customers.

    It waits for whoever bills one of them now, who may not know the change and would undo this.
    """
    wait_for_billing(session, customers)
    ids = _those(customers)
    for kind in (Subscription, PendingLine):
        waiting = select(kind.id).where(kind.next_billing_at > now, kind.customer_id.in_(ids))
        waiting = waiting.order_by(kind.id).with_for_update()
        session.execute(
            update(kind).where(kind.id.in_(waiting)).values(next_billing_at=now),
            execution_options={"synchronize_session": False},
        )


def wait_for_billing(session: Session, customers: ColumnElement[bool]) -> None:
    """Until nobody bills any of these customers. From then on nobody can, until the transaction ends."""
    locked = _those(customers).order_by(Customer.id).with_for_update(of=Customer, key_share=True)
    session.execute(locked)


def _those(customers: ColumnElement[bool]) -> Select[str]:
    return select(Customer.id).outerjoin(CustomerOverride).where(customers)


def _invoiced_by(profile: BillingProfile) -> ColumnElement[bool]:
    pin = CustomerOverride.billing_profile_id
    return (pin == profile.id) | pin.is_(None) if profile.is_default else pin == profile.id


def _check(details: ProfileDetails) -> None:
    if issues := [*check_supplier(details.supplier), *check_workflow(details.workflow)]:
        raise InvalidError(f"{issues[0].message} at {issues[0].field}", *issues)


def _app_of(session: Session, apps: ProfileApps) -> App:
    """Locked, so that it is not uninstalled meanwhile."""
    if len({apps.tax, apps.invoicing, apps.payment}) > 1:
        message = "one app calculates tax, invoices and collects: the three ids are the same"
        raise InvalidError(message, Issue(code="profile_apps_differ", message=message, field="$.apps"))
    try:
        app = get_app(session, apps.invoicing, lock=True)
    except AppNotFoundError as error:
        raise _no_app(error.detail) from None
    if app.deleted_at is not None:
        raise _no_app(f"the app {app.id} was uninstalled")
    return app


def _no_app(message: str) -> InvalidError:
    return InvalidError(message, Issue(code="app_not_found", message=message, field="$.apps.invoicing"))


def _take_default(session: Session, now: datetime) -> BillingProfile | None:
    """From the profile that has been the default so far."""
    query = select(BillingProfile).where(IS_DEFAULT).with_for_update(key_share=True)
    before = session.scalar(query)
    if before is not None:
        before.is_default = False
        before.updated_at = now
        session.flush()
    return before


_ANOTHER = "another default was made at the same time: try again"
_TAKEN = {
    "billing_profiles_default_key": ConflictError(
        _ANOTHER, Issue(code="default_profile_taken", message=_ANOTHER, field="$.default")
    )
}


def _write(session: Session, profile: BillingProfile, details: ProfileDetails, now: datetime) -> None:
    profile.name = details.name
    profile.description = details.description
    profile.metadata_ = None if details.metadata is None else dict(details.metadata)
    profile.supplier = details.supplier
    profile.workflow = normal(details.workflow)
    profile.is_default = details.default
    profile.updated_at = now
    session.add(profile)
    with translating(_TAKEN):
        session.flush()
