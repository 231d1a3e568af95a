"""Meters from a YAML file, TOLLGATE_METERS_FILE, in the form of OpenMeter's configuration.

    meters:
      - slug: tokens
        eventType: prompt
        aggregation: SUM
        valueProperty: $.tokens
        groupBy:
          model: $.model

At each start the file's meters are created or brought up to date; what an entry leaves out stays as it is,
and no meter is deleted. All of the file holds or none of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog
import yaml
from pydantic import ValidationError
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from api.http.meters import MeterCreate, create_from
from api.http.problems import issues_of
from catalog import features
from metering import meters
from metering.errors import ConflictError, InvalidError, Issue, TollgateError
from metering.meters import Meter, MeterNotFoundError

__all__ = ["MetersFileError", "apply_meters_file"]

_LOCK = 0x6D657472  # "metr": several processes that start together take turns


class MetersFileError(InvalidError):
    """All that is wrong with the file, each with its line."""


class MeterDiffersError(ConflictError):
    """The meter exists and counts something else."""


def apply_meters_file(engine: Engine, path: Path | None, *, now: datetime) -> None:
    """Create or update the meters of the file, if there is one. Raises MetersFileError."""
    if path is None:
        return
    file = _read(path)
    with Session(engine, expire_on_commit=False) as session, session.begin():
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        issues = [*file.issues, *_applied(session, file.document, now)]
        if issues:
            raise MetersFileError(_message(path, file, issues), *issues)
    structlog.get_logger().info("meters_file", path=str(path), meters=len(file.document["meters"]))


@dataclass(slots=True)
class _File:
    """What the file says, as JSON would have it, with every scalar a text (so that `no` may name a model);
    and the line of each JSON path."""

    document: Any = None
    lines: dict[str, int] = field(default_factory=dict)
    issues: list[Issue] = field(default_factory=list)

    def value_of(self, node: yaml.Node, path: str) -> Any:
        self.lines[path] = node.start_mark.line + 1
        match node:
            case yaml.MappingNode():
                return self._mapping(node, path)
            case yaml.SequenceNode():
                return [self.value_of(one, f"{path}[{i}]") for i, one in enumerate(node.value)]
            case _:
                return None if node.tag == "tag:yaml.org,2002:null" else node.value

    def _mapping(self, node: yaml.MappingNode, path: str) -> dict[str, Any]:
        """YAML's own readers keep the last of several equal names, and say nothing."""
        found: dict[str, Any] = {}
        for key, value in node.value:
            name, place = str(key.value), f"{path}.{key.value}"
            if name in found:
                hint = "Drop one of them."
                self.issues.append(
                    Issue(code="duplicate", message="it is there twice", field=place, hint=hint)
                )
            found[name] = self.value_of(value, place)
        return found


def _read(path: Path) -> _File:
    file = _File()
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        file.document = file.value_of(node, "$") if node else None
    except OSError as error:
        raise MetersFileError(
            f"can't read TOLLGATE_METERS_FILE {path}: {error.strerror}; create it, or unset the variable"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        said = " ".join(str(error).split()) or "it contains itself"
        raise MetersFileError(f"{path} is not YAML in UTF-8: {said}") from None
    return file


def _applied(session: Session, document: Any, now: datetime) -> Iterator[Issue]:
    """Write every meter that can be written; what is wrong with the others."""
    if not isinstance(document, dict) or not isinstance(document.get("meters"), list):
        hint = "Each entry has slug, eventType and aggregation."
        yield Issue(code="meters_file", message="the file must hold a list named meters", hint=hint)
        return
    for name in set(document) - {"meters"}:
        message = f"{name!r} is not known here"
        yield Issue(code="unknown_field", message=message, field=f"$.{name}", hint="Leave it out.")
    slugs: set[str] = set()
    for i, entry in enumerate(document["meters"]):
        try:
            body = MeterCreate.model_validate(entry)
            _require_new(body.slug, slugs)
            with session.begin_nested():
                _upsert(session, body, now)
        except ValidationError as error:
            found = issues_of(error.errors())
        except TollgateError as error:
            found = list(error.issues)
        else:
            found = []
        yield from (replace(issue, field=f"$.meters[{i}]{issue.field[1:]}") for issue in found)


def _require_new(slug: str, slugs: set[str]) -> None:
    if slug in slugs:
        message = f"the file has the slug {slug!r} twice"
        raise ConflictError(message, Issue(code="duplicate", message=message, field="$.slug"))
    slugs.add(slug)


def _upsert(session: Session, body: MeterCreate, now: datetime) -> None:
    try:
        meter = meters.get_meter(session, body.slug, lock=True)
    except MeterNotFoundError:
        create_from(session, body, now=now)
        return
    _require_same(meter, body)
    wanted = body.model_copy(update=_left_out(meter, body))
    there = (meter.name, meter.description, meter.metadata_, meter.group_by)
    if there != (wanted.name, wanted.description, wanted.metadata, wanted.group_by or {}):
        features.update_meter(
            session,
            meter.id,
            name=wanted.name,
            description=wanted.description,
            metadata=wanted.metadata,
            group_by=wanted.group_by or {},
            now=now,
        )


def _left_out(meter: Meter, body: MeterCreate) -> dict[str, Any]:
    """What the entry does not say, as the meter has it."""
    there = {
        "name": meter.name,
        "description": meter.description,
        "metadata": meter.metadata_,
        "group_by": meter.group_by,
    }
    return {name: value for name, value in there.items() if name not in body.model_fields_set}


_FIXED = {
    "eventType": "event_type",
    "aggregation": "aggregation",
    "valueProperty": "value_property",
    "eventFrom": "event_from",
}


def _require_same(meter: Meter, body: MeterCreate) -> None:
    """A meter's past has been billed: what it counts can't change."""
    issues = [
        _differs(meter, wire, str(getattr(meter, name)), str(getattr(body, name)))
        for wire, name in _FIXED.items()
        if name in body.model_fields_set and getattr(meter, name) != getattr(body, name)
    ]
    if issues:
        raise MeterDiffersError(issues[0].message, *issues)


def _differs(meter: Meter, name: str, there: str, wanted: str) -> Issue:
    return Issue(
        code="meter_differs",
        message=f"the meter {meter.slug!r} exists with {name} {there}, not {wanted}",
        field=f"$.{name}",
        hint="What a meter counts can't change: take another slug, or delete that meter first.",
    )


def _message(path: Path, file: _File, issues: list[Issue]) -> str:
    """One line for one problem; more of them below each other, in the order of the file."""
    said = [
        f"line {_line(file, issue.field)}, {issue.field}: {issue.message}. {issue.hint}".rstrip(". ")
        for issue in sorted(issues, key=lambda issue: _line(file, issue.field))
    ]
    if len(said) == 1:
        return f"{path}, {said[0]}"
    return f"{path} has {len(said)} problems:\n  " + "\n  ".join(said)


def _line(file: _File, place: str) -> int:
    """The line of the nearest thing that is there."""
    while place not in file.lines and place != "$":
        place = place[: max(place.rfind("."), place.rfind("["))]
    return file.lines.get(place, 1)
