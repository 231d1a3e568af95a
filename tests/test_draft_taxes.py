"""Taxes of what is not issued yet: of the preview, and of drafts that wait while rates change."""

from dataclasses import replace
from decimal import Decimal

import pytest
from sqlalchemy.orm import Session

from billing.contracts.customer import Address
from billing.contracts.edits import RemoveItem
from billing.contracts.subscription_changes import edit_subscription
from billing.invoices.actions import act, invoice_now
from billing.invoices.gathering import gathering_invoices
from billing.invoices.invoice import Invoice, get_invoice
from billing.invoices.invoice_tax import RATE_MISSING
from billing.invoices.update import recalculate_tax
from billing.profiles.customer_overrides import pin_profile
from billing.profiles.profile import get_profile
from billing.profiles.profile_changes import ProfileApps, ProfileDetails, create_profile
from billing.profiles.workflow import InvoicingSettings, TaxSettings
from billing.taxes.tax_rates import TaxRate, TaxRateDetails, create_tax_rate, delete_tax_rate, update_tax_rate
from tests.billing_clock import bill_until, invoices_of, wrong
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

GERMAN = TaxRateDetails(name="VAT", country="DE", percent=Decimal(19), valid_from=START)


def german(session: Session) -> TaxRate:
    return create_tax_rate(session, GERMAN, now=START)


def set_workflow(session: Session, invoicing: InvoicingSettings, *, enforced: bool = False) -> None:
    profile = get_profile(session, None)
    tax = TaxSettings(enforced=enforced)
    profile.workflow = replace(profile.workflow, invoicing=invoicing, tax=tax)
    session.flush()


def drafts(session: Session) -> list[Invoice]:
    return [get_invoice(session, one.id) for one in invoices_of(session)]


def test_who_is_not_taxed_is_not_taxed_beside_somebody_who_is(session: Session) -> None:
    german(session)
    usual = get_profile(session, None)
    untaxed = create_profile(
        session,
        ProfileDetails(
            name="untaxed",
            supplier=usual.supplier,
            workflow=replace(usual.workflow, tax=TaxSettings(enabled=False)),
        ),
        apps=ProfileApps(tax=usual.app_id, invoicing=usual.app_id, payment=usual.app_id),
        now=START,
    )
    plan = a_plan(session, phase(fee("10", term="in_arrears")))
    both = [a_customer(session, name) for name in ("ada", "bob")]
    for customer in both:
        customer.billing_address = Address(country="DE")
        sign_up(session, customer, plan)
    pin_profile(session, both[0].id, profile_id=untaxed.id, now=START)
    found = {one.customer.id: one for one in gathering_invoices(session, both, at=at("2026-01-10"))}
    assert [found[one.id].totals.total for one in both] == [Decimal("10.00"), Decimal("11.90")]


@pytest.mark.parametrize("auto_advance", [True, False])
def test_where_taxes_are_enforced_a_draft_that_lost_its_rate_is_not_issued(
    session: Session, auto_advance: bool
) -> None:
    rate = german(session)
    settings = InvoicingSettings(draft_period="P3D", auto_advance=auto_advance)
    set_workflow(session, settings, enforced=True)
    customer = a_customer(session, "ada")
    customer.billing_address = Address(country="DE")
    plan = a_plan(session, phase(fee("31"), fee("10", key="extra")))
    subscription = sign_up(session, customer, plan)
    bill_until(session, START)
    delete_tax_rate(session, rate.id, now=at("2026-01-02"))
    gone = RemoveItem(op="remove_item", phase_key="main", item_key="extra")
    edit_subscription(session, subscription.id, edits=[gone], now=at("2026-01-02"))
    bill_until(session, at("2026-01-10"))
    (draft,) = drafts(session)
    if not auto_advance:
        act(session, draft.id, "approve", now=at("2026-01-10"))
    assert (draft.status, draft.issued_at) == ("draft.invalid", None)
    assert {issue["code"] for issue in draft.validation_issues} == {RATE_MISSING}
    german(session)
    act(session, draft.id, "retry", now=at("2026-01-11"))
    if not auto_advance:
        act(session, draft.id, "approve", now=at("2026-01-11"))
    # 31, and 10 x 1/31 = 0.32; 19 % of each are 5.89 and 0.06
    assert (draft.status, draft.totals.total) == ("paid", Decimal("37.27"))
    assert draft.validation_issues == []


def two_drafts(session: Session, *, enforced: bool = False) -> list[Invoice]:
    """10 tokens on a draft, and on another one 4 of them back, both waiting for approval."""
    a_metered_feature(session)
    set_workflow(session, InvoicingSettings(auto_advance=False), enforced=enforced)
    customer = a_customer(session, "ada")
    customer.billing_address = Address(country="DE")
    sign_up(session, customer, a_plan(session, phase(per_unit("10"))))
    for tokens, day in [(10, "05"), (-4, "10")]:
        store(session, spent("ada", tokens, f"2026-01-{day}"))
        invoice_now(session, customer.id, progressive=True, now=at(f"2026-01-{day}T01:00"))
        bill_until(session, at(f"2026-01-{day}T03:00"))
    return drafts(session)


@pytest.mark.parametrize("issued", [True, False])
def test_a_line_keeps_its_tax_when_a_later_one_goes_on_from_there(session: Session, issued: bool) -> None:
    rate = german(session)
    first, back = two_drafts(session)
    assert [one.totals.total for one in (first, back)] == [119, Decimal("-47.60")]
    if issued:
        act(session, back.id, "approve", now=at("2026-01-11"))
    update_tax_rate(session, rate.id, replace(GERMAN, percent=Decimal(20)), now=at("2026-01-12"))
    recalculate_tax(session, first.id, now=at("2026-01-12"))
    for one in (first, back)[: 1 if issued else 2]:
        act(session, one.id, "approve", now=at("2026-01-13"))
    assert [one.totals.total for one in (first, back)] == [119, Decimal("-47.60")]
    assert wrong(session, at("2026-01-14")) == []


def test_a_line_that_lacked_a_rate_is_taxed_all_the_same(session: Session) -> None:
    first, back = two_drafts(session, enforced=True)
    assert [(one.status, str(one.totals.total)) for one in (first, back)] == [
        ("draft.invalid", "100.00"),
        ("draft.manual_approval_needed", "-40.00"),
    ]
    german(session)
    act(session, first.id, "retry", now=at("2026-01-12"))
    assert (first.status, str(first.totals.total)) == ("draft.manual_approval_needed", "119.00")
    assert str(back.totals.total) == "-47.60"
    for one in (back, first):
        act(session, one.id, "approve", now=at("2026-01-13"))
    assert wrong(session, at("2026-01-14")) == []
