"""What usage of a feature cost and brought in, against a sum over single events; and over HTTP."""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from billing.reports.feature_cost import MAX_CUTS as MOST
from billing.reports.feature_cost import FeatureCost, NoUnitCostError, feature_costs
from catalog.features import Feature, create_feature, set_unit_cost
from catalog.llm_prices import create_override, list_prices
from catalog.price import PriceTier, TieredPrice, TierFlatPrice, TierUnitPrice
from catalog.rate_card import UsageBasedRateCard
from catalog.unit_cost import LlmPricing, LlmUnitCost, ManualUnitCost, UnitCost
from metering.errors import InvalidError
from metering.event import Event
from metering.exact import EXACT, total
from metering.filter_string import FilterString
from metering.meter import UsageQuery, UsageRow, fold
from metering.meters import get_meter
from metering.period import WindowSize, window_of
from tests.builders import (
    START,
    a_customer,
    a_feature,
    a_meter,
    a_plan,
    at,
    fee,
    per_unit,
    phase,
    sign_up,
    spent,
    store,
)
from tests.server import assert_problem

TOLD = LlmUnitCost(
    type="llm",
    provider_property="provider",
    model_property="model",
    token_type_property="type",  # noqa: S106  no password
)
CENT = ManualUnitCost(type="manual", amount=Decimal("0.01"))
MARCH, APRIL = at("2026-03-01"), at("2026-04-01")
CHANGE = at("2026-03-15T10:20:30.5")


def a_costed_feature(
    session: Session, cost: UnitCost | None = TOLD, conditions: Mapping[str, FilterString] | None = None
) -> Feature:
    a_meter(session)
    return create_feature(
        session,
        key="tokens",
        name="Tokens",
        meter_slug="tokens",
        advanced_meter_group_by_filters=conditions,
        unit_cost=cost,
        now=START,
    )


def a_price(session: Session, both: str, since: datetime, until: datetime | None = None, **of: str) -> None:
    """Of input and output tokens."""
    given_, made = both.split("/")
    create_override(
        session,
        provider=of.get("provider", "openai"),
        model=of.get("model", "gpt-4o"),
        pricing=LlmPricing(input_per_token=Decimal(given_), output_per_token=Decimal(made)),
        currency="USD",
        effective_from=since,
        effective_to=until,
        now=START,
    )


def shown(found: Iterable[FeatureCost]) -> list[tuple[str, str | None]]:
    return [
        (f"{one.row.usage.value:f}", None if one.row.cost is None else f"{one.row.cost.normalize():f}")
        for one in found
    ]


def test_each_kind_of_token_of_each_model_costs_its_own_and_the_row_sums_them_up(session: Session) -> None:
    feature = a_costed_feature(session)
    store(
        session,
        spent("ada", 1_000_000, "2026-03-05", kind="request"),
        spent("ada", 10_000, "2026-03-05", kind="response"),
        spent("bob", 103_000_025, "2026-03-06", model="GPT-4o-mini", kind="input"),
        spent("bob", 3, "2026-03-06", model="gpt-4o", kind="cache_read"),
    )
    assert shown(feature_costs(session, feature, UsageQuery())) == [("104010028", "18.0500075")]
    by_subject = feature_costs(session, feature, UsageQuery(group_by=("subject",)))
    assert shown(by_subject) == [("1010000", "2.6"), ("103000028", "15.4500075")]


def test_usage_is_cut_at_the_very_instant_where_its_price_changes(session: Session) -> None:
    feature = a_costed_feature(session)
    a_price(session, "2/0", MARCH)
    a_price(session, "3/0", CHANGE)
    store(
        session,
        spent("ada", 5, "2026-03-15T10:20:30.499999"),
        spent("ada", 7, "2026-03-15T10:20:30.5"),
    )
    month = UsageQuery(start=MARCH, end=APRIL)
    sizes: tuple[WindowSize | None, ...] = (None, "MINUTE", "HOUR", "DAY", "MONTH")
    for size in sizes:
        asked = replace(month, window_size=size)
        assert shown(feature_costs(session, feature, asked)) == [("12", "31")]
    assert [one.row.usage.window for one in feature_costs(session, feature, month)] == [
        window_of(MARCH, "MONTH", UTC)
    ]
    assert shown(feature_costs(session, feature, UsageQuery())) == [("12", "31")]


def test_a_window_that_begins_before_what_is_asked_has_the_price_of_what_is_asked(session: Session) -> None:
    feature = a_costed_feature(session)
    a_price(session, "2/0", MARCH)
    a_price(session, "3/0", CHANGE)
    store(session, spent("ada", 5, "2026-03-15T09:00"), spent("ada", 7, "2026-03-15T12:00"))
    noon = UsageQuery(start=at("2026-03-15T12:00"), end=at("2026-03-16"), window_size="DAY")
    assert shown(feature_costs(session, feature, noon)) == [("7", "21")]


def test_the_features_conditions_and_those_of_the_question_both_hold(session: Session) -> None:
    feature = a_costed_feature(session, CENT, {"model": FilterString(like="gpt-%")})
    for model in ("gpt-4o", "gpt-4o-mini", "o3"):
        store(session, spent("ada", 100, "2026-03-05", model=model))
    asked = UsageQuery(conditions={"model": FilterString(nlike="%mini")})
    assert shown(feature_costs(session, feature, asked)) == [("100", "1")]
    assert shown(feature_costs(session, feature, UsageQuery(filters={"model": ("o3",)}))) == []
    assert shown(feature_costs(session, feature, UsageQuery())) == [("200", "2")]


def test_what_has_no_price_has_no_cost_and_says_why(session: Session) -> None:
    feature = a_costed_feature(session)
    store(
        session,
        spent("ada", 1, "2026-03-05"),
        spent("ada", 1, "2026-03-05", provider="acme", model="a-1"),
        spent("bob", 4, "2026-03-05"),
    )
    found = feature_costs(session, feature, UsageQuery(group_by=("subject",)))
    assert shown(found) == [("2", None), ("4", "0.00001")]
    details = [one.row.detail for one in found]
    assert details == ["no price is known of the model 'a-1' of 'acme'", None]


def test_a_highest_value_costs_by_hand_what_it_is(session: Session) -> None:
    a_meter(session, "peak", "MAX")
    feature = create_feature(session, key="peak", name="P", meter_slug="peak", unit_cost=CENT, now=START)
    store(session, spent("ada", 3, "2026-03-05"), spent("ada", 9, "2026-03-06"))
    assert shown(feature_costs(session, feature, UsageQuery())) == [("9", "0.09")]


def test_a_feature_without_a_unit_cost_is_refused(session: Session) -> None:
    for feature in (a_costed_feature(session, None), a_feature(session, "sso")):
        with pytest.raises(NoUnitCostError) as caught:
            feature_costs(session, feature, UsageQuery())
        assert caught.value.issues[0].hint


def test_too_many_changes_of_price_in_a_window_are_refused(session: Session) -> None:
    feature = a_costed_feature(session)
    for hour in range(MOST + 2):
        a_price(session, f"{1 + hour % 2}/0", MARCH + timedelta(hours=hour))
    store(session, spent("ada", 1, "2026-03-05"))
    with pytest.raises(InvalidError) as caught:
        feature_costs(session, feature, UsageQuery(start=MARCH, end=APRIL))
    assert caught.value.issues[0].code == "too_many_price_changes"
    hourly = UsageQuery(start=MARCH, end=APRIL, window_size="HOUR")
    assert len(feature_costs(session, feature, hourly)) == 1


# -- Against single events -----------------------------------------------------------------------------------

MODELS = ("gpt-4o", "o3", "unheard-of")
moments = st.integers(0, 96).map(lambda n: MARCH + timedelta(hours=n, minutes=7 * (n % 3)))
uses = st.builds(
    lambda subject, tokens, when, model, kind: spent(
        subject, tokens, when.isoformat(), model=model, kind=kind
    ),
    st.sampled_from(["ada", "bob"]),
    st.decimals("0.001", 10**9, places=3),
    moments,
    st.sampled_from(MODELS[:2] * 6 + MODELS[2:]),
    st.sampled_from(["request", "response", "input", "output"]),
)
price_starts = st.lists(st.tuples(moments, st.sampled_from(MODELS[:2])), max_size=5, unique=True)
questions = st.builds(
    lambda start, hours, size, zone, group_by: UsageQuery(
        start=start,
        end=start and start + timedelta(hours=hours),
        window_size=size,
        zone=zone,
        group_by=tuple(group_by),
    ),
    st.none() | moments,
    st.integers(1, 60),
    st.sampled_from([None, "HOUR", "DAY", "MONTH"]),
    st.sampled_from(["UTC", "Asia/Kolkata"]),
    st.lists(st.sampled_from(["subject", "model", "type"]), unique=True, max_size=2),
)


def one_by_one(
    session: Session, events: Sequence[Event], query: UsageQuery
) -> list[tuple[UsageRow, Decimal | None]]:
    """Each event at the price of its instant; the rows are the reference fold's."""
    meter = get_meter(session, "tokens").definition
    costs: dict[object, list[Decimal | None]] = defaultdict(list)
    for event in events:
        for row in fold(meter, query, [event]):
            costs[place(query, row)].append(cost_of(session, event))
    answer = []
    for row in fold(meter, query, events):
        parts = costs[place(query, row)]
        known = [part for part in parts if part is not None]
        answer.append((row, total(known) if len(known) == len(parts) else None))
    return answer


def place(query: UsageQuery, row: UsageRow) -> object:
    return (row.window if query.window_size else None, tuple(row.group.values()))


def cost_of(session: Session, event: Event) -> Decimal | None:
    data = json.loads(event.data or b"{}")
    if data["model"] == "unheard-of":
        return None
    (price,) = list_prices(session, provider="openai", model=data["model"], at=event.time)
    asked = data["type"] in ("request", "input")
    per_token = price.pricing.input_per_token if asked else price.pricing.output_per_token
    return EXACT.multiply(Decimal(data["tokens"]), per_token)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(uses, min_size=1, max_size=8), price_starts, st.lists(questions, min_size=2, max_size=2))
def test_usage_costs_what_its_events_cost_one_by_one(
    session: Session,
    events: list[Event],
    starts: list[tuple[datetime, str]],
    asked: list[UsageQuery],
) -> None:
    with session.begin_nested() as savepoint:
        feature = a_costed_feature(session)
        store(session, *events)
        for number, (start, model) in enumerate(starts, start=1):
            a_price(session, f"0.00000{number}/0.0000{number}1", start, model=model)
        for query in asked:
            found = feature_costs(session, feature, query)
            assert [(one.row.usage, one.row.cost) for one in found] == one_by_one(session, events, query)
        savepoint.rollback()


# -- Revenue and margin --------------------------------------------------------------------------------------

LADDER = TieredPrice(
    type="tiered",
    mode="graduated",
    tiers=(
        PriceTier(
            up_to_amount=Decimal(100),
            flat_price=TierFlatPrice(type="flat", amount=Decimal(5)),
            unit_price=TierUnitPrice(type="unit", amount=Decimal(1)),
        ),
        PriceTier(unit_price=TierUnitPrice(type="unit", amount=Decimal("0.5"))),
    ),
)
GRADUATED = UsageBasedRateCard(
    type="usage_based",
    key="tokens",
    name="Tokens",
    feature_key="tokens",
    billing_cadence="P1M",
    price=LADDER,
)


def whole(*customers: Any, start: str = "2026-03-01", end: str = "2026-04-01") -> Any:
    """Customer by customer over a period."""
    owned = {subject: one.id for one in customers for subject in one.usage_subjects}
    return UsageQuery(start=at(start), end=at(end), customers=owned, group_by=("customer_id",))


def margins(session: Session, feature: Feature, *customers: Any, **period: str) -> list[tuple[str, ...]]:
    ids = [one.id for one in customers]
    found = feature_costs(session, feature, whole(*customers, **period), customer_ids=ids)
    return [
        tuple(
            "-" if amount is None else f"{amount:.4f}"
            for amount in (one.row.cost, one.revenue and one.revenue.amount, one.margin)
        )
        for one in found
    ]


def test_revenue_is_what_the_rater_gives_and_the_margin_what_is_left(session: Session) -> None:
    feature = a_costed_feature(session, CENT)
    a_feature(session, "other", meter="tokens")
    plan = a_plan(session, phase(GRADUATED, per_unit("9", feature="other"), fee("49")))
    ada, bob = a_customer(session, "ada"), a_customer(session, "bob")
    sign_up(session, ada, plan)
    store(session, spent("ada", 150, "2026-03-10"), spent("bob", 7, "2026-03-10"))
    assert margins(session, feature, ada, bob) == [
        ("1.5000", "130.0000", "128.5000"),
        ("0.0700", "-", "-"),
    ]


def test_revenue_of_a_part_of_a_month_is_what_came_to_be_owed_in_it(session: Session) -> None:
    """The second half starts on the tier where the first left off, and both together are the month."""
    feature = a_costed_feature(session, CENT)
    ada = a_customer(session, "ada")
    sign_up(session, ada, a_plan(session, phase(GRADUATED)))
    store(session, spent("ada", 90, "2026-03-10"), spent("ada", 60, "2026-03-20"))
    assert margins(session, feature, ada, end="2026-03-15") == [("0.9000", "95.0000", "94.1000")]
    assert margins(session, feature, ada, start="2026-03-15") == [("0.6000", "35.0000", "34.4000")]


def test_two_months_bring_in_what_each_of_them_does(session: Session) -> None:
    feature = a_costed_feature(session, CENT)
    ada = a_customer(session, "ada")
    sign_up(session, ada, a_plan(session, phase(GRADUATED)))
    store(session, spent("ada", 150, "2026-02-10"), spent("ada", 150, "2026-03-10"))
    assert margins(session, feature, ada, start="2026-02-01") == [("3.0000", "260.0000", "257.0000")]
    alone = [
        margins(session, feature, ada, start=f"2026-0{month}-01", end=f"2026-0{month + 1}-01")
        for month in (1, 2, 3)
    ]
    assert alone == [[("0.0000", "5.0000", "5.0000")], *[[("1.5000", "130.0000", "128.5000")]] * 2]


def test_who_pays_for_the_feature_and_does_not_use_it_is_all_margin(session: Session) -> None:
    feature = a_costed_feature(session, CENT)
    ada = a_customer(session)
    sign_up(session, ada, a_plan(session, phase(fee("12", key="tokens", feature="tokens"))))
    assert margins(session, feature, ada) == [("0.0000", "12.0000", "12.0000")]


def test_revenue_in_another_currency_is_given_and_no_margin(session: Session) -> None:
    feature = a_costed_feature(session, CENT)
    ada = a_customer(session, "ada")
    sign_up(session, ada, a_plan(session, phase(GRADUATED), currency="EUR"))
    store(session, spent("ada", 10, "2026-03-10"))
    assert margins(session, feature, ada) == [("0.1000", "15.0000", "-")]


def test_windows_and_dimensions_have_no_revenue(session: Session) -> None:
    feature = a_costed_feature(session, CENT)
    ada = a_customer(session, "ada")
    sign_up(session, ada, a_plan(session, phase(GRADUATED)))
    store(session, spent("ada", 10, "2026-03-10"))
    asked = whole(ada)
    every: list[dict[str, Any]] = [
        {"window_size": "DAY"},
        {"group_by": ("customer_id", "model")},
        {"filters": {"model": ("gpt-4o",)}},
        {"conditions": {"model": FilterString(eq="gpt-4o")}},
        {"subjects": ("ada",)},
        {"start": None},
        {"end": None},
        {"as_of": datetime(2999, 1, 1, tzinfo=UTC)},
    ]
    for changes in every:
        query = replace(asked, **changes)
        (found,) = feature_costs(session, feature, query, customer_ids=[ada.id])
        assert (found.row.cost, found.revenue, found.margin) == (Decimal("0.10"), None, None)


def test_a_unit_cost_that_changes_changes_what_past_usage_cost(session: Session) -> None:
    feature = a_costed_feature(session, CENT)
    store(session, spent("ada", 10, "2026-03-10"))
    set_unit_cost(session, feature, ManualUnitCost(type="manual", amount=Decimal(2)), now=APRIL)
    assert shown(feature_costs(session, feature, UsageQuery())) == [("10", "20")]


# -- Over HTTP -----------------------------------------------------------------------------------------------


def ask(client: httpx.Client, method: str, path: str, status: int = 200, **options: Any) -> Any:
    answer = client.request(method, f"/api/v1/{path}", **options)
    assert answer.status_code == status, answer.text
    return answer.json() if answer.content else None


@pytest.fixture(scope="module")
def costed(client: httpx.Client) -> str:
    """A feature's key, with some usage."""
    unit_cost = {
        "type": "llm",
        "provider": "acme",
        "modelProperty": "model",
        "tokenTypeProperty": "type",
    }
    narrowed = {"model": {"$like": "=a%"}}
    body = {"key": "acme", "name": "Acme", "meterSlug": "llm_tokens_total", "unitCost": unit_cost}
    made = ask(client, "POST", "features", 201, json={**body, "advancedMeterGroupByFilters": narrowed})
    assert made["unitCost"] == unit_cost
    assert made["advancedMeterGroupByFilters"] == narrowed
    events = [
        {
            "id": f"{model}-{kind}",
            "source": "s",
            "type": "kong.llm_request",
            "subject": "acme-user",
            "time": "2026-03-05T10:00:00Z",
            "data": {"tokens": 1000, "provider": "acme", "model": model, "type": kind},
        }
        for model in ("=a1", "=a2", "b")
        for kind in ("request", "response")
    ]
    answer = client.post(
        "/api/v1/events",
        content=json.dumps(events),
        headers={"Content-Type": "application/cloudevents-batch+json"},
    )
    assert answer.status_code == 204
    pricing = {"inputPerToken": "0.0000000000000000000000001", "outputPerToken": "2"}
    override = {"provider": "Acme", "modelId": "=A1", "pricing": pricing, "currency": "USD"}
    ask(client, "POST", "llm-cost/overrides", 201, json={**override, "effectiveFrom": "2026-01-01T00:00:00Z"})
    return "acme"


def test_costs_are_exact_text_and_null_where_they_are_not_known(client: httpx.Client, costed: str) -> None:
    body = {"from": "2026-03-01T00:00:00Z", "to": "2026-04-01T00:00:00Z", "groupBy": ["model"]}
    found = ask(client, "POST", f"features/{costed}/cost/query", json=body)
    period = {name: body[name] for name in ("from", "to")}
    assert found == {
        **period,
        "data": [
            {
                **period,
                "usage": "2000",
                "cost": "2000.0000000000000000000001",
                "currency": "USD",
                "dimensions": {"model": "=a1"},
            },
            {
                **period,
                "usage": "2000",
                "cost": None,
                "currency": "USD",
                "detail": "no price is known of the model '=a2' of 'acme'",
                "dimensions": {"model": "=a2"},
            },
        ],
    }


def test_costs_are_a_table_for_spreadsheets(client: httpx.Client, costed: str) -> None:
    body = {"windowSize": "DAY", "windowTimeZone": "Europe/Berlin", "groupBy": ["model", "subject"]}
    answer = client.post(f"/api/v1/features/{costed}/cost/query", json=body, headers={"Accept": "text/csv"})
    assert answer.headers["content-disposition"] == 'attachment; filename="acme-cost.csv"'
    header, first, second = csv.reader(io.StringIO(answer.text))
    assert header == [
        "from", "to", "model", "subject",
        "usage", "cost", "currency", "revenue", "revenue_currency", "margin", "detail",
    ]  # fmt: skip
    day = ["2026-03-04T23:00:00Z", "2026-03-05T23:00:00Z"]
    cost = "2000.0000000000000000000001"
    assert first == [*day, "'=a1", "acme-user", "2000", cost, "USD", "", "", "", ""]
    detail = "no price is known of the model '=a2' of 'acme'"
    assert second == [*day, "'=a2", "acme-user", "2000", "", "USD", "", "", "", detail]


def test_a_customers_cost_comes_with_revenue_and_margin(client: httpx.Client) -> None:
    cost = {"type": "manual", "amount": "0.25"}
    body = {"key": "sold", "name": "Sold", "meterSlug": "llm_tokens_total", "unitCost": cost}
    ask(client, "POST", "features", 201, json={**body, "meterGroupByFilters": {"provider": "acme"}})
    card = {
        "type": "usage_based",
        "key": "sold",
        "name": "Sold",
        "featureKey": "sold",
        "billingCadence": "P1M",
        "price": {"type": "unit", "amount": "0.001"},
    }
    phases = [{"key": "only", "name": "Only", "duration": None, "rateCards": [card]}]
    plan = {"key": "sold", "name": "P", "currency": "USD", "billingCadence": "P1M", "phases": phases}
    made = ask(client, "POST", "plans", 201, json=plan)
    ask(client, "POST", f"plans/{made['id']}/publish")
    owned = {"name": "C", "key": "sold-c", "usageAttribution": {"subjectKeys": ["acme-user"]}}
    customer = ask(client, "POST", "customers", 201, json=owned)
    contract = {
        "plan": {"key": "sold"},
        "customerId": customer["id"],
        "timing": "2026-03-01T00:00:00Z",
    }
    ask(client, "POST", "subscriptions", 201, json=contract)
    asked = {
        "from": "2026-03-01T00:00:00Z",
        "to": "2026-04-01T00:00:00Z",
        "filterCustomerId": [customer["id"]],
    }
    used = ask(client, "POST", "meters/llm_tokens_total/query", json=asked)["data"][0]["value"]
    (row,) = ask(client, "POST", "features/sold/cost/query", json=asked)["data"]
    assert row["dimensions"] == {"customer_id": customer["id"]}
    assert Decimal(row["usage"]) == used
    assert Decimal(row["revenue"]) == Decimal(used) / 1000
    assert Decimal(row["margin"]) == Decimal(row["revenue"]) - Decimal(row["cost"])
    assert row["revenueCurrency"] == "USD"


def test_a_question_that_can_not_be_asked_is_refused_with_its_place(
    client: httpx.Client, costed: str
) -> None:
    path = f"/api/v1/features/{costed}/cost/query"
    for body, code in (
        ({"groupBy": ["region"]}, "unknown_group_by"),
        ({"groupBy": ["customer_id"]}, "customers_required"),
        ({"from": "2026-04-01T00:00:00Z", "to": "2026-03-01T00:00:00Z"}, "empty_period"),
        ({"windowTimeZone": "Mars"}, "invalid_time_zone"),
    ):
        problem = assert_problem(client.post(path, json=body), 400)
        assert problem["extensions"]["validationErrors"][0]["code"] == code
    assert_problem(client.post("/api/v1/features/nobody/cost/query", json={}), 404)


def test_the_unit_cost_alone_may_be_changed(client: httpx.Client) -> None:
    body = {"key": "changing", "name": "C", "meterSlug": "llm_tokens_total"}
    made = ask(client, "POST", "features", 201, json=body)
    assert "unitCost" not in made
    known = {"type": "llm", "provider": "OpenAI", "model": "gpt-4o", "tokenType": "input"}
    changed = ask(client, "PATCH", "features/changing", json={"unitCost": {**known, "pricing": None}})
    pricing = {"inputPerToken": "0.0000025", "outputPerToken": "0.00001", "cacheReadPerToken": "0.00000125"}
    assert changed["unitCost"] == {**known, "pricing": pricing}
    (listed,) = [one for one in ask(client, "GET", "features") if one["key"] == "changing"]
    assert listed == changed
    again = ask(client, "PATCH", "features/changing", json={"unitCost": changed["unitCost"]})
    assert again["unitCost"] == changed["unitCost"]
    assert "unitCost" not in ask(client, "PATCH", "features/changing", json={"unitCost": None})
    for refused in ({}, {"unitCost": None, "name": "D"}):
        assert_problem(client.patch("/api/v1/features/changing", json=refused), 400)


def test_prices_are_listed_set_and_deleted(client: httpx.Client) -> None:
    day = "2025-07-01T00:00:00Z"
    (listed,) = ask(client, "GET", "llm-cost/prices", params={"model": "o3", "at": day})["items"]
    assert (listed["source"], listed["pricing"]["inputPerToken"]) == ("system", "0.000002")
    assert ask(client, "GET", f"llm-cost/prices/{listed['id']}") == listed
    override = {
        "provider": "OpenAI",
        "modelId": "o3",
        "modelName": "Our o3",
        "pricing": {"inputPerToken": "0.000001", "outputPerToken": "0.000004"},
        "currency": "USD",
        "effectiveFrom": day,
        "effectiveTo": "2025-08-01T00:00:00Z",
    }
    made = ask(client, "POST", "llm-cost/overrides", 201, json=override)
    assert made["provider"]["id"] == "openai"
    assert made["model"] == {"id": "o3", "name": "Our o3"}
    assert {name: made[name] for name in ("effectiveFrom", "effectiveTo", "pricing")} == {
        name: override[name] for name in ("effectiveFrom", "effectiveTo", "pricing")
    }
    asked = {"provider": "openai", "model": "o3", "at": day}
    assert ask(client, "GET", "llm-cost/prices", params=asked)["items"] == [made]
    page = ask(client, "GET", "llm-cost/overrides", params={"model": "o3", "page": 1, "pageSize": 1})
    assert page == {"totalCount": 1, "page": 1, "pageSize": 1, "items": [made]}
    assert_problem(client.post("/api/v1/llm-cost/overrides", json=override), 409)
    ask(client, "DELETE", f"llm-cost/overrides/{made['id']}", 204)
    assert ask(client, "GET", "llm-cost/prices", params=asked)["items"] == [listed]
    assert_problem(client.delete(f"/api/v1/llm-cost/overrides/{listed['id']}"), 404)
    assert_problem(client.get(f"/api/v1/llm-cost/prices/{made['id']}"), 404)
