"""What apps know of a customer: /api/v1/customers/{customerIdOrKey}/apps."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import Field

from api.http.apps import CustomInvoicingApp, SandboxApp, app_body
from api.http.auth import admin, reader
from api.http.body import Body, ExactRoute, Metadata, Page, PageNumber, PageSize, page_of
from api.http.session import Now, Snapshot, Transaction
from billing.profiles.app import AppType
from billing.profiles.customer_apps import (
    CustomerApp,
    CustomerAppDetails,
    delete_customer_app,
    list_customer_apps,
    save_customer_apps,
)

__all__ = ["router"]

router = APIRouter(
    prefix="/api/v1/customers/{customerIdOrKey}/apps", tags=["Customers"], route_class=ExactRoute
)


class _AppData(Body):
    """`id` is the app's; without it the one app of the type is meant."""

    READ_ONLY = frozenset({"app"})

    id: str | None = None


class SandboxAppData(_AppData):
    type: Literal["sandbox"]

    @property
    def details(self) -> CustomerAppDetails:
        return CustomerAppDetails(type=self.type, app_id=self.id)


class CustomInvoicingAppData(_AppData):
    type: Literal["custom_invoicing"]
    metadata: Metadata | None = None

    @property
    def details(self) -> CustomerAppDetails:
        return CustomerAppDetails(type=self.type, app_id=self.id, data=self.metadata or {})


AppData = SandboxAppData | CustomInvoicingAppData


class SandboxCustomerAppData(SandboxAppData):
    READ_ONLY = frozenset()

    app: SandboxApp


class CustomInvoicingCustomerAppData(CustomInvoicingAppData):
    READ_ONLY = frozenset()

    app: CustomInvoicingApp


CustomerAppData = Annotated[
    SandboxCustomerAppData | CustomInvoicingCustomerAppData, Field(discriminator="type")
]


class CustomerAppDataPage(Page):
    items: list[CustomerAppData]


def _body(row: CustomerApp) -> SandboxCustomerAppData | CustomInvoicingCustomerAppData:
    app = app_body(row.app)
    if isinstance(app, SandboxApp):
        return SandboxCustomerAppData(id=app.id, type=app.type, app=app)
    return CustomInvoicingCustomerAppData(id=app.id, type=app.type, app=app, metadata=row.data)


@router.get("", operation_id="listCustomerAppData", dependencies=[reader])
def list_all(
    session: Snapshot,
    customerIdOrKey: str,  # noqa: N803  the wire's name
    type_: Annotated[AppType | None, Query(alias="type")] = None,
    page: PageNumber = 1,
    page_size: PageSize = 100,
) -> CustomerAppDataPage:
    found, count = list_customer_apps(session, customerIdOrKey, app_type=type_, **page_of(page, page_size))
    items = [_body(row) for row in found]
    return CustomerAppDataPage(total_count=count, page=page, page_size=page_size, items=items)


@router.put("", operation_id="upsertCustomerAppData", dependencies=[admin])
def upsert(
    session: Transaction,
    now: Now,
    customerIdOrKey: str,  # noqa: N803  the wire's name
    body: Annotated[list[AppData], Field(max_length=100)],
) -> list[CustomerAppData]:
    """What the apps that are named know from now on; what others know stays."""
    wanted = [data.details for data in body]
    return [_body(row) for row in save_customer_apps(session, customerIdOrKey, wanted, now=now)]


@router.delete("/{appId}", operation_id="deleteCustomerAppData", status_code=204, dependencies=[admin])
def delete(session: Transaction, customerIdOrKey: str, appId: str) -> None:  # noqa: N803  the wire's names
    delete_customer_app(session, customerIdOrKey, appId)
