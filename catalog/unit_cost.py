"""What a unit of a feature costs whoever sells it, and so what usage costs: exact, and never rounded.

A unit cost is one amount, or the list price of a token of a language model. Provider, model and token type
are fixed, or told by dimensions of the feature's meter. A price holds from an instant until another: usage
is cut where its price changes, so that the parts of a window cost what the window does.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import ClassVar, Literal, get_args

from catalog.price import MAX_DIGITS, amounts_of, in_range
from metering.errors import Issue
from metering.exact import EXACT, total
from metering.meter import MeterDefinition, UsageRow
from metering.period import Period
from metering.wire import WIRE, Numeric, camel

__all__ = [
    "ADDITIVE",
    "CostRow",
    "LlmPrice",
    "LlmPricing",
    "LlmUnitCost",
    "ManualUnitCost",
    "Part",
    "PriceSource",
    "Pricer",
    "TokenType",
    "UnitCost",
    "Unpriced",
    "check_amounts",
    "check_unit_cost",
    "cost_rows",
    "cuts",
    "model_id",
    "model_of",
    "properties_of",
    "provider_id",
    "token_type_of",
]

TokenType = Literal["input", "output", "cache_read", "cache_write", "reasoning"]
PriceSource = Literal["manual", "system"]

TOKEN_TYPES: tuple[TokenType, ...] = get_args(TokenType)
TOKEN_TYPE_ALIASES: Mapping[str, TokenType] = {"request": "input", "response": "output"}
ADDITIVE = ("SUM", "COUNT")
"""Aggregations where the usage of the parts, added up, is the usage of the whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManualUnitCost:
    """`amount` in USD for each unit."""

    __pydantic_config__: ClassVar = WIRE

    type: Literal["manual"]
    amount: Numeric


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmUnitCost:
    """A unit is a token. Each of the three is a text, or the dimension of the meter that holds it."""

    __pydantic_config__: ClassVar = WIRE

    type: Literal["llm"]
    provider: str | None = None
    provider_property: str | None = None
    model: str | None = None
    model_property: str | None = None
    token_type: str | None = None
    token_type_property: str | None = None


UnitCost = ManualUnitCost | LlmUnitCost


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmPricing:
    """In USD for one token; a kind of token without an amount has no known price."""

    __pydantic_config__: ClassVar = WIRE

    input_per_token: Numeric
    output_per_token: Numeric
    cache_read_per_token: Numeric | None = None
    cache_write_per_token: Numeric | None = None
    reasoning_per_token: Numeric | None = None

    def of(self, token_type: TokenType) -> Decimal | None:
        found: Decimal | None = getattr(self, f"{token_type}_per_token")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmPrice:
    """What a model's tokens cost from `effective_from` until `effective_to` (None: until further notice)."""

    id: str
    provider: str
    model: str
    model_name: str
    pricing: LlmPricing
    source: PriceSource
    effective_from: datetime
    effective_to: datetime | None = None
    created_at: datetime
    updated_at: datetime

    @property
    def rank(self) -> tuple[bool, datetime]:
        """Of prices that hold at one instant, the one with the greatest applies."""
        return self.source == "manual", self.effective_from

    def holds(self, at: datetime) -> bool:
        return self.effective_from <= at and (self.effective_to is None or at < self.effective_to)


# -- Names ---------------------------------------------------------------------------------------------------

PROVIDER_ALIASES: Mapping[str, str] = {
    "amazon-bedrock": "bedrock",
    "aws-bedrock": "bedrock",
    "claude": "anthropic",
    "cohere-chat": "cohere",
    "gemini": "google",
    "google-ai": "google",
    "google-ai-studio": "google",
    "google-gemini": "google",
    "mistral-ai": "mistral",
    "mistralai": "mistral",
    "open-ai": "openai",
    "x-ai": "xai",
    "x.ai": "xai",
}
"""Names of one seller with one price list. Azure and Vertex AI set prices of their own, and stay apart."""


def provider_id(name: str) -> str:
    """The provider's name as prices know it: "OpenAI", "open_ai" and "openai" are one."""
    folded = name.strip().lower().replace("_", "-").replace(" ", "-")
    return PROVIDER_ALIASES.get(folded, folded)


def model_id(provider: str, name: str) -> str:
    """The model's name as prices know it, without the path that gateways put before it: "openai/gpt-4o".

    A date or "-latest" stays: gpt-4o-2024-05-13 costs twice what gpt-4o does today.
    """
    folded = name.strip().lower()
    head, slash, rest = folded.partition("/")
    return rest if slash and (head == "models" or provider_id(head) == provider_id(provider)) else folded


def token_type_of(name: str) -> TokenType | None:
    """The kind of token; None if there is none of that name."""
    folded = name.strip().lower().replace("-", "_")
    found: Mapping[str, TokenType] = {**{one: one for one in TOKEN_TYPES}, **TOKEN_TYPE_ALIASES}
    return found.get(folded)


# -- Rules ---------------------------------------------------------------------------------------------------

_SOURCES = ("provider", "model", "token_type")
MAX_NAME_LENGTH = 256


def check_unit_cost(cost: UnitCost, meter: MeterDefinition | None) -> Iterator[Issue]:
    """Everything that is wrong with the unit cost of a feature of that meter."""
    if meter is None:
        hint = "Name a meter in meterSlug, or leave unitCost out."
        yield _issue("unit_cost_without_meter", "what is not metered has no units", "$.unitCost", hint)
    if isinstance(cost, ManualUnitCost):
        yield from check_amounts(cost, "$.unitCost")
        return
    for name in _SOURCES:
        yield from _source_issues(cost, name, meter)
    if meter is not None and meter.aggregation not in ADDITIVE:
        message = f"a meter of {meter.aggregation} can't be split into tokens of several kinds"
        hint = 'Take a meter of SUM or COUNT, or a unit cost of the type "manual".'
        yield _issue("unit_cost_not_additive", message, "$.unitCost.type", hint)


def _source_issues(cost: LlmUnitCost, name: str, meter: MeterDefinition | None) -> Iterator[Issue]:
    fixed: str | None = getattr(cost, name)
    told_by: str | None = getattr(cost, f"{name}_property")
    where = f"$.unitCost.{camel(name)}"
    if (fixed is None) == (told_by is None):
        told = "neither" if fixed is None else "both"
        hint = f"{camel(name)} is one for all usage; {camel(name)}Property names the dimension that tells it."
        message = f"one of {camel(name)} and {camel(name)}Property is needed, and {told} is there"
        yield _issue("unit_cost_source", message, where, hint)
    if fixed is not None and not 0 < len(fixed.strip()) <= MAX_NAME_LENGTH:
        message = f"a name has 1 to {MAX_NAME_LENGTH} characters"
        yield _issue("unit_cost_name", message, where, "Name it as its provider does.")
    elif fixed is not None and name == "token_type" and token_type_of(fixed) is None:
        hint = f"One of {', '.join([*TOKEN_TYPES, *TOKEN_TYPE_ALIASES])}."
        yield _issue("unknown_token_type", f"{fixed!r} is no kind of token", where, hint)
    if told_by is not None and meter is not None and told_by not in meter.group_by:
        hint = f"The meter's dimensions: {', '.join(sorted(meter.group_by)) or 'none'}."
        message = f"{told_by!r} is not a dimension of the meter"
        yield _issue("unknown_group_by", message, f"{where}Property", hint)


def check_amounts(value: ManualUnitCost | LlmPricing, path: str) -> Iterator[Issue]:
    """An amount is not negative, and short enough for every product to stay exact."""
    for name, amount in amounts_of(value):
        if not in_range(amount):
            message = f"an amount has at most {MAX_DIGITS} digits before and after the point"
            yield _issue("cost_out_of_range", message, f"{path}.{camel(name)}", "Write fewer digits.")
        elif amount < 0:
            hint = "What costs nothing is 0."
            yield _issue("cost_negative", "a cost can't be negative", f"{path}.{camel(name)}", hint)


def _issue(code: str, message: str, field: str, hint: str) -> Issue:
    return Issue(code=code, message=message, field=field, hint=hint)


def properties_of(cost: UnitCost | None) -> tuple[str, ...]:
    """The meter's dimensions that tell what a unit costs."""
    if not isinstance(cost, LlmUnitCost):
        return ()
    named = (cost.provider_property, cost.model_property, cost.token_type_property)
    return tuple(dict.fromkeys(name for name in named if name is not None))


def model_of(cost: UnitCost, group: Mapping[str, str]) -> tuple[str, str]:
    """The provider and the model that such usage is of, as prices know them; a manual cost has none."""
    if isinstance(cost, ManualUnitCost):
        return "", ""
    provider = provider_id(_told(cost, group, "provider"))
    return provider, model_id(provider, _told(cost, group, "model"))


def _told(cost: LlmUnitCost, group: Mapping[str, str], name: str) -> str:
    told_by = getattr(cost, f"{name}_property")
    return str(getattr(cost, name) if told_by is None else group[told_by])


# -- Prices --------------------------------------------------------------------------------------------------


class Pricer:
    """Tells what one unit of some usage costs.

    Of several prices that hold at an instant, one set by hand goes before the list price, and among these
    the one that began last: a shorter one cuts the longer, which goes on after it.
    """

    def __init__(self, cost: UnitCost, prices: Iterable[LlmPrice] = ()) -> None:
        self.cost = cost
        self._prices: dict[tuple[str, str], list[LlmPrice]] = defaultdict(list)
        for price in sorted(prices, key=lambda price: price.rank, reverse=True):
            self._prices[price.provider, price.model].append(price)

    @property
    def properties(self) -> tuple[str, ...]:
        return properties_of(self.cost)

    def price(self, group: Mapping[str, str], at: datetime) -> LlmPrice | None:
        """The price of the group's model that applies at that instant."""
        found = self._prices.get(model_of(self.cost, group), ())
        return next((price for price in found if price.holds(at)), None)

    def per_unit(self, group: Mapping[str, str], at: datetime) -> "Decimal | Unpriced":
        if isinstance(self.cost, ManualUnitCost):
            return self.cost.amount
        named = _told(self.cost, group, "token_type")
        if (token_type := token_type_of(named)) is None:
            return Unpriced(f"{named!r} is no kind of token")
        provider, model = model_of(self.cost, group)
        if (price := self.price(group, at)) is None:
            return Unpriced(f"no price is known of the model {model!r} of {provider!r}")
        amount = price.pricing.of(token_type)
        missing = f"the price of the model {model!r} of {provider!r} says nothing of {token_type} tokens"
        return Unpriced(missing) if amount is None else amount

    def changes(self, group: Mapping[str, str], within: Period) -> Iterator[datetime]:
        """The instants inside a window, its start excluded, at which a unit's price may change."""
        for price in self._prices.get(model_of(self.cost, group), ()):
            for at in (price.effective_from, price.effective_to):
                if at is not None and within.start < at < within.end:
                    yield at


@dataclass(frozen=True, slots=True)
class Unpriced:
    """Why the cost is not known."""

    detail: str


# -- The cost of usage ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some of a row's usage: `row` has the dimensions that tell its price, which is that of `at`."""

    row: UsageRow
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRow:
    """A row of usage and what it cost; `detail` says why that is not known."""

    usage: UsageRow
    cost: Decimal | None
    detail: str | None = None


def cuts(pricer: Pricer, rows: Iterable[UsageRow]) -> list[datetime]:
    """Where the price of some row changes inside its window: there, usage must be cut."""
    return sorted(
        {at for row in rows for at in pricer.changes(row.group, row.window) if _turns(pricer, row, at)}
    )


def _turns(pricer: Pricer, row: UsageRow, at: datetime) -> bool:
    return pricer.per_unit(row.group, at - datetime.resolution) != pricer.per_unit(row.group, at)


def cost_rows(
    pricer: Pricer, rows: Sequence[UsageRow], parts: Iterable[Part], *, windowed: bool
) -> list[CostRow]:
    """What each row cost: the sum over its parts, which all together are the rows' usage.

    A row whose parts are not all priced has no cost: less than all of it would mislead.
    """
    of_row: dict[object, list[Part]] = defaultdict(list)
    names = tuple(rows[0].group) if rows else ()
    for part in parts:
        of_row[_place(part.row, names, windowed=windowed)].append(part)
    return [_cost_row(pricer, row, of_row[_place(row, names, windowed=windowed)]) for row in rows]


def _place(row: UsageRow, names: Sequence[str], *, windowed: bool) -> object:
    return row.window if windowed else None, tuple(row.group[name] for name in names)


def _cost_row(pricer: Pricer, row: UsageRow, parts: Iterable[Part]) -> CostRow:
    costs: list[Decimal] = []
    unknown: dict[str, None] = {}
    for part in parts:
        per_unit = pricer.per_unit(part.row.group, part.at)
        if not part.row.value:
            continue  # nothing costs nothing, whatever its price
        if isinstance(per_unit, Unpriced):
            unknown[per_unit.detail] = None
        else:
            costs.append(EXACT.multiply(part.row.value, per_unit))
    if unknown:
        return CostRow(usage=row, cost=None, detail=_sentence(list(unknown)))
    return CostRow(usage=row, cost=total(costs))


MOST_REASONS = 3


def _sentence(reasons: Sequence[str]) -> str:
    more = f"; and {len(reasons) - MOST_REASONS} more" if len(reasons) > MOST_REASONS else ""
    return "; ".join(reasons[:MOST_REASONS]) + more
