"""Half a year of billing in which everything happens that makes it hard, for whoever looks back at it."""

from dataclasses import replace
from decimal import Decimal

from sqlalchemy.orm import Session

from billing.contracts.customer import Address, Customer
from billing.contracts.pending import WantedLine, add_pending_lines
from billing.contracts.subscription_changes import (
    cancel_subscription,
    change_subscription,
    unschedule_cancelation,
)
from billing.invoices.actions import VoidAction, invoice_now, void_invoice
from billing.invoices.credit_notes import CreditNoteDetails, create_credit_note
from billing.invoices.invoice import Invoice
from billing.taxes.tax_rates import TaxRateDetails, create_tax_rate
from catalog.discount import Discounts, PercentageDiscount
from catalog.price import FlatPrice, PriceTier, TieredPrice, TierUnitPrice
from catalog.rate_card import UsageBasedRateCard
from metering.event import Event
from metering.events import VoidedEvent, append_events, keyed
from metering.ids import event_key, new_id
from metering.period import Period
from tests.billing_clock import bill_until, invoices_of
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
)

__all__ = ["NOW", "a_billed_world", "graduated", "invoice_of", "known_at", "voided_at"]

NOW = at("2026-07-02")


def graduated() -> UsageBasedRateCard:
    """1000 tokens at 0.01, what is above at 0.005; 10 % off; at least 3 a month."""
    tiers = (
        PriceTier(up_to_amount=Decimal(1000), unit_price=TierUnitPrice(type="unit", amount=Decimal("0.01"))),
        PriceTier(unit_price=TierUnitPrice(type="unit", amount=Decimal("0.005"))),
    )
    price = TieredPrice(type="tiered", mode="graduated", tiers=tiers, minimum_amount=Decimal(3))
    return UsageBasedRateCard(
        type="usage_based",
        key="tokens",
        name="tokens",
        feature_key="tokens",
        billing_cadence="P1M",
        price=price,
        discounts=Discounts(percentage=PercentageDiscount(percentage=Decimal(10))),
    )


def known_at(session: Session, moment: str, *events: Event) -> None:
    """Store events that come in at that instant."""
    connection = session.connection().connection.driver_connection
    assert connection is not None
    when = at(moment)
    append_events(connection, keyed((event, when) for event in events), now=when)


def voided_at(session: Session, moment: str, event: Event) -> None:
    key = event_key(event.source, event.id)
    session.add(VoidedEvent(key=key, correction_id=new_id(at(moment)), voided_at=at(moment)))
    session.flush()


def a_billed_world(session: Session) -> dict[str, Customer]:
    """Customers by name, billed until NOW."""
    a_metered_feature(session)
    pro = a_plan(session, phase(fee("20"), graduated()))
    basic = a_plan(session, phase(fee("5"), per_unit("0.01")), key="basic")
    people = {name: a_customer(session, name) for name in ("ada", "bob", "cyn", "dan", "eve")}
    _taxes(session, people["ada"], people["cyn"])
    signed = {name: sign_up(session, customer, pro) for name, customer in people.items()}
    wrong = spent("eve", 700, "2026-01-05")
    known_at(session, "2026-01-12", wrong, spent("ada", 900, "2026-01-08"), spent("bob", 10, "2026-01-08"))
    bill_until(session, at("2026-01-15"))
    invoice_now(session, people["ada"].id, progressive=True, now=at("2026-01-15"))
    bill_until(session, at("2026-01-20"))
    known_at(session, "2026-01-20", spent("ada", 400, "2026-01-18"), spent("ada", 7, "2026-01-02"))
    bill_until(session, at("2026-01-21"))
    invoice_now(session, people["ada"].id, progressive=True, now=at("2026-01-21"))
    bill_until(session, at("2026-01-30"))
    known_at(session, "2026-01-30", spent("ada", 60, "2026-01-29"))
    bill_until(session, at("2026-02-10"))
    known_at(session, "2026-02-10", spent("ada", 33, "2026-01-30"), spent("dan", 2000, "2026-02-09"))
    voided_at(session, "2026-02-10", wrong)
    cancel_subscription(session, signed["bob"].id, now=at("2026-02-10"))
    cancel_subscription(session, signed["cyn"].id, timing="next_billing_cycle", now=at("2026-02-10"))
    change_subscription(session, signed["dan"].id, plan=basic, timing="immediate", now=at("2026-02-10"))
    bill_until(session, at("2026-02-20"))
    unschedule_cancelation(session, signed["cyn"].id, now=at("2026-02-20"))
    bill_until(session, at("2026-02-25"))
    known_at(session, "2026-02-25", spent("cyn", 100, "2026-02-24"), spent("dan", 50, "2026-02-24"))
    bill_until(session, at("2026-03-10"))
    _by_hand(session, people["eve"])
    _voided(session, people["cyn"])
    credit = CreditNoteDetails(reason="a bad day")
    create_credit_note(session, invoice_of(session, people["ada"], 0).id, credit, now=at("2026-03-12"))
    bill_until(session, at("2026-03-20"))
    known_at(session, "2026-03-20", spent("eve", 5000, "2026-03-19"), spent("ada", 1, "2026-02-03"))
    bill_until(session, NOW)
    return people


def _taxes(session: Session, *taxed: Customer) -> None:
    """19 %, and 16 % from March on; on top of what things cost."""
    rate = TaxRateDetails(name="VAT", country="DE", percent=Decimal(19), valid_from=at("2026-01-01"))
    for details in (
        replace(rate, valid_to=at("2026-03-01")),
        replace(rate, percent=Decimal(16), valid_from=at("2026-03-01")),
    ):
        create_tax_rate(session, details, now=START)
    for customer in taxed:
        customer.billing_address = Address(country="DE")
    session.flush()


def _by_hand(session: Session, customer: Customer) -> None:
    price = FlatPrice(type="flat", amount=Decimal("12.34"))
    card = UsageBasedRateCard(
        type="usage_based", key="setup", name="setup", billing_cadence="P1M", price=price
    )
    once = Period(start=at("2026-03-10"), end=at("2026-03-11"))
    line = WantedLine(rate_card=card, period=once, invoice_at=at("2026-03-11"))
    add_pending_lines(session, customer, currency="USD", lines=[line], now=at("2026-03-10"))


def _voided(session: Session, customer: Customer) -> None:
    """The latest invoice that is not yet paid; its lines are billed again."""
    latest = [one for one in invoices_of(session) if one.customer_id == customer.id][-1]
    latest.status = "payment_processing.failed"
    session.flush()
    void_invoice(
        session, latest.id, VoidAction(type="pending"), reason="wrong address", now=at("2026-03-10T01:00")
    )


def invoice_of(session: Session, customer: Customer, place: int) -> Invoice:
    return [one for one in invoices_of(session) if one.customer_id == customer.id][place]
