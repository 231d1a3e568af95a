"""Where benchmarks play: a PostgreSQL and a server of their own in a temporary directory, gone afterwards."""

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psycopg
from psycopg import Connection
from sqlalchemy import create_engine

from api.migrations import migrate
from api.postgres import EmbeddedPostgres
from benchmarks.traffic import METER

ROOT = Path(__file__).parent.parent
KEY = "tg_benchmark"
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@contextmanager
def place() -> Iterator[Path]:
    """A directory that PostgreSQL's account can enter, also when root runs the benchmarks."""
    path = Path(tempfile.mkdtemp(prefix="tollgate-bench-")).resolve()
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@contextmanager
def postgres(directory: Path) -> Iterator[str]:
    """A migrated database's URL; entered again with the same directory, it is the same database."""
    with EmbeddedPostgres(directory / "data") as running:
        engine = create_engine(running.url)
        migrate(engine)
        engine.dispose()
        yield running.url


def connect(url: str) -> Connection[Any]:
    return psycopg.connect(url.replace("+psycopg", ""), autocommit=True, options="-c timezone=UTC")


def drop_page_cache() -> bool:
    """Whether the system let us."""
    os.sync()
    with suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3")
        return True
    return False


@dataclass
class Server:
    """A running Tollgate, or another program that says where it is running."""

    url: str
    module: Sequence[str] = ("api", "serve", "--port", "0")
    arguments: Sequence[str] = ()
    port: int = 0
    lines: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        environment = {name: text for name, text in os.environ.items() if not name.startswith("TOLLGATE_")}
        environment |= {"TOLLGATE_DATABASE_URL": self.url, "TOLLGATE_API_KEY": KEY}
        self.process = subprocess.Popen(
            [sys.executable, "-m", *self.module, *self.arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        ready = threading.Event()
        threading.Thread(target=self._listen, args=(ready,), daemon=True).start()
        if not ready.wait(60) or not self.port:
            self.process.kill()
            raise RuntimeError("the server did not start:\n" + "".join(self.lines))
        self._await_answer()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def _listen(self, ready: threading.Event) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(r"running at http://[\d.]+:(\d+)", line):
                self.port = int(found[1])
                ready.set()
        ready.set()

    def _await_answer(self) -> None:
        """Each of its processes may take a moment longer than the first line it prints."""
        deadline = time.monotonic() + 30
        while True:
            try:
                self.ask("GET", "/healthz")
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return

    def ask(self, method: str, path: str, body: object = None) -> Any:
        connection = self.client()
        try:
            return ask(connection, method, path, body)
        finally:
            connection.close()

    def client(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def add_meter(self) -> None:
        with suppress(FileExistsError):
            self.ask("POST", "/api/v1/meters", METER)


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: object = None) -> Any:
    """The answer's body, decoded; raises FileExistsError for 409 and RuntimeError for other problems."""
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    text = answer.read()
    if answer.status == 409:
        raise FileExistsError(text)
    if answer.status >= 400:
        raise RuntimeError(f"{method} {path}: {answer.status} {text[:500]!r}")
    return json.loads(text) if answer.getheader("content-type", "").startswith("application/json") else text


# -- what processes use --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Usage:
    """Of one process: CPU seconds so far, and the MB of memory that it shares with nobody."""

    name: str
    cpu: float
    memory: float


def processes(root: int) -> dict[int, Usage]:
    """All descendants of a process, itself included."""
    parents = {int(path.name): _parent(path) for path in Path("/proc").iterdir() if path.name.isdigit()}
    found, grown = {root}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found, grown = found | more, bool(more)
    return {pid: usage for pid in sorted(found) if (usage := _usage(pid))}


def _parent(path: Path) -> int:
    with suppress(OSError):
        return int((path / "stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _usage(pid: int) -> Usage | None:
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        status = Path(f"/proc/{pid}/status").read_text()
        private = re.search(r"RssAnon:\s+(\d+)", status)
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().split()
        cpu = (int(fields[11]) + int(fields[12])) / CLOCK_TICKS
        return Usage(_name(words) if words else "?", cpu, int(private[1]) / 1024 if private else 0.0)
    return None


def _name(words: list[str]) -> str:
    line = " ".join(words)
    for part, name in (("api worker", "worker"), ("api api", "api"), ("api serve", "serve")):
        if f"-m {part}" in line:
            return name
    return "postgres" if "postgres" in line else words[0].rpartition("/")[2]


class Watch:
    """Looks at the cubes' lag and at memory twice a second, while its block lasts."""

    def __init__(self, url: str, roots: Sequence[int]) -> None:
        self._url, self._roots = url, roots
        self.lags: list[float] = []
        self.memory: dict[str, list[float]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self.before = self._cpu()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        after = self._cpu()
        self.cpu = {name: used - self.before.get(name, 0.0) for name, used in after.items()}

    def _cpu(self) -> dict[str, float]:
        used: dict[str, float] = {}
        with connect(self._url) as connection:
            for name, usage in self._named(connection):
                used[name] = used.get(name, 0.0) + usage.cpu
        return used

    def _named(self, connection: Connection[Any]) -> Iterator[tuple[str, Usage]]:
        """PostgreSQL's processes by what they are for: a backend by whose it is, others as one."""
        known = "SELECT pid, application_name FROM pg_stat_activity WHERE application_name LIKE 'tollgate%'"
        backends = dict(connection.execute(known).fetchall())
        for root in self._roots:
            for pid, usage in processes(root).items():
                yield (f"postgres for {backends[pid]}" if pid in backends else usage.name), usage

    def _run(self) -> None:
        with connect(self._url) as connection:
            while not self._stop.wait(0.5):
                self.lags.append(lag(connection))
                memory: dict[str, float] = {}
                for name, usage in self._named(connection):
                    memory[name] = memory.get(name, 0.0) + usage.memory
                for name, size in memory.items():
                    self.memory.setdefault(name, []).append(size)


def lag(connection: Connection[Any]) -> float:
    """Seconds since the oldest commit was made that no cube has taken in yet."""
    oldest = "SELECT coalesce(extract(epoch FROM clock_timestamp() - min(stored_at)), 0) FROM pending_batches"
    return float(connection.execute(oldest).fetchall()[0][0])


def postmaster(connection: Connection[Any]) -> int:
    """The process id of PostgreSQL's main process."""
    pid = connection.info.backend_pid
    return _parent(Path(f"/proc/{pid}"))
