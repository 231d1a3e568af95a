"""The test clock: /api/v1/test-clock, only where the server has one. Time moves when somebody moves it."""

import time
from collections.abc import Iterable
from contextlib import closing
from datetime import datetime, timedelta

from fastapi import APIRouter, Request
from pydantic import Field

from api.billing_worker import advanced
from api.http.auth import admin, reader
from api.http.billing_runs import FailureBody
from api.http.body import Body, ExactRoute, Instant
from api.http.session import Now
from billing.runs.run import Outcome
from metering.errors import InvalidError, Issue

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/test-clock", tags=["Test clock"], route_class=ExactRoute)

LONGEST = timedelta(days=10 * 366)
MOST_SECONDS = 20.0
"""Of real time for one request."""


class TestClockBody(Body):
    now: datetime


class AdvanceBody(Body):
    to: Instant


class AdvancedBody(Body):
    """What was billed on the way. Not `settled`: there was more than one request can take; ask again."""

    now: datetime
    settled: bool = True
    customers: int = 0
    created: int = 0
    issued: int = 0
    paid: int = 0
    failures: list[FailureBody] = Field(default_factory=list)


@router.get("", operation_id="getTestClock", dependencies=[reader])
def get(now: Now) -> TestClockBody:
    return TestClockBody(now=now)


@router.post("/advance", operation_id="advanceTestClock", dependencies=[admin])
def advance(request: Request, now: Now, body: AdvanceBody) -> AdvancedBody:
    """Forward, and everything that falls due on the way is billed at its own instant, in order."""
    _check(now, body.to)
    answer = AdvancedBody(now=now)
    until = time.monotonic() + MOST_SECONDS
    with closing(advanced(request.app.state.sessions, to=body.to)) as steps:
        if _add(answer, steps, until):
            answer.now = request.app.state.clock()
    return answer


def _check(now: datetime, to: datetime) -> None:
    if to < now:
        message = f"the test clock shows {now.isoformat()}, and goes forward only"
        raise InvalidError(
            message, Issue(code="clock_goes_forward", message=message, field="$.to", hint="Name a later one.")
        )
    if to > now + LONGEST:
        message = "the test clock advances by ten years at a time at most"
        raise InvalidError(
            message, Issue(code="too_far_ahead", message=message, field="$.to", hint="Take smaller steps.")
        )


def _add(answer: AdvancedBody, steps: Iterable[tuple[datetime, Outcome]], until: float) -> bool:
    """Whether they came to their end."""
    for now, outcome in steps:
        answer.now = now
        answer.customers += outcome.customers
        answer.created += outcome.created
        answer.issued += outcome.issued
        answer.paid += outcome.paid
        answer.failures += [
            FailureBody(customer_id=customer_id, reason=reason)
            for customer_id, reason in outcome.failed.items()
        ]
        if time.monotonic() >= until:
            answer.settled = False
            return False
    return True
