"""Keras to ONNX: a model over whole sequences becomes one step graph with explicit states.

Owns the way that keeps recurrent layers fast and exact: each one is cut out of the model (cut.py),
tf2onnx converts what is left, and the fused ONNX operator (LSTM, GRU, RNN) is stitched into the gap
with `lengths` and named states. Layers that carry a state in plain operations are left in, with
their states as inputs and outputs. Never a Loop or a Scan: such a graph is refused. It knows Keras
and ONNX, not bundles' files or whether the result is right (verify's business). Called by cli.py.

The graph: x (B,T,F), lengths (B,), states (B,*dims) -> y (B,T,O), states after each row's length.
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
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from keyfold.export import attention as _attention  # noqa: F401 - registers what a model may hold
from keyfold.export import conditions as _conditions  # noqa: F401 - likewise
from keyfold.export import layers as _layers  # noqa: F401 - likewise
from keyfold.export import log_mel as _log_mel  # noqa: F401 - likewise
from keyfold.export import text_layers as _text_layers
from keyfold.export import windowed as _windowed  # noqa: F401 - likewise
from keyfold.export.bundle import StateSpec
from keyfold.export.cut import OPSET as OPSET
from keyfold.export.cut import Cut
from keyfold.export.recurrent import ConvertError, fuse, fuse_inner
from keyfold.export.stateful import MOST_STEPS

IR_VERSION = 8  # of opset 17
REFUSED = frozenset({"Loop", "Scan", "If"})


@dataclass(frozen=True, slots=True)
class StepGraph:
    """A converted model."""

    onnx: bytes  # the serialized graph
    states: tuple[StateSpec, ...]  # in graph order
    max_steps: int = MOST_STEPS  # largest T of one call


def convert(model: Any) -> StepGraph:
    """Convert a functional Keras model, x (B,T,F) -> y (B,T,O).

    Raises ConvertError when the model has another form, or a layer that cannot be stepped.
    """
    _check_form(model)
    cut = Cut(model)
    graph = cut.convert_rest()
    nodes, constants = list(graph.node), list(graph.initializer)
    constants += [numpy_helper.from_array(np.array([n], np.int64), f"axis{n}") for n in (0, 1)]
    states: list[StateSpec] = []
    for part in cut.parts:
        if part.kind == "carried":
            states += part.states
            continue
        fused = (fuse if part.kind == "fused" else fuse_inner)(part.layer, part.number)
        nodes += fused.nodes
        constants += fused.constants
        states += fused.states
    has_texts = any(isinstance(layer, _text_layers.Symbols) for layer in model.layers)
    # Others' bundles have ids already.
    if has_texts or any(part.kind == "carried" for part in cut.parts):
        nodes = _by_need(nodes, ["y", *(state.output for state in states)])
    made = _assemble(model, nodes, constants, states)
    check_operators(made)
    try:
        onnx.checker.check_model(made)
    except onnx.checker.ValidationError as error:
        what = str(error).strip().splitlines()[0]
        raise ConvertError(
            f"model {model.name!r}: expected layers that ONNX {OPSET} has operators for, got: "
            f"{what} Use another layer or activation"
        ) from error
    return StepGraph(made.SerializeToString(deterministic=True), tuple(states), cut.max_steps)


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


def _by_need(nodes: list[Any], outputs: list[str]) -> list[Any]:
    """Order nodes as the outputs ask for them: tf2onnx's order hangs on Keras's running names.

    So does which of two equal values is an Identity of the other: those nodes are left out.
    """
    same = {
        node.output[0]: node.input[0]
        for node in nodes
        if node.op_type == "Identity" and node.output[0] not in outputs
    }
    for node in nodes:
        for place, name in enumerate(node.input):
            while name in same:
                name = same[name]
            node.input[place] = name
    maker = {name: node for node in nodes for name in node.output}
    ordered: list[Any] = []
    done: set[int] = set()
    waiting = [maker[name] for name in reversed(outputs) if name in maker]
    while waiting:
        node = waiting[-1]
        if id(node) in done:
            waiting.pop()
            continue
        before = [maker[name] for name in node.input if name in maker]
        if missing := [other for other in before if id(other) not in done]:
            waiting += reversed(missing)
            continue
        done.add(id(waiting.pop()))
        ordered.append(node)
    return ordered


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
    # Compiled: a recurrent layer's loop over 1,200 steps is 20 times as fast as one by one.
    compiled = tf.function(lambda x: model(x, training=False), reduce_retracing=True)
    return lambda x: np.asarray(compiled(tf.constant(x)))


def in_float64(model: Any) -> Any:
    """Return a copy of a model that computes in float64: what its float32 would be if exact."""

    def widen(layer: Any) -> Any:
        return type(layer).from_config(_widened(layer.get_config()))

    copy = keras.models.clone_model(model, clone_function=widen)
    copy.set_weights(model.get_weights())
    return copy


def _widened(config: Any) -> Any:
    """Return a layer's configuration with float64 in it, and in the layers within it."""
    if isinstance(config, list | tuple):
        return [_widened(item) for item in config]
    if not isinstance(config, dict):
        return config
    return {k: "float64" if k == "dtype" else _widened(value) for k, value in config.items()}


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
