"""Lines added by hand: facts that wait for the next invoice, billed like any charge of a contract."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction

from sqlalchemy import ForeignKey, Index, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from billing.contracts.customer import Customer
from billing.contracts.subscriptions import LONGEST_AGO
from billing.rating.billable import Billable
from catalog.discount_rules import check_discounts, check_unit_config
from catalog.features import Feature, features_by_id, latest_features
from catalog.money import is_currency
from catalog.price import FlatPrice
from catalog.price_rules import check_price
from catalog.rate_card import RateCard, UsageBasedRateCard
from catalog.rate_card_rules import check_tax
from metering.database import Base, Id, Instant, ValueType, among
from metering.errors import InvalidError, Issue
from metering.ids import new_id
from metering.period import Period

__all__ = [
    "PendingLine",
    "WantedLine",
    "add_pending_lines",
    "line_issues",
    "metered_features",
    "pending_lines_of",
]


class PendingLine(Base):
    """`next_billing_at` is when it is due; None once it was billed."""

    __tablename__ = "pending_lines"
    __table_args__ = (Index(None, "next_billing_at", postgresql_where="next_billing_at IS NOT NULL"),)

    id: Mapped[Id] = mapped_column(primary_key=True)
    customer_id: Mapped[Id] = mapped_column(ForeignKey("customers.id"), index=True)
    currency: Mapped[str]
    rate_card: Mapped[RateCard] = mapped_column(ValueType(RateCard))
    feature_id: Mapped[Id | None]
    period_start: Mapped[Instant]
    period_end: Mapped[Instant]
    invoice_at: Mapped[Instant]
    next_billing_at: Mapped[Instant | None]
    created_at: Mapped[Instant]
    deleted_at: Mapped[Instant | None]

    @property
    def billable(self) -> Billable:
        period = Period(start=self.period_start, end=self.period_end)
        return Billable(
            identity=f"manual/{self.id}",
            currency=self.currency,
            rate_card=self.rate_card,
            feature_id=self.feature_id,
            service=period,
            billing=period,
            invoice_at=self.invoice_at,
            share=Fraction(1),
            managed_by="manual",
        )

    def delete(self, now: datetime) -> None:
        """It is billed no more."""
        self.deleted_at, self.next_billing_at = now, None


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedLine:
    """What somebody adds: a rate card without cadence, over a period, due at an instant."""

    rate_card: UsageBasedRateCard
    period: Period
    invoice_at: datetime


def add_pending_lines(
    session: Session, customer: Customer, *, currency: str, lines: Sequence[WantedLine], now: datetime
) -> list[PendingLine]:
    """All or none; the customer must have been loaded with a lock."""
    customer.require_living()
    if not is_currency(currency):
        message, hint = f"{currency!r} is no currency", "Such as USD."
        raise InvalidError(
            message, Issue(code="currency_invalid", message=message, field="$.currency", hint=hint)
        )
    if customer.currency not in (None, currency):
        message = f"the customer pays in {customer.currency}, not in {currency}"
        raise InvalidError(
            message, Issue(code="invoice_line_currency_mismatch", message=message, field="$.currency")
        )
    keys = {line.rate_card.feature_key for line in lines if line.rate_card.feature_key}
    found = latest_features(session, keys, lock=True)
    metered = _metered(session, found)
    issues = [issue for i, line in enumerate(lines) for issue in _issues(line, f"$.lines[{i}]", metered, now)]
    if issues:
        raise InvalidError(issues[0].message, *issues)
    customer.currency = currency
    added = [
        PendingLine(
            id=new_id(now),
            customer_id=customer.id,
            currency=currency,
            rate_card=line.rate_card,
            feature_id=found[line.rate_card.feature_key].id if line.rate_card.feature_key else None,
            period_start=line.period.start.replace(microsecond=0),
            period_end=line.period.end.replace(microsecond=0),
            invoice_at=line.invoice_at,
            next_billing_at=line.invoice_at,
            created_at=now,
        )
        for line in lines
    ]
    session.add_all(added)
    session.flush()
    return added


def metered_features(session: Session, keys: Iterable[str]) -> set[str]:
    """Those of the keys whose feature has a meter."""
    return _metered(session, latest_features(session, set(keys)))


def _metered(session: Session, found: Mapping[str, Feature]) -> set[str]:
    features = features_by_id(session, {feature.id for feature in found.values()})
    return {key for key, feature in found.items() if features[feature.id].meter_id is not None}


def _issues(line: WantedLine, path: str, metered: set[str], now: datetime) -> Iterable[Issue]:
    yield from line_issues(line, path, metered, now)
    if line.rate_card.tax_config is not None:
        yield from check_tax(line.rate_card.tax_config, f"{path}.rateCard.taxConfig")


def line_issues(line: WantedLine, path: str, metered: set[str], now: datetime) -> Iterable[Issue]:
    price, feature_key = line.rate_card.price, line.rate_card.feature_key
    if price is None:
        message = "a line needs a price"
        yield Issue(code="field_required", message=message, field=f"{path}.rateCard.price", hint="Add one.")
        return
    yield from check_price(price, f"{path}.rateCard.price")
    if line.rate_card.discounts is not None:
        yield from check_discounts(line.rate_card.discounts, price, f"{path}.rateCard.discounts")
    if line.rate_card.unit_config is not None:
        yield from check_unit_config(line.rate_card.unit_config, price, f"{path}.rateCard.unitConfig")
    yield from _due_issues(line, path, now)
    if isinstance(price, FlatPrice):
        return
    if feature_key not in metered:
        message = "a price on usage needs a feature that is metered"
        where = f"{path}.rateCard.featureKey"
        yield Issue(code="invoice_line_feature_has_no_meters", message=message, field=where, hint="Name one.")
    if line.period.start.replace(microsecond=0) >= line.period.end.replace(microsecond=0):
        message = "the period of metered usage is empty"
        hint = "Let it end a second after it begins, or later."
        yield Issue(
            code="invoice_create_ubp_line_period_is_empty", message=message, field=f"{path}.period", hint=hint
        )


def _due_issues(line: WantedLine, path: str, now: datetime) -> Iterable[Issue]:
    """Nothing is due before its period begins, nor usage before it is over: who comes last is billed, too."""
    where = f"{path}.invoiceAt"
    if line.invoice_at < now - LONGEST_AGO:
        message = f"a line can be due at most {LONGEST_AGO.days // 365} years ago"
        yield Issue(code="too_long_ago", message=message, field=where, hint="Let it be due now.")
        return
    fixed = isinstance(line.rate_card.price, FlatPrice)
    earliest = (line.period.start if fixed else line.period.end).replace(microsecond=0)
    if line.invoice_at < earliest:
        message = (
            f"{'a line' if fixed else 'usage'} can't be due before its period {'begins' if fixed else 'ends'}"
        )
        hint = f"Let it be due on {earliest:%Y-%m-%dT%H:%M:%SZ} or later"
        hint += "." if fixed else "; billed progressively, what was used so far is invoiced before."
        yield Issue(code="invoice_at_too_early", message=message, field=where, hint=hint)


def pending_lines_of(session: Session, customer_ids: Iterable[str]) -> Sequence[PendingLine]:
    return session.scalars(_OF_CUSTOMERS, {"ids": list(customer_ids)}).all()


_OF_CUSTOMERS = (
    select(PendingLine)
    .where(among(PendingLine.customer_id, "ids"), PendingLine.deleted_at.is_(None))
    .order_by(PendingLine.id)
)
