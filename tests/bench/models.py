"""The models that are measured: LSTM layers and a dense layer, as the exporter writes them.

Owns their graphs, made with onnx.helper in milliseconds, so that a benchmark needs no TensorFlow:
per layer one fused LSTM operator with `lengths` and named states (see export/recurrent.py).
The weights are random at the scale of trained ones; no figure depends on their values. Called by
run.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from cases import Form
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from keyfold.export import bundle as contract
from keyfold.export.bundle import Bundle, Golden, Manifest, StateSpec
from keyfold.export.event_spec import EventSpec
from keyfold.export.events import OutputSpec
from keyfold.export.features import FeatureSpec

FEATURES = tuple(f"s{i}" for i in range(8))
TIME = "time"  # member with the event time, ms


def make_model(folder: Path, layers: tuple[int, ...] = (64,), form: Form = "json") -> Bundle:
    """Write folder/<id> and load it. Equal arguments give an equal id."""
    graph = _graph(layers)
    manifest = Manifest(
        events=EventSpec("key", TIME, "ms", format=form),
        features=FeatureSpec.numbers(*FEATURES),
        outputs=OutputSpec("regression", ("value",)),
        states=tuple(
            StateSpec(f"{name}{n}", f"{name}{n}_out", (units,))
            for n, units in enumerate(layers)
            for name in "hc"
        ),
        step_sha256="",  # filled in by save
        provenance={"made_by": "tests/bench/models.py"},
    )
    return contract.load(contract.save(folder, manifest, graph, _golden(graph, manifest)))


def _graph(layers: tuple[int, ...]) -> bytes:
    """Return the step graph: x (B,T,F), lengths (B,), h0, c0, ... -> y (B,T,1), h0_out, ..."""
    draw = np.random.default_rng(0)
    constants: dict[str, NDArray[Any]] = {
        "axis0": np.array([0], np.int64), "axis1": np.array([1], np.int64)
    }  # fmt: skip
    nodes, inputs, outputs = [], [_value("x", "B", "T", len(FEATURES))], [_value("y", "B", "T", 1)]
    inputs.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"]))
    nodes.append(helper.make_node("Transpose", ["x"], ["seq0"], perm=[1, 0, 2]))
    width = len(FEATURES)
    for n, units in enumerate(layers):
        nodes += _layer(n, units)
        scale = 1 / np.sqrt(units)
        for name, dims in (("W", (width,)), ("R", (units,)), ("bias", ())):
            shape = (1, (8 if name == "bias" else 4) * units, *dims)
            constants[f"{name}{n}"] = draw.normal(0, scale, shape).astype(np.float32)
        inputs += [_value(f"{name}{n}", "B", units) for name in "hc"]
        outputs += [_value(f"{name}{n}_out", "B", units) for name in "hc"]
        width = units
    constants["kernel"] = draw.normal(0, 1 / np.sqrt(width), (width, 1)).astype(np.float32)
    constants["offset"] = draw.normal(0, 0.5, 1).astype(np.float32)
    last = f"seq{len(layers)}"
    nodes += [
        helper.make_node("Transpose", [last], ["by_row"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["by_row", "kernel"], ["dense"]),
        helper.make_node("Add", ["dense", "offset"], ["y"]),
    ]
    weights = [numpy_helper.from_array(values, name) for name, values in constants.items()]
    graph = helper.make_graph(nodes, "step", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _layer(n: int, units: int) -> list[Any]:
    """Return the nodes of layer n: seq{n} (T,B,I) and its states -> seq{n+1} (T,B,H), states."""
    rows = [
        helper.make_node("Unsqueeze", [f"{name}{n}", "axis0"], [f"{name}{n}_in"]) for name in "hc"
    ]
    weights = [f"W{n}", f"R{n}", f"bias{n}"]
    lstm = helper.make_node(
        "LSTM",
        [f"seq{n}", *weights, "lengths", f"h{n}_in", f"c{n}_in"],
        [f"all{n}", f"h{n}_last", f"c{n}_last"],
        hidden_size=units,
    )
    after = [
        helper.make_node("Squeeze", [f"{name}{n}_last", "axis0"], [f"{name}{n}_out"])
        for name in "hc"
    ]
    return [*rows, lstm, *after, helper.make_node("Squeeze", [f"all{n}", "axis1"], [f"seq{n + 1}"])]


def _value(name: str, *dims: str | int) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(dims))


def _golden(graph: bytes, manifest: Manifest) -> Golden:
    rows, steps = 3, 7
    draw = np.random.default_rng(1)
    x = draw.normal(0, 1, (rows, steps, len(FEATURES))).astype(np.float32)
    lengths = np.array([7, 1, 4], np.int32)
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (y,) = session.run(
        ["y"], {"x": x, "lengths": lengths, **contract.initial_states(manifest, rows)}
    )
    y[np.arange(steps) >= lengths[:, None]] = 0.0
    return Golden(x, lengths, y)
