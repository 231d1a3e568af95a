"""What an invoice asks of the app that takes it to the customer and collects the money.

It is asked inside the transaction, so nothing here waits for the world outside: an app that calls out notes
what is to be done, does it afterwards, and tells the outcome in a transaction of its own.
"""

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Protocol

from sqlalchemy.orm import Session

from billing.invoices.invoice import Invoice
from billing.invoices.state import Facts, Trigger
from billing.profiles.app import SANDBOX_WISH

__all__ = [
    "DRAFT_SYNCED",
    "FINALIZED",
    "GIVEN_NUMBER",
    "CustomInvoicing",
    "Provider",
    "Sandbox",
    "facts_of",
    "provider_of",
]

DRAFT_SYNCED = "draft-synced-at"
FINALIZED = "finalized-at"
GIVEN_NUMBER = "number"
"""Among an invoice's external ids: its number is the app's, and none is taken from our sequences."""


class Provider(Protocol):
    """The invoice comes with its lines and its app, and its customer is locked."""

    def upsert_draft(self, session: Session, invoice: Invoice, *, now: datetime) -> None:
        """The draft is new to the app, or has changed since."""

    def finalize(self, session: Session, invoice: Invoice, *, now: datetime) -> None:
        """Nothing of the invoice changes any more: it goes to the customer."""

    def delete(self, session: Session, invoice: Invoice, *, now: datetime) -> None:
        """The draft was given up."""

    def confirmed(self, invoice: Invoice) -> bool:
        """Whether the app has done what it was asked for last, so that the invoice may go on."""

    def collect_payment(self, session: Session, invoice: Invoice, *, now: datetime) -> Trigger | None:
        """What becomes of it at once; None: that is told later."""


class Sandbox:
    """Pretends: does everything at once, and pays, or does what the invoice's metadata says.

    Where that says something else, nobody ever hears of the payment.
    """

    def upsert_draft(self, session: Session, invoice: Invoice, *, now: datetime) -> None:
        pass

    def finalize(self, session: Session, invoice: Invoice, *, now: datetime) -> None:
        pass

    def delete(self, session: Session, invoice: Invoice, *, now: datetime) -> None:
        pass

    def confirmed(self, invoice: Invoice) -> bool:  # noqa: ARG002  the protocol's signature
        return True

    def collect_payment(
        self,
        session: Session,  # noqa: ARG002  the protocol's signature
        invoice: Invoice,
        *,
        now: datetime,  # noqa: ARG002  the protocol's signature
    ) -> Trigger | None:
        wish = (invoice.metadata_ or {}).get(SANDBOX_WISH, "paid")
        return _WISHES.get(wish)


_WISHES: Mapping[str, Trigger] = MappingProxyType(
    {
        "paid": "paid",
        "failed": "payment_failed",
        "uncollectible": "payment_uncollectible",
        "action_required": "action_required",
    }
)


class CustomInvoicing:
    """A system of one's own, which reads invoices and calls back. It is waited for where a hook says so."""

    def upsert_draft(self, session: Session, invoice: Invoice, *, now: datetime) -> None:  # noqa: ARG002
        _forget(invoice, DRAFT_SYNCED)

    def finalize(self, session: Session, invoice: Invoice, *, now: datetime) -> None:  # noqa: ARG002
        _forget(invoice, FINALIZED)

    def delete(self, session: Session, invoice: Invoice, *, now: datetime) -> None:
        pass

    def confirmed(self, invoice: Invoice) -> bool:
        match invoice.status:
            case "draft.syncing":
                return not invoice.app.draft_sync_hook or DRAFT_SYNCED in invoice.external_ids
            case "issuing.syncing":
                return not invoice.app.issuing_sync_hook or FINALIZED in invoice.external_ids
        return True

    def collect_payment(
        self,
        session: Session,
        invoice: Invoice,
        *,
        now: datetime,
    ) -> Trigger | None:
        """Told by the callback alone."""


def _forget(invoice: Invoice, confirmation: str) -> None:
    """It was confirmed for what the invoice was before."""
    invoice.external_ids = {k: v for k, v in invoice.external_ids.items() if k != confirmation}


_PROVIDERS: Mapping[str, Provider] = MappingProxyType(
    {"sandbox": Sandbox(), "custom_invoicing": CustomInvoicing()}
)


def provider_of(invoice: Invoice) -> Provider:
    return _PROVIDERS[invoice.app.type]


def facts_of(invoice: Invoice, now: datetime) -> Facts:
    """What holds the invoice back, its app included."""
    return invoice.facts(now, synced=provider_of(invoice).confirmed(invoice))
