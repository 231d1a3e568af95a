from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from catalog.features import archive_feature
from catalog.plans import (
    Plan,
    PlanDraftExistsError,
    PlanNotDraftError,
    PlanNotFoundError,
    PlanStatus,
    create_plan,
    get_plan,
    list_plans,
    plan_issues,
    publish_plan,
    update_plan,
)
from catalog.price import UnitPrice
from catalog.rate_card import BooleanEntitlement, Phase
from metering.errors import InvalidError
from tests.builders import START, a_draft, a_feature, a_metered_feature, a_plan, at_once, fee, per_unit, phase

UNALIGNED = phase(fee(cadence="P1W"))
"""With the monthly plans of these tests: a warning, which a draft may have and a published plan may not."""


def rewrite(session: Session, plan: Plan, *phases: Phase, now: datetime) -> Plan:
    return update_plan(
        session,
        plan,
        name="Pro",
        description="for teams",
        metadata={"tier": "2"},
        billing_cadence="P1Y",
        pro_rating=False,
        phases=phases,
        now=now,
    )


def test_a_plan_begins_as_a_draft_of_version_one(session: Session, now: datetime) -> None:
    draft = a_draft(session, now=now)
    assert (draft.key, draft.version, draft.status(now)) == ("pro", 1, "draft")
    assert (draft.effective_from, draft.effective_to) == (None, None)
    assert (draft.created_at, draft.updated_at) == (now, now)


def test_a_plan_is_read_back_exactly_as_it_was_written(session: Session, now: datetime) -> None:
    a_metered_feature(session)
    granted = replace(
        per_unit("0.000000000000000000000000000001"),
        entitlement_template=BooleanEntitlement(type="boolean", metadata={"a": "b"}),
        description="per token",
        metadata={"gl": "4000"},
    )
    phases = (
        phase(fee(None, cadence=None), key="trial", duration="P14D"),
        phase(fee("19.90", term="in_arrears"), granted, fee("9" * 30, key="setup", cadence=None)),
    )
    plan = create_plan(
        session,
        key="pro",
        name="Pro",
        description="for teams",
        metadata={"tier": "2"},
        currency="EUR",
        billing_cadence="P3M",
        pro_rating=False,
        phases=phases,
        now=now,
    )
    session.expire_all()
    assert plan.phases == phases
    assert (plan.name, plan.description, plan.metadata_) == ("Pro", "for teams", {"tier": "2"})
    assert (plan.currency, plan.billing_cadence, plan.pro_rating) == ("EUR", "P3M", False)
    price = plan.phases[1].rate_cards[1].price
    assert isinstance(price, UnitPrice)
    assert price.amount == Decimal(1).scaleb(-30)


@pytest.mark.parametrize("key", ["", "Pro", "p" * 65, "pro plan"])
def test_a_plans_key_is_lower_case(session: Session, key: str) -> None:
    with pytest.raises(InvalidError) as caught:
        a_draft(session, key=key)
    assert [(issue.code, issue.field) for issue in caught.value.issues] == [("invalid_key", "$.key")]


def test_a_draft_with_critical_problems_is_refused_with_all_of_them_and_only_them(session: Session) -> None:
    with pytest.raises(InvalidError) as caught:
        a_draft(session, phase(fee("-1", cadence="P1W"), per_unit(feature="unknown")), currency="XXX")
    assert [issue.code for issue in caught.value.issues] == [
        "currency_invalid",
        "price_amount_negative",
        "rate_card_feature_not_found",
    ]
    assert list_plans(session, now=START) == ([], 0)


def test_a_draft_keeps_its_warnings(session: Session) -> None:
    draft = a_draft(session, UNALIGNED)
    assert [issue.code for issue in plan_issues(session, draft)] == ["rate_card_billing_cadence_unaligned"]


def test_a_key_has_one_draft(session: Session) -> None:
    a_draft(session)
    with pytest.raises(PlanDraftExistsError) as caught:
        a_draft(session)
    (issue,) = caught.value.issues
    assert (issue.code, issue.field) == ("plan_draft_exists", "$.key")


def test_a_draft_may_be_replaced(session: Session, now: datetime) -> None:
    draft = a_draft(session, UNALIGNED)
    rewrite(session, draft, phase(fee("12", cadence="P1Y")), now=now)
    session.expire_all()
    assert draft.phases == (phase(fee("12", cadence="P1Y")),)
    assert (draft.name, draft.description, draft.metadata_) == ("Pro", "for teams", {"tier": "2"})
    assert (draft.billing_cadence, draft.pro_rating, draft.updated_at) == ("P1Y", False, now)
    assert (draft.key, draft.version, draft.currency, draft.created_at) == ("pro", 1, "USD", START)
    assert plan_issues(session, draft) == []


def test_a_draft_is_not_replaced_by_one_with_critical_problems(session: Session, now: datetime) -> None:
    draft = a_draft(session)
    session.commit()
    with pytest.raises(InvalidError):
        rewrite(session, draft, phase(fee("-1")), now=now)
    session.rollback()
    session.expire_all()
    assert draft.phases == (phase(fee()),)


def test_a_published_plan_is_active_from_that_instant(session: Session, now: datetime) -> None:
    plan = publish_plan(session, a_draft(session), now=now)
    assert (plan.effective_from, plan.effective_to, plan.updated_at) == (now, None, now)
    assert plan.status(now) == "active"
    assert plan.status(now - timedelta(seconds=1)) == "scheduled"


def test_publishing_the_next_version_archives_the_one_before_at_the_same_instant(
    session: Session, now: datetime
) -> None:
    first = a_plan(session)
    second = a_draft(session)
    assert (second.version, second.status(now), first.status(now)) == (2, "draft", "active")
    publish_plan(session, second, now=now)
    session.expire_all()
    assert first.effective_to == second.effective_from == now
    assert (first.status(now - timedelta(microseconds=1)), first.status(now)) == ("active", "archived")
    third = publish_plan(session, a_draft(session), now=now + timedelta(days=1))
    session.expire_all()
    assert (third.version, first.effective_to) == (3, now)


def test_publishing_leaves_the_versions_of_other_plans_alone(session: Session, now: datetime) -> None:
    other = a_plan(session, key="team")
    publish_plan(session, a_draft(session, key="pro"), now=now)
    session.expire_all()
    assert other.status(now) == "active"


def test_a_plan_with_open_problems_is_not_published_and_nothing_changes(
    session: Session, now: datetime
) -> None:
    active = a_plan(session)
    draft = a_draft(session, UNALIGNED)
    with pytest.raises(InvalidError) as caught:
        publish_plan(session, draft, now=now)
    assert [issue.code for issue in caught.value.issues] == ["rate_card_billing_cadence_unaligned"]
    session.flush()
    session.expire_all()
    assert (draft.status(now), draft.updated_at) == ("draft", START)
    assert (active.status(now), active.updated_at) == ("active", START)


def test_a_feature_that_was_archived_since_bars_publication(session: Session, now: datetime) -> None:
    feature = a_metered_feature(session)
    draft = a_draft(session, phase(per_unit()))
    archive_feature(session, feature, now=now)
    with pytest.raises(InvalidError) as caught:
        publish_plan(session, draft, now=now)
    assert [issue.code for issue in caught.value.issues] == ["rate_card_feature_archived"]


@pytest.mark.parametrize("status", ["active", "archived"])
def test_a_published_version_never_changes(session: Session, now: datetime, status: PlanStatus) -> None:
    plan = a_plan(session)
    if status == "archived":
        a_plan(session, now=now)
    with pytest.raises(PlanNotDraftError, match=f"is {status} can't be changed") as caught:
        rewrite(session, plan, phase(fee("0")), now=now)
    assert caught.value.issues[0].code == "plan_invalid_status"
    with pytest.raises(PlanNotDraftError, match=f"is {status} can't be published"):
        publish_plan(session, plan, now=now)
    session.flush()
    session.expire_all()
    assert (plan.phases, plan.status(now)) == ((phase(fee()),), status)


def test_a_plan_pins_the_features_that_its_keys_meant(session: Session, now: datetime) -> None:
    old = a_metered_feature(session)
    plan = a_plan(session, phase(per_unit()))
    archive_feature(session, old, now=now)
    a_feature(session, "tokens", meter="tokens", filters={"provider": "openai"}, now=now)
    session.expire_all()
    assert plan.feature_ids == {"tokens": old.id}


def test_a_draft_follows_its_keys_until_it_is_published(session: Session, now: datetime) -> None:
    old = a_metered_feature(session)
    draft = a_draft(session, phase(per_unit()))
    assert draft.feature_ids == {"tokens": old.id}
    archive_feature(session, old, now=now)
    new = a_feature(session, "tokens", meter="tokens", now=now)
    publish_plan(session, draft, now=now)
    session.expire_all()
    assert draft.feature_ids == {"tokens": new.id}


def test_a_replaced_draft_pins_anew(session: Session, now: datetime) -> None:
    tokens, sso = a_metered_feature(session), a_feature(session, "sso")
    draft = a_draft(session, phase(per_unit()))
    rewrite(session, draft, phase(fee(key="sso", feature="sso")), now=now)
    session.expire_all()
    assert draft.feature_ids == {"sso": sso.id}
    assert tokens.id not in draft.feature_ids.values()


def test_a_key_names_the_active_version_unless_another_is_asked_for(session: Session, now: datetime) -> None:
    first, second = a_plan(session), a_plan(session, now=now)
    draft = a_draft(session)
    assert get_plan(session, "pro") is second
    assert get_plan(session, "pro", include_latest=True) is draft
    assert get_plan(session, "pro", version=1) is first
    assert get_plan(session, "pro", version=3, lock=True) is draft
    assert get_plan(session, first.id) is first


def test_what_does_not_exist_is_not_found(session: Session) -> None:
    a_draft(session)
    with pytest.raises(PlanNotFoundError):
        get_plan(session, "unknown", include_latest=True)
    with pytest.raises(PlanNotFoundError, match="'pro' in version 2"):
        get_plan(session, "pro", version=2)
    with pytest.raises(PlanNotFoundError):
        get_plan(session, "pro")


def test_plans_are_listed_by_key_and_version_and_by_what_they_are(session: Session, now: datetime) -> None:
    later = now + timedelta(days=1)
    old, active = a_plan(session), a_plan(session, now=now)
    draft = a_draft(session)
    euro = a_plan(session, key="euro", currency="EUR", now=later)

    def listed(page: tuple[Sequence[Plan], int]) -> list[Plan]:
        plans, count = page
        assert count == len(plans)
        return list(plans)

    assert listed(list_plans(session, now=now)) == [euro, old, active, draft]
    assert listed(list_plans(session, keys=["pro"], now=now)) == [old, active, draft]
    assert listed(list_plans(session, ids=[old.id, euro.id], now=now)) == [euro, old]
    assert listed(list_plans(session, currencies=["EUR"], now=now)) == [euro]
    by_status: dict[PlanStatus, list[Plan]] = {
        "draft": [draft],
        "active": [active],
        "archived": [old],
        "scheduled": [euro],
    }
    for status, expected in by_status.items():
        assert listed(list_plans(session, statuses=[status], now=now)) == expected
        assert all(plan.status(now) == status for plan in expected)
    assert listed(list_plans(session, statuses=["draft", "archived"], now=now)) == [old, draft]


def test_a_page_says_how_many_plans_there_are(session: Session, now: datetime) -> None:
    drafts = [a_draft(session, key=key) for key in "abc"]
    assert list_plans(session, offset=1, limit=1, now=now) == ([drafts[1]], 3)
    assert list_plans(session, offset=3, limit=1, now=now) == ([], 3)


def test_of_two_who_create_a_draft_at_once_one_wins(engine: Engine) -> None:
    second = at_once(engine, a_draft, a_draft)
    assert isinstance(second.exception(), PlanDraftExistsError)


def test_of_two_who_publish_a_draft_at_once_one_wins(engine: Engine, now: datetime) -> None:
    with Session(engine, expire_on_commit=False) as session:
        first, draft = a_plan(session), a_draft(session)
        session.commit()

    def publish(session: Session) -> Plan:
        plan = get_plan(session, draft.id, include_latest=True, lock=True)
        return publish_plan(session, plan, now=now)

    assert isinstance(at_once(engine, publish, publish).exception(), PlanNotDraftError)
    with Session(engine) as session:
        assert get_plan(session, "pro").id == draft.id
        assert get_plan(session, first.id).effective_to == now
