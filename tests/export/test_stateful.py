"""Layers that carry a state in plain operations are exact in every grouping, and equal to Keras."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
from keras_marks import KERAS

keras = pytest.importorskip("keras")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
from keyfold.export.attention import CausalAttention, WindowAttention  # noqa: E402
from keyfold.export.calls import in_calls  # noqa: E402
from keyfold.export.convert import (  # noqa: E402
    StepGraph,
    convert,
    in_float64,
    load_model,
    reference,
)
from keyfold.export.layers import KnownOnly, Tokens, Unfold  # noqa: E402
from keyfold.export.own_cell import CellError, OwnCell  # noqa: E402
from keyfold.export.recurrent import ConvertError  # noqa: E402
from keyfold.export.stateful import MOST_STEPS, LayerState, Stateful  # noqa: E402
from keyfold.export.windowed import BidirectionalWindow  # noqa: E402

pytestmark = KERAS
layers = keras.layers
F, WINDOW = 3, 6


def lstm(units: int = 8) -> Any:
    return layers.LSTM(units, return_sequences=True)


def own(source: str) -> Any:
    cell = OwnCell(f"own_cells:{source}", 4)
    return layers.RNN(cell, return_sequences=True)


STACKS: dict[str, Callable[[], list[Any]]] = {
    "additive": lambda: [lstm(), WindowAttention("additive", WINDOW)],
    "multiplicative": lambda: [lstm(), WindowAttention("multiplicative", WINDOW)],
    "transformer": lambda: [layers.Dense(8), CausalAttention(4, WINDOW), CausalAttention(2, 3)],
    "shared keys": lambda: [layers.Dense(8), CausalAttention(4, WINDOW, 2)],
    "bidirectional": lambda: [BidirectionalWindow("lstm", 5, WINDOW)],
    "both ways, summed": lambda: [
        BidirectionalWindow("gru", 5, WINDOW, "sum"),
        BidirectionalWindow("simple_rnn", 4, 3),
    ],
    "frames": lambda: [Unfold(2), layers.Dense(4, "relu"), layers.Reshape((-1, 8)), lstm()],
    "own cell": lambda: [own("minimal")],
    "stacked cells": lambda: [own("stacked"), lstm(4)],
}


@cache
def model(name: str) -> Any:
    keras.utils.set_random_seed(4)
    x = z = keras.Input((None, F), name="x")
    for layer in STACKS[name]():
        z = layer(z)
    made = keras.Model(x, layers.Dense(2)(z))
    draw = np.random.default_rng(0)  # biases start at zero: give them something to get wrong
    made.set_weights([w + draw.normal(0, 0.3, w.shape) for w in made.get_weights()])
    return made


@cache
def converted(name: str) -> StepGraph:
    return convert(model(name))


def inputs(rows: int = 5, steps: int = 40) -> Any:
    return np.random.default_rng(1).normal(size=(rows, steps, F)).astype(np.float32)


class Stepping:
    """A step graph and the states it carries."""

    def __init__(self, graph: StepGraph) -> None:
        self.graph = graph
        self._session = ort.InferenceSession(graph.onnx, providers=["CPUExecutionProvider"])

    def cold(self, rows: int) -> dict[str, Any]:
        states = self.graph.states
        return {s.input: np.full((rows, *s.dims), s.initial, s.dtype) for s in states}

    def step(self, x: Any, lengths: Any, carried: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        names = ["y", *(state.output for state in self.graph.states)]
        feed = {"x": x, "lengths": np.asarray(lengths, np.int32), **carried}
        y, *after = self._session.run(names, feed)
        return y, {s.input: value for s, value in zip(self.graph.states, after, strict=True)}

    def run(self, x: Any, steps: int, padding: int = 0) -> tuple[Any, dict[str, Any]]:
        carried, ys = self.cold(len(x)), []
        for first in range(0, x.shape[1], steps):
            part = x[:, first : first + steps]
            nothing = np.full((len(x), padding, x.shape[2]), np.nan, np.float32)
            lengths = np.full(len(x), part.shape[1])
            y, carried = self.step(np.concatenate([part, nothing], axis=1), lengths, carried)
            ys.append(y[:, : part.shape[1]])
        return np.concatenate(ys, axis=1), carried


@pytest.mark.parametrize("name", STACKS)
def test_the_graph_equals_keras_and_itself_however_it_is_stepped(name: str) -> None:
    made, graph = model(name), converted(name)
    types = {node.op_type for node in onnx.load_from_string(graph.onnx).graph.node}
    assert not {"Loop", "Scan", "If"} & types
    x, stepping = inputs(), Stepping(graph)
    one_by_one, last = stepping.run(x, 1)
    np.testing.assert_allclose(one_by_one, reference(made)(x), rtol=1e-4, atol=1e-5)
    if graph.max_steps == 1:
        return
    for steps, padding in ((40, 0), (7, 0), (13, 5), (WINDOW, 1)):
        y, after = stepping.run(x, steps, padding)
        assert np.array_equal(y, one_by_one)
        assert all(np.array_equal(after[state], last[state]) for state in last)


@pytest.mark.parametrize("name", ["bidirectional", "both ways, summed"])
@pytest.mark.parametrize("huge", [np.inf, -np.inf, 3e38])
def test_an_input_without_bounds_leaves_states_that_are_finite_in_every_grouping(
    name: str, huge: float
) -> None:
    stepping, x = Stepping(converted(name)), inputs(2, 12)
    x[0, 2, 1] = huge  # an event's value is finite; scaled, it may not be
    carried, ones = stepping.cold(2), []
    for t in range(12):
        y, carried = stepping.step(x[:, t : t + 1], [1, 1], carried)
        assert all(np.isfinite(state).all() for state in carried.values()), f"event {t}"
        ones.append(y)
    whole, after = stepping.step(x, [12, 12], stepping.cold(2))
    assert np.array_equal(np.concatenate(ones, axis=1), whole)
    assert all(np.array_equal(after[state], carried[state]) for state in carried)


@pytest.mark.parametrize("name", STACKS)
def test_a_row_does_not_depend_on_those_beside_it(name: str) -> None:
    stepping, x = Stepping(converted(name)), inputs()
    whole, last = stepping.run(x, 1)
    some, after = stepping.run(x[1:3], 1)
    assert np.array_equal(some, whole[1:3])
    assert all(np.array_equal(after[state], last[state][1:3]) for state in last)


@pytest.mark.parametrize("name", [n for n in STACKS if n not in ("own cell", "stacked cells")])
def test_each_row_stops_at_its_own_length(name: str) -> None:
    stepping, lengths = Stepping(converted(name)), np.array([9, 1, 4])
    x = inputs(3, 9)
    x[np.arange(9) >= lengths[:, None]] = np.nan
    y, after = stepping.step(x, lengths, stepping.cold(3))
    for row, length in enumerate(lengths):
        pair = np.repeat(x[row : row + 1, :length], 2, axis=0)  # one row alone may round otherwise
        alone, last = stepping.run(pair, int(length))
        assert np.array_equal(alone[0], y[row, :length])
        assert all(np.array_equal(last[state][0], after[state][row]) for state in last)


@pytest.mark.parametrize("name", STACKS)
def test_a_saved_model_is_the_same_model_also_in_float64(name: str, tmp_path: Any) -> None:
    made = model(name)
    made.save(tmp_path / "model.keras")
    loaded, x = load_model(tmp_path / "model.keras"), inputs(2, 9)
    expected = reference(made)(x)
    assert np.array_equal(reference(loaded)(x), expected)
    exact = reference(in_float64(loaded))(x.astype(np.float64))
    assert exact.dtype == np.float64
    assert not np.array_equal(exact.astype(np.float32), expected)
    np.testing.assert_allclose(exact, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in STACKS if "cell" not in n and n != "frames"])
def test_carried_windows_of_training_equal_one_long_run(name: str) -> None:
    """Of every layer that carries a state, called with states as training does."""
    keras.utils.set_random_seed(5)
    for layer in STACKS[name]():
        if not isinstance(layer, Stateful):
            continue
        x = np.random.default_rng(2).normal(size=(3, 25, 8)).astype(np.float32)
        whole = keras.ops.convert_to_numpy(layer(x))
        layer.return_state = True
        states = [np.zeros((3, spec.size), np.float32) for spec in layer.state_specs()]
        parts, first = [], 0
        for steps in (1, 2, 15, 7):
            y, *states = layer(x[:, first : first + steps], states)
            parts.append(keras.ops.convert_to_numpy(y))
            first += steps
        np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-5)


def test_states_are_named_and_begin_as_the_layers_say() -> None:
    graph = converted("additive")
    assert [(s.input, s.output, s.dims) for s in graph.states] == [
        ("h0", "h0_out", (8,)),
        ("c0", "c0_out", (8,)),
        ("ring1", "ring1_out", (WINDOW - 1, 8)),
        ("count1", "count1_out", (1,)),
    ]
    (cell,) = converted("own cell").states
    assert (cell.input, cell.dims, cell.initial) == ("cell0_0", (4,), 0.25)


def test_a_call_has_as_many_steps_as_its_windows_leave_room_for() -> None:
    assert converted("transformer").max_steps == MOST_STEPS
    assert converted("own cell").max_steps == 1
    x = keras.Input((None, 64))
    wide = keras.Model(x, CausalAttention(1, 256)(x))
    assert convert(wide).max_steps == 2**24 // (64 * 2 * 256 * 64)


@pytest.mark.parametrize("name", ["additive", "transformer", "bidirectional"])
def test_the_same_model_gives_the_same_bytes(name: str) -> None:
    assert all(convert(model(name)).onnx == converted(name).onnx for _ in range(3))


def test_a_window_forgets_what_is_older_than_it() -> None:
    layer = CausalAttention(2, 3)
    x = np.random.default_rng(2).normal(size=(1, 9, 4)).astype(np.float32)
    y = np.array(layer(x))
    changed = x.copy()
    changed[0, 2] += 1.0
    differs = (np.array(layer(changed)) != y).any(axis=2)[0]
    assert differs.tolist() == [False, False, True, True, True, False, False, False, False]


def test_an_id_that_is_none_gives_nan_and_no_other_rows_answer() -> None:
    x = keras.Input((None, 1))
    made = keras.Model(x, KnownOnly(4)([x, lstm(3)(Tokens(4, 5)(x))]))
    stepping = Stepping(convert(made))
    ids = np.array([0.0, 3.0, 1.0, 4.0, -1.0, np.nan], np.float32)[:, None, None]
    y, _ = stepping.step(ids, np.ones(6), stepping.cold(6))
    assert np.isfinite(y).all(axis=(1, 2)).tolist() == [True, True, True, False, False, False]
    padded = np.array([[2.0, np.nan], [2.0, 1.0]], np.float32)[:, :, None]
    y, after = stepping.step(padded, [1, 2], stepping.cold(2))
    assert np.isfinite(y[0, 0]).all()
    assert np.isfinite(after["h0"]).all()


class Odd(keras.layers.Layer):  # type: ignore[misc, name-defined] # keras has no types
    """A cell whose states do not begin as one number."""

    state_size = output_size = F

    def call(self, x: Any, states: Any) -> Any:
        return x + states[0], [x]

    def get_initial_state(self, batch_size: Any = None) -> Any:
        return [keras.ops.tile(keras.ops.arange(F, dtype="float32")[None], (batch_size, 1))]


def whole(*middle: Any) -> Any:
    x = z = keras.Input((None, F), name="x")
    for layer in middle:
        z = layer(z)
    return keras.Model(x, z)


@pytest.mark.parametrize(
    ("make", "error", "expected"),
    [
        (
            lambda: whole(layers.Bidirectional(lstm(2))),
            ConvertError,
            "expected LSTM, GRU, .*, got Bidirectional; over a window keyfold has",
        ),
        (
            lambda: whole(layers.RNN(Odd(), return_sequences=True)),
            CellError,
            "expected initial states .* one number throughout",
        ),
        (
            lambda: whole(
                layers.RNN(
                    OwnCell("own_cells:minimal", 2), return_sequences=True, go_backwards=True
                )
            ),
            ConvertError,
            "expected go_backwards=False",
        ),
        (lambda: OwnCell("own_cells:none", 2), CellError, "model.cell: .*PYTHONPATH"),
        (lambda: OwnCell("own_cells:nothing", 2), CellError, "a Keras layer with state_size"),
        (lambda: WindowAttention("soft", 4), ValueError, "additive, multiplicative"),
        (lambda: CausalAttention(3, 4, 2), ValueError, "heads in groups"),
        (lambda: CausalAttention(3, 4).build((None, None, 8)), ValueError, "3 heads of 8 equal"),
        (lambda: BidirectionalWindow("lstm", 2, 1), ValueError, "a window of at least 2"),
        (lambda: Tokens(4, 2).build((None, None, 2)), ValueError, "one column of ids, got 2"),
        (lambda: Unfold(5).compute_output_shape((None, None, 3)), ValueError, "at least 5 columns"),
    ],
)
def test_what_cannot_be_stepped_is_refused(
    make: Callable[[], Any], error: type[Exception], expected: str
) -> None:
    with pytest.raises(error, match=expected):
        convert(make())


def test_a_layer_used_twice_is_refused() -> None:
    attention = WindowAttention("multiplicative", 3)
    with pytest.raises(ConvertError, match="expected it to be used once"):
        convert(whole(attention, attention))


def test_a_states_size_is_that_of_its_dims() -> None:
    assert LayerState("ring", (3, 4)).size == 12


def test_a_call_that_is_too_long_is_cut_and_each_row_keeps_its_end() -> None:
    stepping, x, lengths = Stepping(converted("additive")), inputs(3, 9), np.array([9, 1, 4])
    x[np.arange(9) >= lengths[:, None]] = np.nan
    whole, after = stepping.step(x, lengths, stepping.cold(3))
    for most in (1, 4, 9):
        y, last = in_calls(stepping.step, most)(x, lengths, stepping.cold(3))
        real = np.arange(9) < lengths[:, None]
        assert np.array_equal(y[real], whole[real])
        assert all(np.array_equal(last[state], after[state]) for state in after)
