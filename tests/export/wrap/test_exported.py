"""keyfold-export wrap: what PyTorch's exporters write and no step can keep: mended or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from own_graphs import CELL, FEATURES, REGRESSION, by_hand, cell, looped, readings, unrolled
from torch_graphs import TorchNet

from keyfold.export.bundle import Bundle
from keyfold.export.cli import main
from keyfold.export.wrap.exported import loosened
from keyfold.worker.verify.offline_step import OfflineStep

Run = Callable[..., Any]


def check(bundle: Bundle) -> None:
    """See that a bundle of the cell computes it, one event at a time."""
    step, x = OfflineStep(bundle), readings()
    for row, expected in zip(x, by_hand(x), strict=True):
        tensors = step.cold()
        for event, y in zip(row, expected, strict=True):
            one, tensors = step.one(event[None], tensors)
            np.testing.assert_allclose(one, y, atol=1e-6)


@pytest.mark.parametrize(
    ("before", "target", "kept"),
    [
        ([4, 2, 1, 5], [4, 2, 5], [0, 0, 5]),
        (["n", 2, 1, 5], [-1, 2, 5], [-1, 0, 5]),
        ([4, "n", 1, 5], [4, -1, 5], [0, -1, 5]),
        (["n", 2, 2], [-1, 2], [-1, 2]),  # all rows and steps in one axis: 2 is the last size
        ([2, 4, 5], [8, 5], [8, 5]),
        ([2, 4], [2, 0, 2], [2, 0, 2]),
        (None, [4, 2, 5], [4, 2, 5]),
    ],
)
def test_sizes_of_the_example_are_loosened_where_nothing_else_changes(
    before: list[int | str] | None, target: list[int], kept: list[int]
) -> None:
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "to"], ["y"], allowzero=0)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, before)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array(target), "to")],
    )
    made = loosened(helper.make_model(graph)).graph
    constants = {c.name: numpy_helper.to_array(c).tolist() for c in made.initializer}
    assert constants[made.node[0].input[1]] == kept


def test_a_constant_of_another_form_is_left_alone(run: Run) -> None:
    before = [
        helper.make_node("Constant", [], ["to"], value_ints=[-1, 3]),
        helper.make_node("Reshape", ["x", "to"], ["x1"]),
    ]
    check(run(cell(x="x1", before=before), *CELL)[0])


def test_a_loop_over_steps_that_was_written_out_is_asked_for_with_one_step(run: Run) -> None:
    error = run(unrolled(4), *CELL)
    assert "with x (7, 1, 3), got: Dimension of input 1 must be 1 instead of 0" in error
    assert "it runs as (2, 4, 3) only: export it with dynamic axes" in error
    assert "and an example of 2 rows and 1 step" in error
    assert "onnxruntime_src" not in error, "where in ONNX Runtime's sources helps nobody"


def test_a_loop_of_one_step_is_served_one_step_a_call(run: Run) -> None:
    bundle, _ = run(unrolled(1), *CELL)
    assert bundle.manifest.max_steps == 1
    check(bundle)


def test_the_body_of_a_loop_finds_its_weights_and_loses_its_comments(run: Run) -> None:
    bundle, _ = run(looped(), *CELL)
    check(bundle)
    assert b"/home/me" not in (bundle.path / "step.onnx").read_bytes()


@pytest.mark.parametrize(
    ("kind", "said"), [(TensorProto.DOUBLE, "float64"), (TensorProto.FLOAT16, "float16")]
)
def test_recurrent_operators_of_other_floats_are_refused(run: Run, kind: int, said: str) -> None:
    """ONNX Runtime 1.31 ends the program with a fault where an LSTM is of float16."""
    net = TorchNet("LSTM", 1)
    model = net.export()
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    for constant in model.graph.initializer:
        values = numpy_helper.to_array(constant)
        if values.dtype == np.float32:
            constant.CopyFrom(numpy_helper.from_array(values.astype(dtype), constant.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = kind
    error = run(model, "--states", *net.pairs, *REGRESSION)
    assert f"graph: LSTM: expected float32, got {said}, which ONNX Runtime cannot run" in error
    assert "net.float()" in error


def test_a_layer_that_reads_later_events_is_refused_unless_one_step_is_all_it_gets(
    run: Run,
) -> None:
    net = TorchNet("GRU", 1)
    model = net.export()
    for node in model.graph.node:
        if node.op_type == "GRU":
            node.attribute.append(helper.make_attribute("direction", "reverse"))
    given = ["--states", *net.pairs, *REGRESSION]
    error = run(model, *given)
    assert "graph: GRU: expected one that reads forward, got direction reverse" in error
    assert "train one without (PyTorch: bidirectional=False)" in error
    bundle, _ = run(model, *given, "--max-steps", "1")
    assert bundle.manifest.max_steps == 1


def test_a_layer_whose_state_has_no_bound_is_served_one_step_a_call(run: Run) -> None:
    net = TorchNet("GRU", 1)
    model = net.export()
    for node in model.graph.node:
        if node.op_type == "GRU":
            node.attribute.append(helper.make_attribute("activations", ["Sigmoid", "Relu"]))
    bundle, said = run(model, "--states", *net.pairs, *REGRESSION)
    assert bundle.manifest.max_steps == 1
    assert "note: one step a call: GRU with Relu may be infinite between two events" in said


ONES = np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("operator", "given", "settings"),
    [
        ("Dropout", {"ratio": np.float32(0.5), "mode": np.array(True)}, {}),
        ("BatchNormalization", dict.fromkeys(["scale", "bias", "mean", "variance"], ONES),
         {"training_mode": 1}),
    ],
)  # fmt: skip
def test_training_mode_is_refused(
    run: Run, operator: str, given: dict[str, Any], settings: dict[str, int]
) -> None:
    """ONNX Runtime takes such a Dropout out where it optimises, and only there."""
    model = cell(
        x="x1",
        before=[helper.make_node(operator, ["x", *given], ["x1"], **settings)],
        constants=[numpy_helper.from_array(np.asarray(v), name) for name, v in given.items()],
    )
    error = run(model, *CELL)
    assert f"graph: {operator}: expected evaluation mode, got training mode" in error
    assert "export model.eval()" in error


def test_a_model_that_keeps_its_states_to_itself_is_refused(run: Run) -> None:
    model = cell()
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 4), np.float32), "h"))
    for given in (["--states", "h0:hn"], []):
        error = run(model, *given, *REGRESSION)
        assert "expected an input for the event and one for every state, got x alone" in error
        assert "forward(x, h, c) -> y, h, c" in error


def test_a_wrong_number_of_outputs_is_not_put_down_to_sizes(run: Run) -> None:
    net = TorchNet("LSTM", 1, free=False, newer=True)
    given = ["--states", *net.pairs, *FEATURES, "--output", "regression", "p"]
    error = run(net.export(), *given)
    assert "expected 1 numbers (p)" in error
    assert "only: export it" not in error


def test_weights_that_were_left_behind_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "model.onnx"
    onnx.save(cell(), file, save_as_external_data=True, location="model.onnx.data",
              size_threshold=0)  # fmt: skip
    (tmp_path / "model.onnx.data").unlink()
    assert main(["wrap", str(file), *CELL, "--out", str(tmp_path / "b")]) == 1
    error = capsys.readouterr().err
    assert "expected its weights in a file beside it" in error
    assert "model.onnx.data), or export with external_data=False" in error
    assert error.count("\n") == 1


def test_golden_logits_are_asked_for_as_they_are_predicted(run: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "g.npz", x=readings(), y=by_hand(readings()))
    error = run(
        cell(), "--states", "h:hn", *FEATURES, "--output", "classification", "walk", "run",
        "--activation", "softmax", "--golden", str(tmp_path / "g.npz"),
    )  # fmt: skip
    assert "x is (rows, steps, columns) in the events' own units, y what is predicted" in error
    assert "behind any --activation" in error


def test_golden_sequences_of_one_step_are_said_to_prove_no_states(run: Run, tmp_path: Path) -> None:
    for steps in (1, 2):
        x = readings(steps=steps)
        np.savez(tmp_path / "g.npz", x=x, y=by_hand(x))
        _, said = run(cell(), *CELL, "--golden", str(tmp_path / "g.npz"))
        assert ("sequences of one step say nothing about states" in said) == (steps == 1)
