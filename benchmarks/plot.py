"""Two plots as SVG, written by hand: lines over the number of stored events."""

from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 90, 20, 48, 80
COLOURS = ("#1f6f8b", "#c8553d", "#588157", "#7b2cbf")
Line = Sequence[tuple[float, float]]


def plot(title: str, unit: str, lines: Mapping[str, Line]) -> str:
    """Each line as points (stored events, value); both axes begin at 0."""
    right = max((x for line in lines.values() for x, _ in line), default=1) or 1
    step = _round_step(max((y for line in lines.values() for _, y in line), default=1) or 1)
    parts = [_text(LEFT, 24, title, size=16), *_grid(step, unit), *_stored(right)]
    for i, (name, line) in enumerate(lines.items()):
        parts += _line(line, COLOURS[i % len(COLOURS)], right, 5 * step)
        x = LEFT + i * (WIDTH - LEFT - RIGHT) / len(lines)
        parts.append(f'<rect x="{x:.0f}" y="{HEIGHT - 22}" width="12" height="12" fill="{COLOURS[i]}"/>')
        parts.append(_text(x + 18, HEIGHT - 11, name))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>', *parts, "</svg>\n"])


def _round_step(highest: float) -> float:
    """A fifth of the axis: 1, 2 or 5 times a power of ten."""
    power = 10.0 ** (len(f"{highest / 5:.0f}") - 1) if highest >= 5 else 0.1
    while highest < power:
        power /= 10
    return next(power * m for m in (1, 2, 2.5, 5, 10, 20, 50, 100) if power * m * 5 >= highest)


def _grid(step: float, unit: str) -> list[str]:
    parts = []
    for i in range(6):
        y = _y(i * step, 5 * step)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{i * step:,.10g}", anchor="end"))
    return [*parts, _text(LEFT - 8, TOP - 8, unit, anchor="end")]


def _stored(right: float) -> list[str]:
    ticks = [right * i / 5 for i in range(6)]
    y = HEIGHT - BOTTOM + 18
    numbers = [_text(_x(x, right), y, f"{x / 1e6:g}", anchor="middle") for x in ticks]
    return [*numbers, _text((LEFT + WIDTH - RIGHT) / 2, y + 18, "million events stored", anchor="middle")]


def _line(line: Line, colour: str, right: float, top: float) -> list[str]:
    points = [(_x(x, right), _y(y, top)) for x, y in line]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
    return [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>', *dots]


def _x(value: float, right: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * value / right


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top


def _text(x: float, y: float, words: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{words}</text>'
