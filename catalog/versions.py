"""Versions of what is sold: drafts that may change, and published versions that never do.

A key has at most one draft and one active version; publishing a draft archives the version before it at the
same instant. Both rules are unique indexes. What is deleted stays, for those who still refer to it.

Nothing is published for a later day: publication takes no date, as in OpenMeter, and dates that are sent with
a version are read only. So what is `scheduled` was published a moment ago by a server whose clock is ahead.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypeVar

from sqlalchemy import ColumnElement, Index, and_, func, or_, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, Session, mapped_column

from metering.database import Id, Instant

__all__ = [
    "Version",
    "VersionFilter",
    "VersionOrder",
    "VersionStatus",
    "get_version",
    "indexes_of_versions",
    "list_versions",
    "matching",
    "next_version",
    "publish_version",
]

VersionStatus = Literal["draft", "active", "archived", "scheduled"]
VersionOrder = Literal["id", "key", "version", "created_at", "updated_at"]


class Version:
    """The columns of every version; `feature_ids` pins the features that its rate cards meant, by key."""

    id: Mapped[Id] = mapped_column(primary_key=True)
    key: Mapped[str]
    version: Mapped[int]
    name: Mapped[str]
    description: Mapped[str | None]
    metadata_: Mapped[dict[str, str] | None] = mapped_column("metadata")
    currency: Mapped[str]
    feature_ids: Mapped[dict[str, str]] = mapped_column(JSONB)
    effective_from: Mapped[Instant | None]
    effective_to: Mapped[Instant | None]
    created_at: Mapped[Instant]
    updated_at: Mapped[Instant]
    deleted_at: Mapped[Instant | None]

    def status(self, now: datetime) -> VersionStatus:
        if self.effective_from is None:
            return "draft"
        if self.effective_from > now:
            return "scheduled"
        return "active" if self.effective_to is None or now < self.effective_to else "archived"


V = TypeVar("V", bound=Version)


def indexes_of_versions(table: str) -> tuple[Index, Index, Index]:
    """`{table}_version_key`, `{table}_draft_key` and `{table}_active_key`."""
    return (
        Index(f"{table}_version_key", "key", "version", unique=True),
        Index(
            f"{table}_draft_key",
            "key",
            unique=True,
            postgresql_where="effective_from IS NULL AND deleted_at IS NULL",
        ),
        Index(
            f"{table}_active_key",
            "key",
            unique=True,
            postgresql_where="effective_from IS NOT NULL AND effective_to IS NULL",
        ),
    )


def next_version(session: Session, kind: type[V], key: str) -> int:
    """The number of the key's next version; that of a deleted one is never given again."""
    return (session.scalar(select(func.max(kind.version)).where(kind.key == key)) or 0) + 1


def get_version(
    session: Session,
    kind: type[V],
    id_or_key: str,
    *,
    version: int | None = None,
    include_latest: bool = False,
    lock: bool = False,
) -> V | None:
    """By id; else by key: that version, the latest if `include_latest`, otherwise the active one.

    A deleted one has only its id, and can't be locked.
    """
    query = select(kind).order_by(kind.version.desc()).limit(1)
    living = query.where(kind.deleted_at.is_(None))
    query = living.with_for_update() if lock else query
    by_key = (living.with_for_update() if lock else living).where(kind.key == id_or_key)
    if version is not None:
        by_key = by_key.where(kind.version == version)
    elif not include_latest:
        by_key = by_key.where(_is_active(kind))
    return session.scalar(query.where(kind.id == id_or_key)) or session.scalar(by_key)


def publish_version(session: Session, row: V, *, now: datetime) -> None:
    """Make it the key's active version; the one before ends at the same instant, not before it began."""
    kind = type(row)
    before = session.scalar(select(kind).where(kind.key == row.key, _is_active(kind)).with_for_update())
    since = now
    if before is not None:
        since = max(now, before.effective_from or now)
        before.effective_to, before.updated_at = since, now
        session.flush()
    row.effective_from, row.updated_at = since, now
    session.flush()


def _is_active(kind: type[Version]) -> ColumnElement[bool]:
    return and_(kind.effective_from.is_not(None), kind.effective_to.is_(None))


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionFilter:
    """What a list is narrowed to; what is empty narrows nothing. `key_versions` has numbers by key."""

    ids: Sequence[str] = ()
    keys: Sequence[str] = ()
    key_versions: Mapping[str, Sequence[int]] = field(default_factory=dict)
    statuses: Sequence[VersionStatus] = ()
    currencies: Sequence[str] = ()
    include_deleted: bool = False


def list_versions(
    session: Session,
    kind: type[V],
    wanted: VersionFilter,
    *,
    order_by: VersionOrder | None = None,
    descending: bool = False,
    offset: int = 0,
    limit: int = 100,
    now: datetime,
) -> tuple[Sequence[V], int]:
    """One page, by key and version unless told otherwise, and how many there are."""
    conditions = matching(kind, wanted, now)
    count = session.scalar(select(func.count()).select_from(kind).where(*conditions)) or 0
    columns = [getattr(kind, order_by)] if order_by else []
    order = [column.desc() if descending else column for column in (*columns, kind.key, kind.version)]
    page = select(kind).where(*conditions)
    return session.scalars(page.order_by(*order).offset(offset).limit(limit)).all(), count


def matching(kind: type[Version], wanted: VersionFilter, now: datetime) -> list[ColumnElement[bool]]:
    """The conditions of a filter."""
    pairs = ((kind.id, wanted.ids), (kind.key, wanted.keys), (kind.currency, wanted.currencies))
    conditions: list[ColumnElement[bool]] = [column.in_(values) for column, values in pairs if values]
    if wanted.key_versions:
        some = [and_(kind.key == key, kind.version.in_(v)) for key, v in wanted.key_versions.items()]
        conditions.append(or_(*some))
    if wanted.statuses:
        conditions.append(or_(*[_has_status(kind, status, now) for status in wanted.statuses]))
    return conditions if wanted.include_deleted else [*conditions, kind.deleted_at.is_(None)]


def _has_status(kind: type[Version], status: VersionStatus, now: datetime) -> ColumnElement[bool]:
    started, ended = kind.effective_from <= now, kind.effective_to <= now
    match status:
        case "draft":
            return kind.effective_from.is_(None)
        case "scheduled":
            return kind.effective_from > now
        case "archived":
            return and_(started, ended)
        case "active":
            return and_(started, or_(kind.effective_to.is_(None), kind.effective_to > now))
