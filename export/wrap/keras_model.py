"""Somebody's own Keras model as an ONNX graph with explicit states, and what it computes itself.

Owns the two forms that such a model has: one input (sequences, windows, or `stateful` layers),
whose recurrent layers convert.py turns into states, or one input for every state, as an inference
model with `return_state` has. It knows Keras; the graph's layout and the proof are the same as for
any other ONNX graph. Called by cli.py, and only for Keras: it loads TensorFlow.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.wrap.adapt import Scaling
from keyfold.export.wrap.own_graph import WrapError
from keyfold.export.wrap.settings import Graph, Request
from keyfold.export.wrap.step import Floats
from keyfold.export.wrap.truth import Truth

if TYPE_CHECKING:
    from keyfold.export.convert import StepGraph

ROWS, STEPS = 4, 48  # of what a model is asked to compute


def _quiet() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # and its start-up notice
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # the reference is the CPU's arithmetic


def read_keras(request: Request, x: Floats) -> tuple[Any, Graph, list[Truth]]:
    """Return a model as ONNX, the names in it, and what the model computes for `x` (B,T,F).

    Raises WrapError, or ConvertError where a layer cannot be stepped.
    """
    _quiet()
    from keyfold.export.convert import load_model

    model = load_model(request.model)
    _fix_numbers(model)
    if len(model.inputs) == 1:
        return _of_sequences(model, request, x)
    names = _names(model)
    graph = _named(request.graph, *names)
    return _to_onnx(model, *names), graph, [_stepped(model, graph, request, x)]


def _fix_numbers(model: Any) -> None:
    """Let Normalization layers hold plain numbers: tf2onnx makes graph inputs of their tensors."""
    import keras

    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):
            layer.mean, layer.variance = np.asarray(layer.mean), np.asarray(layer.variance)


def parity(file: Path, x: Floats, scaling: Scaling) -> Truth:
    """Return what a Keras model of one input computes for `x` (B,T,F) in the events' units."""
    _quiet()
    from keyfold.export.convert import load_model

    model = load_model(file)
    if len(model.inputs) != 1:
        raise WrapError(f"{file}: expected a model of one input, got {len(model.inputs)}")
    return _sequences(model, x, scaling, str(file))


def _of_sequences(model: Any, request: Request, x: Floats) -> tuple[Any, Graph, list[Truth]]:
    import onnx

    from keyfold.export.convert import convert

    if request.graph.states or request.graph.x or request.graph.y:
        raise WrapError(
            f"{request.model}: expected no --states, --x or --y for a Keras model of one input: "
            "its recurrent layers say what is carried"
        )
    converted: StepGraph = convert(_plain(model))
    pairs = tuple((state.input, state.output) for state in converted.states)
    graph = replace(request.graph, x="x", y="y", lengths="lengths", states=pairs, layout="BTF")
    truth = _sequences(model, x, request.scaling, str(request.model))
    return onnx.load_from_string(converted.onnx), graph, [truth]


def _plain(model: Any) -> Any:
    """Return a model of free rows and steps that puts out every step and keeps nothing itself."""
    import keras

    from keyfold.export.recurrent import is_recurrent

    made: list[tuple[Any, Any]] = []

    def clone(layer: Any) -> Any:
        if not is_recurrent(layer):
            return layer  # shared with the original: same weights
        settings = {**layer.get_config(), "stateful": False, "return_sequences": True}
        made.append((layer, type(layer).from_config(settings)))
        return made[-1][1]

    shape = model.inputs[0].shape
    if len(shape) != 3:
        raise WrapError(f"model {model.name!r}: x: expected (rows, steps, columns), got {shape}")
    copy = keras.models.clone_model(
        model, input_tensors=keras.Input((None, shape[-1]), name="x"), clone_function=clone
    )
    for layer, new in made:
        new.set_weights(layer.get_weights())
    return copy


def _sequences(model: Any, x: Floats, scaling: Scaling, source: str) -> Truth:
    """Compute y with a model of one input: whole, or step by step where it is stateful."""
    rows, steps, _ = model.inputs[0].shape
    stateful = [layer for layer in model.layers if getattr(layer, "stateful", False)]
    if stateful and steps not in (None, 1):
        raise WrapError(
            f"{source}: expected a stateful model of 1 step a call, or of any number, got {steps}"
        )
    part = x[:ROWS, : STEPS if stateful or steps is None else steps]
    part = np.resize(part, (rows or len(part), *part.shape[1:]))
    for layer in stateful:
        layer.reset_state()
    inner = _before(part, scaling)
    if stateful:
        parts = [np.asarray(model(inner[:, t : t + 1])) for t in range(part.shape[1])]
        y = np.stack([one.reshape(len(part), -1) for one in parts], axis=1)
    else:
        y = np.asarray(model(inner, training=False))
    return Truth(source, part, _behind(y, scaling), np.full(len(part), part.shape[1]))


def _names(model: Any) -> tuple[list[str], list[str]]:
    """Return the names of a model's inputs and outputs: keys, or layers' names made distinct."""
    inputs = model.inputs
    before = [tensor.name for tensor in inputs]
    outputs: list[str] = []
    for name in model.output_names:
        number = sum(other == name or other.startswith(f"{name}_") for other in outputs)
        outputs.append(name if not number else f"{name}_{number}")
    if isinstance(model.output, Mapping):
        outputs = list(model.output)
    return before, outputs


def _call(model: Any, names: list[str], values: Mapping[str, Any]) -> list[Any]:
    """Run a model of several inputs; return its outputs in the order of their names."""
    given = model.input
    arguments: Any = [values[name] for name in names]
    if isinstance(given, Mapping):
        arguments = {key: values[tensor.name] for key, tensor in given.items()}
    y = model(arguments, training=False)
    return list(y.values()) if isinstance(y, Mapping) else list(y)


def _to_onnx(model: Any, before: list[str], after: list[str]) -> Any:
    import tensorflow as tf
    import tf2onnx

    from keyfold.export.convert import OPSET

    signature = [
        tf.TensorSpec(tensor.shape, tf.as_dtype(tensor.dtype), name=name)
        for name, tensor in zip(before, model.inputs, strict=True)
    ]

    @tf.function(input_signature=signature)  # type: ignore[untyped-decorator]
    def run(*tensors: Any) -> Any:
        made = _call(model, before, dict(zip(before, tensors, strict=True)))
        return {name: tf.identity(value) for name, value in zip(after, made, strict=True)}

    made, _ = tf2onnx.convert.from_function(run, input_signature=signature, opset=OPSET)
    return made


def _named(graph: Graph, before: list[str], after: list[str]) -> Graph:
    """Complete x and y, and check the pairs' names before the conversion takes its time."""
    for one, two in graph.states:
        for name, names, what in ((one, before, "input"), (two, after, "output")):
            if name not in names:
                raise WrapError(
                    f"--states {one}:{two}: expected {what} {name!r}, got {', '.join(names)}"
                )
    left = [n for n in before if n not in {one for one, _ in graph.states}]
    out = [n for n in after if n not in {two for _, two in graph.states}]
    if not graph.states or len(left) != 1 or not out:
        raise WrapError(
            f"--states: expected pairs IN:OUT that leave one input; inputs: {', '.join(before)}; "
            f"outputs: {', '.join(after)}"
        )
    return replace(graph, x=graph.x or left[0], y=graph.y or out[0])


def _stepped(model: Any, graph: Graph, request: Request, x: Floats) -> Truth:
    """Compute y with a model of explicit states, one step at a time."""
    before, after = _names(model)
    inputs = dict(zip(before, model.inputs, strict=True))
    part = x[:ROWS, :STEPS]
    inner = _before(part, request.scaling)
    states = {
        name: np.full(
            (ROWS, *inputs[name].shape[1:]), graph.initial.get(name, 0.0), inputs[name].dtype
        )
        for name, _ in graph.states
    }
    flat = len(inputs[graph.x].shape) == 2
    ys = []
    for t in range(STEPS):
        now = inner[:, t] if flat else inner[:, t : t + 1]
        made = dict(zip(after, _call(model, before, {graph.x: now, **states}), strict=True))
        states = {one: np.asarray(made[two]) for one, two in graph.states}
        ys.append(np.asarray(made[graph.y]).reshape(ROWS, -1))
    y = _behind(np.stack(ys, axis=1), request.scaling)
    return Truth(str(request.model), part, y, np.full(ROWS, STEPS))


def _before(x: Floats, scaling: Scaling) -> Floats:
    if scaling.mean:
        x = np.subtract(x, np.array(scaling.mean, np.float32), dtype=np.float32)
    if scaling.deviation:
        x = np.divide(x, np.array(scaling.deviation, np.float32), dtype=np.float32)
    return x


def _behind(y: NDArray[Any], scaling: Scaling) -> NDArray[np.float64]:
    y = y.astype(np.float64)
    if scaling.activation == "softmax":
        y = np.exp(y - y.max(axis=-1, keepdims=True))
        y /= y.sum(axis=-1, keepdims=True)
    if scaling.activation == "sigmoid":
        y = 1 / (1 + np.exp(-y))
    if scaling.output_deviation:
        y = y * scaling.output_deviation
    return y + scaling.output_mean if scaling.output_mean else y
