"""The auditor: reads everything that was billed and says what can't be right. It mends nothing.

What SQL can say is said for all rows at once. What only the contract, the price or the meters know is asked
a portion at a time, so that memory stays flat. `audit_after_run` makes the checks that concern a few invoices
alone; the billing run makes them before it commits, so that what they find is never issued.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Literal, Protocol, TypeVar

from sqlalchemy import ColumnElement, Row, Select, exists, func, select, text, true
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import InstrumentedAttribute, Session, selectinload

from billing.contracts.customer import Customer, customers_by_id
from billing.contracts.pending import PendingLine
from billing.contracts.subscriptions import Subscription, subscriptions_of
from billing.invoices.due import LATE, billable_of, collected_at
from billing.invoices.invoice import Invoice, InvoiceLine, lines_by_identity
from billing.profiles.profile import BillingProfile, profiles_of
from billing.proof.disposition import Reason
from billing.proof.replay import replay
from billing.proof.unbilled import UnbilledQuery, WindowTooLongError, count_unbilled
from billing.proof.unfinished import Unfinished, not_said
from billing.rating.billable import Billable, usage_from
from billing.rating.metered import Demand, usage_of
from billing.rating.timeline import Charge, charges
from catalog.features import Feature, features_by_id
from metering.errors import ConflictError, Issue, TollgateError
from metering.exact import plain
from metering.period import Period

__all__ = [
    "Finding",
    "Severity",
    "Telling",
    "UnsoundError",
    "audit",
    "audit_after_run",
    "in_halves",
    "require_sound",
]

T = TypeVar("T")
Severity = Literal["error", "info"]
"""error: an amount, a number or a period is wrong. info: nothing is wrong, but somebody may want to know."""

MOST = 1000
"""Findings of one kind that are told."""
PORTION = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`ids` name what it is about: invoice, line, identity, subscription, customer."""

    code: str
    message: str
    ids: Mapping[str, str] = field(default_factory=dict)
    severity: Severity = "error"


class Telling(Protocol):
    """Hears how far a step is."""

    def __call__(self, step: str, done: int, total: int) -> None: ...


class UnsoundError(ConflictError):
    """What was about to be issued contradicts itself."""


def _untold(step: str, done: int, total: int) -> None:
    pass


def audit(
    session: Session, *, now: datetime, since: datetime | None = None, tell: Telling = _untold
) -> list[Finding]:
    """Everything that is wrong, at most MOST of a kind; read it in one snapshot.

    `since` leaves out the usage of service periods that ended before, and the events before it; these take
    longest. Nothing else is left out.
    """
    session.execute(text("SET LOCAL statement_timeout = 0"))
    found = _by_sql(session, _CHECKS, None, tell, now)
    for step, check in _STEPS.items():
        found += islice(check(session, _Scope(now=now, since=since, tell=tell, step=step)), MOST)
    return found


def audit_after_run(session: Session, invoice_ids: Collection[str]) -> list[Finding]:
    """What contradicts itself in these invoices and in the other lines of what they bill."""
    return _by_sql(session, _OF_INVOICES, list(invoice_ids)) if invoice_ids else []


def require_sound(session: Session, invoice_ids: Collection[str]) -> None:
    """Raises UnsoundError, so that a run leaves out the customer whose invoice it is and says why."""
    session.flush()
    if found := audit_after_run(session, invoice_ids):
        issues = [Issue(code=finding.code, message=finding.message) for finding in found]
        raise UnsoundError(f"the auditor refuses to issue: {found[0].message}", *issues)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scope:
    now: datetime
    since: datetime | None
    tell: Telling
    step: str


# -- What SQL can say ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Check:
    """`sql` selects the ids that the sentence names, what else it says, and perhaps a severity.

    `{some}` narrows it.
    """

    code: str
    sentence: str
    sql: str


_SUMS = ("amount", "charges", "discounts", "credits", "taxes_inclusive", "taxes_exclusive")

_INVOICE_SUM = _Check(
    "invoice_total_mismatch",
    "invoice {number} says {stored}, its lines add up to {summed}",
    f"""
    SELECT i.id AS invoice, i.number, concat_ws(' ', {", ".join(f"i.{name}" for name in _SUMS)}) AS stored,
           concat_ws(' ', {", ".join(f"s.{name}" for name in _SUMS)}) AS summed
    FROM invoices AS i CROSS JOIN LATERAL (
        SELECT {", ".join(f"coalesce(sum({name}), 0) AS {name}" for name in _SUMS)}
        FROM invoice_lines AS l WHERE l.invoice_id = i.id
    ) AS s
    WHERE ({", ".join(f"i.{name}" for name in _SUMS)}) <> ({", ".join(f"s.{name}" for name in _SUMS)})
      AND {{some}}
    ORDER BY i.id""",
)

_PARTS = ("amount", "charges", "discounts", "taxes_inclusive", "taxes_exclusive")

_LINE_SUM = _Check(
    "line_total_mismatch",
    "line {name!r} of invoice {number} says {stored}, its detailed lines and taxes add up to {summed}",
    f"""
    SELECT i.id AS invoice, i.number, l.id AS line, l.name,
           concat_ws(' ', {", ".join(f"l.{name}" for name in _PARTS)}) AS stored,
           concat_ws(' ', {", ".join(f"s.{name}" for name in _PARTS)}) AS summed
    FROM invoices AS i JOIN invoice_lines AS l ON l.invoice_id = i.id CROSS JOIN LATERAL (
        SELECT coalesce(sum(d.amount) FILTER (WHERE d.category = 'regular'), 0) AS amount,
               coalesce(sum(d.amount) FILTER (WHERE d.category = 'commitment'), 0) AS charges,
               coalesce(sum(d.discounts), 0) AS discounts,
               coalesce(sum(d.amount) FILTER (WHERE d.category = 'inclusive'), 0) AS taxes_inclusive,
               coalesce(sum(d.amount) FILTER (WHERE d.category = 'exclusive'), 0) AS taxes_exclusive
        FROM (SELECT one ->> 'category' AS category, CAST(one ->> 'amount' AS numeric) AS amount,
                     (SELECT sum(CAST(off ->> 'amount' AS numeric))
                      FROM jsonb_array_elements(one -> 'discounts') AS off) AS discounts
              FROM jsonb_array_elements(l.details) AS one
              UNION ALL
              SELECT tax ->> 'behavior', CAST(tax ->> 'amount' AS numeric), 0
              FROM jsonb_array_elements(l.taxes) AS tax) AS d
    ) AS s
    WHERE ({", ".join(f"l.{name}" for name in _PARTS)}) <> ({", ".join(f"s.{name}" for name in _PARTS)})
      AND {{some}}
    ORDER BY i.id, l.position""",
)

_SEQUENCE = _Check(
    "line_missing",
    "the lines of {identity} are not numbered 0 to {last}: there are {lines}",
    """
    SELECT identity, max(sequence) AS last, count(*) AS lines FROM invoice_lines AS l
    WHERE identity IN (SELECT x.identity FROM invoice_lines AS x JOIN invoices AS i ON i.id = x.invoice_id
                       WHERE {some})
    GROUP BY identity HAVING min(sequence) <> 0 OR max(sequence) <> count(*) - 1
    ORDER BY identity""",
)

_PERIODS = """
    SELECT i.id AS invoice, i.number, l.id AS line, l.name, l.identity,
           l.period_start AS start, expected.start AS expected
    FROM invoices AS i JOIN invoice_lines AS l ON l.invoice_id = i.id
    LEFT JOIN LATERAL (
        SELECT (array_agg(e.period_end ORDER BY e.sequence DESC))[1] AS until, bool_or(e.last) AS settled
        FROM invoice_lines AS e
        WHERE e.identity = l.identity AND e.sequence < l.sequence
          AND (e.released_at IS NULL OR e.released_at > l.rated_at)
    ) AS before ON true
    CROSS JOIN LATERAL (
        SELECT CASE WHEN before.until IS NULL OR before.settled OR before.until > l.period_end
                      OR l.share = '0' THEN l.service_start ELSE before.until END AS start
    ) AS expected
    WHERE i.quantity_snapshotted_at IS NOT NULL AND l.period_start {wrong} expected.start AND {some}
    ORDER BY l.identity, l.sequence"""
"""A line begins where the one before it ended. What changes a settled charge covers all of it again, and so
does one whose contract was cut to before what was billed."""

_GAP = _Check(
    "billed_period_gap",
    "line {name!r} of invoice {number} begins at {start:%Y-%m-%d %H:%M:%S}, what was billed before it ends at"
    " {expected:%Y-%m-%d %H:%M:%S}: between them is a gap",
    _PERIODS.replace("{wrong}", ">"),
)
_OVERLAP = _Check(
    "billed_period_overlap",
    "line {name!r} of invoice {number} begins at {start:%Y-%m-%d %H:%M:%S}, what was billed before it ends at"
    " {expected:%Y-%m-%d %H:%M:%S}: both cover the same time",
    _PERIODS.replace("{wrong}", "<"),
)

_UNCOVERED = _Check(
    "billed_period_end",
    "line {name!r} of invoice {number} is the last of its charge and ends at {ends:%Y-%m-%d %H:%M:%S},"
    " the service at {service_end:%Y-%m-%d %H:%M:%S}",
    """
    SELECT i.id AS invoice, i.number, l.id AS line, l.name, l.period_end AS ends, l.service_end
    FROM invoices AS i JOIN invoice_lines AS l ON l.invoice_id = i.id
    WHERE (CASE WHEN l.last THEN l.period_end <> l.service_end
                ELSE l.period_end NOT BETWEEN l.service_start AND l.service_end END) AND {some}
    ORDER BY l.identity, l.sequence""",
)

_IDENTITY = _Check(
    "line_of_other_period",
    "line {name!r} of invoice {number} is for a service from {service_start:%Y-%m-%d %H:%M:%S},"
    " and bills {identity}",
    """
    SELECT i.id AS invoice, i.number, l.id AS line, l.name, l.identity, l.service_start
    FROM invoices AS i JOIN invoice_lines AS l ON l.invoice_id = i.id
    WHERE l.subscription_id IS NOT NULL AND {some}
      AND (split_part(l.identity, '/', 1) <> l.subscription_id
           OR CAST(split_part(l.identity, '/', 5) AS timestamptz) <> l.service_start)
    ORDER BY l.identity, l.sequence""",
)

_SERVICES = _Check(
    "service_periods_overlap",
    "{identity} is billed to {service_end:%Y-%m-%d %H:%M:%S}, the item's next period begins at"
    " {following:%Y-%m-%d %H:%M:%S}",
    """
    SELECT identity, subscription_id AS subscription, service_end, following FROM (
        SELECT identity, subscription_id, service_end, lead(service_start) OVER (
                   PARTITION BY subscription_id, regexp_replace(identity, '/[^/]*$', '')
                   ORDER BY service_start
               ) AS following
        FROM (SELECT DISTINCT ON (l.identity) l.* FROM invoice_lines AS l
              WHERE l.subscription_id IN (
                  SELECT x.subscription_id FROM invoice_lines AS x JOIN invoices AS i ON i.id = x.invoice_id
                  WHERE {some})
              ORDER BY l.identity, l.sequence DESC) AS latest
        WHERE share <> '0'
    ) AS services
    WHERE service_end > following ORDER BY identity""",
)

_NET = "{0}.amount + {0}.charges - {0}.discounts"

_GIVEN_BACK = _Check(
    "more_given_back_than_billed",
    "of {identity} {billed} was billed in all, and {credited} was given back of that by hand",
    f"""
    SELECT touched.identity, sums.billed, notes.credited
    FROM (SELECT DISTINCT coalesce(c.identity, x.identity) AS identity
          FROM invoice_lines AS x JOIN invoices AS i ON i.id = x.invoice_id
          LEFT JOIN invoice_lines AS c ON c.id = x.credited_line_id
          WHERE {_NET.format("x")} < 0 AND {{some}}) AS touched
    CROSS JOIN LATERAL (
        SELECT coalesce(sum({_NET.format("l")}) FILTER (WHERE l.released_at IS NULL
                   AND o.deleted_at IS NULL AND o.voided_at IS NULL
                   AND (o.issued_at IS NOT NULL OR {_NET.format("l")} > 0)), 0) AS billed,
               bool_or(CAST(l.usage AS text) ~ '"-[0-9]'
                   OR CAST(l.rate_card -> 'price' AS text) ~ '"-[0-9]') AS below_zero,
               max(l.released_at) > max(l.rated_at) AS released
        FROM invoice_lines AS l JOIN invoices AS o ON o.id = l.invoice_id
        WHERE l.identity = touched.identity
    ) AS sums
    CROSS JOIN LATERAL (
        SELECT coalesce(-sum({_NET.format("n")}), 0) AS credited
        FROM invoice_lines AS l JOIN invoice_lines AS n ON n.credited_line_id = l.id
        JOIN invoices AS o ON o.id = n.invoice_id
        WHERE l.identity = touched.identity
          AND o.issued_at IS NOT NULL AND o.deleted_at IS NULL AND o.voided_at IS NULL
    ) AS notes
    WHERE sums.billed < notes.credited AND sums.below_zero IS NOT TRUE AND sums.released IS NOT TRUE
    ORDER BY touched.identity""",
)
"""What was issued counts, and of drafts what they charge: what they give back may be changed yet.

A charge that was voided and not looked at since is not judged, nor one with usage of less than nothing.
"""

_OTHER_CUSTOMER = _Check(
    "line_of_other_customer",
    "line {name!r} of invoice {number} bills what customer {owner} owes to customer {customer}",
    """
    SELECT i.id AS invoice, i.number, l.id AS line, l.name, i.customer_id AS customer,
           coalesce(s.customer_id, p.customer_id) AS owner
    FROM invoices AS i JOIN invoice_lines AS l ON l.invoice_id = i.id
    LEFT JOIN subscriptions AS s ON s.id = l.subscription_id
    LEFT JOIN pending_lines AS p ON l.subscription_id IS NULL AND p.id = split_part(l.identity, '/', 2)
    WHERE coalesce(s.customer_id, p.customer_id) <> i.customer_id AND {some}
    ORDER BY i.id, l.position""",
)

_NOT_ISSUED = _Check(
    "issued_incompletely",
    "invoice {number} is {status} and has {lacks}",
    """
    SELECT i.id AS invoice, i.number, i.status, CASE
        WHEN i.issued_at IS NULL THEN 'never been issued'
        WHEN i.number LIKE 'DRAFT-%' THEN 'the number of a draft' ELSE 'no lines' END AS lacks
    FROM invoices AS i
    WHERE split_part(i.status, '.', 1) = ANY(ARRAY['issued', 'payment_processing', 'overdue', 'paid',
                                                   'uncollectible', 'voided'])
      AND (i.issued_at IS NULL OR i.number LIKE 'DRAFT-%'
           OR NOT EXISTS (SELECT FROM invoice_lines AS l WHERE l.invoice_id = i.id))
      AND {some}
    ORDER BY i.id""",
)

_BY_HAND = _Check(
    "charge_not_billed",
    "what was added by hand as {line} was due on {due:%Y-%m-%d}, and no invoice has it",
    """
    SELECT p.id AS line, p.customer_id AS customer, p.invoice_at AS due,
           CASE WHEN c.deleted_at IS NULL THEN 'error' ELSE 'info' END AS severity
    FROM pending_lines AS p JOIN customers AS c ON c.id = p.customer_id CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE l.released_at IS NULL) AS counted, max(l.bill_again_at) AS again
        FROM invoice_lines AS l WHERE l.identity = 'manual/' || p.id
    ) AS billed
    WHERE p.next_billing_at IS NULL AND p.deleted_at IS NULL AND {some}
      AND billed.counted = 0 AND coalesce(billed.again <= :now, true)
    ORDER BY p.id""",
)

_NUMBERS = _Check(
    "number_gap",
    "{last} numbers of {scope} were given, {documents} documents have one, the highest is {highest}",
    """
    SELECT scope, coalesce(last, 0) AS last, coalesce(documents, 0) AS documents,
           coalesce(highest, 0) AS highest
    FROM number_sequences FULL JOIN (
        SELECT CASE i.type WHEN 'credit_note' THEN 'credit_notes' ELSE 'invoices' END AS scope,
               count(DISTINCT n.number) AS documents, max(n.number) AS highest
        FROM invoices AS i CROSS JOIN LATERAL (
            SELECT CAST(substring(coalesce(i.external_ids ->> 'own-number', i.number)
                                  FROM '^[A-Z]+-[A-Z0-9]+-([0-9]+)$') AS numeric) AS number
        ) AS n
        WHERE i.issued_at IS NOT NULL AND i.deleted_at IS NULL AND {some}
          AND (NOT i.external_ids ? 'number' OR i.external_ids ? 'own-number')
        GROUP BY 1
    ) AS given USING (scope)
    WHERE coalesce(documents, 0) <> coalesce(last, 0) OR coalesce(highest, 0) <> coalesce(last, 0)
    ORDER BY scope""",
)

_OF_INVOICES = (
    _INVOICE_SUM,
    _LINE_SUM,
    _SEQUENCE,
    _GAP,
    _OVERLAP,
    _UNCOVERED,
    _IDENTITY,
    _SERVICES,
    _GIVEN_BACK,
    _OTHER_CUSTOMER,
    _NOT_ISSUED,
)
_CHECKS = (*_OF_INVOICES, _BY_HAND, _NUMBERS)
_IDS = ("invoice", "line", "identity", "subscription", "customer")


def _by_sql(
    session: Session,
    checks: Sequence[_Check],
    invoice_ids: Sequence[str] | None,
    tell: Telling = _untold,
    now: datetime | None = None,
) -> list[Finding]:
    some = "true" if invoice_ids is None else "i.id = ANY(:ids)"
    named = {"ids": invoice_ids, "now": now}
    found: list[Finding] = []
    for done, check in enumerate(checks):
        tell("rows", done, len(checks))
        query = f"{check.sql.replace('{some}', some)} LIMIT {MOST}"
        found += [_finding(check, row) for row in session.execute(text(query), named)]
    tell("rows", len(checks), len(checks))
    return found


def _finding(check: _Check, row: Row[Any]) -> Finding:
    named = dict(row._mapping)  # noqa: SLF001  SQLAlchemy's public name for it
    ids = {name: str(named[name]) for name in _IDS if name in named}
    severity = named.get("severity", "error")
    return Finding(code=check.code, message=check.sentence.format(**named), ids=ids, severity=severity)


# -- What only the code can say ------------------------------------------------------------------------------


def _replays(session: Session, scope: _Scope) -> Iterator[Finding]:
    """Every issued invoice comes out of its stored facts again."""
    issued = Invoice.issued_at.is_not(None)
    total = session.scalar(select(func.count()).select_from(Invoice).where(issued)) or 0
    query = select(Invoice).options(selectinload(Invoice.lines)).where(issued)
    for portion in _portions(session, scope, query, Invoice.id, total):
        by_identity = lines_by_identity(session, {line.identity for one in portion for line in one.lines})
        for invoice in portion:
            for line in replay(invoice, by_identity).lines:
                for first in line.differences[:1]:
                    yield Finding(
                        code="line_not_reproducible",
                        message=f"line {line.name!r} of invoice {invoice.number}: {first.what} is"
                        f" {first.stored}, and {first.replayed} when it is computed again",
                        ids={"invoice": invoice.id, "line": line.line_id},
                    )


def _contracts(session: Session, scope: _Scope) -> Iterator[Finding]:
    """Every charge that has fallen due has a line, and every line that was not taken back has a charge.

    Who is due to be billed now is passed over: the run will see to it. What a customer owed who was deleted
    was given up, and is told.
    """
    whose = select(Subscription.customer_id).distinct()
    total = session.scalar(select(func.count()).select_from(whose.subquery())) or 0
    for customer_ids in _portions(session, scope, whose, Subscription.customer_id, total):
        portion = subscriptions_of(session, customer_ids)
        customers, profiles = customers_by_id(session, customer_ids), profiles_of(session, customer_ids)
        billed = _billed(session, [one.id for one in portion])
        unfinished: list[Unfinished] = []
        for one in portion:
            if one.next_billing_at is None or one.next_billing_at > scope.now:
                try:
                    there = _charges(one, billed[one.id], scope.now)
                except TollgateError as error:
                    ids = {"subscription": one.id, "customer": one.customer_id}
                    yield Finding(code="contract_unreadable", message=error.detail, ids=ids)
                    continue
                customer, profile = customers[one.customer_id], profiles[one.customer_id]
                seen = _Seen(one, customer, profile, there, billed[one.id], scope.now)
                yield from _of_contract(seen)
                unfinished += seen.unfinished
        yield from _omitted(session, unfinished, customers)


_Billed = Mapping[str, "_Sum"]
"""What was billed of each charge, by its identity."""


@dataclass(frozen=True, slots=True)
class _Sum:
    """`counted`: it has lines that were not released; `last`: one of them is its last. `again`: from when on
    what was released is billed again."""

    begins: datetime
    counted: bool
    last: bool
    again: datetime | None
    nothing: bool

    def is_released(self, now: datetime) -> bool:
        """Whether it is rightly not billed: it was voided, to be billed again later."""
        return self.again is not None and self.again > now


def _billed(session: Session, subscription_ids: Sequence[str]) -> dict[str, dict[str, _Sum]]:
    counts = InvoiceLine.released_at.is_(None)
    of = (InvoiceLine.subscription_id, InvoiceLine.identity)
    query = select(
        *of,
        func.min(InvoiceLine.service_start),
        func.bool_or(counts),
        func.bool_or(counts & InvoiceLine.last),
        func.max(InvoiceLine.bill_again_at),
        *(func.sum(column).filter(counts) for column in _MONEY),
    ).group_by(*of)
    query = query.where(InvoiceLine.subscription_id.in_(subscription_ids))
    found: dict[str, dict[str, _Sum]] = {one: {} for one in subscription_ids}
    for subscription_id, identity, begins, counted, last, again, *amounts in session.execute(query):
        found[str(subscription_id)][identity] = _Sum(begins, counted, last, again, not any(amounts))
    return found


_MONEY = (InvoiceLine.amount, InvoiceLine.charges, InvoiceLine.discounts)


def _charges(one: Subscription, billed: _Billed, now: datetime) -> dict[str, Charge]:
    """All that begins before it is looked at again, or was billed; of one that is not, until its end."""
    until = one.next_billing_at or one.active_to or now
    latest = max([until, *(found.begins for found in billed.values())])
    return {charge.identity: charge for charge in charges(one.contract, until=latest)}


@dataclass(frozen=True, slots=True)
class _Seen:
    """A contract for which nothing is due now, what it charges, and what was billed of it."""

    contract: Subscription
    customer: Customer
    profile: BillingProfile
    charges: Mapping[str, Charge]
    billed: _Billed
    now: datetime

    def due(self, charge: Charge) -> datetime:
        return collected_at(charge.invoice_at, self.profile.workflow)

    def is_past(self, charge: Charge) -> bool:
        """Whether it should have been billed: it was due before anybody looks again."""
        next_look, due = self.contract.next_billing_at, self.due(charge)
        return due <= self.now if next_look is None else due < next_look

    @property
    def unbilled(self) -> list[Charge]:
        """Charges without a line that counts."""
        return [
            charge
            for identity, charge in self.charges.items()
            if (found := self.billed.get(identity)) is None
            or not (found.counted or found.is_released(self.now))
        ]

    @property
    def unfinished(self) -> list[Unfinished]:
        """Charges whose period is over, and whose last line is missing."""
        if self.customer.deleted_at is not None:
            return []
        return [
            Unfinished(
                customer_id=self.customer.id,
                billable=Billable.of(charge),
                due=max(self.due(charge), charge.period.end),
            )
            for identity, found in self.billed.items()
            if found.counted and not found.last and not found.is_released(self.now)
            if (charge := self.charges.get(identity)) is not None
            if charge.period.end <= self.now and self.is_past(charge)
        ]


def _of_contract(seen: _Seen) -> Iterator[Finding]:
    """By when it is due again, all that was due before has been billed."""
    one, deleted = seen.contract, seen.customer.deleted_at is not None
    ids = {"subscription": one.id, "customer": one.customer_id}
    unbilled = seen.unbilled
    if one.next_billing_at is None and not deleted and (one.active_to is None or unbilled):
        status = one.status(seen.now)
        message = (
            f"the subscription is {status} and not billed to its end, and no billing run looks at it again"
        )
        yield Finding(code="contract_forgotten", message=message, ids=ids)
    for charge in filter(seen.is_past, unbilled):
        message = f"{charge.identity} was due on {seen.due(charge):%Y-%m-%d}, and no invoice has it"
        yield Finding(
            code="charge_not_billed",
            message=message,
            ids=ids | {"identity": charge.identity},
            severity="info" if deleted else "error",
        )
    for identity, found in seen.billed.items():
        if identity not in seen.charges and not found.nothing:
            message = f"{identity} was billed, and the contract has no such charge"
            yield Finding(code="line_without_charge", message=message, ids=ids | {"identity": identity})


def _by_hand(session: Session, scope: _Scope) -> Iterator[Finding]:
    """What was added by hand, and was billed before its period was over, was billed to its end."""
    counted = exists().where(InvoiceLine.identity == "manual/" + PendingLine.id)
    counted = counted.where(InvoiceLine.released_at.is_(None))
    over = [
        PendingLine.next_billing_at.is_(None),
        PendingLine.deleted_at.is_(None),
        PendingLine.period_end <= scope.now,
        counted,
        ~counted.where(InvoiceLine.last),
    ]
    total = session.scalar(select(func.count()).select_from(PendingLine).where(*over)) or 0
    query = select(PendingLine).where(*over)
    for portion in _portions(session, scope, query, PendingLine.id, total):
        customers = customers_by_id(session, {line.customer_id for line in portion})
        unfinished = [
            Unfinished(
                customer_id=line.customer_id,
                billable=line.billable,
                due=max(line.invoice_at, line.period_end),
            )
            for line in portion
            if customers[line.customer_id].deleted_at is None
        ]
        yield from _omitted(session, unfinished, customers)


def _omitted(
    session: Session, unfinished: Sequence[Unfinished], customers: Mapping[str, Customer]
) -> Iterator[Finding]:
    for one in not_said(session, unfinished, customers):
        identity, end = one.billable.identity, one.billable.service.end
        message = f"{identity} was billed in part, and not to its end on {end:%Y-%m-%d}"
        ids = {"customer": one.customer_id, "identity": identity}
        ids |= {"subscription": one.billable.subscription_id} if one.billable.subscription_id else {}
        yield Finding(code="charge_not_billed", message=message, ids=ids)


def _late(session: Session, scope: _Scope) -> Iterator[Finding]:
    """Usage that was known too late to be billed: its period is not looked at any more."""
    where = [
        InvoiceLine.usage.is_not(None),
        InvoiceLine.released_at.is_(None),
        InvoiceLine.service_end <= scope.now - LATE,
        true() if scope.since is None else InvoiceLine.service_end > scope.since,
    ]
    counted = select(func.count(InvoiceLine.identity.distinct())).where(*where)
    query = select(InvoiceLine).ext(distinct_on(InvoiceLine.identity)).where(*where)
    total = session.scalar(counted) or 0
    for portion in _portions(session, scope, query, InvoiceLine.identity, total, InvoiceLine.sequence.desc()):
        yield from _differing_usage(session, portion)


def _differing_usage(session: Session, lines: Sequence[InvoiceLine]) -> Iterator[Finding]:
    invoices = session.scalars(select(Invoice).where(Invoice.id.in_({line.invoice_id for line in lines})))
    whose = {invoice.id: invoice for invoice in invoices}
    customers = customers_by_id(session, {invoice.customer_id for invoice in whose.values()})
    features = features_by_id(session, {line.feature_id for line in lines if line.feature_id})
    demands = [
        _demand(line, whose[line.invoice_id], customers, features.get(line.feature_id or ""))
        for line in lines
    ]
    for line, used in zip(lines, usage_of(session, demands), strict=True):
        pinned = usage_from(line.usage)
        if line.share != "0" and pinned.quantity != used.quantity:
            number = whose[line.invoice_id].number
            yield Finding(
                code="usage_too_late",
                message=f"line {line.name!r} of invoice {number} billed {plain(pinned.quantity)},"
                f" by now {plain(used.quantity)} are known of its period: too late to be billed",
                ids={"invoice": line.invoice_id, "line": line.id, "identity": line.identity},
                severity="info",
            )


def _demand(
    line: InvoiceLine, invoice: Invoice, customers: Mapping[str, Customer], feature: Feature | None
) -> Demand:
    return Demand(
        customer_id=invoice.customer_id,
        subjects=customers[invoice.customer_id].usage_subjects,
        feature=feature,
        price=billable_of(line, invoice.currency).price,
        period=Period(start=line.service_start, end=line.period_end),
    )


def _events(session: Session, scope: _Scope) -> Iterator[Finding]:
    """Every event is billed, free, or on no invoice for a reason that is told; since the first contract."""
    first = scope.since or session.scalar(select(func.min(Subscription.active_from)))
    if first is None or first >= scope.now:
        return

    def count(period: Period) -> dict[Reason, int]:
        with session.begin_nested():  # a statement that takes too long spoils it
            return count_unbilled(session, UnbilledQuery(period=period))

    counts: dict[Reason, int] = {}
    periods = list(_months(Period(start=first, end=scope.now)))
    for done, period in enumerate(periods):
        scope.tell(scope.step, done, len(periods))
        for reason, events in in_halves(count, period).items():
            counts[reason] = counts.get(reason, 0) + events
    scope.tell(scope.step, len(periods), len(periods))
    for reason, events in counts.items():
        if events:
            message = f"{events} events since {first:%Y-%m-%d} are on no invoice: {reason}"
            yield Finding(code="events_unbilled", message=message, severity="info")


def _months(period: Period) -> Iterator[Period]:
    start = period.start
    while start < period.end:
        end = min(start + MONTH, period.end)
        yield Period(start=start, end=end)
        start = end


MONTH = timedelta(days=30)


def in_halves(count: Callable[[Period], dict[Reason, int]], period: Period) -> dict[Reason, int]:
    """What `count` says of the period; of its halves, where it holds too many events to judge at once."""
    try:
        return count(period)
    except WindowTooLongError:
        if period.length <= SHORTEST:
            raise
    middle = period.start + period.length / 2
    before = in_halves(count, Period(start=period.start, end=middle))
    after = in_halves(count, Period(start=middle, end=period.end))
    return {reason: events + after[reason] for reason, events in before.items()}


SHORTEST = timedelta(minutes=10)


def _portions(
    session: Session,
    scope: _Scope,
    query: Select[T],
    key: InstrumentedAttribute[str],
    total: int,
    *then: ColumnElement[Any],
) -> Iterator[Sequence[T]]:
    """All rows in the order of `key`, a portion at a time; nothing of the last one is kept."""
    done, after = 0, ""
    while True:
        scope.tell(scope.step, done, total)
        portion = session.scalars(query.where(key > after).order_by(key, *then).limit(PORTION)).all()
        if not portion:
            return
        yield portion
        done += len(portion)
        after = portion[-1] if isinstance(portion[-1], str) else getattr(portion[-1], key.key)


_STEPS: Mapping[str, Callable[[Session, _Scope], Iterator[Finding]]] = {
    "invoices": _replays,
    "contracts": _contracts,
    "by hand": _by_hand,
    "usage": _late,
    "events": _events,
}
