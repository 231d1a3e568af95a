"""Features: what customers get and pay for. A metered feature is a meter, narrowed by conditions.

A key names one living feature; archiving frees it, and what refers to the archived one keeps it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Dialect, ForeignKey, Index, func, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import InstrumentedAttribute, Mapped, Session, joinedload, mapped_column, relationship
from sqlalchemy.types import TypeDecorator

from catalog.rate_card_rules import KEY, MAX_KEY_LENGTH, FeatureFacts
from catalog.unit_cost import UnitCost, check_unit_cost, properties_of
from metering import meters
from metering.database import Base, Id, Instant, ValueType, among, translating
from metering.errors import ConflictError, InvalidError, Issue, NotFoundError
from metering.filter_string import FilterString, filter_json, parse_filters
from metering.ids import is_ulid, new_id
from metering.meters import Meter, MeterNotFoundError

__all__ = [
    "Feature",
    "FeatureExistsError",
    "FeatureNotFoundError",
    "FeatureOrder",
    "MeterInUseError",
    "archive_feature",
    "create_feature",
    "delete_meter",
    "features_by_id",
    "get_feature",
    "latest_features",
    "list_features",
    "set_unit_cost",
    "update_meter",
]


ADVANCED = "$.advancedMeterGroupByFilters"


class _Conditions(TypeDecorator[dict[str, FilterString]]):
    """Conditions by dimension, kept as clients write them."""

    impl = JSONB(none_as_null=True)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:  # noqa: ARG002  the base's signature
        return None if value is None else {name: filter_json(one) for name, one in value.items()}

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:  # noqa: ARG002  the base's signature
        return None if value is None else parse_filters(value, ADVANCED)


class Feature(Base):
    __tablename__ = "features"
    __table_args__ = (Index("features_key_key", "key", unique=True, postgresql_where="archived_at IS NULL"),)

    id: Mapped[Id] = mapped_column(primary_key=True)
    key: Mapped[str]
    name: Mapped[str]
    metadata_: Mapped[dict[str, str] | None] = mapped_column("metadata")
    meter_id: Mapped[Id | None] = mapped_column(ForeignKey("meters.id"), index=True)
    meter_group_by_filters: Mapped[dict[str, str] | None]
    advanced_meter_group_by_filters: Mapped[dict[str, FilterString] | None] = mapped_column(_Conditions())
    unit_cost: Mapped[UnitCost | None] = mapped_column(ValueType(UnitCost))
    created_at: Mapped[Instant]
    updated_at: Mapped[Instant]
    archived_at: Mapped[Instant | None]

    meter: Mapped[Meter | None] = relationship(lazy="raise")

    @property
    def conditions(self) -> dict[str, FilterString]:
        """What the meter's dimensions must fulfil for usage to belong to this feature.

        Whatever asks for its usage asks with these, however they were written.
        """
        equal = {name: FilterString(eq=value) for name, value in (self.meter_group_by_filters or {}).items()}
        return equal | (self.advanced_meter_group_by_filters or {})

    @property
    def dimensions(self) -> frozenset[str]:
        """The meter's dimensions that this feature can't be told, or its cost, without."""
        return frozenset(self.conditions) | frozenset(properties_of(self.unit_cost))

    @property
    def facts(self) -> FeatureFacts:
        """What rate cards are checked against."""
        return FeatureFacts(
            archived=self.archived_at is not None,
            metered=self.meter is not None,
            dimensions=frozenset(self.meter.group_by if self.meter else ()),
            aggregation=self.meter.aggregation if self.meter else None,
        )


class FeatureNotFoundError(NotFoundError):
    pass


class FeatureExistsError(ConflictError):
    pass


class MeterInUseError(ConflictError):
    pass


def create_feature(
    session: Session,
    *,
    key: str,
    name: str,
    meter_slug: str | None = None,
    meter_group_by_filters: Mapping[str, str] | None = None,
    advanced_meter_group_by_filters: Mapping[str, FilterString] | None = None,
    unit_cost: UnitCost | None = None,
    metadata: Mapping[str, str] | None = None,
    now: datetime,
) -> Feature:
    meter = _meter_of(session, meter_slug)
    equal, advanced = meter_group_by_filters or {}, advanced_meter_group_by_filters or {}
    issues = [*_key_issues(key), *_filters_issues(meter, equal, advanced)]
    if unit_cost is not None:
        issues += check_unit_cost(unit_cost, meter.definition if meter else None)
    if issues:
        raise InvalidError(issues[0].message, *issues)
    feature = Feature(
        id=new_id(now),
        key=key,
        name=name,
        metadata_=metadata,
        meter=meter,
        meter_group_by_filters=meter_group_by_filters,
        advanced_meter_group_by_filters=advanced_meter_group_by_filters,
        unit_cost=unit_cost,
        created_at=now,
        updated_at=now,
    )
    hint = "Archive it first (DELETE), or take another key."
    taken = Issue(code="feature_exists", message=f"a feature {key!r} exists", field="$.key", hint=hint)
    session.add(feature)
    with translating({"features_key_key": FeatureExistsError(taken.message, taken)}):
        session.flush()
    return feature


def _meter_of(session: Session, slug: str | None) -> Meter | None:
    """The meter, locked: it can't be deleted or lose a dimension before this feature is committed."""
    if slug is None:
        return None
    try:
        return meters.get_meter(session, slug, lock=True)
    except MeterNotFoundError as error:
        hint = "GET /api/v1/meters lists those that exist."
        issue = Issue(code="meter_not_found", message=error.detail, field="$.meterSlug", hint=hint)
        raise InvalidError(error.detail, issue) from None


def _key_issues(key: str) -> Iterable[Issue]:
    if not KEY.fullmatch(key) or len(key) > MAX_KEY_LENGTH or is_ulid(key):
        hint = "Lower-case letters and digits, with single _ or - between them; not in the form of an id."
        yield Issue(code="invalid_key", message=f"{key!r} is not a usable key", field="$.key", hint=hint)


def _filters_issues(
    meter: Meter | None, equal: Mapping[str, str], advanced: Mapping[str, FilterString]
) -> Iterator[Issue]:
    if equal and advanced:
        message = "meterGroupByFilters and advancedMeterGroupByFilters can't be used together"
        hint = "Say it all in advancedMeterGroupByFilters: meterGroupByFilters is an $eq."
        yield Issue(code="exclusive_filters", message=message, field=ADVANCED, hint=hint)
    known = meter.group_by if meter else {}
    hint = f"The meter's dimensions: {', '.join(sorted(known)) or 'none'}."
    for path, names in (("$.meterGroupByFilters", equal), (ADVANCED, advanced)):
        for name in names:
            if name not in known:
                message = f"{name!r} is not a dimension of the meter"
                yield Issue(code="unknown_group_by", message=message, field=f"{path}.{name}", hint=hint)


FeatureOrder = Literal["id", "key", "name", "created_at", "updated_at"]
_ORDERS: Mapping[FeatureOrder, InstrumentedAttribute[Any]] = {
    "id": Feature.id,
    "key": Feature.key,
    "name": Feature.name,
    "created_at": Feature.created_at,
    "updated_at": Feature.updated_at,
}


def list_features(
    session: Session,
    *,
    meter_slugs: Sequence[str] = (),
    include_archived: bool = False,
    order_by: FeatureOrder = "key",
    descending: bool = False,
    offset: int = 0,
    limit: int | None = None,
) -> tuple[Sequence[Feature], int]:
    """Some of the features in that order, among equals the newest last; and how many there are."""
    query = select(Feature)
    if not include_archived:
        query = query.where(Feature.archived_at.is_(None))
    if meter_slugs:
        query = query.where(Feature.meter.has(Meter.slug.in_(meter_slugs)))
    count = session.scalar(select(func.count()).select_from(query.subquery())) or 0
    order = _ORDERS[order_by].desc() if descending else _ORDERS[order_by]
    page = query.options(joinedload(Feature.meter)).order_by(order, Feature.id).offset(offset).limit(limit)
    return session.scalars(page).all(), count


def get_feature(session: Session, id_or_key: str) -> Feature:
    """By id, archived too; else the living one of that key."""
    query = select(Feature).options(joinedload(Feature.meter))
    feature = session.scalar(query.where(Feature.id == id_or_key)) or session.scalar(
        query.where(Feature.key == id_or_key, Feature.archived_at.is_(None))
    )
    if feature is None:
        raise FeatureNotFoundError(f"no feature {id_or_key!r}")
    return feature


def latest_features(session: Session, keys: Iterable[str], *, lock: bool = False) -> dict[str, Feature]:
    """The newest feature of each key, archived or not, with its meter; living ones win.

    `lock`: none of them is archived, nor its meter changed, before whatever names them is committed.
    """
    query = (
        select(Feature)
        .options(joinedload(Feature.meter))
        .where(Feature.key.in_(set(keys)))
        .order_by(Feature.archived_at.is_(None), Feature.id)
    )
    query = query.with_for_update(read=True, of=Feature) if lock else query
    found = {feature.key: feature for feature in session.scalars(query)}
    if lock:
        _hold_meters(session, found.values())
    return found


def _hold_meters(session: Session, found: Iterable[Feature]) -> None:
    """None of them loses a dimension, either; who has just lost one is seen as it is."""
    meters_of = select(Meter).where(Meter.id.in_({one.meter_id for one in found if one.meter_id}))
    fresh = meters_of.order_by(Meter.id).execution_options(populate_existing=True)
    session.scalars(fresh.with_for_update(read=True)).all()


def features_by_id(session: Session, ids: Iterable[str]) -> dict[str, Feature]:
    """Those features, archived too, with their meters."""
    return {feature.id: feature for feature in session.scalars(_BY_ID, {"ids": list(set(ids))})}


_BY_ID = select(Feature).options(joinedload(Feature.meter)).where(among(Feature.id, "ids"))


def archive_feature(session: Session, feature: Feature, *, now: datetime) -> None:
    """It can't be sold any more; plans and subscriptions that have it keep it."""
    feature.archived_at = feature.archived_at or now
    session.flush()


def set_unit_cost(session: Session, feature: Feature, unit_cost: UnitCost | None, *, now: datetime) -> None:
    """From now on all its usage costs that, past usage too. The feature must have its meter loaded."""
    if feature.meter is not None:  # its dimensions stay while they are being looked at
        session.refresh(feature.meter, with_for_update={"read": True})
    meter = feature.meter.definition if feature.meter else None
    if unit_cost is not None and (issues := list(check_unit_cost(unit_cost, meter))):
        raise InvalidError(issues[0].message, *issues)
    feature.unit_cost, feature.updated_at = unit_cost, now
    session.flush()


def update_meter(
    session: Session,
    id_or_slug: str,
    *,
    name: str | None,
    description: str | None,
    metadata: Mapping[str, str] | None,
    group_by: Mapping[str, str],
    now: datetime,
) -> Meter:
    """Change a meter, but take no dimension away by which a feature is told from others."""
    meter = meters.get_meter(session, id_or_slug, lock=True)
    for feature in _users(session, meter):
        for dimension in sorted(feature.dimensions):
            if group_by.get(dimension) != meter.group_by[dimension]:
                message = f"the feature {feature.key!r} uses {dimension!r}"
                hint = "Keep the dimension: an archived feature may still be billed by it."
                raise MeterInUseError(
                    message, Issue(code="meter_in_use", message=message, field="$.groupBy", hint=hint)
                )
    return meters.update_meter(
        session, meter, name=name, description=description, metadata=metadata, group_by=group_by, now=now
    )


def delete_meter(session: Session, id_or_slug: str, *, now: datetime) -> None:
    """Delete a meter that no living feature uses; archived ones are billed by it as before."""
    meter = meters.get_meter(session, id_or_slug, lock=True)
    if users := [feature for feature in _users(session, meter) if feature.archived_at is None]:
        message = f"the meter {meter.slug!r} is used by the feature {users[0].key!r}"
        raise MeterInUseError(message, Issue(code="meter_in_use", message=message, hint="Archive it first."))
    meters.delete_meter(session, meter, now=now)


def _users(session: Session, meter: Meter) -> Sequence[Feature]:
    """Archived features too: subscriptions may still be billed by them."""
    return session.scalars(select(Feature).where(Feature.meter_id == meter.id).order_by(Feature.id)).all()
