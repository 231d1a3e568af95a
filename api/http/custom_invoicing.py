"""What a custom invoicing app calls back: /api/v1/apps/custom-invoicing/{invoiceId}."""

from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import Field, StringConstraints

from api.http.auth import admin
from api.http.body import Body, ExactRoute, Instant
from api.http.session import Now, Transaction
from billing.apps import custom_invoicing
from billing.apps.custom_invoicing import DraftSynced
from metering.errors import InvalidError, Issue

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/apps/custom-invoicing/{invoiceId}", tags=["Apps"], route_class=ExactRoute)

Number = Annotated[str, StringConstraints(min_length=1, max_length=256)]
ExternalId = Annotated[str, StringConstraints(max_length=1024)]


class LineExternalId(Body):
    line_id: str
    external_id: ExternalId


class LineDiscountExternalId(Body):
    line_discount_id: str
    external_id: ExternalId


class CustomInvoicingSyncResult(Body):
    invoice_number: Number | None = None
    external_id: ExternalId | None = None
    line_external_ids: Annotated[list[LineExternalId], Field(max_length=10_000)] | None = None
    line_discount_external_ids: Annotated[list[LineDiscountExternalId], Field(max_length=10_000)] | None = (
        None
    )


class DraftSynchronizedRequest(Body):
    invoicing: CustomInvoicingSyncResult | None = None

    @property
    def told(self) -> DraftSynced:
        of = self.invoicing or CustomInvoicingSyncResult()
        lines = [(one.line_id, one.external_id) for one in of.line_external_ids or ()]
        discounts = [(one.line_discount_id, one.external_id) for one in of.line_discount_external_ids or ()]
        return DraftSynced(
            number=of.invoice_number,
            external_id=of.external_id,
            lines=_each_once(lines, "lineExternalIds"),
            discounts=_each_once(discounts, "lineDiscountExternalIds"),
        )


def _each_once(pairs: list[tuple[str, str]], member: str) -> dict[str, str]:
    found = dict(pairs)
    if len(found) < len(pairs):
        message = "something has two external ids"
        field = f"$.invoicing.{member}"
        raise InvalidError(message, Issue(code="duplicate_external_id", message=message, field=field))
    return found


class FinalizedInvoicing(Body):
    invoice_number: Number | None = None
    sent_to_customer_at: Instant | None = None


class FinalizedPayment(Body):
    external_id: ExternalId | None = None


class FinalizedRequest(Body):
    invoicing: FinalizedInvoicing | None = None
    payment: FinalizedPayment | None = None


class UpdatePaymentStatusRequest(Body):
    trigger: Literal[
        "paid", "payment_failed", "payment_uncollectible", "payment_overdue", "action_required", "void"
    ]


@router.post(
    "/draft/synchronized",
    operation_id="appCustomInvoicingDraftSynchronized",
    status_code=204,
    dependencies=[admin],
)
def draft(session: Transaction, now: Now, invoiceId: str, body: DraftSynchronizedRequest) -> None:  # noqa: N803
    """The app has the draft: the invoice goes on. Only while it waits for this."""
    custom_invoicing.draft_synchronized(session, invoiceId, body.told, now=now)


@router.post(
    "/issuing/synchronized",
    operation_id="appCustomInvoicingIssuingSynchronized",
    status_code=204,
    dependencies=[admin],
)
def issuing(session: Transaction, now: Now, invoiceId: str, body: FinalizedRequest) -> None:  # noqa: N803
    """The app has issued it: the invoice goes on. Only while it waits for this."""
    of, paid = body.invoicing or FinalizedInvoicing(), body.payment or FinalizedPayment()
    custom_invoicing.issuing_synchronized(
        session,
        invoiceId,
        number=of.invoice_number,
        sent_to_customer_at=of.sent_to_customer_at,
        payment_id=paid.external_id,
        now=now,
    )


@router.post(
    "/payment/status",
    operation_id="appCustomInvoicingUpdatePaymentStatus",
    status_code=204,
    dependencies=[admin],
)
def payment(session: Transaction, now: Now, invoiceId: str, body: UpdatePaymentStatusRequest) -> None:  # noqa: N803
    """What became of the payment."""
    custom_invoicing.payment_status(session, invoiceId, body.trigger, now=now)
