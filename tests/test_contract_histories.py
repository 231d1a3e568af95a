"""Whatever became of a contract, in the end each of its charges was billed what it comes to: to the cent.

Customers change their mind, usage comes late or is taken back, invoices are voided and drafts deleted, in any
order. What a charge comes to is said by the contract as it is in the end, all usage, and the slow rater.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.orm import Session

from billing.contracts.customer import Customer
from billing.contracts.edits import AddItem, RemoveItem
from billing.contracts.subscription_changes import (
    cancel_subscription,
    change_subscription,
    edit_subscription,
    restore_subscription,
    unschedule_cancelation,
)
from billing.contracts.subscription_rules import Timing
from billing.contracts.subscriptions import Subscription, subscriptions_of
from billing.invoices.actions import VoidAction, delete_invoice, invoice_now, void_invoice
from billing.invoices.invoice import Invoice, InvoiceLine
from billing.profiles.app import SANDBOX_WISH
from billing.profiles.profile import get_profile
from billing.rating.pricing import NOTHING, Group, Usage
from billing.rating.timeline import Charge, charges
from catalog.plans import get_plan
from catalog.price import DynamicPrice, FlatPrice, PercentagePrice
from catalog.rate_card import RateCard, UsageBasedRateCard
from metering.errors import TollgateError
from metering.event import Event
from tests import reference_rating
from tests.billing_clock import bill_until, invoices_of, void_event, wrong
from tests.builders import START, a_customer, a_metered_feature, a_plan, fee, phase, sign_up, spent, store
from tests.test_pricing import Chance
from tests.test_scenarios import WORKFLOW

DAYS = 150
ALL_BILLED = START + timedelta(days=DAYS + 70)
METERS = ("tokens", "calls")
MODELS = ("a", "b", "z")
TIMINGS: tuple[Timing, ...] = ("immediate", "next_billing_cycle")
PLANS = ("pro", "max")


@dataclass(frozen=True)
class Step:
    """At an hour, something happens; `choice` says what exactly, as far as there is a choice."""

    hour: int
    what: str
    choice: int

    @property
    def time(self) -> datetime:
        return START + timedelta(hours=self.hour)


@dataclass
class World:
    session: Session
    customer: Customer
    signed: Subscription
    sent: list[Event] = field(default_factory=list)
    voided: set[str] = field(default_factory=set)

    def take(self, step: Step) -> None:
        """What the rules don't allow now just doesn't happen."""
        bill_until(self.session, step.time, folding=True)
        with suppress(TollgateError), self.session.begin_nested():
            STEPS[step.what](self, step.choice, step.time)

    def use(self, choice: int, now: datetime) -> None:
        """Now, or up to nine days ago."""
        happened = now - timedelta(hours=(0, 0, 30, 220)[choice % 4])
        event = spent("ada", choice % 61, happened.isoformat(), model=MODELS[choice % 3])
        store(self.session, event)
        self.sent.append(event)

    def void_usage(self, choice: int, now: datetime) -> None:
        recent = [
            one for one in self.sent if one.time > now - timedelta(days=20) and one.id not in self.voided
        ]
        if recent:
            event = recent[choice % len(recent)]
            void_event(self.session, event, now)
            self.voided.add(event.id)

    def invoice_now(self, _: int, now: datetime) -> None:
        invoice_now(self.session, self.customer.id, progressive=True, now=now)

    def cancel(self, choice: int, now: datetime) -> None:
        cancel_subscription(self.session, self.signed.id, timing=TIMINGS[choice % 2], now=now)

    def continue_(self, _: int, now: datetime) -> None:
        unschedule_cancelation(self.session, self.signed.id, now=now)

    def restore(self, choice: int, now: datetime) -> None:
        every = subscriptions_of(self.session, [self.customer.id])
        self.signed = restore_subscription(self.session, every[choice % len(every)].id, now=now)

    def change(self, choice: int, now: datetime) -> None:
        plan, timing = get_plan(self.session, PLANS[choice % 2]), TIMINGS[choice // 2 % 2]
        _, self.signed = change_subscription(self.session, self.signed.id, plan=plan, timing=timing, now=now)

    def add(self, choice: int, now: datetime) -> None:
        edit: Any = AddItem(op="add_item", phase_key="main", rate_card=fee(str(1 + choice), key="extra"))
        self._edit(edit, choice, now)

    def remove(self, choice: int, now: datetime) -> None:
        item = ("extra", "seat", *METERS)[choice // 2 % 4]
        self._edit(RemoveItem(op="remove_item", phase_key="main", item_key=item), choice, now)

    def _edit(self, edit: Any, choice: int, now: datetime) -> None:
        edit_subscription(self.session, self.signed.id, edits=[edit], timing=TIMINGS[choice % 2], now=now)

    def void_invoice(self, choice: int, now: datetime) -> None:
        issued = [one for one in invoices_of(self.session) if one.issued_at and not one.voided_at]
        if issued:
            action = VoidAction(type=("pending", "discard")[choice % 2])
            found = issued[choice // 2 % len(issued)]
            void_invoice(self.session, found.id, action, reason="a mistake", now=now)

    def delete_draft(self, choice: int, now: datetime) -> None:
        drafts = [one for one in invoices_of(self.session) if one.status.startswith("draft")]
        if drafts:
            delete_invoice(self.session, drafts[choice % len(drafts)].id, now=now)


STEPS: Mapping[str, Callable[[World, int, datetime], None]] = {
    "use": World.use,
    "void usage": World.void_usage,
    "invoice now": World.invoice_now,
    "cancel": World.cancel,
    "continue": World.continue_,
    "restore": World.restore,
    "change": World.change,
    "add": World.add,
    "remove": World.remove,
    "void invoice": World.void_invoice,
    "delete draft": World.delete_draft,
}

steps = st.builds(
    Step,
    hour=st.integers(0, DAYS * 24 - 1),
    what=st.sampled_from(["use", "use", "use", *STEPS]),
    choice=st.integers(0, 60),
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32), history=st.lists(steps, min_size=4, max_size=14), drafts_wait=st.booleans()
)
def test_every_charge_of_a_contract_was_billed_what_it_comes_to(
    session: Session, seed: int, history: list[Step], *, drafts_wait: bool
) -> None:
    with session.begin_nested() as savepoint:
        world = a_world(session, seed, drafts_wait=drafts_wait)
        for step in sorted(history, key=lambda step: step.hour):
            world.take(step)
        bill_until(session, ALL_BILLED, folding=True)
        assert billed(session) == expected(world)
        assert all(sum_ >= 0 for sum_ in charged(session).values()), "nobody was given what they never paid"
        assert wrong(session, ALL_BILLED) == []
        savepoint.rollback()
    session.expunge_all()


def a_world(session: Session, seed: int, *, drafts_wait: bool) -> World:
    """Payments fail, so that an invoice can be voided."""
    chance = Chance(seed)
    for meter in METERS:
        a_metered_feature(session, meter)
    if drafts_wait:
        get_profile(session, None).workflow = WORKFLOW.validate_python({"invoicing": {"draftPeriod": "P3D"}})
    for key in PLANS:
        cards = [fee(str(chance.number(90)), term=chance.random.choice(("in_advance", "in_arrears")))]
        a_plan(session, phase(*cards, *(usage_card(chance, meter) for meter in METERS)), key=key)
    customer = a_customer(session, "ada")
    customer.metadata_ = {SANDBOX_WISH: "failed"}
    return World(session, customer, sign_up(session, customer, get_plan(session, "pro")))


def usage_card(chance: Chance, meter: str) -> RateCard:
    while isinstance((terms := chance.terms()).price, FlatPrice):
        pass
    return UsageBasedRateCard(
        type="usage_based",
        key=meter,
        name=meter,
        feature_key=meter,
        billing_cadence="P1M",
        price=terms.price,
        discounts=terms.discounts,
        unit_config=None if isinstance(terms.price, PercentagePrice | DynamicPrice) else terms.unit_config,
    )


# -- What was billed, and what should have been --------------------------------------------------------------


def billed(session: Session) -> dict[str, Fraction]:
    """By charge: what was given up was billed, too; what was released was not."""
    sums: dict[str, Fraction] = defaultdict(Fraction)
    for line in session.scalars(select(InvoiceLine).where(InvoiceLine.released_at.is_(None))):
        sums[line.identity] += Fraction(line.totals.total)
    return {identity: amount for identity, amount in sums.items() if amount}


def charged(session: Session) -> dict[str, Decimal]:
    """What the customer was asked for each charge, by its identity."""
    query = select(InvoiceLine).join(Invoice, Invoice.id == InvoiceLine.invoice_id)
    query = query.where(Invoice.deleted_at.is_(None), Invoice.voided_at.is_(None))
    found: dict[str, Decimal] = defaultdict(Decimal)
    for line in session.scalars(query):
        found[line.identity] += line.totals.total
    return found


def expected(world: World) -> dict[str, Fraction]:
    signed = subscriptions_of(world.session, [world.customer.id])
    every = [charge for one in signed for charge in charges(one.contract, until=ALL_BILLED)]
    owed = {charge.identity: _owed(charge, world) for charge in every if charge.invoice_at <= ALL_BILLED}
    return {identity: amount for identity, amount in owed.items() if amount}


def _owed(charge: Charge, world: World) -> Fraction:
    used = NOTHING if isinstance(charge.price, FlatPrice) else _used(charge, world)
    parts = reference_rating.owed(charge.terms, used, last=True).values()
    return sum((cost - off for cost, off in parts), Fraction(0))


def _used(charge: Charge, world: World) -> Usage:
    groups: dict[Group, Decimal] = defaultdict(Decimal)
    sizes: Counter[Decimal] = Counter()
    for event in world.sent:
        if event.id not in world.voided and charge.period.start <= event.time < charge.period.end:
            data = json.loads(event.data or b"")
            tokens = Decimal(data["tokens"])
            groups[data["model"],] += tokens
            sizes[tokens] += 1
    quantity = sum(groups.values(), Decimal(0))
    return Usage(quantity=quantity, events=sizes.total(), groups=groups, sizes=sizes)
