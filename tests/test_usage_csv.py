"""Usage as CSV: who gets it, and what is in it."""

import csv
import io
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest

from api.http.usage_csv import usage_csv, wants_csv
from metering.meter import UsageRow
from metering.period import Period
from tests.server import assert_problem

JUNE = datetime(2026, 6, 1, tzinfo=UTC)
QUERY = "/api/v1/meters/tabled/query"


@pytest.mark.parametrize(
    ("accept", "csv_"),
    [
        ("text/csv", True),
        ("Text/CSV; charset=utf-8", True),
        ("text/*", True),
        ("text/csv, application/json", True),
        ("text/csv, */*", True),
        ("application/json;q=0.5, text/csv", True),
        ("application/json;q=0.5,text/csv;q=0.6", True),
        ("text/html, text/csv;q=0.9, */*;q=0.8", True),
        ("*/*, application/json;q=0", True),
        ("application/json", False),
        ("application/json, text/csv", False),
        ("text/csv;q=0.5, application/json", False),
        ("text/csv; q=0.1, */*", False),
        ("text/csv;q=0", False),
        ("text/csv;q=0, */*", False),
        ("text/csv2", False),
        ("text/html", False),
        ("*/*", False),
        ("application/*, text/csv;q=0.999", False),
        ("", False),
        ("nonsense", False),
    ],
)
def test_who_prefers_csv_gets_it(accept: str, csv_: bool) -> None:
    assert wants_csv(accept) is csv_


def row(value: str, **group: str) -> UsageRow:
    return UsageRow(
        window=Period(start=JUNE, end=JUNE + timedelta(days=1)), group=group, value=Decimal(value)
    )


def read(table: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(table, newline=""), strict=True))


def test_a_table_without_groups() -> None:
    assert usage_csv([row("1E+2")], ()) == (
        "window_start,window_end,value\r\n2026-06-01T00:00:00Z,2026-06-02T00:00:00Z,100\r\n"
    )
    assert usage_csv([], ("model",)) == "window_start,window_end,model,value\r\n"


def test_owners_come_before_other_dimensions_whatever_was_asked_first() -> None:
    asked = ("type", "customer_id", "model", "subject")
    found = read(usage_csv([row("1", type="t", customer_id="c", model="m", subject="s")], asked))
    assert found[0] == ["window_start", "window_end", "subject", "customer_id", "type", "model", "value"]
    assert found[1][2:] == ["s", "c", "t", "m", "1"]


@pytest.mark.parametrize(
    "text", ["", "a,b", 'say "x"', "two\r\nlines", "ü", " ", "'", "a=b", "-5", "+4.5", "-"]
)
def test_a_text_is_read_back_as_it_was(text: str) -> None:
    assert read(usage_csv([row("1", model=text)], ("model",)))[1][2] == text


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "@SUM(A1)",
        "+1+1",
        "-1+cmd|' /C calc'!A0",
        "\t=1",
        "\r=1",
        "--5",
        "+49 30 1234",
        "=HYPERLINK(1)",
    ],
)
def test_what_a_spreadsheet_would_run_follows_an_apostrophe(text: str) -> None:
    assert read(usage_csv([row("1", model=text)], ("model",)))[1][2] == f"'{text}"


DIGITS = "123456789012345678901234567890.000000000000000000001"


@pytest.fixture(scope="module", autouse=True)
def _usage(client: httpx.Client) -> None:
    meter = {
        "slug": "tabled",
        "eventType": "tabled",
        "aggregation": "SUM",
        "valueProperty": "$.n",
        "groupBy": {"model": "$.model"},
    }
    assert client.post("/api/v1/meters", json=meter).status_code == 201
    events = [
        {
            "id": str(i),
            "source": "csv",
            "type": "tabled",
            "subject": subject,
            "time": (JUNE + timedelta(hours=i)).isoformat(),
            "data": {"n": number, "model": model},
        }
        for i, (subject, number, model) in enumerate(
            [("a", DIGITS, "m,1"), ("b", "-1.50", "=m"), ("a", "3", "x")]
        )
    ]
    assert client.post("/api/v1/events", json=events).status_code == 204


def asked(client: httpx.Client, **question: Any) -> list[list[str]]:
    """The same by GET and by POST."""
    headers = {"Accept": "text/csv"}
    answers = [
        client.get(QUERY, params=question, headers=headers),
        client.post(QUERY, json=question, headers=headers),
    ]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "text/csv; charset=utf-8"
        assert answer.headers["content-disposition"] == 'attachment; filename="tabled.csv"'
        assert answer.headers["vary"] == "Accept"
    assert answers[0].text == answers[1].text
    return read(answers[0].text)


def test_each_row_is_a_line_with_every_digit(client: httpx.Client) -> None:
    day = ["2026-06-01T00:00:00Z", "2026-06-02T00:00:00Z"]
    assert asked(client, windowSize="DAY", groupBy=["model", "subject"]) == [
        ["window_start", "window_end", "subject", "model", "value"],
        [*day, "b", "'=m", "-1.50"],
        [*day, "a", "m,1", DIGITS],
        [*day, "a", "x", "3"],
    ]


def test_customers_and_several_subjects_have_columns(client: httpx.Client) -> None:
    body = {"name": "A", "usageAttribution": {"subjectKeys": ["a"]}}
    customer = client.post("/api/v1/customers", json=body).json()["id"]
    table = asked(client, filterCustomerId=[customer], **{"from": "2026-06-01T02:00:00Z"})
    assert [line[2:] for line in table] == [["customer_id", "value"], [customer, "3"]]
    table = asked(client, subject=["a", "b"], to="2026-06-01T02:00:00Z")
    assert [line[2:] for line in table] == [["subject", "value"], ["a", DIGITS], ["b", "-1.50"]]


def test_json_says_that_it_depends_on_what_is_accepted(client: httpx.Client) -> None:
    answer = client.get(QUERY)
    assert (answer.headers["content-type"], answer.headers["vary"]) == ("application/json", "Accept")


def test_an_error_is_a_problem_whatever_is_accepted(client: httpx.Client) -> None:
    answer = client.get(QUERY, params={"groupBy": "colour"}, headers={"Accept": "text/csv"})
    assert_problem(answer, 400, "unknown_group_by", "$.groupBy")
