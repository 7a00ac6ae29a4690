"""Which symbols a stream of frames says, event by event, as a part of the fold behind the graph.

Owns the greedy streaming reading of a network trained by connectionist temporal classification
(Graves et al. 2006, section 3.2: best path): each event has a best column, blank or a symbol; a
symbol counts where the key's previous event had another best column, so that one that is held is
told once, and said again behind a blank. What it remembers is that previous best column, as a
tensor of the key's state. Pure numpy; knows neither records nor graphs. The same events give the
same bits however they are grouped into calls. Called by training (to count errors) and the worker's
fold; keyfold-verify reads it with code of its own (worker/verify/offline_recognition.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.states import StateSpec, Tensors, own_state

BEST = "back.best"
BLANK = 0  # the column of "nothing new", and what stands for a key before its first event


class Recognition:
    """The part of the fold behind the graph, of a transcription."""

    columns: tuple[str, ...] = ("symbol",)  # of what run() returns; 0: none
    states: tuple[StateSpec, ...] = (own_state(BEST, (), "int32", BLANK),)  # in storage order

    def run(
        self,
        y: NDArray[np.float32],
        _observed: NDArray[np.float32] | None,
        lengths: NDArray[Any],
        states: Tensors,
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
        """Read the events whose outputs are y (B,T,O).

        Returns the column of each event's new symbol (B,T,1), BLANK where there is none, and the
        states under their names. What stands beyond a row's length is not looked at, and is NaN in
        the result.
        """
        best = y.argmax(axis=2).astype(np.int32)
        every = np.concatenate([states[BEST][:, None], best], axis=1)
        new = np.where(best != every[:, :-1], best, BLANK).astype(np.float32)
        valid = np.arange(y.shape[1]) < np.asarray(lengths)[:, None]
        last = every[np.arange(len(y)), np.asarray(lengths)]
        return np.where(valid, new, np.float32(np.nan))[:, :, None], {BEST: last}
