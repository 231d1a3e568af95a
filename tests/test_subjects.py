from dataclasses import replace
from datetime import datetime, timedelta

import httpx
import pytest
from alembic import command
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from billing.contracts.customer import get_customer
from billing.contracts.customer_changes import (
    CustomerDetails,
    SubjectTakenError,
    create_customer,
    update_customer,
)
from metering.errors import InvalidError
from metering.ids import is_ulid
from metering.subjects import (
    Subject,
    SubjectNotFoundError,
    SubjectUpsert,
    delete_subject,
    get_subject,
    list_subjects,
    provision_subjects,
    upsert_subjects,
)
from tests.builders import START, at_once
from tests.server import assert_problem
from tests.test_migrations import run

LATER = START + timedelta(days=1)
NAMED = SubjectUpsert(key="a", given=frozenset({"display_name"}), display_name="A")


def keys(session: Session) -> list[str]:
    return [subject.key for subject in list_subjects(session)]


def test_an_upsert_creates_what_is_missing_and_changes_the_rest_in_the_order_given(session: Session) -> None:
    (old,) = upsert_subjects(session, [NAMED], now=START)
    new, same = upsert_subjects(
        session, [SubjectUpsert(key="b"), replace(NAMED, display_name="Ä")], now=LATER
    )
    assert (new.key, new.created_at, new.updated_at) == ("b", LATER, LATER)
    assert (same.id, same.display_name, same.created_at, same.updated_at) == (old.id, "Ä", START, LATER)
    assert keys(session) == ["a", "b"]


def test_what_is_not_given_stays_and_what_is_given_as_nothing_is_cleared(session: Session) -> None:
    everything = SubjectUpsert(
        key="a",
        given=frozenset(
            {
                "display_name",
                "metadata_",
                "stripe_customer_id",
                "current_period_start",
                "current_period_end",
            }
        ),
        display_name="A",
        metadata_='{"n": 1.10}',
        stripe_customer_id="cus_1",
        current_period_start=START,
        current_period_end=LATER,
    )
    upsert_subjects(session, [everything], now=START)
    upsert_subjects(session, [SubjectUpsert(key="a", given=frozenset({"metadata_"}))], now=START)
    session.expire_all()
    found = get_subject(session, "a")
    assert (found.display_name, found.metadata_, found.stripe_customer_id) == ("A", None, "cus_1")
    assert (found.current_period_start, found.current_period_end) == (START, LATER)


def test_metadata_stay_as_they_are_digit_for_digit(session: Session) -> None:
    sent = '{"a": [1.10, 12345678901234567890123.4567890123456789, null], "b": {"c": true}}'
    upsert = SubjectUpsert(key="a", given=frozenset({"metadata_"}), metadata_=sent)
    upsert_subjects(session, [upsert], now=START)
    session.expire_all()
    assert get_subject(session, "a").metadata_ == sent
    stored = session.execute(text("SELECT jsonb_typeof(metadata) FROM subjects")).scalar_one()
    assert stored == "object"


def test_one_key_twice_is_refused_with_its_place_and_nothing_is_stored(session: Session) -> None:
    with pytest.raises(InvalidError) as refused:
        upsert_subjects(session, [NAMED, SubjectUpsert(key="b"), NAMED], now=START)
    assert [issue.field for issue in refused.value.issues] == ["$[2].key"]
    assert keys(session) == []


def test_no_upserts_are_no_subjects(session: Session) -> None:
    assert upsert_subjects(session, [], now=START) == []
    provision_subjects(session, [], now=START)
    assert keys(session) == []


def test_an_id_comes_before_a_key_that_looks_like_it(session: Session) -> None:
    (subject,) = upsert_subjects(session, [SubjectUpsert(key="a")], now=START)
    (impostor,) = upsert_subjects(session, [SubjectUpsert(key=subject.id)], now=START)
    assert get_subject(session, subject.id).key == "a"
    assert get_subject(session, impostor.id).key == subject.id
    delete_subject(session, subject, now=LATER)
    assert get_subject(session, subject.id).id == impostor.id


def test_a_deleted_subject_is_gone_by_id_and_by_key_and_its_key_is_free(session: Session) -> None:
    (old,) = upsert_subjects(session, [NAMED], now=START)
    delete_subject(session, get_subject(session, "a", lock=True), now=LATER)
    assert old.deleted_at == LATER
    for name in (old.id, "a"):
        with pytest.raises(SubjectNotFoundError, match="no subject"):
            get_subject(session, name)
    (new,) = upsert_subjects(session, [SubjectUpsert(key="a")], now=LATER)
    assert (new.display_name, new.deleted_at) == (None, None)
    assert new.id != old.id
    assert len(session.scalars(select(Subject)).all()) == 2


def test_two_who_upsert_one_new_key_at_once_both_succeed_with_one_row(engine: Engine) -> None:
    by_second = SubjectUpsert(key="a", given=frozenset({"stripe_customer_id"}), stripe_customer_id="cus_1")
    second = at_once(
        engine,
        lambda session: upsert_subjects(session, [NAMED, SubjectUpsert(key="b")], now=START),
        lambda session: upsert_subjects(session, [SubjectUpsert(key="b"), by_second], now=LATER),
    )
    assert [subject.key for subject in second.result()] == ["b", "a"]
    with Session(engine) as session:
        found = get_subject(session, "a")
        assert (found.display_name, found.stripe_customer_id) == ("A", "cus_1")
        assert keys(session) == ["a", "b"]


def test_an_upsert_while_the_subject_is_being_deleted_makes_a_new_one(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        (old,) = upsert_subjects(session, [NAMED], now=START)
        old_id = old.id
    second = at_once(
        engine,
        lambda session: delete_subject(session, get_subject(session, "a", lock=True), now=LATER),
        lambda session: upsert_subjects(session, [SubjectUpsert(key="a")], now=LATER),
    )
    (new,) = second.result()
    assert (new.id == old_id, new.display_name, new.deleted_at) == (False, None, None)


def test_a_customer_and_an_upsert_at_once_make_one_subject(engine: Engine) -> None:
    details = CustomerDetails(name="Acme", subject_keys=("a", "b"))
    second = at_once(
        engine,
        lambda session: create_customer(session, details, now=START),
        lambda session: upsert_subjects(session, [NAMED], now=LATER),
    )
    assert [subject.display_name for subject in second.result()] == ["A"]
    with Session(engine) as session:
        assert keys(session) == ["a", "b"]


def test_a_customer_brings_the_subjects_that_are_missing(session: Session) -> None:
    (named,) = upsert_subjects(session, [NAMED], now=START)
    details = CustomerDetails(name="Acme", key="acme", subject_keys=("b", "a"))
    customer = create_customer(session, details, now=LATER)
    assert keys(session) == ["a", "b"]
    assert (named.display_name, named.updated_at) == ("A", START)
    locked = get_customer(session, customer.id, lock=True)
    update_customer(session, locked, replace(details, subject_keys=("c",)), now=LATER)
    assert keys(session) == ["a", "b", "c"]


def test_a_customer_that_is_refused_brings_no_subject(session: Session) -> None:
    create_customer(session, CustomerDetails(name="Acme", subject_keys=("a",)), now=START)
    with pytest.raises(SubjectTakenError):
        create_customer(session, CustomerDetails(name="Beta", subject_keys=("a", "b")), now=START)
    assert keys(session) == ["a"]


def test_the_migration_brings_the_subjects_of_customers_that_are_there(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        create_customer(session, CustomerDetails(name="Acme", key="acme", subject_keys=("b", "a")), now=START)
    run(engine, command.downgrade, "0003")
    run(engine, command.upgrade, "head")
    with Session(engine) as session:
        assert keys(session) == ["a", "b"]
        assert all(is_ulid(subject.id) for subject in list_subjects(session))


def upsert(client: httpx.Client, *bodies: object, status: int = 200) -> httpx.Response:
    answer = client.post("/api/v1/subjects", json=bodies)
    assert answer.status_code == status, answer.text
    return answer


def test_absent_keeps_and_null_clears(client: httpx.Client) -> None:
    full = {
        "key": "wire",
        "displayName": "Wire",
        "metadata": {"plan": None, "rate": 1.5, "deep": {"list": [1, "x", None]}},
        "currentPeriodStart": "2026-01-01T00:00:00Z",
        "currentPeriodEnd": "2026-02-01T00:00:00Z",
        "stripeCustomerId": "cus_123",
    }
    (made,) = upsert(client, full).json()
    assert {name: made[name] for name in full} == full
    assert set(made) - set(full) == {"id", "createdAt", "updatedAt"}
    (changed,) = upsert(client, {"key": "wire", "displayName": None, "stripeCustomerId": None}).json()
    assert set(changed) == {*made} - {"displayName", "stripeCustomerId"}
    assert changed["metadata"] == full["metadata"]
    assert client.get("/api/v1/subjects/wire").json() == changed
    assert client.get(f"/api/v1/subjects/{made['id']}").json() == changed
    assert changed in client.get("/api/v1/subjects").json()
    assert upsert(client, changed).json()[0]["id"] == made["id"], "what was got may be sent back"


def test_numbers_in_metadata_keep_their_digits(client: httpx.Client) -> None:
    body = '[{"key": "digits", "metadata": {"n": 12345678901234567890.12345678901234567890}}]'
    answer = client.post("/api/v1/subjects", content=body, headers={"Content-Type": "application/json"})
    assert '{"n":12345678901234567890.12345678901234567890}' in answer.text
    assert '{"n": 12345678901234567890.12345678901234567890}' in client.get("/api/v1/subjects/digits").text


@pytest.mark.parametrize(
    ("bad", "code", "field"),
    [
        ({"key": "x", "stripeCustomerId": "sub_1"}, "string_pattern_mismatch", "$[1].stripeCustomerId"),
        ({"key": ""}, "string_too_short", "$[1].key"),
        ({"key": "x" * 513}, "string_too_long", "$[1].key"),
        ({"displayName": "X"}, "field_required", "$[1].key"),
        ({"key": "x", "color": "red"}, "unknown_field", "$[1].color"),
        ({"key": "x", "metadata": []}, "dict_type", "$[1].metadata"),
        ({"key": "good-one"}, "duplicate_subject", "$[1].key"),
    ],
)
def test_one_bad_item_refuses_all_with_its_place(
    client: httpx.Client, bad: object, code: str, field: str
) -> None:
    assert_problem(upsert(client, {"key": "good-one"}, bad, status=400), 400, code, field)
    assert_problem(client.get("/api/v1/subjects/good-one"), 404)


def test_a_list_has_a_bound(client: httpx.Client) -> None:
    assert len(upsert(client, *({"key": f"many-{i}"} for i in range(1000))).json()) == 1000
    assert_problem(upsert(client, *({"key": f"more-{i}"} for i in range(1001)), status=400), 400, "too_long")
    assert upsert(client).json() == []


def test_delete_answers_204_and_leaves_the_usage(client: httpx.Client, now: datetime) -> None:
    upsert(client, {"key": "leaver"})
    event = {
        "id": "1",
        "source": "s",
        "type": "kong.api_request",
        "subject": "leaver",
        "time": now.isoformat(),
    }
    assert client.post("/api/v1/events", json=event).status_code == 204
    deleted = client.delete("/api/v1/subjects/leaver")
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert_problem(client.get("/api/v1/subjects/leaver"), 404)
    assert_problem(client.delete("/api/v1/subjects/leaver"), 404)
    usage = client.get("/api/v1/meters/api_requests_total/query", params={"subject": "leaver"})
    assert [row["value"] for row in usage.json()["data"]] == [1]


def test_a_customers_subjects_are_listed(client: httpx.Client) -> None:
    body = {"name": "Acme", "usageAttribution": {"subjectKeys": ["of-acme"]}}
    assert client.post("/api/v1/customers", json=body).status_code == 201
    assert client.get("/api/v1/subjects/of-acme").json()["key"] == "of-acme"
