"""The steps of docs/corrections.md, taken one after another."""

from datetime import datetime, timedelta
from decimal import Decimal

from sqlalchemy.orm import Session

from metering.correction import EventIdentity, Kind, Selection
from metering.corrections import close_correction, create_correction, revert_correction, stage_events
from metering.cubes.folding import maintain
from metering.event import Event
from metering.events import append_events, keyed
from metering.meter import UsageQuery
from metering.usage import query_usage
from tests.server import ROOT
from tests.test_usage import NOW, call, driver, meter

USED = meter("SUM", "$.v")


def rows_of_the_table() -> list[tuple[str, str, str]]:
    """Step, sum, and sum as of the step before."""
    lines = (ROOT / "docs" / "corrections.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [(step, total, before) for step, _, total, before in cells[2:]]


def used(name: str, value: int) -> Event:
    return call(name, "2026-03-01T10:00", f'{{"v": {value}}}')


class Steps:
    """Each step by its words, at its own instant."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.now = NOW
        self.ids: dict[str, str] = {}

    def take(self, step: str) -> None:
        match step:
            case "a = 1 and b = 10 arrive":
                self._arrive(used("a", 1), used("b", 10))
            case "a = 1 arrives again":
                self._arrive(used("a", 1))
            case "open a replacement of a":
                self._open("replace", "a", close=False)
            case "send a' = 5 to it":
                stage_events(self.session, self.ids["a"], events=[used("a", 5)], places=["$"], now=self.now)
            case "close it":
                close_correction(self.session, self.ids["a"], by="test", now=self.now)
            case "void b":
                self._open("void", "b", close=True)
            case "revert the replacement":
                revert_correction(self.session, self.ids["a"], by="test", now=self.now)
            case "revert the void":
                revert_correction(self.session, self.ids["b"], by="test", now=self.now)
            case _:
                raise AssertionError(f"the test does not know how to: {step}")
        maintain(driver(self.session.connection()), now=self.now)

    def _arrive(self, *events: Event) -> None:
        batch = keyed((one, self.now) for one in events)
        append_events(driver(self.session.connection()), batch, now=self.now)

    def _open(self, kind: Kind, event: str, *, close: bool) -> None:
        selection = Selection(events=(EventIdentity(source="gateway", id=event),))
        correction = create_correction(
            self.session,
            kind=kind,
            selection=selection,
            reason="a test",
            close=close,
            by="test",
            now=self.now,
        )
        self.ids[event] = correction.id

    def total(self, as_of: datetime | None = None) -> str:
        rows = query_usage(self.session, USED, UsageQuery(as_of=as_of))
        return str(sum((row.value for row in rows), Decimal(0)))


def test_each_step_of_the_table_has_the_sums_that_it_says(session: Session) -> None:
    steps = Steps(session)
    rows = rows_of_the_table()
    assert len(rows) == 8
    for step, total, before in rows:
        steps.now += timedelta(minutes=1)
        steps.take(step)
        assert (steps.total(), step) == (total, step)
        assert (steps.total(as_of=steps.now - timedelta(seconds=30)), step) == (before, step)
