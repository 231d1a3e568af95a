"""Every list costs as many statements for many rows as for one."""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import httpx
import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session
from starlette.types import ASGIApp

from api.http.app import create_app
from api.settings import Settings
from billing.apps.app_changes import install_app
from billing.contracts.customer import Address, Customer
from billing.contracts.subscription_addons import add_addon
from billing.contracts.subscription_changes import cancel_subscription
from billing.contracts.subscriptions import Subscription
from billing.invoices.actions import invoice_now
from billing.invoices.credit_notes import CreditLine, CreditNoteDetails, create_credit_note
from billing.invoices.payments import PaymentDetails, record_payment
from billing.profiles.app import SANDBOX_WISH
from billing.profiles.customer_apps import CustomerAppDetails, save_customer_apps
from billing.profiles.customer_overrides import pin_profile
from billing.profiles.profile import Party
from billing.profiles.profile_changes import ProfileApps, ProfileDetails, create_profile
from billing.profiles.workflow import Workflow
from billing.runs.records import record
from billing.runs.run import Outcome
from billing.taxes.tax_rates import TaxRateDetails, create_tax_rate
from catalog.addons import Addon
from catalog.features import create_feature
from catalog.llm_prices import create_override
from catalog.plan_addons import create_plan_addon
from catalog.plans import Plan, plan_terms
from catalog.unit_cost import LlmPricing
from tests.billing_clock import bill_until, invoices_of
from tests.builders import (
    START,
    a_customer,
    a_draft,
    a_metered_feature,
    a_plan,
    an_addon,
    an_addon_draft,
    at,
    counted_statements,
    fee,
    per_unit,
    phase,
    sign_up,
    spent,
    store,
)

MANY = 9
"""Of each kind of thing, and so many customers."""
NOW = at("2026-04-20")


class Standing:
    """A clock that stands still."""

    async def read(self) -> object:
        return NOW


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """`names` are what paths are written with."""

    app: ASGIApp
    names: dict[str, str]


@pytest.fixture(scope="module")
def world(shared_engine: Engine) -> World:
    with Session(shared_engine) as session, session.begin():
        names = _populated(session)
    front = create_app(shared_engine, Settings(auth=False))
    front.app.state.clock = Standing()  # type: ignore[attr-defined]
    return World(app=front, names=names)


# --- what there is -----------------------------------------------------------------------------------------


def _populated(session: Session) -> dict[str, str]:
    a_metered_feature(session)
    plans = [a_plan(session, phase(fee(), per_unit()), key=f"plan-{n}") for n in range(MANY)]
    addons = [an_addon(session, fee("3", key=f"addon-{n}"), key=f"addon-{n}") for n in range(MANY)]
    _catalog(session, plans[1], addons)
    customers = [_customer(session, n, plans[n]) for n in range(MANY)]
    store(session, *(spent(f"subject-{n}", 10 * n, "2026-02-03") for n in range(MANY)))
    bill_until(session, at("2026-02-20"))
    signed = {one.customer_id: one for one in session.scalars(select(Subscription))}
    names = {"plan": plans[1].id, "contract": signed[customers[1].id].id}
    _again(session, customers[0], plans, signed[customers[0].id])
    _profiles(session, customers)
    bill_until(session, NOW)
    for customer in customers:
        invoice_now(session, customer.id, progressive=True, now=NOW)
    one = signed[customers[2].id].id
    _offer(session, plans[2], addons[0])
    for contract, some in ((names["contract"], addons), (one, addons[:1])):
        for addon in some:
            add_addon(session, contract, addon_id=addon.id, quantity=1, timing="immediate", now=NOW)
    names["contract_with_one"] = one
    return names | _paid(session) | {"customer": customers[0].id}


def _catalog(session: Session, plan: Plan, addons: Sequence[Addon]) -> None:
    for n, addon in enumerate(addons):
        create_feature(session, key=f"feature-{n}", name="Feature", meter_slug="tokens", now=START)
        a_draft(session, phase(fee(), per_unit(feature=f"feature-{n}")), key=f"draft-{n}")
        an_addon_draft(session, per_unit(feature=f"feature-{n}"), key=f"addon-draft-{n}")
        _offer(session, plan, addon)
        rate = TaxRateDetails(name="VAT", code=f"c{n}", country="DE", percent=Decimal(n), valid_from=START)
        create_tax_rate(session, rate, now=START)
        record(session, None, Outcome(failed={}), now=NOW, started_at=NOW)
        create_override(
            session,
            provider="openai",
            model=f"model-{n}",
            pricing=LlmPricing(input_per_token=Decimal(n), output_per_token=Decimal(n)),
            currency="USD",
            effective_from=START,
            now=START,
        )


def _offer(session: Session, plan: Plan, addon: Addon) -> None:
    create_plan_addon(
        session,
        plan_id=plan.id,
        plan=plan_terms(session, plan, now=START),
        addon_id=addon.id,
        from_plan_phase="main",
        now=START,
    )


def _customer(session: Session, n: int, plan: Plan) -> Customer:
    """In Germany, who never pays."""
    customer = a_customer(session, f"subject-{n}", f"other-{n}", key=f"customer-{n}")
    customer.billing_address = Address(country="DE")
    customer.metadata_ = {SANDBOX_WISH: "failed"}
    sign_up(session, customer, plan)
    return customer


def _again(session: Session, customer: Customer, plans: Sequence[Plan], signed: Subscription) -> None:
    """Whom a page of one shows cancels and signs up for another plan, again and again."""
    for n, plan in enumerate(plans[1:]):
        when = at(f"2026-02-{21 + n // 2}T{10 + n % 2}:00:00")
        cancel_subscription(session, signed.id, now=when)
        signed = sign_up(session, customer, plan, start=when, now=when)


def _profiles(session: Session, customers: Sequence[Customer]) -> None:
    """Each customer has their own, and is known to an app of its own."""
    for n, customer in enumerate(customers):
        app = install_app(session, "custom_invoicing", name=f"App {n}", now=START)
        apps = ProfileApps(tax=app.id, invoicing=app.id, payment=app.id)
        details = ProfileDetails(name=f"Profile {n}", supplier=Party(name="ACME"), workflow=Workflow())
        profile = create_profile(session, details, apps=apps, now=START)
        if n % 2:
            pin_profile(session, customer.id, profile_id=profile.id, now=NOW)
        known = CustomerAppDetails(type="custom_invoicing", app_id=app.id, data={"id": "x"})
        save_customer_apps(session, customers[0].id, [known], now=NOW)


def _paid(session: Session) -> dict[str, str]:
    """Two invoices that are owed: one with a payment, one with many; and many credit notes."""
    owed = [one for one in invoices_of(session) if one.status in ("payment_processing.failed", "overdue")]
    for n, invoice in enumerate(owed[:MANY]):
        for number in range(MANY if n == 0 else 1):
            details = PaymentDetails(amount=Decimal("0.10"), received_at=NOW, reference=f"bank-{number}")
            record_payment(session, invoice.id, details, now=NOW)
        line = CreditLine(line_id=invoice.lines[0].id, amount=Decimal("0.10"))
        create_credit_note(session, invoice.id, CreditNoteDetails(reason="sorry", lines=[line]), now=NOW)
    return {"paid_often": owed[0].id, "paid_once": owed[1].id}


# --- what it costs -----------------------------------------------------------------------------------------

INVOICES = "/api/v1/billing/invoices"
PAGED = {
    "stored invoices": f"{INVOICES}?extendedStatuses=payment_processing.failed&extendedStatuses=overdue",
    "stored invoices with lines": f"{INVOICES}?extendedStatuses=overdue&expand=lines",
    "stored invoices with all": f"{INVOICES}?extendedStatuses=overdue&expand=lines&expand=preceding"
    "&expand=workflow.apps",
    "gathering invoices": f"{INVOICES}?statuses=gathering",
    "gathering invoices with lines": f"{INVOICES}?statuses=gathering&expand=lines",
    "credit notes": "/api/v1/billing/credit-notes",
    "billing runs": "/api/v1/billing/runs",
    "billing profiles": "/api/v1/billing/profiles",
    "billing profiles with apps": "/api/v1/billing/profiles?expand=apps",
    "customer overrides": "/api/v1/billing/customers",
    "customer overrides with all": "/api/v1/billing/customers?expand=apps&expand=customer",
    "tax rates": "/api/v1/billing/tax-rates",
    "apps": "/api/v1/apps",
    "app data of a customer": "/api/v1/customers/{customer}/apps",
    "customers": "/api/v1/customers",
    "customers with subscriptions": "/api/v1/customers?expand=subscriptions",
    "subscriptions of a customer": "/api/v1/customers/{customer}/subscriptions",
    "features": "/api/v1/features",
    "plans": "/api/v1/plans?status=active",
    "drafts of plans": "/api/v1/plans?status=draft",
    "add-ons": "/api/v1/addons?status=active",
    "drafts of add-ons": "/api/v1/addons?status=draft",
    "add-ons of a plan": "/api/v1/plans/{plan}/addons",
    "prices of language models": "/api/v1/llm-cost/prices",
    "prices set by hand": "/api/v1/llm-cost/overrides",
}


@pytest.mark.parametrize("name", PAGED)
def test_a_page_of_many_costs_as_many_statements_as_a_page_of_one(
    world: World, shared_engine: Engine, name: str
) -> None:
    path = PAGED[name].format(**world.names)
    page = path + ("&" if "?" in path else "?") + "pageSize="
    one, for_one = asked(world, shared_engine, f"{page}1")
    many, for_many = asked(world, shared_engine, f"{page}{MANY}")
    assert (one, many) == (1, MANY), f"{name}: {one} and {many} rows"
    assert for_many == for_one, f"{name}: {for_one} statements for one row, {for_many} for {many}"


def test_many_payments_of_an_invoice_cost_as_many_statements_as_one(
    world: World, shared_engine: Engine
) -> None:
    path = f"{INVOICES}/{{}}/payments"
    one, for_one = asked(world, shared_engine, path.format(world.names["paid_once"]))
    many, for_many = asked(world, shared_engine, path.format(world.names["paid_often"]))
    assert (one, many, for_many) == (1, MANY, for_one)


def test_many_add_ons_of_a_subscription_cost_as_many_statements_as_one(
    world: World, shared_engine: Engine
) -> None:
    path = "/api/v1/subscriptions/{}/addons"
    one, for_one = asked(world, shared_engine, path.format(world.names["contract_with_one"]))
    many, for_many = asked(world, shared_engine, path.format(world.names["contract"]))
    assert (one, many, for_many) == (1, MANY, for_one)


def test_every_list_of_catalog_and_billing_is_here(world: World) -> None:
    document = got(world, "/api/openapi.json").json()
    lists = {
        path
        for path, operations in document["paths"].items()
        if operations.get("get", {}).get("operationId", "").startswith("list")
    }
    here = {path.partition("?")[0] for path in PAGED.values()}
    here |= {f"{INVOICES}/{{invoiceId}}/payments", "/api/v1/subscriptions/{subscriptionId}/addons"}
    missing = {path for path in lists if bare(path) not in set(map(bare, here))}
    assert missing == OTHERS


OTHERS = {
    "/api/v1/corrections",
    "/api/v1/events",
    "/api/v1/events/unbilled",
    "/api/v1/ingest/quarantine",
    "/api/v1/marketplace/listings",
    "/api/v1/meters",
    "/api/v1/meters/{meterIdOrSlug}/group-by/{groupByKey}/values",
    "/api/v1/meters/{meterIdOrSlug}/subjects",
    "/api/v1/subjects",
    "/api/v2/events",
}
"""Of metering; and what is in no database."""


def bare(path: str) -> str:
    """Whatever the names in it are called."""
    return re.sub(r"{\w+}", "{}", path)


def asked(world: World, engine: Engine, path: str) -> tuple[int, int]:
    """How many rows came, and by how many statements."""
    with counted_statements(engine) as sent:
        found = got(world, path).json()
    return len(found["items"] if isinstance(found, dict) else found), len(sent)


def got(world: World, path: str) -> httpx.Response:
    """From an app in this process, whose statements can be counted."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(world.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://tollgate") as client:
            return await client.get(path)

    answer = asyncio.run(ask())
    assert answer.status_code == 200, answer.text
    return answer
