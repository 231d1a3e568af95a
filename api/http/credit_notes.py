"""Credit notes: /api/v1/billing/credit-notes, an endpoint of our own. Each is also an invoice."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import Field, StringConstraints
from starlette.responses import Response

from api.http.auth import admin, reader
from api.http.body import Body, ExactRoute, Metadata, PageNumber, PageSize, page_of
from api.http.invoice_body import InvoiceBody, InvoicePage, invoice_response, invoices_response
from api.http.invoices import bodies_of
from api.http.session import Now, Transaction, snapshot
from billing.invoices import credit_notes
from billing.invoices.credit_notes import CreditLine, CreditNoteDetails
from metering.wire import Numeric

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/billing/credit-notes", tags=["Credit notes"], route_class=ExactRoute)

Text = Annotated[str, StringConstraints(max_length=1024)]


class CreditNoteLineCreate(Body):
    """So much of a line of the invoice, before the tax that came on top of it: that follows."""

    line_id: str
    amount: Numeric
    description: Text | None = None


class CreditNoteCreate(Body):
    """Without `lines`: all that is left of every line."""

    invoice_id: str
    reason: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    lines: Annotated[list[CreditNoteLineCreate], Field(max_length=1000)] | None = None
    description: Text | None = None
    metadata: Metadata | None = None

    @property
    def details(self) -> CreditNoteDetails:
        lines = None if self.lines is None else [CreditLine(**dict(line)) for line in self.lines]
        return CreditNoteDetails(
            reason=self.reason, lines=lines, description=self.description, metadata=self.metadata
        )


@router.post("", operation_id="createCreditNote", status_code=201, dependencies=[admin])
def create(session: Transaction, now: Now, body: CreditNoteCreate) -> InvoiceBody:
    """Give back of an issued invoice, at most what it billed and what was not given back yet."""
    note = credit_notes.create_credit_note(session, body.invoice_id, body.details, now=now)
    return bodies_of(session, [note], now, lines=True)[0]


@router.get("", operation_id="listCreditNotes", response_model=InvoicePage, dependencies=[reader])
def list_all(
    *,
    request: Request,
    now: Now,
    invoice_id: Annotated[str | None, Query(alias="invoiceId")] = None,
    customer_id: Annotated[str | None, Query(alias="customerId")] = None,
    page: PageNumber = 1,
    page_size: PageSize = 100,
) -> Response:
    """The newest first, and those that billing itself has issued among them; they are against no invoice."""
    with snapshot(request) as session:
        found, count = credit_notes.list_credit_notes(
            session, invoice_id=invoice_id, customer_id=customer_id, **page_of(page, page_size)
        )
        items = bodies_of(session, found, now, lines=True)
    return invoices_response(items, total_count=count, page=page, page_size=page_size)


@router.get(
    "/{creditNoteId}", operation_id="getCreditNote", response_model=InvoiceBody, dependencies=[reader]
)
def get(request: Request, now: Now, creditNoteId: str) -> Response:  # noqa: N803  the wire's name
    with snapshot(request) as session:
        note = credit_notes.get_credit_note(session, creditNoteId)
        (body,) = bodies_of(session, [note], now, lines=True)
    return invoice_response(body)
