"""A family of processes: the parent starts its children, starts anew whoever dies, and lets none outlive it.

Every child holds the reading end of a pipe, the lifeline, whose writing end the parent alone has. Its end
asks the children to stop in order, whether the parent closed it or was killed.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import structlog

from api.listening import Port

__all__ = ["Child", "follow", "supervise"]

TICK = 0.1
STABLE_SECONDS = 10.0
"""Of life, after which a death is a new story: the next life begins at once."""
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 5.0
"""Who dies sooner waits before the next life, twice as long each time."""
STOP_SECONDS = 60.0
"""For a stop in order: 10 s for requests, 30 s for commits, and some for a machine that is busy."""

log = structlog.get_logger()


@dataclass(slots=True)
class Child:
    """`arguments` are those of a tollgate command.

    It inherits `listening`, and its next life one that `another` makes. We keep neither: so nobody waits in
    the queue of a dead process, and the kernel sends who comes next to the living.
    """

    name: str
    arguments: Sequence[str]
    listening: socket.socket | None = None
    another: Callable[[], socket.socket] | None = None
    process: "subprocess.Popen[bytes] | None" = None
    _began: float = 0.0
    _due: float = 0.0
    _failures: int = 0

    def keep(self, environment: Mapping[str, str], lifeline: int) -> None:
        """Start it when it does not run, and is not pausing."""
        now = time.monotonic()
        if self.process is not None and (status := self.process.poll()) is not None:
            self._ended(now, f"process {self.process.pid} ended with status {status}")
        if self.process is None and now >= self._due:
            try:
                self._start(now, environment, lifeline)
            except OSError as error:
                self._ended(now, str(error))

    def _start(self, now: float, environment: Mapping[str, str], lifeline: int) -> None:
        self._began = now
        if self.listening is None and self.another is not None:
            self.listening = self.another()
        inherited = [] if self.listening is None else ["--inherit", str(self.listening.fileno())]
        self.process = subprocess.Popen(  # noqa: S603  our own words, and no shell
            [*_again(), *self.arguments, *inherited, "--lifeline", str(lifeline)],
            env=environment,
            stdin=subprocess.DEVNULL,
            pass_fds=(lifeline, *map(int, inherited[1:])),
            start_new_session=True,  # Ctrl-C reaches the parent alone, which stops its children in order
        )
        if self.listening is not None:
            self.listening.close()
            self.listening = None
        log.info("process_started", name=self.name, pid=self.process.pid)

    def _ended(self, now: float, reason: str) -> None:
        self.process = None
        self._failures = 0 if now - self._began > STABLE_SECONDS else self._failures + 1
        pause = (
            min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._failures - 2, 10)) if self._failures > 1 else 0
        )
        self._due = now + pause
        log.warning("process_ended", name=self.name, reason=reason, again_in_seconds=pause)


def _again() -> list[str]:
    """Our own program once more: from the present directory only if it was found there."""
    by_name = getattr(sys.modules["__main__"], "__spec__", None) is not None
    return [sys.executable, *(() if by_name else ("-P",)), "-m", "api"]


def supervise(
    children: Sequence[Child],
    environment: Mapping[str, str],
    *,
    port: Port,
    started: Callable[[], None],
) -> int:
    """Keep the children running until a signal asks to stop; return it once none of them lives.

    A second signal ends them at once. The port is given up first: whoever connects then is sent away.
    """
    lifeline, end = os.pipe()
    with _noted(signal.SIGTERM, signal.SIGINT) as asked:
        try:
            _keep(children, environment, lifeline)
            started()
            while not asked:
                time.sleep(TICK)
                _keep(children, environment, lifeline)
        finally:
            port.close()
            os.close(end)
            os.close(lifeline)
            _wait(children, asked)
    return asked[0]


def _keep(children: Sequence[Child], environment: Mapping[str, str], lifeline: int) -> None:
    for child in children:
        child.keep(environment, lifeline)


@contextmanager
def _noted(*kinds: signal.Signals) -> Iterator[list[int]]:
    """Signals are only written down, so that none comes between a child's start and its name in our books."""
    asked: list[int] = []

    def note(kind: int, _: FrameType | None) -> None:
        asked.append(kind)

    former = {kind: signal.signal(kind, note) for kind in kinds}
    try:
        yield asked
    finally:
        for kind, handler in former.items():
            signal.signal(kind, handler)


def _wait(children: Sequence[Child], asked: Sequence[int]) -> None:
    deadline = time.monotonic() + STOP_SECONDS
    living = [(child, child.process) for child in children if child.process is not None]
    while any(process.poll() is None for _, process in living):
        if len(asked) > 1 or time.monotonic() > deadline:
            break
        time.sleep(TICK / 2)
    for child, process in living:
        if process.poll() is None:
            log.warning("process_killed", name=child.name, pid=process.pid, reason="it did not stop")
            process.kill()
            process.wait()


def follow(lifeline: int) -> None:
    """In a child: stop in order, as SIGTERM would make it, when the parent asks for it or is gone."""

    def watch() -> None:
        os.read(lifeline, 1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(STOP_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
