"""Simulation over HTTP, and how rated lines look on the wire, in a simulation and in a preview alike."""

import json
from collections.abc import Mapping
from itertools import count
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from api.http.invoice_body import InvoiceBody
from metering.ids import is_ulid
from tests.server import assert_problem

PERIOD = {"from": "2026-03-01T00:00:00Z", "to": "2026-04-01T00:00:00Z"}
LINE_ID = "01JXQ8Y8V4Z5W6N7P8Q9R0S1T2"
CORRELATION = "01JXQ8Y8V4Z5W6N7P8Q9R0S1T3"
CARD = "$.lines[0].rateCard"
UNIT = {"type": "unit", "amount": "1"}
GRADUATED = {
    "type": "tiered",
    "mode": "graduated",
    "tiers": [
        {"upToAmount": "5", "flatPrice": {"type": "flat", "amount": "100"}},
        {"upToAmount": "10", "flatPrice": {"type": "flat", "amount": "50"}},
        {"upToAmount": "15", "unitPrice": {"type": "unit", "amount": "5"}},
        {"unitPrice": {"type": "unit", "amount": "1"}},
    ],
}
MATRIX = {
    "type": "matrix",
    "dimensions": ["model"],
    "cells": [{"values": {"model": "large"}, "amount": "0.5"}],
    "defaultAmount": "0.1",
}
PERCENTAGE = {"type": "percentage", "percentage": "2.9", "fixedAmount": "0.3"}

INVOICE = TypeAdapter(InvoiceBody)

_numbers = count()


@pytest.fixture(scope="module")
def customer(client: httpx.Client) -> Any:
    return client.post("/api/v1/customers", json={"name": "Kong Air", "key": "kong-air"}).json()


def line(price: object = UNIT, quantity: object = "1", **more: object) -> dict[str, Any]:
    card = more.pop("card", {})
    assert isinstance(card, dict)
    usual = {"name": "API calls", "period": PERIOD, "invoiceAt": PERIOD["to"], "quantity": quantity}
    return {**usual, "rateCard": {"price": price, **card}, **more}


def ask(client: httpx.Client, *lines: object, currency: str = "USD", **more: object) -> httpx.Response:
    body = {"currency": currency, "lines": lines, **more}
    return client.post("/api/v1/billing/customers/kong-air/invoices/simulate", json=body)


def simulated(client: httpx.Client, *lines: object, **more: Any) -> Any:
    answer = ask(client, *lines, **more)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture(autouse=True)
def _sold(customer: Any) -> None:
    """Whoever asks asks for this customer."""
    assert customer["key"] == "kong-air"


# -- The invoice ---------------------------------------------------------------------------------------------


def test_an_invoice_is_simulated_for_a_customer_by_id_or_key(client: httpx.Client, customer: Any) -> None:
    body = {"currency": "JPY", "number": "Q1", "lines": [line(quantity="2.5"), line(quantity=4)]}
    found = [
        client.post(f"/api/v1/billing/customers/{name}/invoices/simulate", json=body).json()
        for name in (customer["id"], "kong-air")
    ]
    for invoice in found:
        assert invoice["customer"] == {
            "id": customer["id"],
            "key": "kong-air",
            "name": "Kong Air",
            "usageAttribution": {"subjectKeys": []},
        }
        assert (invoice["number"], invoice["currency"], invoice["status"]) == ("Q1", "JPY", "draft")
        assert (invoice["period"], invoice["totals"]["total"]) == (PERIOD, "7")
        assert [one["totals"]["total"] for one in invoice["lines"]] == ["3", "4"]
    assert found[0]["id"] == found[1]["id"]
    assert is_ulid(found[0]["id"])


def test_it_stores_nothing(client: httpx.Client, customer: Any) -> None:
    simulated(client, line())
    asked = {"customers": customer["id"]}
    assert client.get("/api/v1/billing/invoices", params=asked).json()["items"] == []
    assert "currency" not in client.get(f"/api/v1/customers/{customer['id']}").json()


def test_it_asks_for_a_key(client: httpx.Client) -> None:
    body = {"currency": "USD", "lines": [line()]}
    url = "/api/v1/billing/customers/kong-air/invoices/simulate"
    assert_problem(client.post(url, json=body, headers={"Authorization": ""}), 401)


# -- Lines on the wire ---------------------------------------------------------------------------------------


def test_a_line_shows_how_each_part_of_it_came_about(client: httpx.Client) -> None:
    (found,) = simulated(client, line(GRADUATED, "22"))["lines"]
    assert [
        (one["name"], one["quantity"], one["perUnitAmount"], one["totals"]["total"], one["description"])
        for one in found["children"]
    ] == [
        (
            "API calls: flat price for tier 1",
            "1",
            "100",
            "100.00",
            "1 x 100 = 100.00 (tier 1: above 0 up to 5)",
        ),
        (
            "API calls: flat price for tier 2",
            "1",
            "50",
            "50.00",
            "1 x 50 = 50.00 (tier 2: above 5 up to 10)",
        ),
        (
            "API calls: usage price for tier 3",
            "5",
            "5",
            "25.00",
            "5 x 5 = 25.00 (tier 3: above 10 up to 15)",
        ),
        ("API calls: usage price for tier 4", "7", "1", "7.00", "7 x 1 = 7.00 (tier 4: above 15)"),
    ]
    ids = [found["id"], *(one["id"] for one in found["children"])]
    assert len(set(ids)) == 5
    assert all(map(is_ulid, ids))
    assert found["totals"] == {
        "amount": "182.00",
        "chargesTotal": "0.00",
        "discountsTotal": "0.00",
        "creditsTotal": "0.00",
        "taxesInclusiveTotal": "0.00",
        "taxesExclusiveTotal": "0.00",
        "taxesTotal": "0.00",
        "total": "182.00",
    }
    first = found["children"][0]
    assert (first["type"], first["status"], first["managedBy"]) == ("flat_fee", "detailed", "system")
    assert (first["category"], first["paymentTerm"]) == ("regular", "in_arrears")
    assert first["rateCard"] == {
        "price": {"type": "flat", "amount": "100", "paymentTerm": "in_arrears"},
        "quantity": "1",
    }


def test_what_was_used_before_the_line_is_shown_and_not_billed_again(client: httpx.Client) -> None:
    (found,) = simulated(client, line(GRADUATED, "10", preLinePeriodQuantity="12"))["lines"]
    assert found["totals"]["total"] == "22.00"
    assert quantities(found) == ("10", "10", "12", "12")


def quantities(found: Mapping[str, str]) -> tuple[str, ...]:
    return (
        found["quantity"],
        found["meteredQuantity"],
        found["preLinePeriodQuantity"],
        found["meteredPreLinePeriodQuantity"],
    )


def test_quantities_are_shown_as_metered_and_as_charged_for(client: httpx.Client) -> None:
    """2,500,000 tokens before and 1,200,000 now are 3 and 2 million more begun, of which 4 are free."""
    millions = {"operation": "divide", "conversionFactor": "1000000", "rounding": "ceiling"}
    discounts = {"usage": {"quantity": "3.5", "correlationId": CORRELATION}}
    card = {"unitConfig": millions, "discounts": discounts}
    (found,) = simulated(client, line(UNIT, "1200000", preLinePeriodQuantity="2500000", card=card))["lines"]
    assert quantities(found) == ("0.5", "1200000", "0", "2500000")
    (free,) = found["discounts"]["usage"]
    assert (free["quantity"], free["preLinePeriodQuantity"]) == ("0.5", "3")
    assert free["reason"] == {"type": "ratecard_usage", "quantity": "3.5", "correlationId": CORRELATION}
    assert is_ulid(free["id"])
    assert found["rateCard"]["unitConfig"] == {**millions, "precision": 0}
    assert found["rateCard"]["discounts"] == discounts


def test_a_maximum_spend_is_a_discount_on_the_lines_reached_last(client: httpx.Client) -> None:
    price = {"type": "unit", "amount": "100", "maximumAmount": "2000"}
    (found,) = simulated(client, line(price, "32.2"))["lines"]
    (child,) = found["children"]
    (discount,) = child["discounts"]["amount"]
    assert (discount["reason"], discount["amount"]) == ({"type": "maximum_spend"}, "1220.00")
    assert discount["description"] == "Maximum spend discount for charges over 2000.00"
    assert is_ulid(discount["id"])
    for totals in (child["totals"], found["totals"]):
        assert (totals["amount"], totals["discountsTotal"]) == ("3220.00", "1220.00")
        assert (totals["chargesTotal"], totals["total"]) == ("0.00", "2000.00")


def test_a_percentage_comes_off_first_and_says_how_much_it_is(client: httpx.Client) -> None:
    card = {"discounts": {"percentage": {"percentage": 12.5, "correlationId": CORRELATION}}}
    price = {"type": "unit", "amount": "100", "maximumAmount": "70"}
    (found,) = simulated(client, line(price, "1", card=card))["lines"]
    first, second = found["children"][0]["discounts"]["amount"]
    reason = {"type": "ratecard_percentage", "percentage": 12.5, "correlationId": CORRELATION}
    assert (first["reason"], first["amount"]) == (reason, "12.50")
    assert (second["reason"]["type"], second["amount"]) == ("maximum_spend", "17.50")
    assert first["id"] != second["id"]


def test_a_minimum_spend_is_a_charge_of_its_own(client: httpx.Client) -> None:
    (found,) = simulated(client, line({"type": "unit", "amount": "1", "minimumAmount": "50"}, "20"))["lines"]
    usage, missing = found["children"]
    assert (usage["category"], missing["category"]) == ("regular", "commitment")
    assert (missing["totals"]["amount"], missing["totals"]["chargesTotal"]) == ("0.00", "30.00")
    assert missing["description"] == "1 x 30.00 = 30.00 (at least 50.00 in the period, 20.00 spent)"
    assert (found["totals"]["amount"], found["totals"]["chargesTotal"]) == ("20.00", "30.00")


def test_a_line_comes_back_with_all_that_was_said_of_it(client: httpx.Client) -> None:
    tax = {"behavior": "exclusive", "stripe": {"code": "txcd_10103001"}}
    said = {"id": LINE_ID, "description": "Calls", "metadata": {"team": "ai"}}
    card = {"featureKey": "api-calls", "taxConfig": tax}
    (found,) = simulated(client, line(**said, card=card))["lines"]
    assert {name: found[name] for name in said} == said
    assert found["rateCard"] == {"price": UNIT, **card}
    assert (found["featureKey"], found["price"], found["taxConfig"]) == ("api-calls", UNIT, tax)
    assert (found["period"], found["invoiceAt"]) == (PERIOD, PERIOD["to"])
    assert found["children"][0]["rateCard"]["taxConfig"] == tax
    assert (found["type"], found["managedBy"], found["status"]) == ("usage_based", "manual", "valid")


def test_a_fee_is_charged_once_and_nothing_for_what_is_free(client: httpx.Client) -> None:
    fee = {"type": "flat", "amount": "49", "paymentTerm": "in_advance"}
    once, free = simulated(client, line(fee, "7"), line(None, "1000"))["lines"]
    assert (once["quantity"], once["totals"]["total"]) == ("1", "49.00")
    assert once["children"][0]["paymentTerm"] == "in_advance"
    assert (free["children"], free["rateCard"], free["quantity"]) == ([], {"price": None}, "1000")


def test_price_and_feature_beside_the_rate_card_are_read_as_if_they_were_in_it(client: httpx.Client) -> None:
    price = {"type": "unit", "amount": "2"}
    old = {**line(quantity="3"), "price": price, "featureKey": "calls"}
    del old["rateCard"]
    (found,) = simulated(client, old)["lines"]
    assert found["totals"]["total"] == "6.00"
    assert found["rateCard"] == {"price": price, "featureKey": "calls"}
    both = {**old, "rateCard": {"price": {"type": "unit", "amount": "2.0"}, "featureKey": "calls"}}
    assert simulated(client, both)["lines"][0]["totals"]["total"] == "6.00"


def test_what_a_quantity_is_made_of_is_priced(client: httpx.Client) -> None:
    groups = [{"dimensions": {"model": model}, "quantity": "10"} for model in ("large", None)]
    events = [{"value": "100", "count": 2}, {"value": "100.5"}]
    found = simulated(
        client,
        line(MATRIX, "20", groups=groups),
        line({**GRADUATED, "groupBy": ["model"]}, "20", groups=groups),
        line(PERCENTAGE, "300.5", events=events),
    )
    # 10 x 0.50 + 10 x 0.10; two ladders of 10 units; 2.9 % of 300.50 and 3 x 0.30
    assert [one["totals"]["total"] for one in found["lines"]] == ["6.00", "300.00", "9.61"]


def test_numbers_are_exact_however_they_are_written(client: httpx.Client) -> None:
    digits = "12345678901234567890123456789012.345678901234567891"
    text = json.dumps({"currency": "USD", "lines": [line(UNIT, "@")]}).replace('"@"', digits)
    answer = client.post(
        "/api/v1/billing/customers/kong-air/invoices/simulate",
        content=text,
        headers={"Content-Type": "application/json"},
    )
    (found,) = answer.json()["lines"]
    assert found["quantity"] == found["meteredQuantity"] == digits
    assert found["totals"]["total"] == "12345678901234567890123456789012.35"


def test_what_is_sent_is_what_the_schema_says(client: httpx.Client) -> None:
    """Lines are spelled by hand: nothing is missing, nothing unknown, and each value as its type is sent."""
    groups = [{"dimensions": {"model": model}, "quantity": "10"} for model in ("large", None)]
    package = {"type": "package", "amount": "1E+2", "quantityPerPackage": "2.50"}
    off = {"percentage": {"percentage": 12.5}, "usage": {"quantity": "2.50", "correlationId": CORRELATION}}
    millions = {"operation": "divide", "conversionFactor": "1000000"}
    card = {"featureKey": "f", "taxConfig": {"stripe": {"code": "txcd_10103001"}}, "discounts": off}
    answer = ask(
        client,
        line(None),
        line({"type": "flat", "amount": "0.00000075"}),
        line({"type": "unit", "amount": "1", "maximumAmount": "9", "minimumAmount": "2"}, "22", card=card),
        line(package, "-3", card={**card, "unitConfig": millions}),
        line({**GRADUATED, "mode": "volume"}, "22", name='"\u2028\\\x7f\n', metadata={"": "é"}, id=LINE_ID),
        line({**GRADUATED, "groupBy": ["model"]}, "20", groups=groups, description=""),
        line({"type": "dynamic"}, period={"from": "2026-03-01T02:00:00.5+02:00", "to": PERIOD["to"]}),
        line(PERCENTAGE, "2", events=[{"value": "1", "count": 2}], card={"discounts": {}}),
        line(MATRIX, "20", groups=groups, card={"taxConfig": {}}),
    )
    assert answer.status_code == 200, answer.text
    read = INVOICE.validate_json(answer.content)
    assert json.loads(INVOICE.dump_json(read, by_alias=True, exclude_none=True)) == answer.json()


# -- The preview ---------------------------------------------------------------------------------------------


def test_the_preview_shows_a_line_as_the_simulation_does(client: httpx.Client) -> None:
    """The same price, discounts, conversion and usage: the same line but for where it comes from."""
    key = f"preview-{next(_numbers)}"
    owner = client.post("/api/v1/customers", json={"name": "Owner", "key": key}).json()
    client.post("/api/v1/features", json={"key": key, "name": "F", "meterSlug": "llm_tokens_total"})
    sold = {
        "price": {**GRADUATED, "maximumAmount": "150"},
        "discounts": {"percentage": {"percentage": 10}, "usage": {"quantity": "2"}},
        "unitConfig": {"operation": "divide", "conversionFactor": "1000"},
        "taxConfig": {"behavior": "inclusive"},
        "featureKey": key,
    }
    card = {"type": "usage_based", "key": key, "name": "API calls", "billingCadence": "P1M", **sold}
    phase = {"key": "only", "name": "Only", "duration": None, "rateCards": [card]}
    plan = {"key": key, "name": "P", "currency": "USD", "billingCadence": "P1M", "phases": [phase]}
    made = client.post("/api/v1/plans", json=plan)
    assert made.status_code == 201, made.text
    assert client.post(f"/api/v1/plans/{made.json()['id']}/publish").status_code == 200
    contract = {"plan": {"key": key}, "customerId": owner["id"], "timing": "2026-01-01T00:00:00Z"}
    assert client.post("/api/v1/subscriptions", json=contract).status_code == 201
    event = {"id": key, "source": "s", "type": "kong.llm_request", "subject": key, "data": {"tokens": 24500}}
    event["time"] = "2026-01-02T00:00:00Z"
    assert client.post("/api/v1/events", json=event).status_code == 204
    january = {"at": "2026-01-20T00:00:00Z"}
    (shown,) = client.get(f"/api/v1/customers/{key}/invoice-preview", params=january).json()["lines"]
    # 10 % off 182.50 for 22.5 units, and what is left above 150
    assert (shown["quantity"], shown["totals"]["discountsTotal"]) == ("22.5", "32.50")
    wanted = {name: shown[name] for name in ("name", "period", "invoiceAt", "rateCard")}
    (found,) = simulated(client, {**wanted, "quantity": shown["meteredQuantity"]})["lines"]
    assert same(found) == same(shown)


def same(node: Any) -> Any:
    """Without ids, instants of change, and whose line it is."""
    other = {"id", "createdAt", "updatedAt", "managedBy", "subscription"}
    match node:
        case dict():
            return {name: same(value) for name, value in node.items() if name not in other}
        case list():
            return [same(item) for item in node]
    return node


# -- Bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "code", "field"),
    [
        ({"quantity": "a lot"}, "decimal_parsing", "$.lines[0].quantity"),
        ({"quantity": "NaN"}, "finite_number", "$.lines[0].quantity"),
        ({"quantity": "1E+1000000"}, "quantity_out_of_range", "$.lines[0].quantity"),
        ({"quantity": None}, "decimal_type", "$.lines[0].quantity"),
        ({"preLinePeriodQuantity": "1E-200"}, "quantity_out_of_range", "$.lines[0].preLinePeriodQuantity"),
        ({"name": ""}, "string_too_short", "$.lines[0].name"),
        ({"id": "one"}, "string_pattern_mismatch", "$.lines[0].id"),
        ({"color": "red"}, "unknown_field", "$.lines[0].color"),
        ({"period": {"from": PERIOD["to"], "to": PERIOD["from"]}}, "period_invalid", "$.lines[0].period"),
        ({"period": {"from": PERIOD["from"]}}, "field_required", "$.lines[0].period.to"),
        ({"invoiceAt": "0001-01-01T00:00:00Z"}, "value_error", "$.lines[0].invoiceAt"),
        ({"rateCard": None}, "field_required", CARD),
        ({"rateCard": {}}, "field_required", f"{CARD}.price"),
        ({"price": {"type": "unit", "amount": "2"}}, "rate_card_contradicted", "$.lines[0].price"),
        ({"featureKey": "other"}, "rate_card_contradicted", "$.lines[0].featureKey"),
        ({"taxConfig": {"behavior": "inclusive"}}, "rate_card_contradicted", "$.lines[0].taxConfig"),
        ({"groups": [{"dimensions": {}, "quantity": "1"}]}, "groups_not_applicable", "$.lines[0].groups"),
        ({"events": [{"value": "1", "count": 0}]}, "greater_than_equal", "$.lines[0].events[0].count"),
    ],
)
def test_a_wrong_line_is_refused_with_its_place(
    client: httpx.Client, changed: dict[str, object], code: str, field: str
) -> None:
    assert_problem(ask(client, {**line(), **changed}), 400, code, field)


@pytest.mark.parametrize(
    ("card", "code", "field"),
    [
        ({"price": {"type": "unit", "amount": "-1"}}, "price_amount_negative", "price.amount"),
        ({"price": {"type": "unit"}}, "field_required", "price.amount"),
        ({"price": {"type": "barter"}}, "literal_error", "price.type"),
        ({"price": {**UNIT, "minimumAmount": "2", "maximumAmount": "1"}}, None, "price.minimumAmount"),
        ({"price": {**GRADUATED, "tiers": []}}, "price_tiers_empty", "price.tiers"),
        ({"price": {**GRADUATED, "tiers": GRADUATED["tiers"][:3]}}, None, "price.tiers[2].upToAmount"),
        (
            {"discounts": {"percentage": {"percentage": 101}}},
            "percentage_discount_invalid_value",
            "discounts.percentage.percentage",
        ),
        (
            {"discounts": {"usage": {"quantity": "-1"}}},
            "usage_discount_negative_quantity",
            "discounts.usage.quantity",
        ),
        (
            {"discounts": {"usage": {"quantity": "1", "correlationId": "x"}}},
            "string_pattern_mismatch",
            "discounts.usage.correlationId",
        ),
        (
            {"unitConfig": {"operation": "divide", "conversionFactor": "0"}},
            None,
            "unitConfig.conversionFactor",
        ),
        (
            {"unitConfig": {"operation": "add", "conversionFactor": "1"}},
            "literal_error",
            "unitConfig.operation",
        ),
        ({"entitlementTemplate": {"type": "boolean"}}, "unknown_field", "entitlementTemplate"),
    ],
)
def test_a_wrong_rate_card_is_refused_with_its_place(
    client: httpx.Client, card: dict[str, object], code: str | None, field: str
) -> None:
    found = assert_problem(ask(client, line(card=card)), 400)
    errors = found["extensions"]["validationErrors"]
    assert f"{CARD}.{field}" in [error["field"] for error in errors]
    assert code is None or code in [error["code"] for error in errors]


def test_the_invoice_as_a_whole_is_checked_too(client: httpx.Client) -> None:
    assert_problem(ask(client), 400, "lines_empty", "$.lines")
    assert_problem(ask(client, line(), currency="XXY"), 400, "currency_invalid", "$.currency")
    assert_problem(ask(client, *[line()] * 1001), 400, "lines_too_many", "$.lines")
    assert_problem(ask(client, line(), number=""), 400, "string_too_short", "$.number")
    twice = line(id=LINE_ID)
    assert_problem(ask(client, twice, twice), 400, "line_id_duplicated", "$.lines[1].id")


def test_all_problems_of_all_lines_are_told_at_once(client: httpx.Client) -> None:
    wrong = [line({"type": "unit", "amount": "-1"}), line(), line(MATRIX, "3")]
    found = assert_problem(ask(client, *wrong, currency="XXY"), 400)
    assert [issue["field"] for issue in found["extensions"]["validationErrors"]] == [
        "$.currency",
        f"{CARD}.price.amount",
        "$.lines[2].groups",
    ]


def test_only_a_living_customer_is_simulated_for(client: httpx.Client) -> None:
    body = {"currency": "USD", "lines": [line()]}
    nobody = client.post("/api/v1/billing/customers/nobody/invoices/simulate", json=body)
    assert_problem(nobody, 404)
    gone = client.post("/api/v1/customers", json={"name": "Gone"}).json()["id"]
    assert client.delete(f"/api/v1/customers/{gone}").status_code == 204
    answer = client.post(f"/api/v1/billing/customers/{gone}/invoices/simulate", json=body)
    assert_problem(answer, 409, "customer_deleted")
