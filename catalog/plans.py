"""Plans as they are stored: drafts that may change, and published versions that never do.

A key has at most one draft and one active version; publishing a draft archives the version before it at the
same instant. Both rules are unique indexes.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal

from sqlalchemy import ColumnElement, Index, and_, func, or_, select, true
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, Session, mapped_column

from catalog.features import Feature, latest_features
from catalog.plan import check_plan
from catalog.rate_card import Phase
from catalog.rate_card_rules import KEY, MAX_KEY_LENGTH
from metering.database import Base, Id, Instant, ValueType, translating
from metering.errors import ConflictError, ForbiddenError, InvalidError, Issue, NotFoundError
from metering.ids import new_id

__all__ = [
    "Plan",
    "PlanDraftExistsError",
    "PlanNotDraftError",
    "PlanNotFoundError",
    "PlanStatus",
    "create_plan",
    "get_plan",
    "list_plans",
    "plan_issues",
    "publish_plan",
    "update_plan",
]

PlanStatus = Literal["draft", "active", "archived", "scheduled"]


class Plan(Base):
    """`feature_ids` pins the features that its rate cards meant when it was last written, by key."""

    __tablename__ = "plans"
    __table_args__ = (
        Index("plans_version_key", "key", "version", unique=True),
        Index("plans_draft_key", "key", unique=True, postgresql_where="effective_from IS NULL"),
        Index(
            "plans_active_key",
            "key",
            unique=True,
            postgresql_where="effective_from IS NOT NULL AND effective_to IS NULL",
        ),
    )

    id: Mapped[Id] = mapped_column(primary_key=True)
    key: Mapped[str]
    version: Mapped[int]
    name: Mapped[str]
    description: Mapped[str | None]
    metadata_: Mapped[dict[str, str] | None] = mapped_column("metadata")
    currency: Mapped[str]
    billing_cadence: Mapped[str]
    pro_rating: Mapped[bool]
    phases: Mapped[tuple[Phase, ...]] = mapped_column(ValueType(tuple[Phase, ...]))
    feature_ids: Mapped[dict[str, str]] = mapped_column(JSONB)
    effective_from: Mapped[Instant | None]
    effective_to: Mapped[Instant | None]
    created_at: Mapped[Instant]
    updated_at: Mapped[Instant]

    def status(self, now: datetime) -> PlanStatus:
        if self.effective_from is None:
            return "draft"
        if self.effective_from > now:
            return "scheduled"
        return "active" if self.effective_to is None or now < self.effective_to else "archived"


class PlanNotFoundError(NotFoundError):
    pass


class PlanDraftExistsError(ConflictError):
    pass


class PlanNotDraftError(ForbiddenError):
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
    if not KEY.fullmatch(key) or len(key) > MAX_KEY_LENGTH:
        issue = Issue(code="invalid_key", message=f"{key!r} is not a usable key", field="$.key")
        raise InvalidError(issue.message, issue)
    latest = session.scalar(select(func.max(Plan.version)).where(Plan.key == key))
    plan = Plan(
        id=new_id(now),
        key=key,
        version=(latest or 0) + 1,
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
    _require_draft(plan, now, "changed")
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
    _require_draft(plan, now, "published")
    features = _features_of(session, plan, lock=True)
    if issues := _issues(plan, features):
        raise InvalidError(f"the plan can't be published: {issues[0].message}", *issues)
    plan.feature_ids = {key: feature.id for key, feature in features.items()}
    before = session.scalar(
        select(Plan)
        .where(Plan.key == plan.key, Plan.effective_from.is_not(None), Plan.effective_to.is_(None))
        .with_for_update()
    )
    if before is not None:
        before.effective_to = before.updated_at = now
        session.flush()
    plan.effective_from = plan.updated_at = now
    message = f"another version of {plan.key!r} was published at the same time"
    with translating(
        {"plans_active_key": ConflictError(message, Issue(code="plan_active", message=message))}
    ):
        session.flush()
    return plan


def _require_draft(plan: Plan, now: datetime, verb: str) -> None:
    if plan.status(now) != "draft":
        message = f"a plan that is {plan.status(now)} can't be {verb}, only a draft can"
        hint = "Create the plan's next version: POST /api/v1/plans with the same key."
        raise PlanNotDraftError(message, Issue(code="plan_invalid_status", message=message, hint=hint))


def plan_issues(session: Session, plan: Plan) -> list[Issue]:
    """What bars the plan's publication today."""
    return _issues(plan, _features_of(session, plan))


def _check_and_pin(session: Session, plan: Plan) -> None:
    """Refuse critical problems; remember which features the keys stand for."""
    features = _features_of(session, plan, lock=True)
    issues = [issue for issue in _issues(plan, features) if issue.severity == "critical"]
    if issues:
        raise InvalidError(issues[0].message, *issues)
    plan.feature_ids = {key: feature.id for key, feature in features.items()}


def _features_of(session: Session, plan: Plan, *, lock: bool = False) -> dict[str, Feature]:
    keys = {card.feature_key for phase in plan.phases for card in phase.rate_cards if card.feature_key}
    return latest_features(session, keys, lock=lock)


def _issues(plan: Plan, features: Mapping[str, Feature]) -> list[Issue]:
    facts = {key: feature.facts for key, feature in features.items()}
    return check_plan(
        currency=plan.currency, billing_cadence=plan.billing_cadence, phases=plan.phases, features=facts
    )


def list_plans(
    session: Session,
    *,
    ids: Sequence[str] = (),
    keys: Sequence[str] = (),
    statuses: Sequence[PlanStatus] = (),
    currencies: Sequence[str] = (),
    offset: int = 0,
    limit: int = 100,
    now: datetime,
) -> tuple[Sequence[Plan], int]:
    """One page of plans by key and version, and how many there are."""
    conditions = [
        Plan.id.in_(ids) if ids else true(),
        Plan.key.in_(keys) if keys else true(),
        Plan.currency.in_(currencies) if currencies else true(),
        or_(*[_has_status(status, now) for status in statuses]) if statuses else true(),
    ]
    count = session.scalar(select(func.count()).select_from(Plan).where(*conditions)) or 0
    page = select(Plan).where(*conditions).order_by(Plan.key, Plan.version).offset(offset).limit(limit)
    return session.scalars(page).all(), count


def _has_status(status: PlanStatus, now: datetime) -> ColumnElement[bool]:
    ended, started = Plan.effective_to <= now, Plan.effective_from <= now
    match status:
        case "draft":
            return Plan.effective_from.is_(None)
        case "scheduled":
            return Plan.effective_from > now
        case "archived":
            return ended
        case "active":
            return and_(started, or_(Plan.effective_to.is_(None), Plan.effective_to > now))


def get_plan(
    session: Session,
    id_or_key: str,
    *,
    version: int | None = None,
    include_latest: bool = False,
    lock: bool = False,
) -> Plan:
    """By id; else by key: that version, the latest if `include_latest`, otherwise the active one."""
    query = select(Plan).order_by(Plan.version.desc()).limit(1)
    query = query.with_for_update() if lock else query
    by_key = query.where(Plan.key == id_or_key)
    if version is not None:
        by_key = by_key.where(Plan.version == version)
    elif not include_latest:
        by_key = by_key.where(Plan.effective_from.is_not(None), Plan.effective_to.is_(None))
    plan = session.scalar(query.where(Plan.id == id_or_key)) or session.scalar(by_key)
    if plan is None:
        which = "" if version is None else f" in version {version}"
        raise PlanNotFoundError(f"no plan {id_or_key!r}{which}")
    return plan
