"""Invoice numbers. Those of drafts may have gaps; those of issued documents never do, in each sequence.

A final number is taken in the transaction that issues, as late as can be: who rolls back gives it back, and
whoever comes next waits until then. A document that has one keeps it: it may be voided, and is never deleted.
"""

import re
import unicodedata
from typing import Literal, get_args

from sqlalchemy import BigInteger, Sequence, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Mapped, Session, mapped_column

from metering.database import Base

__all__ = ["Scope", "draft_numbers", "final_numbers", "prefix_of"]

Scope = Literal["credit_notes", "invoices"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


class NumberSequence(Base):
    """`last` is the number given last."""

    __tablename__ = "number_sequences"

    scope: Mapped[str] = mapped_column(primary_key=True)
    last: Mapped[int] = mapped_column(BigInteger)


DRAFTS = Sequence("draft_numbers", metadata=Base.metadata)


def draft_numbers(session: Session, count: int) -> list[int]:
    """The next numbers of drafts: nobody waits for anybody."""
    drawn = text("SELECT nextval('draft_numbers') FROM generate_series(1, :count)")
    return list(session.scalars(drawn, {"count": count}))


def final_numbers(session: Session, scope: Scope, count: int) -> list[int]:
    """The next `count` numbers of a sequence, without a gap; held until the transaction ends.

    Both sequences are held, in one order: two who need numbers of both never wait for each other.
    """
    if not count:
        return []
    wanted = [{"scope": one, "last": count if one == scope else 0} for one in SCOPES]
    taken = insert(NumberSequence).values(wanted)
    taken = taken.on_conflict_do_update(
        index_elements=[NumberSequence.scope], set_={"last": NumberSequence.last + taken.excluded.last}
    )
    rows = session.execute(taken.returning(NumberSequence.scope, NumberSequence.last))
    last = {row.scope: row.last for row in rows}[scope]
    return list(range(last - count + 1, last + 1))


def prefix_of(name: str) -> str:
    """Four letters of a customer's name: of one word the first, of more two and two; UNKN if it has none."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().upper()
    words: list[str] = re.findall(r"[A-Z0-9]+", plain)
    if len(words) > 1:
        return words[0][:2] + words[1][:2]
    return words[0][:4] if words else "UNKN"
