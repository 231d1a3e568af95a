"""Which billing profile a customer is invoiced by: /api/v1/billing/customers."""

from collections.abc import Container, Sequence
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from sqlalchemy.orm import Session

from api.http.auth import admin, reader
from api.http.billing_profiles import AppsOrReferences, apps_body
from api.http.body import Body, ExactRoute, Page, PageNumber, PageSize, page_of
from api.http.customers import CustomerBody, customer_bodies
from api.http.session import Now, Snapshot, Transaction
from billing.profiles import customer_overrides
from billing.profiles.customer_overrides import CustomerProfile, OverrideFilter, OverrideOrder, list_overrides
from billing.profiles.profile import Party
from billing.profiles.workflow import Workflow

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/billing/customers", tags=["Billing"], route_class=ExactRoute)


class CustomerOverrideCreate(Body):
    """Null, or nothing: always the default profile."""

    billing_profile_id: str | None = None


class CustomerOverrideBody(CustomerOverrideCreate):
    customer_id: str
    created_at: datetime
    updated_at: datetime


class BillingCustomerProfile(Body):
    supplier: Party
    workflow: Workflow
    apps: AppsOrReferences


class CustomerOverrideWithDetails(Body):
    """`customerProfile` is what the customer is invoiced by in the end."""

    customer_override: CustomerOverrideBody | None = None
    base_billing_profile_id: str
    customer_profile: BillingCustomerProfile
    customer: CustomerBody | None = None


class CustomerOverridePage(Page):
    items: list[CustomerOverrideWithDetails]


Expansion = Literal["apps", "customer"]
Expand = Annotated[list[Expansion] | None, Query()]


def _bodies(
    session: Session, found: Sequence[CustomerProfile], now: datetime, expand: Container[Expansion] = ()
) -> list[CustomerOverrideWithDetails]:
    everybody = [one.customer for one in found] if "customer" in expand else []
    customers = {body.id: body for body in customer_bodies(session, everybody, now)}
    whole = "apps" in expand
    return [
        CustomerOverrideWithDetails(
            customer_override=None
            if one.override is None
            else CustomerOverrideBody.model_validate(one.override),
            base_billing_profile_id=one.profile.id,
            customer_profile=BillingCustomerProfile(
                supplier=one.profile.supplier,
                workflow=one.profile.workflow,
                apps=apps_body(one.profile.app, whole=whole),
            ),
            customer=customers.get(one.customer.id),
        )
        for one in found
    ]


@router.get("", operation_id="listBillingProfileCustomerOverrides", dependencies=[reader])
def list_all(
    *,
    session: Snapshot,
    now: Now,
    billing_profile: Annotated[list[str] | None, Query(alias="billingProfile")] = None,
    customers_without_pinned_profile: Annotated[bool, Query(alias="customersWithoutPinnedProfile")] = False,
    include_all_customers: Annotated[bool, Query(alias="includeAllCustomers")] = True,
    customer_id: Annotated[list[str] | None, Query(alias="customerId")] = None,
    customer_name: Annotated[str | None, Query(alias="customerName")] = None,
    customer_key: Annotated[str | None, Query(alias="customerKey")] = None,
    customer_primary_email: Annotated[str | None, Query(alias="customerPrimaryEmail")] = None,
    expand: Expand = None,
    order: Literal["ASC", "DESC"] = "ASC",
    order_by: Annotated[OverrideOrder | None, Query(alias="orderBy")] = None,
    page: PageNumber = 1,
    page_size: PageSize = 100,
) -> CustomerOverridePage:
    """Every customer with the profile they are invoiced by; the text filters are "contains", in any case."""
    wanted = OverrideFilter(
        profiles=billing_profile or (),
        customers=customer_id or (),
        name=customer_name,
        key=customer_key,
        primary_email=customer_primary_email,
        everybody=include_all_customers,
        unpinned=customers_without_pinned_profile,
    )
    found, count = list_overrides(
        session, wanted, order_by=order_by, descending=order == "DESC", **page_of(page, page_size)
    )
    items = _bodies(session, found, now, expand or ())
    return CustomerOverridePage(total_count=count, page=page, page_size=page_size, items=items)


@router.get("/{customerId}", operation_id="getBillingProfileCustomerOverride", dependencies=[reader])
def get(
    session: Snapshot,
    now: Now,
    customerId: str,  # noqa: N803  the wire's name
    expand: Expand = None,
) -> CustomerOverrideWithDetails:
    """Also of a customer of whom nothing is said: the default profile."""
    found = customer_overrides.profile_of(session, customerId)
    return _bodies(session, [found], now, expand or ())[0]


@router.put("/{customerId}", operation_id="upsertBillingProfileCustomerOverride", dependencies=[admin])
def upsert(
    session: Transaction,
    now: Now,
    customerId: str,  # noqa: N803  the wire's name
    body: CustomerOverrideCreate,
) -> CustomerOverrideWithDetails:
    """Pin the customer to a profile, or to the default one."""
    found = customer_overrides.pin_profile(session, customerId, profile_id=body.billing_profile_id, now=now)
    return _bodies(session, [found], now)[0]


@router.delete(
    "/{customerId}",
    operation_id="deleteBillingProfileCustomerOverride",
    status_code=204,
    dependencies=[admin],
)
def delete(session: Transaction, now: Now, customerId: str) -> None:  # noqa: N803  the wire's name
    customer_overrides.unpin_profile(session, customerId, now=now)
