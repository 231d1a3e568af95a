"""The data directory and the lock that makes it ours alone."""

import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from api.postgres.facts import EmbeddedPostgresError

__all__ = ["DataDirLock", "make_data_dir"]


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
