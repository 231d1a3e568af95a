"""Add-ons as they are stored: what a subscription can have on top of its plan, in versions as plans are."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy.orm import Mapped, Session, mapped_column

from catalog.addon import check_addon
from catalog.features import Feature, latest_features
from catalog.issues import barring
from catalog.rate_card import RateCard
from catalog.versions import (
    Version,
    VersionStatus,
    get_version,
    indexes_of_versions,
    next_version,
    publish_version,
)
from metering.database import Base, ValueType, translating
from metering.errors import ConflictError, InvalidError, Issue, NotFoundError
from metering.ids import new_id

__all__ = [
    "Addon",
    "AddonDraftExistsError",
    "AddonNotFoundError",
    "AddonStatusError",
    "addon_issues",
    "archive_addon",
    "create_addon",
    "delete_addon",
    "get_addon",
    "issues_of_addons",
    "publish_addon",
    "update_addon",
]


class Addon(Version, Base):
    __tablename__ = "addons"
    __table_args__ = indexes_of_versions("addons")

    instance_type: Mapped[str]
    rate_cards: Mapped[tuple[RateCard, ...]] = mapped_column(ValueType(tuple[RateCard, ...]))


class AddonNotFoundError(NotFoundError):
    pass


class AddonDraftExistsError(ConflictError):
    pass


class AddonStatusError(InvalidError):
    """It is too late, or too early, for what is asked."""


def create_addon(
    session: Session,
    *,
    key: str,
    name: str,
    description: str | None = None,
    metadata: Mapping[str, str] | None = None,
    instance_type: str,
    currency: str,
    rate_cards: tuple[RateCard, ...],
    now: datetime,
) -> Addon:
    """A draft: the next version of its key."""
    addon = Addon(
        id=new_id(now),
        key=key,
        version=next_version(session, Addon, key),
        name=name,
        description=description,
        metadata_=metadata,
        instance_type=instance_type,
        currency=currency,
        rate_cards=rate_cards,
        created_at=now,
        updated_at=now,
    )
    _check_and_pin(session, addon)
    hint = "Change, publish or delete the draft that exists."
    message = f"the add-on {key!r} has a draft already"
    exists = AddonDraftExistsError(
        message, Issue(code="addon_draft_exists", message=message, field="$.key", hint=hint)
    )
    session.add(addon)
    with translating({"addons_draft_key": exists, "addons_version_key": exists}):
        session.flush()
    return addon


def update_addon(
    session: Session,
    addon: Addon,
    *,
    name: str,
    description: str | None,
    metadata: Mapping[str, str] | None,
    instance_type: str,
    rate_cards: tuple[RateCard, ...],
    now: datetime,
) -> Addon:
    """Replace a draft. The add-on must have been loaded with a lock."""
    _require(addon, "draft", "changed", now)
    addon.name = name
    addon.description = description
    addon.metadata_ = None if metadata is None else dict(metadata)
    addon.instance_type = instance_type
    addon.rate_cards = rate_cards
    addon.updated_at = now
    _check_and_pin(session, addon)
    session.flush()
    return addon


def publish_addon(session: Session, addon: Addon, *, now: datetime) -> Addon:
    """From `now` on it can be bought; every open problem bars this."""
    _require(addon, "draft", "published", now, code="addon_invalid_status_for_publish")
    features = _features_of(session, addon, lock=True)
    if issues := barring(_issues(addon, features)):
        raise InvalidError(f"the add-on can't be published: {issues[0].message}", *issues)
    addon.feature_ids = {key: feature.id for key, feature in features.items()}
    message = f"another version of {addon.key!r} was published at the same time"
    conflict = ConflictError(message, Issue(code="addon_active", message=message))
    with translating({"addons_active_key": conflict}):
        publish_version(session, addon, now=now)
    return addon


def archive_addon(session: Session, addon: Addon, *, now: datetime) -> Addon:
    """From `now` on nobody can buy it; who has it keeps it."""
    _require(addon, "active", "archived", now)
    addon.effective_to = addon.updated_at = now
    session.flush()
    return addon


def delete_addon(session: Session, addon: Addon, *, now: datetime) -> None:
    """Take a draft back, or put an archived version out of sight; what refers to it keeps it."""
    if (status := addon.status(now)) not in ("draft", "archived"):
        raise _wrong_status(f"an add-on that is {status} can't be deleted", "Archive it first.")
    addon.deleted_at = addon.updated_at = now
    session.flush()


def _require(
    addon: Addon, status: VersionStatus, verb: str, now: datetime, *, code: str = "addon_invalid_status"
) -> None:
    if addon.status(now) != status:
        article = "an" if status == "active" else "a"
        message = f"an add-on that is {addon.status(now)} can't be {verb}, only {article} {status} one can"
        hint = "POST /api/v1/addons with the same key makes its next version."
        raise _wrong_status(message, hint, code)


def _wrong_status(message: str, hint: str, code: str = "addon_invalid_status") -> AddonStatusError:
    issue = Issue(code=code, message=message, field="$.status", hint=hint)
    return AddonStatusError(message, issue)


def addon_issues(session: Session, addon: Addon) -> list[Issue]:
    """What bars the add-on's publication today, and advice."""
    return issues_of_addons(session, [addon])[addon.id]


def issues_of_addons(session: Session, addons: Sequence[Addon]) -> dict[str, list[Issue]]:
    """By the add-ons' ids. What is published is beyond correction, but not beyond advice."""
    drafts = [addon for addon in addons if addon.effective_from is None]
    keys = {key for addon in drafts for key in _feature_keys(addon)}
    features = latest_features(session, keys) if keys else {}
    return {
        addon.id: _issues(addon, features)
        if addon.effective_from is None
        else [issue for issue in _issues(addon, {}) if issue.severity == "info"]
        for addon in addons
    }


def _check_and_pin(session: Session, addon: Addon) -> None:
    """Refuse critical problems; remember which features the keys stand for."""
    features = _features_of(session, addon, lock=True)
    issues = [issue for issue in _issues(addon, features) if issue.severity == "critical"]
    if issues:
        raise InvalidError(issues[0].message, *issues)
    addon.feature_ids = {key: feature.id for key, feature in features.items()}


def _features_of(session: Session, addon: Addon, *, lock: bool = False) -> dict[str, Feature]:
    return latest_features(session, _feature_keys(addon), lock=lock)


def _feature_keys(addon: Addon) -> set[str]:
    return {card.feature_key for card in addon.rate_cards if card.feature_key}


def _issues(addon: Addon, features: Mapping[str, Feature]) -> list[Issue]:
    return check_addon(
        key=addon.key,
        name=addon.name,
        instance_type=addon.instance_type,
        currency=addon.currency,
        rate_cards=addon.rate_cards,
        features={key: feature.facts for key, feature in features.items()},
    )


def get_addon(session: Session, id_or_key: str, *, include_latest: bool = False, lock: bool = False) -> Addon:
    """By id; else by key: the latest version if `include_latest`, otherwise the active one."""
    addon = get_version(session, Addon, id_or_key, include_latest=include_latest, lock=lock)
    if addon is None:
        raise AddonNotFoundError(f"no add-on {id_or_key!r}")
    return addon
