"""Payments of invoices, as they are stored: what was received, when, and what the payer calls it."""

from collections.abc import Sequence
from decimal import Decimal

from sqlalchemy import ForeignKey, Index, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from metering.database import Base, Id, Instant

__all__ = ["Payment", "payments_of"]


class Payment(Base):
    __tablename__ = "payments"
    __table_args__ = (Index("payments_reference_key", "invoice_id", "reference", unique=True),)

    id: Mapped[Id] = mapped_column(primary_key=True)
    invoice_id: Mapped[Id] = mapped_column(ForeignKey("invoices.id"), index=True)
    amount: Mapped[Decimal]
    received_at: Mapped[Instant]
    method: Mapped[str | None]
    reference: Mapped[str | None]
    note: Mapped[str | None]
    created_at: Mapped[Instant]


def payments_of(session: Session, invoice_id: str) -> Sequence[Payment]:
    """In the order in which they were received."""
    query = select(Payment).where(Payment.invoice_id == invoice_id)
    return session.scalars(query.order_by(Payment.received_at, Payment.id)).all()
