"""`serve --workers 2`: a family of processes of which any may die, and no acknowledged event with it."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from sqlalchemy import Engine, text
from structlog.testing import capture_logs

from api.database import BESIDE_THE_POOL, connections_for_each, connector
from api.listening import bound
from api.postgres import running_url
from api.postgres.processes import commands
from api.supervisor import FIRST_PAUSE, Child
from metering.errors import UnavailableError
from tests.server import ADMIN_KEY, ROOT, Server, alive, environment_of, open_place, refusal, seeded, until
from tests.test_crash import Traffic, clients, counted, make_meters, postmaster

NAMES = ("api 1", "api 2", "worker")
KINDS = [f"crash{i}" for i in range(9)]
_kinds = iter(KINDS)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A data directory that the module's servers use one after the other."""
    with open_place() as place:
        with Server(arguments=("--data-dir", str(place / "data"))) as server, server.client() as client:
            for kind in KINDS:
                make_meters(client, kind)
            assert server.stop() == 0
        yield place / "data"


@pytest.fixture
def family(home: Path) -> Server:
    """Not yet started."""
    return Server(arguments=("--data-dir", str(home), "--workers", "2"))


@pytest.fixture
def traffic(family: Server) -> Traffic:
    """Events of a type of its own, for which there are meters."""
    return Traffic(family, seeded(5), kind=next(_kinds))


@contextmanager
def database(home: Path) -> Iterator["psycopg.Connection[Any]"]:
    """A look into the database of a server that runs."""
    url = running_url(home)
    assert url is not None
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        yield connection


def one(connection: "psycopg.Connection[Any]", query: str) -> Any:
    row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


# -- all of them work ----------------------------------------------------------------------------------------


def test_every_api_process_takes_in_usage_and_the_worker_folds_it(
    family: Server, traffic: Traffic, home: Path
) -> None:
    ingesting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tollgate ingest'"
    with family, database(home) as connection:
        assert tuple(family.children) == NAMES
        for _ in range(100):
            with family.client() as client:
                assert traffic.send(client, traffic.new_batch()) == 204
            if one(connection, ingesting) == 2:
                break
        assert one(connection, ingesting) == 2
        until(lambda: one(connection, "SELECT count(*) FROM pending_batches") == 0)
        with family.client() as client:
            traffic.check_that_all_is_there_once(client)


def test_256_connections_lose_nothing(family: Server, home: Path) -> None:
    """Each sends one event after the other, all at the same time."""
    kind, connections, each = "crowd", 256, 5

    async def main() -> Counter[int]:
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        async with httpx.AsyncClient(
            base_url=family.url, headers=headers, limits=limits, timeout=60
        ) as client:

            async def report(number: int) -> list[int]:
                events = [
                    {"id": f"{number}-{i}", "source": kind, "type": kind, "subject": "s"} for i in range(each)
                ]
                return [(await client.post("/api/v1/events", json=event)).status_code for event in events]

            answers = await asyncio.gather(*map(report, range(connections)))
            return Counter(status for statuses in answers for status in statuses)

    with family, database(home) as connection:
        assert asyncio.run(main()) == {204: connections * each}
        assert one(connection, f"SELECT count(*) FROM events WHERE type = '{kind}'") == connections * each


def test_no_secret_is_on_a_command_line(family: Server, home: Path) -> None:
    family.environment["TOLLGATE_DATABASE_URL"] = ""
    with family:
        url = running_url(home)
        assert url is not None
        children = family.children.values()
        until(lambda: all(commands()[pid] for pid in children))  # they begin before the kernel has that ready
        lines = [commands()[pid] for pid in children]
        assert len(lines) == len(NAMES)
        for line in lines:
            assert "-m api" in line
            assert ADMIN_KEY not in line
            assert "postgres" not in line


# -- endings -------------------------------------------------------------------------------------------------


def replaced(family: Server, name: str, than: int) -> bool:
    return family.children[name] != than and alive(family.children[name])


def test_kill_9_of_an_api_process_loses_nothing_and_another_takes_its_place(
    family: Server, traffic: Traffic
) -> None:
    with family:
        with clients(traffic.flow_through_crashes):
            for name in ("api 1", "api 2", "api 1"):
                traffic.go_on_for_a_while()
                pid = family.children[name]
                os.kill(pid, signal.SIGKILL)
                until(lambda name=name, pid=pid: replaced(family, name, pid))  # type: ignore[misc]
            traffic.go_on_for_a_while()
            traffic.stopping.set()
        with family.client() as client:
            traffic.check_that_all_is_there_once(client)
        assert family.stop() == 0
    assert family.output.count('"process_ended"') == 3


def test_kill_9_of_the_worker_and_another_folds_what_it_left(
    family: Server, traffic: Traffic, home: Path
) -> None:
    with family, family.client() as client, database(home) as connection:
        for _ in range(3):
            pid = family.children["worker"]
            assert traffic.send(client, traffic.new_batch()) == 204
            os.kill(pid, signal.SIGKILL)
            assert traffic.send(client, traffic.new_batch()) == 204
            until(lambda pid=pid: replaced(family, "worker", pid))  # type: ignore[misc]
            until(lambda: one(connection, "SELECT count(*) FROM pending_batches") == 0)
        traffic.check_that_all_is_there_once(client)


def test_kill_9_of_the_parent_ends_all_and_the_same_command_works_again_at_once(
    family: Server, traffic: Traffic, home: Path
) -> None:
    with family, clients(traffic.flow_until_the_server_is_gone):
        traffic.go_on_for_a_while()
        pids = [*family.children.values(), postmaster(home)]
        family.port = int(family.url.rpartition(":")[2])
        family.kill()
    until(lambda: not any(map(alive, pids)))
    again = Server(arguments=family.arguments, port=family.port)
    with family:
        with clients(traffic.flow_until_the_server_is_gone):
            traffic.go_on_for_a_while()
            family.process.kill()  # and nobody waits for anything
        with again, again.client() as client:
            traffic.check(client)
            for batch in traffic.missing:
                assert traffic.send(client, batch) == 204
            traffic.check_that_all_is_there_once(client)


@pytest.mark.parametrize(("kind", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_family_that_is_told_to_stop_first_finishes_what_it_has_begun(
    family: Server, traffic: Traffic, home: Path, kind: signal.Signals, status: int
) -> None:
    with family:
        with clients(traffic.flow_until_the_server_is_gone):
            traffic.go_on_for_a_while()
            pids = [*family.children.values(), postmaster(home)]
            assert family.stop(kind) == status
        assert not any(map(alive, pids))
    assert "Traceback" not in family.output
    assert "rror" not in family.output
    with family, family.client() as client:
        traffic.check(client)


def test_a_child_that_is_told_to_stop_does_so_in_order_and_another_takes_its_place(
    family: Server, traffic: Traffic
) -> None:
    """So that a person can renew them one after the other."""
    with family, family.client() as client:
        until(lambda: client.get("/readyz").status_code == 200)
        for name in NAMES:
            pid = family.children[name]
            os.kill(pid, signal.SIGTERM)
            until(lambda name=name, pid=pid: replaced(family, name, pid))  # type: ignore[misc]
        assert "Traceback" not in family.output
        batch = traffic.new_batch()
        until(lambda: traffic.send(client, batch) == 204)


def test_a_child_that_hangs_is_killed_by_a_second_signal(family: Server) -> None:
    with family:
        hanging = family.children["api 1"]
        os.kill(hanging, signal.SIGSTOP)
        family.process.send_signal(signal.SIGTERM)
        until(lambda: not alive(family.children["worker"]))
        assert family.stop() == 0
    assert not alive(hanging)
    assert '"process_killed"' in family.output


def test_who_dies_at_once_waits_longer_each_time_before_the_next_life() -> None:
    child = Child("lost", ("no-such-command",))
    lifeline, end = os.pipe()
    deaths: list[Any] = []
    with capture_logs() as lines:
        deadline = time.monotonic() + 60
        while len(deaths) < 4 and time.monotonic() < deadline:
            child.keep(environment_of(), lifeline)
            deaths = [line for line in lines if line["event"] == "process_ended"]
    os.close(lifeline)
    os.close(end)
    assert [line["again_in_seconds"] for line in deaths] == [0, FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]
    assert "status 2" in deaths[0]["reason"]


# -- the port and the connections ----------------------------------------------------------------------------


def test_a_port_that_becomes_free_within_moments_is_taken() -> None:
    with bound("127.0.0.1", 0) as taken:
        port = taken.kept.getsockname()[1]
        threading.Timer(0.3, taken.close).start()
        with bound("127.0.0.1", port, processes=2) as both:
            assert [listening.getsockname()[1] for listening in both.sockets] == [port, port]


def test_while_a_process_is_away_who_connects_reaches_another() -> None:
    with bound("127.0.0.1", 0, processes=2) as taken:
        address = taken.kept.getsockname()
        taken.sockets[0].close()
        with taken.another():  # its successor is not ready yet
            for _ in range(50):
                with socket.create_connection(address, timeout=5):
                    taken.sockets[1].accept()[0].close()


def test_a_port_that_others_listen_on_together_is_in_use(family: Server) -> None:
    with family:
        port = family.url.rpartition(":")[2]
        said = refusal("serve", "--port", port, "--workers", "2", "--data-dir", "/nowhere")
        assert said.startswith(f"can't listen on 127.0.0.1:{port}: Address already in use")


@pytest.mark.parametrize("processes", [1, 2, 3, 5, 8])
def test_all_processes_together_have_no_more_connections_than_the_database_allows(
    engine: Engine, processes: int
) -> None:
    with engine.connect() as connection:
        most = int(connection.execute(text("SHOW max_connections")).scalar_one())
    share = connections_for_each(engine, processes=processes, wanted=30)
    assert 2 <= share <= 30
    worker_and_people = 2 + 3
    assert processes * (share + BESIDE_THE_POOL) + worker_and_people <= most
    assert connections_for_each(engine, processes=processes, wanted=4) == min(4, share)


def test_more_processes_than_the_database_has_connections_for_are_refused(
    engine: Engine, database_url: str
) -> None:
    with pytest.raises(UnavailableError):
        connections_for_each(engine, processes=500, wanted=30)
    environment = {"TOLLGATE_DATABASE_URL": database_url, "TOLLGATE_WORKERS": "500"}
    said = refusal("serve", "--port", "0", environment=environment)
    assert "max_connections" in said
    assert "--workers" in said


# -- several machines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["api", "worker"])
def test_alone_an_api_process_or_a_worker_needs_a_database_that_all_share(command: str) -> None:
    said = refusal(command)
    assert said.startswith(f"`tollgate {command}` needs TOLLGATE_DATABASE_URL")


def test_api_processes_and_a_worker_share_a_database_without_a_parent(
    engine: Engine, database_url: str
) -> None:
    environment = {"TOLLGATE_DATABASE_URL": database_url}
    first, second = (Server(command="api", environment=environment) for _ in range(2))
    traffic = Traffic(first, seeded(7))
    with first, second, first.client() as one_client, second.client() as another, connector(engine)() as sql:
        make_meters(one_client)
        batches = [traffic.new_batch() for _ in range(10)]
        for batch in batches:
            assert traffic.send(one_client, batch) == traffic.send(another, batch) == 204
        assert one(sql, "SELECT count(*) FROM pending_batches") > 0
        with working(environment) as worker:
            until(lambda: one(sql, "SELECT count(*) FROM pending_batches") == 0)
            worker.terminate()
            assert worker.wait(timeout=30) == 0
        assert counted(another, "crash_count") == {"": sum(traffic.sizes.values())}
        assert first.stop() == second.stop() == 0


@contextmanager
def working(environment: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-m", "api", "worker"]
    with subprocess.Popen(command, cwd=ROOT, env=environment_of(environment)) as worker:
        try:
            yield worker
        finally:
            worker.kill()
