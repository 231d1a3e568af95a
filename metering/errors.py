"""What can go wrong, in five kinds; the API turns each kind into one HTTP status.

    TollgateError
    ├── InvalidError       the request can't work as it is, and repeating it won't help
    ├── NotFoundError      what it names does not exist
    ├── ConflictError      what it asks for contradicts something that exists
    ├── ForbiddenError     the caller, or the state of the thing, does not allow it
    └── UnavailableError   it may work later: repeat it

A concrete error is a subclass beside the operation that raises it. Every error may carry issues: each says
what is wrong, where, and how to mend it.
"""

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "ConflictError",
    "ForbiddenError",
    "InvalidError",
    "Issue",
    "NotFoundError",
    "TollgateError",
    "UnavailableError",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Issue:
    """One problem, found by validation and passed on as a value.

    `field` is a JSON path into what was sent (`$.phases[0].key`), `hint` how to mend it.
    """

    code: str
    message: str
    field: str = "$"
    hint: str = ""
    severity: Literal["critical", "warning", "info"] = "critical"


class TollgateError(Exception):
    """The root: `detail` is one sentence for a person."""

    def __init__(self, detail: str, *issues: Issue) -> None:
        super().__init__(detail)
        self.detail = detail
        self.issues = issues


class InvalidError(TollgateError):
    pass


class NotFoundError(TollgateError):
    pass


class ConflictError(TollgateError):
    pass


class ForbiddenError(TollgateError):
    pass


class UnavailableError(TollgateError):
    pass
