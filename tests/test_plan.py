from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.plan import BILLING_CADENCES, check_plan
from catalog.price import FlatPrice, UnitPrice
from catalog.rate_card import BooleanEntitlement, FlatFeeRateCard, Phase, RateCard, UsageBasedRateCard
from catalog.rate_card_rules import FeatureFacts
from metering.errors import Issue
from tests.builders import fee, per_unit, phase

CRITICAL, WARNING = "critical", "warning"
FEATURES = {
    "tokens": FeatureFacts(archived=False, metered=True),
    "sso": FeatureFacts(archived=False, metered=False),
    "old": FeatureFacts(archived=True, metered=True),
}


def problems(
    *phases: Phase,
    currency: str = "USD",
    cadence: str = "P1M",
    features: Mapping[str, FeatureFacts] = FEATURES,
) -> list[Issue]:
    return check_plan(currency=currency, billing_cadence=cadence, phases=phases, features=features)


def told(issues: list[Issue]) -> list[tuple[str, str, str]]:
    return [(issue.code, issue.severity, issue.field) for issue in issues]


def test_a_good_plan_has_no_problems() -> None:
    trial = phase(fee(None, key="sso", feature="sso", cadence=None), key="trial", duration="P14D")
    ramp = phase(fee("5", cadence="P1W"), fee("100", key="setup", cadence=None), key="ramp", duration="P1M")
    full = phase(fee("50", cadence="P2W"), per_unit("0.00000075", cadence="P4W"), key="full_price-2")
    assert problems(trial, ramp, full, cadence="P4W") == []


@pytest.mark.parametrize("currency", ["usd", "XXX", "", "DEM", "US DOLLAR"])
def test_a_plan_costs_a_currency_that_people_pay_with(currency: str) -> None:
    assert told(problems(phase(fee()), currency=currency)) == [("currency_invalid", CRITICAL, "$.currency")]


@pytest.mark.parametrize("cadence", ["P1D", "P2M", "PT1H", "monthly", ""])
def test_a_plan_is_billed_as_often_as_openmeter_allows(cadence: str) -> None:
    found = told(problems(phase(fee(cadence=None)), cadence=cadence))
    assert found == [("billing_cadence_invalid_value", WARNING, "$.billingCadence")]


@pytest.mark.parametrize("cadence", BILLING_CADENCES)
def test_every_cadence_that_openmeter_allows_is_good(cadence: str) -> None:
    assert problems(phase(fee(cadence=cadence), per_unit(cadence=cadence)), cadence=cadence) == []


def test_a_plan_needs_a_phase() -> None:
    assert told(problems()) == [("plan_with_no_phases", WARNING, "$.phases")]


def test_a_phase_needs_a_rate_card() -> None:
    found = told(problems(phase(key="empty", duration="P1M"), phase(fee())))
    assert found == [("plan_phase_has_no_rate_cards", WARNING, "$.phases[0].rateCards")]


def test_two_phases_have_two_keys() -> None:
    found = told(problems(phase(fee(), duration="P1M"), phase(fee(), key="b", duration="P1M"), phase(fee())))
    assert found == [("plan_phase_duplicated_key", CRITICAL, "$.phases[2].key")]


def test_two_cards_of_a_phase_have_two_keys_but_phases_may_repeat_them() -> None:
    found = told(problems(phase(fee(), key="a", duration="P1M"), phase(fee(), per_unit(), fee(), key="b")))
    assert found == [("rate_card_duplicated_key", CRITICAL, "$.phases[1].rateCards[2].key")]


@pytest.mark.parametrize(
    "key", ["", "Seat", "seat ", "-seat", "seat-", "a--b", "a_-b", "sé", "a.b", "a" * 65, "a\n"]
)
def test_a_key_is_lower_case_with_single_separators(key: str) -> None:
    invalid_phase = replace(phase(fee()), key=key)
    invalid_card = phase(per_unit(), replace(fee(), key=key))
    assert told(problems(invalid_phase)) == [("invalid_key", CRITICAL, "$.phases[0].key")]
    assert told(problems(invalid_card)) == [("invalid_key", CRITICAL, "$.phases[0].rateCards[1].key")]


@pytest.mark.parametrize("key", ["a", "7", "ai-token", "ai_token", "a-b_c-9", "a" * 64])
def test_a_key_may_have_single_hyphens_and_underscores(key: str) -> None:
    assert problems(phase(fee(key=key), key=key)) == []


def test_only_the_last_phase_goes_on_without_end() -> None:
    missing = told(problems(phase(fee(), key="a"), phase(fee(), key="b")))
    assert missing == [("plan_has_non_last_phase_with_no_duration", WARNING, "$.phases[0].duration")]
    needless = told(problems(phase(fee(), key="a", duration="P1M"), phase(fee(), key="b", duration="P1Y")))
    assert needless == [("plan_has_last_phase_with_duration", WARNING, "$.phases[1].duration")]


@pytest.mark.parametrize("duration", ["1 month", "P0M", "P", "P9999Y"])
def test_a_duration_is_iso_8601(duration: str) -> None:
    found = told(problems(phase(fee(), key="a", duration=duration), phase(fee(), key="b")))
    assert found == [("invalid_duration", CRITICAL, "$.phases[0].duration")]


@pytest.mark.parametrize("duration", ["-P1M", "P-1M", "-PT1S"])
def test_a_phase_lasts_no_negative_time(duration: str) -> None:
    found = told(problems(phase(fee(), key="a", duration=duration), phase(fee(), key="b")))
    assert found == [("plan_phase_with_negative_duration", WARNING, "$.phases[0].duration")]


def test_a_phase_and_a_card_have_names() -> None:
    found = told(problems(replace(phase(replace(fee(), name="")), name="")))
    assert found == [
        ("resource_name_empty", CRITICAL, "$.phases[0].name"),
        ("resource_name_empty", CRITICAL, "$.phases[0].rateCards[0].name"),
    ]


def test_a_phase_lasts_at_least_an_hour() -> None:
    short = told(problems(phase(fee(), key="a", duration="PT59M59S"), phase(fee(), key="b")))
    assert short == [("plan_phase_duration_less_then_an_hour", WARNING, "$.phases[0].duration")]
    assert problems(phase(fee(), key="a", duration="PT1H"), phase(fee(), key="b")) == []


@pytest.mark.parametrize(
    ("card", "code", "severity", "member"),
    [
        (fee(key="sso", feature="tokens"), "rate_card_key_feature_key_mismatch", CRITICAL, "key"),
        (per_unit(feature="unknown"), "rate_card_feature_not_found", CRITICAL, "featureKey"),
        (per_unit(feature="old"), "rate_card_feature_archived", CRITICAL, "featureKey"),
        (fee(key="old", feature="old"), "rate_card_feature_archived", CRITICAL, "featureKey"),
        (per_unit(feature="sso"), "usage_based_price_with_feature_and_no_meter", WARNING, "featureKey"),
        (
            replace(per_unit(), feature_key=None),
            "usage_based_price_with_no_feature",
            WARNING,
            "featureKey",
        ),
        (
            replace(fee(), entitlement_template=BooleanEntitlement(type="boolean")),
            "entitlement_template_with_no_feature",
            WARNING,
            "featureKey",
        ),
        (fee(cadence="monthly"), "billing_cadence_invalid_value", CRITICAL, "billingCadence"),
        (fee(cadence="P1M1D"), "billing_cadence_invalid_value", CRITICAL, "billingCadence"),
        (fee(cadence="PT59M"), "billing_cadence_invalid_value", CRITICAL, "billingCadence"),
        (fee(cadence="P1W"), "rate_card_billing_cadence_unaligned", WARNING, "billingCadence"),
        (fee(cadence="P30D"), "rate_card_billing_cadence_unaligned", WARNING, "billingCadence"),
        (fee("-1"), "price_amount_negative", CRITICAL, "price.amount"),
        (per_unit("1E-31"), "price_amount_out_of_range", CRITICAL, "price.amount"),
        (per_unit("NaN"), "price_amount_out_of_range", CRITICAL, "price.amount"),
    ],
    ids=lambda value: value if isinstance(value, str) and "_" in value else "",
)
def test_a_bad_rate_card_is_told_with_its_path(card: RateCard, code: str, severity: str, member: str) -> None:
    good = phase(fee(), key="a", duration="P1M")
    found = told(problems(good, phase(fee(key="good"), card, key="b")))
    assert found == [(code, severity, f"$.phases[1].rateCards[1].{member}")]


@pytest.mark.parametrize(
    ("card", "plan", "fits"),
    [
        ("P1M", "P3M", True),
        ("P3M", "P1M", True),
        ("P1Y", "P6M", True),
        ("P6M", "P1Y", True),
        ("P1W", "P4W", True),
        ("P4W", "P2W", True),
        ("P1D", "P1W", True),
        ("PT24H", "P1W", True),
        ("PT1H", "P1W", False),  # nothing is billed by the hour
        ("P2M", "P3M", False),
        ("P3W", "P2W", False),
        ("P1M", "P4W", False),
        ("P1D", "P1M", False),
    ],
)
def test_a_card_is_billed_in_whole_parts_or_multiples_of_the_plans_cadence(
    card: str, plan: str, *, fits: bool
) -> None:
    assert (problems(phase(fee(cadence=card)), cadence=plan) == []) is fits


def test_a_card_without_a_price_may_name_a_feature_without_a_meter() -> None:
    granted = replace(
        fee(None, key="sso", feature="sso"), entitlement_template=BooleanEntitlement(type="boolean")
    )
    assert problems(phase(granted)) == []
    assert problems(phase(replace(per_unit(feature="sso"), price=None))) == []


def test_a_flat_price_needs_no_meter_on_a_usage_based_card_either() -> None:
    assert (
        problems(phase(replace(per_unit(feature="sso"), price=FlatPrice(type="flat", amount=Decimal(5)))))
        == []
    )


def test_every_problem_is_reported_at_once() -> None:
    trial = phase(fee("-1", cadence="weekly"), fee("1E-40"), key="trial", duration="soon")
    last = phase(per_unit(feature="unknown"), per_unit(feature="sso"), key="trial", duration="P1M")
    found = told(problems(trial, last, currency="XXX", cadence="P1D"))
    assert sorted(found) == sorted(
        [
            ("currency_invalid", CRITICAL, "$.currency"),
            ("billing_cadence_invalid_value", WARNING, "$.billingCadence"),
            ("plan_phase_duplicated_key", CRITICAL, "$.phases[1].key"),
            ("invalid_duration", CRITICAL, "$.phases[0].duration"),
            ("rate_card_duplicated_key", CRITICAL, "$.phases[0].rateCards[1].key"),
            ("billing_cadence_invalid_value", CRITICAL, "$.phases[0].rateCards[0].billingCadence"),
            ("price_amount_negative", CRITICAL, "$.phases[0].rateCards[0].price.amount"),
            ("rate_card_billing_cadence_unaligned", WARNING, "$.phases[0].rateCards[1].billingCadence"),
            ("price_amount_out_of_range", CRITICAL, "$.phases[0].rateCards[1].price.amount"),
            ("plan_has_last_phase_with_duration", WARNING, "$.phases[1].duration"),
            ("rate_card_feature_not_found", CRITICAL, "$.phases[1].rateCards[0].featureKey"),
            ("rate_card_billing_cadence_unaligned", WARNING, "$.phases[1].rateCards[0].billingCadence"),
            (
                "usage_based_price_with_feature_and_no_meter",
                WARNING,
                "$.phases[1].rateCards[1].featureKey",
            ),
            ("rate_card_billing_cadence_unaligned", WARNING, "$.phases[1].rateCards[1].billingCadence"),
        ]
    )


words = st.sampled_from(["tokens", "sso", "old", "a", "A b", ""]) | st.text(max_size=70)
durations = st.sampled_from([*BILLING_CADENCES, "PT1M", "P1M1D", "P0D", "P99999M", "P999999D"]) | st.text()
amounts = st.decimals() | st.builds(lambda n: Decimal(f"1E{n}"), st.integers(-(10**6), 10**6))
flat_prices = st.builds(FlatPrice, amount=amounts)
prices = flat_prices | st.builds(UnitPrice, type=st.just("unit"), amount=amounts)
templates = st.none() | st.just(BooleanEntitlement(type="boolean"))
flat_cards = st.builds(
    FlatFeeRateCard,
    type=st.just("flat_fee"),
    key=words,
    name=st.text(max_size=5),
    feature_key=st.none() | words,
    entitlement_template=templates,
    billing_cadence=st.none() | durations,
    price=st.none() | flat_prices,
)
usage_cards = st.builds(
    UsageBasedRateCard,
    type=st.just("usage_based"),
    key=words,
    name=st.text(max_size=5),
    feature_key=st.none() | words,
    entitlement_template=templates,
    billing_cadence=durations,
    price=st.none() | prices,
)
phases = st.builds(
    Phase,
    key=words,
    name=st.text(max_size=5),
    duration=st.none() | durations,
    rate_cards=st.lists(flat_cards | usage_cards, max_size=3).map(tuple),
)


@given(st.lists(phases, max_size=3), words | st.just("USD"), durations)
def test_checking_a_plan_never_raises_and_every_problem_says_what_and_where(
    given_phases: list[Phase], currency: str, cadence: str
) -> None:
    for issue in problems(*given_phases, currency=currency, cadence=cadence):
        assert issue.code
        assert issue.message
        assert issue.field.startswith("$.")
        assert issue.hint
