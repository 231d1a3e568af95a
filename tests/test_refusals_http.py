"""Bad requests to whatever changes the catalog, contracts or billing: the code, the place, nothing written.

`<name>` in a request stands for what the module's world has of that name. Many requests begin well and go
wrong late, so that a part of them could have been written. All rows of all tables are the same as before.
"""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import httpx
import psycopg
import pytest

from metering.database import Base
from tests.server import assert_problem

SANDBOX = "00000000000000000000000003"
DEFAULT = "00000000000000000000000004"
UNKNOWN = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
WISH = "openmeter.io/sandbox/target-payment-status"


Group = dict[str, list[tuple[Any, ...]]]
"""Of each request the bodies that are bad, with the status and, unless that says it all, code and place."""


class Refusal(NamedTuple):
    request: str
    body: object
    status: int
    code: str | None = None
    field: str = "$"


# -- What there is -------------------------------------------------------------------------------------------


def fee(amount: str = "10", card_key: str = "seat", **more: Any) -> dict[str, Any]:
    price = {"type": "flat", "amount": amount, "paymentTerm": "in_advance"}
    card = {"type": "flat_fee", "key": card_key, "name": card_key, "billingCadence": "P1M", "price": price}
    return {**card, **more}


def phases(*cards: object) -> list[dict[str, Any]]:
    return [{"key": "main", "name": "Main", "duration": None, "rateCards": list(cards or [fee()])}]


def plan(key: str, *cards: object, **more: Any) -> dict[str, Any]:
    usual = {"key": key, "name": key, "currency": "USD", "billingCadence": "P1M", "phases": phases(*cards)}
    return {**usual, **more}


def terms(*cards: object, **more: Any) -> dict[str, Any]:
    """Of one's own, for one customer."""
    return {"name": "Ours", "currency": "USD", "billingCadence": "P1M", "phases": phases(*cards), **more}


def profile(app_id: str = SANDBOX, **more: Any) -> dict[str, Any]:
    usual = {"name": "P", "supplier": {"name": "ACME"}, "default": False, "workflow": {}}
    return {**usual, "apps": dict.fromkeys(("tax", "invoicing", "payment"), app_id), **more}


def replaced(**more: Any) -> dict[str, Any]:
    """A profile as it is sent to replace one."""
    return {name: value for name, value in profile(**more).items() if name != "apps"}


def addon(key: str, *cards: object, **more: Any) -> dict[str, Any]:
    usual = {"key": key, "name": key, "currency": "USD", "instanceType": "multiple"}
    return {**usual, "rateCards": list(cards or [fee("4")]), **more}


class Builder:
    """Makes the world, and remembers what it is called."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        self.names = {"unknown": UNKNOWN, "sandbox": SANDBOX, "default": DEFAULT}

    def ask(self, method: str, path: str, body: object = None) -> Any:
        answer = self.client.request(method, f"/api/v1/{path}", json=body)
        assert answer.is_success, f"{path}: {answer.text}"
        return answer.json() if answer.content else None

    def make(self, name: str, path: str, body: object) -> Any:
        made = self.ask("POST", path, body)
        self.names[name] = made["id"]
        return made

    def customer(self, name: str, **more: object) -> str:
        owned = {"usageAttribution": {"subjectKeys": [f"{name}-app"]}}
        return str(self.make(name, "customers", {"name": name, "key": f"{name}-key", **owned, **more})["id"])

    def subscription(self, name: str, customer: str, plan_key: str, **more: object) -> Any:
        body = {"plan": {"key": plan_key}, "customerId": self.customer(customer), **more}
        return self.make(name, "subscriptions", body)

    def invoice(self, name: str, *, pinned: str | None = None, **more: object) -> None:
        """The first of a customer who is called after it, and the line that it has."""
        customer = self.customer(f"{name}_payer", **more)
        if pinned is not None:
            self.ask("PUT", f"billing/customers/{customer}", {"billingProfileId": self.names[pinned]})
        self.ask("POST", "subscriptions", {"plan": {"key": "sold"}, "customerId": customer})
        (made,) = self.ask("POST", "billing/invoices/invoice", {"customerId": customer})
        self.names[name], self.names[f"{name}_line"] = made["id"], made["lines"][0]["id"]
        self.names[f"{name}_number"] = made["number"]


def build_catalog(world: Builder) -> None:
    world.make("feature", "features", {"key": "tokens", "name": "Tokens", "meterSlug": "llm_tokens_total"})
    world.make("unmetered", "features", {"key": "support", "name": "Support"})
    for key in ("archived", "active"):
        world.make(key, "plans", plan("sold"))
        world.ask("POST", f"plans/{world.names[key]}/publish")
    world.make("draft", "plans", plan("drafted"))
    world.make("euro", "plans", plan("euro", currency="EUR"))
    world.ask("POST", f"plans/{world.names['euro']}/publish")
    world.make("unfit", "plans", plan("unfit", fee("10", billingCadence="P1W")))
    world.make("addon_draft", "addons", addon("addon_draft"))
    world.make("addon_empty", "addons", addon("addon_empty", rateCards=[]))
    for key in ("addon_archived", "addon_active", "addon_other"):
        world.make(key, "addons", addon(key))
        world.ask("POST", f"addons/{world.names[key]}/publish")
    world.ask("POST", f"addons/{world.names['addon_archived']}/archive")
    offer = {"addonId": world.names["addon_active"], "fromPlanPhase": "main", "maxQuantity": 3}
    for name in ("active", "draft"):
        world.ask("POST", f"plans/{world.names[name]}/addons", offer)


def build_contracts(world: Builder) -> None:
    world.customer("free")
    made = world.subscription("running", "payer", "sold")
    started = datetime.fromisoformat(made["activeFrom"])
    for name, days in (("yesterday", -1), ("tomorrow", 1), ("later", 40)):
        world.names[name] = (started + timedelta(days=days)).isoformat()
    world.subscription("ended", "left", "sold")
    world.ask("POST", f"subscriptions/{world.names['ended']}/cancel", {})
    world.subscription("scheduled", "waiting", "sold", timing=world.names["tomorrow"])
    world.subscription("with_addon", "buyer", "sold")
    world.make(
        "bought",
        f"subscriptions/{world.names['with_addon']}/addons",
        {"name": "x", "quantity": 1, "timing": "immediate", "addon": {"id": world.names["addon_active"]}},
    )
    owner = world.customer("own")
    world.make("own_terms", "subscriptions", {"customPlan": terms(), "customerId": owner})
    world.subscription("leaving", "leaver", "sold")
    world.ask("POST", f"subscriptions/{world.names['leaving']}/cancel", {"timing": "next_billing_cycle"})
    world.subscription("followed", "follower", "sold")
    change = {"plan": {"key": "sold"}, "timing": "next_billing_cycle"}
    changed = world.ask("POST", f"subscriptions/{world.names['followed']}/change", change)
    world.names["following"] = changed["next"]["id"]
    world.customer("gone")
    world.ask("DELETE", f"customers/{world.names['gone']}")


def build_invoices(world: Builder) -> None:
    installed = world.ask("POST", "marketplace/listings/custom_invoicing/install", {"name": "Ours"})
    world.names["app"] = installed["app"]["id"]
    hooks = {"enableDraftSyncHook": True, "enableIssuingSyncHook": True}
    world.ask("PUT", f"apps/{world.names['app']}", {"type": "custom_invoicing", "name": "Ours", **hooks})
    by_hand: dict[str, Any] = {"workflow": {"invoicing": {"autoAdvance": False}}}
    world.make("by_hand", "billing/profiles", profile(**by_hand))
    world.make("custom", "billing/profiles", profile(world.names["app"]))
    world.make("spare", "billing/profiles", profile())
    world.make("deleted_profile", "billing/profiles", profile())
    world.ask("DELETE", f"billing/profiles/{world.names['deleted_profile']}")
    owing = world.customer("owing")
    world.ask("POST", f"billing/customers/{owing}/invoices/pending-lines", WRITTEN)
    world.invoice("paid")
    world.invoice("unpaid", metadata={WISH: "failed"})
    world.invoice("open_draft", pinned="by_hand")
    world.invoice("syncing", pinned="custom")
    world.invoice("numbered", pinned="custom")
    told = {"invoicing": {"invoiceNumber": "EXT-0"}}
    world.ask("POST", f"apps/custom-invoicing/{world.names['numbered']}/draft/synchronized", told)
    question = f"statuses=gathering&expand=lines&customers={world.names['payer']}"
    (gathering,) = world.ask("GET", f"billing/invoices?{question}")["items"]
    world.names["gathering"], world.names["gathering_line"] = gathering["id"], gathering["lines"][0]["id"]
    world.make(
        "rate",
        "billing/tax-rates",
        {"name": "VAT", "country": "FR", "percent": 20, "validFrom": "2020-01-01T00:00:00Z"},
    )


@pytest.fixture(scope="module")
def names(client: httpx.Client) -> Mapping[str, str]:
    world = Builder(client)
    build_catalog(world)
    build_contracts(world)
    build_invoices(world)
    return world.names


# -- The catalog ---------------------------------------------------------------------------------------------

GOOD_FEATURE = {"key": "new", "name": "New", "meterSlug": "llm_tokens_total"}
UNSAID = {"type": "flat_fee", "key": "x", "billingCadence": "P1M", "price": None}
NEGATIVE = fee("-1", "second")
CARDS = "$.phases[0].rateCards"

FEATURES: Group = {
    "POST features": [
        ({**GOOD_FEATURE, "key": "tokens"}, 409, "feature_exists", "$.key"),
        ({**GOOD_FEATURE, "key": UNKNOWN.lower()}, 400, "invalid_key", "$.key"),
        ({**GOOD_FEATURE, "meterSlug": "none"}, 400, "meter_not_found", "$.meterSlug"),
        ({**GOOD_FEATURE, "color": "red"}, 400, "unknown_field", "$.color"),
        ({"key": "new"}, 400, "field_required", "$.name"),
        (
            {**GOOD_FEATURE, "unitCost": {"type": "manual", "amount": "-1"}},
            400,
            "cost_negative",
            "$.unitCost.amount",
        ),
        (
            {**GOOD_FEATURE, "meterGroupByFilters": {"color": "red"}},
            400,
            "unknown_group_by",
            "$.meterGroupByFilters.color",
        ),
        ({**GOOD_FEATURE, "unitCost": {"type": "manual"}}, 400, "field_required", "$.unitCost.amount"),
        ({**GOOD_FEATURE, "unitCost": {"type": "guess"}}, 400, "literal_error", "$.unitCost.type"),
    ],
    "PATCH features/<feature>": [
        ({"unitCost": {"type": "manual", "amount": "-1"}}, 400, "cost_negative", "$.unitCost.amount"),
    ],
    "PATCH features/<unknown>": [
        ({"unitCost": None}, 404),
    ],
    "DELETE features/<unknown>": [
        (None, 404),
    ],
}

PLANS: Group = {
    "POST plans": [
        (plan("drafted"), 409, "plan_draft_exists", "$.key"),
        (plan("Not A Key"), 400, "string_pattern_mismatch", "$.key"),
        (plan("new", currency="XXY"), 400, "currency_invalid", "$.currency"),
        (plan("new", fee(), UNSAID), 400, "field_required", f"{CARDS}[1].name"),
        (plan("new", fee(), NEGATIVE), 400, "price_amount_negative", f"{CARDS}[1].price.amount"),
        (plan("new", fee(), fee()), 400, "rate_card_duplicated_key", f"{CARDS}[1].key"),
        (plan("new", phases=[]), 400, "too_short", "$.phases"),
        (plan("new", discount="10"), 400, "unknown_field", "$.discount"),
    ],
    "PUT plans/<draft>": [
        (
            {"name": "New", "billingCadence": "P1M", "phases": phases(fee(), NEGATIVE)},
            400,
            "price_amount_negative",
            f"{CARDS}[1].price.amount",
        ),
        ({"name": "New", "phases": phases()}, 400, "field_required", "$.billingCadence"),
    ],
    "PUT plans/<active>": [
        (
            {"name": "New", "billingCadence": "P1M", "phases": phases()},
            403,
            "plan_invalid_status",
            "$.status",
        ),
    ],
    "PUT plans/<unknown>": [
        ({"name": "New", "billingCadence": "P1M", "phases": phases()}, 404),
    ],
    "POST plans/<unfit>/publish": [
        (None, 400, "rate_card_billing_cadence_unaligned", f"{CARDS}[0].billingCadence"),
    ],
    "POST plans/<active>/publish": [
        (None, 403, "plan_invalid_status", "$.status"),
    ],
    "POST plans/<unknown>/publish": [
        (None, 404),
    ],
    "POST plans/<draft>/archive": [
        (None, 403, "plan_invalid_status", "$.status"),
    ],
    "POST plans/drafted/next": [
        (None, 409, "plan_draft_exists", "$.key"),
    ],
    "POST plans/none/next": [
        (None, 404),
    ],
    "DELETE plans/<active>": [
        (None, 403, "plan_invalid_status", "$.status"),
    ],
    "DELETE plans/<unknown>": [
        (None, 404),
    ],
}

OFFER = {"addonId": "<addon_other>", "fromPlanPhase": "main", "maxQuantity": 2}

ADDONS: Group = {
    "POST addons": [
        (addon("addon_draft"), 409, "addon_draft_exists", "$.key"),
        (addon("new", instanceType="many"), 400, "addon_invalid_instance_type", "$.instanceType"),
        (addon("new", currency="XXY"), 400, "currency_invalid", "$.currency"),
        (addon("new", fee(), NEGATIVE), 400, "price_amount_negative", "$.rateCards[1].price.amount"),
        (addon("new", color="red"), 400, "unknown_field", "$.color"),
    ],
    "PUT addons/<addon_draft>": [
        (
            {"name": "New", "instanceType": "single", "rateCards": [fee(), NEGATIVE]},
            400,
            "price_amount_negative",
            "$.rateCards[1].price.amount",
        ),
        ({"name": "New"}, 400, "field_required", "$.instanceType"),
    ],
    "PUT addons/<addon_active>": [
        (
            {"name": "New", "instanceType": "single", "rateCards": [fee()]},
            400,
            "addon_invalid_status",
            "$.status",
        ),
    ],
    "POST addons/<addon_empty>/publish": [
        (None, 400, "addon_has_no_rate_cards", "$.rateCards"),
    ],
    "POST addons/<addon_active>/publish": [
        (None, 400, "addon_invalid_status_for_publish", "$.status"),
    ],
    "POST addons/<addon_draft>/archive": [
        (None, 400, "addon_invalid_status", "$.status"),
    ],
    "DELETE addons/<addon_active>": [
        (None, 400, "addon_invalid_status", "$.status"),
    ],
    "DELETE addons/<unknown>": [
        (None, 404),
    ],
    "POST plans/<draft>/addons": [
        ({**OFFER, "addonId": "<addon_active>"}, 409, "plan_addon_exists", "$.addonId"),
        ({**OFFER, "addonId": "<unknown>"}, 404),
        ({**OFFER, "maxQuantity": -1}, 400, "greater_than_equal", "$.maxQuantity"),
        ({"addonId": "<addon_other>"}, 400, "field_required", "$.fromPlanPhase"),
    ],
    "POST plans/<active>/addons": [
        ({**OFFER, "fromPlanPhase": "x"}, 400, "plan_addon_unknown_plan_phase_key", "$.fromPlanPhase"),
    ],
    "POST plans/<unknown>/addons": [
        (OFFER, 404),
    ],
    "PUT plans/<active>/addons/<addon_active>": [
        (
            {"fromPlanPhase": "x", "maxQuantity": 2},
            400,
            "plan_addon_unknown_plan_phase_key",
            "$.fromPlanPhase",
        ),
    ],
    "PUT plans/<draft>/addons/<addon_active>": [
        ({"maxQuantity": 2}, 400, "field_required", "$.fromPlanPhase"),
    ],
    "PUT plans/<draft>/addons/<addon_other>": [
        ({"fromPlanPhase": "main"}, 404),
    ],
    "DELETE plans/<draft>/addons/<addon_other>": [
        (None, 404),
    ],
}

# -- Contracts -----------------------------------------------------------------------------------------------

SUBJECTS = "$.usageAttribution.subjectKeys"
TAKEN = {"usageAttribution": {"subjectKeys": ["new", "payer-app"]}}

CUSTOMERS: Group = {
    "POST customers": [
        ({"name": "N", "key": "payer-key"}, 409, "subject_taken", "$.key"),
        ({"name": "N", **TAKEN}, 409, "subject_taken", f"{SUBJECTS}[1]"),
        ({"name": "N", "key": "<unknown>"}, 400, "invalid_key", "$.key"),
        ({"name": "N", "currency": "XXY"}, 400, "currency_invalid", "$.currency"),
        ({"key": "new"}, 400, "field_required", "$.name"),
        ({"name": "N", "email": "a@b.example"}, 400, "unknown_field", "$.email"),
        (
            {"name": "N", "billingAddress": {"country": "Germany"}},
            400,
            "invalid_country",
            "$.billingAddress.country",
        ),
    ],
    "PUT customers/<free>": [
        ({"name": "N", "key": "new", **TAKEN}, 409, "subject_taken", f"{SUBJECTS}[1]"),
    ],
    "PUT customers/<payer>": [
        ({"name": "N", "key": "payer-key"}, 400, "subject_in_use", SUBJECTS),
    ],
    "PUT customers/<owing>": [
        ({"name": "owing", "currency": "EUR"}, 400, "currency_mismatch", "$.currency"),
    ],
    "PUT customers/<gone>": [
        ({"name": "N"}, 409, "customer_deleted"),
    ],
    "PUT customers/<unknown>": [
        ({"name": "N"}, 404),
    ],
    "DELETE customers/<payer>": [
        (None, 400, "customer_in_use"),
    ],
    "DELETE customers/<owing>": [
        (None, 400, "customer_in_use"),
    ],
    "DELETE customers/<unpaid_payer>": [
        (None, 400, "customer_in_use"),
    ],
    "DELETE customers/<unknown>": [
        (None, 404),
    ],
}

SOLD = {"plan": {"key": "sold"}, "customerId": "<free>"}
BAD_TERMS = terms(fee(), NEGATIVE)
BAD_CARD = "$.customPlan.phases[0].rateCards[1].price.amount"
ADD = {"op": "add_item", "phaseKey": "main", "rateCard": fee("3", "support")}
REMOVE = {"op": "remove_item", "phaseKey": "main", "itemKey": "nothing"}
BUY = {"name": "x", "quantity": 1, "timing": "immediate", "addon": {"id": "<addon_active>"}}

SUBSCRIPTIONS: Group = {
    "POST subscriptions": [
        ({**SOLD, "customerId": "<unknown>"}, 404),
        ({**SOLD, "plan": {"key": "drafted"}}, 400, "plan_invalid_status", "$.plan"),
        ({**SOLD, "startingPhase": "x"}, 400, "unknown_phase", "$.startingPhase"),
        ({**SOLD, "timing": "1999-01-01T00:00:00Z"}, 400, "too_long_ago", "$.timing"),
        ({"customPlan": BAD_TERMS, "customerId": "<free>"}, 400, "price_amount_negative", BAD_CARD),
        (
            {"customPlan": terms(currency="XXY"), "customerId": "<free>"},
            400,
            "currency_invalid",
            "$.customPlan.currency",
        ),
        ({**SOLD, "price": "1"}, 400, "unknown_field", "$.price"),
        (
            {**SOLD, "customerId": "<payer>"},
            409,
            "only_single_subscription_allowed_per_customer_at_a_time",
            "$.customerId",
        ),
    ],
    "PATCH subscriptions/<running>": [
        ({"customizations": [ADD, REMOVE]}, 400, "unknown_item", "$.customizations[1].itemKey"),
        ({"customizations": [ADD, {"op": "explode"}]}, 400, "literal_error", "$.customizations[1].op"),
        ({"customizations": [ADD], "timing": "<yesterday>"}, 400, "timing_in_the_past", "$.timing"),
    ],
    "PATCH subscriptions/<with_addon>": [
        ({"customizations": [ADD]}, 403, "subscription_has_addons"),
    ],
    "PATCH subscriptions/<ended>": [
        ({"customizations": [ADD]}, 403, "subscription_action_not_allowed"),
    ],
    "DELETE subscriptions/<running>": [
        (None, 403, "subscription_action_not_allowed"),
    ],
    "DELETE subscriptions/<unknown>": [
        (None, 404),
    ],
    "POST subscriptions/<running>/cancel": [
        ({"timing": "<yesterday>"}, 400, "timing_before_start", "$.timing"),
        ({"when": "now"}, 400, "unknown_field", "$.when"),
    ],
    "POST subscriptions/<ended>/cancel": [
        ({}, 403, "subscription_action_not_allowed"),
    ],
    "POST subscriptions/<running>/unschedule-cancelation": [
        (None, 403, "subscription_action_not_allowed"),
    ],
    "POST subscriptions/<followed>/cancel": [({}, 403, "subscription_action_not_allowed")],
    "POST subscriptions/<followed>/unschedule-cancelation": [
        (None, 409, "only_single_subscription_allowed_per_customer_at_a_time", "$.subscriptionId"),
    ],
    "POST subscriptions/<followed>/change": [
        (
            {"timing": "immediate", "plan": {"key": "sold"}},
            409,
            "only_single_subscription_allowed_per_customer_at_a_time",
            "$.customerId",
        ),
    ],
    "POST subscriptions/<following>/change": [
        ({"timing": "immediate", "plan": {"key": "sold"}}, 403, "subscription_action_not_allowed"),
    ],
    "POST subscriptions/<running>/change": [
        ({"timing": "immediate", "plan": {"key": "euro"}}, 400, "currency_mismatch", "$.plan"),
        ({"timing": "someday", "plan": {"key": "sold"}}, 400, None, "$.timing"),
        ({"timing": "immediate", "plan": {"key": "drafted"}}, 400, "plan_invalid_status", "$.plan"),
        ({"timing": "immediate", "plan": {"key": "none"}}, 404),
        ({"timing": "immediate", "customPlan": BAD_TERMS}, 400, "price_amount_negative", BAD_CARD),
        (
            {"timing": "immediate", "plan": {"key": "sold"}, "startingPhase": "x"},
            400,
            "unknown_phase",
            "$.startingPhase",
        ),
        ({"plan": {"key": "sold"}}, 400, "field_required", "$.timing"),
    ],
    "POST subscriptions/<running>/migrate": [
        ({}, 400, "plan_version_not_newer", "$.targetVersion"),
        ({"targetVersion": 9}, 404),
    ],
    "POST subscriptions/<own_terms>/migrate": [
        ({}, 400, "custom_subscription"),
    ],
    "POST subscriptions/<ended>/restore": [
        (None, 403, "subscription_action_not_allowed"),
    ],
    "POST subscriptions/<unknown>/restore": [
        (None, 404),
    ],
    "POST subscriptions/<running>/addons": [
        ({**BUY, "quantity": 4}, 400, "addon_quantity_too_high", "$.quantity"),
        ({**BUY, "addon": {"id": "<addon_other>"}}, 400, "addon_not_offered", "$.addon.id"),
    ],
    "POST subscriptions/<own_terms>/addons": [
        (BUY, 403, "custom_subscription"),
    ],
    "POST subscriptions/<with_addon>/addons": [
        (BUY, 409, "addon_already_attached", "$.addon.id"),
    ],
    "POST subscriptions/<unknown>/addons": [
        (BUY, 404),
    ],
    "PATCH subscriptions/<with_addon>/addons/<bought>": [
        ({"name": "New", "quantity": 4, "timing": "immediate"}, 400, "addon_quantity_too_high", "$.quantity"),
        ({"name": "New", "quantity": 2, "timing": "<yesterday>"}, 400, "timing_in_the_past", "$.timing"),
    ],
    "PATCH subscriptions/<with_addon>/addons/<unknown>": [
        ({"quantity": 2, "timing": "immediate"}, 404),
    ],
}

# -- Profiles and apps ---------------------------------------------------------------------------------------

SOON: dict[str, Any] = {"workflow": {"invoicing": {"draftPeriod": "soon"}}}
DRAFT_PERIOD = "$.workflow.invoicing.draftPeriod"

PROFILES: Group = {
    "POST billing/profiles": [
        (profile(**SOON, default=True), 400, "invalid_duration", DRAFT_PERIOD),
        (profile("<unknown>", default=True), 400, "app_not_found", "$.apps.invoicing"),
        (profile(supplier={}, default=True), 400, "field_required", "$.supplier.name"),
        (
            profile(workflow={"invoicing": {"subscriptionEndProrationMode": "bill_full_period"}}),
            400,
            "proration_mode_not_supported",
            "$.workflow.invoicing.subscriptionEndProrationMode",
        ),
        (profile(color="red"), 400, "unknown_field", "$.color"),
        (
            {**profile(), "apps": {"tax": SANDBOX, "invoicing": "<app>", "payment": SANDBOX}},
            400,
            "profile_apps_differ",
            "$.apps",
        ),
    ],
    "PUT billing/profiles/<spare>": [
        (replaced(**SOON, name="New", default=True), 400, "invalid_duration", DRAFT_PERIOD),
        ({"name": "New"}, 400, "field_required", "$.supplier"),
    ],
    "PUT billing/profiles/<default>": [
        (replaced(name="New"), 400, "default_profile_cannot_be_unset", "$.default"),
    ],
    "PUT billing/profiles/<unknown>": [
        (replaced(), 404),
    ],
    "DELETE billing/profiles/<default>": [
        (None, 400, "default_profile_cannot_be_deleted"),
    ],
    "DELETE billing/profiles/<by_hand>": [
        (None, 400, "profile_referenced"),
    ],
    "DELETE billing/profiles/<deleted_profile>": [
        (None, 400, "profile_already_deleted"),
    ],
    "PUT billing/customers/<free>": [
        ({"billingProfileId": "<unknown>"}, 400, "profile_not_found", "$.billingProfileId"),
        ({"billingProfileId": "<deleted_profile>"}, 400, None, "$.billingProfileId"),
        ({"profile": "<spare>"}, 400, "unknown_field", "$.profile"),
    ],
    "PUT billing/customers/<unknown>": [
        ({"billingProfileId": "<spare>"}, 404),
    ],
    "DELETE billing/customers/<free>": [
        (None, 404, "customer_override_not_found"),
    ],
}

OURS = {"type": "custom_invoicing", "id": "<app>", "metadata": {"a": "b"}}

APPS: Group = {
    "POST marketplace/listings/none/install": [
        ({}, 404),
    ],
    "POST marketplace/listings/sandbox/install": [
        ({}, 409, "app_already_installed"),
    ],
    "POST marketplace/listings/custom_invoicing/install": [
        ({"colour": "red"}, 400, "unknown_field", "$.colour"),
    ],
    "POST marketplace/listings/sandbox/install/apikey": [
        ({"apiKey": "secret"}, 400, "install_method_not_supported"),
    ],
    "PUT apps/<app>": [
        ({"type": "sandbox", "name": "New"}, 400, "app_type_mismatch", "$.type"),
        ({"type": "custom_invoicing", "name": "New"}, 400, "field_required", "$.enableDraftSyncHook"),
    ],
    "PUT apps/<unknown>": [
        ({"type": "sandbox", "name": "New"}, 404),
    ],
    "DELETE apps/<app>": [
        (None, 409, "app_in_use"),
    ],
    "DELETE apps/<unknown>": [
        (None, 404),
    ],
    "PUT customers/<free>/apps": [
        ([OURS, {**OURS, "id": "<unknown>"}], 400, "app_not_found", "$[1].id"),
        ([OURS, {"type": "sandbox", "id": "<app>"}], 400, "app_type_mismatch", "$[1].type"),
        ([OURS, {"type": "bank"}], 400, "literal_error", "$[1].type"),
        ([OURS, {"type": "sandbox", "iban": "x"}], 400, "unknown_field", "$[1].iban"),
    ],
    "PUT customers/<unknown>/apps": [
        ([OURS], 404),
    ],
    "DELETE customers/<free>/apps/<app>": [
        (None, 404),
    ],
}

# -- Invoices ------------------------------------------------------------------------------------------------

MONTH = {"from": "2026-01-01T00:00:00Z", "to": "2026-02-01T00:00:00Z"}
FLAT = {"type": "flat", "amount": "5", "paymentTerm": "in_arrears"}
LINE = {"name": "Setup", "period": MONTH, "invoiceAt": "2026-02-01T00:00:00Z", "rateCard": {"price": FLAT}}
FREE = {**LINE, "rateCard": {"price": None}}
UNIT = {"type": "unit", "amount": "1"}
BY_UNIT = {**LINE, "rateCard": {"price": UNIT, "featureKey": "support"}}
WRITTEN = {"currency": "USD", "lines": [LINE]}
PENDING = "POST billing/customers/<free>/invoices/pending-lines"
SIMULATE = "POST billing/customers/<free>/invoices/simulate"
VOID = {"action": {"percentage": 100, "action": {"type": "discard"}}, "reason": "wrong"}
WHOLE = {"percentage": 100, "action": {"type": "pending"}}
SETTINGS = {"workflow": {"invoicing": {"autoAdvance": False}, "payment": {}}}
CHANGED = {
    "supplier": {"name": "New"},
    "customer": {"name": "New"},
    "workflow": SETTINGS,
    "description": "New",
}
OTHERWISE = [
    ({**LINE, "price": {**FLAT, "amount": "6"}}, "price"),
    ({**LINE, "featureKey": "tokens"}, "featureKey"),
    (
        {
            **LINE,
            "rateCard": {"price": FLAT, "taxConfig": {"behavior": "exclusive"}},
            "taxConfig": {"behavior": "inclusive"},
        },
        "taxConfig",
    ),
]
"""Lines that say something beside their rate card, and otherwise."""
BACKWARDS = {"from": MONTH["to"], "to": MONTH["from"]}

INVOICES: Group = {
    "POST billing/invoices/invoice": [
        ({"customerId": "<unknown>"}, 404),
        ({"customerId": "<free>"}, 400, "invoice_create_no_lines"),
        ({"customerId": "<payer>", "asOf": "<tomorrow>"}, 400, "invoice_as_of_in_future", "$.asOf"),
        (
            {"customerId": "<payer>", "filters": {"lineIds": ["<gathering_line>", "<unknown>"]}},
            400,
            "invoice_lines_not_billable",
            "$.filters.lineIds[1]",
        ),
        (
            {"customerId": "<payer>", "filters": {"lineIds": []}},
            400,
            "too_short",
            "$.filters.lineIds",
        ),
        ({"customer": "<payer>"}, 400, "field_required", "$.customerId"),
    ],
    PENDING: [
        ({**WRITTEN, "lines": [LINE, FREE]}, 400, "field_required", "$.lines[1].rateCard.price"),
        (
            {**WRITTEN, "lines": [LINE, {**LINE, "period": BACKWARDS}]},
            400,
            "period_invalid",
            "$.lines[1].period",
        ),
        (
            {**WRITTEN, "lines": [LINE, BY_UNIT]},
            400,
            "invoice_line_feature_has_no_meters",
            "$.lines[1].rateCard.featureKey",
        ),
        (
            {**WRITTEN, "lines": [LINE, {**LINE, "invoiceAt": "2025-12-31T23:59:59Z"}]},
            400,
            "invoice_at_too_early",
            "$.lines[1].invoiceAt",
        ),
        (
            {**WRITTEN, "lines": [{**LINE, "invoiceAt": "1900-01-01T00:00:00Z"}]},
            400,
            "too_long_ago",
            "$.lines[0].invoiceAt",
        ),
        ({**WRITTEN, "currency": "XXY"}, 400, "currency_invalid", "$.currency"),
        ({**WRITTEN, "lines": []}, 400, "too_short", "$.lines"),
        *(
            ({**WRITTEN, "lines": [LINE, line]}, 400, "rate_card_contradicted", f"$.lines[1].{name}")
            for line, name in OTHERWISE
        ),
    ],
    "DELETE billing/customers/<free>/invoices/pending-lines/<unknown>": [
        (None, 404),
    ],
    "DELETE billing/customers/<unknown>/invoices/pending-lines/<unknown>": [
        (None, 404),
    ],
    "POST billing/customers/<unknown>/invoices/pending-lines": [
        (WRITTEN, 404),
    ],
    SIMULATE: [
        (
            {"currency": "USD", "lines": [{**LINE, "quantity": "1"}, LINE]},
            400,
            "field_required",
            "$.lines[1].quantity",
        ),
    ],
    "POST billing/customers/<unknown>/invoices/simulate": [
        ({"currency": "USD", "lines": []}, 404),
    ],
    "PUT billing/invoices/<open_draft>": [
        (
            {**CHANGED, "lines": [{**LINE, "name": "New"}, {**LINE, "id": "<unknown>"}]},
            400,
            "invoice_line_not_found",
            "$.lines[1].id",
        ),
        (
            {**CHANGED, "lines": [{**LINE, "id": "<open_draft_line>"}]},
            400,
            "invoice_line_no_period_change_for_subscription_managed_line",
            "$.lines[0].period",
        ),
        ({**CHANGED, "lines": [LINE, FREE]}, 400, "field_required", "$.lines[1].rateCard.price"),
        *(
            ({**CHANGED, "lines": [LINE, line]}, 400, "rate_card_contradicted", f"$.lines[1].{name}")
            for line, name in OTHERWISE
        ),
        ({**CHANGED, "lines": [], "supplier": {}}, 400, "field_required", "$.supplier.name"),
        ({**CHANGED, "lines": [], "total": "1"}, 400, "unknown_field", "$.total"),
    ],
    "PUT billing/invoices/<paid>": [
        ({**CHANGED, "lines": []}, 400, "invoice_cannot_be_edited"),
    ],
    "PUT billing/invoices/<gathering>": [
        ({**CHANGED, "lines": []}, 400, "invoice_cannot_be_edited"),
    ],
    "PUT billing/invoices/<unknown>": [
        ({**CHANGED, "lines": []}, 404),
    ],
    "DELETE billing/invoices/<paid>": [
        (None, 400, "invoice_delete_failed"),
    ],
    "DELETE billing/invoices/<unknown>": [
        (None, 404),
    ],
    "POST billing/invoices/<open_draft>/advance": [
        (None, 400, "invoice_cannot_advance"),
    ],
    "POST billing/invoices/<paid>/approve": [
        (None, 400, "invoice_action_not_available"),
    ],
    "POST billing/invoices/<open_draft>/retry": [
        (None, 400, "invoice_action_not_available"),
    ],
    "POST billing/invoices/<open_draft>/snapshot-quantities": [
        (None, 400, "invoice_action_not_available"),
    ],
    "POST billing/invoices/<paid>/taxes/recalculate": [
        (None, 400, "invoice_cannot_be_edited"),
    ],
    "POST billing/invoices/<paid>/void": [
        (VOID, 400, "invoice_action_not_available"),
    ],
    "POST billing/invoices/<unpaid>/void": [
        ({**VOID, "action": {**WHOLE, "percentage": 50}}, 400, "invoice_void_partial", "$.action.percentage"),
        (
            {**VOID, "overrides": [{"lineId": "<unknown>", "action": WHOLE}]},
            400,
            "invoice_line_not_found",
            "$.overrides[0].lineId",
        ),
        ({"action": WHOLE}, 400, "field_required", "$.reason"),
    ],
}

SYNCED = {"invoiceNumber": "EXT-1", "externalId": "x"}
STRANGER = {
    "lineExternalIds": [
        {"lineId": "<syncing_line>", "externalId": "a"},
        {"lineId": "<unknown>", "externalId": "b"},
    ]
}
CALLBACK = "POST apps/custom-invoicing/<syncing>"

CUSTOM_INVOICING: Group = {
    f"{CALLBACK}/draft/synchronized": [
        (
            {"invoicing": {**SYNCED, **STRANGER}},
            400,
            "invoice_line_not_found",
            "$.invoicing.lineExternalIds[1].lineId",
        ),
        (
            {"invoicing": {**SYNCED, "invoiceNumber": "EXT-0"}},
            409,
            "invoice_number_taken",
            "$.invoicing.invoiceNumber",
        ),
        (
            {"invoicing": {**SYNCED, "invoiceNumber": "<paid_number>"}},
            400,
            "invoice_number_reserved",
            "$.invoicing.invoiceNumber",
        ),
        ({"invoicing": {**SYNCED, "color": "red"}}, 400, "unknown_field", "$.invoicing.color"),
    ],
    "POST apps/custom-invoicing/<paid>/draft/synchronized": [
        ({"invoicing": SYNCED}, 400, "invoice_action_not_available"),
    ],
    "POST apps/custom-invoicing/<unknown>/draft/synchronized": [
        ({}, 404),
    ],
    f"{CALLBACK}/issuing/synchronized": [
        ({"payment": {"externalId": "p"}}, 400, "invoice_action_not_available"),
        ({"payment": {"id": "p"}}, 400, "unknown_field", "$.payment.id"),
    ],
    f"{CALLBACK}/payment/status": [
        ({"trigger": "paid"}, 400, "invoice_action_not_available"),
        ({"trigger": "lost"}, 400, "literal_error", "$.trigger"),
    ],
}

# -- Our own -------------------------------------------------------------------------------------------------

NOTE = {"invoiceId": "<paid>", "reason": "outage"}
RATE = {"name": "VAT", "country": "FR", "percent": 20, "validFrom": "2021-01-01T00:00:00Z"}
SENT = {"amount": "10", "receivedAt": "<yesterday>", "reference": "r-1"}
PAY = "POST billing/invoices/<unpaid>/payments"

OWN: Group = {
    "POST billing/credit-notes": [
        (
            {**NOTE, "lines": [{"lineId": "<paid_line>", "amount": "10.01"}]},
            400,
            "credit_note_exceeds_billed",
            "$.lines[0].amount",
        ),
        (
            {
                **NOTE,
                "lines": [{"lineId": "<paid_line>", "amount": "1"}, {"lineId": "<unknown>", "amount": "1"}],
            },
            400,
            "invoice_line_not_found",
            "$.lines[1].lineId",
        ),
        ({**NOTE, "invoiceId": "<open_draft>"}, 400, "invoice_not_creditable", "$.invoiceId"),
        ({"invoiceId": "<paid>"}, 400, "field_required", "$.reason"),
    ],
    PAY: [
        ({**SENT, "amount": "10.01"}, 400, "payment_exceeds_open", "$.amount"),
        ({**SENT, "receivedAt": "<tomorrow>"}, 400, "payment_in_future", "$.receivedAt"),
        ({**SENT, "amount": "0"}, 400, "invalid_payment_amount", "$.amount"),
    ],
    "POST billing/invoices/<open_draft>/payments": [
        (SENT, 400, "invoice_not_payable"),
    ],
    "POST billing/tax-rates": [
        (RATE, 409, "tax_rate_overlap", "$.validFrom"),
        ({**RATE, "country": "France"}, 400, "invalid_country", "$.country"),
        ({**RATE, "percent": -1}, 400, "invalid_tax_percent", "$.percent"),
    ],
    "PUT billing/tax-rates/<rate>": [
        ({**RATE, "validTo": "2020-06-01T00:00:00Z"}, 400, "invalid_period", "$.validTo"),
    ],
    "DELETE billing/tax-rates/<unknown>": [
        (None, 404),
    ],
}

GROUPS = (
    FEATURES,
    PLANS,
    ADDONS,
    CUSTOMERS,
    SUBSCRIPTIONS,
    PROFILES,
    APPS,
    INVOICES,
    CUSTOM_INVOICING,
    OWN,
)
REFUSALS = [
    Refusal(request, *wrong) for group in GROUPS for request, refused in group.items() for wrong in refused
]


def written(url: str) -> dict[str, str]:
    """What each table holds, those apart in which the worker keeps what it adds up."""
    tables = [table for table in sorted(Base.metadata.tables) if not table.startswith("usage_")]
    rows = "(SELECT md5(coalesce(string_agg(one::text, E'\\n' ORDER BY one::text), '')) FROM {0} AS one)"
    query = "SELECT " + ", ".join(rows.format(table) for table in tables)
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        (found,) = connection.execute(query.encode()).fetchall()
    return dict(zip(tables, found, strict=True))


class Books:
    """What is written, as it was when last looked at."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.known = written(url)

    def changed(self) -> set[str]:
        """The tables that are not as they were."""
        before, self.known = self.known, written(self.url)
        return {table for table, rows in self.known.items() if rows != before[table]}


@pytest.fixture(scope="module")
def books(shared_database_url: str, names: Mapping[str, str]) -> Books:
    assert names
    return Books(shared_database_url)


def named(text: str, names: Mapping[str, str]) -> str:
    for name, value in names.items():
        text = text.replace(f"<{name}>", value)
    assert "<" not in text, text
    return text


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.request)
def test_what_is_bad_says_why_and_where_and_writes_nothing(
    client: httpx.Client, names: Mapping[str, str], books: Books, refusal: Refusal
) -> None:
    method, path = named(refusal.request, names).split()
    body = None if refusal.body is None else json.loads(named(json.dumps(refusal.body), names))
    answer = client.request(method, f"/api/v1/{path}", json=body)
    assert books.changed() == set()
    found = assert_problem(answer, refusal.status, refusal.code, refusal.field)
    if refusal.code is None and refusal.status == 400:
        assert {issue["field"] for issue in found["extensions"]["validationErrors"]} == {refusal.field}


@pytest.mark.parametrize("body", ["text", 7, [7], True])
def test_a_body_of_another_shape_is_refused(
    client: httpx.Client, names: Mapping[str, str], books: Books, body: object
) -> None:
    taking_one = [each.request for each in REFUSALS if each.body is not None]
    for request in dict.fromkeys(taking_one):
        method, path = named(request, names).split()
        found = assert_problem(client.request(method, f"/api/v1/{path}", json=body), 400)
        assert found["extensions"]["validationErrors"], request
    assert books.changed() == set()


TAGS = {
    "Add-ons",
    "Apps",
    "Billing",
    "Customers",
    "Features",
    "Invoices",
    "Payments",
    "Plans",
    "Subscriptions",
}
TAGS |= {"Credit notes", "Taxes"}


def test_of_whatever_changes_something_a_bad_request_is_tried(client: httpx.Client) -> None:
    document = client.get("/api/openapi.json").json()
    wanted = {
        f"{method.upper()} {path.removeprefix('/api/v1/')}"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if method != "get" and TAGS & set(operation["tags"])
    }
    assert {name for name in wanted if not any(stands_for(name, each) for each in tried())} == QUESTIONS


QUESTIONS = {"POST features/{featureId}/cost/query", "POST plans/{planId}/backtest"}
"""They change nothing."""


def tried() -> set[str]:
    return {refusal.request for refusal in REFUSALS}


def stands_for(template: str, request: str) -> bool:
    pattern, places = template.split("/"), request.split("/")
    return len(pattern) == len(places) and all(
        name == place or name.startswith("{") for name, place in zip(pattern, places, strict=True)
    )
