"""Add-ons that a plan's subscribers can buy: which ones, from which phase on, and how many.

A plan that is published offers nothing that does not fit it. A draft may for a while, and is then not
published.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy import ForeignKey, Index, Select, func, or_, select
from sqlalchemy.orm import Mapped, Session, contains_eager, mapped_column, relationship

from catalog.addons import Addon, AddonNotFoundError
from catalog.plan_addon import AddonTerms, Offer, PlanTerms, check_offer, refusals
from catalog.versions import VersionFilter, VersionOrder, get_version, matching
from metering.database import Base, Id, Instant, translating
from metering.errors import ConflictError, InvalidError, Issue, NotFoundError
from metering.ids import new_id

__all__ = [
    "PlanAddon",
    "PlanAddonExistsError",
    "PlanAddonNotFoundError",
    "carry_over",
    "create_plan_addon",
    "delete_plan_addon",
    "get_plan_addon",
    "list_plan_addons",
    "offers_of",
    "plan_addon_issues",
    "update_plan_addon",
]


class PlanAddon(Base):
    __tablename__ = "plan_addons"
    __table_args__ = (
        Index(
            "plan_addons_plan_addon_key",
            "plan_id",
            "addon_id",
            unique=True,
            postgresql_where="deleted_at IS NULL",
        ),
    )

    id: Mapped[Id] = mapped_column(primary_key=True)
    plan_id: Mapped[Id] = mapped_column(ForeignKey("plans.id"), index=True)
    addon_id: Mapped[Id] = mapped_column(ForeignKey("addons.id"), index=True)
    metadata_: Mapped[dict[str, str] | None] = mapped_column("metadata")
    from_plan_phase: Mapped[str]
    max_quantity: Mapped[int | None]
    created_at: Mapped[Instant]
    updated_at: Mapped[Instant]
    deleted_at: Mapped[Instant | None]

    addon: Mapped[Addon] = relationship(lazy="raise")


class PlanAddonNotFoundError(NotFoundError):
    pass


class PlanAddonExistsError(ConflictError):
    pass


# Whoever changes what a plan offers has locked the plan, so that it is not published in the meantime. The
# add-on is kept from being archived or changed until then.


def create_plan_addon(
    session: Session,
    *,
    plan_id: str,
    plan: PlanTerms,
    addon_id: str,
    from_plan_phase: str,
    max_quantity: int | None = None,
    metadata: Mapping[str, str] | None = None,
    now: datetime,
) -> PlanAddon:
    """Offer an add-on that is active to the plan's subscribers."""
    offered = PlanAddon(
        id=new_id(now),
        plan_id=plan_id,
        addon=_addon(session, addon_id),
        metadata_=metadata,
        from_plan_phase=from_plan_phase,
        max_quantity=max_quantity,
        created_at=now,
        updated_at=now,
    )
    _refuse_what_does_not_fit(plan, offered, now)
    message = f"the plan offers the add-on {offered.addon.key!r} already"
    hint = "Replace what is offered: PUT /api/v1/plans/{planId}/addons/{planAddonId}."
    exists = Issue(code="plan_addon_exists", message=message, field="$.addonId", hint=hint)
    session.add(offered)
    with translating({"plan_addons_plan_addon_key": PlanAddonExistsError(message, exists)}):
        session.flush()
    return offered


def _addon(session: Session, addon_id: str) -> Addon:
    living = select(Addon).where(Addon.id == addon_id, Addon.deleted_at.is_(None))
    addon = session.scalar(living.with_for_update(read=True))
    if addon is None:
        raise AddonNotFoundError(f"no add-on {addon_id!r}")
    return addon


def carry_over(session: Session, *, from_plan_id: str, to_plan_id: str, now: datetime) -> None:
    """A draft offers what another version does, of each add-on the version that is sold now.

    What is not sold any more is carried over as it is: it bars publication, and so somebody decides on it.
    """
    before = session.scalars(_offered([from_plan_id]).order_by(Addon.version, PlanAddon.id)).all()
    newest = {offered.addon.key: offered for offered in before}
    for key, offered in newest.items():
        sold = get_version(session, Addon, key)
        carried = PlanAddon(
            id=new_id(now),
            plan_id=to_plan_id,
            addon=sold or offered.addon,
            metadata_=offered.metadata_,
            from_plan_phase=offered.from_plan_phase,
            max_quantity=offered.max_quantity,
            created_at=now,
            updated_at=now,
        )
        session.add(carried)
    session.flush()


def update_plan_addon(
    session: Session,
    offered: PlanAddon,
    *,
    plan: PlanTerms,
    from_plan_phase: str,
    max_quantity: int | None,
    metadata: Mapping[str, str] | None,
    now: datetime,
) -> PlanAddon:
    """Replace the terms of an offer. It must have been loaded with a lock."""
    offered.from_plan_phase = from_plan_phase
    offered.max_quantity = max_quantity
    offered.metadata_ = None if metadata is None else dict(metadata)
    offered.updated_at = now
    _refuse_what_does_not_fit(plan, offered, now)
    session.flush()
    return offered


def delete_plan_addon(session: Session, offered: PlanAddon, *, now: datetime) -> None:
    """Offer it no more; subscriptions that have it keep it."""
    offered.deleted_at = offered.updated_at = now
    session.flush()


def _refuse_what_does_not_fit(plan: PlanTerms, offered: PlanAddon, now: datetime) -> None:
    if issues := refusals(plan, _offer(offered, now)):
        raise InvalidError(issues[0].message, *issues)


def plan_addon_issues(plan: PlanTerms, offered: PlanAddon, *, now: datetime) -> list[Issue]:
    """What does not fit today."""
    return check_offer(plan, _offer(offered, now))


def offers_of(
    session: Session, plan_ids: Iterable[str], *, lock: bool = False, now: datetime
) -> dict[str, list[Offer]]:
    """Everything that these plans offer, by their ids.

    `lock`: none of the add-ons changes before this is committed.
    """
    query = _offered(plan_ids).order_by(Addon.id, PlanAddon.id)
    query = query.with_for_update(read=True, of=Addon) if lock else query
    offers: dict[str, list[Offer]] = {}
    for offered in session.scalars(query):
        offers.setdefault(offered.plan_id, []).append(_offer(offered, now))
    return offers


def _offer(offered: PlanAddon, now: datetime) -> Offer:
    addon = offered.addon
    terms = AddonTerms(
        key=addon.key,
        status=addon.status(now),
        instance_type=addon.instance_type,
        currency=addon.currency,
        rate_cards=addon.rate_cards,
        feature_ids=addon.feature_ids,
    )
    return Offer(addon=terms, from_plan_phase=offered.from_plan_phase, max_quantity=offered.max_quantity)


def _offered(plan_ids: Iterable[str]) -> Select[PlanAddon]:
    """With their add-ons."""
    query = select(PlanAddon).join(PlanAddon.addon).options(contains_eager(PlanAddon.addon))
    return query.where(PlanAddon.plan_id.in_(plan_ids), PlanAddon.deleted_at.is_(None))


def list_plan_addons(
    session: Session,
    plan_id: str,
    wanted: VersionFilter,
    *,
    order_by: VersionOrder | None = None,
    descending: bool = False,
    offset: int = 0,
    limit: int = 100,
    now: datetime,
) -> tuple[Sequence[PlanAddon], int]:
    """One page, by the add-on's key and version unless told otherwise, and how many there are.

    All but `include_deleted` is asked of the add-ons.
    """
    conditions = [
        PlanAddon.plan_id == plan_id,
        *matching(Addon, replace(wanted, include_deleted=True), now),
        *([] if wanted.include_deleted else [PlanAddon.deleted_at.is_(None)]),
    ]
    query = select(PlanAddon).join(PlanAddon.addon).where(*conditions)
    count = session.scalar(select(func.count()).select_from(query.subquery())) or 0
    first = [getattr(Addon if order_by in ("key", "version") else PlanAddon, order_by)] if order_by else []
    order = [
        column.desc() if descending else column for column in (*first, Addon.key, Addon.version, PlanAddon.id)
    ]
    page = query.options(contains_eager(PlanAddon.addon)).order_by(*order)
    return session.scalars(page.offset(offset).limit(limit)).all(), count


def get_plan_addon(session: Session, plan_id: str, addon_id_or_key: str, *, lock: bool = False) -> PlanAddon:
    """By its own id, or by its add-on's id or key; of several versions of a key it is the newest."""
    named = or_(*[column == addon_id_or_key for column in (PlanAddon.id, Addon.id, Addon.key)])
    query = _offered([plan_id]).where(named).order_by(Addon.version.desc()).limit(1)
    offered = session.scalar(query.with_for_update(of=PlanAddon) if lock else query)
    if offered is None:
        raise PlanAddonNotFoundError(f"the plan offers no add-on {addon_id_or_key!r}")
    return offered
