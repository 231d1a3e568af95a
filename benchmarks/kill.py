"""Kill -9 of whatever runs, again and again under load; then every acknowledged event is there exactly once.

    python -m benchmarks.kill [ROUNDS [SEED]]

Clients send overlapping batches without a pause, each until it is acknowledged. At a random moment one of the
processes is killed: an API process, the worker, the parent of all, one of PostgreSQL's, or PostgreSQL's main
one. When usage is taken in again, the next round begins. Status 0 when all holds.
"""

import os
import random
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
from rich.console import Console
from rich.table import Table

from api.postgres import running_url
from metering.cubes.checking import check_cubes
from tests.server import Server, open_place

CLIENTS = 6
WINDOW = 400
"""Batches are drawn from so many events at a time, so that they overlap; it moves on as they are sent."""
CALM = 1.5
"""At most so many seconds of life between two deaths."""
PATIENCE = 120.0
METER = "kill_sum"
VICTIMS = ("api 1", "api 2", "worker", "parent", "a backend", "postmaster")


def event(number: int) -> dict[str, Any]:
    """Always the same for one number."""
    return {
        "id": f"{number}",
        "source": "kill",
        "type": "kill",
        "subject": f"s{number % 50}",
        "data": {"n": value(number), "color": ("red", "green", "blue")[number % 3]},
    }


def value(number: int) -> int:
    return number * 7919 % 1000


@dataclass
class Load:
    """What was sent, and what of it was acknowledged."""

    server: Server
    sent: set[int] = field(default_factory=set)
    acknowledged: set[int] = field(default_factory=set)
    answers: Counter[int] = field(default_factory=Counter)
    stopping: threading.Event = field(default_factory=threading.Event)
    failures: list[BaseException] = field(default_factory=list)
    _next: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def flowing(self, chance: random.Random) -> Iterator[None]:
        seeds = [chance.random() for _ in range(CLIENTS)]
        threads = [threading.Thread(target=self._flow, args=(random.Random(seed),)) for seed in seeds]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stopping.set()
            for thread in threads:
                thread.join(PATIENCE)

    def _flow(self, chance: random.Random) -> None:
        try:
            while not self.stopping.is_set():
                self._send_until_acknowledged(self._batch(chance))
        except BaseException as error:  # noqa: BLE001  reported at the end
            self.failures.append(error)

    def _batch(self, chance: random.Random) -> list[int]:
        with self._lock:
            self._next += 20
            numbers = chance.sample(range(self._next, self._next + WINDOW), chance.randint(1, 80))
            self.sent.update(numbers)
            return numbers

    def _send_until_acknowledged(self, numbers: Sequence[int]) -> None:
        deadline = time.monotonic() + PATIENCE
        while (status := self.send(numbers)) != 204:
            if status not in (0, 503) or time.monotonic() > deadline:
                raise AssertionError(f"answered {status}")
            time.sleep(0.02)
        with self._lock:
            self.acknowledged.update(numbers)

    def send(self, numbers: Sequence[int]) -> int:
        """Over a new connection each time, so that every process gets its share; 0 without an answer."""
        status = 0
        body = [event(number) for number in numbers]
        with (
            suppress(httpx.TransportError, httpx.UnsupportedProtocol),
            self.server.client(verify=False) as client,
        ):
            status = client.post("/api/v1/events", json=body).status_code
        with self._lock:
            self.answers[status] += 1
        return status

    def until_taken_in(self) -> None:
        """A request that begins now is acknowledged, with the last event of all, which every round sends."""
        self._send_until_acknowledged([0])


@dataclass
class Family:
    server: Server
    data_dir: Path
    chance: random.Random

    def kill(self, victim: str) -> None:
        """Returns once the dead one has a successor."""
        match victim:
            case "parent":
                self.server.port = int(self.server.url.rpartition(":")[2])
                self.server.process.kill()
                self.server.process.wait()
                self.server.start()  # while its children are about to end
            case "postmaster":
                pid = self._postmaster()
                os.kill(pid, signal.SIGKILL)
                wait_until(lambda: self._postmaster() not in (pid, 0))
            case "a backend":
                self._kill_a_backend()
            case _:
                pid = self.server.children[victim]
                os.kill(pid, signal.SIGKILL)
                wait_until(lambda: self.server.children[victim] != pid)

    def _postmaster(self) -> int:
        """0 between two lives."""
        with suppress(FileNotFoundError, IndexError):
            return int((self.data_dir / "postgres" / "postmaster.pid").read_text().split()[0])
        return 0

    def _kill_a_backend(self) -> None:
        """One of ours, or of PostgreSQL's own; all others end with it, ours too."""
        with self.connect() as connection:
            rows = connection.execute(
                "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            ).fetchall()
            os.kill(self.chance.choice(rows)[0], signal.SIGKILL)
            wait_until(lambda: not answers(connection))

    def connect(self) -> "psycopg.Connection[Any]":
        """As soon as it can be."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with suppress(psycopg.OperationalError):
                if url := running_url(self.data_dir):
                    return psycopg.connect(url.replace("+psycopg", ""), autocommit=True)
            time.sleep(0.05)
        raise AssertionError("PostgreSQL did not come back")


def answers(connection: "psycopg.Connection[Any]") -> bool:
    with suppress(psycopg.OperationalError):
        connection.execute("SELECT 1")
        return True
    return False


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("it did not happen in time")
        time.sleep(0.02)


def kill_again_and_again(family: Family, load: Load, rounds: int) -> dict[str, list[float]]:
    """The seconds from each death until usage was taken in again, by victim."""
    away: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds):
        time.sleep(family.chance.uniform(0, CALM))
        victim = VICTIMS[number] if number < len(VICTIMS) else family.chance.choice(VICTIMS)
        began = time.monotonic()
        family.kill(victim)
        load.until_taken_in()
        away[victim].append(time.monotonic() - began)
        if load.failures:
            break
    return away


FOLDED = """
    SELECT FROM usage_cubes WHERE event_type = 'kill'
    AND NOT EXISTS (SELECT FROM pending_batches)
    AND NOT EXISTS (SELECT FROM usage_cubes WHERE built_to IS NOT NULL)"""
"""Nothing is left to do, and there is a cube that can be wrong."""


def differences(family: Family, load: Load) -> Iterator[str]:
    """All that does not hold, once everything is folded."""
    yield from (f"a client failed: {failure!r}" for failure in load.failures)
    if other := set(load.answers) - {204, 503, 0}:
        yield f"statuses {other}"
    with family.connect() as connection:
        wait_until(lambda: connection.execute(FOLDED).fetchall())
        rows = connection.execute("SELECT id::bigint FROM events WHERE type = 'kill'").fetchall()
        yield from check_cubes(connection)
    stored = [number for (number,) in rows]
    if len(stored) != len(set(stored)):
        yield f"{len(stored) - len(set(stored))} events are there twice"
    if lost := load.acknowledged - set(stored):
        yield f"{len(lost)} acknowledged events are lost, as {min(lost)}"
    if invented := set(stored) - load.sent - {0}:
        yield f"{len(invented)} events were never sent, as {min(invented)}"
    yield from meter_differences(load.server, sum(map(value, set(stored))))


def meter_differences(server: Server, total: int) -> Iterator[str]:
    with server.client() as client:
        for group in ("", "?groupBy=color", "?groupBy=subject"):
            rows = client.get(f"/api/v1/meters/{METER}/query{group}").json()["data"]
            if (answered := sum(row["value"] for row in rows)) != total:
                yield f"the meter{group} says {answered}, its events {total}"


def report(console: Console, load: Load, away: dict[str, list[float]], seconds: float) -> None:
    table = Table("killed with -9", "times", "away: median s", "longest s", title="kill -9 under load")
    for victim in VICTIMS:
        if times := sorted(away[victim]):
            table.add_row(victim, f"{len(times)}", f"{times[len(times) // 2]:.2f}", f"{times[-1]:.2f}")
    console.print(table)
    console.print(
        f"{sum(map(len, away.values()))} deaths in {seconds:.0f} s; {len(load.acknowledged):,} events"
        f" acknowledged in {load.answers[204]:,} requests; {load.answers[503]:,} told to come back (503),"
        f" {load.answers[0]:,} broken off"
    )


def main(rounds: int = 100, seed: int = 1) -> bool:
    console, chance = Console(), random.Random(seed)
    with open_place() as place:
        server = Server(arguments=("--data-dir", str(place / "data"), "--workers", "2"))
        family, load = Family(server, place / "data", chance), Load(server)
        with server:
            with server.client() as client:
                meter = {"slug": METER, "eventType": "kill", "aggregation": "SUM", "valueProperty": "$.n"}
                body = {**meter, "groupBy": {"color": "$.color"}}
                assert client.post("/api/v1/meters", json=body).status_code == 201
            began = time.monotonic()
            with load.flowing(chance):
                away = kill_again_and_again(family, load, rounds)
            report(console, load, away, time.monotonic() - began)
            found = [*differences(family, load)]
            for difference in found:
                console.print(f"[red]✗[/] {difference}")
            if not found:
                console.print(
                    "[green]✓[/] every acknowledged event is stored once; the cubes equal their events"
                )
    return not found


if __name__ == "__main__":
    raise SystemExit(not main(*map(int, sys.argv[1:3])))
