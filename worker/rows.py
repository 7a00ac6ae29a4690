"""A micro-batch's events as the fold takes them: columns of arrays, results filled in.

Owns this shape and the reason of an event whose step went wrong. Made by worker/pipeline.py, filled
in by worker/fold.py and worker/unrolled.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NOT_FINITE = "the step's result is not finite; the key's state is unchanged"


@dataclass(frozen=True, slots=True)
class Rows:
    """N events in offset order per key; y, steps, rejects and scores are filled in by the fold."""

    slots: NDArray[np.intp]  # (N,) each event's slot, -1: not to be stepped
    x: NDArray[np.float32]  # (N,F); of texts (M,1): all events' steps, one behind the other
    offsets: NDArray[np.int64]  # (N,)
    times_ms: NDArray[np.int64]  # (N,)
    stream_ms: NDArray[np.int64]  # (N,) the partition's stream time, this event included
    y: NDArray[np.float32]  # (N,O) outputs
    steps: NDArray[np.int64]  # (N,) steps of the key, this one included
    rejects: dict[int, str]  # row -> why; its slot becomes -1
    observed: NDArray[np.float32] | None = None  # (N,K) what forecasts are compared with
    scores: NDArray[np.float32] | None = None  # (N,S) of the anomaly; None: the bundle has none
    verdicts: NDArray[np.uint8] | None = None  # (N,) where each goes; None: all to the output
    lengths: NDArray[np.int64] | None = None  # (N,) steps of each event; None: one each
    each: NDArray[np.float32] | None = None  # (M,O) outputs of all symbols; None: not asked for
    abouts: NDArray[np.int64] | None = None  # (N,) offset of the event that each one's y describes
    about_ms: NDArray[np.int64] | None = None  # (N,) its time; None: each describes itself
    # Event -> the "output" of each symbol that answers it; None: the bundle does not generate.
    said: dict[int, list[bytes]] | None = None
