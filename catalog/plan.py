"""The rules a plan must keep, as a pure function that finds every problem at once.

Codes and severities are OpenMeter's: a critical problem is refused at once, a warning stays with the draft
and bars its publication. The rules of one rate card are in rate_card_rules.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta

from catalog.interval import interval_of, is_negative_interval
from catalog.issues import critical, warning
from catalog.money import is_currency
from catalog.rate_card import Phase
from catalog.rate_card_rules import FeatureFacts, check_key, check_keys_differ, check_name, check_rate_cards
from metering.errors import Issue

__all__ = ["BILLING_CADENCES", "check_plan"]

BILLING_CADENCES = ("P1W", "P2W", "P4W", "P1M", "P3M", "P6M", "P12M", "P1Y")
SHORTEST_PHASE = timedelta(hours=1)


def check_plan(
    *, currency: str, billing_cadence: str, phases: Sequence[Phase], features: Mapping[str, FeatureFacts]
) -> list[Issue]:
    """Every problem of a plan; `features` holds those that exist among the ones it names, by key."""
    issues = []
    if not is_currency(currency):
        hint = "Use the ISO 4217 code of a currency in use, such as USD."
        issues.append(critical("currency_invalid", f"{currency!r} is no currency", "$.currency", hint))
    if billing_cadence not in BILLING_CADENCES:
        hint = f"One of {', '.join(BILLING_CADENCES)}."
        message = f"a plan can't be billed every {billing_cadence!r}"
        issues.append(warning("billing_cadence_invalid_value", message, "$.billingCadence", hint))
    if not phases:
        issues.append(warning("plan_with_no_phases", "a plan needs a phase", "$.phases", "Add one."))
    issues += check_keys_differ([phase.key for phase in phases], "$.phases", "plan_phase_duplicated_key")
    for i, phase in enumerate(phases):
        path = f"$.phases[{i}]"
        issues += check_key(phase.key, path)
        issues += check_name(phase.name, path)
        issues += _duration_issues(phase, path, last=i == len(phases) - 1)
        issues += _phase_issues(phase, path, billing_cadence, features)
    return issues


def _duration_issues(phase: Phase, path: str, *, last: bool) -> Iterator[Issue]:
    where = f"{path}.duration"
    if phase.duration is None:
        if not last:
            hint = "Say how long it lasts, for example P1M."
            message = "only the last phase may go on without end"
            yield warning("plan_has_non_last_phase_with_no_duration", message, where, hint)
        return
    if last:
        message = "the last phase goes on until the subscription ends"
        yield warning("plan_has_last_phase_with_duration", message, where, "Set its duration to null.")
    interval = interval_of(phase.duration)
    if is_negative_interval(phase.duration):
        message = f"the duration {phase.duration} is negative"
        yield warning("plan_phase_with_negative_duration", message, where, "Leave the minus out.")
    elif interval is None:
        message = f"{phase.duration!r} is not an ISO 8601 duration of at most a century"
        yield critical("invalid_duration", message, where, "Write P1M.")
    elif not interval.months and interval.time < SHORTEST_PHASE:
        yield warning(
            "plan_phase_duration_less_then_an_hour",
            "a phase lasts at least an hour",
            where,
            "Write PT1H or more.",
        )


def _phase_issues(
    phase: Phase, path: str, plan_cadence: str, features: Mapping[str, FeatureFacts]
) -> Iterator[Issue]:
    if not phase.rate_cards:
        message = "a phase sells something: it needs a rate card"
        yield warning("plan_phase_has_no_rate_cards", message, f"{path}.rateCards", "Add one.")
    yield from check_rate_cards(
        phase.rate_cards, f"{path}.rateCards", plan_cadence=plan_cadence, features=features
    )
