"""How values are spelled on the wire: camelCase there, snake_case here, and nothing unknown passed over.

A frozen value that travels declares `__pydantic_config__ = WIRE`; it stays a plain dataclass all the same.
"""

from typing import Any

__all__ = ["WIRE", "camel"]


def camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


WIRE: Any = {"alias_generator": camel, "validate_by_name": True, "validate_by_alias": True, "extra": "forbid"}
"""A field that is not understood is refused: to ignore a discount or a minimum would bill wrong amounts."""
