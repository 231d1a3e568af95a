"""Who may call what: every route but health and documentation asks for a key with the right role."""

import asyncio
import base64
import hmac
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Request, Security
from fastapi.security import HTTPBearer
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionError
from sqlalchemy.orm import Session, sessionmaker

from api.http.problems import UnauthorizedError
from api.keys import Role, hash_of, role_of
from metering.errors import ForbiddenError, UnavailableError

__all__ = ["KeyRing", "admin", "authorize", "reader"]

FRESH_SECONDS = 2.0
"""How long an answer about a key is believed: a revoked key works on for so long at most."""
MAX_REMEMBERED = 10_000

_GRANTS: dict[Role, frozenset[Role]] = {
    "admin": frozenset({"admin", "read", "ingest"}),
    "read": frozenset({"read"}),
    "ingest": frozenset({"ingest"}),
}


class MissingRoleError(ForbiddenError):
    pass


@dataclass(slots=True)
class KeyRing:
    """Looks keys up in the database and remembers the answer for a moment, wrong keys too."""

    sessions: sessionmaker[Session]
    admin_key: str | None
    enabled: bool = True
    _remembered: dict[bytes, tuple[Role | None, float]] = field(default_factory=dict)
    _admin_hash: bytes | None = field(init=False)

    def __post_init__(self) -> None:
        self._admin_hash = None if self.admin_key is None else hash_of(self.admin_key)

    async def authenticate(self, authorization: str | None) -> Role:
        """Raises UnauthorizedError without a working key, UnavailableError when that can't be found out."""
        if not self.enabled:
            return "admin"
        token = token_of(authorization)
        if token is None:
            raise UnauthorizedError("send an API key: Authorization: Bearer tg_...")
        key_hash = hash_of(token)
        if self._admin_hash is not None and hmac.compare_digest(key_hash, self._admin_hash):
            return "admin"
        role, until = self._remembered.get(key_hash, (None, 0.0))
        if time.monotonic() >= until:
            role = await asyncio.to_thread(self._look_up, key_hash)
        if role is None:
            raise UnauthorizedError("this API key is not known, or it was revoked")
        return role

    def _look_up(self, key_hash: bytes) -> Role | None:
        try:
            with self.sessions() as session:
                found = role_of(session, key_hash)
        except (OperationalError, InterfaceError, NoConnectionError) as error:
            raise UnavailableError("the database is not available; try again") from error
        if len(self._remembered) >= MAX_REMEMBERED:
            self._remembered.clear()
        self._remembered[key_hash] = found, time.monotonic() + FRESH_SECONDS
        return found


def token_of(authorization: str | None) -> str | None:
    """The key in an Authorization header: a bearer token, or the password of user:password."""
    scheme, _, credentials = (authorization or "").partition(" ")
    match scheme.lower():
        case "bearer":
            return credentials.strip() or None
        case "basic":
            try:
                return base64.b64decode(credentials, validate=True).decode().partition(":")[2] or None
            except ValueError:  # neither base64 nor text
                return None
    return None


_bearer = HTTPBearer(auto_error=False, description="An API key: `tollgate keys create --role admin`")


def authorize(mine: Role, needed: Role) -> None:
    """Raises MissingRoleError when a key of the role `mine` may not do what needs another."""
    if needed not in _GRANTS[mine]:
        raise MissingRoleError(f"this needs the role {needed}, and the key's role is {mine}")


def _requires(role: Role) -> Callable[..., Awaitable[None]]:
    async def check(request: Request, _: Annotated[object, Security(_bearer)]) -> None:
        authorize(request.state.role, role)

    return check


reader = Security(_requires("read"))
admin = Security(_requires("admin"))
