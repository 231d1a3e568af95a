"""Add-ons: /api/v1/addons."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Annotated, get_args

from fastapi import APIRouter, Query
from pydantic import Field, StringConstraints
from sqlalchemy.orm import Session

from api.http.auth import admin, reader
from api.http.body import RESOURCE, Body, ExactRoute, Metadata, Page
from api.http.session import Now, Transaction
from api.http.versions import Listing, ValidationError, errors_of
from catalog import addons
from catalog.addon import AddonInstanceType
from catalog.addons import Addon
from catalog.rate_card import RateCard
from catalog.rate_card_rules import KEY, MAX_KEY_LENGTH
from catalog.versions import VersionStatus, list_versions

__all__ = ["AddonBody", "addon_bodies", "router"]

router = APIRouter(prefix="/api/v1/addons", tags=["Add-ons"], route_class=ExactRoute)

# These two are only documented here. The catalog judges them, so that what is wrong has OpenMeter's code.
_Key = Annotated[str, Field(json_schema_extra={"pattern": f"^{KEY.pattern}$", "maxLength": MAX_KEY_LENGTH})]
_InstanceType = Annotated[str, Field(json_schema_extra={"enum": list(get_args(AddonInstanceType))})]


class AddonReplaceUpdate(Body):
    READ_ONLY = RESOURCE | {"version", "status", "effectiveFrom", "effectiveTo", "validationErrors"}

    name: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    description: Annotated[str, StringConstraints(max_length=1024)] | None = None
    metadata: Metadata | None = None
    instance_type: _InstanceType
    rate_cards: Annotated[list[RateCard], Field(max_length=100)]


class AddonCreate(AddonReplaceUpdate):
    key: _Key
    currency: str = "USD"


class AddonBody(AddonCreate):
    READ_ONLY = frozenset()

    id: str
    version: int
    status: VersionStatus
    effective_from: datetime | None = None
    effective_to: datetime | None = None
    validation_errors: list[ValidationError]
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None = None


class AddonPage(Page):
    items: list[AddonBody]


def addon_bodies(session: Session, rows: Sequence[Addon], now: datetime) -> list[AddonBody]:
    found = addons.issues_of_addons(session, rows)
    return [
        AddonBody(
            id=addon.id,
            key=addon.key,
            version=addon.version,
            name=addon.name,
            description=addon.description,
            metadata=addon.metadata_,
            instance_type=addon.instance_type,
            currency=addon.currency,
            rate_cards=list(addon.rate_cards),
            status=addon.status(now),
            effective_from=addon.effective_from,
            effective_to=addon.effective_to,
            validation_errors=errors_of(found[addon.id]),
            created_at=addon.created_at,
            updated_at=addon.updated_at,
            deleted_at=addon.deleted_at,
        )
        for addon in rows
    ]


def _body(session: Session, addon: Addon, now: datetime) -> AddonBody:
    return addon_bodies(session, [addon], now)[0]


@router.get("", operation_id="listAddons", dependencies=[reader])
def list_all(
    *,
    session: Transaction,
    now: Now,
    listing: Listing,
    status: Annotated[list[VersionStatus] | None, Query()] = None,
    currency: Annotated[list[str] | None, Query()] = None,
) -> AddonPage:
    wanted = replace(listing.wanted, statuses=status or (), currencies=currency or ())
    found, count = list_versions(session, Addon, wanted, now=now, **listing.options)
    items = addon_bodies(session, found, now)
    return AddonPage(total_count=count, page=listing.page, page_size=listing.page_size, items=items)


@router.post("", operation_id="createAddon", status_code=201, dependencies=[admin])
def create(session: Transaction, now: Now, body: AddonCreate) -> AddonBody:
    """A draft: the next version of its key."""
    addon = addons.create_addon(
        session,
        key=body.key,
        name=body.name,
        description=body.description,
        metadata=body.metadata,
        instance_type=body.instance_type,
        currency=body.currency,
        rate_cards=tuple(body.rate_cards),
        now=now,
    )
    return _body(session, addon, now)


@router.get("/{addonId}", operation_id="getAddon", dependencies=[reader])
def get(
    session: Transaction,
    now: Now,
    addonId: str,  # noqa: N803  the wire's name
    include_latest: Annotated[bool, Query(alias="includeLatest")] = False,
) -> AddonBody:
    """By id, or by key: the active version, or the latest with `includeLatest`."""
    return _body(session, addons.get_addon(session, addonId, include_latest=include_latest), now)


@router.put("/{addonId}", operation_id="updateAddon", dependencies=[admin])
def update(session: Transaction, now: Now, addonId: str, body: AddonReplaceUpdate) -> AddonBody:  # noqa: N803
    """Replace a draft."""
    addon = addons.update_addon(
        session,
        addons.get_addon(session, addonId, include_latest=True, lock=True),
        name=body.name,
        description=body.description,
        metadata=body.metadata,
        instance_type=body.instance_type,
        rate_cards=tuple(body.rate_cards),
        now=now,
    )
    return _body(session, addon, now)


@router.delete("/{addonId}", operation_id="deleteAddon", status_code=204, dependencies=[admin])
def delete(session: Transaction, now: Now, addonId: str) -> None:  # noqa: N803  the wire's name
    """A draft or an archived version."""
    addon = addons.get_addon(session, addonId, include_latest=True, lock=True)
    addons.delete_addon(session, addon, now=now)


@router.post("/{addonId}/publish", operation_id="publishAddon", dependencies=[admin])
def publish(session: Transaction, now: Now, addonId: str) -> AddonBody:  # noqa: N803  the wire's name
    """Sell it from now on; the version before it is archived at the same instant."""
    addon = addons.get_addon(session, addonId, include_latest=True, lock=True)
    return _body(session, addons.publish_addon(session, addon, now=now), now)


@router.post("/{addonId}/archive", operation_id="archiveAddon", dependencies=[admin])
def archive(session: Transaction, now: Now, addonId: str) -> AddonBody:  # noqa: N803  the wire's name
    """Sell it no more from now on."""
    addon = addons.get_addon(session, addonId, lock=True)
    return _body(session, addons.archive_addon(session, addon, now=now), now)
