"""Changing a draft by hand: its words, parties and settings, and its lines, as long as it can be edited.

The whole is replaced: a line with an id is changed, one without is added, one that is missing is given up.
What a contract says of a line can't be changed here. A line that was given up is kept on a deleted draft of
its own: its charge counts as billed, as with any draft that was deleted. The draft then goes through its
states again.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy.orm import Session

from billing.contracts.customer import address_issues, get_customer
from billing.contracts.pending import (
    PendingLine,
    WantedLine,
    add_pending_lines,
    line_issues,
    metered_features,
)
from billing.invoices.actions import locked_invoice
from billing.invoices.giving_up import require_charged
from billing.invoices.invoice import Invoice, InvoiceLine
from billing.invoices.invoicing import draft_until, line_of, number_drafts
from billing.invoices.progress import fire
from billing.invoices.state import EDITABLE
from billing.profiles.profile import Party
from billing.profiles.profile_rules import check_supplier, check_workflow
from billing.profiles.workflow import Workflow
from billing.rating.billable import due_line
from billing.rating.pricing import NOTHING
from billing.rating.rater import add_totals
from catalog.discount import Discounts
from catalog.price import FlatPrice
from catalog.rate_card import RateCard, UsageBasedRateCard
from catalog.rate_card_rules import check_tax
from catalog.tax import TaxConfig
from metering.errors import InvalidError, Issue
from metering.ids import new_id
from metering.period import Period

__all__ = ["InvoiceUpdate", "LineUpdate", "recalculate_tax", "require_editable", "update_invoice"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LineUpdate:
    """`card` says price, discounts and tax anew; None leaves them as they are, of a line that is there.

    `tax_config` without a card changes only that.
    """

    id: str | None
    name: str
    description: str | None
    metadata: Mapping[str, str] | None
    period: Period
    invoice_at: datetime
    card: UsageBasedRateCard | None
    tax_config: TaxConfig | None = None

    @property
    def new_tax(self) -> TaxConfig | None:
        return self.tax_config if self.card is None else self.card.tax_config


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoiceUpdate:
    description: str | None
    metadata: Mapping[str, str] | None
    supplier: Party
    customer: Party
    workflow: Workflow
    lines: Sequence[LineUpdate]


def require_editable(invoice: Invoice) -> None:
    if invoice.status not in EDITABLE:
        message = f"an invoice that is {invoice.status} can't be edited"
        hint = "What was issued stays as it is: issue a credit note, or void it."
        raise InvalidError(message, Issue(code="invoice_cannot_be_edited", message=message, hint=hint))


def recalculate_tax(session: Session, invoice_id: str, *, now: datetime) -> Invoice:
    """Tax a draft by the rates as they are now; it goes through its states again."""
    invoice = locked_invoice(session, invoice_id)
    require_editable(invoice)
    fire(session, invoice, "updated", now=now)
    return invoice


def update_invoice(session: Session, invoice_id: str, wanted: InvoiceUpdate, *, now: datetime) -> Invoice:
    """All of it or nothing. Raises InvalidError with the path of each thing that can't be so."""
    invoice = locked_invoice(session, invoice_id)
    require_editable(invoice)
    rows = {line.id: line for line in invoice.lines}
    if issues := [*_issues(wanted), *_line_issues(session, wanted.lines, rows, now)]:
        raise InvalidError(issues[0].message, *issues)
    invoice.description = wanted.description
    invoice.metadata_ = None if wanted.metadata is None else dict(wanted.metadata)
    invoice.supplier, invoice.customer = wanted.supplier, wanted.customer
    invoice.workflow = wanted.workflow
    invoice.draft_until = draft_until(invoice, wanted.workflow)
    _replace_lines(session, invoice, wanted.lines, rows, now)
    fire(session, invoice, "updated", now=now)
    return invoice


# -- What can't be so ----------------------------------------------------------------------------------------


def _issues(wanted: InvoiceUpdate) -> Iterable[Issue]:
    yield from check_workflow(wanted.workflow, "$.workflow.workflow")
    yield from check_supplier(wanted.supplier)
    addresses = wanted.customer.addresses
    if len(addresses) > 1:
        yield Issue(
            code="too_many_addresses", message="a customer has one address", field="$.customer.addresses"
        )
    for i, address in enumerate(addresses):
        yield from address_issues(address, f"$.customer.addresses[{i}]")


def _line_issues(
    session: Session, lines: Sequence[LineUpdate], rows: Mapping[str, InvoiceLine], now: datetime
) -> Iterable[Issue]:
    times = Counter(one.id for one in lines)
    metered = metered_features(session, _feature_keys(lines))
    for i, one in enumerate(lines):
        where = f"$.lines[{i}]"
        if one.id is None:
            yield from _new_issues(one, where, metered, now)
        elif one.id not in rows:
            message = f"the invoice has no line {one.id!r}"
            hint = "Leave out the id of a line that is new."
            yield Issue(code="invoice_line_not_found", message=message, field=f"{where}.id", hint=hint)
        elif times[one.id] > 1:
            message = f"the line {one.id!r} is there twice"
            yield Issue(code="invoice_line_repeated", message=message, field=f"{where}.id")
        else:
            yield from _changed_issues(one, rows[one.id], where, metered, now)


def _feature_keys(lines: Iterable[LineUpdate]) -> set[str]:
    return {one.card.feature_key for one in lines if one.card is not None and one.card.feature_key}


def _new_issues(one: LineUpdate, where: str, metered: set[str], now: datetime) -> Iterable[Issue]:
    if one.card is None:
        yield Issue(code="field_required", message="a line needs a price", field=f"{where}.rateCard.price")
        return
    yield from line_issues(_wanted(one, one.card), where, metered, now)
    yield from _tax_issues(one, where)
    yield from _not_over(one.card, one.period, where, now)


def _tax_issues(one: LineUpdate, where: str) -> Iterable[Issue]:
    if one.new_tax is not None:
        yield from check_tax(one.new_tax, f"{where}.{'rateCard.' if one.card else ''}taxConfig")


def _not_over(card: RateCard, period: Period, where: str, now: datetime) -> Iterable[Issue]:
    if card.price is not None and not isinstance(card.price, FlatPrice) and period.end > now:
        message = "usage is billed by hand once its period is over"
        hint = "Add it to the customer's pending lines: it is billed when it is due."
        field = f"{where}.period.to"
        yield Issue(code="invoice_lines_not_billable", message=message, field=field, hint=hint)


def _changed_issues(
    one: LineUpdate, row: InvoiceLine, where: str, metered: set[str], now: datetime
) -> Iterable[Issue]:
    card = one.card
    yield from _tax_issues(one, where)
    if card is not None and card.feature_key != row.rate_card.feature_key:
        message = "the feature of a line can't be changed"
        hint = "Take the line off and add another."
        code, field = "invoice_line_feature_key_edit_not_supported", f"{where}.rateCard.featureKey"
        yield Issue(code=code, message=message, field=field, hint=hint)
    elif row.managed_by == "subscription":
        yield from _managed_issues(one, row, where)
    elif row.sequence or not row.last:
        yield from _split_issues(one, row, where)
    elif _moved(one, row) or _priced_anew(one, row) or _is_due_anew(one, row):
        changed = card or _as_wanted(row.rate_card)
        yield from line_issues(_wanted(one, changed), where, metered | _known(row), now)
        yield from _not_over(changed, one.period, where, now)


def _known(row: InvoiceLine) -> set[str]:
    """A feature that was metered when the line was made still is: it keeps its meter, even archived."""
    metered = row.rate_card.feature_key and not isinstance(row.rate_card.price, FlatPrice)
    return {row.rate_card.feature_key} if metered and row.rate_card.feature_key else set()


def _managed_issues(one: LineUpdate, row: InvoiceLine, where: str) -> Iterable[Issue]:
    hint = "Change the subscription: the draft follows it."
    if _moved(one, row):
        message = "the period of a subscription's line follows from the subscription"
        code = "invoice_line_no_period_change_for_subscription_managed_line"
        yield Issue(code=code, message=message, field=f"{where}.period", hint=hint)
    code = "cannot_update_charge_managed_line"
    if _is_due_anew(one, row):
        message = "when a subscription's line is due follows from the subscription"
        yield Issue(code=code, message=message, field=f"{where}.invoiceAt", hint=hint)
    if _priced_anew(one, row):
        message = "the price of a subscription's line follows from the subscription"
        yield Issue(code=code, message=message, field=f"{where}.rateCard", hint=hint)


def _split_issues(one: LineUpdate, row: InvoiceLine, where: str) -> Iterable[Issue]:
    if _moved(one, row):
        message = "the line is one of several of its period, and keeps its part of it"
        code = "invoice_line_no_period_change_for_split_line"
        yield Issue(code=code, message=message, field=f"{where}.period")
    code = "cannot_edit_progressively_billed_usagebased_line"
    if _is_due_anew(one, row):
        message = "the line is one of several of its period, and is due when its part of it is"
        yield Issue(code=code, message=message, field=f"{where}.invoiceAt")
    if _priced_anew(one, row):
        message = "the line is one of several of its period, and they have one price"
        yield Issue(code=code, message=message, field=f"{where}.rateCard")


def _moved(one: LineUpdate, row: InvoiceLine) -> bool:
    return not (_alike(one.period.start, row.period_start) and _alike(one.period.end, row.period_end))


def _is_due_anew(one: LineUpdate, row: InvoiceLine) -> bool:
    return not _alike(one.invoice_at, row.invoice_at)


def _alike(one: datetime, other: datetime) -> bool:
    """To the second: some clients know no smaller parts."""
    return one.replace(microsecond=0) == other.replace(microsecond=0)


def _priced_anew(one: LineUpdate, row: InvoiceLine) -> bool:
    return one.card is not None and _terms(one.card) != _terms(row.rate_card)


def _terms(card: RateCard) -> tuple[object, ...]:
    unit_config = card.unit_config if isinstance(card, UsageBasedRateCard) else None
    return card.price, card.discounts or Discounts(), unit_config


# -- The lines -----------------------------------------------------------------------------------------------


def _replace_lines(
    session: Session,
    invoice: Invoice,
    lines: Sequence[LineUpdate],
    rows: Mapping[str, InvoiceLine],
    now: datetime,
) -> None:
    kept = {one.id for one in lines}
    _give_up(session, invoice, [row for id_, row in rows.items() if id_ not in kept], now)
    added = iter(_added(session, invoice, [one for one in lines if one.id is None], now))
    for position, one in enumerate(lines):
        row = next(added) if one.id is None else rows[one.id]
        row.position = position
        if one.id is not None:
            _change(session, row, one, now)
    invoice.lines.sort(key=lambda row: row.position)
    if invoice.lines:
        invoice.period_start = min(row.period_start for row in invoice.lines)
        invoice.period_end = max(row.period_end for row in invoice.lines)


def _change(session: Session, row: InvoiceLine, one: LineUpdate, now: datetime) -> None:
    row.name, row.description, row.updated_at = one.name, one.description, now
    row.metadata_ = None if one.metadata is None else dict(one.metadata)
    if one.card is not None or one.tax_config is not None:
        row.rate_card = replace(row.rate_card, tax_config=one.new_tax)
    if row.managed_by == "manual":
        _change_manual(_pending(session, row), row, one)


def _change_manual(pending: PendingLine, row: InvoiceLine, one: LineUpdate) -> None:
    """What was asked for is changed along with what it became."""
    row.rate_card = pending.rate_card = _named(one, one.card or _as_wanted(row.rate_card))
    if row.last and not row.sequence:
        row.invoice_at = pending.invoice_at = one.invoice_at
        start, end = one.period.start.replace(microsecond=0), one.period.end.replace(microsecond=0)
        pending.period_start, pending.period_end = start, end
        row.period_start, row.service_start, row.billing_start = start, start, start
        row.period_end, row.service_end, row.billing_end = end, end, end


def _added(
    session: Session, invoice: Invoice, lines: Sequence[LineUpdate], now: datetime
) -> Iterable[InvoiceLine]:
    """Lines by hand that are billed here, and never wait. Their usage is looked up when all is rated anew."""
    if not lines:
        return
    customer = get_customer(session, invoice.customer_id, lock=True)
    wanted = [_wanted(one, one.card) for one in lines if one.card is not None]
    for pending in add_pending_lines(session, customer, currency=invoice.currency, lines=wanted, now=now):
        pending.next_billing_at = None
        billable = pending.billable
        due = due_line(billable, NOTHING, (), until=billable.service.end, last=True)
        row = line_of(due, 0, now)
        invoice.lines.append(row)
        yield row


def _wanted(one: LineUpdate, card: UsageBasedRateCard) -> WantedLine:
    return WantedLine(rate_card=_named(one, card), period=one.period, invoice_at=one.invoice_at)


def _named(one: LineUpdate, card: UsageBasedRateCard) -> UsageBasedRateCard:
    return replace(card, name=one.name, description=one.description, metadata=one.metadata)


def _as_wanted(card: RateCard) -> UsageBasedRateCard:
    assert isinstance(card, UsageBasedRateCard)  # noqa: S101  lines by hand have no other
    return card


def _pending(session: Session, row: InvoiceLine) -> PendingLine:
    return session.get_one(PendingLine, row.identity.partition("/")[2])


def _give_up(session: Session, invoice: Invoice, rows: Sequence[InvoiceLine], now: datetime) -> None:
    """To a deleted draft of their own: what they bill is not billed again."""
    if not rows:
        return
    hint = "Leave it on the invoice, and give back what is not owed with a credit note."
    require_charged(session, rows, {row.id: "$.lines" for row in rows}, hint=hint)
    aside = Invoice(
        id=new_id(now),
        type="standard",
        customer_id=invoice.customer_id,
        currency=invoice.currency,
        status="deleted",
        description=f"Taken off {invoice.number}",
        supplier=invoice.supplier,
        customer=invoice.customer,
        billing_profile_id=invoice.billing_profile_id,
        app_id=invoice.app_id,
        workflow=invoice.workflow,
        validation_issues=[],
        external_ids={},
        created_at=now,
        updated_at=now,
        deleted_at=now,
    )
    for row in rows:
        invoice.lines.remove(row)
        aside.lines.append(row)
        if row.managed_by == "manual":
            _pending(session, row).delete(now)
    aside.totals = add_totals(row.totals for row in rows)
    number_drafts(session, [aside])
    session.add(aside)
