"""Invoices: /api/v1/billing/invoices in OpenMeter's shape, and our own preview of one customer's.

A gathering invoice, what is not billed yet, is computed whenever it is asked for; the others are stored.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from sqlalchemy.orm import Session
from starlette.responses import Response

from api.http.auth import reader
from api.http.body import ExactRoute, Instant, PageNumber, PageSize, page_of
from api.http.invoice_body import InvoiceBody, InvoicePage, InvoiceStatus, invoice_response, invoices_response
from api.http.session import Now, snapshot
from api.http.stored_invoice import gathering_body, invoice_body
from billing.contracts.customer import customers_by_id, get_customer
from billing.invoices.actions import InvoiceFilter, InvoiceOrder, list_invoices
from billing.invoices.gathering import customer_of_gathering, gathering_customers, gathering_invoices
from billing.invoices.invoice import Invoice, InvoiceNotFoundError, get_invoice
from metering.errors import InvalidError, Issue, NotFoundError

__all__ = ["Expand", "bodies_of", "router"]

router = APIRouter(prefix="/api/v1", tags=["Invoices"], route_class=ExactRoute)

FURTHEST_AHEAD = timedelta(days=2 * 365)


Expand = Literal["lines", "preceding", "workflow.apps"]
OrderBy = Literal["customer.name", "issuedAt", "status", "createdAt", "updatedAt", "periodStart"]
_ORDER: dict[OrderBy, InvoiceOrder] = {
    "customer.name": "customer",
    "issuedAt": "issued_at",
    "status": "status",
    "createdAt": "created_at",
    "updatedAt": "updated_at",
    "periodStart": "period_start",
}


@router.get(
    "/billing/invoices", operation_id="listInvoices", response_model=InvoicePage, dependencies=[reader]
)
def list_all(
    *,
    request: Request,
    now: Now,
    statuses: Annotated[list[InvoiceStatus] | None, Query()] = None,
    extended_statuses: Annotated[list[str] | None, Query(alias="extendedStatuses")] = None,
    customers: Annotated[list[str] | None, Query()] = None,
    issued_after: Annotated[Instant | None, Query(alias="issuedAfter")] = None,
    issued_before: Annotated[Instant | None, Query(alias="issuedBefore")] = None,
    created_after: Annotated[Instant | None, Query(alias="createdAfter")] = None,
    created_before: Annotated[Instant | None, Query(alias="createdBefore")] = None,
    period_start_after: Annotated[Instant | None, Query(alias="periodStartAfter")] = None,
    period_start_before: Annotated[Instant | None, Query(alias="periodStartBefore")] = None,
    include_deleted: Annotated[bool, Query(alias="includeDeleted")] = False,
    expand: Annotated[list[Expand] | None, Query()] = None,
    order: Literal["ASC", "DESC"] = "DESC",
    order_by: Annotated[OrderBy, Query(alias="orderBy")] = "createdAt",
    page: PageNumber = 1,
    page_size: PageSize = 100,
) -> Response:
    """Stored invoices, the newest first; gathering ones, priced as of now, come before them."""
    wanted = InvoiceFilter(
        customers=customers or (),
        statuses=statuses or (),
        extended_statuses=extended_statuses or (),
        issued_after=issued_after,
        issued_before=issued_before,
        created_after=created_after,
        created_before=created_before,
        period_start_after=period_start_after,
        period_start_before=period_start_before,
        include_deleted=include_deleted,
    )
    lines, apps = "lines" in (expand or ()), "workflow.apps" in (expand or ())
    place = page_of(page, page_size)
    with snapshot(request) as session:
        items, ahead = _gathering(session, wanted, now, lines=lines, apps=apps, **place)
        rest = {"offset": max(0, place["offset"] - ahead), "limit": page_size - len(items)}
        found, count = list_invoices(
            session, wanted, order_by=_ORDER[order_by], descending=order == "DESC", **rest
        )
        items += bodies_of(session, found, now, lines=lines, apps=apps)
    return invoices_response(items, total_count=ahead + count, page=page, page_size=page_size)


def _gathering(
    session: Session,
    wanted: InvoiceFilter,
    now: datetime,
    *,
    lines: bool,
    apps: bool,
    offset: int,
    limit: int,
) -> tuple[list[InvoiceBody], int]:
    """Those of one page, and how many there are; none when something else is asked for."""
    if not wanted.gathering:
        return [], 0
    found, count = gathering_customers(
        session, customer_ids=list(wanted.customers), at=now, offset=offset, limit=limit
    )
    gathering = gathering_invoices(session, found, at=now)
    return [gathering_body(one, now, lines=lines, apps=apps) for one in gathering], count


def bodies_of(
    session: Session, invoices: Sequence[Invoice], now: datetime, *, lines: bool, apps: bool = False
) -> list[InvoiceBody]:
    customers = customers_by_id(session, {invoice.customer_id for invoice in invoices})
    return [invoice_body(invoice, customers, now, lines=lines, apps=apps) for invoice in invoices]


@router.get(
    "/billing/invoices/{invoiceId}",
    operation_id="getInvoice",
    response_model=InvoiceBody,
    dependencies=[reader],
)
def get(
    request: Request,
    now: Now,
    invoiceId: str,  # noqa: N803  the wire's name
    expand: Annotated[list[Expand] | None, Query()] = None,
    include_deleted_lines: Annotated[bool, Query(alias="includeDeletedLines")] = False,  # noqa: ARG001
) -> Response:
    """A stored invoice, or a customer's gathering one by the id it has in the list."""
    lines, apps = expand is None or "lines" in expand, "workflow.apps" in (expand or ())
    with snapshot(request) as session:
        body = _any_invoice(session, invoiceId, now, lines=lines, apps=apps)
    return invoice_response(body)


def _any_invoice(session: Session, invoice_id: str, now: datetime, *, lines: bool, apps: bool) -> InvoiceBody:
    try:
        return bodies_of(session, [get_invoice(session, invoice_id)], now, lines=lines, apps=apps)[0]
    except InvoiceNotFoundError:
        customer = customer_of_gathering(session, invoice_id)
        if customer is None or not (gathering := gathering_invoices(session, [customer], at=now)):
            raise
        return gathering_body(gathering[0], now, lines=lines, apps=apps)


@router.get(
    "/customers/{customerIdOrKey}/invoice-preview",
    operation_id="previewInvoice",
    response_model=InvoiceBody,
    dependencies=[reader],
)
def preview(
    request: Request,
    now: Now,
    customerIdOrKey: str,  # noqa: N803  the wire's name
    at: Annotated[Instant | None, Query(description="usage counts up to this instant")] = None,
) -> Response:
    """What the customer would be billed, as of now or of any other instant."""
    if at is not None and at > now + FURTHEST_AHEAD:
        message = f"at may lie at most {FURTHEST_AHEAD.days // 365} years ahead"
        raise InvalidError(message, Issue(code="too_far_ahead", message=message, field="$.at"))
    with snapshot(request) as session:
        customer = get_customer(session, customerIdOrKey, by_subject=True)
        invoices = gathering_invoices(session, [customer], at=at or now, usage_until=at)
    if not invoices:
        message = f"{customer.name!r} has no subscription by then, so there is nothing to bill"
        raise NotFoundError(message, Issue(code="no_subscription", message=message, field="$.at"))
    return invoice_response(gathering_body(invoices[0], now, lines=True))
