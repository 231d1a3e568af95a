"""The routes of metering, asked by Schemathesis what their own OpenAPI document allows, and what it does not.

Each answer must be documented: its status, its content type and its body. None may be a 500. The cases are
the same in every run.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.server import ADMIN_KEY, Server

Operation = schemathesis.APIOperation[Any, Any, Any, Any]
Case = schemathesis.Case[Operation]
PATHS = r"^/api/v[12]/(events|meters|subjects|corrections|ingest/quarantine)"
AUTHORIZED = {"Authorization": f"Bearer {ADMIN_KEY}"}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 6
"""Cases of each operation, valid and not, with names that exist and with others: four times as many."""


LONG = 5000
"""The HTTP parser itself refuses an address of 64 kB, in plain text: no route is ever asked."""


@pytest.fixture(scope="module")
def operations(server: Server) -> list[Operation]:
    """What is to be asked; deleting comes last, so that there is something to ask for."""
    schema = schemathesis.openapi.from_url(f"{server.url}/api/openapi.json").include(path_regex=PATHS)
    found = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
    assert len(found) == len(list(schema.get_all_operations())), "the document is well formed"
    return sorted(found, key=lambda operation: (operation.method == "delete", operation.label))


@pytest.fixture(scope="module")
def known(client: httpx.Client) -> dict[str, str]:
    """Names in paths that stand for something."""
    event = {
        "id": "1",
        "source": "s",
        "type": "kong.llm_request",
        "subject": "somebody",
        "data": {"tokens": 1},
    }
    assert client.post("/api/v1/events", json=event).status_code == 204
    assert client.post("/api/v1/subjects", json=[{"key": "somebody"}]).status_code == 200
    return {"meterIdOrSlug": "llm_tokens_total", "subjectIdOrKey": "somebody"}


def test_the_routes_of_metering_are_there(operations: list[Operation]) -> None:
    labels = {operation.label for operation in operations}
    assert labels >= {
        "POST /api/v1/events",
        "GET /api/v1/events/unbilled",
        "GET /api/v1/events/disposition",
        "GET /api/v1/meters/{meterIdOrSlug}/query",
        "POST /api/v1/subjects",
        "GET /api/v1/ingest/quarantine",
    }


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("names", ["known", "any"])
def test_every_answer_is_documented_and_none_is_a_500(
    *,
    subtests: pytest.Subtests,
    server: Server,
    operations: list[Operation],
    known: Mapping[str, str],
    mode: GenerationMode,
    names: str,
) -> None:
    statuses: Counter[int] = Counter()
    for operation in operations:
        in_path = {parameter.name for parameter in operation.path_parameters}
        if names == "known" and not in_path & known.keys():
            continue
        fixed = {name: known[name] for name in in_path & known.keys()} if names == "known" else None
        with subtests.test(operation.label):
            ask(server, operation.as_strategy(mode, path_parameters=fixed), statuses)
    kinds = {status // 100 for status in statuses}
    assert kinds >= ({4} if mode is GenerationMode.NEGATIVE else {2, 4}), "it asked what can be answered"


def ask(server: Server, cases: st.SearchStrategy[Case], statuses: Counter[int]) -> None:
    @settings(
        max_examples=EXAMPLES,
        phases=[Phase.generate],
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def each(case: Case) -> None:
        assume(len(repr(case.query)) < LONG)
        answer = case.call(base_url=server.url, headers=AUTHORIZED)
        statuses[answer.status_code] += 1
        case.validate_response(answer, checks=CHECKS)

    each()
