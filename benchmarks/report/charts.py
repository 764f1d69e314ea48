"""Charts as inline SVG; colours come from the page's CSS variables, so they follow its theme."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from amlr.benchmarks.report.figures import number

Bins = Sequence[Sequence[float | None]]
# The label column fits the longest own name, "amlr-onnxruntime-cpu int8", in bold.
_BAR, _GAP, _LABEL, _VALUE, _WIDTH = 20, 8, 216, 120, 592
_PLOT_W, _PLOT_H, _LEFT, _RIGHT, _TOP, _BOTTOM = 560, 260, 56, 130, 12, 44
# Two line labels closer than this would print over each other.
_LABEL_STEP = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One horizontal bar.

    Attributes:
        label: On the left.
        value: Length.
        note: Behind the value.
        high: End of a thin line (p95), or None.
        is_own: Whether it is the engine's.
    """

    label: str
    value: float
    note: str = ""
    high: float | None = None
    is_own: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One curve over named places on the x axis; None leaves a gap."""

    label: str
    values: Sequence[float | None]
    is_own: bool = False


def bar_chart(bars: Sequence[Bar], unit: str, title: str) -> str:
    """Horizontal bars, in the order given."""
    longest = max((max(bar.value, bar.high or 0.0) for bar in bars), default=1.0) or 1.0
    scale = (_WIDTH - _LABEL - _VALUE) / longest
    height = len(bars) * (_BAR + _GAP) + _GAP
    parts = [_open(_WIDTH, height, title)]
    for row, bar in enumerate(bars):
        y = _GAP + row * (_BAR + _GAP)
        middle = y + _BAR / 2
        end = _LABEL + max(bar.value * scale, 1.0)
        kind = "own" if bar.is_own else "peer"
        parts.append(
            f'<text class="{kind}-label" x="{_LABEL - 8}" y="{middle:.1f}" text-anchor="end" '
            f'dominant-baseline="central">{escape(bar.label)}</text>'
            f'<rect class="{kind}" x="{_LABEL}" y="{y}" width="{end - _LABEL:.1f}" '
            f'height="{_BAR}" rx="3"/>'
        )
        tip = end
        if bar.high is not None and bar.high > bar.value:
            tip = _LABEL + bar.high * scale
            parts.append(
                f'<path class="whisker" d="M{end:.1f} {middle}H{tip:.1f}M{tip:.1f} {y + 5}'
                f'V{y + _BAR - 5}"/>'
            )
        note = f' <tspan class="note">{escape(bar.note)}</tspan>' if bar.note else ""
        parts.append(
            f'<text x="{tip + 6:.1f}" y="{middle:.1f}" dominant-baseline="central">'
            f"{number(bar.value)} {escape(unit)}{note}</text>"
        )
    return "".join([*parts, "</svg>"])


def line_chart(lines: Sequence[Line], places: Sequence[str], x_label: str, unit: str) -> str:
    """Curves over evenly spaced places, from zero up."""
    known = [value for line in lines for value in line.values if value is not None]
    ticks = _ticks(max(known, default=1.0))
    top = ticks[-1]
    width, height = _PLOT_W - _LEFT - _RIGHT, _PLOT_H - _TOP - _BOTTOM
    x = [_LEFT + width * i / max(1, len(places) - 1) for i in range(len(places))]
    parts = [_open(_PLOT_W, _PLOT_H, f"{unit} over {x_label}")]
    for tick in ticks:
        y = _TOP + height * (1 - tick / top)
        parts.append(
            f'<path class="grid" d="M{_LEFT} {y:.1f}H{_LEFT + width}"/>'
            f'<text class="axis" x="{_LEFT - 6}" y="{y:.1f}" text-anchor="end" '
            f'dominant-baseline="central">{number(tick)}</text>'
        )
    parts += [
        f'<text class="axis" x="{at:.1f}" y="{_TOP + height + 16}" text-anchor="middle">'
        f"{escape(place)}</text>"
        for at, place in zip(x, places, strict=True)
    ]
    parts.append(
        f'<text class="axis" x="{_LEFT + width / 2}" y="{_PLOT_H - 6}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
    )
    ends = []
    for number_, line in enumerate(lines):
        points = [
            (at, _TOP + height * (1 - value / top))
            for at, value in zip(x, line.values, strict=True)
            if value is not None
        ]
        if not points:
            continue
        kind = "own-line" if line.is_own else f"line-{number_ % 4}"
        path = "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in points)
        dots = "".join(f'<circle class="{kind}-dot" cx="{px:.1f}" cy="{py:.1f}" r="3"/>'
                       for px, py in points)  # fmt: skip
        parts.append(f'<path class="line {kind}" d="{path}"/>{dots}')
        ends.append((points[-1][1], line.label, kind))
    parts += _line_labels(ends, x[-1] + 9)
    return "".join([*parts, "</svg>"])


def _line_labels(ends: list[tuple[float, str, str]], x: float) -> list[str]:
    labels = []
    low = -1e9
    for y, label, kind in sorted(ends):
        low = max(y, low + _LABEL_STEP)
        labels.append(
            f'<text class="{kind}-text" x="{x:.1f}" y="{low:.1f}" dominant-baseline="central">'
            f"{escape(label)}</text>"
        )
    return labels


def reliability_chart(before: Bins, after: Bins) -> str:
    """Share of correct entities over their score, with the diagonal of perfect honesty.

    Args:
        before: Bins of (count, mean confidence, share correct) at temperature 1.
        after: The same at the chosen temperature.
    """
    side, left, top = 260, 56, 12
    parts = [_open(left + side + 150, top + side + 44, "share of correct entities over score")]
    for tick in np.linspace(0, 1, 6):
        x, y = left + side * tick, top + side * (1 - tick)
        parts.append(
            f'<path class="grid" d="M{left} {y:.1f}H{left + side}M{x:.1f} {top}V{top + side}"/>'
            f'<text class="axis" x="{left - 6}" y="{y:.1f}" text-anchor="end" '
            f'dominant-baseline="central">{tick:.1f}</text>'
            f'<text class="axis" x="{x:.1f}" y="{top + side + 16}" text-anchor="middle">'
            f"{tick:.1f}</text>"
        )
    parts.append(f'<path class="diagonal" d="M{left} {top + side}L{left + side} {top}"/>')
    for bins, kind in ((before, "line-0"), (after, "own-line")):
        points = [(b[1], b[2]) for b in bins if b[0] and b[1] is not None and b[2] is not None]
        path = "L".join(f"{left + side * c:.1f} {top + side * (1 - s):.1f}" for c, s in points)
        dots = "".join(
            f'<circle class="{kind}-dot" cx="{left + side * c:.1f}" '
            f'cy="{top + side * (1 - s):.1f}" r="3.5"/>'
            for c, s in points
        )
        parts.append(f'<path class="line {kind}" d="M{path}"/>{dots}' if points else "")
    for row, (kind, label) in enumerate((("line-0", "temperature 1"), ("own-line", "calibrated"))):
        parts.append(
            f'<text class="{kind}-text" x="{left + side + 12}" y="{top + 14 + row * 18}">'
            f"{label}</text>"
        )
    parts.append(
        f'<text class="axis" x="{left + side / 2}" y="{top + side + 36}" text-anchor="middle">'
        "score of an entity</text></svg>"
    )
    return "".join(parts)


def _open(width: float, height: float, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title, quote=True)}">'
    )


def _ticks(top: float) -> list[float]:
    """Four or five round numbers from 0 to at least `top`."""
    if not top > 0:
        return [0.0, 1.0]
    step = 10 ** np.floor(np.log10(top / 4))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if step * factor * 4 >= top)
    return [float(step * i) for i in range(int(np.ceil(top / step)) + 1)]
