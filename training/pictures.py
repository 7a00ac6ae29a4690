"""Pictures of a run for a person: forecasts against what came, the anomaly score, the loss.

Owns the drawing; computes nothing but what to show. Called by train.py.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.outputs import Forecast, OutputSpec
from keyfold.training.forecast import flags, points, score
from keyfold.training.split import Part

KEYS, FIELDS, EVENTS = 2, 3, 400  # at most, shown
Judged = tuple[Part, Seq[NDArray[np.float32]]]  # a part and its outputs


def draw_forecasts(judged: Judged, outputs: OutputSpec, file: Path) -> None:
    """Draw a few keys: each field with its forecast at the first horizon, and the score."""
    # The object interface: pyplot would need a display or a global switch.
    from matplotlib.figure import Figure

    forecast = outputs.forecast
    if forecast is None:
        return
    part, y = judged
    scored = score(y, part, outputs)
    sizes = [len(s) - start for s, start in zip(part.sequences, part.counts_from, strict=True)]
    chosen = sorted(range(len(sizes)), key=lambda n: -sizes[n])[:KEYS]
    fields = forecast.fields[:FIELDS]
    rows = len(fields) + (outputs.anomaly is not None)
    figure = Figure(figsize=(6.5 * len(chosen), 2.2 * rows), layout="constrained")
    axes = figure.subplots(rows, len(chosen), squeeze=False, sharex="col")
    for place, number in enumerate(chosen):
        column = axes[:, place]
        shown = _shown(part, number, scored[number] if scored else None)
        column[0].set_title(f"key {part.sequences[number].key[:40]}", parse_math=False)
        for axis, field in zip(column, range(len(fields)), strict=False):
            _draw_field(axis, (part, number), y[number], (forecast, field, shown))
        if outputs.anomaly is not None:
            start = part.counts_from[number]
            _draw_score(
                column[-1], scored[number][shown.start - start : shown.stop - start], outputs
            )
        column[-1].set_xlabel("events")
    axes[0][0].legend(loc="upper right", fontsize=8)
    figure.savefig(file, dpi=110)


def _shown(part: Part, number: int, scores: NDArray[np.float32] | None) -> slice:
    """Return which events to show: about the highest score, or the first ones."""
    start, end = part.counts_from[number], len(part.sequences[number])
    first = start
    if scores is not None and not np.isnan(scores[:, 0]).all():
        first = start + int(np.nanargmax(scores[:, 0])) - EVENTS // 2
    first = max(start, min(first, end - EVENTS))
    return slice(first, min(first + EVENTS, end))


def _draw_field(
    axis: Any,
    place: tuple[Part, int],
    y: NDArray[np.float32],
    what: tuple[Forecast, int, slice],
) -> None:
    part, number = place
    forecast, field, shown = what
    observed = part.sequences[number].observed
    if observed is None:
        return
    horizons, levels = forecast.horizons, max(1, len(forecast.quantiles))
    ahead = horizons[0]
    column = field * len(horizons)
    made = np.full(len(y), np.nan)
    made[ahead:] = points(y, forecast)[:-ahead, column]
    steps = np.arange(shown.stop - shown.start)
    axis.plot(steps, observed[shown, field], ".-", color="black", linewidth=0.8, markersize=2,
              label="what came")  # fmt: skip
    axis.plot(steps, made[shown], color="tab:orange", linewidth=1.0, label=f"forecast +{ahead}")
    if levels > 1:
        low, high = np.full((2, len(y)), np.nan)
        low[ahead:] = y[:-ahead, column * levels]
        high[ahead:] = y[:-ahead, (column + 1) * levels - 1]
        axis.fill_between(
            steps, low[shown], high[shown], color="tab:orange", alpha=0.25, linewidth=0,
            label=f"{forecast.quantiles[0]:g} to {forecast.quantiles[-1]:g}",
        )  # fmt: skip
    axis.set_ylabel(forecast.fields[field][:24], parse_math=False)


def _draw_score(axis: Any, scores: NDArray[np.float32], outputs: OutputSpec) -> None:
    anomaly = outputs.anomaly
    if anomaly is None:
        return
    steps = np.arange(len(scores))
    axis.plot(steps, scores[:, 0], color="tab:blue", linewidth=0.8)
    above = flags(scores, anomaly)
    if anomaly.dynamic is None:
        axis.axhline(anomaly.threshold, color="tab:red", linestyle="--", linewidth=1.0)
    else:
        axis.plot(steps, scores[:, 2], color="tab:red", linestyle="--", linewidth=1.0)
    axis.plot(steps[above], scores[above, 0], "o", color="tab:red", markersize=4)
    axis.set_ylabel("anomaly score")
    axis.set_ylim(bottom=0.0)
