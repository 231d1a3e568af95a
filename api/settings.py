"""Configuration: TOLLGATE_* environment variables, read once, here."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from metering.errors import InvalidError
from metering.kong import SubjectRule

__all__ = ["MOST", "Settings", "from_environment", "instant_of"]

MOST = 9_999
"""Of processes, connections or days: more is a slip of the finger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where things are and how the server behaves.

    `database_url` None means the embedded PostgreSQL in `data_dir`; `api_key` is an admin key that needs no
    row; `kong_subject` says which of a Kong consumer's names is the usage subject, first match first;
    `meters_file` is a YAML file of meters that are there from the start;
    `workers` is the number of API processes, `connections` how many each may have for requests; events older
    than `retire_after` are kept apart from newer ones; `billing_interval` is the seconds between two looks
    for what has fallen due, 0 for none; `test_clock` the time that a test clock begins with;
    `invoice_template` is how invoices look as HTML.
    """

    data_dir: Path = Path(".tollgate")
    database_url: str | None = None
    host: str = "127.0.0.1"
    port: int = 8888
    api_key: str | None = None
    auth: bool = True
    kong_subject: tuple[SubjectRule, ...] = ("consumer",)
    meters_file: Path | None = None
    workers: int = 1
    connections: int = 30
    retire_after: timedelta | None = None
    billing_interval: int = 60
    test_clock: datetime | None = None
    invoice_template: Path | None = None

    def as_environment(self) -> dict[str, str]:
        """What from_environment makes these settings of again; an empty text is as good as none."""
        return {
            "TOLLGATE_DATA_DIR": str(self.data_dir),
            "TOLLGATE_DATABASE_URL": self.database_url or "",
            "TOLLGATE_HOST": self.host,
            "TOLLGATE_PORT": str(self.port),
            "TOLLGATE_API_KEY": self.api_key or "",
            "TOLLGATE_NO_AUTH": "0" if self.auth else "1",
            "TOLLGATE_KONG_SUBJECT": ",".join(self.kong_subject),
            "TOLLGATE_METERS_FILE": str(self.meters_file or ""),
            "TOLLGATE_WORKERS": str(self.workers),
            "TOLLGATE_CONNECTIONS": str(self.connections),
            "TOLLGATE_RETIRE_DAYS": str(self.retire_after.days) if self.retire_after else "",
            "TOLLGATE_BILLING_INTERVAL": str(self.billing_interval),
            "TOLLGATE_TEST_CLOCK": self.test_clock.isoformat() if self.test_clock else "",
            "TOLLGATE_INVOICE_TEMPLATE": str(self.invoice_template or ""),
        }


def from_environment(environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings as the environment has them; what it leaves out has the default."""
    default = Settings()
    port = _port(environment.get("TOLLGATE_PORT"))
    interval = _number("TOLLGATE_BILLING_INTERVAL", environment, least=0)
    return Settings(
        data_dir=Path(environment.get("TOLLGATE_DATA_DIR") or default.data_dir),
        database_url=_database_url(environment.get("TOLLGATE_DATABASE_URL")),
        host=environment.get("TOLLGATE_HOST") or default.host,
        port=default.port if port is None else port,
        api_key=environment.get("TOLLGATE_API_KEY") or None,
        auth=(environment.get("TOLLGATE_NO_AUTH") or "0").lower() in ("0", "false", "no"),
        kong_subject=_kong_subject(environment.get("TOLLGATE_KONG_SUBJECT")) or default.kong_subject,
        meters_file=Path(file) if (file := environment.get("TOLLGATE_METERS_FILE")) else None,
        workers=_number("TOLLGATE_WORKERS", environment) or default.workers,
        connections=_number("TOLLGATE_CONNECTIONS", environment) or default.connections,
        retire_after=timedelta(days=days) if (days := _number("TOLLGATE_RETIRE_DAYS", environment)) else None,
        billing_interval=default.billing_interval if interval is None else interval,
        test_clock=instant_of(text) if (text := environment.get("TOLLGATE_TEST_CLOCK")) else None,
        invoice_template=Path(file) if (file := environment.get("TOLLGATE_INVOICE_TEMPLATE")) else None,
    )


def _database_url(text: str | None) -> str | None:
    """Any spelling of a PostgreSQL URL, with the driver that Tollgate uses."""
    if not text:
        return None
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.partition("+")[0] not in ("postgres", "postgresql") or not _is_url(rest):
        raise InvalidError("TOLLGATE_DATABASE_URL must look like postgresql://user:password@host:5432/name")
    return f"postgresql+psycopg://{rest}"


def _is_url(rest: str) -> bool:
    try:
        make_url(f"postgresql+psycopg://{rest}")
    except (ArgumentError, ValueError):  # a port that is no number is a ValueError
        return False
    return True


def _port(text: str | None) -> int | None:
    if text and not (text.isdecimal() and int(text) < 65536):
        raise InvalidError(f"TOLLGATE_PORT must be a number below 65536, not {text!r}")
    return int(text) if text else None


def instant_of(text: str) -> datetime:
    """ISO 8601; a date alone is its midnight, and what names no zone is UTC."""
    try:
        at = datetime.fromisoformat(text)
        return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidError(f"{text!r} is not an instant: write 2026-01-01 or 2026-01-01T12:00:00Z") from None


def _number(name: str, environment: Mapping[str, str], least: int = 1) -> int | None:
    text = environment.get(name)
    if text and not (text.isdecimal() and least <= int(text) <= MOST):
        raise InvalidError(f"{name} must be a number from {least} to {MOST}, not {text!r}")
    return int(text) if text else None


def _kong_subject(text: str | None) -> tuple[SubjectRule, ...]:
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    rules = [rule for name in names for rule in get_args(SubjectRule) if rule == name]
    if len(rules) != len(names):
        known = ", ".join(get_args(SubjectRule))
        raise InvalidError(f"TOLLGATE_KONG_SUBJECT may list {known}; it says {text!r}")
    return tuple(rules)
