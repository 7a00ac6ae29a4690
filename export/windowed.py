"""A bidirectional recurrent layer over a window of the last events: its state is a ring of inputs.

Owns that layer. At each event it reads the window forwards and backwards (Schuster and Paliwal
1997) and gives what both have at their ends. With look-ahead L it gives what both have at the event
L before the newest: forwards from the window's beginning up to it, backwards from the newest event
down to it. Before a key's first event the window holds zeros, which are the means of scaled inputs.
Called by training (to build) and convert.py (to load).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import keras

from keyfold.export.stateful import LayerState, Stateful, joined, newest, steps_within, windows

LARGEST = 1e30  # of an input; float32 ends at 3.4e38
CELLS = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU, "simple_rnn": keras.layers.SimpleRNN}


@keras.saving.register_keras_serializable(package="keyfold")
class BidirectionalWindow(Stateful):
    """x (B,T,D) -> y (B,T,2*units), or (B,T,units) with merge "sum".

    With `look_ahead` y at a step describes the step so many before it.
    """

    def __init__(
        self,
        cell: str,
        units: int,
        window: int,
        merge: Literal["concat", "sum"] = "concat",
        look_ahead: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if cell not in CELLS or window < 2 or merge not in ("concat", "sum"):
            raise ValueError(
                f"BidirectionalWindow: expected a cell among {', '.join(CELLS)}, a window of at "
                f"least 2 and merge concat or sum, got {cell!r}, {window} and {merge!r}"
            )
        if not 0 <= look_ahead < window:
            raise ValueError(
                f"BidirectionalWindow: expected a look_ahead of 0 to {window - 1}, less than the "
                f"window, got {look_ahead}"
            )
        self.look_ahead = look_ahead
        self.cell, self.units, self.window, self.merge = cell, units, window, merge
        self.forward = CELLS[cell](units, dtype=self.dtype_policy, name="forward")
        self.backward = CELLS[cell](
            units, go_backwards=True, dtype=self.dtype_policy, name="backward"
        )

    def build(self, shape: Any) -> None:
        """Make the weights of both directions."""
        self.width = shape[-1]
        for layer in (self.forward, self.backward):
            layer.build((None, self.window, self.width))
        self.built = True

    @property
    def most_steps(self) -> int:
        """Largest T of one call: every event's window is gone through anew, gates and all."""
        return steps_within(self.window * (self.width + 8 * self.units))

    def state_specs(self) -> tuple[LayerState, ...]:
        """Return the last inputs."""
        return (LayerState("ring", (self.window - 1, self.width)),)

    def inner(self) -> tuple[Any, ...]:
        """Return both directions."""
        return self.forward, self.backward

    def advance(self, x: Any, lengths: Any, states: Sequence[Any]) -> tuple[Any, list[Any]]:
        """Step over x."""
        past = self.window - 1
        # An input that scaling has made infinite would stay in the ring, a state that is a reject,
        # for one event a call, and have left it by the end of a call of many.
        x = keras.ops.clip(x, -LARGEST, LARGEST)
        history = joined(states[0], x)
        each = keras.ops.reshape(windows(history, past), (-1, self.window, self.width))
        before = after = each
        if self.look_ahead:
            described = self.window - 1 - self.look_ahead  # its place in the window
            before, after = each[:, : described + 1], each[:, described:]
        forth, back = self.run(self.forward, before), self.run(self.backward, after)
        both = forth + back if self.merge == "sum" else keras.ops.concatenate([forth, back], -1)
        width = self.compute_output_shape(x.shape)[-1]
        y = keras.ops.reshape(both, (-1, keras.ops.shape(x)[1], width))
        return y, [newest(history, lengths, past)]

    def compute_output_shape(self, shape: Any) -> Any:
        """Return (B,T,E)."""
        return (*shape[:-1], self.units if self.merge == "sum" else 2 * self.units)

    def get_config(self) -> dict[str, Any]:
        """Return what __init__ needs."""
        names = ("cell", "units", "window", "merge", "look_ahead")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
