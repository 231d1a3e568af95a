from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from types import MappingProxyType

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from metering.errors import ConflictError, InvalidError
from metering.meter import MeterDefinition
from metering.meters import (
    Meter,
    MeterExistsError,
    MeterNotFoundError,
    create_meter,
    delete_meter,
    get_meter,
    list_meters,
    update_meter,
)
from tests.server import until

TOKENS = MeterDefinition(
    event_type="llm", aggregation="SUM", value_property="$.tokens", group_by={"model": "$.model"}
)
CALLS = MeterDefinition(event_type="llm", aggregation="COUNT")


def fresh(session: Session, meter: Meter) -> Meter:
    """As another transaction would see it."""
    session.flush()
    session.expire(meter)
    return meter


def test_a_meter_is_kept_as_it_was_defined(session: Session, now: datetime) -> None:
    definition = MeterDefinition(
        event_type="llm",
        aggregation="LATEST",
        value_property="$['a b'][0]",
        group_by={"model": "$.model"},
        event_from=now - timedelta(days=30),
    )
    meter = create_meter(
        session,
        slug="tokens",
        definition=definition,
        name="Tokens",
        description="What was said",
        metadata={"team": "ai"},
        now=now,
    )
    assert fresh(session, meter).definition == definition
    assert (meter.slug, meter.name, meter.description) == ("tokens", "Tokens", "What was said")
    assert (meter.metadata_, meter.deleted_at) == ({"team": "ai"}, None)
    assert meter.created_at == meter.updated_at == now


def test_names_and_metadata_may_be_left_out(session: Session, now: datetime) -> None:
    meter = fresh(session, create_meter(session, slug="calls", definition=CALLS, now=now))
    assert (meter.name, meter.description, meter.metadata_) == (None, None, None)


def test_any_mapping_will_do(session: Session, now: datetime) -> None:
    frozen: Mapping[str, str] = MappingProxyType({"model": "$.model"})
    definition = MeterDefinition(event_type="llm", aggregation="COUNT", group_by=frozen)
    meter = create_meter(session, slug="calls", definition=definition, metadata=frozen, now=now)
    assert fresh(session, meter).group_by == meter.metadata_ == {"model": "$.model"}


def test_a_meter_with_faults_is_refused_with_all_of_them(session: Session, now: datetime) -> None:
    faulty = MeterDefinition(event_type="llm", aggregation="SUM", group_by={"subject": "model"})
    with pytest.raises(InvalidError) as caught:
        create_meter(session, slug="tokens", definition=faulty, now=now)
    assert [issue.field for issue in caught.value.issues] == [
        "$.valueProperty",
        "$.groupBy.subject",
        "$.groupBy.subject",
    ]
    assert "tokens" not in {meter.slug for meter in list_meters(session)}


def test_the_database_itself_refuses_a_count_of_values(session: Session, now: datetime) -> None:
    meter = create_meter(session, slug="tokens", definition=TOKENS, now=now)
    meter.aggregation = "COUNT"
    with pytest.raises(IntegrityError, match="meters_value_property_check"):
        session.flush()


def test_a_meter_is_found_by_id_and_by_slug(session: Session, now: datetime) -> None:
    meter = create_meter(session, slug="tokens", definition=TOKENS, now=now)
    create_meter(session, slug="calls", definition=CALLS, now=now)
    assert get_meter(session, meter.id) is meter
    assert get_meter(session, "tokens") is meter
    assert get_meter(session, "tokens", lock=True) is meter
    for unknown in ("token", "TOKENS", "tokens ", "", meter.id + "0", meter.id[:-1], meter.id.lower()):
        with pytest.raises(MeterNotFoundError, match="no meter"):
            get_meter(session, unknown)


def test_meters_are_listed_by_slug_and_deleted_ones_only_when_asked_for(
    session: Session, now: datetime
) -> None:
    shipped = [meter.slug for meter in list_meters(session)]
    assert shipped == ["api_requests_total", "llm_tokens_total"]
    for slug in ("b", "z", "a"):
        create_meter(session, slug=slug, definition=CALLS, now=now)
    delete_meter(session, get_meter(session, "b"), now=now)
    assert [meter.slug for meter in list_meters(session)] == ["a", *shipped, "z"]
    assert [meter.slug for meter in list_meters(session, include_deleted=True)] == [
        "a",
        *shipped[:1],
        "b",
        *shipped[1:],
        "z",
    ]


def test_an_update_replaces_what_may_change(session: Session, now: datetime) -> None:
    meter = create_meter(session, slug="tokens", definition=TOKENS, name="old", metadata={"a": "b"}, now=now)
    later = now + timedelta(days=1)
    update_meter(
        session,
        meter,
        name=None,
        description="new",
        metadata={"c": "d"},
        group_by={"kind": "$.type"},
        now=later,
    )
    assert (fresh(session, meter).name, meter.description, meter.metadata_) == (None, "new", {"c": "d"})
    assert (meter.group_by, meter.created_at, meter.updated_at) == ({"kind": "$.type"}, now, later)
    assert meter.definition.value_property == "$.tokens"


def test_a_refused_update_changes_nothing(session: Session, now: datetime) -> None:
    meter = create_meter(session, slug="tokens", definition=TOKENS, name="old", now=now)
    with pytest.raises(InvalidError, match="usable JSONPath"):
        update_meter(
            session, meter, name="new", description=None, metadata=None, group_by={"kind": "type"}, now=now
        )
    assert (fresh(session, meter).name, meter.group_by) == ("old", {"model": "$.model"})


def test_a_deleted_meter_answers_no_more_and_its_slug_is_free(session: Session, now: datetime) -> None:
    old = create_meter(session, slug="tokens", definition=TOKENS, now=now)
    delete_meter(session, old, now=now)
    assert fresh(session, old).deleted_at == now
    for name in (old.id, "tokens"):
        with pytest.raises(MeterNotFoundError):
            get_meter(session, name)
    new = create_meter(session, slug="tokens", definition=CALLS, now=now)
    assert get_meter(session, "tokens") is new
    delete_meter(session, new, now=now)
    assert len(list_meters(session, include_deleted=True)) == len(list_meters(session)) + 2


def test_a_slug_is_taken_once(session: Session, now: datetime) -> None:
    create_meter(session, slug="tokens", definition=TOKENS, now=now)
    with pytest.raises(MeterExistsError) as caught:
        create_meter(session, slug="tokens", definition=CALLS, now=now)
    (issue,) = caught.value.issues
    assert isinstance(caught.value, ConflictError)
    assert (issue.code, issue.field) == ("meter_exists", "$.slug")


@pytest.fixture
def sessions(engine: Engine) -> Iterator[tuple[Session, Session]]:
    with Session(engine) as one, Session(engine) as other:
        yield one, other


def waits(watcher: Session, waiter: object) -> bool:
    waiting = text("SELECT count(*) FROM pg_locks WHERE pid = :pid AND NOT granted")
    return bool(watcher.scalar(waiting, {"pid": waiter}))


@pytest.mark.parametrize("committed", [True, False])
def test_a_slug_that_two_want_at_once_goes_to_the_one_that_commits(
    sessions: tuple[Session, Session], now: datetime, committed: bool
) -> None:
    one, other = sessions
    create_meter(one, slug="tokens", definition=TOKENS, now=now)
    pid = other.scalar(text("SELECT pg_backend_pid()"))
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(create_meter, other, slug="tokens", definition=CALLS, now=now)
        until(lambda: waits(one, pid))
        (one.commit if committed else one.rollback)()
    if committed:
        assert isinstance(answer.exception(), MeterExistsError)
    else:
        assert answer.result().aggregation == "COUNT"


def test_a_locked_meter_waits_for_nobody_else_to_change_it(
    sessions: tuple[Session, Session], now: datetime
) -> None:
    one, other = sessions
    create_meter(one, slug="tokens", definition=TOKENS, now=now)
    one.commit()
    get_meter(one, "tokens", lock=True)
    meter, pid = get_meter(other, "tokens"), other.scalar(text("SELECT pg_backend_pid()"))
    with ThreadPoolExecutor(1) as thread:
        deleted = thread.submit(delete_meter, other, meter, now=now)
        until(lambda: waits(one, pid))
        one.commit()
        deleted.result()
