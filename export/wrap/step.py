"""A wrapped step graph that runs, and the ways of cutting the same events into calls of it.

Owns one ONNX Runtime session, set up as the worker sets up its own, and the carrying of states from
call to call. It judges nothing. Called by proof.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.states import StateSpec, cold
from keyfold.export.wrap.running import quiet_session

Floats = NDArray[np.float32]
States = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Grouping:
    """One way of cutting the same events into calls."""

    name: str  # for messages
    rows: int  # B of a call
    steps: tuple[int, ...] = (1,)  # T of the calls, over and over
    padding: int = 0  # NaN steps beyond every row's length


@dataclass(frozen=True, slots=True)
class Step:
    """A step graph that runs."""

    session: Any  # of ONNX Runtime
    states: tuple[StateSpec, ...]  # in the graph's order
    min_rows: int = 1  # fewer are padded, as the worker pads

    @classmethod
    def of(cls, graph: bytes, states: tuple[StateSpec, ...]) -> Step:
        """Open a step graph. Raises WrapError."""
        return cls(quiet_session(graph), states)

    def __call__(
        self, x: Floats, lengths: NDArray[np.int32], before: Mapping[str, NDArray[Any]]
    ) -> tuple[Floats, States]:
        """Run x (B,T,F) from `before`; return y (B,T,O) and the states after each row's length."""
        rows, feed = len(x), {"x": x, "lengths": lengths, **before}
        if rows < self.min_rows:
            feed = {n: np.concatenate([v, v[-1:]]) for n, v in feed.items()}
        names = ["y", *(state.output for state in self.states)]
        y, *after = self.session.run(names, feed)
        return y[:rows], {
            state.input: value[:rows] for state, value in zip(self.states, after, strict=True)
        }

    def carry(self, x: Floats, grouping: Grouping) -> tuple[Floats, States]:
        """Run all of x (B,T,F) from cold states, cut into calls; return y and the last states."""
        ys, ends = [], []
        for first in range(0, len(x), grouping.rows):
            part = x[first : first + grouping.rows]
            y, end = self._carry(part, cold(self.states, len(part)), grouping)
            ys.append(y)
            ends.append(end)
        return np.concatenate(ys), {
            name: np.concatenate([e[name] for e in ends]) for name in ends[0]
        }

    def _carry(self, x: Floats, states: States, grouping: Grouping) -> tuple[Floats, States]:
        ys: list[Floats] = []
        first = turn = 0
        while first < x.shape[1]:
            part = x[:, first : first + grouping.steps[turn % len(grouping.steps)]]
            first, turn = first + part.shape[1], turn + 1
            lengths = np.full(len(x), part.shape[1], np.int32)
            steps = part.shape[1]
            if grouping.padding:
                nothing = np.full((len(x), grouping.padding, x.shape[2]), np.nan, np.float32)
                part = np.concatenate([part, nothing], axis=1)
            y, states = self(part, lengths, states)
            ys.append(y[:, :steps])
        return np.concatenate(ys, axis=1), states
