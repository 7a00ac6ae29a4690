"""Attention over a key's last events, as layers that carry a ring: for LSTMs and transformers.

Owns two layers and their arithmetic. WindowAttention looks back at the past hidden states of the
recurrent layer below it: additive after Bahdanau, Cho and Bengio 2015, multiplicative ("general")
after Luong, Pham and Manning 2015. CausalAttention is a transformer's self-attention (Vaswani et
al. 2017) whose keys and values of the last events are its state; positions are ages, by a learned
bias for each head and age (Raffel et al. 2020), and heads may share keys and values (Ainslie et al.
2023). Called by training (to build) and convert.py (to load).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keyfold.export.stateful import (
    LayerState,
    Stateful,
    band,
    counted,
    full_lengths,
    joined,
    newest,
    seen,
    steps_within,
    windows,
)

NOTHING = -1e9  # the score of a place without an event: its weight is 0
KINDS = ("additive", "multiplicative")


@keras.saving.register_keras_serializable(package="keyfold")
class WindowAttention(Stateful):
    """h (B,T,D) -> tanh of h and of what it attends to among the last `window` h: (B,T,D)."""

    def __init__(self, kind: str, window: int, **settings: Any) -> None:
        super().__init__(**settings)
        if kind not in KINDS or window < 2:
            raise ValueError(
                f"WindowAttention: expected one of {', '.join(KINDS)} and a window of at least 2, "
                f"got {kind!r} and {window}"
            )
        self.kind, self.window = kind, window

    def build(self, shape: Any) -> None:
        """Make the weights for hidden states of this width."""
        width = shape[-1]
        self.width = width
        self.query = self.add_weight((width, width), "glorot_uniform", name="query")
        if self.kind == "additive":
            self.key = self.add_weight((width, width), "glorot_uniform", name="key")
            self.key_bias = self.add_weight((width,), "zeros", name="key_bias")
            self.direction = self.add_weight((width,), "random_normal", name="direction")
        self.kernel = self.add_weight((2 * width, width), "glorot_uniform", name="kernel")
        self.bias = self.add_weight((width,), "zeros", name="bias")
        self.built = True

    @property
    def most_steps(self) -> int:
        """Largest T of one call."""
        return steps_within(self.window * self.width)

    def state_specs(self) -> tuple[LayerState, ...]:
        """Return the last hidden states, and how many there are."""
        return LayerState("ring", (self.window - 1, self.width)), LayerState("count", (1,))

    def advance(self, x: Any, lengths: Any, states: Sequence[Any]) -> tuple[Any, list[Any]]:
        """Step over hidden states x."""
        ring, count = states
        past = self.window - 1
        history = joined(ring, x)
        valid = seen(count, keras.ops.shape(x)[1], past)
        values = windows(history, past)  # (B,T,W,D)
        scores = keras.ops.where(valid, self._scores(x, history, values), NOTHING)
        weights = keras.ops.softmax(scores, axis=-1)
        context = keras.ops.matmul(weights[:, :, None, :], values)[:, :, 0, :]
        after = [newest(history, lengths, past), counted(count, lengths, past)]
        return self._joined(context, x), after

    def over(self, x: Any, states: Sequence[Any]) -> tuple[Any, list[Any]]:
        """Step over x; where scores are products, without a window for every step."""
        if self.kind == "additive":
            return super().over(x, states)
        ring, count = states
        past, steps = self.window - 1, keras.ops.shape(x)[1]
        history = joined(ring, x)
        _, valid = band(count, steps, past)
        query = keras.ops.matmul(x, self.query)
        scores = keras.ops.matmul(query, keras.ops.transpose(history, (0, 2, 1)))
        weights = keras.ops.softmax(keras.ops.where(valid, scores, NOTHING), axis=-1)
        y = self._joined(keras.ops.matmul(weights, history), x)
        return y, [history[:, steps:], counted(count, full_lengths(x), past)]

    def _joined(self, context: Any, x: Any) -> Any:
        both = keras.ops.concatenate([context, x], axis=-1)
        return keras.ops.tanh(keras.ops.matmul(both, self.kernel) + self.bias)

    def _scores(self, x: Any, history: Any, values: Any) -> Any:
        query = keras.ops.matmul(x, self.query)
        if self.kind == "multiplicative":
            return keras.ops.matmul(values, query[:, :, :, None])[:, :, :, 0]
        keys = windows(keras.ops.matmul(history, self.key) + self.key_bias, self.window - 1)
        return keras.ops.sum(keras.ops.tanh(keys + query[:, :, None, :]) * self.direction, axis=-1)

    def compute_output_shape(self, shape: Any) -> Any:
        """Return the shape unchanged."""
        return tuple(shape)

    def get_config(self) -> dict[str, Any]:
        """Return what __init__ needs."""
        return {**super().get_config(), "kind": self.kind, "window": self.window}


@keras.saving.register_keras_serializable(package="keyfold")
class CausalAttention(Stateful):
    """Self-attention of x (B,T,D) over the last `window` events, the newest included: (B,T,D)."""

    def __init__(self, heads: int, window: int, kv_heads: int = 0, **settings: Any) -> None:
        super().__init__(**settings)
        self.heads, self.window, self.kv_heads = heads, window, kv_heads or heads
        if window < 2 or heads % self.kv_heads:
            raise ValueError(
                "CausalAttention: expected a window of at least 2 and heads in groups, got "
                f"window {window}, {heads} heads and {self.kv_heads} of keys and values"
            )

    def build(self, shape: Any) -> None:
        """Make the weights for inputs of this width."""
        width = shape[-1]
        if width % self.heads:
            raise ValueError(f"CausalAttention: expected {self.heads} heads of {width} equal parts")
        self.width, self.part = width, width // self.heads
        kept = 2 * self.kv_heads * self.part
        self.query = self.add_weight((width, width), "glorot_uniform", name="query")
        self.key_value = self.add_weight((width, kept), "glorot_uniform", name="key_value")
        self.by_age = self.add_weight((self.heads, self.window), "zeros", name="by_age")
        self.kernel = self.add_weight((width, width), "glorot_uniform", name="kernel")
        self.bias = self.add_weight((width,), "zeros", name="bias")
        self.built = True

    @property
    def most_steps(self) -> int:
        """Largest T of one call."""
        return steps_within(2 * self.window * self.kv_heads * self.part)

    def state_specs(self) -> tuple[LayerState, ...]:
        """Return the last keys and values, and of how many events they are."""
        kept = 2 * self.kv_heads * self.part
        return LayerState("ring", (self.window - 1, kept)), LayerState("count", (1,))

    def advance(self, x: Any, lengths: Any, states: Sequence[Any]) -> tuple[Any, list[Any]]:
        """Step over x with a window gathered for every step."""
        ring, count = states
        past, ops = self.window - 1, keras.ops
        steps = ops.shape(x)[1]
        history = joined(ring, ops.matmul(x, self.key_value))
        kept = ops.reshape(
            windows(history, past), (-1, steps, self.window, 2, self.kv_heads, self.part)
        )
        keys = ops.transpose(kept[:, :, :, 0], (0, 1, 3, 4, 2))  # (B,T,G,P,W)
        values = ops.transpose(kept[:, :, :, 1], (0, 1, 3, 2, 4))  # (B,T,G,W,P)
        scores = ops.matmul(self._queries(x), keys) + self._bias(self.by_age)
        valid = seen(count, steps, past)[:, :, None, None, :]
        weights = ops.softmax(ops.where(valid, scores, NOTHING), axis=-1)
        heads = ops.reshape(ops.matmul(weights, values), (-1, steps, self.width))
        y = ops.matmul(heads, self.kernel) + self.bias
        return y, [newest(history, lengths, past), counted(count, lengths, past)]

    def over(self, x: Any, states: Sequence[Any]) -> tuple[Any, list[Any]]:
        """Step over x with one product for all steps: less memory than windows, other rounding."""
        ring, count = states
        past, ops = self.window - 1, keras.ops
        steps = ops.shape(x)[1]
        history = joined(ring, ops.matmul(x, self.key_value))
        kept = ops.reshape(history, (-1, steps + past, 2, self.kv_heads, 1, self.part))
        keys = ops.transpose(kept[:, :, 0], (0, 2, 3, 4, 1))  # (B,G,1,P,R+T)
        values = ops.transpose(kept[:, :, 1], (0, 2, 3, 1, 4))  # (B,G,1,R+T,P)
        queries = ops.transpose(self._queries(x), (0, 2, 3, 1, 4))  # (B,G,H/G,T,P)
        ages, valid = band(count, steps, past)
        near = ops.take(self.by_age, ops.clip(past - ages, 0, past), axis=1)
        scores = ops.matmul(queries, keys) + self._bias(near)
        valid = valid[:, None, None]
        weights = ops.softmax(ops.where(valid, scores, NOTHING), axis=-1)
        heads = ops.transpose(ops.matmul(weights, values), (0, 3, 1, 2, 4))
        y = ops.matmul(ops.reshape(heads, (-1, steps, self.width)), self.kernel) + self.bias
        return y, [history[:, steps:], counted(count, full_lengths(x), past)]

    def _queries(self, x: Any) -> Any:
        """Return (B,T,G,H/G,P), scaled."""
        queries = keras.ops.matmul(x, self.query) * self.part**-0.5
        shape = (-1, keras.ops.shape(x)[1], self.kv_heads, self.heads // self.kv_heads, self.part)
        return keras.ops.reshape(queries, shape)

    def _bias(self, by_head: Any) -> Any:
        """Return (H, ...) as (G,H/G, ...)."""
        shape = keras.ops.shape(by_head)[1:]
        return keras.ops.reshape(by_head, (self.kv_heads, self.heads // self.kv_heads, *shape))

    def compute_output_shape(self, shape: Any) -> Any:
        """Return the shape unchanged."""
        return tuple(shape)

    def get_config(self) -> dict[str, Any]:
        """Return what __init__ needs."""
        own = {"heads": self.heads, "window": self.window, "kv_heads": self.kv_heads}
        return {**super().get_config(), **own}
