"""How fast events are taken in, over HTTP, as far as COMMIT, with the cubes kept up."""

import time
from dataclasses import dataclass
from typing import Any

from psycopg import Connection

from benchmarks.load import Load, Result, measure
from benchmarks.stage import KEY, Server, Watch, connect, lag, place, postgres, postmaster
from benchmarks.yardsticks import y1

STORELESS = ("benchmarks.storeless",)
LAG_SECONDS = 2.0
Y1_ROWS = 100_000


@dataclass(frozen=True)
class Batches:
    """`per_commit` is in events; `caught_up` the seconds from the last answer until the cubes' lag was small.

    `cpu` is in microseconds an event, by process; `grown` in MB of private memory from the middle of the run
    to its end, by process.
    """

    result: Result
    stored: int
    per_commit: float
    y1: float
    worst_lag: float
    caught_up: float | None
    cpu: dict[str, float]
    memory: dict[str, tuple[float, float]]


def batches(*, seconds: float, workers: int = 2, connections: int = 32) -> Batches:
    """100 events in a request."""
    with place() as directory, postgres(directory) as url, connect(url) as connection:
        with Server(url, arguments=("--workers", str(workers))) as server:
            server.add_meter()
            warm_up(server)
            before = counted(connection)
            with Watch(url, [server.process.pid, postmaster(connection)]) as watch:
                result = measure(Load(server.port, KEY, 100, connections, seconds, seed=1))
            caught_up = seconds_until_caught_up(connection)
        stored, commits = (now - then for now, then in zip(counted(connection), before, strict=True))
        per_commit = stored / commits
        best = y1(connection, rows=round(per_commit), commits=max(1, round(Y1_ROWS / per_commit)))
    cpu = watch.cpu | {"load generator": result.cpu_seconds}
    return Batches(
        result=result,
        stored=stored,
        per_commit=per_commit,
        y1=best,
        worst_lag=max(watch.lags, default=0.0),
        caught_up=caught_up,
        cpu={name: used / stored * 1e6 for name, used in cpu.items() if used / stored > 1e-7},
        memory={
            name: (seen[len(seen) // 2], seen[-1]) for name, seen in watch.memory.items() if len(seen) > 3
        },
    )


def warm_up(server: Server, *, seed: int = 99) -> None:
    measure(Load(server.port, KEY, 100, 8, 2.0, seed))


def counted(connection: Connection[Any]) -> tuple[int, int]:
    """Events and commits so far."""
    row = connection.execute("SELECT count(*), count(DISTINCT batch) FROM events").fetchall()[0]
    return int(row[0]), int(row[1])


def seconds_until_caught_up(connection: Connection[Any], limit: float = 12.0) -> float | None:
    began = time.monotonic()
    while lag(connection) > LAG_SECONDS:
        if time.monotonic() - began > limit:
            return None
        time.sleep(0.1)
    return time.monotonic() - began


@dataclass(frozen=True)
class Singles:
    result: Result
    storeless: Result
    stored: int


def singles(*, seconds: float, connections: int, workers: int = 1) -> Singles:
    """One event in a request, in turns with the same route without a store."""
    with place() as directory, postgres(directory) as url, connect(url) as connection:
        with Server(url, arguments=("--workers", str(workers))) as server:
            server.add_meter()
            measure(Load(server.port, KEY, 1, connections, 2.0, seed=99))
            before = counted(connection)[0]
            result = measure(Load(server.port, KEY, 1, connections, seconds, seed=2))
            stored = counted(connection)[0] - before
        with Server(url, module=STORELESS) as server:
            measure(Load(server.port, KEY, 1, connections, 1.0, seed=99))
            storeless = measure(Load(server.port, KEY, 1, connections, seconds, seed=3))
    return Singles(result, storeless, stored)


@dataclass(frozen=True)
class Size:
    """The rate at a number of stored events."""

    stored: int
    result: Result


def at_size(url: str, *, seconds: float) -> Size:
    """In a database that is there already, all of its events in cubes."""
    with connect(url) as connection:
        connection.execute("CHECKPOINT")
        stored = connection.execute("SELECT count(*) FROM events").fetchall()[0][0]
        with Server(url, arguments=("--workers", "2")) as server:
            warm_up(server, seed=stored + 1)
            result = measure(Load(server.port, KEY, 100, 32, seconds, seed=stored))
            seconds_until_caught_up(connection, 60)
    return Size(stored, result)
