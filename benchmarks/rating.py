"""How fast prices are applied: one line in the rater, and an invoice of a hundred lines over HTTP."""

import gc
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from benchmarks.load import percentile
from benchmarks.stage import KEY, Server, place, postgres
from billing.rating.pricing import Usage
from billing.rating.rater import Terms, rate
from catalog.price import PriceTier, TieredPrice, TierUnitPrice

LINES = 100
PATH = "/api/v1/billing/customers/kong-air/invoices/simulate"
PER_TIER = 1000
AMOUNTS = ("0.01", "0.008", "0.005", "0.0025")
"""Of each tier, cheaper as more is used."""


@dataclass(frozen=True)
class Rated:
    """Medians: of one line in microseconds, of simulations in milliseconds; `steepest`: all graduated."""

    line: float
    simulation: float
    simulation_p99: float
    steepest: float


def rated(*, repeat: int) -> Rated:
    lines = _timed(_rate_one, repeat * 20)
    with place() as directory, postgres(directory) as url, Server(url) as server:
        server.ask("POST", "/api/v1/customers", {"name": "Kong Air", "key": "kong-air"})
        simulations = _over_http(server, [_line(n) for n in range(LINES)], repeat)
        steepest = _over_http(server, [_graduated_line(n) for n in range(LINES)], repeat)
    return Rated(
        line=percentile(lines, 50) * 1000,
        simulation=percentile(simulations, 50),
        simulation_p99=percentile(simulations, 99),
        steepest=percentile(steepest, 50),
    )


def _graduated() -> TieredPrice:
    tiers = [
        PriceTier(
            up_to_amount=Decimal(PER_TIER * n) if n < len(AMOUNTS) else None,
            unit_price=TierUnitPrice(type="unit", amount=Decimal(amount)),
        )
        for n, amount in enumerate(AMOUNTS, start=1)
    ]
    return TieredPrice(type="tiered", mode="graduated", tiers=tuple(tiers))


TERMS = Terms(price=_graduated(), name="API calls", currency="USD")
USED = Usage(quantity=Decimal(PER_TIER * len(AMOUNTS)))


def _rate_one() -> None:
    assert len(rate(TERMS, USED).details) == len(AMOUNTS)


def _over_http(server: Server, lines: list[dict[str, Any]], repeat: int) -> list[float]:
    """On one connection, of which the first answers don't count; what a client does with them is its own."""
    body = json.dumps({"currency": "USD", "lines": lines})
    assert len(server.ask("POST", PATH, json.loads(body))["lines"]) == LINES
    connection, headers = (
        server.client(),
        {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
    )

    def simulate() -> None:
        connection.request("POST", PATH, body, headers)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200

    _timed(simulate, 20)
    times = _timed(simulate, repeat)
    connection.close()
    return times


def _line(number: int) -> dict[str, Any]:
    """Of five lines one climbs four tiers, one is a package, one a fee and two are by the unit."""
    prices = (
        {"type": "package", "amount": "15", "quantityPerPackage": "10"},
        {"type": "flat", "amount": "20"},
        {"type": "unit", "amount": "0.00000075"},
        {"type": "unit", "amount": "0.01", "maximumAmount": "10"},
    )
    line = _graduated_line(number)
    return line if number % 5 == 0 else {**line, "rateCard": {"price": prices[number % 5 - 1]}}


def _graduated_line(number: int) -> dict[str, Any]:
    """Reaches all tiers."""
    tiers = [
        {"upToAmount": str(PER_TIER * n), "unitPrice": {"type": "unit", "amount": amount}}
        for n, amount in enumerate(AMOUNTS, start=1)
    ]
    del tiers[-1]["upToAmount"]
    return {
        "name": f"Feature {number}",
        "quantity": str(PER_TIER * len(AMOUNTS) + number),
        "period": {"from": "2026-03-01T00:00:00Z", "to": "2026-04-01T00:00:00Z"},
        "invoiceAt": "2026-04-01T00:00:00Z",
        "rateCard": {"price": {"type": "tiered", "mode": "graduated", "tiers": tiers}},
    }


def _timed(work: Callable[[], object], repeat: int) -> list[float]:
    """Milliseconds, in order."""
    times = []
    gc.collect()
    for _ in range(repeat):
        began = time.perf_counter()
        work()
        times.append((time.perf_counter() - began) * 1000)
    return sorted(times)
