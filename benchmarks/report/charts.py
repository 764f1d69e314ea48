"""Charts as inline SVG; colours come from the page's CSS variables, so they follow its theme."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from amlr.benchmarks.report.figures import number

Bins = Sequence[tuple[int, float | None, float | None]]
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
    """Horizontal bars, the shortest first."""
    bars = sorted(bars, key=lambda bar: bar.value)
    longest = max((max(bar.value, bar.high or 0.0) for bar in bars), default=1.0) or 1.0
    scale = (_WIDTH - _LABEL - _VALUE) / longest
    parts = [_open(_WIDTH, len(bars) * (_BAR + _GAP) + _GAP, title)]
    for row, bar in enumerate(bars):
        y = _GAP + row * (_BAR + _GAP)
        middle = y + _BAR / 2
        end = _LABEL + max(bar.value * scale, 1.0)
        kind = "own" if bar.is_own else "peer"
        parts += [
            _text(f"{kind}-label", _LABEL - 8, middle, escape(bar.label), anchor="end"),
            f'<rect class="{kind}" x="{_LABEL}" y="{y}" width="{end - _LABEL:.1f}" '
            f'height="{_BAR}" rx="3"/>',
        ]
        tip = end
        if bar.high is not None and bar.high > bar.value:
            tip = _LABEL + bar.high * scale
            parts.append(
                f'<path class="whisker" d="M{end:.1f} {middle}H{tip:.1f}M{tip:.1f} {y + 5}'
                f'V{y + _BAR - 5}"/>'
            )
        note = f' <tspan class="note">{escape(bar.note)}</tspan>' if bar.note else ""
        value = f"{number(bar.value)} {escape(unit)}{note}"
        parts.append(_text("value", tip + 6, middle, value, anchor="start"))
    return "".join([*parts, "</svg>"])


def line_chart(lines: Sequence[Line], places: Sequence[str], x_label: str, unit: str) -> str:
    """Curves over evenly spaced places, from zero up."""
    known = [value for line in lines for value in line.values if value is not None]
    ticks = _ticks(max(known, default=1.0))
    width, height = _PLOT_W - _LEFT - _RIGHT, _PLOT_H - _TOP - _BOTTOM
    step, scale = width / max(1, len(places) - 1), height / ticks[-1]
    bottom = _TOP + height
    parts = [_open(_PLOT_W, _PLOT_H, f"{unit} over {x_label}")]
    for tick in ticks:
        y = bottom - tick * scale
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_LEFT + width}"/>')
        parts.append(_text("axis", _LEFT - 6, y, number(tick), anchor="end"))
    for i, place in enumerate(places):
        parts.append(_text("axis", _LEFT + i * step, bottom + 12, escape(place)))
    parts.append(_text("axis", _LEFT + width / 2, _PLOT_H - 10, escape(x_label)))
    ends = []
    for order, line in enumerate(lines):
        points = [
            (_LEFT + i * step, bottom - value * scale)
            for i, value in enumerate(line.values)
            if value is not None
        ]
        if points:
            kind = "own-line" if line.is_own else f"line-{order % 4}"
            parts.append(_curve(kind, points))
            ends.append((points[-1][1], line.label, kind))
    low = -1e9
    for y, label, kind in sorted(ends):
        low = max(y, low + _LABEL_STEP)
        x = _LEFT + (len(places) - 1) * step + 9
        parts.append(_text(f"{kind}-text", x, low, escape(label), anchor="start"))
    return "".join([*parts, "</svg>"])


def reliability_chart(before: Bins, after: Bins) -> str:
    """Share of correct entities over their score, beside perfect honesty.

    Bins are (count, mean score, share correct), at temperature 1 and at the chosen one.
    """
    count = max(len(before), len(after), 1)
    middles = [(i + 0.5) / count for i in range(count)]
    curves = (("temperature 1", before, False), ("calibrated", after, True))
    lines = [
        Line(label=label, values=[share for _, _, share in bins], is_own=is_own)
        for label, bins, is_own in curves
    ]
    lines.append(Line(label="honest", values=middles))
    return line_chart(lines, [f"{m:.2f}" for m in middles], "score of an entity", "share correct")


def _text(kind: str, x: float, y: float, content: str, *, anchor: str = "middle") -> str:
    """A text of escaped content, its middle at the height `y`."""
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" '
        f'dominant-baseline="central">{content}</text>'
    )


def _curve(kind: str, points: Sequence[tuple[float, float]]) -> str:
    """A line through points, with a dot on each."""
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dots = "".join(f'<circle class="{kind}-dot" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
                   for x, y in points)  # fmt: skip
    return f'<path class="line {kind}" d="M{path}"/>{dots}'


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
