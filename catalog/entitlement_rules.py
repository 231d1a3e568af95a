"""The rules of an entitlement template, apart from those that ask for its feature."""

import json
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

from catalog.interval import interval_of, is_negative_interval
from catalog.issues import critical, warning
from catalog.rate_card import EntitlementTemplate, MeteredEntitlement, StaticEntitlement
from metering.errors import Issue
from metering.wire import MAX_NUMBER_DIGITS, is_wire_number

__all__ = ["check_entitlement_template"]

SHORTEST_USAGE_PERIOD = timedelta(hours=1)
MAX_PRIORITY = 255


def check_entitlement_template(
    template: EntitlementTemplate, path: str, *, billing_cadence: str | None
) -> Iterator[Issue]:
    match template:
        case StaticEntitlement(config=config) if not _is_json(config):
            hint = 'Write JSON as text, such as "{\\"seats\\": 5}".'
            message = "the config of a static entitlement is JSON"
            yield critical("entitlement_template_invalid_json_config", message, f"{path}.config", hint)
        case MeteredEntitlement():
            yield from _issue_issues(template, path)
            yield from _usage_period_issues(template.usage_period, f"{path}.usagePeriod", billing_cadence)


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_int=str, parse_float=str, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _issue_issues(template: MeteredEntitlement, path: str) -> Iterator[Issue]:
    issued, where = template.issue_after_reset, f"{path}.issueAfterReset"
    if issued is not None and not (is_wire_number(issued) and issued >= Decimal(0)):
        message = f"{issued} can't be issued: a number from 0 on, of at most {MAX_NUMBER_DIGITS} digits, can"
        yield critical("entitlement_template_invalid_issue_after_reset", message, where, "Write 1000.")
    priority = template.issue_after_reset_priority
    if priority is not None and issued is None:
        code = "entitlement_template_invalid_issue_after_reset_with_priority"
        message = "a priority is that of what is issued, and nothing is"
        yield warning(code, message, where, "Say how much is issued, or leave issueAfterResetPriority out.")
    if priority is not None and not 1 <= priority <= MAX_PRIORITY:
        code = "entitlement_template_invalid_issue_after_reset_priority"
        message = f"a priority is a number from 1 to {MAX_PRIORITY}"
        yield critical(code, message, f"{where}Priority", "Write 1 for what is used first.")


def _usage_period_issues(period: str | None, where: str, billing_cadence: str | None) -> Iterator[Issue]:
    if period is None:
        if billing_cadence is None:
            code = "entitlement_template_usage_period_required"
            message = "the card is billed once, so that no cadence says when the usage starts anew"
            yield warning(code, message, where, "Set usagePeriod, for example to P1M.")
        return
    interval = interval_of(period)
    if is_negative_interval(period):
        message = f"the usage period {period} is negative"
        yield warning("entitlement_template_negative_usage_period", message, where, "Leave the minus out.")
    elif interval is None:
        message = f"{period!r} is not an ISO 8601 duration of at most a century"
        yield critical("invalid_duration", message, where, "Write P1M.")
    elif not interval.months and interval.time < SHORTEST_USAGE_PERIOD:
        code = "entitlement_template_usage_period_less_then_an_hour"
        yield warning(code, "a usage period lasts at least an hour", where, "Write PT1H or more.")
