"""Which cubes the meters need: one for each event type and value, over all their dimensions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from metering.meter import MeterDefinition

__all__ = ["CubeSpec", "changes", "wanted_cubes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CubeSpec:
    """What a cube tells apart (`paths`), what it gave up telling apart, and what it answers besides sums."""

    event_type: str
    value_property: str | None
    paths: frozenset[str] = frozenset()
    too_wide: frozenset[str] = frozenset()
    distinct_values: bool = False
    latest_values: bool = False

    @property
    def subject_matter(self) -> tuple[str, str | None]:
        return self.event_type, self.value_property

    def covers(self, other: "CubeSpec") -> bool:
        """Whether every question that `other` is for can be answered by this one, or by no cube at all."""
        return (
            self.subject_matter == other.subject_matter
            and other.paths <= self.paths | self.too_wide
            and self.distinct_values >= other.distinct_values
            and self.latest_values >= other.latest_values
        )


def wanted_cubes(meters: Iterable[MeterDefinition]) -> list[CubeSpec]:
    wanted: dict[tuple[str, str | None], CubeSpec] = {}
    for meter in meters:
        matter = meter.event_type, meter.value_property
        so_far = wanted.get(matter, CubeSpec(event_type=matter[0], value_property=matter[1]))
        wanted[matter] = CubeSpec(
            event_type=meter.event_type,
            value_property=meter.value_property,
            paths=so_far.paths | frozenset(meter.group_by.values()),
            distinct_values=so_far.distinct_values or meter.aggregation == "UNIQUE_COUNT",
            latest_values=so_far.latest_values or meter.aggregation == "LATEST",
        )
    return list(wanted.values())


def changes(
    wanted: Sequence[CubeSpec], existing: Sequence[tuple[int, CubeSpec, bool]]
) -> tuple[list[CubeSpec], list[int]]:
    """The cubes to begin, and the ids of those to drop. `existing`: id, what it is, and whether it is built.

    A narrower cube answers until the one that takes its place is built.
    """
    begin = [
        _without_too_wide(spec, existing)
        for spec in wanted
        if not any(c.covers(spec) for _, c, _ in existing)
    ]
    drop = [
        cube_id
        for cube_id, cube, _ in existing
        if not any(spec.subject_matter == cube.subject_matter for spec in wanted)
        or any(_replaces(other, cube_id, cube, wanted) for other in existing)
    ]
    return begin, drop


def _without_too_wide(spec: CubeSpec, existing: Sequence[tuple[int, CubeSpec, bool]]) -> CubeSpec:
    same = [cube for _, cube, _ in existing if cube.subject_matter == spec.subject_matter]
    known = frozenset[str]().union(*(cube.too_wide for cube in same))
    return replace(spec, paths=spec.paths - known, too_wide=spec.paths & known)


def _replaces(
    other: tuple[int, CubeSpec, bool], cube_id: int, cube: CubeSpec, wanted: Sequence[CubeSpec]
) -> bool:
    """Whether `other` is built, is newer, and answers all that is wanted of this subject matter."""
    other_id, spec, built = other
    return (
        built
        and other_id > cube_id
        and spec.subject_matter == cube.subject_matter
        and all(spec.covers(w) for w in wanted if w.subject_matter == cube.subject_matter)
    )
