"""What becomes of a few stored events: loaded with what they meet, judged by billing/proof/disposition.py."""

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence

from sqlalchemy import Text, cast, select
from sqlalchemy.orm import Session

from billing.contracts.customer import SubjectOwner
from billing.contracts.subscriptions import Subscription, SubscriptionItem, subscriptions_of
from billing.proof.disposition import Disposition, Term, decide
from catalog.features import Feature, features_by_id
from catalog.price import FlatPrice
from metering.errors import NotFoundError
from metering.event import Event
from metering.events import RetiredEvent, StoredEvent, VoidedEvent
from metering.ids import event_key
from metering.meters import list_meters

__all__ = ["EventNotFoundError", "disposition_of", "dispositions_of"]


class EventNotFoundError(NotFoundError):
    pass


def disposition_of(session: Session, *, source: str, event_id: str) -> Disposition:
    """Of the stored event with that identity."""
    key = event_key(source, event_id)
    event = _found(session, StoredEvent, key) or _found(session, RetiredEvent, key)
    if event is None:
        raise EventNotFoundError(f"no event {event_id!r} of the source {source!r}")
    return dispositions_of(session, [event])[0]


def _found(session: Session, table: type[StoredEvent | RetiredEvent], key: uuid.UUID) -> Event | None:
    """With its data as the text that PostgreSQL keeps, digit for digit."""
    query = select(table.id, table.source, table.type, table.subject, table.time, cast(table.data, Text))
    for *identity, time, data in session.execute(query.where(table.key == key)):
        event_id, source, event_type, subject = identity
        return Event(
            id=event_id,
            source=source,
            type=event_type,
            subject=subject,
            time=time,
            data=data.encode() if data else None,
        )
    return None


def dispositions_of(session: Session, events: Sequence[Event]) -> list[Disposition]:
    """Of each of these stored events, with as many queries for one as for a hundred."""
    keys = {event_key(event.source, event.id) for event in events}
    voided = _voided(session, keys)
    meters = {meter.slug: meter.definition for meter in list_meters(session)}
    owners = _owners(session, {event.subject for event in events})
    terms = _terms_of(session, set(owners.values()))
    return [
        decide(
            event,
            voided=event_key(event.source, event.id) in voided,
            meters=meters,
            customer_id=(owner := owners.get(event.subject)),
            terms=terms.get(owner, []) if owner else [],
        )
        for event in events
    ]


def _voided(session: Session, keys: Iterable[uuid.UUID]) -> set[uuid.UUID]:
    query = select(VoidedEvent.key).where(VoidedEvent.key.in_(keys), VoidedEvent.restored_at.is_(None))
    return set(session.scalars(query))


def _owners(session: Session, subjects: Iterable[str]) -> dict[str, str]:
    query = select(SubjectOwner).where(SubjectOwner.subject_key.in_(subjects))
    return {owned.subject_key: owned.customer_id for owned in session.scalars(query)}


def _terms_of(session: Session, customer_ids: Iterable[str]) -> dict[str, list[Term]]:
    """All that these customers ever agreed to."""
    subscriptions = subscriptions_of(session, customer_ids)
    items = (item for signed in subscriptions for phase in signed.phases for item in phase.items)
    features = features_by_id(session, {item.feature_id for item in items if item.feature_id})
    terms: dict[str, list[Term]] = {}
    for signed in subscriptions:
        terms.setdefault(signed.customer_id, []).extend(_terms(signed, features))
    return terms


def _terms(signed: Subscription, features: Mapping[str, Feature]) -> Iterator[Term]:
    yield Term(subscription_id=signed.id, start=signed.active_from, end=signed.active_to)
    for phase in signed.phases:
        for item in phase.items:
            if item.feature_id is not None:
                yield _term(signed, item, features[item.feature_id])


def _term(signed: Subscription, item: SubscriptionItem, feature: Feature) -> Term:
    price = item.rate_card.price
    return Term(
        subscription_id=signed.id,
        start=item.active_from,
        end=item.active_to,
        item_id=item.id,
        feature_key=feature.key,
        meter=feature.meter.definition if feature.meter else None,
        conditions=feature.conditions,
        priced=price is not None and not isinstance(price, FlatPrice),
    )
