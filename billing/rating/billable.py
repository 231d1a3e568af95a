"""What an invoice line bills: a charge of a contract, something added by hand, or a line billed earlier.

Billing is a difference: a line bills what its charge comes to by now, less what its earlier lines billed.
Late usage, a price that was cut short and a credit are the same thing, with another sign.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal, Protocol

from billing.rating.pricing import NOTHING, Seen, Usage
from billing.rating.rater import DetailedLine, Rating, Terms, Totals, difference, settle, totals_of
from billing.rating.timeline import Charge
from catalog.price import FlatPrice, Price
from catalog.rate_card import RateCard
from metering.exact import EXACT, plain, total
from metering.ids import derived_id
from metering.period import Period

__all__ = [
    "Billable",
    "BilledLine",
    "DueLine",
    "ManagedBy",
    "due_line",
    "taken_back",
    "usage_from",
    "waive",
    "wire_of",
]

ManagedBy = Literal["subscription", "manual"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Billable:
    """`service` is the period it is used in, `share` the part of a full one that a flat price is due for."""

    identity: str
    currency: str
    rate_card: RateCard
    feature_id: str | None
    service: Period
    billing: Period
    invoice_at: datetime
    share: Fraction
    managed_by: ManagedBy = "subscription"
    subscription_id: str | None = None
    phase_id: str | None = None
    item_id: str | None = None

    @staticmethod
    def of(charge: Charge) -> "Billable":
        return Billable(
            identity=charge.identity,
            currency=charge.currency,
            rate_card=charge.item.rate_card,
            feature_id=charge.item.feature_id,
            service=charge.period,
            billing=charge.billing_period,
            invoice_at=charge.invoice_at,
            share=charge.share,
            subscription_id=charge.subscription_id,
            phase_id=charge.item.phase_id,
            item_id=charge.item.id,
        )

    @property
    def line_id(self) -> str:
        """Its line's id as long as it is not billed: that on the gathering invoice."""
        return derived_id(*self.identity.split("/"))

    @property
    def price(self) -> Price:
        assert self.rate_card.price is not None  # noqa: S101  nothing is due for what has none
        return self.rate_card.price

    @property
    def metered(self) -> bool:
        return not isinstance(self.price, FlatPrice)

    @property
    def terms(self) -> Terms:
        return Terms.of(self.rate_card, self.price, currency=self.currency, share=self.share)


class BilledLine(Protocol):
    """What a later line needs to know of an earlier one of the same charge."""

    sequence: int
    usage: Any
    last: bool
    period_end: datetime
    released_at: datetime | None
    details: tuple[DetailedLine, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DueLine:
    """A line that is to be written: the `sequence`-th of its charge.

    `metered_before`: so much of `usage` as was billed before.
    `correction`: it changes what an earlier line had settled, and covers the whole service period again.
    `first`: no earlier one counts, so that it is written even if it comes to nothing.
    `waived`: it takes back what was given up, and so was never charged: nobody gets anything.
    `released_at`: until then lines of its charge were released, and so don't count.
    """

    billable: Billable
    sequence: int
    period: Period
    usage: Usage | None
    last: bool
    rating: Rating
    metered_before: Decimal = Decimal(0)
    correction: bool = False
    first: bool = False
    waived: bool = False
    released_at: datetime | None = None

    @property
    def invoice_at(self) -> datetime:
        """When it was due; what is billed early is due at once."""
        return self.billable.invoice_at if self.last else min(self.billable.invoice_at, self.period.end)

    @property
    def quantity(self) -> Decimal | None:
        """As it was metered, all of the period so far; None for a fee."""
        return None if self.usage is None else self.usage.quantity

    @property
    def details(self) -> tuple[DetailedLine, ...]:
        return self.rating.details

    @property
    def totals(self) -> Totals:
        return self.rating.totals

    @property
    def waits(self) -> bool:
        """Usage that came late is billed along with what is next due; a contract's change is due at once."""
        return self.correction and self.billable.metered


def due_line(
    billable: Billable, usage: Usage, earlier: Sequence[BilledLine], *, until: datetime, last: bool
) -> DueLine:
    """What the charge comes to by `until`, less its earlier lines. `last`: nothing more will be used.

    It covers the time since the line before, or all again: when that was the last, or went on for longer.
    Lines that were released, as their invoice was voided, keep their number and count for nothing.
    """
    counted = [line for line in earlier if line.released_at is None]
    before = usage_from(counted[-1].usage) if counted else NOTHING
    billed = [detail for line in counted for detail in line.details]
    settled = any(line.last for line in counted)
    again = settled or not counted or counted[-1].period_end > until
    return DueLine(
        billable=billable,
        sequence=_following(earlier),
        period=Period(start=billable.service.start if again else counted[-1].period_end, end=until),
        usage=usage if billable.metered else None,
        metered_before=before.quantity,
        last=last,
        rating=settle(billable.terms, usage, before=before, billed=billed, last=last or settled),
        correction=settled,
        first=not counted,
        released_at=_latest_release(earlier),
    )


def taken_back(billable: Billable, earlier: Sequence[BilledLine]) -> DueLine:
    """A charge that is none any more: all that was billed for it. No share of a period is left to charge."""
    billed = [detail for line in earlier if line.released_at is None for detail in line.details]
    return DueLine(
        billable=replace(billable, share=Fraction(0)),
        sequence=_following(earlier),
        period=billable.service,
        usage=NOTHING if billable.metered else None,
        last=True,
        rating=Rating(details=difference((), billed)),
        correction=True,
        released_at=_latest_release(earlier),
    )


@dataclass(slots=True, kw_only=True)
class _Undone:
    """A line that is about to be written, as later ones of its charge see it."""

    sequence: int
    usage: Any
    last: bool
    period_end: datetime
    released_at: datetime | None
    details: tuple[DetailedLine, ...]

    @staticmethod
    def of(line: DueLine) -> "_Undone":
        return _Undone(
            sequence=line.sequence,
            usage=wire_of(line.usage),
            last=line.last,
            period_end=line.period.end,
            released_at=None,
            details=line.details,
        )


def waive(
    rate: Callable[[Sequence[BilledLine]], DueLine],
    earlier: Sequence[BilledLine],
    given_up: Sequence[BilledLine],
    credited: Decimal = Decimal(0),
) -> list[DueLine]:
    """What `rate` says after the `earlier` lines, of which some were `given_up` and so never charged, and of
    the others so much was `credited` by hand.

    Nobody gets back what was given up, or more than was charged; nobody pays for a fee that was given up when
    it comes back. Such a part is undone first, over no time. The rest, if there is one, is a line of its own.
    """
    line = rate(earlier)
    undone = _undone(line, _never_charged(line, given_up))
    rest = rate([*earlier, _Undone.of(undone)]) if undone.details else line
    charged = [one for one in earlier if one.released_at is None and one not in given_up]
    if credited and (over := _beyond(rest, charged, credited)) > 0:
        undone = _undone(line, (*undone.details, *_part(rest.details, over)))
        rest = rate([*earlier, _Undone.of(undone)])
    if not undone.details:
        return [line]
    if EXACT.multiply(rest.totals.total, line.totals.total) <= 0:
        return [replace(line, waived=True)]
    return [undone, rest]


def _undone(line: DueLine, details: tuple[DetailedLine, ...]) -> DueLine:
    return replace(
        line,
        period=Period(start=line.period.start, end=line.period.start),
        last=False,
        rating=replace(line.rating, details=details),
        waived=True,
        first=False,
    )


def _never_charged(line: DueLine, given_up: Sequence[BilledLine]) -> tuple[DetailedLine, ...]:
    """What the line takes back of what was given up, or of a fee what it brings back."""
    amount = line.totals.total
    if amount > 0 and line.billable.metered:  # as likely it is usage that nobody knew
        return ()
    some = given_up if amount < 0 else _not_restored(given_up)
    reverse = difference((), [detail for one in some for detail in one.details])
    return reverse if EXACT.multiply(totals_of(reverse).total, amount) > 0 else ()


def _not_restored(given_up: Sequence[BilledLine]) -> list[BilledLine]:
    """What took back, since the last one that made up for it."""
    found: list[BilledLine] = []
    left = Decimal(0)
    for one in given_up:
        left = EXACT.add(left, totals_of(one.details).total)
        found.append(one)
        if left >= 0:
            found, left = [], Decimal(0)
    return found


def _beyond(line: DueLine, charged: Sequence[BilledLine], credited: Decimal) -> Decimal:
    """By how much it would give back more than there is."""
    billed = total(totals_of(one.details).total for one in charged)
    there = max(Decimal(0), EXACT.subtract(billed, credited))
    return EXACT.subtract(-line.totals.total, there)


def _part(details: Sequence[DetailedLine], amount: Decimal) -> Iterator[DetailedLine]:
    """Of what they give back so much, as money without units."""
    for detail in details:
        taken = min(amount, max(Decimal(0), -detail.total))
        amount = EXACT.subtract(amount, taken)
        if taken:
            yield replace(detail, quantity=Decimal(0), amount=-taken, discounts=())


def _latest_release(earlier: Sequence[BilledLine]) -> datetime | None:
    return max((line.released_at for line in earlier if line.released_at is not None), default=None)


def _following(earlier: Sequence[BilledLine]) -> int:
    return earlier[-1].sequence + 1 if earlier else 0


def wire_of(usage: Usage | None, before: Decimal = Decimal(0)) -> dict[str, Any] | None:
    """Usage as facts that are stored with a line, and how much of it was there `before` the line."""
    if usage is None:
        return None
    seen = usage.seen and {"number": usage.seen.number, "question": usage.seen.question}
    return {
        "quantity": plain(usage.quantity),
        "before": plain(before),
        "events": usage.events,
        "groups": [[list(group), plain(quantity)] for group, quantity in usage.groups.items()],
        "sizes": [[plain(size), count] for size, count in usage.sizes.items()],
        **({"seen": seen} if seen else {}),
    }


def usage_from(wire: Mapping[str, Any] | None) -> Usage:
    if wire is None:
        return NOTHING
    return Usage(
        quantity=Decimal(wire["quantity"]),
        events=wire["events"],
        groups={tuple(group): Decimal(quantity) for group, quantity in wire["groups"]},
        sizes={Decimal(size): count for size, count in wire["sizes"]},
        seen=Seen(**seen) if (seen := wire.get("seen")) else None,
    )
