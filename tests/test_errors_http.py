"""What goes wrong over HTTP: the right status, a problem document that helps, and nothing half-written."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import psycopg
import pytest
from sqlalchemy import make_url

from api.http.ingest import MAX_BODY
from metering.database import Base
from tests.server import ADMIN_KEY, Server, assert_problem

JSON = {"Content-Type": "application/json"}
METER = {"slug": "taken", "aggregation": "SUM", "eventType": "taken", "valueProperty": "$.n"}
EVENT = {"id": "1", "source": "s", "type": "taken", "subject": "x"}


@dataclass(frozen=True)
class Shop:
    """What exists before anything goes wrong."""

    draft: str
    """The id of a plan that nobody published."""
    customer: str
    owner: str
    """The customer who owns the subject `owned`."""


@pytest.fixture(scope="module")
def shop(client: httpx.Client) -> Shop:
    made(client, "meters", METER)
    made(client, "features", {"key": "units", "name": "Units", "meterSlug": "taken"})
    published = made(client, "plans", plan("sold", card()))
    made(client, f"plans/{published['id']}/publish", None)
    owner = made(client, "customers", {"name": "O", "usageAttribution": {"subjectKeys": ["owned"]}})
    customer = made(client, "customers", {"name": "C", "key": "c"})
    made(client, "subscriptions", {"plan": {"key": "sold"}, "customerId": owner["id"]})
    draft = made(client, "plans", plan("draft", card()))
    return Shop(draft=draft["id"], customer=customer["id"], owner=owner["id"])


def made(client: httpx.Client, path: str, body: object) -> Any:
    answer = client.post(f"/api/v1/{path}", json=body)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


def card(**changes: object) -> dict[str, object]:
    usual = {"type": "usage_based", "key": "units", "name": "Units", "featureKey": "units"}
    return {**usual, "billingCadence": "P1M", "price": {"type": "unit", "amount": "0.1"}, **changes}


def plan(key: str, *cards: object, **changes: object) -> dict[str, object]:
    phase = {"key": "default", "name": "Default", "duration": None, "rateCards": list(cards)}
    usual = {"key": key, "name": key, "currency": "USD", "billingCadence": "P1M", "phases": [phase]}
    return {**usual, **changes}


def rows(url: str) -> dict[str, int]:
    """How many rows each table has, those apart in which the worker keeps what it adds up."""
    tables = sorted(table for table in Base.metadata.tables if not table.startswith("usage_"))
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        return {
            table: count
            for table in tables
            for (count,) in connection.execute(f'SELECT count(*) FROM "{table}"').fetchall()
        }


@pytest.fixture(autouse=True)
def unchanged(shared_database_url: str, shop: Shop) -> Iterator[Shop]:
    """Whatever a test here sends is wrong, so no table gains or loses a row."""
    before = rows(shared_database_url)
    yield shop
    assert rows(shared_database_url) == before


# -- bodies --------------------------------------------------------------------------------------------------

MALFORMED = {
    "cut off": b'{"slug": "a", ',
    "not JSON": b"slug=a",
    "not UTF-8": b'{"slug": "\xff"}',
    "NaN": b'{"slug": "a", "aggregation": NaN}',
    "Infinity": b'{"slug": "a", "data": {"n": -Infinity}}',
}
KONG = "/api/v1/ingest/kong/edge"
TAKING_JSON = ("/api/v1/meters", "/api/v1/meters/taken/query", "/api/v1/events", KONG)
QUARANTINED = ("not UTF-8", "NaN", "Infinity")
"""What makes one bad entry in a gateway's batch, which must not spoil its neighbours."""


@pytest.mark.parametrize(
    ("path", "kind"),
    [(path, kind) for path in TAKING_JSON for kind in MALFORMED if path != KONG or kind not in QUARANTINED],
)
def test_what_is_not_json_is_refused(client: httpx.Client, path: str, kind: str) -> None:
    answer = client.post(path, content=MALFORMED[kind], headers=JSON)
    assert "JSON" in assert_problem(answer, 400, "malformed_json")["detail"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("path", ["/api/v1/meters", "/api/v1/meters/taken/query", "/api/v1/events"])
def test_only_utf_8_is_read_which_is_what_is_checked(client: httpx.Client, path: str, encoding: str) -> None:
    """Else what PostgreSQL can't hold would come in by the others, and numbers that take a second each."""
    body = json.dumps({**METER, "slug": "other", "name": "a\0b"}).encode(encoding)
    assert_problem(client.post(path, content=body, headers=JSON), 400, "malformed_json")


@pytest.mark.parametrize("path", TAKING_JSON)
@pytest.mark.parametrize(
    "number", ["1e99999999999999999999", "1e8000000", "-1.5E-99999999999999999999", "1.5", "1"]
)
def test_a_body_that_is_but_a_number_is_refused(client: httpx.Client, path: str, number: str) -> None:
    assert_problem(client.post(path, content=number.encode(), headers=JSON), 400)


@pytest.mark.parametrize("number", ["1", "1.5"])
def test_a_number_is_no_object_that_says_nothing(client: httpx.Client, shop: Shop, number: str) -> None:
    body = f'{{"customerId": "{shop.owner}", "filters": {number}}}'
    answer = client.post("/api/v1/billing/invoices/invoice", content=body.encode(), headers=JSON)
    assert_problem(answer, 400, "model_attributes_type", "$.filters")


@pytest.mark.parametrize("path", TAKING_JSON)
def test_what_is_nested_too_deeply_is_refused(client: httpx.Client, path: str) -> None:
    body = b'{"id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert_problem(client.post(path, content=body, headers=JSON), 400)


@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "in chunks"])
@pytest.mark.parametrize("path", TAKING_JSON)
def test_a_body_of_20_mb_is_too_large(client: httpx.Client, path: str, *, chunked: bool) -> None:
    body = b'{"slug": "' + b"x" * (2 * MAX_BODY) + b'"}'
    pieces = (body[i : i + 65536] for i in range(0, len(body), 65536))
    answer = client.post(path, content=pieces if chunked else body, headers=JSON)
    found = assert_problem(answer, 413, "body_too_large")
    assert found["detail"] == "a request body may have 10 MB at most"


def test_a_body_that_is_just_not_too_large_is_read(client: httpx.Client) -> None:
    body = json.dumps({"slug": "x" * (MAX_BODY - 12)}).encode()
    assert len(body) == MAX_BODY
    assert_problem(client.post("/api/v1/meters", content=body, headers=JSON), 400)


@pytest.mark.parametrize("path", ["/api/v1/meters", "/api/v1/events"])
@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "", None])
def test_a_content_type_that_is_not_json_is_named(
    client: httpx.Client, path: str, content_type: str | None
) -> None:
    """`curl -d` says it is a form: the answer must say that, not that the JSON in it is wrong."""
    headers = {} if content_type is None else {"Content-Type": content_type}
    found = assert_problem(client.post(path, content=json.dumps(METER), headers=headers), 400, "content_type")
    assert content_type in (None, "") or content_type in found["detail"]
    assert "application/json" in found["extensions"]["validationErrors"][0]["hint"]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/api/v1/meters", b'{"slug": "a", "name": "b\\u0000c"}', "$.name"),
        ("/api/v1/meters", b'{"slug": "a", "metadata": {"k": "\\ud800"}}', "$.metadata.k"),
        ("/api/v1/meters/taken/query", b'{"subject": ["x", "a\\u0000"]}', "$.subject[1]"),
        ("/api/v1/events", json.dumps({**EVENT, "subject": "\0"}).encode(), "$.subject"),
        ("/api/v1/events", json.dumps([EVENT, {**EVENT, "data": {"a": ["\0"]}}]).encode(), "$[1].data.a[0]"),
    ],
)
def test_text_that_can_not_be_stored_is_refused_with_its_place(
    client: httpx.Client, path: str, body: bytes, field: str
) -> None:
    found = assert_problem(client.post(path, content=body, headers=JSON), 400, "invalid_event", field)
    assert "U+0000" in found["detail"]


@pytest.mark.parametrize("path", ["/api/v1/meters/a%00b", "/api/v1/customers?name=%00"])
def test_a_name_in_the_url_that_can_not_be_stored_is_refused(client: httpx.Client, path: str) -> None:
    assert_problem(client.get(path), 400)


# -- events --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "field"),
    [
        ({name: value for name, value in EVENT.items() if name != "id"}, "$.id"),
        ({**EVENT, "id": ""}, "$.id"),
        ({**EVENT, "id": 7}, "$.id"),
        ({name: value for name, value in EVENT.items() if name != "subject"}, "$.subject"),
        ({**EVENT, "source": None}, "$.source"),
        ({**EVENT, "data": "n=1"}, "$.data"),
        ({**EVENT, "data": [1]}, "$.data"),
        ({**EVENT, "data_base64": "e30="}, "$.data_base64"),
        ({**EVENT, "time": "yesterday"}, "$.time"),
        ({**EVENT, "time": "2026-01-01T00:00:00"}, "$.time"),
        ({**EVENT, "datacontenttype": "text/xml"}, "$.datacontenttype"),
        ([EVENT, {**EVENT, "id": "2", "data": "n=1"}, {**EVENT, "id": "3"}], "$[1].data"),
    ],
)
def test_an_event_that_is_wrong_is_refused_with_its_whole_batch(
    client: httpx.Client, event: object, field: str
) -> None:
    assert_problem(client.post("/api/v1/events", json=event), 400, "invalid_event", field)


def test_an_empty_batch_is_refused(client: httpx.Client) -> None:
    assert_problem(client.post("/api/v1/events", json=[]), 400, "no_events")


# -- the catalog and contracts -------------------------------------------------------------------------------

VALUE, SUBJECT = "$.valueProperty", "$.groupBy.subject"
PRICE = "$.phases[0].rateCards[0].price"


@pytest.mark.parametrize(
    ("price", "code", "field", "says"),
    [
        ({"type": "unit", "amount": "-0.1"}, "price_amount_negative", f"{PRICE}.amount", "negative"),
        ({"type": "tiered", "mode": "volume", "tiers": []}, "price_tiers_empty", f"{PRICE}.tiers", "tier"),
        ({"type": "auction", "amount": "1"}, "literal_error", f"{PRICE}.type", "'auction'"),
        (
            {"type": "package", "amount": "1", "quantityPerPackage": "0"},
            "price_package_quantity_invalid",
            f"{PRICE}.quantityPerPackage",
            "more than nothing",
        ),
        (
            {"type": "unit", "amount": "1", "leastAmount": "5"},
            "unknown_field",
            f"{PRICE}.leastAmount",
            "'leastAmount'",
        ),
        ({"type": "unit", "amount": "a lot"}, "decimal_parsing", f"{PRICE}.amount", "decimal"),
        ({"type": "unit", "amount": "NaN"}, "finite_number", f"{PRICE}.amount", ""),
        ({"type": "unit"}, "field_required", f"{PRICE}.amount", "required"),
        ({"type": "unit", "amount": "1" + "0" * 40}, "price_amount_out_of_range", f"{PRICE}.amount", ""),
    ],
)
def test_a_price_that_can_not_be_charged_is_refused_and_never_ignored(
    client: httpx.Client, price: object, code: str, field: str, says: str
) -> None:
    answer = client.post("/api/v1/plans", json=plan("wrong", card(price=price)))
    assert says in assert_problem(answer, 400, code, field)["detail"]


def test_an_unknown_price_type_is_answered_with_a_sentence_that_names_the_known_ones(
    client: httpx.Client,
) -> None:
    wrong = card(price={"type": "auction", "amount": "1"})
    found = assert_problem(client.post("/api/v1/plans", json=plan("wrong", wrong)), 400)
    known = "'flat' or 'unit' or 'tiered' or 'package' or 'dynamic' or 'percentage' or 'matrix'"
    assert found["detail"] == f"'auction' is not available: use {known} at {PRICE}.type"
    assert len(found["extensions"]["validationErrors"]) == 1


def test_all_problems_of_a_plan_are_told_at_once(client: httpx.Client) -> None:
    first = card(price={"type": "unit", "amount": "-1"}, featureKey="none", key="none")
    second = card(key="other", billingCadence="every now and then")
    found = assert_problem(client.post("/api/v1/plans", json=plan("w", first, second, currency="XXY")), 400)
    assert {(issue["code"], issue["field"]) for issue in found["extensions"]["validationErrors"]} == {
        ("currency_invalid", "$.currency"),
        ("rate_card_feature_not_found", "$.phases[0].rateCards[0].featureKey"),
        ("price_amount_negative", f"{PRICE}.amount"),
        ("rate_card_key_feature_key_mismatch", "$.phases[0].rateCards[1].key"),
        ("billing_cadence_invalid_value", "$.phases[0].rateCards[1].billingCadence"),
    }


def test_a_subscription_to_a_draft_is_refused(client: httpx.Client, shop: Shop) -> None:
    body = {"plan": {"key": "draft"}, "customerId": shop.customer}
    answer = client.post("/api/v1/subscriptions", json=body)
    found = assert_problem(answer, 400, "plan_invalid_status", "$.plan")
    assert found["detail"] == "the plan 'draft' version 1 is draft: only an active plan is sold"


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        ({"plan": {"key": "sold"}}, 400, "field_required", "$.customerId"),
        ({"plan": {"key": "sold"}, "customerKey": "nobody"}, 404, None, None),
        ({"plan": {"key": "none"}, "customerKey": "c"}, 404, None, None),
        ({"plan": {"key": "sold", "version": 2}, "customerKey": "c"}, 404, None, None),
        ({"plan": {"key": "sold"}, "customerKey": "c", "startingPhase": "x"}, 400, "unknown_phase", None),
        ({"plan": {"key": "sold"}, "customerKey": "c", "timing": "next_billing_cycle"}, 400, None, None),
        (
            {"plan": {"key": "sold"}, "customerKey": "c", "customPlan": {}},
            400,
            "field_required",
            "$.customPlan.name",
        ),
    ],
)
def test_a_subscription_that_can_not_begin_is_refused(
    client: httpx.Client, body: object, status: int, code: str | None, field: str | None
) -> None:
    field = "$.startingPhase" if code == "unknown_phase" else field
    assert_problem(client.post("/api/v1/subscriptions", json=body), status, code, field)


def test_a_second_subscription_of_one_customer_is_a_conflict(client: httpx.Client, shop: Shop) -> None:
    answer = client.post("/api/v1/subscriptions", json={"plan": {"key": "sold"}, "customerId": shop.owner})
    code = "only_single_subscription_allowed_per_customer_at_a_time"
    assert_problem(answer, 409, code, "$.customerId")


def test_the_subject_of_another_customer_is_a_conflict(client: httpx.Client, shop: Shop) -> None:
    owned = {"usageAttribution": {"subjectKeys": ["mine", "owned"]}}
    field = "$.usageAttribution.subjectKeys[1]"
    for answer in (
        client.post("/api/v1/customers", json={"name": "Thief", **owned}),
        client.put(f"/api/v1/customers/{shop.customer}", json={"name": "C", "key": "c", **owned}),
    ):
        assert shop.owner in assert_problem(answer, 409, "subject_taken", field)["detail"]
    assert_problem(
        client.post("/api/v1/customers", json={"name": "T", "key": "owned"}), 409, "subject_taken", "$.key"
    )


@pytest.mark.parametrize(
    ("path", "body", "problem"),
    [
        ("meters", METER, (409, "meter_exists", "$.slug")),
        ("meters", {**METER, "slug": "Not A Slug"}, (400, "string_pattern_mismatch", "$.slug")),
        ("meters", {**METER, "slug": "m", "aggregation": "MEDIAN"}, (400, "literal_error", "$.aggregation")),
        ("meters", {**METER, "slug": "m", "valueProperty": "n"}, (400, "invalid_json_path", VALUE)),
        ("meters", {**METER, "slug": "m", "groupBy": {"subject": "$"}}, (400, "invalid_meter", SUBJECT)),
        ("meters", {**METER, "slug": "m", "colour": "red"}, (400, "unknown_field", "$.colour")),
        ("meters", {"slug": "m"}, (400, "field_required", "$.aggregation")),
        ("meters", [], (400, "model_attributes_type", "$")),
        ("features", {"key": "units", "name": "U"}, (409, "feature_exists", "$.key")),
        ("features", {"key": "u", "name": "U", "meterSlug": "none"}, (400, "meter_not_found", "$.meterSlug")),
        (
            "features",
            {"key": "u", "name": "U", "meterSlug": "taken", "meterGroupByFilters": {"x": "y"}},
            (400, "unknown_group_by", "$.meterGroupByFilters.x"),
        ),
        ("plans", {**plan("draft", card())}, (409, "plan_draft_exists", "$.key")),
        ("plans", {**plan("p", card()), "phases": []}, (400, "too_short", "$.phases")),
        ("customers", {"name": "N", "currency": "ZZZ"}, (400, "currency_invalid", "$.currency")),
        ("customers", {"name": ""}, (400, "string_too_short", "$.name")),
        (
            "customers",
            {"name": "N", "usageAttribution": {"subjectKeys": ["a", "a"]}},
            (400, "duplicate_subject", "$.usageAttribution.subjectKeys[1]"),
        ),
    ],
)  # fmt: skip
def test_what_can_not_be_created_says_where_it_is_wrong(
    client: httpx.Client, path: str, body: object, problem: tuple[int, str, str]
) -> None:
    assert_problem(client.post(f"/api/v1/{path}", json=body), *problem)


@pytest.mark.parametrize(
    "path",
    [
        "meters/none",
        "meters/none/query",
        "features/none",
        "plans/none",
        "plans/draft",
        "customers/none",
        "customers/none/subscriptions",
        "customers/none/invoice-preview",
        "subscriptions/none",
    ],
)
def test_what_does_not_exist_is_404(client: httpx.Client, path: str) -> None:
    assert path.split("/")[1] in assert_problem(client.get(f"/api/v1/{path}"), 404)["detail"]


def test_what_is_in_use_is_not_taken_away(client: httpx.Client, shop: Shop) -> None:
    assert_problem(client.delete("/api/v1/meters/taken"), 409, "meter_in_use")
    assert_problem(client.delete(f"/api/v1/customers/{shop.owner}"), 400, "customer_in_use")
    change = {"name": "O", "usageAttribution": {"subjectKeys": []}}
    answer = client.put(f"/api/v1/customers/{shop.owner}", json=change)
    assert_problem(answer, 400, "subject_in_use", "$.usageAttribution.subjectKeys")
    answer = client.put("/api/v1/plans/sold", json=plan_update())
    assert_problem(answer, 403, "plan_invalid_status", "$.status")
    answer = client.post("/api/v1/plans/sold/publish")
    assert_problem(answer, 403, "plan_invalid_status", "$.status")


def plan_update() -> dict[str, object]:
    return {name: value for name, value in plan("x", card()).items() if name not in ("key", "currency")}


# -- routes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("POST", "/api/v1/nonsense"),
        ("POST", "/api/v1/ingest/kong/"),
        ("POST", "/api/v1/ingest/kong/a%20b"),
        ("DELETE", "/api/v1/events/1"),
    ],
)
def test_an_unknown_route_is_404(client: httpx.Client, method: str, path: str) -> None:
    assert "/api/docs" in assert_problem(client.request(method, path), 404)["detail"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/api/v1/meters", {"GET", "POST"}),
        ("PATCH", "/api/v1/plans/draft", {"GET", "PUT"}),
        ("PUT", "/api/v1/events", {"GET", "POST"}),
        ("GET", "/api/v1/ingest/kong/edge", {"POST"}),
    ],
)
def test_a_wrong_method_is_405_and_says_which_are_right(
    client: httpx.Client, method: str, path: str, allowed: set[str]
) -> None:
    answer = client.request(method, path)
    assert_problem(answer, 405)
    assert {name.strip() for name in answer.headers["allow"].split(",")} <= allowed


def test_the_clients_request_id_comes_back_in_the_problem(client: httpx.Client) -> None:
    for path in ("meters/none", "nonsense"):
        answer = client.get(f"/api/v1/{path}", headers={"X-Request-Id": "gw-1.2:3_4"})
        assert assert_problem(answer, 404)["instance"] == "urn:request:gw-1.2:3_4"
    answer = client.post("/api/v1/events", json=[], headers={"X-Request-Id": "gw-7"})
    assert assert_problem(answer, 400)["instance"] == "urn:request:gw-7"


@pytest.mark.parametrize("strange", ['"}{', "a" * 129, "spa ce", ""])
def test_a_strange_request_id_is_replaced_by_one_of_ours(client: httpx.Client, strange: str) -> None:
    answer = client.get("/api/v1/nonsense", headers={"X-Request-Id": strange})
    assert len(assert_problem(answer, 404)["instance"]) == len("urn:request:") + 32


# -- the server's own faults ---------------------------------------------------------------------------------


def test_a_fault_of_the_server_shows_nothing_internal_and_is_found_in_its_log(database_url: str) -> None:
    event = {**EVENT, "type": "kong.llm_request", "data": {"tokens": 5}}
    with Server(environment={"TOLLGATE_DATABASE_URL": database_url}) as server, server.client() as client:
        rename(database_url, "events", "gone")
        by_minute = "/api/v1/meters/llm_tokens_total/query?windowSize=MINUTE"  # no cube answers that
        answers = [
            client.get(by_minute, headers={"X-Request-Id": "find-me-1"}),
            client.post("/api/v1/events", json=event, headers={"X-Request-Id": "find-me-2"}),
        ]
        for answer in answers:
            assert assert_problem(answer, 500)["detail"] == ""
            assert not any(word in answer.text.lower() for word in ("gone", "select", "psycopg", "relation"))
        rename(database_url, "gone", "events")
        assert client.post("/api/v1/events", json=event).status_code == 204
        usage = client.get("/api/v1/meters/llm_tokens_total/query").json()
        assert [row["value"] for row in usage["data"]] == [5]
    assert '"request_id": "find-me-1"' in server.output
    assert '"request_id": "find-me-2"' in server.output
    assert "UndefinedTable" in server.output


def rename(url: str, table: str, name: str) -> None:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"ALTER TABLE {table} RENAME TO {name}")


def test_while_the_database_is_away_clients_are_told_to_come_again_and_then_all_works_again(
    postgres_url: str, database_url: str
) -> None:
    """Whoever the caller is: an unknown key can't be told from a known one then."""
    event = {**EVENT, "type": "kong.llm_request", "data": {"tokens": 5}}
    with Server(environment={"TOLLGATE_DATABASE_URL": database_url}) as server, server.client() as client:
        allow_connections(postgres_url, database_url, allow=False)
        for key in (ADMIN_KEY, "tg_unknown"):
            headers = {"Authorization": f"Bearer {key}"}
            for answer in (
                client.get("/api/v1/meters", headers=headers),
                client.post("/api/v1/meters/llm_tokens_total/query", json={}, headers=headers),
                client.post("/api/v1/events", json=event, headers=headers),
                client.post("/api/v1/ingest/kong/edge", json=[], headers=headers),
            ):
                assert assert_problem(answer, 503)["detail"].startswith("the database")
                assert answer.headers["retry-after"] == "1"
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200
        allow_connections(postgres_url, database_url, allow=True)
        assert client.get("/readyz").status_code == 200
        assert client.post("/api/v1/events", json=event).status_code == 204
        usage = client.get("/api/v1/meters/llm_tokens_total/query").json()
        assert [row["value"] for row in usage["data"]] == [5]
    assert "Traceback" not in server.output


def allow_connections(postgres_url: str, database_url: str, *, allow: bool) -> None:
    name = str(make_url(database_url).database)
    with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS {allow}'.encode())
        query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
        connection.execute(query, [name])
