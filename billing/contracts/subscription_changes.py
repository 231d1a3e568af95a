"""Changing subscriptions: cancel, continue, change, migrate, restore, delete and edit.

Each operation locks the customer, works out the contract as it is to be (contract_edits.py), and writes its
dated phases and items. Nothing is billed here: what a change costs, or gives back, is the difference that the
next billing finds.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy.orm import Session

from billing.contracts.agreement import Agreement, CustomPlan, agreement_of
from billing.contracts.customer import Customer
from billing.contracts.edits import AddItem, ContractEdit, ContractSpec, Market, edited, ended, phase_at
from billing.contracts.subscription_addons import carry_addons_over, forget_addons, has_addons
from billing.contracts.subscription_rules import (
    SubscriptionForbiddenError,
    Timing,
    instant_of,
    whole_second,
)
from billing.contracts.subscriptions import (
    Subscription,
    begin,
    cycle_of,
    locked_subscription,
    require_no_other,
    subscriptions_of,
)
from catalog.features import latest_features
from catalog.plans import Plan, get_plan
from metering.database import translating
from metering.errors import ConflictError, InvalidError, Issue

__all__ = [
    "InvalidEditError",
    "InvalidTimingError",
    "MigrationError",
    "cancel_subscription",
    "change_subscription",
    "delete_subscription",
    "edit_subscription",
    "migrate_subscription",
    "restore_subscription",
    "unschedule_cancelation",
]


class InvalidTimingError(InvalidError):
    pass


class MigrationError(InvalidError):
    pass


class InvalidEditError(InvalidError):
    pass


def cancel_subscription(
    session: Session, subscription_id: str, *, timing: Timing = "immediate", now: datetime
) -> Subscription:
    """End it at once, with the billing cycle, or at any instant of its life, one that has passed too."""
    _, subscription = locked_subscription(session, subscription_id, "cancel", now)
    _end(subscription, _instant(subscription, timing, now), now)
    session.flush()
    return subscription


def _instant(subscription: Subscription, timing: Timing, now: datetime) -> datetime:
    """Within the life of the subscription."""
    at = instant_of(timing, now=now, cycle=cycle_of(subscription, now))
    if at < subscription.active_from:
        message = f"the subscription begins at {subscription.active_from.isoformat()}, which is later"
        raise _wrong_timing("timing_before_start", message, "Take that instant, or one after it.")
    if subscription.active_to is not None and at > subscription.active_to:
        message = f"the subscription ends at {subscription.active_to.isoformat()}, which is earlier"
        raise _wrong_timing("timing_after_end", message, "Unschedule its cancelation first.")
    return at


def _wrong_timing(code: str, message: str, hint: str) -> InvalidTimingError:
    return InvalidTimingError(message, Issue(code=code, message=message, field="$.timing", hint=hint))


def _end(subscription: Subscription, at: datetime, now: datetime) -> None:
    """What was agreed is remembered as long as the end is to come, so that it can be continued."""
    agreed = subscription.before_cancelation or subscription.spec
    subscription.before_cancelation = agreed if at > now else None
    subscription.active_to = at
    _write(subscription, ended(agreed, at), now)


def _write(subscription: Subscription, spec: ContractSpec, now: datetime) -> None:
    subscription.write(spec, now=now)
    subscription.bill_soon(now)


def unschedule_cancelation(session: Session, subscription_id: str, *, now: datetime) -> Subscription:
    """It goes on as it was agreed."""
    customer, subscription = locked_subscription(session, subscription_id, "unschedule", now)
    require_no_other(
        session, customer.id, since=subscription.active_from, but=subscription.id, field="$.subscriptionId"
    )
    _continue(subscription, now)
    session.flush()
    return subscription


def _continue(subscription: Subscription, now: datetime) -> None:
    subscription.active_to = None
    if subscription.before_cancelation is not None:
        _write(subscription, subscription.before_cancelation, now)
    subscription.before_cancelation = None
    subscription.updated_at = now


def change_subscription(
    session: Session,
    subscription_id: str,
    *,
    plan: Plan | CustomPlan,
    timing: Timing,
    billing_anchor: datetime | None = None,
    starting_phase: str | None = None,
    name: str | None = None,
    description: str | None = None,
    metadata: Mapping[str, str] | None = None,
    now: datetime,
) -> tuple[Subscription, Subscription]:
    """End it and begin another at the same instant, billed on the same days; returns both.

    Its add-ons end with it.
    """
    customer, current = locked_subscription(session, subscription_id, "change", now)
    terms = agreement_of(session, plan, starting_phase=starting_phase, now=now)
    at = _instant(current, timing, now)
    following = _succeed(
        session,
        customer,
        current,
        terms,
        at=at,
        billing_anchor=billing_anchor,
        name=name,
        description=description,
        metadata=metadata,
        now=now,
    )
    return current, following


def _succeed(
    session: Session,
    customer: Customer,
    current: Subscription,
    terms: Agreement,
    *,
    at: datetime,
    billing_anchor: datetime | None,
    name: str | None = None,
    description: str | None = None,
    metadata: Mapping[str, str] | None = None,
    now: datetime,
) -> Subscription:
    """Ending first: the database lets a customer have one subscription without an end."""
    _end(current, at, now)
    session.flush()
    return begin(
        session,
        customer=customer,
        terms=terms,
        active_from=at,
        billing_anchor=billing_anchor or current.billing_anchor,
        name=name,
        description=description,
        metadata=metadata,
        now=now,
    )


def migrate_subscription(
    session: Session,
    subscription_id: str,
    *,
    timing: Timing = "immediate",
    target_version: int | None = None,
    starting_phase: str | None = None,
    billing_anchor: datetime | None = None,
    now: datetime,
) -> tuple[Subscription, Subscription]:
    """To a newer version of its plan, by default the one that is sold; returns what ends and what begins.

    Its add-ons go with it: it is the same plan.
    """
    customer, current = locked_subscription(session, subscription_id, "migrate", now)
    plan = _newer(session, current, target_version)
    terms = agreement_of(session, plan, starting_phase=starting_phase, archived_too=True, now=now)
    at = _instant(current, timing, now)
    following = _succeed(
        session,
        customer,
        current,
        terms,
        at=at,
        billing_anchor=billing_anchor,
        name=current.name,
        description=current.description,
        metadata=current.metadata_,
        now=now,
    )
    carry_addons_over(session, current, following, now=now)
    return current, following


def _newer(session: Session, current: Subscription, target_version: int | None) -> Plan:
    if current.plan is None:
        message = "the subscription has terms of its own, of which there are no versions"
        hint = "Change it: POST /api/v1/subscriptions/{subscriptionId}/change."
        raise MigrationError(message, Issue(code="custom_subscription", message=message, hint=hint))
    plan = get_plan(session, current.plan.key, version=target_version)
    if plan.version <= current.plan.version:
        message = f"the subscription has version {current.plan.version} of {plan.key!r} already"
        issue = Issue(
            code="plan_version_not_newer",
            message=message,
            field="$.targetVersion",
            hint="Publish a newer version, or name one.",
        )
        raise MigrationError(message, issue)
    return plan


def restore_subscription(session: Session, subscription_id: str, *, now: datetime) -> Subscription:
    """It goes on as it was agreed, and what was to follow it is deleted.

    Raises ConflictError when that has begun and was billed while this waited for its turn.
    """
    customer, subscription = locked_subscription(session, subscription_id, "restore", now)
    for other in subscriptions_of(session, [customer.id]):
        if other.id != subscription.id and other.status(now) == "scheduled":
            forget_addons(session, other.id)
            session.delete(other)
    with translating({_BILLED: ConflictError(_BEGUN, Issue(code=_CODE, message=_BEGUN, hint="Try again."))}):
        session.flush()
    if subscription.active_to is not None:
        _continue(subscription, now)
        session.flush()
    return subscription


def delete_subscription(session: Session, subscription_id: str, *, now: datetime) -> None:
    """Only one that has not begun: nothing was ever sold under it."""
    _, subscription = locked_subscription(session, subscription_id, "delete", now)
    forget_addons(session, subscription.id)
    session.delete(subscription)
    issue = Issue(code=_CODE, message=_BEGUN, hint="Cancel it: what is not used is given back.")
    with translating({_BILLED: SubscriptionForbiddenError(_BEGUN, issue)}):
        session.flush()


_BILLED = "invoice_lines_subscription_id_fkey"
"""`now` is older than the customer's lock: whoever had the lock before may have billed what was to come."""
_BEGUN, _CODE = "the subscription has begun meanwhile, and was billed", "subscription_action_not_allowed"


def edit_subscription(
    session: Session,
    subscription_id: str,
    edits: Sequence[ContractEdit],
    *,
    timing: Timing = "immediate",
    now: datetime,
) -> Subscription:
    """All edits, or none. They take effect within the phase that runs: at once, or later in it."""
    _, subscription = locked_subscription(session, subscription_id, "edit", now)
    if has_addons(session, subscription, now):
        message = "a subscription that has add-ons can't be edited"
        hint = "Take its add-ons away first: quantity 0."
        issue = Issue(code="subscription_has_addons", message=message, hint=hint)
        raise SubscriptionForbiddenError(message, issue)
    spec = subscription.spec
    at = _editing_instant(subscription, timing, now)
    spec, issues = edited(spec, edits, _market(session, subscription, edits, at, now))
    if issues:
        raise InvalidEditError(issues[0].message, *issues)
    subscription.without_addons = None
    _write(subscription, spec, now)
    session.flush()
    return subscription


def _editing_instant(subscription: Subscription, timing: Timing, now: datetime) -> datetime:
    at = instant_of(timing, now=now, cycle=cycle_of(subscription, now, within_phase=False))
    if at < instant_of("immediate", now=now, cycle=now):
        raise _wrong_timing(
            "timing_in_the_past", "an edit can't change what has passed", "Take now or later."
        )
    phase = phase_at(subscription.spec, now)
    if phase is not None and phase.ended_by(at):
        message = f"the phase that runs, {phase.key!r}, has ended by {at.isoformat()}"
        hint = "Take an instant before that, or edit the later phase at once."
        raise _wrong_timing("timing_in_another_phase", message, hint)
    return at


def _market(
    session: Session,
    subscription: Subscription,
    edits: Sequence[ContractEdit],
    at: datetime,
    now: datetime,
) -> Market:
    cards = (edit.rate_card for edit in edits if isinstance(edit, AddItem))
    features = latest_features(session, {card.feature_key for card in cards if card.feature_key}, lock=True)
    return Market(
        now=whole_second(now),
        at=at,
        billing_cadence=subscription.billing_cadence,
        features={key: feature.facts for key, feature in features.items()},
        feature_ids={key: feature.id for key, feature in features.items()},
    )
