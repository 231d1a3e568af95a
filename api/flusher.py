"""Group commit: whoever reports usage waits for one commit that many share, and is answered after it.

There is no timer. While one flush is being committed the next fills up, so that a quiet server commits each
request by itself and a busy one hundreds at a time. What a request brings is stored whole or not at all.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from typing import Any

import psycopg
import structlog
from psycopg import Connection
from psycopg.errors import UniqueViolation

from metering.errors import UnavailableError
from metering.events import Batch, Row, append_events, insert_events
from metering.kong import QuarantinedEntry
from metering.quarantine import quarantine

__all__ = ["Flusher", "QueueFullError", "Receipt", "StoreUnavailableError"]

MAX_FLUSH = 20_000
"""Events and bad entries in one commit, unless a single request brings more."""
FEW = 100
"""Up to so many events it is faster to store them in a single statement than to copy them."""
MAX_PENDING = 200_000
"""Those that may wait; beyond that a request is turned away at once and nothing of it is stored."""
MAX_FLUSH_BYTES = 16 * 1024 * 1024
MAX_PENDING_BYTES = 128 * 1024 * 1024
"""The same for large events, so that memory is bounded too."""

ANSWER_SECONDS = 45.0
"""After this long a request is told to come back; if it is stored after all, the retry is a repeat."""
STOP_SECONDS = 30.0
"""How long a stop waits for a commit before it gives up on a database that hangs; nothing was promised."""

log = structlog.get_logger()


class QueueFullError(UnavailableError):
    pass


class StoreUnavailableError(UnavailableError):
    pass


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a request's groups of events: a group is stored when any event of it was new."""

    stored: int
    duplicate: int


@dataclass(slots=True)
class _Submission:
    groups: Sequence[Batch]
    quarantined: Sequence[tuple[str, QuarantinedEntry]]
    answer: "asyncio.Future[Receipt]"
    loop: asyncio.AbstractEventLoop
    entries: int
    size: int


@dataclass(slots=True)
class Flusher:
    """One thread with one connection. `connect` opens a connection, `now` tells the time."""

    connect: Callable[[], Connection[Any]]
    now: Callable[[], datetime]
    _pending: deque[_Submission] = field(default_factory=deque)
    _waiting: int = 0
    _waiting_bytes: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _stopping: bool = False
    _thread: threading.Thread | None = None
    _connection: Connection[Any] | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="flusher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Commit all that was accepted, then end."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread:
            self._thread.join(STOP_SECONDS)

    async def store(
        self, groups: Sequence[Batch], *, quarantined: Sequence[tuple[str, QuarantinedEntry]] = ()
    ) -> Receipt:
        """Return once every event of every group is committed.

        Raises QueueFullError or StoreUnavailableError; then nothing was promised, and a retry is safe.
        """
        loop = asyncio.get_running_loop()
        submission = _Submission(
            groups,
            quarantined,
            loop.create_future(),
            loop,
            entries=sum(map(len, groups)) + len(quarantined),
            size=sum(map(len, chain.from_iterable(row for group in groups for row in group.values()))),
        )
        self._enqueue(submission)
        patience = loop.call_later(ANSWER_SECONDS, _give_up, submission.answer)
        try:
            return await submission.answer
        finally:
            patience.cancel()

    def _enqueue(self, submission: _Submission) -> None:
        with self._changed:
            if self._stopping:
                raise StoreUnavailableError("the server is shutting down")
            if self._pending and (
                self._waiting + submission.entries > MAX_PENDING
                or self._waiting_bytes + submission.size > MAX_PENDING_BYTES
            ):
                raise QueueFullError("more usage is arriving than can be stored; send it again")
            self._pending.append(submission)
            self._waiting += submission.entries
            self._waiting_bytes += submission.size
            self._changed.notify()

    def _run(self) -> None:
        while batch := self._take():
            self._answer(self._flush_apart_if_needed(batch))
        self._disconnect()

    def _take(self) -> list[_Submission]:
        """All that is waiting, up to the bounds of a flush; nothing only when the server stops."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._stopping)
            batch: list[_Submission] = []
            entries = size = 0
            while self._pending:
                entries += self._pending[0].entries
                size += self._pending[0].size
                if batch and (entries > MAX_FLUSH or size > MAX_FLUSH_BYTES):
                    break
                batch.append(self._pending.popleft())
                self._waiting -= batch[-1].entries
                self._waiting_bytes -= batch[-1].size
            return batch

    def _flush_apart_if_needed(
        self, batch: list[_Submission]
    ) -> list[tuple[_Submission, Receipt | Exception]]:
        """Commit together; if the database refuses, each request by itself, so that none spoils another's."""
        try:
            return self._flush(batch)
        except Exception as error:  # whatever it is, somebody is waiting for an answer
            self._disconnect()
            if _is_outage(error):
                log.warning("store_unavailable", error=str(error).partition("\n")[0], requests=len(batch))
                refused = StoreUnavailableError("the database can't store usage right now; send it again")
                return [(submission, refused) for submission in batch]
            if len(batch) > 1:
                return [answer for one in batch for answer in self._flush_apart_if_needed([one])]
            log.exception("event_not_storable")
            return [(batch[0], error)]

    def _flush(self, batch: list[_Submission]) -> list[tuple[_Submission, Receipt | Exception]]:
        merged: dict[bytes, Row] = {}
        for submission in reversed(batch):  # of two events with one key the first counts
            for group in reversed(submission.groups):
                merged.update(group)
        bad = [entry for submission in batch for entry in submission.quarantined]
        fresh = self._commit(merged, bad)
        return [(submission, _receipt(submission, fresh)) for submission in batch]

    def _commit(self, events: Batch, bad: Sequence[tuple[str, QuarantinedEntry]]) -> set[bytes]:
        connection = self._connected()
        now = self.now()
        if len(events) <= FEW and not bad:
            return insert_events(connection, events, now=now)
        try:
            with connection.transaction():
                quarantine(connection, bad, now=now)
                return append_events(connection, events, now=now)
        except UniqueViolation:
            with connection.transaction():
                quarantine(connection, bad, now=now)
                return insert_events(connection, events, now=now)

    def _connected(self) -> Connection[Any]:
        if self._connection is None:
            self._connection = self.connect()
            # On a young table the planner may prefer to read all of it over looking up each key.
            self._connection.execute("SET enable_seqscan = off")
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _answer(self, answers: list[tuple[_Submission, Receipt | Exception]]) -> None:
        """One wake-up of the event loop for all."""
        try:
            answers[0][0].loop.call_soon_threadsafe(_resolve, answers)
        except RuntimeError:  # the loop is closed: nobody is waiting any more
            log.warning("nobody_waits_for_the_answer", requests=len(answers))


def _is_outage(error: Exception) -> bool:
    """Whether it may work later. What exceeds PostgreSQL's limits (class 54) never will."""
    if isinstance(error, psycopg.OperationalError):
        return not (error.sqlstate or "").startswith("54")
    return isinstance(error, psycopg.InterfaceError)


def _give_up(answer: "asyncio.Future[Receipt]") -> None:
    if not answer.done():
        answer.set_exception(StoreUnavailableError("the database takes too long; send it again"))


def _receipt(submission: _Submission, fresh: set[bytes]) -> Receipt:
    """Claims what was new, so that of two requests with the same event one stored it, one repeated it."""
    stored = 0
    for group in submission.groups:
        new = fresh.intersection(group)
        fresh -= new
        stored += bool(new)
    return Receipt(stored=stored, duplicate=len(submission.groups) - stored)


def _resolve(answers: list[tuple[_Submission, Receipt | Exception]]) -> None:
    for submission, answer in answers:
        if submission.answer.done():  # the client has gone
            continue
        if isinstance(answer, Receipt):
            submission.answer.set_result(answer)
        else:
            submission.answer.set_exception(answer)
