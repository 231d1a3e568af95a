"""Changing drafts: PUT /api/v1/billing/invoices/{id} and its /taxes/recalculate, in OpenMeter's shape."""

from dataclasses import replace
from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import Field, StringConstraints
from sqlalchemy.orm import Session

from api.http.auth import admin
from api.http.body import RESOURCE, Body, ExactRoute, Instant, Metadata
from api.http.invoice_body import InvoiceBody, Party, UsageBasedRateCard
from api.http.invoices import bodies_of
from api.http.session import Now, Transaction
from api.http.simulation import PeriodInput, refuse_contradictions, taxed
from billing.invoices import update as invoice_update
from billing.invoices.gathering import customer_of_gathering
from billing.invoices.invoice import Invoice, InvoiceNotFoundError, get_invoice
from billing.invoices.update import InvoiceUpdate, LineUpdate
from billing.profiles.profile import Party as PartyValue
from billing.profiles.profile import TaxIdentity
from billing.profiles.workflow import InvoicingSettings, PaymentSettings, Workflow
from catalog.price import Price
from catalog.rate_card import UsageBasedRateCard as UsageCard
from catalog.tax import TaxConfig
from metering.errors import InvalidError, Issue
from metering.period import Period

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/billing/invoices", tags=["Invoices"], route_class=ExactRoute)


class PartyReplace(Party):
    READ_ONLY = frozenset({"id", "usageAttribution"})

    def of(self, was: PartyValue) -> PartyValue:
        return PartyValue(
            id=was.id,
            key=self.key,
            name=self.name,
            tax_id=None if self.tax_id is None else TaxIdentity(code=self.tax_id.code),
            addresses=tuple(self.addresses or ()),
        )


class InvoicingReplace(Body):
    READ_ONLY = frozenset({"progressiveBilling"})

    auto_advance: bool = True
    draft_period: str = "P0D"
    due_after: str = "P30D"
    subscription_end_proration_mode: Literal["bill_actual_period", "bill_full_period"] = "bill_actual_period"
    default_tax_config: TaxConfig | None = None

    def of(self, was: InvoicingSettings) -> InvoicingSettings:
        return replace(was, **dict(self))


class WorkflowSettingsReplace(Body):
    READ_ONLY = frozenset({"collection", "tax"})

    invoicing: InvoicingReplace
    payment: PaymentSettings


class WorkflowReplace(Body):
    READ_ONLY = frozenset({"apps", "sourceBillingProfileId"})

    workflow: WorkflowSettingsReplace

    def of(self, was: Workflow) -> Workflow:
        return replace(
            was, invoicing=self.workflow.invoicing.of(was.invoicing), payment=self.workflow.payment
        )


COMPUTED = frozenset(
    {
        "managedBy",
        "status",
        "discounts",
        "creditAllocations",
        "invoice",
        "currency",
        "taxes",
        "totals",
        "externalIds",
        "subscription",
        "type",
        "children",
        "quantity",
        "meteredQuantity",
        "preLinePeriodQuantity",
        "meteredPreLinePeriodQuantity",
    }
)
"""What OpenMeter says of a line and nobody can change."""


class InvoiceLineReplace(Body):
    """`price`, `featureKey` and `taxConfig` beside the rate card are OpenMeter's older form of it.

    Who sends both sends the same; tax may be said in either place. Of a line that is there, what is not sent
    of them stays as it is; a rate card is replaced whole.
    """

    READ_ONLY = (RESOURCE - {"id"}) | COMPUTED

    id: str | None = None
    name: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    description: Annotated[str, StringConstraints(max_length=1024)] | None = None
    metadata: Metadata | None = None
    tax_config: TaxConfig | None = None
    period: PeriodInput
    invoice_at: Instant
    price: Price | None = None
    feature_key: str | None = None
    rate_card: UsageBasedRateCard | None = None

    @property
    def value(self) -> LineUpdate:
        return LineUpdate(
            id=self.id,
            name=self.name,
            description=self.description,
            metadata=self.metadata,
            period=Period(start=self.period.from_, end=self.period.to),
            invoice_at=self.invoice_at,
            card=self._card_value,
            tax_config=self.tax_config,
        )

    @property
    def card(self) -> UsageBasedRateCard | None:
        if self.rate_card is None and self.price is None:
            return None
        sent = self.rate_card or UsageBasedRateCard(price=self.price, feature_key=self.feature_key)
        return taxed(sent, self.tax_config)

    @property
    def _card_value(self) -> UsageCard | None:
        if (card := self.card) is None:
            return None
        return UsageCard(
            type="usage_based",
            key=card.feature_key or "manual",
            name=self.name,
            feature_key=card.feature_key,
            tax_config=card.tax_config,
            billing_cadence="P1M",
            price=card.price,
            discounts=card.discounts.value if card.discounts else None,
            unit_config=card.unit_config,
        )


class InvoiceReplaceUpdate(Body):
    READ_ONLY = RESOURCE | frozenset(
        {
            "type",
            "number",
            "currency",
            "preceding",
            "totals",
            "status",
            "statusDetails",
            "issuedAt",
            "draftUntil",
            "quantitySnapshotedAt",
            "collectionAt",
            "dueAt",
            "period",
            "voidedAt",
            "sentToCustomerAt",
            "payment",
            "validationIssues",
            "externalIds",
        }
    )

    description: Annotated[str, StringConstraints(max_length=1024)] | None = None
    metadata: Metadata | None = None
    supplier: PartyReplace
    customer: PartyReplace
    lines: Annotated[list[InvoiceLineReplace], Field(max_length=1000)]
    workflow: WorkflowReplace

    def of(self, invoice: Invoice) -> InvoiceUpdate:
        """Raises InvalidError if a line says something beside its rate card and otherwise."""
        refuse_contradictions((line, line.card) for line in self.lines)
        return InvoiceUpdate(
            description=self.description,
            metadata=self.metadata,
            supplier=self.supplier.of(invoice.supplier),
            customer=self.customer.of(invoice.customer),
            workflow=self.workflow.of(invoice.workflow),
            lines=[line.value for line in self.lines],
        )


@router.put("/{invoiceId}", operation_id="updateInvoice", dependencies=[admin])
def update(session: Transaction, now: Now, invoiceId: str, body: InvoiceReplaceUpdate) -> InvoiceBody:  # noqa: N803
    """Replace what can be changed of a draft: a line without id is added, one that is missing is given up."""
    wanted = body.of(_stored(session, invoiceId))
    updated = invoice_update.update_invoice(session, invoiceId, wanted, now=now)
    return bodies_of(session, [updated], now, lines=True)[0]


@router.post(
    "/{invoiceId}/taxes/recalculate", operation_id="recalculateInvoiceTaxAction", dependencies=[admin]
)
def recalculate_tax(session: Transaction, now: Now, invoiceId: str) -> InvoiceBody:  # noqa: N803
    """Tax a draft by the rates as they are now."""
    _stored(session, invoiceId)
    taxed = invoice_update.recalculate_tax(session, invoiceId, now=now)
    return bodies_of(session, [taxed], now, lines=True)[0]


def _stored(session: Session, invoice_id: str) -> Invoice:
    """A gathering invoice is computed whenever somebody looks: there is nothing to change."""
    try:
        return get_invoice(session, invoice_id)
    except InvoiceNotFoundError:
        if customer_of_gathering(session, invoice_id) is None:
            raise
    message = "a gathering invoice is computed, and can't be edited"
    hint = "Change the subscription, or DELETE the line at /customers/{id}/invoices/pending-lines/{lineId}."
    raise InvalidError(message, Issue(code="invoice_cannot_be_edited", message=message, hint=hint))
