"""Scenarios: a timeline in, invoices out. Each is a text in tests/scenarios that can be read aloud.

    plan pro: seat 20; tokens 0.01 each
    2026-01-01 sign up for pro
    2026-01-10 use 500 tokens
    until 2026-02-02
    = 2026-01-01 paid 20.00: seat 01-01..02-01 20.00
    = 2026-02-01 paid 25.00: tokens 01-01..02-01 5.00, seat 02-01..03-01 20.00

What was invoiced, by `=`, is computed by hand; a comment says how where it is not plain.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from sqlalchemy.orm import Session

from api.http.invoice_body import InvoicePage, invoices_response
from api.http.invoices import bodies_of
from api.http.stored_invoice import gathering_body
from billing.contracts.customer import Customer, get_customer
from billing.contracts.edits import AddItem, RemoveItem
from billing.contracts.subscription_changes import (
    cancel_subscription,
    change_subscription,
    edit_subscription,
    migrate_subscription,
    restore_subscription,
    unschedule_cancelation,
)
from billing.contracts.subscription_rules import Timing
from billing.contracts.subscriptions import Subscription, create_subscription
from billing.invoices.actions import VoidAction, act, delete_invoice, invoice_now, void_invoice
from billing.invoices.gathering import gathering_invoices
from billing.invoices.invoice import get_invoice
from billing.profiles.app import SANDBOX_WISH
from billing.profiles.profile import get_profile
from billing.profiles.workflow import Workflow
from catalog.plans import create_plan, get_plan, publish_plan
from catalog.rate_card import Phase, RateCard
from metering.events import VoidedEvent
from metering.ids import event_key, new_id
from tests.billing_clock import bill_until, invoices_of, ledger, wrong
from tests.builders import START, a_customer, a_metered_feature, at, spent, store

FOLDER = Path(__file__).parent / "scenarios"
CARD: TypeAdapter[RateCard] = TypeAdapter(RateCard)
WORKFLOW: TypeAdapter[Workflow] = TypeAdapter(Workflow)
CADENCES = {"monthly": "P1M", "yearly": "P1Y", "weekly": "P1W", "quarterly": "P3M", "once": None}


@dataclass(frozen=True)
class Scenario:
    name: str
    steps: tuple[str, ...]
    ledger: tuple[str, ...]

    @staticmethod
    def read(text: str) -> "Scenario":
        """The first line names it; `#` begins a comment."""
        name, *lines = [line for line in map(str.strip, text.strip().splitlines()) if line]
        told = [line for line in lines if not line.startswith("#")]
        return Scenario(
            name=name.removeprefix("## "),
            steps=tuple(line for line in told if not line.startswith("=")),
            ledger=tuple(line.removeprefix("=").strip() for line in told if line.startswith("=")),
        )


def scenarios() -> Iterator[Scenario]:
    for path in sorted(FOLDER.glob("*.md")):
        _, *parts = re.split(r"^(?=## )", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        yield from map(Scenario.read, parts)


SCENARIOS = list(scenarios())


def test_there_are_scenarios_enough_and_each_has_its_own_name() -> None:
    assert len(SCENARIOS) >= 40
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name.replace(" ", "-"))
def test_what_is_invoiced_is_what_was_computed_by_hand(session: Session, scenario: Scenario) -> None:
    world = World(session)
    for step in scenario.steps:
        world.take(step)
    assert ledger(session) == list(scenario.ledger)
    assert wrong(session, world.now) == []
    require_spelled_as_documented(session, world)


def require_spelled_as_documented(session: Session, world: "World") -> None:
    """By hand: nothing is missing, nothing unknown, and each value as its type is sent."""
    invoices = [get_invoice(session, one.id) for one in invoices_of(session)]
    items = bodies_of(session, invoices, world.now, lines=True)
    customer = get_customer(session, world.customer.id)
    for gathering in gathering_invoices(session, [customer], at=world.now):
        items.append(gathering_body(gathering, world.now, lines=True))
    sent = invoices_response(items, total_count=len(items), page=1, page_size=100).body
    read = InvoicePage.model_validate_json(bytes(sent))
    assert json.loads(read.model_dump_json(by_alias=True, exclude_none=True)) == json.loads(bytes(sent))


@dataclass
class World:
    """One customer, ada, who uses tokens of the feature `tokens` and signs one contract after the other."""

    session: Session
    customer: Customer = field(init=False)
    subscription: Subscription | None = None
    sent: dict[str, tuple[str, str]] = field(default_factory=dict)
    now: datetime = START

    def __post_init__(self) -> None:
        a_metered_feature(self.session)
        self.customer = a_customer(self.session, "ada")

    def take(self, step: str) -> None:
        for pattern, action in _STEPS.items():
            if found := re.fullmatch(pattern, step):
                action(self, **found.groupdict())
                return
        raise AssertionError(f"nobody understands {step!r}")

    # -- What is for sale ------------------------------------------------------------------------------------

    def plan(self, key: str, terms: str, cadence: str | None, currency: str | None) -> None:
        phases = [phase for number, text in enumerate(terms.split(" | ")) for phase in [_phase(text, number)]]
        draft = create_plan(
            self.session,
            key=key,
            name=key,
            currency=currency or "USD",
            billing_cadence=CADENCES[cadence or "monthly"] or "P1M",
            pro_rating="without proration" not in terms,
            phases=tuple(phases),
            now=START,
        )
        publish_plan(self.session, draft, now=START)

    def profile(self, settings: str) -> None:
        get_profile(self.session, None).workflow = WORKFLOW.validate_python(json.loads(settings))
        self.session.flush()

    # -- What happens ----------------------------------------------------------------------------------------

    def clock(self, when: str) -> datetime:
        bill_until(self.session, at(when), since=self.now)
        self.now = max(self.now, at(when))
        return at(when)

    def sign_up(self, when: str, key: str, start: str | None, anchor: str | None) -> None:
        now = self.clock(when)
        self.subscription = create_subscription(
            self.session,
            customer=get_customer(self.session, self.customer.id, lock=True),
            plan=get_plan(self.session, key),
            active_from=at(start) if start else now,
            billing_anchor=at(anchor) if anchor else None,
            now=now,
        )
        self.clock(when)

    def use(self, when: str, tokens: str, happened: str | None, name: str | None) -> None:
        self.clock(when)
        event = spent("ada", tokens, happened or when)
        self.sent[name or event.id] = (event.source, event.id)
        store(self.session, event)

    def void_usage(self, when: str, name: str) -> None:
        now = self.clock(when)
        key = event_key(*self.sent[name])
        self.session.add(VoidedEvent(key=key, correction_id=new_id(now), voided_at=now))
        self.session.flush()

    @property
    def current(self) -> str:
        assert self.subscription is not None
        return self.subscription.id

    def cancel(self, when: str, timing: str) -> None:
        cancel_subscription(self.session, self.current, timing=_timing(timing), now=self.clock(when))
        self.clock(when)

    def unschedule(self, when: str) -> None:
        unschedule_cancelation(self.session, self.current, now=self.clock(when))
        self.clock(when)

    def restore(self, when: str) -> None:
        self.subscription = restore_subscription(self.session, self.former, now=self.clock(when))
        self.clock(when)

    former: str = ""

    def change(self, when: str, key: str, timing: str) -> None:
        self.former = self.current
        _, self.subscription = change_subscription(
            self.session,
            self.current,
            plan=get_plan(self.session, key),
            timing=_timing(timing),
            now=self.clock(when),
        )
        self.clock(when)

    def migrate(self, when: str, timing: str) -> None:
        _, self.subscription = migrate_subscription(
            self.session, self.current, timing=_timing(timing), now=self.clock(when)
        )
        self.clock(when)

    def edit(self, when: str, what: str, item: str, phase: str | None, timing: str) -> None:
        key = phase or "main"
        if what == "add":
            edit: Any = AddItem(op="add_item", phase_key=key, rate_card=_card(item))
        else:
            edit = RemoveItem(op="remove_item", phase_key=key, item_key=item)
        now = self.clock(when)
        edit_subscription(self.session, self.current, edits=[edit], timing=_timing(timing), now=now)
        self.clock(when)

    def invoice_now(self, when: str) -> None:
        now = self.clock(when)
        invoice_now(self.session, self.customer.id, progressive=True, now=now)

    def delete_draft(self, when: str) -> None:
        now = self.clock(when)
        (draft,) = [one for one in invoices_of(self.session) if one.status.startswith("draft")]
        delete_invoice(self.session, draft.id, now=now)

    def snapshot(self, when: str) -> None:
        now = self.clock(when)
        (draft,) = [one for one in invoices_of(self.session) if one.status.startswith("draft")]
        act(self.session, draft.id, "snapshot_quantities", now=now)

    def void_invoice(self, when: str, day: str, action: str) -> None:
        now = self.clock(when)
        (found,) = [one for one in invoices_of(self.session) if f"{one.created_at:%Y-%m-%d}" == day]
        wanted = VoidAction(type="pending" if action == "bill it again" else "discard")
        void_invoice(self.session, found.id, wanted, reason="a test", now=now)
        self.clock(when)

    def let_payments_fail(self, when: str) -> None:
        self.clock(when)
        self.customer.metadata_ = {SANDBOX_WISH: "failed"}
        self.session.flush()

    def until(self, when: str) -> None:
        self.clock(when)


def _timing(text: str) -> Timing:
    names: dict[str, Timing] = {"now": "immediate", "with the next cycle": "next_billing_cycle"}
    return names.get(text) or at(text.removeprefix("on "))


def _phase(text: str, number: int) -> Phase:
    """`trial for P1M: seat 0`, or only the cards: the phase main, without end."""
    named = re.fullmatch(r"(?P<key>[a-z]+) for (?P<duration>P\w+): (?P<cards>.*)", text)
    cards = named["cards"] if named else text
    return Phase(
        key=named["key"] if named else ("main" if not number else f"main-{number}"),
        name="phase",
        duration=named["duration"] if named else None,
        rate_cards=tuple(map(_card, cards.removesuffix(" without proration").split("; "))),
    )


_FEE = re.compile(
    r"(?P<key>[a-z]+) (?P<amount>[\d.]+|free)( (?P<cadence>monthly|yearly|weekly|quarterly|once))?"
    r"(?P<arrears> in arrears)?"
)


def _card(text: str) -> RateCard:
    """`seat 20`, `setup 99 once`, `support 10 in arrears`, `tokens 0.01 each`, `tokens {a price}`."""
    if each := re.fullmatch(r"tokens (?P<amount>[\d.]+) each", text):
        return _usage({"price": {"type": "unit", "amount": each["amount"]}})
    if text.startswith("tokens {"):
        return _usage(json.loads(text.removeprefix("tokens ")))
    fee = _FEE.fullmatch(text)
    assert fee, f"nobody understands the card {text!r}"
    term = "in_arrears" if fee["arrears"] else "in_advance"
    price = (
        None if fee["amount"] == "free" else {"type": "flat", "amount": fee["amount"], "paymentTerm": term}
    )
    wire = {"type": "flat_fee", "key": fee["key"], "name": fee["key"], "price": price}
    return CARD.validate_python(wire | {"billingCadence": CADENCES[fee["cadence"] or "monthly"]})


def _usage(card: dict[str, Any]) -> RateCard:
    named = {"type": "usage_based", "key": "tokens", "name": "tokens", "featureKey": "tokens"}
    return CARD.validate_python({"billingCadence": "P1M", **named, **card})


WHEN = r"(?P<when>[\d:T-]+)"
TIMING = r"(?P<timing>now|with the next cycle|on [\d:T-]+)"
_STEPS: dict[str, Callable[..., None]] = {
    r"plan (?P<key>[a-z-]+)( (?P<cadence>monthly|yearly|weekly|quarterly))?( in (?P<currency>[A-Z]{3}))?: "
    r"(?P<terms>.*)": World.plan,
    r"profile: (?P<settings>.*)": World.profile,
    WHEN + r" sign up for (?P<key>[a-z-]+)( from (?P<start>[\d:T-]+))?( anchored (?P<anchor>[\d:T-]+))?": (
        World.sign_up
    ),
    WHEN + r" use (?P<tokens>[\d.-]+) tokens( on (?P<happened>[\d:T-]+))?( as (?P<name>\w+))?": World.use,
    WHEN + r" void usage (?P<name>\w+)": World.void_usage,
    WHEN + " cancel " + TIMING: World.cancel,
    WHEN + " continue": World.unschedule,
    WHEN + " restore": World.restore,
    WHEN + r" change to (?P<key>[a-z-]+) " + TIMING: World.change,
    WHEN + " migrate " + TIMING: World.migrate,
    WHEN + r" (?P<what>add|remove) (?P<item>.*?)( in phase (?P<phase>[a-z]+))? " + TIMING: World.edit,
    WHEN + " invoice now": World.invoice_now,
    WHEN + " delete the draft": World.delete_draft,
    WHEN + " snapshot the draft": World.snapshot,
    WHEN + r" void the invoice of (?P<day>[\d-]+) and (?P<action>give it up|bill it again)": (
        World.void_invoice
    ),
    WHEN + " let payments fail": World.let_payments_fail,
    r"until (?P<when>[\d:T-]+)": World.until,
}
