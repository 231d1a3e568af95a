"""The worker: does in the background what nobody waits for, step by step, for as long as the server runs.

A step is short and stands by itself, so an end at any moment loses nothing. While there is more to do the
steps follow each other; else it looks again twice a second. Several workers may run: the work itself sees to
it that one of them does it.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import structlog
from psycopg import Connection, Error

__all__ = ["Work", "Worker"]

IDLE_SECONDS = 0.5
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
"""The pauses after failures double from the first to the longest; the first success ends them."""
LONGEST_OUTAGE_PAUSE = 2.0
"""Those after an outage end sooner: usage piles up meanwhile, and to try again costs little."""
STEP_SECONDS = 5.0
"""How long a stop waits for the present step before it has the database break it off."""

log = structlog.get_logger()


class Work(Protocol):
    """One step over a connection that commits each statement by itself; true when there is more to do."""

    def __call__(self, connection: Connection[Any], /, *, now: datetime) -> bool: ...


@dataclass(slots=True)
class Worker:
    """One thread with one connection. `connect` opens one, `now` tells the time, `work` is a step."""

    connect: Callable[[], Connection[Any]]
    now: Callable[[], datetime]
    work: Work
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _stopping: bool = False
    _thread: threading.Thread | None = None
    _connection: Connection[Any] | None = None
    _failures: int = 0

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the present step; one that takes too long is broken off, and done again another time."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread is None:
            return
        self._thread.join(STEP_SECONDS)
        if self._thread.is_alive() and (connection := self._connection):
            connection.cancel_safe(timeout=STEP_SECONDS)
            self._thread.join(STEP_SECONDS)

    def _run(self) -> None:
        while not self._stopping:
            pause = self._step()
            with self._changed:
                self._changed.wait_for(lambda: self._stopping, pause)
        self._disconnect()

    def _step(self) -> float:
        """Returns the seconds until the next one."""
        try:
            more = self.work(self._connected(), now=self.now())
        except Exception as error:  # noqa: BLE001  whatever it is, there is work to do after it
            return self._failed(error)
        if self._failures:
            log.info("work_goes_on", failures=self._failures)
            self._failures = 0
        return 0.0 if more else IDLE_SECONDS

    def _failed(self, error: Exception) -> float:
        """One line for an outage, however long; one with all there is to know for each other failure."""
        outage = isinstance(error, Error) and (self._connection is None or self._connection.closed)
        self._disconnect()
        if self._stopping:
            return 0.0
        if not outage:
            log.error("work_failed", exc_info=error)
        elif not self._failures:
            log.warning("work_interrupted", error=str(error).partition("\n")[0])
        self._failures += 1
        longest = LONGEST_OUTAGE_PAUSE if outage else LONGEST_PAUSE
        return float(min(longest, FIRST_PAUSE * 2 ** min(self._failures - 1, 10)))

    def _connected(self) -> Connection[Any]:
        if self._connection is None:
            self._connection = self.connect()
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
