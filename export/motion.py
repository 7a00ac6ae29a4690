"""How a model's inputs move together and in time, without any record of them.

Owns second moments (correlations of columns with each other, now and one event before), each
column's distribution as a few quantiles, and drawing sequences that have them. A recurrent net that
is calm on inputs like its own may amplify rounding a thousandfold on others (say, on a motor's load
between its "on" and its "off"), so parity is proved on sequences that move as real ones do. Pure
numpy. Called by training (to learn), by verify (to draw).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_COLUMNS = 256  # of a model: beyond, the moments would be a large file
WIDE = 8.0  # times the usual step from quantile to quantile: a gap
LARGEST_RADIUS = 0.999  # of what carries on from event to event: sequences must not run away
LEVELS = tuple((np.arange(32) + 0.5) / 32)  # of the quantiles: neither the least nor the largest
DIGITS = 6

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Motion:
    """Second moments of inputs scaled to mean 0 and deviation 1."""

    together: Matrix  # (F,F) mean of z z', same event
    lagged: Matrix  # (F,F) mean of z z', an event and the one before it
    shares: tuple[float, ...]  # per column that is only 0 or 1: how often 1; -1 for others
    quantiles: Matrix  # (F,Q) of the inputs as they are, at LEVELS

    @classmethod
    def of(
        cls,
        sequences: Sequence[NDArray[np.float32]],
        mean: Sequence[float],
        deviation: Sequence[float],
    ) -> Motion | None:
        """Learn from inputs (T,F); None: too many columns, or too few events."""
        width = len(mean)
        pairs = sum(max(0, len(x) - 1) for x in sequences)
        if width > MOST_COLUMNS or not pairs:
            return None
        together, lagged = np.zeros((2, width, width))
        binary = np.ones(width, np.bool_)
        for x in sequences:
            z = (x.astype(np.float64) - np.array(mean)) / np.array(deviation)
            together += z.T @ z
            lagged += z[1:].T @ z[:-1]
            binary &= ((x == 0) | (x == 1)).all(axis=0)
        together /= sum(map(len, sequences))
        lagged /= pairs
        shares = np.where(binary, np.array(mean), -1.0)
        every = np.concatenate(list(sequences))
        quantiles = np.quantile(every, LEVELS, axis=0).T.astype(np.float32)
        return cls(
            _rounded(together),
            _rounded(lagged),
            tuple(np.round(shares, DIGITS).tolist()),
            tuple(map(tuple, quantiles.tolist())),
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Motion:
        """Read what asdict wrote."""
        together, lagged, quantiles = (
            tuple(map(tuple, data[name])) for name in ("together", "lagged", "quantiles")
        )
        return cls(together, lagged, tuple(data["shares"]), quantiles)

    def draw(self, draw: np.random.Generator, rows: int, steps: int) -> NDArray[np.float32]:
        """Draw inputs (B,T,F): a first-order autoregression, bent to each column's distribution."""
        together, lagged = np.array(self.together), np.array(self.lagged)
        carry = lagged @ np.linalg.pinv(together, rcond=1e-6)
        radius = float(np.abs(np.linalg.eigvals(carry)).max())
        carry *= min(1.0, LARGEST_RADIUS / radius) if radius > 0 else 1.0
        fresh = _root(together - carry @ together @ carry.T)
        z = draw.normal(size=(rows, steps, len(together)))
        z[:, 0] = z[:, 0] @ _root(together).T
        for t in range(1, steps):
            z[:, t] = z[:, t - 1] @ carry.T + z[:, t] @ fresh.T
        return self._bent(z).astype(np.float32)

    def _bent(self, z: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return z (B,T,F) with the ranks that it has and the distribution that was learned."""
        normal = NormalDist()
        levels = [normal.inv_cdf(level) for level in LEVELS]
        x = np.empty_like(z)
        for column, share in enumerate(self.shares):
            scaled = z[..., column] / max(float(z[..., column].std()), 1e-9)
            if 0 < share < 1:
                x[..., column] = scaled > normal.inv_cdf(1.0 - share)
            else:
                x[..., column] = _looked_up(scaled, levels, self.quantiles[column])
        return x


def _looked_up(
    z: NDArray[np.float64], levels: Sequence[float], values: Sequence[float]
) -> NDArray[np.float64]:
    """Return the quantiles of z, nothing in a wide gap between two: there nothing ever was."""
    steps = np.diff(values)
    wide = steps > WIDE * np.median(steps)
    before = np.clip(np.searchsorted(levels, z) - 1, 0, len(values) - 2)
    place = np.interp(z, levels, np.arange(len(levels)))
    place = np.where(wide[before], np.rint(place), place)
    return np.interp(place, np.arange(len(levels)), values)


def _rounded(matrix: NDArray[np.float64]) -> Matrix:
    return tuple(map(tuple, np.round(matrix, DIGITS).tolist()))


def _root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a root of a symmetric matrix that may be a little less than positive."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2.0)
    root: NDArray[np.float64] = vectors * np.sqrt(np.maximum(values, 0.0))
    return root
