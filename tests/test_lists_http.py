"""Every list of catalog and billing comes in each order that OpenMeter names, both ways, and in pages.

Instants, names and keys of what is listed all differ, and none in the order in which things were made.
"""

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from billing.contracts.customer_changes import CustomerDetails, create_customer
from billing.contracts.subscription_changes import cancel_subscription
from billing.invoices.credit_notes import CreditNoteDetails, create_credit_note
from billing.profiles.app import SANDBOX_WISH
from billing.profiles.profile import Party
from billing.profiles.profile_changes import ProfileApps, ProfileDetails, create_profile
from billing.profiles.workflow import Workflow
from billing.taxes.tax_rates import TaxRateDetails, create_tax_rate
from catalog.plan_addons import create_plan_addon
from catalog.plans import Plan, get_plan, plan_terms
from tests.billing_clock import bill_until, invoices_of
from tests.builders import START, a_draft, a_feature, a_plan, an_addon, at, fee, phase, sign_up
from tests.server import assert_problem

SANDBOX = "00000000000000000000000003"
NAMES = ("carl", "anna", "dora", "bert", "emil")
VERSIONS = {
    "id": "id",
    "key": "key",
    "version": "version",
    "created_at": "createdAt",
    "updated_at": "updatedAt",
}
ORDERS = {
    "features": {one: one for one in ("id", "key", "name", "createdAt", "updatedAt")},
    "plans": VERSIONS,
    "addons": VERSIONS,
    "plans/offering/addons": VERSIONS | {"id": "createdAt", "key": "addon.key", "version": "addon.version"},
    "customers": {one: one for one in ("id", "name", "createdAt")},
    "customers/fred/subscriptions": {one: one for one in ("activeFrom", "activeTo")},
    "billing/customers": {
        "customerId": "customer.id",
        "customerName": "customer.name",
        "customerKey": "customer.key",
        "customerPrimaryEmail": "customer.primaryEmail",
        "customerCreatedAt": "customer.createdAt",
    },
    "billing/profiles": {one: one for one in ("createdAt", "updatedAt", "default", "name")},
    "billing/invoices": {
        "customer.name": "customer.name",
        "issuedAt": "issuedAt",
        "status": "statusDetails.extendedStatus",
        "createdAt": "createdAt",
        "updatedAt": "updatedAt",
        "periodStart": "period.from",
    },
}
"""By path and `orderBy`: the member that the list is then ordered by."""
ONLY_PAGES = (
    "apps",
    "marketplace/listings",
    "customers/anna/apps",
    "billing/tax-rates",
    "billing/credit-notes",
    "billing/runs",
    "llm-cost/prices",
)
MORE: dict[str, dict[str, Any]] = {
    "billing/customers": {"expand": "customer"},
    "billing/invoices": {"extendedStatuses": ["paid", "payment_processing.failed"]},
}
"""What else is asked for."""


@pytest.fixture(scope="module", autouse=True)
def _world(shared_engine: Engine) -> None:
    with Session(shared_engine, expire_on_commit=False) as session, session.begin():
        offering = a_draft(session, key="offering")
        for day, name in enumerate(NAMES):
            _listed(session, name, START + timedelta(days=day))
            _offered(session, name, offering, START + timedelta(days=day))
        bill_until(session, at("2026-01-31"))
        note = CreditNoteDetails(reason="a bad day")
        for invoice in [one for one in invoices_of(session) if one.status == "paid"]:
            create_credit_note(session, invoice.id, note, now=at("2026-01-31"))
        _contracts(session)
        for table in ("features", "plans", "addons", "plan_addons", "billing_profiles", "invoices"):
            session.execute(text(f"UPDATE {table} SET updated_at = created_at + {ANY_TIME}"))


ANY_TIME = "interval '1 minute' * CAST(CAST('x' || left(md5(id), 5) AS bit(20)) AS integer)"


def _listed(session: Session, name: str, now: datetime) -> None:
    """One of each, made at that instant; of dora's plan two versions."""
    details = CustomerDetails(name=name, key=name, primary_email=f"{name[::-1]}@example.com")
    customer = create_customer(session, details, now=now)
    customer.metadata_ = {SANDBOX_WISH: "failed" if name == "anna" else "paid"}
    plans = [a_plan(session, phase(fee()), key=name, now=now) for _ in range(2 if name == "dora" else 1)]
    sign_up(session, customer, plans[-1], start=now, now=now)
    a_feature(session, name, now=now)
    profile = ProfileDetails(name=name, supplier=Party(name="ACME"), workflow=Workflow())
    apps = ProfileApps(tax=SANDBOX, invoicing=SANDBOX, payment=SANDBOX)
    create_profile(session, profile, apps=apps, now=now)
    rate = TaxRateDetails(name=name, country="DE", code=name, percent=Decimal(1), valid_from=START)
    create_tax_rate(session, rate, now=now)


def _offered(session: Session, name: str, plan: Plan, now: datetime) -> None:
    """An add-on; of bert's the second version."""
    for _ in range(2 if name == "bert" else 1):
        addon = an_addon(session, fee(key=name), key=name, now=now)
    terms = plan_terms(session, plan, now=now)
    create_plan_addon(
        session, plan_id=plan.id, plan=terms, addon_id=addon.id, from_plan_phase="main", now=now
    )


def _contracts(session: Session) -> None:
    """Of one customer; the last has no end."""
    fred = create_customer(session, CustomerDetails(name="fred", key="fred"), now=START)
    plan = get_plan(session, "anna")
    for start, end in (("2026-03-01", "2026-04-01"), ("2026-06-01", "2026-07-01")):
        subscription = sign_up(session, fred, plan, start=at(start), now=at(start))
        cancel_subscription(session, subscription.id, timing=at(end), now=at(start))
    sign_up(session, fred, plan, start=at("2026-08-01"), now=at("2026-08-01"))


def ask(client: httpx.Client, path: str, **parameters: Any) -> httpx.Response:
    return client.get(f"/api/v1/{path}", params=MORE.get(path, {}) | parameters)


def listed(client: httpx.Client, path: str, **parameters: Any) -> Any:
    answer = ask(client, path, **parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def member(item: Any, path: str) -> Any:
    """Of what it does not have: later than everything, as a contract without an end."""
    for name in path.split("."):
        item = item.get(name, "~")
    return item


@pytest.mark.parametrize(
    ("path", "order_by", "by"), [(path, *pair) for path, pairs in ORDERS.items() for pair in pairs.items()]
)
def test_they_come_in_the_order_asked_for_both_ways_and_in_pages(
    client: httpx.Client, path: str, order_by: str, by: str
) -> None:
    up = listed(client, path, orderBy=order_by, order="ASC", page=1)["items"]
    down = listed(client, path, orderBy=order_by, order="DESC", page=1)["items"]
    values = [member(one, by) for one in up]
    assert len(set(values)) > 1
    assert values == sorted(values)
    assert [member(one, by) for one in down] == sorted(values, reverse=True)
    pages = [listed(client, path, orderBy=order_by, order="ASC", page=n, pageSize=2) for n in (1, 2, 3, 4, 5)]
    assert [one for page in pages for one in page["items"]] == up[:10]
    assert {page["totalCount"] for page in pages} == {len(up)}


@pytest.mark.parametrize("path", ORDERS)
def test_an_order_that_is_not_known_is_refused(client: httpx.Client, path: str) -> None:
    assert_problem(ask(client, path, orderBy="taste"), 400, "literal_error", "$.orderBy")
    assert_problem(ask(client, path, order="UP"), 400, "literal_error", "$.order")


@pytest.mark.parametrize("path", [*ORDERS, *ONLY_PAGES])
def test_pages_make_up_the_list_and_have_a_first_one_and_a_largest_size(
    client: httpx.Client, path: str
) -> None:
    whole = listed(client, path, page=1)
    assert (whole["page"], whole["pageSize"]) == (1, 100)
    pages = [listed(client, path, page=n, pageSize=1) for n in (1, 2, 3)]
    assert [one for page in pages for one in page["items"]] == whole["items"][:3]
    assert {page["totalCount"] for page in pages} == {whole["totalCount"]}
    assert listed(client, path, page=1000, pageSize=1000)["items"] == []
    assert_problem(ask(client, path, page=0), 400, "greater_than_equal", "$.page")
    assert_problem(ask(client, path, pageSize=0), 400, "greater_than_equal", "$.pageSize")
    assert_problem(ask(client, path, pageSize=1001), 400, "less_than_equal", "$.pageSize")
