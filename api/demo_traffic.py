"""A minute of gateway traffic as Kong's http-log plugin would post it: made up, but the shape is real.

Three applications call two LLM providers and an ordinary API; some stream, some are refused, some fail.
"""

import random
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

__all__ = ["CONSUMERS", "Consumer", "LlmModel", "log_entries", "make_consumers"]

Entry = dict[str, Any]

CONSUMERS = ("checkout-assistant", "crew-scheduler", "support-chat")
REQUESTS = 900
LLM_SHARE, UNAUTHORIZED_SHARE, FAILED_SHARE, STREAMED_SHARE = 0.6, 0.03, 0.02, 0.35
STATUS_WORDS = {200: "upstream", 401: "kong", 500: "upstream"}


@dataclass(frozen=True, slots=True)
class Consumer:
    id: str
    username: str


@dataclass(frozen=True, slots=True)
class LlmModel:
    provider: str
    name: str


MODELS = (
    LlmModel("openai", "gpt-4o"),
    LlmModel("openai", "gpt-4o-mini"),
    LlmModel("anthropic", "claude-sonnet-4"),
)


def make_consumers(chance: random.Random) -> tuple[Consumer, ...]:
    return tuple(Consumer(id=_uuid(chance), username=name) for name in CONSUMERS)


def log_entries(
    consumers: tuple[Consumer, ...], *, start: datetime, length: timedelta, chance: random.Random
) -> Iterator[Entry]:
    """Log entries in the order in which they began."""
    for i in range(REQUESTS):
        began = start + length * (i / REQUESTS)
        if chance.random() < UNAUTHORIZED_SHARE:
            yield _entry(None, began, 401, chance)
            continue
        consumer = chance.choice(consumers)
        failed = chance.random() < FAILED_SHARE
        entry = _entry(consumer, began, 500 if failed else 200, chance)
        if chance.random() < LLM_SHARE:
            _make_llm_call(entry, chance.choice(MODELS), failed=failed, chance=chance)
        yield entry


def _entry(consumer: Consumer | None, began: datetime, status: int, chance: random.Random) -> Entry:
    took = chance.randint(8, 120)
    entry: Entry = {
        "request": {
            "id": _uuid(chance).replace("-", ""),
            "method": chance.choice(("GET", "GET", "POST")),
            "uri": "/flights/v1/routes?limit=20",
            "url": "http://gateway.kong-air.example:8000/flights/v1/routes",
            "querystring": {"limit": "20"},
            "headers": {"host": "gateway.kong-air.example", "apikey": "never-stored"},
            "size": chance.randint(180, 900),
        },
        "response": {
            "status": status,
            "size": chance.randint(200, 9000),
            "headers": {"content-type": "application/json", "via": "1.1 kong/3.10.0"},
        },
        "upstream_status": "" if status == 401 else str(status),
        "latencies": {"request": took, "kong": 3, "proxy": took - 3},
        "route": {"id": "5c1a3f9e-8f0a-4b53-9d64-0f0b6f0c7a01", "name": "flights"},
        "service": {
            "id": "a7f1b1c2-0d7e-4a51-b0e5-0f3f5be1c002",
            "name": "flights",
            "port": 443,
            "protocol": "https",
        },
        "workspace": "f381e34e-5c25-4e65-b91b-3c0a86cfc393",
        "workspace_name": "default",
        "client_ip": f"10.20.0.{chance.randint(2, 250)}",
        "started_at": int(began.timestamp() * 1000),
        "source": STATUS_WORDS[status],
    }
    if consumer is not None:
        entry["consumer"] = {"id": consumer.id, "username": consumer.username}
        entry["authenticated_entity"] = {"id": consumer.id}
    return entry


def _make_llm_call(entry: Entry, model: LlmModel, *, failed: bool, chance: random.Random) -> None:
    """Kong logs the tokens of calls that succeeded; streamed OpenAI calls with estimated ones."""
    streamed = chance.random() < STREAMED_SHARE
    entry["request"] |= {"method": "POST", "uri": "/ai/v1/chat/completions"}
    entry["route"] = {"id": "0f1a4101-3327-4274-b1e4-484a4ab0c030", "name": "ai-chat"}
    entry["service"] = {
        "id": "fb4eecf8-dec2-40ef-b779-16de7e2384c7",
        "name": "llm",
        "port": 443,
        "protocol": "https",
    }
    if streamed:
        entry["response"]["headers"]["content-type"] = "text/event-stream"
    if failed:
        return
    prompt, completion = chance.randint(200, 3000), chance.randint(20, 900)
    entry["ai"] = {
        "proxy": {
            "meta": {
                "plugin_id": "da587462-a802-4c22-931a-e6a92c5866d1",
                "provider_name": model.provider,
                "request_model": model.name,
                "response_model": model.name,
                "llm_latency": chance.randint(300, 4000),
            },
            "usage": _usage(prompt, completion),
        }
    }


def _usage(prompt: int, completion: int) -> Mapping[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _uuid(chance: random.Random) -> str:
    return str(uuid.UUID(int=chance.getrandbits(128), version=4))
