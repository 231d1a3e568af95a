"""Billing profiles: /api/v1/billing/profiles."""

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import StringConstraints

from api.http.apps import AppBody, app_body
from api.http.auth import admin, reader
from api.http.body import RESOURCE, Body, ExactRoute, Metadata, Page, PageNumber, PageSize, page_of
from api.http.session import Now, Snapshot, Transaction
from billing.profiles import profile_changes
from billing.profiles.app import App
from billing.profiles.profile import BillingProfile, Party, ProfileOrder, get_profile, list_profiles
from billing.profiles.profile_changes import ProfileApps, ProfileDetails
from billing.profiles.workflow import Workflow

__all__ = ["AppsOrReferences", "apps_body", "router"]

router = APIRouter(prefix="/api/v1/billing/profiles", tags=["Billing"], route_class=ExactRoute)


class AppReference(Body):
    id: str


class BillingProfileAppReferences(Body):
    tax: AppReference
    invoicing: AppReference
    payment: AppReference


class BillingProfileApps(Body):
    tax: AppBody
    invoicing: AppBody
    payment: AppBody


AppsOrReferences = BillingProfileApps | BillingProfileAppReferences


def apps_body(app: App, *, whole: bool) -> AppsOrReferences:
    """The one app that does all three; as a reference unless `whole`."""
    if whole:
        body = app_body(app)
        return BillingProfileApps(tax=body, invoicing=body, payment=body)
    reference = AppReference(id=app.id)
    return BillingProfileAppReferences(tax=reference, invoicing=reference, payment=reference)


class BillingProfileReplaceUpdate(Body):
    """The apps of a profile can't be changed; they may be sent back as they were got."""

    READ_ONLY = RESOURCE | {"apps"}

    name: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    description: Annotated[str, StringConstraints(max_length=1024)] | None = None
    metadata: Metadata | None = None
    supplier: Party
    workflow: Workflow
    default: bool

    @property
    def details(self) -> ProfileDetails:
        return ProfileDetails(
            name=self.name,
            description=self.description,
            metadata=self.metadata,
            supplier=self.supplier,
            workflow=self.workflow,
            default=self.default,
        )


class BillingProfileCreate(BillingProfileReplaceUpdate):
    READ_ONLY = RESOURCE

    apps: ProfileApps


class BillingProfileBody(BillingProfileReplaceUpdate):
    READ_ONLY = frozenset()

    id: str
    apps: AppsOrReferences
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None = None


class BillingProfilePage(Page):
    items: list[BillingProfileBody]


Expand = Annotated[list[Literal["apps"]] | None, Query()]


def _body(profile: BillingProfile, expand: list[Literal["apps"]] | None = None) -> BillingProfileBody:
    return BillingProfileBody(
        id=profile.id,
        name=profile.name,
        description=profile.description,
        metadata=profile.metadata_,
        supplier=profile.supplier,
        workflow=profile.workflow,
        default=profile.is_default,
        apps=apps_body(profile.app, whole=bool(expand)),
        created_at=profile.created_at,
        updated_at=profile.updated_at,
        deleted_at=profile.deleted_at,
    )


@router.get("", operation_id="listBillingProfiles", dependencies=[reader])
def list_all(
    *,
    session: Snapshot,
    include_archived: Annotated[bool, Query(alias="includeArchived")] = False,
    expand: Expand = None,
    order: Literal["ASC", "DESC"] = "ASC",
    order_by: Annotated[ProfileOrder | None, Query(alias="orderBy")] = None,
    page: PageNumber = 1,
    page_size: PageSize = 100,
) -> BillingProfilePage:
    found, count = list_profiles(
        session,
        include_archived=include_archived,
        order_by=order_by,
        descending=order == "DESC",
        **page_of(page, page_size),
    )
    items = [_body(profile, expand) for profile in found]
    return BillingProfilePage(total_count=count, page=page, page_size=page_size, items=items)


@router.post("", operation_id="createBillingProfile", status_code=201, dependencies=[admin])
def create(session: Transaction, now: Now, body: BillingProfileCreate) -> BillingProfileBody:
    """As the default, it takes that from the one before."""
    return _body(profile_changes.create_profile(session, body.details, apps=body.apps, now=now))


@router.get("/{id}", operation_id="getBillingProfile", dependencies=[reader])
def get(session: Transaction, id: str, expand: Expand = None) -> BillingProfileBody:  # noqa: A002
    return _body(get_profile(session, id), expand)


@router.put("/{id}", operation_id="updateBillingProfile", dependencies=[admin])
def update(
    session: Transaction,
    now: Now,
    id: str,  # noqa: A002  the wire's name
    body: BillingProfileReplaceUpdate,
) -> BillingProfileBody:
    """Replace everything but its apps. Invoices that exist keep what they were made with."""
    return _body(profile_changes.update_profile(session, id, body.details, now=now))


@router.delete("/{id}", operation_id="deleteBillingProfile", status_code=204, dependencies=[admin])
def delete(session: Transaction, now: Now, id: str) -> None:  # noqa: A002  the wire's name
    """Neither the default one, nor one that a customer is pinned to."""
    profile_changes.delete_profile(session, id, now=now)
