"""Filters of text: OpenMeter's operators, the same in Python and in PostgreSQL."""

from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.orm import Session

from metering.errors import InvalidError
from metering.filter_string import FilterString, condition_sql, matches, parse_filter, parse_filters

# Few letters, so that texts meet; what folds in some locales and not in others; what patterns are made of.
LETTERS = "aAbBzZ%_\\ \n.éÉß\u017f\u212a\u0130\u0131ςΣ\U0001d400\uffff\u0300"
texts = st.text(st.sampled_from(LETTERS) | st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
patterns = texts.map(lambda pattern: pattern + "\\" * ((len(pattern) - len(pattern.rstrip("\\"))) % 2))
lists = st.lists(texts, max_size=3).map(tuple)
simple = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("eq", "ne", "gt", "gte", "lt", "lte"), texts),
        **dict.fromkeys(("like", "nlike", "ilike", "nilike"), patterns),
        **dict.fromkeys(("in_", "nin"), lists),
    },
)


def condition_of(operators: dict[str, Any]) -> FilterString:
    return FilterString(**operators)


# One operator as a rule: several at once rarely let anything pass.
one_of_them = simple.filter(bool).flatmap(lambda all_: st.sampled_from(sorted(all_.items())))
conditions = st.recursive(
    one_of_them.map(lambda pair: condition_of(dict([pair]))) | simple.map(condition_of),
    lambda inner: st.builds(
        FilterString,
        **{name: st.none() | st.lists(inner, max_size=3).map(tuple) for name in ("and_", "or_")},
    ),
    max_leaves=5,
)


def asked(session: Session, condition: FilterString, found: list[str]) -> list[bool]:
    """PostgreSQL's answer for each text."""
    parameters: dict[str, Any] = {"found": found}

    def bind(value: Any, kind: str) -> str:
        name = f"p{len(parameters)}"
        parameters[name] = value
        return f"CAST(:{name} AS {kind})"

    sql = f"""SELECT {condition_sql(condition, "found", bind)}
        FROM unnest(CAST(:found AS text[])) WITH ORDINALITY AS them(found, i) ORDER BY i"""
    return list(session.scalars(text(sql), parameters))


@given(conditions, st.lists(texts, min_size=1, max_size=6))
@example(FilterString(ilike="%k%"), ["K", "k", "\u212a"])
@example(FilterString(ilike="\\%É_"), ["%Éx", "%éx", "xÉx"])
@example(FilterString(gt="\uffff"), ["\U0001d400", "z"])
@example(FilterString(gt="B"), ["a", "A", "é"])
@example(FilterString(or_=()), ["a"])
@example(FilterString(and_=()), ["a"])
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sql_means_what_python_means(session: Session, condition: FilterString, found: list[str]) -> None:
    # A condition's own texts too, since those are where it turns.
    found = [*found, *_texts_of(condition)]
    assert asked(session, condition, found) == [matches(condition, one) for one in found]


def _texts_of(condition: FilterString) -> list[str]:
    values = (condition.eq, condition.ne, condition.gt, condition.lte, condition.like, condition.nilike)
    return [value for value in values if value is not None] + list(condition.in_ or ())


@pytest.mark.parametrize(
    ("sent", "yes", "no"),
    [
        ({}, ["", "x"], []),
        ({"$eq": None}, ["", "x"], []),
        ({"$eq": "a"}, ["a"], ["A", "", "aa"]),
        ({"$eq": ""}, [""], ["a"]),
        ({"$ne": "a"}, ["b", ""], ["a"]),
        ({"$in": ["a", "b"]}, ["a", "b"], ["c", ""]),
        ({"$in": []}, [], ["", "a"]),
        ({"$nin": ["a", "b"]}, ["c", ""], ["a", "b"]),
        ({"$nin": []}, ["", "a"], []),
        ({"$like": "gpt-4%"}, ["gpt-4", "gpt-4o"], ["GPT-4", "xgpt-4"]),
        ({"$like": "%mini"}, ["mini", "gpt-mini"], ["mini-1"]),
        ({"$like": "%a%b%"}, ["ab", "xaxbx", "aab"], ["ba", "a"]),
        ({"$like": "%aab"}, ["aaab", "aabaab"], ["aaba"]),
        ({"$like": "g_t"}, ["gpt", "g%t"], ["gt", "gppt"]),
        ({"$like": "100\\%"}, ["100%"], ["1000", "100\\%"]),
        ({"$like": "a\\\\"}, ["a\\"], ["a", "a\\\\"]),
        ({"$like": ""}, [""], ["a"]),
        ({"$like": "%"}, ["", "a", "a\nb"], []),
        ({"$nlike": "a%"}, ["b", ""], ["a", "ab"]),
        ({"$ilike": "GPT%"}, ["gpt-4", "Gpt"], ["xgpt"]),
        ({"$ilike": "É"}, ["É"], ["é"]),  # ASCII letters only, in every locale
        ({"$nilike": "GPT%"}, ["claude"], ["gpt-4"]),
        ({"$gt": "b"}, ["ba", "c", "é"], ["b", "a", "B"]),
        ({"$gte": "b", "$lt": "d"}, ["b", "c"], ["a", "d"]),
        ({"$lte": "b"}, ["b", "B", ""], ["ba"]),
        ({"$and": [{"$ne": "a"}, {"$ne": "b"}]}, ["c"], ["a", "b"]),
        ({"$or": [{"$eq": "a"}, {"$and": [{"$gt": "x"}, {"$lt": "z"}]}]}, ["a", "y"], ["x", "z"]),
        ({"$eq": "a", "$or": [{"$eq": "b"}, {"$eq": "a"}], "$and": None}, ["a"], ["b"]),
    ],
)
def test_each_operator(session: Session, sent: object, yes: list[str], no: list[str]) -> None:
    condition = parse_filter(sent, "$.model")
    assert [one for one in yes + no if matches(condition, one)] == yes
    assert asked(session, condition, yes + no) == [True] * len(yes) + [False] * len(no)


@pytest.mark.parametrize(
    ("sent", "place"),
    [
        (None, "$.f"),
        ("a", "$.f"),
        ([], "$.f"),
        ({"eq": "a"}, "$.f.eq"),
        ({"$regex": "a"}, "$.f.$regex"),
        ({"$eq": 1}, "$.f.$eq"),
        ({"$eq": ["a"]}, "$.f.$eq"),
        ({"$eq": "a" * 1025}, "$.f.$eq"),
        ({"$eq": "a\0"}, "$.f.$eq"),
        ({"$gt": "\ud800"}, "$.f.$gt"),
        ({"$in": "a"}, "$.f.$in"),
        ({"$in": ["a", None]}, "$.f.$in[1]"),
        ({"$nin": [True]}, "$.f.$nin[0]"),
        ({"$like": 5}, "$.f.$like"),
        ({"$like": "a\\"}, "$.f.$like"),
        ({"$nilike": "a\\\\\\"}, "$.f.$nilike"),
        ({"$and": {"$eq": "a"}}, "$.f.$and"),
        ({"$or": []}, "$.f.$or"),
        ({"$or": [{}, {"$and": ["a"]}]}, "$.f.$or[1].$and[0]"),
        ({"$and": [{"$or": [{"$eq": "a"}, {"$x": 1}]}]}, "$.f.$and[0].$or[1].$x"),
        ({"$in": ["a"] * 1001}, "$.f"),
        ({"$or": [{"$in": ["a"] * 500}, {"$in": ["a"] * 501}]}, "$.f"),
        ({"$or": [{}] * 1001}, "$.f"),
    ],
)
def test_what_is_no_filter_is_refused_with_its_place(sent: object, place: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_filter(sent, "$.f")
    assert [(issue.code, issue.field) for issue in caught.value.issues] == [("invalid_filter", place)]
    assert caught.value.issues[0].hint


def nested(depth: int) -> object:
    return {"$and": [nested(depth - 1)]} if depth else {"$eq": "a"}


def test_nesting_has_a_bound_and_a_thousand_values_fit() -> None:
    assert matches(parse_filter(nested(5), "$"), "a")
    with pytest.raises(InvalidError, match="nested at most 5 deep"):
        parse_filter(nested(6), "$")
    assert not matches(parse_filter({"$nin": ["a"] * 1000}, "$"), "a")


def test_filters_by_name_share_the_bound_on_their_values() -> None:
    half = {"$in": ["a"] * 500}
    assert set(parse_filters({"x": half, "y": half}, "$.f")) == {"x", "y"}
    for sent, place in (
        ({"x": half, "y": half, "z": {"$ne": "a"}}, "$.f"),
        ({"x": half, "y": {"$in": "a"}}, "$.f.y.$in"),
        ([half], "$.f"),
    ):
        with pytest.raises(InvalidError) as caught:
            parse_filters(sent, "$.f")
        assert [issue.field for issue in caught.value.issues] == [place]


def test_a_pattern_of_many_wildcards_does_not_take_for_ever() -> None:
    assert not matches(FilterString(like="%a" * 500 + "%b"), "a" * 10_000)
