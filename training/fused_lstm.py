"""Keras's narrow LSTM layers computed by TensorFlow's fused operation while they are trained.

Owns the exchange: within it a layer computes a window by BlockLSTM, forwards and backwards one
operation each, in place of a loop over the steps. On a CPU that makes an update of 64 units 1.8
times faster; of 256 units it is slower, for its matrix products are plain. The layers stay what
they are: their weights, what is saved and what is exported do not change. Called by trainer.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from keyfold.training.settings_fit import WIDE


@contextmanager
def fused(model: Any, *, wanted: bool) -> Iterator[None]:
    """Let the narrow LSTM layers of a Keras model compute so meanwhile, where they can."""
    # A GPU has cuDNN, which is faster still.
    able = wanted and not tf.config.list_logical_devices("GPU")
    layers = [layer for layer in model.layers if able and is_plain(layer)]
    for layer in layers:
        # In front of the class' own, for this layer alone; past Keras's book-keeping.
        object.__setattr__(layer, "inner_loop", _inner_loop(layer))
    try:
        yield
    finally:
        for layer in layers:
            object.__delattr__(layer, "inner_loop")


def is_plain(layer: Any) -> bool:
    """Say whether a layer is Keras's LSTM as it comes, and narrow."""
    return (
        type(layer) is keras.layers.LSTM
        and layer.units < WIDE
        and layer.activation is keras.activations.tanh
        and layer.recurrent_activation is keras.activations.sigmoid
        and layer.use_bias
        and not (layer.dropout or layer.recurrent_dropout)
        and not (layer.go_backwards or layer.unroll)
    )


def _inner_loop(layer: Any) -> Any:
    cell = layer.cell

    def inner_loop(sequences: Any, initial_state: Any, mask: Any, training: bool = False) -> Any:
        if mask is not None:
            return type(layer).inner_loop(layer, sequences, initial_state, mask, training)
        weights = tf.concat([cell.kernel.value, cell.recurrent_kernel.value], 0)
        none = tf.zeros(layer.units)
        steps = tf.transpose(sequences, [1, 0, 2])
        found = tf.raw_ops.BlockLSTM(
            seq_len_max=tf.cast(tf.shape(steps)[0], tf.int64),
            x=steps,
            cs_prev=initial_state[1],
            h_prev=initial_state[0],
            w=_reordered(weights),
            wci=none,
            wcf=none,
            wco=none,
            b=_reordered(cell.bias.value),
            forget_bias=0.0,
            cell_clip=-1.0,
            use_peephole=False,
        )
        h = found.h[-1]
        return h, tf.transpose(found.h, [1, 0, 2]), [h, found.cs[-1]]

    return inner_loop


def _reordered(weights: Any) -> Any:
    """Return gates in the operation's order (input, candidate, forget, output), from Keras's."""
    into, forget, candidate, out = tf.split(weights, 4, axis=-1)
    return tf.concat([into, candidate, forget, out], -1)
