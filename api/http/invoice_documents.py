"""An invoice or a credit note as a person reads it: HTML or PDF; and as CSV the usage behind a line."""

import re
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from starlette.responses import Response

from api.documents.html import render_html
from api.http.auth import reader
from api.http.body import ExactRoute
from api.http.session import snapshot
from api.http.usage_csv import MEDIA_TYPE, preferred, usage_csv
from billing.invoices.invoice import get_invoice
from billing.invoices.payments import account_of
from billing.proof.line_usage import line_of, usage_behind
from billing.reports.document import document_of

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/billing/invoices", tags=["Invoices"], route_class=ExactRoute)

HTML, PDF = "text/html", "application/pdf"
HARMLESS = {
    # A template may show pictures; nothing in a document is ever run, or sends anything anywhere.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data: https:; "
    "font-src data: https:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
_HTML_OR_PDF: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The document; HTML unless PDF is asked for.",
        "content": {
            HTML: {"schema": {"type": "string"}},
            PDF: {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
_CSV: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "An apostrophe stands before what a spreadsheet would run.",
        "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
    }
}
Accept = Annotated[str, Header(include_in_schema=False)]


@router.get(
    "/{invoiceId}/document",
    operation_id="getInvoiceDocument",
    response_class=Response,
    responses=_HTML_OR_PDF,
    dependencies=[reader],
)
def document(
    request: Request,
    invoiceId: str,  # noqa: N803  the wire's name
    accept: Accept = "",
) -> Response:
    """The invoice or credit note to read, print and send; a draft says that it is one."""
    with snapshot(request) as session:
        found = document_of(account_of(session, get_invoice(session, invoiceId)))
    if preferred(accept, HTML, PDF) == PDF:
        from api.documents.pdf import render_pdf  # noqa: PLC0415  a tenth of the time a server takes to start

        return _response(render_pdf(found), PDF, f"{_name_of(found.number)}.pdf")
    html = render_html(found, request.app.state.invoice_template)
    return _response(html, HTML, f"{_name_of(found.number)}.html")


@router.get(
    "/{invoiceId}/lines/{lineId}/usage",
    operation_id="getInvoiceLineUsage",
    response_class=Response,
    responses=_CSV,
    dependencies=[reader],
)
def usage(
    request: Request,
    invoiceId: str,  # noqa: N803  the wire's name
    lineId: str,  # noqa: N803
) -> Response:
    """The usage that a line was rated by, for each day and each value of what its price tells apart."""
    with snapshot(request) as session:
        invoice = get_invoice(session, invoiceId)
        line = line_of(invoice, lineId)
        dimensions, rows = usage_behind(session, invoice, line)
    name = f"{_name_of(invoice.number)}-{line.position + 1}.csv"
    return _response(usage_csv(rows, dimensions), MEDIA_TYPE, name)


def _response(content: str | bytes, media_type: str, name: str) -> Response:
    kind = "attachment" if media_type == MEDIA_TYPE else "inline"
    headers = {"Content-Disposition": f'{kind}; filename="{name}"', "Vary": "Accept", **HARMLESS}
    return Response(content, media_type=media_type, headers=headers)


def _name_of(number: str) -> str:
    """A file's, whatever the number is that an app gave."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", number).strip("-.") or "invoice"
