"""The rules of one rate card, the same in a plan and in an add-on; every breach is found at once.

Codes and severities are OpenMeter's: a critical problem is refused at once, a warning stays with the draft
and bars its publication. Advice is our own: it bars nothing.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from catalog.discount_rules import check_discounts, check_unit_config
from catalog.entitlement_rules import check_entitlement_template
from catalog.interval import interval_of
from catalog.issues import critical, warning
from catalog.price import FlatPrice, MatrixPrice, PercentagePrice, Price, TieredPrice
from catalog.price_advice import advise_on_price
from catalog.price_rules import check_price
from catalog.rate_card import EntitlementTemplate, MeteredEntitlement, RateCard, UsageBasedRateCard
from catalog.tax import TaxConfig
from metering.errors import Issue
from metering.ids import is_ulid

__all__ = [
    "KEY",
    "MAX_KEY_LENGTH",
    "FeatureFacts",
    "check_cadence",
    "check_key",
    "check_keys_differ",
    "check_name",
    "check_rate_card",
    "check_rate_cards",
    "check_tax",
    "interval_of",
]

KEY = re.compile(r"[a-z0-9]+(?:[_-][a-z0-9]+)*")
"""A key: OpenMeter's, and hyphens besides, as in ai-token."""

MAX_KEY_LENGTH = 64
SHORTEST_CADENCE = timedelta(days=1)
ENTITLED_AGGREGATIONS = ("SUM", "COUNT", "UNIQUE_COUNT", "LATEST")
STRIPE_TAX_CODE = re.compile(r"txcd_[0-9]{8}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureFacts:
    """What a rate card needs to know about the feature it names.

    `dimensions` are the names that the feature's meter groups by, `aggregation` is the meter's; a feature
    without a meter has neither.
    """

    archived: bool = False
    metered: bool = False
    dimensions: frozenset[str] = frozenset()
    aggregation: str | None = None


def check_rate_cards(
    cards: Sequence[RateCard], path: str, *, plan_cadence: str | None, features: Mapping[str, FeatureFacts]
) -> Iterator[Issue]:
    """Each card of a phase or of an add-on, and that they have different keys; `path` is the list's."""
    yield from check_keys_differ([card.key for card in cards], path, "rate_card_duplicated_key")
    for i, card in enumerate(cards):
        yield from check_rate_card(card, f"{path}[{i}]", plan_cadence=plan_cadence, features=features)


def check_rate_card(
    card: RateCard, where: str, *, plan_cadence: str | None, features: Mapping[str, FeatureFacts]
) -> Iterator[Issue]:
    """Everything that is wrong with one card.

    `where` is its path in the request. `features` holds those that exist, by key. Without a `plan_cadence`,
    as in an add-on, the card may be billed as often as it likes.
    """
    yield from check_key(card.key, where)
    yield from check_name(card.name, where)
    yield from _feature_issues(card, where, features)
    yield from check_cadence(card, where, plan_cadence)
    yield from _price_issues(card.price, f"{where}.price")
    if card.discounts is not None:
        yield from check_discounts(card.discounts, card.price, f"{where}.discounts")
    if isinstance(card, UsageBasedRateCard) and card.unit_config is not None:
        yield from check_unit_config(card.unit_config, card.price, f"{where}.unitConfig")
    if card.entitlement_template is not None:
        path = f"{where}.entitlementTemplate"
        yield from check_entitlement_template(
            card.entitlement_template, path, billing_cadence=card.billing_cadence
        )
    if card.tax_config is not None:
        yield from check_tax(card.tax_config, f"{where}.taxConfig")


def _price_issues(price: Price | None, path: str) -> Iterator[Issue]:
    if price is None:
        return
    issues = list(check_price(price, path))
    yield from issues or advise_on_price(price, path)


def _feature_issues(card: RateCard, where: str, features: Mapping[str, FeatureFacts]) -> Iterator[Issue]:
    usage_priced = card.price is not None and not isinstance(card.price, FlatPrice)
    if card.feature_key is None:
        if usage_priced:
            message = "a price on usage needs a feature that is metered"
            yield warning(
                "usage_based_price_with_no_feature", message, f"{where}.featureKey", "Name the feature."
            )
        if card.entitlement_template:
            message = "an entitlement is a right to a feature"
            yield warning("entitlement_template_with_no_feature", message, f"{where}.featureKey", "Name it.")
        return
    field = f"{where}.featureKey"
    if card.key != card.feature_key:
        hint = f"Set key to {card.feature_key!r}."
        message = "a rate card has the key of its feature"
        yield critical("rate_card_key_feature_key_mismatch", message, f"{where}.key", hint)
    facts = features.get(card.feature_key)
    if facts is None:
        message = f"there is no feature {card.feature_key!r}"
        yield critical(
            "rate_card_feature_not_found", message, field, "Create it first: POST /api/v1/features."
        )
    elif facts.archived:
        message = f"the feature {card.feature_key!r} is archived"
        yield critical("rate_card_feature_archived", message, field, "Name an active feature.")
    else:
        yield from _meter_issues(card, where, facts)


def _meter_issues(card: RateCard, where: str, facts: FeatureFacts) -> Iterator[Issue]:
    """Whether the feature's meter measures what the price and the entitlement ask for."""
    field = f"{where}.featureKey"
    metered_right = isinstance(card.entitlement_template, MeteredEntitlement)
    hint = "Name a feature with a meterSlug; a feature's own can't be changed."
    if facts.metered:
        yield from _price_fit_issues(card.price, f"{where}.price", facts)
        yield from _template_fit_issues(card.entitlement_template, f"{where}.entitlementTemplate", facts)
        return
    if not isinstance(card.price, FlatPrice | None):
        message = f"the feature {card.feature_key!r} has no meter to price"
        yield warning("usage_based_price_with_feature_and_no_meter", message, field, hint)
    if metered_right:
        message = f"the feature {card.feature_key!r} has no meter to count what is left"
        yield warning("entitlement_template_with_feature_and_no_meter", message, field, hint)


def _price_fit_issues(price: Price | None, path: str, facts: FeatureFacts) -> Iterator[Issue]:
    match price:
        case MatrixPrice(dimensions=names):
            yield from _dimension_issues(names, f"{path}.dimensions", facts.dimensions)
        case TieredPrice(group_by=names):
            yield from _dimension_issues(names, f"{path}.groupBy", facts.dimensions)
        case PercentagePrice() if facts.aggregation != "SUM":
            message = (
                f"a percentage is of values that are summed up; the feature's meter is {facts.aggregation}"
            )
            yield warning(
                "percentage_price_requires_sum", message, path, "Name a feature whose meter is SUM."
            )


def _dimension_issues(names: Sequence[str], path: str, known: frozenset[str]) -> Iterator[Issue]:
    for i, name in enumerate(names):
        if name not in known:
            message = f"the feature's meter does not tell usage apart by {name!r}"
            hint = f"It does by: {', '.join(sorted(known)) or 'nothing'}. More can be added to its groupBy."
            yield warning("price_dimension_unknown", message, f"{path}[{i}]", hint)


def _template_fit_issues(
    template: EntitlementTemplate | None, path: str, facts: FeatureFacts
) -> Iterator[Issue]:
    if isinstance(template, MeteredEntitlement) and facts.aggregation not in ENTITLED_AGGREGATIONS:
        message = f"what is left can't be told of a meter that is {facts.aggregation}"
        hint = f"Name a feature whose meter is one of {', '.join(ENTITLED_AGGREGATIONS)}."
        yield warning("entitlement_template_invalid_meter_aggregation", message, path, hint)


def check_cadence(card: RateCard, where: str, plan_cadence: str | None) -> Iterator[Issue]:
    if card.billing_cadence is None:
        return
    field, own = f"{where}.billingCadence", interval_of(card.billing_cadence)
    plan = None if plan_cadence is None else interval_of(plan_cadence)
    if own is None or (own.months and own.time) or not (own.months or own.time >= SHORTEST_CADENCE):
        message = f"{card.billing_cadence!r} can't be a billing cadence"
        yield critical("billing_cadence_invalid_value", message, field, "Write P1M, P1Y, P1W or the like.")
    elif plan and not (own.divides(plan) or plan.divides(own)):
        message = f"{card.billing_cadence} and the plan's {plan_cadence} don't fit into each other"
        yield warning("rate_card_billing_cadence_unaligned", message, field, f"Use {plan_cadence}.")


def check_tax(tax: TaxConfig, path: str) -> Iterator[Issue]:
    if tax.stripe is not None and not STRIPE_TAX_CODE.fullmatch(tax.stripe.code):
        message, hint = f"{tax.stripe.code!r} is no tax code of Stripe", "Write txcd_ and eight digits."
        yield critical("tax_config_invalid_stripe_code", message, f"{path}.stripe.code", hint)
    if tax.tax_code_id is not None and not is_ulid(tax.tax_code_id):
        message, hint = f"{tax.tax_code_id!r} is no id", "An id is a ULID, of 26 letters and digits."
        yield critical("tax_config_invalid_tax_code_id", message, f"{path}.taxCodeId", hint)


def check_name(name: str, where: str) -> Iterator[Issue]:
    if not name:
        message = "people read the name, on invoices too: it can't be empty"
        yield critical("resource_name_empty", message, f"{where}.name", "Write one.")


def check_key(key: str, where: str) -> Iterator[Issue]:
    """`where` is the path of what has the key."""
    if not KEY.fullmatch(key) or len(key) > MAX_KEY_LENGTH:
        hint = "Lower-case letters and digits, with single _ or - between them, at most 64 characters."
        yield critical("invalid_key", f"{key!r} is not a usable key", f"{where}.key", hint)


def check_keys_differ(keys: Sequence[str], path: str, code: str) -> Iterator[Issue]:
    seen: set[str] = set()
    for i, key in enumerate(keys):
        if key in seen:
            yield critical(code, f"the key {key!r} is used twice", f"{path}[{i}].key", "Take another key.")
        seen.add(key)
