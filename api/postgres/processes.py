"""PostgreSQL's processes: which are ours, and the end of those that a crash left behind."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from api.postgres.account import LAUNCHER
from api.postgres.facts import FAST_SHUTDOWN, PORT, EmbeddedPostgresError, Say

__all__ = ["end_leftovers", "remove_stale_files", "tag_of"]

FIRMER_AFTER = 15.0  # seconds between two signals to processes of a PostgreSQL that is dead
LOST_CHILDREN = 2.0  # seconds in which processes notice the death of their parent


def tag_of(database: Path) -> str:
    """The same for all who mean this very directory, by whatever path, also from within a container."""
    found = database.stat()
    return f"tollgate-{found.st_dev:x}-{found.st_ino:x}"


def commands() -> dict[int, str]:
    """Every living process that we may see, and its command line; a zombie has none."""
    if sys.platform == "linux":
        # Not /proc/PID/cwd or exe, which would say more: root in a container may not read those of others.
        return dict(linux_commands())
    listing = subprocess.run(["/bin/ps", "-axww", "-o", "pid=,command="], stdout=subprocess.PIPE, check=True)
    rows = (line.split(maxsplit=1) for line in listing.stdout.decode(errors="replace").splitlines())
    return {int(row[0]): row[1] for row in rows if len(row) > 1}


def linux_commands() -> Iterator[tuple[int, str]]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):  # it has just ended
                words = Path(entry.path, "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
                yield int(entry.name), " ".join(word.decode(errors="replace") for word in words)


@dataclass(frozen=True, slots=True)
class Family:
    """The processes of one database: the parent, if it lives, and those that it started."""

    parents: tuple[int, ...]
    children: tuple[int, ...]

    @classmethod
    def of(cls, tag: str) -> Self:
        running = commands().items()
        parent, child = f"/postgres -c cluster_name={tag} -D ", f"postgres: {tag}: "
        return cls(
            tuple(pid for pid, line in running if parent in line and LAUNCHER.name not in line),
            tuple(pid for pid, line in running if line.startswith(child)),
        )

    def __bool__(self) -> bool:
        return bool(self.parents or self.children)


def end_leftovers(tag: str, *, stopping: threading.Event, say: Say) -> None:
    """Wait until nothing of an earlier PostgreSQL lives, helping more and more firmly.

    Without their parent the children end by themselves, but for one that is deep in a query: and as long as
    one lives, PostgreSQL rightly refuses to start. To kill them is safe then: recovery follows anyway.
    """
    family = Family.of(tag)
    if family.parents:
        say(f"Stopping PostgreSQL (process {family.parents[0]}), left behind by a server that was killed.")
        signal_all(family.parents, signal.SIGINT)
    if gone(tag, FAST_SHUTDOWN if family.parents else LOST_CHILDREN, stopping):
        return
    for kind in (signal.SIGQUIT, signal.SIGKILL):
        family = Family.of(tag)
        pids = (*family.parents, *family.children)
        say(
            f"Old processes of PostgreSQL are still there ({', '.join(map(str, pids))}): sending {kind.name}."
        )
        signal_all(pids, kind)
        if gone(tag, FIRMER_AFTER, stopping):
            return
    raise EmbeddedPostgresError(
        f"Processes of PostgreSQL can't be ended: {Family.of(tag)}. End them by hand."
    )


def signal_all(pids: Sequence[int], kind: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, kind)


def gone(tag: str, patience: float, stopping: threading.Event) -> bool:
    """Whether nothing is left within so many seconds, or nobody waits any more."""
    deadline = time.monotonic() + patience
    while Family.of(tag):
        if time.monotonic() > deadline:
            return False
        if stopping.wait(0.05):
            return True
    return True


def remove_stale_files(database: Path, sockets: Path) -> None:
    """Remove what PostgreSQL takes for a living PostgreSQL when its number was given to another process.

    Called when no PostgreSQL of ours lives, so that only one which a person started by hand can object.
    """
    pid_file = database / "postmaster.pid"
    with suppress(FileNotFoundError, ValueError, IndexError):
        pid = int(pid_file.read_text().splitlines()[0])
        if serves(commands().get(pid, ""), database):
            raise EmbeddedPostgresError(
                f"Another PostgreSQL (process {pid}), not started by Tollgate, uses {database}: "
                "stop it first."
            )
    for path in (pid_file, sockets / f".s.PGSQL.{PORT}", sockets / f".s.PGSQL.{PORT}.lock"):
        path.unlink(missing_ok=True)


def serves(command: str, database: Path) -> bool:
    found = re.search(r"(?:^|/)postgres .*?-D ?(\S.*?)(?= -|$)", command)
    return found is not None and (not found[1].startswith("/") or Path(found[1]).resolve() == database)
