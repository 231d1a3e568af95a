"""Edits of a contract as values: what each does, what it refuses, and what always holds."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.contracts.edits import (
    AddItem,
    AddPhase,
    BeyondCalendarError,
    ContractEdit,
    ContractSpec,
    Market,
    NewPhase,
    RemoveItem,
    RemovePhase,
    StretchPhase,
    UnscheduleEdit,
    edited,
    ended,
    spec_of,
)
from billing.contracts.subscription_rules import next_billing_cycle
from billing.rating.pricing import NOTHING
from billing.rating.rater import rate
from billing.rating.timeline import Charge, Contract, ContractItem, charges
from catalog.interval import parse_interval
from catalog.plan import BILLING_CADENCES
from catalog.rate_card import Phase, RateCard
from tests.builders import at, fee, per_unit, phase

START = at("2026-01-01")
HOUR = timedelta(hours=1)


def contract_of(*phases: Phase, start: str | datetime = START) -> ContractSpec:
    begins = at(start) if isinstance(start, str) else start
    return spec_of(phases, start=begins, feature_ids={"tokens": "feature-of-tokens"})


def market(now: str | datetime = "2026-01-10", when: str | datetime | None = None) -> Market:
    moment = at(now) if isinstance(now, str) else now
    effective = moment if when is None else at(when) if isinstance(when, str) else when
    return Market(now=moment, at=effective, billing_cadence="P1M", features={}, feature_ids={})


def done(
    spec: ContractSpec, *edits: ContractEdit, now: str | datetime = "2026-01-10", **more: str
) -> ContractSpec:
    result, issues = edited(spec, edits, market(now, **more))
    assert issues == []
    return result


def refused(
    spec: ContractSpec, *edits: ContractEdit, now: str | datetime = "2026-01-10", **more: str
) -> list[tuple[str, str]]:
    _, issues = edited(spec, edits, market(now, **more))
    assert all(issue.message and issue.hint for issue in issues)
    return [(issue.code, issue.field) for issue in issues]


def day(instant: datetime | None) -> str:
    return "" if instant is None else f"{instant:%m-%d}" + (f"T{instant:%H:%M}" if instant.hour else "")


def phases(spec: ContractSpec) -> list[tuple[str, str, str]]:
    return [(one.key, day(one.start), day(one.end)) for one in spec.phases]


def items(spec: ContractSpec) -> list[tuple[str, str, int, str, str]]:
    """Phase, key, version, first day, last day."""
    return [
        (one.key, item.key, item.version, day(item.start), day(item.end))
        for one in spec.phases
        for item in one.items
    ]


def add(card: RateCard, key: str = "main") -> AddItem:
    return AddItem(op="add_item", phase_key=key, rate_card=card)


def remove(item: str = "seat", key: str = "main") -> RemoveItem:
    return RemoveItem(op="remove_item", phase_key=key, item_key=item)


def new_phase(key: str, after: str | None, duration: str | None = None) -> AddPhase:
    return AddPhase(op="add_phase", phase=NewPhase(key=key, name=key, start_after=after, duration=duration))


def remove_phase(key: str, shift: str = "next") -> RemovePhase:
    return RemovePhase(op="remove_phase", phase_key=key, shift="prev" if shift == "prev" else "next")


def stretch(key: str, by: str) -> StretchPhase:
    return StretchPhase(op="stretch_phase", phase_key=key, extend_by=by)


UNSCHEDULE = UnscheduleEdit(op="unschedule_edit")
THREE = contract_of(
    phase(fee("0"), key="trial", duration="P14D"),
    phase(fee("5"), key="ramp", duration="P2M"),
    phase(fee("10"), key="full"),
)


# -- Items ---------------------------------------------------------------------------------------------------


def test_an_item_is_added_from_now_on() -> None:
    spec = done(contract_of(phase(fee())), add(fee("3", key="support")))
    assert items(spec) == [("main", "seat", 0, "01-01", ""), ("main", "support", 0, "01-10", "")]


def test_an_item_of_the_same_key_is_replaced_by_its_next_version() -> None:
    spec = done(contract_of(phase(fee("10"), fee(key="x"))), add(fee("20")))
    assert items(spec) == [
        ("main", "seat", 0, "01-01", "01-10"),
        ("main", "seat", 1, "01-10", ""),
        ("main", "x", 0, "01-01", ""),
    ]
    assert [item.rate_card for item in spec.phases[0].items[:2]] == [fee("10"), fee("20")]


def test_what_is_sold_already_stays_the_item_that_it_is() -> None:
    spec = contract_of(phase(fee("10")))
    assert done(spec, add(fee("10"))) == spec
    assert done(done(spec, add(fee("20"))), add(fee("10"))) == spec
    assert done(spec, remove(), add(fee("10"))) == spec


def test_an_item_of_a_phase_to_come_is_replaced_as_a_whole() -> None:
    spec = done(THREE, add(fee("7"), "ramp"), add(fee("1", key="support"), "full"))
    assert items(spec) == [
        ("trial", "seat", 0, "01-01", "01-15"),
        ("ramp", "seat", 1, "01-15", "03-15"),
        ("full", "seat", 0, "03-15", ""),
        ("full", "support", 0, "03-15", ""),
    ]


def test_an_item_is_removed_from_now_on() -> None:
    spec = done(contract_of(phase(fee(), fee(key="x"))), remove())
    assert items(spec) == [("main", "seat", 0, "01-01", "01-10"), ("main", "x", 0, "01-01", "")]


def test_an_item_that_was_removed_comes_back_as_its_next_version() -> None:
    gone = done(contract_of(phase(fee(), fee(key="x"))), remove())
    back = done(gone, add(fee()), now="2026-01-20")
    assert items(back)[:2] == [("main", "seat", 0, "01-01", "01-10"), ("main", "seat", 1, "01-20", "")]


def test_a_change_may_wait_for_its_instant_and_be_dropped_before() -> None:
    spec = contract_of(phase(fee("10"), fee(key="x")))
    waiting = done(spec, add(fee("20")), remove("x"), add(fee(key="y")), when="2026-02-01")
    assert items(waiting) == [
        ("main", "seat", 0, "01-01", "02-01"),
        ("main", "seat", 1, "02-01", ""),
        ("main", "x", 0, "01-01", "02-01"),
        ("main", "y", 0, "02-01", ""),
    ]
    assert done(waiting, UNSCHEDULE, now="2026-01-20") == spec


def test_what_has_happened_is_not_unscheduled() -> None:
    changed = done(contract_of(phase(fee("10"), fee(key="x"))), add(fee("20")), remove("x"))
    assert done(changed, UNSCHEDULE, now="2026-01-20") == changed


def test_an_edit_now_takes_the_place_of_one_that_waits() -> None:
    waiting = done(contract_of(phase(fee("10"))), add(fee("20")), when="2026-02-01")
    spec = done(waiting, add(fee("30")), now="2026-01-20")
    assert items(spec) == [("main", "seat", 0, "01-01", "01-20"), ("main", "seat", 2, "01-20", "")]


def test_what_has_no_time_to_be_sold_is_not_kept() -> None:
    spec = done(contract_of(phase(fee("10"))), add(fee("20")), now=START)
    assert items(spec) == [("main", "seat", 1, "01-01", "")]


# -- Phases --------------------------------------------------------------------------------------------------


def test_a_phase_is_added_at_the_end_and_cuts_the_last_one() -> None:
    spec = done(contract_of(phase(fee())), new_phase("later", "P3M"), add(fee("99"), "later"))
    assert phases(spec) == [("main", "01-01", "04-01"), ("later", "04-01", "")]
    assert items(spec) == [("main", "seat", 0, "01-01", "04-01"), ("later", "seat", 0, "04-01", "")]
    assert spec.phases[0].duration == "P3M"


def test_a_phase_that_is_put_between_others_moves_the_later_ones() -> None:
    spec = done(THREE, new_phase("pause", "P1M", "P7D"), add(fee("1"), "pause"))
    assert phases(spec) == [
        ("trial", "01-01", "01-15"),
        ("ramp", "01-15", "02-01"),
        ("pause", "02-01", "02-08"),
        ("full", "02-08", ""),
    ]
    assert items(spec)[-1] == ("full", "seat", 0, "02-08", "")


def test_a_phase_that_is_removed_gives_its_time_to_the_next_or_to_the_one_before() -> None:
    assert phases(done(THREE, remove_phase("ramp"))) == [("trial", "01-01", "01-15"), ("full", "01-15", "")]
    longer = done(THREE, remove_phase("ramp", "prev"))
    assert phases(longer) == [("trial", "01-01", "03-15"), ("full", "03-15", "")]
    assert items(longer)[0] == ("trial", "seat", 0, "01-01", "03-15")


@pytest.mark.parametrize("shift", ["next", "prev"])
def test_without_the_last_phase_the_one_before_goes_on(shift: str) -> None:
    spec = done(THREE, remove_phase("full", shift))
    assert phases(spec) == [("trial", "01-01", "01-15"), ("ramp", "01-15", "")]
    assert items(spec)[-1] == ("ramp", "seat", 0, "01-15", "")


def test_months_of_phases_that_are_joined_stay_months() -> None:
    monthly = contract_of(
        phase(fee(), key="a", duration="P1M"),
        phase(fee(), key="b", duration="P1M"),
        phase(fee(), key="c"),
        start="2026-01-31",
    )
    joined = done(monthly, remove_phase("b", "prev"), now="2026-02-01")
    assert (joined.phases[0].duration, phases(joined)[0]) == ("P2M", ("a", "01-31", "03-31"))


@pytest.mark.parametrize(
    ("by", "end", "following"),
    [("P7D", "01-22", "03-22"), ("P1M", "02-15", "04-15"), ("-P3D", "01-12", "03-12")],
)
def test_a_phase_is_stretched_and_the_later_ones_move_along(by: str, end: str, following: str) -> None:
    spec = done(THREE, stretch("trial", by))
    assert phases(spec) == [("trial", "01-01", end), ("ramp", end, following), ("full", following, "")]
    assert items(spec)[0] == ("trial", "seat", 0, "01-01", end)


def test_stretching_by_months_does_not_drift() -> None:
    spec = contract_of(phase(fee(), key="a", duration="P1M"), phase(fee(), key="b"), start="2026-01-31")
    assert phases(spec)[0] == ("a", "01-31", "02-28")
    longer = done(spec, stretch("a", "P1M"), now="2026-02-01")
    assert phases(longer)[0] == ("a", "01-31", "03-31")
    assert done(longer, stretch("a", "-P1M"), now="2026-02-01") == spec


def test_a_shorter_phase_drops_what_was_to_be_sold_after_its_new_end() -> None:
    waiting = done(THREE, add(fee("3"), "trial"), when="2026-01-13")
    spec = done(waiting, stretch("trial", "-P3D"))
    assert items(spec)[0] == ("trial", "seat", 0, "01-01", "01-12")
    assert [item for item in items(spec) if item[0] == "trial"] == [items(spec)[0]]


# -- What is refused -----------------------------------------------------------------------------------------

FIRST = "$.customizations[0]"


@pytest.mark.parametrize(
    ("edit", "code", "field"),
    [
        (add(fee(), "nowhere"), "unknown_phase", "phaseKey"),
        (remove("seat", "nowhere"), "unknown_phase", "phaseKey"),
        (remove("nothing", "ramp"), "unknown_item", "itemKey"),
        (add(fee(), "trial"), "phase_in_the_past", "phaseKey"),
        (stretch("trial", "P1D"), "phase_in_the_past", "phaseKey"),
        (remove_phase("trial"), "phase_in_the_past", "phaseKey"),
        (remove_phase("ramp"), "phase_has_begun", "phaseKey"),
        (stretch("full", "P1D"), "last_phase_has_no_end", "phaseKey"),
        (stretch("ramp", "a week"), "invalid_duration", "extendBy"),
        (stretch("ramp", "P100Y"), "invalid_duration", "extendBy"),
        (stretch("ramp", "-P2M"), "phase_too_short", "extendBy"),
        (stretch("ramp", "-P55D"), "phase_too_short", "extendBy"),
        (new_phase("more", None), "phase_in_the_past", "phase.startAfter"),
        (new_phase("more", "P14D"), "phase_in_the_past", "phase.startAfter"),
        (new_phase("more", "-P1M"), "subscription_phase_start_after_is_negative", "phase.startAfter"),
        (new_phase("more", "soon"), "invalid_duration", "phase.startAfter"),
        (new_phase("more", "P1M"), "plan_has_non_last_phase_with_no_duration", "phase.duration"),
        (new_phase("more", "P9M", "P1M"), "plan_has_last_phase_with_duration", "phase.duration"),
        (new_phase("more", "P1M", "PT59M"), "plan_phase_duration_less_then_an_hour", "phase.duration"),
        (new_phase("more", "P1M", "long"), "invalid_duration", "phase.duration"),
        (new_phase("ramp", "P9M"), "plan_phase_duplicated_key", "phase.key"),
        (new_phase("No Key", "P9M"), "invalid_key", "phase.key"),
        (add(fee(key="No Key"), "ramp"), "invalid_key", "rateCard.key"),
        (add(per_unit(), "ramp"), "rate_card_feature_not_found", "rateCard.featureKey"),
        (add(fee(cadence="P2W"), "ramp"), "rate_card_billing_cadence_unaligned", "rateCard.billingCadence"),
    ],
)
def test_an_edit_that_can_not_be_made_says_where_and_why(edit: ContractEdit, code: str, field: str) -> None:
    assert refused(THREE, edit, now="2026-01-20") == [(code, f"{FIRST}.{field}")]


def test_a_wrong_card_in_a_wrong_phase_is_told_as_both() -> None:
    found = refused(THREE, add(fee(key="No Key"), "nowhere"))
    assert found == [("unknown_phase", f"{FIRST}.phaseKey"), ("invalid_key", f"{FIRST}.rateCard.key")]


def test_of_several_edits_the_first_that_can_not_be_made_is_told() -> None:
    spec, issues = edited(THREE, [add(fee("9"), "full"), remove("x"), remove("y")], market())
    assert [(issue.code, issue.field) for issue in issues] == [
        ("unknown_phase", "$.customizations[1].phaseKey")
    ]
    assert spec != THREE  # what the caller does not write


def test_a_phase_that_sells_nothing_is_refused() -> None:
    assert refused(contract_of(phase(fee())), new_phase("later", "P3M")) == [
        ("subscription_phase_has_no_items", "$.customizations")
    ]
    assert refused(THREE, remove("seat", "full")) == [("subscription_phase_has_no_items", "$.customizations")]


def test_phases_do_not_reach_beyond_the_calendar() -> None:
    centuries = [phase(fee(), key=f"c{i}", duration="P100Y") for i in range(90)]
    with pytest.raises(BeyondCalendarError):
        contract_of(*centuries, phase(fee()))


def test_without_a_running_phase_nothing_can_be_unscheduled() -> None:
    assert refused(THREE, UNSCHEDULE, now="2025-12-01") == [("no_current_phase", FIRST)]


# -- What always holds ---------------------------------------------------------------------------------------

CARDS = st.builds(fee, st.sampled_from(["1", "2", "3"]), key=st.sampled_from(["seat", "x", "y"]))
KEYS = st.sampled_from(["trial", "ramp", "full", "p", "q"])
DURATIONS = st.sampled_from(["P1M", "P7D", "PT36H", "P3M", "P1M1D"])
EDITS = st.one_of(
    st.builds(add, CARDS, KEYS),
    st.builds(remove, st.sampled_from(["seat", "x", "y"]), KEYS),
    st.builds(new_phase, st.sampled_from(["p", "q"]), DURATIONS, st.none() | DURATIONS),
    st.builds(remove_phase, KEYS, st.sampled_from(["next", "prev"])),
    st.builds(stretch, KEYS, DURATIONS | DURATIONS.map(lambda text: f"-{text}")),
    st.just(UNSCHEDULE),
)
STEPS = st.lists(st.tuples(EDITS, st.integers(0, 40 * 24), st.integers(0, 72)), max_size=12)


def lived(steps: Sequence[tuple[ContractEdit, int, int]]) -> list[tuple[datetime, ContractSpec]]:
    """Each contract, with the instant at which it came into force; edits that can't be made are left out."""
    spec, now, life = THREE, START, [(START, THREE)]
    for edit, hours, wait in steps:
        now += hours * HOUR
        result, issues = edited(spec, [edit], market(now, now + wait * HOUR))
        if not issues:
            spec = result
            life.append((now, spec))
    return life


@settings(max_examples=200)
@given(STEPS)
def test_phases_follow_without_gap_and_items_of_a_key_never_overlap(
    steps: list[tuple[ContractEdit, int, int]],
) -> None:
    for _, spec in lived(steps):
        assert spec.phases[0].start == START
        assert all(one.end == following.start for one, following in pairwise(spec.phases))
        assert spec.phases[-1].end is None
        for one in spec.phases:
            for item in one.items:
                assert one.start <= item.start
                assert item.end is None or item.start < item.end
                assert one.end is None or (item.end is not None and item.end <= one.end)
            for key in {item.key for item in one.items}:
                own = [item for item in one.items if item.key == key]
                assert all(a.end is not None and a.end <= b.start for a, b in pairwise(own))
                assert all(a.version < b.version for a, b in pairwise(own))


@settings(max_examples=200)
@given(STEPS)
def test_an_edit_never_changes_what_was_sold_before_it(steps: list[tuple[ContractEdit, int, int]]) -> None:
    for (_, before), (now, after) in pairwise(lived(steps)):
        assert what_was_sold(before, now) == what_was_sold(after, now)


def what_was_sold(spec: ContractSpec, until: datetime) -> list[tuple[object, ...]]:
    cut = ended(spec, until)
    return [
        (one.key, item.key, item.version, item.rate_card, item.start, item.end)
        for one in cut.phases
        for item in one.items
    ]


@given(st.integers(0, 400 * 24))
def test_a_contract_that_is_ended_sells_the_same_until_then_and_nothing_after(hours: int) -> None:
    end = START + hours * HOUR
    cut = ended(THREE, end)
    assert ended(cut, end) == cut
    for one in cut.phases:
        assert one.end is not None
        assert one.start < one.end <= end
    assert sum((one.end - one.start for one in cut.phases if one.end), timedelta()) == end - START


@given(
    st.datetimes(datetime(2024, 1, 1), datetime(2028, 12, 31)),  # noqa: DTZ001  made aware below
    st.sampled_from(BILLING_CADENCES),
    st.integers(1, 40),
)
def test_billing_cycles_are_counted_from_the_anchor_and_never_drift(
    anchor: datetime, cadence: str, count: int
) -> None:
    begins, interval = at(anchor.replace(microsecond=0).isoformat()), parse_interval(cadence)
    now = begins
    for _ in range(count):
        now = next_billing_cycle(begins, interval, now)
    assert now == interval.after(begins, count)
    assert not interval.months or now.day == min(begins.day, days_of_month(now))


def days_of_month(instant: datetime) -> int:
    following = (instant.replace(day=1) + timedelta(days=32)).replace(day=1)
    return (following - timedelta(days=1)).day


def test_a_billing_cycle_ends_with_its_phase() -> None:
    monthly, now = parse_interval("P1M"), at("2026-01-10")
    assert next_billing_cycle(START, monthly, now) == at("2026-02-01")
    assert next_billing_cycle(START, monthly, now, phase_end=at("2026-01-15")) == at("2026-01-15")
    assert next_billing_cycle(START, monthly, now, phase_end=at("2026-03-15")) == at("2026-02-01")


# -- What is charged -----------------------------------------------------------------------------------------


def charged(spec: ContractSpec, anchor: str, *, until: str) -> list[tuple[str, str, Decimal]]:
    """First and last day of each charge, and what it costs."""
    contract = Contract(
        subscription_id="sub",
        currency="USD",
        billing_anchor=at(anchor),
        billing_cadence=parse_interval("P1M"),
        prorate=True,
        items=tuple(
            ContractItem(
                id=f"{item.key}-{item.version}",
                phase_id=one.key,
                phase_key=one.key,
                key=item.key,
                version=item.version,
                rate_card=item.rate_card,
                feature_id=item.feature_id,
                start=item.start,
                end=item.end,
            )
            for one in spec.phases
            for item in one.items
        ),
    )
    return [
        (day(one.period.start), day(one.period.end), cost(one)) for one in charges(contract, until=at(until))
    ]


def cost(charge: Charge) -> Decimal:
    return rate(charge.terms, NOTHING).totals.total


def test_ten_changed_to_twenty_on_the_second_day() -> None:
    spec = done(contract_of(phase(fee("10"))), add(fee("20")), now="2026-01-02")
    assert charged(spec, "2026-01-01", until="2026-02-01") == [
        ("01-01", "01-02", Decimal("0.32")),
        ("01-02", "02-01", Decimal("19.35")),
        ("02-01", "03-01", Decimal("20.00")),
    ]


def test_the_first_days_before_the_anchor_cost_their_share_to_the_second() -> None:
    spec = contract_of(phase(fee("20")), start="2026-01-21T21:55:18")
    found = charged(spec, "2026-01-01", until="2026-02-01")
    assert [amount for _, _, amount in found] == [Decimal("6.51"), Decimal("20.00")]


def test_an_anchor_on_the_31st_keeps_to_the_end_of_the_month() -> None:
    spec = contract_of(phase(fee("20")), start="2026-07-31")
    found = charged(spec, "2026-07-31", until="2026-10-15")
    assert [(start, end) for start, end, _ in found] == [
        ("07-31", "08-31"),
        ("08-31", "09-30"),
        ("09-30", "10-31"),
    ]
    assert {amount for _, _, amount in found} == {Decimal("20.00")}


def test_leap_years_are_met_and_left_on_the_day_of_the_anchor() -> None:
    spec = contract_of(phase(fee("20")), start="2023-12-31")
    found = charged(spec, "2023-12-31", until="2024-04-01")
    assert [start for start, _, _ in found] == ["12-31", "01-31", "02-29", "03-31"]


def test_an_ended_contract_charges_the_part_that_was_used() -> None:
    spec = ended(contract_of(phase(fee("31"))), at("2026-01-11"))
    assert charged(spec, "2026-01-01", until="2027-01-01") == [("01-01", "01-11", Decimal("10.00"))]
    assert charged(ended(replace(spec), START), "2026-01-01", until="2027-01-01") == []
