"""Users' own recurrent cells, as named by `[model] cell = "own_cells:..."`."""

from __future__ import annotations

from typing import Any

import keras


class MinimalGatedUnit(keras.layers.Layer):  # type: ignore[misc] # keras has no types
    """The minimal gated unit (Zhou et al. 2016), whose state begins at 0.25."""

    def __init__(self, units: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.units = self.state_size = self.output_size = units

    def build(self, shape: Any) -> None:
        """Make the weights."""
        both = shape[-1] + self.units
        self.forget = self.add_weight((both, self.units), "glorot_uniform", name="forget")
        self.change = self.add_weight((both, self.units), "glorot_uniform", name="change")
        self.built = True

    def call(self, x: Any, states: Any) -> Any:
        """Step once."""
        ops, h = keras.ops, states[0]
        f = ops.sigmoid(ops.matmul(ops.concatenate([x, h], -1), self.forget))
        g = ops.tanh(ops.matmul(ops.concatenate([x, f * h], -1), self.change))
        after = (1 - f) * h + f * g
        return after, [after]

    def get_initial_state(self, batch_size: Any = None) -> Any:
        """Return the state of a cold key."""
        return [keras.ops.full((batch_size, self.units), 0.25, self.compute_dtype)]


def minimal(units: int) -> Any:
    """Make the minimal gated unit."""
    return MinimalGatedUnit(units)


def stacked(units: int) -> Any:
    """Make two of Keras's own cells, one on the other."""
    cells = [keras.layers.LSTMCell(units), keras.layers.GRUCell(units)]
    return keras.layers.StackedRNNCells(cells)


def nothing(units: int) -> Any:
    """Return what is no cell."""
    return units
