"""Becomes the command it is given, without root's rights and tied to the life of the process that asked.

    python -I -S postgres_launch.py UID GID PARENT -- COMMAND [ARGUMENT...]

UID and GID of -1 keep the present user. A process of its own instead of `preexec_fn`, which is not safe in a
program with threads. Standard library only: it runs before anything of the project could be imported.
"""

import ctypes
import os
import pwd
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    uid, gid, parent = (int(argument) for argument in arguments[:3])
    command = arguments[4:]
    # A shell that started us in the background made us ignore SIGINT, and exec would hand that on.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Loaded while we are still root: the libraries may lie where the account can't read.
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    try:
        if uid != -1:
            become(uid, gid)
        if libc is not None:
            die_with_the_parent(libc)
        if os.getppid() != parent:  # it died before the kernel knew that we care
            sys.exit(1)
        os.execv(command[0], command)  # noqa: S606  no shell is the point
    except OSError as error:
        sys.exit(f"FATAL:  could not start {command[0]} as user {uid if uid != -1 else os.getuid()}: {error}")


def become(uid: int, gid: int) -> None:
    try:
        os.initgroups(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:  # a number without a name, as in containers
        os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def die_with_the_parent(libc: ctypes.CDLL) -> None:
    """Ask for SIGINT, PostgreSQL's fast shutdown, when the parent dies; a change of user would undo it."""
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


if __name__ == "__main__":
    main(sys.argv[1:])
