"""Meters as they are stored: create, list, get, update, delete.

A meter's slug is its name on the wire; it is free again once the meter is deleted. Event type, aggregation
and value can't change (that would change what was billed); dimensions can, and hold for all of history.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy import CheckConstraint, Index, Select, Text, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from metering.database import Base, Id, Instant, translating
from metering.errors import ConflictError, InvalidError, Issue, NotFoundError
from metering.ids import new_id
from metering.meter import Aggregation, MeterDefinition, check_meter

__all__ = [
    "Meter",
    "MeterExistsError",
    "MeterNotFoundError",
    "create_meter",
    "delete_meter",
    "get_meter",
    "list_meters",
    "update_meter",
]


class Meter(Base):
    __tablename__ = "meters"
    __table_args__ = (
        CheckConstraint("(aggregation = 'COUNT') = (value_property IS NULL)", name="value_property"),
        Index("meters_slug_key", "slug", unique=True, postgresql_where="deleted_at IS NULL"),
    )

    id: Mapped[Id] = mapped_column(primary_key=True)
    slug: Mapped[str]
    name: Mapped[str | None]
    description: Mapped[str | None]
    metadata_: Mapped[dict[str, str] | None] = mapped_column("metadata")
    aggregation: Mapped[Aggregation] = mapped_column(Text)
    event_type: Mapped[str]
    event_from: Mapped[Instant | None]
    value_property: Mapped[str | None]
    group_by: Mapped[dict[str, str]]
    created_at: Mapped[Instant]
    updated_at: Mapped[Instant]
    deleted_at: Mapped[Instant | None]

    @property
    def definition(self) -> MeterDefinition:
        return MeterDefinition(
            event_type=self.event_type,
            aggregation=self.aggregation,
            value_property=self.value_property,
            group_by=self.group_by,
            event_from=self.event_from,
        )


class MeterNotFoundError(NotFoundError):
    pass


class MeterExistsError(ConflictError):
    pass


def create_meter(
    session: Session,
    *,
    slug: str,
    definition: MeterDefinition,
    name: str | None = None,
    description: str | None = None,
    metadata: Mapping[str, str] | None = None,
    now: datetime,
) -> Meter:
    _raise_if(check_meter(definition))
    meter = Meter(
        id=new_id(now),
        slug=slug,
        name=name,
        description=description,
        metadata_=None if metadata is None else dict(metadata),
        aggregation=definition.aggregation,
        event_type=definition.event_type,
        event_from=definition.event_from,
        value_property=definition.value_property,
        group_by=dict(definition.group_by),
        created_at=now,
        updated_at=now,
    )
    taken = Issue(
        code="meter_exists", message=f"a meter {slug!r} exists", field="$.slug", hint="Take another slug."
    )
    session.add(meter)
    with translating({"meters_slug_key": MeterExistsError(taken.message, taken)}):
        session.flush()
    return meter


def list_meters(session: Session, *, include_deleted: bool = False) -> Sequence[Meter]:
    """All meters by slug."""
    query = select(Meter).order_by(Meter.slug, Meter.id)
    return session.scalars(query if include_deleted else query.where(Meter.deleted_at.is_(None))).all()


def get_meter(session: Session, id_or_slug: str, *, lock: bool = False) -> Meter:
    """The living meter of that id, else of that slug; `lock` keeps others from changing it."""
    for column in (Meter.id, Meter.slug):
        query = _living().where(column == id_or_slug)
        if meter := session.scalar(query.with_for_update() if lock else query):
            return meter
    raise MeterNotFoundError(f"no meter {id_or_slug!r}")


def _living() -> Select[Meter]:
    return select(Meter).where(Meter.deleted_at.is_(None))


def update_meter(
    session: Session,
    meter: Meter,
    *,
    name: str | None,
    description: str | None,
    metadata: Mapping[str, str] | None,
    group_by: Mapping[str, str],
    now: datetime,
) -> Meter:
    """Replace what may change. The caller knows whether a dropped dimension is still in use above."""
    _raise_if(check_meter(replace(meter.definition, group_by=group_by)))
    meter.name = name
    meter.description = description
    meter.metadata_ = None if metadata is None else dict(metadata)
    meter.group_by = dict(group_by)
    meter.updated_at = now
    session.flush()
    return meter


def delete_meter(session: Session, meter: Meter, *, now: datetime) -> None:
    """The events stay; the meter no longer answers and its slug is free."""
    meter.deleted_at = now
    session.flush()


def _raise_if(issues: Sequence[Issue]) -> None:
    if issues:
        raise InvalidError(issues[0].message, *issues)
