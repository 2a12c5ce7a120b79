"""The curve of metric against bytes as a self-contained SVG: no library, no script, readable in light and dark."""

import math
from collections.abc import Callable
from html import escape

from compeft_client.search.tune import Curve, Point

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 400, 70, 20, 50, 60
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:currentColor}svg{color:#222;background:#fff}"
    "@media(prefers-color-scheme:dark){svg{color:#ddd;background:#1b1b1b}}"
    ".axis{stroke:currentColor}.dash{stroke:currentColor;stroke-dasharray:4 4;opacity:.6}"
)


def picture(curve: Curve, name: str) -> str:
    """Bytes on a log axis, the metric on the other; base only and the uncompressed expert as lines, the chosen point filled."""
    points = [curve.original, *curve.packed]
    metrics = [curve.base.metric, *(p.metric for p in points)]
    low, high = min(metrics), max(metrics)
    margin = 0.08 * (high - low)
    low, high = low - margin, high + margin
    least, most = math.log10(min(p.bytes for p in points)) - 0.1, math.log10(max(p.bytes for p in points)) + 0.1

    def x(octets: int) -> float:
        return LEFT + (math.log10(octets) - least) / (most - least) * (WIDTH - LEFT - RIGHT)

    def y(metric: float) -> float:
        return HEIGHT - BOTTOM - (metric - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    path = " ".join(f"{x(p.bytes):.1f},{y(p.metric):.1f}" for p in points)
    lines = [_level(p, y(p.metric), p.arm) for p in (curve.base, curve.original)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><style>{STYLE}</style>',
            f"<title>{escape(name)}: metric against bytes</title>",
            f'<text x="{LEFT}" y="24" font-weight="600">{escape(name)}: metric against bytes</text>',
            f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>',
            *lines,
            f'<polyline points="{path}" fill="none" stroke="#b3362b" stroke-width="2"/>',
            *(_dot(p, x(p.bytes), y(p.metric), p is curve.chosen) for p in points),
            *_ticks(least, most, x),
            f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 12}" text-anchor="middle">bytes of the file</text>',
            "</svg>",
        ]
    )


def _level(point: Point, at: float, label: str) -> str:
    return (
        f'<line class="dash" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        f'<text x="{LEFT + 6}" y="{at - 5:.1f}" opacity=".75">{label}: {point.metric:.4g}</text>'
    )


def _dot(point: Point, x: float, y: float, chosen: bool) -> str:
    fill = "#b3362b" if chosen else "none"
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{fill}" stroke="#b3362b" stroke-width="2">'
        f"<title>{point.arm}: {point.bytes:,} bytes, metric {point.metric:.4g}</title></circle>"
        f'<text x="{x:.1f}" y="{y + 20:.1f}" text-anchor="middle">{point.arm}</text>'
    )


def _ticks(least: float, most: float, x: Callable[[int], float]) -> list[str]:
    powers = [base * 10**power for power in range(math.floor(least), math.ceil(most) + 1) for base in (1, 2, 5)]
    shown = [octets for octets in powers if least <= math.log10(octets) <= most]
    return [f'<text x="{x(t):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{_size(t)}</text>' for t in shown]


def _size(octets: int) -> str:
    return next(f"{octets / unit:g} {name}" for unit, name in ((10**6, "MB"), (10**3, "kB"), (1, "B")) if octets >= unit)
