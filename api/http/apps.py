"""Apps: /api/v1/apps, and /api/v1/marketplace where they are installed from."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import Field, StringConstraints

from api.http.auth import admin, reader
from api.http.body import RESOURCE, Body, ExactRoute, Metadata, Page, PageNumber, PageSize, page_of
from api.http.session import Now, Transaction
from billing.apps import app_changes
from billing.apps.app_changes import AppDetails
from billing.profiles.app import LISTINGS, App, AppType, Listing, get_app, get_listing, list_apps
from metering.errors import InvalidError, Issue

__all__ = ["AppBody", "app_body", "router"]

router = APIRouter(prefix="/api/v1", tags=["Apps"], route_class=ExactRoute)

Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Description = Annotated[str, StringConstraints(max_length=1024)]
CapabilityType = Literal["calculateTax", "invoiceCustomers", "collectPayments"]


class AppCapability(Body):
    type: CapabilityType
    key: str
    name: str
    description: str


class MarketplaceListing(Body):
    type: AppType
    name: str
    description: str
    capabilities: list[AppCapability]
    install_methods: list[Literal["no_credentials_required"]]


class _AppBody(Body):
    id: str
    name: str
    description: str | None = None
    metadata: Metadata | None = None
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None = None
    listing: MarketplaceListing
    status: Literal["ready"] = "ready"


class SandboxApp(_AppBody):
    type: Literal["sandbox"]


class CustomInvoicingApp(_AppBody):
    type: Literal["custom_invoicing"]
    enable_draft_sync_hook: bool
    enable_issuing_sync_hook: bool


AppBody = Annotated[SandboxApp | CustomInvoicingApp, Field(discriminator="type")]


class _AppReplaceUpdate(Body):
    READ_ONLY = RESOURCE | {"listing", "status"}

    name: Name
    description: Description | None = None
    metadata: Metadata | None = None


class SandboxAppReplaceUpdate(_AppReplaceUpdate):
    type: Literal["sandbox"]

    @property
    def details(self) -> AppDetails:
        return AppDetails(
            type=self.type, name=self.name, description=self.description, metadata=self.metadata
        )


class CustomInvoicingAppReplaceUpdate(_AppReplaceUpdate):
    type: Literal["custom_invoicing"]
    enable_draft_sync_hook: bool
    enable_issuing_sync_hook: bool

    @property
    def details(self) -> AppDetails:
        return AppDetails(
            type=self.type,
            name=self.name,
            description=self.description,
            metadata=self.metadata,
            draft_sync_hook=self.enable_draft_sync_hook,
            issuing_sync_hook=self.enable_issuing_sync_hook,
        )


AppReplaceUpdate = SandboxAppReplaceUpdate | CustomInvoicingAppReplaceUpdate


class AppPage(Page):
    items: list[AppBody]


_CAPABILITIES: tuple[tuple[CapabilityType, str, str, str], ...] = (
    ("calculateTax", "calculate_tax", "Calculate Tax", "Says what tax an invoice bears."),
    ("invoiceCustomers", "invoice_customers", "Invoice Customers", "Takes invoices to customers."),
    ("collectPayments", "collect_payments", "Collect Payments", "Collects what was invoiced."),
)


def _listing_body(listing: Listing) -> MarketplaceListing:
    return MarketplaceListing(
        type=listing.type,
        name=listing.name,
        description=listing.description,
        capabilities=[
            AppCapability(type=kind, key=f"{listing.type}_{key}", name=name, description=description)
            for kind, key, name, description in _CAPABILITIES
        ],
        install_methods=["no_credentials_required"],
    )


def app_body(app: App) -> SandboxApp | CustomInvoicingApp:
    common = {
        "id": app.id,
        "name": app.name,
        "description": app.description,
        "metadata": app.metadata_,
        "created_at": app.created_at,
        "updated_at": app.updated_at,
        "deleted_at": app.deleted_at,
        "listing": _listing_body(get_listing(app.type)),
    }
    if app.type == "sandbox":
        return SandboxApp(type="sandbox", **common)
    return CustomInvoicingApp(
        type="custom_invoicing",
        enable_draft_sync_hook=app.draft_sync_hook,
        enable_issuing_sync_hook=app.issuing_sync_hook,
        **common,
    )


# -- Installed -----------------------------------------------------------------------------------------------


@router.get("/apps", operation_id="listApps", dependencies=[reader])
def list_all(session: Transaction, page: PageNumber = 1, page_size: PageSize = 100) -> AppPage:
    found, count = list_apps(session, **page_of(page, page_size))
    return AppPage(total_count=count, page=page, page_size=page_size, items=[app_body(app) for app in found])


@router.get("/apps/{id}", operation_id="getApp", dependencies=[reader])
def get(session: Transaction, id: str) -> AppBody:  # noqa: A002  the wire's name
    return app_body(get_app(session, id))


@router.put("/apps/{id}", operation_id="updateApp", dependencies=[admin])
def update(session: Transaction, now: Now, id: str, body: AppReplaceUpdate) -> AppBody:  # noqa: A002
    return app_body(app_changes.update_app(session, id, body.details, now=now))


@router.delete("/apps/{id}", operation_id="uninstallApp", status_code=204, dependencies=[admin])
def uninstall(session: Transaction, now: Now, id: str) -> None:  # noqa: A002  the wire's name
    """Refused while a billing profile, or an invoice that is not yet final, relies on it."""
    app_changes.uninstall_app(session, id, now=now)


# -- To be installed -----------------------------------------------------------------------------------------


class ListingPage(Page):
    items: list[MarketplaceListing]


@router.get("/marketplace/listings", operation_id="listMarketplaceListings", dependencies=[reader])
def list_listings(page: PageNumber = 1, page_size: PageSize = 100) -> ListingPage:
    some = list(LISTINGS.values())[(page - 1) * page_size : page * page_size]
    items = [_listing_body(listing) for listing in some]
    return ListingPage(total_count=len(LISTINGS), page=page, page_size=page_size, items=items)


@router.get("/marketplace/listings/{type}", operation_id="getMarketplaceListing", dependencies=[reader])
def get_one(type: str) -> MarketplaceListing:  # noqa: A002  the wire's name
    return _listing_body(get_listing(type))


class MarketplaceInstallRequest(Body):
    """`createBillingProfile`: with a profile like the default one, which it does not become.

    Where nothing is said of it there is none, as in OpenMeter, so that the app can be uninstalled at once.
    """

    name: Name | None = None
    create_billing_profile: bool = False


class MarketplaceApiKeyInstallRequest(MarketplaceInstallRequest):
    api_key: str


class MarketplaceInstallResponse(Body):
    """`defaultForCapabilityTypes`: what the app does from now on for whoever is not pinned: nothing yet."""

    app: AppBody
    default_for_capability_types: list[CapabilityType] = Field(default_factory=list)


@router.post("/marketplace/listings/{type}/install", operation_id="installApp", dependencies=[admin])
def install(
    session: Transaction,
    now: Now,
    type: str,  # noqa: A002  the wire's name
    body: MarketplaceInstallRequest,
) -> MarketplaceInstallResponse:
    """There is one sandbox at most."""
    wanted = body.create_billing_profile
    app = app_changes.install_app(session, type, name=body.name, with_profile=wanted, now=now)
    return MarketplaceInstallResponse(app=app_body(app))


@router.post(
    "/marketplace/listings/{type}/install/apikey", operation_id="installAppWithApiKey", dependencies=[admin]
)
def install_with_key(
    type: str,  # noqa: A002  the wire's name
    body: MarketplaceApiKeyInstallRequest,  # noqa: ARG001
) -> MarketplaceInstallResponse:
    """For apps that have an account elsewhere; no app here does."""
    raise _not_so(type, "an API key")


@dataclass(frozen=True, slots=True)
class OAuth2Answer:
    """What the other side of OAuth 2 says when it sends somebody back."""

    state: str | None = None
    code: str | None = None
    error: str | None = None
    error_description: str | None = None
    error_uri: str | None = None


@router.get("/marketplace/listings/{type}/install/oauth2", operation_id="startOAuth2", dependencies=[admin])
@router.get(
    "/marketplace/listings/{type}/install/oauth2/authorize",
    operation_id="authorizeOAuth2",
    dependencies=[admin, Depends(OAuth2Answer)],
)
def install_with_oauth2(type: str) -> None:  # noqa: A002  the wire's name
    """As with an API key: no app here asks for it."""
    raise _not_so(type, "OAuth 2")


def _not_so(app_type: str, method: str) -> InvalidError:
    message = f"{get_listing(app_type).name} is not installed with {method}"
    hint = "It needs no credentials: POST to /install."
    return InvalidError(message, Issue(code="install_method_not_supported", message=message, hint=hint))
