"""Customers: /api/v1/customers."""

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import Field, StringConstraints
from sqlalchemy.orm import Session

from api.http.auth import admin, reader
from api.http.body import RESOURCE, Body, ExactRoute, Metadata, Page, PageNumber, PageSize, page_of
from api.http.session import Now, Transaction
from api.http.subscriptions import SubscriptionBody, subscription_body
from billing.contracts.customer import Address, Customer, CustomerOrder, get_customer, list_customers
from billing.contracts.customer_changes import CustomerDetails, create_customer
from billing.contracts.subscriptions import Subscription, SubscriptionStatus, subscriptions_of
from billing.invoices.customer_changes import delete_customer, update_customer

__all__ = ["CustomerBody", "customer_bodies", "router"]

router = APIRouter(prefix="/api/v1/customers", tags=["Customers"], route_class=ExactRoute)

SubjectKey = Annotated[str, StringConstraints(min_length=1, max_length=512)]


class UsageAttribution(Body):
    subject_keys: Annotated[list[SubjectKey], Field(max_length=1000)]


class CustomerReplaceUpdate(Body):
    READ_ONLY = RESOURCE | {"currentSubscriptionId", "subscriptions"}

    name: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    key: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    description: Annotated[str, StringConstraints(max_length=1024)] | None = None
    metadata: Metadata | None = None
    usage_attribution: UsageAttribution | None = None
    primary_email: str | None = None
    currency: str | None = None
    billing_address: Address | None = None

    @property
    def details(self) -> CustomerDetails:
        attribution = self.usage_attribution
        return CustomerDetails(
            name=self.name,
            key=self.key,
            description=self.description,
            metadata=self.metadata,
            subject_keys=tuple(attribution.subject_keys) if attribution else (),
            primary_email=self.primary_email,
            currency=self.currency,
            billing_address=self.billing_address,
        )


class CustomerBody(CustomerReplaceUpdate):
    READ_ONLY = frozenset()

    id: str
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None = None
    current_subscription_id: str | None = None
    subscriptions: list[SubscriptionBody] | None = None


class CustomerPage(Page):
    items: list[CustomerBody]


class SubscriptionPage(Page):
    items: list[SubscriptionBody]


def customer_bodies(
    session: Session, customers: list[Customer], now: datetime, *, expand: bool = False
) -> list[CustomerBody]:
    """With the subscriptions of all of them read at once."""
    signed: dict[str, list[Subscription]] = {}
    for subscription in subscriptions_of(session, [one.id for one in customers], plans=expand):
        if subscription.status(now) in ("active", "canceled"):
            signed.setdefault(subscription.customer_id, []).append(subscription)
    return [_body(customer, signed.get(customer.id, []), now, expand=expand) for customer in customers]


def _body(customer: Customer, running: list[Subscription], now: datetime, *, expand: bool) -> CustomerBody:
    return CustomerBody(
        id=customer.id,
        name=customer.name,
        key=customer.key,
        description=customer.description,
        metadata=customer.metadata_,
        usage_attribution=UsageAttribution(subject_keys=customer.subject_keys),
        primary_email=customer.primary_email,
        currency=customer.currency,
        billing_address=customer.billing_address,
        created_at=customer.created_at,
        updated_at=customer.updated_at,
        deleted_at=customer.deleted_at,
        current_subscription_id=running[-1].id if running else None,
        subscriptions=[subscription_body(one, now) for one in running] if expand else None,
    )


Expand = Annotated[list[Literal["subscriptions"]] | None, Query()]


@router.post("", operation_id="createCustomer", status_code=201, dependencies=[admin])
def create(session: Transaction, now: Now, body: CustomerReplaceUpdate) -> CustomerBody:
    customer = create_customer(session, body.details, now=now)
    return customer_bodies(session, [customer], now)[0]


@router.get("", operation_id="listCustomers", dependencies=[reader])
def list_all(
    *,
    session: Transaction,
    now: Now,
    key: str | None = None,
    name: str | None = None,
    primary_email: Annotated[str | None, Query(alias="primaryEmail")] = None,
    subject: str | None = None,
    include_deleted: Annotated[bool, Query(alias="includeDeleted")] = False,
    expand: Expand = None,
    order: Literal["ASC", "DESC"] = "ASC",
    order_by: Annotated[CustomerOrder, Query(alias="orderBy")] = "id",
    page: PageNumber = 1,
    page_size: PageSize = 100,
) -> CustomerPage:
    """The text filters are "contains", in any case."""
    found, count = list_customers(
        session,
        key=key,
        name=name,
        primary_email=primary_email,
        subject=subject,
        include_deleted=include_deleted,
        order_by=order_by,
        descending=order == "DESC",
        **page_of(page, page_size),
    )
    items = customer_bodies(session, list(found), now, expand=bool(expand))
    return CustomerPage(total_count=count, page=page, page_size=page_size, items=items)


@router.get("/{customerIdOrKey}", operation_id="getCustomer", dependencies=[reader])
def get(
    session: Transaction,
    now: Now,
    customerIdOrKey: str,  # noqa: N803  the wire's name
    expand: Expand = None,
) -> CustomerBody:
    """By id, else by key, else by one of its subjects."""
    return customer_bodies(
        session, [get_customer(session, customerIdOrKey, by_subject=True)], now, expand=bool(expand)
    )[0]


@router.put("/{customerIdOrKey}", operation_id="updateCustomer", dependencies=[admin])
def update(
    session: Transaction,
    now: Now,
    customerIdOrKey: str,  # noqa: N803  the wire's name
    body: CustomerReplaceUpdate,
) -> CustomerBody:
    """Replace everything: what is left out is cleared.

    Subjects and key stay while a subscription runs, and two months longer: their usage may still be billed.
    """
    customer = get_customer(session, customerIdOrKey, lock=True)
    return customer_bodies(session, [update_customer(session, customer, body.details, now=now)], now)[0]


@router.delete("/{customerIdOrKey}", operation_id="deleteCustomer", status_code=204, dependencies=[admin])
def delete(session: Transaction, now: Now, customerIdOrKey: str) -> None:  # noqa: N803  the wire's name
    """Refused while a subscription runs, something is not billed yet, or an invoice is not final."""
    delete_customer(session, get_customer(session, customerIdOrKey, lock=True), now=now)


@router.get(
    "/{customerIdOrKey}/subscriptions", operation_id="listCustomerSubscriptions", dependencies=[reader]
)
def list_subscriptions(
    *,
    session: Transaction,
    now: Now,
    customerIdOrKey: str,  # noqa: N803  the wire's name
    status: Annotated[list[SubscriptionStatus] | None, Query()] = None,
    order: Literal["ASC", "DESC"] = "ASC",
    order_by: Annotated[Literal["activeFrom", "activeTo"], Query(alias="orderBy")] = "activeFrom",
    page: PageNumber = 1,
    page_size: PageSize = 100,
) -> SubscriptionPage:
    """In the order in which they begin, or end: what has no end does so last."""
    customer = get_customer(session, customerIdOrKey, by_subject=True)
    found = [
        s
        for s in subscriptions_of(session, [customer.id], plans=True)
        if not status or s.status(now) in status
    ]
    if order_by == "activeTo":
        found.sort(key=lambda one: (one.active_to is None, one.active_to or one.active_from))
    if order == "DESC":
        found.reverse()
    items = [subscription_body(one, now) for one in found[(page - 1) * page_size : page * page_size]]
    return SubscriptionPage(total_count=len(found), page=page, page_size=page_size, items=items)
