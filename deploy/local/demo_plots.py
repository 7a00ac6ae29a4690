"""The report's pictures, as SVG text: light, sharp at any size, and without a plotting library.

Owns colours, axes and layout. Numbers in, SVG out; knows nothing of Kafka or of how the numbers
came to be. Called by demo_report.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape

import numpy as np
from numpy.typing import NDArray

from local.demo_score import NOTHING, Trace

COLOURS = ("#4e79a7", "#f28e2b", "#59a14f", "#b07aa1", "#e15759", "#76b7b2", "#edc948", "#9c755f")
MISSING = "#222222"
INK, FAINT, GRID = "#24292f", "#6e7781", "#d8dee4"
WIDTH = 880
LEFT = 84  # of the plots' area
COLUMNS = 398  # of a timeline: two units wide each


def timeline(traces: Sequence[Trace], killed_ms: int) -> str:
    """Draw, for each key, what was true above what was predicted; a line where the kill was."""
    parts: list[str] = []
    y = 14
    for trace in traces:
        parts.append(_text(0, y + 4, trace.key, weight="600"))
        right = float((trace.truth == trace.predicted).mean())
        parts.append(_text(WIDTH, y + 4, f"{right:.0%} right", FAINT, anchor="end"))
        for name, classes, top in (("true", trace.truth, 12), ("predicted", trace.predicted, 34)):
            parts.append(_text(LEFT - 8, y + top + 13, name, FAINT, anchor="end"))
            parts += _band(classes, y + top)
        parts += _kill(trace, killed_ms, y + 8)
        y += 58
        parts += _time_axis(trace, y)
        y += 34
    return _svg(WIDTH, y - 8, parts)


def legend(names: Sequence[str]) -> str:
    """Return the classes' colours as HTML."""
    items = (
        f'<span class="class"><i style="background:{_colour(i)}"></i>{escape(name)}</span>'
        for i, name in enumerate(names)
    )
    return f'<p class="legend">{"".join(items)}</p>'


def confusion(names: Sequence[str], counts: NDArray[np.int64]) -> str:
    """Draw counts (O,O), truth by prediction, as shares of each truth."""
    cell, high, left, top = 52, 34, 74, 44
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    parts = [_text(left + cell * len(names) / 2, 12, "predicted", FAINT, anchor="middle")]
    for i, name in enumerate(names):
        x, y = left + (i + 0.5) * cell, top + (i + 0.5) * high + 4
        parts.append(_text(x, top - 10, name, anchor="middle"))
        parts.append(_text(left - 8, y, name, anchor="end"))
        for j, share in enumerate(shares[i]):
            box = left + j * cell, top + i * high
            parts.append(
                f'<rect x="{box[0] + 1}" y="{box[1] + 1}" width="{cell - 2}" height="{high - 2}" '
                f'rx="3" fill="#1f6feb" fill-opacity="{0.04 + 0.9 * share:.3f}"/>'
            )
            ink = "#ffffff" if share > 0.5 else INK if share >= 0.005 else "#afb8c1"
            middle = left + (j + 0.5) * cell
            parts.append(_text(middle, y, f"{share:.0%}", ink, anchor="middle"))
    return _svg(left + cell * len(names) + 4, top + high * len(names) + 6, parts)


def bars(values: Mapping[str, float]) -> str:
    """Draw shares between 0 and 1 as bars, the first one emphasised."""
    left, room, parts = 132, 250, []
    for i, (name, value) in enumerate(values.items()):
        y = 8 + i * 38
        fill = "#1f6feb" if i == 0 else "#c5ccd3"
        parts.append(_text(left - 10, y + 17, name, anchor="end"))
        parts.append(
            f'<rect x="{left}" y="{y}" width="{room * value:.1f}" height="24" rx="3" '
            f'fill="{fill}"/>'
        )
        parts.append(_text(left + room * value + 8, y + 17, f"{value:.1%}", weight="600"))
    return _svg(left + room + 60, 8 + 38 * len(values), parts)


def losses(train: Sequence[float], validation: Sequence[float], best_pass: int) -> str:
    """Draw the loss by pass over the training sequences, from 1 on."""
    left, top, wide, high = 44, 12, 780, 180
    highest = max(*train, *validation) * 1.05
    count = max(len(train), 2)

    def at(number: int, loss: float) -> tuple[float, float]:
        x = left + wide * (number - 1) / (count - 1)
        return x, top + high * (1 - loss / highest)

    parts = _loss_axes((left, top, wide, high), highest, count)
    kept = at(best_pass, 0)[0]
    parts.append(
        f'<line x1="{kept:.1f}" x2="{kept:.1f}" y1="{top}" y2="{top + high}" stroke="{FAINT}" '
        'stroke-dasharray="2 3"/>'
    )
    near_end = kept > left + wide - 40
    parts.append(_text(kept + (-5 if near_end else 5), top + 10, "kept", FAINT,
                       anchor="end" if near_end else "start"))  # fmt: skip
    for name, values, colour in (
        ("train (with dropout)", train, COLOURS[1]),
        ("validation", validation, "#1f6feb"),
    ):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, range(1, count + 1), values))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2" '
            'stroke-linejoin="round"/>'
        )
        y = top + high + 50
        x = left if colour == COLOURS[1] else left + 170
        parts.append(f'<rect x="{x}" y="{y - 9}" width="14" height="10" rx="2" fill="{colour}"/>')
        parts.append(_text(x + 20, y, name))
    return _svg(left + wide + 12, top + high + 58, parts)


def _loss_axes(area: tuple[int, int, int, int], highest: float, count: int) -> list[str]:
    left, top, wide, high = area
    parts = [_text(left + wide / 2, top + high + 31, "pass over the training events", FAINT,
                   anchor="middle")]  # fmt: skip
    step = next(s for s in (0.05, 0.1, 0.2, 0.25, 0.5, 1, 2, 5, 10) if highest / s <= 6 or s == 10)
    for i in range(int(highest / step) + 1):
        y = top + high * (1 - i * step / highest)
        parts.append(f'<line x1="{left}" x2="{left + wide}" y1="{y:.1f}" y2="{y:.1f}" '
                     f'stroke="{GRID}"/>')  # fmt: skip
        parts.append(_text(left - 7, y + 4, f"{i * step:g}", FAINT, anchor="end"))
    every = max(1, -(-count // 8))
    for number in range(1, count + 1, every):
        x = left + wide * (number - 1) / (count - 1)
        parts.append(_text(x, top + high + 15, str(number), FAINT, anchor="middle"))
    return parts


def _band(classes: NDArray[np.int64], y: int) -> list[str]:
    """Draw one row of classes, the most frequent one of each column."""
    columns = min(COLUMNS, len(classes))
    width = (WIDTH - LEFT) / columns
    shown = [_mode(chunk) for chunk in np.array_split(classes, columns)]
    starts = [i for i in range(columns) if i == 0 or shown[i] != shown[i - 1]]
    return [
        f'<rect x="{LEFT + a * width:.1f}" y="{y}" width="{(b - a) * width:.1f}" height="18" '
        f'fill="{_colour(shown[a])}"/>'
        for a, b in zip(starts, [*starts[1:], columns], strict=True)
    ]


def _mode(classes: NDArray[np.int64]) -> int:
    values, counts = np.unique(classes, return_counts=True)
    return int(values[counts.argmax()])


def _kill(trace: Trace, killed_ms: int, y: int) -> list[str]:
    after = np.flatnonzero(trace.emitted_ms > killed_ms)
    if not len(after) or after[0] == 0:
        return []
    x = LEFT + (WIDTH - LEFT) * after[0] / len(trace.truth)
    return [
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + 48}" stroke="{MISSING}" '
        'stroke-width="2"/>',
        _text(x, y - 2, "✕ SIGKILL", MISSING, weight="600", anchor="middle"),
    ]


def _time_axis(trace: Trace, y: int) -> list[str]:
    begin, end = int(trace.times_ms[0]), int(trace.times_ms[-1])
    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        moment = datetime.fromtimestamp((begin + share * (end - begin)) / 1000, UTC)
        anchor = "start" if share == 0 else "end" if share == 1 else "middle"
        x = LEFT + (WIDTH - LEFT) * share
        parts.append(_text(x, y + 8, f"{moment:%H:%M:%S}", FAINT, anchor=anchor))
    return parts


def _colour(number: int) -> str:
    return MISSING if number == NOTHING else COLOURS[number % len(COLOURS)]


def _text(
    x: float,
    y: float,
    text: str,
    fill: str = INK,
    *,
    anchor: str = "start",
    weight: str = "400",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{fill}" text-anchor="{anchor}" '
        f'font-weight="{weight}" font-size="13">{escape(text)}</text>'
    )


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img">'
        + "".join(parts)
        + "</svg>"
    )
