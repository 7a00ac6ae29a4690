"""Keras to ONNX: a model over whole sequences becomes one step graph with explicit states.

Owns the way that keeps recurrent layers fast and exact: each one is cut out of the model, tf2onnx
converts what is left, and the fused ONNX operator (LSTM, GRU, RNN) is stitched into the gap with
`lengths` and named states. Never a Loop or a Scan: such a graph is refused. It knows Keras and
ONNX, not bundles' files or whether the result is right (verify's business). Called by cli.py.

The graph: x (B,T,F), lengths (B,), states (B,H) -> y (B,T,O), states after each row's length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from keyfold.export import layers as _layers  # noqa: F401 - registers what a model may hold
from keyfold.export.bundle import StateSpec
from keyfold.export.recurrent import ConvertError, check, fuse, is_recurrent
from keyfold.export.recurrent import state_names as states_of

OPSET = 17  # the newest that tf2onnx, and every runtime since 2022, agrees on
IR_VERSION = 8  # of opset 17
REFUSED = frozenset({"Loop", "Scan", "If"})


@dataclass(frozen=True, slots=True)
class StepGraph:
    """A converted model."""

    onnx: bytes  # the serialized graph
    states: tuple[StateSpec, ...]  # in graph order


def convert(model: Any) -> StepGraph:
    """Convert a functional Keras model, x (B,T,F) -> y (B,T,O).

    Raises ConvertError when the model has another form, or a layer that cannot be stepped.
    """
    _check_form(model)
    cut = _Cut.out_of(model)
    graph = cut.convert_rest(model)
    inputs, _outputs = list(graph.input), list(graph.output)
    nodes, constants = list(graph.node), list(graph.initializer)
    named = {value.name for value in constants}
    extra = {value.name for value in inputs} - named - {"x", *cut.gaps}
    if extra:
        raise ConvertError(f"expected no graph inputs beside x, got {sorted(extra)}")
    constants += [numpy_helper.from_array(np.array([n], np.int64), f"axis{n}") for n in (0, 1)]
    states: list[StateSpec] = []
    for number, layer in enumerate(cut.layers):
        fused = fuse(layer, number)
        nodes += fused.nodes
        constants += fused.constants
        states += fused.states
    made = _assemble(model, nodes, constants, states)
    check_operators(made)
    onnx.checker.check_model(made)
    return StepGraph(made.SerializeToString(deterministic=True), tuple(states))


def _assemble(model: Any, nodes: list[Any], constants: list[Any], states: list[StateSpec]) -> Any:
    features, targets = model.inputs[0].shape[-1], model.outputs[0].shape[-1]
    inputs = [
        _value("x", "B", "T", features),
        helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"]),
        *(_value(state.input, "B", *state.dims) for state in states),
    ]
    outputs = [
        _value("y", "B", "T", targets),
        *(_value(state.output, "B", *state.dims) for state in states),
    ]
    known = {value.name for value in (*inputs, *constants)}
    nodes = _ordered(nodes, known)
    constants = _by_first_use(constants, nodes)
    _rename(nodes, constants, keep={value.name for value in (*inputs, *outputs)})
    graph = helper.make_graph(nodes, "keyfold_step", inputs, outputs, constants)
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)


def _value(name: str, *dims: str | int) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(dims))


def _ordered(nodes: list[Any], known: set[str]) -> list[Any]:
    """Sort nodes so that each one's inputs come before it, as ONNX asks."""
    known = known | {""}  # an optional input that is left out
    ordered: list[Any] = []
    waiting = nodes
    while waiting:
        ready = [node for node in waiting if known.issuperset(node.input)]
        if not ready:
            missing = sorted({name for node in waiting for name in node.input} - known)
            raise ConvertError(
                f"step graph: expected every value to be computed, got none for {missing}"
            )
        ordered += ready
        known |= {name for node in ready for name in node.output}
        waiting = [node for node in waiting if node not in ready]
    return ordered


def _by_first_use(constants: list[Any], nodes: list[Any]) -> list[Any]:
    """Order constants as the nodes use them, and drop those that none does."""
    named = {constant.name: constant for constant in constants}
    used = dict.fromkeys(name for node in nodes for name in node.input if name in named)
    return [named[name] for name in used]


def _rename(nodes: list[Any], constants: list[Any], keep: set[str]) -> None:
    """Number what is inside the graph: the same model gives the same bytes, and the same id.

    Keras and tf2onnx name by counters of everything made since the program began.
    """
    names = {name: name for name in (*keep, "")}
    for number, constant in enumerate(constants):
        names[constant.name] = constant.name = f"constant{number}"
    for number, node in enumerate(nodes):
        node.name = f"{node.op_type}{number}"
        for place, name in enumerate(node.output):
            names.setdefault(name, f"value{number}_{place}")
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]


def load_model(file: Path) -> Any:
    """Load a saved Keras model. Raises ConvertError when it is missing or unreadable."""
    try:
        return keras.models.load_model(file, compile=False)
    except (OSError, ValueError, TypeError) as error:
        raise ConvertError(f"{file}: expected a Keras model: {error}") from error


def reference(model: Any) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return the model as a function of whole sequences, x (B,T,F) -> y (B,T,O)."""
    return lambda x: np.asarray(model(x, training=False))


def in_float64(model: Any) -> Any:
    """Return a copy of a model that computes in float64: what its float32 would be if exact."""

    def widen(layer: Any) -> Any:
        return type(layer).from_config({**layer.get_config(), "dtype": "float64"})

    copy = keras.models.clone_model(model, clone_function=widen)
    copy.set_weights(model.get_weights())
    return copy


def check_operators(graph: Any) -> None:
    """Refuse a graph that loops or branches, or that uses operators from outside ONNX."""
    for node in graph.graph.node:
        if node.op_type in REFUSED or node.domain not in ("", "ai.onnx"):
            raise ConvertError(
                f"step graph, node {node.name or node.op_type!r}: expected fused recurrent "
                f"operators and plain ones, got {node.domain or 'ai.onnx'}.{node.op_type}"
            )


def _check_form(model: Any) -> None:
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ConvertError(
            f"model {model.name!r}: expected one input and one output, "
            f"got {len(model.inputs)} and {len(model.outputs)}"
        )
    for what, tensor in (("input", model.inputs[0]), ("output", model.outputs[0])):
        shape = tensor.shape
        if len(shape) != 3 or shape[0] is not None or shape[1] is not None or shape[2] is None:
            raise ConvertError(
                f"model {model.name!r}: {what}: expected shape (None, None, number), got {shape}"
            )


class _Gap(keras.layers.Layer):  # type: ignore[misc] # keras has no types
    """Stands where a recurrent layer was: takes its input away and gives a placeholder back."""

    def __init__(self, layer: Any, cut: _Cut) -> None:
        super().__init__(name=f"gap_{layer.name}")
        self.supports_masking = True  # else Keras drops the mask and only warns
        self.layer = layer
        self._cut = cut

    def call(
        self, x: Any, initial_state: Any = None, mask: Any = None, training: bool = False
    ) -> Any:
        if initial_state is not None or mask is not None:
            raise ConvertError(
                f"layer {self.layer.name!r}: expected neither initial_state nor mask; "
                "states come from the stream and lengths from the graph input"
            )
        sequence = self._cut.tap(self.layer, x)
        if not self.layer.return_state:
            return sequence
        # Nothing may depend on the last state inside the graph; NaN makes verify notice.
        last = tf.fill((tf.shape(x)[0], self.layer.units), np.float32(np.nan))
        return [sequence, *[last] * len(states_of(self.layer))]

    def compute_output_spec(self, x: Any, *_: Any, **__: Any) -> Any:
        sequence = keras.KerasTensor((*x.shape[:2], self.layer.units))
        if not self.layer.return_state:
            return sequence
        last = keras.KerasTensor((x.shape[0], self.layer.units))
        return [sequence, *[last] * len(states_of(self.layer))]


class _Cut:
    """A model without its recurrent layers."""

    def __init__(self) -> None:
        self.layers: list[Any] = []  # the recurrent layers, from the input on
        self._given: dict[str, Any] = {}  # layer name -> placeholder, while tracing
        self._taken: dict[str, Any] = {}  # layer name -> its input, while tracing
        self._rest: Any = None  # the model with gaps

    @classmethod
    def out_of(cls, model: Any) -> _Cut:
        """Clone a model with a gap for every recurrent layer."""
        cut = cls()

        def replace(layer: Any) -> Any:
            if not is_recurrent(layer):
                return layer  # shared with the original: same weights
            check(layer)
            cut.layers.append(layer)
            return _Gap(layer, cut)

        cut._rest = keras.models.clone_model(model, clone_function=replace)
        if not cut.layers:
            raise ConvertError(f"model {model.name!r}: expected a recurrent layer, got none")
        return cut

    @property
    def gaps(self) -> list[str]:
        """Names of the placeholders: each recurrent layer's output."""
        return [f"gap{number}" for number in range(len(self.layers))]

    def tap(self, layer: Any, x: Any) -> Any:
        """Take a layer's input, give its placeholder."""
        if layer.name in self._taken:
            raise ConvertError(f"layer {layer.name!r}: expected it to be used once, got twice")
        self._taken[layer.name] = x
        return self._given[layer.name]

    def convert_rest(self, model: Any) -> Any:
        """Convert all but the recurrent layers: x, gap* -> y, tap*. Returns the ONNX graph."""
        signature = [
            tf.TensorSpec(model.inputs[0].shape, tf.float32, name="x"),
            *(
                tf.TensorSpec((None, None, layer.units), tf.float32, name=gap)
                for gap, layer in zip(self.gaps, self.layers, strict=True)
            ),
        ]

        @tf.function(input_signature=signature)  # type: ignore[untyped-decorator]
        def rest(x: Any, *gaps: Any) -> Any:
            names = [layer.name for layer in self.layers]
            self._given, self._taken = dict(zip(names, gaps, strict=True)), {}
            y = self._rest(x, training=False)
            taps = {f"tap{i}": tf.identity(self._taken[name]) for i, name in enumerate(names)}
            return {"y": tf.identity(y), **taps}

        proto, _ = tf2onnx.convert.from_function(rest, input_signature=signature, opset=OPSET)
        expected = {"y", *(f"tap{i}" for i in range(len(self.layers)))}
        got = {value.name for value in proto.graph.output}
        if got != expected:
            raise ConvertError(f"tf2onnx: expected outputs {sorted(expected)}, got {sorted(got)}")
        return proto.graph
