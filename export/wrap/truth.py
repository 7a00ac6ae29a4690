"""What a wrapped graph is compared with: its owner's sequences, and inputs to run both on.

Owns the form of golden.npz as an owner writes it, and the drawing of inputs: a bundle holds no
record of anybody. It runs no model. Called by cli.py and keras_model.py; used by proof.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.wrap.own_graph import WrapError
from keyfold.export.wrap.step import Floats

ROWS, STEPS = 8, 300  # carried in each comparison


@dataclass(frozen=True, slots=True)
class Truth:
    """What the owner's own framework computed, from initial states."""

    source: str  # for messages and the provenance
    x: Floats  # (R,T,F)
    y: NDArray[Any]  # (R,T,O), or (R,O): of each row's last step only
    lengths: NDArray[np.int64]  # (R,)


def draw_inputs(mean: NDArray[np.float64], deviation: NDArray[np.float64], seed: int = 0) -> Floats:
    """Return x (B,T,F) that wanders about the means, as real readings do."""
    draw = np.random.default_rng(seed)
    noise = draw.normal(size=(ROWS, STEPS, len(mean)))
    for t in range(1, STEPS):  # neighbours correlate by 0.8, the variance stays 1
        noise[:, t] = 0.8 * noise[:, t - 1] + 0.6 * noise[:, t]
    return (mean + deviation * noise).astype(np.float32)


def read_golden(file: Path, columns: int, outputs: int) -> Truth:
    """Read the owner's golden sequences. Raises WrapError: what is missing or of another shape.

    x (R,T,F), rows first whatever the model's own order is, or (T,F) for a single sequence; y
    (R,T,O) or (T,O), or (R,O) for the last step of each; `lengths` (R,) where they differ.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            x, y = np.asarray(arrays["x"], np.float32), np.asarray(arrays["y"], np.float64)
            lengths = np.asarray(arrays["lengths"]) if "lengths" in arrays else None
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise WrapError(f"{file}: expected numpy arrays x and y (np.savez): {error}") from error
    if x.ndim == 2:
        x, y = x[None], y[None]
    if y.ndim == 2 and outputs == 1 and y.shape == x.shape[:2] and x.shape[1] > 1:
        y = y[..., None]
    if x.ndim != 3 or x.shape[2] != columns or not x.size:
        raise WrapError(
            f"{file}: x: expected (rows, steps, {columns} columns), rows first, got {x.shape}"
        )
    if y.shape not in ((*x.shape[:2], outputs), (len(x), outputs)):
        raise WrapError(
            f"{file}: y: expected {(*x.shape[:2], outputs)}, or {(len(x), outputs)} for last steps "
            f"only, got {y.shape}"
        )
    if lengths is None:
        lengths = np.full(len(x), x.shape[1])
    if lengths.shape != (len(x),) or lengths.min() < 1 or lengths.max() > x.shape[1]:
        raise WrapError(f"{file}: lengths: expected {len(x)} numbers from 1 to {x.shape[1]}")
    return Truth(str(file), x, y, lengths.astype(np.int64))
