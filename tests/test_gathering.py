from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import product
from typing import NamedTuple

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from billing.contracts.customer import Address, Customer, get_customer
from billing.contracts.customer_changes import CustomerDetails, update_customer
from billing.contracts.subscription_changes import cancel_subscription
from billing.contracts.subscriptions import Subscription, subscriptions_of
from billing.invoices.gathering import GatheringInvoice, gathering_customers, gathering_invoices
from billing.rating.billable import DueLine
from billing.rating.rater import Totals
from billing.taxes.tax import LineTax
from billing.taxes.tax_rates import TaxRateDetails, create_tax_rate
from catalog.features import archive_feature, delete_meter, get_feature
from catalog.money import round_money
from catalog.price import (
    FlatPrice,
    MatrixCell,
    MatrixPrice,
    PercentagePrice,
    Price,
    PriceTier,
    TieredPrice,
    TierUnitPrice,
    UnitPrice,
)
from catalog.tax import TaxBehavior, TaxConfig
from metering.database import Base
from metering.event import Event
from tests.billing_clock import bill_until, invoices_of
from tests.builders import (
    START,
    a_customer,
    a_feature,
    a_meter,
    a_metered_feature,
    a_plan,
    at,
    counted_statements,
    fee,
    per_unit,
    phase,
    sign_up,
    spent,
    store,
)

NEXT_MONTH = at("2026-02-01")
TICK = timedelta(microseconds=1)


def preview(
    session: Session, customer: Customer, *, when: datetime = START, until: datetime | None = None
) -> GatheringInvoice:
    """As a request sees it: everything read anew."""
    session.flush()
    session.expire_all()
    found = get_customer(session, customer.id)
    (invoice,) = gathering_invoices(session, [found], at=when, usage_until=until)
    return invoice


def quantities(invoice: GatheringInvoice) -> list[Decimal | None]:
    return [line.quantity for line in invoice.lines]


def amounts(invoice: GatheringInvoice) -> list[str]:
    return [str(line.totals.total) for line in invoice.lines]


def subscriber(session: Session, *subjects: str, key: str | None = None, unit: str = "0.01") -> Customer:
    """Pays for tokens alone, from START on."""
    a_metered_feature(session)
    customer = a_customer(session, *subjects, key=key)
    sign_up(session, customer, a_plan(session, phase(per_unit(unit))))
    return customer


# --- the story ---------------------------------------------------------------------------------------------


class Used(NamedTuple):
    """One event of the story, as the test itself remembers it."""

    consumer: str
    provider: str
    model: str
    kind: str
    when: datetime
    tokens: int

    @property
    def event(self) -> Event:
        return spent(
            self.consumer,
            self.tokens,
            self.when.isoformat(),
            provider=self.provider,
            model=self.model,
            kind=self.kind,
        )


CONSUMERS = ("air-web", "air-app", "rail")
MODELS = (("openai", "gpt-4o"), ("openai", "gpt-4o-mini"), ("anthropic", "claude"))
DAYS = (
    "2026-01-15T09:59:59",
    "2026-01-15T10:00:00",
    "2026-01-31T23:59:59.999999",
    "2026-02-01",
    "2026-02-10",
)
TRAFFIC = [
    Used(consumer, provider, model, kind, at(when), 1009 * number)
    for number, (consumer, (provider, model), kind, when) in enumerate(
        product(CONSUMERS, MODELS, ("request", "response"), DAYS), start=1
    )
]
PRICES = {"openai-in": "0.0000025", "openai-out": "0.00001", "claude": "0.000003"}


def priced_as(used: Used) -> str:
    if used.provider == "anthropic":
        return "claude"
    return "openai-in" if used.kind == "request" else "openai-out"


def owed(feature: str, consumers: Iterable[str], start: str, end: str) -> tuple[Decimal, Decimal]:
    """Tokens and money, summed by hand."""
    tokens = sum(
        used.tokens
        for used in TRAFFIC
        if used.consumer in consumers and priced_as(used) == feature and at(start) <= used.when < at(end)
    )
    return Decimal(tokens), round_money(Fraction(PRICES[feature]) * tokens, "USD")


def test_three_consumers_of_two_providers_and_three_models_are_billed_to_the_token(session: Session) -> None:
    a_meter(session, "llm")
    a_feature(session, "openai-in", meter="llm", filters={"provider": "openai", "type": "request"})
    a_feature(session, "openai-out", meter="llm", filters={"provider": "openai", "type": "response"})
    a_feature(session, "claude", meter="llm", filters={"provider": "anthropic", "model": "claude"})
    cards = [per_unit(price, feature=feature) for feature, price in PRICES.items()]
    plan = a_plan(session, phase(fee("20", key="seat"), *cards))
    air, rail = a_customer(session, "air-web", "air-app"), a_customer(session, "rail")
    start = at("2026-01-15T10:00:00")
    for customer in (air, rail):
        sign_up(session, customer, plan, start=start, anchor=START, now=start)
    store(session, *(used.event for used in TRAFFIC))

    for customer, consumers in ((air, CONSUMERS[:2]), (rail, CONSUMERS[2:])):
        invoice = preview(session, customer, when=at("2026-02-15"))
        january = ("2026-01-15T10:00:00", "2026-02-01")
        february = ("2026-02-01", "2026-03-01")
        by_hand = [
            (feature, *owed(feature, consumers, *month))
            for month in (january, february)
            for feature in PRICES
        ]
        usage = [line for line in invoice.lines if line.quantity is not None]
        assert [(line.billable.rate_card.key, line.quantity, line.totals.total) for line in usage] == by_hand
        seats = [line.totals.total for line in invoice.lines if line.quantity is None]
        assert seats == [Decimal("10.70"), Decimal("20.00")]
        assert invoice.totals.total == sum(amount for *_, amount in by_hand) + Decimal("30.70")
    assert preview(session, air, when=at("2026-02-15")).totals.total == Decimal("38.23")
    assert preview(session, rail, when=at("2026-02-15")).totals.total == Decimal("40.10")


def test_the_lines_come_by_period_and_as_the_plan_lists_them(session: Session) -> None:
    feature = a_metered_feature(session)
    customer = a_customer(session, "s")
    signed = sign_up(session, customer, a_plan(session, phase(per_unit(), fee("5"))))
    invoice = preview(session, customer, when=NEXT_MONTH)
    assert [line.billable.rate_card.key for line in invoice.lines] == ["tokens", "seat"] * 2
    assert [line.period.start for line in invoice.lines] == [START, START, NEXT_MONTH, NEXT_MONTH]
    assert [line.billable.feature_id for line in invoice.lines] == [feature.id, None] * 2
    assert {line.billable.subscription_id for line in invoice.lines} == {signed.id}


# --- whose usage -------------------------------------------------------------------------------------------


def test_the_subjects_of_a_customer_and_its_own_key_add_up(session: Session) -> None:
    customer = subscriber(session, "a", "b", key="acme")
    store(
        session, spent("a", 100, "2026-01-02"), spent("b", 20, "2026-01-03"), spent("acme", 3, "2026-01-04")
    )
    assert quantities(preview(session, customer)) == [123]


def test_the_usage_of_another_customer_never_counts(session: Session) -> None:
    customer = subscriber(session, "a")
    other = a_customer(session, "b")
    store(session, spent("a", 1, "2026-01-02"), spent("b", 20, "2026-01-02"), spent("A", 300, "2026-01-02"))
    assert quantities(preview(session, customer)) == [1]
    assert gathering_invoices(session, [other], at=NEXT_MONTH) == []


def test_a_customer_without_subjects_pays_for_nobodys_usage(session: Session) -> None:
    customer = subscriber(session)
    store(session, spent("a", 1, "2026-01-02"), spent("b", 20, "2026-01-02"))
    invoice = preview(session, customer)
    assert quantities(invoice) == [0]
    assert [line.details for line in invoice.lines] == [()]
    assert invoice.totals.total == 0


def test_a_subject_that_is_added_later_brings_the_usage_of_the_whole_period(session: Session) -> None:
    customer = subscriber(session, "a")
    store(session, spent("a", 1, "2026-01-02"), spent("late", 20, "2026-01-03"))
    update_customer(
        session,
        get_customer(session, customer.id, lock=True),
        CustomerDetails(name="A", subject_keys=("a", "late")),
        now=NEXT_MONTH,
    )
    assert quantities(preview(session, customer)) == [21]


# --- which usage -------------------------------------------------------------------------------------------


def test_usage_belongs_to_the_period_of_its_instant(session: Session) -> None:
    customer = subscriber(session, "a")
    store(
        session,
        spent("a", 1, (START - TICK).isoformat()),
        spent("a", 20, START.isoformat()),
        spent("a", 300, (NEXT_MONTH - TICK).isoformat()),
        spent("a", 4000, NEXT_MONTH.isoformat()),
        spent("a", 50000, "2026-03-01"),
    )
    assert quantities(preview(session, customer, when=NEXT_MONTH)) == [320, 4000]


def test_usage_after_the_end_of_its_phase_belongs_to_the_next_one(session: Session) -> None:
    a_metered_feature(session)
    customer = a_customer(session, "a")
    trial = phase(per_unit("0"), key="trial", duration="P10D")
    sign_up(session, customer, a_plan(session, trial, phase(per_unit("1"), key="paid")))
    store(
        session,
        spent("a", 1, "2026-01-10T23:59:59"),
        spent("a", 20, "2026-01-11"),
        spent("a", 300, "2026-02-02"),
    )
    invoice = preview(session, customer, when=at("2026-01-20"))
    assert quantities(invoice) == [1, 20]
    assert amounts(invoice) == ["0.00", "20.00"]


def test_a_subscription_that_began_in_the_past_bills_the_usage_since(session: Session, now: datetime) -> None:
    a_metered_feature(session)
    customer = a_customer(session, "a")
    store(session, spent("a", 1, "2025-10-31"), spent("a", 20, "2025-11-15"), spent("a", 300, "2026-01-01"))
    sign_up(session, customer, a_plan(session, phase(per_unit())), start=at("2025-11-01"), now=now)
    assert quantities(preview(session, customer, when=at("2026-01-15"))) == [20, 0, 300]


def test_the_preview_shows_usage_as_soon_as_it_is_stored(session: Session) -> None:
    customer = subscriber(session, "a")
    assert quantities(preview(session, customer)) == [0]
    store(session, spent("a", 1, "2026-01-02"))
    assert quantities(preview(session, customer)) == [1]


def test_usage_that_a_fast_clock_dated_ahead_counts_unless_cut(session: Session) -> None:
    customer = subscriber(session, "a")
    store(session, spent("a", 1, "2026-01-02"), spent("a", 20, "2026-01-03"), spent("a", 300, "2026-01-30"))
    when = at("2026-01-03")
    assert quantities(preview(session, customer, when=when)) == [321]
    assert quantities(preview(session, customer, when=when, until=when)) == [1]
    assert quantities(preview(session, customer, when=when, until=when + TICK)) == [21]


def test_a_cut_leaves_whole_what_ended_before_it_and_empties_what_begins_after_it(session: Session) -> None:
    customer = subscriber(session, "a")
    store(session, spent("a", 1, "2026-01-31"), spent("a", 20, "2026-02-01"), spent("a", 300, "2026-03-01"))
    march = at("2026-03-01")
    assert quantities(preview(session, customer, when=march, until=at("2027-01-01"))) == [1, 20, 300]
    assert quantities(preview(session, customer, when=march, until=march)) == [1, 20, 0]
    assert quantities(preview(session, customer, when=march, until=NEXT_MONTH)) == [1, 0, 0]
    assert quantities(preview(session, customer, when=march, until=START)) == [0, 0, 0]


def test_a_cut_of_usage_cuts_no_fee(session: Session) -> None:
    customer = a_customer(session)
    sign_up(session, customer, a_plan(session, phase(fee("5"))))
    assert amounts(preview(session, customer, until=START)) == ["5.00"]


def test_a_feature_counts_only_what_its_filters_let_through(session: Session) -> None:
    a_meter(session)
    a_feature(session, "mini", meter="tokens", filters={"provider": "openai", "model": "gpt-4o-mini"})
    customer = a_customer(session, "a")
    sign_up(session, customer, a_plan(session, phase(per_unit(feature="mini"))))
    store(
        session,
        spent("a", 1, "2026-01-02", model="gpt-4o-mini"),
        spent("a", 20, "2026-01-02", model="gpt-4o"),
        spent("a", 300, "2026-01-02", provider="azure", model="gpt-4o-mini"),
        spent("a", 4000, "2026-01-02", model="gpt-4o-mini", kind="response"),
        replace_type(spent("a", 50000, "2026-01-02", model="gpt-4o-mini")),
    )
    assert quantities(preview(session, customer)) == [4001]


def replace_type(event: Event) -> Event:
    """The same of a type that no meter counts."""
    return Event(
        id=event.id,
        source=event.source,
        type="other",
        subject=event.subject,
        time=event.time,
        data=event.data,
    )


def test_quantities_stay_exact(session: Session) -> None:
    customer = subscriber(session, "a", unit="0.00000075")
    long = "123456789012345678901234567890.1"
    store(
        session,
        spent("a", "0.1", "2026-01-02"),
        spent("a", "0.2", "2026-01-02"),
        spent("a", long, "2026-01-03"),
    )
    invoice = preview(session, customer)
    assert quantities(invoice) == [Decimal("123456789012345678901234567890.4")]
    assert amounts(invoice) == ["92592591759259259175925.93"]


def test_each_period_has_its_own_aggregate(session: Session) -> None:
    a_meter(session, "peak", aggregation="MAX")
    a_feature(session, "peak", meter="peak")
    customer = a_customer(session, "a", "b")
    sign_up(session, customer, a_plan(session, phase(per_unit("2", feature="peak"))))
    store(session, spent("a", 7, "2026-01-02"), spent("b", 9, "2026-01-03"), spent("a", 5, "2026-02-03"))
    invoice = preview(session, customer, when=NEXT_MONTH)
    assert quantities(invoice) == [9, 5]
    assert amounts(invoice) == ["18.00", "10.00"]


# --- what was agreed ---------------------------------------------------------------------------------------


def test_an_archived_feature_and_its_deleted_meter_are_billed_as_before(
    session: Session, now: datetime
) -> None:
    customer = subscriber(session, "a")
    a_feature(session, "unused", meter="tokens")
    store(session, spent("a", 100, "2026-01-02"))
    for key in ("tokens", "unused"):
        archive_feature(session, get_feature(session, key), now=now)
    delete_meter(session, "tokens", now=now)
    store(session, spent("a", 23, "2026-01-03"))
    invoice = preview(session, customer)
    assert quantities(invoice) == [123]
    assert amounts(invoice) == ["1.23"]


def test_a_key_that_is_used_again_changes_no_running_contract(session: Session, now: datetime) -> None:
    customer = subscriber(session, "a")
    archive_feature(session, get_feature(session, "tokens"), now=now)
    a_feature(session, "tokens", meter="tokens", filters={"provider": "anthropic"}, now=now)
    store(session, spent("a", 100, "2026-01-02"), spent("a", 23, "2026-01-02", provider="anthropic"))
    assert quantities(preview(session, customer)) == [123]


def test_a_known_invoice_twenty_a_month_from_the_twenty_first(session: Session) -> None:
    customer = a_customer(session)
    plan = a_plan(session, phase(fee("20")))
    sign_up(session, customer, plan, start=at("2026-01-21T21:55:18"), anchor=START, now=START)
    assert amounts(preview(session, customer, when=NEXT_MONTH)) == ["6.51", "20.00"]


def test_a_fee_has_a_price_and_no_quantity(session: Session) -> None:
    customer = a_customer(session)
    sign_up(session, customer, a_plan(session, phase(fee("20"), fee("7", key="setup", cadence=None))))
    invoice = preview(session, customer)
    assert quantities(invoice) == [None, None]
    assert [line.details[0].reference for line in invoice.lines] == ["flat-price"] * 2
    assert [line.details[0].name for line in invoice.lines] == ["seat", "setup"]


def test_a_flat_price_on_a_usage_based_card_is_a_fee(session: Session) -> None:
    a_metered_feature(session)
    customer = a_customer(session, "a")
    card = replace(per_unit(), price=FlatPrice(type="flat", amount=Decimal(5)))
    sign_up(session, customer, a_plan(session, phase(card)))
    store(session, spent("a", 100, "2026-01-02"))
    invoice = preview(session, customer)
    assert (quantities(invoice), amounts(invoice)) == ([None], ["5.00"])


def test_yen_have_no_cents(session: Session) -> None:
    a_metered_feature(session)
    customer = a_customer(session, "a")
    sign_up(session, customer, a_plan(session, phase(per_unit("0.3"), fee("980")), currency="JPY"))
    store(session, spent("a", 5, "2026-01-02"))
    invoice = preview(session, customer)
    assert (invoice.currency, amounts(invoice)) == ("JPY", ["2", "980"])
    assert invoice.totals.total == 982


def test_totals_are_sums_of_rounded_lines(session: Session) -> None:
    for key in "abc":
        a_metered_feature(session, key)
    customer = a_customer(session, "s")
    sign_up(session, customer, a_plan(session, phase(*(per_unit("0.005", feature=key) for key in "abc"))))
    store(session, spent("s", 1, "2026-01-02"))
    invoice = preview(session, customer)
    assert amounts(invoice) == ["0.01"] * 3
    assert invoice.totals.total == invoice.totals.amount == Decimal("0.03")


def test_a_free_plan_has_an_invoice_of_nothing_in_its_own_currency(session: Session) -> None:
    customer = a_customer(session, "a")
    sign_up(session, customer, a_plan(session, phase(fee(None)), currency="EUR"))
    invoice = preview(session, customer)
    assert (invoice.currency, invoice.lines, invoice.totals.total) == ("EUR", (), Decimal(0))


# --- who has an invoice ------------------------------------------------------------------------------------


def test_there_is_no_invoice_before_the_subscription_begins(session: Session) -> None:
    customer = a_customer(session)
    sign_up(session, customer, a_plan(session), start=NEXT_MONTH)
    assert gathering_invoices(session, [customer], at=NEXT_MONTH - TICK) == []
    assert gathering_customers(session, customer_ids=(), at=NEXT_MONTH - TICK, offset=0, limit=9) == ([], 0)
    assert len(preview(session, customer, when=NEXT_MONTH).lines) == 1


def test_an_invoice_exists_since_the_first_subscription_was_made(session: Session, now: datetime) -> None:
    customer = a_customer(session)
    sign_up(session, customer, a_plan(session), now=now)
    assert preview(session, customer).since == now


def test_invoices_of_many_customers_come_by_id_each_with_its_own_usage(session: Session) -> None:
    a_metered_feature(session)
    plan = a_plan(session, phase(per_unit("1")))
    customers = [a_customer(session, subject) for subject in "abc"]
    for customer in customers:
        sign_up(session, customer, plan)
    store(session, *(spent(subject, n, "2026-01-02") for n, subject in enumerate("abc", start=1)))
    invoices = gathering_invoices(session, reversed(customers), at=START)
    expected = {customer.id: Decimal(n) for n, customer in enumerate(customers, start=1)}
    assert [invoice.customer.id for invoice in invoices] == sorted(expected)
    assert {invoice.customer.id: invoice.totals.total for invoice in invoices} == expected


def test_customers_with_an_invoice_come_in_pages(session: Session) -> None:
    plan = a_plan(session)
    a_customer(session)
    ids = sorted(sign_up(session, a_customer(session), plan).customer_id for _ in range(3))

    def page(offset: int, limit: int, *only: str) -> tuple[list[str], int]:
        found, count = gathering_customers(session, customer_ids=only, at=START, offset=offset, limit=limit)
        return [customer.id for customer in found], count

    assert page(0, 9) == (ids, 3)
    assert page(1, 1) == ([ids[1]], 3)
    assert page(3, 1) == ([], 3)
    assert page(0, 9, ids[2], ids[0], "unknown") == ([ids[0], ids[2]], 2)


def test_a_customer_who_signed_up_again_pays_for_both_contracts(session: Session, now: datetime) -> None:
    customer = a_customer(session)
    first = sign_up(session, customer, a_plan(session, phase(fee("10"))))
    end(first, at("2026-01-16T12:00:00"))
    plan = a_plan(session, phase(fee("31")), key="other")
    sign_up(session, customer, plan, start=at("2026-01-16T12:00:00"), anchor=START, now=now)
    invoice = preview(session, customer, when=at("2026-01-20"))
    assert amounts(invoice) == ["5.00", "15.50"]
    assert len(gathering_customers(session, customer_ids=(), at=now, offset=0, limit=9)[0]) == 1


def end(signed: Subscription, when: datetime) -> None:
    """As a cancellation will: the contract and all that it sells."""
    signed.active_to = when
    for one in signed.phases:
        one.active_to = when
        for item in one.items:
            item.active_to = when


# --- derive, don't store -----------------------------------------------------------------------------------


def test_a_preview_stores_nothing(engine: Engine) -> None:
    with Session(engine, expire_on_commit=False) as session:
        customer = subscriber(session, "a")
        store(session, spent("a", 100, "2026-01-02"))
        session.commit()
        before = counted(session)
    with Session(engine) as session:
        session.execute(text("SET TRANSACTION READ ONLY"))
        (found,), _ = gathering_customers(session, customer_ids=(), at=START, offset=0, limit=9)
        assert amounts(preview(session, found)) == ["1.00"]
        assert found.id == customer.id
        assert not session.new
        assert not session.dirty
        session.commit()
        assert counted(session) == before


def counted(session: Session) -> dict[str, int]:
    return {
        table.name: session.scalar(select(func.count()).select_from(table)) or 0
        for table in Base.metadata.sorted_tables
    }


def test_asking_twice_answers_the_same(session: Session) -> None:
    customer = subscriber(session, "a")
    store(session, spent("a", 100, "2026-01-02"))

    first = [told(line) for line in preview(session, customer).lines]
    assert [told(line) for line in preview(session, customer).lines] == first


def told(line: DueLine) -> tuple[str, object]:
    return line.billable.identity, line.details


# --- prices that ask for more than a quantity --------------------------------------------------------------

USED = [
    # project (here: model), type of token, tokens
    ("a", "in", "3"),
    ("a", "out", "4.5"),
    ("a", "in", "10"),
    ("b", "in", "2"),
    ("b", "out", "1"),
    ("", "in", "7"),
    ("b", "in", "none"),
]
TIERS = (
    PriceTier(up_to_amount=Decimal(5), unit_price=TierUnitPrice(type="unit", amount=Decimal(2))),
    PriceTier(unit_price=TierUnitPrice(type="unit", amount=Decimal(1))),
)


def matrix(**prices: str) -> MatrixPrice:
    """A price for each model and type, named like a_in, and 100 for all others."""
    cells = [
        MatrixCell(values=dict(zip(("type", "model"), name.split("_")[::-1], strict=True)), amount=Decimal(p))
        for name, p in prices.items()
    ]
    return MatrixPrice(
        type="matrix", dimensions=("type", "model"), cells=tuple(cells), default_amount=Decimal(100)
    )


@pytest.mark.parametrize(
    ("price", "amount", "details"),
    [
        # each project climbs its own ladder: a 17.5 tokens, b 3, none 7
        (
            TieredPrice(type="tiered", mode="graduated", tiers=TIERS, group_by=("model",)),
            (5 * 2 + Decimal("12.5")) + 3 * 2 + (5 * 2 + 2),
            5,
        ),
        # in b there are two tokens, out a four and a half; all the rest are 1 + 13 + 7
        (matrix(b_in="10", a_out="20"), 2 * 10 + Decimal("4.5") * 20 + (1 + 13 + 7) * 100, 3),
        # 10 % of 27.5 and half a dollar for each of six events: the one without a number is none
        (
            PercentagePrice(type="percentage", percentage=Decimal(10), fixed_amount=Decimal("0.5")),
            Decimal("2.75") + 6 * Decimal("0.5"),
            2,
        ),
        # 10 % of each, but at least 0.25 (of 1 and 2) and at most 0.65 (of 7 and 10): 3 and 4.5 cost theirs
        (
            PercentagePrice(
                type="percentage",
                percentage=Decimal(10),
                minimum_per_event=Decimal("0.25"),
                maximum_per_event=Decimal("0.65"),
            ),
            2 * Decimal("0.25") + 2 * Decimal("0.65") + Decimal("0.75"),
            3,
        ),
    ],
)
def test_prices_by_group_and_by_event_are_what_a_sum_by_hand_gives(
    session: Session, price: Price, amount: Decimal, details: int
) -> None:
    a_metered_feature(session)
    customer, other = a_customer(session, "s", "t"), a_customer(session, "u")
    plan = a_plan(session, phase(replace(per_unit(), price=price)))
    for one in (customer, other):
        sign_up(session, one, plan)
    for subject, day in (("s", "2026-01-05"), ("s", "2026-02-05"), ("u", "2026-01-05")):
        count = 2 if subject == "u" else 1
        store(session, *(spent(subject, n, day, model=m, kind=k) for m, k, n in USED for _ in range(count)))
    invoice = preview(session, customer, when=NEXT_MONTH)
    assert quantities(invoice) == [Decimal("27.5")] * 2
    assert [line.totals.total for line in invoice.lines] == [round_money(amount, "USD")] * 2
    assert [len(line.details) for line in invoice.lines] == [details] * 2


def test_usage_of_two_subjects_meets_in_one_ladder(session: Session) -> None:
    a_metered_feature(session)
    customer = a_customer(session, "s", "t")
    price = TieredPrice(type="tiered", mode="graduated", tiers=TIERS, group_by=("model",))
    sign_up(session, customer, a_plan(session, phase(replace(per_unit(), price=price))))
    store(session, spent("s", 4, "2026-01-05"), spent("t", 4, "2026-01-06"))
    assert amounts(preview(session, customer)) == ["13.00"]


def test_an_open_period_is_priced_as_if_it_ended_now(session: Session) -> None:
    """With all of its minimum spend, so that nobody is surprised by it."""
    a_metered_feature(session)
    customer = a_customer(session, "s")
    price = UnitPrice(type="unit", amount=Decimal(1), minimum_amount=Decimal(50))
    sign_up(session, customer, a_plan(session, phase(replace(per_unit(), price=price))))
    store(session, spent("s", 20, "2026-01-02"))
    halfway = at("2026-01-15")
    assert amounts(preview(session, customer, when=halfway)) == ["50.00"]
    assert amounts(preview(session, customer, when=halfway, until=START)) == ["50.00"]


# --- for many at once --------------------------------------------------------------------------------------


def test_a_hundred_invoices_take_as_many_statements_as_one(session: Session, shared_engine: Engine) -> None:
    a_metered_feature(session)
    a_feature(session, "requests", meter="tokens", filters={"type": "request"})
    plan = a_plan(session, phase(per_unit("1"), per_unit("2", feature="requests"), fee("5")))
    customers = [a_customer(session, f"s{n}") for n in range(100)]
    for customer in customers:
        sign_up(session, customer, plan)
    store(session, *(spent(f"s{n}", n, "2026-01-05") for n in range(100)))

    def listed(count: int) -> tuple[list[Decimal], int]:
        session.flush()
        session.expire_all()
        found, _ = gathering_customers(session, customer_ids=(), at=NEXT_MONTH, offset=0, limit=count)
        with counted_statements(shared_engine) as sent:
            invoices = gathering_invoices(session, found, at=NEXT_MONTH)
        return [invoice.totals.total for invoice in invoices], len(sent)

    one, hundred = listed(1), listed(100)
    assert hundred[0] == [3 * n + 10 for n in range(100)]
    assert hundred[1] == one[1]


# --- taxes -------------------------------------------------------------------------------------------------


def in_germany(session: Session, behavior: TaxBehavior) -> Customer:
    """Pays 9.99 a month and 0.01 a token, with 19 %, and 16 % from March on."""
    a_metered_feature(session)
    rate = TaxRateDetails(name="VAT", country="DE", percent=Decimal(19), valid_from=START)
    create_tax_rate(session, replace(rate, valid_to=at("2026-03-01")), now=START)
    create_tax_rate(session, replace(rate, percent=Decimal(16), valid_from=at("2026-03-01")), now=START)
    customer = a_customer(session, "s")
    customer.billing_address = Address(country="de")
    cards = [replace(card, tax_config=TaxConfig(behavior=behavior)) for card in (fee("9.99"), per_unit())]
    sign_up(session, customer, a_plan(session, phase(*cards)))
    bill_until(session, START)
    return customer


def taxed(lines: Iterable[tuple[str, tuple[LineTax, ...]]]) -> list[tuple[str, tuple[LineTax, ...]]]:
    return sorted((identity, taxes) for identity, taxes in lines if taxes)


def assert_foretold(session: Session, customer: Customer, when: str) -> Totals:
    """The preview is what is then invoiced, to the tax of each line."""
    foretold = preview(session, customer, when=at(when), until=at(when))
    bill_until(session, at(when))
    invoice = invoices_of(session)[-1]
    assert invoice.created_at == at(when)
    assert foretold.totals == invoice.totals
    lines = zip(foretold.lines, foretold.taxes, strict=True)
    assert taxed((line.billable.identity, taxes) for line, taxes in lines) == taxed(
        (line.identity, line.taxes) for line in invoice.lines
    )
    return invoice.totals


@pytest.mark.parametrize(
    ("behavior", "amounts"),
    [
        # 1.90 + 0.63; then 1.60 and 0.64 at 16 %, 4.88 in all at 19 % less 0.63; 3.22 at 16 % less 1.60
        ("exclusive", ["15.85 2.53", "18.08 2.54", "-7.85 -1.08"]),
        ("inclusive", ["13.32 2.13", "15.54 2.18", "-6.77 -0.94"]),
    ],
)
def test_the_preview_is_taxed_as_the_invoice_will_be(
    session: Session, behavior: TaxBehavior, amounts: list[str]
) -> None:
    """Through a new rate, usage that came late, and a credit for a month that was cut short."""
    customer = in_germany(session, behavior)
    store(session, spent("s", 333, "2026-01-20"))
    first = assert_foretold(session, customer, "2026-02-01")
    bill_until(session, at("2026-02-02"))  # what comes later is late
    store(session, spent("s", 400, "2026-02-20"), spent("s", 155, "2026-01-31"))
    second = assert_foretold(session, customer, "2026-03-01")
    bill_until(session, at("2026-03-02"))
    (subscription,) = subscriptions_of(session, [customer.id])
    cancel_subscription(session, subscription.id, now=at("2026-03-11"))
    third = assert_foretold(session, customer, "2026-03-11")
    assert [f"{one.total} {one.taxes}" for one in (first, second, third)] == amounts


def test_without_a_rate_or_with_taxes_switched_off_the_preview_has_none(session: Session) -> None:
    customer = in_germany(session, "exclusive")
    customer.billing_address = Address(country="FR")
    assert preview(session, customer).totals.taxes == 0
    customer.billing_address = None
    assert preview(session, customer).totals.taxes == 0
