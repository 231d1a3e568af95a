"""A leap year of two customers through the official OpenMeter SDK: month after month, as computed by hand.

tests/sdk_year.md tells the story: steps, and after them tables of what was invoiced. Only two things are not
the SDK's: the test clock, which OpenMeter has not, and the audit at the end.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openmeter
import openmeter.models
import pytest

from tests.builders import at
from tests.server import ADMIN_KEY, Server, tollgate

models: Any = openmeter.models
"""Untyped here: the SDK's annotations know no billing cadence but a timedelta, which has no months."""

STORY = Path(__file__).with_name("sdk_year.md")

Table = list[list[str]]


class Step(NamedTuple):
    when: str
    text: str


class Offer(NamedTuple):
    """A plan, as a row of the first table has it."""

    key: str
    fee: str
    first: str
    beyond: str
    free: str
    call: str


class Line(NamedTuple):
    name: str
    start: str
    end: str
    metered: str
    quantity: str
    amount: str


class Invoice(NamedTuple):
    number: str
    status: str
    due: str
    lines: tuple[Line, ...]
    total: str


# -- The story -----------------------------------------------------------------------------------------------


def told() -> Iterator[Step | Table]:
    """Its steps and its tables, each without its heading, in order."""
    table: Table = []
    for line in [*STORY.read_text(encoding="utf-8").splitlines(), ""]:
        if step := re.fullmatch(r"- (2028[\d:T-]*) (.*)", line):
            yield Step(step[1], step[2])
        if line.startswith("|"):
            table.append([cell.strip() for cell in line.strip("|").split("|")])
        elif table:
            yield table[2:]
            table = []


def invoices_told(rows: Iterable[list[str]]) -> dict[str, Invoice]:
    """By number. A row with a number begins an invoice, a total ends it."""
    found: dict[str, Invoice] = {}
    lines: list[Line] = []
    for number, status, due, *line in rows:
        if number:
            head, lines = (number, status, due), []
        if line[0] == "total":
            assert sum(Decimal(one.amount) for one in lines) == Decimal(line[-1]), head
            found[head[0]] = Invoice(*head, lines=tuple(sorted(lines)), total=line[-1])
        else:
            lines.append(Line(*line))
    return found


def readable(invoices: Mapping[str, Invoice]) -> list[str]:
    """A text for each line, so that a difference is seen."""
    return [
        " ".join((one.number, one.status, "due", one.due, "total", one.total, *line))
        for _, one in sorted(invoices.items())
        for line in one.lines
    ]


# -- What is sold and done -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(shared_database_url: str) -> Iterator[Server]:
    environment = {"TOLLGATE_DATABASE_URL": shared_database_url}
    with Server(arguments=("--test-clock", "2028-01-01T00:00:00Z"), environment=environment) as server:
        yield server


@pytest.fixture(scope="module")
def sdk(server: Server) -> Iterator[Any]:
    with openmeter.Client(endpoint=server.url, token=ADMIN_KEY) as client:
        yield client


def make_features(sdk: Any) -> None:
    """What a gateway counts: tokens by provider, model and type, and calls."""
    by = {name: f"$.{name}" for name in ("provider", "model", "type")}
    tokens = models.MeterCreate(
        slug="tokens",
        aggregation="SUM",
        event_type="kong.llm_request",
        value_property="$.tokens",
        group_by=by,
    )
    sdk.meters.create(tokens)
    sdk.meters.create(models.MeterCreate(slug="calls", aggregation="COUNT", event_type="kong.request"))
    wanted = {"provider": "openai", "type": "request"}
    sdk.features.create(
        models.FeatureCreateInputs(
            key="ai-token", name="AI tokens", meter_slug="tokens", meter_group_by_filters=wanted
        )
    )
    sdk.features.create(models.FeatureCreateInputs(key="api-call", name="API calls", meter_slug="calls"))


def sell(sdk: Any, offer: Offer) -> None:
    flat = models.FlatPriceWithPaymentTerm(type="flat", amount=offer.fee, payment_term="in_advance")
    platform = models.RateCardFlatFee(
        type="flat_fee", key="platform", name="Platform", billing_cadence="P1M", price=flat
    )
    calls = models.UnitPriceWithCommitments(type="unit", amount=offer.call)
    free = models.Discounts(usage=models.DiscountUsage(quantity=offer.free))
    cards = [
        platform,
        usage_card("ai-token", "AI tokens", token_price(offer)),
        usage_card("api-call", "API calls", calls, discounts=free),
    ]
    phase = models.PlanPhase(key="main", name="Main", duration=None, rate_cards=cards)
    wanted = models.PlanCreate(
        key=offer.key, name=offer.key, currency="USD", billing_cadence="P1M", phases=[phase]
    )
    sdk.plans.publish(sdk.plans.create(wanted).id)


def token_price(offer: Offer) -> Any:
    if offer.first == offer.beyond:
        return models.UnitPriceWithCommitments(type="unit", amount=offer.first)
    tiers = [tier("1000000", offer.first), tier(None, offer.beyond)]
    return models.TieredPriceWithCommitments(type="tiered", mode="graduated", tiers=tiers)


def tier(up_to: str | None, amount: str) -> Any:
    unit = models.UnitPrice(type="unit", amount=amount)
    return models.PriceTier(up_to_amount=up_to, flat_price=None, unit_price=unit)


def usage_card(key: str, name: str, price: Any, **more: Any) -> Any:
    return models.RateCardUsageBased(
        type="usage_based", key=key, name=name, feature_key=key, billing_cadence="P1M", price=price, **more
    )


class World:
    """Two customers and what they do; `shown` are their invoices as they were when last looked at."""

    def __init__(self, sdk: Any, clock: httpx.Client) -> None:
        self.sdk, self.clock = sdk, clock
        self.now = "2028-01-01"
        self.sent = 0
        self.customers = {name: self._customer(name) for name in ("Kong Air", "Kong Sea")}
        self.subscriptions: dict[str, str] = {}
        self.shown: dict[str, Invoice] = {}

    def _customer(self, name: str) -> str:
        key = name.lower().replace(" ", "-")
        owned = models.CustomerUsageAttribution(subject_keys=[key])
        wanted = models.CustomerCreate(name=name, key=key, usage_attribution=owned)
        return str(self.sdk.customers.create(wanted).id)

    def take(self, step: Step) -> None:
        """At its instant, after all that fell due until then."""
        self.now = step.when
        self._advance()
        for pattern, action in _STEPS.items():
            if found := re.fullmatch(pattern, step.text):
                action(self, **found.groupdict())
                return
        raise AssertionError(f"nobody understands {step.text!r}")

    def _advance(self) -> None:
        to = {"to": at(self.now).isoformat()}
        answer = self.clock.post("/api/v1/test-clock/advance", json=to).raise_for_status().json()
        assert (answer["settled"], answer["failures"]) == (True, [])

    def nothing(self) -> None:
        """Time goes on."""

    # -- Contracts -------------------------------------------------------------------------------------------

    def sign_up(self, who: str, plan: str) -> None:
        wanted = models.PlanSubscriptionCreate(
            plan=models.PlanReferenceInput(key=plan), customer_id=self.customers[who]
        )
        self.subscriptions[who] = self.sdk.subscriptions.create(wanted).id

    def change(self, who: str, plan: str, timing: str) -> None:
        wanted = models.PlanSubscriptionChange(
            timing=_timing(timing), plan=models.PlanReferenceInput(key=plan)
        )
        changed = self.sdk.subscriptions.change(self.subscriptions[who], wanted)
        if changed.next.status == "active":
            self.subscriptions[who] = changed.next.id

    def restore(self, who: str) -> None:
        assert self.sdk.subscriptions.restore(self.subscriptions[who]).status == "active"

    def cancel(self, who: str, timing: str) -> None:
        self.sdk.subscriptions.cancel(self.subscriptions[who], {"timing": _timing(timing)})

    def unschedule(self, who: str) -> None:
        assert self.sdk.subscriptions.unschedule_cancelation(self.subscriptions[who]).status == "active"

    # -- Usage -----------------------------------------------------------------------------------------------

    def use(self, who: str, tokens: str, kind: str, provider: str, when: str | None) -> None:
        used = {"tokens": int(tokens), "provider": provider, "model": "some", "type": kind}
        self.sdk.events.ingest_event(self._event(who, "kong.llm_request", when or self.now, used))

    def call(self, who: str, calls: str) -> None:
        event = partial(self._event, who, "kong.request", self.now, {"status": 200})
        self.sdk.events.ingest_events([event() for _ in range(int(calls))])

    def _event(self, who: str, kind: str, when: str, data: Mapping[str, object]) -> Any:
        self.sent += 1
        return models.Event(
            id=str(self.sent),
            source="gateway",
            specversion="1.0",
            type=kind,
            subject=who.lower().replace(" ", "-"),
            time=at(when),
            data=data,
        )

    # -- Invoices --------------------------------------------------------------------------------------------

    def changed(self) -> dict[str, Invoice]:
        """By number: what is new by now, or not as it was when last looked at; and none went away."""
        self._advance()
        found = {one.id: invoice_of(one) for one in self.invoices()}
        assert found.keys() >= self.shown.keys()
        new = {one.number: one for id_, one in found.items() if self.shown.get(id_) != one}
        self.shown = found
        return new

    def invoices(self) -> list[Any]:
        """All but what is gathering."""
        page = self.sdk.invoices.list(expand=["lines"], order="ASC", order_by="createdAt", page_size=1000)
        assert page.total_count == len(page.items_property)
        return [one for one in page.items_property if one.status != "gathering"]

    def sums(self) -> dict[str, list[str]]:
        """What each customer was billed for each thing, and in all."""
        found = {}
        for name, id_ in self.customers.items():
            theirs = [one for one in self.invoices() if one.customer.id == id_]
            lines = [(line.name, Decimal(line.totals.total)) for one in theirs for line in one.lines]
            things = ("Platform", "AI tokens", "API calls")
            by_thing = [sum(amount for line, amount in lines if line == thing) for thing in things]
            found[name] = [str(amount) for amount in (*by_thing, sum(amount for _, amount in lines))]
        return found


def _timing(text: str) -> str | datetime:
    names = {"now": "immediate", "with the next cycle": "next_billing_cycle"}
    return names.get(text) or at(text.removeprefix("on "))


def invoice_of(found: Any) -> Invoice:
    """As the story's tables have it."""
    lines = [
        Line(
            name=line.name,
            start=_day(line.period.from_property),
            end=_day(line.period.to),
            metered=line.metered_quantity or "",
            quantity=line.quantity,
            amount=line.totals.total,
        )
        for line in found.lines
    ]
    return Invoice(
        number=found.number,
        status=found.status_details.extended_status,
        due=_day(found.due_at),
        lines=tuple(sorted(lines)),
        total=found.totals.total,
    )


def _day(when: datetime | None) -> str:
    """02-11, or 02-11T12:00 if it is not midnight."""
    if when is None:
        return ""
    return f"{when.astimezone(UTC):%m-%dT%H:%M}".removesuffix("T00:00")


WHO = r"(?P<who>Kong \w+)"
TIMING = r"(?P<timing>now|with the next cycle|on [\d-]+)"
_STEPS: dict[str, Callable[..., None]] = {
    "time goes on": World.nothing,
    WHO + r" signs up for (?P<plan>\w+)": World.sign_up,
    WHO + r" changes to (?P<plan>\w+) " + TIMING: World.change,
    WHO + " restores its subscription": World.restore,
    WHO + " cancels " + TIMING: World.cancel,
    WHO + " continues": World.unschedule,
    WHO
    + r" uses (?P<tokens>\d+) (?P<kind>\w+) tokens of (?P<provider>\w+)( at (?P<when>[\d:T-]+))?": World.use,
    WHO + r" makes (?P<calls>\d+) calls": World.call,
}


def test_each_invoice_of_a_leap_year_is_what_was_computed_by_hand(
    sdk: Any, server: Server, client: httpx.Client
) -> None:
    plans, *story, sums = told()
    make_features(sdk)
    for row in plans:
        sell(sdk, Offer(*row))
    world = World(sdk, client)
    for part in story:
        if isinstance(part, Step):
            world.take(part)
        else:
            assert readable(world.changed()) == readable(invoices_told(part)), f"by {world.now}"
    assert len(world.shown) == 15
    assert world.sums() == {row[0]: row[1:] for row in sums}
    for one in world.invoices():
        assert invoice_of(sdk.invoice.get_invoice(one.id)) == world.shown[one.id]
    assert audited(server) == [
        "info  events_unbilled: 51 events since 2028-01-01 are on no invoice: no_subscription",
        "info  events_unbilled: 2 events since 2028-01-01 are on no invoice: no_price",
        "0 errors, 2 to know.",
    ]


def audited(server: Server) -> list[str]:
    ended = tollgate("audit", environment=server.environment)
    assert ended.returncode == 0, ended.stdout
    return ended.stdout.splitlines()
