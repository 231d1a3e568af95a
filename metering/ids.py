"""Ids: ULIDs for things we make, derived ids for things that follow from others, 16-byte keys for events."""

import re
import uuid
from datetime import datetime
from hashlib import blake2b

from ulid import ULID

__all__ = ["derived_id", "event_key", "is_ulid", "key_bytes", "new_id"]

_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Za-hjkmnp-tv-z]{25}")
_UUID7 = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-7[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}")


def new_id(now: datetime) -> str:
    """A fresh ULID: 26 characters that sort by `now`."""
    return str(ULID.from_datetime(now))


def derived_id(*identity: str) -> str:
    """The ULID-shaped id of a thing that is computed, not stored: the same identity, the same id."""
    digest = blake2b("\0".join(identity).encode(), digest_size=16).digest()
    number = int.from_bytes(digest)
    return "".join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])


_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = [a + b for a in _CROCKFORD for b in _CROCKFORD]
"""Two digits of a ULID at a time: invoices have thousands of ids."""
_SHIFTS = range(120, -1, -10)


def is_ulid(text: str) -> bool:
    return _ULID.fullmatch(text) is not None


def event_key(source: str, event_id: str) -> uuid.UUID:
    """The primary key of an event: 128 bits made of (source, id), which decide whether two are the same."""
    return uuid.UUID(bytes=key_bytes(source, event_id))


def key_bytes(source: str, event_id: str) -> bytes:
    """The same as 16 bytes, which compare as fast as anything can.

    An id that begins with a time (ULID, UUIDv7) keeps its 48-bit time in front, so that keys arrive almost
    sorted and the index stays cheap; the other 80 bits are a hash of the pair.
    """
    identity = f"{source}\0{event_id}".encode()
    if time := _time_prefix(event_id):
        return time + blake2b(identity, digest_size=10).digest()
    return blake2b(identity, digest_size=16).digest()


def _time_prefix(event_id: str) -> bytes:
    size = len(event_id)
    if size == 36 and event_id[14] == "7" and _UUID7.fullmatch(event_id):
        return bytes.fromhex(event_id[:8] + event_id[9:13])
    if size == 26 and _ULID.fullmatch(event_id):
        return ULID.from_str(event_id.upper()).bytes[:6]
    return b""
