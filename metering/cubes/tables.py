"""Usage cubes as they are stored: what a subject used in each hour and day, by dimension.

A cube serves all meters of one event type and value. A series is one subject with one value for each of the
cube's paths; hours and days hold what its events add up to. All of it follows from the events and can be
thrown away and built again.
"""

import uuid
from decimal import Decimal

from sqlalchemy import BigInteger, Identity, Index, LargeBinary, Numeric, Text
from sqlalchemy.dialects.postgresql import ARRAY, UUID
from sqlalchemy.orm import Mapped, mapped_column

from metering.database import Base, Instant

__all__ = [
    "PendingBatch",
    "UsageCube",
    "UsageCubeHour",
    "UsageDay",
    "UsageDayValue",
    "UsageHour",
    "UsageHourValue",
    "UsageSeries",
]


class PendingBatch(Base):
    """A commit's worth of events that no cube has seen; the fold that takes them in removes it."""

    __tablename__ = "pending_batches"

    batch: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    events: Mapped[int]
    stored_at: Mapped[Instant]


class UsageCube(Base):
    """`paths` are the dimensions it tells apart, `too_wide` those that have too many values for it.

    `distinct_values` and `latest_values` say whether it can answer UNIQUE_COUNT and LATEST, which cost more.
    `built_to` is the last batch it holds while it is being built, None once it holds all that are folded.
    Hours are kept from `hours_from` on, days up to `closed_to`; `version` changes with either.
    """

    __tablename__ = "usage_cubes"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    event_type: Mapped[str]
    value_property: Mapped[str | None]
    paths: Mapped[list[str]] = mapped_column(ARRAY(Text))
    too_wide: Mapped[list[str]] = mapped_column(ARRAY(Text))
    distinct_values: Mapped[bool]
    latest_values: Mapped[bool]
    built_to: Mapped[int | None] = mapped_column(BigInteger)
    hours_from: Mapped[Instant]
    closed_to: Mapped[Instant]
    version: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[Instant]


class UsageCubeHour(Base):
    """No event of the cube in that hour is before `first` or after `last`: a question that begins or ends in
    the hour, but not among its events, needs none of them."""

    __tablename__ = "usage_cube_hours"

    cube_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    start: Mapped[Instant] = mapped_column(primary_key=True)
    first: Mapped[Instant]
    last: Mapped[Instant]


class UsageSeries(Base):
    """`digest` is a hash of subject and dimensions, which may be too long for an index."""

    __tablename__ = "usage_series"
    __table_args__ = (
        Index("usage_series_cube_id_digest_key", "cube_id", "digest", unique=True),
        Index(None, "cube_id", "subject"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    cube_id: Mapped[int] = mapped_column(BigInteger)
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    subject: Mapped[str]
    dimensions: Mapped[list[str]] = mapped_column(ARRAY(Text))


class _Bucket:
    """What a series' events of one hour or day add up to; LATEST is that of the last (time, key)."""

    series_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    start: Mapped[Instant] = mapped_column(primary_key=True)
    events: Mapped[int] = mapped_column(BigInteger)
    numbers: Mapped[int] = mapped_column(BigInteger)
    sum: Mapped[Decimal | None] = mapped_column(Numeric)
    min: Mapped[Decimal | None] = mapped_column(Numeric)
    max: Mapped[Decimal | None] = mapped_column(Numeric)
    latest: Mapped[Decimal | None] = mapped_column(Numeric)
    latest_time: Mapped[Instant | None]
    latest_key: Mapped[uuid.UUID | None] = mapped_column(UUID)
    first: Mapped[Instant]
    last: Mapped[Instant]


class UsageHour(_Bucket, Base):
    __tablename__ = "usage_hours"
    __table_args__ = (Index(None, "start", postgresql_using="brin"),)


class UsageDay(_Bucket, Base):
    __tablename__ = "usage_days"
    __table_args__ = (Index(None, "start", postgresql_using="brin"),)


class _Value:
    """A value that occurred in that hour or day, by its hash: UNIQUE_COUNT counts them."""

    series_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    start: Mapped[Instant] = mapped_column(primary_key=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)


class UsageHourValue(_Value, Base):
    __tablename__ = "usage_hour_values"


class UsageDayValue(_Value, Base):
    __tablename__ = "usage_day_values"
