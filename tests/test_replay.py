"""An issued invoice, computed again from what is stored with its lines."""

from decimal import Decimal

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from billing.contracts.customer import Customer
from billing.invoices.invoice import InvoiceNotFoundError
from billing.invoices.invoicing import collect
from billing.proof.replay import NotIssuedError, replay_invoice
from tests.billed_world import a_billed_world, invoice_of
from tests.billing_clock import invoices_of
from tests.builders import (
    a_customer,
    a_plan,
    at,
    per_unit,
    phase,
    sign_up,
)


@pytest.fixture(scope="module", autouse=True)
def people(shared_engine: Engine) -> dict[str, Customer]:
    """Every test sees the same world, and what it does to it is undone."""
    with Session(shared_engine, expire_on_commit=False) as session, session.begin():
        return a_billed_world(session)


def test_every_invoice_of_half_a_year_comes_out_again(session: Session) -> None:
    """Late and voided usage, invoices in between, credits, taxes, a void, lines by hand."""
    invoices = invoices_of(session)
    kinds = {invoice.type for invoice in invoices}
    assert (len(invoices) > 25, kinds) == (True, {"standard", "credit_note"})
    lines = [line for invoice in invoices for line in invoice.lines]
    assert any(line.released_at for line in lines)
    assert any(line.credited_line_id for line in lines)
    assert {tax.percent for line in lines for tax in line.taxes} == {16, 19}
    for invoice in invoices:
        again = replay_invoice(session, invoice.id)
        assert again.identical, again
        assert again.total == invoice.totals.total


def test_an_invoice_does_not_change_with_its_contract_or_its_events(
    session: Session, people: dict[str, Customer]
) -> None:
    session.execute(text("UPDATE subscription_items SET rate_card = jsonb_set(rate_card, '{price}', 'null')"))
    session.execute(text("DELETE FROM events"))
    session.expire_all()
    assert replay_invoice(session, invoice_of(session, people["ada"], 2).id).identical


def test_it_is_found_by_its_number(session: Session) -> None:
    again = replay_invoice(session, "INV-KOAI-1")
    assert [(line.name, line.total, line.identical) for line in again.lines] == [
        ("seat", Decimal("23.80"), True)
    ]
    with pytest.raises(InvoiceNotFoundError):
        replay_invoice(session, "INV-KOAI-999")


def test_a_draft_is_not_replayed(session: Session) -> None:
    customer = a_customer(session, "zoe")
    sign_up(session, customer, a_plan(session, phase(per_unit()), key="own"))
    (draft,) = collect(session, [customer], now=at("2026-02-01"))
    with pytest.raises(NotIssuedError) as refused:
        replay_invoice(session, draft.id)
    assert [issue.code for issue in refused.value.issues] == ["invoice_not_issued"]


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        ("usage = jsonb_set(usage, '{quantity}', '\"901\"')", "quantity"),
        ("quantity = 1", "quantity"),
        ("amount = amount + 0.01", "amount"),
        (
            "details = jsonb_set(details, '{0,amount}', '\"1\"')",
            "detailed line graduated-tiered-1-price-usage",
        ),
        ("details = '[]'", "number of detailed lines"),
        ("taxes = jsonb_set(taxes, '{0,percent}', '\"7\"')", "taxes"),
        ("taxes_exclusive = 0", "exclusive taxes"),
        ("rate_card = jsonb_set(rate_card, '{discounts}', 'null')", "detailed line"),
    ],
)
def test_it_says_what_differs(session: Session, people: dict[str, Customer], damage: str, what: str) -> None:
    invoice = invoice_of(session, people["ada"], 1)
    (line,) = invoice.lines
    session.execute(text(f"UPDATE invoice_lines SET {damage} WHERE id = '{line.id}'"))
    session.expire_all()
    again = replay_invoice(session, invoice.id)
    assert not again.identical
    assert any(one.what.startswith(what) for one in again.lines[0].differences), again


def test_a_changed_total_of_the_invoice_is_found_too(session: Session, people: dict[str, Customer]) -> None:
    invoice = invoice_of(session, people["ada"], 1)
    session.execute(text(f"UPDATE invoices SET amount = amount + 1 WHERE id = '{invoice.id}'"))
    session.expire_all()
    again = replay_invoice(session, invoice.id)
    assert [line.identical for line in again.lines] == [True]
    assert [one.what for one in again.differences] == ["amount"]
