"""Keeping PostgreSQL running: start, watch, start again, stop."""

import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

from api.postgres.account import ENVIRONMENT
from api.postgres.facts import FAST_SHUTDOWN, Say
from api.postgres.log import Log
from api.postgres.processes import end_leftovers, remove_stale_files, tag_of

__all__ = ["Postmaster"]

TELL_EVERY = 5.0  # seconds between two lines about the same wait
LONGEST_PAUSE = 30.0  # seconds before the next attempt, when PostgreSQL keeps failing
STABLE_AFTER = 60.0  # seconds of life after which a death is a new story


class Postmaster:
    """PostgreSQL, kept running by a thread of its own.

    The kernel sends the signal of the parent's death when the *thread* that started the child ends: so one
    thread starts it, each time, and lives as long as it is wanted.
    """

    def __init__(self, command: list[str], *, database: Path, sockets: Path, log: Log, say: Say) -> None:
        self.ready = threading.Event()
        self.failure: str | None = None  # why the first start failed; later ones are repeated
        self._command = command
        self._database = database
        self._sockets = sockets
        self._log = log
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._started = False
        self._stopping = threading.Event()
        self._starting = threading.Lock()
        self._thread = threading.Thread(target=self._keep_running, name="postgres", daemon=True)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Let it end in order; after a minute without waiting for anything that recovery can make good."""
        with self._starting:
            self._stopping.set()
            self._signal(signal.SIGINT)
        for kind in (signal.SIGQUIT, signal.SIGKILL):
            self._thread.join(FAST_SHUTDOWN)
            if not self._thread.is_alive():
                return
            self._say(f"PostgreSQL has not ended after {FAST_SHUTDOWN:.0f} s: sending {kind.name}.")
            self._signal(kind)
        self._thread.join()

    def _signal(self, kind: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(kind)

    def _keep_running(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            reason = self._live()
            if self._stopping.is_set():
                return
            if not self._started:
                self.failure = reason
                return
            failures = 1 if time.monotonic() - began > STABLE_AFTER else failures + 1
            pause = 0.0 if failures == 1 else min(LONGEST_PAUSE, 2.0 ** (failures - 2))
            self._say(
                f"PostgreSQL has ended ({reason}); starting it again{f' in {pause:.0f} s' if pause else ''}."
            )
            self._stopping.wait(pause)

    def _live(self) -> str:
        """One life of PostgreSQL, from clearing its way to its end; returns why it ended."""
        try:
            end_leftovers(tag_of(self._database), stopping=self._stopping, say=self._say)
            remove_stale_files(self._database, self._sockets)
            process = self._spawn()
            return self._watch(process) if process else ""
        except Exception as error:  # noqa: BLE001  whatever it is, PostgreSQL is to be kept running
            return str(error)

    def _spawn(self) -> subprocess.Popen[bytes] | None:
        file = self._log.open()
        try:
            with self._starting:
                if self._stopping.is_set():
                    return None
                self._process = subprocess.Popen(  # noqa: S603  our own words, and no shell
                    self._command,
                    cwd="/",
                    env=ENVIRONMENT,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,  # Ctrl-C must not reach it before the server is done with it
                )
                return self._process
        finally:
            os.close(file)

    def _watch(self, process: subprocess.Popen[bytes]) -> str:
        began = told = time.monotonic()
        while process.poll() is None and not self._stopping.wait(0.2 if self.ready.is_set() else 0.02):
            waited = time.monotonic() - began
            if self.ready.is_set():
                self._log.keep_small()
            elif self._accepts_connections(process.pid):
                self._welcome(waited)
            elif time.monotonic() - told >= TELL_EVERY:
                told = time.monotonic()
                self._say(f"PostgreSQL is recovering, {waited:.0f} s so far...")
        code = process.wait()
        self.ready.clear()
        told_by_code = {0: "somebody stopped it", -signal.SIGKILL: "somebody killed it, or memory ran out"}
        return told_by_code.get(code) or self._log.reason() or f"exit code {code}"

    def _welcome(self, waited: float) -> None:
        if self._started:
            self._say(f"PostgreSQL is back after {waited:.1f} s.")
        self._started = True
        self.ready.set()

    def _accepts_connections(self, pid: int) -> bool:
        """Read PostgreSQL's own word for it: attempts to connect before would fill its log."""
        with suppress(OSError, IndexError, ValueError):  # not written yet, or not wholly
            lines = (self._database / "postmaster.pid").read_text().splitlines()
            return lines[0].strip() == str(pid) and lines[7].strip() == "ready"
        return False
