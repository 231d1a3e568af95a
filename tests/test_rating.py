import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.rating.pricing import Usage
from billing.rating.rater import DetailedLine, Terms, Totals, add_totals, rate, totals_of
from billing.rating.timeline import Contract, ContractItem, charges
from catalog.interval import parse_interval
from catalog.money import minor_digits, round_money
from catalog.price import FlatPrice, Price, UnitPrice
from tests.builders import at, fee
from tests.documents import Row, tables_of

DOCUMENT = Path(__file__).parent.parent / "docs" / "rounding.md"


def unit(amount: str) -> UnitPrice:
    return UnitPrice(type="unit", amount=Decimal(amount))


def flat(amount: str) -> FlatPrice:
    return FlatPrice(type="flat", amount=Decimal(amount))


def priced(
    price: Price,
    quantity: str | Decimal = "0",
    *,
    before: str = "0",
    name: str = "Thing",
    currency: str = "USD",
    share: Fraction = Fraction(1),
) -> tuple[DetailedLine, ...]:
    terms = Terms(price=price, name=name, currency=currency, share=share)
    return rate(terms, Usage(quantity=Decimal(quantity)), before=Usage(quantity=Decimal(before))).details


def rated(price: Price, quantity: str = "0", *, currency: str = "USD", share: Fraction = Fraction(1)) -> str:
    """The amount of the one line, or "no line"."""
    lines = priced(price, quantity, currency=currency, share=share)
    assert len(lines) <= 1
    return str(lines[0].amount) if lines else "no line"


# --- worked examples ---------------------------------------------------------------------------------------


def test_usage_is_one_line_with_its_quantity_and_unit_price() -> None:
    lines = priced(unit("0.00000075"), "103000025", name="Tokens")
    assert lines == (
        DetailedLine(
            reference="unit-price-usage",
            name="Tokens: usage in period",
            quantity=Decimal(103_000_025),
            per_unit_amount=Decimal("0.00000075"),
            amount=Decimal("77.25"),
        ),
    )


def test_a_fee_is_one_line_of_quantity_one() -> None:
    lines = priced(flat("20"), name="Seat")
    assert lines == (
        DetailedLine(
            reference="flat-price",
            name="Seat",
            quantity=Decimal(1),
            per_unit_amount=Decimal(20),
            amount=Decimal(20),
        ),
    )


def test_a_prorated_fee_shows_what_it_costs_not_the_full_price() -> None:
    share = Fraction(871_482, 2_678_400)
    (line,) = priced(flat("20"), name="Seat", share=share)
    assert line.quantity == 1
    assert line.per_unit_amount == line.amount == Decimal("6.51")


def test_no_units_and_fees_of_nothing_give_no_line() -> None:
    assert rated(unit("0.01"), "0") == "no line"
    assert rated(flat("0")) == "no line"
    assert rated(flat("1"), share=Fraction(1, 1000)) == "no line"
    assert rated(flat("0.4"), currency="JPY") == "no line"


def test_units_that_cost_nothing_are_still_shown() -> None:
    assert rated(unit("0"), "5") == "0.00"


def test_usage_is_not_prorated_whatever_the_share() -> None:
    assert rated(unit("0.01"), "1000", share=Fraction(1, 2)) == "10.00"


def test_a_fee_takes_no_quantity() -> None:
    assert rated(flat("20"), "7") == "20.00"


@pytest.mark.parametrize("before", ["0", "1", "1000000"])
def test_a_unit_costs_the_same_whatever_was_used_before(before: str) -> None:
    (line,) = priced(unit("2"), "3", before=before)
    assert line.amount == 6


def test_a_quantity_of_any_length_is_priced_exactly() -> None:
    quantity = "9" * 400 + "." + "9" * 400
    exact = Fraction(quantity) * Fraction("0.000000000000000000000000000001")
    assert Fraction(rated(unit("0.000000000000000000000000000001"), quantity)) == nearest_cent(exact)


# --- theorems ----------------------------------------------------------------------------------------------

prices = st.decimals(min_value=0, max_value=10**12, allow_nan=False, places=12)
quantities = st.decimals(min_value=0, max_value=10**30, allow_nan=False, places=9) | st.integers(0, 1000).map(
    Decimal
)
currencies = st.sampled_from(["USD", "JPY", "KWD"])
part = st.fractions(0, 1)


def nearest(exact: Fraction, currency: str) -> Fraction:
    """Half up, by fractions: what is priced here is never negative."""
    scale = 10 ** minor_digits(currency)
    return Fraction(math.floor(exact * scale + Fraction(1, 2)), scale)


def nearest_cent(exact: Fraction) -> Fraction:
    return nearest(exact, "USD")


@given(prices, quantities, currencies)
def test_usage_costs_price_times_quantity_rounded_once(
    price: Decimal, quantity: Decimal, currency: str
) -> None:
    lines = priced(UnitPrice(type="unit", amount=price), quantity, currency=currency)
    expected = nearest(Fraction(price) * Fraction(quantity), currency)
    assert [Fraction(line.amount) for line in lines] == ([expected] if quantity else [])


@given(prices, part, currencies)
def test_a_fee_costs_its_share_of_the_price_rounded_once(
    price: Decimal, share: Fraction, currency: str
) -> None:
    lines = priced(FlatPrice(type="flat", amount=price), currency=currency, share=share)
    expected = nearest(Fraction(price) * share, currency)
    assert sum((Fraction(line.amount) for line in lines), Fraction(0)) == expected


@given(prices, quantities, part, currencies)
def test_every_line_is_its_unit_price_times_its_quantity_rounded(
    price: Decimal, quantity: Decimal, share: Fraction, currency: str
) -> None:
    offered: list[Price] = [FlatPrice(type="flat", amount=price), UnitPrice(type="unit", amount=price)]
    for one in offered:
        for line in priced(one, quantity, currency=currency, share=share):
            product = Fraction(line.per_unit_amount) * Fraction(line.quantity)
            assert line.amount == round_money(product, currency)
            assert line.amount.as_tuple().exponent == -minor_digits(currency)


@given(st.lists(st.tuples(prices, quantities)), currencies)
def test_a_total_is_the_exact_sum_of_rounded_lines(
    sold: list[tuple[Decimal, Decimal]], currency: str
) -> None:
    lines = [
        line
        for price, quantity in sold
        for line in priced(UnitPrice(type="unit", amount=price), quantity, currency=currency)
    ]
    totals = totals_of(lines)
    assert Fraction(totals.total) == sum((Fraction(line.amount) for line in lines), Fraction(0))
    assert totals == Totals(amount=totals.amount)


money = st.decimals(-(10**20), 10**20, allow_nan=False, places=2)
totals = st.builds(
    Totals,
    amount=money,
    charges=money,
    discounts=money,
    credits=money,
    taxes_inclusive=money,
    taxes_exclusive=money,
)


@given(totals)
def test_a_total_adds_charges_and_exclusive_taxes_and_takes_discounts_and_credits_away(of: Totals) -> None:
    plus = Fraction(of.amount) + Fraction(of.charges) + Fraction(of.taxes_exclusive)
    assert Fraction(of.total) == plus - Fraction(of.discounts) - Fraction(of.credits)
    assert Fraction(of.taxes) == Fraction(of.taxes_inclusive) + Fraction(of.taxes_exclusive)


@given(st.lists(totals))
def test_the_total_of_totals_is_the_sum_of_each_kind(parts: list[Totals]) -> None:
    whole = add_totals(iter(parts))
    for kind in ("amount", "charges", "discounts", "credits", "taxes_inclusive", "taxes_exclusive", "total"):
        summed = sum((Fraction(getattr(part, kind)) for part in parts), Fraction(0))
        assert Fraction(getattr(whole, kind)) == summed


# --- the tables of docs/rounding.md ------------------------------------------------------------------------


TABLES = tables_of(DOCUMENT.read_text(encoding="utf-8"))


def rows_with(*names: str) -> list[Row]:
    """The rows of the one table that has these columns and no other."""
    (found,) = [rows for rows in TABLES if tuple(rows[0]) == names]
    return found


ROUNDING = rows_with("amount", "currency", "rounded")
USAGE = rows_with("price per unit", "quantity", "currency", "line")
PRORATION = rows_with("price", "currency", "cadence", "anchor", "from", "to", "seconds", "of", "fee")


def test_every_table_of_the_document_is_checked() -> None:
    assert TABLES == [ROUNDING, USAGE, PRORATION]


@pytest.mark.parametrize("row", ROUNDING, ids=lambda row: row["amount"])
def test_the_document_rounds_as_the_code_does(row: Row) -> None:
    assert str(round_money(Decimal(row["amount"]), row["currency"])) == row["rounded"]


@pytest.mark.parametrize("row", USAGE, ids=lambda row: row["quantity"])
def test_the_document_prices_usage_as_the_code_does(row: Row) -> None:
    assert rated(unit(row["price per unit"]), row["quantity"], currency=row["currency"]) == row["line"]


@pytest.mark.parametrize("row", PRORATION, ids=lambda row: row["from"])
def test_the_document_prorates_as_the_code_does(row: Row) -> None:
    (charge,) = charges(contract_of(row), until=at(row["to"]))
    assert charge.share == Fraction(int(row["seconds"]), int(row["of"]))
    assert charge.period.length.total_seconds() == int(row["seconds"])
    assert charge.full_period.length.total_seconds() == int(row["of"])
    assert rated(charge.price, currency=charge.currency, share=charge.share) == row["fee"]


def contract_of(row: Row) -> Contract:
    """A contract that sells one fee from ... to ..."""
    item = ContractItem(
        id="item",
        phase_id="main",
        phase_key="main",
        key="seat",
        version=0,
        rate_card=fee(row["price"], cadence=row["cadence"]),
        feature_id=None,
        start=at(row["from"]),
        end=at(row["to"]),
    )
    return Contract(
        subscription_id="sub",
        currency=row["currency"],
        billing_anchor=at(row["anchor"]),
        billing_cadence=parse_interval(row["cadence"]),
        prorate=True,
        items=(item,),
    )


def test_three_thirds_of_a_fee_are_rounded_each_as_the_document_says() -> None:
    assert [rated(flat("10.00"), share=Fraction(1, 3)) for _ in range(3)] == ["3.33"] * 3
    assert "3.33 + 3.33 + 3.33" in DOCUMENT.read_text(encoding="utf-8")
