"""The official OpenMeter SDK, unchanged, as Tollgate's client: its synchronous and its asynchronous half.

Each test is written once. What an operation of the asynchronous half returns is awaited by `Sdk.done`. Where
the SDK's own types are unions (lists of features, rate cards, invoice lines) it hands out plain dicts.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import openmeter
import openmeter.aio
import openmeter.models
import pytest
from corehttp.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceNotFoundError,
)

from tests.server import ADMIN_KEY, Server

models: Any = openmeter.models
"""Untyped here: the SDK's annotations know no billing cadence but a timedelta, which has no months."""

MARCH = datetime(2026, 3, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Sdk:
    """A client, how to wait for its answers, and how to read all of a paged list."""

    kind: str
    client: Any
    done: Callable[[Any], Any]
    every: Callable[[Any], list[Any]] = field(default=list)

    def name(self, stem: str) -> str:
        """Both halves talk to one server: a name for each."""
        return f"{stem}_{self.kind}"


@pytest.fixture(scope="module", params=["sync", "aio"])
def sdk(request: pytest.FixtureRequest, server: Server) -> Iterator[Sdk]:
    if request.param == "sync":
        with openmeter.Client(endpoint=server.url, token=ADMIN_KEY) as client:
            yield Sdk("sync", client, lambda answer: answer)
    else:
        yield from _asynchronous(server)


def _asynchronous(server: Server) -> Iterator[Sdk]:
    async def every(pages: Any) -> list[Any]:
        return [item async for item in pages]

    async def opened() -> Any:
        return await openmeter.aio.Client(endpoint=server.url, token=ADMIN_KEY).__aenter__()

    with asyncio.Runner() as loop:
        client = loop.run(opened())
        yield Sdk(
            "aio", client, lambda answer: loop.run(_waited(answer)), lambda pages: loop.run(every(pages))
        )
        loop.run(client.close())


async def _waited(answer: Any) -> Any:
    return await answer


def event(number: int, kind: str, *, subject: str = "someone", **data: object) -> Any:
    return models.Event(
        id=f"{kind}-{number}",
        source="the-sdk",
        specversion="1.0",
        type=kind,
        subject=subject,
        time=MARCH + timedelta(minutes=number),
        data=data,
    )


def token_meter(slug: str) -> Any:
    return models.MeterCreate(
        slug=slug,
        name="Tokens",
        aggregation="SUM",
        event_type=slug,
        value_property="$.tokens",
        group_by={"model": "$.model", "type": "$.type"},
    )


def usage_card(feature_key: str) -> Any:
    return models.RateCardUsageBased(
        type="usage_based",
        key=feature_key,
        feature_key=feature_key,
        name="Prompt tokens",
        billing_cadence="P1M",
        price=models.UnitPriceWithCommitments(type="unit", amount="0.00002"),
        entitlement_template=models.RateCardBooleanEntitlement(type="boolean"),
    )


def fee_card() -> Any:
    price = models.FlatPriceWithPaymentTerm(type="flat", amount="49", payment_term="in_advance")
    return models.RateCardFlatFee(
        type="flat_fee", key="platform", name="Platform", billing_cadence="P1M", price=price
    )


def plan_of(key: str, *cards: object) -> Any:
    phase = models.PlanPhase(key="default", name="Default", duration=None, rate_cards=list(cards))
    return models.PlanCreate(
        key=key, name="AI gateway", currency="USD", billing_cadence="P1M", phases=[phase]
    )


def test_a_meter_is_created_listed_read_changed_and_deleted(sdk: Sdk) -> None:
    meters, slug = sdk.client.meters, sdk.name("meter")
    made = sdk.done(meters.create(token_meter(slug)))
    assert (made.slug, made.aggregation, made.value_property) == (slug, "SUM", "$.tokens")
    assert slug in [meter.slug for meter in sdk.done(meters.list())]
    assert sdk.done(meters.get(slug)) == sdk.done(meters.get(made.id)) == made
    change = models.MeterUpdate(name="LLM tokens", group_by={**made.group_by, "provider": "$.provider"})
    changed = sdk.done(meters.update(slug, change))
    assert (changed.name, set(changed.group_by)) == ("LLM tokens", {"model", "type", "provider"})
    assert changed.created_at == made.created_at < changed.updated_at
    assert sdk.done(meters.delete(slug)) is None
    assert slug not in [meter.slug for meter in sdk.done(meters.list())]
    with pytest.raises(ResourceNotFoundError):
        sdk.done(meters.get(slug))


def test_events_arrive_by_every_way_there_is_and_repeats_change_nothing(sdk: Sdk) -> None:
    slug, ingest = sdk.name("ways"), sdk.client.events
    sdk.done(sdk.client.meters.create(token_meter(slug)))
    sent = [event(i, slug, tokens=10**i) for i in range(7)]
    for _ in range(2):
        sdk.done(ingest.ingest_event(sent[0]))
        sdk.done(ingest.ingest_events(sent[1:4]))
        sdk.done(ingest.ingest_events_json(sent[4]))
        sdk.done(ingest.ingest_events_json(sent[5:]))
    assert usage(sdk, slug) == {(): 1111111}


def usage(sdk: Sdk, slug: str, **question: object) -> dict[tuple[str, ...], float]:
    """What the meter answers, by the values of the dimensions in the order they were asked for."""
    answer = sdk.done(sdk.client.meters.query_json(slug, **question))
    names = question.get("group_by", [])
    assert isinstance(names, list)
    return {tuple(row.group_by[name] for name in names): row.value for row in answer.data}


def test_usage_is_read_with_get_and_with_post(sdk: Sdk) -> None:
    slug = sdk.name("asked")
    sdk.done(sdk.client.meters.create(token_meter(slug)))
    kinds = ("request", "response")
    sent = [
        event(i, slug, subject=f"s{i % 2}", tokens=i, model=f"m{i % 3}", type=kinds[i % 2]) for i in range(60)
    ]
    sdk.done(sdk.client.events.ingest_events(sent))
    by_model = {(f"m{m}",): sum(i for i in range(60) if i % 3 == m) for m in range(3)}
    assert usage(sdk, slug, group_by=["model"]) == by_model
    assert usage(sdk, slug, subject=["s1"]) == {(): sum(range(1, 60, 2))}
    half = {"from_parameter": MARCH + timedelta(minutes=30), "to": MARCH + timedelta(hours=1)}
    assert usage(sdk, slug, **half) == {(): sum(range(30, 60))}
    question = models.MeterQueryRequest(
        from_property=MARCH,
        to=MARCH + timedelta(days=1),
        window_size="HOUR",
        window_time_zone="Europe/Berlin",
        subject=["s0", "s1"],
        filter_group_by={"type": ["response"], "model": ["m0", "m1"]},
    )
    answer = sdk.done(sdk.client.meters.query(slug, question))
    expected = sum(i for i in range(1, 60, 2) if i % 3 < 2)
    assert [(row.subject, row.value, row.window_start) for row in answer.data] == [("s1", expected, MARCH)]
    assert (answer.from_property, answer.to, answer.window_size) == (MARCH, question.to, "HOUR")


def test_every_parameter_of_a_query_reaches_the_meter(sdk: Sdk) -> None:
    slug, meters = sdk.name("parameters"), sdk.client.meters
    sdk.done(meters.create(token_meter(slug)))
    apps = [sdk.name("asked-0"), sdk.name("asked-1")]
    kinds = ("request", "response")
    sent = [
        event(i, slug, subject=apps[i % 2], tokens=i, model=f"m{i % 3}", type=kinds[i % 2]) for i in range(60)
    ]
    sdk.done(sdk.client.events.ingest_events(sent))
    customer = a_customer(sdk, apps[1])
    odd = [i for i in range(60) if i % 2]
    hour = {"from_parameter": MARCH, "to": MARCH + timedelta(hours=1), "client_id": "the-sdk"}
    late = {**hour, "from_parameter": MARCH + timedelta(minutes=30)}
    assert usage(sdk, slug, **late, filter_customer_id=[customer], group_by=["type"]) == {
        ("response",): sum(i for i in odd if i >= 30)
    }
    advanced = {"type": models.FilterString(eq="response"), "model": models.FilterString(in_property=["m0"])}
    m0 = sum(i for i in odd if i % 3 == 0)
    plain = {name: as_json(condition) for name, condition in advanced.items()}
    assert usage(sdk, slug, **hour, advanced_meter_group_by_filters=plain) == {(): m0}
    minutes = sdk.done(
        meters.query_json(
            slug, **hour, window_size="MINUTE", window_time_zone="Asia/Kolkata", subject=[apps[1]]
        )
    )
    assert [row.value for row in minutes.data] == odd
    question = models.MeterQueryRequest(
        client_id="the-sdk",
        filter_customer_id=[customer],
        advanced_meter_group_by_filters=advanced,
        group_by=["model", "subject"],
    )
    (row,) = sdk.done(meters.query(slug, question)).data
    assert (row.value, row.subject, row.customer_id, row.group_by) == (m0, apps[1], customer, {"model": "m0"})


def a_customer(sdk: Sdk, subject: str) -> str:
    """The id of one who owns the subject."""
    owned = models.CustomerUsageAttribution(subject_keys=[subject])
    wanted = models.CustomerCreate(name="Kong Air", usage_attribution=owned)
    return str(sdk.done(sdk.client.customers.create(wanted)).id)


def test_usage_is_read_as_csv(sdk: Sdk) -> None:
    slug, meters = sdk.name("csv"), sdk.client.meters
    sdk.done(meters.create(token_meter(slug)))
    sdk.done(sdk.client.events.ingest_event(event(0, slug, tokens=1.5, model="m0")))
    day = {"from_parameter": MARCH, "to": MARCH + timedelta(days=1)}
    said = sdk.done(meters.query_csv(slug, **day, window_size="DAY", group_by=["model"]))
    header, row = said.splitlines()
    assert header == "window_start,window_end,model,value"
    assert row.startswith("2026-03-01T00:00:00Z,2026-03-02T00:00:00Z,m0,1.5")
    assert sdk.done(meters.query_csv_post(slug)).splitlines()[0] == "window_start,window_end,value"


def test_the_subjects_and_the_values_of_a_meter(sdk: Sdk) -> None:
    slug, meters = sdk.name("values"), sdk.client.meters
    sdk.done(meters.create(token_meter(slug)))
    sent = [event(i, slug, subject=f"s{i}", tokens=i, model=f"m{i % 2}") for i in range(4)]
    sdk.done(sdk.client.events.ingest_events(sent))
    period = {"from_parameter": MARCH + timedelta(minutes=1), "to": MARCH + timedelta(minutes=3)}
    assert sdk.done(meters.list_subjects(slug)) == ["s0", "s1", "s2", "s3"]
    assert sdk.done(meters.list_subjects(slug, **period)) == ["s1", "s2"]
    assert sdk.done(meters.list_group_by_values(slug, "model", **period)) == ["m0", "m1"]
    with pytest.raises(HttpResponseError) as refused:
        sdk.done(meters.list_group_by_values(slug, "color", **period))
    assert refused.value.status_code == 400


def test_events_are_listed_with_what_is_wrong_with_them(sdk: Sdk) -> None:
    slug, events = sdk.name("listed"), sdk.client.events
    sdk.done(sdk.client.meters.create(token_meter(slug)))
    owned, unowned = sdk.name("owned"), sdk.name("unowned")
    customer = a_customer(sdk, owned)
    sdk.done(
        events.ingest_events(
            [
                event(0, slug, subject=owned, tokens=1),
                event(1, slug, subject=owned, tokens="NaN"),
                event(2, slug, subject=unowned),
            ]
        )
    )
    march = {"from_parameter": MARCH, "to": MARCH + timedelta(days=1)}
    found = sdk.done(events.list(**march, id=slug, limit=100))
    assert [item.event.id for item in found] == [f"{slug}-{i}" for i in (2, 1, 0)]
    assert [item.customer_id for item in found] == [None, customer, customer]
    assert [item.validation_error for item in found] == [
        f'invalid event: missing value property: "$.tokens"\nno customer found for event subject: {unowned}',
        "invalid event: value cannot be NaN",
        None,
    ]
    newest, *_, oldest = found
    assert (newest.event.subject, newest.event.data) == (unowned, {})
    assert (oldest.event.time, oldest.event.source, oldest.event.data) == (MARCH, "the-sdk", {"tokens": 1})
    assert newest.ingested_at <= newest.stored_at
    received = {"ingested_at_from": newest.ingested_at, "ingested_at_to": datetime(2990, 1, 1, tzinfo=UTC)}
    narrow = {**march, **received, "client_id": "the-sdk"}
    assert len(sdk.done(events.list(**narrow, subject=unowned))) == 1
    assert len(sdk.done(events.list(**narrow, customer_id=[customer]))) == 2
    assert len(sdk.done(events.list(**narrow, id=slug, limit=2))) == 2


def test_events_are_paged_by_cursor_through_every_filter(sdk: Sdk) -> None:
    slug, app = sdk.name("paged"), sdk.name("paged-app")
    customer = a_customer(sdk, app)
    sdk.done(sdk.client.events.ingest_events([event(i, slug, subject=app, tokens=i) for i in range(25)]))
    wanted = models.ListRequestFilter(
        id=models.FilterString(like=f"{slug}-%"),
        source=models.FilterString(eq="the-sdk"),
        subject=models.FilterString(ne="nobody"),
        type=models.FilterString(in_property=[slug]),
        customer_id=models.FilterIDExact(in_property=[customer]),
        time=models.FilterTime(and_property=[models.FilterTime(gte=MARCH)]),
        ingested_at=models.FilterTime(lt=datetime(2990, 1, 1, tzinfo=UTC)),
    )
    pages = sdk.client.events_v2.list(limit=10, client_id="the-sdk", filter=as_json(wanted))
    assert [item.event.id for item in sdk.every(pages)] == [f"{slug}-{i}" for i in reversed(range(25))]
    nobody = as_json(models.ListRequestFilter(subject=models.FilterString(eq="nobody")))
    assert sdk.every(sdk.client.events_v2.list(filter=nobody)) == []


def as_json(condition: Any) -> Any:
    """In a URL: the SDK hands a filter to json.dumps, which takes plain dicts only."""
    return condition.as_dict()


def test_a_subject_is_upserted_listed_read_and_deleted(sdk: Sdk) -> None:
    subjects, key = sdk.client.subjects, sdk.name("subject")
    wanted = models.SubjectUpsert(key=key, display_name="An app", metadata={"team": "ai"})
    (made,) = sdk.done(subjects.upsert([wanted]))
    assert (made.key, made.display_name, made.metadata) == (key, "An app", {"team": "ai"})
    (changed,) = sdk.done(subjects.upsert([models.SubjectUpsert(key=key, display_name="Our app")]))
    assert (changed.id, changed.display_name, changed.metadata) == (made.id, "Our app", {"team": "ai"})
    assert sdk.done(subjects.get(key)) == sdk.done(subjects.get(made.id)) == changed
    assert key in [subject.key for subject in sdk.done(subjects.list())]
    assert sdk.done(subjects.delete(key)) is None
    assert key not in [subject.key for subject in sdk.done(subjects.list())]
    with pytest.raises(ResourceNotFoundError):
        sdk.done(subjects.get(key))


def test_a_feature_is_created_listed_read_and_archived(sdk: Sdk) -> None:
    features, key = sdk.client.features, sdk.name("feature")
    wanted = models.FeatureCreateInputs(
        key=key,
        name="OpenAI prompt tokens",
        meter_slug="llm_tokens_total",
        meter_group_by_filters={"provider": "openai", "type": "request"},
        metadata={"team": "ai"},
    )
    made = sdk.done(features.create(wanted))
    assert made.meter_group_by_filters == {"provider": "openai", "type": "request"}
    assert sdk.done(features.get(key)) == sdk.done(features.get(made.id)) == made
    assert key in [feature["key"] for feature in sdk.done(features.list())]
    page = sdk.done(features.list(page=1, page_size=1000))
    assert key in [feature["key"] for feature in page["items"]]
    with pytest.raises(ResourceExistsError):
        sdk.done(features.create(wanted))
    assert sdk.done(features.delete(made.id)) is None
    assert key not in [feature["key"] for feature in sdk.done(features.list())]
    assert sdk.done(features.get(made.id)).archived_at is not None


def test_a_features_conditions_and_unit_cost_come_back_as_they_were_sent(sdk: Sdk) -> None:
    features, key = sdk.client.features, sdk.name("costed")
    gpt = models.FilterString(like="gpt-%", nilike="%MINI")
    either = models.FilterString(
        or_property=[models.FilterString(eq="request"), models.FilterString(gte="s")]
    )
    wanted = models.FeatureCreateInputs(
        key=key,
        name="OpenAI tokens",
        meter_slug="llm_tokens_total",
        advanced_meter_group_by_filters={"model": gpt, "type": either},
        unit_cost=models.FeatureLLMUnitCost(
            type="llm",
            provider="openai",
            model="gpt-4o",
            token_type_property="type",  # noqa: S106  no password
        ),
    )
    made = sdk.done(features.create(wanted))
    assert made.advanced_meter_group_by_filters == {"model": gpt, "type": either}
    pricing = made.unit_cost.pop("pricing")
    assert made.unit_cost == dict(wanted.unit_cost)
    assert pricing["cacheReadPerToken"] == "0.00000125"
    made.unit_cost["pricing"] = pricing
    assert sdk.done(features.get(key)) == made
    manual = models.FeatureManualUnitCost(type="manual", amount="0.00000000000000000000000001")
    again = models.FeatureCreateInputs(
        key=f"{key}_2", name="A", meter_slug="llm_tokens_total", unit_cost=manual
    )
    assert sdk.done(features.create(again)).unit_cost == dict(manual)
    wanted.unit_cost.provider = None
    with pytest.raises(HttpResponseError, match="providerProperty"):
        sdk.done(features.create(wanted))


def test_features_are_listed_in_an_order_by_meter_and_with_those_of_old(sdk: Sdk) -> None:
    features, meter = sdk.client.features, sdk.name("ordered")
    sdk.done(sdk.client.meters.create(token_meter(meter)))
    for stem, name in (("b", "1"), ("a", "2")):
        wanted = models.FeatureCreateInputs(key=f"{stem}_{meter}", name=name, meter_slug=meter)
        made = sdk.done(features.create(wanted))
    sdk.done(features.delete(made.id))
    sdk.done(features.create(wanted))

    def keys(**how: object) -> str:
        return "".join(one["key"][0] for one in sdk.done(features.list(meter_slug=[meter], **how)))

    assert [keys(), keys(order="DESC"), keys(order_by="name")] == ["ab", "ba", "ba"]
    assert [keys(order_by="createdAt"), keys(order_by="id", order="DESC")] == ["ba", "ab"]
    assert [keys(include_archived=True), keys(include_archived=True, offset=1, limit=1)] == ["aab", "a"]
    page = sdk.done(features.list(meter_slug=[meter], page=2, page_size=1))
    assert (page["totalCount"], [one["key"][0] for one in page["items"]]) == (2, ["b"])


def test_a_customer_is_created_listed_read_changed_and_deleted(sdk: Sdk) -> None:
    customers, key = sdk.client.customers, sdk.name("customer")
    owned = models.CustomerUsageAttribution(subject_keys=[f"{key}-1", f"{key}-2"])
    made = sdk.done(
        customers.create(models.CustomerCreate(name="Kong Air", key=key, usage_attribution=owned))
    )
    assert made.usage_attribution.subject_keys == [f"{key}-1", f"{key}-2"]
    assert sdk.done(customers.get(key)) == sdk.done(customers.get(made.id)) == made
    assert [one.id for one in sdk.done(customers.list(subject=f"{key}-2"))["items"]] == [made.id]
    change = models.CustomerReplaceUpdate(
        name="Kong Air Ltd",
        key=key,
        currency="USD",
        primary_email="bills@kong-air.example",
        billing_address=models.Address(country="DE", city="Berlin", postal_code="10115", line1="Allee 1"),
        usage_attribution=models.CustomerUsageAttribution(subject_keys=[f"{key}-2", f"{key}-3"]),
    )
    changed = sdk.done(customers.update(made.id, change))
    assert (changed.name, changed.currency, changed.billing_address.city) == ("Kong Air Ltd", "USD", "Berlin")
    assert changed.usage_attribution.subject_keys == [f"{key}-2", f"{key}-3"]
    assert sdk.done(customers.delete(made.id)) is None
    assert sdk.done(customers.list(subject=key))["items"] == []
    assert sdk.done(customers.get(made.id)).deleted_at is not None


def tier_of(end: str | None, unit: str | None = None, flat: str | None = None) -> Any:
    return models.PriceTier(
        up_to_amount=end,
        unit_price=models.UnitPrice(type="unit", amount=unit) if unit else None,
        flat_price=models.FlatPrice(type="flat", amount=flat) if flat else None,
    )


def every_price() -> list[Any]:
    """Every model that OpenMeter knows, on a usage-based card, with every member it has."""
    limits = {"minimum_amount": "10", "maximum_amount": "2000.5"}
    graduated = [tier_of("5", flat="100"), tier_of("10", "0.5", "50"), tier_of(None, "1")]
    volume = [tier_of("5", "1"), tier_of(None, "2", "0")]
    return [
        models.FlatPriceWithPaymentTerm(type="flat", amount="49.90", payment_term="in_arrears"),
        models.UnitPriceWithCommitments(type="unit", amount="0.00002", **limits),
        models.TieredPriceWithCommitments(type="tiered", mode="graduated", tiers=graduated, **limits),
        models.TieredPriceWithCommitments(type="tiered", mode="volume", tiers=volume),
        models.PackagePriceWithCommitments(type="package", amount="15", quantity_per_package="10", **limits),
        models.DynamicPriceWithCommitments(type="dynamic", multiplier="1.25", **limits),
    ]


def every_template() -> list[Any]:
    return [
        models.RateCardBooleanEntitlement(type="boolean", metadata={"a": "b"}),
        models.RateCardStaticEntitlement(type="static", config='{"seats": 5}'),
        models.RateCardMeteredEntitlement(
            type="metered",
            is_soft_limit=True,
            issue_after_reset=1000.5,
            issue_after_reset_priority=3,
            preserve_overage_at_reset=True,
            usage_period="P1M",
        ),
    ]


def a_feature_of(sdk: Sdk, key: str) -> str:
    sdk.done(sdk.client.meters.create(token_meter(key)))
    sdk.done(sdk.client.features.create(models.FeatureCreateInputs(key=key, name="Tokens", meter_slug=key)))
    return key


def rich_phases(feature_keys: list[str]) -> list[Any]:
    """A card for each price; templates and discounts in turn. A flat fee in a trial before."""
    templates = every_template()
    cards = [
        models.RateCardUsageBased(
            type="usage_based",
            key=feature_keys[i],
            feature_key=feature_keys[i],
            name=f"Card {i}",
            description="as sold",
            metadata={"gl": str(i)},
            billing_cadence="P1M",
            price=price,
            entitlement_template=templates[i % 3],
            discounts=models.Discounts(
                percentage=models.DiscountPercentage(percentage=(12.5, 100, 0.1)[i % 3]),
                usage=models.DiscountUsage(quantity="10.5") if i else None,
            ),
            tax_config=models.TaxConfig(
                behavior="exclusive", stripe=models.StripeTaxConfig(code="txcd_10000000")
            ),
        )
        for i, price in enumerate(every_price())
    ]
    setup = models.RateCardFlatFee(
        type="flat_fee",
        key="setup",
        name="Setup",
        billing_cadence=None,
        price=models.FlatPriceWithPaymentTerm(type="flat", amount="99", payment_term="in_advance"),
        tax_config=models.TaxConfig(custom_invoicing=models.CustomInvoicingTaxConfig(code="S1")),
    )
    free = models.RateCardFlatFee(type="flat_fee", key="free", name="Free", billing_cadence="P1M", price=None)
    return [
        models.PlanPhase(key="trial", name="Trial", duration="P14D", rate_cards=[setup, free]),
        models.PlanPhase(key="main", name="Main", description="d", duration=None, rate_cards=cards),
    ]


def as_sent(value: Any) -> Any:
    """What the SDK puts on the wire; what it leaves out by sending null is left out here too."""
    if isinstance(value, list):
        return [as_sent(item) for item in value]
    if hasattr(value, "items"):
        return {name: as_sent(item) for name, item in value.items() if item is not None}
    return value


def assert_holds(found: Any, sent: Any, at: str = "$") -> None:
    """All that was sent is there and the same; what OpenMeter has a default for may be there besides."""
    if isinstance(sent, dict):
        for name, value in sent.items():
            assert name in found, f"{at}.{name}"
            assert_holds(found[name], value, f"{at}.{name}")
        assert {name for name in found if found[name] is not None} - set(sent) <= DEFAULTS, at
    elif isinstance(sent, list):
        assert len(found) == len(sent), at
        for i, (one, other) in enumerate(zip(found, sent, strict=True)):
            assert_holds(one, other, f"{at}[{i}]")
    else:
        assert found == sent, at


DEFAULTS = {"isSoftLimit", "preserveOverageAtReset", "paymentTerm", "multiplier"}


def test_every_operation_of_plans_with_all_that_a_plan_can_hold(sdk: Sdk) -> None:
    plans, key = sdk.client.plans, sdk.name("rich")
    phases = rich_phases([a_feature_of(sdk, f"{key}_{i}") for i in range(6)])
    wanted = models.PlanCreate(
        key=key,
        name="Rich",
        description="everything",
        metadata={"team": "ai"},
        currency="EUR",
        billing_cadence="P1M",
        alignment=models.Alignment(billables_must_align=True),
        pro_rating_config=models.ProRatingConfig(enabled=False, mode="prorate_prices"),
        settlement_mode="credit_then_invoice",
        phases=phases,
    )
    sent = as_sent(wanted)
    draft = sdk.done(plans.create(wanted))
    assert (draft.status, draft.version, draft.validation_errors) == ("draft", 1, [])
    for answer in (draft, sdk.done(plans.get(draft.id)), sdk.done(plans.get(key, include_latest=True))):
        assert_holds({name: as_sent(answer)[name] for name in sent}, sent)
    tier = draft.phases[1].rate_cards[2]["price"]["tiers"][0]
    assert (tier["unitPrice"], tier["flatPrice"]["amount"]) == (None, "100")

    # What was read can be sent back as it is.
    replaced = sdk.done(
        plans.update(
            draft.id, models.PlanReplaceUpdate(name="Richer", billing_cadence="P1M", phases=draft.phases)
        )
    )
    assert (replaced.name, as_sent(replaced.phases)) == ("Richer", as_sent(draft.phases))
    first = sdk.done(plans.publish(draft.id))
    assert (first.status, as_sent(first.phases)) == ("active", as_sent(draft.phases))

    second = sdk.done(plans.next(key))
    assert (second.status, second.version, as_sent(second.phases)) == ("draft", 2, as_sent(first.phases))
    assert sdk.done(plans.publish(second.id)).status == "active"
    assert sdk.done(plans.get(first.id)).status == "archived"
    third = sdk.done(plans.next(second.id))

    pages = [
        sdk.every(plans.list(key=[key], order="DESC", order_by="version", page=n, page_size=2))
        for n in (1, 2)
    ]
    assert [[plan.version for plan in page] for page in pages] == [[3, 2], [1]]
    assert [plan.version for plan in sdk.every(plans.list(key_version={key: [1, 3]}))] == [1, 3]
    assert [plan.id for plan in sdk.every(plans.list(id=[second.id], currency=["EUR"]))] == [second.id]
    assert sdk.every(plans.list(key=[key], status=["scheduled"])) == []

    assert sdk.done(plans.delete(third.id)) is None
    assert sdk.done(plans.archive(second.id)).effective_to is not None
    assert sdk.done(plans.delete(second.id)) is None
    assert [plan.version for plan in sdk.every(plans.list(key=[key]))] == [1]
    every = sdk.every(plans.list(key=[key], include_deleted=True))
    assert [plan.deleted_at is not None for plan in every] == [False, True, True]
    with pytest.raises(ResourceNotFoundError):
        sdk.done(plans.get(key))


def test_from_plan_to_invoice_preview(sdk: Sdk) -> None:
    """The whole story; a draft may still change, what is published is sold as it is."""
    client, slug = sdk.client, sdk.name("story")
    sdk.done(client.meters.create(token_meter(slug)))
    filters = {"type": "request"}
    feature = models.FeatureCreateInputs(
        key=slug, name="Prompt tokens", meter_slug=slug, meter_group_by_filters=filters
    )
    sdk.done(client.features.create(feature))

    draft = sdk.done(client.plans.create(plan_of(slug, usage_card(slug))))
    assert (draft.status, draft.version, draft.validation_errors) == ("draft", 1, [])
    replaced = plan_of(slug, fee_card(), usage_card(slug))
    update = models.PlanReplaceUpdate(name="AI", billing_cadence="P1M", phases=replaced.phases)
    changed = sdk.done(client.plans.update(draft.id, update))
    assert [card["key"] for card in changed.phases[0].rate_cards] == ["platform", slug]
    published = sdk.done(client.plans.publish(draft.id))
    assert published.status == "active"
    assert sdk.done(client.plans.get(slug)) == published
    assert [plan.key for plan in sdk.every(client.plans.list(key=[slug]))] == [slug]
    assert sdk.every(client.plans.list(key=[slug], status=["draft"])) == []

    owned = models.CustomerUsageAttribution(subject_keys=[f"{slug}-app"])
    customer = sdk.done(
        client.customers.create(models.CustomerCreate(name="Kong Air", key=slug, usage_attribution=owned))
    )
    contract = models.PlanSubscriptionCreate(
        plan=models.PlanReferenceInput(key=slug), customer_id=customer.id, timing="immediate"
    )
    signed = sdk.done(client.subscriptions.create(contract))
    assert (signed.status, signed.customer_id, signed.plan.key) == ("active", customer.id, slug)
    expanded = sdk.done(client.subscriptions.get_expanded(signed.id))
    assert [item.key for item in expanded.phases[0].items_property] == ["platform", slug]
    assert expanded.phases[0].item_timelines[slug][0].included.feature.key == slug
    assert sdk.done(client.customers.get(slug)).current_subscription_id == signed.id

    used = [
        event(i, slug, subject=f"{slug}-app", tokens=1001, type=("request", "response")[i % 2])
        for i in range(500)
    ]
    for one in used:
        one.time = None  # now, as the server sees it
    sdk.done(client.events.ingest_events(used))
    assert lines_of_the_invoice(sdk, customer.id) == {
        "platform": ("1", "49.00"),
        slug: ("250250", "5.01"),  # 250 x 1001 tokens at $0.00002 are $5.005, rounded half up
    }


def lines_of_the_invoice(sdk: Sdk, customer_id: str) -> dict[str, tuple[str, str]]:
    page = sdk.done(
        sdk.client.invoices.list(statuses=["gathering"], expand=["lines"], customers=[customer_id])
    )
    (invoice,) = page["items"]
    assert (invoice.status, invoice.currency, invoice.customer.id) == ("gathering", "USD", customer_id)
    assert invoice.totals.total == "54.01"
    return {line.feature_key or "platform": (line.quantity, line.totals.total) for line in invoice.lines}


def flat_tier(up_to: str, amount: str) -> Any:
    flat = models.FlatPrice(type="flat", amount=amount)
    return models.PriceTier(up_to_amount=up_to, flat_price=flat, unit_price=None)


def unit_tier(up_to: str | None, amount: str) -> Any:
    unit = models.UnitPrice(type="unit", amount=amount)
    return models.PriceTier(up_to_amount=up_to, flat_price=None, unit_price=unit)


TIERS = [flat_tier("5", "100"), flat_tier("10", "50"), unit_tier("15", "5"), unit_tier(None, "1")]
TIERED = models.TieredPriceWithCommitments
GRADUATED = TIERED(type="tiered", mode="graduated", tiers=TIERS)


def unit_price(amount: str, **commitments: str) -> Any:
    return models.UnitPriceWithCommitments(type="unit", amount=amount, **commitments)


def simulated_line(price: Any, quantity: str, before: str | None = None, *, discounts: Any = None) -> Any:
    return models.InvoiceSimulationLine(
        name="API calls",
        period=models.Period(from_property=MARCH, to=MARCH + timedelta(days=31)),
        invoice_at=MARCH + timedelta(days=31),
        quantity=quantity,
        pre_line_period_quantity=before,
        rate_card=models.InvoiceUsageBasedRateCard(price=price, discounts=discounts),
    )


def simulate(sdk: Sdk, customer: str, *lines: Any, currency: str = "USD") -> Any:
    wanted = models.InvoiceSimulationInput(currency=currency, lines=list(lines))
    return sdk.done(sdk.client.customer_invoice.simulate_invoice(customer, wanted))


def test_an_invoice_is_simulated_with_every_price_there_is(sdk: Sdk) -> None:
    customer = a_customer(sdk, sdk.name("simulated"))
    volume = TIERED(type="tiered", mode="volume", tiers=[unit_tier("10", "2"), unit_tier(None, "1")])
    package = models.PackagePriceWithCommitments(type="package", amount="15", quantity_per_package="10")
    dynamic = models.DynamicPriceWithCommitments(type="dynamic", multiplier="1.2")
    fee = models.FlatPriceWithPaymentTerm(type="flat", amount="49", payment_term="in_advance")
    examples = [
        (simulated_line(GRADUATED, "22"), "182.00"),
        (simulated_line(GRADUATED, "10", "12"), "22.00"),
        (simulated_line(volume, "11"), "11.00"),
        (simulated_line(package, "11"), "30.00"),
        (simulated_line(dynamic, "12.34"), "14.81"),
        (simulated_line(fee, "1"), "49.00"),
        (simulated_line(unit_price("0.00000075"), "103000025"), "77.25"),
        (simulated_line(unit_price("100", maximum_amount="2000"), "32.2"), "2000.00"),
        (simulated_line(unit_price("1", minimum_amount="50"), "20"), "50.00"),
    ]
    invoice = simulate(sdk, customer, *(line for line, _ in examples))
    assert [line.totals.total for line in invoice.lines] == [total for _, total in examples]
    assert (invoice.customer.id, invoice.status, invoice.totals.total) == (customer, "draft", "2436.06")
    first, *_ = invoice.lines
    assert [child.category for child in first.children] == ["regular"] * 4
    assert first.rate_card.price["tiers"][0]["flatPrice"]["amount"] == "100"
    capped, topped_up = invoice.lines[-2:]
    (discount,) = capped.children[0].discounts.amount
    assert (discount.reason["type"], discount.amount) == ("maximum_spend", "1220.00")
    assert [child.category for child in topped_up.children] == ["regular", "commitment"]
    assert topped_up.totals.charges_total == "30.00"


def test_discounts_of_a_simulated_line_say_what_they_are(sdk: Sdk) -> None:
    customer = a_customer(sdk, sdk.name("discounted"))
    discounts = models.BillingDiscounts(
        percentage=models.BillingDiscountPercentage(percentage=12.5),
        usage=models.BillingDiscountUsage(quantity="15"),
    )
    line = simulated_line(unit_price("2"), "20", "10", discounts=discounts)
    (found,) = simulate(sdk, customer, line).lines
    assert (found.quantity, found.metered_quantity, found.pre_line_period_quantity) == ("15", "20", "0")
    (free,) = found.discounts.usage
    assert (free.reason["type"], free.quantity, free.pre_line_period_quantity) == (
        "ratecard_usage",
        "5",
        "10",
    )
    (off,) = found.children[0].discounts.amount
    assert (off.reason, off.amount) == ({"type": "ratecard_percentage", "percentage": 12.5}, "3.75")
    assert found.totals.total == "26.25"


def test_a_simulated_invoice_is_in_the_currencys_minor_unit(sdk: Sdk) -> None:
    customer, line = a_customer(sdk, sdk.name("currency")), simulated_line(unit_price("0.12345"), "10")
    found = {
        code: simulate(sdk, customer, line, currency=code).totals.total for code in ("JPY", "USD", "KWD")
    }
    assert found == {"JPY": "1", "USD": "1.23", "KWD": "1.235"}


def test_what_is_wrong_reaches_the_program_as_the_sdks_own_error(sdk: Sdk) -> None:
    with pytest.raises(HttpResponseError) as refused:
        sdk.done(sdk.client.meters.create(models.MeterCreate(slug="x", aggregation="SUM", event_type="x")))
    assert refused.value.status_code == 400
    problem: Any = refused.value.model
    assert problem.detail == "SUM needs a valueProperty"
    with pytest.raises(ResourceNotFoundError):
        sdk.done(sdk.client.meters.query_json("no_such_meter"))


def test_a_filter_that_the_sdk_can_not_spell_is_refused_and_never_ignored(sdk: Sdk) -> None:
    """It sends the GET parameter filterGroupBy as a Python dict; the unfiltered sum would be a wrong bill."""
    with pytest.raises(HttpResponseError) as refused:
        sdk.done(sdk.client.meters.query_json("llm_tokens_total", filter_group_by={"type": "request"}))
    assert refused.value.status_code == 400


def test_a_wrong_key_is_the_sdks_authentication_error(server: Server) -> None:
    with (
        openmeter.Client(endpoint=server.url, token=f"{ADMIN_KEY}x") as client,
        pytest.raises(ClientAuthenticationError),
    ):
        client.meters.list()
