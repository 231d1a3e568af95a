"""What it takes to make the catalog what a file says, and the change itself, all of it or none.

Features come first, then add-ons, then plans with what they offer. What is published never changes: a plan or
an add-on that differs gets its next version, a feature is archived and another one takes its key.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from sqlalchemy import text
from sqlalchemy.orm import Session

from api.catalog_difference import differences
from api.catalog_export import (
    active_versions,
    addon_entry,
    feature_entry,
    newest_offers,
    offers_of_plan,
    plan_entry,
)
from api.catalog_file import (
    AddonEntry,
    Catalog,
    CatalogFileError,
    Entry,
    FeatureEntry,
    PlanEntry,
    below,
    written,
)
from catalog import addons, features, plan_addons, plans
from catalog.addons import Addon
from catalog.features import Feature
from catalog.plans import Plan
from catalog.rate_card import RateCard
from catalog.versions import Version, get_version
from metering.errors import InvalidError, Issue, TollgateError

__all__ = ["Change", "Changes", "change_catalog"]

_LOCK = 0x63617461  # "cata": several that change it at once take turns


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """`+` comes to be, `~` changes, `-` is archived; `lines` say what changes in it, and why."""

    sign: Literal["+", "~", "-"]
    what: str
    how: str = ""
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """`left` is there, but not in the file, and stays."""

    changes: tuple[Change, ...]
    left: tuple[str, ...]


def change_catalog(session: Session, catalog: Catalog, *, prune: bool = False, now: datetime) -> Changes:
    """Make it so. Raises CatalogFileError with the lines that break rules; then nothing may be committed.

    `prune`: what is for sale and not in the file is archived, if nothing that stays names it.
    """
    session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    work = _Work(session=session, now=now)
    changes = [
        *_each(work, catalog, "features", catalog.features, _change_feature),
        *_each(work, catalog, "addons", catalog.addons, _change_addon),
        *_each(work, catalog, "plans", catalog.plans, _change_plan),
    ]
    rest = _Rest.of(work, catalog)
    if prune:
        changes += rest.archive(work)
        rest = _Rest.of(work, catalog)
    return Changes(changes=tuple(changes), left=rest.named)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    session: Session
    now: datetime


E = TypeVar("E", FeatureEntry, AddonEntry, PlanEntry)


def _each(
    work: _Work,
    catalog: Catalog,
    name: str,
    entries: Sequence[E],
    change: Callable[[_Work, E], Change | None],
) -> list[Change]:
    """One kind after the other: where a feature is wrong, each plan with it would be."""
    changes: list[Change | None] = []
    issues: list[Issue] = []
    for i, entry in enumerate(entries):
        try:
            with work.session.begin_nested():
                changes.append(change(work, entry))
        except TollgateError as error:
            found = error.issues or (Issue(code="invalid", message=error.detail),)
            issues += below(f"$.{name}[{i}]", found)
    if issues:
        raise CatalogFileError(catalog.file.message(issues), *issues)
    return [one for one in changes if one is not None]


# -- Features ------------------------------------------------------------------------------------------------


def _change_feature(work: _Work, entry: FeatureEntry) -> Change | None:
    what = f"feature {entry.key}"
    there = features.latest_features(work.session, [entry.key]).get(entry.key)
    if there is None or there.archived_at is not None:
        _create_feature(work, entry)
        return Change(sign="+", what=what)
    before, after = written(feature_entry(there)), written(entry)
    lines = tuple(differences(before, after))
    if not lines:
        return None
    if {**before, "unitCost": None} == {**after, "unitCost": None}:
        cost = entry.unit_cost.value() if entry.unit_cost else None
        features.set_unit_cost(work.session, there, cost, now=work.now)
        return Change(sign="~", what=what, lines=lines)
    features.archive_feature(work.session, there, now=work.now)
    _create_feature(work, entry)
    how = "archived and replaced; plans and add-ons that name it keep the old one until their next version"
    return Change(sign="~", what=what, how=how, lines=lines)


def _create_feature(work: _Work, entry: FeatureEntry) -> None:
    features.create_feature(
        work.session,
        key=entry.key,
        name=entry.name,
        meter_slug=entry.meter_slug,
        meter_group_by_filters=entry.meter_group_by_filters,
        advanced_meter_group_by_filters=entry.advanced_meter_group_by_filters,
        unit_cost=entry.unit_cost.value() if entry.unit_cost else None,
        metadata=entry.metadata,
        now=work.now,
    )


# -- Versions: add-ons and plans -----------------------------------------------------------------------------

V = TypeVar("V", bound=Version)
S = TypeVar("S", bound=AddonEntry | PlanEntry)
"""A row, and the entry that says what it should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind(Generic[V, S]):
    """How one of the two is read and written."""

    word: str
    rows: type[V]
    entry_of: Callable[[_Work, V, S], S]
    reasons: Callable[[_Work, V, S], Iterator[str]]
    create: Callable[[_Work, S], V]
    replace: Callable[[_Work, V, S], V]
    discard: Callable[[_Work, V], None]
    publish: Callable[[_Work, V, S], None]


def _change_version(work: _Work, kind: _Kind[V, S], entry: S) -> Change | None:
    """Its next version, or none if there is nothing to change."""
    draft, active = _living(work, kind, entry.key)
    wants_draft = entry.status == "draft"
    there = (draft or active) if wants_draft else (active or draft)
    lines: tuple[str, ...] = ()
    if there is not None:
        before = written(kind.entry_of(work, there, entry))
        lines = (*differences(before, written(entry)), *kind.reasons(work, there, entry))
        if not lines and (wants_draft or there is active):
            return None
    replaced = draft.version if draft else None
    row = _written_draft(work, kind, draft, entry)
    kind.publish(work, row, entry)
    what, how = f"{kind.word} {entry.key}", _how(active, replaced, row, draft=wants_draft)
    return Change(sign="~" if there else "+", what=what, how=how, lines=lines)


def _living(work: _Work, kind: _Kind[V, S], key: str) -> tuple[V | None, V | None]:
    """The key's draft and its active version, locked."""
    latest = get_version(work.session, kind.rows, key, include_latest=True, lock=True)
    draft = latest if latest is not None and latest.status(work.now) == "draft" else None
    return draft, get_version(work.session, kind.rows, key, lock=True)


def _written_draft(work: _Work, kind: _Kind[V, S], draft: V | None, entry: S) -> V:
    """A draft keeps its currency for ever: one in another gives way to the next version."""
    if draft is not None and draft.currency == entry.currency:
        return kind.replace(work, draft, entry)
    if draft is not None:
        kind.discard(work, draft)
    return kind.create(work, entry)


def _how(active: Version | None, replaced: int | None, row: Version, *, draft: bool) -> str:
    in_place = ", in place of the draft there was" if replaced is not None else ""
    if draft:
        return f"version {row.version}, a draft{in_place}"
    if active is not None:
        return f"version {active.version} -> {row.version}{in_place}"
    return f"version {row.version}, draft -> active" if replaced else f"version {row.version}"


def _replaced_features(work: _Work, row: Version) -> Iterator[str]:
    """Why a version is needed although the file says the same: its keys mean other features by now."""
    living = features.latest_features(work.session, row.feature_ids)
    for key, feature_id in sorted(row.feature_ids.items()):
        feature = living.get(key)
        if feature is not None and feature.archived_at is None and feature.id != feature_id:
            yield f"because the feature {key} was replaced"


# -- Add-ons -------------------------------------------------------------------------------------------------


def _change_addon(work: _Work, entry: AddonEntry) -> Change | None:
    return _change_version(work, _ADDONS, entry)


def _addon_terms(work: _Work, entry: AddonEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "description": entry.description,
        "metadata": entry.metadata,
        "instance_type": entry.instance_type,
        "rate_cards": tuple(entry.rate_cards),
        "now": work.now,
    }


def _create_addon(work: _Work, entry: AddonEntry) -> Addon:
    terms = _addon_terms(work, entry)
    return addons.create_addon(work.session, key=entry.key, currency=entry.currency, **terms)


def _replace_addon(work: _Work, draft: Addon, entry: AddonEntry) -> Addon:
    return addons.update_addon(work.session, draft, **_addon_terms(work, entry))


def _publish_addon(work: _Work, addon: Addon, entry: AddonEntry) -> None:
    if entry.status == "active":
        addons.publish_addon(work.session, addon, now=work.now)


_ADDONS = _Kind(
    word="add-on",
    rows=Addon,
    entry_of=lambda _, addon, __: addon_entry(addon),
    reasons=lambda work, addon, _: _replaced_features(work, addon),
    create=_create_addon,
    replace=_replace_addon,
    discard=lambda work, draft: addons.delete_addon(work.session, draft, now=work.now),
    publish=_publish_addon,
)


# -- Plans and what they offer -------------------------------------------------------------------------------


def _change_plan(work: _Work, entry: PlanEntry) -> Change | None:
    return _change_version(work, _PLANS, entry)


def _plan_entry(work: _Work, plan: Plan, entry: PlanEntry) -> PlanEntry:
    """What a file can say of it; an add-on that nobody can buy any more is offered only in name."""
    named = {offer.key for offer in entry.addons}
    offers = newest_offers(work.session, plan, now=work.now).values()
    there = [one for one in offers if one.addon.key in named or one.addon.status(work.now) == "active"]
    return plan_entry(plan, there)


def _plan_reasons(work: _Work, plan: Plan, entry: PlanEntry) -> Iterator[str]:
    yield from _replaced_features(work, plan)
    offers = newest_offers(work.session, plan, now=work.now)
    for offer in entry.addons:
        addon = get_version(work.session, Addon, offer.key)
        if addon is not None and offer.key in offers and offers[offer.key].addon_id != addon.id:
            yield f"because the add-on {offer.key} has version {addon.version} now"


def _plan_terms(work: _Work, entry: PlanEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "description": entry.description,
        "metadata": entry.metadata,
        "billing_cadence": entry.billing_cadence,
        "pro_rating": entry.pro_rating_config.enabled,
        "phases": tuple(entry.phases),
        "now": work.now,
    }


def _create_plan(work: _Work, entry: PlanEntry) -> Plan:
    terms = _plan_terms(work, entry)
    return plans.create_plan(work.session, key=entry.key, currency=entry.currency, **terms)


def _replace_plan(work: _Work, draft: Plan, entry: PlanEntry) -> Plan:
    """Its offers too: those of the entry come later."""
    for offer in offers_of_plan(work.session, draft, now=work.now):
        plan_addons.delete_plan_addon(work.session, offer, now=work.now)
    return plans.update_plan(work.session, draft, **_plan_terms(work, entry))


def _publish_plan(work: _Work, plan: Plan, entry: PlanEntry) -> None:
    """First the plan: what is offered with one that is published must fit at once, and all of it is told."""
    if entry.status == "active":
        plans.publish_plan(work.session, plan, now=work.now)
    terms = plans.plan_terms(work.session, plan, now=work.now)
    for i, offer in enumerate(entry.addons):
        with _told_at(f"$.addons[{i}]"):
            plan_addons.create_plan_addon(
                work.session,
                plan_id=plan.id,
                plan=terms,
                addon_id=_addon_id(work, offer.key),
                from_plan_phase=offer.from_plan_phase,
                max_quantity=offer.max_quantity,
                metadata=offer.metadata,
                now=work.now,
            )


@contextmanager
def _told_at(place: str) -> Iterator[None]:
    """What is wrong is wrong there."""
    try:
        yield
    except TollgateError as error:
        raise InvalidError(error.detail, *below(place, error.issues)) from None


def _addon_id(work: _Work, key: str) -> str:
    """The active version's, or the draft's, which then does not fit."""
    addon = get_version(work.session, Addon, key) or get_version(
        work.session, Addon, key, include_latest=True
    )
    if addon is None:
        message = f"there is no add-on {key!r}"
        raise InvalidError(
            message, Issue(code="addon_not_found", message=message, field="$.key", hint="Add it to addons.")
        )
    return addon.id


_PLANS = _Kind(
    word="plan",
    rows=Plan,
    entry_of=_plan_entry,
    reasons=_plan_reasons,
    create=_create_plan,
    replace=_replace_plan,
    discard=lambda work, draft: plans.delete_plan(work.session, draft, now=work.now),
    publish=_publish_plan,
)


# -- What is for sale, and not in the file -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rest:
    """`kept`: the keys of features and add-ons that something names which stays."""

    plans: Sequence[Plan]
    addons: Sequence[Addon]
    features: Sequence[Feature]
    kept: frozenset[tuple[str, str]] = field(default_factory=frozenset)

    @classmethod
    def of(cls, work: _Work, catalog: Catalog) -> "_Rest":
        living, _ = features.list_features(work.session)
        others = _others(active_versions(work.session, Addon, now=work.now), catalog.addons)
        return cls(
            plans=_others(active_versions(work.session, Plan, now=work.now), catalog.plans),
            addons=others,
            features=_others(living, catalog.features),
            kept=frozenset(_kept(catalog, others)),
        )

    @property
    def named(self) -> tuple[str, ...]:
        return (
            *(f"plan {one.key}" for one in self.plans),
            *(self._named("add-on", one.key) for one in self.addons),
            *(self._named("feature", one.key) for one in self.features),
        )

    def _named(self, word: str, key: str) -> str:
        return f"{word} {key} (which the file needs)" if (word, key) in self.kept else f"{word} {key}"

    def archive(self, work: _Work) -> Iterator[Change]:
        """In the order in which they name each other."""
        for plan in self.plans:
            locked = plans.get_plan(work.session, plan.id, lock=True)
            plans.archive_plan(work.session, locked, now=work.now)
            yield _archived(f"plan {plan.key}", f"version {plan.version} archived")
        for addon in self.addons:
            if ("add-on", addon.key) not in self.kept:
                locked_addon = addons.get_addon(work.session, addon.id, lock=True)
                addons.archive_addon(work.session, locked_addon, now=work.now)
                yield _archived(f"add-on {addon.key}", f"version {addon.version} archived")
        for feature in self.features:
            if ("feature", feature.key) not in self.kept:
                features.archive_feature(work.session, feature, now=work.now)
                yield _archived(f"feature {feature.key}", "archived")


R = TypeVar("R", Addon, Plan, Feature)


def _others(rows: Iterable[R], entries: Iterable[Entry]) -> list[R]:
    """Those that no entry is about."""
    keys = {entry.key for entry in entries}
    return [row for row in rows if row.key not in keys]


def _archived(what: str, how: str) -> Change:
    return Change(sign="-", what=what, how=how)


def _kept(catalog: Catalog, rest: Sequence[Addon]) -> Iterator[tuple[str, str]]:
    """What the file's entries name, and the add-ons that are kept for them."""
    offered = {offer.key for plan in catalog.plans for offer in plan.addons}
    cards: list[RateCard] = [card for addon in catalog.addons for card in addon.rate_cards]
    cards += [card for plan in catalog.plans for phase in plan.phases for card in phase.rate_cards]
    cards += [card for addon in rest if addon.key in offered for card in addon.rate_cards]
    yield from (("add-on", key) for key in offered)
    yield from (("feature", card.feature_key) for card in cards if card.feature_key)
