"""What becomes of one event, by plain examples, and over HTTP."""

from collections.abc import Mapping
from datetime import timedelta

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from billing.proof.disposition import REASONS, Disposition, Reason, Term, decide
from billing.proof.dispositions import EventNotFoundError, disposition_of, dispositions_of
from catalog.features import archive_feature, delete_meter
from catalog.rate_card import RateCard
from metering.event import Event
from metering.filter_string import FilterString
from metering.meter import MeterDefinition
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
from tests.server import assert_problem

NOON = at("2026-03-10T12:00")
TICK = timedelta(microseconds=1)
TOKENS = MeterDefinition(
    event_type="llm", aggregation="SUM", value_property="$.tokens", group_by={"model": "$.model"}
)
CALLS = MeterDefinition(event_type="llm", aggregation="COUNT")
METERS = {"tokens": TOKENS}
SIGNED = Term(subscription_id="S", start=NOON, end=None)
PRICED = Term(
    subscription_id="S",
    start=NOON,
    end=None,
    item_id="I",
    feature_key="tokens",
    meter=TOKENS,
    conditions={"model": FilterString(eq="gpt-4o")},
    priced=True,
)


def changed(**changes: object) -> Term:
    return Term(**{**{name: getattr(PRICED, name) for name in Term.__slots__}, **changes})


def judge(
    event: Event | None = None,
    *terms: Term,
    voided: bool = False,
    meters: Mapping[str, MeterDefinition] = METERS,
    customer: str | None = "C",
) -> Disposition:
    event = event or spent("ada", 7, "2026-03-10T12:00")
    return decide(event, voided=voided, meters=meters, customer_id=customer, terms=terms)


def test_a_priced_item_whose_feature_takes_the_event_bills_it() -> None:
    found = judge(None, SIGNED, PRICED)
    assert found == Disposition(meters=("tokens",), customer_id="C", billed_by=(PRICED,), reason=None)


def test_two_items_may_bill_one_event() -> None:
    calls = changed(item_id="J", feature_key="calls", meter=CALLS, conditions={})
    found = judge(None, SIGNED, PRICED, calls, meters={**METERS, "calls": CALLS})
    assert (found.meters, found.billed_by) == (("tokens", "calls"), (PRICED, calls))


@pytest.mark.parametrize(
    ("reason", "found"),
    [
        ("voided", judge(None, SIGNED, PRICED, voided=True)),
        ("no_meter", judge(None, SIGNED, meters={})),
        ("no_meter", judge(None, SIGNED, meters={"later": CALLS.__class__(
            event_type="llm", aggregation="COUNT", event_from=NOON + TICK)})),
        ("invalid_value", judge(spent("ada", "x", "2026-03-10T12:00"), SIGNED, PRICED)),
        ("invalid_value", judge(
            spent("ada", "x", "2026-03-10T12:00"), SIGNED, PRICED, meters={**METERS, "calls": CALLS})),
        ("no_customer", judge(customer=None)),
        ("no_subscription", judge()),
        ("no_subscription", judge(spent("ada", 7, "2026-03-10T11:59:59.999999"), SIGNED, PRICED)),
        ("included", judge(None, SIGNED, changed(priced=False))),
        ("no_price", judge(None, SIGNED)),
        ("no_price", judge(None, SIGNED, changed(meter=None))),
        ("no_price", judge(spent("ada", 7, "2026-03-10T12:00", model="o1"), SIGNED, PRICED)),
        ("no_price", judge(spent("ada", 7, "2026-03-10T12:00"), SIGNED, changed(end=NOON))),
    ],
)  # fmt: skip
def test_the_reason_is_the_first_that_holds(reason: Reason, found: Disposition) -> None:
    assert found.reason == reason
    assert found.reason in REASONS
    assert found.billed_by == ()


def test_a_price_of_nought_bills_and_a_fee_includes(session: Session) -> None:
    cases: list[tuple[str, RateCard, Reason | None]] = [
        ("nought", per_unit("0"), None),
        ("flat", fee("10", key="tokens", feature="tokens"), "included"),
        ("free", fee(None, key="tokens", feature="tokens"), "included"),
    ]
    for subject, card, reason in cases:
        if subject == "nought":
            a_metered_feature(session)
        sign_up(session, a_customer(session, subject), a_plan(session, phase(card), key=subject))
        event = spent(subject, 1, "2026-03-01")
        store(session, event)
        assert disposition_of(session, source=event.source, event_id=event.id).reason == reason


def test_a_meter_deleted_since_still_bills_those_who_have_its_feature(session: Session) -> None:
    feature = a_metered_feature(session)
    customer = a_customer(session, "ada")
    sign_up(session, customer, a_plan(session, phase(per_unit())))
    archive_feature(session, feature, now=NOON)
    delete_meter(session, "tokens", now=NOON)
    (found,) = dispositions_of(session, [spent("ada", 1, "2026-03-01")])
    assert (found.meters, found.reason, found.customer_id) == ((), None, customer.id)
    assert [term.feature_key for term in found.billed_by] == ["tokens"]


def test_a_retired_event_is_found_with_its_digits(session: Session) -> None:
    a_metered_feature(session)
    event = spent("ada", "1" * 400, "2026-03-01")
    store(session, event)
    session.execute(
        text("WITH old AS (DELETE FROM events RETURNING *) INSERT INTO retired_events SELECT * FROM old")
    )
    found = disposition_of(session, source=event.source, event_id=event.id)
    assert (found.meters, found.reason) == (("tokens",), "no_customer")


def test_an_event_that_is_not_there_is_not_found(session: Session) -> None:
    with pytest.raises(EventNotFoundError, match="'nothing'"):
        disposition_of(session, source="gateway", event_id="nothing")


def send(client: httpx.Client, event_id: str, **members: object) -> None:
    event = {"id": event_id, "source": "a/b", "type": "kong.llm_request", "subject": "somebody", **members}
    assert client.post("/api/v1/events", json=event).status_code == 204


def test_one_event_over_http(client: httpx.Client) -> None:
    send(client, "a/1?x", data={"tokens": 1})
    found = client.get("/api/v1/events/disposition", params={"source": "a/b", "id": "a/1?x"})
    assert found.json() == {
        "source": "a/b",
        "id": "a/1?x",
        "meters": ["llm_tokens_total"],
        "billedBy": [],
        "reason": "no_customer",
    }
    gone = client.get("/api/v1/events/disposition", params={"source": "a/b", "id": "?"})
    assert_problem(gone, 404)
    assert_problem(
        client.get("/api/v1/events/disposition", params={"id": "?"}), 400, "field_required", "$.source"
    )


def test_the_unbilled_ones_over_http(client: httpx.Client) -> None:
    body = {"name": "Acme", "usageAttribution": {"subjectKeys": ["acme-app"]}}
    customer = client.post("/api/v1/customers", json=body).json()["id"]
    for number in range(3):
        send(
            client, f"u{number}", subject="acme-app", data={"tokens": 1}, time=f"2026-03-01T0{number}:00:00Z"
        )
    send(client, "dark", type="dark", subject="acme-app", time="2026-03-01T05:00:00Z")
    period = {"from": "2026-03-01T00:00:00Z", "to": "2026-03-02T00:00:00Z"}
    answer = client.get("/api/v1/events/unbilled", params={**period, "pageSize": "1"}).json()
    (largest,) = answer.pop("items")
    assert answer == {**period, "totalEvents": 4, "totalCount": 2, "page": 1, "pageSize": 1}
    assert largest.pop("sample")["source"] == "a/b"
    assert largest == {
        "reason": "no_subscription",
        "type": "kong.llm_request",
        "subject": "acme-app",
        "customerId": customer,
        "events": 3,
        "firstTime": "2026-03-01T00:00:00Z",
        "lastTime": "2026-03-01T02:00:00Z",
    }
    dark = client.get("/api/v1/events/unbilled", params={**period, "reason": ["no_meter", "voided"]}).json()
    assert [(one["reason"], one["type"], one["sample"]) for one in dark["items"]] == [
        ("no_meter", "dark", {"source": "a/b", "id": "dark"})
    ]


def test_the_last_day_is_what_is_listed_unless_asked_otherwise(client: httpx.Client) -> None:
    send(client, "now", subject="right now")
    send(client, "then", subject="long ago", time="2026-03-01T00:00:00Z")
    found = client.get("/api/v1/events/unbilled").json()["items"]
    assert "right now" in [one["subject"] for one in found]
    assert "long ago" not in [one["subject"] for one in found]


@pytest.mark.parametrize(
    ("parameters", "code", "field"),
    [
        ({"from": "2026-03-02T00:00:00Z", "to": "2026-03-02T00:00:00Z"}, "empty_period", "$.to"),
        ({"from": "yesterday"}, "datetime_from_date_parsing", "$.from"),
        ({"reason": "lost"}, "literal_error", "$.reason[0]"),
        ({"pageSize": "1001"}, "less_than_equal", "$.pageSize"),
        ({"customerId": "x"}, "unknown_field", "$.customerId"),
    ],
)
def test_what_can_not_be_asked(
    client: httpx.Client, parameters: dict[str, str], code: str, field: str
) -> None:
    assert_problem(client.get("/api/v1/events/unbilled", params=parameters), 400, code, field)
