"""`make bench`: everything measured, as ratios where the machine decides; a table, a JSON file, two plots."""

import argparse
import json
import platform
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import backtest, ingest, preview, queries, rating
from benchmarks.plot import plot
from benchmarks.stage import place, postgres

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Plan:
    seconds: float
    sizes: tuple[int, ...]
    repeat: int
    restarts: int


FULL = Plan(seconds=60, sizes=(1_000_000, 5_000_000, 10_000_000), repeat=300, restarts=3)
QUICK = Plan(seconds=8, sizes=(100_000, 300_000), repeat=50, restarts=1)


@dataclass(frozen=True)
class Row:
    """`bar` is what `value` (a ratio where there is a yardstick) must reach or not exceed."""

    what: str
    measured: str
    yardstick: str
    value: float
    bar: str
    holds: bool


def at_least(what: str, value: float, bar: float, *, measured: str = "", yardstick: str = "") -> Row:
    return Row(what, measured, yardstick, value, f">= {bar:g}", value >= bar)


def at_most(what: str, value: float, bar: float, *, measured: str = "", yardstick: str = "") -> Row:
    return Row(what, measured, yardstick, value, f"<= {bar:g}", value <= bar)


def batch_rows(found: ingest.Batches) -> Iterator[Row]:
    rate = found.result.rate
    yield at_least(
        "100 events a request, 2 workers / Y1",
        rate / found.y1,
        0.33,
        measured=f"{rate:,.0f}/s in commits of {found.per_commit:,.0f}",
        yardstick=f"{found.y1:,.0f}/s",
    )
    yield at_most("  p99, ms", found.result.p99, 250)
    yield at_most("  lost or doubled events", abs(found.stored - found.result.acknowledged), 0)
    caught_up = 999.0 if found.caught_up is None else found.caught_up
    yield at_most("  seconds until cubes lag < 2 s", caught_up, 10, measured=f"worst {found.worst_lag:.1f} s")
    for name, (middle, end) in found.memory.items():
        if name in ("serve", "api", "worker"):
            yield at_most(f"  memory of {name}, end / middle", end / middle, 1.1, measured=f"{end:.0f} MB")


def single_rows(few: ingest.Singles, many: ingest.Singles) -> Iterator[Row]:
    yield at_least(
        "1 event a request, 64 connections / without store",
        few.result.rate / few.storeless.rate,
        0.6,
        measured=f"{few.result.rate:,.0f}/s",
        yardstick=f"{few.storeless.rate:,.0f}/s",
    )
    yield at_most("  p99 / p50", few.result.p99 / few.result.p50, 4, measured=f"{few.result.p50:.1f} ms p50")
    lost = many.result.acknowledged - many.stored
    refused = sum(many.result.answers.values()) - many.result.answers.get("204", 0)
    measured = f"{many.result.rate:,.0f}/s"
    yield at_most("256 connections, 2 workers: lost or refused", abs(lost) + refused, 0, measured=measured)


def size_rows(sizes: list[ingest.Size]) -> Iterator[Row]:
    first, last = sizes[0], sizes[-1]
    yield at_least(
        f"rate at {last.stored / 1e6:.1f} / at {first.stored / 1e6:.1f} million events",
        last.result.rate / first.result.rate,
        0.7,
        measured=f"{last.result.rate:,.0f}/s",
        yardstick=f"{first.result.rate:,.0f}/s",
    )


BARS = dict(zip(queries.QUESTIONS, ((2, 10, 6), (2, 10, 6), (5, None, None), (150, None, None)), strict=True))
"""Of each question: p50, p99 and p50 over HTTP, in milliseconds."""


def query_rows(asked: list[queries.Asked]) -> Iterator[Row]:
    for one in asked:
        p50, p99, http = BARS[one.question]
        yield at_most(f"{one.question} at {one.stored / 1e6:g} M: p50, ms", one.p50, p50)
        if p99 and http:
            yield at_most("  p99, ms", one.p99, p99)
            yield at_most("  over HTTP: p50, ms", one.http_p50, http)
        dropped = "page cache dropped" if one.page_cache_dropped else "page cache kept"
        yield at_most("  cold / bar of p50", one.cold / p50, 10, measured=f"{one.cold:.1f} ms, {dropped}")


def rating_rows(found: rating.Rated) -> Iterator[Row]:
    yield at_most("rating one line, graduated with 4 tiers: p50, us", found.line, 50)
    p99 = f"p99 {found.simulation_p99:.1f} ms; all lines of four tiers: {found.steepest:.1f} ms"
    yield at_most("simulating 100 lines over HTTP: p50, ms", found.simulation, 20, measured=p99)


def backtest_rows(tested: list[backtest.Tested]) -> Iterator[Row]:
    for one in tested:
        what = f"backtest, {one.customers:,} customers, {one.price}: s"
        yield at_most(what, one.seconds, 60, measured=f"{one.events / 1e6:.1f} M events in the month")
        yield at_most("  memory it grew by, MB", one.growth, 64)
        if one.price == backtest.OWN:
            yield at_most("  customers with a difference", one.customers - one.unchanged, 0)


def preview_rows(asked: list[preview.Previewed]) -> Iterator[Row]:
    for one in asked:
        what = f"preview after {one.months} months, {one.lines} lines, {one.stored / 1e6:g} M events: p50, ms"
        yardstick = f"one meter over HTTP {one.meter_p50:.1f} ms"
        measured = f"p99 {one.p99:.1f} ms; {one.cpu:.1f} of CPU beside PostgreSQL's"
        yield at_most(what, one.p50, 15, measured=measured, yardstick=yardstick)
        p99 = f"p99 {one.listed_p99:.1f} ms"
        yield at_most("  gathering invoice in the list: p50, ms", one.listed_p50, 15, measured=p99)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="two minutes, small numbers, no proof of anything"
    )
    parser.add_argument("only", nargs="*", help="all by default")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is stopped
    plan = QUICK if arguments.quick else FULL
    rows: list[Row] = []
    found: dict[str, Any] = {}
    parts: dict[str, Callable[[Plan, dict[str, Any]], Iterator[Row]]]
    parts = {"batches": _batches, "singles": _singles, "growth": _growth}
    parts |= {"rating": _rating, "backtest": _backtest, "preview": _preview}
    if unknown := set(arguments.only) - parts.keys():
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(parts)}")
    for name in arguments.only or parts:
        print(f"{name} ...", flush=True)
        some = list(parts[name](plan, found))
        rows += some
        print(table(some), flush=True)
    machine = {"processor": platform.processor() or platform.machine(), "python": platform.python_version()}
    results = {"plan": asdict(plan), "machine": machine, "rows": [asdict(row) for row in rows], **found}
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"written: {HERE}/results.json" + (", ingest.svg, queries.svg" if "growth" in found else ""))


def _batches(plan: Plan, found: dict[str, Any]) -> Iterator[Row]:
    result = ingest.batches(seconds=plan.seconds)
    found["batches"] = asdict(result)
    for name, used in sorted(result.cpu.items(), key=lambda item: -item[1]):
        print(f"  {used:6.2f} us an event: {name}")
    yield from batch_rows(result)


def _singles(plan: Plan, found: dict[str, Any]) -> Iterator[Row]:
    few = ingest.singles(seconds=plan.seconds / 4, connections=64)
    many = ingest.singles(seconds=plan.seconds / 4, connections=256, workers=2)
    found["singles"] = {"64 connections": asdict(few), "256 connections": asdict(many)}
    yield from single_rows(few, many)


def _growth(plan: Plan, found: dict[str, Any]) -> Iterator[Row]:
    """One database grows; at each size the questions are asked and the rate is taken."""
    sizes: list[ingest.Size] = []
    asked: list[queries.Asked] = []
    with place() as directory:
        stored = 0
        for total in plan.sizes:
            asked += queries.queries(
                directory,
                total=total,
                there=stored,
                repeat=plan.repeat,
                restarts=plan.restarts,
            )
            with postgres(directory) as url:
                sizes.append(ingest.at_size(url, seconds=plan.seconds / 3))
            stored = total
    found["growth"] = {"rates": [asdict(one) for one in sizes], "queries": [asdict(one) for one in asked]}
    rates = [(one.stored, one.result.rate) for one in sizes]
    (HERE / "ingest.svg").write_text(
        plot("Ingest rate, 100 events a request, 2 workers", "events/s", {"rate": rates})
    )
    lines = {
        name: [(one.stored, one.p50) for one in asked if one.question == name] for name in queries.QUESTIONS
    }
    (HERE / "queries.svg").write_text(
        plot("Query latency (p50, in the database)", "ms", lines, logarithmic=True)
    )
    yield from size_rows(sizes)
    yield from query_rows(asked)


def _rating(plan: Plan, found: dict[str, Any]) -> Iterator[Row]:
    result = rating.rated(repeat=plan.repeat)
    found["rating"] = asdict(result)
    yield from rating_rows(result)


def _backtest(plan: Plan, found: dict[str, Any]) -> Iterator[Row]:
    tested = backtest.backtests(customers=10_000 if plan is FULL else 1_000, events=plan.sizes[-1])
    found["backtest"] = [asdict(one) for one in tested]
    yield from backtest_rows(tested)


def _preview(plan: Plan, found: dict[str, Any]) -> Iterator[Row]:
    asked = preview.previews(events=plan.sizes[-1], repeat=plan.repeat)
    found["preview"] = [asdict(one) for one in asked]
    yield from preview_rows(asked)


def table(rows: list[Row]) -> str:
    lines = [("", "measured", "yardstick", "value", "bar", "")]
    lines += [
        (
            row.what,
            row.measured,
            row.yardstick,
            f"{row.value:.3g}",
            row.bar,
            "holds" if row.holds else "FAILS",
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
    )


if __name__ == "__main__":
    main()
