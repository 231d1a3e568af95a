from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from catalog.addons import (
    Addon,
    AddonDraftExistsError,
    AddonNotFoundError,
    AddonStatusError,
    addon_issues,
    archive_addon,
    create_addon,
    delete_addon,
    get_addon,
    publish_addon,
    update_addon,
)
from catalog.features import archive_feature, get_feature
from catalog.price import FlatPrice
from catalog.rate_card import MeteredEntitlement, RateCard
from catalog.versions import VersionFilter, VersionOrder, VersionStatus, list_versions
from metering.errors import InvalidError
from tests.builders import (
    START,
    a_feature,
    a_metered_feature,
    an_addon,
    an_addon_draft,
    at_once,
    fee,
    per_unit,
)


def rewrite(session: Session, addon: Addon, *cards: RateCard, now: datetime) -> Addon:
    return update_addon(
        session,
        addon,
        name="More seats",
        description="for teams",
        metadata={"tier": "2"},
        instance_type="multiple",
        rate_cards=cards,
        now=now,
    )


def codes(error: pytest.ExceptionInfo[InvalidError]) -> list[tuple[str, str]]:
    return [(issue.code, issue.field) for issue in error.value.issues]


def test_an_addon_is_read_back_exactly_as_it_was_written(session: Session, now: datetime) -> None:
    a_metered_feature(session)
    entitled = replace(
        per_unit("0.000000000000000000000000000001"),
        entitlement_template=MeteredEntitlement(type="metered", issue_after_reset=Decimal(100)),
        metadata={"gl": "4000"},
    )
    cards = (fee("9" * 30, cadence=None), entitled)
    addon = create_addon(
        session,
        key="seats",
        name="Seats",
        description="for teams",
        metadata={"tier": "2"},
        instance_type="single",
        currency="EUR",
        rate_cards=cards,
        now=now,
    )
    session.expire_all()
    assert addon.rate_cards == cards
    assert (addon.key, addon.version, addon.status(now)) == ("seats", 1, "draft")
    assert (addon.name, addon.description, addon.metadata_) == ("Seats", "for teams", {"tier": "2"})
    assert (addon.instance_type, addon.currency, addon.deleted_at) == ("single", "EUR", None)
    assert (addon.created_at, addon.updated_at, addon.effective_from) == (now, now, None)


def test_a_draft_with_critical_problems_is_refused_with_all_of_them_and_only_them(
    session: Session,
) -> None:
    with pytest.raises(InvalidError) as caught:
        an_addon_draft(
            session,
            fee("-1"),
            per_unit(feature="unknown"),
            key="Seats",
            currency="XXX",
            instance_type="multiple",  # and then a price on usage is a warning
        )
    assert codes(caught) == [
        ("invalid_key", "$.key"),
        ("currency_invalid", "$.currency"),
        ("price_amount_negative", "$.rateCards[0].price.amount"),
        ("rate_card_feature_not_found", "$.rateCards[1].featureKey"),
    ]
    assert list_versions(session, Addon, VersionFilter(), now=START) == ([], 0)


def test_a_draft_keeps_its_warnings_until_it_is_published(session: Session, now: datetime) -> None:
    a_metered_feature(session)
    draft = an_addon_draft(session, per_unit(), instance_type="multiple")
    (issue,) = addon_issues(session, draft)
    code = "addon_invalid_ratecard_price_for_multi_instance"
    assert (issue.code, issue.field, issue.severity) == (code, "$.rateCards[0].price", "warning")
    session.commit()
    with pytest.raises(InvalidError) as caught:
        publish_addon(session, draft, now=now)
    assert codes(caught) == [(code, "$.rateCards[0].price")]
    session.rollback()
    session.expire_all()
    assert (draft.status(now), draft.updated_at) == ("draft", START)
    rewrite(session, draft, fee(), now=now)
    assert addon_issues(session, draft) == []
    assert publish_addon(session, draft, now=now).status(now) == "active"


def test_a_key_has_one_draft(session: Session) -> None:
    an_addon_draft(session)
    with pytest.raises(AddonDraftExistsError) as caught:
        an_addon_draft(session)
    (issue,) = caught.value.issues
    assert (issue.code, issue.field) == ("addon_draft_exists", "$.key")
    assert issue.hint


def test_a_draft_may_be_replaced(session: Session, now: datetime) -> None:
    draft = an_addon_draft(session)
    rewrite(session, draft, fee("12", cadence="P1Y"), now=now)
    session.expire_all()
    assert draft.rate_cards == (fee("12", cadence="P1Y"),)
    assert (draft.name, draft.description, draft.metadata_) == ("More seats", "for teams", {"tier": "2"})
    assert (draft.instance_type, draft.updated_at) == ("multiple", now)
    assert (draft.key, draft.version, draft.currency, draft.created_at) == ("seats", 1, "USD", START)


def test_a_draft_is_not_replaced_by_one_with_critical_problems(session: Session, now: datetime) -> None:
    draft = an_addon_draft(session)
    session.commit()
    with pytest.raises(InvalidError):
        rewrite(session, draft, fee("-1"), now=now)
    session.rollback()
    session.expire_all()
    assert (draft.rate_cards, draft.updated_at) == ((fee(),), START)


def test_publishing_the_next_version_archives_the_one_before_at_the_same_instant(
    session: Session, now: datetime
) -> None:
    first, other = an_addon(session), an_addon(session, key="other")
    second = an_addon_draft(session)
    assert (second.version, second.status(now), first.status(now)) == (2, "draft", "active")
    publish_addon(session, second, now=now)
    session.expire_all()
    assert first.effective_to == second.effective_from == now
    assert (first.status(now - timedelta(microseconds=1)), first.status(now)) == ("active", "archived")
    assert other.status(now) == "active"


def test_an_addon_that_was_archived_is_sold_no_more_and_its_next_version_is(
    session: Session, now: datetime
) -> None:
    addon = an_addon(session)
    archive_addon(session, addon, now=now)
    assert (addon.status(now), addon.effective_to, addon.updated_at) == ("archived", now, now)
    with pytest.raises(AddonNotFoundError):
        get_addon(session, "seats")
    assert an_addon(session, now=now).version == 2


def in_status(session: Session, status: VersionStatus, now: datetime) -> Addon:
    if status == "draft":
        return an_addon_draft(session)
    addon = an_addon(session)
    return archive_addon(session, addon, now=now) if status == "archived" else addon


@pytest.mark.parametrize("status", ["active", "archived"])
def test_a_published_version_never_changes(session: Session, now: datetime, status: VersionStatus) -> None:
    addon = in_status(session, status, now)
    with pytest.raises(AddonStatusError, match=f"is {status} can't be changed") as caught:
        rewrite(session, addon, fee("0"), now=now)
    assert codes(caught) == [("addon_invalid_status", "$.status")]
    with pytest.raises(AddonStatusError, match=f"is {status} can't be published") as caught:
        publish_addon(session, addon, now=now)
    assert codes(caught) == [("addon_invalid_status_for_publish", "$.status")]
    session.flush()
    session.expire_all()
    assert (addon.rate_cards, addon.status(now)) == ((fee(),), status)


@pytest.mark.parametrize("status", ["draft", "archived"])
def test_only_what_is_active_can_be_archived(session: Session, now: datetime, status: VersionStatus) -> None:
    addon = in_status(session, status, now)
    with pytest.raises(AddonStatusError, match=f"is {status} can't be archived, only an active one can"):
        archive_addon(session, addon, now=now)


def test_what_is_active_is_not_deleted(session: Session, now: datetime) -> None:
    addon = an_addon(session)
    with pytest.raises(AddonStatusError) as caught:
        delete_addon(session, addon, now=now)
    assert codes(caught) == [("addon_invalid_status", "$.status")]
    assert get_addon(session, "seats") is addon


@pytest.mark.parametrize("status", ["draft", "archived"])
def test_what_was_deleted_has_only_its_id(session: Session, now: datetime, status: VersionStatus) -> None:
    addon = in_status(session, status, now)
    delete_addon(session, addon, now=now)
    session.expire_all()
    assert addon.deleted_at == now
    assert get_addon(session, addon.id) is addon
    with pytest.raises(AddonNotFoundError):
        get_addon(session, "seats", include_latest=True)
    with pytest.raises(AddonNotFoundError):
        get_addon(session, addon.id, lock=True)


def test_a_version_that_was_deleted_is_never_made_again(session: Session, now: datetime) -> None:
    delete_addon(session, an_addon_draft(session), now=now)
    assert an_addon_draft(session).version == 2


def test_an_addon_pins_the_features_that_its_keys_meant_when_it_was_published(
    session: Session, now: datetime
) -> None:
    old = a_metered_feature(session)
    draft = an_addon_draft(session, per_unit())
    assert draft.feature_ids == {"tokens": old.id}
    archive_feature(session, old, now=now)
    with pytest.raises(InvalidError) as caught:
        publish_addon(session, draft, now=now)
    assert codes(caught) == [("rate_card_feature_archived", "$.rateCards[0].featureKey")]
    new = a_feature(session, "tokens", meter="tokens", now=now)
    publish_addon(session, draft, now=now)
    archive_feature(session, new, now=now)
    a_feature(session, "tokens", now=now)
    session.expire_all()
    assert draft.feature_ids == {"tokens": new.id}


def test_a_key_names_the_active_version_unless_another_is_asked_for(session: Session, now: datetime) -> None:
    first, second = an_addon(session), an_addon(session, now=now)
    draft = an_addon_draft(session)
    assert get_addon(session, "seats") is second
    assert get_addon(session, "seats", include_latest=True) is draft
    assert get_addon(session, "seats", include_latest=True, lock=True) is draft
    assert get_addon(session, first.id) is first
    with pytest.raises(AddonNotFoundError, match="unknown"):
        get_addon(session, "unknown", include_latest=True)


def test_addons_are_listed_by_key_and_version_and_by_what_they_are(session: Session, now: datetime) -> None:
    old, active = an_addon(session), an_addon(session, now=now)
    draft = an_addon_draft(session, now=now + timedelta(hours=1))
    euro = an_addon(session, key="euro", currency="EUR", now=now)
    deleted = an_addon_draft(session, key="gone", now=now)
    delete_addon(session, deleted, now=now)

    def listed(wanted: VersionFilter, order_by: VersionOrder | None = None, **order: bool) -> list[Addon]:
        page, count = list_versions(session, Addon, wanted, order_by=order_by, **order, now=now)
        assert count == len(page)
        return list(page)

    def only(**wanted: object) -> list[Addon]:
        return listed(replace(VersionFilter(), **wanted))  # type: ignore[arg-type]

    assert only() == [euro, old, active, draft]
    assert only(keys=["seats"]) == [old, active, draft]
    assert only(ids=[old.id, euro.id]) == [euro, old]
    assert only(currencies=["EUR"]) == [euro]
    assert only(key_versions={"seats": [1, 3], "euro": [2]}) == [old, draft]
    assert only(include_deleted=True) == [euro, deleted, old, active, draft]
    by_status: dict[VersionStatus, Sequence[Addon]] = {
        "draft": [draft],
        "active": [euro, active],
        "archived": [old],
        "scheduled": [],
    }
    for status, expected in by_status.items():
        assert only(statuses=[status]) == expected
    assert listed(VersionFilter(), "version", descending=True) == [draft, active, old, euro]
    assert listed(VersionFilter(), "created_at") == [old, euro, active, draft]
    page = list_versions(session, Addon, VersionFilter(), offset=1, limit=2, now=now)
    assert page == ([old, active], 4)


def test_of_two_who_create_a_draft_at_once_one_wins(engine: Engine) -> None:
    second = at_once(engine, an_addon_draft, an_addon_draft)
    assert isinstance(second.exception(), AddonDraftExistsError)


def test_of_two_who_publish_a_draft_at_once_one_wins(engine: Engine, now: datetime) -> None:
    with Session(engine, expire_on_commit=False) as session:
        first, draft = an_addon(session), an_addon_draft(session, fee("20"))
        session.commit()

    def publish(session: Session) -> Addon:
        addon = get_addon(session, draft.id, include_latest=True, lock=True)
        return publish_addon(session, addon, now=now)

    assert isinstance(at_once(engine, publish, publish).exception(), AddonStatusError)
    with Session(engine) as session:
        active = list_versions(session, Addon, VersionFilter(statuses=["active"]), now=now)[0]
        assert [addon.id for addon in active] == [draft.id]
        assert get_addon(session, first.id).effective_to == now
        price = get_addon(session, "seats").rate_cards[0].price
        assert isinstance(price, FlatPrice)
        assert price.amount == 20


def test_an_addon_is_not_published_while_a_feature_of_it_is_being_archived(
    engine: Engine, now: datetime
) -> None:
    with Session(engine, expire_on_commit=False) as session:
        a_metered_feature(session)
        draft = an_addon_draft(session, per_unit())
        session.commit()

    def archive(session: Session) -> None:
        archive_feature(session, get_feature(session, "tokens"), now=now)

    def publish(session: Session) -> Addon:
        return publish_addon(session, get_addon(session, draft.id, lock=True), now=now)

    error = at_once(engine, archive, publish).exception()
    assert isinstance(error, InvalidError)
    assert [issue.code for issue in error.issues] == ["rate_card_feature_archived"]
