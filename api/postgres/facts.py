"""What every part of the embedded PostgreSQL knows."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

__all__ = [
    "FAST_SHUTDOWN",
    "GB",
    "MAJOR",
    "MB",
    "NAME",
    "PORT",
    "EmbeddedPostgresError",
    "Say",
    "digest",
    "sync",
]

Say = Callable[[str], None]

MAJOR = "18"
NAME = "tollgate"  # the database and its user
PORT = 5432  # only part of the socket's file name: nothing listens on TCP

MB = 1024 * 1024
GB = 1024 * MB

FAST_SHUTDOWN = 60.0  # seconds until we give up on an orderly end, which recovery makes good


class EmbeddedPostgresError(Exception):
    """Why PostgreSQL can't run here: one line for a person, saying what is wrong, where, and what to do."""


def sync(directory: Path) -> None:
    """Make a rename in it survive a power cut."""
    file = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:12]
