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
from keyfold.export.text import Text
from keyfold.training.conditions import Conditions, learn_conditions
from keyfold.training.data import Sequence
from keyfold.training.forecast import Ahead
from keyfold.training.moments import deviations


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
    width: int = 0  # the last so many columns are symbols, behind the features; 0: none, or all

    @property
    def columns(self) -> int:
        """How many columns x has."""
        return len(self.mean) + self.width


def learn_scaling(
    train: Iterable[Sequence],
    outputs: OutputSpec,
    label_cap: float | None = None,
    text: Text | None = None,
) -> Scaling:
    """Learn the scaling of features, and of a regression's capped labels, from training events.

    `text`: how events' texts are read; its symbols are not scaled.
    """
    some = tuple(train)
    scaling = Scaling((0.0,), (1.0,), 0.0, 1.0)
    if text is not None:
        scaling = replace(scaling, symbols=text.size, width=text.width)
    if text is None or text.width:
        features = [s.x[:, : s.x.shape[1] - scaling.width] for s in some]
        mean, deviation = _moments(features)
        motion = Motion.of(features, mean, deviation) if mean else None
        scaling = replace(scaling, mean=mean, deviation=deviation, motion=motion)
    if outputs.kind != "regression":
        return scaling
    cap = np.inf if label_cap is None else label_cap
    labels = [np.minimum(s.labels[~np.isnan(s.labels), None], cap) for s in some]
    (label_mean,), (label_deviation,) = _moments(labels)
    return replace(scaling, label_mean=label_mean, label_deviation=label_deviation)


def with_conditions(
    scaling: Scaling, train: Iterable[Sequence], columns: tuple[int, ...], count: int
) -> Scaling:
    """Return a scaling that also knows `count` operating conditions, told by columns of x."""
    features = [s.x[:, : s.x.shape[1] - scaling.width] for s in train]
    conditions = learn_conditions(features, columns, count)
    return replace(scaling, conditions=conditions)


def _moments(arrays: list[NDArray[np.float32]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    count = sum(map(len, arrays))
    mean = sum(array.sum(axis=0, dtype=np.float64) for array in arrays) / count
    # Around the mean, in float64: a sum of squares would cancel for large means.
    squares = sum(np.square(array - mean).sum(axis=0) for array in arrays) / count
    return tuple(mean.tolist()), tuple(deviations(squares, mean).tolist())


def scale_layer(scaling: Scaling) -> Any:
    """Return the layer that scales features: (..., F) -> (..., F)."""
    if scaling.conditions is not None:
        return StandardizeByCondition(**asdict(scaling.conditions), name="scale")
    return Standardize(scaling.mean, scaling.deviation, name="scale")
