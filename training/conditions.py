"""Operating conditions, learned from training events: where they are and how features lie in each.

Owns the search for K centres over named columns (k-means) and the mean and deviation of every
feature in each. An engine at 10 km and one on the ground differ far more than a worn engine from a
new one; scaled by condition, what is left is wear. Pure numpy; knows no Keras. Called by
scaling.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.errors import Crash
from keyfold.training.moments import deviations

STARTS, ROUNDS = 8, 100  # of k-means, by k-means++ (Arthur and Vassilvitskii 2007)
MOST_EVENTS = 20_000  # that the search for centres looks at, evenly spread
Numbers = NDArray[np.float64]
Rows = tuple[tuple[float, ...], ...]


class ConditionsError(Crash):
    """The training events do not show as many conditions as the settings name."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """K conditions over C of F columns."""

    columns: tuple[int, ...]  # C columns of x that tell the condition
    spreads: tuple[float, ...]  # (C,) deviation of each over all training events
    centres: Rows  # (K,C)
    means: Rows  # (K,F)
    deviations: Rows  # (K,F); 1 where a feature never changes in a condition

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Conditions:
        """Read what asdict wrote."""
        return cls(
            tuple(data["columns"]),
            tuple(data["spreads"]),
            *(tuple(map(tuple, data[name])) for name in ("centres", "means", "deviations")),
        )


def learn_conditions(
    train: Iterable[NDArray[np.float32]], columns: tuple[int, ...], count: int
) -> Conditions:
    """Find `count` conditions in training events (T,F) and how features lie in each.

    The columns that tell the condition are scaled alike everywhere, so that the network still sees
    which one it is. Raises ConditionsError when there are fewer than `count`.
    """
    x = np.concatenate(list(train)).astype(np.float64)
    mean, spread = x.mean(axis=0), _deviation(x, x.mean(axis=0))
    at = list(columns)
    seen = (x[:, at] - mean[at]) / spread[at]
    step = -(-len(seen) // MOST_EVENTS)
    centres = _centres(seen[::step], count)
    nearest = _nearest(seen, centres)
    means, spreads = np.tile(mean, (count, 1)), np.tile(spread, (count, 1))
    others = np.setdiff1d(np.arange(x.shape[1]), at)
    for number in range(count):
        mine = x[nearest == number][:, others]
        means[number, others] = mine.mean(axis=0)
        spreads[number, others] = _deviation(mine, means[number, others])
    return Conditions(
        columns,
        tuple(spread[at].tolist()),
        *(
            tuple(map(tuple, rows.tolist()))
            for rows in (centres * spread[at] + mean[at], means, spreads)
        ),
    )


def _deviation(x: Numbers, mean: Numbers) -> Numbers:
    return deviations(np.square(x - mean).mean(axis=0), mean)


def _centres(seen: Numbers, count: int) -> Numbers:
    """Return the best centres (K,C) of several starts, in ascending order."""
    distinct = len(np.unique(seen, axis=0))
    if distinct < count:
        raise ConditionsError(
            f"data.condition_count: expected at most {distinct}, as many as data.conditions show "
            f"in training, got {count}"
        )
    draw = np.random.default_rng(0)
    found = [_settled(seen, _spread_out(seen, count, draw)) for _ in range(STARTS)]
    best = min(found, key=lambda centres: float(_squares(seen, centres).min(axis=1).sum()))
    return best[np.lexsort(best.T[::-1])]


def _spread_out(seen: Numbers, count: int, draw: np.random.Generator) -> Numbers:
    """Draw first centres, each far from those before it (k-means++)."""
    centres = seen[draw.integers(len(seen), size=1)]
    while len(centres) < count:
        squares = _squares(seen, centres).min(axis=1)
        chosen = draw.choice(len(seen), p=squares / squares.sum())
        centres = np.concatenate([centres, seen[chosen : chosen + 1]])
    return centres


def _settled(seen: Numbers, centres: Numbers) -> Numbers:
    """Move centres to the middle of what is nearest to them, until they stay (Lloyd 1982)."""
    for _ in range(ROUNDS):
        nearest = _nearest(seen, centres)
        moved = np.array(
            [
                seen[nearest == number].mean(axis=0) if (nearest == number).any() else centre
                for number, centre in enumerate(centres)
            ]
        )
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres


def _nearest(seen: Numbers, centres: Numbers) -> NDArray[np.int64]:
    found: NDArray[np.int64] = _squares(seen, centres).argmin(axis=1)
    return found


def _squares(seen: Numbers, centres: Numbers) -> Numbers:
    """Return squared distances (N,K)."""
    found: Numbers = np.square(seen[:, None, :] - centres).sum(axis=2)
    return found
