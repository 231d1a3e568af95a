"""Invoices as they are stored. What was issued never changes; a later difference is a line of a later one.

A line bills a charge, by its identity. The lines of one identity are numbered: each bills what is owed by
then, less what the lines before it billed. A unique index says that no number is given twice.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar

from sqlalchemy import ForeignKey, Index, Text, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, Session, mapped_column, relationship, selectinload

from billing.invoices.state import Facts, Status
from billing.profiles.app import App
from billing.profiles.profile import Party
from billing.profiles.workflow import Workflow
from billing.rating.rater import DetailedLine, Totals
from billing.taxes.tax import LineTax
from catalog.rate_card import RateCard
from metering.database import Base, Id, Instant, ValueType
from metering.errors import NotFoundError
from metering.event_set import EventDigest
from metering.period import Period
from metering.wire import WIRE

__all__ = [
    "Invoice",
    "InvoiceLine",
    "InvoiceNotFoundError",
    "Preceding",
    "get_invoice",
    "lines_by_identity",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preceding:
    """The invoice that a credit note is against, as it was issued, and why it is."""

    __pydantic_config__: ClassVar = WIRE

    number: str
    issued_at: datetime
    reason: str


class _Sums:
    amount: Mapped[Decimal] = mapped_column(sort_order=100)
    charges: Mapped[Decimal] = mapped_column(sort_order=100)
    discounts: Mapped[Decimal] = mapped_column(sort_order=100)
    credits: Mapped[Decimal] = mapped_column(sort_order=100)
    taxes_inclusive: Mapped[Decimal] = mapped_column(sort_order=100)
    taxes_exclusive: Mapped[Decimal] = mapped_column(sort_order=100)

    @property
    def totals(self) -> Totals:
        return Totals(
            amount=self.amount,
            charges=self.charges,
            discounts=self.discounts,
            credits=self.credits,
            taxes_inclusive=self.taxes_inclusive,
            taxes_exclusive=self.taxes_exclusive,
        )

    @totals.setter
    def totals(self, of: Totals) -> None:
        self.amount, self.charges, self.discounts = of.amount, of.charges, of.discounts
        self.credits = of.credits
        self.taxes_inclusive, self.taxes_exclusive = of.taxes_inclusive, of.taxes_exclusive


class Invoice(_Sums, Base):
    """`supplier`, `customer` and `workflow` are as they were when it was made.

    `preceding_id`: it is a credit note made by hand against that invoice.
    """

    __tablename__ = "invoices"
    __table_args__ = (
        Index("invoices_number_key", "number", unique=True),
        Index(None, "next_action_at", postgresql_where="next_action_at IS NOT NULL"),
    )

    id: Mapped[Id] = mapped_column(primary_key=True)
    type: Mapped[str]
    customer_id: Mapped[Id] = mapped_column(ForeignKey("customers.id"), index=True)
    currency: Mapped[str]
    number: Mapped[str]
    status: Mapped[Status] = mapped_column(Text)
    description: Mapped[str | None]
    metadata_: Mapped[dict[str, str] | None] = mapped_column("metadata")
    supplier: Mapped[Party] = mapped_column(ValueType(Party))
    customer: Mapped[Party] = mapped_column(ValueType(Party))
    billing_profile_id: Mapped[Id] = mapped_column(ForeignKey("billing_profiles.id"))
    app_id: Mapped[Id] = mapped_column(ForeignKey("apps.id"))
    workflow: Mapped[Workflow] = mapped_column(ValueType(Workflow))
    validation_issues: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)
    external_ids: Mapped[dict[str, str]]
    preceding_id: Mapped[Id | None] = mapped_column(ForeignKey("invoices.id"), index=True)
    preceding: Mapped[Preceding | None] = mapped_column(ValueType(Preceding))
    period_start: Mapped[Instant | None]
    period_end: Mapped[Instant | None]
    collection_at: Mapped[Instant | None]
    draft_until: Mapped[Instant | None]
    due_at: Mapped[Instant | None]
    next_action_at: Mapped[Instant | None]
    quantity_snapshotted_at: Mapped[Instant | None]
    issued_at: Mapped[Instant | None]
    sent_to_customer_at: Mapped[Instant | None]
    voided_at: Mapped[Instant | None]
    created_at: Mapped[Instant]
    updated_at: Mapped[Instant]
    deleted_at: Mapped[Instant | None]

    lines: Mapped[list["InvoiceLine"]] = relationship(lazy="raise", order_by="InvoiceLine.position")
    app: Mapped[App] = relationship(lazy="raise")

    def facts(self, now: datetime, *, synced: bool = True) -> Facts:
        return Facts(
            now=now,
            collection_at=self.collection_at,
            draft_until=self.draft_until,
            auto_advance=self.workflow.invoicing.auto_advance,
            critical=any(issue["severity"] == "critical" for issue in self.validation_issues),
            lines=bool(self.lines),
            numbered=self.issued_at is not None,
            synced=synced,
        )


class InvoiceLine(_Sums, Base):
    """`period` is what the line covers, `service_*` the whole service period of its charge.

    `usage` is what the charge was rated by, all that was used by then; `share` the part of a full period a
    flat price was charged for; `last` whether nothing more was to be used. With `rate_card` and the lines
    before it, it can be computed again. `released_at`: it was voided, and its charge may be billed anew, from
    `bill_again_at` on.
    `rated_at`: when, so that what was released later had counted.
    `billed_events` says by which events; it is stored when the invoice is issued.
    `credited_line_id`: a credit note made by hand gives back of that line.
    """

    __tablename__ = "invoice_lines"
    __table_args__ = (
        Index("invoice_lines_identity_key", "identity", "sequence", unique=True),
        Index(None, "subscription_id", "service_start"),
    )

    id: Mapped[Id] = mapped_column(primary_key=True)
    invoice_id: Mapped[Id] = mapped_column(ForeignKey("invoices.id"), index=True)
    position: Mapped[int]
    identity: Mapped[str]
    sequence: Mapped[int]
    managed_by: Mapped[str]
    name: Mapped[str]
    description: Mapped[str | None]
    metadata_: Mapped[dict[str, str] | None] = mapped_column("metadata")
    subscription_id: Mapped[Id | None] = mapped_column(ForeignKey("subscriptions.id"))
    phase_id: Mapped[Id | None]
    item_id: Mapped[Id | None]
    feature_id: Mapped[Id | None]
    rate_card: Mapped[RateCard] = mapped_column(ValueType(RateCard))
    share: Mapped[str]
    period_start: Mapped[Instant]
    period_end: Mapped[Instant]
    service_start: Mapped[Instant]
    service_end: Mapped[Instant]
    billing_start: Mapped[Instant]
    billing_end: Mapped[Instant]
    invoice_at: Mapped[Instant]
    usage: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    last: Mapped[bool]
    quantity: Mapped[Decimal]
    quantity_before: Mapped[Decimal]
    usage_discount: Mapped[Decimal]
    usage_discount_before: Mapped[Decimal]
    details: Mapped[tuple[DetailedLine, ...]] = mapped_column(ValueType(tuple[DetailedLine, ...]))
    billed_events: Mapped[EventDigest | None] = mapped_column(ValueType(EventDigest))
    taxes: Mapped[tuple[LineTax, ...]] = mapped_column(ValueType(tuple[LineTax, ...]))
    credited_line_id: Mapped[Id | None] = mapped_column(ForeignKey("invoice_lines.id"), index=True)
    rated_at: Mapped[Instant]
    released_at: Mapped[Instant | None]
    bill_again_at: Mapped[Instant | None]
    created_at: Mapped[Instant]
    updated_at: Mapped[Instant]

    @property
    def period(self) -> Period:
        return Period(start=self.period_start, end=self.period_end)


class InvoiceNotFoundError(NotFoundError):
    pass


def get_invoice(session: Session, invoice_id: str, *, lock: bool = False) -> Invoice:
    """With its lines and its app; deleted ones too."""
    query = select(Invoice).options(selectinload(Invoice.lines), selectinload(Invoice.app))
    query = query.where(Invoice.id == invoice_id)
    if invoice := session.scalar(query.with_for_update(of=Invoice) if lock else query):
        return invoice
    raise InvoiceNotFoundError(f"no invoice {invoice_id!r}")


def lines_by_identity(session: Session, identities: Iterable[str]) -> Mapping[str, Sequence[InvoiceLine]]:
    """The lines of each charge in their order, those of deleted drafts too: nothing is billed again."""
    query = select(InvoiceLine).where(InvoiceLine.identity.in_(set(identities)))
    found: dict[str, list[InvoiceLine]] = {}
    for line in session.scalars(query.order_by(InvoiceLine.identity, InvoiceLine.sequence)):
        found.setdefault(line.identity, []).append(line)
    return found
