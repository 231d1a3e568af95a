"""Features, plans, customers, subscriptions and previews over plain HTTP, beyond what the SDK tests cover."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import httpx
import pytest

from tests.server import assert_problem

_numbers = count()


def key(stem: str) -> str:
    """Unlike any other in this module's database."""
    return f"{stem}-{next(_numbers)}"


def ask(client: httpx.Client, method: str, path: str, status: int = 200, **options: Any) -> Any:
    answer = client.request(method, f"/api/v1/{path}", **options)
    assert answer.status_code == status, answer.text
    return answer.json() if answer.content else None


def make(client: httpx.Client, path: str, **body: object) -> Any:
    return ask(client, "POST", path, 201, json=body)


def feature(client: httpx.Client, **changes: object) -> Any:
    return make(
        client, "features", **{"key": key("f"), "name": "F", "meterSlug": "llm_tokens_total", **changes}
    )


def usage_card(feature_key: str, amount: str = "0.5") -> dict[str, object]:
    return {
        "type": "usage_based",
        "key": feature_key,
        "name": "Usage",
        "featureKey": feature_key,
        "billingCadence": "P1M",
        "price": {"type": "unit", "amount": amount},
    }


def fee_card(amount: str, cadence: str | None = "P1M", **changes: object) -> dict[str, object]:
    price = {"type": "flat", "amount": amount, "paymentTerm": "in_advance"}
    card = {"type": "flat_fee", "key": "fee", "name": "Fee", "billingCadence": cadence, "price": price}
    return {**card, **changes}


def phase(phase_key: str, duration: str | None, *cards: object) -> dict[str, object]:
    return {"key": phase_key, "name": phase_key.title(), "duration": duration, "rateCards": list(cards)}


def plan_body(plan_key: str, *phases: object, **changes: object) -> dict[str, object]:
    usual = {"key": plan_key, "name": "Plan", "currency": "USD", "billingCadence": "P1M"}
    return {**usual, "phases": list(phases), **changes}


def published(client: httpx.Client, *phases: object, **changes: object) -> Any:
    plan = make(client, "plans", **plan_body(key("p"), *phases, **changes))
    return ask(client, "POST", f"plans/{plan['id']}/publish")


def customer(client: httpx.Client, **changes: object) -> Any:
    return make(client, "customers", **{"name": "Customer", "key": key("c"), **changes})


# -- features ------------------------------------------------------------------------------------------------


def test_an_archived_features_key_is_free_again_and_the_archived_one_is_found_by_its_id(
    client: httpx.Client,
) -> None:
    old = feature(client, metadata={"team": "ai"})
    ask(client, "DELETE", f"features/{old['key']}", 204)
    ask(client, "DELETE", f"features/{old['id']}", 204)  # again: nothing more to do
    new = feature(client, key=old["key"])
    assert ask(client, "GET", f"features/{old['key']}")["id"] == new["id"]
    found = ask(client, "GET", f"features/{old['id']}")
    assert found == {**old, "archivedAt": found["archivedAt"], "updatedAt": found["updatedAt"]}
    listed = ask(client, "GET", "features", params={"includeArchived": True, "pageSize": 1000})["items"]
    assert {old["id"], new["id"]} <= {each["id"] for each in listed}


def test_features_are_listed_as_an_array_or_in_pages_and_by_meter(client: httpx.Client) -> None:
    mine = [feature(client, meterSlug="api_requests_total")["key"] for _ in range(5)]
    whole = ask(client, "GET", "features", params={"meterSlug": "api_requests_total"})
    assert [each["key"] for each in whole] == sorted(mine)
    part = ask(client, "GET", "features", params={"meterSlug": "api_requests_total", "offset": 1, "limit": 2})
    assert part == whole[1:3]
    pages = [
        ask(client, "GET", "features", params={"meterSlug": "api_requests_total", "page": n, "pageSize": 2})
        for n in (1, 2, 3, 4)
    ]
    assert [each for page in pages for each in page["items"]] == whole
    assert {(page["totalCount"], page["pageSize"]) for page in pages} == {(5, 2)}


# -- plans ---------------------------------------------------------------------------------------------------


def test_a_new_version_is_drafted_beside_the_one_that_is_sold_and_replaces_it_at_one_instant(
    client: httpx.Client,
) -> None:
    first = published(client, phase("only", None, fee_card("10")))
    draft = make(client, "plans", **plan_body(first["key"], phase("only", None, fee_card("20"))))
    assert (draft["version"], draft["status"]) == (2, "draft")
    assert ask(client, "GET", f"plans/{first['key']}")["id"] == first["id"]
    latest = ask(client, "GET", f"plans/{first['key']}", params={"includeLatest": True})
    assert latest["id"] == draft["id"]
    second = ask(client, "POST", f"plans/{draft['id']}/publish")
    before = ask(client, "GET", f"plans/{first['id']}")
    assert (before["status"], second["status"]) == ("archived", "active")
    assert before["effectiveTo"] == second["effectiveFrom"]
    statuses = {
        status: [
            p["version"]
            for p in ask(client, "GET", "plans", params={"key": first["key"], "status": status})["items"]
        ]
        for status in ("draft", "active", "archived", "scheduled")
    }
    assert statuses == {"draft": [], "active": [2], "archived": [1], "scheduled": []}


def test_nobody_sets_the_dates_of_a_version(client: httpx.Client) -> None:
    """Publication is now: no plan or add-on is ever scheduled."""
    later = {"effectiveFrom": "2200-01-01T00:00:00Z", "effectiveTo": "2201-01-01T00:00:00Z"}
    plan = make(client, "plans", **plan_body(key("p"), phase("only", None, fee_card("10")), **later))
    addon = make(
        client,
        "addons",
        key=key("a"),
        name="A",
        currency="USD",
        instanceType="single",
        rateCards=[fee_card("1")],
        **later,
    )
    for path, made in (("plans", plan), ("addons", addon)):
        assert (made["status"], {"effectiveFrom", "effectiveTo"} & set(made)) == ("draft", set())
        publish = f"/api/v1/{path}/{made['id']}/publish"
        assert_problem(client.post(publish, params=later), 400, "unknown_field", "$.effectiveFrom")
        published = ask(client, "POST", f"{path}/{made['id']}/publish")
        assert published["status"] == "active"
        assert published["effectiveFrom"] == published["updatedAt"]
        assert "effectiveTo" not in published


def test_a_draft_keeps_its_warnings_and_can_not_be_published_before_they_are_mended(
    client: httpx.Client,
) -> None:
    body = plan_body(key("p"), phase("trial", None, fee_card("1")), phase("rest", None, fee_card("2")))
    draft = make(client, "plans", **body)
    (warning,) = draft["validationErrors"]
    assert warning["code"] == "plan_has_non_last_phase_with_no_duration"
    assert warning["field"] == "$.phases[0].duration"
    answer = client.post(f"/api/v1/plans/{draft['id']}/publish")
    assert_problem(answer, 400, warning["code"], warning["field"])
    mended = {name: body[name] for name in ("name", "billingCadence")}
    mended["phases"] = [phase("trial", "P2W", fee_card("1")), phase("rest", None, fee_card("2"))]
    assert ask(client, "PUT", f"plans/{draft['id']}", json=mended)["validationErrors"] == []
    assert ask(client, "POST", f"plans/{draft['id']}/publish")["status"] == "active"


def test_of_publications_at_once_one_wins_and_the_others_are_told(client: httpx.Client) -> None:
    draft = make(client, "plans", **plan_body(key("p"), phase("only", None, fee_card("10"))))
    with ThreadPoolExecutor(8) as pool:
        path = f"/api/v1/plans/{draft['id']}/publish"
        statuses = sorted(answer.status_code for answer in pool.map(client.post, [path] * 8))
    assert statuses == [200] + 7 * [403]


def test_plans_are_listed_in_pages_by_key_and_version(client: httpx.Client) -> None:
    keys = [published(client, phase("only", None, fee_card("1")), currency="CHF")["key"] for _ in range(3)]
    pages = [
        ask(client, "GET", "plans", params={"currency": "CHF", "page": n, "pageSize": 2}) for n in (1, 2)
    ]
    assert [plan["key"] for page in pages for plan in page["items"]] == sorted(keys)
    assert [page["totalCount"] for page in pages] == [3, 3]


@pytest.mark.parametrize("amount", ["0", "0.000000000000000000000000000001", "99999999999999999999.5"])
def test_an_amount_comes_back_as_it_was_sent(client: httpx.Client, amount: str) -> None:
    named = feature(client)["key"]
    plan = published(client, phase("only", None, usage_card(named, amount)))
    found = ask(client, "GET", f"plans/{plan['id']}")["phases"][0]["rateCards"][0]["price"]
    assert found == {"type": "unit", "amount": amount}


def test_an_amount_that_is_a_json_number_keeps_its_digits(client: httpx.Client) -> None:
    body = (
        '{"key": "digits", "name": "P", "currency": "USD", "billingCadence": "P1M", "phases": [{"key": "d",'
        ' "name": "D", "duration": null, "rateCards": [{"type": "flat_fee", "key": "k", "name": "K",'
        ' "billingCadence": null, "price": {"type": "flat", "amount": 0.10000000000000000000000001}}]}]}'
    )
    plan = ask(client, "POST", "plans", 201, content=body, headers={"Content-Type": "application/json"})
    card = plan["phases"][0]["rateCards"][0]
    assert card["price"]["amount"] == "0.10000000000000000000000001"
    assert (card["billingCadence"], plan["phases"][0]["duration"]) == (None, None)


def tiers(*given: tuple[str | None, str]) -> list[dict[str, object]]:
    return [
        {"upToAmount": end, "flatPrice": None, "unitPrice": {"type": "unit", "amount": amount}}
        if end
        else {"flatPrice": None, "unitPrice": {"type": "unit", "amount": amount}}
        for end, amount in given
    ]


OWN_PRICES: list[dict[str, object]] = [
    {
        "type": "tiered",
        "mode": "graduated",
        "tiers": tiers(("1000000", "0.000002"), (None, "0.000001")),
        "groupBy": ["model"],
        "minimumAmount": "5",
        "maximumAmount": "500",
    },
    {
        "type": "percentage",
        "percentage": "2.9",
        "fixedAmount": "0.3",
        "freeUnits": "0",
        "minimumPerEvent": "0.5",
        "maximumPerEvent": "20",
    },
    {
        "type": "matrix",
        "dimensions": ["provider", "model"],
        "cells": [{"values": {"provider": "openai", "model": "gpt-4o"}, "amount": "0.00001"}],
        "defaultAmount": "0.000005",
    },
]
"""What OpenMeter does not have; what it has goes through its SDK."""


@pytest.mark.parametrize("price", OWN_PRICES, ids=["groupBy", "percentage", "matrix"])
def test_a_price_of_our_own_comes_back_as_it_was_sent(client: httpx.Client, price: dict[str, object]) -> None:
    card = {**usage_card(feature(client)["key"]), "price": price}
    plan = published(client, phase("only", None, card))
    assert (plan["status"], plan["validationErrors"]) == ("active", [])
    assert ask(client, "GET", f"plans/{plan['id']}")["phases"][0]["rateCards"][0]["price"] == price


def test_units_are_converted_as_the_card_says(client: httpx.Client) -> None:
    config = {
        "operation": "divide",
        "conversionFactor": "1000000",
        "rounding": "ceiling",
        "precision": 3,
        "displayUnit": "M tokens",
    }
    card = {**usage_card(feature(client)["key"]), "unitConfig": config}
    plan = published(client, phase("only", None, card))
    assert plan["phases"][0]["rateCards"][0]["unitConfig"] == config


FALLING = {"type": "tiered", "mode": "volume", "tiers": tiers(("10", "10"), (None, "8"))}


def test_a_total_that_falls_is_advice_that_stays_with_the_plan(client: httpx.Client) -> None:
    card = {**usage_card(feature(client)["key"]), "price": FALLING}
    plan = published(client, phase("only", None, card))
    (advice,) = plan["validationErrors"]
    assert (advice["code"], advice["attributes"]["severity"]) == ("price_total_falls", "info")
    assert advice["field"] == "$.phases[0].rateCards[0].price.tiers[1]"
    assert "10 units cost 100, 11 units cost 88" in advice["message"]
    assert advice["attributes"]["hint"]


CARD = "$.phases[0].rateCards[0]"
REFUSED = [
    ({"discounts": {"percentage": {"percentage": 101}}}, "percentage_discount_invalid_value", "discounts"),
    ({"discounts": {"usage": {"quantity": "-1"}}}, "usage_discount_negative_quantity", "discounts"),
    ({"taxConfig": {"stripe": {"code": "10"}}}, "tax_config_invalid_stripe_code", "taxConfig.stripe.code"),
    (
        {"unitConfig": {"operation": "divide", "conversionFactor": "0"}},
        "unit_config_invalid_conversion_factor",
        "unitConfig.conversionFactor",
    ),
    (
        {"entitlementTemplate": {"type": "static", "config": "{"}},
        "entitlement_template_invalid_json_config",
        "entitlementTemplate.config",
    ),
    (
        {"entitlementTemplate": {"type": "metered", "usagePeriod": "PT1M"}},
        "entitlement_template_usage_period_less_then_an_hour",
        "entitlementTemplate.usagePeriod",
    ),
    ({"price": {**OWN_PRICES[0], "groupBy": ["region"]}}, "price_dimension_unknown", "price.groupBy[0]"),
    ({"price": {"type": "tiered", "mode": "volume", "tiers": []}}, "price_tiers_empty", "price.tiers"),
    ({"featureKey": "unknown", "key": "unknown"}, "rate_card_feature_not_found", "featureKey"),
    ({"billingCadence": "P1W"}, "rate_card_billing_cadence_unaligned", "billingCadence"),
    ({"name": ""}, "resource_name_empty", "name"),
    ({"price": {"type": "unit", "amount": "1", "freeUnits": "3"}}, "unknown_field", "price.freeUnits"),
]


@pytest.mark.parametrize(("broken", "code", "member"), REFUSED, ids=[code for _, code, _ in REFUSED])
def test_a_broken_rule_gives_its_code_its_path_and_a_hint_and_nothing_is_sold(
    client: httpx.Client, broken: dict[str, object], code: str, member: str
) -> None:
    """Refused at once, or kept with the draft and refused when it is published."""
    body = plan_body(key("p"), phase("only", None, {**usage_card(feature(client)["key"]), **broken}))
    answer = client.post("/api/v1/plans", json=body)
    kept = answer.status_code == 201
    if kept:
        answer = client.post(f"/api/v1/plans/{answer.json()['id']}/publish")
    (issue,) = assert_problem(answer, 400)["extensions"]["validationErrors"]
    assert issue["code"] == code
    assert issue["field"].startswith(f"{CARD}.{member}")
    assert issue["severity"] == ("warning" if kept else "critical")
    assert issue["hint"]
    left = ask(client, "GET", "plans", params={"key": body["key"], "includeDeleted": True})["items"]
    assert [plan["status"] for plan in left] == (["draft"] if kept else [])


def test_a_plan_is_archived_and_deleted_and_its_key_goes_on(client: httpx.Client) -> None:
    plan = published(client, phase("only", None, fee_card("10")))
    assert_problem(client.delete(f"/api/v1/plans/{plan['id']}"), 403, "plan_invalid_status", "$.status")
    second = ask(client, "POST", f"plans/{plan['key']}/next", 201)
    assert (second["version"], second["status"], second["phases"]) == (2, "draft", plan["phases"])
    again = client.post(f"/api/v1/plans/{plan['key']}/next")
    assert_problem(again, 409, "plan_draft_exists", "$.key")
    ask(client, "DELETE", f"plans/{second['id']}", 204)
    assert_problem(client.delete(f"/api/v1/plans/{second['id']}"), 404)
    assert_problem(client.post(f"/api/v1/plans/{second['id']}/publish"), 404)
    assert "deletedAt" in ask(client, "GET", f"plans/{second['id']}")
    archived = ask(client, "POST", f"plans/{plan['id']}/archive")
    assert (archived["status"], "effectiveTo" in archived) == ("archived", True)
    assert_problem(client.post(f"/api/v1/plans/{plan['id']}/archive"), 403, "plan_invalid_status", "$.status")
    ask(client, "DELETE", f"plans/{plan['id']}", 204)
    assert_problem(client.get(f"/api/v1/plans/{plan['key']}"), 404)
    assert make(client, "plans", **plan_body(plan["key"], phase("only", None, fee_card("1"))))["version"] == 3


def test_plans_are_listed_by_versions_of_keys_and_in_the_order_that_is_asked_for(
    client: httpx.Client,
) -> None:
    name = published(client, phase("only", None, fee_card("1")))["key"]
    for _ in range(2):
        ask(client, "POST", f"plans/{ask(client, 'POST', f'plans/{name}/next', 201)['id']}/publish")

    def versions(**params: object) -> list[int]:
        return [
            plan["version"] for plan in ask(client, "GET", "plans", params={"key": name, **params})["items"]
        ]

    assert versions() == [1, 2, 3]
    assert versions(order="DESC") == [3, 2, 1]
    assert versions(orderBy="created_at", order="DESC") == [3, 2, 1]
    assert versions(**{f"keyVersion[{name}]": [1, 3]}) == [1, 3]
    assert versions(**{"keyVersion[another]": 1}) == []
    for params in ({"orderBy": "price"}, {"order": "up"}, {"keyVersion[p]": "x"}, {"status": "sold"}):
        assert_problem(client.get("/api/v1/plans", params=params), 400)


# -- customers -----------------------------------------------------------------------------------------------


def test_customers_are_found_by_parts_of_what_is_known_of_them(client: httpx.Client) -> None:
    own = key("needle")
    made = customer(
        client,
        key=own,
        name=f"100% {own} Ltd",
        primaryEmail=f"{own}@example.com",
        usageAttribution={"subjectKeys": [f"{own}/app", f"{own}/web"]},
    )
    for name, text in (
        ("key", own.upper()),
        ("name", f"% {own}"),
        ("primaryEmail", f"{own}@EXAMPLE"),
        ("subject", f"{own}/w"),
    ):
        page = ask(client, "GET", "customers", params={name: text})
        assert [each["id"] for each in page["items"]] == [made["id"]], name
    assert ask(client, "GET", "customers", params={"name": f"0_ {own}"})["items"] == []
    for by in (made["id"], own):
        assert ask(client, "GET", f"customers/{by}") == made


def test_a_deleted_customers_key_and_subjects_are_free_again(client: httpx.Client) -> None:
    gone = customer(client, usageAttribution={"subjectKeys": [key("s")]})
    ask(client, "DELETE", f"customers/{gone['key']}", 204)
    assert_problem(client.get(f"/api/v1/customers/{gone['key']}"), 404)
    new = customer(client, key=gone["key"], usageAttribution=gone["usageAttribution"])
    assert new["id"] != gone["id"]
    every = ask(client, "GET", "customers", params={"key": gone["key"], "includeDeleted": True})["items"]
    assert {each["id"]: "deletedAt" in each for each in every} == {gone["id"]: True, new["id"]: False}
    assert_problem(client.put(f"/api/v1/customers/{gone['id']}", json={"name": "N"}), 409, "customer_deleted")


def test_an_update_replaces_everything(client: httpx.Client) -> None:
    made = customer(client, description="d", metadata={"a": "b"}, primaryEmail="a@b.example")
    changed = ask(client, "PUT", f"customers/{made['id']}", json={"name": "Only a name"})
    assert set(changed) == {"id", "name", "createdAt", "updatedAt", "usageAttribution"}
    assert changed["usageAttribution"] == {"subjectKeys": []}


def test_of_customers_who_want_one_subject_at_once_one_gets_it(client: httpx.Client) -> None:
    wanted = {"subjectKeys": [key("s") for _ in range(20)]}
    bodies = [{"name": f"n{i}", "usageAttribution": wanted} for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: client.post("/api/v1/customers", json=body), bodies))
    assert sorted(answer.status_code for answer in answers) == [201] + 7 * [409]
    for answer in answers:
        if answer.status_code == 409:
            assert assert_problem(answer, 409)["extensions"]["validationErrors"][0]["code"] == "subject_taken"
    page = ask(client, "GET", "customers", params={"subject": wanted["subjectKeys"][0]})
    assert page["totalCount"] == 1


# -- subscriptions and what they cost ------------------------------------------------------------------------


def test_a_subscription_goes_through_the_plans_phases(client: httpx.Client) -> None:
    named = feature(client)["key"]
    trial, rest = (
        phase("trial", "P1M", usage_card(named)),
        phase("rest", None, fee_card("49"), usage_card(named)),
    )
    plan = published(client, trial, rest)
    owner = customer(client)
    signed = make(
        client,
        "subscriptions",
        plan={"key": plan["key"]},
        customerKey=owner["key"],
        timing="2026-01-31T12:00:00Z",
        name="Mine",
        metadata={"order": "7"},
    )
    assert (signed["name"], signed["metadata"], signed["billingAnchor"]) == (
        "Mine",
        {"order": "7"},
        "2026-01-31T12:00:00Z",
    )
    whole = ask(client, "GET", f"subscriptions/{signed['id']}")
    assert [(p["key"], p["activeFrom"], p.get("activeTo")) for p in whole["phases"]] == [
        ("trial", "2026-01-31T12:00:00Z", "2026-02-28T12:00:00Z"),
        ("rest", "2026-02-28T12:00:00Z", None),
    ]
    assert [set(p["itemTimelines"]) for p in whole["phases"]] == [{named}, {"fee", named}]
    owned = ask(client, "GET", f"customers/{owner['id']}/subscriptions")
    assert (owned["totalCount"], owned["items"][0]["id"]) == (1, signed["id"])
    ended = ask(client, "GET", f"customers/{owner['id']}/subscriptions", params={"status": "inactive"})
    assert ended["items"] == []
    expanded = ask(client, "GET", f"customers/{owner['id']}", params={"expand": "subscriptions"})
    assert [each["id"] for each in expanded["subscriptions"]] == [signed["id"]]


def test_of_subscriptions_at_once_a_customer_gets_one(client: httpx.Client) -> None:
    plan, owner = published(client, phase("only", None, fee_card("1"))), customer(client)
    body = {"plan": {"key": plan["key"]}, "customerId": owner["id"]}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.post("/api/v1/subscriptions", json=body), range(8)))
    assert sorted(answer.status_code for answer in answers) == [201] + 7 * [409]
    assert ask(client, "GET", f"customers/{owner['id']}/subscriptions")["totalCount"] == 1


def test_a_version_that_was_archived_is_no_longer_sold_and_whoever_has_it_keeps_it(
    client: httpx.Client,
) -> None:
    old = published(client, phase("only", None, fee_card("10")))
    early = customer(client)
    kept = make(client, "subscriptions", plan={"key": old["key"]}, customerId=early["id"])
    new = make(client, "plans", **plan_body(old["key"], phase("only", None, fee_card("20"))))
    ask(client, "POST", f"plans/{new['id']}/publish")
    whole = ask(client, "GET", f"subscriptions/{kept['id']}")
    assert (whole["plan"]["version"], whole["phases"][0]["items"][0]["price"]["amount"]) == (1, "10")
    late = {"plan": {"key": old["key"], "version": 1}, "customerId": customer(client)["id"]}
    assert_problem(client.post("/api/v1/subscriptions", json=late), 400, "plan_invalid_status", "$.plan")


def test_the_preview_follows_the_clock_it_is_given(client: httpx.Client) -> None:
    """A fee in advance for each month begun, and usage up to the very instant."""
    named = feature(client)["key"]
    plan = published(client, phase("only", None, fee_card("49"), usage_card(named, "0.01")))
    owner = customer(client, usageAttribution={"subjectKeys": [key("s")]})
    start = datetime(2026, 1, 10, tzinfo=UTC)
    make(client, "subscriptions", plan={"key": plan["key"]}, customerId=owner["id"], timing=start.isoformat())
    events = [
        {
            "id": key("e"),
            "source": "preview",
            "type": "kong.llm_request",
            "subject": owner["usageAttribution"]["subjectKeys"][0],
            "time": (start + timedelta(days=day)).isoformat(),
            "data": {"tokens": 1000},
        }
        for day in (-1, 0, 10, 30, 40)
    ]
    assert client.post("/api/v1/events", json=events).status_code == 204

    def due(days: float) -> dict[str, str]:
        at = (start + timedelta(days=days)).isoformat()
        found = ask(client, "GET", f"customers/{owner['id']}/invoice-preview", params={"at": at})
        lines = {
            f"{line['name']} {line['period']['from'][:7]}": line["totals"]["total"] for line in found["lines"]
        }
        return {**lines, "total": found["totals"]["total"]}

    assert due(0) == {"Fee 2026-01": "49.00", "Usage 2026-01": "0.00", "total": "49.00"}
    assert due(10) == {"Fee 2026-01": "49.00", "Usage 2026-01": "10.00", "total": "59.00"}
    assert due(10.001)["total"] == "69.00"
    assert due(31) == {
        "Fee 2026-01": "49.00",
        "Usage 2026-01": "30.00",
        "Fee 2026-02": "49.00",
        "Usage 2026-02": "0.00",
        "total": "128.00",
    }
    assert due(41)["Usage 2026-02"] == "10.00"
    before = {"at": (start - timedelta(seconds=1)).isoformat()}
    answer = client.get(f"/api/v1/customers/{owner['id']}/invoice-preview", params=before)
    assert_problem(answer, 404, "no_subscription", "$.at")


def test_invoices_are_listed_by_customer_and_status_with_lines_on_demand(client: httpx.Client) -> None:
    plan = published(client, phase("only", None, fee_card("1500", None)), currency="JPY")
    owner = customer(client)
    make(client, "subscriptions", plan={"key": plan["key"]}, customerId=owner["id"])
    asked = {"customers": owner["id"], "statuses": ["gathering", "draft"]}
    (short,) = ask(client, "GET", "billing/invoices", params=asked)["items"]
    assert "lines" not in short
    assert (short["currency"], short["totals"]["total"]) == ("JPY", "1500")
    (long,) = ask(client, "GET", "billing/invoices", params={**asked, "expand": "lines"})["items"]
    assert [line["totals"]["total"] for line in long["lines"]] == ["1500"]
    assert (long["id"], long["number"]) == (short["id"], short["number"])
    paid = ask(client, "GET", "billing/invoices", params={**asked, "statuses": "paid"})
    assert (paid["totalCount"], paid["items"]) == (0, [])
    assert ask(client, "GET", f"customers/{owner['id']}")["currency"] == "JPY"


def test_a_customers_own_key_is_a_subject_too(client: httpx.Client) -> None:
    named = feature(client)["key"]
    plan, owner = published(client, phase("only", None, usage_card(named, "1"))), customer(client)
    make(client, "subscriptions", plan={"key": plan["key"]}, customerId=owner["id"])
    event = {"id": key("e"), "source": "own", "type": "kong.llm_request", "subject": owner["key"]}
    assert client.post("/api/v1/events", json={**event, "data": {"tokens": 3}}).status_code == 204
    found = ask(client, "GET", f"customers/{owner['key']}/invoice-preview")
    assert (found["lines"][0]["quantity"], found["totals"]["total"]) == ("3", "3.00")
