"""How the catalog's rules report: three severities, the first two of them OpenMeter's."""

from collections.abc import Iterable

from metering.errors import Issue

__all__ = ["advice", "barring", "critical", "warning"]


def critical(code: str, message: str, field: str, hint: str) -> Issue:
    """Refused at once, whatever the status."""
    return Issue(code=code, message=message, field=field, hint=hint)


def warning(code: str, message: str, field: str, hint: str) -> Issue:
    """A draft may have it and keeps it; nothing with it is published."""
    return Issue(code=code, message=message, field=field, hint=hint, severity="warning")


def advice(code: str, message: str, field: str, hint: str) -> Issue:
    """It works, but may not be meant; our own, and no bar to publication."""
    return Issue(code=code, message=message, field=field, hint=hint, severity="info")


def barring(issues: Iterable[Issue]) -> list[Issue]:
    """Those with which nothing is published."""
    return [issue for issue in issues if issue.severity != "info"]
