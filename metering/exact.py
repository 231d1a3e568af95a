"""Exact decimal arithmetic, for quantities and money alike.

Python's default context rounds silently to 28 digits; this one never does: an operation that could not be
exact raises instead.
"""

import re
from collections.abc import Iterable
from decimal import ROUND_HALF_UP, Context, Decimal, DivisionByZero, Inexact, InvalidOperation, Overflow

__all__ = ["EXACT", "number_of", "plain", "total"]

EXACT = Context(
    prec=100_000, rounding=ROUND_HALF_UP, traps=[Inexact, InvalidOperation, DivisionByZero, Overflow]
)

NUMBER_PATTERN = r"[ \t\r\n]*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?[ \t\r\n]*"
"""Text that is a number, for Python and PostgreSQL alike."""
_NUMBER = re.compile(NUMBER_PATTERN)
MAX_TEXT_LENGTH = 1000


def total(amounts: Iterable[Decimal]) -> Decimal:
    """The exact sum; 0 of none."""
    result = Decimal(0)
    for amount in amounts:
        result = EXACT.add(result, amount)
    return result


def number_of(value: object) -> Decimal | None:
    """The number that a JSON value stands for: a number, or text that is one ("25.5"); otherwise None.

    `value` comes from a decoder that keeps numbers exact (int or Decimal).
    """
    match value:
        case bool():
            return None
        case Decimal() | int():
            return Decimal(value)
        case str() if len(value) <= MAX_TEXT_LENGTH and _NUMBER.fullmatch(value):
            return Decimal(value.strip())
    return None


def plain(number: Decimal) -> str:
    """Digits without an exponent, as PostgreSQL prints a numeric: 1E+2 is 100, -0.0 is 0.0."""
    text = str(number)
    if "E" not in text and not text.startswith("-0"):
        return text  # nearly always, and in a third of the time
    return format(abs(number) if number.is_zero() else number, "f")
