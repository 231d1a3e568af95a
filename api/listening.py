"""The port: taken before anything else is started, so that whoever connects early waits until it answers."""

import errno
import ipaddress
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from metering.errors import ConflictError, InvalidError

__all__ = ["Port", "bound", "is_loopback", "url_of"]

_EACH_ITS_OWN = sys.platform == "linux"
BACKLOG = 2048
"""Connections that may wait to be accepted, while all starts or when many come at once."""
BIND_SECONDS = 3.0
"""How long a port may be held by processes that are about to end, as those whose parent was killed."""


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Port:
    """`sockets` listen already, one for each process; the port is kept for as long as `kept` is open."""

    sockets: Sequence[socket.socket]
    kept: socket.socket

    def another(self) -> socket.socket:
        """For a process that takes another's place. Where each has its own, it listens once that is ready."""
        return _sharing(self.kept) if _EACH_ITS_OWN else self.kept.dup()

    def close(self) -> None:
        for listening in (*self.sockets, self.kept):
            listening.close()


def url_of(taken: Port) -> str:
    host, port = taken.kept.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@contextmanager
def bound(host: str, port: int, *, processes: int = 1) -> Iterator[Port]:
    """A listening socket for each process, all on one port; port 0 takes any.

    On Linux each has a queue of its own, over which the kernel spreads the connections. From one queue, the
    first process to wake takes what it finds: of 8 connections at once often all 8, of 64 up to 55; the
    kernel's spread was 6 and 46 at worst. Gateways have few connections, which last.
    """
    taken = _taken(host, port, processes)
    try:
        yield taken
    finally:
        taken.close()


def _taken(host: str, port: int, processes: int) -> Port:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        first = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InvalidError(f"can't listen on {host}: {error.strerror or error}") from None
    try:
        _listen_when_free(first, address)
        return _shared(first, processes)
    except OSError as error:
        first.close()
        raise ConflictError(
            f"can't listen on {host}:{port}: {error.strerror}; stop what uses it or choose another --port"
        ) from None


def _shared(first: socket.socket, processes: int) -> Port:
    """The first has shown that nobody else listens there: those that share a port don't object to others."""
    if processes == 1:
        return Port([first], first)
    if not _EACH_ITS_OWN:
        return Port([first.dup() for _ in range(processes)], first)
    sharing = _sharing(first, closing=True)
    sockets = [_sharing(sharing) for _ in range(processes)]
    for listening in sockets:
        listening.listen(BACKLOG)
    return Port(sockets, sharing)


def _sharing(like: socket.socket, *, closing: bool = False) -> socket.socket:
    """Another socket on the same port, which does not listen yet."""
    address = like.getsockname()
    if closing:  # it would not share
        like.close()
    sharing = socket.socket(like.family, like.type, like.proto)
    sharing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sharing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sharing.bind(address)
    return sharing


def _listen_when_free(listening: socket.socket, address: Any) -> None:
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    deadline = time.monotonic() + BIND_SECONDS
    while True:
        try:
            listening.bind(address)
            listening.listen(BACKLOG)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return
