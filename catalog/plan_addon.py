"""Whether an add-on fits a plan, as pure functions that find every problem at once.

An add-on changes what a plan sells: its card adds to the plan's card of the same key, or stands beside the
others if there is none. Two cards can only be added if they are alike: flat prices of the same term, the same
cadence, the same feature, entitlements of the same type.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from catalog.interval import Interval, interval_of
from catalog.issues import critical, warning
from catalog.price import FlatPrice
from catalog.rate_card import MeteredEntitlement, Phase, RateCard, StaticEntitlement
from catalog.rate_card_rules import check_cadence
from metering.errors import Issue

__all__ = [
    "AddonTerms",
    "Offer",
    "PlanTerms",
    "check_cards",
    "check_offer",
    "incompatible_addons",
    "refusals",
]

MUST_HOLD = frozenset(
    {
        "plan_addon_incompatible_status",
        "plan_addon_currency_mismatch",
        "plan_addon_unknown_plan_phase_key",
    }
)
"""Warnings that only come later, when the plan or the add-on has changed: no plan add-on begins with them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanTerms:
    """What an add-on needs to know about a plan; `feature_ids` are the features its keys mean, by key."""

    status: str
    currency: str
    billing_cadence: str
    phases: Sequence[Phase]
    feature_ids: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class AddonTerms:
    """What a plan needs to know about an add-on."""

    key: str
    status: str
    instance_type: str
    currency: str
    rate_cards: Sequence[RateCard]
    feature_ids: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """An add-on that a plan's subscribers can buy from a phase on, `max_quantity` of it at most."""

    addon: AddonTerms
    from_plan_phase: str
    max_quantity: int | None = None


def incompatible_addons(plan: PlanTerms, offers: Sequence[Offer]) -> list[Issue]:
    """One issue for each offer that bars the plan's publication."""
    found = []
    for offer in offers:
        if issues := check_offer(plan, offer):
            message = f"the add-on {offer.addon.key!r} does not fit the plan: {issues[0].message}"
            hint = f"All of it: GET /api/v1/plans/{{planId}}/addons/{offer.addon.key}, validationErrors."
            found.append(warning("plan_has_incompatible_addon", message, "$", hint))
    return found


def refusals(plan: PlanTerms, offer: Offer) -> list[Issue]:
    """What can't be offered at once: a draft may have what is left until it is published."""
    if plan.status == "archived":
        message = "the plan is archived, and nobody can buy it any more"
        hint = "Name the plan's active version, or its draft."
        return [critical("plan_addon_incompatible_status", message, "$.plan.status", hint)]
    issues = check_offer(plan, offer)
    if plan.status == "draft":
        return [issue for issue in issues if issue.severity == "critical" or issue.code in MUST_HOLD]
    return issues


def check_offer(plan: PlanTerms, offer: Offer) -> list[Issue]:
    """Every problem; paths begin at the plan add-on, whose `addon` is the add-on."""
    return [
        *_reference_issues(plan, offer),
        *_quantity_issues(offer),
        *_card_issues(plan, offer),
    ]


def _reference_issues(plan: PlanTerms, offer: Offer) -> Iterator[Issue]:
    addon = offer.addon
    if addon.status != "active":
        message = f"the add-on {addon.key!r} is {addon.status}, and only an active one can be bought"
        hint = "Publish it, or name its active version."
        yield warning("plan_addon_incompatible_status", message, "$.addon.status", hint)
    if addon.currency != plan.currency:
        message = f"the add-on costs {addon.currency}, and the plan {plan.currency}"
        hint = f"Make an add-on in {plan.currency}."
        yield warning("plan_addon_currency_mismatch", message, "$.addon.currency", hint)
    keys = [phase.key for phase in plan.phases]
    if offer.from_plan_phase not in keys:
        message = f"the plan has no phase {offer.from_plan_phase!r}"
        hint = f"Its phases: {', '.join(keys) or 'none'}."
        yield warning("plan_addon_unknown_plan_phase_key", message, "$.fromPlanPhase", hint)


def _quantity_issues(offer: Offer) -> Iterator[Issue]:
    multiple = offer.addon.instance_type == "multiple"
    if multiple and offer.max_quantity is None:
        message = "an add-on that can be bought in any quantity needs a limit in a plan"
        hint = "Say how many a subscription can have."
        yield warning("plan_addon_max_quantity_must_be_set", message, "$.maxQuantity", hint)
    if not multiple and offer.max_quantity is not None:
        message = "an add-on that is single is bought once"
        yield warning("plan_addon_max_quantity_must_not_be_set", message, "$.maxQuantity", "Leave it out.")


def _card_issues(plan: PlanTerms, offer: Offer) -> Iterator[Issue]:
    """Each card against those of the phases in which it can be bought; what is wrong twice is told once."""
    keys = [phase.key for phase in plan.phases]
    first = keys.index(offer.from_plan_phase) if offer.from_plan_phase in keys else len(keys)
    cards = [card for phase in plan.phases[first:] for card in phase.rate_cards]
    for i, card in enumerate(offer.addon.rate_cards):
        where = f"$.addon.rateCards[{i}]"
        same = [other for other in cards if _are_about_the_same(other, card)]
        found = [issue for other in same for issue in check_cards(other, card, where)]
        found += [] if same else check_cadence(card, where, plan.billing_cadence)
        if same and _is_another_feature(plan, offer.addon, card):
            found.append(_another_feature(card, where))
        yield from dict.fromkeys(found)


def _are_about_the_same(one: RateCard, other: RateCard) -> bool:
    return one.key == other.key or (one.feature_key is not None and one.feature_key == other.feature_key)


def _is_another_feature(plan: PlanTerms, addon: AddonTerms, card: RateCard) -> bool:
    """Whether the card's key, which both know, means two things."""
    key = card.feature_key or ""
    return plan.feature_ids.get(key, own := addon.feature_ids.get(key)) != own


def _another_feature(card: RateCard, where: str) -> Issue:
    message = f"the key {card.feature_key!r} means another feature in the plan than in the add-on"
    hint = "The feature was archived in between: publish a new version of the add-on, or of the plan."
    return critical("rate_card_feature_mismatch", message, f"{where}.featureKey", hint)


def check_cards(plan: RateCard, addon: RateCard, where: str) -> Iterator[Issue]:
    """Whether the add-on's card, which stands at `where`, can be added to the plan's."""
    yield from _same_thing_issues(plan, addon, where)
    yield from _price_issues(plan, addon, f"{where}.price")
    yield from _template_issues(plan, addon, f"{where}.entitlementTemplate")
    if _length(plan.billing_cadence) != _length(addon.billing_cadence):
        message = f"the plan bills {plan.key!r} {_every(plan)}, and the add-on {_every(addon)}"
        hint = f"Set it to {plan.billing_cadence or 'null'}."
        yield warning("rate_card_billing_cadence_mismatch", message, f"{where}.billingCadence", hint)
    if addon.discounts and addon.discounts.percentage:
        message = "a percentage off the add-on's part can't be told from the plan's price"
        hint = "Lower the add-on's price instead."
        path = f"{where}.discounts.percentage"
        yield warning("rate_card_percentage_discount_not_allowed", message, path, hint)


def _same_thing_issues(plan: RateCard, addon: RateCard, where: str) -> Iterator[Issue]:
    if plan.key != addon.key:
        message = f"the plan's card of this feature has the key {plan.key!r}"
        yield warning("rate_card_key_mismatch", message, f"{where}.key", f"Set it to {plan.key!r}.")
    if plan.feature_key != addon.feature_key:
        message = f"the plan's card {plan.key!r} is about {plan.feature_key or 'no feature'}"
        hint = (
            f"Name {plan.feature_key}." if plan.feature_key else "Leave featureKey out, or take another key."
        )
        yield warning("rate_card_feature_key_mismatch", message, f"{where}.featureKey", hint)


def _price_issues(plan: RateCard, addon: RateCard, where: str) -> Iterator[Issue]:
    """An add-on without a price fits any; a flat one fits a plan that has none."""
    if addon.price is None:
        return
    if plan.price is not None and plan.price.type != addon.price.type:
        message = f"the plan's price is {plan.price.type}, and the add-on's {addon.price.type}"
        hint = "Give the add-on's card no price, or another key and feature."
        yield warning("rate_card_price_type_mismatch", message, where, hint)
    elif not isinstance(addon.price, FlatPrice):
        message = "only flat prices can be added to each other"
        hint = "Give the add-on's card a flat price or none."
        yield warning("rate_card_only_flat_price_allowed", message, where, hint)
    elif isinstance(plan.price, FlatPrice) and plan.price.payment_term != addon.price.payment_term:
        term = plan.price.payment_term
        message = (
            f"the plan's price is paid {_words(term)}, and the add-on's {_words(addon.price.payment_term)}"
        )
        yield warning(
            "rate_card_price_payment_term_mismatch", message, f"{where}.paymentTerm", f"Set it to {term}."
        )


def _template_issues(plan: RateCard, addon: RateCard, where: str) -> Iterator[Issue]:
    """An add-on without an entitlement fits any."""
    ours, theirs = addon.entitlement_template, plan.entitlement_template
    if ours is None:
        return
    if theirs is not None and theirs.type != ours.type:
        message = f"the plan's entitlement is {theirs.type}, and the add-on's {ours.type}"
        hint = f"Make it {theirs.type}, or leave it out."
        yield warning("rate_card_entitlement_template_type_mismatch", message, f"{where}.type", hint)
    elif isinstance(ours, StaticEntitlement):
        message = "static entitlements can't be added to each other"
        hint = "Leave it out, or take a feature of its own."
        yield warning("rate_card_static_entitlement_template_not_allowed", message, f"{where}.type", hint)
    elif (
        isinstance(ours, MeteredEntitlement)
        and isinstance(theirs, MeteredEntitlement)
        and _usage_period(addon, ours) != _usage_period(plan, theirs)
    ):
        code = "rate_card_metered_entitlement_template_usage_period_mismatch"
        message = "the plan's entitlement is counted over another usage period"
        hint = f"Set it to {theirs.usage_period or plan.billing_cadence or 'null'}."
        yield warning(code, message, f"{where}.usagePeriod", hint)


def _usage_period(card: RateCard, template: MeteredEntitlement) -> Interval | str | None:
    return _length(template.usage_period or card.billing_cadence)


def _length(duration: str | None) -> Interval | str | None:
    """P12M and P1Y are the same."""
    return duration and (interval_of(duration) or duration)


def _every(card: RateCard) -> str:
    return f"every {card.billing_cadence}" if card.billing_cadence else "once"


def _words(term: str) -> str:
    return term.replace("_", " ")
