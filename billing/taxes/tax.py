"""Tax of invoice lines: which rate, on how much, and how much that is.

Tax is a difference, as all of billing is. A line is taxed by what its charge comes to with it, less what the
lines before it were taxed. What takes back undoes the taxes of those lines, the latest first, at their rates;
only what is new is taxed by the rate of now. So a charge that is billed in any number of lines is taxed as in
one, and one that is taken back leaves no cent of tax, whatever became of the rates meanwhile.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import ClassVar, Protocol, TypeVar

from catalog.money import round_money
from catalog.tax import TaxBehavior, TaxConfig
from metering.exact import EXACT, total
from metering.wire import WIRE, Numeric

__all__ = [
    "LineTax",
    "Rate",
    "Taxation",
    "TaxedAmount",
    "codes_of",
    "new_of",
    "rate_of",
    "resolve",
    "tax_on",
    "taxes_of",
]

ZERO = Decimal(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Taxation:
    """`code` is the one that the rate was found by; None: the rate is for whatever has none of its own."""

    percent: Decimal
    behavior: TaxBehavior
    code: str | None = None
    config: TaxConfig | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class LineTax:
    """Of a line the part `base`, and the tax on it: part of that, or on top."""

    __pydantic_config__: ClassVar = WIRE

    code: str | None
    percent: Numeric
    behavior: TaxBehavior
    base: Numeric
    amount: Numeric
    config: TaxConfig | None = None

    @property
    def taxation(self) -> Taxation:
        return Taxation(percent=self.percent, behavior=self.behavior, code=self.code, config=self.config)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaxedAmount:
    """An earlier line of the same charge: its amount after discounts, and how it was taxed."""

    amount: Decimal
    taxes: Sequence[LineTax] = ()


# -- Which rate ----------------------------------------------------------------------------------------------


class Rate(Protocol):
    """Holds in [valid_from, valid_to) in a country, or in one state of it; without `code` for everything."""

    code: str | None
    country: str
    state: str | None
    percent: Decimal
    valid_from: datetime
    valid_to: datetime | None


R = TypeVar("R", bound=Rate)


def resolve(*configs: TaxConfig | None) -> TaxConfig:
    """What holds of a line, from the nearest to the farthest: its own, the rate card's, the profile's.

    Each says as much as it likes: the codes come from the first that has one, and so does the behavior.
    """
    known = [config for config in configs if config is not None]
    coded = next((config for config in known if list(codes_of(config))), TaxConfig())
    behavior = next((config.behavior for config in known if config.behavior is not None), None)
    return replace(coded, behavior=behavior)


def codes_of(config: TaxConfig) -> Iterable[str]:
    """The most telling first."""
    if config.tax_code_id is not None:
        yield config.tax_code_id
    if config.stripe is not None:
        yield config.stripe.code
    if config.custom_invoicing is not None:
        yield config.custom_invoicing.code


def rate_of(
    rates: Iterable[R], config: TaxConfig, *, country: str | None, state: str | None, at: datetime
) -> R | None:
    """The rate for the first code that has one, else the one without code; that of the state comes first."""
    here = [
        rate
        for rate in rates
        if _holds(rate, at)
        and _same(rate.country, country)
        and (rate.state is None or _same(rate.state, state))
    ]
    for code in (*codes_of(config), None):
        if found := [rate for rate in here if rate.code == code]:
            return min(found, key=lambda rate: rate.state is None)
    return None


def _holds(rate: Rate, at: datetime) -> bool:
    return rate.valid_from <= at and (rate.valid_to is None or at < rate.valid_to)


def _same(name: str, other: str | None) -> bool:
    return other is not None and name.casefold() == other.strip().casefold()


# -- How much ------------------------------------------------------------------------------------------------


def tax_on(amount: Decimal, taxation: Taxation, currency: str) -> Decimal:
    """Rounded once. Inclusive: the part of the amount that is tax; exclusive: what comes on top of it."""
    rate = Fraction(taxation.percent) / 100
    part = rate / (1 + rate) if taxation.behavior == "inclusive" else rate
    return round_money(Fraction(amount) * part, currency)


def taxes_of(
    amount: Decimal, taxation: Taxation | None, *, earlier: Sequence[TaxedAmount] = (), currency: str
) -> tuple[LineTax, ...]:
    """The taxes of a line of `amount` after the `earlier` ones of its charge; None: what is new has none."""
    stood, (parts, new) = _stood(earlier), _split(amount, earlier)
    if new:
        parts[taxation] = EXACT.add(parts.get(taxation, ZERO), new)
    found = []
    for one, base in parts.items():
        if one is not None:
            before, taxed = stood.get(one, (ZERO, ZERO))
            owed = tax_on(EXACT.add(before, base), one, currency)
            found.append(_line_tax(one, base, EXACT.subtract(owed, taxed)))
    return tuple(found)


def new_of(amount: Decimal, earlier: Sequence[TaxedAmount] = ()) -> Decimal:
    """How much of a line takes nothing back, and so needs a rate."""
    return _split(amount, earlier)[1]


def _line_tax(taxation: Taxation, base: Decimal, amount: Decimal) -> LineTax:
    return LineTax(
        code=taxation.code,
        percent=taxation.percent,
        behavior=taxation.behavior,
        base=base,
        amount=amount,
        config=taxation.config,
    )


Standing = dict[Taxation | None, tuple[Decimal, Decimal]]
"""What was taxed how, and the tax on it, the latest last; None: what was not taxed."""


def _split(amount: Decimal, earlier: Sequence[TaxedAmount]) -> tuple[dict[Taxation | None, Decimal], Decimal]:
    """What of the amount takes back which taxation, the latest first, and what is left."""
    parts: dict[Taxation | None, Decimal] = {}
    for taxation, (base, _) in reversed(_stood(earlier).items()):
        if base * amount < 0:
            least = min(abs(base), abs(amount))
            part = least if amount > 0 else -least
            parts[taxation] = part
            amount = EXACT.subtract(amount, part)
    return parts, amount


def _stood(earlier: Sequence[TaxedAmount]) -> Standing:
    stood: Standing = {}
    for line in earlier:
        for tax in line.taxes:
            _add(stood, tax.taxation, tax.base, tax.amount)
        _add(stood, None, EXACT.subtract(line.amount, total(tax.base for tax in line.taxes)), ZERO)
    return stood


def _add(
    stood: Standing,
    taxation: Taxation | None,
    base: Decimal,
    tax: Decimal,
) -> None:
    if base:
        before, taxed = stood.pop(taxation, (ZERO, ZERO))
        stood[taxation] = EXACT.add(before, base), EXACT.add(taxed, tax)
