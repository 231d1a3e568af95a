"""What usage costs: prices that change, kinds of tokens, names; the parts of a window cost what it does."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.llm_price_facts import FACTS
from catalog.unit_cost import (
    CostRow,
    LlmPrice,
    LlmPricing,
    LlmUnitCost,
    ManualUnitCost,
    Part,
    Pricer,
    PriceSource,
    UnitCost,
    Unpriced,
    check_amounts,
    check_unit_cost,
    cost_rows,
    cuts,
    model_id,
    properties_of,
    provider_id,
    token_type_of,
)
from metering.exact import EXACT, total
from metering.meter import MeterDefinition, UsageRow
from metering.period import Period

DAY = timedelta(days=1)
T0 = datetime(2026, 3, 1, tzinfo=UTC)
TELLING = LlmUnitCost(
    type="llm",
    provider_property="provider",
    model_property="model",
    token_type_property="type",  # noqa: S106  no password
)
FIXED = LlmUnitCost(type="llm", provider="openai", model="gpt-4o", token_type="input")  # noqa: S106  no password
TOKENS = MeterDefinition(
    event_type="llm",
    aggregation="SUM",
    value_property="$.tokens",
    group_by={"provider": "$.provider", "model": "$.model", "type": "$.type"},
)
GROUP = {"provider": "openai", "model": "gpt-4o", "type": "input"}


def price(
    amount: str,
    since: int,
    until: int | None = None,
    *,
    model: str = "gpt-4o",
    source: PriceSource = "system",
    output: str = "0",
) -> LlmPrice:
    """Of input tokens, from one day on until another."""
    return LlmPrice(
        id="P",
        provider="openai",
        model=model,
        model_name=model,
        pricing=LlmPricing(input_per_token=Decimal(amount), output_per_token=Decimal(output)),
        source=source,
        effective_from=T0 + since * DAY,
        effective_to=None if until is None else T0 + until * DAY,
        created_at=T0,
        updated_at=T0,
    )


def row(value: object, group: Mapping[str, str] = GROUP, *, since: int = 0, until: int = 30) -> UsageRow:
    window = Period(start=T0 + since * DAY, end=T0 + until * DAY)
    return UsageRow(window=window, group=group, value=Decimal(str(value)))


def amounts(pricer: Pricer, *days: int) -> list[object]:
    found = [pricer.per_unit(GROUP, T0 + day * DAY) for day in days]
    return [None if isinstance(one, Unpriced) else str(one) for one in found]


# -- Which price applies -------------------------------------------------------------------------------------


def test_a_price_holds_from_its_beginning_and_no_more_at_its_end() -> None:
    tick = datetime.resolution
    one = price("2", 1, 3)
    assert [one.holds(T0 + DAY - tick), one.holds(T0 + DAY)] == [False, True]
    assert [one.holds(T0 + 3 * DAY - tick), one.holds(T0 + 3 * DAY)] == [True, False]
    assert price("2", 1).holds(T0 + 9999 * DAY)


def test_one_set_by_hand_goes_first_and_a_later_one_cuts_an_earlier() -> None:
    prices = [
        price("1", 0),
        price("5", 6),
        price("2", 1, 9, source="manual"),
        price("3", 3, 5, source="manual"),
    ]
    assert amounts(Pricer(FIXED, prices), 0, 1, 2, 3, 4, 5, 6, 8, 9) == list("122332225")
    assert amounts(Pricer(FIXED, reversed(prices)), 0, 1, 3, 5, 6, 9) == list("123225")


def test_before_any_price_there_is_none() -> None:
    assert amounts(Pricer(FIXED, [price("1", 2, 4)]), 1, 2, 4) == [None, "1", None]


def test_a_manual_cost_is_the_same_always() -> None:
    cost = ManualUnitCost(type="manual", amount=Decimal("0.000000123"))
    assert Pricer(cost).per_unit({}, T0) == Decimal("0.000000123")
    assert list(Pricer(cost).changes({}, row(1).window)) == []


@pytest.mark.parametrize(
    ("group", "detail"),
    [
        ({**GROUP, "type": "image"}, "'image' is no kind of token"),
        ({**GROUP, "type": ""}, "'' is no kind of token"),
        ({**GROUP, "model": "gpt-9"}, "no price is known of the model 'gpt-9' of 'openai'"),
        ({**GROUP, "provider": "azure"}, "no price is known of the model 'gpt-4o' of 'azure'"),
        ({**GROUP, "type": "cache_read"},
         "the price of the model 'gpt-4o' of 'openai' says nothing of cache_read tokens"),
    ],
)  # fmt: skip
def test_what_is_not_known_says_why(group: Mapping[str, str], detail: str) -> None:
    assert Pricer(TELLING, [price("1", 0)]).per_unit(group, T0) == Unpriced(detail)


def test_kinds_of_tokens_have_prices_of_their_own() -> None:
    pricing = LlmPricing(
        input_per_token=Decimal(1),
        output_per_token=Decimal(2),
        cache_read_per_token=Decimal(3),
        cache_write_per_token=Decimal(4),
        reasoning_per_token=Decimal(5),
    )
    names = ("input", "request", "output", "RESPONSE", "cache_read", "cache-write", "reasoning")
    kinds = [token_type_of(name) for name in names]
    assert [pricing.of(kind) for kind in kinds if kind] == [1, 1, 2, 2, 3, 4, 5]
    assert token_type_of("total") is None


# -- Names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "known"),
    [
        (("OpenAI", "GPT-4o"), ("openai", "gpt-4o")),
        ((" open_ai ", "openai/gpt-4o "), ("openai", "gpt-4o")),
        (("gemini", "models/gemini-2.0-flash"), ("google", "gemini-2.0-flash")),
        (("google", "gemini/gemini-2.0-flash"), ("google", "gemini-2.0-flash")),
        (("openai", "gpt-4o-2024-05-13"), ("openai", "gpt-4o-2024-05-13")),
        (("anthropic", "claude-3-7-sonnet-latest"), ("anthropic", "claude-3-7-sonnet-latest")),
        (("azure", "openai/gpt-4o"), ("azure", "openai/gpt-4o")),
        (("", ""), ("", "")),
    ],
)
def test_names_are_one_when_they_mean_one_price_list(sent: tuple[str, str], known: tuple[str, str]) -> None:
    provider = provider_id(sent[0])
    assert (provider, model_id(provider, sent[1])) == known


@given(st.text(max_size=12), st.text(max_size=12))
def test_a_name_that_is_known_stays_as_it_is_without_further_paths(provider: str, model: str) -> None:
    once = provider_id(provider)
    assert provider_id(once) == once
    name = model_id(once, model)
    assert "/" in name or model_id(once, name) == name


def test_every_fact_is_found_by_its_name_and_no_two_hold_at_once() -> None:
    by_name: dict[tuple[str, str], list[tuple[datetime, datetime | None]]] = {}
    for fact in FACTS:
        for model in fact.models:
            assert (provider_id(fact.provider), model_id(fact.provider, model)) == (fact.provider, model)
            by_name.setdefault((fact.provider, model), []).append((fact.since, fact.until))
            assert list(check_amounts(fact.pricing, "$")) == []
    for name, periods in by_name.items():
        for (_, until), (since, _) in pairwise(sorted(periods, key=lambda period: period[0])):
            assert until is not None, name
            assert until <= since, name


# -- Cuts ----------------------------------------------------------------------------------------------------


def test_usage_is_cut_only_where_its_own_price_changes_inside_its_window() -> None:
    prices = [price("1", 0, 10), price("1", 10, 20), price("2", 20, 30), price("7", 15, model="o3")]
    assert cuts(Pricer(TELLING, prices), [row(1)]) == [T0 + 20 * DAY]
    assert cuts(Pricer(TELLING, prices), [row(1, since=0, until=20), row(1, since=20)]) == []
    both = [row(1), row(1, {**GROUP, "model": "o3"})]
    assert cuts(Pricer(TELLING, prices), both) == [T0 + 15 * DAY, T0 + 20 * DAY]
    assert cuts(Pricer(TELLING, prices), [row(1, {**GROUP, "type": "output"})]) == []


@st.composite
def price_lists(draw: st.DrawFn) -> list[LlmPrice]:
    """Of days 0 to 30, with gaps and overlaps."""
    drawn = []
    starts = draw(st.lists(st.integers(-5, 29), max_size=6, unique=True))
    for start in starts:
        end = draw(st.none() | st.integers(start + 1, 40))
        amount = str(draw(st.integers(0, 3))) + "." + draw(st.text("0123456789", min_size=1, max_size=25))
        source: PriceSource = "manual" if draw(st.booleans()) else "system"
        drawn.append(price(amount, start, end, source=source))
    return drawn


daily = st.lists(st.decimals(-(10**9), 10**12, places=6), min_size=30, max_size=30)


@given(price_lists(), daily, st.sets(st.integers(1, 29), max_size=8))
def test_the_parts_of_a_window_cost_what_the_whole_does_however_it_is_cut(
    prices: list[LlmPrice], usage: list[Decimal], more: set[int]
) -> None:
    """Against the sum day by day; a day's price is one."""
    pricer = Pricer(TELLING, prices)
    whole = row(total(usage))
    at = {0, 30} | {(one - T0).days for one in cuts(pricer, [whole])} | more
    parts = [
        Part(row=row(total(usage[start:end]), since=start, until=end), at=T0 + start * DAY)
        for start, end in pairwise(sorted(at))
    ]
    (found,) = cost_rows(pricer, [whole], parts, windowed=False)
    units = [(value, pricer.per_unit(GROUP, T0 + day * DAY)) for day, value in enumerate(usage)]
    if all(not isinstance(unit, Unpriced) for _, unit in units):
        assert found.cost == total(EXACT.multiply(v, u) for v, u in units if isinstance(u, Decimal))
        assert found.detail is None
    elif found.cost is None:
        assert found.detail == "no price is known of the model 'gpt-4o' of 'openai'"
    else:  # nothing was used while it had no price, or as much came back
        assert any(not part.row.value for part in parts)


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["input", "output"]), st.integers(0, 10**30)))
)
def test_rows_cost_together_what_their_finer_rows_do(used: list[tuple[str, str, int]]) -> None:
    pricer = Pricer(TELLING, [price("0.00000015", 0, output="0.0000006")])
    fine = [row(n, {**GROUP, "type": kind, "subject": subject}) for subject, kind, n in used]
    subjects = sorted({subject for subject, _, _ in used})
    asked = [
        row(sum(n for name, _, n in used if name == subject), {"subject": subject}) for subject in subjects
    ]
    found = cost_rows(pricer, asked, [Part(row=one, at=T0) for one in fine], windowed=False)
    rates = {"input": Decimal("0.00000015"), "output": Decimal("0.0000006")}
    expected = [
        total(EXACT.multiply(Decimal(n), rates[kind]) for name, kind, n in used if name == subject)
        for subject in subjects
    ]
    assert [one.cost for one in found] == expected


def test_windows_are_kept_apart() -> None:
    pricer = Pricer(TELLING, [price("1", 0, 10), price("2", 10)])
    first, second = row(3, since=0, until=10), row(4, since=10, until=20)
    parts = [Part(row=one, at=one.window.start) for one in (second, first)]
    assert cost_rows(pricer, [first, second], parts, windowed=True) == [
        CostRow(usage=first, cost=Decimal(3)),
        CostRow(usage=second, cost=Decimal(8)),
    ]


def test_one_part_without_a_price_leaves_the_row_without_a_cost_and_nothing_used_costs_nothing() -> None:
    pricer = Pricer(TELLING, [price("1", 0)])
    unknown = [row(1, {**GROUP, "model": f"m{n}"}) for n in range(5)]
    asked = [row(9, {})]
    parts = [Part(row=one, at=T0) for one in (row(4), *unknown, unknown[0])]
    (found,) = cost_rows(pricer, asked, parts, windowed=False)
    reasons = "; ".join(f"no price is known of the model 'm{n}' of 'openai'" for n in range(3))
    assert (found.cost, found.detail) == (None, f"{reasons}; and 2 more")
    (found,) = cost_rows(
        pricer, asked, [parts[0], Part(row=row(0, {**GROUP, "model": "m"}), at=T0)], windowed=False
    )
    assert (found.cost, found.detail) == (Decimal(4), None)


# -- Rules ---------------------------------------------------------------------------------------------------


def llm(**changes: str | None) -> LlmUnitCost:
    usual = {"provider": "openai", "model": "gpt-4o", "token_type": "input"}
    return LlmUnitCost(type="llm", **{**usual, **changes})


@pytest.mark.parametrize(
    ("cost", "meter", "code", "field"),
    [
        (llm(provider=None), TOKENS, "unit_cost_source", "$.unitCost.provider"),
        (llm(model=None), TOKENS, "unit_cost_source", "$.unitCost.model"),
        (llm(model_property="model"), TOKENS, "unit_cost_source", "$.unitCost.model"),
        (llm(token_type=None), TOKENS, "unit_cost_source", "$.unitCost.tokenType"),
        (llm(token_type="total"), TOKENS, "unknown_token_type", "$.unitCost.tokenType"),  # noqa: S106  no password
        (llm(provider=" "), TOKENS, "unit_cost_name", "$.unitCost.provider"),
        (llm(model="m" * 257), TOKENS, "unit_cost_name", "$.unitCost.model"),
        (llm(token_type=None, token_type_property="kind"), TOKENS, "unknown_group_by",  # noqa: S106  no password
         "$.unitCost.tokenTypeProperty"),
        (llm(), None, "unit_cost_without_meter", "$.unitCost"),
        (llm(), MeterDefinition(event_type="x", aggregation="MAX", value_property="$.n"),
         "unit_cost_not_additive", "$.unitCost.type"),
        (ManualUnitCost(type="manual", amount=Decimal(-1)), TOKENS, "cost_negative", "$.unitCost.amount"),
        (ManualUnitCost(type="manual", amount=Decimal("1E-31")), TOKENS, "cost_out_of_range",
         "$.unitCost.amount"),
    ],
)  # fmt: skip
def test_a_broken_rule_has_its_code_its_place_and_a_way_out(
    cost: UnitCost, meter: MeterDefinition | None, code: str, field: str
) -> None:
    (issue,) = check_unit_cost(cost, meter)
    assert (issue.code, issue.field) == (code, field)
    assert issue.hint


@pytest.mark.parametrize("cost", [llm(), TELLING, llm(token_type="response")])  # noqa: S106  no password
def test_an_unbroken_one_has_none(cost: UnitCost) -> None:
    assert list(check_unit_cost(cost, TOKENS)) == []


def test_a_manual_cost_fits_any_meter() -> None:
    highest = MeterDefinition(event_type="x", aggregation="MAX", value_property="$.n")
    assert list(check_unit_cost(ManualUnitCost(type="manual", amount=Decimal(0)), highest)) == []


def test_a_cost_is_told_by_these_dimensions() -> None:
    assert properties_of(TELLING) == ("provider", "model", "type")
    assert properties_of(llm(model=None, model_property="model")) == ("model",)
    assert properties_of(llm()) == properties_of(None) == ()
