"""A 204 survives whatever happens to the processes: kill -9 at random moments, ten times over.

Several clients report usage without a pause. After each crash every batch that was acknowledged is there,
each of its events once; one that was not is there whole or not at all, and sent again it is there once.
"""

import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from tests.server import Server, seeded, until

CLIENTS = 4
KILLS = 10
BATCHES = 40
"""At most so many are acknowledged between two kills."""


@dataclass
class Traffic:
    """Numbered batches on their way to a server; which of them were acknowledged is remembered."""

    server: Server
    chance: random.Random
    kind: str = "crash"
    sizes: dict[int, int] = field(default_factory=dict)
    acknowledged: set[int] = field(default_factory=set)
    stopping: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def new_batch(self) -> int:
        with self._lock:
            number = len(self.sizes)
            self.sizes[number] = self.chance.randint(1, 60)
            return number

    def events(self, batch: int) -> list[dict[str, Any]]:
        return [
            {
                "id": f"{self.kind}-{batch}-{i}",
                "source": "crash",
                "type": self.kind,
                "subject": f"s{i % 3}",
                "data": {"batch": batch, "n": batch + i},
            }
            for i in range(self.sizes[batch])
        ]

    def send(self, client: httpx.Client, batch: int) -> int:
        """The answer's status; 0 when there was none."""
        headers = {"Content-Type": "application/cloudevents-batch+json"}
        try:
            status = client.post("/api/v1/events", json=self.events(batch), headers=headers).status_code
        except httpx.TransportError:
            return 0
        if status == 204:
            self.acknowledged.add(batch)
        return status

    def flow_until_the_server_is_gone(self) -> None:
        with self.server.client() as client:
            while status := self.send(client, self.new_batch()):
                assert status in (204, 503)  # 503: its database went first

    def flow_whatever_happens(self) -> None:
        """Each batch is sent again until it is acknowledged."""
        with self.server.client() as client:
            while not self.stopping.is_set():
                batch = self.new_batch()
                while (status := self.send(client, batch)) != 204:
                    assert status == 503

    def flow_through_crashes(self) -> None:
        """As flow_whatever_happens, over broken connections too."""
        with self.server.client() as client:
            while not self.stopping.is_set():
                batch = self.new_batch()
                while (status := self.send(client, batch)) != 204:
                    assert status in (0, 503)

    def go_on_for_a_while(self) -> None:
        """Until a random number of further batches were acknowledged."""
        enough = len(self.acknowledged) + self.chance.randint(1, BATCHES)
        until(lambda: len(self.acknowledged) >= enough)

    @property
    def missing(self) -> set[int]:
        return set(self.sizes) - self.acknowledged

    def check(self, client: httpx.Client) -> None:
        """What is stored: every acknowledged batch once, every other one once or not at all."""
        found = counted(client, f"{self.kind}_count", "batch")
        for batch, size in self.sizes.items():
            assert found.pop(str(batch), 0) in ({size} if batch in self.acknowledged else {0, size}), batch
        assert found == {}

    def check_that_all_is_there_once(self, client: httpx.Client) -> None:
        assert not self.missing
        self.check(client)
        assert counted(client, f"{self.kind}_count") == {"": sum(self.sizes.values())}
        total = sum(event["data"]["n"] for batch in self.sizes for event in self.events(batch))
        assert counted(client, f"{self.kind}_sum") == {"": total}


def counted(client: httpx.Client, meter: str, dimension: str | None = None) -> dict[str, int]:
    parameters = {"groupBy": dimension} if dimension else {}
    answer = client.get(f"/api/v1/meters/{meter}/query", params=parameters)
    assert answer.status_code == 200, answer.text
    return {row["groupBy"].get(dimension, ""): row["value"] for row in answer.json()["data"]}


def make_meters(client: httpx.Client, kind: str = "crash") -> None:
    common = {"eventType": kind, "groupBy": {"batch": "$.batch"}}
    count = {"slug": f"{kind}_count", "aggregation": "COUNT"}
    total = {"slug": f"{kind}_sum", "aggregation": "SUM", "valueProperty": "$.n"}
    for meter in (count, total):
        assert client.post("/api/v1/meters", json={**common, **meter}).status_code == 201


@contextmanager
def clients(flow: Any) -> Iterator[None]:
    """Several threads in `flow` until the block, and whatever ends them, is over."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            flow()
        except BaseException as error:  # noqa: BLE001  it fails the test below
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join(timeout=60)
    assert failures == []


def postmaster(data_dir: Path) -> int:
    """The process id of the embedded PostgreSQL."""
    return int((data_dir / "postgres" / "postmaster.pid").read_text().split()[0])


def has_another_postmaster(data_dir: Path, than: int) -> bool:
    with suppress(FileNotFoundError, IndexError):  # between two lives
        return postmaster(data_dir) != than
    return False


def test_ten_times_kill_9_in_the_middle_of_ingest_loses_nothing_and_counts_nothing_twice(
    place: Path,
) -> None:
    """Every other time PostgreSQL is killed too, as when the machine loses its power."""
    server = Server(arguments=("--data-dir", str(place / "data")))
    traffic = Traffic(server, seeded(20))
    for kill in range(KILLS):
        with server, server.client() as client:
            if not kill:
                make_meters(client)
            traffic.check(client)
            for batch in traffic.missing:
                assert traffic.send(client, batch) == 204
            with clients(traffic.flow_until_the_server_is_gone):
                traffic.go_on_for_a_while()
                if kill % 2:
                    os.kill(postmaster(place / "data"), signal.SIGKILL)
                server.kill()
    assert len(traffic.acknowledged) >= 5 * KILLS
    with server, server.client() as client:
        traffic.check(client)
        for batch in (*sorted(traffic.missing), 0, 1, 2):
            assert traffic.send(client, batch) == 204
        traffic.check_that_all_is_there_once(client)


def test_when_postgresql_is_killed_under_the_server_clients_are_told_to_try_again_and_nothing_is_lost(
    place: Path,
) -> None:
    server = Server(arguments=("--data-dir", str(place / "data")))
    traffic = Traffic(server, seeded(3))
    with server, server.client() as client:
        make_meters(client)
        with clients(traffic.flow_whatever_happens):
            for _ in range(3):
                traffic.go_on_for_a_while()
                killed = postmaster(place / "data")
                os.kill(killed, signal.SIGKILL)
                until(partial(has_another_postmaster, place / "data", killed))
                until(lambda: client.get("/readyz").status_code == 200)
            traffic.go_on_for_a_while()
            traffic.stopping.set()
        traffic.check_that_all_is_there_once(client)
        assert server.stop() == 0
