"""The README's own lines, run as a newcomer runs them: with bash and curl."""

import json
import re
import subprocess
from pathlib import Path

from tests.server import Server

README = Path(__file__).parent.parent / "README.md"
MOST_LINES = 150


def curl_example() -> str:
    found = re.search(r"```bash\n(.*?)```", README.read_text(), re.DOTALL)
    assert found
    return found[1]


def run_in_bash(script: str) -> list[str]:
    done = subprocess.run(
        ["bash", "-e", "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.splitlines()


def test_the_curl_example_leads_from_an_event_to_an_invoice_preview(database_url: str) -> None:
    environment = {"TOLLGATE_DATABASE_URL": database_url, "TOLLGATE_API_KEY": "tg_mine"}
    with Server(environment=environment) as server:
        answers = run_in_bash(curl_example().replace("http://127.0.0.1:8888", server.url))
    usage, preview = (json.loads(line) for line in answers[-2:])
    assert usage["data"][0]["value"] == 1_000_000
    assert usage["data"][0]["groupBy"] == {"model": "gpt-4o"}
    assert preview["totals"]["total"] == "20.00"
    assert [line["featureKey"] for line in preview["lines"]] == ["ai-token"]


def test_the_readme_is_short_and_so_is_each_package_s() -> None:
    assert len(README.read_text().splitlines()) <= MOST_LINES
    for package in ("metering", "catalog", "billing", "api"):
        lines = (README.parent / package / "README.md").read_text().splitlines()
        assert len(lines) <= 60, package


def test_every_file_that_a_readme_links_to_exists() -> None:
    for readme in README.parent.glob("**/README.md"):
        if ".venv" in readme.parts:
            continue
        for target in re.findall(r"\]\(([^)#:]+)\)", readme.read_text()):
            assert (readme.parent / target).exists(), f"{readme}: {target}"
