from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.rating.timeline import Charge, Contract, ContractItem, charges
from catalog.interval import parse_interval
from catalog.plan import BILLING_CADENCES
from catalog.price import FlatPrice
from catalog.rate_card import RateCard
from metering.period import Period
from tests.builders import at, fee, per_unit

TICK = timedelta(microseconds=1)
FAR = at("2100-01-01")


def item(
    card: RateCard, start: str, end: str | None = None, *, phase: str = "main", version: int = 0
) -> ContractItem:
    return sold(card, at(start), at(end) if end else None, phase=phase, version=version)


def sold(
    card: RateCard, start: datetime, end: datetime | None, *, phase: str = "main", version: int = 0
) -> ContractItem:
    return ContractItem(
        id=f"{phase}/{card.key}/{version}",
        phase_id=phase,
        phase_key=phase,
        key=card.key,
        version=version,
        rate_card=card,
        feature_id=card.feature_key,
        start=start,
        end=end,
    )


def contract(
    *items: ContractItem, anchor: str | datetime = "2026-01-01", cadence: str = "P1M", prorate: bool = True
) -> Contract:
    return Contract(
        subscription_id="sub",
        currency="USD",
        billing_anchor=at(anchor) if isinstance(anchor, str) else anchor,
        billing_cadence=parse_interval(cadence),
        prorate=prorate,
        items=items,
    )


def periods(found: list[Charge]) -> list[tuple[str, str]]:
    return [(day(charge.period.start), day(charge.period.end)) for charge in found]


def due(found: list[Charge]) -> list[str]:
    return [day(charge.invoice_at) for charge in found]


def shares(found: list[Charge]) -> list[Fraction]:
    return [charge.share for charge in found]


def day(instant: datetime) -> str:
    return instant.strftime("%Y-%m-%d" if instant.time() == datetime.min.time() else "%Y-%m-%dT%H:%M:%S")


def test_a_monthly_fee_is_charged_for_every_month_that_has_begun() -> None:
    found = charges(contract(item(fee(), "2026-01-01")), until=at("2026-03-15"))
    assert periods(found) == [
        ("2026-01-01", "2026-02-01"),
        ("2026-02-01", "2026-03-01"),
        ("2026-03-01", "2026-04-01"),
    ]
    assert shares(found) == [1, 1, 1]


def test_a_period_has_begun_at_its_first_instant() -> None:
    monthly = contract(item(fee(), "2026-01-01"))
    assert len(charges(monthly, until=at("2026-02-01") - TICK)) == 1
    assert len(charges(monthly, until=at("2026-02-01"))) == 2


def test_nothing_is_charged_before_the_contract_begins() -> None:
    monthly = contract(item(fee(), "2026-01-01"), item(fee(key="setup", cadence=None), "2026-01-01"))
    assert charges(monthly, until=at("2026-01-01") - TICK) == []


def test_what_has_no_price_is_no_charge() -> None:
    assert charges(contract(item(fee(None), "2026-01-01")), until=FAR) == []


def test_periods_at_the_end_of_the_month_do_not_drift() -> None:
    found = charges(contract(item(fee(), "2026-01-31"), anchor="2026-01-31"), until=at("2026-04-15"))
    assert periods(found) == [
        ("2026-01-31", "2026-02-28"),
        ("2026-02-28", "2026-03-31"),
        ("2026-03-31", "2026-04-30"),
    ]
    assert shares(found) == [1, 1, 1]


def test_an_anchor_before_the_start_cuts_the_first_period() -> None:
    found = charges(contract(item(fee(), "2026-04-16"), anchor="2026-01-01"), until=at("2026-05-01"))
    assert periods(found) == [("2026-04-16", "2026-05-01"), ("2026-05-01", "2026-06-01")]
    assert shares(found) == [Fraction(1, 2), 1]
    assert found[0].full_period == Period(start=at("2026-04-01"), end=at("2026-05-01"))


def test_an_anchor_after_the_start_cuts_the_first_period_alike() -> None:
    found = charges(contract(item(fee(), "2026-04-16"), anchor="2026-07-01"), until=at("2026-05-01"))
    assert periods(found) == [("2026-04-16", "2026-05-01"), ("2026-05-01", "2026-06-01")]
    assert shares(found) == [Fraction(1, 2), 1]


def test_the_end_cuts_the_last_period() -> None:
    found = charges(contract(item(fee(), "2026-04-01", "2026-05-11T12:00:00")), until=FAR)
    assert periods(found) == [("2026-04-01", "2026-05-01"), ("2026-05-01", "2026-05-11T12:00:00")]
    assert shares(found) == [1, Fraction(21, 62)]


def test_a_life_within_one_period_is_cut_on_both_sides() -> None:
    (only,) = charges(contract(item(fee(), "2026-04-11", "2026-04-14")), until=FAR)
    assert only.share == Fraction(1, 10)


def test_a_share_is_exact_to_the_second() -> None:
    found = charges(contract(item(fee("20"), "2026-01-21T21:55:18")), until=at("2026-01-31"))
    assert shares(found) == [Fraction(871_482, 31 * 86_400)]


def test_without_prorating_a_part_of_a_period_costs_the_whole() -> None:
    found = charges(contract(item(fee(), "2026-04-16"), prorate=False), until=at("2026-05-01"))
    assert shares(found) == [1, 1]


def test_a_fee_in_advance_is_invoiced_when_its_billing_period_begins() -> None:
    found = charges(contract(item(fee(), "2026-01-15")), until=at("2026-02-01"))
    assert due(found) == ["2026-01-15", "2026-02-01"]


def test_a_fee_in_arrears_and_usage_are_invoiced_when_their_period_ends() -> None:
    arrears, usage = item(fee(term="in_arrears"), "2026-01-15"), item(per_unit(), "2026-01-15")
    assert due(charges(contract(arrears), until=at("2026-02-01"))) == ["2026-02-01", "2026-03-01"]
    assert due(charges(contract(usage), until=at("2026-02-01"))) == ["2026-02-01", "2026-03-01"]


def test_what_ends_early_in_arrears_is_invoiced_at_its_end() -> None:
    found = charges(contract(item(per_unit(), "2026-01-01", "2026-01-20")), until=FAR)
    assert due(found) == ["2026-01-20"]


def test_a_cadence_longer_than_the_billing_cadence_is_invoiced_where_its_period_begins_or_ends() -> None:
    quarterly = contract(
        item(fee(cadence="P3M"), "2026-01-15"), item(per_unit(cadence="P3M"), "2026-01-15"), cadence="P1M"
    )
    found = charges(quarterly, until=at("2026-04-01"))
    assert periods(found)[::2] == [("2026-01-15", "2026-04-01"), ("2026-04-01", "2026-07-01")]
    assert due(found) == ["2026-01-15", "2026-04-01", "2026-04-01", "2026-07-01"]


def test_a_cadence_shorter_than_the_billing_cadence_waits_for_the_billing_period() -> None:
    weekly = contract(item(per_unit(cadence="P1W"), "2026-01-01"), cadence="P4W")
    found = charges(weekly, until=at("2026-02-01"))
    assert periods(found)[3:] == [("2026-01-22", "2026-01-29"), ("2026-01-29", "2026-02-05")]
    assert due(found) == ["2026-01-29"] * 4 + ["2026-02-26"]


def test_a_short_cadence_in_advance_is_invoiced_with_its_billing_period() -> None:
    weekly = contract(item(fee(cadence="P1W"), "2026-01-01"), cadence="P4W")
    assert due(charges(weekly, until=at("2026-02-01"))) == ["2026-01-01"] * 4 + ["2026-01-29"] * 4


def test_a_one_time_fee_in_advance_is_charged_once_in_full_at_the_start() -> None:
    setup = item(fee("100", key="setup", cadence=None), "2026-01-15")
    (once,) = charges(contract(setup), until=FAR)
    assert once.period == once.full_period == Period(start=at("2026-01-15"), end=at("2026-01-15"))
    assert (once.share, once.invoice_at) == (Fraction(1), at("2026-01-15"))


def test_a_one_time_fee_in_arrears_is_charged_once_in_full_at_the_end_of_its_phase() -> None:
    leaving = fee("100", key="leaving", cadence=None, term="in_arrears")
    (once,) = charges(contract(item(leaving, "2026-01-15", "2026-06-10")), until=at("2026-01-15"))
    assert once.period == Period(start=at("2026-01-15"), end=at("2026-06-10"))
    assert (once.share, once.invoice_at) == (Fraction(1), at("2026-06-10"))


def test_a_one_time_fee_in_arrears_is_no_charge_while_its_phase_has_no_end() -> None:
    leaving = fee("100", key="leaving", cadence=None, term="in_arrears")
    assert charges(contract(item(leaving, "2026-01-15")), until=FAR) == []


def test_a_trial_costs_nothing_and_the_paid_phase_begins_where_it_ends() -> None:
    trial_then_paid = contract(
        item(fee(None), "2026-01-10", "2026-01-24", phase="trial"),
        item(fee(), "2026-01-24", phase="paid"),
        item(per_unit(), "2026-01-24", phase="paid"),
        anchor="2026-01-10",
    )
    found = charges(trial_then_paid, until=at("2026-02-10"))
    assert [charge.item.phase_key for charge in found] == ["paid"] * 4
    assert periods(found)[::2] == [("2026-01-24", "2026-02-10"), ("2026-02-10", "2026-03-10")]
    assert shares(found)[0] == Fraction(17, 31)


def test_a_service_and_a_billing_period_never_reach_into_another_phase() -> None:
    ramp = contract(
        item(fee("5"), "2026-01-01", "2026-02-15", phase="ramp"),
        item(fee("10"), "2026-02-15", phase="full"),
    )
    found = charges(ramp, until=at("2026-02-20"))
    assert periods(found) == [
        ("2026-01-01", "2026-02-01"),
        ("2026-02-01", "2026-02-15"),
        ("2026-02-15", "2026-03-01"),
    ]
    assert [charge.billing_period for charge in found] == [charge.period for charge in found]
    assert shares(found) == [1, Fraction(1, 2), Fraction(1, 2)]


def test_charges_come_by_period_and_within_it_as_the_plan_lists_them() -> None:
    both = contract(item(per_unit(), "2026-01-01"), item(fee(key="a"), "2026-01-01"))
    found = charges(both, until=at("2026-02-01"))
    assert [charge.item.key for charge in found] == ["tokens", "a", "tokens", "a"]


def test_a_new_version_of_an_item_is_another_identity() -> None:
    changed = contract(
        item(fee(), "2026-01-01", "2026-01-01", version=0), item(fee("12"), "2026-01-01", version=1)
    )
    (only,) = charges(changed, until=at("2026-01-01"))
    assert "/v1/" in only.identity
    before = charges(contract(item(fee(), "2026-01-01")), until=at("2026-01-01"))
    assert before[0].identity != only.identity


def test_an_identity_is_made_of_subscription_phase_item_version_and_period() -> None:
    (only,) = charges(contract(item(fee(), "2026-01-15", phase="trial", version=3)), until=at("2026-01-15"))
    assert only.identity == "sub/trial/seat/v3/2026-01-15T00:00:00+00:00"


def test_an_identity_does_not_depend_on_the_zone_that_instants_are_written_in() -> None:
    start = at("2026-01-15T23:30:00")
    in_tokyo = start.astimezone(timezone(timedelta(hours=9)))
    for card in (fee(), fee(cadence=None), per_unit()):
        here = charges(contract(sold(card, start, None), anchor=start), until=at("2026-04-01"))
        there = charges(contract(sold(card, in_tokyo, None), anchor=in_tokyo), until=at("2026-04-01"))
        assert [charge.identity for charge in there] == [charge.identity for charge in here]


# --- theorems ----------------------------------------------------------------------------------------------

instants = st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001  bounds are naive
seconds = st.builds(lambda instant: instant.replace(microsecond=0), instants) | st.sampled_from(
    [at("2024-01-31"), at("2024-02-29"), at("2025-12-31T23:59:59"), at("2026-01-01")]
)
cadences = st.sampled_from(BILLING_CADENCES)
lengths = st.timedeltas(timedelta(seconds=1), timedelta(days=800)).map(lambda length: length - length % TICK)
terms = st.sampled_from(["in_advance", "in_arrears"])
recurring = st.builds(lambda cadence, term: fee(cadence=cadence, term=term), cadences, terms) | st.builds(
    lambda cadence: per_unit(cadence=cadence), cadences
)
one_time = st.builds(lambda term: fee(cadence=None, term=term), terms)
free = st.just(fee(None))


@st.composite
def contracts(draw: st.DrawFn) -> Contract:
    """Up to three phases, one after the other, with up to three cards each."""
    items: list[ContractItem] = []
    start, count = draw(seconds), draw(st.integers(1, 3))
    for n in range(count):
        last = n == count - 1 and draw(st.booleans())
        end = None if last else start + draw(lengths)
        for m, card in enumerate(draw(st.lists(recurring | one_time | free, min_size=1, max_size=3))):
            items.append(sold(card, start, end, phase=f"phase-{n}", version=m))
        start = end or start
    return contract(*items, anchor=draw(seconds), cadence=draw(cadences), prorate=draw(st.booleans()))


@given(recurring, seconds, seconds, st.none() | lengths, seconds)
def test_service_periods_tile_the_items_life(
    card: RateCard, anchor: datetime, start: datetime, length: timedelta | None, until: datetime
) -> None:
    end = None if length is None else start + length
    found = charges(contract(sold(card, start, end), anchor=anchor), until=until)
    if until < start:
        assert found == []
        return
    assert found[0].period.start == start
    assert all(one.period.end == next_one.period.start for one, next_one in pairwise(found))
    assert all(charge.period.length > timedelta(0) for charge in found)
    reached = found[-1].period.end
    assert reached == end or (until < reached and (end is None or reached < end))


@given(recurring, seconds, seconds, st.none() | lengths, seconds)
def test_a_service_period_is_a_recurrence_of_the_anchor_cut_to_the_items_life(
    card: RateCard, anchor: datetime, start: datetime, length: timedelta | None, until: datetime
) -> None:
    end = None if length is None else start + length
    interval = parse_interval(card.billing_cadence or "")
    for charge in charges(contract(sold(card, start, end), anchor=anchor), until=until):
        full = charge.full_period
        assert full == interval.period_of(anchor, charge.period.start)
        assert charge.period.start == max(full.start, start)
        assert charge.period.end == (full.end if end is None else min(full.end, end))


@given(contracts(), seconds, seconds)
def test_cutting_until_anywhere_only_removes_later_charges(
    signed: Contract, one: datetime, other: datetime
) -> None:
    early, late = sorted([one, other])
    of_late = charges(signed, until=late)
    assert charges(signed, until=early) == [c for c in of_late if min(c.period.start, c.invoice_at) <= early]


@given(contracts(), seconds, seconds)
def test_charges_since_an_instant_are_those_of_all_whose_period_begins_no_earlier(
    signed: Contract, one: datetime, other: datetime
) -> None:
    for since in (min(one, other), signed.billing_anchor):
        of_all = charges(signed, until=max(one, other))
        expected = [c for c in of_all if c.period.start >= since]
        assert charges(signed, since=since, until=max(one, other)) == expected


@given(contracts(), seconds)
def test_no_two_charges_have_one_identity(signed: Contract, until: datetime) -> None:
    counted = Counter(charge.identity for charge in charges(signed, until=until))
    assert set(counted.values()) <= {1}


@given(contracts(), seconds)
def test_a_charge_lies_in_its_item_and_in_its_full_period_and_costs_no_more_than_a_full_one(
    signed: Contract, until: datetime
) -> None:
    for charge in charges(signed, until=until):
        item = charge.item
        assert item.start <= charge.period.start
        assert min(charge.period.start, charge.invoice_at) <= until
        assert item.end is None or charge.period.end <= item.end
        assert charge.full_period.start <= charge.period.start
        assert charge.period.end <= charge.full_period.end
        assert 0 < charge.share <= 1
        assert charge.share == 1 or signed.prorate


@given(contracts(), seconds)
def test_fees_in_advance_are_due_by_their_start_and_all_else_not_before_its_end(
    signed: Contract, until: datetime
) -> None:
    for charge in charges(signed, until=until):
        if isinstance(charge.price, FlatPrice) and charge.price.payment_term == "in_advance":
            assert charge.item.start <= charge.invoice_at <= charge.period.start
        else:
            assert charge.invoice_at >= charge.period.end
            assert charge.item.end is None or charge.invoice_at <= charge.item.end


@given(contracts(), seconds)
def test_charges_come_in_the_order_of_their_periods(signed: Contract, until: datetime) -> None:
    starts = [charge.period.start for charge in charges(signed, until=until)]
    assert starts == sorted(starts)


@given(recurring, seconds, seconds, lengths, st.fractions(0, 1))
def test_cutting_an_item_in_two_anywhere_changes_no_share_of_any_full_period(
    card: RateCard, anchor: datetime, start: datetime, length: timedelta, where: Fraction
) -> None:
    end, cut = start + length, start + TICK * round(where * (length // TICK))
    whole = contract(sold(card, start, end), anchor=anchor)
    parts = contract(sold(card, start, cut), sold(card, cut, end, version=1), anchor=anchor)
    assert by_full_period(parts) == by_full_period(whole)


def by_full_period(signed: Contract) -> dict[Period, Fraction]:
    summed: dict[Period, Fraction] = {}
    for charge in charges(signed, until=FAR):
        summed[charge.full_period] = summed.get(charge.full_period, Fraction(0)) + charge.share
    return summed


@pytest.mark.parametrize("prorate", [True, False])
def test_a_charge_carries_what_the_contract_says(*, prorate: bool) -> None:
    signed = contract(item(fee("7"), "2026-01-01"), prorate=prorate)
    (only,) = charges(signed, until=at("2026-01-01"))
    assert (only.subscription_id, only.currency, only.prorate) == ("sub", "USD", prorate)
    assert (only.item, only.price) == (signed.items[0], signed.items[0].rate_card.price)
