"""Line charts as inline SVG: axes, ticks, labels, a legend in the page's own colours, nothing to load.

Colours are CSS classes (`s0`, `s1` ... for lines), so that the page decides on light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

Point = tuple[float, float]
Place = Callable[[Point], Point]  # from data to the drawing

WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 36
MINUS = "\N{MINUS SIGN}"
MAX_POINTS = 240  # more are averaged in neighbouring groups: a screen has no more pixels
SMOOTH_FROM = 60  # from as many points on, a running mean is drawn over the faint raw line,
SMOOTH_NOISE = 0.01  # if the line strays from it by this share of its range


@dataclass(frozen=True)
class Chart:
    """Named lines over one horizontal axis.

    level: a value worth knowing, drawn dashed, and what it means. about: a line of explanation.
    """

    title: str
    lines: dict[str, list[Point]]
    x_label: str = "step"
    level: tuple[float, str] | None = None
    about: str = ""


def svg(chart: Chart) -> Markup:
    """The chart as one `<svg>` element. Values that are not finite are left out."""
    lines = {name: thinned([p for p in line if all(map(math.isfinite, p))]) for name, line in chart.lines.items()}
    xs = [x for line in lines.values() for x, _ in line] or [0.0, 1.0]
    ys = [y for line in lines.values() for _, y in line] or [0.0, 1.0]
    if chart.level and _near(chart.level[0], ys):
        ys = [*ys, chart.level[0]]
    x_ticks, y_ticks = ticks(min(xs), max(xs), 6, whole=True), ticks(min(ys), max(ys), 5)
    x_range = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 1, max(xs) + 1)
    pad = 0.5 * (y_ticks[-1] - y_ticks[0]) if _flat(min(ys), max(ys)) else 0.05 * (max(ys) - min(ys))
    y_range = (min(ys) - pad, max(ys) + pad)

    def at(point: Point) -> Point:
        x = LEFT + (point[0] - x_range[0]) / (x_range[1] - x_range[0]) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (point[1] - y_range[0]) / (y_range[1] - y_range[0]) * (HEIGHT - TOP - BOTTOM)
        return x, y

    parts = [_axes(_within(x_ticks, x_range), _within(y_ticks, y_range), chart.x_label, at)]
    if chart.level and y_range[0] <= chart.level[0] <= y_range[1]:
        parts.append(_level(chart.level, at((x_range[0], chart.level[0]))[1]))
    for number, line in enumerate(lines.values()):
        parts.append(_line(line, number % 4, at))
    label = escape(f"{chart.title}: {', '.join(chart.lines)} by {chart.x_label}")
    inside = Markup("").join(parts)
    return Markup(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}" class="chart">{inside}</svg>')


def ticks(low: float, high: float, about: int, *, whole: bool = False) -> list[float]:
    """Round numbers around low..high, about as many as asked: steps of 1, 2 or 5 times a power of ten."""
    if _flat(low, high):
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / max(about - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    if whole:
        step = max(1.0, step)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _flat(low: float, high: float) -> bool:
    """Whether the ends differ by no more than rounding does, so that no ticks between them can be told apart."""
    return high - low <= 1e-9 * max(abs(low), abs(high))


def thinned(line: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """At most `most` points: neighbours averaged in equal groups, the first and last point kept."""
    if len(line) <= most:
        return list(line)
    inner, groups = line[1:-1], most - 2
    edges = [round(i * len(inner) / groups) for i in range(groups + 1)]
    means = [_mean(inner[a:b]) for a, b in pairwise(edges) if b > a]
    return [line[0], *means, line[-1]]


def smoothed(line: Sequence[Point]) -> list[Point]:
    """A centred running mean over a twentieth of the line, of what there is of it at the ends."""
    reach = max(1, len(line) // 40)
    return [(x, _mean(line[max(0, i - reach) : i + reach + 1])[1]) for i, (x, _) in enumerate(line)]


def number(value: float, digits: int = 4) -> str:
    """A number as short as it may be read: 0.0001 as 1e-4, 12000 as 12k; with a true minus sign."""
    if value < 0:
        return MINUS + number(-value, digits)
    if value < 1e-12:
        return "0"
    if value < 1e-3 or value >= 1e7:
        mantissa, _, power = f"{value:.{digits - 2}e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(power)}"
    if value >= 1e4:
        return f"{value / 1000:.{digits}g}k"
    return f"{value:.{max(digits, len(str(int(value))))}g}"


def labels(values: Sequence[float]) -> list[str]:
    """Ticks as text, with as many decimals as tell them apart."""
    most, step = max(map(abs, values)), min((b - a for a, b in pairwise(values)), default=1.0)
    if most < 1e-3 or most >= 1e4:
        short = [number(value) for value in values]
        return short if len(set(short)) == len(short) else [number(value, 8) for value in values]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{value + 0.0:.{decimals}f}".replace("-", MINUS) for value in values]


def _within(values: Sequence[float], ends: tuple[float, float]) -> list[float]:
    slack = 1e-9 * (ends[1] - ends[0])
    return [value for value in values if ends[0] - slack <= value <= ends[1] + slack]


def _near(level: float, ys: Sequence[float]) -> bool:
    """Whether showing the level leaves the lines at least a fifth of the height."""
    low, high = min(ys), max(ys)
    return max(high, level) - min(low, level) <= 5 * max(high - low, 1e-12)


def _mean(points: Sequence[Point]) -> Point:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def _axes(x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str, at: Place) -> Markup:
    parts = []
    for value, text in zip(y_ticks, labels(y_ticks), strict=True):
        y = at((0, value))[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>')
    bottom = HEIGHT - BOTTOM
    for value in x_ticks:
        x = at((value, 0))[0]
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{number(value)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    label = f'<text x="{middle}" y="{HEIGHT - 5}" text-anchor="middle" class="label">{escape(x_label)}</text>'
    return Markup("".join([*parts, label]))


def _level(level: tuple[float, str], y: float) -> Markup:
    text_y = y - 5 if y > TOP + 16 else y + 13
    return Markup(
        f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="halo" x="{WIDTH - RIGHT - 4}" y="{text_y:.1f}" text-anchor="end">{escape(level[1])}</text>'
    )


def _line(line: Sequence[Point], colour: int, at: Place) -> Markup:
    if not line:
        return Markup("")
    if len(line) == 1:
        x, y = at(line[0])
        return Markup(f'<circle class="dot s{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>')
    if len(line) < SMOOTH_FROM:
        dots = "".join('<circle class="dot s{}" cx="{:.1f}" cy="{:.1f}" r="2"/>'.format(colour, *at(p)) for p in line)
        return Markup(_path(line, f"line s{colour}", at) + (dots if len(line) <= 24 else ""))
    middle = smoothed(line)
    spread = max(y for _, y in line) - min(y for _, y in line)
    noise = sum(abs(y - m) for (_, y), (_, m) in zip(line, middle, strict=True)) / len(line)
    if noise <= SMOOTH_NOISE * spread:
        return Markup(_path(line, f"line s{colour}", at))
    return Markup(_path(line, f"raw s{colour}", at) + _path(middle, f"line s{colour}", at))


def _path(line: Sequence[Point], css: str, at: Place) -> str:
    points = " ".join("{:.1f},{:.1f}".format(*at(p)) for p in line)
    return f'<polyline class="{css}" points="{points}"/>'
