"""Changing a draft by hand: what may change, what follows from it, and what is refused where."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from decimal import Decimal

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from billing.contracts.customer import Address, get_customer
from billing.contracts.pending import PendingLine, WantedLine, add_pending_lines
from billing.invoices.actions import act, invoice_now
from billing.invoices.invoice import Invoice, InvoiceLine, get_invoice
from billing.invoices.update import InvoiceUpdate, LineUpdate, update_invoice
from billing.profiles.profile import Party, get_profile
from billing.profiles.workflow import InvoicingSettings, PaymentSettings, TaxSettings
from billing.taxes.tax_rates import TaxRateDetails, create_tax_rate
from catalog.discount import Discounts, PercentageDiscount
from catalog.price import FlatPrice, Price, UnitPrice
from catalog.rate_card import RateCard, UsageBasedRateCard
from catalog.tax import CustomInvoicingTaxConfig, TaxConfig
from metering.errors import InvalidError
from metering.period import Period
from tests.billing_clock import bill_until, invoices_of, ledger
from tests.builders import (
    START,
    a_customer,
    a_metered_feature,
    a_plan,
    at,
    fee,
    per_unit,
    phase,
    sign_up,
    spent,
    store,
)

NOW = at("2026-02-05")


@pytest.fixture(autouse=True)
def _approved_by_hand(session: Session) -> None:
    profile = get_profile(session, None)
    invoicing = InvoicingSettings(auto_advance=False)
    profile.workflow = replace(profile.workflow, invoicing=invoicing)
    session.flush()


def flat(amount: str) -> FlatPrice:
    return FlatPrice(type="flat", amount=Decimal(amount), payment_term="in_arrears")


def a_card(price: Price | None, feature: str | None = None) -> UsageBasedRateCard:
    return UsageBasedRateCard(
        type="usage_based",
        key=feature or "manual",
        name="?",
        feature_key=feature,
        billing_cadence="P1M",
        price=price,
    )


def a_line(
    name: str,
    card: UsageBasedRateCard,
    *,
    start: str = "2026-01-01",
    end: str = "2026-02-01",
    id_: str | None = None,
) -> LineUpdate:
    return LineUpdate(
        id=id_,
        name=name,
        description=None,
        metadata=None,
        period=Period(start=at(start), end=at(end)),
        invoice_at=NOW,
        card=card,
    )


def kept(line: InvoiceLine) -> LineUpdate:
    return LineUpdate(
        id=line.id,
        name=line.name,
        description=line.description,
        metadata=line.metadata_,
        period=line.period,
        invoice_at=line.invoice_at,
        card=None,
    )


def as_it_is(invoice: Invoice) -> InvoiceUpdate:
    return InvoiceUpdate(
        description=invoice.description,
        metadata=invoice.metadata_,
        supplier=invoice.supplier,
        customer=invoice.customer,
        workflow=invoice.workflow,
        lines=[kept(line) for line in invoice.lines],
    )


def update(session: Session, invoice: Invoice, *lines: LineUpdate, now: datetime = NOW) -> Invoice:
    """Its lines become these."""
    return update_invoice(session, invoice.id, replace(as_it_is(invoice), lines=lines), now=now)


def refused(session: Session, invoice: Invoice, wanted: InvoiceUpdate) -> set[tuple[str, str]]:
    with pytest.raises(InvalidError) as error:
        update_invoice(session, invoice.id, wanted, now=NOW)
    return {(issue.code, issue.field) for issue in error.value.issues}


def refused_lines(session: Session, invoice: Invoice, *lines: LineUpdate) -> set[tuple[str, str]]:
    return refused(session, invoice, replace(as_it_is(invoice), lines=lines))


def a_draft(session: Session, *cards: RateCard) -> Invoice:
    """Of January's usage and February's fees, collected and not yet approved."""
    a_metered_feature(session)
    customer = a_customer(session, "ada")
    customer.billing_address = Address(country="DE")
    sign_up(session, customer, a_plan(session, phase(*(cards or (fee("20"), per_unit("0.01"))))))
    store(session, spent("ada", 500, "2026-01-10"))
    bill_until(session, at("2026-02-02"))
    return get_invoice(session, invoices_of(session)[-1].id)


def by_hand(session: Session, invoice: Invoice, *cards: UsageBasedRateCard) -> Invoice:
    """A draft of nothing but lines added by hand, each over January."""
    customer = get_customer(session, invoice.customer_id, lock=True)
    period = Period(start=START, end=at("2026-02-01"))
    wanted = [WantedLine(rate_card=card, period=period, invoice_at=at("2026-02-03")) for card in cards]
    add_pending_lines(session, customer, currency="USD", lines=wanted, now=at("2026-02-03"))
    made = invoice_now(session, customer.id, progressive=False, now=at("2026-02-04"))
    return get_invoice(session, made[0].id)


def lines_of(invoice: Invoice) -> list[tuple[str, str]]:
    return [(line.name, str(line.totals.total)) for line in invoice.lines]


def test_words_parties_and_settings_are_replaced_and_the_draft_comes_to_the_same(session: Session) -> None:
    invoice = a_draft(session)
    assert invoice.status == "draft.manual_approval_needed"
    invoicing = replace(invoice.workflow.invoicing, draft_period="P3D", due_after="P5D")
    payment = PaymentSettings(collection_method="send_invoice")
    wanted = replace(
        as_it_is(invoice),
        description="January",
        metadata={"po": "7"},
        supplier=Party(name="Tollgate Ltd"),
        customer=replace(invoice.customer, name="Ada", addresses=(Address(country="AT"),)),
        workflow=replace(invoice.workflow, invoicing=invoicing, payment=payment),
    )
    before = lines_of(invoice)
    updated = update_invoice(session, invoice.id, wanted, now=NOW)
    assert (updated.description, updated.metadata_, updated.supplier.name) == (
        "January",
        {"po": "7"},
        "Tollgate Ltd",
    )
    assert updated.customer.addresses[0].country == "AT"
    assert updated.draft_until == at("2026-02-04T01:00")
    assert (updated.status, lines_of(updated)) == ("draft.manual_approval_needed", before)
    act(session, invoice.id, "approve", now=NOW)
    assert updated.due_at == at("2026-02-10")


def test_of_a_subscriptions_line_name_words_and_tax_change_and_the_tax_follows(session: Session) -> None:
    for code, percent in (("any", "19"), ("book", "7")):
        rate = TaxRateDetails(name=code, code=code, country="DE", percent=Decimal(percent), valid_from=START)
        create_tax_rate(session, rate, now=START)
    invoice = a_draft(session, fee("20"))
    book = TaxConfig(behavior="exclusive", custom_invoicing=CustomInvoicingTaxConfig(code="book"))
    line = replace(
        kept(invoice.lines[0]), name="Seats", description="Two", metadata={"a": "b"}, tax_config=book
    )
    (seat,) = update(session, invoice, line).lines
    assert (seat.name, seat.description, seat.metadata_) == ("Seats", "Two", {"a": "b"})
    assert (seat.rate_card.tax_config, [str(tax.amount) for tax in seat.taxes]) == (book, ["1.40"])
    assert str(invoice.totals.total) == "21.40"
    assert update(session, invoice, kept(seat)).lines[0].taxes == seat.taxes


def test_a_line_without_an_id_is_billed_on_this_invoice_and_on_no_other(session: Session) -> None:
    invoice = a_draft(session)
    usage = UnitPrice(type="unit", amount=Decimal("0.10"))
    lines = [kept(line) for line in invoice.lines]
    updated = update(
        session,
        invoice,
        a_line("setup", a_card(flat("50"))),
        *lines,
        a_line("extra", a_card(usage, "tokens")),
    )
    assert lines_of(updated) == [
        ("setup", "50.00"),
        ("tokens", "5.00"),
        ("seat", "20.00"),
        ("extra", "50.00"),
    ]
    assert str(updated.totals.total) == "125.00"
    assert {line.managed_by for line in (updated.lines[0], updated.lines[-1])} == {"manual"}
    act(session, invoice.id, "approve", now=NOW)
    bill_until(session, at("2026-03-02"))
    assert [line for line in ledger(session) if "setup" in line] == [ledger(session)[1]]


def test_lines_that_are_missing_are_given_up_and_never_billed_again(session: Session) -> None:
    invoice = a_draft(session)
    seat = next(line for line in invoice.lines if line.name == "seat")
    tokens = next(line for line in invoice.lines if line.name == "tokens")
    updated = update(session, invoice, kept(tokens))
    assert lines_of(updated) == [("tokens", "5.00")]
    aside = session.scalars(select(Invoice).where(Invoice.status == "deleted")).one()
    assert get_invoice(session, aside.id).lines == [seat]
    assert (aside.description, str(aside.totals.total)) == (f"Taken off {invoice.number}", "20.00")
    act(session, invoice.id, "approve", now=NOW)
    bill_until(session, at("2026-03-02"))
    assert ledger(session)[1:] == [
        "2026-02-01 paid 5.00: tokens 01-01..02-01 5.00",
        "2026-03-01 draft.manual_approval_needed 20.00: tokens 02-01..03-01 0.00, seat 03-01..04-01 20.00",
    ]


def test_a_draft_that_has_no_line_left_is_deleted_when_it_is_approved(session: Session) -> None:
    invoice = a_draft(session)
    assert update(session, invoice).totals.total == 0
    act(session, invoice.id, "approve", now=NOW)
    assert invoice.status == "deleted"


def test_of_a_line_by_hand_period_and_price_change_too(session: Session) -> None:
    first = a_draft(session, fee("20"))
    usage = a_card(UnitPrice(type="unit", amount=Decimal("0.01")), "tokens")
    invoice = by_hand(session, first, usage, a_card(flat("3")))
    by_price = {type(line.rate_card.price): line for line in invoice.lines}
    metered, fixed = by_price[UnitPrice], by_price[FlatPrice]
    dearer = a_card(UnitPrice(type="unit", amount=Decimal("0.02")), "tokens")
    changed = update(
        session,
        invoice,
        a_line("later", dearer, start="2026-01-05", end="2026-01-20", id_=metered.id),
        a_line("less", a_card(flat("2")), id_=fixed.id),
    )
    assert lines_of(changed) == [("later", "10.00"), ("less", "2.00")]
    assert (metered.period, metered.invoice_at) == (Period(start=at("2026-01-05"), end=at("2026-01-20")), NOW)
    moved = a_line("later", dearer, start="2026-01-11", end="2026-01-20", id_=metered.id)
    assert lines_of(update(session, invoice, moved)) == [("later", "0")]
    pending = session.scalars(select(PendingLine).where(PendingLine.deleted_at.is_not(None))).one()
    assert fixed.identity == f"manual/{pending.id}"


def test_what_a_subscription_says_is_not_changed_here_and_the_place_is_named(session: Session) -> None:
    invoice = a_draft(session)
    index, seat = next((i, line) for i, line in enumerate(invoice.lines) if line.name == "seat")
    where = f"$.lines[{index}]"

    def changed(**changes: object) -> set[tuple[str, str]]:
        lines = [kept(line) for line in invoice.lines]
        lines[index] = replace(lines[index], **changes)  # type: ignore[arg-type]
        return refused_lines(session, invoice, *lines)

    shorter = Period(start=seat.period_start, end=at("2026-02-20"))
    assert changed(period=shorter) == {
        ("invoice_line_no_period_change_for_subscription_managed_line", f"{where}.period")
    }
    assert changed(invoice_at=NOW) == {("cannot_update_charge_managed_line", f"{where}.invoiceAt")}
    assert changed(card=a_card(flat("1"))) == {("cannot_update_charge_managed_line", f"{where}.rateCard")}
    assert changed(card=a_card(flat("1"), "tokens")) == {
        ("invoice_line_feature_key_edit_not_supported", f"{where}.rateCard.featureKey")
    }
    assert changed(id="nobody") == {("invoice_line_not_found", f"{where}.id")}
    assert changed(id=invoice.lines[1 - index].id) >= {
        ("invoice_line_repeated", "$.lines[0].id"),
        ("invoice_line_repeated", "$.lines[1].id"),
    }
    wrong = TaxConfig(tax_code_id="x")
    assert changed(tax_config=wrong) == {("tax_config_invalid_tax_code_id", f"{where}.taxConfig.taxCodeId")}
    assert lines_of(get_invoice(session, invoice.id)) == lines_of(invoice)


def test_one_of_several_lines_of_a_period_keeps_its_part_and_its_price(session: Session) -> None:
    first = a_draft(session, fee("20"))
    usage = a_card(UnitPrice(type="unit", amount=Decimal("0.01")), "tokens")
    customer = get_customer(session, first.customer_id, lock=True)
    wanted = WantedLine(
        rate_card=usage, period=Period(start=START, end=at("2026-03-01")), invoice_at=at("2026-03-01")
    )
    add_pending_lines(session, customer, currency="USD", lines=[wanted], now=at("2026-02-03"))
    (made,) = invoice_now(session, customer.id, progressive=True, now=at("2026-02-04"))
    (line,) = made.lines
    assert (line.last, line.period.end) == (False, at("2026-02-04"))
    dearer = a_card(UnitPrice(type="unit", amount=Decimal("0.02")), "tokens")
    assert refused_lines(session, made, replace(kept(line), period=wanted.period, card=dearer)) == {
        ("invoice_line_no_period_change_for_split_line", "$.lines[0].period"),
        ("cannot_edit_progressively_billed_usagebased_line", "$.lines[0].rateCard"),
    }
    renamed = update(session, made, replace(kept(line), name="so far"))
    assert lines_of(renamed) == [("so far", "5.00")]


def test_new_lines_need_what_pending_lines_need_and_usage_that_is_over(session: Session) -> None:
    invoice = a_draft(session)
    usage = UnitPrice(type="unit", amount=Decimal(1))
    too_much = Discounts(percentage=PercentageDiscount(percentage=Decimal(101)))
    cases: Mapping[tuple[str, str], LineUpdate] = {
        ("field_required", "$.lines[0].rateCard.price"): a_line("free", a_card(None)),
        ("percentage_discount_invalid_value", "$.lines[0].rateCard.discounts.percentage.percentage"): a_line(
            "x", replace(a_card(flat("1")), discounts=too_much)
        ),
        ("tax_config_invalid_tax_code_id", "$.lines[0].rateCard.taxConfig.taxCodeId"): a_line(
            "x", replace(a_card(flat("1")), tax_config=TaxConfig(tax_code_id="x"))
        ),
        ("invoice_line_feature_has_no_meters", "$.lines[0].rateCard.featureKey"): a_line("x", a_card(usage)),
        ("invoice_lines_not_billable", "$.lines[0].period.to"): a_line(
            "x", a_card(usage, "tokens"), end="2026-02-06"
        ),
        ("invoice_create_ubp_line_period_is_empty", "$.lines[0].period"): a_line(
            "x", a_card(usage, "tokens"), end="2026-01-01"
        ),
    }
    for expected, line in cases.items():
        assert expected in refused_lines(session, invoice, line)
    unpriced = replace(a_line("x", a_card(usage)), card=None)
    assert refused_lines(session, invoice, unpriced) == {("field_required", "$.lines[0].rateCard.price")}
    assert session.scalars(select(PendingLine)).all() == []


def test_settings_and_parties_that_can_not_be_are_refused_with_their_place(session: Session) -> None:
    invoice = a_draft(session)
    was = as_it_is(invoice)
    invoicing = replace(invoice.workflow.invoicing, draft_period="soon")
    wanted = replace(
        was,
        supplier=Party(),
        customer=Party(addresses=(Address(country="Austria"), Address())),
        workflow=replace(invoice.workflow, invoicing=invoicing),
    )
    assert {field for _, field in refused(session, invoice, wanted)} == {
        "$.workflow.workflow.invoicing.draftPeriod",
        "$.supplier.name",
        "$.customer.addresses",
        "$.customer.addresses[0].country",
    }


def test_what_was_issued_can_not_be_edited(session: Session) -> None:
    invoice = a_draft(session)
    act(session, invoice.id, "approve", now=NOW)
    assert refused(session, invoice, as_it_is(invoice)) == {("invoice_cannot_be_edited", "$")}


def test_a_draft_that_could_not_be_taxed_is_mended_by_the_customers_country(session: Session) -> None:
    rate = TaxRateDetails(name="VAT", country="AT", percent=Decimal(20), valid_from=START)
    create_tax_rate(session, rate, now=START)
    profile = get_profile(session, None)
    profile.workflow = replace(profile.workflow, tax=TaxSettings(enforced=True))
    invoice = a_draft(session, fee("20"))
    assert (invoice.status, len(invoice.validation_issues)) == ("draft.invalid", 1)
    customer = replace(invoice.customer, addresses=(Address(country="AT"),))
    update_invoice(session, invoice.id, replace(as_it_is(invoice), customer=customer), now=NOW)
    assert (invoice.status, invoice.validation_issues) == ("draft.manual_approval_needed", [])
    assert invoice.totals.total == 24
