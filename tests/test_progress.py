"""The progress of a query: seen by whoever knows its clientId, while it runs."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from urllib.parse import quote

import httpx
import pytest
from openmeter import Client
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from api.http.progress import announce
from tests.server import ADMIN_KEY, Server, assert_problem, until

PROGRESS = "/api/v1/info/progress"


@pytest.mark.parametrize("client_id", ["me", "ü%' x", "x" * 36])
def test_a_query_is_seen_while_it_runs_and_not_after_it(
    server: Server, client: httpx.Client, shared_engine: Engine, client_id: str
) -> None:
    """Held up by somebody who keeps the events to himself."""
    query = "/api/v1/meters/api_requests_total/query"
    with ThreadPoolExecutor(1) as pool, Client(endpoint=server.url, token=ADMIN_KEY) as sdk:
        with shared_engine.begin() as connection:
            connection.execute(text("LOCK TABLE usage_cubes, events IN ACCESS EXCLUSIVE MODE"))
            running = pool.submit(client.get, query, params={"clientId": client_id})
            until(lambda: seen(client, client_id).status_code == 200)
            found = seen(client, client_id).json()
            assert {name: found[name] for name in ("success", "failed", "total")} == {
                "success": 0,
                "failed": 0,
                "total": 1,
            }
            assert datetime.fromisoformat(found["updatedAt"]).tzinfo is not None
            assert sdk.progress.get_progress(client_id).total == 1
            assert_problem(seen(client, "other"), 404)
        assert running.result().status_code == 200
    assert_problem(seen(client, client_id), 404)


def seen(client: httpx.Client, client_id: str) -> httpx.Response:
    return client.get(f"{PROGRESS}/{quote(client_id, safe='')}")


def test_a_query_that_fails_or_is_killed_leaves_nothing_behind(
    client: httpx.Client, shared_engine: Engine
) -> None:
    with Session(shared_engine) as session:
        announce(session, "mine")
        assert seen(client, "mine").status_code == 200
        session.rollback()
        assert_problem(seen(client, "mine"), 404)


def test_two_queries_may_have_one_client_id(client: httpx.Client, shared_engine: Engine) -> None:
    with Session(shared_engine) as one, Session(shared_engine) as other:
        for session in (one, other):
            announce(session, "both")
        assert seen(client, "both").json()["total"] == 2
        one.rollback()
        assert seen(client, "both").json()["total"] == 1


def test_a_client_id_has_36_characters_at_most(client: httpx.Client) -> None:
    assert_problem(seen(client, "x" * 37), 400, "string_too_long", "$.id")
