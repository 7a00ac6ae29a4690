"""keyfold-export wrap: a Keras model of any usual form becomes a bundle that computes the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from own_graphs import FEATURES, REGRESSION, cell, readings

from keyfold.export import bundle as contract
from keyfold.export.bundle import Bundle
from keyfold.export.cli import main
from keyfold.worker.model import Model
from keyfold.worker.verify.offline_step import OfflineStep

# Keras 3.15 with numpy 2 warns in its own code when weights are read; gone when it no longer does.
# A functional model of named inputs warns about their order when it is called with them.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The structure of `inputs`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*np.object:FutureWarning"),
]
keras: Any = pytest.importorskip("keras")
Wrap = Callable[..., Any]


@pytest.fixture
def wrap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Wrap:
    """Save and wrap a model; return the bundle, or the error line."""

    def run(model: Any, *arguments: str) -> Any:
        file = tmp_path / "own.keras"
        model.save(file)
        status = main(["wrap", str(file), *arguments, "--out", str(tmp_path / "bundles")])
        error = capsys.readouterr().err
        if status:
            return error.splitlines()[-1]
        (path,) = (tmp_path / "bundles").glob("*")
        return contract.load(path)

    keras.utils.set_random_seed(3)
    return run


def served(bundle: Bundle, x: NDArray[Any]) -> NDArray[Any]:
    """Step x (R,T,F) as keyfold-verify does, one event at a time."""
    step, ys = OfflineStep(bundle), []
    for row in x:
        tensors = step.cold()
        for event in row:
            y, tensors = step.one(event[None], tensors)
            ys.append(y)
    return np.array(ys).reshape(*x.shape[:2], -1)


def test_a_stateful_model_is_carried_as_it_carries_itself(wrap: Wrap) -> None:
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input(batch_shape=(1, 1, 3)),
            layers.LSTM(5, stateful=True, return_sequences=True),
            layers.GRU(4, stateful=True),
            layers.Dense(2),
        ]
    )
    bundle = wrap(model, *REGRESSION)
    assert [state.dims for state in bundle.manifest.states] == [(5,), (5,), (4,)]
    x = readings(1, 20, seed=5)
    for layer in model.layers[:2]:
        layer.reset_state()
    expected = np.stack([np.asarray(model(x[:, t : t + 1]))[0] for t in range(20)])
    np.testing.assert_allclose(served(bundle, x)[0], expected, atol=1e-5)
    assert bundle.manifest.max_steps == 512


def test_a_model_of_windows_predicts_at_every_event(wrap: Wrap) -> None:
    layers = keras.layers
    model = keras.Sequential([keras.Input((30, 3)), layers.GRU(4), layers.Dense(2)])
    bundle = wrap(model, *REGRESSION)
    x = readings(2, 30, seed=5)
    np.testing.assert_allclose(served(bundle, x)[:, -1], np.asarray(model(x)), atol=1e-5)


def stepping() -> Any:
    """Return an inference model with an input and an output for every state."""
    layers = keras.layers
    x = keras.Input((None, 3), name="x")
    h_in, c_in = keras.Input((5,), name="h_in"), keras.Input((5,), name="c_in")
    recurrent = layers.LSTM(5, return_sequences=True, return_state=True, name="rnn")
    y, h_out, c_out = recurrent(x, initial_state=[h_in, c_in])
    return keras.Model([x, h_in, c_in], [layers.Dense(2, name="out")(y), h_out, c_out])


def test_a_model_with_explicit_states_is_wrapped_by_their_names(wrap: Wrap) -> None:
    model = stepping()
    bundle = wrap(model, "--states", "h_in:rnn", "c_in:rnn_1", *REGRESSION)
    x, zeros = readings(2, 20, seed=5), np.zeros((2, 5), np.float32)
    expected = np.asarray(model([x, zeros, zeros])[0])
    np.testing.assert_allclose(served(bundle, x), expected, atol=1e-5)


def test_a_cell_with_named_inputs_is_served_one_step_a_call(wrap: Wrap) -> None:
    x, h = keras.Input((3,), name="x"), keras.Input((5,), name="h")
    y, after = keras.layers.GRUCell(5)(x, h)
    after = after[0] if isinstance(after, list | tuple) else after
    model = keras.Model({"x": x, "h": h}, {"y": keras.layers.Dense(2)(y), "h2": after})
    bundle = wrap(model, "--states", "h:h2", *REGRESSION)
    assert bundle.manifest.max_steps == 1
    Model(bundle)  # loads and reproduces its golden sequences as a worker does


def normalization(adapted: bool) -> Any:
    if not adapted:
        return keras.layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[4.0, 4.0, 4.0])
    layer = keras.layers.Normalization()
    layer.adapt(readings(4, 20).reshape(-1, 3) * 2 + 1)
    return layer


@pytest.mark.parametrize("adapted", [True, False])
def test_a_model_that_normalises_its_input_is_wrapped(wrap: Wrap, adapted: bool) -> None:
    layers = keras.layers
    norm = normalization(adapted)
    model = keras.Sequential([keras.Input((None, 3)), norm, layers.GRU(4), layers.Dense(2)])
    bundle = wrap(model, *REGRESSION)
    x = readings(2, 30, seed=5)
    np.testing.assert_allclose(served(bundle, x)[:, -1], np.asarray(model(x)), atol=1e-5)


def test_a_model_with_explicit_states_may_normalise_its_input(wrap: Wrap) -> None:
    layers = keras.layers
    x, h = keras.Input((3,), name="x"), keras.Input((5,), name="h")
    y, after = layers.GRUCell(5)(normalization(False)(x), h)
    after = after[0] if isinstance(after, list | tuple) else after
    model = keras.Model({"x": x, "h": h}, {"y": layers.Dense(2)(y), "h2": after})
    assert wrap(model, "--states", "h:h2", *REGRESSION).manifest.max_steps == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--states", "h:rnn"], "--states h:rnn: expected input 'h', got x, h_in, c_in"),
        (["--states", "h_in:x"], "--states h_in:x: expected output 'x', got out, rnn, rnn_1"),
        (["--states", "h_in:rnn"], "expected pairs IN:OUT that leave one input"),
        (["--states", "h_in:rnn_1", "c_in:rnn"], "are the pairs of --states right"),
    ],
)
def test_wrong_names_and_pairs_are_refused(wrap: Wrap, arguments: list[str], said: str) -> None:
    assert said in wrap(stepping(), *arguments, *REGRESSION)


def test_states_are_not_asked_for_where_the_layers_have_them(wrap: Wrap) -> None:
    model = keras.Sequential([keras.Input((None, 3)), keras.layers.GRU(4), keras.layers.Dense(2)])
    assert "expected no --states" in wrap(model, "--states", "a:b", *REGRESSION)


def test_an_onnx_graph_is_compared_with_the_keras_model_it_was_made_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`cell` is a SimpleRNN without biases and a Dense layer without one."""
    weights = {c.name: onnx.numpy_helper.to_array(c) for c in cell().graph.initializer}
    recurrent = keras.layers.SimpleRNN(4, return_sequences=True, use_bias=False)
    dense = keras.layers.Dense(2, use_bias=False)
    model = keras.Sequential([keras.Input((None, 3)), recurrent, dense])
    recurrent.set_weights([weights["W"], weights["R"]])
    dense.set_weights([weights["V"]])
    model.save(tmp_path / "own.keras")
    onnx.save(cell(), tmp_path / "own.onnx")
    given = ["wrap", str(tmp_path / "own.onnx"), "--states", "h:hn", *REGRESSION]
    given += ["--parity", str(tmp_path / "own.keras"), "--out", str(tmp_path / "b")]
    assert main([*given, "--mean", "1,2,3"]) == 0
    assert "nothing to compare with" not in capsys.readouterr().out
    dense.set_weights([weights["V"] * 1.1])
    model.save(tmp_path / "own.keras")
    assert main(given) == 1
    assert "own.keras: expected outputs within" in capsys.readouterr().err


def test_a_stateful_model_of_several_steps_a_call_is_refused(wrap: Wrap) -> None:
    model = keras.Sequential(
        [keras.Input(batch_shape=(1, 7, 3)), keras.layers.LSTM(5, stateful=True)]
    )
    names = [f"o{n}" for n in range(5)]
    error = wrap(model, *FEATURES, "--output", "regression", *names)
    assert "expected a stateful model of 1 step a call, or of any number, got 7" in error
