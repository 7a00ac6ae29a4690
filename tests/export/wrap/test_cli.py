"""keyfold-export wrap: somebody's own ONNX graph becomes a bundle, or is refused in one line.

The graphs are those that torch.onnx.export writes (tests/support/torch_graphs.py), cells written by
hand, and graphs with one thing wrong.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from own_graphs import CELL, FEATURES, REGRESSION, by_hand, cell, readings
from torch_graphs import TorchNet

from keyfold.export import bundle as contract
from keyfold.export.bundle import Bundle
from keyfold.export.cli import main
from keyfold.worker.model import Model
from keyfold.worker.verify.offline_step import OfflineStep

Run = Callable[..., Any]

NETS = [
    TorchNet("LSTM", 1, True), TorchNet("LSTM", 2, False), TorchNet("GRU", 2, True),
    TorchNet("GRU", 1, False), TorchNet("LSTM", 1, False, free=False),
    TorchNet("GRU", 3, True, free=False), TorchNet("LSTM", 2, True, outputs=1),
    TorchNet("LSTM", 1, True, newer=True), TorchNet("GRU", 2, False, newer=True),
    TorchNet("LSTM", 2, True, free=False, newer=True),
    TorchNet("GRU", 1, False, free=False, newer=True),
]  # fmt: skip


def golden(tmp_path: Path, net: TorchNet, initial: float = 0.0) -> str:
    x = readings()
    np.savez(tmp_path / "golden.npz", x=x, y=net.run(x, initial))
    return str(tmp_path / "golden.npz")


def served(bundle: Bundle, x: NDArray[Any]) -> NDArray[Any]:
    """Step x (R,T,F) as keyfold-verify does, one event at a time."""
    step = OfflineStep(bundle)
    ys = []
    for row in x:
        tensors, y = step.cold(), []
        for event in row:
            one, tensors = step.one(event[None], tensors)
            y.append(one)
        ys.append(y)
    return np.array(ys)


@pytest.mark.parametrize("net", NETS, ids=str)
def test_a_net_exported_by_pytorch_computes_what_it_computed_there(
    run: Run, tmp_path: Path, net: TorchNet
) -> None:
    names = [f"o{n}" for n in range(net.outputs)]
    bundle, _ = run(
        net.export(), "--states", *net.pairs, *FEATURES, "--output", "regression", *names,
        "--golden", golden(tmp_path, net),
    )  # fmt: skip
    x = readings(seed=2)
    np.testing.assert_allclose(served(bundle, x), net.run(x), atol=1e-5)
    manifest = bundle.manifest
    assert [state.dims for state in manifest.states] == [(net.layers, net.hidden)] * len(net.states)
    assert manifest.max_steps == 512  # `lengths` goes to the recurrent operators
    assert manifest.provenance["parity"]["largest_difference"] < 1e-5


def test_bursts_of_a_wrapped_net_are_bit_identical_to_single_steps(
    run: Run, tmp_path: Path
) -> None:
    net = TorchNet("LSTM", 2)
    bundle, _ = run(net.export(), "--states", *net.pairs, *REGRESSION)
    model, x = Model(bundle), readings(6, 33)
    lengths = np.array([33, 1, 7, 33, 20, 2], np.int32)
    padded = np.where(np.arange(33)[None, :, None] < lengths[:, None, None], x, np.nan)
    y, states = model.step(padded, lengths, contract.initial_states(bundle.manifest, 6))
    for row, length in enumerate(lengths):
        before = contract.initial_states(bundle.manifest, 1)
        for t in range(length):
            one, before = model.step(x[row, t][None, None], np.ones(1, np.int32), before)
            assert np.array_equal(one[0, 0], y[row, t])
        for name, value in before.items():
            assert np.array_equal(value[0], states[name][row])


def test_a_cell_of_one_step_is_served_one_step_a_call(run: Run) -> None:
    bundle, said = run(cell(), *CELL)
    assert bundle.manifest.max_steps == 1
    assert "note: one step a call: it takes no lengths of rows" in said
    np.testing.assert_allclose(served(bundle, readings()), by_hand(readings()), atol=1e-6)
    Model(bundle)  # loads and reproduces its golden sequences as a worker does


def test_without_golden_sequences_the_owner_is_told_what_nobody_has_checked(run: Run) -> None:
    _, said = run(cell(), *CELL)
    assert "note: nothing to compare with (--golden, --parity)" in said


@pytest.mark.parametrize(
    ("kind", "kept"), [(TensorProto.DOUBLE, "float64"), (TensorProto.FLOAT16, "float32")]
)
def test_other_floats_are_cast_and_said(run: Run, kind: int, kept: str) -> None:
    bundle, said = run(cell(kind), *CELL)
    assert bundle.manifest.states[0].dtype == kept
    assert "cast from float32 in front of the graph" in said
    near = 1e-5 if kept == "float64" else 2e-2
    np.testing.assert_allclose(served(bundle, readings()), by_hand(readings()), atol=near)


@pytest.mark.parametrize("order", ["BTF", "TBF"])
def test_a_step_axis_of_one_is_found_wherever_it_is(run: Run, order: str) -> None:
    axis = numpy_helper.from_array(np.array([order.index("T")], np.int64), "axis")
    squeeze = helper.make_node("Squeeze", ["x", "axis"], ["x2"])
    model = cell(order=order, before=[squeeze], x="x2", constants=[axis])
    bundle, said = run(model, *CELL)
    np.testing.assert_allclose(served(bundle, readings()), by_hand(readings()), atol=1e-6)
    assert ("has the order TBF" in said) == (order == "TBF")


def test_initial_values_are_a_new_keys_state(run: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "g.npz", x=readings(), y=by_hand(readings(), 0.25))
    given = ["--golden", str(tmp_path / "g.npz"), *CELL]
    bundle, _ = run(cell(), *given, "--initial", "h=0.25")
    assert bundle.manifest.states[0].initial == 0.25


def test_scaling_and_activation_are_done_around_the_graph(run: Run, tmp_path: Path) -> None:
    x = readings() * [2, 3, 4] + [10, 20, 30]
    logits = by_hand(((x - [10, 20, 30]) / [2, 3, 4]).astype(np.float32))
    y = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.savez(tmp_path / "g.npz", x=x, y=y)
    bundle, _ = run(
        cell(), "--states", "h:hn", *FEATURES, "--output", "classification", "walk", "run",
        "--mean", "10,20,30", "--deviation", "2,3,4", "--activation", "softmax",
        "--golden", str(tmp_path / "g.npz"),
    )  # fmt: skip
    assert bundle.manifest.outputs.kind == "classification"


def test_a_file_says_the_same_as_flags(run: Run, tmp_path: Path) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text(
        """
        [graph]
        states = ["h:hn"]
        initial = { h = 0.5 }
        [events]
        key_field = "machine"
        time_field = "at"
        time_unit = "iso"
        time_zone = "Europe/Berlin"
        reset_after_ms = 60000
        [features]
        fields = ["a", { name = "b", kind = "number", missing = "last" }]
        [outputs]
        kind = "regression"
        names = ["p", "q"]
        """
    )
    bundle, _ = run(cell(), "--spec", str(spec), "--tombstone", "reset")
    events = bundle.manifest.events
    assert (events.key_field, events.time_unit, events.tombstone) == ("machine", "iso", "reset")
    assert bundle.manifest.features.columns == ("a", "b", "b?")
    assert bundle.manifest.states[0].initial == 0.5


def test_old_operator_sets_and_weights_in_files_beside_are_read(run: Run, tmp_path: Path) -> None:
    bundle, _ = run(cell(opset=11), *CELL)
    assert bundle.manifest.states[0].dims == (4,)


def test_weights_in_a_file_beside_are_part_of_the_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "outside.onnx"
    onnx.save(cell(), file, save_as_external_data=True, location="outside.data", size_threshold=0)
    assert main(["wrap", str(file), *CELL, "--out", str(tmp_path / "b")]) == 0
    (tmp_path / "outside.data").unlink()
    (path,) = (tmp_path / "b").glob("*")
    np.testing.assert_allclose(
        served(contract.load(path), readings()), by_hand(readings()), atol=1e-6
    )


def test_the_same_model_gives_the_same_bundle(run: Run) -> None:
    assert run(cell(), *CELL)[0].id == run(cell(), *CELL)[0].id


def test_lengths_of_the_graphs_own_are_used(run: Run) -> None:
    net = TorchNet("LSTM", 1)
    model = net.export()
    lengths = helper.make_tensor_value_info("len", TensorProto.INT64, ["batch"])
    model.graph.input.append(lengths)
    cast = helper.make_node("Cast", ["len"], ["len32"], to=TensorProto.INT32)
    model.graph.node.insert(0, cast)
    for node in model.graph.node:
        if node.op_type == "LSTM":
            node.input[4] = "len32"
    bundle, said = run(model, "--states", *net.pairs, "--lengths", "len", *REGRESSION)
    assert bundle.manifest.max_steps == 512
    assert "one step a call" not in said


def test_a_counter_may_be_part_of_the_state(run: Run) -> None:
    """`n` counts the key's events and the output says how many there were."""
    counted = [
        helper.make_node("Add", ["n", "one"], ["n2"]),
        helper.make_node("Cast", ["n2"], ["n2f"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["n2f", "axis"], ["n2u"]),
        helper.make_node("Concat", ["y", "n2u"], ["both"], axis=1),
    ]
    model = cell(
        inputs=[helper.make_tensor_value_info("n", TensorProto.INT64, ["rows"])],
        outputs=[
            helper.make_tensor_value_info("n2", TensorProto.INT64, None),
            helper.make_tensor_value_info("both", TensorProto.FLOAT, None),
        ],
        constants=[
            numpy_helper.from_array(np.array(1, np.int64), "one"),
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
        ],
        behind=counted,
    )
    given = ["--states", "h:hn", "n:n2", *FEATURES, "--output", "regression", "p", "q", "count"]
    bundle, _ = run(model, *given, "--y", "both", "--initial", "n=10")
    assert [(s.dims, s.dtype) for s in bundle.manifest.states] == [((4,), "float32"), ((), "int64")]
    assert served(bundle, readings(2, 5))[..., 2].tolist() == [[11, 12, 13, 14, 15]] * 2


def test_a_state_that_only_remembers_for_nobody_is_reported(run: Run) -> None:
    faded = helper.make_node("Mul", ["m", "half"], ["m1"])
    model = cell(
        inputs=[helper.make_tensor_value_info("m", TensorProto.FLOAT, ["n", 4])],
        outputs=[helper.make_tensor_value_info("m2", TensorProto.FLOAT, None)],
        behind=[faded, helper.make_node("Add", ["m1", "hn"], ["m2"])],
        constants=[numpy_helper.from_array(np.array(0.5, np.float32), "half")],
    )
    _, said = run(model, "--states", "h:hn", "m:m2", *REGRESSION)
    assert "note: state m:m2 changes no output within 16 steps and no other state" in said


def test_a_net_can_be_told_to_run_one_step_a_call(run: Run) -> None:
    net = TorchNet("GRU", 1)
    bundle, said = run(net.export(), "--states", *net.pairs, "--max-steps", "1", *REGRESSION)
    assert bundle.manifest.max_steps == 1
    assert "note: one step a call: as told" in said


def test_a_forecast_of_ones_own_is_scored_for_anomalies(run: Run, tmp_path: Path) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text(
        """
        [outputs]
        kind = "forecast"
        forecast = { fields = ["a", "b"] }
        anomaly = { scales = [0.5, 0.5], threshold = 4.0, rate = 0.001 }
        """
    )
    bundle, _ = run(cell(), "--states", "h:hn", *FEATURES, "--spec", str(spec))
    assert bundle.manifest.outputs.names == ("a+1", "b+1")
    assert [state.input for state in bundle.manifest.kept] == ["h", "back.forecast"]


def test_wrapping_an_onnx_graph_needs_neither_tensorflow_nor_torch() -> None:
    names = "{'tensorflow', 'keras', 'torch'}"
    code = f"import sys, keyfold.export.wrap.cli; print({names} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_large_graph_is_proven_over_fewer_steps(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keyfold.export.wrap.cli.LARGE_BYTES", 100)
    _, said = run(cell(), *CELL)
    assert "over 64 carried steps" in said
