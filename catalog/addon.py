"""The rules an add-on must keep, as a pure function that finds every problem at once.

Codes and severities are OpenMeter's: a critical problem is refused at once, a warning stays with the draft
and bars its publication. How an add-on fits a plan is in plan_addon.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, get_args

from catalog.issues import critical, warning
from catalog.money import is_currency
from catalog.price import FlatPrice
from catalog.rate_card import RateCard
from catalog.rate_card_rules import FeatureFacts, check_key, check_rate_cards
from metering.errors import Issue

__all__ = ["AddonInstanceType", "check_addon"]

AddonInstanceType = Literal["single", "multiple"]
"""Whether a subscription has it once, or in a quantity."""


def check_addon(
    *,
    key: str,
    name: str,
    instance_type: str,
    currency: str,
    rate_cards: Sequence[RateCard],
    features: Mapping[str, FeatureFacts],
) -> list[Issue]:
    """Every problem of an add-on; `features` holds those that exist among the ones it names, by key."""
    return [
        *_identity_issues(key, name, instance_type),
        *_currency_issues(currency),
        *_card_issues(instance_type, rate_cards),
        *check_rate_cards(rate_cards, "$.rateCards", plan_cadence=None, features=features),
    ]


def _identity_issues(key: str, name: str, instance_type: str) -> Iterator[Issue]:
    if not key:
        yield critical("addon_key_empty", "an add-on needs a key", "$.key", "Take one such as extra_seats.")
    else:
        yield from check_key(key, "$")
    if not name.strip():
        yield warning("addon_name_empty", "an add-on needs a name", "$.name", "Say what it is.")
    if instance_type not in get_args(AddonInstanceType):
        hint = "single can be bought once for a subscription, multiple in any quantity."
        message = f"{instance_type!r} is neither single nor multiple"
        yield critical("addon_invalid_instance_type", message, "$.instanceType", hint)


def _currency_issues(currency: str) -> Iterator[Issue]:
    if not is_currency(currency):
        hint = "Use the ISO 4217 code of a currency in use, such as USD."
        yield critical("currency_invalid", f"{currency!r} is no currency", "$.currency", hint)


def _card_issues(instance_type: str, rate_cards: Sequence[RateCard]) -> Iterator[Issue]:
    if not rate_cards:
        message = "an add-on sells something: it needs a rate card"
        yield warning("addon_has_no_rate_cards", message, "$.rateCards", "Add one.")
    if instance_type != "multiple":
        return
    for i, card in enumerate(rate_cards):
        if not isinstance(card.price, FlatPrice | None):
            message = "usage is not multiplied by how often an add-on is bought"
            hint = "Give the card a flat price or none, or make the add-on single."
            where = f"$.rateCards[{i}].price"
            yield warning("addon_invalid_ratecard_price_for_multi_instance", message, where, hint)
