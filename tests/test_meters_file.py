"""Meters from a YAML file: there after the start, kept up to date, and refused in words that help."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from api.meters_file import MetersFileError, apply_meters_file
from catalog.features import create_feature
from metering.errors import InvalidError
from metering.meter import MeterDefinition
from metering.meters import Meter, delete_meter, get_meter, list_meters, update_meter
from tests.builders import at_once
from tests.server import Server, refusal

NOW = datetime(2026, 3, 15, 12, tzinfo=UTC)
LATER = NOW + timedelta(days=1)
TOKENS = """\
meters:
  - slug: tokens
    name: Tokens
    description: what models read and wrote
    eventType: prompt
    aggregation: SUM
    valueProperty: $.tokens
    eventFrom: 2026-01-01T00:00:00Z
    groupBy:
      model: $.model
      type: $.type
"""


def applied(engine: Engine, file: Path, content: str, now: datetime = NOW) -> dict[str, Meter]:
    """The meters that are there after it, besides those of a fresh database."""
    file.write_text(content)
    before = _all(engine)
    apply_meters_file(engine, file, now=now)
    return {slug: meter for slug, meter in _all(engine).items() if slug == "tokens" or slug not in before}


def _all(engine: Engine) -> dict[str, Meter]:
    with Session(engine, expire_on_commit=False) as session:
        return {meter.slug: meter for meter in list_meters(session)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "meters.yaml"


def test_the_meters_of_the_file_are_there(engine: Engine, file: Path) -> None:
    made = applied(engine, file, TOKENS + "  - {slug: calls, eventType: call, aggregation: COUNT}\n")
    assert set(made) == {"tokens", "calls"}
    assert made["tokens"].definition == MeterDefinition(
        event_type="prompt",
        aggregation="SUM",
        value_property="$.tokens",
        group_by={"model": "$.model", "type": "$.type"},
        event_from=datetime(2026, 1, 1, tzinfo=UTC),
    )
    assert (made["tokens"].name, made["tokens"].description) == ("Tokens", "what models read and wrote")
    assert made["calls"].definition == MeterDefinition(event_type="call", aggregation="COUNT")


def test_without_a_file_nothing_changes_and_a_missing_one_is_an_error(engine: Engine, file: Path) -> None:
    before = set(_all(engine))
    apply_meters_file(engine, None, now=NOW)
    with pytest.raises(InvalidError, match="create it, or unset the variable"):
        apply_meters_file(engine, file, now=NOW)
    assert set(_all(engine)) == before


def test_starting_again_changes_nothing(engine: Engine, file: Path) -> None:
    first = applied(engine, file, TOKENS)["tokens"]
    again = applied(engine, file, TOKENS, LATER)["tokens"]
    assert (again.id, again.updated_at) == (first.id, NOW)


def test_what_the_file_says_is_updated_and_what_it_leaves_out_stays(engine: Engine, file: Path) -> None:
    applied(engine, file, TOKENS)
    with Session(engine) as session, session.begin():
        meter = get_meter(session, "tokens")
        update_meter(
            session, meter, name="T", description="D", metadata={"a": "b"}, group_by={"x": "$.x"}, now=NOW
        )
    changed = "meters: [{slug: tokens, eventType: prompt, aggregation: SUM, name: ~, groupBy: {y: $.y}}]"
    meter = applied(engine, file, changed, LATER)["tokens"]
    assert (meter.name, meter.description, meter.metadata_) == (None, "D", {"a": "b"})
    assert (meter.group_by, meter.value_property) == ({"y": "$.y"}, "$.tokens")
    assert meter.event_from == datetime(2026, 1, 1, tzinfo=UTC)
    assert meter.updated_at == LATER


def test_nothing_is_deleted_and_what_was_deleted_comes_back(engine: Engine, file: Path) -> None:
    first = applied(engine, file, TOKENS)["tokens"]
    assert applied(engine, file, "meters: []")["tokens"].id == first.id
    with Session(engine) as session, session.begin():
        delete_meter(session, get_meter(session, "tokens"), now=NOW)
    assert applied(engine, file, TOKENS, LATER)["tokens"].id != first.id


def test_every_scalar_is_a_text(engine: Engine, file: Path) -> None:
    """YAML 1.1 would read a boolean, a number and a date."""
    content = "meters: [{slug: no, eventType: 2026-01-01, aggregation: COUNT, description: 1e3}]"
    meter = applied(engine, file, content)["no"]
    assert (meter.event_type, meter.description) == ("2026-01-01", "1e3")


def test_two_that_start_at_once_agree(engine: Engine, file: Path) -> None:
    file.write_text(TOKENS)

    def lock(session: Session) -> None:
        session.connection().exec_driver_sql("SELECT pg_advisory_xact_lock(1835365490)")

    at_once(engine, lock, lambda _: apply_meters_file(engine, file, now=NOW)).result()
    apply_meters_file(engine, file, now=LATER)
    assert _all(engine)["tokens"].updated_at == NOW


def problems(engine: Engine, file: Path, content: str) -> list[tuple[str, str]]:
    """Code and place of each; nothing was written."""
    before = set(_all(engine))
    with pytest.raises(MetersFileError) as caught:
        applied(engine, file, content)
    assert set(_all(engine)) == before
    assert caught.value.detail.startswith(str(file))
    return [(issue.code, issue.field) for issue in caught.value.issues]


BAD = """\
meters:
  - slug: fine
    eventType: call
    aggregation: COUNT
  - slug: fine
    eventType: call
    aggregation: COUNT
  - slug: wrong
    aggregation: TOTAL
    windowSize: DAY
  - slug: paths
    eventType: call
    aggregation: SUM
    groupBy:
      subject: $.s
      model: model
      model: $.model
extra: yes
"""


def test_all_that_is_wrong_is_said_with_its_line(engine: Engine, file: Path) -> None:
    found = problems(engine, file, BAD)
    assert sorted(found) == sorted(
        [
            ("duplicate", "$.meters[3].groupBy.model"),
            ("unknown_field", "$.extra"),
            ("duplicate", "$.meters[1].slug"),
            ("field_required", "$.meters[2].eventType"),
            ("literal_error", "$.meters[2].aggregation"),
            ("unknown_field", "$.meters[2].windowSize"),
            ("invalid_meter", "$.meters[3].valueProperty"),
            ("invalid_meter", "$.meters[3].groupBy.subject"),
        ]
    )
    with pytest.raises(MetersFileError) as caught:
        applied(engine, file, BAD)
    first, *lines = caught.value.detail.splitlines()
    assert first == f"{file} has 8 problems:"
    starts = [line.strip().split(":")[0] for line in lines]
    assert starts == [
        "line 5, $.meters[1].slug",
        "line 8, $.meters[2].eventType",
        "line 9, $.meters[2].aggregation",
        "line 10, $.meters[2].windowSize",
        "line 11, $.meters[3].valueProperty",
        "line 15, $.meters[3].groupBy.subject",
        "line 17, $.meters[3].groupBy.model",
        "line 18, $.extra",
    ]


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("", "$"),
        ("- slug: a", "$"),
        ("meters: {a: b}", "$"),
        ("meters: [a]", "$.meters[0]"),
        ("meters: [{slug: A, eventType: a, aggregation: COUNT}]", "$.meters[0].slug"),
        (
            "meters: [{slug: 01arz3ndektsv4rrffq69g5fav, eventType: a, aggregation: COUNT}]",
            "$.meters[0].slug",
        ),
        (
            "meters: [{slug: a, eventType: a, aggregation: COUNT, eventFrom: 2026-01-01}]",
            "$.meters[0].eventFrom",
        ),
    ],
)
def test_one_problem_is_one_line(engine: Engine, file: Path, content: str, place: str) -> None:
    assert [found for _, found in problems(engine, file, content)] == [place]


@pytest.mark.parametrize("content", [b"meters: [", b"meters: \xff", b"a: &a [*a]", b"a: \0"])
def test_what_is_no_yaml_is_refused(engine: Engine, file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(InvalidError, match=r"is not YAML in UTF-8: .+") as caught:
        apply_meters_file(engine, file, now=NOW)
    assert "\n" not in caught.value.detail


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (("SUM", "MAX"), "$.meters[0].aggregation"),
        (("prompt", "chat"), "$.meters[0].eventType"),
        (("$.tokens", "$.words"), "$.meters[0].valueProperty"),
        (("2026-01-01", "2026-02-01"), "$.meters[0].eventFrom"),
    ],
)
def test_what_a_meter_counts_can_not_change(
    engine: Engine, file: Path, change: tuple[str, str], place: str
) -> None:
    applied(engine, file, TOKENS)
    file.write_text(TOKENS.replace(*change))
    with pytest.raises(MetersFileError, match="take another slug, or delete that meter first") as caught:
        apply_meters_file(engine, file, now=NOW)
    assert [(issue.code, issue.field) for issue in caught.value.issues] == [("meter_differs", place)]


def test_a_dimension_that_a_feature_needs_can_not_go(engine: Engine, file: Path) -> None:
    applied(engine, file, TOKENS)
    with Session(engine) as session, session.begin():
        filters = {"model": "gpt-4o"}
        create_feature(
            session, key="gpt", name="GPT", meter_slug="tokens", meter_group_by_filters=filters, now=NOW
        )
    dropped = TOKENS.replace("      model: $.model\n", "")
    assert problems(engine, file, dropped) == [("meter_in_use", "$.meters[0].groupBy")]


def test_a_server_starts_with_its_meters(database_url: str, file: Path) -> None:
    file.write_text(TOKENS)
    environment = {"TOLLGATE_DATABASE_URL": database_url, "TOLLGATE_METERS_FILE": str(file)}
    with Server(environment=environment) as server, server.client() as client:
        answer = client.get("/api/v1/meters/tokens").json()
        assert (answer["name"], answer["groupBy"]) == ("Tokens", {"model": "$.model", "type": "$.type"})
        event = {"id": "1", "source": "s", "type": "prompt", "subject": "a", "data": {"tokens": 5}}
        assert client.post("/api/v1/events", json=event).status_code == 204
        assert client.get("/api/v1/meters/tokens/query").json()["data"][0]["value"] == 5


def test_a_server_does_not_start_with_a_file_that_it_can_not_use(database_url: str, file: Path) -> None:
    environment = {"TOLLGATE_DATABASE_URL": database_url, "TOLLGATE_METERS_FILE": str(file)}
    said = refusal("serve", "--port", "0", environment=environment)
    assert said == (
        f"can't read TOLLGATE_METERS_FILE {file}: No such file or directory; create it, or unset the variable"
    )
    file.write_text(TOKENS.replace("SUM", "TOTAL"))
    said = refusal("serve", "--port", "0", environment=environment)
    assert said.startswith(f"{file}, line 6, $.meters[0].aggregation: 'TOTAL' is not available: use 'SUM'")
