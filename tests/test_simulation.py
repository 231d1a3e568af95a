"""Simulation without HTTP: what lines come to, and everything that may be wrong with them."""

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.rating.pricing import Usage
from billing.rating.rater import Terms, rate
from billing.rating.simulation import (
    EventUsage,
    GroupUsage,
    InvalidSimulationError,
    SimulatedLine,
    Simulation,
    simulate,
)
from catalog.discount import Discounts, PercentageDiscount, UsageDiscount
from catalog.price import (
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
from catalog.unit_config import UnitConfig

D = Decimal
PATH = "$.lines[0]"


def tier(up_to: str | None, *, flat: str | None = None, unit: str | None = None) -> PriceTier:
    return PriceTier(
        up_to_amount=None if up_to is None else D(up_to),
        flat_price=None if flat is None else TierFlatPrice(type="flat", amount=D(flat)),
        unit_price=None if unit is None else TierUnitPrice(type="unit", amount=D(unit)),
    )


TIERS = (tier("5", flat="100"), tier("10", flat="50"), tier("15", unit="5"), tier(None, unit="1"))
GRADUATED = TieredPrice(type="tiered", mode="graduated", tiers=TIERS)
PER_PROJECT = replace(GRADUATED, group_by=("project",))
UNIT = UnitPrice(type="unit", amount=D(1))
MATRIX = MatrixPrice(
    type="matrix",
    dimensions=("model", "type"),
    cells=(MatrixCell(values={"model": "large", "type": "output"}, amount=D("0.5")),),
    default_amount=D("0.1"),
)
CARD_FEE = PercentagePrice(type="percentage", percentage=D("2.9"), fixed_amount=D("0.3"))


def line(price: Price | None = UNIT, quantity: str = "1", before: str = "0") -> SimulatedLine:
    return SimulatedLine(name="API calls", price=price, quantity=D(quantity), quantity_before=D(before))


def group(quantity: str, **dimensions: str | None) -> GroupUsage:
    return GroupUsage(dimensions=dimensions, quantity=D(quantity))


def events(**counts: int) -> tuple[EventUsage, ...]:
    """Such as events(v100=2): two of the value 100."""
    return tuple(EventUsage(value=D(value[1:]), count=count) for value, count in counts.items())


def total(*lines: SimulatedLine, currency: str = "USD") -> Decimal:
    return simulate(currency=currency, lines=lines).totals.total


def issues(*lines: SimulatedLine, currency: str = "USD") -> set[tuple[str, str]]:
    """The code and the place of everything that is wrong; each says how to mend it."""
    with pytest.raises(InvalidSimulationError) as refused:
        simulate(currency=currency, lines=lines)
    assert all(issue.message and issue.hint for issue in refused.value.issues)
    return {(issue.code, issue.field) for issue in refused.value.issues}


# -- What lines come to --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("price", "quantity", "before", "expected"),
    [
        (GRADUATED, "22", "0", "182"),
        (GRADUATED, "10", "12", "22"),
        (GRADUATED, "0", "0", "100"),
        (PackagePrice(type="package", amount=D(15), quantity_per_package=D(10)), "11", "0", "30"),
        (UnitPrice(type="unit", amount=D(100), maximum_amount=D(2000)), "32.2", "0", "2000"),
        (UnitPrice(type="unit", amount=D("0.00000075")), "103000025", "0", "77.25"),
        (UnitPrice(type="unit", amount=D(1), minimum_amount=D(50)), "20", "0", "50"),
        (UnitPrice(type="unit", amount=D(1), minimum_amount=D(50)), "20", "25", "25"),
        (UNIT, "-3", "5", "-3"),
        (FlatPrice(type="flat", amount=D(49)), "7", "3", "49"),
        (None, "1000", "0", "0"),
    ],
)
def test_a_line_costs_what_its_price_says(
    price: Price | None, quantity: str, before: str, expected: str
) -> None:
    assert total(line(price, quantity, before)) == D(expected)


def test_money_is_rounded_to_the_minor_unit_of_the_currency_line_by_line() -> None:
    lines = [line(UnitPrice(type="unit", amount=D("0.12345")), "10")] * 2
    found = {currency: total(*lines, currency=currency) for currency in ("JPY", "USD", "KWD")}
    assert found == {"JPY": D(2), "USD": D("2.46"), "KWD": D("2.470")}


def test_a_matrix_prices_each_combination_and_all_others_by_the_default() -> None:
    groups = [
        group("10", model="large", type="output"),
        group("4", model="large", type=None),
        group("6", model="small", type="output"),
    ]
    (rating,) = simulate(currency="USD", lines=[replace(line(MATRIX, "20"), groups=groups)]).ratings
    assert [(detail.quantity, detail.amount) for detail in rating.details] == [(D(10), D(5)), (D(10), D(1))]


def test_each_group_climbs_its_own_ladder() -> None:
    one = total(line(GRADUATED, "22")) + total(line(GRADUATED, "5"))
    both = [group("22", project="a"), group("5", project="b")]
    assert total(replace(line(PER_PROJECT, "27"), groups=both)) == one == D(282)


def test_a_percentage_takes_a_part_of_the_value_and_a_fee_for_each_event() -> None:
    assert total(replace(line(CARD_FEE, "300"), events=events(v100=3))) == D("9.60")  # 8.70 and 3 x 0.30
    least = replace(CARD_FEE, minimum_per_event=D(1), maximum_per_event=D(5))
    sales = events(v1=2, v100=1, v1000=1)  # 2 x 1.00, 3.20, 5.00
    assert total(replace(line(least, "1102"), events=sales)) == D("10.20")
    assert total(line(replace(CARD_FEE, fixed_amount=D(0)), "300")) == D("8.70")


def test_what_is_free_has_a_quantity_and_no_parts() -> None:
    (rating,) = simulate(currency="USD", lines=[line(None, "1000", "250")]).ratings
    assert (rating.details, rating.quantity, rating.quantity_before) == ((), D(1000), D(250))


@given(
    quantities=st.lists(st.decimals(0, 1000, places=2), min_size=1, max_size=5),
    percent=st.integers(1, 100),
    free=st.integers(1, 50),
)
def test_an_invoice_is_the_sum_of_its_lines_and_each_is_what_the_rater_says(
    quantities: list[Decimal], percent: int, free: int
) -> None:
    discounts = Discounts(
        percentage=PercentageDiscount(percentage=D(percent)), usage=UsageDiscount(quantity=D(free))
    )
    lines = [replace(line(GRADUATED), quantity=q, discounts=discounts) for q in quantities]
    found: Simulation = simulate(currency="USD", lines=lines)
    terms = Terms(price=GRADUATED, name="API calls", currency="USD", discounts=discounts)
    assert list(found.ratings) == [rate(terms, Usage(quantity=q)) for q in quantities]
    assert found.totals.total == sum(rating.totals.total for rating in found.ratings)


# -- What may be wrong ---------------------------------------------------------------------------------------


def test_an_invoice_needs_lines_and_a_currency_in_use() -> None:
    assert issues(currency="XXY") == {("currency_invalid", "$.currency"), ("lines_empty", "$.lines")}
    assert issues(line(), currency="usd") == {("currency_invalid", "$.currency")}


def test_an_invoice_has_a_thousand_lines_at_most() -> None:
    assert total(*[line()] * 1000) == D(1000)
    assert issues(*[line()] * 1001) == {("lines_too_many", "$.lines")}


def test_so_many_tiers_and_groups_that_nobody_could_read_the_answer_are_refused() -> None:
    ladder = tuple(tier(str(n), unit="1") for n in range(1, 1000))
    long = replace(PER_PROJECT, tiers=(*ladder, tier(None, unit="1")))
    groups = [group("1", project=str(n)) for n in range(21)]
    assert total(replace(line(long, "20"), groups=groups[:20])) == D(20)
    assert issues(replace(line(long, "21"), groups=groups)) == {("tiers_too_many", "$.lines")}


def test_two_lines_have_two_ids() -> None:
    one = replace(line(), id="01JXQ8Y8V4Z5W6N7P8Q9R0S1T2")
    assert issues(one, line(), line(), one) == {("line_id_duplicated", "$.lines[3].id")}


@pytest.mark.parametrize("quantity", ["1E+100", "1E-101", "-1E+1000000", "1." + "0" * 101])
def test_a_quantity_beyond_a_hundred_digits_is_refused(quantity: str) -> None:
    assert issues(line(UNIT, quantity)) == {("quantity_out_of_range", f"{PATH}.quantity")}
    assert issues(line(UNIT, "1", quantity)) == {("quantity_out_of_range", f"{PATH}.preLinePeriodQuantity")}
    one = replace(line(PER_PROJECT), groups=[group(quantity, project="a")])
    assert issues(one) == {("quantity_out_of_range", f"{PATH}.groups[0].quantity")}
    sale = EventUsage(value=D(quantity), count=1)
    one = replace(line(CARD_FEE), events=[sale])
    assert issues(one) == {("quantity_out_of_range", f"{PATH}.events[0].value")}


def test_a_hundred_digits_are_exact() -> None:
    most = "9" * 100 + "." + "9" * 98 + "0"
    assert total(line(UnitPrice(type="unit", amount=D("0.01")), most)) == D("1" + "0" * 98)


def test_the_rules_of_prices_hold_where_the_price_stands() -> None:
    wrong = line(UnitPrice(type="unit", amount=D(-1)))
    assert issues(wrong) == {("price_amount_negative", f"{PATH}.rateCard.price.amount")}
    beside = replace(wrong, price_path="price")
    assert issues(line(), beside) == {("price_amount_negative", "$.lines[1].price.amount")}


def test_the_rules_of_discounts_and_conversion_hold() -> None:
    card = f"{PATH}.rateCard"
    discounts = Discounts(
        percentage=PercentageDiscount(percentage=D(101)), usage=UsageDiscount(quantity=D(-1))
    )
    config = UnitConfig(operation="divide", conversion_factor=D(0))
    assert {field for _, field in issues(replace(line(), discounts=discounts, unit_config=config))} == {
        f"{card}.discounts.percentage.percentage",
        f"{card}.discounts.usage.quantity",
        f"{card}.unitConfig.conversionFactor",
    }


@pytest.mark.parametrize(
    ("changed", "code", "field"),
    [
        ({"groups": [group("1", project="a")]}, "groups_not_applicable", "groups"),
        ({"events": events(v1=1)}, "events_not_applicable", "events"),
        ({"price": MATRIX}, "groups_quantity_mismatch", "groups"),
        ({"price": CARD_FEE}, "events_quantity_mismatch", "events"),
        (
            {"price": PER_PROJECT, "groups": [group("1", team="a")]},
            "group_dimensions_mismatch",
            "groups[0].dimensions",
        ),
        (
            {"price": MATRIX, "groups": [group("1", model="x")]},
            "group_dimensions_mismatch",
            "groups[0].dimensions",
        ),
        (
            {"price": PER_PROJECT, "groups": [group("0.5", project=None)] * 2},
            "group_duplicated",
            "groups[1].dimensions",
        ),
        (
            {"price": PER_PROJECT, "groups": [group("2", project="a")]},
            "groups_quantity_mismatch",
            "groups",
        ),
        ({"price": CARD_FEE, "events": events(v2=1)}, "events_quantity_mismatch", "events"),
        (
            {"price": CARD_FEE, "events": events(v0=1) * 2 + events(v1=1)},
            "event_value_duplicated",
            "events[1].value",
        ),
        (
            {"price": CARD_FEE, "events": events(v1=1), "quantity_before": D(1)},
            "pre_line_quantity_not_simulated",
            "preLinePeriodQuantity",
        ),
    ],
)
def test_what_a_quantity_is_made_of_fits_the_price_and_the_quantity(
    changed: dict[str, object], code: str, field: str
) -> None:
    wrong = replace(line(), **changed)  # type: ignore[arg-type]
    assert issues(wrong) == {(code, f"{PATH}.{field}")}
    assert issues(line(), wrong) == {(code, f"$.lines[1].{field}")}


@pytest.mark.parametrize("price", [MATRIX, PER_PROJECT, CARD_FEE])
def test_a_quantity_before_the_line_is_refused_where_it_would_be_ignored(price: Price) -> None:
    found = issues(line(price, "0", "5"))
    assert found == {("pre_line_quantity_not_simulated", f"{PATH}.preLinePeriodQuantity")}


def test_nothing_used_needs_no_groups_and_no_events() -> None:
    assert total(line(MATRIX, "0"), line(PER_PROJECT, "0"), line(CARD_FEE, "0")) == D(0)
