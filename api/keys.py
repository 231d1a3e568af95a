"""API keys: who may do what. A key is shown once, when it is made; stored is only its hash.

A role is `ingest` (report usage, nothing else), `read` (see everything, change nothing) or `admin`. Keys are
128 bits of chance, so a plain hash can't be turned back and needs no salt.
"""

import secrets
from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256
from typing import Literal

from sqlalchemy import CheckConstraint, LargeBinary, Text, exists, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from metering.database import Base, Id, Instant
from metering.errors import NotFoundError
from metering.ids import new_id

__all__ = ["ApiKey", "Role", "any_key", "create_key", "hash_of", "list_keys", "revoke_key", "role_of"]

Role = Literal["ingest", "read", "admin"]


class ApiKey(Base):
    """`hint` is how the key begins, for a person to tell it from others."""

    __tablename__ = "api_keys"
    __table_args__ = (CheckConstraint("role IN ('ingest', 'read', 'admin')", name="role"),)

    id: Mapped[Id] = mapped_column(primary_key=True)
    name: Mapped[str]
    role: Mapped[Role] = mapped_column(Text)
    hint: Mapped[str]
    hash: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    created_at: Mapped[Instant]
    revoked_at: Mapped[Instant | None]


def hash_of(key: str) -> bytes:
    return sha256(key.encode()).digest()


def create_key(session: Session, *, name: str, role: Role, now: datetime) -> tuple[ApiKey, str]:
    """The stored key, and its text, which is never seen again."""
    text = f"tg_{secrets.token_urlsafe(24)}"
    key = ApiKey(id=new_id(now), name=name, role=role, hint=text[:7], hash=hash_of(text), created_at=now)
    session.add(key)
    session.flush()
    return key, text


def list_keys(session: Session) -> Sequence[ApiKey]:
    return session.scalars(select(ApiKey).order_by(ApiKey.id)).all()


def any_key(session: Session) -> bool:
    return bool(session.scalar(select(exists().where(ApiKey.revoked_at.is_(None)))))


def role_of(session: Session, key_hash: bytes) -> Role | None:
    """What the key may do; None when there is no such key or it was revoked."""
    query = select(ApiKey.role).where(ApiKey.hash == key_hash, ApiKey.revoked_at.is_(None))
    return session.scalar(query)


def revoke_key(session: Session, key_id: str, *, now: datetime) -> None:
    """The key stops working, in a running server within seconds."""
    living = update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
    if session.scalar(living.values(revoked_at=now).returning(ApiKey.id)) is None:
        raise NotFoundError(f"no key {key_id!r} that still works")
