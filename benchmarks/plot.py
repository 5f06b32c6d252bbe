"""
Drawing line charts as SVG.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, floor, log10
from xml.sax.saxutils import escape

COLOURS = ("#3b6ea5", "#b5562c", "#5a8f4e", "#8a5a9e", "#9a7d1f")
WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 80, 600, 50, 340

STYLE = """  <style>
    .paper { fill: #ffffff }
    .grid { stroke: #dddddd }
    text { fill: #444444 }
    @media (prefers-color-scheme: dark) { .paper { fill: #1c1e21 } .grid { stroke: #3a3d42 } text { fill: #dddddd } }
  </style>"""

Points = Sequence[tuple[float, float]]


def chart(title: str, across: str, up: str, lines: Mapping[str, Points], *, log: bool = False) -> str:
    """
    Draw lines over a logarithmic axis.

    :param across: label of the horizontal axis; its ticks are at the points.
    :param up: label of the vertical axis, which begins at 0, or at a power of ten.
    :param lines: each line's points by its name; all x and y are above 0, and there is at least one point.
    :param log: whether the vertical axis is logarithmic too.
    """
    xs = sorted({x for points in lines.values() for x, _ in points})
    ys = [y for points in lines.values() for _, y in points]
    ticks = _powers(min(ys), max(ys)) if log else _steps(max(ys))
    low, high = _scaled(ticks[0], log=log), _scaled(ticks[-1], log=log)
    span = log10(xs[-1] / xs[0]) or 1.0

    def x_of(x: float) -> float:
        return LEFT + log10(x / xs[0]) / span * (RIGHT - LEFT)

    def y_of(y: float) -> float:
        return BOTTOM - (_scaled(y, log=log) - low) / (high - low) * (BOTTOM - TOP)

    head = f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13" role="img" aria-label="{escape(title)}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {head}>',
        STYLE,
        f'  <rect width="{WIDTH}" height="{HEIGHT}" class="paper"/>',
        _text(WIDTH / 2, 24, title, "middle", ' font-size="15" font-weight="bold"'),
        _text((LEFT + RIGHT) / 2, BOTTOM + 45, across, "middle"),
        _text(LEFT, TOP - 12, up, "middle"),
    ]
    for tick in ticks:
        y = y_of(tick)
        parts.append(f'  <path d="M{LEFT} {y:.1f}H{RIGHT}" class="grid"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{tick:,g}", "end"))
    for x in xs:
        parts.append(f'  <path d="M{x_of(x):.1f} {BOTTOM}v6" stroke="#888888"/>')
        parts.append(_text(x_of(x), BOTTOM + 22, f"{x:,.0f}", "middle"))
    taken: list[float] = []
    for (name, points), colour in zip(lines.items(), COLOURS, strict=False):
        path = "L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in points)
        parts.append(f'  <path d="M{path}" stroke="{colour}" stroke-width="2" fill="none"/>')
        parts += [f'  <circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
        label = y_of(points[-1][1]) + 4
        while any(abs(label - other) < 15 for other in taken):
            label += 1
        taken.append(label)
        parts.append(_text(RIGHT + 10, label, name, "start", colour=colour))
    return "\n".join([*parts, "</svg>", ""])


def _scaled(value: float, *, log: bool) -> float:
    return log10(value) if log else value


def _powers(least: float, most: float) -> list[float]:
    first, last = floor(log10(least)), ceil(log10(most))
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]


def _steps(most: float) -> list[float]:
    step = 10.0 ** floor(log10(most))
    while most / step < 4:
        step /= 2
    return [step * count for count in range(ceil(most * 1.05 / step) + 1)]


def _text(x: float, y: float, text: str, anchor: str, more: str = "", *, colour: str = "") -> str:
    # The style's rule would override an attribute.
    fill = f' style="fill: {colour}"' if colour else ""
    return f'  <text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{fill}{more}>{escape(text)}</text>'
