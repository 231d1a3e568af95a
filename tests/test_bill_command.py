"""`tollgate bill run`: what is due is billed or only shown, and a person reads what happened."""

import os
import signal

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session

from api import bill_command
from api.clock import now as present
from billing.contracts.subscriptions import Subscription
from billing.runs.test_clock import wind_up
from metering.errors import InvalidError
from tests.billing_clock import invoices_of
from tests.builders import START, a_customer, a_plan, at, fee, phase, sign_up
from tests.server import refusal, tollgate

NOW = at("2026-01-10")


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def signed_up(engine: Engine, count: int) -> list[Subscription]:
    with Session(engine, expire_on_commit=False) as session, session.begin():
        plan = a_plan(session, phase(fee("20")))
        return [sign_up(session, a_customer(session), plan) for _ in range(count)]


def break_off(engine: Engine, subscription: Subscription) -> str:
    with Session(engine) as session, session.begin():
        session.get_one(Subscription, subscription.id).billing_cadence = "P0M"
    return subscription.customer_id


def invoices(engine: Engine) -> int:
    with Session(engine) as session:
        return len(invoices_of(session))


def words(text: str) -> list[str]:
    """Without the table's rulers."""
    return " ".join("".join(" " if one in "│┃┏┓┡┩└┘━─┳╇┴" else one for one in text).split()).split(": ")


def test_what_was_billed_is_summed_up_by_currency_and_state(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    signed_up(engine, 3)
    assert bill_command.run(engine, now=NOW, dry_run=False, limit=None)
    said = words(capsys.readouterr().out)
    assert said[0].startswith("Billed what was due by 2026-01-10 00:00:00 UTC")
    assert said[1] == "3 customers. currency state invoices total USD paid 3 60.00"
    assert invoices(engine) == 3
    assert bill_command.run(engine, now=NOW, dry_run=False, limit=None)
    assert words(capsys.readouterr().out)[1] == "0 customers."


def test_a_dry_run_lists_what_each_would_pay_and_changes_nothing(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of what is yet to come."""
    customers = [subscription.customer_id for subscription in signed_up(engine, 2)]
    then = present().replace(year=present().year + 1)
    months = (then.year - 2026) * 12 + then.month
    assert bill_command.run(engine, now=then, dry_run=True, limit=None)
    out = capsys.readouterr().out
    for customer_id in customers:
        assert f"Kong Air ({customer_id}): 20.00 USD, lines: 1, paid" in out
    assert f"USD paid {months * 2} " in words(out)[-1]
    assert invoices(engine) == 0


def test_who_could_not_be_billed_is_listed_with_the_reason(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, _ = signed_up(engine, 2)
    customer_id = break_off(engine, bad)
    assert not bill_command.run(engine, now=NOW, dry_run=False, limit=None)
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith(f"not billed: {customer_id}: InvalidIntervalError: 'P0M'")
    assert invoices(engine) == 1


def test_a_limit_is_of_customers(engine: Engine) -> None:
    signed_up(engine, 3)
    assert bill_command.run(engine, now=NOW, dry_run=False, limit=2)
    assert invoices(engine) == 2


def test_the_future_is_not_billed(engine: Engine) -> None:
    with pytest.raises(InvalidError, match="in the future"):
        bill_command.run(engine, now=present().replace(year=2900), dry_run=False, limit=None)


def test_a_test_clock_says_what_is_present(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        wind_up(session, START)
    signed_up(engine, 1)
    with pytest.raises(InvalidError, match="in the future"):
        bill_command.run(engine, now=NOW, dry_run=False, limit=None)
    assert bill_command.run(engine, now=None, dry_run=False, limit=None)
    assert invoices(engine) == 1


def test_ctrl_c_ends_after_the_present_portion(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("api.billing_worker.PORTION", 2)
    signed_up(engine, 6)

    def interrupt(*_: object) -> None:
        """In the middle of the first portion."""
        os.kill(os.getpid(), signal.SIGINT)

    event.listen(Session, "after_flush", interrupt, once=True)
    assert bill_command.run(engine, now=NOW, dry_run=False, limit=None)
    assert "Stopped" in capsys.readouterr().out
    assert invoices(engine) == 2
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_the_command_ends_with_a_status(engine: Engine, database_url: str) -> None:
    bad, _ = signed_up(engine, 2)
    break_off(engine, bad)
    environment = {"TOLLGATE_DATABASE_URL": database_url}
    ended = tollgate("bill", "run", "--now", "2026-01-01", environment=environment)
    assert ended.returncode == 1
    assert "not billed: " in ended.stdout
    assert "Traceback" not in ended.stdout
    said = refusal("bill", "run", "--now", "2899-01-01", environment=environment)
    assert "in the future" in said
