"""Plans as they are stored: versions of a key (versions.py), each with phases of rate cards."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy.orm import Mapped, Session, mapped_column

from catalog.features import Feature, latest_features
from catalog.issues import barring
from catalog.plan import check_plan
from catalog.plan_addon import PlanTerms, incompatible_addons
from catalog.plan_addons import carry_over, offers_of
from catalog.rate_card import Phase
from catalog.rate_card_rules import check_key
from catalog.versions import (
    Version,
    VersionStatus,
    get_version,
    indexes_of_versions,
    next_version,
    publish_version,
)
from metering.database import Base, ValueType, translating
from metering.errors import ConflictError, ForbiddenError, InvalidError, Issue, NotFoundError
from metering.ids import new_id

__all__ = [
    "Plan",
    "PlanDraftExistsError",
    "PlanNotFoundError",
    "PlanNotLatestError",
    "PlanStatusError",
    "addon_issues_of_plans",
    "archive_plan",
    "create_plan",
    "delete_plan",
    "get_plan",
    "issues_of_plans",
    "next_plan",
    "plan_issues",
    "plan_terms",
    "publish_plan",
    "update_plan",
]


class Plan(Version, Base):
    __tablename__ = "plans"
    __table_args__ = indexes_of_versions("plans")

    billing_cadence: Mapped[str]
    pro_rating: Mapped[bool]
    phases: Mapped[tuple[Phase, ...]] = mapped_column(ValueType(tuple[Phase, ...]))


class PlanNotFoundError(NotFoundError):
    pass


class PlanDraftExistsError(ConflictError):
    pass


class PlanStatusError(ForbiddenError):
    pass


class PlanNotLatestError(ConflictError):
    pass


def create_plan(
    session: Session,
    *,
    key: str,
    name: str,
    description: str | None = None,
    metadata: Mapping[str, str] | None = None,
    currency: str,
    billing_cadence: str,
    pro_rating: bool = True,
    phases: tuple[Phase, ...],
    now: datetime,
) -> Plan:
    """A draft: the next version of its key."""
    if issues := list(check_key(key, "$")):
        raise InvalidError(issues[0].message, *issues)
    plan = Plan(
        id=new_id(now),
        key=key,
        version=next_version(session, Plan, key),
        name=name,
        description=description,
        metadata_=metadata,
        currency=currency,
        billing_cadence=billing_cadence,
        pro_rating=pro_rating,
        phases=phases,
        created_at=now,
        updated_at=now,
    )
    _check_and_pin(session, plan)
    hint = "Change or publish the draft that exists."
    message = f"the plan {key!r} has a draft already"
    exists = PlanDraftExistsError(
        message, Issue(code="plan_draft_exists", message=message, field="$.key", hint=hint)
    )
    session.add(plan)
    with translating({"plans_draft_key": exists, "plans_version_key": exists}):
        session.flush()
    return plan


def update_plan(
    session: Session,
    plan: Plan,
    *,
    name: str,
    description: str | None,
    metadata: Mapping[str, str] | None,
    billing_cadence: str,
    pro_rating: bool,
    phases: tuple[Phase, ...],
    now: datetime,
) -> Plan:
    """Replace a draft. The plan must have been loaded with a lock."""
    _require_status(plan, now, "draft", "changed", NEXT)
    plan.name = name
    plan.description = description
    plan.metadata_ = None if metadata is None else dict(metadata)
    plan.billing_cadence = billing_cadence
    plan.pro_rating = pro_rating
    plan.phases = phases
    plan.updated_at = now
    _check_and_pin(session, plan)
    session.flush()
    return plan


def publish_plan(session: Session, plan: Plan, *, now: datetime) -> Plan:
    """From `now` on it is the one that is sold; every open problem bars this."""
    _require_status(plan, now, "draft", "published", NEXT)
    features = _features_of(session, plan, lock=True)
    misfits = addon_issues_of_plans(session, [plan], lock=True, now=now)[plan.id]
    if issues := [*barring(_issues(plan, features)), *misfits]:
        raise InvalidError(f"the plan can't be published: {issues[0].message}", *issues)
    plan.feature_ids = {key: feature.id for key, feature in features.items()}
    message = f"another version of {plan.key!r} was published at the same time"
    with translating(
        {"plans_active_key": ConflictError(message, Issue(code="plan_active", message=message))}
    ):
        publish_version(session, plan, now=now)
    return plan


def archive_plan(session: Session, plan: Plan, *, now: datetime) -> Plan:
    """Nobody can buy it from `now` on; who has it keeps it. The plan must have been loaded with a lock."""
    _require_status(plan, now, "active", "archived", "Only what is active can be; delete a draft instead.")
    plan.effective_to = plan.updated_at = now
    session.flush()
    return plan


def delete_plan(session: Session, plan: Plan, *, now: datetime) -> None:
    """It is listed no more; who has it keeps it. The plan must have been loaded with a lock."""
    if plan.status(now) != "draft":
        _require_status(
            plan, now, "archived", "deleted", "Archive it first: POST /api/v1/plans/{planId}/archive."
        )
    plan.deleted_at = plan.updated_at = now
    session.flush()


def next_plan(session: Session, plan: Plan, *, now: datetime) -> Plan:
    """A draft that is like `plan`, which must be its key's latest version, and offers the same add-ons."""
    latest = get_plan(session, plan.key, include_latest=True)
    if latest.id != plan.id and latest.status(now) != "draft":
        message = f"the latest version of {plan.key!r} is {latest.version}, not {plan.version}"
        hint = f"Ask with the key: POST /api/v1/plans/{plan.key}/next."
        raise PlanNotLatestError(message, Issue(code="plan_not_latest", message=message, hint=hint))
    following = create_plan(
        session,
        key=plan.key,
        name=plan.name,
        description=plan.description,
        metadata=plan.metadata_,
        currency=plan.currency,
        billing_cadence=plan.billing_cadence,
        pro_rating=plan.pro_rating,
        phases=plan.phases,
        now=now,
    )
    carry_over(session, from_plan_id=plan.id, to_plan_id=following.id, now=now)
    return following


NEXT = "Draft the plan's next version: POST /api/v1/plans/{planIdOrKey}/next."


def _require_status(plan: Plan, now: datetime, status: VersionStatus, verb: str, hint: str) -> None:
    if plan.status(now) != status:
        message = f"a plan that is {plan.status(now)} can't be {verb}"
        issue = Issue(code="plan_invalid_status", message=message, field="$.status", hint=hint)
        raise PlanStatusError(message, issue)


def plan_terms(session: Session, plan: Plan, *, now: datetime) -> PlanTerms:
    """What add-ons must fit; the keys of a draft mean what they mean today."""
    status = plan.status(now)
    pinned = plan.feature_ids
    if status == "draft":
        pinned = {key: feature.id for key, feature in _features_of(session, plan).items()}
    return PlanTerms(
        status=status,
        currency=plan.currency,
        billing_cadence=plan.billing_cadence,
        phases=plan.phases,
        feature_ids=pinned,
    )


def plan_issues(session: Session, plan: Plan) -> list[Issue]:
    """What bars the plan's publication today, and advice."""
    return issues_of_plans(session, [plan])[plan.id]


def issues_of_plans(session: Session, plans: Sequence[Plan]) -> dict[str, list[Issue]]:
    """By the plans' ids. What is published is beyond correction, but not beyond advice."""
    drafts = [plan for plan in plans if plan.effective_from is None]
    features = (
        latest_features(session, {key for plan in drafts for key in _feature_keys(plan)}) if drafts else {}
    )
    advice = {plan.id: [issue for issue in _issues(plan, {}) if issue.severity == "info"] for plan in plans}
    return advice | {plan.id: _issues(plan, features) for plan in drafts}


def addon_issues_of_plans(
    session: Session, plans: Sequence[Plan], *, lock: bool = False, now: datetime
) -> dict[str, list[Issue]]:
    """Which add-ons bar the publication of those that are drafts, by the plans' ids."""
    drafts = [plan.id for plan in plans if plan.effective_from is None]
    offers = offers_of(session, drafts, lock=lock, now=now) if drafts else {}
    return {
        plan.id: incompatible_addons(plan_terms(session, plan, now=now), offers[plan.id])
        if plan.id in offers
        else []
        for plan in plans
    }


def _check_and_pin(session: Session, plan: Plan) -> None:
    """Refuse critical problems; remember which features the keys stand for."""
    features = _features_of(session, plan, lock=True)
    issues = [issue for issue in _issues(plan, features) if issue.severity == "critical"]
    if issues:
        raise InvalidError(issues[0].message, *issues)
    plan.feature_ids = {key: feature.id for key, feature in features.items()}


def _features_of(session: Session, plan: Plan, *, lock: bool = False) -> dict[str, Feature]:
    return latest_features(session, _feature_keys(plan), lock=lock)


def _feature_keys(plan: Plan) -> set[str]:
    return {card.feature_key for phase in plan.phases for card in phase.rate_cards if card.feature_key}


def _issues(plan: Plan, features: Mapping[str, Feature]) -> list[Issue]:
    facts = {key: feature.facts for key, feature in features.items()}
    return check_plan(
        currency=plan.currency, billing_cadence=plan.billing_cadence, phases=plan.phases, features=facts
    )


def get_plan(
    session: Session,
    id_or_key: str,
    *,
    version: int | None = None,
    include_latest: bool = False,
    lock: bool = False,
) -> Plan:
    """By id; else by key: that version, the latest if `include_latest`, otherwise the active one."""
    plan = get_version(session, Plan, id_or_key, version=version, include_latest=include_latest, lock=lock)
    if plan is None:
        which = "" if version is None else f" in version {version}"
        raise PlanNotFoundError(f"no plan {id_or_key!r}{which}")
    return plan
