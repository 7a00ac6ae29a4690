"""A real bundle made by hand in milliseconds: one LSTM layer of a few units and a dense layer.

Owns the step graph that tests serve, send through and verify. It is built with onnx.helper alone,
so that tests of the serving side need neither TensorFlow nor training. Knows the contract
(keyfold.export) and ONNX; imported by any test as `from tiny_bundle import make_tiny_bundle`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from keyfold.export import bundle as contract
from keyfold.export.bundle import Bundle, Golden, Manifest, StateSpec
from keyfold.export.events import EventSpec, OutputSpec, Tombstone
from keyfold.export.features import FeatureSpec

OUTPUT_NAMES = {"regression": ("value",), "classification": ("calm", "odd", "wild")}


def make_tiny_bundle(
    folder: Path,
    *,
    features: Sequence[str] | FeatureSpec = ("a", "b"),
    hidden: int = 4,
    kind: Literal["regression", "classification"] = "regression",
    outputs: OutputSpec | None = None,
    seed: int = 0,
    tombstone: Tombstone = "reject",
    time_field: str | None = "time",
    reset_after_ms: int | None = None,
    end_field: str = "",
) -> Bundle:
    """Write folder/<id> and load it again. Equal arguments give an equal id.

    `outputs` stands in for `kind`: its columns come from the dense layer as they are.
    """
    spec = features if isinstance(features, FeatureSpec) else FeatureSpec.numbers(*features)
    outputs = outputs or OutputSpec(kind, OUTPUT_NAMES[kind])
    graph = tiny_graph(len(spec.columns), hidden, len(outputs.names), outputs.kind, seed)
    manifest = Manifest(
        events=EventSpec("key", time_field, "ms", tombstone, reset_after_ms, end_field=end_field),
        features=spec,
        outputs=outputs,
        states=(StateSpec("h", "h_out", (hidden,)), StateSpec("c", "c_out", (hidden,))),
        step_sha256="",  # filled in by save
        provenance={"made_by": "tests/support/tiny_bundle.py"},
    )
    return contract.load(contract.save(folder, manifest, graph, _golden(graph, manifest, seed)))


def tiny_graph(features: int, hidden: int, outputs: int, kind: str, seed: int) -> bytes:
    """Return the step graph: x (B,T,F), lengths (B,), h and c (B,H) -> y (B,T,O), h_out, c_out."""
    weights = _weights(features, hidden, outputs, seed)
    nodes = [
        helper.make_node("Transpose", ["x"], ["x_t"], perm=[1, 0, 2]),
        helper.make_node("Unsqueeze", ["h", "zero"], ["h_in"]),
        helper.make_node("Unsqueeze", ["c", "zero"], ["c_in"]),
        helper.make_node(
            "LSTM",
            ["x_t", "W", "R", "bias", "lengths", "h_in", "c_in"],
            ["seq", "h_last", "c_last"],
            hidden_size=hidden,
        ),
        helper.make_node("Squeeze", ["h_last", "zero"], ["h_out"]),
        helper.make_node("Squeeze", ["c_last", "zero"], ["c_out"]),
        helper.make_node("Squeeze", ["seq", "one"], ["seq_t"]),
        helper.make_node("Transpose", ["seq_t"], ["seq_b"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["seq_b", "kernel"], ["dense"]),
    ]
    last = "logits" if kind == "classification" else "y"
    nodes.append(helper.make_node("Add", ["dense", "offset"], [last]))
    if kind == "classification":
        nodes.append(helper.make_node("Softmax", ["logits"], ["y"], axis=-1))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            _value("x", "B", "T", features),
            helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"]),
            _value("h", "B", hidden),
            _value("c", "B", hidden),
        ],
        [
            _value("y", "B", "T", outputs),
            _value("h_out", "B", hidden),
            _value("c_out", "B", hidden),
        ],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _weights(features: int, hidden: int, outputs: int, seed: int) -> dict[str, NDArray[Any]]:
    draw = np.random.default_rng(seed)
    return {
        "W": draw.normal(0, 0.8, (1, 4 * hidden, features)).astype(np.float32),
        "R": draw.normal(0, 0.5, (1, 4 * hidden, hidden)).astype(np.float32),
        "bias": draw.normal(0, 0.2, (1, 8 * hidden)).astype(np.float32),
        "kernel": draw.normal(0, 1.5, (hidden, outputs)).astype(np.float32),
        "offset": draw.normal(0, 0.5, outputs).astype(np.float32),
        "zero": np.array([0], np.int64),
        "one": np.array([1], np.int64),
    }


def _value(name: str, *dims: str | int) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(dims))


def _golden(graph: bytes, manifest: Manifest, seed: int) -> Golden:
    rows, steps = 3, 7
    draw = np.random.default_rng(seed + 1)
    x = draw.normal(0, 1, (rows, steps, len(manifest.features.columns))).astype(np.float32)
    lengths = np.array([7, 1, 4], np.int32)
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    feed = {"x": x, "lengths": lengths, **contract.initial_states(manifest, rows)}
    (y,) = session.run(["y"], feed)
    y[np.arange(steps) >= lengths[:, None]] = 0.0
    return Golden(x, lengths, y)
