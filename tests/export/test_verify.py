"""A step graph is accepted only if it computes what the model computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from keyfold.export import bundle as contract
from keyfold.export.bundle import StateSpec
from keyfold.export.verify import STEPS, Model, ParityError, tolerance_of, verify

onnx = pytest.importorskip("onnx")
from onnx import numpy_helper  # noqa: E402
from tiny_bundle import tiny_graph  # noqa: E402

F, H, OUTPUTS = 2, 4, 1
STATES = (StateSpec("h", "h_out", (H,)), StateSpec("c", "c_out", (H,)))
Function = Callable[[Any], Any]


@pytest.fixture(scope="module")
def graph() -> bytes:
    return tiny_graph(F, H, OUTPUTS, "regression", seed=0)


def as_model(float32: Function, float64: Function | None = None) -> Model:
    return Model(float32, float64 or float32, (0.0, 5.0), (1.0, 2.0))


@pytest.fixture(scope="module")
def model(graph: bytes) -> Model:
    """The tiny graph's LSTM written out in numpy, without ONNX Runtime."""
    weights = {
        constant.name: numpy_helper.to_array(constant).astype(np.float64)
        for constant in onnx.load_from_string(graph).graph.initializer
    }
    W, R, bias = weights["W"][0], weights["R"][0], weights["bias"][0].reshape(2, -1).sum(axis=0)

    def exact(x: Any) -> Any:
        h = c = np.zeros((len(x), H))
        ys = []
        for t in range(x.shape[1]):
            gates = np.split(x[:, t] @ W.T + h @ R.T + bias, 4, axis=1)
            i, o, f = (1 / (1 + np.exp(-gate)) for gate in gates[:3])
            c = f * c + i * np.tanh(gates[3])
            h = o * np.tanh(c)
            ys.append(h @ weights["kernel"] + weights["offset"])
        return np.stack(ys, axis=1)

    return as_model(lambda x: exact(x).astype(np.float32), exact)


def test_a_right_graph_is_proved_over_a_thousand_steps(graph: bytes, model: Model) -> None:
    proof = verify(graph, STATES, model)
    assert proof.steps == STEPS >= 1000
    assert proof.largest_difference <= proof.allowed
    assert proof.identical
    assert proof.min_rows == 1
    assert proof.tolerance == 1e-5


def test_golden_sequences_are_what_the_graph_answers(graph: bytes, model: Model) -> None:
    golden = verify(graph, STATES, model).golden
    for row, length in enumerate(golden.lengths.tolist()):
        expected = model.float32(golden.x[row : row + 1, :length])[0]
        np.testing.assert_allclose(golden.y[row, :length], expected, atol=1e-5)
        assert not golden.y[row, length:].any()
        assert not golden.x[row, length:].any()


def test_golden_inputs_are_drawn_from_the_scaling_and_the_seed_alone(
    graph: bytes, model: Model
) -> None:
    one, same, other = (verify(graph, STATES, model, seed).golden for seed in (1, 1, 2))
    assert np.array_equal(one.x, same.x)
    assert not np.array_equal(one.x, other.x)
    assert abs(one.x[one.x[..., 1] != 0][:, 1].mean() - 5.0) < 2.0


@pytest.mark.parametrize("name", ["W", "R", "bias", "kernel"])
def test_a_tampered_graph_is_refused(graph: bytes, model: Model, name: str) -> None:
    changed = onnx.load_from_string(graph)
    (constant,) = (c for c in changed.graph.initializer if c.name == name)
    values = numpy_helper.to_array(constant).copy()
    values.flat[1] += 0.01
    constant.CopyFrom(numpy_helper.from_array(values, name))
    with pytest.raises(ParityError, match=r"one call, 1200 carried steps: expected .* of Keras"):
        verify(changed.SerializeToString(), STATES, model)


def test_a_graph_that_ignores_its_state_is_refused(graph: bytes, model: Model) -> None:
    changed = onnx.load_from_string(graph)
    (node,) = (n for n in changed.graph.node if n.op_type == "LSTM")
    node.input[5] = ""  # right in one call, wrong as soon as a state is carried
    changed.graph.node.remove(next(n for n in changed.graph.node if "h_in" in n.output))
    with pytest.raises(ParityError, match=r"B=1, T=1, 1200 carried steps"):
        verify(changed.SerializeToString(), STATES, model)


def test_an_answer_that_is_not_a_number_is_refused(graph: bytes) -> None:
    with pytest.raises(ParityError, match="got a difference of nan"):
        verify(graph, STATES, as_model(lambda x: np.full((*x.shape[:2], OUTPUTS), np.nan)))


def test_a_graph_that_rounds_a_single_row_otherwise_is_never_given_one(
    graph: bytes, model: Model
) -> None:
    changed = onnx.load_from_string(graph)
    (last,) = (node for node in changed.graph.node if "y" in node.output)
    last.output[0] = "plain"
    make, one = onnx.helper.make_node, numpy_helper.from_array(np.array([1], np.int64), "lonely")
    tiny = numpy_helper.from_array(np.array([1e-6], np.float32), "tiny")
    changed.graph.initializer.extend([one, tiny])
    changed.graph.node.extend(  # y = plain + 1e-6 where B is 1
        [
            make("Shape", ["x"], ["rows"], start=0, end=1),
            make("Equal", ["rows", "lonely"], ["is_alone"]),
            make("Cast", ["is_alone"], ["alone"], to=onnx.TensorProto.FLOAT),
            make("Mul", ["alone", "tiny"], ["error"]),
            make("Add", ["plain", "error"], ["y"]),
        ]
    )
    proof = verify(changed.SerializeToString(), STATES, model)
    assert proof.min_rows == 2
    assert proof.identical


def test_a_model_that_amplifies_rounding_gets_the_tolerance_it_needs(
    graph: bytes, model: Model
) -> None:
    noisy = as_model(model.float32, lambda x: model.float64(x) + 2.34e-5)
    proof = verify(graph, STATES, noisy)
    assert 10 * proof.noise <= proof.allowed <= 20 * proof.noise
    assert proof.tolerance == float(f"{proof.tolerance:.0e}")


def test_a_model_that_amplifies_rounding_too_much_is_refused(graph: bytes, model: Model) -> None:
    chaotic = as_model(model.float32, lambda x: model.float64(x) + 0.01)
    with pytest.raises(ParityError, match="machines would disagree"):
        verify(graph, STATES, chaotic)


def test_the_refusal_of_rounding_shows_the_difference_and_advises_what_texts_allow_too() -> None:
    with pytest.raises(ParityError) as error:
        tolerance_of(1.00003e-4)
    assert "less than 0.0001 of their size over 1200 steps, got 0.000100003" in str(error.value)
    assert (
        "fit.weight_decay = 0.01 with fit.optimizer = 'adamw' or, where events are numbers, "
        in (str(error.value))
    )


def test_the_initial_state_of_a_state_spec_is_used(graph: bytes, model: Model) -> None:
    elsewhere = (StateSpec("h", "h_out", (H,), initial=0.5), STATES[1])
    with pytest.raises(ParityError):
        verify(graph, elsewhere, model)
    assert contract.StateSpec("h", "h_out", (H,)).bytes_per_key == 16
