"""Taxes: the tables of docs/tax.md, what always holds of them, and invoices that are taxed."""

from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from billing.contracts.customer import Address
from billing.contracts.subscription_changes import cancel_subscription
from billing.invoices.actions import act
from billing.invoices.invoice import Invoice, get_invoice
from billing.invoices.invoice_tax import RATE_MISSING
from billing.invoices.update import recalculate_tax
from billing.profiles.profile import get_profile
from billing.profiles.workflow import TaxSettings
from billing.taxes.tax import Rate, Taxation, TaxedAmount, new_of, rate_of, resolve, tax_on, taxes_of
from billing.taxes.tax_rates import (
    TaxRate,
    TaxRateDetails,
    TaxRateNotFoundError,
    TaxRateOverlapError,
    create_tax_rate,
    delete_tax_rate,
    list_tax_rates,
    update_tax_rate,
)
from catalog.money import round_money
from catalog.rate_card import FlatFeeRateCard
from catalog.tax import CustomInvoicingTaxConfig, StripeTaxConfig, TaxBehavior, TaxConfig
from metering.errors import InvalidError
from metering.exact import plain, total
from tests.billing_clock import bill_until, invoices_of
from tests.builders import (
    START,
    a_customer,
    a_metered_feature,
    a_plan,
    at,
    at_once,
    fee,
    per_unit,
    phase,
    sign_up,
    spent,
    store,
)
from tests.documents import Row, tables_of

RATES, AMOUNTS, LINES = tables_of(
    (Path(__file__).parent.parent / "docs" / "tax.md").read_text(encoding="utf-8")
)


def custom(code: str) -> TaxConfig:
    return TaxConfig(custom_invoicing=CustomInvoicingTaxConfig(code=code))


def said(cell: str) -> str | None:
    return None if cell == "-" else cell


def a_rate(percent: str = "19", *, code: str | None = None, state: str | None = None) -> TaxRate:
    return TaxRate(
        name="VAT", code=code, country="DE", state=state, percent=Decimal(percent), valid_from=START
    )


# -- The tables ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", RATES)
def test_the_rate_of_each_row_is_found(row: Row) -> None:
    rates: list[Rate] = [
        a_rate("19"),
        a_rate("18", state="Bayern"),
        a_rate("7", code="book"),
        a_rate("30", code="wine", state="Bayern"),
    ]
    config = custom(row["code"]) if said(row["code"]) else TaxConfig()
    found = rate_of(rates, config, country="DE", state=said(row["state"]), at=START)
    assert found is not None
    assert (found.code, found.state) == (said(row["code of the rate"]), said(row["state of the rate"]))
    assert found.percent == Decimal(row["percent"])


@pytest.mark.parametrize("row", AMOUNTS)
def test_the_tax_of_each_row_is_as_it_says(row: Row) -> None:
    behavior: TaxBehavior = "inclusive" if row["behavior"] == "inclusive" else "exclusive"
    taxation = Taxation(percent=Decimal(row["percent"]), behavior=behavior)
    (tax,) = taxes_of(Decimal(row["amount"]), taxation, currency=row["currency"])
    assert plain(tax.amount) == row["tax"]
    whole = tax.base + (tax.amount if behavior == "exclusive" else 0)
    assert plain(round_money(whole, row["currency"])) == row["total"]


@pytest.mark.parametrize("case", sorted({row["case"] for row in LINES}))
def test_the_lines_of_each_case_are_taxed_one_after_the_other(case: str) -> None:
    earlier: list[TaxedAmount] = []
    for row in LINES:
        if row["case"] == case:
            percent = row["rate now"].removesuffix(" %")
            taxation = None if percent == "-" else exclusive(percent)
            taxes = taxes_of(Decimal(row["amount"]), taxation, earlier=earlier, currency="EUR")
            assert (plain(total(tax.amount for tax in taxes)) if taxes else "") == row["tax"], row
            earlier.append(TaxedAmount(amount=Decimal(row["amount"]), taxes=taxes))


# -- What always holds ---------------------------------------------------------------------------------------


def exclusive(percent: str | int | Decimal) -> Taxation:
    return Taxation(percent=Decimal(percent), behavior="exclusive")


cents = st.integers(-10_000, 10_000).map(lambda n: Decimal(n).scaleb(-2))
taxations = st.none() | st.builds(
    Taxation,
    percent=st.sampled_from([Decimal(n) for n in ("0", "7", "8.875", "19", "20")]),
    behavior=st.sampled_from(["inclusive", "exclusive"]),
    code=st.sampled_from([None, "book"]),
)


def taxed(lines: list[tuple[Decimal, Taxation | None]]) -> list[TaxedAmount]:
    found: list[TaxedAmount] = []
    for amount, taxation in lines:
        taxes = taxes_of(amount, taxation, earlier=found, currency="EUR")
        found.append(TaxedAmount(amount=amount, taxes=taxes))
    return found


def taxes_in_all(lines: list[TaxedAmount]) -> Decimal:
    return total(tax.amount for line in lines for tax in line.taxes)


@given(st.lists(st.tuples(cents, taxations), max_size=6), taxations)
def test_what_is_taken_back_leaves_no_cent_of_tax(
    lines: list[tuple[Decimal, Taxation | None]], now: Taxation | None
) -> None:
    billed = taxed(lines)
    back = -total(line.amount for line in billed)
    assert not new_of(back, billed)
    taxes = taxes_of(back, now, earlier=billed, currency="EUR")
    assert taxes_in_all([*billed, TaxedAmount(amount=back, taxes=taxes)]) == 0


@given(st.lists(cents, min_size=1, max_size=6), taxations)
def test_a_charge_of_many_lines_is_taxed_as_one(amounts: list[Decimal], taxation: Taxation | None) -> None:
    whole = total(amounts)
    one = taxes_of(whole, taxation, currency="EUR")
    many = taxed([(amount, taxation) for amount in amounts])
    assert taxes_in_all(many) == total(tax.amount for tax in one)


@given(cents, taxations.filter(bool))
def test_a_credit_is_taxed_as_the_exact_reverse(amount: Decimal, taxation: Taxation) -> None:
    assert tax_on(-amount, taxation, "EUR") == -tax_on(amount, taxation, "EUR")


@given(cents, st.sampled_from(["0", "7", "19", "20", "25"]))
def test_what_contains_the_tax_is_what_it_comes_on_top_of(net: Decimal, percent: str) -> None:
    gross = net + tax_on(net, exclusive(percent), "EUR")
    within = tax_on(gross, Taxation(percent=Decimal(percent), behavior="inclusive"), "EUR")
    assert abs(gross - within - net) <= Decimal("0.01")


@given(st.lists(st.tuples(cents, taxations), max_size=6))
def test_the_parts_of_a_line_are_never_more_than_the_line(
    lines: list[tuple[Decimal, Taxation | None]],
) -> None:
    for line in taxed(lines):
        bases = [tax.base for tax in line.taxes]
        assert all(base * line.amount > 0 for base in bases)
        assert abs(total(bases)) <= abs(line.amount)


# -- Which configuration and which rate ----------------------------------------------------------------------


def test_codes_and_behavior_come_from_the_nearest_that_has_them() -> None:
    card, profile = custom("book"), replace(custom("any"), behavior="inclusive")
    assert resolve(card, profile) == replace(custom("book"), behavior="inclusive")
    assert resolve(None, profile) == profile
    assert resolve(replace(profile, behavior="exclusive"), profile).behavior == "exclusive"
    assert resolve(TaxConfig(behavior="exclusive"), profile) == replace(profile, behavior="exclusive")
    assert resolve() == TaxConfig()


def test_the_most_telling_code_that_has_a_rate_decides() -> None:
    config = replace(custom("book"), stripe=StripeTaxConfig(code="txcd_10000000"), tax_code_id="x")
    rates: list[Rate] = [a_rate("7", code="book"), a_rate("5", code="txcd_10000000"), a_rate("19")]
    assert rate_of(rates, config, country="de", state=None, at=START) is rates[1]


def test_a_rate_holds_from_its_first_instant_up_to_its_last_and_nowhere_else() -> None:
    old, new = a_rate("19"), a_rate("20")
    old.valid_to = new.valid_from = at("2026-07-01")
    rates: list[Rate] = [old, new]

    def percent(when: str, country: str | None = "DE") -> Decimal | None:
        found = rate_of(rates, TaxConfig(), country=country, state=None, at=at(when))
        return None if found is None else found.percent

    assert [percent("2025-12-31T23:59:59"), percent("2026-01-01")] == [None, 19]
    assert [percent("2026-06-30T23:59:59"), percent("2026-07-01"), percent("2999-01-01")] == [19, 20, 20]
    assert percent("2026-06-30", "FR") is percent("2026-06-30", None) is None


# -- The rates that are stored -------------------------------------------------------------------------------


def german(percent: str = "19", **more: object) -> TaxRateDetails:
    details = TaxRateDetails(name="VAT", country="DE", percent=Decimal(percent), valid_from=START)
    return replace(details, **more)  # type: ignore[arg-type]


def test_no_two_rates_hold_for_the_same_code_and_place_at_once(session: Session, now: datetime) -> None:
    july = at("2026-07-01")
    first = create_tax_rate(session, german(valid_to=july), now=now)
    with pytest.raises(TaxRateOverlapError, match=first.id):
        create_tax_rate(session, german(), now=now)
    second = create_tax_rate(session, german("20", valid_from=july), now=now)
    create_tax_rate(session, german(code="book"), now=now)
    create_tax_rate(session, german(country="AT"), now=now)
    create_tax_rate(session, german(state="Bayern"), now=now)
    with pytest.raises(TaxRateOverlapError):
        create_tax_rate(session, german(state="BAYERN"), now=now)
    with pytest.raises(TaxRateOverlapError):
        update_tax_rate(session, first.id, german(), now=now)
    delete_tax_rate(session, second.id, now=now)
    assert update_tax_rate(session, first.id, german("18"), now=now).percent == 18
    with pytest.raises(TaxRateNotFoundError):
        update_tax_rate(session, second.id, german(), now=now)
    assert [list_tax_rates(session)[1], list_tax_rates(session, include_deleted=True)[1]] == [4, 5]
    assert list_tax_rates(session, country="DE", code="book")[1] == 1


def test_what_is_no_rate_is_refused_with_its_place(session: Session, now: datetime) -> None:
    wrong = german("-1", country="Germany", valid_to=START)
    with pytest.raises(InvalidError) as refused:
        create_tax_rate(session, wrong, now=now)
    assert {issue.field for issue in refused.value.issues} == {"$.country", "$.percent", "$.validTo"}


def test_of_two_who_add_the_same_rate_at_once_one_is_refused(engine: Engine, now: datetime) -> None:
    second = at_once(
        engine,
        lambda session: create_tax_rate(session, german(), now=now),
        lambda session: create_tax_rate(session, german("20"), now=now),
    )
    assert isinstance(second.exception(), TaxRateOverlapError)


# -- Invoices ------------------------------------------------------------------------------------------------


def taxed_fee(amount: str, tax: TaxConfig | None = None, key: str = "seat") -> FlatFeeRateCard:
    return replace(fee(amount, key=key), tax_config=tax)


def sign_up_in(session: Session, country: str | None, *cards: FlatFeeRateCard) -> str:
    customer = a_customer(session, "ada")
    customer.billing_address = Address(country=country) if country else None
    return sign_up(session, customer, a_plan(session, phase(*cards))).id


def set_tax(session: Session, tax: TaxSettings, default: TaxConfig | None = None) -> None:
    profile = get_profile(session, None)
    invoicing = replace(profile.workflow.invoicing, default_tax_config=default)
    profile.workflow = replace(profile.workflow, tax=tax, invoicing=invoicing)
    session.flush()


def the_invoice(session: Session) -> Invoice:
    (invoice,) = invoices_of(session)
    return get_invoice(session, invoice.id)


def sums(invoice: Invoice) -> tuple[str, ...]:
    totals = invoice.totals
    return tuple(map(str, (totals.amount, totals.taxes_inclusive, totals.taxes_exclusive, totals.total)))


def test_each_line_is_taxed_by_what_its_rate_card_or_else_the_profile_says(session: Session) -> None:
    create_tax_rate(session, german("19"), now=START)
    create_tax_rate(session, german("7", code="book"), now=START)
    set_tax(session, TaxSettings(), TaxConfig(behavior="inclusive"))
    book = replace(custom("book"), behavior="exclusive")
    sign_up_in(session, "DE", taxed_fee("119"), taxed_fee("10", book, key="book"))
    bill_until(session, at("2026-01-01"))
    invoice = the_invoice(session)
    assert sums(invoice) == ("129.00", "19.00", "0.70", "129.70")
    found = {line.name: [(tax.code, tax.percent, tax.amount) for tax in line.taxes] for line in invoice.lines}
    assert found == {
        "seat": [(None, 19, Decimal("19.00"))],
        "book": [("book", 7, Decimal("0.70"))],
    }
    assert (invoice.status, invoice.validation_issues) == ("paid", [])


def test_a_fee_that_is_taken_back_takes_back_its_tax_at_the_rate_of_then(session: Session) -> None:
    rate = create_tax_rate(session, german("19"), now=START)
    id_ = sign_up_in(session, "DE", taxed_fee("31"))
    bill_until(session, at("2026-01-01"))
    update_tax_rate(session, rate.id, german("25"), now=at("2026-01-05"))
    cancel_subscription(session, id_, timing="immediate", now=at("2026-01-11"))
    bill_until(session, at("2026-03-01"))
    first, credit = invoices_of(session)
    assert sums(first) == ("31.00", "0", "5.89", "36.89")
    assert sums(credit) == ("-21.00", "0", "-3.99", "-24.99")
    assert (credit.type, credit.number) == ("credit_note", "CN-KOAI-1")


def test_usage_billed_in_many_lines_is_taxed_as_in_one(session: Session) -> None:
    create_tax_rate(session, german("20"), now=START)
    a_metered_feature(session)
    customer = a_customer(session, "ada")
    customer.billing_address = Address(country="DE")
    sign_up(session, customer, a_plan(session, phase(per_unit("0.01"), fee("0.02"))))
    store(session, spent("ada", 2, "2026-01-10"))
    bill_until(session, at("2026-02-02"))
    store(session, spent("ada", 2, "2026-01-11"))
    bill_until(session, at("2026-03-02"))
    store(session, spent("ada", 2, "2026-01-12"))
    bill_until(session, at("2026-03-02"))
    taxes = [
        (str(line.totals.amount), [str(tax.amount) for tax in line.taxes])
        for invoice in invoices_of(session)
        for line in invoice.lines
        if line.name == "tokens" and line.totals.amount
    ]
    assert taxes == [("0.02", ["0.00"]), ("0.02", ["0.01"])]


def test_where_taxes_are_enforced_an_invoice_without_a_rate_rests_until_that_is_mended(
    session: Session,
) -> None:
    set_tax(session, TaxSettings(enforced=True))
    sign_up_in(session, "DE", taxed_fee("100"))
    bill_until(session, at("2026-01-01"))
    invoice = the_invoice(session)
    assert (invoice.status, sums(invoice)) == ("draft.invalid", ("100.00", "0", "0", "100.00"))
    (issue,) = invoice.validation_issues
    assert (issue["code"], issue["severity"]) == (RATE_MISSING, "critical")
    assert "no tax rate in DE holds on 2026-01-01" in issue["message"]
    act(session, invoice.id, "retry", now=at("2026-01-02"))
    assert invoice.status == "draft.invalid"
    assert [(one["id"], one["severity"]) for one in invoice.validation_issues] == [(issue["id"], "critical")]
    assert invoice.validation_issues[0]["created_at"] == issue["created_at"]
    create_tax_rate(session, german("19"), now=at("2026-01-03"))
    act(session, invoice.id, "retry", now=at("2026-01-03"))
    assert (invoice.status, sums(invoice)) == ("paid", ("100.00", "0", "19.00", "119.00"))
    assert invoice.validation_issues == []


def test_where_they_are_not_it_is_issued_untaxed_and_who_has_rates_is_warned(session: Session) -> None:
    create_tax_rate(session, german("19"), now=START)
    sign_up_in(session, None, taxed_fee("100"), taxed_fee("0", key="free"))
    bill_until(session, at("2026-01-01"))
    invoice = the_invoice(session)
    assert (invoice.status, sums(invoice)) == ("paid", ("100.00", "0", "0", "100.00"))
    (issue,) = invoice.validation_issues
    assert (issue["severity"], issue["field"]) == ("warning", "$.lines[0].taxConfig")
    assert "the customer has no country" in issue["message"]


@pytest.mark.parametrize("enabled", [True, False])
def test_who_has_nothing_to_do_with_taxes_is_not_bothered(session: Session, enabled: bool) -> None:
    set_tax(session, TaxSettings(enabled=enabled, enforced=not enabled))
    sign_up_in(session, "DE", taxed_fee("100"))
    bill_until(session, at("2026-01-01"))
    invoice = the_invoice(session)
    assert (invoice.status, invoice.validation_issues, invoice.lines[0].taxes) == ("paid", [], ())


def test_a_draft_is_taxed_again_when_somebody_asks(session: Session) -> None:
    rate = create_tax_rate(session, german("19"), now=START)
    profile = get_profile(session, None)
    invoicing = replace(profile.workflow.invoicing, auto_advance=False)
    profile.workflow = replace(profile.workflow, invoicing=invoicing)
    sign_up_in(session, "DE", taxed_fee("100"))
    bill_until(session, at("2026-01-01"))
    invoice = the_invoice(session)
    assert (invoice.status, invoice.totals.total) == ("draft.manual_approval_needed", Decimal(119))
    update_tax_rate(session, rate.id, german("20"), now=at("2026-01-02"))
    assert recalculate_tax(session, invoice.id, now=at("2026-01-02")).totals.total == 120
    assert invoice.status == "draft.manual_approval_needed"
    act(session, invoice.id, "approve", now=at("2026-01-03"))
    update_tax_rate(session, rate.id, german("21"), now=at("2026-01-04"))
    with pytest.raises(InvalidError) as refused:
        recalculate_tax(session, invoice.id, now=at("2026-01-04"))
    assert refused.value.issues[0].code == "invoice_cannot_be_edited"
    assert the_invoice(session).totals.total == 120
