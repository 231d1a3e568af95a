"""Starting and stopping: what can't work is said in one line; what was acknowledged outlives every ending."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.settings import Settings, from_environment
from metering.errors import InvalidError
from tests.server import ADMIN_KEY, Server, alive, environment_of, open_place, refusal, seeded, until

AS_ROOT = os.geteuid() == 0


def postmaster(data_dir: Path) -> int:
    return int((data_dir / "postgres" / "postmaster.pid").read_text().split()[0])


def free_port() -> int:
    """A port that nobody listens on, as far as anybody can know."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def tmpfs(directory: Path, *options: str) -> Iterator[Path]:
    """A file system of its own in memory; the test is skipped where nobody may mount one."""
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", ",".join(("mode=711", *options)), "tmpfs", str(directory)]
    mounted = (
        subprocess.run(command, capture_output=True, text=True, check=False)
        if shutil.which("mount")
        else None
    )
    if mounted is None or mounted.returncode != 0:
        pytest.skip("needs the right to mount a file system")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A data directory with a database, which every test leaves stopped and startable."""
    with open_place() as place:
        with Server(arguments=("--data-dir", str(place / "data"))) as server:
            assert server.stop() == 0
        yield place / "data"


# -- what can't start ----------------------------------------------------------------------------------------


def test_a_second_server_on_one_data_directory_says_why_and_harms_nothing(home: Path) -> None:
    with Server(arguments=("--data-dir", str(home))) as server, server.client() as client:
        said = refusal("serve", "--port", "0", "--data-dir", str(home))
        assert str(home) in said
        assert str(server.process.pid) in said
        assert client.get("/readyz").status_code == 200


def test_a_port_in_use_is_said_before_anything_is_started(place: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refusal("serve", "--port", str(port), "--data-dir", str(place / "data"))
    assert said.startswith(f"can't listen on 127.0.0.1:{port}: Address already in use")
    assert "--port" in said
    assert not (place / "data").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--host", "0.0.0.0", "--no-auth"), "loopback"),  # noqa: S104  it must be refused
        (("--host", "::", "--no-auth"), "loopback"),
        (("--host", "192.0.2.1"), "can't listen on 192.0.2.1"),
    ],
)
def test_an_address_that_can_not_or_must_not_be_listened_on_is_refused(
    place: Path, arguments: tuple[str, ...], says: str
) -> None:
    assert says in refusal("serve", "--port", "0", "--data-dir", str(place / "data"), *arguments)
    assert not (place / "data").exists()


CLOSED = "postgresql://tollgate:hunter2@127.0.0.1:{port}/tollgate"


@pytest.mark.parametrize(
    ("url", "says", "command"),
    [
        (CLOSED, "can't use the database", ("serve", "--port", "0")),
        (CLOSED, "can't use the database", ("keys", "list")),
        ("postgresql://127.0.0.1:{port}/x?colour=red", "can't use the database", ("migrate",)),
        (
            "postgresql://127.0.0.1:hunter2/x",
            "TOLLGATE_DATABASE_URL must look like",
            ("serve", "--port", "0"),
        ),
    ],
)
def test_a_database_that_can_not_be_used_is_said_in_one_line_without_its_password(
    url: str, says: str, command: tuple[str, ...]
) -> None:
    said = refusal(*command, environment={"TOLLGATE_DATABASE_URL": url.format(port=free_port())})
    assert says in said
    assert "hunter2" not in said


@pytest.mark.parametrize(
    ("name", "nonsense", "says"),
    [
        ("PORT", "many", "TOLLGATE_PORT must be a number below 65536, not 'many'"),
        ("PORT", "65536", "TOLLGATE_PORT must be a number below 65536, not '65536'"),
        ("PORT", "-1", "TOLLGATE_PORT must be a number"),
        ("WORKERS", "0", "TOLLGATE_WORKERS must be a number from 1 to"),
        ("WORKERS", "two", "TOLLGATE_WORKERS must be a number from 1 to"),
        ("BILLING_INTERVAL", "-1", "TOLLGATE_BILLING_INTERVAL must be a number from 0 to"),
        ("TEST_CLOCK", "soon", "'soon' is not an instant"),
        ("CONNECTIONS", "100000", "TOLLGATE_CONNECTIONS must be a number from 1 to"),
        (
            "KONG_SUBJECT",
            "consumer,shoe size",
            "TOLLGATE_KONG_SUBJECT may list consumer, custom_id, username",
        ),
        (
            "DATABASE_URL",
            "mysql://root:hunter2@127.0.0.1/x",
            "TOLLGATE_DATABASE_URL must look like postgresql://",
        ),
        ("DATABASE_URL", "hunter2", "TOLLGATE_DATABASE_URL must look like"),
        ("DATABASE_URL", "postgresql://:hunter2", "TOLLGATE_DATABASE_URL must look like"),
        ("DATABASE_URL", "postgresql://hunter2:x@[::1/y", "TOLLGATE_DATABASE_URL must look like"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named_without_its_secrets(
    name: str, nonsense: str, says: str
) -> None:
    with pytest.raises(InvalidError) as refused:
        from_environment({f"TOLLGATE_{name}": nonsense})
    assert says in refused.value.detail
    assert "hunter2" not in refused.value.detail


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2", "postgresql+asyncpg"])
def test_any_spelling_of_a_postgresql_url_gets_the_driver_that_is_installed(scheme: str) -> None:
    url = from_environment({"TOLLGATE_DATABASE_URL": f"{scheme}://u:p%40@h:1/d?sslmode=require"}).database_url
    assert url == "postgresql+psycopg://u:p%40@h:1/d?sslmode=require"


def test_settings_survive_the_way_through_the_environment_to_a_child() -> None:
    """Each of them, so that a new one is not forgotten."""
    settings = Settings(
        data_dir=Path("/a b"),
        database_url="postgresql+psycopg://u:p%40@/d?host=/tmp/x&port=5432",
        host="::1",
        port=0,
        api_key="tg_1",
        auth=False,
        kong_subject=("username", "consumer"),
        meters_file=Path("/meters.yaml"),
        workers=3,
        connections=7,
        retire_after=timedelta(days=400),
        billing_interval=5,
        test_clock=datetime(2026, 1, 1, tzinfo=UTC),
        invoice_template=Path("/invoice.html"),
    )
    default = Settings()
    assert [name for name in settings.__slots__ if getattr(settings, name) == getattr(default, name)] == []
    assert from_environment(settings.as_environment()) == settings
    assert from_environment(default.as_environment()) == default


def test_settings_that_are_empty_are_as_good_as_unset() -> None:
    names = ("DATA_DIR", "DATABASE_URL", "HOST", "PORT", "API_KEY", "NO_AUTH", "KONG_SUBJECT")
    assert from_environment({f"TOLLGATE_{name}": "" for name in names}) == Settings()
    assert not from_environment({"TOLLGATE_NO_AUTH": "yes"}).auth
    assert from_environment({"TOLLGATE_NO_AUTH": "false"}).auth


def test_a_data_directory_that_is_a_file_is_refused(place: Path) -> None:
    (place / "data").write_text("mine")
    assert str(place / "data") in refusal("serve", "--port", "0", "--data-dir", str(place / "data"))
    assert (place / "data").read_text() == "mine"


def test_a_read_only_data_directory_is_refused(place: Path) -> None:
    if not AS_ROOT:
        (place / "ro").mkdir(mode=0o555)
        assert "No permission" in refusal("serve", "--port", "0", "--data-dir", str(place / "ro" / "data"))
        return
    with tmpfs(place / "ro", "ro") as directory:
        said = refusal("serve", "--port", "0", "--data-dir", str(directory / "data"))
    assert str(directory) in said
    assert "read-only" in said


@pytest.mark.parametrize("size", ["64k", "20m"])
def test_a_full_disk_is_refused(place: Path, size: str) -> None:
    with tmpfs(place / "small", f"size={size}") as directory:
        said = refusal("serve", "--port", "0", "--data-dir", str(directory / "data"))
        assert str(directory) in said
        assert "free" in said
        left = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
        assert left < 10_000  # no half of a database


# -- endings -------------------------------------------------------------------------------------------------


def event(event_id: str, kind: str) -> dict[str, str]:
    return {"id": event_id, "source": kind, "type": kind, "subject": "s"}


class Reporter:
    """Threads that report usage until the server is gone, and know what was acknowledged."""

    def __init__(self, server: Server, kind: str) -> None:
        self.server = server
        self.kind = kind
        self.acknowledged: set[str] = set()
        self.strange: list[object] = []
        self.threads = [threading.Thread(target=self._report, args=(i,), daemon=True) for i in range(4)]
        for thread in self.threads:
            thread.start()

    def _report(self, thread: int) -> None:
        chance = seeded(thread)
        with self.server.client() as client:
            for number in range(100_000):
                events = [event(f"{thread}-{number}-{i}", self.kind) for i in range(chance.randint(1, 200))]
                try:
                    status = client.post("/api/v1/events", json=events).status_code
                except httpx.TransportError:
                    return
                if status == 204:
                    self.acknowledged.update(event["id"] for event in events)
                elif status != 503:  # "the server is shutting down"
                    self.strange.append(status)

    def join(self) -> None:
        for thread in self.threads:
            thread.join(timeout=30)
            assert not thread.is_alive()
        assert self.strange == []


def stored(client: httpx.Client, kind: str) -> Any:
    meter = {"slug": kind, "eventType": kind, "aggregation": "COUNT"}
    assert client.post("/api/v1/meters", json=meter).status_code in (201, 409)
    rows = client.get(f"/api/v1/meters/{kind}/query").json()["data"]
    return rows[0]["value"] if rows else 0


@pytest.mark.parametrize(("kind", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_server_that_is_told_to_stop_first_finishes_what_it_has_begun(
    home: Path, kind: signal.Signals, status: int
) -> None:
    """All that was acknowledged is stored, PostgreSQL has ended in order, and the directory starts again."""
    server, name = Server(arguments=("--data-dir", str(home))), kind.name.lower()
    with server:
        pid = postmaster(home)
        reporter = Reporter(server, name)
        until(lambda: len(reporter.acknowledged) > 2000)
        assert server.stop(kind) == status
        reporter.join()
    assert "Traceback" not in server.output
    assert "rror" not in server.output
    assert not alive(pid)
    assert not (home / "postgres" / "postmaster.pid").exists()
    with server, server.client() as client:
        found = stored(client, name)
        assert found >= len(reporter.acknowledged)
        again = [event(event_id, name) for event_id in reporter.acknowledged]
        assert client.post("/api/v1/events", json=again).status_code == 204
        assert stored(client, name) == found
    assert "was not properly shut down" not in (home / "postgres.log").read_text()


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_stopped_while_it_starts_leaves_nothing_behind(
    place: Path, kind: signal.Signals
) -> None:
    """PostgreSQL is being made, or is starting, when the signal comes."""
    data_dir = place / "data"
    command = ["-m", "api", "serve", "--port", "0", "--data-dir", str(data_dir)]
    starting = start(command)
    until((data_dir / "lock").exists)
    starting.send_signal(kind)
    _, error = starting.communicate(timeout=60)
    assert starting.returncode == (0 if kind == signal.SIGTERM else 130)
    assert "Traceback" not in error
    with Server(arguments=("--data-dir", str(data_dir))) as server, server.client() as client:
        assert client.get("/readyz").status_code == 200


TOLD_WHILE_IT_COLLECTS_GARBAGE = """
import os, signal, sys
from api import serve
from api.settings import Settings

class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            pass

do = getattr(serve, sys.argv[1])

def dying_meanwhile(*arguments):
    Dying()
    return do(*arguments)

setattr(serve, sys.argv[1], dying_meanwhile)
settings = Settings(database_url=sys.argv[3], port=0, workers=int(sys.argv[4]))
getattr(serve, sys.argv[2])(settings)
"""


@pytest.mark.parametrize(
    ("when", "what", "workers"),
    [
        ("_migrated", "serve", 1),
        ("_migrated", "serve", 2),
        ("_migrated", "work", 1),
        ("_spare_the_garbage_collector", "serve", 1),
    ],
)
def test_a_signal_that_comes_while_garbage_is_collected_is_not_lost(
    empty_database_url: str, when: str, what: str, workers: int
) -> None:
    started = start(["-c", TOLD_WHILE_IT_COLLECTS_GARBAGE, when, what, empty_database_url, str(workers)])
    try:
        _, error = started.communicate(timeout=60)
    finally:
        started.kill()
    assert (started.returncode, "SystemExit" in error) == (0, when == "_migrated"), error


def start(command: list[str]) -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, *command], env=environment_of(), stdout=pipe, stderr=pipe, text=True
    )


def test_a_restart_keeps_the_catalog_and_takes_another_admin_key(home: Path) -> None:
    server = Server(arguments=("--data-dir", str(home)))
    with server, server.client() as client:
        stored(client, "kept")
        feature = {"key": "kept", "name": "Kept", "meterSlug": "kept"}
        made = client.post("/api/v1/features", json=feature).json()
        assert server.stop() == 0
    server.environment["TOLLGATE_API_KEY"] = "tg_another"
    with server, server.client("tg_another") as client, server.client(ADMIN_KEY) as former:
        assert client.get("/api/v1/features/kept").json() == made
        assert former.get("/api/v1/features/kept").status_code == 401
