"""The only place that reads the system clock; everything below api/ is told what time it is."""

from datetime import UTC, datetime

__all__ = ["now"]


def now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251  this is where it is allowed
