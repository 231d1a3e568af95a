"""The rules of one rate card, the same in a plan and in an add-on; every breach is found at once.

Codes and severities are OpenMeter's: a critical problem is refused at once, a warning stays with the draft
and bars its publication.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from catalog.interval import Interval, InvalidIntervalError, parse_interval
from catalog.price import FlatPrice
from catalog.price_rules import check_price
from catalog.rate_card import RateCard
from metering.errors import Issue

__all__ = [
    "KEY",
    "MAX_KEY_LENGTH",
    "FeatureFacts",
    "check_cadence",
    "check_key",
    "check_keys_differ",
    "check_rate_card",
    "check_rate_cards",
    "critical",
    "interval_of",
    "warning",
]

KEY = re.compile(r"[a-z0-9]+(?:[_-][a-z0-9]+)*")
"""A key: OpenMeter's, and hyphens besides, as in ai-token."""

MAX_KEY_LENGTH = 64
SHORTEST_CADENCE = timedelta(days=1)


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
    yield from _feature_issues(card, where, features)
    yield from check_cadence(card, where, plan_cadence)
    if card.price is not None:
        yield from check_price(card.price, f"{where}.price")


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
    elif usage_priced and not facts.metered:
        message = f"the feature {card.feature_key!r} has no meter to price"
        yield warning("usage_based_price_with_feature_and_no_meter", message, field, "Give it a meterSlug.")


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


def interval_of(text: str) -> Interval | None:
    """None if it is none."""
    try:
        return parse_interval(text)
    except InvalidIntervalError:
        return None


def critical(code: str, message: str, field: str, hint: str) -> Issue:
    return Issue(code=code, message=message, field=field, hint=hint)


def warning(code: str, message: str, field: str, hint: str) -> Issue:
    return Issue(code=code, message=message, field=field, hint=hint, severity="warning")
