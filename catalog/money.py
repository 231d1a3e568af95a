"""Money: exact decimals in a currency, rounded by one function, once per detailed invoice line."""

from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation
from fractions import Fraction
from functools import cache

from babel.core import get_global
from babel.numbers import list_currencies

from metering.exact import EXACT

__all__ = ["currencies", "is_currency", "minor_digits", "round_money"]


@cache
def is_currency(code: str) -> bool:
    """Whether `code` is a currency of ISO 4217, such as USD; withdrawn ones and test codes are not."""
    return code in list_currencies("en") and code in _in_use()


@cache
def currencies() -> tuple[str, ...]:
    """Those of ISO 4217 that are in use."""
    return tuple(sorted(code for code in list_currencies("en") if code in _in_use()))


@cache
def _in_use() -> frozenset[str]:
    """Currencies that some territory uses as tender today (Unicode CLDR)."""
    territories = get_global("territory_currencies")
    return frozenset(
        code for uses in territories.values() for code, _, end, tender in uses if tender and end is None
    )


_MINOR_DIGITS = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF",
    3: "BHD IQD JOD KWD LYD OMR TND",
}
"""ISO 4217's exceptions from 2. Not Babel's: CLDR has the digits that shops quote, and no paras in Serbia."""


@cache
def minor_digits(currency: str) -> int:
    """Digits after the point of the currency's minor unit: USD 2, JPY 0, KWD 3."""
    return next((digits for digits, codes in _MINOR_DIGITS.items() if currency in codes.split()), 2)


def round_money(amount: Decimal | Fraction, currency: str) -> Decimal:
    """The amount in whole minor units, halves away from zero. The only place where money is rounded."""
    if isinstance(amount, Decimal):
        rounded = amount.quantize(_minor_unit(currency), context=_ROUNDING)
        return rounded or rounded.copy_abs()
    exact = amount * 10 ** minor_digits(currency)
    units = (2 * abs(exact.numerator) + exact.denominator) // (2 * exact.denominator)
    return EXACT.scaleb(Decimal(units if exact >= 0 else -units), -minor_digits(currency))


@cache
def _minor_unit(currency: str) -> Decimal:
    return Decimal(1).scaleb(-minor_digits(currency))


_ROUNDING = Context(prec=EXACT.prec, rounding=ROUND_HALF_UP, traps=[InvalidOperation])
