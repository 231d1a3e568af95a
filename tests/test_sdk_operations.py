"""Every operation that the official OpenMeter SDK has for the catalog, for contracts and for billing works.

Which those are is asked of the installed SDK, not of a list: each of them is called against a server, from
its synchronous and from its asynchronous half, and none is left out. What they mean is tested in the modules
beside this one.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count
from typing import Any

import openmeter
import openmeter.aio
import openmeter.models
import pytest
from corehttp.exceptions import HttpResponseError

from tests.server import ADMIN_KEY, Server

models: Any = openmeter.models
"""Untyped here: the SDK's annotations know no billing cadence but a timedelta, which has no months."""

SANDBOX = "00000000000000000000000003"
WISH = "openmeter.io/sandbox/target-payment-status"
DAY = timedelta(days=1)
_numbers = count(1)

METERING = {"events", "events_v2", "meters", "progress", "subjects"}
"""Groups that have nothing to do with billing; tests/test_sdk.py and its neighbours have them."""

LATER = {
    "app_stripe": "payments by Stripe",
    "currencies": "a list of all that there are",
    "customer": "entitlements",
    "customer_entitlement": "entitlements",
    "customer_entitlement_v2": "entitlements",
    "customer_entitlements_v2": "entitlements",
    "customer_stripe": "payments by Stripe",
    "debug": "metrics as text for people; /metrics has them for Prometheus",
    "entitlements": "entitlements",
    "entitlements_v2": "entitlements",
    "grants": "entitlements",
    "grants_v2": "entitlements",
    "notification_channels": "notifications",
    "notification_events": "notifications",
    "notification_rules": "notifications",
    "portal": "the portal",
}
"""Groups whose part of Tollgate does not exist yet, by what it is."""

REFUSED: dict[str, dict[str, Any]] = {
    "marketplace.authorize_o_auth2_install": {"code": "x", "state": "y"},
    "marketplace.get_o_auth2_install_url": {},
    "marketplace.install_with_api_key": {"_": {"apiKey": "secret"}},
}
"""Ways to install an app that none of the apps there are knows; with what they are called here."""


# -- Recording -----------------------------------------------------------------------------------------------


@dataclass
class Recorded:
    """A client that waits for its answers, reads lists to their end, and writes down what was answered."""

    client: Any
    wait: Callable[[Awaitable[Any]], Any]
    answered: set[str] = field(default_factory=set)

    def __getattr__(self, group: str) -> "Group":
        return Group(self, group)

    def call(self, group: str, operation: str, *arguments: object, **more: object) -> Any:
        answer = getattr(getattr(self.client, group), operation)(*arguments, **more)
        if inspect.isawaitable(answer):
            answer = self.wait(answer)
        elif hasattr(answer, "__anext__"):
            answer = self.wait(_read(answer))
        elif hasattr(answer, "by_page"):
            answer = list(answer)
        self.answered.add(f"{group}.{operation}")
        return answer


@dataclass(frozen=True)
class Group:
    recorded: Recorded
    name: str

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        return lambda *arguments, **more: self.recorded.call(self.name, operation, *arguments, **more)


async def _read(pages: Any) -> list[Any]:
    return [item async for item in pages]


async def _waited(answer: Awaitable[Any]) -> Any:
    return await answer


@contextmanager
def synchronous(server: Server) -> Iterator[Recorded]:
    with openmeter.Client(endpoint=server.url, token=ADMIN_KEY) as client:
        yield Recorded(client, wait=lambda answer: answer)


@contextmanager
def asynchronous(server: Server) -> Iterator[Recorded]:
    async def opened() -> Any:
        return await openmeter.aio.Client(endpoint=server.url, token=ADMIN_KEY).__aenter__()

    with asyncio.Runner() as loop:
        client = loop.run(opened())
        yield Recorded(client, wait=lambda answer: loop.run(_waited(answer)))
        loop.run(client.close())


def operations(client: Any) -> dict[str, set[str]]:
    """All that the SDK can do, by group."""
    return {
        group: {name for name, _ in inspect.getmembers(found, inspect.ismethod) if not name.startswith("_")}
        for group, found in vars(client).items()
        if type(found).__name__.endswith("Operations")
    }


# -- The catalog ---------------------------------------------------------------------------------------------


def key(stem: str) -> str:
    """Unlike any other in this module's database."""
    return f"{stem}_{next(_numbers)}"


def seat(amount: str = "10", **more: Any) -> Any:
    price = models.FlatPriceWithPaymentTerm(type="flat", amount=amount, payment_term="in_advance")
    return models.RateCardFlatFee(
        type="flat_fee", key="seat", name="Seat", billing_cadence="P1M", price=price, **more
    )


def usage(feature: str) -> Any:
    price = models.UnitPriceWithCommitments(type="unit", amount="0.5")
    return models.RateCardUsageBased(
        type="usage_based",
        key=feature,
        name="Tokens",
        feature_key=feature,
        billing_cadence="P1M",
        price=price,
    )


def main(*cards: Any) -> list[Any]:
    return [models.PlanPhase(key="main", name="Main", duration=None, rate_cards=list(cards))]


def plan_of(plan_key: str, *cards: Any) -> Any:
    return models.PlanCreate(
        key=plan_key, name=plan_key, currency="USD", billing_cadence="P1M", phases=main(*(cards or [seat()]))
    )


def addon_of(addon_key: str) -> Any:
    return models.AddonCreate(
        key=addon_key, name="More", currency="USD", instance_type="multiple", rate_cards=[seat("4")]
    )


def use_features(sdk: Recorded) -> None:
    name = key("feature")
    wanted = models.FeatureCreateInputs(key=name, name="Tokens", meter_slug="llm_tokens_total")
    made = sdk.features.create(wanted)
    assert sdk.features.get(name).id == made.id
    assert name in [one["key"] for one in sdk.features.list()]
    sdk.features.delete(made.id)
    assert name not in [one["key"] for one in sdk.features.list()]


def use_plans(sdk: Recorded) -> None:
    name = key("plan")
    draft = sdk.plans.create(plan_of(name))
    changed = models.PlanReplaceUpdate(name="New", billing_cadence="P1M", phases=draft.phases)
    assert sdk.plans.update(draft.id, changed).name == "New"
    assert sdk.plans.publish(draft.id).status == "active"
    assert sdk.plans.get(name).name == "New"
    second = sdk.plans.next(name)
    assert [one.version for one in sdk.plans.list(key=[name])] == [1, 2]
    sdk.plans.delete(second.id)
    assert [one.version for one in sdk.plans.list(key=[name])] == [1]
    assert sdk.plans.archive(draft.id).status == "archived"


def use_addons(sdk: Recorded) -> None:
    name = key("addon")
    draft = sdk.addons.create(addon_of(name))
    changed = models.AddonReplaceUpdate(name="New", instance_type="multiple", rate_cards=[seat("5")])
    assert sdk.addons.update(draft.id, changed).name == "New"
    assert sdk.addons.publish(draft.id).status == "active"
    assert sdk.addons.get(name).name == "New"
    plan = sdk.plans.create(plan_of(key("plan")))
    offer = models.PlanAddonCreate(addon_id=draft.id, from_plan_phase="main", max_quantity=5)
    assert sdk.plan_addons.create(plan.id, offer).addon.key == name
    fewer = models.PlanAddonReplaceUpdate(from_plan_phase="main", max_quantity=2)
    assert sdk.plan_addons.update(plan.id, draft.id, fewer).max_quantity == 2
    assert sdk.plan_addons.get(plan.id, draft.id).max_quantity == 2
    assert [one["addon"]["key"] for one in items(sdk.plan_addons.list(plan.id))] == [name]
    sdk.plan_addons.delete(plan.id, draft.id)
    assert items(sdk.plan_addons.list(plan.id)) == []
    assert sdk.addons.archive(draft.id).status == "archived"
    sdk.addons.delete(draft.id)
    assert sdk.addons.list(key=[name]) == []


def items(page: Any) -> list[Any]:
    """Of a page, whose type is not the same everywhere."""
    return list(page["items"])


# -- Contracts -----------------------------------------------------------------------------------------------


def a_customer(sdk: Recorded, **more: Any) -> Any:
    name = key("customer")
    return sdk.customers.create(models.CustomerCreate(name=name, key=name, **more))


def a_plan(sdk: Recorded, plan_key: str | None = None, *cards: Any) -> Any:
    return sdk.plans.publish(sdk.plans.create(plan_of(plan_key or key("plan"), *cards)).id)


def signed(sdk: Recorded, plan: Any, customer: Any, **more: Any) -> Any:
    reference = models.PlanReferenceInput(key=plan.key)
    wanted = models.PlanSubscriptionCreate(plan=reference, customer_id=customer.id, **more)
    return sdk.subscriptions.create(wanted)


def use_customers(sdk: Recorded) -> None:
    made = a_customer(sdk)
    assert sdk.customers.get(made.key).id == made.id
    changed = sdk.customers.update(made.id, models.CustomerReplaceUpdate(name="New", key=made.key))
    assert changed.name == "New"
    assert [one["id"] for one in items(sdk.customers.list(key=made.key))] == [made.id]
    subscription = signed(sdk, a_plan(sdk), made)
    assert [one["id"] for one in items(sdk.customers.list_customer_subscriptions(made.id))] == [
        subscription.id
    ]
    other = a_customer(sdk)
    sdk.customers.delete(other.id)
    assert items(sdk.customers.list(key=other.key)) == []


def use_subscriptions(sdk: Recorded) -> None:
    customer, plan, larger = a_customer(sdk), a_plan(sdk), a_plan(sdk)
    made = signed(sdk, plan, customer)
    assert sdk.subscriptions.get_expanded(made.id).customer_id == customer.id
    edit = models.EditSubscriptionAddItem(op="add_item", phase_key="main", rate_card=seat("12"))
    edits = models.SubscriptionEdit(customizations=[edit], timing="immediate")
    assert sdk.subscriptions.edit(made.id, edits).status == "active"
    assert sdk.subscriptions.cancel(made.id, {"timing": "next_billing_cycle"}).status == "canceled"
    assert sdk.subscriptions.unschedule_cancelation(made.id).status == "active"
    reference = models.PlanReferenceInput(key=larger.key)
    wanted = models.PlanSubscriptionChange(timing="next_billing_cycle", plan=reference)
    sdk.subscriptions.change(made.id, wanted)
    assert sdk.subscriptions.restore(made.id).status == "active"
    following = sdk.subscriptions.change(made.id, wanted).next
    sdk.subscriptions.delete(following.id)
    assert [one["id"] for one in items(sdk.customers.list_customer_subscriptions(customer.id))] == [made.id]
    aging = signed(sdk, plan, a_customer(sdk))
    a_plan(sdk, plan.key)
    assert sdk.subscriptions.migrate(aging.id, {"timing": "immediate"}).next.plan.version == 2


def use_subscription_addons(sdk: Recorded) -> None:
    plan, addon = a_plan(sdk), sdk.addons.publish(sdk.addons.create(addon_of(key("addon"))).id)
    sdk.plan_addons.create(
        plan.id, models.PlanAddonCreate(addon_id=addon.id, from_plan_phase="main", max_quantity=5)
    )
    subscription = signed(sdk, plan, a_customer(sdk))
    wanted = models.SubscriptionAddonCreate(
        name="More",
        quantity=2,
        timing="immediate",
        addon=models.SubscriptionAddonCreateAddon(id=addon.id),
    )
    bought = sdk.subscription_addons.create(subscription.id, wanted)
    more = models.SubscriptionAddonUpdate(quantity=3, timing="immediate")
    assert sdk.subscription_addons.update(subscription.id, bought.id, more).quantity == 3
    assert sdk.subscription_addons.get(subscription.id, bought.id).quantity == 3
    assert [one.id for one in sdk.subscription_addons.list(subscription.id)] == [bought.id]


# -- Profiles and apps ---------------------------------------------------------------------------------------


def a_profile(sdk: Recorded, app_id: str = SANDBOX, **invoicing: Any) -> Any:
    settings = models.BillingWorkflowInvoicingSettings(**invoicing)
    wanted = models.BillingProfileCreate(
        name=key("profile"),
        supplier=models.BillingParty(name="ACME"),
        default=False,
        workflow=models.BillingWorkflowCreate(invoicing=settings),
        apps=models.BillingProfileAppsCreate(tax=app_id, invoicing=app_id, payment=app_id),
    )
    return sdk.billing_profiles.create(wanted)


def pinned(sdk: Recorded, profile: Any, **more: Any) -> Any:
    """A customer who is invoiced by that profile."""
    customer = a_customer(sdk, **more)
    pin = models.BillingProfileCustomerOverrideCreate(billing_profile_id=profile.id)
    assert sdk.customer_overrides.upsert(customer.id, pin).base_billing_profile_id == profile.id
    return customer


def use_profiles(sdk: Recorded) -> None:
    profile = a_profile(sdk)
    assert sdk.billing_profiles.get(profile.id).name == profile.name
    wanted = models.BillingProfileReplaceUpdateWithWorkflow(
        name="New", supplier=profile.supplier, default=False, workflow=profile.workflow
    )
    assert sdk.billing_profiles.update(profile.id, wanted).name == "New"
    assert profile.id in [one["id"] for one in items(sdk.billing_profiles.list(page_size=1000))]
    customer = pinned(sdk, profile)
    assert sdk.customer_overrides.get(customer.id).base_billing_profile_id == profile.id
    assert len(items(sdk.customer_overrides.list(billing_profile=[profile.id]))) == 1
    sdk.customer_overrides.delete(customer.id)
    assert items(sdk.customer_overrides.list(billing_profile=[profile.id])) == []
    sdk.billing_profiles.delete(profile.id)
    assert profile.id not in [one["id"] for one in items(sdk.billing_profiles.list(page_size=1000))]


def a_custom_app(sdk: Recorded, *, hooks: bool = True) -> str:
    """One that has to say that it has the draft, and then that it has issued it."""
    request = models.MarketplaceInstallRequestPayload(name="Ours", create_billing_profile=False)
    app_id = str(sdk.marketplace.install("custom_invoicing", request).app["id"])
    hook(sdk, app_id, hooks=hooks)
    return app_id


def hook(sdk: Recorded, app_id: str, *, hooks: bool) -> None:
    change = models.CustomInvoicingAppReplaceUpdate(
        type="custom_invoicing",
        name="Ours",
        enable_draft_sync_hook=hooks,
        enable_issuing_sync_hook=hooks,
    )
    assert sdk.apps.update(app_id, change)["enableDraftSyncHook"] is hooks


def use_apps(sdk: Recorded) -> None:
    assert "sandbox" in [one["type"] for one in items(sdk.marketplace.list())]
    assert sdk.marketplace.get("sandbox").type == "sandbox"
    app_id, customer = a_custom_app(sdk), a_customer(sdk)
    assert sdk.apps.get(app_id)["id"] == app_id
    known = models.CustomInvoicingCustomerAppData(type="custom_invoicing", id=app_id, metadata={"no": "7"})
    assert [one["id"] for one in sdk.customer_apps.upsert_app_data(customer.id, [known])] == [app_id]
    assert [one["id"] for one in items(sdk.customer_apps.list_app_data(customer.id))] == [app_id]
    sdk.customer_apps.delete_app_data(customer.id, app_id)
    assert items(sdk.customer_apps.list_app_data(customer.id)) == []
    sdk.apps.uninstall(app_id)
    assert app_id not in [one["id"] for one in items(sdk.apps.list(page_size=1000))]


# -- Invoices ------------------------------------------------------------------------------------------------


def billed(sdk: Recorded, customer: Any, *cards: Any, **more: Any) -> Any:
    """The first invoice of one who signs up now, as far as it goes by itself."""
    signed(sdk, a_plan(sdk, None, *cards), customer, **more)
    wanted = models.InvoicePendingLinesActionInput(
        customer_id=customer.id, progressive_billing_override=bool(cards)
    )
    (invoice,) = sdk.invoices.invoice_pending_lines_action(wanted)
    return invoice


def state(invoice: Any) -> str:
    return str(invoice.status_details.extended_status)


def use_invoices(sdk: Recorded) -> None:
    by_hand = a_profile(sdk, auto_advance=False)
    invoice = billed(sdk, pinned(sdk, by_hand))
    assert state(invoice) == "draft.manual_approval_needed"
    assert state(sdk.invoice.get_invoice(invoice.id)) == state(invoice)
    assert [one["id"] for one in items(listed(sdk, invoice))] == [invoice.id]
    assert sdk.invoice.update_invoice(invoice.id, renamed(invoice)).lines[0].name == "Two seats"
    assert sdk.invoice.recalculate_tax_action(invoice.id).totals.total == "10.00"
    assert sdk.invoice.approve_action(invoice.id).status == "paid"
    deleted = billed(sdk, pinned(sdk, by_hand))
    sdk.invoice.delete_invoice(deleted.id)
    assert sdk.invoice.get_invoice(deleted.id).status == "deleted"
    unpaid = billed(sdk, a_customer(sdk, metadata={WISH: "failed"}))
    assert state(sdk.invoice.retry_action(unpaid.id)) == "payment_processing.failed"
    discard = models.VoidInvoiceAction(
        percentage=100, action=models.VoidInvoiceLineDiscardAction(type="discard")
    )
    void = models.VoidInvoiceActionInput(action=discard, reason="wrong customer")
    assert sdk.invoice.void_invoice_action(unpaid.id, void).status == "voided"


def listed(sdk: Recorded, invoice: Any) -> Any:
    return sdk.invoices.list(customers=[invoice.customer.id], statuses=["draft"])


def renamed(invoice: Any) -> Any:
    (line,) = invoice.lines
    kept = {name: getattr(line, name) for name in ("id", "period", "invoice_at", "rate_card")}
    settings = models.InvoiceWorkflowSettingsReplaceUpdate(
        invoicing=models.InvoiceWorkflowInvoicingSettingsReplaceUpdate(auto_advance=False),
        payment=models.BillingWorkflowPaymentSettings(),
    )
    return models.InvoiceReplaceUpdate(
        supplier=models.BillingPartyReplaceUpdate(name=invoice.supplier.name),
        customer=models.BillingPartyReplaceUpdate(name=invoice.customer.name),
        workflow=models.InvoiceWorkflowReplaceUpdate(workflow=settings),
        lines=[models.InvoiceLineReplaceUpdate(**kept, name="Two seats")],
    )


def use_collection(sdk: Recorded) -> None:
    """An invoice that waits for late usage, and does not any more."""
    feature = key("tokens")
    sdk.features.create(models.FeatureCreateInputs(key=feature, name="Tokens", meter_slug="llm_tokens_total"))
    customer = a_customer(sdk)
    waiting = billed(sdk, customer, seat(), usage(feature), timing=made_at(customer) - 3 * DAY)
    assert state(waiting) == "draft.waiting_for_collection"
    assert sdk.invoice.snapshot_quantities_action(waiting.id).status == "paid"


def made_at(found: Any) -> datetime:
    """When the server says that it was, to the second."""
    made: datetime = found.created_at
    return made.replace(microsecond=0)


def use_lines_by_hand(sdk: Recorded) -> None:
    customer = a_customer(sdk)
    today = made_at(customer)
    shared = {
        "name": "Setup",
        "period": models.Period(from_property=today - 2 * DAY, to=today - DAY),
        "invoice_at": today - DAY,
    }
    flat = models.FlatPriceWithPaymentTerm(type="flat", amount="25", payment_term="in_arrears")
    card = models.InvoiceUsageBasedRateCard(price=flat)
    line = models.InvoicePendingLineCreate(**shared, rate_card=card)
    wanted = models.InvoicePendingLineCreateInput(currency="USD", lines=[line])
    made = sdk.customer_invoice.create_pending_invoice_line(customer.id, wanted)
    assert [one.totals.total for one in made.lines] == ["25.00"]
    simulated = models.InvoiceSimulationInput(
        currency="USD", lines=[models.InvoiceSimulationLine(**shared, quantity="1", rate_card=card)]
    )
    assert sdk.customer_invoice.simulate_invoice(customer.id, simulated).totals.total == "25.00"


def use_custom_invoicing(sdk: Recorded) -> None:
    app_id = a_custom_app(sdk)
    profile = a_profile(sdk, app_id)
    invoice = billed(sdk, pinned(sdk, profile))
    assert state(invoice) == "draft.syncing"
    sync = models.CustomInvoicingSyncResult(invoice_number=key("EXT"))
    sdk.app_custom_invoicing.draft_syncronized(
        invoice.id, models.CustomInvoicingDraftSynchronizedRequest(invoicing=sync)
    )
    assert state(sdk.invoice.get_invoice(invoice.id)) == "issuing.syncing"
    sdk.app_custom_invoicing.finalized(invoice.id, models.CustomInvoicingFinalizedRequest())
    assert state(sdk.invoice.get_invoice(invoice.id)) == "payment_processing.pending"
    paid = models.CustomInvoicingUpdatePaymentStatusRequest(trigger="paid")
    sdk.app_custom_invoicing.payment_status(invoice.id, paid)
    assert sdk.invoice.get_invoice(invoice.id).status == "paid"
    held_back = billed(sdk, pinned(sdk, profile))
    hook(sdk, app_id, hooks=False)  # now nobody is waited for any more, and it only has to be told
    assert state(sdk.invoice.advance_action(held_back.id)) == "payment_processing.pending"


# -- All of them ---------------------------------------------------------------------------------------------

USES = (
    use_features,
    use_plans,
    use_addons,
    use_customers,
    use_subscriptions,
    use_subscription_addons,
    use_profiles,
    use_apps,
    use_invoices,
    use_collection,
    use_lines_by_hand,
    use_custom_invoicing,
)


@pytest.mark.parametrize("half", [synchronous, asynchronous], ids=["sync", "aio"])
def test_every_operation_of_the_sdk_is_answered(server: Server, half: Any) -> None:
    with half(server) as sdk:
        for use in USES:
            use(sdk)
        known = operations(sdk.client)
        assert known.keys() >= METERING | LATER.keys(), "an exception for what the SDK has not is none"
        wanted = {
            f"{group}.{operation}"
            for group, names in known.items()
            if group not in METERING | LATER.keys()
            for operation in names
        }
        assert sdk.answered == wanted - REFUSED.keys()
        assert wanted >= REFUSED.keys()


@pytest.mark.parametrize("half", [synchronous, asynchronous], ids=["sync", "aio"])
@pytest.mark.parametrize("operation", REFUSED)
def test_what_no_app_knows_is_refused(server: Server, half: Any, operation: str) -> None:
    """The day one does, it is no exception any more."""
    with half(server) as sdk, pytest.raises(HttpResponseError) as refused:
        sdk.call(*operation.split("."), "sandbox", **REFUSED[operation])
    problem: Any = refused.value.response
    assert refused.value.status_code == 400
    assert [one["code"] for one in problem.json()["extensions"]["validationErrors"]] == [
        "install_method_not_supported"
    ]
