"""Answers to many questions about usage by two statements: what is known, and what follows from it."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import Row, TextClause, text
from sqlalchemy.orm import Session

from metering.errors import InvalidError, Issue
from metering.expressions import Statement
from metering.meter import UsageQuery
from metering.period import hour_of
from metering.usage_question import DENSE, RAW, VALUE, Cube, Found, Known, Question
from metering.usage_sql import NO_TIME, parts_of

__all__ = ["MAX_ROWS", "TooManyRowsError", "answer_of", "answers_of", "require_few", "text_of"]

MAX_ROWS = 100_000
ATTEMPTS = 10

_VALUES: Mapping[str, str] = {
    "COUNT": "CAST(sum(events) AS numeric)",
    "UNIQUE_COUNT": "CAST(count(DISTINCT digest) AS numeric)",
    "SUM": "sum(sum)",
    "AVG": "sum(sum)",
    "MIN": "min(min)",
    "MAX": "max(max)",
    "LATEST": "(array_agg(latest ORDER BY latest_time DESC, latest_key DESC)"
    " FILTER (WHERE latest IS NOT NULL))[1]",
}


def answer_of(session: Session, question: Question) -> Sequence[Found]:
    """One row for each window and group."""
    return answers_of(session, [question])[0]


def answers_of(session: Session, questions: Sequence[Question]) -> list[Sequence[Found]]:
    """Of each question one row for each window and group.

    What is known is read first, so that the statement can be planned for it. Should it have changed when the
    statement is run, the answer would mix two states: ask again, and in the end without a cube.
    """
    for _ in range(ATTEMPTS):
        known = _counted_by_the_way(questions, _known(session, questions))
        if (found := _execute(session, questions, known)) is not None:
            return found
    return _execute(session, questions, [RAW] * len(questions)) or []


def _known(session: Session, questions: Sequence[Question]) -> list[Known]:
    """What is known now for each; and how the statement that follows shall be planned.

    For a statement that is run often, PostgreSQL keeps one plan that is right for short periods. All subjects
    over a month take half as long again by it, so that theirs is made anew. For few subjects there is one
    right plan, and to make it takes longer than to run it.
    """
    asked = [_matter(question) if question.from_cubes else None for question in questions]
    matters = list(dict.fromkeys(matter for matter in asked if matter))
    if not matters:
        return [RAW] * len(questions)
    statement = Statement()
    plans = statement.bind(_plans(questions), "text")
    kinds, columns = ("text[]", "text[]", "timestamptz[]", "timestamptz[]"), zip(*matters, strict=True)
    listed = ", ".join(
        statement.bind(list(column), kind) for column, kind in zip(columns, kinds, strict=True)
    )
    sql = f"""
        SELECT asked.number,
               (SELECT coalesce(array_agg(batch ORDER BY batch), '{{}}') FROM pending_batches) AS pending,
               id, paths, version, hours_from, closed_to, distinct_values, latest_values,
               (SELECT first FROM usage_cube_hours WHERE cube_id = c.id AND start = asked.begin) AS first,
               (SELECT last FROM usage_cube_hours WHERE cube_id = c.id AND start = asked.end) AS last,
               (SELECT d.reltuples > {DENSE} * s.reltuples FROM pg_class AS d, pg_class AS s WHERE
                d.oid = CAST('usage_days' AS regclass) AND s.oid = CAST('usage_series' AS regclass)) AS dense,
               set_config('plan_cache_mode', {plans}, true)
        FROM unnest({listed}) WITH ORDINALITY AS asked(event_type, value_property, begin, "end", number)
        JOIN usage_cubes AS c ON c.event_type = asked.event_type
             AND c.value_property IS NOT DISTINCT FROM asked.value_property
        WHERE c.built_to IS NULL ORDER BY asked.number, cardinality(paths), id"""
    cubes = defaultdict[_Matter | None, list[Row[Any]]](list)
    for row in session.execute(text_of(sql), statement.parameters):
        cubes[matters[row.number - 1]].append(row)
    return [
        next((Known(_cube(row), row.pending) for row in cubes[matter] if _able(row, question)), RAW)
        for question, matter in zip(questions, asked, strict=True)
    ]


_Matter = tuple[str, str | None, datetime, datetime]


def _matter(question: Question) -> _Matter:
    """What decides which cubes are looked up, and what is to be known of them."""
    meter, period = question.meter, question.period
    return meter.event_type, meter.value_property, hour_of(period.start), hour_of(period.end)


def _plans(questions: Sequence[Question]) -> str:
    if any(question.query.counted_subjects is None for question in questions):
        return "force_custom_plan"
    return "force_generic_plan" if all(question.of_few for question in questions) else "auto"


def _able(row: Row[Any], question: Question) -> bool:
    """Whether the cube has what is asked."""
    able = {"UNIQUE_COUNT": row.distinct_values, "LATEST": row.latest_values}
    return question.paths.issubset(row.paths) and able.get(question.meter.aggregation, True)


def _counted_by_the_way(questions: Sequence[Question], known: Sequence[Known]) -> list[Known]:
    """Events are counted in whatever cube of their type is read anyway, for the same time and subjects."""
    read = {
        (question.meter.event_type, question.likeness): its
        for question, its in zip(questions, known, strict=True)
        if its.cube and question.mergeable and not question.narrowed and question.meter.value_property
    }
    found = []
    for question, its in zip(questions, known, strict=True):
        other = read.get((question.meter.event_type, question.likeness)) if _is_count(question) else None
        able = its.cube and other and other.cube and question.paths.issubset(other.cube.paths)
        found.append(other if other and able else its)
    return found


def _is_count(question: Question) -> bool:
    return question.meter.aggregation == "COUNT" and question.mergeable


def _cube(row: Row[Any]) -> Cube:
    return Cube(
        id=row.id,
        paths=row.paths,
        version=row.version,
        hours_from=row.hours_from,
        closed_to=row.closed_to,
        first=row.first,
        last=row.last,
        dense=row.dense,
    )


def _execute(
    session: Session, questions: Sequence[Question], known: Sequence[Known]
) -> list[Sequence[Found]] | None:
    """The rows of each; None when what was known is so no more.

    What else is asked in the transaction is planned as usual again.
    """
    statement = Statement()
    width = max(len(question.keys) for question in questions)
    tables: list[str] = []
    shared: dict[int, str] = {}
    for reading in _readings(questions, known):
        if parts := list(parts_of(statement, reading.question, reading.known)):
            name = f"reading_{len(tables)}"
            tables.append(f"{name} AS ({' UNION ALL '.join(parts)})")
            shared |= dict.fromkeys(reading.members, name)
    selects = [
        select
        for n, (question, its) in enumerate(zip(questions, known, strict=True))
        if (select := _select(n, question, parts_of(statement, question, its, shared.get(n)), width))
    ]
    answers: list[list[Found]] = [[] for _ in questions]
    if not selects:
        return [*answers]
    sql = f"""
        {"WITH " + ", ".join(tables) if tables else ""}
        SELECT known.holds, answer.* FROM (
            SELECT {_still(statement, known)} AS holds, set_config('plan_cache_mode', 'auto', true)) AS known
        LEFT JOIN ({" UNION ALL ".join(selects)}) AS answer ON true"""
    rows = session.execute(text_of(sql), statement.parameters).all()
    if not rows[0].holds:
        return None
    keys = [2 + len(question.keys) for question in questions]
    for row in rows if rows[0].question is not None else ():
        answers[row[1]].append((*row[2 : keys[row[1]]], *row[VALUE:]))
    for answer in answers:
        require_few(answer)
    return [*answers]


@dataclass(frozen=True, slots=True)
class _Reading:
    """What several questions, by their numbers, are answered from: read once, told apart as a cube can.

    Its keys are the window, the subject, and a dimension for each of the cube's paths.
    """

    question: Question
    known: Known
    members: Sequence[int]


def _readings(questions: Sequence[Question], known: Sequence[Known]) -> Iterator[_Reading]:
    """Of those over the same time and the same few subjects, one of which needs all of them anyway."""
    alike = defaultdict[tuple[object, ...], list[int]](list)
    for n, (question, its) in enumerate(zip(questions, known, strict=True)):
        if its.cube and question.mergeable:
            alike[its.cube.id, question.likeness].append(n)
    for members in alike.values():
        some = [questions[n] for n in members]
        if len(some) > 1 and not all(question.narrowed for question in some):
            yield _reading(some, known[members[0]], members)


def _reading(questions: Sequence[Question], known: Known, members: Sequence[int]) -> _Reading:
    one, paths = questions[0], known.cube.paths if known.cube else []
    dimensions = {f"d{n}": path for n, path in enumerate(paths)}
    query = UsageQuery(
        start=one.query.start,
        end=one.query.end,
        subjects=one.query.counted_subjects,
        group_by=("subject", *dimensions),
    )
    columns = dict.fromkeys(name for question in questions for name in question.columns)
    meter = replace(one.meter, group_by=dimensions)
    return _Reading(Question(meter, query, one.cut, one.in_a_row, tuple(columns)), known, members)


def _select(number: int, question: Question, found: Iterable[str], width: int) -> str | None:
    """Of one question: its number, keys, as many as the one that has most, and what was found."""
    if not (parts := list(found)):
        return None
    keys = ", ".join(question.keys)
    padding = "".join(f", CAST(NULL AS text) AS k{n}" for n in range(len(question.keys), width))
    first, last = ("min(first)", "max(last)") if question.spanning else [NO_TIME] * 2
    numbers = "sum(numbers)" if question.meter.aggregation == "AVG" else "CAST(NULL AS numeric)"
    return f"""(
        SELECT {number} AS question, {keys}{padding}, {_VALUES[question.meter.aggregation]} AS value,
               {numbers} AS numbers, {first} AS first, {last} AS last
        FROM ({" UNION ALL ".join(parts)}) AS parts GROUP BY {keys} LIMIT {MAX_ROWS + 1})"""


class TooManyRowsError(InvalidError):
    pass


def require_few(rows: Sequence[object]) -> None:
    if len(rows) > MAX_ROWS:
        message = f"the answer has more than {MAX_ROWS} rows"
        hint = "Shorten the period, filter, or group by less."
        raise TooManyRowsError(message, Issue(code="too_many_rows", message=message, hint=hint))


@lru_cache(maxsize=64)
def text_of(sql: str) -> TextClause:
    """Questions of one kind are the same text, which then is searched for its parameters but once."""
    return text(sql)


def _still(statement: Statement, known: Sequence[Known]) -> str:
    """That the cubes have the versions, and that the batches wait, which were known."""
    cubes = {one.cube.id: (one.cube.version, one.pending) for one in known if one.cube}
    if not cubes:
        return "true"
    ids, versions = list(cubes), [version for version, _ in cubes.values()]
    _, pending = next(iter(cubes.values()))
    return f"""
        (SELECT count(*) FROM usage_cubes AS c JOIN
            unnest({statement.bind(ids, "bigint[]")}, {statement.bind(versions, "bigint[]")})
            AS was(id, version) ON c.id = was.id AND c.version = was.version) = {len(cubes)}
        AND (SELECT coalesce(array_agg(batch ORDER BY batch), '{{}}') FROM pending_batches)
            = {statement.bind(pending, "bigint[]")}"""
