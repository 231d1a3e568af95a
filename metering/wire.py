"""How values are spelled on the wire: camelCase there, snake_case here, and nothing unknown passed over.

A frozen value that travels declares `__pydantic_config__ = WIRE`; it stays a plain dataclass all the same.
"""

from decimal import Decimal
from typing import Annotated, Any

from metering.exact import plain

__all__ = ["MAX_NUMBER_DIGITS", "WIRE", "Number", "Numeric", "camel", "is_wire_number"]


def camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


WIRE: Any = {"alias_generator": camel, "validate_by_name": True, "validate_by_alias": True, "extra": "forbid"}
"""A field that is not understood is refused: to ignore a discount or a minimum would bill wrong amounts."""


class _InDigits:
    """Tells pydantic, without importing it, how to write a decimal in JSON."""

    @staticmethod
    def __get_pydantic_core_schema__(source: Any, handler: Any) -> Any:
        in_digits = {"type": "function-plain", "function": plain, "when_used": "json"}
        return {**handler(source), "serialization": in_digits}


Numeric = Annotated[Decimal, _InDigits]
"""A decimal that travels as text in digits: 0.0000001, and never 1E-7."""


MAX_NUMBER_DIGITS = 15
"""What every client reads of a JSON number, also one that makes it a double."""


def is_wire_number(number: Decimal) -> bool:
    """Whether it can travel as a JSON number and lose nothing."""
    return (
        number.is_finite() and max(abs(number.adjusted()), len(number.as_tuple().digits)) <= MAX_NUMBER_DIGITS
    )


class _AsNumber:
    """Tells pydantic, without importing it, to write a decimal as a number in JSON."""

    @staticmethod
    def __get_pydantic_core_schema__(source: Any, handler: Any) -> Any:
        as_number = {"type": "function-plain", "function": _number, "when_used": "json"}
        return {**handler(source), "serialization": as_number}

    @staticmethod
    def __get_pydantic_json_schema__(schema: Any, handler: Any) -> Any:
        """Of a decimal that is written, pydantic would say that it is text."""
        found = handler(schema)
        return {"type": "number"} if found == {"type": "string"} else found


def _number(number: Decimal) -> int | float:
    """A float, for the way only: of 15 digits it is written, and read again, exactly."""
    return int(number) if number == number.to_integral_value() else float(number)


Number = Annotated[Decimal, _AsNumber]
"""A decimal that travels as a JSON number, where OpenMeter's schema has one; rules must check it with
`is_wire_number`.
"""
