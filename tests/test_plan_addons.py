from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from catalog.addons import Addon, AddonNotFoundError, archive_addon, delete_addon, get_addon
from catalog.features import archive_feature
from catalog.plan_addons import (
    PlanAddon,
    PlanAddonExistsError,
    PlanAddonNotFoundError,
    create_plan_addon,
    delete_plan_addon,
    get_plan_addon,
    list_plan_addons,
    plan_addon_issues,
    update_plan_addon,
)
from catalog.plans import (
    Plan,
    addon_issues_of_plans,
    get_plan,
    next_plan,
    plan_terms,
    publish_plan,
    update_plan,
)
from catalog.rate_card import Phase
from catalog.versions import VersionFilter, VersionOrder
from metering.errors import InvalidError
from tests.builders import (
    START,
    a_draft,
    a_feature,
    a_metered_feature,
    a_plan,
    an_addon,
    an_addon_draft,
    at_once,
    counted_statements,
    fee,
    phase,
)

ANYTHING = VersionFilter()


def offer(
    session: Session,
    plan: Plan,
    addon: Addon,
    *,
    from_plan_phase: str = "main",
    max_quantity: int | None = None,
    now: datetime = START,
) -> PlanAddon:
    return create_plan_addon(
        session,
        plan_id=plan.id,
        plan=plan_terms(session, plan, now=now),
        addon_id=addon.id,
        from_plan_phase=from_plan_phase,
        max_quantity=max_quantity,
        metadata={"shelf": "top"},
        now=now,
    )


def wrong(session: Session, plan: Plan, offered: PlanAddon, now: datetime) -> list[str]:
    terms = plan_terms(session, plan, now=now)
    return [issue.code for issue in plan_addon_issues(terms, offered, now=now)]


def codes(error: pytest.ExceptionInfo[InvalidError]) -> list[tuple[str, str]]:
    assert all(issue.hint for issue in error.value.issues)
    return [(issue.code, issue.field) for issue in error.value.issues]


def offered_by(session: Session, plan: Plan) -> int:
    return list_plan_addons(session, plan.id, VersionFilter(include_deleted=True), now=START)[1]


@pytest.mark.parametrize("status", ["draft", "active"])
def test_a_plan_offers_an_addon(session: Session, now: datetime, status: str) -> None:
    plan = a_draft(session) if status == "draft" else a_plan(session)
    addon = an_addon(session, instance_type="multiple")
    made = offer(session, plan, addon, max_quantity=5, now=now)
    session.expire_all()
    offered = get_plan_addon(session, plan.id, "seats")
    assert offered is made
    assert offered.addon is addon
    assert (offered.plan_id, offered.from_plan_phase, offered.max_quantity) == (plan.id, "main", 5)
    assert (offered.metadata_, offered.created_at, offered.updated_at) == ({"shelf": "top"}, now, now)
    assert wrong(session, plan, offered, now) == []
    assert plan.status(now) == status


def test_an_addon_is_offered_once(session: Session) -> None:
    plan, addon = a_draft(session), an_addon(session)
    offer(session, plan, addon)
    with pytest.raises(PlanAddonExistsError) as caught:
        offer(session, plan, addon)
    (issue,) = caught.value.issues
    assert (issue.code, issue.field) == ("plan_addon_exists", "$.addonId")
    assert issue.hint


def test_what_is_offered_no_more_may_be_offered_again(session: Session, now: datetime) -> None:
    plan, addon = a_draft(session), an_addon(session)
    first = offer(session, plan, addon)
    delete_plan_addon(session, first, now=now)
    with pytest.raises(PlanAddonNotFoundError):
        get_plan_addon(session, plan.id, first.id)
    second = offer(session, plan, addon, now=now)
    assert list_plan_addons(session, plan.id, ANYTHING, now=now) == ([second], 1)
    everything = VersionFilter(include_deleted=True)
    assert list_plan_addons(session, plan.id, everything, now=now) == ([first, second], 2)
    assert (first.deleted_at, first.updated_at) == (now, now)


def test_what_does_not_exist_is_not_offered(session: Session, now: datetime) -> None:
    plan, gone = a_draft(session), an_addon_draft(session)
    delete_addon(session, gone, now=now)
    with pytest.raises(AddonNotFoundError):
        offer(session, plan, gone)
    with pytest.raises(PlanAddonNotFoundError, match="'seats'"):
        get_plan_addon(session, plan.id, "seats")


@pytest.mark.parametrize(
    ("addon", "phase_key", "code", "field"),
    [
        (an_addon_draft, "main", "plan_addon_incompatible_status", "$.addon.status"),
        (
            lambda session: an_addon(session, currency="EUR"),
            "main",
            "plan_addon_currency_mismatch",
            "$.addon.currency",
        ),
        (an_addon, "other", "plan_addon_unknown_plan_phase_key", "$.fromPlanPhase"),
    ],
)
def test_nothing_is_offered_that_can_not_be_bought(
    session: Session, addon: Callable[[Session], Addon], phase_key: str, code: str, field: str
) -> None:
    plan, some = a_draft(session), addon(session)
    session.commit()
    with pytest.raises(InvalidError) as caught:
        offer(session, plan, some, from_plan_phase=phase_key)
    session.rollback()
    assert codes(caught) == [(code, field)]
    assert offered_by(session, plan) == 0


def test_a_plan_that_is_archived_offers_nothing_new(session: Session, now: datetime) -> None:
    old, addon = a_plan(session), an_addon(session)
    a_plan(session, now=now)
    session.commit()
    with pytest.raises(InvalidError) as caught:
        offer(session, old, addon, now=now)
    session.rollback()
    assert codes(caught) == [("plan_addon_incompatible_status", "$.plan.status")]
    assert offered_by(session, old) == 0


def test_a_draft_keeps_what_does_not_fit_yet_and_is_not_published_with_it(
    session: Session, now: datetime
) -> None:
    before, addon = a_plan(session), an_addon(session)
    draft = a_draft(session, phase(fee(term="in_arrears")))
    offered = offer(session, draft, addon, max_quantity=1)
    found = ["plan_addon_max_quantity_must_not_be_set", "rate_card_price_payment_term_mismatch"]
    assert wrong(session, draft, offered, now) == found
    session.commit()
    with pytest.raises(InvalidError, match="'seats' does not fit") as caught:
        publish_plan(session, draft, now=now)
    assert codes(caught) == [("plan_has_incompatible_addon", "$")]
    session.rollback()
    session.expire_all()
    assert (draft.status(now), before.status(now)) == ("draft", "active")
    offered = get_plan_addon(session, draft.id, "seats", lock=True)
    replace_offer(session, draft, offered, now=now)
    rewrite(session, draft, phase(fee("12")), now=now)
    assert wrong(session, draft, offered, now) == []
    assert publish_plan(session, draft, now=now).status(now) == "active"


def replace_offer(
    session: Session,
    plan: Plan,
    offered: PlanAddon,
    *,
    from_plan_phase: str = "main",
    max_quantity: int | None = None,
    now: datetime,
) -> PlanAddon:
    return update_plan_addon(
        session,
        offered,
        plan=plan_terms(session, plan, now=now),
        from_plan_phase=from_plan_phase,
        max_quantity=max_quantity,
        metadata=None,
        now=now,
    )


def rewrite(session: Session, plan: Plan, *phases: Phase, now: datetime) -> None:
    update_plan(
        session,
        plan,
        name=plan.name,
        description=None,
        metadata=None,
        billing_cadence="P1M",
        pro_rating=True,
        phases=phases,
        now=now,
    )


def test_an_offer_that_does_not_fit_what_is_sold_is_refused(session: Session) -> None:
    plan, addon = a_plan(session, phase(fee(term="in_arrears"))), an_addon(session)
    session.commit()
    with pytest.raises(InvalidError) as caught:
        offer(session, plan, addon)
    session.rollback()
    field = "$.addon.rateCards[0].price.paymentTerm"
    assert codes(caught) == [("rate_card_price_payment_term_mismatch", field)]
    assert offered_by(session, plan) == 0


def test_what_changed_since_bars_publication(session: Session, now: datetime) -> None:
    draft = a_draft(session)
    seats, support = an_addon(session), an_addon(session, fee(key="support"), key="support")
    offered = offer(session, draft, seats)
    moved = offer(session, draft, support)
    archive_addon(session, seats, now=now)
    rewrite(session, draft, phase(fee(), key="renamed"), now=now)
    both = ["plan_addon_incompatible_status", "plan_addon_unknown_plan_phase_key"]
    assert wrong(session, draft, offered, now) == both
    assert wrong(session, draft, moved, now) == both[1:]
    with pytest.raises(InvalidError) as caught:
        publish_plan(session, draft, now=now)
    assert codes(caught) == 2 * [("plan_has_incompatible_addon", "$")]
    delete_plan_addon(session, offered, now=now)
    replace_offer(session, draft, moved, from_plan_phase="renamed", now=now)
    assert publish_plan(session, draft, now=now).status(now) == "active"


def test_an_offer_is_replaced_as_a_whole_or_not_at_all(session: Session, now: datetime) -> None:
    plan = a_draft(session, phase(fee(), key="trial", duration="P1M"), phase(fee()))
    offered = offer(session, plan, an_addon(session, instance_type="multiple"), max_quantity=5)
    replace_offer(session, plan, offered, from_plan_phase="trial", max_quantity=7, now=now)
    session.commit()
    with pytest.raises(InvalidError):
        replace_offer(session, plan, offered, from_plan_phase="unknown", max_quantity=9, now=now)
    session.rollback()
    session.expire_all()
    assert (offered.from_plan_phase, offered.max_quantity, offered.metadata_) == ("trial", 7, None)
    assert (offered.created_at, offered.updated_at) == (START, now)


def test_a_key_that_means_another_feature_by_now_does_not_fit(session: Session, now: datetime) -> None:
    old = a_metered_feature(session)
    card = fee(key="tokens", feature="tokens")
    plan, addon = a_plan(session, phase(card)), an_addon(session, card)
    assert wrong(session, plan, offer(session, plan, addon), now) == []
    archive_feature(session, old, now=now)
    a_feature(session, "tokens", meter="tokens", now=now)
    another, draft = an_addon(session, card, key="more", now=now), a_draft(session, phase(card))
    with pytest.raises(InvalidError) as caught:
        offer(session, plan, another, now=now)
    assert codes(caught) == [("rate_card_feature_mismatch", "$.addon.rateCards[0].featureKey")]
    with pytest.raises(InvalidError) as caught:
        offer(session, draft, addon, now=now)
    assert codes(caught) == [("rate_card_feature_mismatch", "$.addon.rateCards[0].featureKey")]
    assert wrong(session, draft, offer(session, draft, another, now=now), now) == []


def test_an_offer_has_its_own_id_its_addons_and_its_addons_key(session: Session, now: datetime) -> None:
    plan, other = a_draft(session), a_draft(session, key="other")
    old = an_addon(session)
    offered = offer(session, plan, old)
    newer = offer(session, plan, new := an_addon(session, now=now), now=now)
    for name, expected in (
        (offered.id, offered),
        (old.id, offered),
        (new.id, newer),
        ("seats", newer),
    ):
        assert get_plan_addon(session, plan.id, name, lock=True) is expected
        with pytest.raises(PlanAddonNotFoundError):
            get_plan_addon(session, other.id, name)


def test_offers_are_listed_by_their_addons(session: Session, now: datetime) -> None:
    plan, other = a_draft(session), a_draft(session, key="other")
    support = offer(session, plan, an_addon(session, fee(key="support"), key="support"))
    old = offer(session, plan, an_addon(session), now=now)
    new = offer(session, plan, an_addon(session, now=now), now=now + timedelta(hours=1))
    offer(session, other, new.addon, now=now)

    def listed(
        wanted: VersionFilter = ANYTHING, order_by: VersionOrder | None = None, *, descending: bool = False
    ) -> list[PlanAddon]:
        page, count = list_plan_addons(
            session, plan.id, wanted, order_by=order_by, descending=descending, now=now
        )
        assert count == len(page)
        return list(page)

    assert listed() == [old, new, support]
    assert listed(order_by="created_at") == [support, old, new]
    assert listed(order_by="key", descending=True) == [support, new, old]
    assert listed(order_by="version", descending=True) == [new, support, old]
    delete_addon(session, old.addon, now=now)  # archived by its next version, and still offered
    assert listed(VersionFilter(keys=["seats"])) == [old, new]
    assert listed(VersionFilter(ids=[support.addon_id, new.addon_id])) == [new, support]
    assert listed(VersionFilter(key_versions={"seats": [2], "support": [2]})) == [new]
    assert list_plan_addons(session, plan.id, ANYTHING, offset=1, limit=1, now=now) == ([new], 3)


def test_what_many_plans_offer_is_read_at_once(
    session: Session, shared_engine: Engine, now: datetime
) -> None:
    addon = an_addon(session)
    fitting = [a_draft(session, key=f"fits_{number}") for number in range(5)]
    misfit = a_draft(session, phase(fee(term="in_arrears")), key="misfit")
    offer(session, misfit, addon)
    active = a_plan(session)
    with counted_statements(shared_engine) as sent:
        found = addon_issues_of_plans(session, [*fitting, misfit, active], now=now)
    codes_of = {plan_id: [issue.code for issue in issues] for plan_id, issues in found.items() if issues}
    assert codes_of == {misfit.id: ["plan_has_incompatible_addon"]}
    assert len(found) == 7
    assert len(sent) <= 2


def test_of_two_who_offer_an_addon_at_once_one_wins(engine: Engine, now: datetime) -> None:
    with Session(engine, expire_on_commit=False) as session:
        draft, addon = a_draft(session), an_addon(session)
        session.commit()

    def offer_it(session: Session) -> PlanAddon:
        return offer(session, get_plan(session, draft.id, lock=True), addon, now=now)

    assert isinstance(at_once(engine, offer_it, offer_it).exception(), PlanAddonExistsError)


def test_a_plan_is_not_published_while_an_addon_of_it_is_being_archived(
    engine: Engine, now: datetime
) -> None:
    with Session(engine, expire_on_commit=False) as session:
        draft, addon = a_draft(session), an_addon(session)
        offer(session, draft, addon)
        session.commit()

    def archive(session: Session) -> object:
        return archive_addon(session, get_addon(session, addon.id, lock=True), now=now)

    def publish(session: Session) -> Plan:
        return publish_plan(session, get_plan(session, draft.id, lock=True), now=now)

    error = at_once(engine, archive, publish).exception()
    assert isinstance(error, InvalidError)
    assert [issue.code for issue in error.issues] == ["plan_has_incompatible_addon"]
    with Session(engine) as session:
        assert get_plan(session, draft.id).status(now) == "draft"


# -- The next version ----------------------------------------------------------------------------------------


def offers(session: Session, plan: Plan) -> list[tuple[str, int, str, int | None]]:
    found, _ = list_plan_addons(session, plan.id, ANYTHING, now=START)
    return [(one.addon.key, one.addon.version, one.from_plan_phase, one.max_quantity) for one in found]


def test_a_plans_next_version_offers_the_same_add_ons(session: Session) -> None:
    plan = a_plan(session, phase(fee(), key="trial", duration="P1M"), phase(fee()))
    offer(session, plan, an_addon(session, fee("3"), instance_type="multiple"), max_quantity=5)
    offer(session, plan, an_addon(session, fee("4"), key="desks"), from_plan_phase="trial")
    gone = offer(session, plan, an_addon(session, fee("5"), key="rooms"))
    delete_plan_addon(session, gone, now=START)
    following = next_plan(session, plan, now=START)
    assert offers(session, following) == [("desks", 1, "trial", None), ("seats", 1, "main", 5)]
    assert get_plan_addon(session, following.id, "seats").metadata_ == {"shelf": "top"}
    assert publish_plan(session, following, now=START).status(START) == "active"
    assert offers(session, plan) == offers(session, following)


def test_of_each_the_version_that_is_sold_by_then(session: Session) -> None:
    plan = a_plan(session)
    offer(session, plan, an_addon(session))
    an_addon(session, fee("12"))
    following = next_plan(session, plan, now=START)
    assert offers(session, following) == [("seats", 2, "main", None)]
    assert offers(session, plan) == [("seats", 1, "main", None)]


def test_one_that_is_not_sold_any_more_bars_publication_until_somebody_decides(session: Session) -> None:
    plan = a_plan(session)
    addon = an_addon(session)
    offer(session, plan, addon)
    archive_addon(session, addon, now=START)
    following = next_plan(session, plan, now=START)
    assert offers(session, following) == [("seats", 1, "main", None)]
    with pytest.raises(InvalidError, match="seats"):
        publish_plan(session, following, now=START)
    delete_plan_addon(session, get_plan_addon(session, following.id, "seats"), now=START)
    publish_plan(session, following, now=START)
