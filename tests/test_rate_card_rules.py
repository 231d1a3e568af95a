import re
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.discount import Discounts, PercentageDiscount, UsageDiscount
from catalog.issues import barring
from catalog.price import (
    DynamicPrice,
    FlatPrice,
    MatrixCell,
    MatrixPrice,
    PackagePrice,
    PercentagePrice,
    Price,
    PriceTier,
    TieredPrice,
    TierFlatPrice,
    TierUnitPrice,
    UnitPrice,
)
from catalog.rate_card import (
    BooleanEntitlement,
    EntitlementTemplate,
    FlatFeeRateCard,
    MeteredEntitlement,
    RateCard,
    StaticEntitlement,
    UsageBasedRateCard,
)
from catalog.rate_card_rules import FeatureFacts, check_rate_card, check_rate_cards
from catalog.tax import CustomInvoicingTaxConfig, StripeTaxConfig, TaxConfig
from catalog.unit_config import UnitConfig
from metering.errors import Issue
from tests.builders import fee, per_unit

DIMENSIONS = frozenset({"provider", "model"})
FEATURES = {
    "tokens": FeatureFacts(metered=True, aggregation="SUM", dimensions=DIMENSIONS),
    "peak": FeatureFacts(metered=True, aggregation="MAX", dimensions=DIMENSIONS),
    "sso": FeatureFacts(),
}


def problems(card: RateCard, features: Mapping[str, FeatureFacts] = FEATURES) -> list[Issue]:
    return list(check_rate_card(card, "$.c", plan_cadence="P1M", features=features))


def told(issues: list[Issue]) -> list[tuple[str, str, str]]:
    return [(issue.code, issue.severity, issue.field) for issue in issues]


def usage_card(price: Price | None, *, feature: str | None = "tokens", **changes: Any) -> UsageBasedRateCard:
    card = replace(per_unit(feature=feature or "free"), feature_key=feature, price=price)
    return replace(card, **changes)


def off(percentage: str | None = None, usage: str | None = None) -> Discounts:
    return Discounts(
        percentage=None if percentage is None else PercentageDiscount(percentage=Decimal(percentage)),
        usage=None if usage is None else UsageDiscount(quantity=Decimal(usage)),
    )


def unit_config(factor: str = "1000", **changes: Any) -> UnitConfig:
    return UnitConfig(operation="divide", conversion_factor=Decimal(factor), **changes)


def metered(**members: Any) -> MeteredEntitlement:
    return MeteredEntitlement(type="metered", **members)


def tier(end: str | None, unit: str | None = None, flat: str | None = None) -> PriceTier:
    return PriceTier(
        up_to_amount=None if end is None else Decimal(end),
        unit_price=None if unit is None else TierUnitPrice(type="unit", amount=Decimal(unit)),
        flat_price=None if flat is None else TierFlatPrice(type="flat", amount=Decimal(flat)),
    )


def volume(*tiers: PriceTier, **changes: Any) -> TieredPrice:
    return TieredPrice(type="tiered", mode="volume", tiers=tiers, **changes)


FLAT = FlatPrice(type="flat", amount=Decimal(5))
UNIT = UnitPrice(type="unit", amount=Decimal(1))
TIERED = TieredPrice(type="tiered", mode="graduated", tiers=(tier("10", "2"), tier(None, "1")))
GROUPED = replace(TIERED, group_by=("model",))
PACKAGE = PackagePrice(type="package", amount=Decimal(15), quantity_per_package=Decimal(10))
DYNAMIC = DynamicPrice(type="dynamic")
PERCENTAGE = PercentagePrice(type="percentage", percentage=Decimal(2))
LIMITED = replace(PERCENTAGE, minimum_per_event=Decimal("0.1"))
MATRIX = MatrixPrice(
    type="matrix",
    dimensions=("provider", "model"),
    cells=(MatrixCell(values={"provider": "openai", "model": "gpt-4o"}, amount=Decimal(3)),),
    default_amount=Decimal(1),
)
EVERY_PRICE = (FLAT, UNIT, TIERED, GROUPED, PACKAGE, DYNAMIC, PERCENTAGE, LIMITED, MATRIX)
COUNTED = (UNIT, TIERED, PACKAGE, DYNAMIC)
"""What may have free units."""

GOOD = [
    *(usage_card(price) for price in EVERY_PRICE),
    *(usage_card(price, discounts=off("100", "0.5"), unit_config=unit_config()) for price in COUNTED),
    *(usage_card(price, discounts=off("0")) for price in EVERY_PRICE),
    *(usage_card(price, unit_config=unit_config(precision=18)) for price in (GROUPED, MATRIX)),
    usage_card(None, discounts=off("12.5")),
    replace(fee(), discounts=off("99.9999999999999")),
    usage_card(UNIT, entitlement_template=BooleanEntitlement(type="boolean")),
    usage_card(UNIT, entitlement_template=StaticEntitlement(type="static", config='{"seats": [1e3, null]}')),
    usage_card(
        UNIT,
        entitlement_template=metered(
            issue_after_reset=Decimal("1000.5"), issue_after_reset_priority=255, usage_period="PT1H"
        ),
    ),
    usage_card(UNIT, entitlement_template=metered(issue_after_reset=Decimal(10**14))),
    usage_card(None, feature="sso", entitlement_template=BooleanEntitlement(type="boolean")),
    replace(fee(), tax_config=TaxConfig(behavior="inclusive", stripe=StripeTaxConfig(code="txcd_10000000"))),
    replace(
        fee(),
        tax_config=TaxConfig(
            custom_invoicing=CustomInvoicingTaxConfig(code="A"), tax_code_id="01JAAAAAAAAAAAAAAAAAAAAAAA"
        ),
    ),
]


@pytest.mark.parametrize("card", GOOD, ids=lambda card: type(card.price).__name__)
def test_a_good_card_has_no_problems(card: RateCard) -> None:
    assert problems(card) == []


def entitled(template: EntitlementTemplate, **changes: Any) -> UsageBasedRateCard:
    return usage_card(UNIT, entitlement_template=template, **changes)


TEMPLATE = "entitlementTemplate"
BAD = [
    (replace(fee(), name=""), "resource_name_empty", "critical", "name"),
    # Discounts
    *(
        (
            replace(fee(), discounts=off(percentage)),
            "percentage_discount_invalid_value",
            "critical",
            "discounts.percentage.percentage",
        )
        for percentage in ("-0.1", "100.1", "33.33333333333333333", "NaN", "Infinity")
    ),
    *(
        (
            usage_card(UNIT, discounts=off(usage=quantity)),
            "usage_discount_negative_quantity",
            "warning",
            "discounts.usage.quantity",
        )
        for quantity in ("0", "-1")
    ),
    (
        usage_card(UNIT, discounts=off(usage="1E+31")),
        "usage_discount_quantity_out_of_range",
        "critical",
        "discounts.usage.quantity",
    ),
    (
        replace(fee(), discounts=off(usage="1")),
        "usage_discount_with_flat_price",
        "warning",
        "discounts.usage",
    ),
    (
        usage_card(PERCENTAGE, discounts=off(usage="1")),
        "usage_discount_with_percentage_price",
        "critical",
        "discounts.usage",
    ),
    *(
        (
            usage_card(price, discounts=off(usage="1")),
            "usage_discount_with_grouped_price",
            "critical",
            "discounts.usage",
        )
        for price in (MATRIX, GROUPED)
    ),
    # Unit conversion
    *(
        (
            usage_card(price, unit_config=unit_config()),
            "unit_config_requires_usage_based_price",
            "warning",
            "unitConfig",
        )
        for price in (FLAT, None)
    ),
    (
        usage_card(PERCENTAGE, unit_config=unit_config()),
        "unit_config_with_percentage_price",
        "critical",
        "unitConfig",
    ),
    *(
        (
            usage_card(UNIT, unit_config=unit_config(factor)),
            "unit_config_invalid_conversion_factor",
            "critical",
            "unitConfig.conversionFactor",
        )
        for factor in ("0", "-1", "NaN", "1E-31")
    ),
    *(
        (
            usage_card(UNIT, unit_config=unit_config(precision=digits)),
            "unit_config_invalid_precision",
            "critical",
            "unitConfig.precision",
        )
        for digits in (-1, 19)
    ),
    # Entitlement templates
    (
        usage_card(None, feature=None, entitlement_template=BooleanEntitlement(type="boolean")),
        "entitlement_template_with_no_feature",
        "warning",
        "featureKey",
    ),
    *(
        (
            entitled(StaticEntitlement(type="static", config=config)),
            "entitlement_template_invalid_json_config",
            "critical",
            f"{TEMPLATE}.config",
        )
        for config in ("", "{'a': 1}", "NaN", "[" * 100_000)
    ),
    *(
        (
            entitled(metered(issue_after_reset=Decimal(amount))),
            "entitlement_template_invalid_issue_after_reset",
            "critical",
            f"{TEMPLATE}.issueAfterReset",
        )
        for amount in ("-1", "0.1234567890123456", "1E+16", "NaN")
    ),
    (
        entitled(metered(issue_after_reset_priority=1)),
        "entitlement_template_invalid_issue_after_reset_with_priority",
        "warning",
        f"{TEMPLATE}.issueAfterReset",
    ),
    *(
        (
            entitled(metered(issue_after_reset=Decimal(1), issue_after_reset_priority=priority)),
            "entitlement_template_invalid_issue_after_reset_priority",
            "critical",
            f"{TEMPLATE}.issueAfterResetPriority",
        )
        for priority in (0, 256)
    ),
    *(
        (
            entitled(metered(usage_period=period)),
            "entitlement_template_negative_usage_period",
            "warning",
            f"{TEMPLATE}.usagePeriod",
        )
        for period in ("-P1M", "P-1M")
    ),
    (
        entitled(metered(usage_period="PT59M59S")),
        "entitlement_template_usage_period_less_then_an_hour",
        "warning",
        f"{TEMPLATE}.usagePeriod",
    ),
    (
        entitled(metered(usage_period="--P1M")),
        "invalid_duration",
        "critical",
        f"{TEMPLATE}.usagePeriod",
    ),
    (
        replace(fee(key="tokens", feature="tokens", cadence=None), entitlement_template=metered()),
        "entitlement_template_usage_period_required",
        "warning",
        f"{TEMPLATE}.usagePeriod",
    ),
    (
        replace(fee(key="sso", feature="sso"), entitlement_template=metered()),
        "entitlement_template_with_feature_and_no_meter",
        "warning",
        "featureKey",
    ),
    (
        entitled(metered(), feature="peak"),
        "entitlement_template_invalid_meter_aggregation",
        "warning",
        TEMPLATE,
    ),
    # Prices and what their feature's meter measures
    (usage_card(UNIT, feature=None), "usage_based_price_with_no_feature", "warning", "featureKey"),
    (
        usage_card(UNIT, feature="sso"),
        "usage_based_price_with_feature_and_no_meter",
        "warning",
        "featureKey",
    ),
    (usage_card(PERCENTAGE, feature="peak"), "percentage_price_requires_sum", "warning", "price"),
    (
        usage_card(replace(GROUPED, group_by=("model", "region"))),
        "price_dimension_unknown",
        "warning",
        "price.groupBy[1]",
    ),
    (
        usage_card(
            replace(
                MATRIX, dimensions=("type",), cells=(MatrixCell(values={"type": "a"}, amount=Decimal(1)),)
            )
        ),
        "price_dimension_unknown",
        "warning",
        "price.dimensions[0]",
    ),
    # Tax
    *(
        (
            replace(fee(), tax_config=TaxConfig(stripe=StripeTaxConfig(code=code))),
            "tax_config_invalid_stripe_code",
            "critical",
            "taxConfig.stripe.code",
        )
        for code in ("txcd_1000000", "txcd_100000000", "TXCD_10000000", "txcd_1000000\u0660", "")
    ),
    (
        replace(fee(), tax_config=TaxConfig(tax_code_id="vat")),
        "tax_config_invalid_tax_code_id",
        "critical",
        "taxConfig.taxCodeId",
    ),
]


@pytest.mark.parametrize(("card", "code", "severity", "member"), BAD, ids=[code for _, code, _, _ in BAD])
def test_a_rule_that_is_broken_is_told_with_its_place_and_how_to_mend_it(
    card: RateCard, code: str, severity: str, member: str
) -> None:
    (issue,) = problems(card)
    assert (issue.code, issue.severity, issue.field) == (code, severity, f"$.c.{member}")
    assert issue.message
    assert issue.hint


def test_what_a_features_meter_can_do_is_said_to_whom_asks_for_more() -> None:
    (unknown,) = problems(usage_card(replace(GROUPED, group_by=("region",))))
    assert "model, provider" in unknown.hint
    (peak,) = problems(usage_card(PERCENTAGE, feature="peak"))
    assert "MAX" in peak.message


def test_without_a_plan_a_card_is_billed_as_often_as_it_likes() -> None:
    weekly: list[RateCard] = [fee(cadence="P1W"), per_unit(cadence="P1M")]
    assert list(check_rate_cards(weekly, "$.rateCards", plan_cadence=None, features=FEATURES)) == []


# -- Advice --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("price", "falls"),
    [
        (volume(tier("10", "10"), tier(None, "8")), [(1, "10 units cost 100, 11 units cost 88")]),
        (
            volume(tier("10", "10"), tier("20", "8"), tier(None, "7")),
            [(1, "10 units cost 100, 11 units cost 88"), (2, "20 units cost 160, 21 units cost 147")],
        ),
        (volume(tier("10", "10", "5"), tier(None, "9")), [(1, "10 units cost 105, 11 units cost 99")]),
        (volume(tier("100", flat="50"), tier(None, "0")), [(1, "100 units cost 50, 101 units cost 0")]),
        # Not a whole unit more, but less of it; and where the next tier is narrower than that.
        (volume(tier("10", "100"), tier(None, "95")), [(1, "10 units cost 1000, 10.1 units cost 959.5")]),
        (
            volume(tier("1", "1"), tier("1.05", "0.5"), tier(None, "2")),
            [(1, "1 units cost 1, 1.01 units cost 0.505")],
        ),
        (
            volume(tier("10", "10"), tier(None, "8"), maximum_amount=Decimal(90)),
            [(1, "10 units cost 90, 11 units cost 88")],
        ),
        (volume(tier("10", "10"), tier(None, "8"), maximum_amount=Decimal(80)), []),
        (volume(tier("10", "10"), tier(None, "8"), minimum_amount=Decimal(500)), []),
        (volume(tier("10", "10"), tier(None, "8", "20")), []),
        (volume(tier("10", "10"), tier(None, "10")), []),
        (volume(tier(None, "10")), []),
        (TieredPrice(type="tiered", mode="graduated", tiers=(tier("10", "10"), tier(None, "1"))), []),
    ],
)
def test_a_total_that_falls_is_shown_by_an_example(price: TieredPrice, falls: list[tuple[int, str]]) -> None:
    issues = problems(usage_card(price))
    assert told(issues) == [("price_total_falls", "info", f"$.c.price.tiers[{i}]") for i, _ in falls]
    for issue, (_, example) in zip(issues, falls, strict=True):
        assert issue.message == f"the total falls as more is used: {example}"
        assert issue.hint


def test_advice_bars_nothing() -> None:
    unaligned = replace(usage_card(volume(tier("10", "10"), tier(None, "8"))), billing_cadence="P1W")
    issues = problems(unaligned)
    assert [issue.code for issue in issues] == ["rate_card_billing_cadence_unaligned", "price_total_falls"]
    assert [issue.code for issue in barring(issues)] == ["rate_card_billing_cadence_unaligned"]


def test_a_price_that_breaks_a_rule_gets_no_advice() -> None:
    broken = usage_card(volume(tier("10", "10"), tier("5", "8"), tier(None, "1")))
    assert [issue.code for issue in problems(broken)] == ["price_tiers_not_ascending"]


amounts = st.integers(0, 30).map(Decimal)


@st.composite
def volumes(draw: st.DrawFn) -> TieredPrice:
    ends = sorted(draw(st.sets(st.integers(1, 40), max_size=4)))
    tiers = [
        PriceTier(
            up_to_amount=None if end is None else Decimal(end),
            unit_price=TierUnitPrice(type="unit", amount=draw(amounts)),
            flat_price=TierFlatPrice(type="flat", amount=draw(amounts)),
        )
        for end in (*ends, None)
    ]
    return volume(*tiers, maximum_amount=draw(st.none() | amounts))


def slow_total(price: TieredPrice, quantity: Decimal) -> Decimal:
    """Written from the words of the model."""
    found = next(t for t in price.tiers if t.up_to_amount is None or quantity <= t.up_to_amount)
    assert found.flat_price
    assert found.unit_price
    total = found.flat_price.amount + found.unit_price.amount * quantity
    return total if price.maximum_amount is None else min(total, price.maximum_amount)


@given(volumes())
def test_advice_is_given_wherever_more_costs_less_and_its_example_is_true(price: TieredPrice) -> None:
    totals = [slow_total(price, Decimal(n) / 10) for n in range(1, 451)]
    issues = problems(usage_card(price))
    assert any(after < before for before, after in pairwise(totals)) <= bool(issues)
    for issue in issues:
        less, cost, more, lower = map(Decimal, re.findall(r"[0-9.]+", issue.message))
        assert (less < more, lower < cost) == (True, True)
        assert (cost, lower) == (slow_total(price, less), slow_total(price, more))


# -- Anything at all -----------------------------------------------------------------------------------------

decimals = st.decimals() | st.builds(lambda n: Decimal(f"1E{n}"), st.integers(-(10**6), 10**6))
templates = st.one_of(
    st.just(BooleanEntitlement(type="boolean")),
    st.builds(StaticEntitlement, type=st.just("static"), config=st.text(max_size=10)),
    st.builds(
        MeteredEntitlement,
        type=st.just("metered"),
        issue_after_reset=st.none() | decimals,
        issue_after_reset_priority=st.none() | st.integers(),
        usage_period=st.none() | st.sampled_from(["P1M", "-P1M", "PT1S", "x"]),
    ),
)
configs = st.builds(
    UnitConfig, operation=st.just("divide"), conversion_factor=decimals, precision=st.integers()
)
discounts = st.builds(
    Discounts,
    percentage=st.none() | st.builds(PercentageDiscount, percentage=decimals),
    usage=st.none() | st.builds(UsageDiscount, quantity=decimals),
)
taxes = st.builds(
    TaxConfig, stripe=st.none() | st.builds(StripeTaxConfig, code=st.text(max_size=14)), tax_code_id=st.text()
)
cards = st.builds(
    UsageBasedRateCard,
    type=st.just("usage_based"),
    key=st.just("tokens"),
    name=st.text(max_size=3),
    feature_key=st.sampled_from([None, *FEATURES]),
    entitlement_template=st.none() | templates,
    billing_cadence=st.sampled_from(["P1M", "P1W", "x"]),
    price=st.none() | st.sampled_from(EVERY_PRICE),
    discounts=st.none() | discounts,
    unit_config=st.none() | configs,
    tax_config=st.none() | taxes,
) | st.builds(
    FlatFeeRateCard,
    type=st.just("flat_fee"),
    key=st.just("tokens"),
    name=st.just("x"),
    feature_key=st.sampled_from([None, *FEATURES]),
    entitlement_template=st.none() | templates,
    price=st.none() | st.just(FLAT),
    discounts=st.none() | discounts,
)


@given(cards)
def test_checking_never_raises_and_every_problem_says_what_and_where_and_how_to_mend_it(
    card: RateCard,
) -> None:
    for issue in problems(card):
        assert issue.code
        assert issue.message
        assert issue.field.startswith("$.c.")
        assert issue.hint
