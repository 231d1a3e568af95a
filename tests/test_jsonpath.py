from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.jsonpath import MISSING, InvalidJsonPathError, Path, parse_path, value_at

DATA: Any = {"tokens": 5, "a": {"b-c": [{"x y": "z"}, [1, 2]]}, "0": "nought", "nothing": None, "text": "ab"}


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("$.tokens", ("tokens",), 5),
        ("$['tokens']", ("tokens",), 5),
        ('$["a"].b-c[0]["x y"]', ("a", "b-c", 0, "x y"), "z"),
        ("$.a['b-c'][1][1]", ("a", "b-c", 1, 1), 2),
        ("$.a['b-c'][2]", ("a", "b-c", 2), MISSING),
        ("$['0']", ("0",), "nought"),
        ("$[0]", (0,), MISSING),
        ("$.a['b-c']['0']", ("a", "b-c", "0"), MISSING),
        ("$.nothing", ("nothing",), None),
        ("$.nothing.more", ("nothing", "more"), MISSING),
        ("$.text[0]", ("text", 0), MISSING),
        ("$.tokens[0]", ("tokens", 0), MISSING),
        ("$._a-1", ("_a-1",), MISSING),
        ("$['ü.[]$\"']", ('ü.[]$"',), MISSING),
        ('$["it\'s"]', ("it's",), MISSING),
        ("$[007]", (7,), MISSING),
    ],
)
def test_a_path_names_one_value(text: str, path: Path, value: object) -> None:
    assert parse_path(text) == path
    assert value_at(DATA, parse_path(text)) is value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tokens",
        "@.tokens",
        " $.tokens",
        "$.tokens ",
        "$",
        "$.",
        "$..tokens",
        "$.*",
        "$[*]",
        "$[-1]",
        "$[0:2]",
        "$[1000000]",
        "$[٣]",
        "$['a','b']",
        "$['']",
        "$['a'",
        "$['a\\'b']",
        "$[?(@.x)]",
        "$.a b",
        "$.1a",
        "$tokens",
        "$['\0']",
        '$["a\0"]',
        "$['\ud800']",
    ],
)
def test_a_path_that_does_not_name_one_value_is_refused(text: str) -> None:
    with pytest.raises(InvalidJsonPathError) as caught:
        parse_path(text, "$.valueProperty")
    (issue,) = caught.value.issues
    assert (issue.code, issue.field) == ("invalid_json_path", "$.valueProperty")
    assert repr(text) in issue.message
    assert "$.tokens" in issue.hint


@given(
    st.lists(
        st.integers(0, 999_999)
        | st.text(st.characters(codec="utf-8", exclude_characters="'\\\0"), min_size=1),
        min_size=1,
    )
)
def test_every_path_of_names_and_indices_can_be_written(steps: list[str | int]) -> None:
    text = "$" + "".join(f"[{step}]" if isinstance(step, int) else f"['{step}']" for step in steps)
    assert parse_path(text) == tuple(steps)
