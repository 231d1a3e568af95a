"""Clients who change the same few customers at once, over HTTP, while others bill them.

A client picks a customer, looks what there is, and does something to it that may well be refused: somebody
was faster. At the end every contract is ended and everything is billed, so that what was billed of each
charge can be compared with one invoice over the whole.
"""

import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
from sqlalchemy import update
from sqlalchemy.orm import Session

from billing.contracts.subscriptions import Subscription
from billing.profiles.profile import Party
from billing.profiles.profile_changes import ProfileApps, ProfileDetails, create_profile
from billing.profiles.workflow import CollectionSettings, InvoicingSettings, Workflow
from catalog.addons import Addon
from catalog.plan_addons import create_plan_addon
from catalog.plans import Plan, plan_terms
from catalog.price import PriceTier, TieredPrice, TierUnitPrice
from catalog.rate_card import UsageBasedRateCard
from tests.builders import a_customer, a_metered_feature, a_plan, an_addon, fee, per_unit, phase, sign_up
from tests.server import Server, seeded

__all__ = ["Race", "World", "a_world", "bill_the_rest", "end_all"]

DAY = timedelta(days=1)
SANDBOX = "00000000000000000000000003"
CADENCE = "P1W"
PLANS = ("light", "heavy", "steps")


@dataclass(frozen=True, slots=True)
class World:
    """Ids. Of the `calm` nothing is ever given up or given back by hand; with the others anything may be."""

    calm: tuple[str, ...]
    wild: tuple[str, ...]
    addon: str
    profile: str

    @property
    def customers(self) -> tuple[str, ...]:
        return self.calm + self.wild


def a_world(session: Session, *, now: datetime, days: int, customers: int) -> World:
    """Customers who signed up so many days ago, billed by the week; nothing was billed yet."""
    a_metered_feature(session)
    addon = an_addon(session, fee("1.10", cadence=CADENCE), instance_type="multiple")
    plans = [_light(session, addon, "3"), _heavy(session), _steps(session, addon)]
    profile = _patient(session, now)
    start = now.replace(microsecond=0) - timedelta(days=days)
    people = [a_customer(session, f"race-{n}", key=f"racer-{n}") for n in range(customers)]
    for n, one in enumerate(people):
        sign_up(session, one, plans[n % len(plans)], start=start - n * timedelta(hours=1), now=now)
    _light(session, addon, "4")
    ids = tuple(one.id for one in people)
    return World(calm=ids[::2], wild=ids[1::2], addon=addon.id, profile=profile)


def _light(session: Session, addon: Addon, amount: str) -> Plan:
    plan = a_plan(
        session,
        phase(fee(amount, cadence=CADENCE), per_unit(cadence=CADENCE)),
        key="light",
        cadence=CADENCE,
    )
    return _offered(session, plan, addon)


def _offered(session: Session, plan: Plan, addon: Addon) -> Plan:
    create_plan_addon(
        session,
        plan_id=plan.id,
        plan=plan_terms(session, plan, now=plan.created_at),
        addon_id=addon.id,
        from_plan_phase="main",
        max_quantity=9,
        now=plan.created_at,
    )
    return plan


def _heavy(session: Session) -> Plan:
    tiers = (
        PriceTier(up_to_amount=Decimal(100), unit_price=TierUnitPrice(type="unit", amount=Decimal("0.02"))),
        PriceTier(unit_price=TierUnitPrice(type="unit", amount=Decimal("0.005"))),
    )
    price = TieredPrice(type="tiered", mode="graduated", tiers=tiers, minimum_amount=Decimal(1))
    card = UsageBasedRateCard(
        type="usage_based",
        key="tokens",
        name="tokens",
        feature_key="tokens",
        billing_cadence=CADENCE,
        price=price,
    )
    arrears = fee("7.77", key="support", cadence=CADENCE, term="in_arrears")
    return a_plan(session, phase(arrears, card), key="heavy", cadence=CADENCE)


def _steps(session: Session, addon: Addon) -> Plan:
    trial = phase(fee("1", cadence=CADENCE), key="trial", duration="P10D")
    main = phase(fee("5", cadence=CADENCE), per_unit("0.03", cadence=CADENCE))
    return _offered(session, a_plan(session, trial, main, key="steps", cadence=CADENCE), addon)


def _patient(session: Session, now: datetime) -> str:
    """A profile whose drafts wait to be approved."""
    workflow = Workflow(
        collection=CollectionSettings(interval="PT6H"), invoicing=InvoicingSettings(draft_period="P1D")
    )
    details = ProfileDetails(name="Patient", supplier=Party(name="ACME"), workflow=workflow)
    apps = ProfileApps(tax=SANDBOX, invoicing=SANDBOX, payment=SANDBOX)
    return create_profile(session, details, apps=apps, now=now).id


# -- Clients -------------------------------------------------------------------------------------------------


@dataclass
class Race:
    """`changes` were made, `answers` given; `wrong` are answers that nobody should get."""

    server: Server
    world: World
    now: Callable[[], datetime]
    most: int
    changes: Counter[str] = field(default_factory=Counter)
    answers: Counter[int] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    events: list[tuple[str, str]] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def run(self, *, clients: int, seed: int) -> None:
        """Until so many changes were made, or somebody stops it."""
        with ThreadPoolExecutor(clients) as pool:
            for future in [pool.submit(self._flow, seeded(seed * 100 + n)) for n in range(clients)]:
                future.result()

    def _flow(self, chance: random.Random) -> None:
        with self.server.client() as http:
            racer = _Racer(self, http, chance)
            while self.changes.total() < self.most and not self.stopping.is_set():
                try:
                    racer.act()
                except BaseException:
                    self.stopping.set()
                    raise

    def note(self, what: str, answer: httpx.Response) -> None:
        with self._lock:
            self.answers[answer.status_code] += 1
            if answer.is_success:
                self.changes[what] += 1
                return
            codes = [issue["code"] for issue in _issues(answer)]
            self.codes.update(codes)
            fine = 400 <= answer.status_code < 500 and (codes or answer.status_code == 404)
            if not fine:
                self.wrong.append(f"{what}: {answer.status_code} {answer.text[:500]}")

    def new_event(self) -> str:
        with self._lock:
            return f"race-{next(self._numbers)}"


def _issues(answer: httpx.Response) -> Sequence[Mapping[str, str]]:
    if answer.headers.get("content-type") != "application/problem+json":
        return []
    found: Sequence[Mapping[str, str]] = answer.json().get("extensions", {}).get("validationErrors", [])
    return found


@dataclass
class _Racer:
    race: Race
    http: httpx.Client
    chance: random.Random

    def act(self) -> None:
        customer = self.chance.choice(self.race.world.customers)
        names, weights = zip(*_ACTIONS.items(), strict=True)
        (name,) = self.chance.choices(names, weights)
        answer = getattr(self, f"_{name}")(customer)
        if answer is not None:
            self.race.note(name, answer)

    # What there is

    def _read(self, path: str, **params: Any) -> Any:
        answer = self.http.get(path, params=params)
        if not answer.is_success:
            self.race.note(f"GET {path}", answer)
            return None
        return answer.json()

    def _subscription(self, customer: str, *statuses: str) -> Any:
        page = self._read(f"/api/v1/customers/{customer}/subscriptions", status=list(statuses))
        return self.chance.choice(page["items"]) if page and page["items"] else None

    def _invoice(self, customer: str, *statuses: str) -> Any:
        page = self._read(
            "/api/v1/billing/invoices",
            customers=customer,
            statuses=list(statuses),
            pageSize=5,
            expand="lines",
        )
        stored = [one for one in page["items"] if one["status"] != "gathering"] if page else []
        return self.chance.choice(stored) if stored else None

    def _timing(self, since: str | None = None) -> str:
        """At once, with the cycle, later, or at an instant that has passed."""
        now, kind = self.race.now(), self.chance.random()
        if kind < 0.5:
            return "immediate"
        if kind < 0.65:
            return "next_billing_cycle"
        if kind < 0.8 or since is None:
            return (now + self.chance.uniform(0, 30) * DAY / 24).isoformat()
        begun = datetime.fromisoformat(since)
        return (begun + self.chance.uniform(0.5, 1) * max(now - begun, timedelta(0))).isoformat()

    # Contracts

    def _sign_up(self, customer: str) -> httpx.Response:
        since = self.race.now() - self.chance.uniform(0, 2) * DAY
        timing = self.chance.choice(["immediate", since.isoformat()])
        plan = {"key": self.chance.choice(PLANS)}
        body = {"customerId": customer, "plan": plan, "timing": timing}
        return self.http.post("/api/v1/subscriptions", json=body)

    def _change(self, customer: str) -> httpx.Response | None:
        if not (one := self._subscription(customer, "active", "canceled")):
            return None
        body = {"plan": {"key": self.chance.choice(PLANS)}, "timing": self._timing(one["activeFrom"])}
        return self.http.post(f"/api/v1/subscriptions/{one['id']}/change", json=body)

    def _migrate(self, customer: str) -> httpx.Response | None:
        if not (one := self._subscription(customer, "active")):
            return None
        body = {"timing": self.chance.choice(["immediate", "next_billing_cycle"])}
        return self.http.post(f"/api/v1/subscriptions/{one['id']}/migrate", json=body)

    def _cancel(self, customer: str) -> httpx.Response | None:
        if not (one := self._subscription(customer, "active")):
            return None
        body = {"timing": self._timing(one["activeFrom"])}
        return self.http.post(f"/api/v1/subscriptions/{one['id']}/cancel", json=body)

    def _unschedule(self, customer: str) -> httpx.Response | None:
        if not (one := self._subscription(customer, "canceled")):
            return None
        return self.http.post(f"/api/v1/subscriptions/{one['id']}/unschedule-cancelation")

    def _restore(self, customer: str) -> httpx.Response | None:
        if not (one := self._subscription(customer, "active", "canceled")):
            return None
        return self.http.post(f"/api/v1/subscriptions/{one['id']}/restore")

    def _drop(self, customer: str) -> httpx.Response | None:
        if not (one := self._subscription(customer, "scheduled")):
            return None
        return self.http.delete(f"/api/v1/subscriptions/{one['id']}")

    def _edit(self, customer: str) -> httpx.Response | None:
        if not (one := self._subscription(customer, "active")):
            return None
        edits = [self._customization() for _ in range(self.chance.randint(1, 2))]
        body = {"customizations": edits, "timing": self.chance.choice(["immediate", self._timing()])}
        return self.http.patch(f"/api/v1/subscriptions/{one['id']}", json=body)

    def _customization(self) -> dict[str, Any]:
        key = self.chance.choice(["seat", "desk"])
        price = {
            "type": "flat",
            "amount": f"{self.chance.randint(1, 900) / 100}",
            "paymentTerm": "in_advance",
        }
        card = {"type": "flat_fee", "key": key, "name": key, "billingCadence": CADENCE, "price": price}
        edits: list[dict[str, Any]] = [
            {"op": "add_item", "phaseKey": "main", "rateCard": card},
            {"op": "remove_item", "phaseKey": "main", "itemKey": key},
            {"op": "stretch_phase", "phaseKey": "trial", "extendBy": self.chance.choice(["PT7H", "-PT5H"])},
            {"op": "unschedule_edit"},
        ]
        return self.chance.choices(edits, [5, 2, 2, 1])[0]

    def _addon(self, customer: str) -> httpx.Response | None:
        if not (one := self._subscription(customer, "active")):
            return None
        path = f"/api/v1/subscriptions/{one['id']}/addons"
        owned = self._read(path) or []
        quantity = {"quantity": self.chance.randint(0, 5), "timing": self._timing()}
        if owned:
            return self.http.patch(f"{path}/{owned[0]['id']}", json=quantity)
        return self.http.post(path, json={**quantity, "addon": {"id": self.race.world.addon}})

    # Usage

    def _use(self, customer: str) -> httpx.Response:
        """Of the last days, or of just now."""
        subject = f"race-{self.race.world.customers.index(customer)}"
        events = []
        for _ in range(self.chance.randint(1, 5)):
            when = self.race.now() - self.chance.choice([0, 0.2, 6]) * self.chance.random() * DAY
            data = {"tokens": self.chance.randint(0, 60), "provider": "p", "model": "m", "type": "request"}
            one = {"id": self.race.new_event(), "source": "race", "type": "llm", "subject": subject}
            events.append({**one, "specversion": "1.0", "time": when.isoformat(), "data": data})
        headers = {"Content-Type": "application/cloudevents-batch+json"}
        answer = self.http.post("/api/v1/events", json=events, headers=headers)
        if answer.is_success:
            self.race.events += [("race", str(one["id"])) for one in events]
        return answer

    def _void_usage(self, _: str) -> httpx.Response | None:
        if not self.race.events:
            return None
        source, id_ = self.chance.choice(self.race.events)
        selection = {"events": [{"source": source, "id": id_}]}
        body = {"kind": "void", "selection": selection, "reason": "race", "close": True}
        return self.http.post("/api/v1/corrections", json=body)

    def _revert_usage(self, _: str) -> httpx.Response | None:
        page = self._read("/api/v1/corrections", status="closed", pageSize=20)
        if not page or not page["items"]:
            return None
        return self.http.post(f"/api/v1/corrections/{self.chance.choice(page['items'])['id']}/revert")

    # Invoices

    def _by_hand(self, customer: str) -> httpx.Response:
        start = self.race.now() - DAY
        period = {"from": start.isoformat(), "to": (start + DAY / 2).isoformat()}
        price = {"type": "flat", "amount": f"{self.chance.randint(1, 9000) / 100}"}
        due = (start + self.chance.choice([0.5, 0.9, 1]) * DAY).isoformat()
        line = {"name": "by hand", "period": period, "invoiceAt": due, "price": price}
        body = {"currency": "USD", "lines": [line]}
        return self.http.post(f"/api/v1/billing/customers/{customer}/invoices/pending-lines", json=body)

    def _invoice_now(self, customer: str) -> httpx.Response:
        body: dict[str, Any] = {"customerId": customer}
        if self.chance.random() < 0.6:
            body["progressiveBillingOverride"] = self.chance.random() < 0.7
        if self.chance.random() < 0.3:
            body["asOf"] = (self.race.now() - self.chance.random() * DAY).isoformat()
        return self.http.post("/api/v1/billing/invoices/invoice", json=body)

    def _advance(self, customer: str) -> httpx.Response | None:
        """Whatever goes on with a draft."""
        if not (one := self._invoice(customer, "draft", "issuing")):
            return None
        step = self.chance.choice(["advance", "approve", "approve", "snapshot-quantities", "retry"])
        return self.http.post(f"/api/v1/billing/invoices/{one['id']}/{step}")

    def _recalculate(self, customer: str) -> httpx.Response | None:
        if not (one := self._invoice(customer, "draft")):
            return None
        return self.http.post(f"/api/v1/billing/invoices/{one['id']}/taxes/recalculate")

    def _rename(self, customer: str) -> httpx.Response | None:
        """The whole draft is sent back as it was read, with other words."""
        if not (one := self._invoice(customer, "draft")):
            return None
        body = {**one, "description": f"seen by {self.chance.random()}"}
        return self.http.put(f"/api/v1/billing/invoices/{one['id']}", json=body)

    def _give_up(self, customer: str) -> httpx.Response | None:
        if customer in self.race.world.calm or not (one := self._invoice(customer, "draft")):
            return None
        return self.http.delete(f"/api/v1/billing/invoices/{one['id']}")

    def _void(self, customer: str) -> httpx.Response | None:
        if not (one := self._invoice(customer, "payment_processing", "overdue")):
            return None
        kinds = ["pending"] if customer in self.race.world.calm else ["pending", "discard"]
        action = {"percentage": 100, "action": {"type": self.chance.choice(kinds)}}
        body = {"action": action, "reason": "race"}
        return self.http.post(f"/api/v1/billing/invoices/{one['id']}/void", json=body)

    def _pay(self, customer: str) -> httpx.Response | None:
        if not (one := self._invoice(customer, "payment_processing", "overdue")):
            return None
        total = Decimal(one["totals"]["total"])
        part = self.chance.choice([Decimal(1), Decimal(1), Decimal("0.5")])
        amount = (total * part).quantize(Decimal("0.01"))
        body = {"amount": str(amount), "receivedAt": self.race.now().isoformat()}
        return self.http.post(f"/api/v1/billing/invoices/{one['id']}/payments", json=body)

    def _credit(self, customer: str) -> httpx.Response | None:
        if customer in self.race.world.calm:
            return None
        one = self._invoice(customer, "paid", "payment_processing", "overdue")
        if not one or not one["lines"]:
            return None
        line = {"lineId": self.chance.choice(one["lines"])["id"], "amount": "0.50"}
        lines = self.chance.choice([[line], [line], None])
        body = {"invoiceId": one["id"], "reason": "race", "lines": lines}
        return self.http.post("/api/v1/billing/credit-notes", json=body)

    # Customers

    def _wish(self, customer: str) -> httpx.Response | None:
        """The sandbox is to pay the customer's invoices, or to fail."""
        one = self._read(f"/api/v1/customers/{customer}")
        wish = self.chance.choice(["paid", "failed", "failed"])
        body = {**one, "metadata": {"openmeter.io/sandbox/target-payment-status": wish}}
        return self.http.put(f"/api/v1/customers/{customer}", json=body)

    def _pin(self, customer: str) -> httpx.Response:
        path = f"/api/v1/billing/customers/{customer}"
        if self.chance.random() < 0.4:
            return self.http.delete(path)
        return self.http.put(path, json={"billingProfileId": self.race.world.profile})

    def _profile(self, _: str) -> httpx.Response | None:
        """Collect with an anchor, or as it comes."""
        path = f"/api/v1/billing/profiles/{self.race.world.profile}"
        if not (one := self._read(path)):
            return None
        period = {"interval": "PT8H", "anchor": "2026-01-01T03:00:00Z"}
        anchored = {"type": "anchored", "recurringPeriod": period}
        alignment = self.chance.choice([{"type": "subscription"}, anchored])
        collection = {"alignment": alignment, "interval": "PT6H"}
        return self.http.put(path, json={**one, "workflow": {**one["workflow"], "collection": collection}})


_ACTIONS: Mapping[str, int] = {
    "sign_up": 4,
    "change": 5,
    "migrate": 2,
    "cancel": 4,
    "unschedule": 3,
    "restore": 3,
    "drop": 1,
    "edit": 8,
    "addon": 6,
    "use": 10,
    "void_usage": 4,
    "revert_usage": 2,
    "by_hand": 4,
    "invoice_now": 7,
    "advance": 6,
    "recalculate": 2,
    "rename": 3,
    "give_up": 2,
    "void": 4,
    "pay": 4,
    "credit": 3,
    "wish": 2,
    "pin": 2,
    "profile": 1,
}


# -- The end -------------------------------------------------------------------------------------------------


def end_all(http: httpx.Client, world: World) -> list[str]:
    """No contract goes on, and none begins later. Returns what did not work."""
    return list(itertools.chain.from_iterable(_end(http, customer) for customer in world.customers))


def _end(http: httpx.Client, customer: str) -> Iterable[str]:
    http.delete(f"/api/v1/billing/customers/{customer}")  # by the default profile nothing waits
    path = f"/api/v1/customers/{customer}/subscriptions"
    for one in http.get(path, params={"status": ["active", "canceled"]}).json()["items"]:
        for step in ("restore", "cancel"):
            answer = http.post(f"/api/v1/subscriptions/{one['id']}/{step}")
            if not answer.is_success:
                yield f"{step} at the end: {answer.status_code} {answer.text}"
    for one in http.get(path, params={"status": ["scheduled"]}).json()["items"]:
        answer = http.delete(f"/api/v1/subscriptions/{one['id']}")
        if not answer.is_success:
            yield f"delete at the end: {answer.status_code} {answer.text}"


def bill_the_rest(session: Session, now: datetime) -> None:
    """Usage that came late waits a month, should nothing else be invoiced: as if that had passed."""
    session.execute(update(Subscription).values(next_billing_at=now))
