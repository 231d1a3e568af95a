"""An invoice, or a credit note, as the values that its document shows: no layout, no storage, no clock.

Nothing is computed here that is not on the invoice: amounts are its own, and what a line comes to before tax
is what its details sum to. The same invoice always gives the same document.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Literal

from babel import Locale

from billing.contracts.customer import Address
from billing.invoices.invoice import Invoice, InvoiceLine
from billing.invoices.payments import Account
from billing.profiles.profile import Party
from billing.rating.rater import DetailedLine, Totals, totals_of
from billing.reports.document_text import day_text, money_text, percent_text, quantity_text
from catalog.rate_card import RateCard, UsageBasedRateCard
from catalog.tax import TaxBehavior
from metering.exact import EXACT
from metering.period import Period

__all__ = [
    "Document",
    "DocumentDetail",
    "DocumentLine",
    "DocumentParty",
    "DocumentSum",
    "DocumentTax",
    "Reduction",
    "State",
    "document_of",
]

Kind = Literal["invoice", "credit_note"]
State = Literal["draft", "deleted", "void", "open", "overdue", "paid", "uncollectible"]
UNOWED: tuple[State, ...] = ("draft", "deleted", "void")


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentParty:
    """`address` is its lines, as they stand on an envelope."""

    name: str
    address: tuple[str, ...]
    tax_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """`amount` is what is taken off."""

    description: str
    amount: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentDetail:
    """`words` is the sum in words, where it says more than quantity, price and amount do."""

    name: str
    words: str
    quantity: Decimal
    unit_price: Decimal
    amount: Decimal
    discounts: tuple[Reduction, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentLine:
    """`amount` is after discounts and before exclusive taxes; `percents` are its rates of tax. A fee that has
    details has no `quantity`.

    `unit_price` is None where the line has several prices, which its `details` then say; where it has but
    one, there are no details.
    """

    name: str
    period: Period
    notes: tuple[str, ...]
    quantity: Decimal | None
    unit: str
    unit_price: Decimal | None
    amount: Decimal
    percents: tuple[Decimal, ...]
    details: tuple[DocumentDetail, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentTax:
    """All that is taxed alike; `base` is what it is on, and contains it where it is inclusive."""

    percent: Decimal
    behavior: TaxBehavior
    base: Decimal
    amount: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentSum:
    """A row below the lines; `strong` for what counts most."""

    label: str
    text: str
    strong: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """`made` is the date it bears: when it was issued, or drafted. `due` is None where nothing is owed.

    `received` is what was paid or credited since, `amount_due` what then is open.
    """

    kind: Kind
    state: State
    number: str
    currency: str
    made: datetime
    due: datetime | None
    period: Period | None
    supplier: DocumentParty
    customer: DocumentParty
    refers_to: str
    lines: tuple[DocumentLine, ...]
    totals: Totals
    taxes: tuple[DocumentTax, ...]
    received: tuple[Reduction, ...]
    amount_due: Decimal
    terms: str
    notes: str

    @property
    def title(self) -> str:
        return "Credit note" if self.kind == "credit_note" else "Invoice"

    @property
    def badge(self) -> str:
        """The state in a word."""
        return "Credited" if self.kind == "credit_note" and self.state == "paid" else self.state.capitalize()

    @property
    def notice(self) -> str:
        """What everybody must see who takes it for an invoice."""
        match self.state:
            case "draft":
                return "Nothing is owed by this yet, and its amounts may still change."
            case "void" | "deleted":
                return "Nothing is owed by this any more."
        return ""

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """What it is told from others by."""
        made = ("Drafted" if self.state == "draft" else "Date", day_text(self.made))
        due = [] if self.due is None else [("Due", day_text(self.due))]
        return (("Number", self.number), made, *due)

    @property
    def total_text(self) -> str:
        return self.with_currency(self.totals.total)

    @property
    def subtotal(self) -> Decimal:
        """After discounts and credits, before exclusive taxes."""
        return EXACT.subtract(self.totals.total, self.totals.taxes_exclusive)

    @property
    def sums(self) -> tuple[DocumentSum, ...]:
        """From the lines to what is due, row by row."""
        return tuple(self._sums())

    def _sums(self) -> Iterator[DocumentSum]:
        totals = self.totals
        less = {"Discounts": totals.discounts, "Credits": totals.credits}
        if any(less.values()):
            yield self._sum("Before discounts", EXACT.add(totals.amount, totals.charges))
        for label, amount in less.items():
            if amount:
                yield self._sum(label, EXACT.minus(amount))
        yield self._sum("Subtotal", self.subtotal)
        yield from self._taxed("exclusive", "on")
        yield DocumentSum(label="Total", text=self.total_text, strong=True)
        yield from self._taxed("inclusive", "contained in")
        if self.kind == "invoice" and self.state != "draft":
            for one in self.received:
                yield self._sum(one.description, EXACT.minus(one.amount))
            yield DocumentSum(label="Amount due", text=self.with_currency(self.amount_due), strong=True)

    def _taxed(self, behavior: TaxBehavior, word: str) -> Iterator[DocumentSum]:
        for tax in self.taxes:
            if tax.behavior == behavior:
                base = money_text(tax.base, self.currency)
                yield self._sum(f"Tax {percent_text(tax.percent)} {word} {base}", tax.amount)

    def _sum(self, label: str, amount: Decimal) -> DocumentSum:
        return DocumentSum(label=label, text=money_text(amount, self.currency))

    def with_currency(self, amount: Decimal) -> str:
        return f"{self.currency} {money_text(amount, self.currency)}"


def document_of(account: Account) -> Document:
    """The account's invoice comes with its lines."""
    invoice = account.invoice
    kind: Kind = "credit_note" if invoice.type == "credit_note" else "invoice"
    state = _state(invoice)
    owes = kind == "invoice" and state not in UNOWED and invoice.totals.total > 0
    return Document(
        kind=kind,
        state=state,
        number=invoice.number,
        currency=invoice.currency,
        made=invoice.issued_at or invoice.created_at,
        due=invoice.due_at if owes else None,
        period=_period(invoice),
        supplier=_party(invoice.supplier),
        customer=_party(invoice.customer),
        refers_to=_refers_to(invoice),
        lines=tuple(map(_line, sorted(invoice.lines, key=lambda line: line.position))),
        totals=invoice.totals,
        taxes=_taxes(invoice.lines),
        received=tuple(_received(account, state)) if owes else (),
        amount_due=account.open,
        terms=_terms(account, state) if owes else "",
        notes=invoice.description or "",
    )


# -- The head ------------------------------------------------------------------------------------------------


def _state(invoice: Invoice) -> State:
    return _STATES[invoice.status.partition(".")[0]]


_STATES: Mapping[str, State] = MappingProxyType(
    {
        "draft": "draft",
        "issuing": "draft",
        "delete": "deleted",
        "deleted": "deleted",
        "issued": "open",
        "payment_processing": "open",
        "overdue": "overdue",
        "paid": "paid",
        "uncollectible": "uncollectible",
        "voided": "void",
    }
)
"""An invoice that is being issued has no number of its own yet."""


def _period(invoice: Invoice) -> Period | None:
    if invoice.period_start is None or invoice.period_end is None:
        return None
    return Period(start=invoice.period_start, end=invoice.period_end)


def _party(party: Party) -> DocumentParty:
    address = party.addresses[0] if party.addresses else Address()
    return DocumentParty(
        name=party.name or party.key or "",
        address=tuple(_address(address)),
        tax_id=party.tax_id.code if party.tax_id else None,
    )


def _address(address: Address) -> Iterator[str]:
    city = " ".join(part for part in (address.postal_code, address.city) if part)
    country = _COUNTRIES.get(address.country or "", address.country)
    lines = (address.line1, address.line2, city, address.state, country, address.phone_number)
    return (line for line in lines if line)


_COUNTRIES: Mapping[str, str] = Locale("en").territories


def _refers_to(invoice: Invoice) -> str:
    """What a credit note is against, and why."""
    if (before := invoice.preceding) is None:
        return ""
    return f"For invoice {before.number} of {day_text(before.issued_at)}: {before.reason}"


def _received(account: Account, state: State) -> Iterator[Reduction]:
    """What was recorded by hand, and what the invoice's app says was paid."""
    for payment in account.payments:
        how = f", {payment.method}" if payment.method else ""
        said = f"Paid on {day_text(payment.received_at)}{how}"
        yield Reduction(description=said, amount=payment.amount)
    if account.credited:
        yield Reduction(description="Credited", amount=account.credited)
    rest = EXACT.subtract(account.total, EXACT.add(account.paid, account.credited))
    if state == "paid" and rest > 0:
        yield Reduction(description="Paid", amount=rest)


def _terms(account: Account, state: State) -> str:
    """How it is paid; nothing where that is no question any more."""
    if state not in ("open", "overdue"):
        return ""
    invoice = account.invoice
    amount = f"{invoice.currency} {money_text(account.open, invoice.currency)}"
    by = "" if invoice.due_at is None else f" by {day_text(invoice.due_at)}"
    if state == "overdue":
        return f"Payment of {amount} was due{by}. Please pay it now."
    if invoice.workflow.payment.collection_method == "charge_automatically":
        return f"{amount} will be charged to your payment method{by}. You need not do anything."
    return f"Please pay {amount}{by}."


# -- Lines ---------------------------------------------------------------------------------------------------


def _line(line: InvoiceLine) -> DocumentLine:
    single = line.details[0] if _is_plain(line) else None
    counted = None if line.usage is None else line.quantity
    return DocumentLine(
        name=line.name,
        period=line.period,
        notes=tuple(_notes(line, single)),
        quantity=counted if single is None else single.quantity,
        unit=_unit(line.rate_card),
        unit_price=None if single is None else single.per_unit_amount,
        amount=totals_of(line.details).total,
        percents=tuple(dict.fromkeys(tax.percent for tax in line.taxes)),
        details=() if single else tuple(_detail(line, detail) for detail in line.details),
    )


def _is_plain(line: InvoiceLine) -> bool:
    """One price and nothing taken off: no details need to say it again."""
    one = line.details[0] if len(line.details) == 1 else None
    return one is not None and one.reference in ("flat-price", "unit-price-usage") and not one.discounts


def _unit(card: RateCard) -> str:
    """What is counted, after conversion, if the rate card has a word for it."""
    config = card.unit_config if isinstance(card, UsageBasedRateCard) else None
    return (config and config.display_unit) or ""


def _notes(line: InvoiceLine, single: DetailedLine | None) -> Iterator[str]:
    if line.description:
        yield line.description
    if line.usage_discount > 0:
        yield f"{quantity_text(line.usage_discount)} free of charge"
    if line.quantity_before > 0:
        yield f"{quantity_text(line.quantity_before)} of this period billed before"
    if single is not None and (words := _words(single)):
        yield words


def _detail(line: InvoiceLine, detail: DetailedLine) -> DocumentDetail:
    return DocumentDetail(
        name=detail.name.removeprefix(f"{line.name}: "),
        words=_words(detail),
        quantity=detail.quantity,
        unit_price=detail.per_unit_amount,
        amount=detail.amount,
        discounts=tuple(
            Reduction(description=discount.description, amount=discount.amount)
            for discount in detail.discounts
        ),
    )


def _words(detail: DetailedLine) -> str:
    rounded = EXACT.multiply(detail.quantity, detail.per_unit_amount) != detail.amount
    return detail.description if rounded or detail.note else ""


# -- Taxes ---------------------------------------------------------------------------------------------------


def _taxes(lines: Iterable[InvoiceLine]) -> tuple[DocumentTax, ...]:
    """Added up by rate, the highest first."""
    found: dict[tuple[Decimal, TaxBehavior], tuple[Decimal, Decimal]] = {}
    for tax in (tax for line in lines for tax in line.taxes):
        base, amount = found.get((tax.percent, tax.behavior), (Decimal(0), Decimal(0)))
        found[tax.percent, tax.behavior] = EXACT.add(base, tax.base), EXACT.add(amount, tax.amount)
    return tuple(
        DocumentTax(percent=percent, behavior=behavior, base=base, amount=amount)
        for (percent, behavior), (base, amount) in sorted(found.items(), reverse=True)
        if base or amount
    )
