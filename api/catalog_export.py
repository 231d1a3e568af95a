"""The catalog as it is: the rows of what is for sale as the entries of a file, and the whole file."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TypeVar

from sqlalchemy.orm import Session

from api.catalog_file import AddonEntry, FeatureEntry, OfferEntry, PlanEntry, as_yaml
from api.http.features import feature_body
from api.http.plans import ProRatingConfig
from catalog.addons import Addon
from catalog.features import Feature, list_features
from catalog.plan_addons import PlanAddon, list_plan_addons
from catalog.plans import Plan
from catalog.versions import VersionFilter, list_versions

__all__ = [
    "active_versions",
    "addon_entry",
    "export_catalog",
    "feature_entry",
    "newest_offers",
    "offers_of_plan",
    "plan_entry",
]

V = TypeVar("V", Addon, Plan)
ALL = 10**9
"""The catalog is small enough to be read whole."""


def export_catalog(session: Session, *, now: datetime) -> str:
    """All that is for sale, as a file: by key, without defaults. Drafts are not for sale."""
    living, _ = list_features(session)
    plans = [_for_sale(session, plan, now) for plan in active_versions(session, Plan, now=now)]
    addons = [addon_entry(addon) for addon in active_versions(session, Addon, now=now)]
    return as_yaml([feature_entry(feature) for feature in living], addons, plans)


def _for_sale(session: Session, plan: Plan, now: datetime) -> PlanEntry:
    offers = newest_offers(session, plan, now=now).values()
    return plan_entry(plan, [offer for offer in offers if offer.addon.status(now) == "active"])


def active_versions(session: Session, kind: type[V], *, now: datetime) -> Sequence[V]:
    """By key."""
    return list_versions(session, kind, VersionFilter(statuses=("active",)), limit=ALL, now=now)[0]


def feature_entry(feature: Feature) -> FeatureEntry:
    body = feature_body(feature)
    about = {"id", "created_at", "updated_at", "archived_at"}
    return FeatureEntry.model_validate(body.model_dump(exclude=about))


def addon_entry(addon: Addon) -> AddonEntry:
    return AddonEntry(
        key=addon.key,
        name=addon.name,
        description=addon.description,
        metadata=addon.metadata_,
        instance_type=addon.instance_type,
        currency=addon.currency,
        rate_cards=list(addon.rate_cards),
    )


def plan_entry(plan: Plan, offers: Iterable[PlanAddon]) -> PlanEntry:
    return PlanEntry(
        key=plan.key,
        name=plan.name,
        description=plan.description,
        metadata=plan.metadata_,
        currency=plan.currency,
        billing_cadence=plan.billing_cadence,
        pro_rating_config=ProRatingConfig(enabled=plan.pro_rating),
        phases=list(plan.phases),
        addons=[_offer_entry(offer) for offer in offers],
    )


def _offer_entry(offer: PlanAddon) -> OfferEntry:
    return OfferEntry(
        key=offer.addon.key,
        from_plan_phase=offer.from_plan_phase,
        max_quantity=offer.max_quantity,
        metadata=offer.metadata_,
    )


def newest_offers(session: Session, plan: Plan, *, now: datetime) -> dict[str, PlanAddon]:
    """What the plan offers, by the add-on's key; of several versions the newest."""
    return {offer.addon.key: offer for offer in offers_of_plan(session, plan, now=now)}


def offers_of_plan(session: Session, plan: Plan, *, now: datetime) -> Sequence[PlanAddon]:
    """By the add-on's key and version."""
    return list_plan_addons(session, plan.id, VersionFilter(), limit=ALL, now=now)[0]
