"""What is wrong with an event for the meters of its type, in OpenMeter's words, and which meters count it.

An event is accepted whatever its value; what can't be used is told here, never dropped in silence. What a
number is, metering/exact.py says; what a meter counts, metering/meter.py. A meter that counts events needs
no value and never complains; one that counts unique values takes any text, number or boolean.
"""

import json
import re
from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal

from metering.errors import Issue
from metering.exact import number_of
from metering.jsonpath import MISSING, parse_path, value_at
from metering.meter import MeterDefinition

__all__ = ["counted_by", "data_of", "problems_of"]

MAX_SHOWN = 200
"""Characters of a value that a message repeats."""

_NOT_A_NUMBER = re.compile(r"\s*[+-]?nan\s*", re.IGNORECASE | re.ASCII)
_INFINITE = re.compile(r"\s*[+-]?inf(inity)?\s*", re.IGNORECASE | re.ASCII)


def data_of(text: str | bytes | None) -> object:
    """An event's data, decoded with every number exact."""
    return None if text is None else json.loads(text, parse_float=Decimal)


def problems_of(event_type: str, data: object, meters: Iterable[MeterDefinition]) -> list[Issue]:
    """What keeps the meters of this type from using `data` (as data_of gives it); each problem once.

    `code` tells the kind of problem, `field` is a path into the CloudEvent.
    """
    asked = [meter for meter in meters if meter.event_type == event_type]
    if not asked:
        message = f"no meter found for event type: {event_type}"
        return [Issue(code="no_meter", message=message, field="$.type")]
    problems = (_problem(meter, data) for meter in asked)
    return list(dict.fromkeys(problem for problem in problems if problem is not None))


def counted_by(
    event_type: str, data: object, time: datetime, meters: Iterable[MeterDefinition]
) -> list[MeterDefinition]:
    """The meters whose usage such an event changes."""
    return [meter for meter in meters if meter.event_type == event_type and _counts(meter, data, time)]


def _counts(meter: MeterDefinition, data: object, time: datetime) -> bool:
    if meter.event_from is not None and time < meter.event_from:
        return False
    match meter.aggregation:
        case "COUNT":
            return True
        case "UNIQUE_COUNT":  # what is missing is the empty text, and only null is no value
            return _value(meter, data) is not None
        case _:
            return number_of(_value(meter, data)) is not None


def _value(meter: MeterDefinition, data: object) -> object:
    return MISSING if meter.value_property is None else value_at(data, parse_path(meter.value_property))


def _problem(meter: MeterDefinition, data: object) -> Issue | None:
    if meter.value_property is None:
        return None
    if data is None:
        return _issue("missing_value", "null and missing value property", "$.data")
    field = f"$.data{meter.value_property[1:]}"
    value = _value(meter, data)
    if value is MISSING:
        return _issue("missing_value", f'missing value property: "{meter.value_property}"', field)
    return _of_value(value, field, text_is_fine=meter.aggregation == "UNIQUE_COUNT")


def _of_value(value: object, field: str, *, text_is_fine: bool) -> Issue | None:
    match value:
        case None:
            return _issue("null_value", "value cannot be null", field)
        case dict():
            return _issue("value_type", "unsupported value property type: object", field)
        case list():
            return _issue("value_type", "unsupported value property type: array", field)
        case _ if text_is_fine or number_of(value) is not None:
            return None
        case bool():
            return _issue("value_type", "unsupported value property type: boolean", field)
        case _:
            return _of_text(str(value), field)


def _of_text(text: str, field: str) -> Issue:
    if _NOT_A_NUMBER.fullmatch(text):
        return _issue("nan_value", "value cannot be NaN", field)
    if _INFINITE.fullmatch(text):
        return _issue("infinite_value", "value cannot be infinity", field)
    shown = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
    return _issue("not_a_number", f"value cannot be parsed as float64: {shown}", field)


def _issue(code: str, message: str, field: str) -> Issue:
    return Issue(code=code, message=f"invalid event: {message}", field=field)
