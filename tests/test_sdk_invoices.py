"""Every invoice operation of the official OpenMeter SDK; our own for taxes, credit notes and payments."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import count
from typing import Any

import httpx
import openmeter
import openmeter.models
import pytest
from corehttp.exceptions import HttpResponseError, ResourceNotFoundError

from tests.server import ADMIN_KEY, Server, assert_problem

models: Any = openmeter.models
"""Untyped here: the SDK's annotations know no billing cadence but a timedelta, which has no months."""

UNKNOWN = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
SANDBOX = "00000000000000000000000003"
USES = ("tax", "invoicing", "payment")
WISH = "openmeter.io/sandbox/target-payment-status"
DAY = timedelta(days=1)
_numbers = count(1)


@pytest.fixture(scope="module")
def sdk(server: Server) -> Iterator[Any]:
    with openmeter.Client(endpoint=server.url, token=ADMIN_KEY) as client:
        yield client


@pytest.fixture(scope="module")
def today(sdk: Any) -> datetime:
    """When the server says that it is, to the second."""
    made: datetime = sdk.customers.create(models.CustomerCreate(name="clock", key="clock")).created_at
    return made.replace(microsecond=0)


@pytest.fixture(scope="module")
def plan(sdk: Any) -> str:
    """A fee of 10 a month in advance, and 0.50 for each of 1 token of LLM usage."""
    feature = models.FeatureCreateInputs(key="tokens", name="Tokens", meter_slug="llm_tokens_total")
    sdk.features.create(feature)
    price = models.FlatPriceWithPaymentTerm(type="flat", amount="10", payment_term="in_advance")
    seat = models.RateCardFlatFee(
        type="flat_fee", key="seat", name="Seat", feature_key=None, billing_cadence="P1M", price=price
    )
    unit = models.UnitPriceWithCommitments(type="unit", amount="0.5")
    usage = models.RateCardUsageBased(
        type="usage_based",
        key="tokens",
        name="Tokens",
        feature_key="tokens",
        billing_cadence="P1M",
        price=unit,
    )
    phase = models.PlanPhase(key="main", name="Main", duration=None, rate_cards=[seat, usage])
    wanted = models.PlanCreate(key="pro", name="Pro", currency="USD", billing_cadence="P1M", phases=[phase])
    made: str = sdk.plans.publish(sdk.plans.create(wanted).id).key
    return made


@pytest.fixture(scope="module")
def by_hand(sdk: Any) -> str:
    """A profile whose invoices wait: an hour for late usage, and then for approval."""
    invoicing = models.BillingWorkflowInvoicingSettings(auto_advance=False)
    profile = models.BillingProfileCreate(
        name="By hand",
        supplier=models.BillingParty(name="ACME"),
        default=False,
        workflow=models.BillingWorkflowCreate(invoicing=invoicing),
        apps=models.BillingProfileAppsCreate(tax=SANDBOX, invoicing=SANDBOX, payment=SANDBOX),
    )
    made: str = sdk.billing_profiles.create(profile).id
    return made


def a_customer(sdk: Any, *, profile: str | None = None, wish: str = "paid", country: str = "DE") -> Any:
    key = f"ada-{next(_numbers)}"
    customer = sdk.customers.create(
        models.CustomerCreate(
            name="Ada Lovelace",
            key=key,
            usage_attribution=models.CustomerUsageAttribution(subject_keys=[f"{key}-keys"]),
            billing_address=models.Address(country=country),
            metadata={WISH: wish},
        )
    )
    if profile is not None:
        pin = models.BillingProfileCustomerOverrideCreate(billing_profile_id=profile)
        sdk.customer_overrides.upsert(customer.id, pin)
    return customer


def invoiced(sdk: Any, plan: str, today: datetime, *, days: int = 3, **more: Any) -> Any:
    """The invoice of a customer who has signed up some days ago; of the fee alone, unless it is to wait."""
    customer = a_customer(sdk, **more)
    start = models.PlanSubscriptionCreate(
        plan=models.PlanReferenceInput(key=plan), customer_id=customer.id, timing=today - days * DAY
    )
    sdk.subscriptions.create(start)
    return invoice_now(sdk, customer.id, progressive_billing_override="profile" in more)


def invoice_now(sdk: Any, customer_id: str, **more: Any) -> Any:
    wanted = models.InvoicePendingLinesActionInput(customer_id=customer_id, **more)
    (invoice,) = sdk.invoices.invoice_pending_lines_action(wanted)
    return invoice


def refused(call: Any, *arguments: object, status: int = 400) -> list[tuple[str, str]]:
    """The codes and places of what a refusal says."""
    with pytest.raises(HttpResponseError) as error:
        call(*arguments)
    assert error.value.status_code == status
    answer: Any = error.value.response
    return [(found["code"], found["field"]) for found in answer.json()["extensions"]["validationErrors"]]


def shown(invoice: Any) -> list[tuple[str, str]]:
    return [(line.name, line.totals.total) for line in invoice.lines]


def line_update(line: Any, **changes: Any) -> Any:
    kept = {"id": line.id, "name": line.name, "period": line.period, "invoice_at": line.invoice_at}
    return models.InvoiceLineReplaceUpdate(**{**kept, "rate_card": line.rate_card, **changes})


def replacing(invoice: Any, *lines: Any, **changes: Any) -> Any:
    invoicing = models.InvoiceWorkflowInvoicingSettingsReplaceUpdate(auto_advance=False)
    settings = models.InvoiceWorkflowSettingsReplaceUpdate(
        invoicing=invoicing, payment=models.BillingWorkflowPaymentSettings()
    )
    usual = {
        "supplier": models.BillingPartyReplaceUpdate(name=invoice.supplier.name),
        "customer": models.BillingPartyReplaceUpdate(name=invoice.customer.name),
        "workflow": models.InvoiceWorkflowReplaceUpdate(workflow=settings),
        "lines": list(lines),
    }
    return models.InvoiceReplaceUpdate(**{**usual, **changes})


# -- OpenMeter's operations ----------------------------------------------------------------------------------


def test_invoice_now_list_and_get(sdk: Any, plan: str, today: datetime) -> None:
    invoice = invoiced(sdk, plan, today)
    assert (invoice.status, invoice.number) == ("paid", "INV-ADLO-1")
    assert shown(invoice) == [("Seat", "10.00")]
    found = sdk.invoice.get_invoice(invoice.id)
    assert (found.id, shown(found), found.totals.total) == (invoice.id, shown(invoice), invoice.totals.total)
    listed = sdk.invoices.list(customers=[invoice.customer.id], statuses=["paid"], expand=["lines"])
    assert [(one.id, shown(one)) for one in listed.items_property] == [(invoice.id, shown(invoice))]
    again = models.InvoicePendingLinesActionInput(customer_id=UNKNOWN)
    with pytest.raises(ResourceNotFoundError):
        sdk.invoices.invoice_pending_lines_action(again)
    ahead = models.InvoicePendingLinesActionInput(customer_id=invoice.customer.id, as_of=today + DAY)
    assert refused(sdk.invoices.invoice_pending_lines_action, ahead) == [
        ("invoice_as_of_in_future", "$.asOf")
    ]
    with pytest.raises(ResourceNotFoundError):
        sdk.invoice.get_invoice(UNKNOWN)


def test_apps_are_whole_when_they_are_asked_for_and_references_otherwise(
    sdk: Any, client: httpx.Client, plan: str, today: datetime
) -> None:
    invoice = invoiced(sdk, plan, today)
    reference, app = {"id": SANDBOX}, client.get(f"/api/v1/apps/{SANDBOX}").json()
    assert sdk.invoice.get_invoice(invoice.id).workflow.apps == dict.fromkeys(USES, reference)
    found = sdk.invoice.get_invoice(invoice.id, expand=["workflow.apps"])
    page = sdk.invoices.list(customers=[invoice.customer.id], expand=["lines", "workflow.apps"])
    whole = [*page.items_property, found]
    assert [one.status for one in whole] == ["gathering", "paid", "paid"]
    assert [one.workflow.apps for one in whole] == [dict.fromkeys(USES, app)] * 3


def test_lines_by_hand_wait_for_the_next_invoice(sdk: Any, today: datetime) -> None:
    customer = a_customer(sdk)
    period = models.Period(from_property=today - 2 * DAY, to=today - DAY)
    price = models.FlatPriceWithPaymentTerm(type="flat", amount="25", payment_term="in_arrears")
    line = models.InvoicePendingLineCreate(
        name="Setup",
        period=period,
        invoice_at=today - DAY,
        rate_card=models.InvoiceUsageBasedRateCard(price=price),
    )
    wanted = models.InvoicePendingLineCreateInput(currency="USD", lines=[line])
    made = sdk.customer_invoice.create_pending_invoice_line(customer.id, wanted)
    assert [(one.name, one.totals.total) for one in made.lines] == [("Setup", "25.00")]
    assert made.is_invoice_new
    assert shown(invoice_now(sdk, customer.id)) == [("Setup", "25.00")]


def test_snapshot_approve_and_what_can_not_advance(
    sdk: Any, plan: str, today: datetime, by_hand: str
) -> None:
    invoice = invoiced(sdk, plan, today, profile=by_hand)
    assert invoice.status_details.extended_status == "draft.waiting_for_collection"
    assert refused(sdk.invoice.advance_action, invoice.id) == [("invoice_cannot_advance", "$")]
    taken = sdk.invoice.snapshot_quantities_action(invoice.id)
    assert taken.status_details.extended_status == "draft.manual_approval_needed"
    assert refused(sdk.invoice.retry_action, invoice.id) == [("invoice_action_not_available", "$")]
    assert sdk.invoice.approve_action(invoice.id).status == "paid"
    assert refused(sdk.invoice.delete_invoice, invoice.id) == [("invoice_delete_failed", "$")]


def test_a_draft_is_deleted_and_an_unpaid_invoice_is_retried_and_voided(
    sdk: Any, plan: str, today: datetime, by_hand: str
) -> None:
    draft = invoiced(sdk, plan, today, profile=by_hand)
    sdk.invoice.delete_invoice(draft.id)
    assert sdk.invoice.get_invoice(draft.id).status == "deleted"
    unpaid = invoiced(sdk, plan, today, wish="failed")
    assert unpaid.status_details.extended_status == "payment_processing.failed"
    assert sdk.invoice.retry_action(unpaid.id).status_details.extended_status == "payment_processing.failed"
    action = models.VoidInvoiceAction(
        percentage=100, action=models.VoidInvoiceLineDiscardAction(type="discard")
    )
    wanted = models.VoidInvoiceActionInput(action=action, reason="wrong customer")
    voided = sdk.invoice.void_invoice_action(unpaid.id, wanted)
    assert (voided.status, voided.voided_at is None) == ("voided", False)
    assert refused(sdk.invoice.void_invoice_action, unpaid.id, wanted) == [
        ("invoice_action_not_available", "$")
    ]


def test_a_draft_is_updated_and_what_is_not_said_of_its_lines_stays(
    sdk: Any, plan: str, today: datetime, by_hand: str
) -> None:
    invoice = invoiced(sdk, plan, today, profile=by_hand)
    seat = next(line for line in invoice.lines if line.name == "Seat")
    price = models.FlatPriceWithPaymentTerm(type="flat", amount="5", payment_term="in_arrears")
    period = models.Period(from_property=today - 2 * DAY, to=today - DAY)
    extra = models.InvoiceLineReplaceUpdate(
        name="Help", period=period, invoice_at=today, rate_card=models.InvoiceUsageBasedRateCard(price=price)
    )
    kept = line_update(seat, name="Two seats", description="As agreed", metadata={"a": "b"})
    wanted = replacing(invoice, kept, extra, description="January", metadata={"po": "7"})
    updated = sdk.invoice.update_invoice(invoice.id, wanted)
    assert shown(updated) == [("Two seats", "10.00"), ("Help", "5.00")]
    assert (updated.description, dict(updated.metadata), updated.totals.total) == (
        "January",
        {"po": "7"},
        "15.00",
    )
    assert updated.lines[0].description == "As agreed"
    assert (updated.lines[0].id, updated.lines[1].managed_by) == (seat.id, "manual")
    again = sdk.invoice.update_invoice(invoice.id, replacing(updated, *map(line_update, updated.lines)))
    assert shown(again) == shown(updated)
    moved = line_update(updated.lines[0], period=period)
    assert refused(sdk.invoice.update_invoice, invoice.id, replacing(updated, moved)) == [
        ("invoice_line_no_period_change_for_subscription_managed_line", "$.lines[0].period")
    ]
    paid = invoiced(sdk, plan, today)
    assert paid.status == "paid"
    assert refused(sdk.invoice.update_invoice, paid.id, replacing(paid)) == [
        ("invoice_cannot_be_edited", "$")
    ]


def test_an_invoice_that_was_read_can_be_sent_back_as_it_is(
    sdk: Any, client: httpx.Client, plan: str, today: datetime, by_hand: str
) -> None:
    invoice = invoiced(sdk, plan, today, profile=by_hand)
    path = f"/api/v1/billing/invoices/{invoice.id}"
    read = client.get(path).json()
    sent_back = client.put(path, json=read)
    assert sent_back.status_code == 200, sent_back.text
    same = {"lines", "supplier", "customer", "totals", "workflow", "number", "draftUntil"}
    changing = {"updatedAt", "children", "discounts"}
    for name in same:
        before, after = read[name], sent_back.json()[name]
        if name == "lines":
            before, after = (
                [{k: v for k, v in line.items() if k not in changing} for line in lines]
                for lines in (before, after)
            )
        assert after == before, name


def test_a_gathering_invoice_can_not_be_edited(sdk: Any, plan: str, today: datetime) -> None:
    customer = invoiced(sdk, plan, today).customer.id
    (gathering,) = sdk.invoices.list(customers=[customer], statuses=["gathering"]).items_property
    assert refused(sdk.invoice.update_invoice, gathering.id, replacing(gathering)) == [
        ("invoice_cannot_be_edited", "$")
    ]
    assert refused(sdk.invoice.recalculate_tax_action, gathering.id) == [("invoice_cannot_be_edited", "$")]
    with pytest.raises(ResourceNotFoundError):
        sdk.invoice.recalculate_tax_action(UNKNOWN)


# -- Our own -------------------------------------------------------------------------------------------------


def a_rate(client: httpx.Client, country: str, percent: float, **more: object) -> Any:
    body = {"name": "VAT", "country": country, "percent": percent, "validFrom": "2020-01-01T00:00:00Z"}
    answer = client.post("/api/v1/billing/tax-rates", json={**body, **more})
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_taxes_are_on_the_line_and_recalculated_when_asked(
    sdk: Any, client: httpx.Client, plan: str, today: datetime, by_hand: str
) -> None:
    rate = a_rate(client, "AT", 20)
    invoice = invoiced(sdk, plan, today, profile=by_hand, country="AT")
    seat = next(line for line in invoice.lines if line.name == "Seat")
    (tax,) = seat.taxes
    assert (tax.percent, tax.behavior, tax["amount"], seat.totals.total) == (20, "exclusive", "2.00", "12.00")
    changed = {**rate, "percent": 10}
    assert client.put(f"/api/v1/billing/tax-rates/{rate['id']}", json=changed).json()["percent"] == 10
    recalculated = sdk.invoice.recalculate_tax_action(invoice.id)
    assert recalculated.totals.taxes_exclusive_total == "1.00"


def test_tax_rates_are_made_listed_changed_and_deleted(client: httpx.Client) -> None:
    rate = a_rate(client, "FR", 5.5, code="txcd_10000000", state="Corse", metadata={"law": "x"})
    path = f"/api/v1/billing/tax-rates/{rate['id']}"
    assert client.get(path).json() == rate
    listed = client.get("/api/v1/billing/tax-rates", params={"country": "FR"}).json()
    assert (listed["totalCount"], listed["items"]) == (1, [rate])
    fields = {"name": "TVA", "country": "FR", "percent": "many", "validFrom": "2020-01-01T00:00:00Z"}
    assert client.put(path, json=fields).status_code == 400
    same = {**rate, "validFrom": "2021-01-01T00:00:00Z"}
    answer = client.post("/api/v1/billing/tax-rates", json=same)
    assert_problem(answer, 409, "tax_rate_overlap", "$.validFrom")
    assert client.delete(path).status_code == 204
    assert client.delete(path).status_code == 404
    assert client.get("/api/v1/billing/tax-rates", params={"country": "FR"}).json()["totalCount"] == 0
    assert "deletedAt" in client.get(path).json()


def test_credit_notes_are_made_listed_and_shown_with_what_they_are_against(
    sdk: Any, client: httpx.Client, plan: str, today: datetime
) -> None:
    invoice = invoiced(sdk, plan, today)
    seat = next(line for line in invoice.lines if line.name == "Seat")
    body = {"invoiceId": invoice.id, "reason": "outage", "lines": [{"lineId": seat.id, "amount": "2.5"}]}
    made = client.post("/api/v1/billing/credit-notes", json=body)
    assert made.status_code == 201, made.text
    note = made.json()
    assert (note["type"], note["totals"]["total"], note["number"]) == ("credit_note", "-2.50", "CN-ADLO-1")
    (preceding,) = note["preceding"]
    assert (preceding["number"], preceding["reason"]) == (invoice.number, "outage")
    assert client.get(preceding["url"]).json()["id"] == invoice.id
    read = client.get(f"/api/v1/billing/credit-notes/{note['id']}").json()
    assert read["totals"] == note["totals"]
    listed = client.get("/api/v1/billing/credit-notes", params={"invoiceId": invoice.id}).json()
    assert [one["id"] for one in listed["items"]] == [note["id"]]
    through_sdk = sdk.invoice.get_invoice(note["id"])
    assert (through_sdk.type, through_sdk.preceding[0]["number"]) == ("credit_note", invoice.number)
    too_much = {**body, "lines": [{"lineId": seat.id, "amount": "7.51"}]}
    answer = client.post("/api/v1/billing/credit-notes", json=too_much)
    assert_problem(answer, 400, "credit_note_exceeds_billed", "$.lines[0].amount")
    assert client.get(f"/api/v1/billing/credit-notes/{invoice.id}").status_code == 404


def test_payments_are_recorded_until_nothing_is_open(
    sdk: Any, client: httpx.Client, plan: str, today: datetime
) -> None:
    invoice = invoiced(sdk, plan, today, wish="failed")
    path = f"/api/v1/billing/invoices/{invoice.id}/payments"
    payment = {"amount": "4", "receivedAt": today.isoformat(), "method": "bank", "reference": "r-1"}
    made = client.post(path, json=payment)
    assert made.status_code == 201, made.text
    assert (made.json()["open"], made.json()["paid"]) == ("6", "4")
    assert_problem(client.post(path, json=payment), 409, "payment_reference_taken", "$.reference")
    rest = {"amount": "6", "receivedAt": today.isoformat()}
    over = {**rest, "amount": "6.01"}
    assert_problem(client.post(path, json=over), 400, "payment_exceeds_open", "$.amount")
    assert client.post(path, json=rest).json()["status"] == "paid"
    assert sdk.invoice.get_invoice(invoice.id).status == "paid"
    account = client.get(path).json()
    assert (account["open"], [one["amount"] for one in account["items"]]) == ("0", ["4", "6"])
