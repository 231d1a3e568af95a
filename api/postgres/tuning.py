"""Settings that follow from the machine: memory, disk, shared memory."""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from api.postgres.facts import GB, MB

__all__ = ["machine_settings"]

SMALL_SHARED_MEMORY = 256 * MB  # a container's default /dev/shm is 64 MB: a parallel query fails there


def settings(*, memory: int, free: int, shared_memory: int | None, lz4: bool) -> dict[str, str]:
    """PostgreSQL's settings for this machine; all sizes in bytes, `free` being the disk's."""
    wal = 8 * GB if free >= 64 * GB else min(4 * GB, max(128 * MB, free // 8))
    chosen = {
        "shared_buffers": megabytes(min(2 * GB, max(16 * MB, memory // 4))),
        "effective_cache_size": megabytes(max(32 * MB, memory // 2)),
        "max_wal_size": megabytes(wal),
        "min_wal_size": megabytes(min(1 * GB, max(32 * MB, wal // 4))),
        # Random keys touch pages all over the index, and after each checkpoint each of them goes into the WAL
        # whole: pglz makes that a sixth less, for half as much CPU time again as storing the event takes.
        "wal_compression": "lz4" if lz4 else "off",
        "autovacuum_naptime": "10s",  # a table that has just begun to fill needs statistics soon
        "random_page_cost": "1.1",  # of solid-state disks, and of what is in memory
        "work_mem": "16MB",
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
