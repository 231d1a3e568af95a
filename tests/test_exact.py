from decimal import Context, Decimal, Inexact, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.exact import EXACT, number_of, plain, total

decimals = st.decimals(allow_nan=False, allow_infinity=False)


@given(st.lists(decimals.filter(lambda number: abs(number.adjusted()) < 900)))
def test_a_total_is_exact_and_does_not_depend_on_the_order(amounts: list[Decimal]) -> None:
    assert Fraction(total(amounts)) == sum(map(Fraction, amounts), Fraction(0))
    assert total(reversed(amounts)) == total(amounts)


def test_the_total_of_nothing_is_nought() -> None:
    assert total([]) == 0


def test_a_total_ignores_the_precision_that_others_have_set() -> None:
    with localcontext(Context(prec=2)):
        assert total([Decimal("123.45"), Decimal("0.0000001")]) == Decimal("123.4500001")


def test_what_can_not_be_exact_raises_instead_of_rounding() -> None:
    with pytest.raises(Inexact):
        EXACT.divide(Decimal(1), Decimal(3))
    with pytest.raises(Inexact):
        total([Decimal("1e100000"), Decimal("1e-100000")])


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (5, "5"),
        (-5, "-5"),
        (10**40 + 1, "10000000000000000000000000000000000000001"),
        (Decimal("0.1"), "0.1"),
        ("25.5", "25.5"),
        ("-1", "-1"),
        ("+1", "1"),
        ("1.", "1"),
        (".5", "0.5"),
        ("1e3", "1000"),
        ("1E-3", "0.001"),
        ("007", "7"),
        (" \t\r\n1\n", "1"),
        ("1e999", "1e999"),
        ("9" * 1000, "9" * 1000),
    ],
)
def test_numbers_and_text_that_is_one_are_numbers(value: object, number: str) -> None:
    assert number_of(value) == Decimal(number)


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, [], {}, [1], {"a": 1}, object(), 1.5,
        "", " ", ".", "-", "e3", "1e", "1e+", "1 2", "1,5", "1_000", "0x10", "--1", "+-1", "- 1", "1e1000",
        "NaN", "nan", "Infinity", "-inf", "ten", "1\v", "\f1", "1\xa0", "\u0661", "\uff11", "9" * 1001, "1\0",
    ],
)  # fmt: skip
def test_everything_else_is_no_number(value: object) -> None:
    assert number_of(value) is None


@pytest.mark.parametrize(
    ("number", "text"),
    [
        ("1E+2", "100"), ("1.50", "1.50"), ("-0", "0"), ("-0.0", "0.0"), ("0E+5", "0"), ("0E-3", "0.000"),
        ("-1E-7", "-0.0000001"), ("12.3E1", "123"),
    ],
)  # fmt: skip
def test_a_number_is_printed_without_exponent_as_postgresql_does(number: str, text: str) -> None:
    assert plain(Decimal(number)) == text


@given(decimals.filter(lambda number: abs(number.adjusted()) < 900))
def test_a_printed_number_reads_as_itself(number: Decimal) -> None:
    assert number_of(plain(number)) == number
    assert "e" not in plain(number).lower()
