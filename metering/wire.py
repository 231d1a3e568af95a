"""How values are spelled on the wire: camelCase there, snake_case here, and nothing unknown passed over.

A frozen value that travels declares `__pydantic_config__ = WIRE`; it stays a plain dataclass all the same.
"""

from decimal import Decimal
from typing import Annotated, Any

from metering.exact import plain

__all__ = ["WIRE", "Numeric", "camel"]


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
