"""What is taken away and sold anew in the second in which it was billed is billed at what it costs now."""

from datetime import timedelta
from decimal import Decimal

import pytest
from sqlalchemy.orm import Session

from billing.contracts.edits import AddItem, RemoveItem
from billing.contracts.subscription_addons import add_addon, update_addon_of
from billing.contracts.subscription_changes import edit_subscription
from billing.invoices.invoice import InvoiceLine
from billing.profiles.profile import get_profile
from billing.profiles.workflow import InvoicingSettings, Workflow
from billing.runs.run import run_portion
from catalog.plan_addons import create_plan_addon
from catalog.plans import plan_terms
from tests.billing_clock import bill_until, invoices_of, ledger, wrong
from tests.builders import START, a_customer, a_plan, an_addon, at, fee, phase, sign_up

NOW = at("2026-01-11T00:00:00.2")
END = at("2026-01-20")
TICK = timedelta(milliseconds=200)


def add(amount: str) -> AddItem:
    return AddItem(op="add_item", phase_key="main", rate_card=fee(amount, key="desk"))


REMOVE = RemoveItem(op="remove_item", phase_key="main", item_key="desk")


def billed(session: Session, key: str) -> Decimal:
    lines: list[InvoiceLine] = [line for one in invoices_of(session) for line in one.lines]
    return sum((line.totals.total for line in lines if line.rate_card.key == key), Decimal(0))


@pytest.mark.parametrize("price", ["310", "3.10", "31"])
@pytest.mark.parametrize("draft", [False, True])
def test_an_item(session: Session, draft: bool, price: str) -> None:
    if draft:
        get_profile(session, None).workflow = Workflow(invoicing=InvoicingSettings(draft_period="P1D"))
    signed = sign_up(session, a_customer(session), a_plan(session, phase(fee("31"))))
    bill_until(session, at("2026-01-02"))
    edit_subscription(session, signed.id, [add("31")], now=NOW)
    run_portion(session, now=NOW + TICK)
    assert billed(session, "desk") == 21
    edit_subscription(session, signed.id, [REMOVE, add(price)], now=NOW + 2 * TICK)
    bill_until(session, END)
    assert billed(session, "desk") == Decimal(price) * 21 / 31, ledger(session)
    assert wrong(session, END) == []


@pytest.mark.parametrize("quantity", [5, 1])
def test_an_addon(session: Session, quantity: int) -> None:
    addon = an_addon(session, fee("31", key="addon"), instance_type="multiple")
    plan = a_plan(session, phase(fee("31")))
    create_plan_addon(
        session,
        plan_id=plan.id,
        plan=plan_terms(session, plan, now=START),
        addon_id=addon.id,
        from_plan_phase="main",
        max_quantity=9,
        now=START,
    )
    signed = sign_up(session, a_customer(session), plan)
    bill_until(session, at("2026-01-02"))
    now = at("2026-01-11")
    bought = add_addon(session, signed.id, addon_id=addon.id, quantity=2, timing="immediate", now=now)
    run_portion(session, now=now)
    for wanted in (0, quantity):
        update_addon_of(session, signed.id, bought.id, quantity=wanted, changes={}, now=now)
    bill_until(session, END)
    assert billed(session, "addon") == 21 * quantity, ledger(session)
    assert wrong(session, END) == []
