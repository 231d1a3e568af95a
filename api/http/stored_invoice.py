"""Invoices that are stored, gathering ones and simulated ones, each in OpenMeter's shape."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal

from api.http.billing_profiles import AppReference, BillingProfileAppReferences, apps_body
from api.http.invoice_body import (
    ActionDetails,
    BillingDiscounts,
    DetailedLineBody,
    ExternalIds,
    InvoiceBody,
    InvoiceCustomer,
    InvoiceWorkflow,
    LineBody,
    LineDiscounts,
    LineSubscription,
    Party,
    PrecedingBody,
    StatusDetails,
    UsageAttributionBody,
    UsageBasedRateCard,
    ValidationIssueBody,
    customer_body,
    period_body,
    span,
)
from api.http.rated_line import RatedLine, line_body, tax_body, totals_body
from billing.contracts.customer import Customer
from billing.invoices.gathering import GatheringInvoice, gathering_id
from billing.invoices.invoice import Invoice, InvoiceLine, Preceding
from billing.invoices.invoice_tax import with_taxes
from billing.invoices.provider import facts_of
from billing.invoices.state import EDITABLE, FAILED, actions_of, short
from billing.profiles.app import App
from billing.profiles.profile import Party as PartyValue
from billing.profiles.workflow import Workflow
from billing.rating.billable import DueLine, usage_from
from billing.rating.rater import NO_DISCOUNTS, Rating
from billing.taxes.tax import LineTax
from catalog.rate_card import RateCard
from catalog.rate_card import UsageBasedRateCard as UsageCard
from metering.exact import EXACT
from metering.period import Period

__all__ = ["gathering_body", "invoice_body", "party_body", "workflow_body"]


# -- Lines ---------------------------------------------------------------------------------------------------


def _card(card: RateCard) -> UsageBasedRateCard:
    return UsageBasedRateCard(
        feature_key=card.feature_key,
        tax_config=card.tax_config,
        price=card.price,
        discounts=BillingDiscounts.of(card.discounts or NO_DISCOUNTS),
        unit_config=card.unit_config if isinstance(card, UsageCard) else None,
    )


def _metered(quantity: Decimal | None, before: Decimal) -> Decimal | None:
    """The line's own part of all that was metered so far."""
    return None if quantity is None else EXACT.subtract(quantity, before)


def _due_line(line: DueLine, taxes: Sequence[LineTax], now: datetime) -> LineBody:
    one, card = line.billable, line.billable.rate_card
    body = line_body(
        RatedLine(
            identity=tuple(one.identity.split("/")),
            name=card.name,
            description=card.description,
            metadata=card.metadata,
            managed_by=one.managed_by,
            currency=one.currency,
            created_at=one.service.start,
            updated_at=now,
            period=line.period,
            invoice_at=one.invoice_at,
            rate_card=_card(card),
            metered=_metered(line.quantity, line.metered_before),
            metered_before=line.metered_before,
            rating=line.rating,
            subscription=_source(one.subscription_id, one.phase_id, one.item_id, one.billing),
        )
    )
    if taxes:
        body["totals"] = totals_body(with_taxes(line.totals, taxes), one.currency)
        body["taxes"] = [tax_body(tax, one.currency) for tax in taxes]
    return body


def _source(
    subscription_id: str | None, phase_id: str | None, item_id: str | None, billing: Period
) -> LineSubscription | None:
    if subscription_id is None or phase_id is None or item_id is None:
        return None
    return {
        "subscription": {"id": subscription_id},
        "phase": {"id": phase_id},
        "item": {"id": item_id},
        "billingPeriod": period_body(billing),
    }


def _stored_line(line: InvoiceLine, currency: str) -> LineBody:
    rating = Rating(
        details=line.details,
        quantity=line.quantity,
        quantity_before=line.quantity_before,
        usage_discount=line.usage_discount,
        usage_discount_before=line.usage_discount_before,
    )
    billing = Period(start=line.billing_start, end=line.billing_end)
    quantity = None if line.usage is None else usage_from(line.usage).quantity
    before = Decimal(0) if line.usage is None else Decimal(line.usage.get("before", "0"))
    body = line_body(
        RatedLine(
            identity=(line.identity, str(line.sequence)),
            id=line.id,
            name=line.name,
            description=line.description,
            metadata=line.metadata_,
            managed_by="manual" if line.managed_by == "manual" else "subscription",
            currency=currency,
            created_at=line.created_at,
            updated_at=line.updated_at,
            period=line.period,
            invoice_at=line.invoice_at,
            rate_card=_card(line.rate_card),
            metered=_metered(quantity, before),
            metered_before=before,
            rating=rating,
            subscription=_source(line.subscription_id, line.phase_id, line.item_id, billing),
        )
    )
    body["totals"] = totals_body(line.totals, currency)
    if line.taxes:
        body["taxes"] = [tax_body(tax, currency) for tax in line.taxes]
    return body


# -- Invoices ------------------------------------------------------------------------------------------------


def gathering_body(
    invoice: GatheringInvoice, now: datetime, *, lines: bool, apps: bool = False
) -> InvoiceBody:
    customer, profile = invoice.customer, invoice.profile
    body: InvoiceBody = {
        "type": "standard",
        "id": gathering_id(customer.id, invoice.currency),
        "createdAt": invoice.since,
        "updatedAt": now,
        "supplier": party_body(profile.supplier),
        "customer": customer_body(customer),
        "number": f"GATHER-{customer.id[-6:]}-{invoice.currency}",
        "currency": invoice.currency,
        "totals": totals_body(invoice.totals, invoice.currency),
        "status": "gathering",
        "statusDetails": StatusDetails(
            extended_status="gathering", available_actions={"invoice": ActionDetails()}
        ),
        "workflow": workflow_body(
            profile.id, profile.app_id, profile.workflow, whole=profile.app if apps else None
        ),
    }
    if invoice.lines:
        body["period"] = span(line.period for line in invoice.lines)
    if lines:
        taxed = zip(invoice.lines, invoice.taxes, strict=True)
        body["lines"] = [_due_line(line, taxes, now) for line, taxes in taxed]
    return body


def workflow_body(
    profile_id: str, app_id: str, workflow: Workflow, *, whole: App | None = None
) -> InvoiceWorkflow:
    """`whole`: the app, where more than a reference to it is asked for."""
    reference = AppReference(id=app_id)
    references = BillingProfileAppReferences(tax=reference, invoicing=reference, payment=reference)
    return InvoiceWorkflow(
        source_billing_profile_id=profile_id,
        workflow=workflow,
        apps=references if whole is None else apps_body(whole, whole=True),
    )


def party_body(party: PartyValue) -> Party:
    return Party.model_validate(party, from_attributes=True)


def invoice_body(
    invoice: Invoice, customers: Mapping[str, Customer], now: datetime, *, lines: bool, apps: bool = False
) -> InvoiceBody:
    """As it is stored; whose subjects its customer has is of today."""
    actions = actions_of(invoice.status, facts_of(invoice, now))
    subjects = customers[invoice.customer_id].subject_keys
    body: InvoiceBody = {
        "id": invoice.id,
        "type": "credit_note" if invoice.type == "credit_note" else "standard",
        "createdAt": invoice.created_at,
        "updatedAt": invoice.updated_at,
        "supplier": party_body(invoice.supplier),
        "customer": InvoiceCustomer(
            **party_body(invoice.customer).model_dump(),
            usage_attribution=UsageAttributionBody(subject_keys=subjects),
        ),
        "number": invoice.number,
        "currency": invoice.currency,
        "totals": totals_body(invoice.totals, invoice.currency),
        "status": short(invoice.status),  # type: ignore[typeddict-item]
        "statusDetails": StatusDetails(
            immutable=invoice.status not in EDITABLE,
            failed=invoice.status in FAILED,
            extended_status=invoice.status,
            available_actions={name: ActionDetails(resulting_state=to) for name, to in actions.items()},
        ),
        "workflow": workflow_body(
            invoice.billing_profile_id, invoice.app_id, invoice.workflow, whole=invoice.app if apps else None
        ),
        "validationIssues": [ValidationIssueBody(**issue) for issue in invoice.validation_issues],
        "externalIds": ExternalIds(
            invoicing=invoice.external_ids.get("invoicing"), payment=invoice.external_ids.get("payment")
        ),
    }
    _add_instants(body, invoice)
    if invoice.description is not None:
        body["description"] = invoice.description
    if invoice.metadata_ is not None:
        body["metadata"] = invoice.metadata_
    if invoice.preceding is not None:
        body["preceding"] = [_preceding(invoice.preceding_id, invoice.preceding)]
    if lines:
        body["lines"] = [_stored_line(line, invoice.currency) for line in invoice.lines]
        if invoice.external_ids:
            _add_external_ids(body["lines"], invoice.external_ids)
    return body


def _add_external_ids(lines: Sequence[LineBody], known: Mapping[str, str]) -> None:
    """What a system of one's own calls lines, detailed lines and discounts, if it told."""
    every: list[LineBody | DetailedLineBody] = [
        *lines,
        *(child for line in lines for child in line["children"]),
    ]
    for line in every:
        if external := known.get(f"line/{line['id']}"):
            line["externalIds"] = ExternalIds(invoicing=external)
        discounts = line.get("discounts", LineDiscounts())
        for discount in (*discounts.get("amount", ()), *discounts.get("usage", ())):
            if external := known.get(f"discount/{discount['id']}"):
                discount["externalIds"] = ExternalIds(invoicing=external)


def _preceding(invoice_id: str | None, preceding: Preceding) -> PrecedingBody:
    return PrecedingBody(
        reason=preceding.reason,
        issued_at=preceding.issued_at,
        number=preceding.number,
        url=f"/api/v1/billing/invoices/{invoice_id}",
    )


def _add_instants(body: InvoiceBody, invoice: Invoice) -> None:
    found = {
        "deletedAt": invoice.deleted_at,
        "issuedAt": invoice.issued_at,
        "draftUntil": invoice.draft_until,
        "quantitySnapshotedAt": invoice.quantity_snapshotted_at,
        "collectionAt": invoice.collection_at,
        "dueAt": invoice.due_at,
        "voidedAt": invoice.voided_at,
        "sentToCustomerAt": invoice.sent_to_customer_at,
    }
    body.update({name: at for name, at in found.items() if at is not None})  # type: ignore[typeddict-item]
    if invoice.period_start is not None and invoice.period_end is not None:
        body["period"] = period_body(Period(start=invoice.period_start, end=invoice.period_end))
