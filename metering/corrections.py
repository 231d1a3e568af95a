"""Corrections as they are stored, and the steps they take: create, send events, preview, close, revert.

What a correction takes out gets a row in `voided_events`, what it brings in becomes an event like any other,
as of the instant it was closed. An event counts while no correction voids it, so corrections may overlap and
be reverted in any order. Events that arrive after the close count, in the window too.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import Connection
from sqlalchemy import CheckConstraint, ForeignKey, Text, func, select, text, true
from sqlalchemy.dialects.postgresql import JSONB, UUID
from sqlalchemy.orm import Mapped, Session, mapped_column

from metering.correction import (
    MAX_EVENTS,
    InvalidCorrectionError,
    Kind,
    Selection,
    Status,
    Step,
    backfill_key,
    check_correction,
    check_staged,
    next_status,
)
from metering.cubes.refolding import refold_voided
from metering.database import Base, Id, Instant, ValueType
from metering.errors import Issue, NotFoundError
from metering.event import Event
from metering.events import VoidedEvent
from metering.ids import event_key, new_id

__all__ = [
    "Correction",
    "CorrectionNotFoundError",
    "Preview",
    "StagedEvent",
    "Summary",
    "SummaryGroup",
    "close_correction",
    "corrections_of",
    "create_correction",
    "discard_correction",
    "get_correction",
    "list_corrections",
    "preview_correction",
    "revert_correction",
    "stage_events",
]

MAX_GROUPS = 100
"""How many of the largest (type, subject) a preview lists."""
BATCH = 20_000
"""Events brought in are folded in batches of this size."""
CLOSE_TIMEOUT = "5min"
"""For each statement of a close or revert. To void a million of a million events took 14 seconds, to restore
them 38, most of it to compute their hours and days again."""


class CorrectionNotFoundError(NotFoundError):
    pass


class Correction(Base):
    """`staged_events` is how many it brings in; `voided_events` how many it took out when it was closed."""

    __tablename__ = "corrections"
    __table_args__ = (
        CheckConstraint("kind IN ('void', 'replace')", name="kind"),
        CheckConstraint("status IN ('open', 'closed', 'reverted', 'discarded')", name="status"),
    )

    id: Mapped[Id] = mapped_column(primary_key=True)
    kind: Mapped[Kind] = mapped_column(Text)
    status: Mapped[Status] = mapped_column(Text)
    selection: Mapped[Selection] = mapped_column(ValueType(Selection))
    reason: Mapped[str]
    staged_events: Mapped[int]
    voided_events: Mapped[int | None]
    created_at: Mapped[Instant]
    created_by: Mapped[str]
    closed_at: Mapped[Instant | None]
    closed_by: Mapped[str | None]
    reverted_at: Mapped[Instant | None]
    reverted_by: Mapped[str | None]
    discarded_at: Mapped[Instant | None]
    discarded_by: Mapped[str | None]


class StagedEvent(Base):
    """An event that waits for its correction to be closed, and stays as what was brought in.

    `identity` is the key of the event that has the same source and id and came the usual way.
    """

    __tablename__ = "correction_events"

    key: Mapped[uuid.UUID] = mapped_column(UUID, primary_key=True)
    correction_id: Mapped[Id] = mapped_column(ForeignKey("corrections.id"), index=True)
    identity: Mapped[uuid.UUID] = mapped_column(UUID, index=True)
    id: Mapped[str]
    source: Mapped[str]
    type: Mapped[str]
    subject: Mapped[str]
    time: Mapped[Instant]
    data: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    specversion: Mapped[str]
    dataschema: Mapped[str | None]
    staged_at: Mapped[Instant]


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryGroup:
    type: str
    subject: str
    events: int
    already_void: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """How many events, and of what; `groups` are the largest. What is already void counts nowhere now."""

    events: int
    already_void: int
    first: datetime | None
    last: datetime | None
    groups: tuple[SummaryGroup, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What closing would take out of usage, and what it would bring in."""

    voided: Summary
    backfilled: Summary


def create_correction(
    session: Session,
    *,
    kind: Kind,
    selection: Selection,
    reason: str,
    close: bool = False,
    by: str,
    now: datetime,
) -> Correction:
    """Open a correction; `close` makes its change at once."""
    _raise_if(check_correction(kind, selection, reason, close=close))
    correction = Correction(
        id=new_id(now),
        kind=kind,
        status="open",
        selection=selection,
        reason=reason,
        staged_events=0,
        created_at=now,
        created_by=by,
    )
    session.add(correction)
    session.flush()
    return close_correction(session, correction.id, by=by, now=now) if close else correction


def get_correction(session: Session, correction_id: str, *, lock: bool = False) -> Correction:
    """`lock` keeps others from taking a step; whoever waited for it sees what they did."""
    query = select(Correction).where(Correction.id == correction_id)
    if lock:
        query = query.with_for_update().execution_options(populate_existing=True)
    if correction := session.scalar(query):
        return correction
    raise CorrectionNotFoundError(f"no correction {correction_id!r}")


def list_corrections(
    session: Session, *, statuses: Sequence[Status] = (), offset: int = 0, limit: int = 100
) -> tuple[Sequence[Correction], int]:
    """One page, the newest first, and how many there are."""
    condition = Correction.status.in_(statuses) if statuses else true()
    count = session.scalar(select(func.count()).select_from(Correction).where(condition)) or 0
    newest = select(Correction).where(condition).order_by(Correction.id.desc())
    return session.scalars(newest.offset(offset).limit(limit)).all(), count


def corrections_of(session: Session, keys: Iterable[uuid.UUID]) -> dict[uuid.UUID, Correction]:
    """Why an event does not count: the last correction that voids it, by key. What counts is not in it."""
    found = session.execute(
        select(VoidedEvent.key, Correction)
        .join(Correction, Correction.id == VoidedEvent.correction_id)
        .where(VoidedEvent.key.in_(list(keys)), VoidedEvent.restored_at.is_(None))
        .order_by(VoidedEvent.voided_at, Correction.id)
    )
    return {row.key: row.Correction for row in found}


def stage_events(
    session: Session, correction_id: str, *, events: Sequence[Event], places: Sequence[str], now: datetime
) -> tuple[Correction, int]:
    """Keep what a replacement is to bring in, all or nothing, and return how many are new.

    An event that this correction has already is passed over: the first one wins. `places` are the JSON paths
    of the events in what was sent.
    """
    correction = _locked(session, correction_id, "stage")
    _raise_if(check_staged(correction.selection, events, places))
    fresh = _insert_staged(session, correction, events, now)
    correction.staged_events += fresh
    if correction.staged_events > MAX_EVENTS:
        raise too_many_events("bring in")
    session.flush()
    return correction, fresh


_STAGE = """
    INSERT INTO correction_events (key, correction_id, identity, id, source, type, subject, time, data,
                                   specversion, dataschema, staged_at)
    SELECT key, :correction_id, identity, id, source, type, subject, time, CAST(data AS jsonb), specversion,
           dataschema, :now
    FROM unnest(CAST(:key AS uuid[]), CAST(:identity AS uuid[]), CAST(:id AS text[]), CAST(:source AS text[]),
                CAST(:type AS text[]), CAST(:subject AS text[]), CAST(:time AS timestamptz[]),
                CAST(:data AS text[]), CAST(:specversion AS text[]), CAST(:dataschema AS text[]))
         AS sent (key, identity, id, source, type, subject, time, data, specversion, dataschema)
    ON CONFLICT DO NOTHING RETURNING key"""


def _insert_staged(session: Session, correction: Correction, events: Sequence[Event], now: datetime) -> int:
    """How many were new. `data` goes in as text, for its numbers are exact."""
    first = {backfill_key(correction.id, event): event for event in reversed(events)}
    sent = list(first.values())
    columns: dict[str, list[Any]] = {
        name: [getattr(event, name) for event in sent]
        for name in ("id", "source", "type", "subject", "time", "specversion", "dataschema")
    }
    columns["key"] = list(first)
    columns["identity"] = [event_key(event.source, event.id) for event in sent]
    columns["data"] = [None if event.data is None else event.data.decode() for event in sent]
    stage = session.execute(text(_STAGE), {**columns, "correction_id": correction.id, "now": now})
    return len(stage.all())


def preview_correction(session: Session, correction_id: str) -> Preview:
    """What closing would change now; raises CorrectionStateError when it can't be closed any more."""
    correction = get_correction(session, correction_id)
    next_status(correction.kind, correction.status, "close", staged=MAX_EVENTS)  # staged or not: look first
    sql, parameters = _selected(correction.selection, "key, type, subject, time")
    staged = "SELECT key, type, subject, time FROM correction_events WHERE correction_id = :correction_id"
    return Preview(
        voided=_summary(session, sql, parameters),
        backfilled=_summary(session, staged, {"correction_id": correction.id}),
    )


def _summary(session: Session, selected: str, parameters: Mapping[str, Any]) -> Summary:
    """The first row is the total, which has no group."""
    sql = f"""
        SELECT type, subject, count(*) AS events, count(void.key) AS already_void,
               min(time) AS first, max(time) AS last
        FROM ({selected}) AS selected
        LEFT JOIN (SELECT DISTINCT key FROM voided_events WHERE restored_at IS NULL) AS void USING (key)
        GROUP BY GROUPING SETS ((), (type, subject))
        ORDER BY grouping(type) DESC, events DESC, type, subject LIMIT {MAX_GROUPS + 1}"""
    total, *groups = session.execute(text(sql), parameters).all()
    return Summary(
        events=total.events,
        already_void=total.already_void,
        first=total.first,
        last=total.last,
        groups=tuple(
            SummaryGroup(type=one.type, subject=one.subject, events=one.events, already_void=one.already_void)
            for one in groups
        ),
    )


def close_correction(session: Session, correction_id: str, *, by: str, now: datetime) -> Correction:
    """Make the change. What is stored by another transaction at the same time is not taken out."""
    correction = _locked(session, correction_id, "close")
    session.execute(text(f"SET LOCAL statement_timeout = '{CLOSE_TIMEOUT}'"))
    correction.voided_events = _void_selected(session, correction, now)
    _bring_in(session, correction, now)
    correction.closed_at, correction.closed_by = now, by
    session.flush()
    _refold(session, correction)
    return correction


def _void_selected(session: Session, correction: Correction, now: datetime) -> int:
    """How many events were taken out, those included that another correction had taken out before."""
    sql, parameters = _selected(correction.selection, "key")
    void = f"""
        WITH done AS (
            INSERT INTO voided_events (key, correction_id, voided_at)
            SELECT key, :correction_id, :now FROM ({sql}) AS selected ORDER BY key LIMIT {MAX_EVENTS + 1}
            RETURNING key
        ) SELECT count(*) FROM done"""
    count = session.scalar(text(void), {**parameters, "correction_id": correction.id, "now": now}) or 0
    if count > MAX_EVENTS:
        raise too_many_events("take out")
    return int(count)


_NUMBERS = """
    INSERT INTO pending_batches (events, stored_at)
    SELECT least(:size, :staged - start), :now FROM generate_series(0, :staged - 1, :size) AS start
    RETURNING batch"""
_BRING_IN = """
    INSERT INTO events (key, id, source, type, subject, time, data, specversion, dataschema, ingested_at,
                        stored_at, batch)
    SELECT key, id, source, type, subject, time, data, specversion, dataschema, staged_at, :now,
           (CAST(:numbers AS bigint[]))[1 + (row_number() OVER (ORDER BY key) - 1) / :size]
    FROM correction_events WHERE correction_id = :correction_id"""


def _bring_in(session: Session, correction: Correction, now: datetime) -> None:
    """As events stored now, in batches that are folded like any others."""
    if correction.staged_events:
        size = {"size": BATCH, "now": now}
        numbers = session.scalars(text(_NUMBERS), {**size, "staged": correction.staged_events}).all()
        session.execute(text(_BRING_IN), {**size, "numbers": numbers, "correction_id": correction.id})


_RESTORE = "UPDATE voided_events SET restored_at = :now WHERE correction_id = :correction_id"
_TAKE_BACK = """
    INSERT INTO voided_events (key, correction_id, voided_at)
    SELECT key, correction_id, :now FROM correction_events WHERE correction_id = :correction_id
    ORDER BY key"""


def revert_correction(session: Session, correction_id: str, *, by: str, now: datetime) -> Correction:
    """What it took out counts again unless another correction voids it; what it brought in is voided."""
    correction = _locked(session, correction_id, "revert")
    session.execute(text(f"SET LOCAL statement_timeout = '{CLOSE_TIMEOUT}'"))
    for sql in (_RESTORE, _TAKE_BACK):
        session.execute(text(sql), {"correction_id": correction.id, "now": now})
    correction.reverted_at, correction.reverted_by = now, by
    session.flush()
    _refold(session, correction)
    return correction


def _refold(session: Session, correction: Correction) -> None:
    connection = session.connection().connection.driver_connection
    assert isinstance(connection, Connection)  # noqa: S101  the only driver there is
    refold_voided(connection, correction_id=correction.id)


def discard_correction(session: Session, correction_id: str, *, by: str, now: datetime) -> Correction:
    """Give an open correction up; it changes nothing any more."""
    correction = _locked(session, correction_id, "discard")
    correction.discarded_at, correction.discarded_by = now, by
    session.flush()
    return correction


def _locked(session: Session, correction_id: str, step: Step) -> Correction:
    """The correction as it stands after that step, if it may take it."""
    correction = get_correction(session, correction_id, lock=True)
    staged = correction.staged_events
    correction.status = next_status(correction.kind, correction.status, step, staged=staged)
    return correction


_NAMED = """key = ANY(ARRAY(SELECT unnest(CAST(:keys AS uuid[])) UNION ALL
                            SELECT key FROM correction_events WHERE identity = ANY(CAST(:keys AS uuid[]))))"""
"""Of an identity there is one event that came the usual way, and one for each correction that replaced it."""

_IN_WINDOW = {
    "source": "source = :source",
    "type": "type = :type",
    "subjects": """subject = ANY(CAST(:subjects AS text[])) AND hashtextextended(subject, 0) = ANY(ARRAY(
                       SELECT hashtextextended(one, 0) FROM unnest(CAST(:subjects AS text[])) AS one))""",
    "from_": "time >= :from_",
    "to": "time < :to",
}


def _selected(selection: Selection, columns: str) -> tuple[str, Mapping[str, Any]]:
    """One statement, so that an event which is just being retired is found once; and its parameters."""
    parameters: dict[str, Any]
    if selection.events:
        parameters = {"keys": [event_key(one.source, one.id) for one in selection.events]}
        where = _NAMED
    else:
        given = {name: getattr(selection, name) for name in _IN_WINDOW}
        parameters = {name: list(v) if name == "subjects" else v for name, v in given.items() if v}
        where = " AND ".join(_IN_WINDOW[name] for name in parameters)
    tables = ("events", "retired_events")
    sql = " UNION ALL ".join(f"SELECT {columns} FROM {table} WHERE {where}" for table in tables)
    return sql, parameters


def too_many_events(what: str) -> InvalidCorrectionError:
    message = f"one correction can {what} at most {MAX_EVENTS:,} events"
    hint = "Make several, each with a shorter window."
    return InvalidCorrectionError(message, Issue(code="too_many_events", message=message, hint=hint))


def _raise_if(issues: Sequence[Issue]) -> None:
    if issues:
        raise InvalidCorrectionError(f"{issues[0].message} at {issues[0].field}", *issues)
