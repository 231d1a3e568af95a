"""Configuration: TOLLGATE_* environment variables, read once, here."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from metering.errors import InvalidError
from metering.kong import SubjectRule

__all__ = ["Settings", "from_environment"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where things are and how the server behaves.

    `database_url` None means the embedded PostgreSQL in `data_dir`; `api_key` is an admin key that needs no
    row; `kong_subject` says which of a Kong consumer's names is the usage subject, first match first.
    """

    data_dir: Path = Path(".tollgate")
    database_url: str | None = None
    host: str = "127.0.0.1"
    port: int = 8888
    api_key: str | None = None
    auth: bool = True
    kong_subject: tuple[SubjectRule, ...] = ("consumer",)


def from_environment(environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings as the environment has them; what it leaves out has the default."""
    default = Settings()
    return Settings(
        data_dir=Path(environment.get("TOLLGATE_DATA_DIR") or default.data_dir),
        database_url=_database_url(environment.get("TOLLGATE_DATABASE_URL")),
        host=environment.get("TOLLGATE_HOST") or default.host,
        port=_port(environment.get("TOLLGATE_PORT")) or default.port,
        api_key=environment.get("TOLLGATE_API_KEY") or None,
        auth=(environment.get("TOLLGATE_NO_AUTH") or "0").lower() in ("0", "false", "no"),
        kong_subject=_kong_subject(environment.get("TOLLGATE_KONG_SUBJECT")) or default.kong_subject,
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


def _kong_subject(text: str | None) -> tuple[SubjectRule, ...]:
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    rules = [rule for name in names for rule in get_args(SubjectRule) if rule == name]
    if len(rules) != len(names):
        known = ", ".join(get_args(SubjectRule))
        raise InvalidError(f"TOLLGATE_KONG_SUBJECT may list {known}; it says {text!r}")
    return tuple(rules)
