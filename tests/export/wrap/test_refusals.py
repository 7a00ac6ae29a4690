"""keyfold-export wrap: what cannot be a step is refused in one line: what, expected, got."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from own_graphs import CELL, FEATURES, REGRESSION, by_hand, cell, readings
from torch_graphs import TorchNet

from keyfold.export.cli import main

Run = Callable[..., Any]


def value(name: str, dims: list[Any] | None = None, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, dims)


def constant(name: str, values: Any, dtype: Any = np.int64) -> Any:
    return numpy_helper.from_array(np.array(values, dtype), name)


REFUSALS: list[tuple[str, Any, list[str], str]] = [
    ("a state without its pair", cell(), ["--states", "h", *REGRESSION],
     "--states h: expected IN:OUT"),
    ("no state", cell(), REGRESSION, "--states: expected pairs IN:OUT"),
    ("an unknown input", cell(), ["--states", "g:hn", *REGRESSION],
     "--x: expected the input that holds the event; left beside the states: x, h"),
    ("an unknown output", cell(), ["--states", "h:gone", *REGRESSION],
     "graph: expected output 'gone', got y, hn"),
    ("an input nobody feeds", cell(inputs=[value("mask", ["n", 1])]), ["--x", "x", *CELL],
     "graph: input 'mask': expected x, lengths or a state"),
    ("other columns", cell(), ["--states", "h:hn", "--features", "a,b", *REGRESSION[2:]],
     "graph: x 'x': expected 2 columns (a, b), got 3"),
    ("other outputs", cell(), ["--states", "h:hn", *FEATURES, "--output", "regression", "p"],
     "y 'y': expected 1 numbers (p) for each of 7 rows x 1 steps, got shape (7, 2)"),
    ("rows fixed inside the graph",
     cell(dims=[1, 3], state=[1, 4], x="x1", constants=[constant("3", [3]), constant("1", [1, 3])],
          before=[helper.make_node("Reshape", ["x", "3"], ["x0"]),
                  helper.make_node("Reshape", ["x0", "1"], ["x1"])]), CELL,
     "it runs as (1, 3) only: export it with dynamic axes"),
    ("rows that meet",
     cell(x="x1", before=[helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
                          helper.make_node("Sub", ["x", "m"], ["x1"])]), CELL,
     "expected each row to depend on itself only"),
    ("a state that never changes",
     cell(last="same", behind=[helper.make_node("Identity", ["h"], ["same"])]),
     ["--states", "h:same", *REGRESSION],
     "state h:same: expected a step to change it, got the same tensor back"),
    ("a state that the outputs ignore",
     cell(seen="xw"), CELL, "states: expected outputs to depend on at least one of them"),
    ("dropout left on",
     cell(x="x1", before=[helper.make_node("RandomUniformLike", ["x"], ["r"]),
                          helper.make_node("Mul", ["x", "r"], ["x1"])]), CELL, "model.eval()"),
    ("logits for probabilities", cell(),
     ["--states", "h:hn", *FEATURES, "--output", "classification", "walk", "run"],
     "--activation softmax, if they are logits"),
    ("numbers that are none",
     cell(x="x1", before=[helper.make_node("Log", ["x"], ["x1"])]), CELL,
     "y: expected finite numbers, got nan or infinity at step 1"),
    ("a state of text", cell(inputs=[value("s", ["n"], TensorProto.STRING)],
                             outputs=[value("s2", ["n"], TensorProto.STRING)],
                             behind=[helper.make_node("Identity", ["s"], ["s2"])]),
     ["--states", "h:hn", "s:s2", *REGRESSION],
     "state 's': expected elements float32, float64, int32, int64 or float16, got string"),
    ("an order it has not", cell(), [*CELL, "--layout", "TBF"],
     "--layout: expected one of BF"),
    ("an unknown initial state", cell(), [*CELL, "--initial", "g=1"],
     "--initial g: expected a state's input (h), got another name"),
    ("two sizes of a state left open", cell(state=["n", "m"]), CELL,
     "expected one free dimension, the rows, got 2"),
    ("no features", cell(), ["--states", "h:hn", *REGRESSION[2:]], "--features: expected"),
    ("no output", cell(), ["--states", "h:hn", *FEATURES], "--output: expected KIND NAME"),
    ("a scaling of another width", cell(), [*CELL, "--mean", "1,2"],
     "scaling.mean: expected 3 numbers, got 2"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "arguments", "said"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS]
)
def test_what_cannot_be_a_step_is_refused_in_one_line(
    run: Run, model: Any, arguments: list[str], said: str
) -> None:
    assert said in run(model, *arguments)


def test_wrong_pairs_are_found_by_whole_sequences(run: Run) -> None:
    net = TorchNet("LSTM", 1)
    error = run(net.export(), "--states", "h0:cn", "c0:hn", *REGRESSION)
    assert "whole sequences: expected the outputs and states of one step a call" in error
    assert "are the pairs of --states right" in error


def test_a_golden_sequence_that_differs_names_the_step(run: Run, tmp_path: Path) -> None:
    y = by_hand(readings())
    y[2, 5] += 1
    np.savez(tmp_path / "g.npz", x=readings(), y=y)
    error = run(cell(), *CELL, "--golden", str(tmp_path / "g.npz"))
    assert "got a difference of 1 at step 6 of 40; check the pairs of --states" in error


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": readings()}, "expected numpy arrays x and y"),
        ({"x": readings(columns=2), "y": by_hand(readings())}, "x: expected (rows, steps, 3"),
        ({"x": readings(), "y": np.zeros((40, 4, 2))}, "y: expected (4, 40, 2), or (4, 2)"),
    ],
)
def test_golden_sequences_of_another_form_are_refused(
    run: Run, tmp_path: Path, arrays: dict[str, Any], said: str
) -> None:
    np.savez(tmp_path / "g.npz", **arrays)
    assert said in run(cell(), *CELL, "--golden", str(tmp_path / "g.npz"))


def test_a_file_that_is_no_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    assert main(["wrap", str(tmp_path / "m.onnx"), *CELL]) == 1
    assert "m.onnx: expected an ONNX model" in capsys.readouterr().err
    assert main(["wrap", str(tmp_path / "none.onnx"), *CELL]) == 1
    assert "none.onnx: expected an ONNX model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[grap]\nx='x'", "unknown part 'grap'"),
        ("[graph]\ninput='x'", "graph.input: unknown setting"),
        ("[events]\nkey='x'", "events.key: unknown setting"),
        ("graph = 1", "expected a section [graph]"),
        ("[", "expected TOML"),
    ],
)
def test_a_file_with_an_unknown_setting_is_refused_by_name(
    run: Run, tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "spec.toml").write_text(text)
    assert said in run(cell(), "--spec", str(tmp_path / "spec.toml"), *CELL)
