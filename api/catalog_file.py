"""The catalog as a YAML file: features, add-ons and plans, each as the body that creates it has it.

    features:
      - {key: tokens, name: Tokens, meterSlug: tokens}
    plans:
      - key: pro
        name: Pro
        billingCadence: P1M
        phases: [...]
        addons: [{key: seats, fromPlanPhase: main}]

An entry says all of a thing: what it leaves out has its default. Meters are in TOLLGATE_METERS_FILE.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BeforeValidator, Field, ValidationError

from api.http.addons import AddonCreate
from api.http.body import Body, Metadata, decimal_text
from api.http.features import FeatureCreate
from api.http.plans import Alignment, PlanCreate
from api.http.problems import issues_of
from api.yaml_file import YamlFile, read_yaml
from catalog.price import in_range
from metering.errors import InvalidError, Issue, TollgateError
from metering.filter_string import filter_json

__all__ = [
    "AddonEntry",
    "Catalog",
    "CatalogFileError",
    "Entry",
    "FeatureEntry",
    "OfferEntry",
    "PlanEntry",
    "as_yaml",
    "below",
    "read_catalog",
    "written",
]

MAX_QUANTITY = 2**31 - 1


class CatalogFileError(InvalidError):
    """All that is wrong with the file, each with its line."""


class FeatureEntry(FeatureCreate):
    READ_ONLY = frozenset()  # a file is no echo of an answer: an id in it would be meant, and not heeded


class AddonEntry(AddonCreate):
    READ_ONLY = frozenset()

    status: Literal["active", "draft"] = "active"


class OfferEntry(Body):
    """An add-on that the plan offers, by its key."""

    key: str
    from_plan_phase: str
    max_quantity: Annotated[int, Field(ge=1, le=MAX_QUANTITY)] | None = None
    metadata: Metadata | None = None


class _Alignment(Alignment):
    billables_must_align: Annotated[
        Literal[True] | None, BeforeValidator(lambda sent: True if sent == "true" else sent)
    ] = None


class PlanEntry(PlanCreate):
    READ_ONLY = frozenset()

    alignment: _Alignment | None = None
    addons: list[OfferEntry] = Field(default_factory=list)
    status: Literal["active", "draft"] = "active"


Entry = FeatureEntry | AddonEntry | PlanEntry
E = TypeVar("E", FeatureEntry, AddonEntry, PlanEntry)


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """What the file says; `file` knows the lines."""

    file: YamlFile
    features: Sequence[FeatureEntry]
    addons: Sequence[AddonEntry]
    plans: Sequence[PlanEntry]


def read_catalog(path: Path) -> Catalog:
    """Raises CatalogFileError with everything that is wrong with its form."""
    file = read_yaml(path, name="the catalog", hint="`tollgate catalog export FILE` writes one")
    issues = [*file.issues, *_form_issues(file.document), *_text_issues(file.document, "$")]
    catalog = Catalog(
        file=file,
        features=_entries(file.document, "features", issues, FeatureEntry),
        addons=_entries(file.document, "addons", issues, AddonEntry),
        plans=_entries(file.document, "plans", issues, PlanEntry),
    )
    if issues:
        raise CatalogFileError(file.message(issues), *issues)
    return catalog


LISTS = ("features", "addons", "plans")


def _form_issues(document: Any) -> Iterator[Issue]:
    hint = "It may have the lists features, addons and plans."
    if not isinstance(document, dict):
        yield Issue(code="catalog_file", message="the file must be an object", hint=hint)
        return
    for name, value in document.items():
        if name not in LISTS:
            message = f"{name!r} is not known here"
            yield Issue(code="unknown_field", message=message, field=f"$.{name}", hint=hint)
        elif not isinstance(value, list):
            message, hint_ = "this must be a list", "Leave it out if there is none."
            yield Issue(code="catalog_file", message=message, field=f"$.{name}", hint=hint_)


def _text_issues(value: Any, path: str) -> Iterator[Issue]:
    """YAML can write what PostgreSQL can't hold."""
    match value:
        case dict():
            for name, one in value.items():
                yield from _text_issues(name, f"{path}.{name}")
                yield from _text_issues(one, f"{path}.{name}")
        case list():
            for i, one in enumerate(value):
                yield from _text_issues(one, f"{path}[{i}]")
        case str() if any(one == "\0" or "\ud800" <= one <= "\udfff" for one in value):
            message = "U+0000 and half a surrogate pair are in no text that is stored"
            yield Issue(code="unstorable", message=message, field=path, hint="Drop it.")


def _entries(document: Any, name: str, issues: list[Issue], kind: type[E]) -> list[E]:
    """Those whose form is right; what is wrong with the others is added to `issues`."""
    sent = document.get(name) if isinstance(document, dict) else None
    found: list[E] = []
    for i, entry in enumerate(sent if isinstance(sent, list) else []):
        try:
            found.append(kind.model_validate(entry))
        except ValidationError as error:
            issues += below(f"$.{name}[{i}]", issues_of(error.errors()))
        except TollgateError as error:
            issues += below(f"$.{name}[{i}]", error.issues)
        else:
            issues += below(f"$.{name}[{i}]", _twice(found, name))
    return found


def _twice(found: Sequence[Entry], name: str) -> Iterator[Issue]:
    """Whether the last of them, or an offer of it, has the key of another."""
    last = found[-1]
    if last.key in (entry.key for entry in found[:-1]):
        yield _duplicate(f"{name} has the key {last.key!r} twice", "$.key")
    seen: set[str] = set()
    for i, offer in enumerate(last.addons if isinstance(last, PlanEntry) else []):
        if offer.key in seen:
            yield _duplicate(f"the plan offers the add-on {offer.key!r} twice", f"$.addons[{i}].key")
        seen.add(offer.key)


def _duplicate(message: str, field: str) -> Issue:
    return Issue(code="duplicate", message=message, field=field, hint="Drop one of them.")


def below(place: str, issues: Iterable[Issue]) -> Iterator[Issue]:
    """The same, of an entry that stands there."""
    return (replace(issue, field=f"{place}{issue.field[1:]}") for issue in issues)


def written(entry: Entry, *, defaults: bool = True) -> dict[str, Any]:
    """The entry as the file has it, every number as text in digits; the same whatever way it was written.

    Two members of plans are left out that allow of one value only, and the status, which is compared apart.
    """
    form = entry.model_dump(
        by_alias=True,
        exclude_none=True,
        exclude_defaults=not defaults,
        exclude=_APART,
    )
    first = {"key": entry.key, "name": entry.name}
    if not isinstance(entry, FeatureEntry):
        first["currency"] = entry.currency
    form = first | form
    if isinstance(entry, FeatureEntry) and (conditions := entry.advanced_meter_group_by_filters) is not None:
        form["advancedMeterGroupByFilters"] = {name: filter_json(one) for name, one in conditions.items()}
    if "addons" in form:
        form["addons"] = sorted(form.pop("addons"), key=lambda offer: str(offer["key"]))
    return {name: _plain(value) for name, value in form.items()}


_APART: Any = {
    "status": True,
    "alignment": True,
    "settlement_mode": True,
    "advanced_meter_group_by_filters": True,
    "unit_cost": {"pricing"},
}


def _plain(value: Any) -> Any:
    match value:
        case Decimal():  # out of range, it is refused later, and has more digits than memory until then
            return decimal_text(value) if in_range(value) else str(value)
        case Mapping():
            return {name: _plain(one) for name, one in value.items()}
        case list() | tuple():
            return [_plain(one) for one in value]
        case _:
            return value


def as_yaml(features: Iterable[Entry], addons: Iterable[Entry], plans: Iterable[Entry]) -> str:
    """A file that says just this, in this order; amounts are quoted, so that no reader makes them floats."""
    lists = {"features": features, "addons": addons, "plans": plans}
    document = {name: [written(one, defaults=False) for one in entries] for name, entries in lists.items()}
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110)
