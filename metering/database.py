"""What every stored thing is made of: the declarative base, column types, constraints by name."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import Annotated, Any

from pydantic import TypeAdapter
from sqlalchemy import (
    CHAR,
    ColumnElement,
    DateTime,
    Dialect,
    MetaData,
    Text,
    any_,
    bindparam,
    cast,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute, mapped_column
from sqlalchemy.types import TypeDecorator

from metering.errors import TollgateError

__all__ = ["Base", "Id", "Instant", "ValueType", "among", "translating"]

Id = Annotated[str, mapped_column(CHAR(26))]
Instant = Annotated[datetime, mapped_column(DateTime(timezone=True))]


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "pk": "%(table_name)s_pkey",
            "fk": "%(table_name)s_%(column_0_name)s_fkey",
            "uq": "%(table_name)s_%(column_0_N_name)s_key",
            "ix": "%(table_name)s_%(column_0_N_name)s_idx",
            "ck": "%(table_name)s_%(constraint_name)s_check",
        }
    )
    type_annotation_map = {str: Text(), dict[str, str]: JSONB()}  # noqa: RUF012  SQLAlchemy's own protocol


KEPT = 256
"""Values of each column that are not decoded again: many rows have the same rate card, or workflow."""


class ValueType(TypeDecorator[Any]):
    """A frozen value, or a union or tuple of them, kept as JSONB in its wire form.

    It is read as text, so that equal ones are the same value, decoded once.
    """

    impl = JSONB
    cache_ok = True

    def __init__(self, value: Any) -> None:
        super().__init__(none_as_null=True)
        self.value = value
        self._adapter: TypeAdapter[Any] = TypeAdapter(value)
        self._decoded = lru_cache(KEPT)(self._decode)

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:  # noqa: ARG002  the base's signature
        return None if value is None else self._adapter.dump_python(value, mode="json", by_alias=True)

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        return type_coerce(cast(column, Text), self)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:  # noqa: ARG002  the base's signature
        return None if value is None else self._decoded(value)

    def _decode(self, text: str) -> Any:
        return self._adapter.validate_python(json.loads(text))


def among(column: InstrumentedAttribute[str] | InstrumentedAttribute[str | None], name: str) -> Any:
    """Whether a column is one of a list that is given by name when the statement, always the same, is run."""
    return column == any_(bindparam(name, type_=ARRAY(column.type)))


@contextmanager
def translating(errors: Mapping[str, TollgateError]) -> Iterator[None]:
    """Raise the domain's own error when the named constraint refuses what is flushed inside the block."""
    try:
        yield
    except IntegrityError as error:
        name = str(getattr(getattr(error.orig, "diag", None), "constraint_name", None))
        raise errors.get(name, error) from error
