"""Many events at once, made inside PostgreSQL: each portion over 35 days, in the order of their time."""

import threading
from collections.abc import Sequence
from typing import Any

from psycopg import Connection

from benchmarks.stage import connect
from benchmarks.traffic import EVENT_TYPE, MODELS, SUBJECTS

DAYS = 35
BATCH = 50_000

_INSERT = """
    WITH begun AS (INSERT INTO pending_batches (events, stored_at) VALUES (%(size)s, now()) RETURNING batch),
    made AS MATERIALIZED (
        SELECT gen_random_uuid() AS key, gen_random_uuid() AS id,
            floor(random() * %(subjects)s)::int AS subject,
            1 + floor(random() * %(models)s)::int AS model, now() - %(age)s::interval * random()
                - %(ago)s::interval AS time
        FROM generate_series(1, %(size)s))
    INSERT INTO events
        (key, id, source, type, subject, time, data, specversion, ingested_at, stored_at, batch)
    SELECT key, id::text, 'gateway', %(type)s, 'consumer-' || lpad(subject::text, 4, '0'), time,
        jsonb_build_object('tokens', 1 + floor(random() * 4000)::int,
            'provider', (%(providers)s::text[])[model], 'model', (%(names)s::text[])[model],
            'type', CASE WHEN random() < 0.5 THEN 'request' ELSE 'response' END,
            'latency_ms', 20 + floor(random() * 9000)::int, 'status', 200, 'route', 'chat-completions',
            'region', 'eu-west-1', 'cached', false, 'cost', round(random()::numeric, 6)::text),
        '1.0', now(), now(), batch
    FROM made, begun ORDER BY key"""


def seed(url: str, *, count: int, subjects: int = SUBJECTS) -> None:
    """Add so many events of so many subjects, at most 10,000; two connections share the work."""
    starts = range(0, count, BATCH)
    threads = [threading.Thread(target=_seed, args=(url, starts[i::2], count, subjects)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _seed(url: str, starts: Sequence[int], count: int, subjects: int) -> None:
    with connect(url) as connection:
        for start in starts:
            _insert(connection, start, min(start + BATCH, count), count, subjects)


def _insert(connection: Connection[Any], start: int, end: int, total: int, subjects: int) -> None:
    a_day = 86_400.0 * DAYS / total
    connection.execute(
        _INSERT,
        {
            "size": end - start,
            "subjects": subjects,
            "models": len(MODELS),
            "providers": [provider for provider, _ in MODELS],
            "names": [name for _, name in MODELS],
            "type": EVENT_TYPE,
            "age": f"{(end - start) * a_day} seconds",
            "ago": f"{(total - end) * a_day} seconds",
        },
    )
