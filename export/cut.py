"""A Keras model with its recurrent layers cut out: what tf2onnx converts, and what it must not see.

Owns the taking apart. A layer with a fused ONNX operator leaves a gap: its input goes out, its
output comes in. A layer that carries a state in plain operations (stateful.py, or keras.layers.RNN
around any cell) stays, with its states as further inputs and outputs. It knows Keras and tf2onnx;
the operators that fill the gaps are recurrent.py's. Called by convert.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
import tf2onnx

from keyfold.export.bundle import StateSpec
from keyfold.export.own_cell import OneStep
from keyfold.export.recurrent import ConvertError, check, check_inner, is_bounded, is_recurrent
from keyfold.export.recurrent import state_names as states_of
from keyfold.export.stateful import MOST_STEPS, Stateful
from keyfold.export.text_layers import OfTexts, ReadThrough

OPSET = 17  # the newest that tf2onnx, and every runtime since 2022, agrees on


@dataclass(frozen=True, slots=True)
class Part:
    """A layer that is not converted as it stands."""

    number: int  # its own in the graph
    layer: Any  # the Keras layer
    kind: Literal["fused", "inner", "carried"]  # an operator with or without states; plain ones
    states: tuple[StateSpec, ...] = ()  # of a carried one

    @property
    def gap(self) -> str:
        """Name of its output's placeholder."""
        return f"gap{self.number}"

    @property
    def tap(self) -> str:
        """Name of its input."""
        return f"tap{self.number}"


class _Gap(keras.layers.Layer):  # type: ignore[misc] # keras has no types
    """Stands where a layer was, and asks the cut for its output."""

    def __init__(self, layer: Any, cut: Cut) -> None:
        super().__init__(name=f"gap_{layer.name}")
        self.supports_masking = True  # else Keras drops the mask and only warns
        self.layer = layer
        self._cut = cut

    def call(
        self,
        x: Any,
        initial_state: Any = None,
        states: Any = None,
        mask: Any = None,
        training: bool = False,
    ) -> Any:
        if any(given is not None for given in (initial_state, states, mask)):
            raise ConvertError(
                f"layer {self.layer.name!r}: expected neither initial_state nor mask; "
                "states come from the stream and lengths from the graph input"
            )
        sequence = self._cut.answer(self.layer, x)
        # Nothing may depend on the last state inside the graph; NaN makes verify notice.
        last = [
            tf.fill((tf.shape(x)[0], *dims), np.float32(np.nan)) for dims in _returned(self.layer)
        ]
        return [sequence, *last] if last else sequence

    def compute_output_spec(self, x: Any, *_: Any, **__: Any) -> Any:
        if is_recurrent(self.layer):
            shape: Any = (*x.shape[:2], self.layer.units)
        else:
            shape = self.layer.compute_output_shape(x.shape)
            shape = shape[0] if isinstance(shape[0], tuple | list) else shape  # RNN: and its states
        last = [keras.KerasTensor((x.shape[0], *dims)) for dims in _returned(self.layer)]
        sequence = keras.KerasTensor(shape)
        return [sequence, *last] if last else sequence


class _Reading(keras.layers.Layer):  # type: ignore[misc] # keras has no types
    """Stands where a layer was that reads texts, and has the cut answer for its directions."""

    def __init__(self, layer: Any, cut: Cut) -> None:
        super().__init__(name=f"reading_{layer.name}")
        self.layer = layer
        self._cut = cut

    def call(self, inputs: Any) -> Any:
        self.layer.stand_in = self._cut.answer  # only while this model is traced, as below
        try:
            return self.layer(inputs)
        finally:
            self.layer.stand_in = None

    def compute_output_spec(self, inputs: Any) -> Any:
        shape = self.layer.compute_output_shape([one.shape for one in inputs])
        return keras.KerasTensor(shape)


def _returned(layer: Any) -> list[tuple[int, ...]]:
    """Return the dims of the last states that a layer gives beside its sequence."""
    if not getattr(layer, "return_state", False):
        return []
    if is_recurrent(layer):
        return [(layer.units,)] * len(states_of(layer))
    if isinstance(layer, Stateful):
        return [(spec.size,) for spec in layer.state_specs()]
    return [spec.dims for spec in OneStep(layer).state_specs()]


class Cut:
    """A model without what is not converted as it stands."""

    def __init__(self, model: Any) -> None:
        """Clone a model with a gap for every layer that carries a state. Raises ConvertError."""
        self.parts: list[Part] = []  # from the input on
        self.max_steps = MOST_STEPS  # largest T of one call
        self._steppers: dict[str, Any] = {}  # name of a carried layer -> what has `advance`
        self._given: dict[str, Any] = {}  # graph input -> tensor, while tracing
        self._taken: dict[str, Any] = {}  # graph output -> tensor, while tracing
        self._model = model
        self._rest = keras.models.clone_model(model, clone_function=self._replaced)
        if not self.parts:
            raise ConvertError(f"model {model.name!r}: expected a recurrent layer, got none")

    def _replaced(self, layer: Any) -> Any:
        if is_recurrent(layer):
            check(layer)
            self._add(layer, "fused")
            if not is_bounded(layer):
                # Within a call a state could be infinite and come back, and only the last one is
                # seen: an event would be rejected or not by what it shares its call with.
                self.max_steps = 1
        elif isinstance(layer, Stateful):
            self._carry(layer, layer)
            for inner in layer.inner():
                check_inner(inner)
                self._add(inner, "inner")
        elif isinstance(layer, OfTexts):
            self.max_steps = min(self.max_steps, layer.most_steps)
            if not isinstance(layer, ReadThrough):
                return layer
            for inner in layer.directions:
                check_inner(inner)
                self._add(inner, "inner")
            return _Reading(layer, self)
        elif type(layer) is keras.layers.RNN:
            check(layer)
            self._carry(layer, OneStep(layer))
        elif isinstance(layer, keras.layers.RNN | keras.layers.Bidirectional):
            raise ConvertError(
                f"layer {layer.name!r}: expected LSTM, GRU, SimpleRNN, RNN or a layer of keyfold, "
                f"got {type(layer).__name__}; over a window keyfold has BidirectionalWindow"
            )
        else:
            return layer  # shared with the original: same weights
        return _Gap(layer, self)

    def _carry(self, layer: Any, stepper: Any) -> None:
        number = len(self.parts)
        states = tuple(
            StateSpec(
                f"{spec.name}{number}", f"{spec.name}{number}_out", spec.dims, initial=spec.initial
            )
            for spec in stepper.state_specs()
        )
        self._add(layer, "carried", states)
        self._steppers[layer.name] = stepper
        self.max_steps = min(self.max_steps, stepper.most_steps)

    def _add(
        self,
        layer: Any,
        kind: Literal["fused", "inner", "carried"],
        states: tuple[StateSpec, ...] = (),
    ) -> None:
        self.parts.append(Part(len(self.parts), layer, kind, states))

    def answer(self, layer: Any, x: Any) -> Any:
        """Take a layer's input, give its output or a placeholder."""
        part = next(part for part in self.parts if part.layer is layer)
        if part.kind != "carried":
            self._take(part.tap, x, layer)
            return self._given[part.gap]
        stepper = self._steppers[layer.name]
        # Only while this model is traced: the layer is the original's own.
        stepper.stand_in = self.answer
        try:
            states = [self._given[state.input] for state in part.states]
            y, after = stepper.advance(x, self._given["lengths"], states)
        finally:
            stepper.stand_in = None
        for state, value in zip(part.states, after, strict=True):
            self._take(state.output, value, layer)
        return y

    def _take(self, name: str, value: Any, layer: Any) -> None:
        if name in self._taken:
            raise ConvertError(f"layer {layer.name!r}: expected it to be used once, got twice")
        self._taken[name] = value

    @property
    def signature(self) -> list[Any]:
        """Inputs of what is left: x, placeholders, and lengths and states if any are carried."""
        found = [tf.TensorSpec(self._model.inputs[0].shape, tf.float32, name="x")]
        for part in self.parts:
            if part.kind == "carried":
                continue
            every = part.kind == "fused" or part.layer.return_sequences
            middle = (None, None) if every else (None,)
            found.append(tf.TensorSpec((*middle, part.layer.units), tf.float32, name=part.gap))
        states = [state for part in self.parts for state in part.states]
        if self._steppers:
            found.append(tf.TensorSpec((None,), tf.int32, name="lengths"))
        return [*found, *(tf.TensorSpec((None, *s.dims), tf.float32, name=s.input) for s in states)]

    def convert_rest(self) -> Any:
        """Convert what is left. Returns the ONNX graph."""
        signature = self.signature
        names = [tensor.name for tensor in signature]

        @tf.function(input_signature=signature)  # type: ignore[untyped-decorator]
        def rest(*inputs: Any) -> Any:
            self._given, self._taken = dict(zip(names, inputs, strict=True)), {}
            y = self._rest(inputs[0], training=False)
            return {
                "y": tf.identity(y),
                **{name: tf.identity(value) for name, value in self._taken.items()},
            }

        proto, _ = tf2onnx.convert.from_function(rest, input_signature=signature, opset=OPSET)
        got = {value.name for value in proto.graph.output}
        if got != {"y", *self._taken}:
            raise ConvertError(
                f"tf2onnx: expected outputs {sorted({'y', *self._taken})}, got {sorted(got)}"
            )
        extra = {value.name for value in proto.graph.input} - set(names)
        extra -= {value.name for value in proto.graph.initializer}
        if extra:
            raise ConvertError(f"expected no graph inputs beside x, got {sorted(extra)}")
        return proto.graph
