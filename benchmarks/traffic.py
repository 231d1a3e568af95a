"""Events as a gateway in front of language models reports them, and requests full of them, encoded ahead.

1,000 subjects, 16 combinations of provider, model and token type, random ids (UUIDv4), ten members of data.
"""

import json
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from api import clock

EVENT_TYPE = "llm_request"
SUBJECTS = 1_000
MODELS = (
    ("openai", "gpt-4o"),
    ("openai", "gpt-4o-mini"),
    ("anthropic", "claude-sonnet"),
    ("anthropic", "claude-haiku"),
    ("google", "gemini-pro"),
    ("google", "gemini-flash"),
    ("mistral", "large"),
    ("meta", "llama"),
)
TYPES = ("request", "response")
METER = {
    "slug": "bench_tokens",
    "eventType": EVENT_TYPE,
    "aggregation": "SUM",
    "valueProperty": "$.tokens",
    "groupBy": {name: f"$.{name}" for name in ("provider", "model", "type")},
}

_SECOND = "@@@@-@@-@@T@@:@@:@@"  # where a request's second goes
_NUMBER = "########"  # where a request's number goes: the first eight digits of its ids


def subject(number: int) -> str:
    return f"consumer-{number:04d}"


def event(chance: random.Random) -> dict[str, Any]:
    """Complete but for the request's number in its id and the second of its time."""
    provider, model = chance.choice(MODELS)
    name = str(uuid.UUID(int=chance.getrandbits(128), version=4))
    return {
        "specversion": "1.0",
        "id": _NUMBER + name[8:],
        "source": "gateway",
        "type": EVENT_TYPE,
        "subject": subject(chance.randrange(SUBJECTS)),
        "time": f"{_SECOND}.{chance.randrange(1_000_000):06d}Z",
        "data": {
            "tokens": chance.randrange(1, 4_000),
            "provider": provider,
            "model": model,
            "type": chance.choice(TYPES),
            "latency_ms": chance.randrange(20, 9_000),
            "status": 200,
            "route": "chat-completions",
            "region": "eu-west-1",
            "cached": False,
            "cost": f"{chance.randrange(1, 99_999) / 1_000_000:.6f}",
        },
    }


@dataclass(slots=True)
class Requests:
    """HTTP/1.1 requests of `batch` events each (1: a single event, not an array); no id comes twice."""

    batch: int
    key: str
    seed: int

    templates: int = 200

    def __iter__(self) -> Iterator[bytes]:
        chance = random.Random(self.seed)
        templates = [self._template(chance) for _ in range(self.templates)]
        number, second, now = chance.getrandbits(32), _SECOND.encode(), b""
        while True:
            for i, template in enumerate(templates):
                if i % 10 == 0:
                    now = clock.now().isoformat()[:19].encode()
                number = (number + 1) % 2**32
                yield template.replace(_NUMBER.encode(), b"%08x" % number).replace(second, now)

    def _template(self, chance: random.Random) -> bytes:
        events = [event(chance) for _ in range(self.batch)]
        kind = "cloudevents-batch" if self.batch > 1 else "cloudevents"
        body = json.dumps(events if self.batch > 1 else events[0])
        return (
            "POST /api/v1/events HTTP/1.1\r\nHost: tollgate\r\n"
            f"Authorization: Bearer {self.key}\r\n"
            f"Content-Type: application/{kind}+json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        ).encode()
