"""From a line down to its events, and whether today's events are those that were billed."""

import json
from decimal import Decimal

import httpx
import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session

from billing.contracts.customer import Customer
from billing.invoices.invoice import InvoiceLine, InvoiceNotFoundError
from billing.invoices.invoicing import collect
from billing.proof.explain import Explanation, LineNotFoundError, Metered, explain_line
from metering.event_set import Asked, EventDigest, counted_events, digests_of
from metering.filter_string import FilterString
from metering.meter import MeterDefinition
from metering.period import Period
from tests.billed_world import a_billed_world, known_at, voided_at
from tests.billing_clock import bill_until, invoices_of
from tests.builders import START, a_customer, a_plan, at, fee, per_unit, phase, sign_up, spent
from tests.server import assert_problem, refusal, tollgate


@pytest.fixture(scope="module", autouse=True)
def people(shared_engine: Engine) -> dict[str, Customer]:
    """Every test sees the same world, and what it does to it is undone."""
    with Session(shared_engine, expire_on_commit=False) as session, session.begin():
        return a_billed_world(session)


def january(session: Session, customer: Customer) -> list[InvoiceLine]:
    """The lines for the customer's tokens of January, in their order."""
    lines = [
        one for invoice in invoices_of(session) if invoice.customer_id == customer.id for one in invoice.lines
    ]
    found = [one for one in lines if one.name == "tokens" and one.service_start == at("2026-01-01")]
    return sorted(found, key=lambda one: one.sequence)


def explained(session: Session, line: InvoiceLine, limit: int = 100) -> Explanation:
    return explain_line(session, line.invoice_id, line.id, limit=limit)


def usage(session: Session, line: InvoiceLine) -> Metered:
    found = explained(session, line).metered
    assert found is not None
    return found


def test_the_days_of_each_line_sum_to_what_was_billed_as_it_was_known_then(
    session: Session, people: dict[str, Customer]
) -> None:
    lines = january(session, people["ada"])
    found = [usage(session, line) for line in lines]
    assert [one.quantity for one in found] == [900, 1307, 1367, 1400]
    assert [one.known_then for one in found] == [one.quantity for one in found]
    assert [sum(row.value for row in one.windows) for one in found] == [one.quantity for one in found]
    days = [f"{row.window.start:%m-%d} {row.value}" for row in found[1].windows]
    assert days == ["01-02 7", "01-08 900", "01-18 400"]


def test_it_names_the_lines_before_it_and_what_they_billed(
    session: Session, people: dict[str, Customer]
) -> None:
    lines = january(session, people["ada"])
    found = explained(session, lines[2])
    assert [(one.line.id, one.counted) for one in found.earlier] == [(line.id, True) for line in lines[:2]]
    before = sum(one.line.totals.amount for one in found.earlier)
    assert before + found.line.totals.amount == Decimal("11.84")  # 1000 at 0.01 and 367 at 0.005
    again = [line for one in invoices_of(session) for line in one.lines if line.released_at]
    for line in again:
        (later,) = [
            one for one in session.query(InvoiceLine).filter_by(identity=line.identity) if one.sequence == 1
        ]
        assert [one.counted for one in explained(session, later).earlier] == [False]


def test_the_digest_that_was_stored_says_whether_the_events_are_the_same(
    session: Session, people: dict[str, Customer]
) -> None:
    first, *_, last = january(session, people["ada"])
    settled, early = usage(session, last), usage(session, first)
    assert settled.billed == settled.then == settled.now
    assert settled.billed is not None
    assert (settled.billed.count, settled.same_events) == (5, True)
    assert not settled.change.came
    assert not settled.change.went
    assert early.billed == early.then
    assert (early.billed and early.billed.count, early.same_events) == (1, False)


def test_what_came_and_what_went_since_is_named(session: Session, people: dict[str, Customer]) -> None:
    *_, last = january(session, people["ada"])
    late = spent("ada", 5, "2026-01-05")
    known_at(session, "2026-06-01", late)
    gone = usage(session, last).events[0]
    session.execute(
        text("INSERT INTO voided_events VALUES (:key, 'x', '2026-06-02', NULL)"), {"key": gone.key}
    )
    found = usage(session, last)
    assert [one.id for one in found.change.came] == [late.id]
    assert [(one.id, one.voided_at) for one in found.change.went] == [(gone.id, at("2026-06-02"))]
    assert found.same_events is False
    assert [found.known_then, found.known_now] == [1400, 1400 + 5 - 33]
    assert found.then == found.billed != found.now


def test_an_event_that_was_taken_out_of_the_database_is_missed(
    session: Session, people: dict[str, Customer]
) -> None:
    """Nothing says that it went: only the digest knows that it was there."""
    *_, last = january(session, people["ada"])
    session.execute(text("DELETE FROM events WHERE key = :key"), {"key": usage(session, last).events[0].key})
    found = usage(session, last)
    assert (found.same_events, found.then == found.billed, found.change.went) == (False, False, [])


def test_a_voided_event_is_explained_by_the_line_that_takes_it_back(
    session: Session, people: dict[str, Customer]
) -> None:
    before, after = january(session, people["eve"])
    assert [one.value for one in usage(session, before).events] == [700]
    assert [one.voided_at for one in usage(session, before).change.went] == [at("2026-02-10")]
    assert usage(session, after).events == []
    assert usage(session, after).billed == EventDigest(count=0, digest="0" * 32)


def test_a_fee_and_what_was_taken_back_have_no_usage(session: Session) -> None:
    lines = [line for one in invoices_of(session) for line in one.lines if line.name == "seat"]
    assert all(explained(session, line).metered is None for line in lines[:3])


def test_what_is_not_there_is_not_found(session: Session, people: dict[str, Customer]) -> None:
    line, other = january(session, people["ada"])[0], january(session, people["eve"])[0]
    with pytest.raises(LineNotFoundError):
        explain_line(session, line.invoice_id, other.id)
    with pytest.raises(InvoiceNotFoundError):
        explain_line(session, "nowhere", line.id)


# -- Sets of events ------------------------------------------------------------------------------------------

METER = MeterDefinition(
    event_type="llm", aggregation="SUM", value_property="$.tokens", group_by={"model": "$.model"}
)
MARCH = Period(start=at("2026-03-01"), end=at("2026-04-01"))


def asked(*subjects: str, **more: object) -> Asked:
    return Asked(meter=METER, subjects=subjects, period=MARCH, **more)  # type: ignore[arg-type]


def test_a_digest_does_not_know_order_and_knows_each_event(session: Session) -> None:
    one, two, three = (spent("yan", 1, f"2026-03-0{day}") for day in (1, 2, 3))
    known_at(session, "2026-03-05", three, one)
    (first,) = digests_of(session, [asked("yan")])
    known_at(session, "2026-03-06", two)
    then, now, none = digests_of(session, [asked("yan", as_of=at("2026-03-05")), asked("yan"), asked("xun")])
    voided_at(session, "2026-03-07", two)
    (again,) = digests_of(session, [asked("yan")])
    assert first == then == again
    assert first is not None
    assert now is not None
    assert (first.count, now.count) == (2, 3)
    assert first.digest != now.digest
    assert none == EventDigest(count=0, digest="0" * 32)


def test_conditions_and_subjects_choose_the_events(session: Session) -> None:
    known_at(
        session,
        "2026-03-05",
        spent("yan", 1, "2026-03-01", model="a"),
        spent("zoe", 2, "2026-03-02", model="a"),
        spent("zoe", 3, "2026-03-03", model="b"),
        spent("zoe", 4, "2026-04-01", model="a"),
    )
    only = {"model": FilterString(eq="a")}
    questions = [asked("yan", "zoe"), asked("yan", "zoe", conditions=only), asked("zoe", conditions=only)]
    assert [one and one.count for one in digests_of(session, questions)] == [3, 2, 1]
    found = counted_events(session, questions[1], limit=10)
    assert [f"{one.subject} {one.value} {one.group['model']}" for one in found] == ["zoe 2 a", "yan 1 a"]


def test_of_too_many_events_there_is_no_digest(session: Session) -> None:
    known_at(session, "2026-03-05", *(spent("yan", 1, f"2026-03-0{day}") for day in (1, 2, 3)))
    assert digests_of(session, [asked("yan")], most=2) == [None]
    assert digests_of(session, [asked("yan")], most=3) != [None]


def test_pages_of_events_follow_each_other_without_a_gap(session: Session) -> None:
    events = [spent("yan" if day % 2 else "zoe", day, "2026-03-01") for day in range(1, 8)]
    known_at(session, "2026-03-05", *events)
    whole = counted_events(session, asked("yan", "zoe"), limit=100)
    paged, after = [], None
    while page := counted_events(session, asked("yan", "zoe"), after=after, limit=3):
        paged += page
        after = page[-1].cursor
    assert paged == whole
    assert len({one.id for one in paged}) == len(events)


# -- Over HTTP and on the command line -----------------------------------------------------------------------


def test_the_whole_way_over_http(
    client: httpx.Client, shared_engine: Engine, people: dict[str, Customer]
) -> None:
    with Session(shared_engine) as session:
        line = january(session, people["ada"])[1]
    url = f"/api/v1/billing/invoices/{line.invoice_id}"
    body = client.get(f"{url}/lines/{line.id}/explain", params={"limit": 2}).raise_for_status().json()
    assert [detail["sum"] for detail in body["details"]] == [
        "100 x 0.01 = 1.00 (tier 1: above 0 up to 1000)",
        "307 x 0.005 = 1.535, rounded to 1.54 (tier 2: above 1000)",
    ]
    assert body["rateCard"]["price"]["mode"] == "graduated"
    assert [one["counted"] for one in body["earlier"]] == [True]
    used = body["usage"]
    assert (used["quantity"], used["knownThen"], used["addsUp"]) == ("1307", "1307", True)
    assert sum(Decimal(window["value"]) for window in used["windows"]) == 1307
    assert used["billedEvents"] == used["eventsThen"]
    assert [event["value"] for event in used["events"]] == ["400", "900"]
    rest = client.get(f"{url}/lines/{line.id}/explain", params={"cursor": used["nextCursor"]}).json()["usage"]
    assert [event["value"] for event in rest["events"]] == ["7"]
    assert "nextCursor" not in rest
    again = client.get(f"{url}/replay").raise_for_status().json()
    assert (again["identical"], [one["identical"] for one in again["lines"]]) == (True, [True])
    assert_problem(client.get(f"{url}/lines/nothing/explain"), 404)
    assert_problem(client.get("/api/v1/billing/invoices/nothing/replay"), 404)


def test_on_the_command_line(database_url: str) -> None:
    """Nothing wrong is status 0; a cent that was changed by hand is status 1."""
    engine, environment = create_engine(database_url), {"TOLLGATE_DATABASE_URL": database_url}
    with Session(engine) as session, session.begin():
        plan = a_plan(session, phase(fee("20")))
        sign_up(session, a_customer(session), plan)
        bill_until(session, START)
    sound, same = (tollgate(*words, environment=environment) for words in COMMANDS)
    assert (sound.returncode, sound.stdout) == (0, "Everything that was billed is right.\n"), sound.stderr
    assert (same.returncode, same.stdout.splitlines()[-1]) == (
        0,
        "INV-KOAI-1, 20.00 USD: identical to the last digit.",
    )
    with engine.begin() as connection:
        connection.execute(text("UPDATE invoice_lines SET amount = 20.01"))
    wrong, other = (tollgate(*words, environment=environment) for words in COMMANDS)
    assert (wrong.returncode, other.returncode) == (1, 1)
    assert "invoice_total_mismatch: invoice INV-KOAI-1 says 20.00 0 0 0 0 0" in wrong.stdout
    assert "  amount: stored 20.01, computed 20.00" in other.stdout
    told = json.loads(tollgate("audit", "--json", environment=environment).stdout)
    assert {finding["code"] for finding in told} == {
        "invoice_total_mismatch",
        "line_total_mismatch",
        "line_not_reproducible",
    }
    assert refusal("invoice", "replay", "nothing", environment=environment).startswith("no invoice has")


COMMANDS = (("audit",), ("invoice", "replay", "INV-KOAI-1"))


def test_a_draft_is_explained_by_what_is_known_now(session: Session) -> None:
    customer = a_customer(session, "zoe")
    sign_up(session, customer, a_plan(session, phase(per_unit()), key="own"))
    known_at(session, "2026-01-05", spent("zoe", 5, "2026-01-04"))
    (draft,) = collect(session, [customer], now=at("2026-02-01"))
    known_at(session, "2026-02-02", spent("zoe", 6, "2026-01-06"))
    found = usage(session, draft.lines[0])
    assert [found.quantity, found.known_then, found.known_now] == [5, 11, 11]
    assert (found.as_of, found.billed, found.same_events) == (None, None, None)
    assert not found.change.came


def test_a_meter_that_counts_reads_no_value(session: Session) -> None:
    known_at(session, "2026-03-05", spent("yan", 1, "2026-03-01"))
    meter = MeterDefinition(event_type="llm", aggregation="COUNT")
    question = Asked(meter=meter, subjects=("yan",), period=MARCH)
    assert [one.value for one in counted_events(session, question, limit=5)] == [None]
