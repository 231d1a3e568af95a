"""Billing profiles, who is invoiced by them, apps and custom invoicing through the official OpenMeter SDK."""

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from typing import Any

import httpx
import openmeter
import openmeter.models
import pytest
from corehttp.exceptions import HttpResponseError, ResourceExistsError, ResourceNotFoundError

from tests.server import ADMIN_KEY, Server, assert_problem

models: Any = openmeter.models
"""Untyped here: the SDK's annotations know no billing cadence but a timedelta, which has no months."""

SANDBOX = "00000000000000000000000003"
DEFAULT = "00000000000000000000000004"
UNKNOWN = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
_numbers = count(1)


@pytest.fixture(scope="module")
def sdk(server: Server) -> Iterator[Any]:
    with openmeter.Client(endpoint=server.url, token=ADMIN_KEY) as client:
        yield client


def key(stem: str) -> str:
    """Unlike any other in this module's database."""
    return f"{stem}_{next(_numbers)}"


def wanted(app_id: str = SANDBOX, *, workflow: Any = None, **changes: Any) -> Any:
    usual = {"name": key("profile"), "supplier": models.BillingParty(name="ACME"), "default": False}
    apps = models.BillingProfileAppsCreate(tax=app_id, invoicing=app_id, payment=app_id)
    return models.BillingProfileCreate(
        **{**usual, **changes}, workflow=workflow or models.BillingWorkflowCreate(), apps=apps
    )


def replacing(profile: Any, **changes: Any) -> Any:
    kept = {"name": profile.name, "supplier": profile.supplier, "default": profile.default}
    return models.BillingProfileReplaceUpdateWithWorkflow(**{"workflow": profile.workflow, **kept, **changes})


def a_customer(sdk: Any, stem: str = "customer", **more: Any) -> Any:
    name = key(stem)
    return sdk.customers.create(models.CustomerCreate(name=name, key=name, **more))


def pinned(sdk: Any, profile_id: str | None) -> Any:
    customer = a_customer(sdk)
    pin = models.BillingProfileCustomerOverrideCreate(billing_profile_id=profile_id)
    sdk.customer_overrides.upsert(customer.id, pin)
    return customer


def refused(call: Any, *arguments: object, status: int = 400) -> list[tuple[str, str]]:
    """The codes and places of what a refusal says."""
    with pytest.raises(HttpResponseError) as error:
        call(*arguments)
    assert error.value.status_code == status
    answer: Any = error.value.response
    return [(found["code"], found["field"]) for found in answer.json()["extensions"]["validationErrors"]]


# -- Profiles ------------------------------------------------------------------------------------------------


def test_a_profile_comes_back_as_it_was_sent(sdk: Any) -> None:
    anchor = datetime(2026, 1, 15, tzinfo=UTC)
    period = models.RecurringPeriodV2(interval="P1M", anchor=anchor)
    alignment = models.BillingWorkflowCollectionAlignmentAnchored(type="anchored", recurring_period=period)
    workflow = models.BillingWorkflowCreate(
        collection=models.BillingWorkflowCollectionSettings(alignment=alignment, interval="PT2H"),
        invoicing=models.BillingWorkflowInvoicingSettings(
            auto_advance=False,
            draft_period="P1D",
            due_after="P14D",
            progressive_billing=False,
            subscription_end_proration_mode="bill_actual_period",
            default_tax_config=models.TaxConfig(behavior="inclusive"),
        ),
        payment=models.BillingWorkflowPaymentSettings(collection_method="send_invoice"),
        tax=models.BillingWorkflowTaxSettings(enabled=True, enforced=True),
    )
    supplier = models.BillingParty(
        key="acme",
        name="ACME",
        tax_id=models.BillingPartyTaxIdentity(code="DE1"),
        addresses=[models.Address(country="DE", city="Berlin")],
    )
    made = sdk.billing_profiles.create(
        wanted(workflow=workflow, supplier=supplier, description="EU", metadata={"a": "b"})
    )
    found = sdk.billing_profiles.get(made.id)
    assert found.as_dict() == made.as_dict()
    assert (found.description, found.metadata, found.default) == ("EU", {"a": "b"}, False)
    assert found.supplier.as_dict() == supplier.as_dict()
    kept = models.BillingWorkflowCollectionAlignmentAnchored(found.workflow.collection.alignment)
    assert (kept.recurring_period.anchor, kept.recurring_period.interval) == (anchor, "P1M")
    assert found.workflow.as_dict()["invoicing"] == workflow.as_dict()["invoicing"]
    assert found.workflow.as_dict()["payment"] == {"collectionMethod": "send_invoice"}
    assert found.workflow.as_dict()["tax"] == {"enabled": True, "enforced": True}
    assert found.as_dict()["apps"] == {name: {"id": SANDBOX} for name in ("tax", "invoicing", "payment")}


def test_what_is_left_out_of_the_workflow_is_as_openmeter_has_it(sdk: Any) -> None:
    workflow = sdk.billing_profiles.create(wanted()).workflow
    assert workflow.as_dict() == {
        "collection": {"alignment": {"type": "subscription"}, "interval": "PT1H"},
        "invoicing": {
            "autoAdvance": True,
            "draftPeriod": "P0D",
            "dueAfter": "P30D",
            "progressiveBilling": True,
            "subscriptionEndProrationMode": "bill_actual_period",
        },
        "payment": {"collectionMethod": "charge_automatically"},
        "tax": {"enabled": True, "enforced": False},
    }


def test_a_profile_is_replaced_and_may_be_sent_back_as_it_was_got(sdk: Any, client: httpx.Client) -> None:
    made = sdk.billing_profiles.create(wanted(description="old"))
    changed = sdk.billing_profiles.update(made.id, replacing(made, name="New"))
    assert (changed.name, changed.description, changed.workflow) == ("New", None, made.workflow)
    url = f"/api/v1/billing/profiles/{made.id}"
    assert client.put(url, json=client.get(url, params={"expand": "apps"}).json()).status_code == 200


def test_a_profile_is_deleted_and_found_by_those_who_ask_for_the_archived(sdk: Any) -> None:
    made = sdk.billing_profiles.create(wanted())
    sdk.billing_profiles.delete(made.id)
    living = [one.id for one in sdk.billing_profiles.list(page_size=1000).items_property]
    archived = sdk.billing_profiles.list(include_archived=True, page_size=1000).items_property
    assert made.id not in living
    assert [one.deleted_at is not None for one in archived if one.id == made.id] == [True]
    assert refused(sdk.billing_profiles.delete, made.id) == [("profile_already_deleted", "$")]


def test_profiles_are_listed_in_pages_with_their_apps(sdk: Any) -> None:
    made = [sdk.billing_profiles.create(wanted(name=name)).id for name in ("~a", "~b")]
    page = sdk.billing_profiles.list(expand=["apps"], order="DESC", order_by="name", page=1, page_size=2)
    assert ([one.id for one in page.items_property], page.page_size) == (made[::-1], 2)
    assert page.total_count >= 3
    apps = page.items_property[0].as_dict()["apps"]
    assert apps["tax"] == apps["invoicing"] == apps["payment"]
    assert (apps["tax"]["id"], apps["tax"]["type"], apps["tax"]["status"]) == (SANDBOX, "sandbox", "ready")
    first = sdk.billing_profiles.list(order="DESC", order_by="default", page_size=1).items_property
    assert [one.default for one in first] == [True]


def test_there_is_always_one_default_profile(sdk: Any) -> None:
    (before,) = [one for one in sdk.billing_profiles.list().items_property if one.default]
    made = sdk.billing_profiles.create(wanted(default=True))
    assert not sdk.billing_profiles.get(before.id).default
    assert refused(sdk.billing_profiles.delete, made.id) == [("default_profile_cannot_be_deleted", "$")]
    assert refused(sdk.billing_profiles.update, made.id, replacing(made, default=False)) == [
        ("default_profile_cannot_be_unset", "$.default")
    ]
    sdk.billing_profiles.update(before.id, replacing(before, default=True))
    assert not sdk.billing_profiles.get(made.id).default
    sdk.billing_profiles.delete(made.id)


def test_what_is_wrong_with_a_profile_is_said_with_its_place(sdk: Any) -> None:
    bad = models.BillingWorkflowCreate(
        collection=models.BillingWorkflowCollectionSettings(interval="-PT1H"),
        invoicing=models.BillingWorkflowInvoicingSettings(draft_period="soon"),
    )
    assert refused(sdk.billing_profiles.create, wanted(workflow=bad, supplier=models.BillingParty())) == [
        ("field_required", "$.supplier.name"),
        ("field_must_be_positive_or_zero", "$.workflow.collection.interval"),
        ("invalid_duration", "$.workflow.invoicing.draftPeriod"),
    ]
    assert refused(sdk.billing_profiles.create, wanted(UNKNOWN)) == [("app_not_found", "$.apps.invoicing")]
    with pytest.raises(ResourceNotFoundError):
        sdk.billing_profiles.get(UNKNOWN)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"name": ""}, "$.name"),
        ({"default": "perhaps"}, "$.default"),
        ({"supplier": {"name": "ACME", "vat": "1"}}, "$.supplier.vat"),
        ({"workflow": {"invoicing": {"dueIn": "P1D"}}}, "$.workflow.invoicing.dueIn"),
        (
            {"workflow": {"collection": {"alignment": {"type": "monthly"}}}},
            "$.workflow.collection.alignment.type",
        ),
        (
            {
                "workflow": {
                    "collection": {
                        "alignment": {
                            "type": "anchored",
                            "recurringPeriod": {"interval": "P1M", "anchor": "2026-01-01T00:00:00"},
                        }
                    }
                }
            },
            "$.workflow.collection.alignment.recurringPeriod.anchor",
        ),
        ({"apps": {"tax": SANDBOX, "invoicing": SANDBOX}}, "$.apps.payment"),
    ],
)
def test_a_body_that_is_not_understood_is_refused(
    client: httpx.Client, change: dict[str, Any], place: str
) -> None:
    body = {
        "name": "A",
        "supplier": {"name": "ACME"},
        "default": False,
        "workflow": {},
        "apps": {"tax": SANDBOX, "invoicing": SANDBOX, "payment": SANDBOX},
    }
    found = assert_problem(client.post("/api/v1/billing/profiles", json=body | change), 400)
    assert [issue["field"] for issue in found["extensions"]["validationErrors"]] == [place]


# -- Customers -----------------------------------------------------------------------------------------------


def test_a_customer_is_pinned_and_let_go(sdk: Any) -> None:
    profile = sdk.billing_profiles.create(wanted())
    customer = a_customer(sdk)
    before = sdk.customer_overrides.get(customer.id)
    assert (before.base_billing_profile_id, before.customer_override) == (DEFAULT, None)
    assert before.customer_profile.supplier.name == "Your company"
    pin = models.BillingProfileCustomerOverrideCreate(billing_profile_id=profile.id)
    after = sdk.customer_overrides.upsert(customer.id, pin)
    assert (after.base_billing_profile_id, after.customer_override.billing_profile_id) == (profile.id,) * 2
    assert after.customer_override.customer_id == customer.id
    assert after.customer_profile.supplier.name == "ACME"
    whole = sdk.customer_overrides.get(customer.id, expand=["apps", "customer"])
    assert whole.customer.key == customer.key
    assert whole.as_dict()["customerProfile"]["apps"]["payment"]["type"] == "sandbox"
    assert refused(sdk.billing_profiles.delete, profile.id) == [("profile_referenced", "$")]
    default = sdk.customer_overrides.upsert(customer.id, models.BillingProfileCustomerOverrideCreate())
    assert (default.base_billing_profile_id, default.customer_override.billing_profile_id) == (DEFAULT, None)
    sdk.customer_overrides.delete(customer.id)
    assert sdk.customer_overrides.get(customer.id).customer_override is None
    with pytest.raises(ResourceNotFoundError):
        sdk.customer_overrides.delete(customer.id)


def test_a_pin_to_nothing_is_refused(sdk: Any) -> None:
    customer = a_customer(sdk)
    pin = models.BillingProfileCustomerOverrideCreate(billing_profile_id=UNKNOWN)
    assert refused(sdk.customer_overrides.upsert, customer.id, pin) == [
        ("profile_not_found", "$.billingProfileId")
    ]
    for call in (sdk.customer_overrides.get, sdk.customer_overrides.delete):
        with pytest.raises(ResourceNotFoundError):
            call(UNKNOWN)


def test_customers_are_listed_by_every_filter(sdk: Any) -> None:
    profile = sdk.billing_profiles.create(wanted())
    first, second, free = (
        pinned(sdk, profile.id),
        pinned(sdk, None),
        a_customer(sdk, primary_email="a@b.example"),
    )
    ids = [one.id for one in (first, second, free)]

    def listed(**question: Any) -> list[str]:
        page = sdk.customer_overrides.list(**{"customer_id": ids, "expand": ["customer"], **question})
        assert page.total_count == len(page.items_property)
        return [one.customer.id for one in page.items_property]

    assert listed() == listed(order_by="customerCreatedAt") == ids
    assert listed(order="DESC", order_by="customerName") == ids[::-1]
    assert listed(include_all_customers=False) == ids[:2]
    assert listed(customers_without_pinned_profile=True) == ids[1:]
    assert listed(billing_profile=[profile.id]) == ids[:1]
    assert listed(billing_profile=[DEFAULT]) == ids[1:]
    assert listed(customer_key=first.key) == listed(customer_name=first.name) == ids[:1]
    assert listed(customer_primary_email="B.EXAMPLE") == ids[2:]
    page = sdk.customer_overrides.list(customer_id=ids, page=2, page_size=1)
    assert ([one.base_billing_profile_id for one in page.items_property], page.total_count) == ([DEFAULT], 3)
    assert page.items_property[0].customer is None


# -- Apps ----------------------------------------------------------------------------------------------------


def as_app(found: Any) -> Any:
    """The SDK hands out what is one of several types as it came; here it has its type."""
    return models.CustomInvoicingApp(found)


def a_custom_app(sdk: Any, *, draft: bool = False, issuing: bool = False) -> Any:
    request = models.MarketplaceInstallRequestPayload(name="Ours")
    app = as_app(sdk.marketplace.install("custom_invoicing", request).app)
    hooks = {"enable_draft_sync_hook": draft, "enable_issuing_sync_hook": issuing}
    change = models.CustomInvoicingAppReplaceUpdate(type="custom_invoicing", name="Ours", **hooks)
    return as_app(sdk.apps.update(app.id, change))


def installed_ids(sdk: Any) -> list[str]:
    return [as_app(one).id for one in sdk.apps.list(page_size=1000).items_property]


def test_the_marketplace_lists_what_can_be_installed(sdk: Any) -> None:
    page = sdk.marketplace.list()
    assert [one.type for one in page.items_property] == ["sandbox", "custom_invoicing"]
    found = sdk.marketplace.get("custom_invoicing")
    assert found.as_dict() == page.items_property[1].as_dict()
    assert [one.type for one in found.capabilities] == ["calculateTax", "invoiceCustomers", "collectPayments"]
    assert found.install_methods == ["no_credentials_required"]
    assert [one.type for one in sdk.marketplace.list(page=2, page_size=1).items_property] == [
        "custom_invoicing"
    ]
    with pytest.raises(ResourceNotFoundError):
        sdk.marketplace.get("stripe")


def test_apps_are_installed_changed_and_uninstalled(sdk: Any) -> None:
    request = models.MarketplaceInstallRequestPayload(name="Ours", create_billing_profile=False)
    installed = sdk.marketplace.install("custom_invoicing", request)
    assert installed.default_for_capability_types == []
    app = as_app(installed.app)
    assert (app.name, app.type, app.status, app.listing.type) == (
        "Ours",
        "custom_invoicing",
        "ready",
        "custom_invoicing",
    )
    assert (app.enable_draft_sync_hook, app.enable_issuing_sync_hook) == (False, False)
    change = models.CustomInvoicingAppReplaceUpdate(
        type="custom_invoicing",
        name="Theirs",
        metadata={"a": "b"},
        enable_draft_sync_hook=True,
        enable_issuing_sync_hook=True,
    )
    changed = as_app(sdk.apps.update(app.id, change))
    assert (changed.name, changed.metadata, changed.enable_draft_sync_hook) == ("Theirs", {"a": "b"}, True)
    assert as_app(sdk.apps.get(app.id)) == changed
    assert app.id in installed_ids(sdk)
    sandbox = models.SandboxAppReplaceUpdate(type="sandbox", name="Sandbox")
    assert refused(sdk.apps.update, app.id, sandbox) == [("app_type_mismatch", "$.type")]
    assert as_app(sdk.apps.update(SANDBOX, sandbox)).name == "Sandbox"
    sdk.apps.uninstall(app.id)
    assert app.id not in installed_ids(sdk)
    assert refused(sdk.apps.uninstall, app.id) == [("app_uninstalled", "$")]


def test_an_app_is_installed_with_a_profile_where_one_is_asked_for(sdk: Any) -> None:
    request = models.MarketplaceInstallRequestPayload(name="With a profile", create_billing_profile=True)
    installed = sdk.marketplace.install("custom_invoicing", request)
    assert installed.default_for_capability_types == []
    found = sdk.billing_profiles.list(page_size=1000).items_property
    (profile,) = [one for one in found if one.name == "With a profile"]
    assert (profile.default, profile.apps["invoicing"]["id"]) == (False, as_app(installed.app).id)


def test_an_app_that_is_relied_on_stays_and_there_is_one_sandbox(sdk: Any) -> None:
    assert refused(sdk.apps.uninstall, SANDBOX, status=409) == [("app_in_use", "$")]
    with pytest.raises(ResourceExistsError):
        sdk.marketplace.install("sandbox", models.MarketplaceInstallRequestPayload())


def test_other_ways_to_install_say_that_they_are_none(sdk: Any, client: httpx.Client) -> None:
    with_key = {"apiKey": "secret"}
    assert refused(sdk.marketplace.install_with_api_key, "sandbox", with_key) == [
        ("install_method_not_supported", "$")
    ]
    listings = "/api/v1/marketplace/listings"
    assert_problem(client.post(f"{listings}/stripe/install", json={}), 404)
    assert_problem(client.post(f"{listings}/stripe/install/apikey", json=with_key), 404)
    for place in ("oauth2", "oauth2/authorize"):
        answer = client.get(f"{listings}/sandbox/install/{place}")
        assert_problem(answer, 400, "install_method_not_supported")


def test_what_an_app_knows_of_a_customer_is_kept_and_forgotten(sdk: Any) -> None:
    customer, app, other = a_customer(sdk), a_custom_app(sdk), a_custom_app(sdk)
    ours = models.CustomInvoicingCustomerAppData(type="custom_invoicing", id=app.id, metadata={"no": "7"})
    sandbox = models.SandboxCustomerAppData(type="sandbox")

    def known(**question: Any) -> list[tuple[str, Any]]:
        found = sdk.customer_apps.list_app_data(customer.key, **question)
        assert found.total_count == len(found.items_property)
        return [(one["app"]["id"], one.get("metadata")) for one in found.items_property]

    saved = sdk.customer_apps.upsert_app_data(customer.id, [ours, sandbox])
    assert [(one["id"], one["type"]) for one in saved] == [(app.id, "custom_invoicing"), (SANDBOX, "sandbox")]
    assert known() == [(SANDBOX, None), (app.id, {"no": "7"})]
    sdk.customer_apps.upsert_app_data(customer.id, [*saved[:1], {"type": "custom_invoicing", "id": other.id}])
    assert known(type="custom_invoicing") == [(app.id, {"no": "7"}), (other.id, {})]
    sdk.customer_apps.delete_app_data(customer.id, app.id)
    assert known() == [(SANDBOX, None), (other.id, {})]
    with pytest.raises(ResourceNotFoundError):
        sdk.customer_apps.delete_app_data(customer.id, app.id)
    sdk.apps.uninstall(other.id)
    assert known() == [(SANDBOX, None)]


def test_of_what_an_app_knows_all_is_kept_or_nothing(sdk: Any) -> None:
    customer, app, _ = a_customer(sdk), a_custom_app(sdk), a_custom_app(sdk)
    for wrong, expected in (
        ({"type": "custom_invoicing"}, ("app_id_required", "$[1].id")),
        ({"type": "custom_invoicing", "id": UNKNOWN}, ("app_not_found", "$[1].id")),
        ({"type": "sandbox", "id": app.id}, ("app_type_mismatch", "$[1].type")),
    ):
        call = sdk.customer_apps.upsert_app_data
        assert refused(call, customer.id, [{"type": "sandbox"}, wrong]) == [expected]
    assert sdk.customer_apps.list_app_data(customer.id).items_property == []


# -- Custom invoicing ----------------------------------------------------------------------------------------


def billed(sdk: Any, app_id: str = SANDBOX, **more: Any) -> Any:
    """The invoice of a customer's first month, as far as it goes by itself."""
    profile = sdk.billing_profiles.create(wanted(app_id))
    customer = a_customer(sdk, **more)
    pin = models.BillingProfileCustomerOverrideCreate(billing_profile_id=profile.id)
    sdk.customer_overrides.upsert(customer.id, pin)
    price = models.FlatPriceWithPaymentTerm(type="flat", amount="20", payment_term="in_advance")
    discounts = models.Discounts(percentage=models.DiscountPercentage(percentage=10))
    card = models.RateCardFlatFee(
        type="flat_fee", key="seat", name="Seat", billing_cadence="P1M", price=price, discounts=discounts
    )
    phase = models.PlanPhase(key="main", name="Main", duration=None, rate_cards=[card])
    draft = models.PlanCreate(
        key=key("plan"), name="Plan", currency="USD", billing_cadence="P1M", phases=[phase]
    )
    plan = sdk.plans.publish(sdk.plans.create(draft).id)
    reference = models.PlanReferenceInput(key=plan.key)
    sdk.subscriptions.create(models.PlanSubscriptionCreate(plan=reference, customer_id=customer.id))
    action = models.InvoicePendingLinesActionInput(customer_id=customer.id)
    (invoice,) = sdk.invoices.invoice_pending_lines_action(action)
    return invoice


def state(sdk: Any, invoice: Any) -> str:
    return str(sdk.invoice.get_invoice(invoice.id).status_details.extended_status)


def told(sdk: Any, invoice: Any, trigger: str) -> None:
    request = models.CustomInvoicingUpdatePaymentStatusRequest(trigger=trigger)
    sdk.app_custom_invoicing.payment_status(invoice.id, request)


def test_the_sandbox_pays_at_once_or_as_the_customer_says(sdk: Any) -> None:
    wish = {"openmeter.io/sandbox/target-payment-status": "failed"}
    assert billed(sdk).status == "paid"
    assert billed(sdk, metadata=wish).status_details.extended_status == "payment_processing.failed"


def test_an_invoice_goes_through_a_system_of_ones_own(sdk: Any) -> None:
    invoice = billed(sdk, a_custom_app(sdk, draft=True, issuing=True).id)
    assert invoice.status_details.extended_status == "draft.syncing"
    line = invoice.lines[0].as_dict()
    (detail,) = line["children"]
    (discount,) = detail["discounts"]["amount"]
    synced = models.CustomInvoicingSyncResult(
        invoice_number=key("EXT"),
        external_id="ext-1",
        line_external_ids=[
            models.CustomInvoicingLineExternalIdMapping(line_id=id_, external_id=f"ext-{id_}")
            for id_ in (line["id"], detail["id"])
        ],
        line_discount_external_ids=[
            models.CustomInvoicingLineDiscountExternalIdMapping(
                line_discount_id=discount["id"], external_id="ext-d"
            )
        ],
    )
    request = models.CustomInvoicingDraftSynchronizedRequest(invoicing=synced)
    assert sdk.app_custom_invoicing.draft_syncronized(invoice.id, request) is None
    issuing = sdk.invoice.get_invoice(invoice.id)
    assert issuing.status_details.extended_status == "issuing.syncing"
    assert (issuing.number, issuing.external_ids.invoicing) == (synced.invoice_number, "ext-1")
    line = issuing.lines[0].as_dict()
    (detail,) = line["children"]
    assert [one["externalIds"]["invoicing"] for one in (line, detail)] == [
        f"ext-{line['id']}",
        f"ext-{detail['id']}",
    ]
    assert detail["discounts"]["amount"][0]["externalIds"] == {"invoicing": "ext-d"}
    sent_at = datetime(2026, 3, 1, tzinfo=UTC)
    number = key("FINAL")
    final = models.CustomInvoicingFinalizedRequest(
        invoicing=models.CustomInvoicingFinalizedInvoicingRequest(
            invoice_number=number, sent_to_customer_at=sent_at
        ),
        payment=models.CustomInvoicingFinalizedPaymentRequest(external_id="pay-1"),
    )
    assert sdk.app_custom_invoicing.finalized(invoice.id, final) is None
    issued = sdk.invoice.get_invoice(invoice.id)
    assert issued.status_details.extended_status == "payment_processing.pending"
    assert (issued.number, issued.sent_to_customer_at) == (number, sent_at)
    assert issued.external_ids.as_dict() == {"invoicing": "ext-1", "payment": "pay-1"}
    told(sdk, invoice, "paid")
    assert state(sdk, invoice) == "paid"


@pytest.mark.parametrize(
    ("trigger", "status"),
    [
        ("payment_failed", "payment_processing.failed"),
        ("payment_uncollectible", "uncollectible"),
        ("payment_overdue", "overdue"),
        ("action_required", "payment_processing.action_required"),
        ("void", "voided"),
    ],
)
def test_what_became_of_a_payment(sdk: Any, trigger: str, status: str) -> None:
    invoice = billed(sdk, a_custom_app(sdk).id)
    told(sdk, invoice, trigger)
    assert state(sdk, invoice) == status


def test_what_is_told_out_of_turn_or_wrongly_changes_nothing(sdk: Any, client: httpx.Client) -> None:
    app = a_custom_app(sdk, draft=True)
    invoice = billed(sdk, app.id)
    out_of_turn = [("invoice_action_not_available", "$")]
    assert refused(told, sdk, invoice, "paid") == out_of_turn
    final = models.CustomInvoicingFinalizedRequest()
    assert refused(sdk.app_custom_invoicing.finalized, invoice.id, final) == out_of_turn
    stranger = models.CustomInvoicingLineExternalIdMapping(line_id=UNKNOWN, external_id="x")
    wrong = models.CustomInvoicingDraftSynchronizedRequest(
        invoicing=models.CustomInvoicingSyncResult(invoice_number="N", line_external_ids=[stranger])
    )
    assert refused(sdk.app_custom_invoicing.draft_syncronized, invoice.id, wrong) == [
        ("invoice_line_not_found", "$.invoicing.lineExternalIds[0].lineId")
    ]
    twice = {"invoicing": {"lineExternalIds": [{"lineId": UNKNOWN, "externalId": x} for x in "ab"]}}
    url = f"/api/v1/apps/custom-invoicing/{invoice.id}/draft/synchronized"
    answer = client.post(url, json=twice)
    assert_problem(answer, 400, "duplicate_external_id", "$.invoicing.lineExternalIds")
    unchanged = sdk.invoice.get_invoice(invoice.id)
    assert (unchanged.number, unchanged.status_details.extended_status) == (invoice.number, "draft.syncing")
    assert refused(told, sdk, billed(sdk), "paid") == out_of_turn
    with pytest.raises(ResourceNotFoundError):
        sdk.app_custom_invoicing.finalized(UNKNOWN, final)


def test_an_app_with_an_open_invoice_is_not_uninstalled(sdk: Any) -> None:
    app = a_custom_app(sdk)
    invoice = billed(sdk, app.id)
    sdk.customer_overrides.delete(invoice.customer.id)
    sdk.billing_profiles.delete(invoice.workflow.source_billing_profile_id)
    assert refused(sdk.apps.uninstall, app.id, status=409) == [("app_in_use", "$")]
    told(sdk, invoice, "paid")
    sdk.apps.uninstall(app.id)
