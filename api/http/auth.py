"""Who may call what: every route but health and documentation asks for a key with the right role."""

import base64
import binascii
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Request, Security
from fastapi.security import HTTPBearer
from sqlalchemy.orm import Session, sessionmaker

from api.http.problems import UnauthorizedError
from api.keys import Role, hash_of, role_of
from metering.errors import ForbiddenError

__all__ = ["KeyRing", "admin", "reader"]

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

    def authorize(self, authorization: str | None, role: Role) -> None:
        """Raises UnauthorizedError without a working key, MissingRoleError when it may not do this."""
        if not self.remembers(authorization):
            self.look_up(authorization)
        self.authorize_from_memory(authorization, role)

    def remembers(self, authorization: str | None) -> bool:
        """Whether authorize_from_memory can answer without asking the database."""
        token = token_of(authorization)
        if not self.enabled or token is None or self._is_admin_key(token):
            return True
        _, until = self._remembered.get(hash_of(token), (None, 0.0))
        return time.monotonic() < until

    def look_up(self, authorization: str | None) -> None:
        token = token_of(authorization)
        if token is not None:
            with self.sessions() as session:
                found = role_of(session, hash_of(token))
            if len(self._remembered) >= MAX_REMEMBERED:
                self._remembered.clear()
            self._remembered[hash_of(token)] = found, time.monotonic() + FRESH_SECONDS

    def authorize_from_memory(self, authorization: str | None, role: Role) -> None:
        if not self.enabled:
            return
        token = token_of(authorization)
        if token is None:
            raise UnauthorizedError("send an API key: Authorization: Bearer tg_...")
        mine = "admin" if self._is_admin_key(token) else self._remembered.get(hash_of(token), (None,))[0]
        if mine is None:
            raise UnauthorizedError("this API key is not known, or it was revoked")
        if role not in _GRANTS[mine]:
            raise MissingRoleError(f"this needs the role {role}, and the key's role is {mine}")

    def _is_admin_key(self, token: str) -> bool:
        return self.admin_key is not None and hmac.compare_digest(hash_of(token), hash_of(self.admin_key))


def token_of(authorization: str | None) -> str | None:
    """The key in an Authorization header: a bearer token, or the password of user:password."""
    scheme, _, credentials = (authorization or "").partition(" ")
    match scheme.lower():
        case "bearer":
            return credentials.strip() or None
        case "basic":
            try:
                return base64.b64decode(credentials, validate=True).decode().partition(":")[2] or None
            except (binascii.Error, UnicodeDecodeError):
                return None
    return None


_bearer = HTTPBearer(auto_error=False, description="An API key: `tollgate keys create --role admin`")


def _requires(role: Role) -> Callable[..., None]:
    def check(request: Request, _: Annotated[object, Security(_bearer)]) -> None:
        keys: KeyRing = request.app.state.keys
        keys.authorize(request.headers.get("authorization"), role)

    return check


reader = Security(_requires("read"))
admin = Security(_requires("admin"))
