"""The contract's `decode` role: a second graph that answers, symbol by symbol, what was read.

Owns what the manifest says of it and its golden sequences: its states, which of the step graph's
they begin as, and whether a key's history counts. The graph has the step graph's form: x (B,T,1)
numbers of symbols, lengths (B,), states -> y (B,T,O) probabilities of the next symbol, states. What
it only reads (the encoder's outputs) is a state that comes out as it went in. Knows no runtime and
no loop. Called by bundle.py, export and whoever runs the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.errors import BundleError
from keyfold.export.states import DTYPES, StateSpec, Tensors
from keyfold.export.text import END

DECODE = "decode.onnx"

Step = Callable[
    [NDArray[np.float32], NDArray[np.int32], Tensors], tuple[NDArray[np.float32], Tensors]
]


@dataclass(frozen=True, slots=True)
class DecodeGraph:
    """What a bundle promises of its decode graph."""

    states: tuple[StateSpec, ...]  # of the graph; none of them is part of a key's state
    begins: tuple[str, ...]  # per state: the step graph's state that it begins as; "": `initial`
    width: int  # columns of the step graph's y, which predicts nothing by itself
    sha256: str = ""  # of decode.onnx
    min_rows: int = 1  # smallest B at which a row's result is the same as at any other
    first: int = END  # the symbol that every answer begins behind
    # Whether each event is read from the initial state: then a key keeps no tensors. Otherwise its
    # earlier events count, as in a dialogue.
    anew: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's form."""
        return {
            "file": DECODE,
            "sha256": self.sha256,
            "states": [
                {**state.to_json(), "begins": begins}
                for state, begins in zip(self.states, self.begins, strict=True)
            ],
            "step_outputs": self.width,
            "min_rows": self.min_rows,
            "first": self.first,
            "anew": self.anew,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DecodeGraph:
        """Read the manifest's form. Raises KeyError or TypeError on another form."""
        states = data["states"]
        return cls(
            tuple(map(StateSpec.from_json, states)),
            tuple(s["begins"] for s in states),
            data["step_outputs"],
            data["sha256"],
            data["min_rows"],
            data["first"],
            data["anew"],
        )

    def check(self, before: Sequence[StateSpec], outputs: int) -> None:
        """Refuse what cannot begin. `before`: the step graph's states. Raises BundleError."""
        known = {state.input: state for state in before}
        for number, least in (("step_outputs", 1), ("min_rows", 1)):
            value: object = self.width if number == "step_outputs" else self.min_rows
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise BundleError(f"manifest: decode.{number}: expected at least 1, got {value!r}")
        first: object = self.first
        if isinstance(first, bool) or not isinstance(first, int) or not 0 <= first < outputs:
            raise BundleError(f"manifest: decode.first: expected 0 to {outputs - 1}, got {first!r}")
        for state, begins in zip(self.states, self.begins, strict=True):
            if state.dtype not in DTYPES:
                raise BundleError(
                    f"manifest: decode state {state.input!r}: expected dtype {', '.join(DTYPES)}, "
                    f"got {state.dtype!r}"
                )
            if not begins:
                continue
            source = known.get(begins)
            if source is None or (source.dims, source.dtype) != (state.dims, state.dtype):
                got = "none" if source is None else f"{source.dtype} {list(source.dims)}"
                raise BundleError(
                    f"manifest: decode state {state.input!r}: expected it to begin as a state of "
                    f"the step graph with {state.dtype} {list(state.dims)}, got {begins!r}: {got}"
                )

    def begun(self, read: Tensors, rows: int) -> dict[str, NDArray[Any]]:
        """Return the graph's states (rows,*dims) before its first symbol.

        `read`: the step graph's states after each row's event.
        """
        return {
            state.input: read[begins]
            if begins
            else np.full((rows, *state.dims), state.initial, state.dtype)
            for state, begins in zip(self.states, self.begins, strict=True)
        }


@dataclass(frozen=True, slots=True)
class GoldenAnswers:
    """Symbols said after each golden sequence was read, and the probabilities that follow."""

    x: NDArray[np.float32]  # (R,T,1)
    lengths: NDArray[np.int32]  # (R,)
    y: NDArray[np.float32]  # (R,T,O); steps beyond a row's length are 0


def golden_difference(golden: GoldenAnswers, begun: Tensors, decode: Step) -> float:
    """Replay golden answers symbol by symbol, as answers are made; return the largest difference.

    NaN where one is not a number.
    """
    ones, states, carried = np.ones(len(golden.x), np.int32), begun, []
    for t in range(golden.x.shape[1]):
        y, states = decode(golden.x[:, t : t + 1], ones, states)
        carried.append(y)
    valid = np.arange(golden.x.shape[1]) < golden.lengths[:, None]
    return float(np.abs(np.concatenate(carried, 1) - golden.y)[valid].max())
