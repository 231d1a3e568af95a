"""Who may call what: no key, wrong keys, roles, keys made and revoked while the server runs."""

import base64
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from api import clock
from api.keys import Role, create_key
from tests.server import ADMIN_KEY, Server, assert_problem, tollgate, until

PUBLIC = ("/healthz", "/readyz", "/api/openapi.json", "/api/docs")
INGEST = ("ingestEvents", "ingestKong")
EVENT = {"id": "1", "source": "s", "type": "auth", "subject": "x"}


@dataclass(frozen=True)
class Keys:
    """A key of each role."""

    ingest: str
    read: str
    admin: str


@dataclass(frozen=True)
class Operation:
    id: str
    method: str
    path: str

    def call(self, client: httpx.Client, **options: Any) -> httpx.Response:
        return client.request(self.method, re.sub(r"{\w+}", "x", self.path), **options)


@pytest.fixture(scope="module")
def keys(shared_database_url: str) -> Keys:
    engine = create_engine(shared_database_url)
    with Session(engine) as session, session.begin():
        roles: tuple[Role, ...] = ("ingest", "read", "admin")
        made = [create_key(session, name=role, role=role, now=clock.now())[1] for role in roles]
    engine.dispose()
    return Keys(*made)


def create(server: Server, role: str) -> tuple[str, str]:
    """A new key of the command line, and its id."""
    made = tollgate("keys", "create", "--role", role, environment=server.environment)
    found = re.fullmatch(rf"(tg_\S+)\n\({role} key (\w{{26}}); it is not shown again\)\n", made.stdout)
    assert found, made.stdout + made.stderr
    return found[1], found[2]


@pytest.fixture(scope="module")
def anonymous(server: Server) -> Iterator[httpx.Client]:
    with server.client(None) as client:
        yield client


@pytest.fixture(scope="module")
def operations(client: httpx.Client) -> list[Operation]:
    """Every operation there is, so that a new one is held to the rules too."""
    document = client.get("/api/openapi.json").json()
    found = [
        Operation(operation["operationId"], method.upper(), path)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    assert len(found) > 20
    return found


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("tg_wrong"),
        bearer(f"{ADMIN_KEY}x"),
        bearer(f"{ADMIN_KEY}, {ADMIN_KEY}"),
        {"Authorization": "Bearer"},
        {"Authorization": ADMIN_KEY},
        {"Authorization": f"Digest {ADMIN_KEY}"},
        {"Authorization": f"Basic {ADMIN_KEY}"},
        {"Authorization": b"Basic \xe9\xe8".decode("latin-1")},
        {"Authorization": "Basic /w=="},
        basic(ADMIN_KEY, ""),
        basic("user", "tg_wrong"),
    ],
    ids=repr,
)
def test_without_a_key_that_works_every_operation_answers_401(
    anonymous: httpx.Client, operations: list[Operation], headers: dict[str, str]
) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    for operation in operations:
        answer = operation.call(anonymous, headers=raw)
        assert_problem(answer, 401)
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", PUBLIC)
def test_health_and_documentation_need_no_key(anonymous: httpx.Client, path: str) -> None:
    assert anonymous.get(path).status_code == 200


def test_a_body_is_not_even_looked_at_without_a_key(anonymous: httpx.Client) -> None:
    for path in ("/api/v1/meters", "/api/v1/events", "/api/v1/ingest/kong/edge"):
        for body in (b"{", b"x" * 20_000_000):
            headers = {"Content-Type": "application/json"}
            assert_problem(anonymous.post(path, content=body, headers=headers), 401)


def test_an_ingest_key_may_report_usage_and_nothing_else(
    anonymous: httpx.Client, operations: list[Operation], keys: Keys
) -> None:
    for operation in operations:
        answer = operation.call(anonymous, headers=bearer(keys.ingest))
        if operation.id in INGEST:
            assert answer.status_code not in (401, 403), answer.text
        else:
            assert "role is ingest" in assert_problem(answer, 403)["detail"]
    assert anonymous.post("/api/v1/events", json=EVENT, headers=bearer(keys.ingest)).status_code == 204


QUESTIONS = {"backtestPlan", "queryFeatureCost", "queryMeterPost", "simulateInvoice"}
"""They are posted, and change nothing."""
INSTALLS = [f"/api/v1/marketplace/listings/{{type}}/install/oauth2{end}" for end in ("", "/authorize")]
"""A browser would get them, and they would change something."""


def test_a_read_key_may_see_everything_and_change_nothing(
    anonymous: httpx.Client, operations: list[Operation], keys: Keys
) -> None:
    for operation in operations:
        answer = operation.call(anonymous, headers=bearer(keys.read))
        asks = operation.method == "GET" and operation.path not in INSTALLS
        if asks or operation.id in QUESTIONS:
            assert answer.status_code not in (401, 403), answer.text
        else:
            assert "role is read" in assert_problem(answer, 403)["detail"]
    query = "/api/v1/meters/llm_tokens_total/query"
    assert anonymous.post(query, json={}, headers=bearer(keys.read)).status_code == 200


def test_an_admin_key_may_do_everything(
    anonymous: httpx.Client, operations: list[Operation], keys: Keys
) -> None:
    for key in (keys.admin, ADMIN_KEY):
        for operation in operations:
            assert operation.call(anonymous, headers=bearer(key)).status_code not in (401, 403)


def test_the_password_of_basic_authentication_is_the_key(anonymous: httpx.Client, keys: Keys) -> None:
    """Kong's http-log plugin sends what stands in its URL that way."""
    for user in ("", "kong"):
        headers = basic(user, keys.ingest)
        assert anonymous.post("/api/v1/ingest/kong/edge", json=[], headers=headers).status_code == 200
        assert_problem(anonymous.get("/api/v1/meters", headers=headers), 403)
    with httpx.Client(base_url=str(anonymous.base_url).replace("//", f"//any:{keys.read}@")) as in_the_url:
        assert in_the_url.get("/api/v1/meters").status_code == 200


def test_a_key_works_at_once_is_listed_without_its_text_and_stops_within_seconds_of_being_revoked(
    server: Server, anonymous: httpx.Client, keys: Keys
) -> None:
    key, key_id = create(server, "read")

    def status() -> int:
        return anonymous.get("/api/v1/meters", headers=bearer(key)).status_code

    assert status() == 200
    revoked = tollgate("keys", "revoke", key_id, environment=server.environment)
    assert (revoked.returncode, revoked.stdout) == (0, f"Revoked {key_id}.\n")
    until(lambda: status() == 401, seconds=5)
    listed = tollgate("keys", "list", environment=server.environment).stdout
    (line,) = [line for line in listed.splitlines() if key_id in line]
    day = r"\d{4}-\d\d-\d\d \d\d:\d\d"
    assert re.search(rf"\bread\b.*{re.escape(key[:7])}.*{day}.*{day}", line)  # created, and revoked
    for secret in (key, keys.ingest, keys.read, keys.admin, ADMIN_KEY):
        assert secret not in listed + server.output


def test_a_wrong_key_that_is_like_a_right_one_changes_nothing_for_it(
    anonymous: httpx.Client, keys: Keys
) -> None:
    """Answers about keys are remembered for a moment, wrong ones too."""
    for _ in range(2):
        assert_problem(anonymous.get("/api/v1/meters", headers=bearer(keys.read + "x")), 401)
        assert anonymous.get("/api/v1/meters", headers=bearer(keys.read)).status_code == 200


def test_revoking_what_is_no_key_says_so(server: Server) -> None:
    answer = tollgate("keys", "revoke", "01NOSUCHKEY", environment=server.environment)
    assert answer.returncode == 1
    assert answer.stderr == "tollgate: no key '01NOSUCHKEY' that still works\n"


def test_the_first_start_prints_an_admin_key_once_and_it_works(empty_database_url: str) -> None:
    environment = {"TOLLGATE_DATABASE_URL": empty_database_url, "TOLLGATE_API_KEY": ""}
    with Server(environment=environment) as first:
        (key,) = re.findall(r"shown only this once: (tg_\S+)", first.output)
        assert made_a_meter(first, key) == 201
        assert made_a_meter(first, ADMIN_KEY) == 401
    with Server(environment=environment) as second:
        assert "tg_" not in second.output
        assert made_a_meter(second, key) == 409


def made_a_meter(server: Server, key: str) -> int:
    meter = {"slug": "first", "aggregation": "COUNT", "eventType": "first"}
    with server.client(key) as client:
        return client.post("/api/v1/meters", json=meter).status_code


def test_with_an_admin_key_from_the_environment_no_other_is_made(server: Server) -> None:
    assert "tg_" not in server.output


def test_without_authentication_everybody_on_this_machine_comes_in_and_the_server_says_so(
    shared_database_url: str,
) -> None:
    environment = {"TOLLGATE_DATABASE_URL": shared_database_url, "TOLLGATE_NO_AUTH": "1"}
    with Server(("--host", own_address()), environment) as server, server.client(None) as client:
        assert client.get("/api/v1/meters").status_code == 200
        assert client.post("/api/v1/events", json=EVENT).status_code == 204
        assert client.get("/api/v1/meters", headers=bearer("tg_wrong")).status_code == 200
    assert '"event": "no_auth"' in server.output


def own_address() -> str:
    """Loopback in IPv6, or in IPv4 on a machine that has no other."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return "127.0.0.1"
    return "::1"
