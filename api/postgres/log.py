"""PostgreSQL's log, kept small, and its last words for a person."""

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from api.postgres.facts import MB

__all__ = ["Log", "last_words"]

LOG_LIMIT = 16 * MB


class Log:
    """What PostgreSQL writes to stderr, kept in bounds; its last lines explain its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begin = 0

    def open(self) -> int:
        """A file to append to, for a new life of PostgreSQL."""
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.keep_small()
        self._begin = os.fstat(file).st_size
        return file

    def keep_small(self) -> None:
        """Copy and cut: PostgreSQL goes on appending to the same file."""
        with suppress(FileNotFoundError):  # somebody tidied up; that is no reason to disturb PostgreSQL
            if self.path.stat().st_size > LOG_LIMIT:
                with suppress(OSError):  # a full disk is the best reason to go on and cut
                    shutil.copyfile(self.path, self.path.with_suffix(".log.1"))
                os.truncate(self.path, 0)
                self._begin = 0

    def reason(self) -> str:
        with suppress(OSError), self.path.open("rb") as file:
            file.seek(max(self._begin, self.path.stat().st_size - 65536))
            return last_words(file.read().decode(errors="replace"))
        return ""


def last_words(text: str) -> str:
    """The line that best says why a log ends: the last PANIC, else FATAL, else error, else the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    patterns = (r"PANIC:\s*(.*)", r"FATAL:\s*(?!\s|the database system is|terminating)(.*)", r"error:\s*(.*)")
    for pattern in (*patterns, r"(could not .*)", r"(.*)"):
        for line in reversed(lines):
            if found := re.search(pattern, line):
                return found[1]
    return ""
