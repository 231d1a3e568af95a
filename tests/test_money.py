import math
from decimal import ROUND_HALF_UP, Context, Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.money import is_currency, minor_digits, round_money

currencies = st.sampled_from(["USD", "JPY", "KWD", "RSD"])
decimals = st.builds(
    lambda digits, exponent: Decimal(digits).scaleb(exponent, Context(prec=1000)),
    st.integers(-(10**200), 10**200) | st.integers(-10_000, 10_000),
    st.integers(-220, 40) | st.integers(-4, 2),
)
near_halves = st.builds(Fraction, st.integers(-(10**9), 10**9), st.sampled_from([8, 200, 2000]))
amounts = decimals | st.fractions() | near_halves


@pytest.mark.parametrize(
    ("digits", "codes"),
    [
        (0, "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF"),
        (2, "USD EUR GBP CHF INR BRL HUF TWD IDR COP ZAR CNY TRY MGA MRU"),
        (2, "AFN ALL IRR KPW LAK LBP MMK RSD SOS SYP YER"),
        (3, "BHD IQD JOD KWD LYD OMR TND"),
    ],
    ids=["whole", "cents", "cents that shops do not quote", "mills"],
)
def test_a_currency_has_the_digits_of_iso_4217(digits: int, codes: str) -> None:
    assert {code: minor_digits(code) for code in codes.split()} == dict.fromkeys(codes.split(), digits)
    assert all(map(is_currency, codes.split()))


@pytest.mark.parametrize(
    "code", ["", "usd", "US", "USDT", "BTC", "DEM", "HRK", "XXX", "XTS", "XAU", "USD ", "U$D", "TOKENS"]
)
def test_what_nobody_pays_with_is_no_currency(code: str) -> None:
    assert not is_currency(code)


@pytest.mark.parametrize(
    ("amount", "currency", "rounded"),
    [
        ("0.005", "USD", "0.01"),
        ("-0.005", "USD", "-0.01"),
        ("0.015", "USD", "0.02"),
        ("0.025", "USD", "0.03"),
        ("0.00499999999999999999999999999999999999", "USD", "0.00"),
        ("0.00500000000000000000000000000000000001", "USD", "0.01"),
        ("-0.004", "USD", "0.00"),
        ("7", "USD", "7.00"),
        ("1E+3", "USD", "1000.00"),
        ("0.5", "JPY", "1"),
        ("-0.5", "JPY", "-1"),
        ("1.5", "JPY", "2"),
        ("2.5", "JPY", "3"),
        ("0.0005", "KWD", "0.001"),
        ("19.99", "RSD", "19.99"),
        ("123456789012345678901234567890.125", "USD", "123456789012345678901234567890.13"),
    ],
)
def test_halves_are_rounded_away_from_zero(amount: str, currency: str, rounded: str) -> None:
    assert str(round_money(Decimal(amount), currency)) == rounded
    assert str(round_money(Fraction(amount), currency)) == rounded


def test_a_fraction_that_no_decimal_equals_is_rounded_as_it_is() -> None:
    assert round_money(Fraction(1, 3), "USD") == Decimal("0.33")
    assert round_money(Fraction(-2, 3), "USD") == Decimal("-0.67")
    just_below = Fraction(5, 1000) - Fraction(1, 10**60)
    assert round_money(just_below, "USD") == 0


def nearest(amount: Decimal | Fraction, currency: str) -> Fraction:
    """Of the two neighbours in whole minor units the nearer one, or the one farther from zero."""
    scale = 10 ** minor_digits(currency)
    exact = Fraction(amount) * scale
    neighbours = {math.floor(exact), math.ceil(exact)}
    return Fraction(min(neighbours, key=lambda unit: (abs(unit - exact), -abs(unit))), scale)


@given(amounts, currencies)
def test_a_rounded_amount_is_the_nearest_whole_number_of_minor_units(
    amount: Decimal | Fraction, currency: str
) -> None:
    assert Fraction(round_money(amount, currency)) == nearest(amount, currency)


@given(decimals, currencies)
def test_rounding_is_what_a_wide_enough_decimal_context_says(amount: Decimal, currency: str) -> None:
    unit = Decimal(1).scaleb(-minor_digits(currency))
    wide = Context(prec=1000, rounding=ROUND_HALF_UP)
    assert round_money(amount, currency) == amount.quantize(unit, context=wide)


@given(amounts, currencies)
def test_a_rounded_amount_has_exactly_the_digits_of_its_currency_and_is_never_minus_zero(
    amount: Decimal | Fraction, currency: str
) -> None:
    rounded = round_money(amount, currency)
    assert rounded.as_tuple().exponent == -minor_digits(currency)
    assert rounded or not rounded.is_signed()


@given(amounts, currencies)
def test_rounding_twice_is_rounding_once(amount: Decimal | Fraction, currency: str) -> None:
    once = round_money(amount, currency)
    assert round_money(once, currency) == once


@given(amounts, currencies)
def test_what_is_owed_and_what_is_given_back_are_rounded_alike(
    amount: Decimal | Fraction, currency: str
) -> None:
    assert round_money(-Fraction(amount), currency) == round_money(amount, currency).copy_negate()
