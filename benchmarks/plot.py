"""Two plots as SVG, written by hand: lines over the number of stored events."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, PLOT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 90, 30, 56, 52
COLOURS = ("#1f6f8b", "#c8553d", "#588157", "#7b2cbf")
Line = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """From the first tick to the last; `powers` of ten stand at equal distances."""

    ticks: Sequence[float]
    powers: bool = False

    def share(self, value: float) -> float:
        first, value, last = (
            (math.log10(number) if self.powers else number)
            for number in (self.ticks[0], value, self.ticks[-1])
        )
        return (value - first) / (last - first)


def even(highest: float) -> Axis:
    """From 0 in at most five round steps: 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(highest / 5))
    step = next(power * m for m in (1, 2, 5, 10) if power * m * 5 >= highest)
    return Axis([step * i for i in range(math.ceil(highest / step - 1e-9) + 1)])


def powers(values: Sequence[float]) -> Axis:
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return Axis([10.0**n for n in range(first, max(last, first + 1) + 1)], powers=True)


def plot(title: str, unit: str, lines: Mapping[str, Line], *, logarithmic: bool = False) -> str:
    """Each line as points (stored events, value)."""
    across = even(max(x for line in lines.values() for x, _ in line) / 1e6)
    values = [y for line in lines.values() for _, y in line]
    up = powers(values) if logarithmic else even(max(values))
    parts = [_text(LEFT, 24, title, size=16), _text(LEFT - 8, TOP - 12, unit, anchor="end")]
    parts += _rulers(across, up)
    for i, (name, line) in enumerate(lines.items()):
        points = [(_x(across, x / 1e6), _y(up, y)) for x, y in line]
        parts += [*_drawn(points, COLOURS[i]), *_named(name, COLOURS[i], PLOT + 18 + 20 * i)]
    height = PLOT + 24 + 20 * len(lines)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{height}" fill="white"/>', *parts, "</svg>\n"])


def _rulers(across: Axis, up: Axis) -> list[str]:
    parts = []
    for tick in up.ticks:
        y = _y(up, tick)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{tick:,.6g}", anchor="end"))
    y = PLOT - BOTTOM + 18
    parts += [_text(_x(across, tick), y, f"{tick:.6g}", anchor="middle") for tick in across.ticks]
    return [*parts, _text((LEFT + WIDTH - RIGHT) / 2, y + 18, "million events stored", anchor="middle")]


def _drawn(points: Sequence[tuple[float, float]], colour: str) -> list[str]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
    return [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>', *dots]


def _named(name: str, colour: str, y: float) -> list[str]:
    square = f'<rect x="{LEFT}" y="{y - 11:.0f}" width="12" height="12" fill="{colour}"/>'
    return [square, _text(LEFT + 18, y, name)]


def _x(axis: Axis, value: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * axis.share(value)


def _y(axis: Axis, value: float) -> float:
    return PLOT - BOTTOM - (PLOT - TOP - BOTTOM) * axis.share(value)


def _text(x: float, y: float, words: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{words}</text>'
