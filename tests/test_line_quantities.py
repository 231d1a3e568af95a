"""What a line says of its quantity: as it was metered, as it is billed, and how much there was before it."""

from dataclasses import replace
from decimal import Decimal
from typing import Any

from sqlalchemy.orm import Session

from api.http.invoices import bodies_of
from api.http.stored_invoice import gathering_body
from billing.contracts.customer import Customer
from billing.invoices.actions import act, invoice_now
from billing.invoices.gathering import gathering_invoices
from billing.invoices.invoice import get_invoice
from catalog.discount import Discounts, UsageDiscount
from catalog.unit_config import UnitConfig
from tests.billing_clock import bill_until, invoices_of
from tests.builders import a_customer, a_metered_feature, a_plan, at, per_unit, phase, sign_up, spent, store

MILLIONS = UnitConfig(operation="divide", conversion_factor=Decimal(1_000_000), rounding="ceiling")


def a_month(session: Session, **card: Any) -> Customer:
    """1,200,000 tokens, then an invoice in between, 900,000 more, and the end of the month."""
    a_metered_feature(session)
    customer = a_customer(session, "ada")
    sign_up(session, customer, a_plan(session, phase(replace(per_unit("2"), **card))))
    store(session, spent("ada", 1_200_000, "2026-01-10"))
    (between,) = invoice_now(session, customer.id, progressive=True, now=at("2026-01-15"))
    act(session, between.id, "snapshot_quantities", now=at("2026-01-15"))
    store(session, spent("ada", 900_000, "2026-01-20"))
    return customer


def quantities(line: Any) -> tuple[str, str, str, str]:
    """Metered and billed before the line, then of the line."""
    return (
        line["meteredPreLinePeriodQuantity"],
        line["preLinePeriodQuantity"],
        line["meteredQuantity"],
        line["quantity"],
    )


def stored(session: Session) -> list[tuple[str, str, str, str]]:
    now = at("2026-02-02")
    bill_until(session, now, since=at("2026-01-15"))
    found = [get_invoice(session, one.id) for one in invoices_of(session)]
    return [quantities(line) for body in bodies_of(session, found, now, lines=True) for line in body["lines"]]


def test_each_line_has_its_own_part(session: Session) -> None:
    free = Discounts(usage=UsageDiscount(quantity=Decimal(1_500_000)))
    a_month(session, discounts=free)
    assert stored(session) == [
        ("0", "0", "1200000", "0"),
        ("1200000", "0", "900000", "600000"),
    ]


def test_what_is_converted_is_metered_as_it_came(session: Session) -> None:
    """1.2 and 2.1 million are 2 and 3 begun ones."""
    a_month(session, unit_config=MILLIONS)
    assert stored(session) == [
        ("0", "0", "1200000", "2"),
        ("1200000", "2", "900000", "1"),
    ]


def test_what_is_not_billed_yet_is_told_apart_from_what_is(session: Session) -> None:
    customer = a_month(session, unit_config=MILLIONS)
    (gathering,) = gathering_invoices(session, [customer], at=at("2026-01-21"))
    (line,) = gathering_body(gathering, at("2026-01-21"), lines=True)["lines"]
    assert quantities(line) == ("1200000", "2", "900000", "1")
