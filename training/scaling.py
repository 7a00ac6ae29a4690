"""What brings features and labels to one scale: learned on training events, kept in the model.

Owns the numbers and the layer that they become, the first of every network. Knows neither the
network behind it nor files. Called by train.py and baselines.py (learn) and model.py (the layer).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.conditions import StandardizeByCondition
from keyfold.export.events import OutputSpec
from keyfold.export.layers import Standardize
from keyfold.export.motion import Motion
from keyfold.training.conditions import Conditions, learn_conditions
from keyfold.training.data import Sequence
from keyfold.training.forecast import Ahead


@dataclass(frozen=True, slots=True)
class Scaling:
    """Means and deviations, learned on training sequences only."""

    mean: tuple[float, ...]  # per feature
    deviation: tuple[float, ...]  # per feature; 1 where a feature never changes
    label_mean: float  # of a regression's labels; otherwise 0
    label_deviation: float  # likewise; otherwise 1
    ahead: Ahead | None = None  # of a forecast; otherwise None
    motion: Motion | None = None  # how the features move: for the proof of the exported graph
    conditions: Conditions | None = None  # per operating condition, if the settings name columns
    symbols: int = 0  # of a text: x are numbers of so many symbols, not scaled; 0: features


def learn_scaling(
    train: Iterable[Sequence],
    outputs: OutputSpec,
    label_cap: float | None = None,
    symbols: int = 0,
) -> Scaling:
    """Learn the scaling of features, and of a regression's capped labels, from training events.

    `symbols`: see Scaling.
    """
    some = tuple(train)
    motion = None
    mean: tuple[float, ...] = (0.0,)
    deviation: tuple[float, ...] = (1.0,)
    if not symbols:
        mean, deviation = _moments([sequence.x for sequence in some])
        motion = Motion.of([sequence.x for sequence in some], mean, deviation)
    if outputs.kind != "regression":
        return Scaling(mean, deviation, 0.0, 1.0, motion=motion, symbols=symbols)
    cap = np.inf if label_cap is None else label_cap
    labels = [np.minimum(s.labels[~np.isnan(s.labels), None], cap) for s in some]
    (label_mean,), (label_deviation,) = _moments(labels)
    return Scaling(mean, deviation, label_mean, label_deviation, motion=motion, symbols=symbols)


def with_conditions(
    scaling: Scaling, train: Iterable[Sequence], columns: tuple[int, ...], count: int
) -> Scaling:
    """Return a scaling that also knows `count` operating conditions, told by columns of x."""
    conditions = learn_conditions([sequence.x for sequence in train], columns, count)
    return replace(scaling, conditions=conditions)


def _moments(arrays: list[NDArray[np.float32]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    count = sum(map(len, arrays))
    mean = sum(array.sum(axis=0, dtype=np.float64) for array in arrays) / count
    # Around the mean, in float64: a sum of squares would cancel for large means.
    square = sum(np.square(array - mean).sum(axis=0) for array in arrays) / count
    deviation = np.sqrt(square)
    constant = deviation <= 1e-6 * np.maximum(1.0, np.abs(mean))  # float32 noise of a constant
    return tuple(mean.tolist()), tuple(np.where(constant, 1.0, deviation).tolist())


def scale_layer(scaling: Scaling) -> Any:
    """Return the layer that scales features: (..., F) -> (..., F)."""
    if scaling.conditions is not None:
        return StandardizeByCondition(**asdict(scaling.conditions), name="scale")
    return Standardize(scaling.mean, scaling.deviation, name="scale")
