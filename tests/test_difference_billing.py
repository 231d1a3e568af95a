"""However a contract is billed, in the end it was billed what it comes to: to the cent."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from billing.contracts.customer import Customer, get_customer
from billing.invoices.invoicing import collect
from billing.invoices.progress import advance
from billing.rating.pricing import Group, Usage
from billing.rating.rater import Terms
from catalog.price import FlatPrice
from catalog.rate_card import UsageBasedRateCard
from metering.event import Event
from tests import reference_rating
from tests.billing_clock import bill_until, invoices_of, void_event, wrong
from tests.builders import START, a_customer, a_metered_feature, a_plan, at, phase, sign_up, spent, store
from tests.test_pricing import Chance

MONTHS = [at("2026-01-01"), at("2026-02-01"), at("2026-03-01"), at("2026-04-01")]
HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Sent:
    """Used `hour` hours after the start, known `delay` hours later, taken back `voided` hours after that."""

    hour: int
    delay: int
    tokens: int
    model: str
    voided: int | None

    @property
    def time(self) -> datetime:
        return START + self.hour * HOUR

    @property
    def arrival(self) -> datetime:
        return self.time + self.delay * HOUR


sent = st.builds(
    Sent,
    hour=st.integers(0, 90 * 24 - 1),
    delay=st.sampled_from([0, 1, 24, 300, 1000]),
    tokens=st.integers(0, 60),
    model=st.sampled_from(["a", "b", "z"]),
    voided=st.none() | st.integers(0, 200),
)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    usage=st.lists(sent, min_size=3, max_size=8),
    invoiced_early=st.lists(st.integers(0, 90 * 24), max_size=3),
)
def test_all_lines_of_a_period_come_to_what_one_line_would(
    session: Session, seed: int, usage: list[Sent], invoiced_early: list[int]
) -> None:
    """Late and voided usage, invoices in between: for any price, discount, conversion and commitment."""
    terms = Chance(seed).terms()
    if isinstance(terms.price, FlatPrice):
        return
    with session.begin_nested() as savepoint:
        customer = signed_up(session, terms)
        happen(session, customer, usage, invoiced_early)
        assert billed(session) == {
            start: expected(terms, [one for one in usage if start <= one.time < end])
            for start, end in pairwise(MONTHS)
        }
        assert wrong(session, at("2026-06-02")) == []
        savepoint.rollback()
    session.expunge_all()


def signed_up(session: Session, terms: Terms) -> Customer:
    a_metered_feature(session)
    card = UsageBasedRateCard(
        type="usage_based",
        key="tokens",
        name="tokens",
        feature_key="tokens",
        billing_cadence="P1M",
        price=terms.price,
        discounts=terms.discounts,
        unit_config=terms.unit_config,
    )
    customer = a_customer(session, "ada")
    sign_up(session, customer, a_plan(session, phase(card), currency=terms.currency))
    return customer


def happen(session: Session, customer: Customer, usage: list[Sent], invoiced_early: list[int]) -> None:
    """In order; whatever falls due meanwhile is billed in time."""
    steps: list[tuple[datetime, tuple[str, Event] | None]] = [
        (START + hours * HOUR, None) for hours in invoiced_early
    ]
    for one in usage:
        event = spent("ada", one.tokens, one.time.isoformat(), model=one.model)
        steps.append((one.arrival, ("store", event)))
        if one.voided is not None:
            steps.append((one.arrival + one.voided * HOUR, ("void", event)))
    for when, what in sorted(steps, key=lambda step: step[0]):
        bill_until(session, when, folding=True)
        match what:
            case None:
                invoice_now(session, customer, when)
            case "store", event:
                store(session, event)
            case _, event:
                void_event(session, event, when)
    bill_until(session, at("2026-06-02"), folding=True)


def invoice_now(session: Session, customer: Customer, now: datetime) -> None:
    locked = get_customer(session, customer.id, lock=True)
    advance(session, collect(session, [locked], now=now, reach="used"), now=now)


def billed(session: Session) -> dict[datetime, Decimal]:
    sums: dict[datetime, Decimal] = dict.fromkeys(MONTHS[:-1], Decimal(0))
    for invoice in invoices_of(session):
        assert invoice.totals.total == sum(line.totals.total for line in invoice.lines)
        for line in invoice.lines:
            if line.service_start in sums:
                sums[line.service_start] += line.totals.total
    return sums


def expected(terms: Terms, usage: list[Sent]) -> Decimal:
    """By the slow rater, from what was sent and not taken back."""
    groups: dict[Group, Decimal] = defaultdict(Decimal)
    sizes: Counter[Decimal] = Counter()
    for one in usage:
        if one.voided is None:
            groups[one.model,] += one.tokens
            sizes[Decimal(one.tokens)] += 1
    quantity = sum(groups.values(), Decimal(0))
    whole = Usage(quantity=quantity, events=sizes.total(), groups=groups, sizes=sizes)
    total = sum(
        (cost - off for cost, off in reference_rating.owed(terms, whole, last=True).values()), Fraction(0)
    )
    return Decimal(total.numerator) / Decimal(total.denominator)
