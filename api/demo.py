"""`tollgate demo`: a server, a catalog, a customer and a minute of gateway traffic, ending in an invoice.

Everything goes over HTTP to a real server process, as it would in production. The sums are made twice, by
Tollgate from the events it stored and here from the traffic that was sent; the demo fails if they differ.
"""

import json
import os
import random
import re
import secrets
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from api import clock
from api.demo_traffic import Consumer, Entry, log_entries, make_consumers
from api.settings import Settings
from catalog.money import round_money
from metering.errors import TollgateError
from metering.exact import EXACT, total

__all__ = ["run"]

BATCH = 30
MINUTE = timedelta(seconds=60)
DATA_DIR = Path(".tollgate-demo")

FEE = Decimal(49)
UNIT_PRICES = {
    "ai-token": Decimal("0.00002"),
    "ai-token-output": Decimal("0.00006"),
    "api-call": Decimal("0.0015"),
}
FEATURES = (
    ("ai-token", "OpenAI prompt tokens", "llm_tokens_total", {"provider": "openai", "type": "request"}),
    (
        "ai-token-output",
        "OpenAI completion tokens",
        "llm_tokens_total",
        {"provider": "openai", "type": "response"},
    ),
    ("api-call", "API calls", "api_requests_total", {"billable": "true"}),
)


class DemoError(TollgateError):
    pass


@dataclass(frozen=True, slots=True)
class Api:
    """Just enough of an HTTP client to tell the story."""

    url: str
    key: str

    def call(self, method: str, path: str, body: object = None) -> Any:
        request = urllib.request.Request(  # noqa: S310  our own server
            f"{self.url}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310  our own server
            return json.loads(answer.read() or b"null", parse_float=Decimal)

    def make(self, path: str, body: dict[str, Any]) -> Any:
        """Create, or leave alone what an earlier demo created."""
        try:
            return self.call("POST", path, body)
        except urllib.error.HTTPError as error:
            if error.code != 409:
                raise DemoError(f"{path}: {error.read().decode()}") from None
            return None


def run(settings: Settings, *, leave: bool, data_dir: Path | None = None) -> None:
    """Tell the story; `leave` stops the server at the end. Raises DemoError when the sums disagree."""
    console = Console()
    place = data_dir or DATA_DIR
    console.rule("[bold]Tollgate: from gateway traffic to an invoice")
    console.print(f"1. Starting a server with its own PostgreSQL in [bold]{place}[/] …")
    with _server(place, settings) as (api, process):
        console.print(f"   It answers at [bold]{api.url}[/].\n")
        consumers, chance = _set_up(api, console)
        sent = _send(api, console, consumers, chance)
        _show_usage(api, console, consumers)
        preview = _show_preview(api, console, sent, consumers)
        _issue(api, console, preview)
        _show_next_steps(api, console)
        if not leave:
            console.print("The server runs on. [bold]Ctrl-C[/] stops it.")
            process.wait()


@contextmanager
def _server(data_dir: Path, settings: Settings) -> Iterator[tuple[Api, "subprocess.Popen[str]"]]:
    """A server of our own: whatever TOLLGATE_* says about a real one, the demo keeps out of it."""
    key = f"tg_{secrets.token_urlsafe(24)}"
    theirs = {name: value for name, value in os.environ.items() if not name.startswith("TOLLGATE_")}
    command = [sys.executable, "-m", "api", "serve", "--data-dir", str(data_dir)]
    process = subprocess.Popen(  # noqa: S603  our own command
        [*command, "--port", str(_free_port(settings))],
        env={**theirs, "TOLLGATE_API_KEY": key, "TOLLGATE_BILLING_INTERVAL": "0"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Api(_url(process), key), process
    except KeyboardInterrupt:
        pass
    finally:
        process.terminate()
        process.wait()


def _free_port(settings: Settings) -> int:
    """The usual port if nobody has it, else any."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", settings.port))
        except OSError:
            return 0
    return settings.port


def _url(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None  # noqa: S101  it is a pipe
    for line in process.stdout:
        if found := re.search(r"running at (http://\S+)", line):
            return found[1]
    raise DemoError("the server did not start; it says why above")


def _set_up(api: Api, console: Console) -> tuple[tuple[Consumer, ...], random.Random]:
    """The catalog once, a customer of its own for each demo."""
    console.print("2. What is for sale: the plan [bold]AI gateway[/], published.")
    for key, name, meter, filters in FEATURES:
        api.make(
            "/api/v1/features", {"key": key, "name": name, "meterSlug": meter, "meterGroupByFilters": filters}
        )
    if plan := api.make("/api/v1/plans", _plan()):
        api.call("POST", f"/api/v1/plans/{plan['id']}/publish")
    table = Table("charge", "price", box=None, padding=(0, 2, 0, 3))
    table.add_row("monthly fee, in advance", f"${FEE}")
    for key, name, _, filters in FEATURES:
        conditions = " and ".join(f"{dimension} = {value}" for dimension, value in filters.items())
        table.add_row(f"{name} ({conditions})", f"${UNIT_PRICES[key]} each")
    console.print(table, "")
    chance = random.Random(secrets.randbits(64))  # noqa: S311  made-up traffic
    consumers = make_consumers(chance)
    number = api.call("GET", "/api/v1/customers")["totalCount"] + 1
    customer = {
        "name": "Kong Air",
        "key": "kong-air" if number == 1 else f"kong-air-{number}",
        "usageAttribution": {"subjectKeys": [f"consumer:{consumer.id}" for consumer in consumers]},
    }
    customer_id = api.call("POST", "/api/v1/customers", customer)["id"]
    start = (clock.now() - MINUTE).isoformat()
    subscription = {"plan": {"key": "ai-gateway"}, "customerId": customer_id, "timing": start}
    api.call("POST", "/api/v1/subscriptions", subscription)
    names = ", ".join(consumer.username for consumer in consumers)
    console.print(f"3. A customer, [bold]Kong Air[/], subscribed; it pays for the consumers {names}.\n")
    return consumers, chance


def _plan() -> dict[str, Any]:
    cards: list[dict[str, Any]] = [
        {
            "type": "flat_fee",
            "key": "platform",
            "name": "Platform fee",
            "billingCadence": "P1M",
            "price": {"type": "flat", "amount": str(FEE), "paymentTerm": "in_advance"},
        }
    ]
    cards += [
        {
            "type": "usage_based",
            "key": key,
            "featureKey": key,
            "name": name,
            "billingCadence": "P1M",
            "price": {"type": "unit", "amount": str(UNIT_PRICES[key])},
            "entitlementTemplate": {"type": "boolean"},
        }
        for key, name, _, _ in FEATURES
    ]
    phase = {"key": "default", "name": "Default", "duration": None, "rateCards": cards}
    return {
        "key": "ai-gateway",
        "name": "AI gateway",
        "currency": "USD",
        "billingCadence": "P1M",
        "phases": [phase],
    }


def _send(api: Api, console: Console, consumers: tuple[Consumer, ...], chance: random.Random) -> list[Entry]:
    """As Kong does: batches, one of which is sent again because its answer got lost."""
    console.print("4. A minute of traffic from a Kong gateway (its http-log plugin) arrives:")
    entries = list(log_entries(consumers, start=clock.now() - MINUTE, length=MINUTE, chance=chance))
    batches = [entries[i : i + BATCH] for i in range(0, len(entries), BATCH)]
    counts: Counter[str] = Counter()
    columns = (TextColumn("  "), BarColumn(40), MofNCompleteColumn(), TextColumn("requests"))
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=len(entries))
        for batch in batches:
            counts.update(api.call("POST", "/api/v1/ingest/kong/demo-gateway", batch))
            progress.advance(bar, len(batch))
    again = api.call("POST", "/api/v1/ingest/kong/demo-gateway", batches[len(batches) // 2])
    statuses = Counter(entry["response"]["status"] for entry in entries)
    streamed = sum(e["response"]["headers"]["content-type"] == "text/event-stream" for e in entries)
    console.print(
        f"   {statuses[200]} answered, {statuses[401]} refused (401), {statuses[500]} failed (500);"
        f" {sum('ai' in e for e in entries)} LLM calls, {streamed} streamed.\n"
        f"   Stored {counts['stored']} requests. One batch came twice, as after a lost answer:"
        f" {again['stored']} stored, {again['duplicate']} recognized.\n"
    )
    return entries


def _show_usage(api: Api, console: Console, consumers: Sequence[Consumer]) -> None:
    question = {
        "subject": [f"consumer:{consumer.id}" for consumer in consumers],
        "groupBy": ["provider", "model", "type"],
    }
    rows = api.call("POST", "/api/v1/meters/llm_tokens_total/query", question)["data"]
    sums: Counter[tuple[str, str, str]] = Counter()
    for row in rows:  # one row for each consumer: several subjects are told apart
        sums[tuple(row["groupBy"][name] for name in ("provider", "model", "type"))] += row["value"]
    console.print("5. Tokens used, as the meter [bold]llm_tokens_total[/] counts them:")
    table = Table("provider", "model", "type")
    table.add_column("tokens", justify="right")
    for (provider, model, kind), tokens in sorted(sums.items()):
        table.add_row(provider, model, kind, f"{tokens:,}")
    console.print(table, "")


def _show_preview(
    api: Api, console: Console, sent: list[Entry], consumers: Sequence[Consumer]
) -> dict[str, Any]:
    invoice: dict[str, Any] = api.call("GET", f"/api/v1/customers/consumer:{consumers[0].id}/invoice-preview")
    console.print(f"6. The invoice preview: what [bold]{invoice['customer']['name']}[/] would pay as of now.")
    console.print("   (Anthropic's tokens are counted too, but this plan does not charge for them.)")
    table = Table("")
    for heading in ("quantity", "price", "amount"):
        table.add_column(heading, justify="right")
    for line in invoice["lines"]:
        price, amount = line["price"], line["totals"]["total"]
        each = "" if price["type"] == "flat" else " each"
        table.add_row(
            line["name"], f"{Decimal(line['quantity']):,}", f"${price['amount']}{each}", f"${amount}"
        )
    table.add_section()
    table.add_row("[bold]Total", "", "", f"[bold]${invoice['totals']['total']}")
    console.print(table)
    expected = _expected(sent)
    found = {
        line["featureKey"]: Decimal(line["quantity"]) for line in invoice["lines"] if "featureKey" in line
    }
    amount = total(
        [FEE, *(round_money(EXACT.multiply(n, UNIT_PRICES[k]), "USD") for k, n in expected.items())]
    )
    if found != expected or Decimal(invoice["totals"]["total"]) != amount:
        raise DemoError(f"the invoice does not equal the traffic sent: {found} and {expected}, {amount}")
    console.print(f"   [green]✓[/] Equals the traffic sent, added up independently: ${amount}.\n")
    return invoice


def _issue(api: Api, console: Console, preview: dict[str, Any]) -> None:
    """At once, where a server would wait for the end of the month and an hour for usage that is late."""
    console.print("7. The month is long; let us invoice it now. The sandbox pays at once.")
    wanted = {"customerId": preview["customer"]["id"], "progressiveBillingOverride": True}
    (invoice,) = api.call("POST", "/api/v1/billing/invoices/invoice", wanted)
    if "snapshotQuantities" in invoice["statusDetails"]["availableActions"]:
        invoice = api.call("POST", f"/api/v1/billing/invoices/{invoice['id']}/snapshot-quantities")
    issued, previewed = Decimal(invoice["totals"]["total"]), Decimal(preview["totals"]["total"])
    console.print(f"   Invoice [bold]{invoice['number']}[/] over ${issued}: [bold]{invoice['status']}[/].")
    if invoice["status"] != "paid" or issued != previewed:
        raise DemoError(f"the invoice is {invoice['status']} over {issued}, the preview said {previewed}")
    console.print("   [green]✓[/] Equals the preview; nothing is left to bill.\n")


def _expected(sent: list[Entry]) -> dict[str, Decimal]:
    """The quantities by hand: from the log entries, not from Tollgate."""
    calls = [entry["ai"]["proxy"] for entry in sent if "ai" in entry]
    openai = [call["usage"] for call in calls if call["meta"]["provider_name"] == "openai"]
    served = [entry for entry in sent if entry["response"]["status"] == 200]
    return {
        "ai-token": Decimal(sum(usage["prompt_tokens"] for usage in openai)),
        "ai-token-output": Decimal(sum(usage["completion_tokens"] for usage in openai)),
        "api-call": Decimal(len(served)),
    }


def _show_next_steps(api: Api, console: Console) -> None:
    key = f"-H 'Authorization: Bearer {api.key}'"
    as_event = "-H 'Content-Type: application/cloudevents+json'"
    event = {
        "id": "my-first-event",
        "source": "curl",
        "type": "kong.llm_request",
        "subject": "me",
        "data": {"tokens": 1200, "provider": "openai", "model": "gpt-4o", "type": "request"},
    }
    console.rule("[bold]Try it yourself")
    for title, command in (
        ("Usage by model:", f"curl {key} '{api.url}/api/v1/meters/llm_tokens_total/query?groupBy=model'"),
        (
            "Invoices, with how each line came about:",
            f"curl {key} '{api.url}/api/v1/billing/invoices?expand=lines'",
        ),
        (
            "Report usage:",
            f"curl -i {key} {as_event} -d '{json.dumps(event)}' {api.url}/api/v1/events",
        ),
    ):
        console.print(f"[bold]{title}")
        console.print(command, highlight=False, soft_wrap=True, markup=False)
    console.print(f"\nServer: [bold]{api.url}[/]   Docs: [bold]{api.url}/api/docs[/]")
