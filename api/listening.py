"""The port: taken before anything else is started, so that whoever connects early waits until it answers."""

import errno
import ipaddress
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from metering.errors import ConflictError, InvalidError

__all__ = ["bound", "is_loopback", "url_of"]

BACKLOG = 2048
"""Connections that may wait to be accepted, while all starts or when many come at once."""
BIND_SECONDS = 3.0
"""How long a port may be held by processes that are about to end, as those whose parent was killed."""


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@contextmanager
def bound(host: str, port: int, *, processes: int = 1) -> Iterator[Sequence[socket.socket]]:
    """A listening socket for each process, all on one port; port 0 takes any.

    On Linux each has a queue of its own, over which the kernel spreads the connections. From one queue, the
    first process to wake takes what it finds: of 8 connections at once often all 8, of 64 up to 55; the
    kernel's spread was 6 and 46 at worst. Gateways have few connections, which last.
    """
    with ExitStack() as stack:
        yield _listening(stack, host, port, processes)


def _listening(stack: ExitStack, host: str, port: int, processes: int) -> Sequence[socket.socket]:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        first = stack.enter_context(socket.socket(family, kind, protocol))
    except OSError as error:
        raise InvalidError(f"can't listen on {host}: {error.strerror or error}") from None
    try:
        _listen_when_free(first, address)
        share = processes > 1 and sys.platform == "linux"
        return _spread(stack, first, processes) if share else [first] * processes
    except OSError as error:
        raise ConflictError(
            f"can't listen on {host}:{port}: {error.strerror}; stop what uses it or choose another --port"
        ) from None


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


def _spread(stack: ExitStack, first: socket.socket, processes: int) -> list[socket.socket]:
    """The first has shown that nobody else listens there: those that share a port don't object to others."""
    address = first.getsockname()
    first.close()
    sockets = []
    for _ in range(processes):
        listening = stack.enter_context(socket.socket(first.family, first.type, first.proto))
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(address)
        sockets.append(listening)
    for listening in sockets:
        listening.listen(BACKLOG)
    return sockets
