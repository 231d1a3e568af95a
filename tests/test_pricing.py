"""Every price model: worked examples, theorems, and the rater against an independent slow one."""

import os
import random
from collections import defaultdict
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.rating.pricing import NOTHING, Group, Usage
from billing.rating.rater import DetailedLine, Rating, Terms, rate
from catalog.discount import Discounts, PercentageDiscount, UsageDiscount
from catalog.price import (
    DynamicPrice,
    FlatPrice,
    MatrixCell,
    MatrixPrice,
    PackagePrice,
    PercentagePrice,
    Price,
    PriceTier,
    TieredPrice,
    TierFlatPrice,
    TierUnitPrice,
    UnitPrice,
)
from catalog.price_rules import check_price
from catalog.unit_config import UnitConfig
from tests import reference_rating

D = Decimal


def tier(up_to: str | None, *, unit: str | None = None, flat: str | None = None) -> PriceTier:
    return PriceTier(
        up_to_amount=None if up_to is None else D(up_to),
        unit_price=None if unit is None else TierUnitPrice(type="unit", amount=D(unit)),
        flat_price=None if flat is None else TierFlatPrice(type="flat", amount=D(flat)),
    )


def graduated(*tiers: PriceTier, **more: Any) -> TieredPrice:
    return TieredPrice(type="tiered", mode="graduated", tiers=tiers, **more)


def volume(*tiers: PriceTier, **more: Any) -> TieredPrice:
    return TieredPrice(type="tiered", mode="volume", tiers=tiers, **more)


def unit(amount: str, **more: Any) -> UnitPrice:
    return UnitPrice(type="unit", amount=D(amount), **more)


def units(quantity: str | int | Decimal) -> Usage:
    return Usage(quantity=D(quantity))


def terms(price: Price, **more: Any) -> Terms:
    return Terms(**{"price": price, "name": "Tokens", "currency": "USD", **more})


def off(*, percentage: str | None = None, usage: str | None = None) -> Discounts:
    return Discounts(
        percentage=None if percentage is None else PercentageDiscount(percentage=D(percentage)),
        usage=None if usage is None else UsageDiscount(quantity=D(usage)),
    )


def amounts(rating: Rating) -> dict[str, str]:
    return {line.reference: str(line.amount) for line in rating.details}


STAIRS = graduated(tier("5", flat="100"), tier("10", flat="50"), tier("15", unit="5"), tier(None, unit="1"))

# --- worked examples ---------------------------------------------------------------------------------------


def test_graduated_tiers_charge_each_unit_by_its_own_tier() -> None:
    rating = rate(terms(STAIRS), units(22))
    assert rating.totals.total == 182
    assert amounts(rating) == {
        "graduated-tiered-1-flat-price": "100.00",
        "graduated-tiered-2-flat-price": "50.00",
        "graduated-tiered-3-price-usage": "25.00",
        "graduated-tiered-4-price-usage": "7.00",
    }


def test_ten_units_more_after_twelve_climb_on_from_there() -> None:
    rating = rate(terms(STAIRS), units(10), before=units(12))
    assert rating.totals.total == 22
    assert amounts(rating) == {
        "graduated-tiered-3-price-usage": "15.00",
        "graduated-tiered-4-price-usage": "7.00",
    }


@pytest.mark.parametrize(("quantity", "amount"), [("0", 100), ("5", 100), ("5.1", 150), ("10", 150)])
def test_a_tier_ends_with_its_last_unit_and_the_first_is_due_even_for_nothing(
    quantity: str, amount: int
) -> None:
    assert rate(terms(STAIRS), units(quantity)).totals.total == amount


def test_nothing_is_due_for_no_units_while_more_may_come() -> None:
    assert rate(terms(STAIRS), units(0), last=False).details == ()
    assert rate(terms(STAIRS), units(3), before=units(0)).totals.total == 100


def test_volume_tiers_charge_all_units_by_the_tier_of_the_last() -> None:
    price = volume(tier("10", unit="10", flat="3"), tier(None, unit="8"))
    assert rate(terms(price), units(10)).totals.total == 103
    assert rate(terms(price), units(11)).totals.total == 88
    more = rate(terms(price), units(1), before=units(10))
    assert more.totals.total == -15
    assert amounts(more) == {
        "volume-tiered-2-price-usage": "88.00",
        "volume-tiered-1-price-usage": "-100.00",
        "volume-tiered-1-flat-price": "-3.00",
    }


def test_a_package_that_was_begun_is_paid() -> None:
    price = PackagePrice(type="package", amount=D(15), quantity_per_package=D(10))
    assert rate(terms(price), units(11)).totals.total == 30
    assert rate(terms(price), units(9), before=units(11)).details == ()
    assert rate(terms(price), units("0.001")).totals.total == 15


def test_a_maximum_takes_off_what_is_beyond_it() -> None:
    rating = rate(terms(unit("100", maximum_amount=D(2000))), units("32.2"))
    (line,) = rating.details
    assert [line.amount, line.discounted, line.total] == [3220, 1220, 2000]
    assert line.discounts[0].reason == "maximum_spend"
    assert line.discounts[0].description == "Maximum spend discount for charges over 2000.00"


def test_a_maximum_is_taken_off_the_lines_that_were_reached_last() -> None:
    price = graduated(
        tier("10", unit="10"), tier("20", unit="5"), tier(None, unit="1"), maximum_amount=D(120)
    )
    rating = rate(terms(price), units(30))
    assert [str(line.total) for line in rating.details] == ["100.00", "20.00", "0.00"]


def test_a_minimum_is_topped_up_when_the_period_ends() -> None:
    price = unit("2", minimum_amount=D(50))
    assert rate(terms(price), units(10), last=False).totals.total == 20
    rating = rate(terms(price), units(5), before=units(10))
    assert rating.totals.total == 30
    assert [rating.totals.amount, rating.totals.charges] == [10, 20]
    assert [line.category for line in rating.details] == ["regular", "commitment"]


def test_tokens_that_cost_next_to_nothing_add_up() -> None:
    (line,) = rate(terms(unit("0.00000075")), units(103_000_025)).details
    assert str(line.amount) == "77.25"
    assert line.description == "103000025 x 0.00000075 = 77.25001875, rounded to 77.25"


@pytest.mark.parametrize(("currency", "amount"), [("JPY", "1235"), ("USD", "1234.57"), ("KWD", "1234.568")])
def test_each_currency_is_rounded_to_its_own_minor_unit(currency: str, amount: str) -> None:
    assert str(rate(terms(unit("1234.5678"), currency=currency), units(1)).totals.total) == amount


def test_a_percentage_comes_off_each_line_before_the_maximum() -> None:
    price = unit("10", maximum_amount=D(80))
    (line,) = rate(terms(price, discounts=off(percentage="10")), units(10)).details
    assert [(one.reason, str(one.amount)) for one in line.discounts] == [
        ("ratecard_percentage", "10.00"),
        ("maximum_spend", "10.00"),
    ]
    fee = FlatPrice(type="flat", amount=D("9.99"))
    assert rate(terms(fee, discounts=off(percentage="33.3"))).totals.total == D("6.66")


def test_free_units_come_first() -> None:
    wanted = terms(unit("2"), discounts=off(usage="100"))
    first = rate(wanted, units(80))
    assert first.details == ()
    assert [first.usage_discount, first.quantity] == [80, 0]
    then = rate(wanted, units(50), before=units(80))
    assert [then.usage_discount, then.usage_discount_before, then.quantity] == [20, 80, 30]
    assert then.totals.total == 60


def test_units_are_converted_before_they_are_free_or_priced() -> None:
    million = UnitConfig(operation="divide", conversion_factor=D(1_000_000), rounding="ceiling")
    wanted = terms(unit("3"), unit_config=million, discounts=off(usage="1"))
    assert rate(wanted, units(2_000_001)).totals.total == 6
    assert rate(wanted, units(999_999), before=units(2_000_001)).details == ()


def test_a_dynamic_price_passes_usage_on_as_money() -> None:
    price = DynamicPrice(type="dynamic", multiplier=D("1.2"))
    assert rate(terms(price), units("12.345")).totals.total == D("14.81")


CARD = PercentagePrice(type="percentage", percentage=D("2.9"), fixed_amount=D("0.30"))


def test_a_percentage_price_charges_value_and_events() -> None:
    rating = rate(terms(CARD), Usage(quantity=D(1000), events=4))
    assert amounts(rating) == {"percentage-price-usage": "29.00", "percentage-price-fixed": "1.20"}


def test_free_value_costs_no_percentage_but_its_events_their_fee() -> None:
    price = PercentagePrice(type="percentage", percentage=D(1), fixed_amount=D("0.1"), free_units=D(500))
    rating = rate(terms(price), Usage(quantity=D(700), events=3))
    assert amounts(rating) == {"percentage-price-usage": "2.00", "percentage-price-fixed": "0.30"}


def test_an_event_costs_no_less_and_no_more_than_its_limits() -> None:
    price = PercentagePrice(
        type="percentage",
        percentage=D(1),
        fixed_amount=D("0.10"),
        minimum_per_event=D("0.50"),
        maximum_per_event=D(5),
    )
    sizes = {D(10): 3, D(100): 2, D(1000): 1, D(490): 1}
    rating = rate(terms(price), Usage(sizes=sizes))
    assert {line.reference: (str(line.quantity), str(line.amount)) for line in rating.details} == {
        "percentage-price-usage": ("690", "6.90"),
        "percentage-price-fixed": ("3", "0.30"),
        "percentage-price-minimum": ("3", "1.50"),
        "percentage-price-maximum": ("1", "5.00"),
    }


MATRIX = MatrixPrice(
    type="matrix",
    dimensions=("provider", "type"),
    cells=(
        MatrixCell(values={"provider": "openai", "type": "input"}, amount=D("0.01")),
        MatrixCell(values={"type": "output", "provider": "openai"}, amount=D("0.03")),
    ),
    default_amount=D("0.05"),
)


def test_a_matrix_has_a_price_for_each_combination_and_one_for_all_others() -> None:
    groups: dict[Group, Decimal] = {
        ("openai", "input"): D(1000),
        ("openai", "output"): D(100),
        ("mistral", "input"): D(10),
        (None, "output"): D(1),
    }
    rating = rate(terms(MATRIX), Usage(groups=groups))
    assert [(line.name, str(line.amount)) for line in rating.details] == [
        ("Tokens: openai, input", "10.00"),
        ("Tokens: openai, output", "3.00"),
        ("Tokens: other combinations", "0.55"),
    ]


def test_each_group_climbs_its_own_ladder() -> None:
    price = graduated(tier("10", unit="1"), tier(None, unit="0.5"), group_by=("project",))
    rating = rate(terms(price), Usage(groups={("b",): D(12), ("a",): D(20), (None,): D(1)}))
    assert [(line.name, str(line.amount)) for line in rating.details] == [
        ("Tokens: usage price for tier 1, none", "1.00"),
        ("Tokens: usage price for tier 1, a", "10.00"),
        ("Tokens: usage price for tier 2, a", "5.00"),
        ("Tokens: usage price for tier 1, b", "10.00"),
        ("Tokens: usage price for tier 2, b", "1.00"),
    ]


def test_a_line_says_in_words_how_it_came_about() -> None:
    rating = rate(terms(graduated(tier("10", unit="0.125"), tier(None, unit="0.1"))), units(15))
    assert [line.description for line in rating.details] == [
        "10 x 0.125 = 1.25 (tier 1: above 0 up to 10)",
        "5 x 0.1 = 0.50 (tier 2: above 10)",
    ]


# --- theorems ----------------------------------------------------------------------------------------------

quantities = st.decimals(0, 10**6, places=3) | st.integers(0, 40).map(D)
prices = st.decimals(0, 1000, places=5) | st.integers(0, 20).map(D)
currencies = st.sampled_from(["USD", "JPY", "KWD"])


@st.composite
def ladders(draw: st.DrawFn, *, flats: bool = True, most: int = 4) -> tuple[PriceTier, ...]:
    ends = sorted(draw(st.sets(st.integers(1, 40) | st.integers(1, 10**6), max_size=most - 1)))
    found = []
    for end in [*map(str, ends), None]:
        flat = str(draw(prices)) if flats and draw(st.booleans()) else None
        found.append(tier(end, unit=str(draw(prices)), flat=flat))
    return tuple(found)


@given(ladders(), quantities, quantities, currencies)
def test_graduated_totals_never_fall(
    tiers: tuple[PriceTier, ...], one: Decimal, more: Decimal, currency: str
) -> None:
    wanted = terms(graduated(*tiers), currency=currency)
    assert rate(wanted, units(one)).totals.total <= rate(wanted, units(one + more)).totals.total


@given(ladders(flats=False), currencies)
def test_graduated_totals_do_not_jump_where_a_tier_ends(tiers: tuple[PriceTier, ...], currency: str) -> None:
    wanted = terms(graduated(*tiers), currency=currency)
    step = D("1E-9")
    for one in tiers[:-1]:
        assert one.up_to_amount is not None
        at = rate(wanted, units(one.up_to_amount)).totals.total
        beyond = rate(wanted, units(one.up_to_amount + step)).totals.total
        assert beyond == at


@given(ladders(most=1), quantities, currencies)
def test_volume_and_graduated_agree_on_one_tier(
    tiers: tuple[PriceTier, ...], quantity: Decimal, currency: str
) -> None:
    totals = [
        rate(terms(price, currency=currency), units(quantity)).totals
        for price in (graduated(*tiers), volume(*tiers))
    ]
    assert totals[0] == totals[1]


# --- any terms and usage at all -----------------------------------------------------------------------------


class Chance:
    """Random terms and usage from a seed: the slow rater sees many, hypothesis shrinks the seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311  nobody's secret

    def number(self, most: int = 1000, *, least: int = 0) -> Decimal:
        places = self.random.choice((0, 0, 1, 2, 5))
        return D(self.random.randint(least * 10**places, most * 10**places)).scaleb(-places)

    def maybe(self, value: Callable[[], Any], chance: float = 0.4) -> Any:
        return value() if self.random.random() < chance else None

    def tiers(self) -> tuple[PriceTier, ...]:
        ends = sorted({self.number(60, least=1) for _ in range(self.random.randint(0, 3))})
        return tuple(self.tier(end) for end in [*ends, None])

    def tier(self, end: Decimal | None) -> PriceTier:
        unit = self.maybe(lambda: TierUnitPrice(type="unit", amount=self.number(20)), 0.8)
        flat = self.maybe(lambda: TierFlatPrice(type="flat", amount=self.number(100)), 0.4)
        free = TierUnitPrice(type="unit", amount=D(0))
        return PriceTier(up_to_amount=end, unit_price=unit or (None if flat else free), flat_price=flat)

    def price(self) -> Price:
        limits: dict[str, Any] = {
            "minimum_amount": self.maybe(lambda: self.number(300), 0.25),
            "maximum_amount": self.maybe(lambda: self.number(600, least=300), 0.25),
        }
        models: list[Callable[[], Price]] = [
            lambda: FlatPrice(type="flat", amount=self.number()),
            lambda: UnitPrice(type="unit", amount=self.number(20), **limits),
            lambda: DynamicPrice(type="dynamic", multiplier=self.number(3), **limits),
            lambda: PackagePrice(
                type="package",
                amount=self.number(20),
                quantity_per_package=self.number(30, least=1),
                **limits,
            ),
            lambda: graduated(*self.tiers(), **limits),
            lambda: volume(*self.tiers(), **limits),
            lambda: graduated(*self.tiers(), group_by=("model",), **limits),
            lambda: self.percentage_price(limits),
            lambda: self.matrix(limits),
        ]
        return self.random.choice(models)()

    def percentage_price(self, limits: dict[str, Any]) -> PercentagePrice:
        limited = self.random.random() < 0.5
        return PercentagePrice(
            type="percentage",
            percentage=self.number(10),
            fixed_amount=self.maybe(self.number) or D(0),
            free_units=D(0) if limited else self.number(200),
            minimum_per_event=self.number(2) if limited else None,
            maximum_per_event=self.maybe(lambda: self.number(8, least=2)) if limited else None,
            **limits,
        )

    def matrix(self, limits: dict[str, Any]) -> MatrixPrice:
        models_ = self.random.sample("abcd", k=self.random.randint(0, 3))
        cells = tuple(MatrixCell(values={"model": name}, amount=self.number(20)) for name in models_)
        return MatrixPrice(
            type="matrix", dimensions=("model",), cells=cells, default_amount=self.number(20), **limits
        )

    def terms(self) -> Terms:
        price = self.price()
        counted = isinstance(price, UnitPrice | PackagePrice | DynamicPrice) or (
            isinstance(price, TieredPrice) and not price.group_by
        )
        return Terms(
            price=price,
            name="T",
            currency=self.random.choice(["USD", "JPY", "KWD"]),
            discounts=Discounts(
                percentage=self.maybe(lambda: PercentageDiscount(percentage=self.number(100))),
                usage=self.maybe(lambda: UsageDiscount(quantity=self.number(30)), 0.3 if counted else 0),
            ),
            unit_config=self.maybe(
                self.conversion, 0 if isinstance(price, FlatPrice | PercentagePrice) else 0.2
            ),
            share=Fraction(self.random.randint(0, 7), 7),
        )

    def conversion(self) -> UnitConfig:
        return UnitConfig(
            operation=self.random.choice(["divide", "multiply"]),
            conversion_factor=self.number(9, least=1),
            rounding=self.random.choice(["none", "ceiling", "floor", "half_up"]),
            precision=self.random.randint(0, 2),
        )

    def usage(self) -> Usage:
        """A total, and groups and events of their own: each price asks for one of them."""
        groups = self.random.sample([("a",), ("b",), ("z",), (None,)], k=self.random.randint(0, 3))
        return Usage(
            quantity=self.number(120, least=self.random.choice([0, 0, -30])),
            events=self.random.randint(0, 9),
            groups={group: self.number(60) for group in groups},
            sizes={
                self.number(300, least=-50): self.random.randint(1, 3)
                for _ in range(self.random.randint(0, 4))
            },
        )


def by_reference(*ratings: Rating) -> dict[str, tuple[Fraction, Fraction]]:
    """What each part costs and what is taken off it, over all of these lines; nothing is left out."""
    sums: dict[str, tuple[Fraction, Fraction]] = defaultdict(lambda: (Fraction(0), Fraction(0)))
    for rating in ratings:
        for line in rating.details:
            cost, less = sums[line.reference]
            sums[line.reference] = cost + Fraction(line.amount), less + Fraction(line.discounted)
    return without_nothing(sums)


def without_nothing(sums: dict[str, tuple[Fraction, Fraction]]) -> dict[str, tuple[Fraction, Fraction]]:
    return {name: both for name, both in sums.items() if any(both)}


def minus(
    whole: dict[str, tuple[Fraction, Fraction]], part: dict[str, tuple[Fraction, Fraction]]
) -> dict[str, tuple[Fraction, Fraction]]:
    nothing = (Fraction(0), Fraction(0))
    pairs = {name: (whole.get(name, nothing), part.get(name, nothing)) for name in [*whole, *part]}
    return without_nothing({name: (a[0] - b[0], a[1] - b[1]) for name, (a, b) in pairs.items()})


CASES = int(os.environ.get("TOLLGATE_RATER_CASES", "20000"))


@pytest.mark.parametrize("tenth", range(10))
def test_the_rater_equals_an_independent_slow_one(tenth: int) -> None:
    for seed in range(tenth, CASES, 10):
        chance = Chance(seed)
        wanted, before, usage, last = chance.terms(), chance.usage(), chance.usage(), seed // 10 % 2 == 0
        expected = reference_rating.owed(wanted, before + usage, last=last)
        if not isinstance(wanted.price, FlatPrice):
            expected = minus(expected, reference_rating.owed(wanted, before, last=False))
        found = by_reference(rate(wanted, usage, before=before, last=last))
        assert found == without_nothing(expected), f"seed {seed}: {wanted}"


seeds = st.integers(0, 2**64)


@given(seeds)
def test_random_prices_keep_the_rules(seed: int) -> None:
    """What is proved of them is proved of prices that can be sold."""
    assert list(check_price(Chance(seed).price(), "$")) == []


@given(seeds, st.integers(1, 4))
def test_cutting_a_line_anywhere_changes_no_total(seed: int, cuts: int) -> None:
    """Of any price, to the cent, whatever is rounded, discounted or limited on the way."""
    chance = Chance(seed)
    wanted = chance.terms()
    if isinstance(wanted.price, FlatPrice):
        return
    slices = [chance.usage() for _ in range(cuts + 1)]
    before, found = NOTHING, []
    for number, usage in enumerate(slices, start=1):
        found.append(rate(wanted, usage, before=before, last=number == len(slices)))
        before += usage
    assert by_reference(*found) == by_reference(rate(wanted, before))


@given(seeds, st.integers(1, 4))
def test_minimum_and_maximum_hold_over_any_cutting(seed: int, cuts: int) -> None:
    chance = Chance(seed)
    wanted = chance.terms()
    if isinstance(wanted.price, FlatPrice):
        return
    before, spent = NOTHING, D(0)
    for number in range(cuts + 1):
        usage = chance.usage()
        spent += rate(wanted, usage, before=before, last=number == cuts).totals.total
        before += usage
        if wanted.price.maximum_amount is not None:
            assert spent <= wanted.price.maximum_amount.quantize(D(1)) + 1
    least = wanted.price.minimum_amount
    assert least is None or spent >= least.quantize(D(1)) - 1


@given(seeds)
def test_reversing_a_line_nets_to_zero(seed: int) -> None:
    chance = Chance(seed)
    wanted, before, usage = chance.terms(), chance.usage(), chance.usage()
    if isinstance(wanted.price, FlatPrice):
        return
    line = rate(wanted, usage, before=before, last=False)
    back = rate(wanted, -usage, before=before + usage, last=False)
    assert by_reference(line, back) == {}
    assert line.totals.total + back.totals.total == 0


@given(seeds)
def test_less_than_nothing_costs_the_exact_reverse(seed: int) -> None:
    chance = Chance(seed)
    wanted, usage = chance.terms(), chance.usage()
    if isinstance(wanted.price, FlatPrice):
        return
    there, back = (rate(wanted, one, last=False) for one in (usage, -usage))
    assert back.totals.total == -there.totals.total


@given(seeds)
def test_what_a_maximum_takes_off_lines_sums_to_all_that_is_beyond_it(seed: int) -> None:
    chance = Chance(seed)
    wanted, usage = chance.terms(), chance.usage()
    most = getattr(wanted.price, "maximum_amount", None)
    if most is None or isinstance(wanted.price, FlatPrice):
        return
    rating = rate(wanted, usage, last=False)
    taken = sum(discount_of(line, "maximum_spend") for line in rating.details)
    before = rating.totals.total + taken
    limit = rate(terms(FlatPrice(type="flat", amount=most), currency=wanted.currency)).totals.total
    assert abs(rating.totals.total) == min(abs(before), limit)


def discount_of(line: DetailedLine, reason: str) -> Decimal:
    return sum((one.amount for one in line.discounts if one.reason == reason), D(0))


@settings(max_examples=20)
@given(st.integers(1, 10**30), st.integers(0, 400))
def test_quantities_of_any_length_are_priced_exactly(quantity: int, places: int) -> None:
    exact = D(quantity).scaleb(-places)
    price = unit("0.000000000000000000000000000001")
    (line,) = rate(terms(price), units(exact)).details
    assert line.quantity == exact
    assert Fraction(line.amount) == reference_rating.cents(Fraction(exact) / 10**30, "USD")
