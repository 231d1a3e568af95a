"""What may be done to a subscription in each of its states, and when a change takes effect: pure."""

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

from catalog.interval import Interval
from metering.errors import ForbiddenError, Issue

__all__ = [
    "SubscriptionAction",
    "SubscriptionForbiddenError",
    "SubscriptionStatus",
    "Timing",
    "instant_of",
    "next_billing_cycle",
    "require_action",
    "status_of",
    "whole_second",
]

SubscriptionStatus = Literal["active", "inactive", "canceled", "scheduled"]
SubscriptionAction = Literal[
    "edit", "change_addons", "cancel", "change", "migrate", "restore", "unschedule", "delete"
]
Timing = Literal["immediate", "next_billing_cycle"] | datetime
"""When a change takes effect."""

ACTIONS: Mapping[SubscriptionStatus, tuple[SubscriptionAction, ...]] = {
    "scheduled": ("delete",),
    "active": ("edit", "change_addons", "cancel", "change", "migrate", "restore"),
    "canceled": ("unschedule", "change", "migrate", "restore"),
    "inactive": (),
}
"""OpenMeter's table. To restore what was never canceled only removes what was to follow: nothing."""

PAST: Mapping[SubscriptionAction, str] = {
    "edit": "edited",
    "change_addons": "given other add-ons",
    "cancel": "canceled",
    "change": "changed",
    "migrate": "migrated",
    "restore": "restored",
    "unschedule": "continued",
    "delete": "deleted",
}


class SubscriptionForbiddenError(ForbiddenError):
    pass


def status_of(active_from: datetime, active_to: datetime | None, now: datetime) -> SubscriptionStatus:
    if active_to is not None and active_to <= now:
        return "inactive"
    if active_from > now:
        return "scheduled"
    return "active" if active_to is None else "canceled"


def require_action(status: SubscriptionStatus, action: SubscriptionAction) -> None:
    if action not in ACTIONS[status]:
        message = f"a subscription that is {status} can't be {PAST[action]}"
        others = ", ".join(PAST[each] for each in ACTIONS[status])
        hint = f"It can be {others}." if others else "It has ended: create another."
        issue = Issue(code="subscription_action_not_allowed", message=message, hint=hint)
        raise SubscriptionForbiddenError(message, issue)


def whole_second(instant: datetime) -> datetime:
    """Contracts are kept to the second; what is asked within a second holds from its beginning."""
    return instant.replace(microsecond=0)


def instant_of(timing: Timing, *, now: datetime, cycle: datetime) -> datetime:
    """The instant that `timing` names; `cycle` is when the next billing cycle begins."""
    match timing:
        case "immediate":
            return whole_second(now)
        case "next_billing_cycle":
            return cycle
        case instant:
            return whole_second(instant)


def next_billing_cycle(
    anchor: datetime, cadence: Interval, now: datetime, *, phase_end: datetime | None = None
) -> datetime:
    """When the billing period that holds `now` ends; no billing period reaches into another phase."""
    end = cadence.period_of(anchor, now).end
    return end if phase_end is None else min(end, phase_end)
