import uuid
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from ulid import ULID

from metering.ids import derived_id, event_key, is_ulid, new_id

MOMENT = datetime(2026, 3, 15, 12, tzinfo=UTC)
ulids = st.binary(min_size=16, max_size=16).map(lambda raw: str(ULID.from_bytes(raw)))
uuid7s = st.binary(min_size=16, max_size=16).map(
    lambda raw: str(
        uuid.UUID(bytes=raw[:6] + bytes([0x70 | raw[6] & 15, raw[7], 0x80 | raw[8] & 63]) + raw[9:])
    )
)
plain_texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)


def test_new_ids_sort_by_the_time_they_were_made() -> None:
    ids = [new_id(MOMENT + timedelta(milliseconds=i)) for i in range(100)]
    assert ids == sorted(ids)
    assert all(map(is_ulid, ids))


def test_two_new_ids_of_one_moment_differ() -> None:
    assert new_id(MOMENT) != new_id(MOMENT)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("01JQ5ZK7F8M3N2P4R6S8T0V1W3", True),
        ("01jq5zk7f8m3n2p4r6s8t0v1w3", True),
        ("7ZZZZZZZZZZZZZZZZZZZZZZZZZ", True),
        ("8ZZZZZZZZZZZZZZZZZZZZZZZZZ", False),
        ("01JQ5ZK7F8M3N2P4R6S8T0V1W", False),
        ("01JQ5ZK7F8M3N2P4R6S8T0V1W3\n", False),
        ("01JQ5ZK7F8M3N2P4R6S8T0V1WI", False),
        ("api_requests_total", False),
        ("", False),
    ],
)
def test_a_ulid_is_26_characters_of_its_alphabet(text: str, expected: bool) -> None:
    assert is_ulid(text) is expected


@given(st.lists(plain_texts, min_size=1), st.lists(plain_texts, min_size=1))
def test_derived_ids_are_equal_exactly_when_their_identities_are(one: list[str], other: list[str]) -> None:
    assert is_ulid(derived_id(*one))
    assert (derived_id(*one) == derived_id(*other)) == (one == other)


@given(
    st.tuples(plain_texts, plain_texts | ulids | uuid7s), st.tuples(plain_texts, plain_texts | ulids | uuid7s)
)
def test_keys_are_equal_exactly_when_source_and_id_are(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (event_key(*one) == event_key(*other)) == (one == other)


@given(st.text("ab", max_size=6))
def test_where_the_source_ends_and_the_id_begins_makes_a_difference(text: str) -> None:
    pairs = [(text[:cut], text[cut:]) for cut in range(len(text) + 1)]
    assert len({event_key(*pair) for pair in pairs}) == len(pairs)


@given(ulids, ulids, plain_texts)
def test_keys_of_ulids_are_in_the_order_of_their_times(one: str, other: str, source: str) -> None:
    assume(one[:10] < other[:10])
    assert event_key(source, one) < event_key("another", other.lower())


@given(uuid7s, uuid7s, plain_texts)
def test_keys_of_uuids_of_version_7_are_in_the_order_of_their_times(
    one: str, other: str, source: str
) -> None:
    assume(one[:13] < other[:13])
    assert event_key(source, one) < event_key("another", other.upper())


@pytest.mark.parametrize("event_id", ["01JQ5ZK7F8M3N2P4R6S8T0V1W3", "0195cbf9-9de8-7a1b-8c2d-3e4f5a6b7c8d"])
def test_the_spelling_of_an_id_and_its_source_tell_events_of_one_time_apart(event_id: str) -> None:
    keys = [event_key("a", event_id), event_key("a", event_id.swapcase()), event_key("b", event_id)]
    assert len(set(keys)) == 3
    assert len({key.bytes[:6] for key in keys}) == 1


@pytest.mark.parametrize(
    "event_id",
    [
        "0195cbf9-9de8-4a1b-8c2d-3e4f5a6b7c8d",  # a random UUID
        "0195cbf9-9de8-7a1b-cc2d-3e4f5a6b7c8d",  # not a variant that has versions
        "01JQ5ZK7F8M3N2P4R6S8T0V1WU",
        "request-1",
    ],
)
def test_ids_without_a_time_have_keys_that_are_hashes(event_id: str) -> None:
    first = event_key("a", event_id)
    assert first.bytes[:6] != event_key("b", event_id).bytes[:6]


def test_the_key_of_an_event_never_changes_for_it_is_stored() -> None:
    assert event_key("gateway", "1").hex == "17a839b486beb906e784d94035bb973b"
    assert event_key("gateway", "01JQ5ZK7F8M3N2P4R6S8T0V1W3").hex == "0195cbf99de835c41509e89ad7c956d2"
