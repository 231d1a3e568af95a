"""Documents over HTTP: by Accept, by a template of one's own, and the usage behind a line as CSV."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from pypdf import PdfReader
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from billing.invoices.invoice import Invoice
from tests.billing_clock import bill_until, invoices_of
from tests.builders import (
    a_customer,
    a_metered_feature,
    a_plan,
    at,
    fee,
    per_unit,
    phase,
    sign_up,
    spent,
    store,
)
from tests.server import Server, assert_problem

INVOICES = "/api/v1/billing/invoices"


@pytest.fixture(scope="module")
def invoice(shared_engine: Engine) -> Invoice:
    """Paid, with usage of 33 tokens and a fee."""
    with Session(shared_engine, expire_on_commit=False) as session, session.begin():
        a_metered_feature(session)
        sign_up(session, a_customer(session, "ada"), a_plan(session, phase(fee("20"), per_unit("0.1"))))
        store(session, spent("ada", "25", "2026-01-10"), spent("ada", "8", "2026-01-20T23:59"))
        bill_until(session, at("2026-02-02"))
        return invoices_of(session)[-1]


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("templates") / "mine.html"


@pytest.fixture(scope="module")
def server(shared_database_url: str, mine: Path) -> Iterator[Server]:
    """With a template of its own, which the tests write."""
    settings = {"TOLLGATE_DATABASE_URL": shared_database_url, "TOLLGATE_INVOICE_TEMPLATE": str(mine)}
    with Server(environment=settings) as server:
        yield server


def document(client: httpx.Client, invoice_id: str, accept: str | None = None) -> httpx.Response:
    headers = {} if accept is None else {"Accept": accept}
    return client.get(f"{INVOICES}/{invoice_id}/document", headers=headers)


@pytest.mark.parametrize("accept", [None, "text/html,application/xhtml+xml,*/*;q=0.8", "application/json"])
def test_a_document_is_html_by_the_template_unless_pdf_is_asked_for(
    client: httpx.Client, invoice: Invoice, mine: Path, accept: str | None
) -> None:
    mine.write_text("<p>{{ document.title }} {{ document.number }} {{ document.total_text }}</p>")
    answer = document(client, invoice.id, accept)
    assert answer.text == f"<p>Invoice {invoice.number} USD 23.30</p>"
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-disposition"] == f'inline; filename="{invoice.number}.html"'
    assert answer.headers["content-security-policy"].startswith(
        "default-src 'none'; style-src 'unsafe-inline'"
    )
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_it_is_a_pdf_when_that_is_liked_best(client: httpx.Client, invoice: Invoice) -> None:
    answer = document(client, invoice.id, "text/html;q=0.5, application/pdf")
    assert answer.headers["content-type"] == "application/pdf"
    assert answer.headers["content-disposition"] == f'inline; filename="{invoice.number}.pdf"'
    assert answer.headers["vary"] == "Accept"
    (page,) = PdfReader(BytesIO(answer.content)).pages
    assert f"Invoice {invoice.number}" in page.extract_text()
    assert document(client, invoice.id, "application/pdf").content == answer.content


def test_a_broken_template_is_a_problem_that_names_its_line_and_pdf_needs_none(
    client: httpx.Client, invoice: Invoice, mine: Path
) -> None:
    mine.write_text("<p>\n{{ document.number")
    answer = document(client, invoice.id)
    found = assert_problem(answer, 503, "invoice_template_broken")
    assert found["detail"].startswith("the invoice template mine.html can't be used: line 2: ")
    assert document(client, invoice.id, "application/pdf").is_success


def test_nothing_of_the_database_is_held_while_a_document_is_written(
    client: httpx.Client, invoice: Invoice, mine: Path, shared_engine: Engine
) -> None:
    """The template is a pipe, so that the server waits for it for as long as we look."""
    held = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND state LIKE 'idle in transaction%'"
    )
    mine.unlink(missing_ok=True)
    os.mkfifo(mine)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(document, client, invoice.id)
        with mine.open("w") as template, shared_engine.connect() as connection:
            assert connection.scalar(held) == 0
            template.write("{{ document.number }}")
        assert answer.result().text == invoice.number
    mine.unlink()


def test_an_invoice_or_line_that_is_not_there_is_a_404(client: httpx.Client, invoice: Invoice) -> None:
    nobody = "01JXQ8Y8V4Z5W6N7P8Q9R0S1T2"
    assert_problem(document(client, nobody), 404)
    assert_problem(document(client, nobody, "application/pdf"), 404)
    assert_problem(client.get(f"{INVOICES}/{nobody}/lines/{invoice.lines[0].id}/usage"), 404)
    unknown = client.get(f"{INVOICES}/{invoice.id}/lines/{nobody}/usage")
    assert_problem(unknown, 404, "invoice_line_not_found")


def test_the_usage_behind_a_line_is_csv(client: httpx.Client, invoice: Invoice) -> None:
    usage, seat = sorted(invoice.lines, key=lambda line: line.position)
    answer = client.get(f"{INVOICES}/{invoice.id}/lines/{usage.id}/usage")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == f'attachment; filename="{invoice.number}-1.csv"'
    assert answer.text.splitlines() == [
        "window_start,window_end,value",
        "2026-01-10T00:00:00Z,2026-01-11T00:00:00Z,25",
        "2026-01-20T00:00:00Z,2026-01-21T00:00:00Z,8",
    ]
    nothing = client.get(f"{INVOICES}/{invoice.id}/lines/{seat.id}/usage")
    assert_problem(nothing, 404, "line_without_usage")
