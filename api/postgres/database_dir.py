"""PostgreSQL's own directory: absent or a whole database, never half of one."""

import itertools
import os
import shutil
import stat
import tempfile
from pathlib import Path

from api.postgres.account import Account, account_of, can_enter, run
from api.postgres.facts import MAJOR, MB, NAME, EmbeddedPostgresError, Say, digest, sync
from api.postgres.log import last_words
from api.postgres.programs import make_within_reach

__all__ = ["database_dir"]

ROOM_FOR_A_NEW_DATABASE = 200 * MB
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
