"""The OpenAPI document and the pages around it, as a client or a person finds them."""

import json
from typing import Any

import httpx
import pytest

METHODS = {"get", "post", "put", "patch", "delete"}


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> Any:
    answer = client.get("/api/openapi.json", headers={"Authorization": ""})
    assert answer.headers["content-type"] == "application/json"
    return json.loads(answer.content)


def operations(document: Any) -> dict[str, Any]:
    return {
        f"{method.upper()} {path}": operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }


def test_it_is_an_openapi_document_with_every_reference_resolved(document: Any) -> None:
    assert document["openapi"].startswith("3.1")
    assert document["info"]["title"] == "Tollgate"
    assert all(set(item) <= METHODS for item in document["paths"].values())
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    used = set(references(document))
    assert used
    assert used <= known


def references(node: Any) -> list[str]:
    match node:
        case {"$ref": str(reference)}:
            return [reference]
        case dict():
            return [found for value in node.values() for found in references(value)]
        case list():
            return [found for value in node for found in references(value)]
    return []


def test_it_lists_the_routes_that_take_in_usage(document: Any) -> None:
    events = document["paths"]["/api/v1/events"]["post"]
    assert set(events["requestBody"]["content"]) == {
        "application/cloudevents+json",
        "application/cloudevents-batch+json",
        "application/json",
    }
    assert set(events["responses"]) == {"204", "default"}
    kong = document["paths"]["/api/v1/ingest/kong/{source}"]["post"]
    assert [parameter["name"] for parameter in kong["parameters"]] == ["source"]
    assert set(kong["responses"]) == {"200", "default"}


def test_each_operation_has_an_id_of_its_own_a_key_and_a_problem_answer(document: Any) -> None:
    found = operations(document)
    ids = [operation["operationId"] for operation in found.values()]
    assert len(set(ids)) == len(ids) > 20
    for name, operation in found.items():
        problem = operation["responses"]["default"]["content"]
        assert list(problem) == ["application/problem+json"], name
        assert operation["security"] == [{"HTTPBearer": []}], name
        assert operation["tags"], name
        assert not {"422", "500"} & set(operation["responses"]), name
    assert document["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"


def test_each_operation_documents_the_one_status_that_openmeters_sdk_accepts(document: Any) -> None:
    collections = ("meters", "features", "plans", "addons", "customers", "subscriptions", "corrections")
    created = {f"POST /api/v1/{name}" for name in collections}
    created |= {"POST /api/v1/llm-cost/overrides"}
    created |= {"POST /api/v1/plans/{planId}/addons", "POST /api/v1/plans/{planIdOrKey}/next"}
    created |= {"POST /api/v1/subscriptions/{subscriptionId}/addons", "POST /api/v1/billing/profiles"}
    billing = ("invoices/invoice", "tax-rates", "credit-notes", "invoices/{invoiceId}/payments")
    created |= {f"POST /api/v1/billing/{name}" for name in billing}
    created |= {"POST /api/v1/billing/customers/{customerId}/invoices/pending-lines"}
    told = ("draft/synchronized", "issuing/synchronized", "payment/status")
    accepted = {f"POST /api/v1/apps/custom-invoicing/{{invoiceId}}/{what}" for what in told}
    accepted |= {"POST /api/v1/events"}
    for name, operation in operations(document).items():
        expected = "201" if name in created else "204" if name.startswith("DELETE") else "200"
        expected = "204" if name in accepted else expected
        assert set(operation["responses"]) == {expected, "default"}, name


@pytest.mark.parametrize("method", ["get", "post"])
def test_a_usage_query_is_answered_in_json_or_csv(document: Any, method: str) -> None:
    answer = document["paths"]["/api/v1/meters/{meterIdOrSlug}/query"][method]["responses"]["200"]
    assert answer["content"] == {
        "application/json": {"schema": {"$ref": "#/components/schemas/MeterQueryResult"}},
        "text/csv": {"schema": {"type": "string"}},
    }


def test_filters_of_text_are_described_with_their_operators(document: Any) -> None:
    schemas = document["components"]["schemas"]
    filters = schemas["MeterQueryRequest"]["properties"]["advancedMeterGroupByFilters"]
    assert {"$ref": "#/components/schemas/FilterStringBody"} in [
        shape.get("additionalProperties") for shape in filters["anyOf"]
    ]
    operators = {"$eq", "$ne", "$in", "$nin", "$gt", "$gte", "$lt", "$lte", "$and", "$or"}
    operators |= {"$like", "$nlike", "$ilike", "$nilike"}
    assert set(schemas["FilterStringBody"]["properties"]) == operators


def test_parameters_in_the_path_are_described(document: Any) -> None:
    for name, operation in operations(document).items():
        in_path = {part[1:-1] for part in name.split("/") if part.startswith("{")}
        described = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
        assert in_path == described, name


def test_the_docs_page_points_to_the_document(client: httpx.Client) -> None:
    answer = client.get("/api/docs", headers={"Authorization": ""})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "/api/openapi.json" in answer.text


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_answers_without_a_key(client: httpx.Client, path: str) -> None:
    answer = client.get(path, headers={"Authorization": ""})
    assert (answer.status_code, answer.text) == (200, "ok")


def test_what_is_written_as_a_number_is_described_as_one(document: Any) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["TaxRateBody"]["properties"]["percent"]["type"] == "number"
    assert schemas["LineTaxBody"]["properties"]["percent"]["type"] == "number"
