"""Real Tollgate processes for tests: a server on a port that the system gives, and commands that end."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

import httpx

ADMIN_KEY = "tg_test_admin"
START_SECONDS = 180.0
ROOT = Path(__file__).parent.parent


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for it to come true; fail when it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def seeded(number: int) -> random.Random:
    """Chance that is the same every time."""
    return random.Random(number)  # noqa: S311  nothing secret


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie, which a container's first process may never bury, does not."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return not Path("/proc/self").exists()


@contextmanager
def open_place() -> Iterator[Path]:
    """A directory that PostgreSQL's account can enter when root runs the tests; pytest's own are private."""
    place = Path(tempfile.mkdtemp(prefix="tollgate-http-")).resolve()
    place.chmod(0o711)
    try:
        yield place
    finally:
        shutil.rmtree(place)


def environment_of(extra: Mapping[str, str] = {}) -> dict[str, str]:
    """Ours without any TOLLGATE_*, and `extra`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TOLLGATE_")}
    return {**clean, "COLUMNS": "200", **extra}


def tollgate(
    *arguments: str, environment: Mapping[str, str] = {}, seconds: float = 90
) -> "subprocess.CompletedProcess[str]":
    """Run a command of the command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "api", *arguments],
        env=environment_of(environment),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def refusal(*arguments: str, environment: Mapping[str, str] = {}) -> str:
    """What a command that can't work says: one line on standard error, and a status that is not 0."""
    ended = tollgate(*arguments, environment=environment)
    said = [line for line in ended.stderr.splitlines() if not line.startswith("{")]
    assert ended.returncode not in (0, None), ended.stdout
    assert "Traceback" not in ended.stderr + ended.stdout, ended.stderr
    assert "running at" not in ended.stdout
    assert len(said) == 1, ended.stderr
    assert said[0].startswith("tollgate: "), ended.stderr
    return said[0].removeprefix("tollgate: ")


def assert_problem(
    answer: httpx.Response, status: int, code: str | None = None, field: str | None = None
) -> Any:
    """The answer is application/problem+json in OpenMeter's shape; returns it decoded."""
    assert answer.status_code == status, f"{answer.status_code}: {answer.text}"
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json()
    assert set(found) - {"extensions"} == {"type", "title", "status", "detail", "instance"}
    assert (found["type"], found["status"]) == ("about:blank", status)
    assert found["title"] == HTTPStatus(status).phrase
    assert re.fullmatch(r"urn:request:[\w.:-]+", found["instance"])
    assert found["detail"] or status == HTTPStatus.INTERNAL_SERVER_ERROR
    issues = found.get("extensions", {}).get("validationErrors", [])
    for issue in issues:
        assert {"code", "message", "field", "severity"} <= set(issue) <= {*ISSUE_MEMBERS}
        assert issue["field"].startswith("$")
        assert issue["severity"] in ("critical", "warning")
    if code is not None:
        assert (code, field or "$") in [(issue["code"], issue["field"]) for issue in issues], found
    return found


ISSUE_MEMBERS = ("code", "message", "field", "severity", "hint")


@dataclass
class Server:
    """`with Server(...) as server:` runs until the block ends; `environment` is added to a clean one."""

    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    command: str = "serve"
    port: int = 0
    lines: list[str] = field(default_factory=list)
    url: str = ""
    _process: "subprocess.Popen[str] | None" = None
    _listener: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    @property
    def process(self) -> "subprocess.Popen[str]":
        assert self._process is not None
        return self._process

    def start(self) -> None:
        self.lines.clear()
        self.url = ""
        ready = threading.Event()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "api", self.command, "--port", str(self.port), *self.arguments],
            env=environment_of(
                {"TOLLGATE_API_KEY": ADMIN_KEY, "TOLLGATE_BILLING_INTERVAL": "0", **self.environment}
            ),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._listener = threading.Thread(target=self._listen, args=(self._process, ready), daemon=True)
        self._listener.start()
        assert ready.wait(START_SECONDS), f"the server did not start:\n{self.output}"
        assert self.url, f"the server ended:\n{self.output}"

    def _listen(self, process: "subprocess.Popen[str]", ready: threading.Event) -> None:
        assert process.stdout is not None
        with process.stdout as output:
            for line in output:
                self.lines.append(line)
                if found := re.search(r"running at (http://\S+)", line):
                    self.url = found[1]
                    ready.set()
        ready.set()

    @property
    def children(self) -> dict[str, int]:
        """With several workers: the process ids of those that were started last, by name."""
        started = (json.loads(line) for line in self.lines if '"process_started"' in line)
        return {line["name"]: line["pid"] for line in started}

    def kill(self) -> None:
        """As a crash would: SIGKILL, and no goodbye."""
        self.process.kill()
        self._wait()
        self.url = ""

    def stop(self, kind: signal.Signals = signal.SIGTERM) -> int:
        """Orderly; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(kind)
        return self._wait()

    def _wait(self) -> int:
        """Until it has ended and `output` is complete."""
        status = self.process.wait(timeout=60)
        if self._listener is not None:
            self._listener.join(timeout=60)
        return status

    def client(self, key: str | None = ADMIN_KEY, **options: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, **options)
