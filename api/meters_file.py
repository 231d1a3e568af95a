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
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog
from pydantic import ValidationError
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from api.http.meters import MeterCreate, create_from
from api.http.problems import issues_of
from api.yaml_file import read_yaml
from billing.invoices.meter_changes import update_meter
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
    hint = "create it, or unset the variable"
    file = read_yaml(path, name="TOLLGATE_METERS_FILE", hint=hint)
    with Session(engine, expire_on_commit=False) as session, session.begin():
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        issues = [*file.issues, *_applied(session, file.document, now)]
        if issues:
            raise MetersFileError(file.message(issues), *issues)
    structlog.get_logger().info("meters_file", path=str(path), meters=len(file.document["meters"]))


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
        update_meter(
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
