"""Tax rates: how many percent on what, where, from when until when. An invoice keeps those it was taxed by.

For one code in one place no two rates hold at once: who changes rates waits for whoever else does.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from sqlalchemy import ColumnElement, exists, func, or_, select, text
from sqlalchemy.orm import Mapped, Session, mapped_column

from billing.contracts.customer import COUNTRY
from metering.database import Base, Id, Instant, among
from metering.errors import ConflictError, InvalidError, Issue, NotFoundError
from metering.ids import new_id
from metering.wire import is_wire_number

__all__ = [
    "TaxRate",
    "TaxRateDetails",
    "TaxRateNotFoundError",
    "TaxRateOverlapError",
    "any_tax_rate",
    "create_tax_rate",
    "delete_tax_rate",
    "get_tax_rate",
    "list_tax_rates",
    "rates_in",
    "update_tax_rate",
]

MOST = Decimal(1000)


class TaxRate(Base):
    """Without `code` for whatever has no rate of its own; without `state` for the whole country."""

    __tablename__ = "tax_rates"

    id: Mapped[Id] = mapped_column(primary_key=True)
    name: Mapped[str]
    code: Mapped[str | None]
    country: Mapped[str] = mapped_column(index=True)
    state: Mapped[str | None]
    percent: Mapped[Decimal]
    valid_from: Mapped[Instant]
    valid_to: Mapped[Instant | None]
    metadata_: Mapped[dict[str, str] | None] = mapped_column("metadata")
    created_at: Mapped[Instant]
    updated_at: Mapped[Instant]
    deleted_at: Mapped[Instant | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaxRateDetails:
    """What a client may say about a rate; an update replaces all of it. Valid in [valid_from, valid_to)."""

    name: str
    country: str
    percent: Decimal
    valid_from: datetime
    valid_to: datetime | None = None
    code: str | None = None
    state: str | None = None
    metadata: Mapping[str, str] | None = None


class TaxRateNotFoundError(NotFoundError):
    pass


class TaxRateOverlapError(ConflictError):
    pass


def create_tax_rate(session: Session, details: TaxRateDetails, *, now: datetime) -> TaxRate:
    rate = TaxRate(id=new_id(now), created_at=now)
    return _write(session, rate, details, now)


def update_tax_rate(session: Session, rate_id: str, details: TaxRateDetails, *, now: datetime) -> TaxRate:
    """Invoices that were issued stay as they are."""
    _lock(session)
    return _write(session, _living(session, rate_id), details, now)


def delete_tax_rate(session: Session, rate_id: str, *, now: datetime) -> None:
    _lock(session)
    rate = _living(session, rate_id)
    rate.deleted_at = rate.updated_at = now
    session.flush()


def _write(session: Session, rate: TaxRate, details: TaxRateDetails, now: datetime) -> TaxRate:
    if issues := list(_issues(details)):
        raise InvalidError(issues[0].message, *issues)
    _lock(session)
    _require_alone(session, rate.id, details)
    rate.name, rate.percent, rate.updated_at = details.name, details.percent, now
    rate.code, rate.country, rate.state = details.code, details.country, details.state
    rate.valid_from, rate.valid_to = details.valid_from, details.valid_to
    rate.metadata_ = None if details.metadata is None else dict(details.metadata)
    session.add(rate)
    session.flush()
    return rate


def _lock(session: Session) -> None:
    """Others may read meanwhile."""
    session.execute(text("LOCK TABLE tax_rates IN SHARE ROW EXCLUSIVE MODE"))


def _living(session: Session, rate_id: str) -> TaxRate:
    rate = get_tax_rate(session, rate_id)
    if rate.deleted_at is not None:
        raise TaxRateNotFoundError(f"the tax rate {rate_id!r} was deleted")
    return rate


def _issues(details: TaxRateDetails) -> Iterable[Issue]:
    if not COUNTRY.fullmatch(details.country):
        message, hint = f"{details.country!r} is no country", "Write DE, US or the like: ISO 3166."
        yield Issue(code="invalid_country", message=message, field="$.country", hint=hint)
    if not (is_wire_number(details.percent) and 0 <= details.percent <= MOST):
        message = f"a rate is from 0 to {MOST} percent, of at most 15 digits"
        yield Issue(code="invalid_tax_percent", message=message, field="$.percent")
    if details.valid_to is not None and details.valid_to <= details.valid_from:
        message = "the rate would end before it begins"
        yield Issue(code="invalid_period", message=message, field="$.validTo", hint="End it later.")


def _require_alone(session: Session, rate_id: str, details: TaxRateDetails) -> None:
    state = None if details.state is None else details.state.casefold()
    query = select(TaxRate).where(
        TaxRate.id != rate_id,
        TaxRate.deleted_at.is_(None),
        TaxRate.code.is_not_distinct_from(details.code),
        TaxRate.country == details.country,
        func.lower(TaxRate.state).is_not_distinct_from(state),
        or_(TaxRate.valid_to.is_(None), TaxRate.valid_to > details.valid_from),
    )
    if details.valid_to is not None:
        query = query.where(TaxRate.valid_from < details.valid_to)
    if other := session.scalars(query.order_by(TaxRate.valid_from)).first():
        message = f"{other.name!r} ({other.id}) holds for the same code and place at the same time"
        hint = "End that one where this one begins."
        issue = Issue(code="tax_rate_overlap", message=message, field="$.validFrom", hint=hint)
        raise TaxRateOverlapError(message, issue)


# -- Lookup --------------------------------------------------------------------------------------------------


def get_tax_rate(session: Session, rate_id: str) -> TaxRate:
    """Deleted ones too."""
    if rate := session.get(TaxRate, rate_id):
        return rate
    raise TaxRateNotFoundError(f"no tax rate {rate_id!r}")


def list_tax_rates(
    session: Session,
    *,
    country: str | None = None,
    code: str | None = None,
    include_deleted: bool = False,
    offset: int = 0,
    limit: int = 100,
) -> tuple[Sequence[TaxRate], int]:
    """One page, by place, code and time, and how many there are."""
    conditions: list[ColumnElement[bool]] = [] if include_deleted else [TaxRate.deleted_at.is_(None)]
    conditions += [] if country is None else [TaxRate.country == country]
    conditions += [] if code is None else [TaxRate.code == code]
    count = session.scalar(select(func.count()).select_from(TaxRate).where(*conditions)) or 0
    order = (TaxRate.country, TaxRate.state, TaxRate.code, TaxRate.valid_from, TaxRate.id)
    page = select(TaxRate).where(*conditions).order_by(*order).offset(offset).limit(limit)
    return session.scalars(page).all(), count


def rates_in(session: Session, countries: Iterable[str]) -> dict[str, list[TaxRate]]:
    """Those that are not deleted, by country."""
    found: dict[str, list[TaxRate]] = {country: [] for country in countries}
    for rate in session.scalars(_IN_COUNTRIES, {"countries": list(found)}) if found else ():
        found[rate.country].append(rate)
    return found


_IN_COUNTRIES = select(TaxRate).where(among(TaxRate.country, "countries"), TaxRate.deleted_at.is_(None))


def any_tax_rate(session: Session) -> bool:
    """Whether anybody here has to do with taxes."""
    return bool(session.scalar(select(exists().where(TaxRate.deleted_at.is_(None)))))
