"""A load generator that costs little: each connection sends its next request when the last one is answered.

It runs in a process of its own, so that its share of the machine can be told: `python -m benchmarks.load`
with a Load as JSON prints a Result as JSON. Every answer's time is kept; percentiles are exact.
"""

import json
import resource
import select
import socket
import subprocess
import sys
import time
from array import array
from collections import Counter
from dataclasses import asdict, dataclass, field

from benchmarks.traffic import Requests


@dataclass(frozen=True)
class Load:
    port: int
    key: str
    batch: int
    connections: int
    seconds: float
    seed: int


@dataclass(frozen=True)
class Result:
    """`rate` is in events a second, latencies in milliseconds, `each_second` the events answered in it."""

    answers: dict[str, int]
    acknowledged: int
    rate: float
    p50: float
    p99: float
    worst: float
    each_second: list[int]
    cpu_seconds: float


def measure(load: Load) -> Result:
    """Run it in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.load", json.dumps(asdict(load))]
    output = subprocess.run(command, check=True, capture_output=True, timeout=load.seconds + 90).stdout
    return Result(**json.loads(output))


@dataclass(slots=True)
class _Client:
    socket: socket.socket
    sent_at: float = 0.0
    unsent: bytes = b""
    answer: bytes = b""

    def send(self, request: bytes) -> None:
        self.sent_at = time.perf_counter()
        self.unsent = request[self._send(request) :]

    def send_more(self) -> None:
        self.unsent = self.unsent[self._send(self.unsent) :]

    def _send(self, data: bytes) -> int:
        try:
            return self.socket.send(data)
        except BlockingIOError:
            return 0

    def receive(self) -> int:
        """The status, once all of the answer is there; until then 0."""
        received = self.socket.recv(65_536)
        if not received:
            raise ConnectionError("the server closed a connection")
        self.answer += received
        head, end, body = self.answer.partition(b"\r\n\r\n")
        if not end or len(body) < _length(head):
            return 0
        self.answer = b""
        return int(head[9:12])


def _length(head: bytes) -> int:
    _, found, rest = head.lower().partition(b"content-length:")
    return int(rest.split(b"\r\n")[0]) if found else 0


@dataclass(slots=True)
class _Run:
    load: Load
    clients: dict[int, _Client] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)
    latencies: "array[float]" = field(default_factory=lambda: array("d"))
    each_second: list[int] = field(default_factory=list)

    def result(self) -> Result:
        requests = iter(Requests(self.load.batch, self.load.key, self.load.seed))
        ready = [next(requests) for _ in range(self.load.connections)]  # the templates are made here
        poll = select.epoll()
        for _ in range(self.load.connections):
            client = _Client(socket.create_connection(("127.0.0.1", self.load.port)))
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.socket.setblocking(False)
            self.clients[client.socket.fileno()] = client
            poll.register(client.socket, select.EPOLLIN)
        cpu, began = _cpu_seconds(), time.perf_counter()
        for client, request in zip(self.clients.values(), ready, strict=True):
            self._send(poll, client, request)
        busy, end = len(self.clients), began + self.load.seconds
        while busy:
            for number, event in poll.poll():
                client = self.clients[number]
                if event & select.EPOLLOUT:
                    client.send_more()
                    poll.modify(number, _interest(client))
                if event & ~select.EPOLLOUT and (status := client.receive()):
                    now = self._note(client, status, began)
                    if now < end:
                        self._send(poll, client, next(requests))
                    else:
                        busy -= 1
        return self._summary(time.perf_counter() - began, _cpu_seconds() - cpu)

    def _send(self, poll: select.epoll, client: _Client, request: bytes) -> None:
        client.send(request)
        if client.unsent:
            poll.modify(client.socket, _interest(client))

    def _note(self, client: _Client, status: int, began: float) -> float:
        now = time.perf_counter()
        self.latencies.append(now - client.sent_at)
        self.answers[str(status)] += 1
        if status == 204:
            second = int(now - began)
            self.each_second.extend([0] * (second + 1 - len(self.each_second)))
            self.each_second[second] += self.load.batch
        return now

    def _summary(self, seconds: float, cpu: float) -> Result:
        ordered = sorted(self.latencies)
        acknowledged = self.answers["204"] * self.load.batch
        return Result(
            answers=dict(self.answers),
            acknowledged=acknowledged,
            rate=acknowledged / seconds,
            p50=percentile(ordered, 50) * 1000,
            p99=percentile(ordered, 99) * 1000,
            worst=ordered[-1] * 1000,
            each_second=self.each_second,
            cpu_seconds=cpu,
        )


def _interest(client: _Client) -> int:
    return select.EPOLLIN | (select.EPOLLOUT if client.unsent else 0)


def percentile(ordered: "list[float]", percent: float) -> float:
    """The smallest value that so many percent do not exceed."""
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    print(json.dumps(asdict(_Run(Load(**json.loads(sys.argv[1]))).result())))
