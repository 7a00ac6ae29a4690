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


def by_hand(x: NDArray[Any], initial: float = 0.0) -> NDArray[Any]:
    """Return y (R,T,2) of the cell for x (R,T,3)."""
    weights = {c.name: numpy_helper.to_array(c) for c in cell().graph.initializer}
    h, ys = np.full((len(x), 4), initial), []
    for t in range(x.shape[1]):
        h = np.tanh(x[:, t] @ weights["W"] + h @ weights["R"])
        ys.append(h @ weights["V"])
    return np.stack(ys, axis=1)
