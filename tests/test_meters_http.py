"""Meters over HTTP, beyond what the SDK tests cover: the list in an order and in pages."""

from typing import Any

import httpx
import pytest

from tests.server import assert_problem


@pytest.fixture(scope="module", autouse=True)
def _meters(client: httpx.Client) -> None:
    """Beside the two that are there from the start."""
    for slug, name, aggregation in (("b", "Z", "COUNT"), ("c", "a", "MAX"), ("a", None, "COUNT")):
        value = {} if aggregation == "COUNT" else {"valueProperty": "$.n"}
        body = {"slug": slug, "name": name, "eventType": "e", "aggregation": aggregation, **value}
        assert client.post("/api/v1/meters", json=body).status_code == 201
    assert client.put("/api/v1/meters/b", json={"name": "Z"}).status_code == 200


def listed(client: httpx.Client, **parameters: Any) -> list[str]:
    answer = client.get("/api/v1/meters", params=parameters)
    assert answer.status_code == 200, answer.text
    return [meter["slug"] for meter in answer.json()]


KONG = ["api_requests_total", "llm_tokens_total"]


@pytest.mark.parametrize(
    ("order_by", "slugs"),
    [
        ("key", ["a", KONG[0], "b", "c", KONG[1]]),
        ("aggregation", ["a", KONG[0], "b", "c", KONG[1]]),
        ("createdAt", [*KONG, "b", "c", "a"]),
        ("updatedAt", [*KONG, "c", "a", "b"]),
    ],
)
def test_they_are_listed_in_the_order_asked_for(
    client: httpx.Client, order_by: str, slugs: list[str]
) -> None:
    assert listed(client, orderBy=order_by) == listed(client, orderBy=order_by, order="ASC") == slugs


def test_the_last_may_come_first(client: httpx.Client) -> None:
    assert listed(client, order="DESC") == listed(client)[::-1]
    # What is equal, as what was made at one instant is, stays in the order of its slug.
    assert listed(client, orderBy="createdAt", order="DESC") == ["a", "c", "b", *KONG]
    assert listed(client, orderBy="aggregation", order="DESC") == [KONG[1], "c", "a", KONG[0], "b"]


def test_a_meter_without_a_name_is_ordered_by_its_slug(client: httpx.Client) -> None:
    slugs = [slug for slug in listed(client, orderBy="name") if slug not in KONG]
    assert slugs == ["b", "a", "c"]  # Z, a for want of a name, a


def test_without_a_page_all_are_listed_and_pages_make_up_the_list(client: httpx.Client) -> None:
    pages = [listed(client, page=n, pageSize=2, order="DESC") for n in (1, 2, 3, 4)]
    assert [len(page) for page in pages] == [2, 2, 1, 0]
    assert [slug for page in pages for slug in page] == listed(client, order="DESC")
    assert listed(client, pageSize=2) == ["a", KONG[0]]
    assert listed(client, page=1) == listed(client)
    assert listed(client, page=2) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("page", 0), ("pageSize", 0), ("pageSize", 1001), ("order", "up"), ("orderBy", "slug")],
)
def test_an_order_or_page_that_there_is_not_is_refused(
    client: httpx.Client, name: str, value: object
) -> None:
    parameters: dict[str, Any] = {name: value}
    found = assert_problem(client.get("/api/v1/meters", params=parameters), 400)
    assert found["extensions"]["validationErrors"][0]["field"] == f"$.{name}"
