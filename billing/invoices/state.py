"""The states of an invoice and what leads from one to the next, as data.

The names and the table are OpenMeter's. `next` is taken by itself as soon as nothing holds it back; every
other trigger comes from outside: a person, an app, a deadline.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Literal

__all__ = [
    "DELETABLE",
    "EDITABLE",
    "FAILED",
    "FINAL",
    "OPEN",
    "TRANSITIONS",
    "Action",
    "Facts",
    "Status",
    "Trigger",
    "actions_of",
    "after",
    "settles",
    "short",
]

Status = Literal[
    "draft.created",
    "draft.waiting_for_collection",
    "draft.collecting",
    "draft.updating",
    "draft.validating",
    "draft.invalid",
    "draft.syncing",
    "draft.sync_failed",
    "draft.waiting_auto_approval",
    "draft.manual_approval_needed",
    "draft.ready_to_issue",
    "delete.in_progress",
    "delete.syncing",
    "delete.failed",
    "deleted",
    "issuing.line_finalization",
    "issuing.line_finalization_failed",
    "issuing.syncing",
    "issuing.failed",
    "issued",
    "payment_processing.pending",
    "payment_processing.failed",
    "payment_processing.action_required",
    "overdue",
    "paid",
    "uncollectible",
    "voided",
]
Trigger = Literal[
    "next",
    "failed",
    "updated",
    "delete",
    "retry",
    "approve",
    "snapshot_quantities",
    "paid",
    "payment_failed",
    "payment_uncollectible",
    "payment_overdue",
    "action_required",
    "void",
]
Action = Literal["advance", "approve", "delete", "retry", "snapshotQuantities", "void"]


def _table() -> Mapping[tuple[Status, Trigger], Status]:
    table: dict[tuple[Status, Trigger], Status] = {
        ("draft.created", "next"): "draft.waiting_for_collection",
        ("draft.created", "failed"): "draft.invalid",
        ("draft.updating", "next"): "draft.waiting_for_collection",
        ("draft.updating", "failed"): "draft.invalid",
        ("draft.waiting_for_collection", "next"): "draft.collecting",
        ("draft.waiting_for_collection", "snapshot_quantities"): "draft.collecting",
        ("draft.collecting", "next"): "draft.validating",
        ("draft.collecting", "failed"): "draft.invalid",
        ("draft.validating", "next"): "draft.syncing",
        ("draft.validating", "failed"): "draft.invalid",
        ("draft.invalid", "retry"): "draft.validating",
        ("draft.syncing", "next"): "draft.waiting_auto_approval",
        ("draft.syncing", "failed"): "draft.sync_failed",
        ("draft.sync_failed", "retry"): "draft.validating",
        ("draft.waiting_auto_approval", "next"): "draft.ready_to_issue",
        ("draft.waiting_auto_approval", "approve"): "draft.ready_to_issue",
        ("draft.manual_approval_needed", "approve"): "draft.ready_to_issue",
        ("draft.ready_to_issue", "next"): "issuing.line_finalization",
        ("draft.ready_to_issue", "failed"): "draft.invalid",
        ("delete.in_progress", "next"): "delete.syncing",
        ("delete.syncing", "next"): "deleted",
        ("delete.syncing", "failed"): "delete.failed",
        ("delete.failed", "retry"): "delete.syncing",
        ("delete.failed", "delete"): "delete.in_progress",
        ("issuing.line_finalization", "next"): "issuing.syncing",
        ("issuing.line_finalization", "failed"): "issuing.line_finalization_failed",
        ("issuing.line_finalization_failed", "retry"): "issuing.line_finalization",
        ("issuing.syncing", "next"): "issued",
        ("issuing.syncing", "failed"): "issuing.failed",
        ("issuing.failed", "retry"): "issuing.syncing",
        ("issued", "next"): "payment_processing.pending",
    }
    unpaid: tuple[Status, ...] = (
        "payment_processing.pending",
        "payment_processing.failed",
        "payment_processing.action_required",
        "overdue",
        "uncollectible",
    )
    for status in unpaid:
        table[status, "paid"] = "paid"
        table[status, "void"] = "voided"
        table[status, "payment_uncollectible"] = "uncollectible"
        table[status, "payment_overdue"] = "overdue"
        table[status, "payment_failed"] = "payment_processing.failed"
        table[status, "action_required"] = "payment_processing.action_required"
        table[status, "retry"] = "payment_processing.pending"
    for trigger in ("payment_overdue", "payment_failed", "action_required", "retry", "payment_uncollectible"):
        del table["uncollectible", trigger]
    del table["payment_processing.pending", "retry"]
    for status in _EDITABLE:
        table[status, "updated"] = "draft.updating"
    for status in _DELETABLE:
        table[status, "delete"] = "delete.in_progress"
    return MappingProxyType(table)


_EDITABLE: tuple[Status, ...] = (
    "draft.waiting_for_collection",
    "draft.invalid",
    "draft.sync_failed",
    "draft.waiting_auto_approval",
    "draft.manual_approval_needed",
)
_DELETABLE: tuple[Status, ...] = (
    "draft.created",
    *_EDITABLE,
    "draft.syncing",
    "draft.ready_to_issue",
    "issuing.line_finalization_failed",
    "issuing.syncing",
    "issuing.failed",
)
EDITABLE = frozenset(_EDITABLE)
DELETABLE = frozenset(_DELETABLE)
FINAL = frozenset[Status](("paid", "uncollectible", "voided", "deleted"))
"""Nothing more is expected of these."""
FAILED = frozenset[Status](
    (
        "draft.invalid",
        "draft.sync_failed",
        "delete.failed",
        "issuing.line_finalization_failed",
        "issuing.failed",
        "payment_processing.failed",
    )
)
OPEN = frozenset[Status](
    ("payment_processing.pending", "payment_processing.failed", "payment_processing.action_required")
)
"""Issued and not yet paid; overdue when their due date has passed."""
TRANSITIONS = _table()


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What holds an invoice back. `synced`: no app has yet to confirm what it was given.

    `numbered`: it has its final number, so that it never goes without a trace.
    """

    now: datetime
    collection_at: datetime | None
    draft_until: datetime | None
    auto_advance: bool
    critical: bool
    lines: bool
    numbered: bool = False
    synced: bool = True


def after(status: Status, facts: Facts) -> Status | None:
    """The state that follows by itself; None: it stays until something happens."""
    if (status, "next") not in TRANSITIONS or not _free(status, facts):
        return None
    if status == "draft.syncing" and not facts.auto_advance:
        return "draft.manual_approval_needed"
    if status == "draft.ready_to_issue" and not facts.lines:
        return "delete.in_progress"
    if status in ("draft.validating", "draft.ready_to_issue") and facts.critical:
        return "draft.invalid"
    if status == "delete.syncing" and facts.numbered:
        return "voided"
    return TRANSITIONS[status, "next"]


def _free(status: Status, facts: Facts) -> bool:
    match status:
        case "draft.waiting_for_collection":
            return facts.collection_at is None or facts.now >= facts.collection_at
        case "draft.waiting_auto_approval":
            return facts.draft_until is None or facts.now >= facts.draft_until
        case "draft.syncing" | "issuing.syncing" | "delete.syncing":
            return facts.synced
    return True


def settles(status: Status, facts: Facts) -> Status:
    """Where it comes to rest when nothing fails on the way."""
    while (following := after(status, facts)) is not None:
        status = following
    return status


_ACTIONS: Mapping[Action, Trigger] = MappingProxyType(
    {
        "approve": "approve",
        "delete": "delete",
        "retry": "retry",
        "snapshotQuantities": "snapshot_quantities",
        "void": "void",
    }
)


def actions_of(status: Status, facts: Facts) -> dict[Action, Status]:
    """What may be done with it now, and where that leads."""
    found: dict[Action, Status] = {}
    if after(status, facts) is not None:
        found["advance"] = settles(status, facts)
    for action, trigger in _ACTIONS.items():
        if (status, trigger) in TRANSITIONS:
            found[action] = settles(TRANSITIONS[status, trigger], facts)
    return found


def short(status: Status) -> str:
    """The state without its detail: draft, issuing, issued, payment_processing, overdue, paid, ..."""
    return status.partition(".")[0]
