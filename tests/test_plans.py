from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from catalog.features import archive_feature
from catalog.plans import (
    Plan,
    PlanDraftExistsError,
    PlanNotFoundError,
    PlanNotLatestError,
    PlanStatusError,
    archive_plan,
    create_plan,
    delete_plan,
    get_plan,
    issues_of_plans,
    next_plan,
    plan_issues,
    publish_plan,
    update_plan,
)
from catalog.price import PriceTier, TieredPrice, TierUnitPrice, UnitPrice
from catalog.rate_card import BooleanEntitlement, Phase
from catalog.versions import VersionFilter, VersionOrder, VersionStatus, list_versions
from metering.errors import InvalidError
from tests.builders import (
    START,
    a_draft,
    a_feature,
    a_metered_feature,
    a_plan,
    at_once,
    counted_statements,
    fee,
    per_unit,
    phase,
)

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
    assert list_versions(session, Plan, VersionFilter(), now=START) == ([], 0)


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


def test_versions_follow_one_another_without_gap_or_overlap_also_where_a_clock_is_behind(
    session: Session, now: datetime
) -> None:
    """Another server, a second ahead, has just published the version before: nobody else can date ahead."""
    ahead, tick = now + timedelta(seconds=1), timedelta(microseconds=1)
    first = a_plan(session)
    second = publish_plan(session, a_draft(session), now=ahead)
    third = publish_plan(session, a_draft(session), now=now)
    session.expire_all()
    assert (first.effective_to, second.effective_from) == (ahead, ahead)
    assert (second.effective_to, third.effective_from, third.effective_to) == (ahead, ahead, None)
    for moment in (START, now, ahead - tick, ahead, ahead + tick):
        (active,) = [one for one in (first, second, third) if one.status(moment) == "active"]
        assert active is (first if moment < ahead else third)
        sold, _ = list_versions(session, Plan, VersionFilter(statuses=["active"]), now=moment)
        assert list(sold) == [active]
        later, _ = list_versions(session, Plan, VersionFilter(statuses=["scheduled"]), now=moment)
        assert list(later) == ([second, third] if moment < ahead else [])


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
def test_a_published_version_never_changes(session: Session, now: datetime, status: VersionStatus) -> None:
    plan = a_plan(session)
    if status == "archived":
        a_plan(session, now=now)
    with pytest.raises(PlanStatusError, match=f"is {status} can't be changed") as caught:
        rewrite(session, plan, phase(fee("0")), now=now)
    assert caught.value.issues[0].code == "plan_invalid_status"
    with pytest.raises(PlanStatusError, match=f"is {status} can't be published"):
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

    assert listed(list_versions(session, Plan, VersionFilter(), now=now)) == [euro, old, active, draft]
    assert listed(list_versions(session, Plan, VersionFilter(keys=["pro"]), now=now)) == [old, active, draft]
    assert listed(list_versions(session, Plan, VersionFilter(ids=[old.id, euro.id]), now=now)) == [euro, old]
    assert listed(list_versions(session, Plan, VersionFilter(currencies=["EUR"]), now=now)) == [euro]
    by_status: dict[VersionStatus, list[Plan]] = {
        "draft": [draft],
        "active": [active],
        "archived": [old],
        "scheduled": [euro],
    }
    for status, expected in by_status.items():
        assert listed(list_versions(session, Plan, VersionFilter(statuses=[status]), now=now)) == expected
        assert all(plan.status(now) == status for plan in expected)
    assert listed(list_versions(session, Plan, VersionFilter(statuses=["draft", "archived"]), now=now)) == [
        old,
        draft,
    ]


def test_a_page_says_how_many_plans_there_are(session: Session, now: datetime) -> None:
    drafts = [a_draft(session, key=key) for key in "abc"]
    assert list_versions(session, Plan, VersionFilter(), offset=1, limit=1, now=now) == ([drafts[1]], 3)
    assert list_versions(session, Plan, VersionFilter(), offset=3, limit=1, now=now) == ([], 3)


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

    assert isinstance(at_once(engine, publish, publish).exception(), PlanStatusError)
    with Session(engine) as session:
        assert get_plan(session, "pro").id == draft.id
        assert get_plan(session, first.id).effective_to == now
        assert list_versions(session, Plan, VersionFilter(statuses=["active"]), now=now)[1] == 1


# -- Archived, deleted, and drafted anew ---------------------------------------------------------------------

FALLING = TieredPrice(
    type="tiered",
    mode="volume",
    tiers=(
        PriceTier(up_to_amount=Decimal(10), unit_price=TierUnitPrice(type="unit", amount=Decimal(10))),
        PriceTier(unit_price=TierUnitPrice(type="unit", amount=Decimal(8))),
    ),
)


def test_an_archived_plan_is_sold_no_more_from_that_instant(session: Session, now: datetime) -> None:
    plan = archive_plan(session, a_plan(session), now=now)
    session.expire_all()
    assert (plan.effective_from, plan.effective_to, plan.updated_at) == (START, now, now)
    assert (plan.status(now - timedelta(seconds=1)), plan.status(now)) == ("active", "archived")
    with pytest.raises(PlanNotFoundError):
        get_plan(session, "pro")
    assert get_plan(session, "pro", include_latest=True) is plan


def test_only_an_active_plan_is_archived(session: Session, now: datetime) -> None:
    old, active, draft = a_plan(session), a_plan(session, now=now), a_draft(session)
    for plan, status in ((old, "archived"), (draft, "draft")):
        with pytest.raises(PlanStatusError, match=f"is {status} can't be archived") as caught:
            archive_plan(session, plan, now=now)
        (issue,) = caught.value.issues
        assert (issue.code, issue.field, bool(issue.hint)) == ("plan_invalid_status", "$.status", True)
    assert (old.effective_to, draft.effective_to, active.effective_to) == (now, None, None)


def test_a_plan_that_is_sold_is_not_deleted(session: Session, now: datetime) -> None:
    plan = a_plan(session)
    with pytest.raises(PlanStatusError, match="is active can't be deleted") as caught:
        delete_plan(session, plan, now=now)
    assert "archive" in caught.value.issues[0].hint
    assert plan.deleted_at is None


def test_a_deleted_plan_has_only_its_id_and_its_number_is_never_given_again(
    session: Session, now: datetime
) -> None:
    archived = archive_plan(session, a_plan(session), now=now)
    draft = a_draft(session)
    for plan in (draft, archived):
        delete_plan(session, plan, now=now)
    session.expire_all()
    assert (draft.deleted_at, archived.deleted_at) == (now, now)
    assert get_plan(session, archived.id) is archived
    with pytest.raises(PlanNotFoundError):
        get_plan(session, "pro", include_latest=True)
    with pytest.raises(PlanNotFoundError):
        get_plan(session, "pro", version=1)
    with pytest.raises(PlanNotFoundError):
        get_plan(session, draft.id, lock=True)  # nobody can change or publish it
    assert list_versions(session, Plan, VersionFilter(), now=now) == ([], 0)
    every = VersionFilter(include_deleted=True)
    assert list_versions(session, Plan, every, now=now) == ([archived, draft], 2)
    assert a_draft(session).version == 3


def test_the_next_version_is_a_draft_like_the_latest(session: Session, now: datetime) -> None:
    a_metered_feature(session)
    first = create_plan(
        session,
        key="pro",
        name="Pro",
        description="for teams",
        metadata={"tier": "2"},
        currency="EUR",
        billing_cadence="P3M",
        pro_rating=False,
        phases=(phase(fee("3", cadence="P1M"), key="trial", duration="P1M"), phase(per_unit())),
        now=START,
    )
    publish_plan(session, first, now=START)
    second = next_plan(session, first, now=now)
    session.expire_all()
    for member in ("key", "name", "description", "metadata_", "currency", "billing_cadence", "pro_rating"):
        assert getattr(second, member) == getattr(first, member), member
    assert second.phases == first.phases
    assert (second.version, second.status(now), second.created_at) == (2, "draft", now)
    assert first.status(now) == "active"


def test_a_key_has_one_draft_also_by_way_of_the_next_version(session: Session, now: datetime) -> None:
    active, draft = a_plan(session), a_draft(session)
    for plan in (active, draft):
        with pytest.raises(PlanDraftExistsError), session.begin_nested():
            next_plan(session, plan, now=now)


def test_the_next_version_follows_the_latest_and_no_older_one(session: Session, now: datetime) -> None:
    old, latest = a_plan(session), a_plan(session, now=now)
    with pytest.raises(PlanNotLatestError, match="is 2, not 1"):
        next_plan(session, old, now=now)
    archive_plan(session, latest, now=now)
    assert next_plan(session, latest, now=now).version == 3


def test_what_can_not_be_sold_any_more_is_told_to_who_drafts_the_next_version(
    session: Session, now: datetime
) -> None:
    feature = a_metered_feature(session)
    plan = a_plan(session, phase(per_unit()))
    archive_feature(session, feature, now=now)
    with pytest.raises(InvalidError) as caught:
        next_plan(session, plan, now=now)
    assert [issue.code for issue in caught.value.issues] == ["rate_card_feature_archived"]


def test_advice_bars_no_publication_and_stays_with_what_is_published(session: Session, now: datetime) -> None:
    a_metered_feature(session)
    draft = a_draft(session, phase(replace(per_unit(), price=FALLING), fee(cadence="P1W")))
    codes = [issue.code for issue in plan_issues(session, draft)]
    assert codes == ["price_total_falls", "rate_card_billing_cadence_unaligned"]
    with pytest.raises(InvalidError) as caught:
        publish_plan(session, draft, now=now)
    assert [issue.code for issue in caught.value.issues] == ["rate_card_billing_cadence_unaligned"]
    rewrite(session, draft, phase(replace(per_unit(cadence="P1Y"), price=FALLING)), now=now)
    publish_plan(session, draft, now=now)
    (advice,) = plan_issues(session, draft)
    assert (advice.code, advice.severity) == ("price_total_falls", "info")
    assert "10 units cost 100, 11 units cost 88" in advice.message


def test_what_is_wrong_with_a_page_of_drafts_is_asked_at_once(engine: Engine) -> None:
    with Session(engine, expire_on_commit=False) as session:
        a_metered_feature(session)
        good, bad = phase(per_unit()), phase(fee(cadence="P1W"))
        drafts = [a_draft(session, (good, bad)[i % 2], key=f"plan-{i}") for i in range(4)]
        active = a_plan(session, good)
        session.commit()
        with counted_statements(engine) as sent:
            issues = issues_of_plans(session, [*drafts, active])
    assert [len(issues[plan.id]) for plan in drafts] == [0, 1, 0, 1]
    assert len([statement for statement in sent if "FROM features" in statement]) == 1


@pytest.mark.parametrize("order_by", ["id", "key", "version", "created_at", "updated_at"])
def test_plans_are_listed_in_any_order(session: Session, now: datetime, order_by: VersionOrder) -> None:
    hours = [now + timedelta(hours=n) for n in range(4)]
    a_plan(session, key="b", now=hours[3])
    a_plan(session, key="a", now=hours[1])
    a_draft(session, key="a", now=hours[2])

    def listed(*, descending: bool) -> list[Any]:
        found, _ = list_versions(
            session, Plan, VersionFilter(), order_by=order_by, descending=descending, now=now
        )
        return [getattr(plan, order_by) for plan in found]

    up, down = listed(descending=False), listed(descending=True)
    assert (up, down) == (sorted(up), sorted(up, reverse=True))
    assert len(up) == 3


def test_plans_are_listed_by_versions_of_keys(session: Session, now: datetime) -> None:
    pro = [a_plan(session, now=now), a_plan(session, now=now), a_draft(session)]
    team = [a_plan(session, key="team"), a_draft(session, key="team")]
    wanted = VersionFilter(key_versions={"pro": [1, 3], "team": [2], "unknown": [1]})
    found, count = list_versions(session, Plan, wanted, now=now)
    assert (list(found), count) == ([pro[0], pro[2], team[1]], 3)


def test_of_two_who_draft_the_next_version_at_once_one_wins(engine: Engine, now: datetime) -> None:
    with Session(engine) as session:
        a_plan(session)
        session.commit()

    def draft(session: Session) -> Plan:
        return next_plan(session, get_plan(session, "pro"), now=now)

    assert isinstance(at_once(engine, draft, draft).exception(), PlanDraftExistsError)


def test_a_plan_that_is_archived_while_its_next_version_is_published_ends_once(
    engine: Engine, now: datetime
) -> None:
    with Session(engine, expire_on_commit=False) as session:
        first, draft = a_plan(session), a_draft(session)
        session.commit()
    later = now + timedelta(hours=1)

    def archive(session: Session) -> Plan:
        return archive_plan(session, get_plan(session, first.id, lock=True), now=later)

    def publish(session: Session) -> Plan:
        return publish_plan(session, get_plan(session, draft.id, lock=True), now=now)

    assert isinstance(at_once(engine, publish, archive).exception(), PlanStatusError)
    with Session(engine) as session:
        assert get_plan(session, first.id).effective_to == now
        assert get_plan(session, "pro").id == draft.id


def test_a_draft_that_is_deleted_while_it_is_published_is_one_of_both(engine: Engine, now: datetime) -> None:
    with Session(engine, expire_on_commit=False) as session:
        draft = a_draft(session)
        session.commit()

    def delete(session: Session) -> None:
        delete_plan(session, get_plan(session, draft.id, lock=True), now=now)

    def publish(session: Session) -> Plan:
        return publish_plan(session, get_plan(session, draft.id, lock=True), now=now)

    assert isinstance(at_once(engine, delete, publish).exception(), PlanNotFoundError)
    with Session(engine) as session:
        assert get_plan(session, draft.id).status(now) == "draft"
