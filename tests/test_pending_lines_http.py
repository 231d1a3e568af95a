"""Lines added by hand over HTTP: what may be said beside their rate card, and how they are taken back."""

from typing import Any

import httpx
import pytest

from tests.server import assert_problem

FLAT_CARD = {"price": {"type": "flat", "amount": "5", "paymentTerm": "in_arrears"}}
MONTH = {"from": "2026-01-01T00:00:00Z", "to": "2026-02-01T00:00:00Z"}
SETUP = {"name": "Setup", "period": MONTH, "invoiceAt": "2090-01-01T00:00:00Z"}
INCLUSIVE = {"behavior": "inclusive"}


@pytest.mark.parametrize(
    "said",
    [
        {"rateCard": FLAT_CARD, "taxConfig": INCLUSIVE},
        {"rateCard": {**FLAT_CARD, "taxConfig": INCLUSIVE}},
        {"rateCard": {**FLAT_CARD, "taxConfig": INCLUSIVE}, "taxConfig": INCLUSIVE, **FLAT_CARD},
        {**FLAT_CARD, "taxConfig": INCLUSIVE},
    ],
)
def test_tax_is_said_in_the_rate_card_or_beside_it(client: httpx.Client, said: dict[str, Any]) -> None:
    payer = client.post("/api/v1/customers", json={"name": "Ada"}).json()
    path = f"/api/v1/billing/customers/{payer['id']}/invoices/pending-lines"
    made = client.post(path, json={"currency": "USD", "lines": [{**SETUP, **said}]})
    assert made.status_code == 201, made.text
    (line,) = made.json()["lines"]
    assert line["rateCard"]["taxConfig"] == INCLUSIVE


def test_over_http_the_id_is_that_of_the_gathering_invoice(client: httpx.Client) -> None:
    payer = client.post("/api/v1/customers", json={"name": "Ada", "key": "takes-back"}).json()
    path = "/api/v1/billing/customers/takes-back/invoices/pending-lines"
    made = client.post(path, json={"currency": "USD", "lines": [{**SETUP, "rateCard": FLAT_CARD}]}).json()
    answer = client.put(f"/api/v1/billing/invoices/{made['invoice']['id']}", json=made["invoice"])
    problem = assert_problem(answer, 400, "invoice_cannot_be_edited")
    assert "DELETE" in problem["extensions"]["validationErrors"][0]["hint"]
    deleted = client.delete(f"{path}/{made['lines'][0]['id']}")
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert_problem(client.delete(f"{path}/{made['lines'][0]['id']}"), 404)
    assert client.get(f"/api/v1/billing/invoices?customers={payer['id']}").json()["items"] == []
