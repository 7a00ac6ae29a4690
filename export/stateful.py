"""Keras layers that carry a state for each key: the base class, and windows over the last events.

Owns how such a layer tells its state and steps over it, so that one layer serves three callers: a
whole sequence from cold (`call`), a window of training with carried states (`call` with states),
and the exported graph (`advance`). Concrete layers are in attention.py and windowed.py; convert.py
asks them for their states, training builds with them. It knows neither ONNX nor settings.

What makes `advance` exact: a step reads a window of fixed size, gathered for it alone, whose places
mean ages (the last place is the newest event). Its arithmetic then has the same shapes however the
events are grouped, and its result the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

MOST_STEPS = 512  # of one call
MOST_NUMBERS = 2**24  # of gathered windows in one call of MOST_ROWS rows: 64 MiB
MOST_ROWS = 64  # of a call of several steps (worker/schedule.py)


@dataclass(frozen=True, slots=True)
class LayerState:
    """One state tensor of a layer, float32."""

    name: str  # short, such as "ring"; the graph adds the layer's number
    dims: tuple[int, ...]  # without the rows
    initial: float = 0.0  # every element's value for a cold key

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)


class Stateful(keras.layers.Layer):  # type: ignore[misc] # keras has no types
    """A layer x (B,T,D) -> y (B,T,E) whose y also depends on its key's earlier events."""

    # What stands in for inner recurrent layers while convert.py traces: (layer, z) -> its output.
    stand_in: Callable[[Any, Any], Any] | None = None

    def __init__(self, return_state: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        # As Keras's recurrent layers have it; a layer has as many outputs in every call.
        self.return_state = return_state

    @property
    def most_steps(self) -> int:
        """Largest T of one call of `advance`."""
        return MOST_STEPS

    def state_specs(self) -> tuple[LayerState, ...]:
        """Return the state tensors; the layer must be built."""
        raise NotImplementedError

    def advance(self, x: Any, lengths: Any, states: Sequence[Any]) -> tuple[Any, list[Any]]:
        """Step over x (B,T,D) from states (B,*dims): y (B,T,E), states after `lengths` (B,) steps.

        Bit-identical for any B, any split of T and any x beyond a row's length; plain operations
        only, so that the graph needs neither Loop, Scan nor If.
        """
        raise NotImplementedError

    def over(self, x: Any, states: Sequence[Any]) -> tuple[Any, list[Any]]:
        """Do what `advance` does where every row is as long as x: for training, which may round."""
        return self.advance(x, full_lengths(x), states)

    def inner(self) -> tuple[Any, ...]:
        """Return the recurrent layers that `advance` runs over its windows, each one once."""
        return ()

    def run(self, layer: Any, z: Any) -> Any:
        """Apply an inner recurrent layer; convert.py puts the fused operator in its place."""
        return layer(z) if self.stand_in is None else self.stand_in(layer, z)

    def call(self, x: Any, states: Sequence[Any] | None = None) -> Any:
        """Return y, with return_state [y, *states]: flat (B,size), 0 where cold, if none given."""
        specs = self.state_specs()
        if states is None:
            rows = keras.ops.shape(x)[0]
            states = [keras.ops.zeros((rows, spec.size), self.compute_dtype) for spec in specs]
        own = [
            keras.ops.reshape(state, (-1, *spec.dims)) + spec.initial
            for state, spec in zip(states, specs, strict=True)
        ]
        y, after = self.over(x, own)
        if not self.return_state:
            return y
        flat = [
            keras.ops.reshape(state, (-1, spec.size)) - spec.initial
            for state, spec in zip(after, specs, strict=True)
        ]
        return [y, *flat]

    def compute_output_spec(self, x: Any, states: Sequence[Any] | None = None) -> Any:
        """Return y's shape, and those of the states with return_state."""
        y = keras.KerasTensor(self.compute_output_shape(x.shape), self.compute_dtype)
        if not self.return_state:
            return y
        sizes = [(x.shape[0], spec.size) for spec in self.state_specs()]
        return [y, *(keras.KerasTensor(size, self.compute_dtype) for size in sizes)]

    def get_config(self) -> dict[str, Any]:
        """Return what __init__ needs."""
        return {**super().get_config(), "return_state": self.return_state}


def full_lengths(x: Any) -> Any:
    """Return the lengths (B,) of rows that are as long as x (B,T,D)."""
    shape = keras.ops.shape(x)
    return keras.ops.zeros((shape[0],), "int32") + keras.ops.cast(shape[1], "int32")


def steps_within(numbers_per_step: int) -> int:
    """Return the largest T at which windows of so many numbers a step fit a call."""
    return max(1, min(MOST_STEPS, MOST_NUMBERS // (MOST_ROWS * numbers_per_step)))


def joined(ring: Any, x: Any) -> Any:
    """Return the history (B,R+T,D): the last R events, oldest first, then those of x."""
    return keras.ops.concatenate([ring, x], axis=1)


def windows(history: Any, past: int) -> Any:
    """Return each step's window (B,T,R+1,D) of a history (B,R+T,D): `past` events and its own."""
    steps = keras.ops.arange(keras.ops.shape(history)[1] - past)
    places = steps[:, None] + keras.ops.arange(past + 1)
    return keras.ops.take(history, places, axis=1)


def newest(history: Any, lengths: Any, past: int) -> Any:
    """Return the ring (B,R,D) after each row's length, of a history (B,R+T,D)."""
    places = lengths[:, None] + keras.ops.arange(past, dtype="int32")
    # keras.ops.take_along_axis would first copy the indices to the history's width.
    return tf.gather(history, places, axis=1, batch_dims=1)


def counted(count: Any, lengths: Any, past: int) -> Any:
    """Return how many places of the ring hold events (B,1), after each row's length."""
    more = count + keras.ops.cast(lengths[:, None], count.dtype)
    return keras.ops.minimum(more, float(past))


def seen(count: Any, steps: Any, past: int) -> Any:
    """Tell which places of each step's window hold events: (B,1) -> (B,T,R+1)."""
    ages = keras.ops.cast(past - keras.ops.arange(past + 1), count.dtype)
    before = count + keras.ops.cast(keras.ops.arange(steps), count.dtype)  # (B,T)
    return ages <= before[:, :, None]


def band(count: Any, steps: Any, past: int) -> tuple[Any, Any]:
    """Say of each step and place of a history how old it is (T,R+T), and what is seen (B,T,R+T).

    For one product of all steps with the whole history, in place of a window for each of them.
    """
    places = keras.ops.arange(steps + past) - past  # of the history: 0 is the first event of x
    ages = keras.ops.arange(steps)[:, None] - places
    inside = keras.ops.logical_and(ages >= 0, ages <= past)
    held = keras.ops.cast(places, count.dtype) >= -count  # (B,R+T)
    return ages, keras.ops.logical_and(inside, held[:, None, :])
