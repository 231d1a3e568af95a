"""Add-ons and how they fit plans: each rule broken once gives its code, its place and a way out."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from catalog.addon import check_addon
from catalog.discount import Discounts, PercentageDiscount, UsageDiscount
from catalog.plan_addon import (
    AddonTerms,
    Offer,
    PlanTerms,
    check_cards,
    check_offer,
    incompatible_addons,
    refusals,
)
from catalog.price import PackagePrice
from catalog.rate_card import (
    BooleanEntitlement,
    EntitlementTemplate,
    MeteredEntitlement,
    RateCard,
    StaticEntitlement,
)
from catalog.rate_card_rules import FeatureFacts
from metering.errors import Issue
from tests.builders import fee, per_unit, phase

CRITICAL, WARNING = "critical", "warning"
FEATURES = {
    "tokens": FeatureFacts(archived=False, metered=True),
    "sso": FeatureFacts(archived=False, metered=False),
    "old": FeatureFacts(archived=True, metered=True),
}
PACKAGE = PackagePrice(type="package", amount=Decimal(5), quantity_per_package=Decimal(10))


def told(issues: Iterable[Issue]) -> list[tuple[str, str, str]]:
    """And each says what is wrong and how to mend it."""
    found = list(issues)
    assert all(issue.message and issue.hint for issue in found)
    return [(issue.code, issue.severity, issue.field) for issue in found]


def problems(*cards: RateCard, **changed: Any) -> list[tuple[str, str, str]]:
    good: dict[str, Any] = {
        "key": "seats",
        "name": "Seats",
        "instance_type": "single",
        "currency": "USD",
        "rate_cards": cards,
    }
    features: Mapping[str, FeatureFacts] = FEATURES
    return told(check_addon(**(good | changed), features=features))


def test_a_good_addon_has_no_problems() -> None:
    assert problems(fee(), per_unit(), fee(None, key="sso", feature="sso", cadence=None)) == []
    assert problems(fee(), fee(None, key="b"), instance_type="multiple") == []


@pytest.mark.parametrize(
    ("changed", "code", "severity", "field"),
    [
        ({"key": ""}, "addon_key_empty", CRITICAL, "$.key"),
        ({"key": "Seats"}, "invalid_key", CRITICAL, "$.key"),
        ({"key": "s" * 65}, "invalid_key", CRITICAL, "$.key"),
        ({"name": " "}, "addon_name_empty", WARNING, "$.name"),
        ({"instance_type": "many"}, "addon_invalid_instance_type", CRITICAL, "$.instanceType"),
        ({"currency": "XXX"}, "currency_invalid", CRITICAL, "$.currency"),
        ({"rate_cards": ()}, "addon_has_no_rate_cards", WARNING, "$.rateCards"),
        (
            {"rate_cards": (fee(), fee())},
            "rate_card_duplicated_key",
            CRITICAL,
            "$.rateCards[1].key",
        ),
        (
            {"rate_cards": (fee(), per_unit()), "instance_type": "multiple"},
            "addon_invalid_ratecard_price_for_multi_instance",
            WARNING,
            "$.rateCards[1].price",
        ),
        (
            {"rate_cards": (fee("-1"),)},
            "price_amount_negative",
            CRITICAL,
            "$.rateCards[0].price.amount",
        ),
        (
            {"rate_cards": (per_unit(feature="old"),)},
            "rate_card_feature_archived",
            CRITICAL,
            "$.rateCards[0].featureKey",
        ),
        (
            {"rate_cards": (fee(cadence="P1X"),)},
            "billing_cadence_invalid_value",
            CRITICAL,
            "$.rateCards[0].billingCadence",
        ),
    ],
)
def test_each_rule_of_an_addon_broken_once(
    changed: dict[str, Any], code: str, severity: str, field: str
) -> None:
    assert problems(fee(), **changed) == [(code, severity, field)]


def test_every_problem_is_found_at_once() -> None:
    found = problems(fee(), fee(), key="", name="", instance_type="?", currency="?")
    assert [code for code, _, _ in found] == [
        "addon_key_empty",
        "addon_name_empty",
        "addon_invalid_instance_type",
        "currency_invalid",
        "rate_card_duplicated_key",
    ]


@pytest.mark.parametrize("cadence", ["P1M", "P1W", "P1Y", "P7D"])
def test_an_addon_by_itself_is_billed_as_often_as_it_likes(cadence: str) -> None:
    assert problems(fee(cadence=cadence)) == []


# How a card of an add-on is added to the plan's card of the same key.


def entitled(card: RateCard, template: EntitlementTemplate) -> RateCard:
    return replace(card, entitlement_template=template)


def metered(period: str | None = None) -> MeteredEntitlement:
    return MeteredEntitlement(type="metered", issue_after_reset=Decimal(100), usage_period=period)


STATIC = StaticEntitlement(type="static", config="{}")
BOOLEAN = BooleanEntitlement(type="boolean")
TOKENS = fee(key="tokens", feature="tokens")
TENTH_OFF = Discounts(percentage=PercentageDiscount(percentage=Decimal(10)))
FREE_UNITS = Discounts(usage=UsageDiscount(quantity=Decimal(10)))


def mismatches(plan: RateCard, addon: RateCard) -> list[tuple[str, str, str]]:
    return told(check_cards(plan, addon, "$"))


@pytest.mark.parametrize(
    ("plan", "addon"),
    [
        (fee("10"), fee("5")),
        (fee(None), fee("5")),
        (fee("10"), fee(None)),
        (per_unit(), replace(per_unit(), price=None)),
        (per_unit(), replace(per_unit(), price=None, discounts=FREE_UNITS)),
        (fee(cadence="P1Y"), fee(cadence="P12M")),
        (fee(cadence=None), fee(cadence=None)),
        (entitled(TOKENS, BOOLEAN), entitled(TOKENS, BOOLEAN)),
        (TOKENS, entitled(TOKENS, metered())),
        (entitled(TOKENS, metered("P1M")), entitled(TOKENS, metered())),
        (entitled(TOKENS, metered("P12M")), entitled(TOKENS, metered("P1Y"))),
        (entitled(TOKENS, STATIC), TOKENS),
        (replace(fee(), discounts=TENTH_OFF), fee()),
    ],
)
def test_cards_that_are_alike_can_be_added(plan: RateCard, addon: RateCard) -> None:
    assert mismatches(plan, addon) == []


TYPE = "$.entitlementTemplate.type"


@pytest.mark.parametrize(
    ("plan", "addon", "code", "field"),
    [
        (TOKENS, replace(TOKENS, key="more"), "rate_card_key_mismatch", "$.key"),
        (TOKENS, fee(key="tokens"), "rate_card_feature_key_mismatch", "$.featureKey"),
        (fee(key="tokens"), TOKENS, "rate_card_feature_key_mismatch", "$.featureKey"),
        (
            per_unit(),
            replace(per_unit(), price=PACKAGE),
            "rate_card_price_type_mismatch",
            "$.price",
        ),
        (per_unit(), TOKENS, "rate_card_price_type_mismatch", "$.price"),
        (TOKENS, per_unit(), "rate_card_price_type_mismatch", "$.price"),
        (per_unit(), per_unit(), "rate_card_only_flat_price_allowed", "$.price"),
        (
            replace(per_unit(), price=None),
            per_unit(),
            "rate_card_only_flat_price_allowed",
            "$.price",
        ),
        (
            fee(),
            fee(term="in_arrears"),
            "rate_card_price_payment_term_mismatch",
            "$.price.paymentTerm",
        ),
        (
            fee(),
            fee(cadence="P1Y"),
            "rate_card_billing_cadence_mismatch",
            "$.billingCadence",
        ),
        (
            fee(),
            fee(cadence=None),
            "rate_card_billing_cadence_mismatch",
            "$.billingCadence",
        ),
        (
            fee(),
            replace(fee(), discounts=TENTH_OFF),
            "rate_card_percentage_discount_not_allowed",
            "$.discounts.percentage",
        ),
        (
            entitled(TOKENS, BOOLEAN),
            entitled(TOKENS, metered()),
            "rate_card_entitlement_template_type_mismatch",
            TYPE,
        ),
        (
            entitled(TOKENS, BOOLEAN),
            entitled(TOKENS, STATIC),
            "rate_card_entitlement_template_type_mismatch",
            TYPE,
        ),
        (
            entitled(TOKENS, STATIC),
            entitled(TOKENS, STATIC),
            "rate_card_static_entitlement_template_not_allowed",
            TYPE,
        ),
        (
            TOKENS,
            entitled(TOKENS, STATIC),
            "rate_card_static_entitlement_template_not_allowed",
            TYPE,
        ),
        (
            entitled(TOKENS, metered("P1W")),
            entitled(TOKENS, metered()),
            "rate_card_metered_entitlement_template_usage_period_mismatch",
            "$.entitlementTemplate.usagePeriod",
        ),
    ],
)
def test_each_way_in_which_two_cards_can_not_be_added(
    plan: RateCard, addon: RateCard, code: str, field: str
) -> None:
    assert mismatches(plan, addon) == [(code, WARNING, field)]


# How an add-on fits a plan.

PLAN = PlanTerms(
    status="draft",
    currency="USD",
    billing_cadence="P1M",
    phases=(phase(fee("1"), key="trial", duration="P1M"), phase(fee("10"), TOKENS, key="main")),
    feature_ids={"tokens": "feature-1"},
)
ADDON = AddonTerms(
    key="seats",
    status="active",
    instance_type="single",
    currency="USD",
    rate_cards=(fee("5"),),
    feature_ids={},
)
OFFER = Offer(addon=ADDON, from_plan_phase="main")
MULTIPLE = replace(ADDON, instance_type="multiple")


def with_cards(*cards: RateCard, **feature_ids: str) -> Offer:
    return replace(OFFER, addon=replace(ADDON, rate_cards=cards, feature_ids=feature_ids))


MORE_TOKENS = with_cards(TOKENS, tokens="feature-1")


@pytest.mark.parametrize(
    "offer",
    [
        OFFER,
        replace(OFFER, from_plan_phase="trial"),
        replace(OFFER, addon=MULTIPLE, max_quantity=5),
        with_cards(fee(key="support", cadence="P1Y"), fee(key="setup", cadence=None)),
        with_cards(per_unit(feature="images"), images="feature-2"),
        MORE_TOKENS,
    ],
)
def test_an_addon_that_fits_a_plan(offer: Offer) -> None:
    for status in ("draft", "active"):
        plan = replace(PLAN, status=status)
        assert (check_offer(plan, offer), refusals(plan, offer)) == ([], [])
    assert incompatible_addons(PLAN, [offer, offer]) == []


STATUS = "plan_addon_incompatible_status"
CADENCE = "$.addon.rateCards[0].billingCadence"
BROKEN = [
    (replace(OFFER, addon=replace(ADDON, status="draft")), STATUS, WARNING, "$.addon.status"),
    (replace(OFFER, addon=replace(ADDON, status="archived")), STATUS, WARNING, "$.addon.status"),
    (
        replace(OFFER, addon=replace(ADDON, currency="EUR")),
        "plan_addon_currency_mismatch",
        WARNING,
        "$.addon.currency",
    ),
    (
        replace(OFFER, from_plan_phase="unknown"),
        "plan_addon_unknown_plan_phase_key",
        WARNING,
        "$.fromPlanPhase",
    ),
    (
        replace(OFFER, addon=MULTIPLE),
        "plan_addon_max_quantity_must_be_set",
        WARNING,
        "$.maxQuantity",
    ),
    (
        replace(OFFER, max_quantity=1),
        "plan_addon_max_quantity_must_not_be_set",
        WARNING,
        "$.maxQuantity",
    ),
    (
        with_cards(fee(key="b"), fee(term="in_arrears")),
        "rate_card_price_payment_term_mismatch",
        WARNING,
        "$.addon.rateCards[1].price.paymentTerm",
    ),
    (
        with_cards(TOKENS, tokens="feature-2"),
        "rate_card_feature_mismatch",
        CRITICAL,
        "$.addon.rateCards[0].featureKey",
    ),
    (
        with_cards(replace(TOKENS, key="more"), tokens="feature-1"),
        "rate_card_key_mismatch",
        WARNING,
        "$.addon.rateCards[0].key",
    ),
    (with_cards(fee(key="b", cadence="P1W")), "rate_card_billing_cadence_unaligned", WARNING, CADENCE),
    (with_cards(fee(cadence="P1W")), "rate_card_billing_cadence_mismatch", WARNING, CADENCE),
]
LATER = [case for case in BROKEN if not case[1].startswith("plan_addon_") or "quantity" in case[1]]


@pytest.mark.parametrize(("offer", "code", "severity", "field"), BROKEN)
def test_each_rule_of_a_plan_addon_broken_once(offer: Offer, code: str, severity: str, field: str) -> None:
    assert told(check_offer(PLAN, offer)) == [(code, severity, field)]
    assert told(incompatible_addons(PLAN, [OFFER, offer])) == [("plan_has_incompatible_addon", WARNING, "$")]


@pytest.mark.parametrize(("offer", "code", "severity", "field"), BROKEN)
def test_a_plan_that_is_sold_offers_nothing_that_does_not_fit(
    offer: Offer, code: str, severity: str, field: str
) -> None:
    assert told(refusals(replace(PLAN, status="active"), offer)) == [(code, severity, field)]


@pytest.mark.parametrize(("offer", "code", "severity", "field"), BROKEN)
def test_a_draft_may_offer_what_can_still_be_made_to_fit(
    offer: Offer, code: str, severity: str, field: str
) -> None:
    kept = (offer, code, severity, field) in LATER and severity == WARNING
    assert told(refusals(PLAN, offer)) == ([] if kept else [(code, severity, field)])


def test_a_plan_that_is_archived_offers_nothing_new() -> None:
    archived = replace(PLAN, status="archived")
    assert told(refusals(archived, OFFER)) == [(STATUS, CRITICAL, "$.plan.status")]


def test_cards_of_phases_before_the_offer_do_not_matter() -> None:
    plan = replace(PLAN, phases=(phase(fee(cadence="P1Y"), key="trial"), phase(TOKENS, key="main")))
    assert check_offer(plan, OFFER) == []
    found = told(check_offer(plan, replace(OFFER, from_plan_phase="trial")))
    assert found == [("rate_card_billing_cadence_mismatch", WARNING, CADENCE)]


def test_a_feature_of_phases_before_the_offer_does_not_matter() -> None:
    plan = replace(PLAN, phases=(phase(TOKENS, key="trial"), phase(fee(), key="main")))
    offer = with_cards(TOKENS, tokens="feature-2")
    assert check_offer(plan, offer) == []
    assert told(check_offer(plan, replace(offer, from_plan_phase="trial"))) == [
        ("rate_card_feature_mismatch", CRITICAL, "$.addon.rateCards[0].featureKey")
    ]


def test_what_is_wrong_in_two_phases_is_told_once() -> None:
    offer = replace(with_cards(fee(cadence="P1Y")), from_plan_phase="trial")
    assert told(check_offer(PLAN, offer)) == [("rate_card_billing_cadence_mismatch", WARNING, CADENCE)]
