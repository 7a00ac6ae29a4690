"""A user's own recurrent cell, by name, and the one-step form of keras.layers.RNN around any cell.

Owns loading "package.module:function" and giving its cell a registered class, so that a saved model
finds the cell again wherever the user's folder is in PYTHONPATH; and how RNN steps once from
explicit states, for the graph. Called by training (to build) and convert.py.

The function takes the number of units and returns a Keras cell: a layer with `state_size`,
`output_size` and call(x (B,D), states) -> (y (B,E), states).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keyfold.export.errors import Crash
from keyfold.export.stateful import LayerState


class CellError(Crash):
    """A user's cell cannot be used."""


@keras.saving.register_keras_serializable(package="keyfold")
class OwnCell(keras.layers.Layer):  # type: ignore[misc] # keras has no types
    """The cell that "package.module:function" makes, for keras.layers.RNN."""

    def __init__(self, source: str, units: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.source, self.units = source, units
        usual = keras.config.dtype_policy()
        keras.config.set_dtype_policy(self.dtype_policy)  # also of cells within the cell
        try:
            self.cell = load_cell(source, units)
        finally:
            keras.config.set_dtype_policy(usual)
        self.state_size = self.cell.state_size
        self.output_size = self.cell.output_size

    def build(self, shape: Any) -> None:
        """Make the cell's weights."""
        if not self.cell.built:
            self.cell.build(shape)
        self.built = True

    def call(self, x: Any, states: Any, training: bool = False) -> Any:
        """Step once."""
        takes_training = getattr(self.cell, "_call_has_training_arg", False)
        return self.cell(x, states, **({"training": training} if takes_training else {}))

    def get_initial_state(self, batch_size: Any = None) -> list[Any]:
        """Return the cell's own initial state, zeros where it has none."""
        if hasattr(self.cell, "get_initial_state"):
            found = self.cell.get_initial_state(batch_size=batch_size)
            return list(found) if isinstance(found, list | tuple) else [found]
        sizes = self.state_size
        sizes = sizes if isinstance(sizes, list | tuple) else [sizes]
        return [keras.ops.zeros((batch_size, size), self.compute_dtype) for size in sizes]

    def get_config(self) -> dict[str, Any]:
        """Return what __init__ needs."""
        return {**super().get_config(), "source": self.source, "units": self.units}


def load_cell(source: str, units: int) -> Any:
    """Make the cell that "package.module:function" names. Raises CellError."""
    module, _, function = source.partition(":")
    try:
        made: Any = getattr(importlib.import_module(module), function)(units)
    except Exception as error:  # the seam: this runs code that is not ours
        raise CellError(f"{_expected(source)}: {error}; is its folder in PYTHONPATH?") from error
    if not isinstance(made, keras.layers.Layer) or not hasattr(made, "state_size"):
        raise CellError(
            f"model.cell: {source}: expected a Keras layer with state_size and output_size, "
            f"got {type(made).__name__}"
        )
    if not hasattr(made, "output_size"):
        raise CellError(f"model.cell: {source}: expected output_size beside state_size, got none")
    return made


def source_sha256(source: str) -> str:
    """Return the SHA-256 of the file that "package.module:function" stands in, "": it has none.

    What that file imports is not looked at. Raises CellError.
    """
    module = source.partition(":")[0]
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        raise CellError(f"{_expected(source)}: {error}; is its folder in PYTHONPATH?") from error
    if found is None or not found.has_location or found.origin is None:
        return ""
    return hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()


def _expected(source: str) -> str:
    return f"model.cell: expected an importable 'package.module:function', got {source!r}"


class OneStep:
    """A keras.layers.RNN that is stepped once a call, from explicit states."""

    most_steps = 1
    stand_in: Any = None  # as Stateful has it; there are no inner layers

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def state_specs(self) -> tuple[LayerState, ...]:
        """Return the cell's states as its own initial state shows them."""
        with tf.init_scope():  # numbers, also while a graph is traced
            initial = keras.tree.flatten(self.layer.cell.get_initial_state(batch_size=1))
        found = []
        for number, value in enumerate(map(np.asarray, initial)):
            first = float(value.flat[0]) if value.size else 0.0
            if value.ndim < 2 or not (value == first).all():
                raise CellError(
                    f"layer {self.layer.name!r}: expected initial states (rows, numbers) that are "
                    f"one number throughout, got shape {value.shape}; learn such a start with a "
                    "first step instead"
                )
            found.append(LayerState(f"cell{number}_", tuple(value.shape[1:]), first))
        return tuple(found)

    def advance(self, x: Any, _lengths: Any, states: Sequence[Any]) -> tuple[Any, list[Any]]:
        """Step once: x (B,1,D) -> y (B,1,E)."""
        packed = keras.tree.pack_sequence_as(self._structure(), list(states))
        y, after = self.layer.cell(x[:, 0], packed)
        return y[:, None], list(keras.tree.flatten(after))

    def _structure(self) -> Any:
        sizes = self.layer.cell.state_size
        return [sizes] if isinstance(sizes, int) else sizes
