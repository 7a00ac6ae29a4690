"""A converted model is one graph of fused recurrent operators that steps like the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
from keyfold.export.convert import (  # noqa: E402
    StepGraph,
    check_operators,
    convert,
    reference,
)
from keyfold.export.layers import Standardize  # noqa: E402
from keyfold.export.recurrent import ConvertError  # noqa: E402

pytestmark = pytest.mark.tensorflow
layers = keras.layers
F, STEPS = 3, 60


def model(kind: str, *, units: tuple[int, ...] = (5,), **settings: Any) -> Any:
    keras.utils.set_random_seed(4)
    x = keras.Input((None, F), name="x")
    z = Standardize([10.0, -2.0, 0.0], [2.0, 1.0, 3.0])(x)
    for size in units:
        z = getattr(layers, kind)(size, return_sequences=True, **settings)(z)
    y = layers.Dense(2)(layers.LayerNormalization()(z))
    made = keras.Model(x, layers.Rescaling(20.0, 50.0)(y))
    draw = np.random.default_rng(0)  # biases start at zero: give them something to get wrong
    made.set_weights([w + draw.normal(0, 0.1, w.shape) for w in made.get_weights()])
    return made


def inputs(rows: int = 4, steps: int = STEPS) -> Any:
    draw = np.random.default_rng(1)
    return draw.normal((10, -2, 0), (2, 1, 3), (rows, steps, F)).astype(np.float32)


def run(graph: StepGraph, x: Any, steps: int, padding: int = 0) -> tuple[Any, Any]:
    session = ort.InferenceSession(graph.onnx, providers=["CPUExecutionProvider"])
    names = ["y", *(state.output for state in graph.states)]
    carried = {s.input: np.zeros((len(x), *s.dims), np.float32) for s in graph.states}
    ys = []
    for first in range(0, x.shape[1], steps):
        part = x[:, first : first + steps]
        count = part.shape[1]
        nothing = np.full((len(x), padding, F), np.nan, np.float32)
        feed = {
            "x": np.concatenate([part, nothing], axis=1),
            "lengths": np.full(len(x), count, np.int32),
        }
        y, *after = session.run(names, {**feed, **carried})
        carried = {s.input: value for s, value in zip(graph.states, after, strict=True)}
        ys.append(y[:, :count])
    return np.concatenate(ys, axis=1), carried


CELLS: list[tuple[str, dict[str, Any], str]] = [
    ("LSTM", {}, "LSTM"),
    ("LSTM", {"units": (6, 4), "use_bias": False}, "LSTM"),
    ("LSTM", {"return_state": False, "activation": "relu"}, "LSTM"),
    ("GRU", {"reset_after": True}, "GRU"),
    ("GRU", {"reset_after": False, "units": (5, 5)}, "GRU"),
    ("SimpleRNN", {}, "RNN"),
    ("SimpleRNN", {"activation": "relu", "units": (4, 3)}, "RNN"),
]


@pytest.mark.parametrize(("kind", "settings", "operator"), CELLS)
def test_a_recurrent_layer_becomes_its_fused_operator(
    kind: str, settings: dict[str, Any], operator: str
) -> None:
    graph = convert(model(kind, **settings))
    types = [node.op_type for node in onnx.load_from_string(graph.onnx).graph.node]
    assert types.count(operator) == len(settings.get("units", (5,)))
    assert not {"Loop", "Scan", "If"} & set(types)


@pytest.mark.parametrize(("kind", "settings", "operator"), CELLS)
def test_the_graph_equals_keras_and_itself_however_it_is_stepped(
    kind: str, settings: dict[str, Any], operator: str
) -> None:
    made = model(kind, **settings)
    graph = convert(made)
    x = inputs()
    whole, last = run(graph, x, STEPS)
    np.testing.assert_allclose(whole, reference(made)(x), rtol=1e-5, atol=2e-4)
    for steps, padding in ((1, 0), (7, 0), (13, 5)):
        y, after = run(graph, x, steps, padding)
        assert np.array_equal(y, whole)
        assert all(np.array_equal(after[name], last[name]) for name in last)


def test_each_row_stops_at_its_own_length() -> None:
    graph = convert(model("LSTM"))
    session = ort.InferenceSession(graph.onnx, providers=["CPUExecutionProvider"])
    x, lengths = inputs(3, 9), np.array([9, 2, 5], np.int32)
    zeros = {s.input: np.zeros((3, *s.dims), np.float32) for s in graph.states}
    _, h, c = session.run(["y", "h0_out", "c0_out"], {"x": x, "lengths": lengths, **zeros})
    for row, length in enumerate(lengths):
        _, alone = run(graph, x[row : row + 1, :length], int(length))
        assert np.array_equal(alone["h0"][0], h[row])
        assert np.array_equal(alone["c0"][0], c[row])


def test_names_shapes_and_bytes_are_the_contract() -> None:
    made = model("LSTM", units=(6, 4))
    graph = convert(made)
    assert [(s.input, s.output, s.dims) for s in graph.states] == [
        ("h0", "h0_out", (6,)),
        ("c0", "c0_out", (6,)),
        ("h1", "h1_out", (4,)),
        ("c1", "c1_out", (4,)),
    ]
    session = ort.InferenceSession(graph.onnx, providers=["CPUExecutionProvider"])
    assert {i.name: i.shape for i in session.get_inputs()}["x"] == ["B", "T", F]
    assert {o.name: o.shape for o in session.get_outputs()}["y"] == ["B", "T", 2]
    assert convert(made).onnx == graph.onnx


def whole_input(*middle: Callable[[Any], Any], width: int = F) -> Any:
    x = z = keras.Input((None, width), name="x")
    for layer in middle:
        z = layer(z)
    return keras.Model(x, z)


def shared_layer() -> Any:
    layer = layers.SimpleRNN(F, return_sequences=True)
    return whole_input(layer, layer)


def given_state() -> Any:
    x = keras.Input((None, F))
    state = keras.ops.mean(x, axis=1)
    return keras.Model(x, layers.GRU(F, return_sequences=True)(x, initial_state=state))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: whole_input(layers.LSTM(2)), "output: expected shape"),
        (lambda: whole_input(layers.Dense(2)), "expected a recurrent layer, got none"),
        (
            lambda: whole_input(layers.LSTM(2, return_sequences=True, go_backwards=True)),
            "expected go_backwards=False",
        ),
        (
            lambda: whole_input(layers.GRU(2, return_sequences=True, activation="elu")),
            "expected activations among .*, got elu",
        ),
        (
            lambda: whole_input(layers.Masking(), layers.LSTM(2, return_sequences=True)),
            "neither initial_state nor mask",
        ),
        (given_state, "neither initial_state nor mask"),
        (
            lambda: whole_input(layers.Dense(F, "gelu"), layers.GRU(F, return_sequences=True)),
            "layers that ONNX 17 has operators for, got: No Op registered for Erfc",
        ),
        (shared_layer, "expected it to be used once"),
    ],
)
def test_a_model_that_cannot_be_stepped_is_refused(make: Callable[[], Any], expected: str) -> None:
    with pytest.raises(ConvertError, match=expected):
        convert(make())


@pytest.mark.parametrize("operator", ["Loop", "Scan"])
def test_a_graph_that_loops_is_refused(operator: str) -> None:
    node = onnx.helper.make_node(operator, ["x"], ["y"], name="while")
    graph = onnx.helper.make_graph([node], "g", [], [])
    with pytest.raises(ConvertError, match=rf"'while'.*got ai\.onnx\.{operator}"):
        check_operators(onnx.helper.make_model(graph))
