"""Backtests: the very plan changes nothing, another one shows who would pay more, and sums are sums."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from billing.contracts.customer import Customer, get_customer
from billing.contracts.customer_changes import delete_customer
from billing.reports.backtest import (
    BacktestCustomersError,
    BacktestPlanError,
    BacktestRow,
    BacktestSum,
    BacktestSummary,
    BacktestWindowError,
    backtest,
)
from catalog.discount import Discounts, PercentageDiscount, UsageDiscount
from catalog.features import archive_feature, get_feature
from catalog.plans import Plan
from catalog.price import (
    MatrixCell,
    MatrixPrice,
    PackagePrice,
    PercentagePrice,
    PriceTier,
    TieredPrice,
    TierFlatPrice,
    TierUnitPrice,
    UsagePrice,
)
from catalog.rate_card import UsageBasedRateCard
from metering.exact import total
from tests.builders import (
    START,
    a_customer,
    a_draft,
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
from tests.server import seeded

NOW = at("2026-06-01")
FEBRUARY, MARCH, APRIL = at("2026-02-01"), at("2026-03-01"), at("2026-04-01")


def compared(
    session: Session,
    plan: Plan,
    *,
    start: datetime = START,
    end: datetime = FEBRUARY,
    customers: Iterable[Customer] | None = None,
) -> list[BacktestRow]:
    session.flush()
    session.expire_all()
    ids = None if customers is None else [customer.id for customer in customers]
    asked = backtest(session, plan, start=start, end=end, customer_ids=ids, now=NOW)
    parts = list(asked.parts(session))
    assert sum(part.looked_at for part in parts) == asked.customer_count
    return [row for part in parts for row in part.rows]


def differences(rows: Iterable[BacktestRow]) -> dict[str, Decimal | None]:
    return {row.customer_id: row.difference for row in rows}


def amounts(row: BacktestRow) -> tuple[str, str, str]:
    return str(row.would_bill), str(row.billed), str(row.difference)


# --- the very plan -----------------------------------------------------------------------------------------


def tiers(*steps: tuple[str | None, str, str]) -> tuple[PriceTier, ...]:
    return tuple(
        PriceTier(
            up_to_amount=Decimal(end) if end else None,
            flat_price=TierFlatPrice(type="flat", amount=Decimal(flat)),
            unit_price=TierUnitPrice(type="unit", amount=Decimal(unit)),
        )
        for end, flat, unit in steps
    )


LADDER = tiers(("100", "3", "0.2"), ("1000", "5", "0.1"), (None, "0", "0.05"))
MODELS = ("gpt-4o", "gpt-4o-mini", "claude")
PRICES: tuple[UsagePrice, ...] = (
    TieredPrice(type="tiered", mode="graduated", tiers=LADDER, maximum_amount=Decimal(200)),
    TieredPrice(type="tiered", mode="volume", tiers=LADDER, group_by=("model",)),
    PackagePrice(type="package", amount=Decimal(7), quantity_per_package=Decimal(100)),
    PercentagePrice(type="percentage", percentage=Decimal("1.5"), fixed_amount=Decimal("0.3")),
    PercentagePrice(
        type="percentage", percentage=Decimal(2), maximum_per_event=Decimal(9), minimum_amount=Decimal(80)
    ),
    MatrixPrice(
        type="matrix",
        dimensions=("model",),
        cells=tuple(MatrixCell(values={"model": m}, amount=Decimal(f"0.{n}")) for n, m in enumerate(MODELS)),
        default_amount=Decimal(1),
    ),
)
DISCOUNTS = Discounts(
    percentage=PercentageDiscount(percentage=Decimal(10)), usage=UsageDiscount(quantity=Decimal(50))
)


def everything() -> list[UsageBasedRateCard]:
    """A card for each price, on features of its own."""
    cards = [
        replace(per_unit(feature=f"f{n}"), price=price, name=f"{price.type} {n}")
        for n, price in enumerate(PRICES)
    ]
    return [replace(cards[0], discounts=DISCOUNTS), *cards[1:]]


def the_world(
    session: Session, customers: int, *, signed_up: datetime = START
) -> tuple[Plan, list[Customer]]:
    """Customers of one plan with every price, and their traffic over six months."""
    a_meter(session)
    for n in range(len(PRICES)):
        a_feature(session, f"f{n}", meter="tokens", filters={"type": "request"} if n % 2 else None)
    plan = a_plan(
        session,
        phase(fee("20"), fee("5", key="support", term="in_arrears"), *everything()),
        now=min(START, signed_up),
    )
    found = [a_customer(session, f"s{n}", f"t{n}", key=f"c{n}") for n in range(customers)]
    for customer in found:
        sign_up(session, customer, plan, start=signed_up, now=signed_up)
    chance = seeded(4)
    store(
        session,
        *(
            spent(
                f"{chance.choice('stc')}{chance.randrange(customers)}",
                chance.randrange(1, 90_000) / Decimal(100),
                f"2026-0{chance.randint(1, 5)}-{chance.randint(1, 28):02}T{chance.randrange(24):02}:00:00",
                model=chance.choice((*MODELS, "other", "")),
                kind=chance.choice(("request", "response")),
            )
            for _ in range(customers * 40)
        ),
    )
    return plan, found


@pytest.mark.parametrize("signed_up", [START, at("2025-09-01")])
@pytest.mark.parametrize(
    ("start", "end"), [(START, FEBRUARY), (FEBRUARY, APRIL), (START, at("2026-05-31T23:59:59"))]
)
def test_the_very_plan_of_a_customer_makes_no_difference(
    session: Session, start: datetime, end: datetime, signed_up: datetime
) -> None:
    plan, customers = the_world(session, 6, signed_up=signed_up)
    rows = compared(session, plan, start=start, end=end)
    assert differences(rows) == dict.fromkeys(sorted(customer.id for customer in customers), Decimal(0))
    assert len({row.would_bill for row in rows}) == 6
    assert all(row.would_bill == row.billed > 100 for row in rows)


def test_totals_are_sums_of_rows(session: Session) -> None:
    plan, _ = the_world(session, 5)
    dearer = a_draft(session, phase(fee("19"), *(replace(c, discounts=None) for c in everything())))
    rows, summary = compared(session, dearer), BacktestSummary()
    for row in rows:
        summary.add(row)
    (found,) = summary.sums.values()
    assert found.would_bill == total(row.would_bill for row in rows)
    assert (
        found.billed == total(row.billed for row in rows) == total(r.billed for r in compared(session, plan))
    )
    assert found.difference == total(row.difference or Decimal(0) for row in rows)
    assert found.difference == found.would_bill - found.billed != 0
    assert summary.customers == found.customers == 5 == summary.winners + summary.losers


# --- another plan ------------------------------------------------------------------------------------------


def test_who_would_pay_more_and_who_less(session: Session) -> None:
    """From 1 a unit to 20 a month and half of it: worth it from 40 units on."""
    a_metered_feature(session)
    plan = a_plan(session, phase(per_unit("1")))
    small, even, large = (a_customer(session, subject) for subject in "abc")
    for customer in (small, even, large):
        sign_up(session, customer, plan)
    store(session, *(spent(s, n, "2026-01-05") for s, n in (("a", 10), ("b", 40), ("c", 100))))
    store(session, spent("a", 1000, "2026-02-05"))
    draft = a_draft(session, phase(per_unit("0.5"), fee("20")))
    rows = compared(session, draft)
    assert differences(rows) == {small.id: 15, even.id: 0, large.id: -30}
    assert {amounts(row) for row in rows} == {
        ("25.00", "10.00", "15.00"),
        ("40.00", "40.00", "0.00"),
        ("70.00", "100.00", "-30.00"),
    }
    summary = BacktestSummary()
    for row in rows:
        summary.add(row)
    assert (summary.winners, summary.losers, summary.unchanged, summary.incomparable) == (1, 1, 1, 0)
    assert summary.sums == {
        "USD": BacktestSum(customers=3, would_bill=Decimal(135), billed=Decimal(150), difference=Decimal(-15))
    }


def test_the_plan_is_taken_as_if_all_had_signed_up_at_the_start(session: Session) -> None:
    """Its trial, its fees that come once, and its anchor begin there; the contract's own keep their dates."""
    a_metered_feature(session)
    trial = phase(per_unit("0"), fee("7", key="setup", cadence=None), key="trial", duration="P10D")
    plan = a_plan(session, trial, phase(per_unit("1"), fee("31"), key="paid"))
    customer = a_customer(session, "a")
    sign_up(session, customer, plan, start=START)
    store(session, *(spent("a", n, when) for n, when in ((1, "2026-02-05"), (20, "2026-02-15"))))
    store(session, spent("a", 300, "2026-03-05"))
    (row,) = compared(session, plan, start=FEBRUARY, end=MARCH)
    # It would bill setup 7, nothing for the 5th; from the 11th on 31 of it prorated by 18 of 28 days, and 20.
    assert row.would_bill == Decimal("7.00") + Decimal("19.93") + 20
    assert row.billed == 31 + 21  # an anchor on the first, and the trial was over


def test_a_charge_counts_where_its_service_period_begins(session: Session) -> None:
    """An anchor in the middle of the month: what is billed is the period from the 15th."""
    a_metered_feature(session)
    plan = a_plan(session, phase(per_unit("1")))
    customer = a_customer(session, "a")
    sign_up(session, customer, plan, start=at("2026-01-15"))
    store(
        session,
        *(spent("a", n, f"2026-{month}") for n, month in ((1, "02-10"), (20, "02-20"), (300, "03-10"))),
    )
    (row,) = compared(session, plan, start=FEBRUARY, end=MARCH)
    assert amounts(row) == ("21.00", "320.00", "-299.00")


# --- who is compared ---------------------------------------------------------------------------------------


def test_all_with_a_subscription_in_the_window_or_with_usage_are_compared(session: Session) -> None:
    a_metered_feature(session)
    plan = a_plan(session, phase(per_unit("1"), fee("5")))
    idle, before, later = (a_customer(session, subject) for subject in ("idle", "before", "later"))
    prospect, nobody, gone = (a_customer(session, subject) for subject in ("prospect", "nobody", "gone"))
    sign_up(session, idle, plan)
    sign_up(session, before, plan).active_to = FEBRUARY
    sign_up(session, later, plan, start=MARCH)
    store(session, spent("prospect", 3, "2026-02-05"), spent("nobody", 3, "2026-01-05"))
    store(session, spent("gone", 3, "2026-02-05"))
    delete_customer(session, get_customer(session, gone.id, lock=True), now=NOW)

    rows = compared(session, plan, start=FEBRUARY, end=MARCH)
    assert differences(rows) == {idle.id: 0, prospect.id: 8}
    named = compared(session, plan, start=FEBRUARY, end=MARCH, customers=[nobody, prospect, later, nobody])
    assert differences(named) == {prospect.id: 8, later.id: 5, nobody.id: 5}
    assert [row.customer_id for row in named] == sorted(row.customer_id for row in named)


def test_customers_who_pay_in_another_currency_have_no_difference_and_a_sum_of_their_own(
    session: Session,
) -> None:
    a_metered_feature(session)
    euro = a_plan(session, phase(per_unit("2")), key="euro", currency="EUR")
    customer, other = a_customer(session, "a"), a_customer(session, "b")
    sign_up(session, customer, euro)
    store(session, *(spent(subject, 10, "2026-01-05") for subject in "ab"))
    dollar = a_draft(session, phase(per_unit("1")))
    rows = compared(session, dollar)
    found = {row.customer_id: (*amounts(row), row.billed_currency) for row in rows}
    assert found == {
        customer.id: ("10.00", "20.00", "None", "EUR"),
        other.id: ("10.00", "0", "10.00", "USD"),
    }
    summary = BacktestSummary()
    for row in rows:
        summary.add(row)
    ten = Decimal(10)
    assert summary.sums == {
        "EUR": BacktestSum(customers=1, would_bill=ten, billed=Decimal(20), difference=None),
        "USD": BacktestSum(customers=1, would_bill=ten, billed=Decimal(0), difference=ten),
    }
    assert (summary.incomparable, summary.losers, summary.customers) == (1, 1, 2)


def test_nobody_is_compared_where_there_is_nobody(session: Session) -> None:
    assert compared(session, a_plan(session)) == []
    assert BacktestSummary().customers == 0


# --- many --------------------------------------------------------------------------------------------------


def test_parts_of_any_size_make_up_the_same_rows_with_as_many_statements_each(
    session: Session, shared_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, customers = the_world(session, 7)
    whole = compared(session, plan)
    assert len(whole) == 7
    sent: list[int] = []
    for size in (1, 3, 7):
        monkeypatch.setattr("billing.reports.backtest.CUSTOMERS_AT_ONCE", size)
        with counted_statements(shared_engine) as statements:
            asked = backtest(session, plan, start=START, end=FEBRUARY, now=NOW)
            parts = list(asked.parts(session))
        assert [row for part in parts for row in part.rows] == whole
        assert [part.looked_at for part in parts] == [size] * (7 // size) + [7 % size] * bool(7 % size)
        sent.append(len(statements) // len(parts))
        assert compared(session, plan, customers=customers) == whole
    assert sent[0] <= sent[1] + 1 <= sent[2] + 2


def test_a_backtest_writes_nothing(engine: Engine) -> None:
    with Session(engine, expire_on_commit=False) as session, session.begin():
        plan, _ = the_world(session, 2)
    with Session(engine) as session, session.begin():
        session.execute(text("SET TRANSACTION READ ONLY"))
        assert len(compared(session, plan)) == 2
        assert not session.dirty


# --- what is refused ---------------------------------------------------------------------------------------


def issues(error: BacktestWindowError | BacktestPlanError | BacktestCustomersError) -> list[tuple[str, str]]:
    return [(issue.code, issue.field) for issue in error.issues]


@pytest.mark.parametrize(
    ("start", "end", "code"),
    [
        (FEBRUARY, START, "empty_period"),
        (START, START, "empty_period"),
        (START, at("2026-06-01T00:00:01"), "window_not_over"),
    ],
)
def test_a_window_is_a_stretch_of_the_past(
    session: Session, start: datetime, end: datetime, code: str
) -> None:
    with pytest.raises(BacktestWindowError) as refused:
        backtest(session, a_plan(session), start=start, end=end, now=NOW)
    assert issues(refused.value) == [(code, "$.to")]
    backtest(session, a_draft(session), start=START, end=NOW, now=NOW)


def test_a_window_of_very_many_charges_is_refused(session: Session) -> None:
    plan = a_plan(session)
    with pytest.raises(BacktestWindowError) as refused:
        backtest(session, plan, start=at("1930-01-01"), end=NOW, now=NOW)
    assert issues(refused.value) == [("too_many_charges", "$.to")]
    assert len(backtest(session, plan, start=at("1950-01-01"), end=NOW, now=NOW).charges) == 76 * 12 + 5


def test_customers_that_are_unknown_or_deleted_are_named_one_by_one(session: Session, now: datetime) -> None:
    known, gone = a_customer(session, "a"), a_customer(session, "b")
    delete_customer(session, get_customer(session, gone.id, lock=True), now=now)
    plan = a_plan(session)

    def ask(*ids: str) -> None:
        backtest(session, plan, start=START, end=NOW, customer_ids=ids, now=NOW)

    with pytest.raises(BacktestCustomersError) as refused:
        ask(gone.id, known.id, "unknown")
    assert issues(refused.value) == [("customer_not_found", f"$.customerIds[{i}]") for i in (0, 2)]
    with pytest.raises(BacktestCustomersError, match="at most"):
        ask(*map(str, range(10_001)))


def test_a_draft_that_can_not_be_published_can_not_be_tested(session: Session) -> None:
    """Its price on what is not metered would come to nothing, and look like a gift."""
    a_feature(session, "boolean")
    draft = a_draft(session, phase(fee(), per_unit(feature="boolean")))
    with pytest.raises(BacktestPlanError) as refused:
        backtest(session, draft, start=START, end=NOW, now=NOW)
    assert refused.value.issues
    assert all(issue.field.startswith("$.phases[0].rateCards[1]") for issue in refused.value.issues)


def test_a_draft_means_the_features_of_today_and_a_published_plan_those_of_its_time(session: Session) -> None:
    a_metered_feature(session)
    sold = a_plan(session, phase(per_unit("1")))
    draft = a_draft(session, phase(per_unit("1")))
    archive_feature(session, get_feature(session, "tokens"), now=START)
    a_feature(session, "tokens", meter="tokens", filters={"provider": "anthropic"})
    customer = a_customer(session, "a")
    store(session, spent("a", 1, "2026-01-05"), spent("a", 20, "2026-01-05", provider="anthropic"))

    def would(plan: Plan, **more: Any) -> list[Decimal]:
        return [row.would_bill for row in compared(session, plan, customers=[customer], **more)]

    assert would(sold) == [21]
    assert would(draft) == [20]
