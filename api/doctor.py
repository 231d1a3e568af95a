"""`tollgate doctor`: everything that a person would check before trusting a machine with money."""

import os
import shutil
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

from rich.console import Console
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from api import clock
from api.database import check_database
from api.keys import any_key
from api.migrations import current_and_head
from api.postgres import EmbeddedPostgresError
from api.serve import database
from api.settings import Settings
from metering.errors import TollgateError

__all__ = ["Finding", "examine", "findings"]

GB = 1024**3
ENOUGH_DISK = 10 * GB
LITTLE_DISK = 1 * GB
CLOCKS_APART = timedelta(seconds=2)
SLOW_COMMIT_MS = 20.0
TOO_FAST_COMMIT_MS = 0.03
COMMITS = 20
MARKS = {"good": "[green]✓[/]", "worrying": "[yellow]![/]", "bad": "[red]✗[/]"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: how it is, what was seen, and what to do unless it is good."""

    subject: str
    verdict: Literal["good", "worrying", "bad"]
    seen: str
    advice: str = ""


def examine(settings: Settings, console: Console) -> bool:
    """Print every finding; whether none is bad."""
    healthy = True
    for found in findings(settings):
        console.print(
            f"{MARKS[found.verdict]} {found.subject:<11}{found.seen}", highlight=False, soft_wrap=True
        )
        if found.advice:
            console.print(f"  {'':<11}→ {found.advice}", highlight=False, soft_wrap=True)
        healthy = healthy and found.verdict != "bad"
    console.print("All is well." if healthy else "Something needs mending first.")
    return healthy


def findings(settings: Settings) -> Iterator[Finding]:
    if settings.database_url is None:
        yield _disk(settings.data_dir)
    try:
        with database(settings, share=True) as engine:
            yield from _database(engine, settings)
    except (TollgateError, EmbeddedPostgresError) as error:
        yield Finding("database", "bad", str(error), "Mend this, then run doctor again.")


def _database(engine: Engine, settings: Settings) -> Iterator[Finding]:
    kind = "external" if settings.database_url else "embedded"
    yield Finding("database", "good", f"PostgreSQL {check_database(engine)}, {kind}, answers")
    yield _migrations(engine)
    yield _clock(engine)
    yield _durability(engine)
    yield _commits(engine)
    yield from _memory(engine)
    yield _keys(engine, settings)


def _disk(data_dir: Path) -> Finding:
    """The nearest directory that exists tells about one that is to be made."""
    place = next(path for path in (data_dir.absolute(), *data_dir.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    seen = f"{free / GB:.1f} GB free at {place}"
    if not os.access(place, os.W_OK):
        return Finding("disk", "bad", f"{place} can't be written", "Choose another --data-dir.")
    if free < LITTLE_DISK:
        return Finding("disk", "bad", seen, "Make room: PostgreSQL stops when the disk is full.")
    if free < ENOUGH_DISK:
        return Finding("disk", "worrying", seen, "Plan for 10 GB: 10 million events take about 6.")
    return Finding("disk", "good", seen)


def _migrations(engine: Engine) -> Finding:
    current, head = current_and_head(engine)
    if current == head:
        return Finding("migrations", "good", f"at {head}, the newest")
    return Finding("migrations", "worrying", f"at {current or 'none'}, newest is {head}", "tollgate migrate")


def _clock(engine: Engine) -> Finding:
    with engine.connect() as connection:
        before = clock.now()
        theirs = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
        apart = max(before - theirs, theirs - clock.now(), timedelta(0))
    seen = f"{clock.now():%Y-%m-%d %H:%M:%S} UTC, {apart.total_seconds():.1f} s from the database's"
    if apart > CLOCKS_APART:
        return Finding("clock", "bad", seen, "Run NTP on both: usage is billed by time.")
    return Finding("clock", "good", seen)


def _durability(engine: Engine) -> Finding:
    names = ("fsync", "full_page_writes", "synchronous_commit")
    with engine.connect() as connection:
        off = [name for name in names if connection.execute(text(f"SHOW {name}")).scalar_one() == "off"]
    if off:
        seen = f"{', '.join(off)} is off"
        return Finding("durability", "bad", seen, "Turn it on: a power cut would lose what was promised.")
    return Finding("durability", "good", f"{', '.join(names)} are on")


def _commits(engine: Engine) -> Finding:
    """What a commit costs here, by writing to the log that must reach the disk each time."""
    took = []
    with engine.connect() as connection:
        for _ in range(COMMITS):
            began = time.perf_counter()
            connection.execute(text("SELECT pg_logical_emit_message(true, 'tollgate', 'doctor')"))
            connection.commit()
            took.append((time.perf_counter() - began) * 1000)
    median = statistics.median(took)
    seen = f"{median:.2f} ms a commit (median of {COMMITS})"
    if median > SLOW_COMMIT_MS:
        return Finding("fsync", "worrying", seen, "A slow disk: single events will be slow, batches less so.")
    if median < TOO_FAST_COMMIT_MS:
        return Finding(
            "fsync", "worrying", seen, "Too fast to be true: is the disk's cache safe in a power cut?"
        )
    return Finding("fsync", "good", seen)


def _memory(engine: Engine) -> Iterator[Finding]:
    with engine.connect() as connection:
        query = text("SELECT pg_size_bytes(current_setting(:name))")
        buffers = connection.execute(query, {"name": "shared_buffers"}).scalar_one()
        wal = connection.execute(query, {"name": "max_wal_size"}).scalar_one()
    seen = f"shared_buffers {buffers / GB:.2f} GB, max_wal_size {wal / GB:.2f} GB"
    if buffers <= GB // 8 or wal <= GB:
        advice = "Beyond 5 million events: shared_buffers 25 % of memory up to 2 GB, max_wal_size 4-8 GB."
        yield Finding("tuning", "worrying", seen, advice)
    else:
        yield Finding("tuning", "good", seen)


def _keys(engine: Engine, settings: Settings) -> Finding:
    if not settings.auth:
        return Finding("API keys", "worrying", "none are asked for", "Unset TOLLGATE_NO_AUTH.")
    if settings.api_key:
        return Finding("API keys", "good", "TOLLGATE_API_KEY is the admin key")
    if current_and_head(engine)[0] is None:
        return Finding("API keys", "good", "none yet; the first start makes one and prints it")
    with Session(engine) as session:
        if any_key(session):
            return Finding("API keys", "good", "there are some; `tollgate keys list` shows them")
    return Finding("API keys", "worrying", "none", "tollgate keys create --role admin")
