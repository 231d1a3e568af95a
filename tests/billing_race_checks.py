"""What must hold of the books, asked of the tables themselves: the auditor has no part in it.

Once every contract has ended and all is billed, the lines of each charge come to what one invoice over the
whole would have said, by the slow rater and by the sum of the events in SQL.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from billing.contracts.customer import get_customer
from billing.contracts.pending import pending_lines_of
from billing.contracts.subscriptions import subscriptions_of
from billing.rating.billable import Billable
from billing.rating.pricing import Usage
from billing.rating.timeline import charges
from catalog.price import FlatPrice
from tests import reference_rating
from tests.billing_race import World

__all__ = ["inconsistencies", "wrong_sums"]

_NEVER = {
    "a line of a charge is there twice": """
        SELECT identity, sequence FROM invoice_lines GROUP BY identity, sequence HAVING count(*) > 1""",
    "the lines of a charge are not numbered from 0 on": """
        SELECT identity FROM invoice_lines GROUP BY identity
        HAVING min(sequence) <> 0 OR max(sequence) <> count(*) - 1""",
    "two documents have one number": """
        SELECT number FROM invoices GROUP BY number HAVING count(*) > 1""",
    "the numbers of a sequence have a gap": """
        SELECT scope, last, count(number), max(number) FROM number_sequences LEFT JOIN (
            SELECT CASE WHEN number LIKE 'INV-%' THEN 'invoices' ELSE 'credit_notes' END AS scope,
                   CAST(substring(number FROM '[0-9]+$') AS bigint) AS number
            FROM invoices WHERE number NOT LIKE 'DRAFT-%') AS given USING (scope)
        GROUP BY scope, last HAVING count(number) <> last OR coalesce(max(number), 0) <> last""",
    "a customer has two contracts at one instant": """
        SELECT one.customer_id, one.id, other.id FROM subscriptions AS one JOIN subscriptions AS other
            ON one.customer_id = other.customer_id AND one.id < other.id
        WHERE tstzrange(one.active_from, one.active_to) && tstzrange(other.active_from, other.active_to)""",
    "a contract sells an item twice at one instant": """
        WITH sold AS (
            SELECT p.subscription_id, i.* FROM subscription_items AS i
            JOIN subscription_phases AS p ON p.id = i.phase_id)
        SELECT one.subscription_id, one.key, one.active_from, other.active_from
        FROM sold AS one JOIN sold AS other
            ON one.subscription_id = other.subscription_id AND one.key = other.key AND one.id < other.id
        WHERE tstzrange(one.active_from, one.active_to) && tstzrange(other.active_from, other.active_to)""",
    "an item ends before it begins": """
        SELECT id FROM subscription_items WHERE active_to < active_from""",
    "a contract ends before it begins": """
        SELECT id FROM subscriptions WHERE active_to < active_from""",
    "more was paid than asked for": """
        SELECT i.number FROM invoices AS i JOIN payments AS p ON p.invoice_id = i.id
        GROUP BY i.id HAVING sum(p.amount) > i.charges + i.amount - i.discounts + i.taxes_exclusive""",
    "more was given back of a line than it billed": """
        SELECT l.id, l.identity FROM invoice_lines AS l JOIN invoice_lines AS c ON c.credited_line_id = l.id
        JOIN invoices AS n ON n.id = c.invoice_id
        WHERE n.voided_at IS NULL AND n.deleted_at IS NULL
        GROUP BY l.id HAVING sum(c.discounts - c.charges - c.amount) > l.charges + l.amount - l.discounts""",
    "an issued document was deleted": """
        SELECT number FROM invoices WHERE deleted_at IS NOT NULL AND issued_at IS NOT NULL""",
    "an invoice is not the sum of its lines": """
        SELECT i.number FROM invoices AS i LEFT JOIN invoice_lines AS l ON l.invoice_id = i.id
        GROUP BY i.id HAVING (i.amount, i.charges, i.discounts)
            <> (coalesce(sum(l.amount), 0), coalesce(sum(l.charges), 0), coalesce(sum(l.discounts), 0))""",
    "somebody could not be billed": """
        SELECT customer_id, reason FROM billing_run_failures""",
    "deadlocks": """
        SELECT deadlocks FROM pg_stat_database WHERE datname = current_database() AND deadlocks > 0""",
}


def inconsistencies(session: Session) -> list[str]:
    """Each question has no answer when all is well."""
    return [
        f"{what}: {tuple(row)}"
        for what, query in _NEVER.items()
        for row in session.execute(text(f"{query} LIMIT 5"))
    ]


def wrong_sums(session: Session, world: World) -> Iterator[str]:
    """What was not billed as one invoice over the whole would have said; all contracts have ended."""
    for customer in world.customers:
        owed, billed = _owed(session, customer), _billed(session, customer)
        for identity in sorted({*owed, *billed}):
            if owed[identity] != billed[identity]:
                lines = session.execute(text(_LINES), {"identity": identity})
                told = "; ".join(" ".join(map(str, line)) for line in lines)
                yield f"{identity}: owed {owed[identity]}, billed {billed[identity]}: {told}"
        if customer in world.calm:
            whole, asked = sum(owed.values(), Decimal(0)), _asked(session, customer)
            if whole != asked:
                yield f"the customer {customer} owes {whole}, and was asked for {asked} in all"


def _owed(session: Session, customer_id: str) -> Mapping[str, Decimal]:
    subjects = get_customer(session, customer_id).usage_subjects
    found = defaultdict[str, Decimal](Decimal)
    for one in subscriptions_of(session, [customer_id]):
        assert one.active_to is not None
        for charge in charges(one.contract, until=one.active_to):
            billable = Billable.of(charge)
            found[billable.identity] = _price(session, billable, subjects)
    for line in pending_lines_of(session, [customer_id]):
        found[line.billable.identity] = _price(session, line.billable, subjects)
    return found


def _price(session: Session, one: Billable, subjects: tuple[str, ...]) -> Decimal:
    flat = isinstance(one.price, FlatPrice)
    quantity = Decimal(0) if flat else _used(session, subjects, one.service.start, one.service.end)
    parts = reference_rating.owed(one.terms, Usage(quantity=quantity), last=True)
    total = sum((cost - off for cost, off in parts.values()), Fraction(0))
    return Decimal(total.numerator) / Decimal(total.denominator)


_USED = """
    SELECT coalesce(sum(CAST(data ->> 'tokens' AS numeric)), 0) FROM events AS e
    WHERE subject = ANY(:subjects) AND time >= :start AND time < :end AND type = 'llm' AND NOT EXISTS (
        SELECT FROM voided_events AS v WHERE v.key = e.key AND v.restored_at IS NULL)"""


def _used(session: Session, subjects: tuple[str, ...], start: datetime, end: datetime) -> Decimal:
    named: dict[str, Any] = {"subjects": list(subjects), "start": start, "end": end}
    return Decimal(session.execute(text(_USED), named).scalar_one())


_BILLED = """
    SELECT l.identity, sum(l.amount + l.charges - l.discounts) FROM invoice_lines AS l
    JOIN invoices AS i ON i.id = l.invoice_id
    WHERE i.customer_id = :customer AND l.released_at IS NULL AND l.credited_line_id IS NULL
    GROUP BY l.identity"""


def _billed(session: Session, customer_id: str) -> Mapping[str, Decimal]:
    """What was given up counts as billed."""
    rows = session.execute(text(_BILLED), {"customer": customer_id})
    return defaultdict(Decimal, {str(identity): Decimal(total) for identity, total in rows})


_LINES = """
    SELECT l.sequence, i.status, l.usage ->> 'quantity', l.amount + l.charges - l.discounts, l.period_start,
           l.period_end, l.last, l.share, l.released_at, i.quantity_snapshotted_at, i.created_at
    FROM invoice_lines AS l JOIN invoices AS i ON i.id = l.invoice_id
    WHERE l.identity = :identity ORDER BY l.sequence"""

_ASKED = """
    SELECT coalesce(sum(amount + charges - discounts), 0) FROM invoices
    WHERE customer_id = :customer AND deleted_at IS NULL AND voided_at IS NULL"""


def _asked(session: Session, customer_id: str) -> Decimal:
    return Decimal(session.execute(text(_ASKED), {"customer": customer_id}).scalar_one())
