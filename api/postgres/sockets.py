"""The private directory of PostgreSQL's socket: nobody else can connect."""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from api.postgres.account import Account
from api.postgres.facts import EmbeddedPostgresError, digest
from api.postgres.processes import tag_of

__all__ = ["socket_dir"]

SOCKET_PARENTS = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108  short paths; the directory in it is private


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
