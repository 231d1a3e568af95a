"""The whole: a context in which PostgreSQL runs."""

import errno
import fcntl
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import psycopg

from api.postgres.account import account_for, launched
from api.postgres.data_dir import DataDirLock, make_data_dir
from api.postgres.database_dir import database_dir
from api.postgres.facts import MB, NAME, PORT, EmbeddedPostgresError, Say
from api.postgres.log import Log, last_words
from api.postgres.postmaster import Postmaster
from api.postgres.processes import tag_of
from api.postgres.programs import programs_for
from api.postgres.sockets import socket_dir
from api.postgres.tuning import machine_settings

__all__ = ["EmbeddedPostgres", "running_url"]

DISK_IS_FULL_BELOW = 32 * MB  # two WAL segments, without which PostgreSQL can't go on


def to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")


class EmbeddedPostgres:
    """PostgreSQL in `data_dir`, running while the context lasts.

    `say` gets lines for a person, about what takes long or was mended; it is called from two threads.
    Entering raises EmbeddedPostgresError, and nothing runs or is locked then.
    """

    def __init__(self, data_dir: Path, *, say: Say = to_stderr) -> None:
        self._data_dir = data_dir
        self._tell = say
        self._lock: DataDirLock | None = None
        self._sockets: Path | None = None
        self._postmaster: Postmaster | None = None

    @property
    def url(self) -> str:
        """For SQLAlchemy with psycopg; known, and the same, from entering to leaving."""
        if self._sockets is None:
            raise EmbeddedPostgresError(f"PostgreSQL in {self._data_dir} is not running.")
        return url_at(str(self._sockets))

    @property
    def pid(self) -> int | None:
        """PostgreSQL's main process, if it lives."""
        return self._postmaster.pid if self._postmaster else None

    @property
    def is_running(self) -> bool:
        """Whether it takes connections; it does not from a crash until it has recovered."""
        return self._postmaster is not None and self._postmaster.ready.is_set()

    def __enter__(self) -> Self:
        try:
            self._open()
        except (OSError, psycopg.Error) as error:
            self._close()
            raise EmbeddedPostgresError(explain(error, self._data_dir)) from error
        except BaseException:  # Ctrl-C too
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _open(self) -> None:
        data_dir = make_data_dir(self._data_dir)
        self._lock = DataDirLock(data_dir)
        account = account_for(data_dir / "postgres")
        programs = programs_for(account)
        database = database_dir(data_dir, programs=programs, account=account, say=self._say)
        self._sockets = socket_dir(data_dir, account)
        log = Log(data_dir / "postgres.log")
        command = launched(account, server_command(programs, database, self._sockets))
        self._postmaster = Postmaster(
            command, database=database, sockets=self._sockets, log=log, say=self._say
        )
        self._postmaster.start()
        self._wait_until_ready(self._postmaster, database, log)
        create_database(self._sockets)

    def _wait_until_ready(self, postmaster: Postmaster, database: Path, log: Log) -> None:
        while not postmaster.ready.wait(0.1):
            if postmaster.failure is None:
                continue
            reason, free = postmaster.failure.rstrip("."), shutil.disk_usage(database).free
            if free < DISK_IS_FULL_BELOW:  # then the log may have had no room for the reason either
                reason = f"its disk has {free // MB} MB free: free some space and start again ({reason})"
            raise EmbeddedPostgresError(
                f"PostgreSQL in {database} could not start: {reason} (log: {log.path})."
            )

    def _close(self) -> None:
        try:
            if self._postmaster is not None:
                self._postmaster.stop()
            if self._sockets is not None:
                with suppress(OSError):  # a name that is not empty stays for the next start
                    self._sockets.rmdir()
        finally:
            if self._lock is not None:
                self._lock.release()
            self._postmaster = self._sockets = self._lock = None

    def _say(self, line: str) -> None:
        """A broken terminal is no reason to stop keeping PostgreSQL."""
        with suppress(Exception):
            self._tell(line)


def server_command(programs: Path, database: Path, sockets: Path) -> list[str]:
    """The tag comes first: by `postgres -c cluster_name=... -D` we know our processes again."""
    chosen = {
        "listen_addresses": "",
        "unix_socket_directories": str(sockets),
        "unix_socket_permissions": "0700",
        "port": str(PORT),
        **machine_settings(programs, database),
    }
    options = [f"--{name}={value}" for name, value in chosen.items()]
    binary = str(programs / "bin" / "postgres")
    return [binary, "-c", f"cluster_name={tag_of(database)}", "-D", str(database), *options]


def create_database(sockets: Path) -> None:
    with psycopg.connect(
        host=str(sockets), port=PORT, user=NAME, dbname="postgres", autocommit=True
    ) as connection:
        if connection.execute("SELECT FROM pg_database WHERE datname = %s", [NAME]).rowcount == 0:
            connection.execute(f"CREATE DATABASE {NAME}")


def explain(error: OSError | psycopg.Error, data_dir: Path) -> str:
    if isinstance(error, psycopg.Error):
        return f"PostgreSQL in {data_dir} does not answer as it should: {last_words(str(error))}"
    where = error.filename or data_dir
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"The disk with {where} is full: free some space and start again."
        case errno.EROFS:
            return f"{where} is on a read-only file system: choose a --data-dir that can be written."
        case errno.EACCES | errno.EPERM:
            return f"No permission for {where}: allow this user to write it, or choose another --data-dir."
        case errno.ENOTDIR | errno.EEXIST:
            return f"{where} can't be a directory, since a file is in its way: choose another --data-dir."
    return f"PostgreSQL can't run in {data_dir}: {error.strerror or error} ({where})."


def url_at(sockets: str) -> str:
    return f"postgresql+psycopg://{NAME}@/{NAME}?host={quote(sockets)}&port={PORT}"


def running_url(data_dir: Path) -> str | None:
    """The database of a server that runs in `data_dir` now, for those who only want to look in.

    None as well for one that is just starting: who then starts a PostgreSQL is told that it is in use.
    """
    try:
        with (data_dir / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        # The fifth line of PostgreSQL's own pid file is the directory of its socket.
        with suppress(OSError, IndexError):
            return url_at((data_dir / "postgres" / "postmaster.pid").read_text().splitlines()[4])
    except OSError:
        pass
    return None
