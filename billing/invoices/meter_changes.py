"""A meter may change, but not lose a dimension that somebody's price is told apart by.

That is the price of a version that is or was for sale, of a contract whose usage may still be billed, of a
line added by hand that is due, or of a draft. All that stands in the way is told at once.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, Text, cast, or_, select, type_coerce
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Session

from billing.contracts.pending import PendingLine
from billing.contracts.subscriptions import SubscriptionItem, SubscriptionPhase
from billing.invoices.due import LATE
from billing.invoices.invoice import Invoice, InvoiceLine
from catalog import features
from catalog.addons import Addon
from catalog.features import Feature, MeterInUseError
from catalog.plans import Plan
from catalog.price import dimensions_of
from catalog.rate_card import RateCard
from metering import meters
from metering.errors import Issue
from metering.meters import Meter

__all__ = ["update_meter"]


def update_meter(
    session: Session,
    id_or_slug: str,
    *,
    name: str | None,
    description: str | None,
    metadata: Mapping[str, str] | None,
    group_by: Mapping[str, str],
    now: datetime,
) -> Meter:
    """Raises MeterInUseError when a dimension goes, or is read from elsewhere, that is still needed."""
    meter = meters.get_meter(session, id_or_slug, lock=True)
    if lost := {one for one, path in meter.group_by.items() if group_by.get(one) != path}:
        query = select(Feature.id).where(Feature.meter_id == meter.id)
        if issues := list(_issues(session, set(session.scalars(query)), lost, now)):
            raise MeterInUseError(issues[0].message, *issues)
    return features.update_meter(
        session, meter.id, name=name, description=description, metadata=metadata, group_by=group_by, now=now
    )


def _issues(session: Session, feature_ids: set[str], lost: set[str], now: datetime) -> Iterator[Issue]:
    yield from _of_versions(session, feature_ids, lost)
    until = "It can go when its usage is billed for good, two months after the price has ended."
    for subscription_id in session.scalars(_contracts(feature_ids, lost, now)):
        yield _issue(f"a price of the subscription {subscription_id}", until)
    for line_id in session.scalars(_by_hand(feature_ids, lost)):
        yield _issue(
            f"the price of the line {line_id}, which was added by hand,",
            "It can go two months after its period.",
        )
    for number in session.scalars(_drafts(feature_ids, lost)):
        yield _issue(f"a price on the draft {number}", "Approve it first, or delete it.")


def _issue(whose: str, hint: str) -> Issue:
    message = f"{whose} is told apart by a dimension that would go"
    return Issue(code="meter_in_use", message=message, field="$.groupBy", hint=hint)


def _of_versions(session: Session, feature_ids: set[str], lost: set[str]) -> Iterator[Issue]:
    """A draft is no hindrance: it is checked again when it is published."""
    hint = "Archive and delete it first; customers who have it stay as they are."
    published = (Plan.effective_from.is_not(None), Plan.deleted_at.is_(None))
    for plan in session.scalars(select(Plan).where(*published).order_by(Plan.key, Plan.version)):
        cards = [card for phase in plan.phases for card in phase.rate_cards]
        if _told_apart(cards, plan.feature_ids, feature_ids, lost):
            yield _issue(f"a price of the plan {plan.key!r} version {plan.version}", hint)
    published = (Addon.effective_from.is_not(None), Addon.deleted_at.is_(None))
    for addon in session.scalars(select(Addon).where(*published).order_by(Addon.key, Addon.version)):
        if _told_apart(addon.rate_cards, addon.feature_ids, feature_ids, lost):
            yield _issue(f"a price of the add-on {addon.key!r} version {addon.version}", hint)


def _told_apart(
    cards: Iterable[RateCard], pinned: Mapping[str, str], feature_ids: set[str], lost: set[str]
) -> bool:
    """Whether one of the cards, whose features are those `pinned`, has such a price."""
    return any(
        pinned.get(card.feature_key or "") in feature_ids and not lost.isdisjoint(dimensions_of(card.price))
        for card in cards
    )


def _contracts(feature_ids: set[str], lost: set[str], now: datetime) -> Select[str]:
    """The first subscription; after LATE nobody looks for usage any more."""
    query = select(SubscriptionPhase.subscription_id).join(
        SubscriptionItem, SubscriptionItem.phase_id == SubscriptionPhase.id
    )
    billed_still = or_(SubscriptionItem.active_to.is_(None), SubscriptionItem.active_to > now - LATE)
    query = query.where(*_priced_by(SubscriptionItem, feature_ids, lost), billed_still)
    return query.order_by(SubscriptionPhase.subscription_id).limit(1)


def _by_hand(feature_ids: set[str], lost: set[str]) -> Select[str]:
    due = (PendingLine.next_billing_at.is_not(None), PendingLine.deleted_at.is_(None))
    query = select(PendingLine.id).where(*_priced_by(PendingLine, feature_ids, lost), *due)
    return query.order_by(PendingLine.id).limit(1)


def _drafts(feature_ids: set[str], lost: set[str]) -> Select[str]:
    query = select(Invoice.number).join(InvoiceLine, InvoiceLine.invoice_id == Invoice.id)
    draft = (Invoice.issued_at.is_(None), Invoice.deleted_at.is_(None))
    query = query.where(*_priced_by(InvoiceLine, feature_ids, lost), *draft)
    return query.order_by(Invoice.id).limit(1)


def _priced_by(
    kind: type[SubscriptionItem | PendingLine | InvoiceLine], feature_ids: set[str], lost: set[str]
) -> Iterator[ColumnElement[bool]]:
    price: Any = type_coerce(kind.rate_card, JSONB)["price"]
    names = cast(sorted(lost), ARRAY(Text))
    yield kind.feature_id.in_(feature_ids)
    yield or_(price["dimensions"].has_any(names), price["groupBy"].has_any(names))
