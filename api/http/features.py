"""Features: /api/v1/features."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import StringConstraints

from api.http.auth import admin, reader
from api.http.body import RESOURCE, Body, ExactRoute, Key, Metadata, Page
from api.http.session import Now, Transaction
from catalog import features
from catalog.features import Feature

__all__ = ["FeatureBody", "feature_body", "router"]

router = APIRouter(prefix="/api/v1/features", tags=["Features"], route_class=ExactRoute)


class FeatureCreate(Body):
    READ_ONLY = RESOURCE | {"archivedAt"}

    key: Key
    name: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    metadata: Metadata | None = None
    meter_slug: str | None = None
    meter_group_by_filters: dict[str, str] | None = None


class FeatureBody(FeatureCreate):
    READ_ONLY = frozenset()

    id: str
    created_at: datetime
    updated_at: datetime
    archived_at: datetime | None = None


class FeaturePage(Page):
    items: list[FeatureBody]


def feature_body(feature: Feature) -> FeatureBody:
    return FeatureBody(
        id=feature.id,
        key=feature.key,
        name=feature.name,
        metadata=feature.metadata_,
        meter_slug=feature.meter.slug if feature.meter else None,
        meter_group_by_filters=feature.meter_group_by_filters,
        created_at=feature.created_at,
        updated_at=feature.updated_at,
        archived_at=feature.archived_at,
    )


@router.get("", operation_id="listFeatures", dependencies=[reader])
def list_all(
    *,
    session: Transaction,
    meter_slug: Annotated[list[str] | None, Query(alias="meterSlug")] = None,
    include_archived: Annotated[bool, Query(alias="includeArchived")] = False,
    page: Annotated[int | None, Query(ge=1, le=1_000_000)] = None,
    page_size: Annotated[int | None, Query(alias="pageSize", ge=1, le=1000)] = None,
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[FeatureBody] | FeaturePage:
    """A page object when `page` or `pageSize` is given, otherwise a plain array."""
    found, _ = features.list_features(session, meter_slugs=meter_slug or (), include_archived=include_archived)
    bodies = [feature_body(feature) for feature in found]
    if page is None and page_size is None:
        return bodies[offset : offset + limit]
    number, size = page or 1, page_size or 100
    items = bodies[(number - 1) * size : number * size]
    return FeaturePage(total_count=len(bodies), page=number, page_size=size, items=items)


@router.post("", operation_id="createFeature", status_code=201, dependencies=[admin])
def create(session: Transaction, now: Now, body: FeatureCreate) -> FeatureBody:
    feature = features.create_feature(
        session,
        key=body.key,
        name=body.name,
        meter_slug=body.meter_slug,
        meter_group_by_filters=body.meter_group_by_filters,
        metadata=body.metadata,
        now=now,
    )
    return feature_body(feature)


@router.get("/{featureId}", operation_id="getFeature", dependencies=[reader])
def get(session: Transaction, featureId: str) -> FeatureBody:  # noqa: N803  the wire's name
    return feature_body(features.get_feature(session, featureId))


@router.delete("/{featureId}", operation_id="deleteFeature", status_code=204, dependencies=[admin])
def archive(session: Transaction, now: Now, featureId: str) -> None:  # noqa: N803  the wire's name
    """Archive it: its key is free again, and plans and subscriptions that have it keep it."""
    features.archive_feature(session, features.get_feature(session, featureId), now=now)
