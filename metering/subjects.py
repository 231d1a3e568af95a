"""Subjects as they are stored: what is known about those who use, besides their usage.

An event's subject is a key that needs no row here. A subject gives such a key a name and notes; deleting it
touches no usage, and frees the key for a new one.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, Dialect, Index, Select, Text, cast, select
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.orm import Mapped, Session, mapped_column
from sqlalchemy.types import TypeDecorator

from metering.database import Base, Id, Instant
from metering.errors import InvalidError, Issue, NotFoundError
from metering.ids import new_id

__all__ = [
    "Subject",
    "SubjectField",
    "SubjectNotFoundError",
    "SubjectUpsert",
    "delete_subject",
    "get_subject",
    "list_subjects",
    "provision_subjects",
    "upsert_subjects",
]


class JsonText(TypeDecorator[str]):
    """JSONB that stays JSON text in Python: its numbers keep all their digits."""

    impl = JSONB
    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any] | None:  # noqa: ARG002  the base's
        return None

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:  # noqa: ARG002
        return None

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        return cast(column, Text)


class Subject(Base):
    __tablename__ = "subjects"
    __table_args__ = (Index("subjects_key_key", "key", unique=True, postgresql_where="deleted_at IS NULL"),)

    id: Mapped[Id] = mapped_column(primary_key=True)
    key: Mapped[str]
    display_name: Mapped[str | None]
    metadata_: Mapped[str | None] = mapped_column("metadata", JsonText)
    stripe_customer_id: Mapped[str | None]
    current_period_start: Mapped[Instant | None]
    current_period_end: Mapped[Instant | None]
    created_at: Mapped[Instant]
    updated_at: Mapped[Instant]
    deleted_at: Mapped[Instant | None]


SubjectField = Literal[
    "display_name", "metadata_", "stripe_customer_id", "current_period_start", "current_period_end"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectUpsert:
    """What a client says about the subject of that key; `given` names what it speaks of, the rest stays."""

    key: str
    given: frozenset[SubjectField] = frozenset()
    display_name: str | None = None
    metadata_: str | None = None
    stripe_customer_id: str | None = None
    current_period_start: datetime | None = None
    current_period_end: datetime | None = None


class SubjectNotFoundError(NotFoundError):
    pass


def upsert_subjects(session: Session, upserts: Sequence[SubjectUpsert], *, now: datetime) -> list[Subject]:
    """Create the subjects that are missing and change the others; all of them, in the order given.

    Two who upsert the same new key at once both succeed: the second one waits and changes the first one's.
    """
    _check(upserts)
    subjects = _locked(session, [upsert.key for upsert in upserts], now)
    for upsert in upserts:
        for field in upsert.given:
            setattr(subjects[upsert.key], field, getattr(upsert, field))
    session.flush()
    return [subjects[upsert.key] for upsert in upserts]


def provision_subjects(session: Session, keys: Iterable[str], *, now: datetime) -> None:
    """Create the subjects that are missing; those that exist stay as they are."""
    if rows := _rows(keys, now):
        session.execute(insert(Subject).values(rows).on_conflict_do_nothing())


def list_subjects(session: Session) -> Sequence[Subject]:
    """All subjects by key."""
    return session.scalars(_living().order_by(Subject.key)).all()


def get_subject(session: Session, id_or_key: str, *, lock: bool = False) -> Subject:
    """The living subject of that id, else of that key; `lock` keeps others from changing it."""
    for column in (Subject.id, Subject.key):
        query = _living().where(column == id_or_key)
        if subject := session.scalar(query.with_for_update() if lock else query):
            return subject
    raise SubjectNotFoundError(f"no subject {id_or_key!r}")


def delete_subject(session: Session, subject: Subject, *, now: datetime) -> None:
    """Its usage stays; its key is free for a new subject. It must have been loaded with a lock."""
    subject.deleted_at = subject.updated_at = now
    session.flush()


def _check(upserts: Sequence[SubjectUpsert]) -> None:
    """Which of two that speak of one key should hold, only the client can say."""
    seen: set[str] = set()
    issues = []
    for i, upsert in enumerate(upserts):
        if upsert.key in seen:
            message = f"{upsert.key!r} is given twice"
            issues.append(Issue(code="duplicate_subject", message=message, field=f"$[{i}].key"))
        seen.add(upsert.key)
    if issues:
        raise InvalidError(issues[0].message, *issues)


def _living() -> Select[Subject]:
    return select(Subject).where(Subject.deleted_at.is_(None))


def _rows(keys: Iterable[str], now: datetime) -> list[dict[str, object]]:
    """In key order, in which everybody locks them."""
    return [{"id": new_id(now), "key": key, "created_at": now, "updated_at": now} for key in sorted(keys)]


def _locked(session: Session, keys: Sequence[str], now: datetime) -> dict[str, Subject]:
    """The subjects of these keys, made if need be, and locked."""
    if not keys:
        return {}
    made = insert(Subject).values(_rows(keys, now))
    touched = made.on_conflict_do_update(
        index_elements=[Subject.key],
        index_where=Subject.deleted_at.is_(None),
        set_={"updated_at": made.excluded.updated_at},
    )
    found = session.scalars(touched.returning(Subject), execution_options={"populate_existing": True})
    return {subject.key: subject for subject in found}
