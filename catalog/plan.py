"""The rules a plan must keep, as a pure function that finds every problem at once.

Codes and severities are OpenMeter's: a critical problem is refused at once, a warning stays with the draft
and bars its publication.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from catalog.interval import Interval, InvalidIntervalError, parse_interval
from catalog.money import is_currency
from catalog.price import FlatPrice
from catalog.price_rules import check_price
from catalog.rate_card import Phase, RateCard
from metering.errors import Issue

__all__ = ["BILLING_CADENCES", "KEY", "FeatureFacts", "check_plan"]

BILLING_CADENCES = ("P1W", "P2W", "P4W", "P1M", "P3M", "P6M", "P12M", "P1Y")
KEY = re.compile(r"[a-z0-9]+(?:[_-][a-z0-9]+)*")
"""A key: OpenMeter's, and hyphens besides, as in ai-token."""

MAX_KEY_LENGTH = 64
SHORTEST_PHASE = timedelta(hours=1)
SHORTEST_CADENCE = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureFacts:
    """What a plan needs to know about a feature it names."""

    archived: bool
    metered: bool


def check_plan(
    *, currency: str, billing_cadence: str, phases: Sequence[Phase], features: Mapping[str, FeatureFacts]
) -> list[Issue]:
    """Every problem of a plan; `features` holds those that exist among the ones it names, by key."""
    issues = []
    if not is_currency(currency):
        hint = "Use the ISO 4217 code of a currency in use, such as USD."
        issues.append(_critical("currency_invalid", f"{currency!r} is no currency", "$.currency", hint))
    if billing_cadence not in BILLING_CADENCES:
        hint = f"One of {', '.join(BILLING_CADENCES)}."
        message = f"a plan can't be billed every {billing_cadence!r}"
        issues.append(_warning("billing_cadence_invalid_value", message, "$.billingCadence", hint))
    if not phases:
        issues.append(_warning("plan_with_no_phases", "a plan needs a phase", "$.phases", "Add one."))
    issues += _duplicates([phase.key for phase in phases], "$.phases", "plan_phase_duplicated_key")
    for i, phase in enumerate(phases):
        path = f"$.phases[{i}]"
        issues += _key_issues(phase.key, path)
        issues += _duration_issues(phase, path, last=i == len(phases) - 1)
        issues += _phase_issues(phase, path, billing_cadence, features)
    return issues


def _duration_issues(phase: Phase, path: str, *, last: bool) -> Iterator[Issue]:
    where = f"{path}.duration"
    if phase.duration is None:
        if not last:
            hint = "Say how long it lasts, for example P1M."
            message = "only the last phase may go on without end"
            yield _warning("plan_has_non_last_phase_with_no_duration", message, where, hint)
        return
    if last:
        message = "the last phase goes on until the subscription ends"
        yield _warning("plan_has_last_phase_with_duration", message, where, "Set its duration to null.")
    interval = _interval(phase.duration)
    if interval is None:
        message = f"{phase.duration!r} is not an ISO 8601 duration of at most a century"
        yield _critical("invalid_duration", message, where, "Write P1M.")
    elif not interval.months and interval.time < SHORTEST_PHASE:
        yield _warning(
            "plan_phase_duration_less_then_an_hour", "a phase lasts at least an hour", where, "PT1H."
        )


def _phase_issues(
    phase: Phase, path: str, plan_cadence: str, features: Mapping[str, FeatureFacts]
) -> Iterator[Issue]:
    if not phase.rate_cards:
        message = "a phase sells something: it needs a rate card"
        yield _warning("plan_phase_has_no_rate_cards", message, f"{path}.rateCards", "Add one.")
    yield from _duplicates([c.key for c in phase.rate_cards], f"{path}.rateCards", "rate_card_duplicated_key")
    for i, card in enumerate(phase.rate_cards):
        where = f"{path}.rateCards[{i}]"
        yield from _key_issues(card.key, where)
        yield from _feature_issues(card, where, features)
        yield from _cadence_issues(card, where, plan_cadence)
        if card.price is not None:
            yield from check_price(card.price, f"{where}.price")


def _feature_issues(card: RateCard, where: str, features: Mapping[str, FeatureFacts]) -> Iterator[Issue]:
    usage_priced = card.price is not None and not isinstance(card.price, FlatPrice)
    if card.feature_key is None:
        if usage_priced:
            message = "a price on usage needs a feature that is metered"
            yield _warning(
                "usage_based_price_with_no_feature", message, f"{where}.featureKey", "Name the feature."
            )
        if card.entitlement_template:
            message = "an entitlement is a right to a feature"
            yield _warning("entitlement_template_with_no_feature", message, f"{where}.featureKey", "Name it.")
        return
    field = f"{where}.featureKey"
    if card.key != card.feature_key:
        hint = f"Set key to {card.feature_key!r}."
        message = "a rate card has the key of its feature"
        yield _critical("rate_card_key_feature_key_mismatch", message, f"{where}.key", hint)
    facts = features.get(card.feature_key)
    if facts is None:
        message = f"there is no feature {card.feature_key!r}"
        yield _critical(
            "rate_card_feature_not_found", message, field, "Create it first: POST /api/v1/features."
        )
    elif facts.archived:
        message = f"the feature {card.feature_key!r} is archived"
        yield _critical("rate_card_feature_archived", message, field, "Name an active feature.")
    elif usage_priced and not facts.metered:
        message = f"the feature {card.feature_key!r} has no meter to price"
        yield _warning("usage_based_price_with_feature_and_no_meter", message, field, "Give it a meterSlug.")


def _cadence_issues(card: RateCard, where: str, plan_cadence: str) -> Iterator[Issue]:
    if card.billing_cadence is None:
        return
    field, own, plan = f"{where}.billingCadence", _interval(card.billing_cadence), _interval(plan_cadence)
    if own is None or (own.months and own.time) or not (own.months or own.time >= SHORTEST_CADENCE):
        message = f"{card.billing_cadence!r} can't be a billing cadence"
        yield _critical("billing_cadence_invalid_value", message, field, "Write P1M, P1Y, P1W or the like.")
    elif plan and not (own.divides(plan) or plan.divides(own)):
        message = f"{card.billing_cadence} and the plan's {plan_cadence} don't fit into each other"
        yield _warning("rate_card_billing_cadence_unaligned", message, field, f"Use {plan_cadence}.")


def _key_issues(key: str, path: str) -> Iterator[Issue]:
    if not KEY.fullmatch(key) or len(key) > MAX_KEY_LENGTH:
        hint = "Lower-case letters and digits, with single _ or - between them, at most 64 characters."
        yield _critical("invalid_key", f"{key!r} is not a usable key", f"{path}.key", hint)


def _duplicates(keys: Sequence[str], path: str, code: str) -> Iterator[Issue]:
    seen: set[str] = set()
    for i, key in enumerate(keys):
        if key in seen:
            yield _critical(code, f"the key {key!r} is used twice", f"{path}[{i}].key", "Take another key.")
        seen.add(key)


def _interval(text: str) -> Interval | None:
    try:
        return parse_interval(text)
    except InvalidIntervalError:
        return None


def _critical(code: str, message: str, field: str, hint: str) -> Issue:
    return Issue(code=code, message=message, field=field, hint=hint)


def _warning(code: str, message: str, field: str, hint: str) -> Issue:
    return Issue(code=code, message=message, field=field, hint=hint, severity="warning")
