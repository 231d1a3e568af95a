"""Many customers at once, made by SQL of the one that is there: each with its contract and its subject."""

from typing import Any

from psycopg import Connection

__all__ = ["SUBJECT", "multiply"]

SUBJECT = "subject-000000"
"""Of the first; the others count on from it."""

_COPY = """
    INSERT INTO {table} SELECT (jsonb_populate_record(one, jsonb_build_object({changes}))).*
    FROM {table} AS one, generate_series(1, %(last)s) AS number"""


def multiply(connection: Connection[Any], count: int) -> None:
    """The only customer, who has SUBJECT for a subject and one subscription, becomes `count`."""
    for table, changes in _COPIES.items():
        connection.execute(_COPY.format(table=table, changes=changes), {"last": count - 1})


def _anew(*names: str) -> str:
    """Ids of their own, the same wherever the first one's id stands; the time in front is the first one's."""
    ids = (
        f"'{name}', left(one.{name}, 10) || upper(left(md5(one.{name} || number::text), 16))"
        for name in names
    )
    return ", ".join(ids)


_COPIES = {
    "customers": _anew("id"),
    "subject_owners": _anew("customer_id") + ", 'subject_key', 'subject-' || lpad(number::text, 6, '0')",
    "subscriptions": _anew("id", "customer_id"),
    "subscription_phases": _anew("id", "subscription_id"),
    "subscription_items": _anew("id", "phase_id"),
}
