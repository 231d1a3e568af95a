"""Features: /api/v1/features."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import Field, StringConstraints
from sqlalchemy.orm import Session

from api.http.auth import admin, reader
from api.http.body import RESOURCE, Body, ExactRoute, Key, Metadata, Page
from api.http.session import Now, Transaction
from api.http.usage import Conditions
from catalog import features
from catalog.features import Feature, FeatureOrder
from catalog.llm_prices import pricing_of
from catalog.unit_cost import LlmPricing, LlmUnitCost, ManualUnitCost, UnitCost
from metering.filter_string import FilterString, filter_json
from metering.wire import Numeric

__all__ = ["FeatureBody", "feature_body", "router"]

router = APIRouter(prefix="/api/v1/features", tags=["Features"], route_class=ExactRoute)


class ManualUnitCostBody(Body):
    type: Literal["manual"]
    amount: Annotated[Numeric, Field(description="USD for each unit")]

    def value(self) -> UnitCost:
        return ManualUnitCost(type="manual", amount=self.amount)


class LlmUnitCostBody(Body):
    """Of each pair one: a text that holds for all usage, or the dimension of the meter that tells it."""

    type: Literal["llm"]
    provider: str | None = None
    provider_property: str | None = None
    model: str | None = None
    model_property: str | None = None
    token_type: Annotated[
        str | None,
        Field(description="input, output, cache_read, cache_write, reasoning; also request, response"),
    ] = None
    token_type_property: str | None = None
    pricing: Annotated[
        LlmPricing | None,
        Field(description="read-only: what applies now, where provider and model are fixed and known"),
    ] = None

    def value(self) -> UnitCost:
        return LlmUnitCost(**self.model_dump(exclude={"pricing"}))


UnitCostBody = ManualUnitCostBody | LlmUnitCostBody


class _FeatureFields(Body):
    key: Key
    name: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    metadata: Metadata | None = None
    meter_slug: str | None = None
    meter_group_by_filters: dict[str, str] | None = None
    unit_cost: UnitCostBody | None = None


class FeatureCreate(_FeatureFields):
    READ_ONLY = RESOURCE | {"archivedAt"}

    advanced_meter_group_by_filters: Conditions = None


class FeatureUpdate(Body):
    """What may change: it changes no usage and no price, only what is known of costs, past ones too."""

    unit_cost: UnitCostBody | None


class FeatureBody(_FeatureFields):
    id: str
    advanced_meter_group_by_filters: Annotated[
        dict[str, Any] | None, Field(description="a FilterString for each dimension, as it was sent")
    ] = None
    created_at: datetime
    updated_at: datetime
    archived_at: datetime | None = None


class FeaturePage(Page):
    items: list[FeatureBody]


def feature_body(feature: Feature, pricing: LlmPricing | None = None) -> FeatureBody:
    advanced = feature.advanced_meter_group_by_filters
    return FeatureBody(
        id=feature.id,
        key=feature.key,
        name=feature.name,
        metadata=feature.metadata_,
        meter_slug=feature.meter.slug if feature.meter else None,
        meter_group_by_filters=feature.meter_group_by_filters,
        advanced_meter_group_by_filters=None if advanced is None else _written(advanced),
        unit_cost=_unit_cost(feature.unit_cost, pricing),
        created_at=feature.created_at,
        updated_at=feature.updated_at,
        archived_at=feature.archived_at,
    )


def _written(conditions: Mapping[str, FilterString]) -> dict[str, Any]:
    return {name: filter_json(one) for name, one in conditions.items()}


def _unit_cost(cost: UnitCost | None, pricing: LlmPricing | None) -> UnitCostBody | None:
    match cost:
        case None:
            return None
        case ManualUnitCost():
            return ManualUnitCostBody.model_validate(cost)
        case LlmUnitCost():
            return LlmUnitCostBody.model_validate(cost).model_copy(update={"pricing": pricing})


def _bodies(session: Session, found: Iterable[Feature], now: datetime) -> list[FeatureBody]:
    every = list(found)
    pricing = pricing_of(session, {feature.id: feature.unit_cost for feature in every}, at=now)
    return [feature_body(feature, pricing.get(feature.id)) for feature in every]


FeatureOrderBy = Literal["id", "key", "name", "createdAt", "updatedAt"]
_ORDER: Mapping[FeatureOrderBy, FeatureOrder] = {
    "id": "id",
    "key": "key",
    "name": "name",
    "createdAt": "created_at",
    "updatedAt": "updated_at",
}


@router.get("", operation_id="listFeatures", dependencies=[reader])
def list_all(
    *,
    session: Transaction,
    now: Now,
    meter_slug: Annotated[list[str] | None, Query(alias="meterSlug")] = None,
    include_archived: Annotated[bool, Query(alias="includeArchived")] = False,
    order: Literal["ASC", "DESC"] = "ASC",
    order_by: Annotated[FeatureOrderBy, Query(alias="orderBy")] = "key",
    page: Annotated[int | None, Query(ge=1, le=1_000_000)] = None,
    page_size: Annotated[int | None, Query(alias="pageSize", ge=1, le=1000)] = None,
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[FeatureBody] | FeaturePage:
    """A page object when `page` or `pageSize` is given, otherwise a plain array."""
    paged = page is not None or page_size is not None
    number, size = page or 1, page_size or 100
    found, count = features.list_features(
        session,
        meter_slugs=meter_slug or (),
        include_archived=include_archived,
        order_by=_ORDER[order_by],
        descending=order == "DESC",
        offset=(number - 1) * size if paged else offset,
        limit=size if paged else limit,
    )
    items = _bodies(session, found, now)
    return FeaturePage(total_count=count, page=number, page_size=size, items=items) if paged else items


@router.post("", operation_id="createFeature", status_code=201, dependencies=[admin])
def create(session: Transaction, now: Now, body: FeatureCreate) -> FeatureBody:
    feature = features.create_feature(
        session,
        key=body.key,
        name=body.name,
        meter_slug=body.meter_slug,
        meter_group_by_filters=body.meter_group_by_filters,
        advanced_meter_group_by_filters=body.advanced_meter_group_by_filters,
        unit_cost=body.unit_cost.value() if body.unit_cost else None,
        metadata=body.metadata,
        now=now,
    )
    return _bodies(session, [feature], now)[0]


@router.get("/{featureId}", operation_id="getFeature", dependencies=[reader])
def get(session: Transaction, now: Now, featureId: str) -> FeatureBody:  # noqa: N803  the wire's name
    return _bodies(session, [features.get_feature(session, featureId)], now)[0]


@router.patch("/{featureId}", operation_id="updateFeature", dependencies=[admin])
def update(session: Transaction, now: Now, featureId: str, body: FeatureUpdate) -> FeatureBody:  # noqa: N803
    """Give it another unit cost, or with null none."""
    feature = features.get_feature(session, featureId)
    unit_cost = body.unit_cost.value() if body.unit_cost else None
    features.set_unit_cost(session, feature, unit_cost, now=now)
    return _bodies(session, [feature], now)[0]


@router.delete("/{featureId}", operation_id="deleteFeature", status_code=204, dependencies=[admin])
def archive(session: Transaction, now: Now, featureId: str) -> None:  # noqa: N803  the wire's name
    """Archive it: its key is free again, and plans and subscriptions that have it keep it."""
    features.archive_feature(session, features.get_feature(session, featureId), now=now)
