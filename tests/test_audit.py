"""The auditor is silent about what is right, and names what is wrong: each damage by its own finding."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from billing.contracts.customer import Customer
from billing.contracts.subscription_changes import cancel_subscription
from billing.invoices.actions import invoice_now
from billing.invoices.due import billables_of, payers_of
from billing.invoices.invoice import InvoiceLine
from billing.profiles.profile import get_profile
from billing.profiles.workflow import InvoicingSettings
from billing.proof.audit import Finding, UnsoundError, audit, audit_after_run, in_halves, require_sound
from billing.proof.disposition import Reason
from billing.proof.unbilled import WindowTooLongError
from billing.runs.run import run_portion
from metering.period import Period
from tests.billed_world import NOW, a_billed_world, invoice_of, known_at
from tests.billing_clock import bill_until, invoices_of, wrong
from tests.builders import START, a_customer, a_plan, at, fee, per_unit, phase, sign_up, spent


@pytest.fixture(scope="module", autouse=True)
def people(shared_engine: Engine) -> dict[str, Customer]:
    """Every test sees the same world, and what it does to it is undone."""
    with Session(shared_engine, expire_on_commit=False) as session, session.begin():
        return a_billed_world(session)


def codes(findings: Sequence[Finding]) -> list[tuple[str, str]]:
    return sorted((finding.severity, finding.code) for finding in findings)


def test_half_a_year_of_everything_that_can_happen_leaves_no_finding(session: Session) -> None:
    """Late and voided usage, cancelations, progressive invoices, a voided invoice, lines by hand."""
    assert audit(session, now=NOW) == []
    assert audit_after_run(session, []) == []
    assert audit_after_run(session, [invoice.id for invoice in invoices_of(session)]) == []


def test_a_change_that_is_not_yet_billed_is_no_finding(session: Session) -> None:
    zoe = a_customer(session, "zoe")
    signed = sign_up(session, zoe, a_plan(session, phase(fee("20"), per_unit()), key="own"))
    bill_until(session, at("2026-03-05"))
    cancel_subscription(session, signed.id, timing=at("2026-01-20"), now=at("2026-03-05"))
    assert audit(session, now=at("2026-03-05")) == []
    bill_until(session, at("2026-03-05"))
    assert invoice_of(session, zoe, -1).type == "credit_note"
    assert audit(session, now=at("2026-03-05")) == []


def test_lines_that_were_not_asked_for_stay_due(session: Session) -> None:
    zoe = a_customer(session, "zoe")
    sign_up(session, zoe, a_plan(session, phase(fee("20"), fee("7", key="desk")), key="own"))
    (payer,) = payers_of(session, [zoe], {}, START)
    (seat, _) = billables_of(payer, START)
    (early,) = invoice_now(session, zoe.id, line_ids=[seat.line_id], now=START)
    assert [line.name for line in early.lines] == ["seat"]
    bill_until(session, START)
    assert [line.name for line in invoice_of(session, zoe, -1).lines] == ["desk"]


DAMAGES = {
    "invoice_total_mismatch": "UPDATE invoices SET discounts = discounts + 1 WHERE id = :invoice",
    "line_total_mismatch": """
        WITH one AS (UPDATE invoice_lines SET taxes_exclusive = taxes_exclusive + 1 WHERE id = :line
                     RETURNING invoice_id)
        UPDATE invoices SET taxes_exclusive = taxes_exclusive + 1 WHERE id IN (SELECT invoice_id FROM one)""",
    "line_missing": "UPDATE invoice_lines SET sequence = 9 WHERE id = :last",
    "billed_period_gap": """
        UPDATE invoice_lines SET period_start = period_start + interval '1 s' WHERE id = :line""",
    "billed_period_overlap": """
        UPDATE invoice_lines SET period_start = period_start - interval '1 s' WHERE id = :line""",
    "billed_period_end": """
        UPDATE invoice_lines SET period_end = period_end - interval '1 s' WHERE id = :last""",
    "line_of_other_period": "UPDATE invoice_lines SET identity = :elsewhere WHERE identity = :identity",
    "service_periods_overlap": """
        UPDATE invoice_lines
        SET service_end = service_end + interval '1 h', period_end = period_end + interval '1 h'
        WHERE id = :last""",
    "line_of_other_customer": "UPDATE invoices SET customer_id = :other WHERE id = :invoice",
    "issued_incompletely": "UPDATE invoices SET issued_at = NULL WHERE id = :invoice",
    "charge_not_billed": "UPDATE pending_lines SET id = reverse(id)",
    "contract_forgotten": """
        UPDATE subscriptions SET next_billing_at = NULL
        WHERE id IN (SELECT subscription_id FROM invoice_lines WHERE id = :line)""",
    "line_without_charge": "UPDATE subscription_items SET version = 7 WHERE id = :item",
    "number_gap": "UPDATE number_sequences SET last = last + 1 WHERE scope = 'credit_notes'",
    "line_not_reproducible": """
        UPDATE invoice_lines SET usage = jsonb_set(usage, '{quantity}', '"1"') WHERE id = :line""",
}
COMES_ALONG = {
    "line_total_mismatch": {"line_not_reproducible"},
    "line_of_other_period": {"charge_not_billed", "line_without_charge"},
    "issued_incompletely": {"number_gap"},
    "line_without_charge": {"charge_not_billed"},
}
"""What is wrong too when this is."""
AFTER_RUN = set(DAMAGES) - {
    "charge_not_billed",
    "contract_forgotten",
    "line_without_charge",
    "number_gap",
    "line_not_reproducible",
}


def test_a_number_on_a_deleted_document_is_a_gap(session: Session, people: dict[str, Customer]) -> None:
    deleted = "UPDATE invoices SET deleted_at = :now WHERE id = :id"
    session.execute(text(deleted), {"now": NOW, "id": invoice_of(session, people["ada"], 0).id})
    assert "number_gap" in {finding.code for finding in audit(session, now=NOW)}


@pytest.mark.parametrize("code", DAMAGES)
def test_each_damage_gives_its_finding(session: Session, people: dict[str, Customer], code: str) -> None:
    january = lines_of_january(session, people["ada"])
    invoices = {line.invoice_id for line in january}
    named = {
        "invoice": january[1].invoice_id,
        "line": january[1].id,
        "last": january[-1].id,
        "item": january[0].item_id,
        "identity": january[0].identity,
        "elsewhere": january[0].identity.replace("2026-01-01T00", "2026-01-01T01"),
        "other": people["bob"].id,
    }
    session.execute(text(DAMAGES[code]), named)
    session.expire_all()
    found = {finding.code for finding in audit(session, now=NOW)}
    assert code in found
    assert found - {code} == COMES_ALONG.get(code, set())
    assert (code in {finding.code for finding in audit_after_run(session, invoices)}) == (code in AFTER_RUN)


def lines_of_january(session: Session, customer: Customer) -> list[InvoiceLine]:
    """Two in between, the last of the month, and one for usage that came after it."""
    lines = [line for invoice in invoices_of(session) for line in invoice.lines]
    found = [line for line in lines if line.name == "tokens" and line.service_start == at("2026-01-01")]
    theirs = {invoice.id for invoice in invoices_of(session) if invoice.customer_id == customer.id}
    found = sorted((line for line in found if line.invoice_id in theirs), key=lambda line: line.sequence)
    assert [line.last for line in found] == [False, False, True, True]
    return found


def test_a_finding_says_what_is_wrong_and_where(session: Session, people: dict[str, Customer]) -> None:
    line = lines_of_january(session, people["ada"])[1]
    session.execute(text("UPDATE invoices SET amount = 99 WHERE id = :id"), {"id": line.invoice_id})
    session.expire_all()
    (found,) = audit(session, now=NOW)
    assert found.message == (
        "invoice INV-KOAI-7 says 99 0 0.25 0 0 0.43, its lines add up to 2.54 0 0.25 0 0 0.43"
    )
    assert found.ids == {"invoice": line.invoice_id}


def test_what_came_too_late_and_what_nobody_pays_is_told_but_no_error(
    session: Session, people: dict[str, Customer]
) -> None:
    known_at(session, "2026-07-01", spent("ada", 5, "2026-01-03"), spent("nobody", 5, "2026-06-03"))
    late, unbilled = audit(session, now=NOW)
    assert codes([late, unbilled]) == [("info", "events_unbilled"), ("info", "usage_too_late")]
    assert "by now 1405 are known" in late.message
    assert late.ids["line"] == lines_of_january(session, people["ada"])[-1].id
    assert unbilled.message == "1 events since 2026-01-01 are on no invoice: no_customer"


def test_since_leaves_out_the_usage_of_before(session: Session) -> None:
    known_at(session, "2026-07-01", spent("ada", 5, "2026-01-03"), spent("nobody", 5, "2026-01-03"))
    assert audit(session, now=NOW, since=at("2026-02-02")) == []
    assert audit(session, now=NOW, since=NOW) == []


def test_it_tells_how_far_it_is(session: Session) -> None:
    told: list[tuple[str, int, int]] = []
    audit(session, now=NOW, tell=lambda step, done, total: told.append((step, done, total)))
    assert list(dict.fromkeys(step for step, _, _ in told)) == [
        "rows",
        "invoices",
        "contracts",
        "by hand",
        "usage",
        "events",
    ]
    assert all(done <= total for _, done, total in told)
    ends = {step: (done, total) for step, done, total in told}
    assert all(done == total for done, total in ends.values()), ends


def test_what_contradicts_itself_is_not_issued(session: Session, people: dict[str, Customer]) -> None:
    line = lines_of_january(session, people["ada"])[1]
    require_sound(session, [line.invoice_id])
    line.amount += 1
    with pytest.raises(UnsoundError, match=r"refuses to issue: invoice .* says") as refused:
        require_sound(session, [line.invoice_id])
    assert [issue.code for issue in refused.value.issues] == ["invoice_total_mismatch", "line_total_mismatch"]


def test_a_run_leaves_out_the_customer_whose_invoice_contradicts_itself(session: Session) -> None:
    """And says why; the others are billed."""
    plan = a_plan(session, phase(fee("20"), per_unit()), key="own")
    zoe, yan = (a_customer(session, name) for name in ("zoe", "yan"))
    sign_up(session, zoe, plan)
    sign_up(session, yan, plan)
    bill_until(session, at("2026-01-20"))
    (seat,) = invoice_of(session, zoe, -1).lines
    seat.sequence = 1
    cancel_subscription(session, str(seat.subscription_id), now=at("2026-01-20"))
    outcome = run_portion(session, now=at("2026-02-01"))
    assert outcome.failed == {
        zoe.id: f"UnsoundError: the auditor refuses to issue: the lines of {seat.identity} are not numbered"
        " 0 to 2: there are 2"
    }
    assert {one.customer_id for one in outcome.invoices.values()} == {yan.id}
    assert len([one for one in invoices_of(session) if one.customer_id == zoe.id]) == 1


def test_a_contract_that_nobody_can_read_is_told_and_the_others_are_audited(
    session: Session, people: dict[str, Customer]
) -> None:
    session.execute(
        text("UPDATE subscriptions SET billing_cadence = 'P0M' WHERE customer_id = :id"),
        {"id": people["eve"].id},
    )
    session.expire_all()
    found = audit(session, now=NOW)
    assert [finding.code for finding in found] == ["contract_unreadable"]
    assert found[0].ids["customer"] == people["eve"].id


def test_a_period_of_too_many_events_is_judged_in_parts() -> None:
    asked: list[Period] = []

    def count(period: Period) -> dict[Reason, int]:
        if period.length > timedelta(days=10):
            raise WindowTooLongError("too long")
        asked.append(period)
        return {"no_price": 2}

    month = Period(start=at("2026-01-01"), end=at("2026-01-31"))
    assert in_halves(count, month) == {"no_price": 8}
    assert [one.end for one in asked[:-1]] == [one.start for one in asked[1:]]
    assert (asked[0].start, asked[-1].end) == (month.start, month.end)


def test_a_minute_of_too_many_events_can_not_be_judged() -> None:
    def count(_: Period) -> dict[Reason, int]:
        raise WindowTooLongError("too long")

    with pytest.raises(WindowTooLongError):
        in_halves(count, Period(start=START, end=START + timedelta(hours=1)))


def test_drafts_of_a_charge_that_is_none_any_more_come_to_nothing(session: Session) -> None:
    """Two wait for approval; what neither has billed is not given back, and their lines stay numbered."""
    profile = get_profile(session, None)
    profile.workflow = replace(profile.workflow, invoicing=InvoicingSettings(auto_advance=False))
    zoe = a_customer(session, "zoe")
    signed = sign_up(session, zoe, a_plan(session, phase(per_unit()), key="own"))
    for day in ("10", "20"):
        known_at(session, f"2026-01-{day}", spent("zoe", 100, f"2026-01-{day}"))
        (draft,) = invoice_now(session, zoe.id, progressive=True, now=at(f"2026-01-{day}T01:00"))
        bill_until(session, at(f"2026-01-{day}T03:00"))
        assert draft.status == "draft.manual_approval_needed"
        assert draft.totals.total == 1
    cancel_subscription(session, signed.id, timing=START, now=at("2026-01-25"))
    bill_until(session, at("2026-01-25"))
    theirs = [invoice for invoice in invoices_of(session) if invoice.customer_id == zoe.id]
    assert [invoice.totals.total for invoice in theirs] == [0, 0]
    assert wrong(session, at("2026-01-25")) == []
