"""What a billing profile may say, and how it is kept: pure. Each rule names the place that breaks it."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC
from types import MappingProxyType

from billing.contracts.customer import address_issues
from billing.profiles.profile import Party
from billing.profiles.workflow import AnchoredAlignment, CollectionSettings, Workflow, duration_of
from catalog.interval import InvalidIntervalError, interval_of, is_negative_interval
from catalog.rate_card_rules import check_tax
from metering.errors import Issue

__all__ = ["check_supplier", "check_workflow", "is_anchored_alike", "normal"]

FIRST_YEAR, LAST_YEAR = 1900, 2999
LONGEST_NAME, LONGEST_TAX_ID = 256, 32
INTERVALS: Mapping[str, str] = MappingProxyType({"DAY": "P1D", "WEEK": "P1W", "MONTH": "P1M", "YEAR": "P1Y"})
"""OpenMeter's words for recurrences, which are kept as durations."""


def check_workflow(workflow: Workflow, where: str = "$.workflow") -> Iterator[Issue]:
    invoicing, collection = workflow.invoicing, workflow.collection
    yield from _duration(collection.interval, f"{where}.collection.interval")
    yield from _duration(invoicing.draft_period, f"{where}.invoicing.draftPeriod")
    yield from _duration(invoicing.due_after, f"{where}.invoicing.dueAfter")
    yield from _alignment(collection, f"{where}.collection.alignment.recurringPeriod")
    if invoicing.subscription_end_proration_mode == "bill_full_period":
        message = "a subscription's last period is billed up to its end: the full period is not there yet"
        place = f"{where}.invoicing.subscriptionEndProrationMode"
        hint = "Leave it out, or write bill_actual_period."
        yield Issue(code="proration_mode_not_supported", message=message, field=place, hint=hint)
    if invoicing.default_tax_config is not None:
        yield from check_tax(invoicing.default_tax_config, f"{where}.invoicing.defaultTaxConfig")


def _duration(text: str, field: str) -> Iterator[Issue]:
    """None at all is a duration here: P0D."""
    try:
        duration_of(text)
    except InvalidIntervalError as error:
        yield from _not_a_duration(text, error, field, "field_must_be_positive_or_zero")


def _not_a_duration(text: str, error: InvalidIntervalError, field: str, negative: str) -> Iterator[Issue]:
    if is_negative_interval(text):
        yield Issue(code=negative, message=f"{text} is negative", field=field)
    else:
        yield from (replace(issue, field=field) for issue in error.issues)


def _alignment(collection: CollectionSettings, where: str) -> Iterator[Issue]:
    if not isinstance(collection.alignment, AnchoredAlignment):
        return
    period = collection.alignment.recurring_period
    if interval_of(INTERVALS.get(period.interval, period.interval)) is None:
        message = f"nothing recurs every {period.interval!r}"
        hint = f"Write P1M for a month, P1W, P1Y; or {', '.join(INTERVALS)}."
        code = "field_must_be_positive"
        yield Issue(code=code, message=message, field=f"{where}.interval", hint=hint)
    anchor = period.anchor
    if anchor.tzinfo is None or not FIRST_YEAR <= anchor.year <= LAST_YEAR:
        message = f"an anchor has a time zone and a year from {FIRST_YEAR} to {LAST_YEAR}"
        hint = "Write 2026-01-01T00:00:00Z."
        yield Issue(code="invalid_anchor", message=message, field=f"{where}.anchor", hint=hint)


def check_supplier(supplier: Party, where: str = "$.supplier") -> Iterator[Issue]:
    if not supplier.name:
        message = "an invoice says who it is from: the supplier needs a name"
        yield Issue(code="field_required", message=message, field=f"{where}.name")
    code = None if supplier.tax_id is None else supplier.tax_id.code
    for text, longest, place in (
        (supplier.name, LONGEST_NAME, "name"),
        (supplier.key, LONGEST_NAME, "key"),
        (code, LONGEST_TAX_ID, "taxId.code"),
    ):
        if text is not None and (len(text) > longest or (not text and place != "name")):
            message = f"this has from 1 to {longest} characters"
            yield Issue(code="invalid_length", message=message, field=f"{where}.{place}")
    yield from _addresses(supplier, f"{where}.addresses")


def _addresses(supplier: Party, where: str) -> Iterator[Issue]:
    if len(supplier.addresses) > 1:
        yield Issue(code="too_many_addresses", message="a supplier has one address", field=where)
    for i, address in enumerate(supplier.addresses):
        yield from address_issues(address, f"{where}[{i}]")


def normal(workflow: Workflow) -> Workflow:
    """As it is kept: recurrences are durations, anchors are in UTC. It must have been checked."""
    collection = workflow.collection
    if not isinstance(collection.alignment, AnchoredAlignment):
        return workflow
    period = collection.alignment.recurring_period
    kept = replace(
        period,
        interval=INTERVALS.get(period.interval, period.interval),
        anchor=period.anchor.astimezone(UTC),
    )
    alignment = replace(collection.alignment, recurring_period=kept)
    return replace(workflow, collection=replace(collection, alignment=alignment))


def is_anchored_alike(one: Workflow, other: Workflow) -> bool:
    """Whether lines that fall due are collected at the same instants."""
    return one.collection.alignment == other.collection.alignment
