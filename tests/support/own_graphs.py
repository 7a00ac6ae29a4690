"""Graphs that somebody might bring: a cell of one step written by hand, and what it computes.

Owns the cell, with options for whatever a test wants to be different about it. Used by the tests of
`keyfold-export wrap`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

FEATURES = ["--features", "a,b,c"]
REGRESSION = [*FEATURES, "--output", "regression", "p", "q"]
CELL = ["--states", "h:hn", *REGRESSION]


def readings(rows: int = 4, steps: int = 40, columns: int = 3, seed: int = 1) -> NDArray[Any]:
    """Return x (R,T,F)."""
    return np.random.default_rng(seed).normal(size=(rows, steps, columns)).astype(np.float32)


def cell(kind: int = TensorProto.FLOAT, order: str = "BF", last: str = "hn", **options: Any) -> Any:
    """Return h' = tanh(x W + h R), y = h' V, as one writes an nn.Module with a step of its own."""
    draw = np.random.default_rng(0)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weights = {
        name: draw.uniform(-0.7, 0.7, shape).astype(dtype)
        for name, shape in (("W", (3, 4)), ("R", (4, 4)), ("V", (4, 2)))
    }
    nodes = [
        *options.get("before", []),
        helper.make_node("MatMul", [options.get("x", "x"), "W"], ["xw"]),
        helper.make_node("MatMul", ["h", "R"], ["hr"]),
        helper.make_node("Add", ["xw", "hr"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["hn"]),
        helper.make_node("MatMul", [options.get("seen", "hn"), "V"], ["y"]),
        *options.get("behind", []),
    ]
    dims: dict[str, list[Any]] = {"BF": ["n", 3], "BTF": ["n", 1, 3], "TBF": [1, "n", 3]}
    graph = helper.make_graph(
        nodes,
        "cell",
        [
            helper.make_tensor_value_info("x", kind, options.get("dims", dims[order])),
            helper.make_tensor_value_info("h", kind, options.get("state", ["n", 4])),
            *options.get("inputs", []),
        ],
        [
            helper.make_tensor_value_info("y", kind, None),
            helper.make_tensor_value_info(last, kind, None),
            *options.get("outputs", []),
        ],
        [numpy_helper.from_array(w, n) for n, w in weights.items()] + options.get("constants", []),
    )
    opset = helper.make_opsetid("", options.get("opset", 17))
    return helper.make_model(graph, opset_imports=[opset], ir_version=8)


def unrolled(steps: int) -> Any:
    """Return the cell as torch 2.15.0 (dynamo=True) writes nn.RNN or a loop in Python.

    Each step of the example is written out, though x's number of steps is said to be free.
    """
    nodes, h = [], "h"
    for t in range(steps):
        last = "hn" if t == steps - 1 else f"h{t}"
        nodes += [
            helper.make_node("Slice", ["x", f"at{t}", f"at{t + 1}", "at1"], [f"slice{t}"]),
            helper.make_node("Squeeze", [f"slice{t}", "at1"], [f"x{t}"]),
            *_one_step(f"x{t}", h, last, f"y{t}", str(t)),
            helper.make_node("Unsqueeze", [f"y{t}", "at1"], [f"ys{t}"]),
        ]
        h = last
    ys = [f"ys{t}" for t in range(steps)]
    nodes.append(helper.make_node("Concat", ys, ["y"], axis=1))
    bounds = [numpy_helper.from_array(np.array([t]), f"at{t}") for t in range(max(2, steps + 1))]
    return _in_a_loop(nodes, bounds)


def looped() -> Any:
    """Return the cell as torch 2.15.0 (dynamo=False) writes a loop of torch.jit.script.

    The body uses weights and x of the graph around it.
    """
    value = helper.make_tensor_value_info
    sequence = helper.make_tensor_sequence_value_info
    body = helper.make_graph(
        [
            helper.make_node("Gather", ["x", "t"], ["xt"], axis=1, doc_string="/home/me/net.py"),
            *_one_step("xt", "h.1", "h.2", "yt", ""),
            helper.make_node("SequenceInsert", ["ys.1", "yt"], ["ys.2"]),
            helper.make_node("Identity", ["go"], ["go.2"]),
        ],
        "body",
        [value("t", TensorProto.INT64, []), value("go", TensorProto.BOOL, []),
         value("h.1", TensorProto.FLOAT, None), sequence("ys.1", TensorProto.FLOAT, None)],
        [value("go.2", TensorProto.BOOL, []), value("h.2", TensorProto.FLOAT, None),
         sequence("ys.2", TensorProto.FLOAT, None)],
    )  # fmt: skip
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["steps"], axis=0),
        helper.make_node("SequenceEmpty", [], ["none"], dtype=TensorProto.FLOAT),
        helper.make_node("Loop", ["steps", "true", "h", "none"], ["hn", "all"], body=body),
        helper.make_node("ConcatFromSequence", ["all"], ["y"], axis=1, new_axis=1),
    ]
    constants = [
        numpy_helper.from_array(np.array(1), "one"),
        numpy_helper.from_array(np.array(True), "true"),
    ]
    return _in_a_loop(nodes, constants)


def _one_step(x: str, h: str, after: str, y: str, number: str) -> list[Any]:
    return [
        helper.make_node("MatMul", [x, "W"], [f"xw{number}"]),
        helper.make_node("MatMul", [h, "R"], [f"hr{number}"]),
        helper.make_node("Add", [f"xw{number}", f"hr{number}"], [f"sum{number}"]),
        helper.make_node("Tanh", [f"sum{number}"], [after]),
        helper.make_node("MatMul", [after, "V"], [y]),
    ]


def _in_a_loop(nodes: list[Any], constants: list[Any]) -> Any:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "main_graph",
        [value("x", TensorProto.FLOAT, ["b", "t", 3]), value("h", TensorProto.FLOAT, ["b", 4])],
        [value("y", TensorProto.FLOAT, None), value("hn", TensorProto.FLOAT, None)],
        [*cell().graph.initializer, *constants],
    )
    opset = helper.make_opsetid("", 20)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10)


def by_hand(x: NDArray[Any], initial: float = 0.0) -> NDArray[Any]:
    """Return y (R,T,2) of the cell for x (R,T,3)."""
    weights = {c.name: numpy_helper.to_array(c) for c in cell().graph.initializer}
    h, ys = np.full((len(x), 4), initial), []
    for t in range(x.shape[1]):
        h = np.tanh(x[:, t] @ weights["W"] + h @ weights["R"])
        ys.append(h @ weights["V"])
    return np.stack(ys, axis=1)
