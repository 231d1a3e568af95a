"""A correction: which events are to be taken out of all usage, by what they are replaced, and why.

It is a session. While it is open nothing counts differently; closing it makes the change, all of it at one
instant, and reverting takes the change back. Nothing is ever deleted: each step is kept with who and when.

    open -> closed -> reverted
         -> discarded
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Literal

from metering.errors import ConflictError, InvalidError, Issue
from metering.event import Event
from metering.ids import event_key
from metering.wire import WIRE

__all__ = [
    "MAX_EVENTS",
    "CorrectionStateError",
    "EventIdentity",
    "InvalidCorrectionError",
    "Kind",
    "Selection",
    "Status",
    "Step",
    "backfill_key",
    "check_correction",
    "check_staged",
    "next_status",
]

Kind = Literal["void", "replace"]
Status = Literal["open", "closed", "reverted", "discarded"]
Step = Literal["stage", "close", "revert", "discard"]

MAX_IDENTITIES = 10_000
MAX_SUBJECTS = 100
MAX_EVENTS = 1_000_000
"""What one correction may take out, and bring in: one transaction does it, and must be able to revert it."""


class InvalidCorrectionError(InvalidError):
    pass


class CorrectionStateError(ConflictError):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class EventIdentity:
    __pydantic_config__: ClassVar = WIRE

    source: str
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Either events by identity, or a window: from <= time < to, narrowed by what else is given."""

    __pydantic_config__: ClassVar = WIRE

    events: tuple[EventIdentity, ...] = ()
    source: str | None = None
    type: str | None = None
    subjects: tuple[str, ...] = ()
    from_: datetime | None = None
    to: datetime | None = None


def check_correction(kind: Kind, selection: Selection, reason: str, *, close: bool = False) -> list[Issue]:
    """Everything that is wrong with a new correction; `close` when it is to be closed at once."""
    issues = _events_issues(selection) if selection.events else _window_issues(selection)
    if not reason.strip():
        issues.append(_issue("say why", "$.reason", "Whoever sees the usage change will ask."))
    if kind == "replace" and close:
        hint = "Create it, send it events, then close it."
        issues.append(_issue("a replacement has nothing to bring in yet", "$.close", hint))
    return issues


def _events_issues(selection: Selection) -> list[Issue]:
    issues = []
    if len(selection.events) > MAX_IDENTITIES:
        message = f"at most {MAX_IDENTITIES} events can be named"
        issues.append(_issue(message, "$.selection.events", "Select a window, or make several corrections."))
    if _narrowed(selection) or selection.from_ or selection.to:
        hint = "Send events, or a window with from and to."
        issues.append(_issue("events that are named need no window", "$.selection", hint))
    return issues


def _window_issues(selection: Selection) -> list[Issue]:
    issues = [
        _issue("a window has two ends", f"$.selection.{name}", "Send from and to, or name events.")
        for name, end in (("from", selection.from_), ("to", selection.to))
        if end is None
    ]
    if selection.from_ and selection.to and selection.from_ >= selection.to:
        issues.append(_issue("to must be after from", "$.selection.to"))
    if not _narrowed(selection):
        hint = "Give at least one of source, type and subjects."
        issues.append(_issue("a window over all events is too much", "$.selection", hint))
    if len(selection.subjects) > MAX_SUBJECTS:
        issues.append(_issue(f"at most {MAX_SUBJECTS} subjects", "$.selection.subjects"))
    return issues


def _narrowed(selection: Selection) -> bool:
    return bool(selection.source or selection.type or selection.subjects)


def backfill_key(correction_id: str, event: Event) -> uuid.UUID:
    """The key of an event that a correction brings in: an id that was used before may come again, once.

    No event that is simply sent has this key: it is made of text with U+0000 in it twice, and theirs has it
    once, because names must not contain it. Like a ULID's it begins with a time, that of the correction, so
    that what is brought in together lies together.
    """
    return event_key(f"{event.source}\0{event.id}", correction_id)


def check_staged(selection: Selection, events: Sequence[Event], places: Sequence[str]) -> list[Issue]:
    """Where an event would bring usage to where the correction takes none out; `places` are their paths."""
    named = {(one.source, one.id) for one in selection.events}
    return [
        _issue(f"{message}, which the selection does not include", f"{place}.{member}")
        for event, place in zip(events, places, strict=True)
        for member, message in (_named(event, named) if named else _misfits(selection, event)).items()
    ]


def _named(event: Event, named: set[tuple[str, str]]) -> Mapping[str, str]:
    if (event.source, event.id) in named:
        return {}
    return {"id": f"the id is {event.id!r} of {event.source!r}"}


def _misfits(selection: Selection, event: Event) -> Mapping[str, str]:
    """What is outside, by the event's member."""
    misfits = {}
    if selection.source is not None and event.source != selection.source:
        misfits["source"] = f"the source is {event.source!r}"
    if selection.type is not None and event.type != selection.type:
        misfits["type"] = f"the type is {event.type!r}"
    if selection.subjects and event.subject not in selection.subjects:
        misfits["subject"] = f"the subject is {event.subject!r}"
    if selection.from_ and selection.to and not selection.from_ <= event.time < selection.to:
        misfits["time"] = f"the time is {event.time.isoformat()}"
    return misfits


_STEPS: Mapping[Step, tuple[Status, Status]] = {
    "stage": ("open", "open"),
    "close": ("open", "closed"),
    "discard": ("open", "discarded"),
    "revert": ("closed", "reverted"),
}
_DONE: Mapping[Step, str] = {
    "stage": "given events",
    "close": "closed",
    "discard": "discarded",
    "revert": "reverted",
}


def next_status(kind: Kind, status: Status, step: Step, *, staged: int) -> Status:
    """Raises CorrectionStateError when a correction that stands there can't take this step."""
    needed, then = _STEPS[step]
    if status != needed:
        raise _state_error(f"the correction is {status}; only one that is {needed} can be {_DONE[step]}")
    if kind == "void" and step == "stage":
        raise _state_error("the correction voids and brings nothing in; make one of kind replace")
    if kind == "replace" and step == "close" and not staged:
        raise _state_error("no events were sent to replace what it takes out; to only void, use void")
    return then


def _state_error(message: str) -> CorrectionStateError:
    return CorrectionStateError(message, Issue(code="correction_status", message=message))


def _issue(message: str, field: str, hint: str = "") -> Issue:
    return Issue(code="invalid_correction", message=message, field=field, hint=hint)
