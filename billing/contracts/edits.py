"""A contract's phases and items as values, and each way to change them: pure, no clock, no storage.

What has passed stays: a change takes effect at an instant. What was sold until then is closed there, and what
is sold from then on is a new version of the item. What is wrong comes back as issues, with the path of the
edit in the request.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import ClassVar, Literal

from catalog.interval import Interval, interval_of, is_negative_interval, parse_interval
from catalog.issues import barring, critical
from catalog.rate_card import Phase, RateCard
from catalog.rate_card_rules import FeatureFacts, check_key, check_name, check_rate_card
from metering.errors import InvalidError, Issue
from metering.wire import WIRE

__all__ = [
    "AddItem",
    "AddPhase",
    "BeyondCalendarError",
    "ContractEdit",
    "ContractSpec",
    "Market",
    "NewPhase",
    "RemoveItem",
    "RemovePhase",
    "Sale",
    "SpecItem",
    "SpecPhase",
    "StretchPhase",
    "UnscheduleEdit",
    "edited",
    "ended",
    "phase_at",
    "phase_ends",
    "sell",
    "spec_of",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecItem:
    """One version of what a phase sells under a key. `id` is None until it is stored."""

    __pydantic_config__: ClassVar = WIRE

    id: str | None = None
    key: str
    version: int = 0
    rate_card: RateCard
    feature_id: str | None
    start: datetime
    end: datetime | None

    def ended_by(self, at: datetime) -> bool:
        return self.end is not None and self.end <= at

    def sold_at(self, at: datetime) -> bool:
        return self.start <= at and not self.ended_by(at)

    def lasts(self, at: datetime) -> bool:
        """Whether it is sold right until `at`, at least."""
        return self.start < at and (self.end is None or self.end >= at)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecPhase:
    """`duration` is how long it lasts in calendar time; the last phase has none and no end.

    The versions of a key stand together, the oldest first.
    """

    __pydantic_config__: ClassVar = WIRE

    id: str | None = None
    key: str
    name: str
    description: str | None = None
    metadata: Mapping[str, str] | None = None
    duration: str | None
    start: datetime
    end: datetime | None
    items: tuple[SpecItem, ...] = ()

    def ended_by(self, at: datetime) -> bool:
        return self.end is not None and self.end <= at


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractSpec:
    """Phases that follow one another without gap."""

    __pydantic_config__: ClassVar = WIRE

    start: datetime
    phases: tuple[SpecPhase, ...]


def spec_of(phases: Sequence[Phase], *, start: datetime, feature_ids: Mapping[str, str]) -> ContractSpec:
    """What a plan's phases become for somebody who begins at `start`."""
    found = []
    begins = start
    for phase, end in zip(phases, phase_ends(phases, start), strict=True):
        items = (_first_item(card, begins, end, feature_ids) for card in phase.rate_cards)
        found.append(
            SpecPhase(
                key=phase.key,
                name=phase.name,
                description=phase.description,
                metadata=phase.metadata,
                duration=phase.duration,
                start=begins,
                end=end,
                items=tuple(items),
            )
        )
        begins = end or begins
    return ContractSpec(start=start, phases=tuple(found))


def _first_item(
    card: RateCard, start: datetime, end: datetime | None, feature_ids: Mapping[str, str]
) -> SpecItem:
    return SpecItem(
        key=card.key, rate_card=card, feature_id=_feature_id(card, feature_ids), start=start, end=end
    )


def _feature_id(card: RateCard, feature_ids: Mapping[str, str]) -> str | None:
    return feature_ids[card.feature_key] if card.feature_key else None


def phase_ends(phases: Iterable[Phase | SpecPhase], start: datetime) -> Iterator[datetime | None]:
    """When each phase ends. Months that follow months are counted from one day, so that they don't drift."""
    anchor, months = start, 0
    for phase in phases:
        if phase.duration is None:
            yield None
            continue
        interval = parse_interval(phase.duration)
        months += interval.months
        end = _after(Interval(months, interval.time), anchor)
        yield end
        if interval.time:
            anchor, months = end, 0


def _after(interval: Interval, anchor: datetime) -> datetime:
    try:
        return interval.after(anchor)
    except (ValueError, OverflowError):
        message = "the phases together last longer than the calendar goes"
        issue = Issue(code="invalid_duration", message=message, hint="Shorten them, or leave some out.")
        raise BeyondCalendarError(message, issue) from None


def phase_at(spec: ContractSpec, at: datetime) -> SpecPhase | None:
    return next((phase for phase in spec.phases if phase.start <= at and not phase.ended_by(at)), None)


def ended(spec: ContractSpec, at: datetime) -> ContractSpec:
    """Nothing is sold from `at` on."""
    cut = (
        replace(phase, end=_earlier(phase.end, at), items=_cut(phase.items, at))
        for phase in spec.phases
        if phase.start < at
    )
    return replace(spec, phases=tuple(cut))


def _cut(items: Iterable[SpecItem], at: datetime) -> tuple[SpecItem, ...]:
    return tuple(replace(item, end=_earlier(item.end, at)) for item in items if item.start < at)


def _earlier(one: datetime | None, other: datetime | None) -> datetime | None:
    """None is never."""
    return min((each for each in (one, other) if each is not None), default=None)


# -- What is sold in a phase ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Sale:
    """A rate card sold in a phase from `start` until `end`."""

    rate_card: RateCard
    feature_id: str | None
    start: datetime
    end: datetime | None

    def is_like(self, item: SpecItem) -> bool:
        return (self.rate_card, self.feature_id) == (item.rate_card, item.feature_id)


def sell(phase: SpecPhase, key: str, at: datetime, sales: Sequence[Sale]) -> SpecPhase:
    """From `at` on the phase sells `key` as `sales` say, in their order, and not otherwise.

    What goes on as before stays the item that it is; anything else is a version higher than all before it.
    """
    own = [item for item in phase.items if item.key == key]
    new = _versions(own, at, sales)
    rest = [item for item in phase.items if item.key != key]
    place = next((i for i, item in enumerate(phase.items) if item.key == key), len(rest))
    return replace(phase, items=(*rest[:place], *new, *rest[place:]))


def _versions(own: Sequence[SpecItem], at: datetime, sales: Sequence[Sale]) -> Iterator[SpecItem]:
    version = max((item.version for item in own), default=-1)
    waiting = list(sales)
    for item in own:
        goes_on = waiting and waiting[0].start == at and waiting[0].is_like(item)
        if goes_on and item.lasts(at):
            yield replace(item, end=waiting.pop(0).end)
        elif item.start < at:
            yield replace(item, end=_earlier(item.end, at))
    for sale in waiting:
        same = next((item for item in own if item.start == sale.start and sale.is_like(item)), None)
        if same is not None:
            yield replace(same, end=sale.end)
            continue
        version += 1
        yield _item(sale, version)


def _item(sale: Sale, version: int) -> SpecItem:
    return SpecItem(
        key=sale.rate_card.key,
        version=version,
        rate_card=sale.rate_card,
        feature_id=sale.feature_id,
        start=sale.start,
        end=sale.end,
    )


# -- Edits ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AddItem:
    """Sell a rate card, in place of what is sold under its key."""

    __pydantic_config__: ClassVar = WIRE

    op: Literal["add_item"]
    phase_key: str
    rate_card: RateCard


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveItem:
    __pydantic_config__: ClassVar = WIRE

    op: Literal["remove_item"]
    phase_key: str
    item_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPhase:
    """`start_after` counts from the start of the contract; only the last phase has no `duration`."""

    __pydantic_config__: ClassVar = WIRE

    key: str
    name: str
    description: str | None = None
    start_after: str | None = None
    duration: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AddPhase:
    """Cut short the phase that it begins in; those after it follow it."""

    __pydantic_config__: ClassVar = WIRE

    op: Literal["add_phase"]
    phase: NewPhase


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovePhase:
    """`next`: those after it begin sooner; `prev`: the one before it lasts longer."""

    __pydantic_config__: ClassVar = WIRE

    op: Literal["remove_phase"]
    phase_key: str
    shift: Literal["next", "prev"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StretchPhase:
    """Longer by `extend_by`, or shorter with a minus; those after it move along."""

    __pydantic_config__: ClassVar = WIRE

    op: Literal["stretch_phase"]
    phase_key: str
    extend_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnscheduleEdit:
    """In the phase that runs, what is sold now goes on; what was to change later does not."""

    __pydantic_config__: ClassVar = WIRE

    op: Literal["unschedule_edit"]


ContractEdit = AddItem | RemoveItem | AddPhase | RemovePhase | StretchPhase | UnscheduleEdit


@dataclass(frozen=True, slots=True, kw_only=True)
class Market:
    """What edits need to know: the time, when they take effect, and the features that cards name, by key."""

    now: datetime
    at: datetime
    billing_cadence: str
    features: Mapping[str, FeatureFacts]
    feature_ids: Mapping[str, str]


class BeyondCalendarError(InvalidError):
    pass


Outcome = ContractSpec | list[Issue]

SHORTEST_PHASE = timedelta(hours=1)


def edited(
    spec: ContractSpec, edits: Sequence[ContractEdit], market: Market
) -> tuple[ContractSpec, list[Issue]]:
    """All edits in their order. The first that can't be made ends it, since the next may build on it."""
    for i, edit in enumerate(edits):
        outcome = _edited(spec, edit, f"$.customizations[{i}]", market)
        if isinstance(outcome, list):
            return spec, outcome
        spec = outcome
    return spec, list(_empty_phases(spec, market.at))


def _edited(spec: ContractSpec, edit: ContractEdit, path: str, market: Market) -> Outcome:
    match edit:
        case AddItem():
            return _add_item(spec, edit, path, market)
        case RemoveItem():
            return _remove_item(spec, edit, path, market)
        case AddPhase():
            return _add_phase(spec, edit.phase, f"{path}.phase", market)
        case RemovePhase():
            return _remove_phase(spec, edit, path, market)
        case StretchPhase():
            return _stretch_phase(spec, edit, path, market)
        case UnscheduleEdit():
            return _unschedule(spec, path, market)


def _empty_phases(spec: ContractSpec, at: datetime) -> Iterator[Issue]:
    for phase in spec.phases:
        if not phase.items and not phase.ended_by(at):
            message = f"the phase {phase.key!r} would sell nothing"
            hint = "Add an item to it in the same request, or remove the phase."
            yield critical("subscription_phase_has_no_items", message, "$.customizations", hint)


def _add_item(spec: ContractSpec, edit: AddItem, path: str, market: Market) -> Outcome:
    card = edit.rate_card
    found = _editable(spec, edit.phase_key, path, market)
    issues = found if isinstance(found, list) else []
    issues += barring(
        check_rate_card(
            card, f"{path}.rateCard", plan_cadence=market.billing_cadence, features=market.features
        )
    )
    if isinstance(found, list) or issues:
        return issues
    start, feature_id = max(market.at, found.start), _feature_id(card, market.feature_ids)
    sale = Sale(rate_card=card, feature_id=feature_id, start=start, end=found.end)
    return _with(spec, sell(found, card.key, start, [sale]))


def _remove_item(spec: ContractSpec, edit: RemoveItem, path: str, market: Market) -> Outcome:
    found = _editable(spec, edit.phase_key, path, market)
    if isinstance(found, list):
        return found
    start = max(market.at, found.start)
    if not any(item.key == edit.item_key and not item.ended_by(start) for item in found.items):
        message = f"the phase {found.key!r} sells no {edit.item_key!r} from {start.isoformat()} on"
        sold = dict.fromkeys(item.key for item in found.items if not item.ended_by(start))
        hint = f"It sells: {', '.join(sold) or 'nothing'}."
        return [critical("unknown_item", message, f"{path}.itemKey", hint)]
    return _with(spec, sell(found, edit.item_key, start, []))


def _unschedule(spec: ContractSpec, path: str, market: Market) -> Outcome:
    phase = phase_at(spec, market.now)
    if phase is None:
        message = "no phase runs now, and so nothing is scheduled in it"
        return [critical("no_current_phase", message, path, "Edit the phases themselves.")]
    for key in dict.fromkeys(item.key for item in phase.items):
        running = [item for item in phase.items if item.key == key and item.start <= market.now]
        last = running[-1] if running and not running[-1].ended_by(market.now) else None
        sales = [_sale(last, market.now, phase.end)] if last else []
        phase = sell(phase, key, market.now, sales)
    return _with(spec, phase)


def _sale(item: SpecItem, start: datetime, end: datetime | None) -> Sale:
    return Sale(rate_card=item.rate_card, feature_id=item.feature_id, start=start, end=end)


# -- Edits of phases -----------------------------------------------------------------------------------------


def _add_phase(spec: ContractSpec, new: NewPhase, path: str, market: Market) -> Outcome:
    issues = [*check_key(new.key, path), *check_name(new.name, path)]
    if any(phase.key == new.key for phase in spec.phases):
        message = f"there is a phase {new.key!r} already"
        issues.append(
            critical("plan_phase_duplicated_key", message, f"{path}.key", "Take another key, or stretch it.")
        )
    after = interval_of(new.start_after) if new.start_after else None
    issues += _start_issues(spec, new, after, path, market)
    if issues or after is None:
        return issues
    start = after.after(spec.start)
    later = [phase for phase in spec.phases if phase.start >= start]
    if issues := list(_length_issues(new.duration, f"{path}.duration", last=not later)):
        return issues
    *before, cut = [phase for phase in spec.phases if phase.start < start]
    duration = new.start_after if cut.start == spec.start else _exactly(start - cut.start)
    added = SpecPhase(
        key=new.key,
        name=new.name,
        description=new.description,
        duration=new.duration,
        start=start,
        end=None,
    )
    return _laid_out(spec, [*before, replace(cut, duration=duration), added, *later])


def _start_issues(
    spec: ContractSpec, new: NewPhase, after: Interval | None, path: str, market: Market
) -> Iterator[Issue]:
    field = f"{path}.startAfter"
    if new.start_after and is_negative_interval(new.start_after):
        message = "a phase can't begin before its contract"
        yield critical("subscription_phase_start_after_is_negative", message, field, "Leave the minus out.")
    elif new.start_after and after is None:
        message = f"{new.start_after!r} is not an ISO 8601 duration of at most a century"
        yield critical("invalid_duration", message, field, "Write P1M for a month after the start.")
    elif after is None or after.after(spec.start) <= market.at:
        message = f"a new phase begins later than {market.at.isoformat()}: what has passed stays"
        hint = f"startAfter counts from {spec.start.isoformat()}; edit the phase that runs instead."
        yield critical("phase_in_the_past", message, field, hint)


def _length_issues(duration: str | None, field: str, *, last: bool) -> Iterator[Issue]:
    if duration is None:
        if not last:
            message = "only the last phase may go on without end"
            hint = "Say how long it lasts, for example P1M."
            yield critical("plan_has_non_last_phase_with_no_duration", message, field, hint)
        return
    interval = interval_of(duration)
    if interval is None:
        message = f"{duration!r} is not an ISO 8601 duration of at most a century"
        yield critical("invalid_duration", message, field, "Write P1M.")
    elif last:
        message = "no phase follows, and the last one goes on until the subscription ends"
        yield critical("plan_has_last_phase_with_duration", message, field, "Leave it out.")
    elif not interval.months and interval.time < SHORTEST_PHASE:
        yield critical(
            "plan_phase_duration_less_then_an_hour", "a phase lasts at least an hour", field, "PT1H."
        )


def _remove_phase(spec: ContractSpec, edit: RemovePhase, path: str, market: Market) -> Outcome:
    found = _editable(spec, edit.phase_key, path, market)
    if isinstance(found, list):
        return found
    if found.start <= market.at:
        message = f"the phase {found.key!r} has begun, or will have by {market.at.isoformat()}"
        return [critical("phase_has_begun", message, f"{path}.phaseKey", "Remove its items, or cancel.")]
    i = spec.phases.index(found)
    previous, later = spec.phases[i - 1], spec.phases[i + 1 :]
    if not later:
        previous = replace(previous, duration=None)
    elif edit.shift == "prev":
        previous = replace(previous, duration=_together(previous, found))
    return _laid_out(spec, [*spec.phases[: i - 1], previous, *later])


def _together(one: SpecPhase, following: SpecPhase) -> str | None:
    """How long both last: months stay months."""
    if one.duration is None or following.duration is None or following.end is None:
        return None
    first, second = parse_interval(one.duration), parse_interval(following.duration)
    if not first.time and not second.time:
        return f"P{first.months + second.months}M"
    return _exactly(following.end - one.start)


def _stretch_phase(spec: ContractSpec, edit: StretchPhase, path: str, market: Market) -> Outcome:
    found, by = _editable(spec, edit.phase_key, path, market), _signed(edit.extend_by)
    if by is None:
        message = f"{edit.extend_by!r} is not an ISO 8601 duration of at most a century"
        return [critical("invalid_duration", message, f"{path}.extendBy", "Write P7D, or -P7D.")]
    if isinstance(found, list):
        return found
    if found.duration is None:
        message = f"the phase {found.key!r} is the last one, and goes on until the subscription ends"
        return [critical("last_phase_has_no_end", message, f"{path}.phaseKey", "Add a phase after it.")]
    duration = _stretched(found, found.duration, by)
    i = spec.phases.index(found)
    if duration is not None and interval_of(duration) is None:
        message = f"the phase {found.key!r} would last longer than a century"
        return [critical("invalid_duration", message, f"{path}.extendBy", "Extend it by less.")]
    if duration is not None:
        longer = replace(found, duration=duration)
        outcome = _laid_out(spec, [*spec.phases[:i], longer, *spec.phases[i + 1 :]])
        end = outcome.phases[i].end
        if end is not None and end > market.at and end - found.start >= SHORTEST_PHASE:
            return outcome
    message = f"the phase {found.key!r} would end too soon"
    hint = f"It must last an hour at least, and until after {market.at.isoformat()}."
    return [critical("phase_too_short", message, f"{path}.extendBy", hint)]


def _signed(text: str) -> Interval | None:
    """An interval that may have a minus: -P7D."""
    if is_negative_interval(text):
        interval = parse_interval(text.replace("-", ""))
        return Interval(-interval.months, -interval.time)
    return interval_of(text)


def _stretched(phase: SpecPhase, duration: str, by: Interval) -> str | None:
    """Months are added to months, so that they don't drift; None when nothing is left."""
    own = parse_interval(duration)
    months, time = own.months + by.months, own.time + by.time
    if months < 0 or time < timedelta(0):
        length = Interval(months, time).after(phase.start) - phase.start
        return _exactly(length) if length > timedelta(0) else None
    both = f"{f'{months}M' if months else ''}{_exactly(time).removeprefix('P') if time else ''}"
    return f"P{both}" if both else None


def _exactly(time: timedelta) -> str:
    seconds = f"T{time.seconds}S" if time.seconds else ""
    days = f"{time.days}D" if time.days else ""
    return f"P{days}{seconds}"


def _laid_out(spec: ContractSpec, phases: Sequence[SpecPhase]) -> ContractSpec:
    """One phase after the other, as long as their durations say; the items of each move along."""
    laid, start = [], spec.start
    for phase, end in zip(phases, phase_ends(phases, start), strict=True):
        laid.append(_moved(phase, start, end))
        start = end or start
    return replace(spec, phases=tuple(laid))


def _moved(phase: SpecPhase, start: datetime, end: datetime | None) -> SpecPhase:
    moved = (
        replace(
            item,
            start=start if item.start == phase.start else item.start,
            end=end if item.end == phase.end else _earlier(item.end, end),
        )
        for item in phase.items
    )
    kept = tuple(item for item in moved if item.end is None or item.start < item.end)
    return replace(phase, start=start, end=end, items=kept)


def _with(spec: ContractSpec, changed: SpecPhase) -> ContractSpec:
    phases = (changed if phase.key == changed.key else phase for phase in spec.phases)
    return replace(spec, phases=tuple(phases))


def _editable(spec: ContractSpec, key: str, path: str, market: Market) -> SpecPhase | list[Issue]:
    """The phase with that key, if it has not ended when the edit takes effect."""
    field = f"{path}.phaseKey"
    for phase in spec.phases:
        if phase.key == key and phase.ended_by(market.at):
            message = f"the phase {key!r} has ended by {market.at.isoformat()}"
            return [critical("phase_in_the_past", message, field, "What has passed stays.")]
        if phase.key == key:
            return phase
    hint = f"Its phases: {', '.join(phase.key for phase in spec.phases)}."
    return [critical("unknown_phase", f"the subscription has no phase {key!r}", field, hint)]
