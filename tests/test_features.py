from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from catalog.features import (
    Feature,
    FeatureExistsError,
    FeatureNotFoundError,
    MeterInUseError,
    archive_feature,
    create_feature,
    delete_meter,
    features_by_id,
    get_feature,
    latest_features,
    list_features,
    set_unit_cost,
    update_meter,
)
from catalog.unit_cost import LlmUnitCost, ManualUnitCost
from metering.errors import InvalidError
from metering.filter_string import FilterString, parse_filters
from metering.meters import MeterNotFoundError, get_meter
from tests.builders import START, a_feature, a_meter, a_metered_feature, at_once

TOLD = LlmUnitCost(type="llm", provider="openai", model_property="model", token_type_property="type")  # noqa: S106  no password
DIMENSIONS = {"provider": "$.provider", "model": "$.model", "type": "$.type"}


def change_dimensions(session: Session, group_by: Mapping[str, str], now: datetime) -> None:
    update_meter(session, "tokens", name=None, description=None, metadata=None, group_by=group_by, now=now)


def test_a_feature_is_a_meter_narrowed_by_filters(session: Session, now: datetime) -> None:
    meter = a_meter(session)
    created = create_feature(
        session,
        key="ai-token",
        name="AI tokens",
        meter_slug="tokens",
        meter_group_by_filters={"provider": "openai", "type": "request"},
        metadata={"team": "ai"},
        now=now,
    )
    session.expire_all()
    feature = get_feature(session, "ai-token")
    assert feature is created
    assert (feature.name, feature.metadata_) == ("AI tokens", {"team": "ai"})
    assert feature.meter is meter
    assert feature.conditions == {"provider": FilterString(eq="openai"), "type": FilterString(eq="request")}
    assert (feature.created_at, feature.archived_at) == (now, None)


def test_a_feature_without_a_meter_has_no_filters(session: Session) -> None:
    feature = a_feature(session, "sso")
    assert (feature.meter_id, feature.conditions) == (None, {})


def test_a_meter_may_be_named_by_its_id(session: Session) -> None:
    meter = a_meter(session)
    assert a_feature(session, meter=meter.id).meter_id == meter.id


def test_filters_must_be_dimensions_of_the_meter(session: Session) -> None:
    a_meter(session)
    filters = {"provider": "openai", "region": "eu", "subject": "me"}
    with pytest.raises(InvalidError) as caught:
        a_feature(session, meter="tokens", filters=filters)
    found = [(issue.code, issue.field) for issue in caught.value.issues]
    assert found == [
        ("unknown_group_by", "$.meterGroupByFilters.region"),
        ("unknown_group_by", "$.meterGroupByFilters.subject"),
    ]
    assert caught.value.issues[0].hint == "The meter's dimensions: model, provider, type."


def test_filters_without_a_meter_are_refused(session: Session) -> None:
    with pytest.raises(InvalidError) as caught:
        a_feature(session, filters={"provider": "openai"})
    assert [issue.field for issue in caught.value.issues] == ["$.meterGroupByFilters.provider"]


def test_a_feature_of_a_meter_that_does_not_exist_is_refused_with_its_path(session: Session) -> None:
    with pytest.raises(InvalidError) as caught:
        a_feature(session, meter="unknown")
    (issue,) = caught.value.issues
    assert (issue.code, issue.field) == ("meter_not_found", "$.meterSlug")


@pytest.mark.parametrize("key", ["", "AI", "ai token", "a" * 65, "01hzy3v5kqwz8m4t6r9bnc2xde"])
def test_a_key_is_lower_case_and_never_looks_like_an_id(session: Session, key: str) -> None:
    with pytest.raises(InvalidError) as caught:
        a_feature(session, key)
    (issue,) = caught.value.issues
    assert (issue.code, issue.field) == ("invalid_key", "$.key")


def test_a_key_has_one_living_feature(session: Session) -> None:
    a_feature(session, "sso")
    with pytest.raises(FeatureExistsError) as caught:
        a_feature(session, "sso")
    (issue,) = caught.value.issues
    assert (issue.code, issue.field) == ("feature_exists", "$.key")


def test_archiving_frees_the_key_and_the_archived_one_is_found_by_its_id(
    session: Session, now: datetime
) -> None:
    old = a_feature(session, "sso")
    archive_feature(session, old, now=now)
    new = a_feature(session, "sso", now=now)
    session.expire_all()
    assert get_feature(session, "sso") is new
    assert get_feature(session, old.id) is old
    assert (old.archived_at, new.archived_at) == (now, None)


def test_archiving_twice_keeps_the_first_instant(session: Session, now: datetime) -> None:
    feature = a_feature(session, "sso")
    archive_feature(session, feature, now=now)
    archive_feature(session, feature, now=now + timedelta(days=1))
    session.expire_all()
    assert get_feature(session, feature.id).archived_at == now


@pytest.mark.parametrize("name", ["unknown", "sso"])
def test_what_does_not_exist_or_is_archived_is_not_found_by_key(
    session: Session, now: datetime, name: str
) -> None:
    archive_feature(session, a_feature(session, "sso"), now=now)
    with pytest.raises(FeatureNotFoundError):
        get_feature(session, name)


def keys(features: Mapping[str, Feature]) -> dict[str, str]:
    return {key: feature.id for key, feature in features.items()}


def test_of_several_features_of_a_key_the_living_one_counts_else_the_newest(
    session: Session, now: datetime
) -> None:
    days = [now + timedelta(days=n) for n in range(4)]
    old = a_feature(session, "a", now=days[0])
    archive_feature(session, old, now=days[1])
    living = a_feature(session, "a", now=days[1])
    older = a_feature(session, "b", now=days[2])
    archive_feature(session, older, now=days[2])
    newer = a_feature(session, "b", now=days[3])
    archive_feature(session, newer, now=days[3])
    a_feature(session, "c")
    assert keys(latest_features(session, ["a", "b", "unknown"])) == {"a": living.id, "b": newer.id}
    assert keys(features_by_id(session, [old.id, newer.id])) == {old.id: old.id, newer.id: newer.id}


def test_a_living_feature_counts_before_archived_ones_of_the_same_instant(session: Session) -> None:
    for _ in range(9):
        archive_feature(session, a_feature(session, "a"), now=START)
    living = a_feature(session, "a")
    assert keys(latest_features(session, ["a"])) == {"a": living.id}


def test_features_are_listed_by_key_and_found_by_their_meters(session: Session, now: datetime) -> None:
    for key in ("b", "a"):
        a_metered_feature(session, key)
    archived = a_feature(session, "a-old", meter="a")
    archive_feature(session, archived, now=now)
    a_feature(session, "c")

    assert listed(list_features(session)) == ["a", "b", "c"]
    assert listed(list_features(session, include_archived=True)) == ["a", "a-old", "b", "c"]
    assert listed(list_features(session, meter_slugs=["a"])) == ["a"]
    both = list_features(session, meter_slugs=["a", "b"], include_archived=True)
    assert listed(both) == ["a", "a-old", "b"]
    assert listed(list_features(session, meter_slugs=["unknown"])) == []


def listed(found: tuple[Sequence[Feature], int]) -> list[str]:
    page, count = found
    assert len(page) == count
    return [feature.key for feature in page]


def test_a_meter_in_use_can_not_be_deleted(session: Session, now: datetime) -> None:
    a_metered_feature(session)
    with pytest.raises(MeterInUseError, match="'tokens' is used by the feature 'tokens'"):
        delete_meter(session, "tokens", now=now)
    assert get_meter(session, "tokens").deleted_at is None


def test_a_meter_whose_features_are_archived_is_deleted_and_stays_theirs(
    session: Session, now: datetime
) -> None:
    feature = a_metered_feature(session)
    archive_feature(session, feature, now=now)
    delete_meter(session, "tokens", now=now)
    with pytest.raises(MeterNotFoundError):
        get_meter(session, "tokens")
    session.expire_all()
    meter = features_by_id(session, [feature.id])[feature.id].meter
    assert meter is not None
    assert (meter.slug, meter.deleted_at) == ("tokens", now)


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize("changed", [{"model": "$.model"}, DIMENSIONS | {"provider": "$.vendor"}])
def test_a_dimension_that_a_feature_filters_by_can_not_be_dropped_or_changed(
    session: Session, now: datetime, changed: dict[str, str], *, archived: bool
) -> None:
    a_meter(session)
    feature = a_feature(session, meter="tokens", filters={"provider": "openai"})
    if archived:
        archive_feature(session, feature, now=now)
    with pytest.raises(MeterInUseError) as caught:
        change_dimensions(session, changed, now)
    (issue,) = caught.value.issues
    assert (issue.code, issue.field) == ("meter_in_use", "$.groupBy")
    session.expire_all()
    assert get_meter(session, "tokens").group_by == DIMENSIONS


def test_other_dimensions_may_come_and_go(session: Session, now: datetime) -> None:
    a_meter(session)
    a_feature(session, meter="tokens", filters={"provider": "openai"})
    changed = {"provider": "$.provider", "region": "$.region"}
    change_dimensions(session, changed, now)
    session.expire_all()
    assert get_meter(session, "tokens").group_by == changed


def test_of_two_who_create_one_key_at_once_one_wins(engine: Engine) -> None:
    second = at_once(
        engine, lambda session: a_feature(session, "sso"), lambda session: a_feature(session, "sso")
    )
    assert isinstance(second.exception(), FeatureExistsError)


def test_a_meter_is_not_deleted_while_a_feature_of_it_is_being_created(engine: Engine) -> None:
    with Session(engine) as session:
        a_meter(session)
        session.commit()
    second = at_once(
        engine,
        lambda session: a_feature(session, meter="tokens"),
        lambda session: delete_meter(session, "tokens", now=START),
    )
    assert isinstance(second.exception(), MeterInUseError)


def test_no_feature_is_created_of_a_meter_that_is_being_deleted(engine: Engine) -> None:
    with Session(engine) as session:
        a_meter(session)
        session.commit()
    second = at_once(
        engine,
        lambda session: delete_meter(session, "tokens", now=START),
        lambda session: a_feature(session, meter="tokens"),
    )
    error = second.exception()
    assert isinstance(error, InvalidError)
    assert error.issues[0].code == "meter_not_found"


# -- Conditions, costs, lists --------------------------------------------------------------------------------

EVERY_OPERATOR = {
    "provider": {"$in": ["openai", "azure"], "$ne": "x", "$nin": []},
    "model": {"$or": [{"$like": "gpt-%"}, {"$and": [{"$gte": "o"}, {"$lt": "p"}]}], "$nilike": "%MINI"},
    "type": {},
}


def narrowed(session: Session, sent: object, **changes: Any) -> Feature:
    conditions = parse_filters(sent, "$.advancedMeterGroupByFilters")
    usual = {"key": "narrow", "name": "Narrow", "meter_slug": "tokens", "now": START}
    return create_feature(session, **{"advanced_meter_group_by_filters": conditions, **usual, **changes})


def test_conditions_of_every_operator_are_kept_as_they_were_written(session: Session) -> None:
    a_meter(session)
    made = narrowed(session, EVERY_OPERATOR)
    kept = text("SELECT advanced_meter_group_by_filters FROM features WHERE id = :id")
    assert session.execute(kept, {"id": made.id}).scalar_one() == EVERY_OPERATOR
    session.expire_all()
    assert get_feature(session, "narrow").conditions == parse_filters(EVERY_OPERATOR, "$")


def test_equal_filters_are_conditions_too(session: Session) -> None:
    a_meter(session)
    plain = a_feature(session, meter="tokens", filters={"type": "request"})
    assert plain.conditions == {"type": FilterString(eq="request")}


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"meter_group_by_filters": {"model": "o3"}}, "exclusive_filters", "$.advancedMeterGroupByFilters"),
        ({"sent": {"region": {"$eq": "eu"}}}, "unknown_group_by", "$.advancedMeterGroupByFilters.region"),
        ({"meter_slug": None}, "unknown_group_by", "$.advancedMeterGroupByFilters.model"),
        ({"unit_cost": ManualUnitCost(type="manual", amount=Decimal(-1))}, "cost_negative",
         "$.unitCost.amount"),
    ],
)  # fmt: skip
def test_a_broken_rule_is_refused_with_its_place(
    session: Session, changes: dict[str, Any], code: str, field: str
) -> None:
    a_meter(session)
    with pytest.raises(InvalidError) as caught:
        narrowed(session, changes.get("sent", {"model": {"$like": "gpt%"}}), **{
            name: value for name, value in changes.items() if name != "sent"
        })  # fmt: skip
    (issue,) = caught.value.issues
    assert (issue.code, issue.field) == (code, field)
    assert issue.hint
    assert list_features(session) == ([], 0)


def test_no_filters_of_one_kind_and_some_of_the_other_do_not_exclude_each_other(session: Session) -> None:
    a_meter(session)
    made = narrowed(session, {"model": {"$like": "gpt%"}}, meter_group_by_filters={})
    assert made.conditions == {"model": FilterString(like="gpt%")}


def test_a_dimension_that_tells_what_a_unit_costs_can_not_be_dropped(session: Session, now: datetime) -> None:
    a_meter(session)
    narrowed(session, {}, unit_cost=TOLD)
    with pytest.raises(MeterInUseError):
        change_dimensions(session, {"provider": "$.provider", "model": "$.model"}, now)


def test_a_unit_cost_may_change_and_go(session: Session, now: datetime) -> None:
    a_meter(session)
    made = narrowed(session, {}, unit_cost=TOLD)
    session.expire_all()
    assert get_feature(session, made.id).unit_cost == TOLD
    manual = ManualUnitCost(type="manual", amount=Decimal("0.00000000000000000000000000001"))
    set_unit_cost(session, get_feature(session, made.id), manual, now=now)
    session.expire_all()
    found = get_feature(session, made.id)
    assert (found.unit_cost, found.updated_at) == (manual, now)
    with pytest.raises(InvalidError):
        set_unit_cost(session, found, replace(TOLD, model_property="region"), now=now)
    set_unit_cost(session, found, None, now=now)
    session.expire_all()
    assert get_feature(session, made.id).unit_cost is None


def test_a_dimension_is_not_dropped_while_a_unit_cost_is_being_set_by_it(engine: Engine) -> None:
    with Session(engine) as session:
        a_meter(session)
        a_feature(session, "narrow", meter="tokens")
        session.commit()
    second = at_once(
        engine,
        lambda session: set_unit_cost(session, get_feature(session, "narrow"), TOLD, now=START),
        lambda session: change_dimensions(session, {"provider": "$.provider"}, START),
    )
    assert isinstance(second.exception(), MeterInUseError)


def test_features_are_listed_in_an_order_and_in_parts(session: Session) -> None:
    for number, (key, name) in enumerate([("b", "1"), ("c", "3"), ("a", "2")]):
        create_feature(session, key=key, name=name, now=START + timedelta(days=number))

    def order(**how: Any) -> str:
        found, count = list_features(session, **how)
        assert count == 3
        return "".join(feature.key for feature in found)

    assert [order(), order(descending=True)] == ["abc", "cba"]
    assert [order(order_by=name) for name in ("id", "created_at", "updated_at")] == ["bca"] * 3
    assert [order(order_by="name"), order(order_by="name", descending=True)] == ["bac", "cab"]
    assert [order(offset=1), order(limit=2), order(offset=1, limit=1)] == ["bc", "ab", "b"]
