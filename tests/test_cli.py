"""The command line: the demo, the doctor, migrations and keys, as a person runs them."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from api.cli import app
from tests.server import ROOT, Server, environment_of, open_place, tollgate, until

CHECKED = ("disk", "database", "migrations", "clock", "durability", "fsync", "tuning", "API keys")


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A data directory that has seen a demo."""
    with open_place() as place:
        with another_port() as environment:
            ended = tollgate("demo", "--exit", "--data-dir", str(place / "data"), environment=environment)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        (place / "demo").write_text(ended.stdout)
        yield place / "data"


@contextmanager
def another_port() -> Iterator[dict[str, str]]:
    """Asks for a port that is taken: then the system gives the demo another."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield {"TOLLGATE_PORT": str(taken.getsockname()[1])}


# -- demo ----------------------------------------------------------------------------------------------------


def test_the_demo_tells_the_story_and_checks_its_own_sums(home: Path) -> None:
    output = (home.parent / "demo").read_text()
    total = re.search(r"✓ Equals the traffic sent, added up independently: \$(\d+\.\d\d)\.", output)
    assert total
    assert re.search(rf"Total .*\${re.escape(total[1])} ", output)
    assert "Kong Air" in output
    assert len(curls(output)) == 3
    assert "Traceback" not in output


def curls(output: str) -> list[list[str]]:
    """The commands to try, as a shell reads them."""
    return [shlex.split(line) for line in output.splitlines() if line.startswith("curl ")]


def carried_out(command: list[str]) -> httpx.Response:
    """What curl does with -i, -H and -d."""
    headers, data, url = {}, None, ""
    words = iter(command[1:])
    for word in words:
        if word == "-H":
            name, _, value = next(words).partition(": ")
            headers[name] = value
        elif word == "-d":
            data = next(words)
        elif word != "-i":
            url = word
    return httpx.request("POST" if data else "GET", url, headers=headers, content=data)


def test_a_second_demo_on_the_same_directory_runs_on_until_ctrl_c_and_its_curl_lines_work(home: Path) -> None:
    command = [sys.executable, "-m", "api", "demo", "--data-dir", str(home)]
    pipe = subprocess.PIPE
    with (
        another_port() as wanted,
        subprocess.Popen(
            command,
            env=environment_of(wanted),
            cwd=ROOT,
            stdout=pipe,
            stderr=pipe,
            text=True,
            start_new_session=True,
        ) as demo,
    ):
        try:
            assert demo.stdout is not None
            output = ""
            for line in demo.stdout:
                output += line
                if "The server runs on" in line:
                    break
            assert "✓ Equals the traffic sent" in output
            usage, invoices, report = (carried_out(command) for command in curls(output))
            assert {row["groupBy"]["model"] for row in usage.json()["data"]} >= {"gpt-4o", "gpt-4o-mini"}
            billed = [(one["customer"]["key"], one["status"]) for one in invoices.json()["items"]]
            assert set(billed) >= {("kong-air", "paid"), ("kong-air-2", "paid")}
            assert report.status_code == 204
            os.killpg(demo.pid, signal.SIGINT)  # as a terminal does: to all of its processes
            _, error = demo.communicate(timeout=60)
        finally:
            if demo.poll() is None:
                os.killpg(demo.pid, signal.SIGKILL)
    assert demo.returncode == 0
    assert "Traceback" not in error


# -- doctor --------------------------------------------------------------------------------------------------


def findings(output: str) -> dict[str, str]:
    """What was checked, and its mark."""
    return {
        found[2]: found[1]
        for found in re.finditer(rf"^([✓!✗]) ({'|'.join(CHECKED)})\b", output, re.MULTILINE)
    }


def test_the_doctor_prints_every_check_of_an_embedded_database(home: Path) -> None:
    ended = tollgate("doctor", "--data-dir", str(home))
    assert tuple(findings(ended.stdout)) == CHECKED
    assert "✗" not in ended.stdout
    assert ended.stdout.endswith("All is well.\n")
    assert ended.returncode == 0


def test_the_doctor_looks_into_a_running_server_without_disturbing_it(home: Path) -> None:
    with Server(arguments=("--data-dir", str(home))) as server, server.client() as client:
        ended = tollgate("doctor", "--data-dir", str(home), environment={"TOLLGATE_API_KEY": "tg_x"})
        assert (ended.returncode, ended.stderr) == (0, "")
        assert findings(ended.stdout)["API keys"] == "✓"
        assert client.get("/readyz").status_code == 200


def test_the_doctor_of_an_external_database(empty_database_url: str) -> None:
    ended = tollgate("doctor", environment={"TOLLGATE_DATABASE_URL": empty_database_url})
    found = findings(ended.stdout)
    assert tuple(found) == CHECKED[1:]  # the disk is elsewhere
    assert found["migrations"] == "!"
    assert "tollgate migrate" in ended.stdout
    assert ended.returncode == 0


def test_the_doctor_of_a_database_that_does_not_answer_says_so_with_advice() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    url = f"postgresql://tollgate:hunter2@127.0.0.1:{port}/tollgate"
    ended = tollgate("doctor", environment={"TOLLGATE_DATABASE_URL": url})
    assert ended.returncode == 1
    assert findings(ended.stdout) == {"database": "✗"}
    assert "can't use the database" in ended.stdout
    assert "→" in ended.stdout
    assert ended.stdout.endswith("Something needs mending first.\n")
    assert "hunter2" not in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr


# -- keys and migrations -------------------------------------------------------------------------------------


def test_keys_are_made_and_revoked_beside_a_running_server_with_its_own_postgresql(home: Path) -> None:
    where = ("--data-dir", str(home))
    with Server(arguments=where) as server:
        made = tollgate("keys", "create", "--role", "read", *where)
        key, key_id = made.stdout.split()[0], re.findall(r"\b[0-9A-Z]{26}\b", made.stdout)[0]
        assert status(server, key) == 200
        assert tollgate("keys", "revoke", key_id, *where).returncode == 0
        until(lambda: status(server, key) == 401, seconds=5)


def status(server: Server, key: str) -> int:
    with server.client(key) as client:
        return client.get("/api/v1/meters").status_code


def test_a_key_made_while_no_server_runs_works_once_one_does_and_on_a_new_data_directory_too(
    place: Path,
) -> None:
    where = ("--data-dir", str(place / "data"))
    key = tollgate("keys", "create", "--role", "admin", *where).stdout.split()[0]
    migrated = tollgate("migrate", *where)
    assert (migrated.returncode, migrated.stdout) == (0, "The schema is up to date.\n")
    with Server(where, environment={"TOLLGATE_API_KEY": ""}) as server:
        assert status(server, key) == 200
        assert "tg_" not in server.output  # there is a key, so no first one is made


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("serve", "--port", "65536"),
        ("serve", "--port", "many"),
        ("serve", "--colour"),
        ("keys", "create"),
        ("keys", "create", "--role", "owner"),
        ("keys", "revoke"),
    ],
    ids=" ".join,
)
def test_a_wrong_command_is_told_apart_from_a_failure(arguments: tuple[str, ...]) -> None:
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 2
    assert "Usage:" in ended.stderr


def test_help_names_every_command() -> None:
    ended = CliRunner().invoke(app, ["--help"])
    assert ended.exit_code == 0
    for command in ("serve", "migrate", "keys", "doctor", "demo"):
        assert re.search(rf"\b{command}\b", ended.stdout)
