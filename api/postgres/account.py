"""Who runs PostgreSQL: we ourselves, or an unprivileged account when we are root."""

import os
import pwd
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from api.postgres.facts import NAME, EmbeddedPostgresError

__all__ = ["ENVIRONMENT", "LAUNCHER", "Account", "account_for", "account_of", "can_enter", "launched", "run"]

ACCOUNTS = ("tollgate", "postgres", "nobody")  # who runs PostgreSQL when we are root
LAUNCHER = Path(__file__).with_name("launch.py")
# Of the caller's environment only what finds programs and libraries (Python's own may need that): PGDATA,
# PGPORT and the like would interfere, and with another locale PostgreSQL refuses to start on macOS.
ENVIRONMENT = {
    **{name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ},
    "LC_ALL": "C",
}


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
