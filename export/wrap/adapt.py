"""Somebody's own ONNX graph, dressed in nodes so that it keeps keyfold's contract.

Owns what stands between the contract (x (B,T,F), lengths (B,), states rows first) and the layout
that the graph has. It decides nothing: which layout a graph has is found by layout.py, and whether
the result is right is proven by proof.py. Called by cli.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from keyfold.export.states import StateSpec
from keyfold.export.wrap.own_graph import Names, WrapError, bodies_of, element, first_line, freed

PREFIX = "model/"  # of every name of the graph that is wrapped


@dataclass(frozen=True, slots=True)
class Layout:
    """In which order the graph has rows, steps and numbers."""

    x: str  # axes by letter: "BTF", "TBF" or "BF"
    y: str  # axes by letter, O left out where the graph left it out: "BTO", "TB", "B", ...
    rows: tuple[int, ...]  # which axis of each state counts the rows B


@dataclass(frozen=True, slots=True)
class Scaling:
    """Arithmetic that the model's owner did outside of the graph, per column."""

    mean: tuple[float, ...] = ()  # taken from x before the graph
    deviation: tuple[float, ...] = ()  # x is divided by it
    output_mean: tuple[float, ...] = ()  # added to y behind the graph
    output_deviation: tuple[float, ...] = ()  # y is multiplied by it first
    activation: str = ""  # of y, first of all: "softmax", "sigmoid" or none


@dataclass(frozen=True, slots=True)
class Contract:
    """What the step graph must look like from outside."""

    features: int  # F
    outputs: int  # O
    states: tuple[StateSpec, ...]  # in the order of Names.states
    scaling: Scaling = Scaling()  # done in the step graph, around the model


def dress(model: Any, names: Names, layout: Layout, contract: Contract) -> bytes:
    """Return the step graph around a graph whose layout is known. Raises WrapError."""
    inner = freed(model, names)
    elements = {value.name: element(value) for value in (*inner.graph.input, *inner.graph.output)}
    around = _Around()
    around.x(names.x, layout.x, elements[names.x], contract.scaling)
    if names.lengths is not None:
        around.node("Cast", ["lengths"], PREFIX + names.lengths, to=elements[names.lengths])
    for state, (before, after), rows in zip(
        contract.states, names.states, layout.rows, strict=True
    ):
        around.state(state, (before, after), rows, elements[before])
    around.y(names.y, layout.y, contract)
    _rename(inner.graph)
    graph = helper.make_graph(
        [*around.before, *inner.graph.node, *around.behind],
        "keyfold_step",
        *_signature(contract),
        [*inner.graph.initializer, *around.constants],
        sparse_initializer=list(inner.graph.sparse_initializer),
    )
    made = helper.make_model(
        graph, opset_imports=list(model.opset_import), ir_version=model.ir_version
    )
    try:
        onnx.checker.check_model(made)
    except onnx.checker.ValidationError as error:
        raise WrapError(f"step graph: expected valid ONNX, got: {first_line(error)}") from error
    return bytes(made.SerializeToString(deterministic=True))


def _rename(graph: Any) -> None:
    """Put PREFIX before every name, also in the bodies of loops, which use names from outside.

    onnx.compose.add_prefix leaves out the weights that a body uses.
    """
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = PREFIX + value.name
    for sparse in graph.sparse_initializer:
        sparse.values.name = PREFIX + sparse.values.name
    for node in graph.node:
        node.name = PREFIX + node.name if node.name else ""
        for names in (node.input, node.output):
            names[:] = [PREFIX + name if name else "" for name in names]
        for attribute in node.attribute:
            for body in bodies_of(attribute):
                del body.value_info[:]  # sizes that the exporter saw
                _rename(body)


class _Around:
    """The nodes before and behind somebody's graph."""

    def __init__(self) -> None:
        self.before: list[Any] = []
        self.behind: list[Any] = []
        self.constants: list[Any] = []
        self._nodes = self.before

    def node(self, operator: str, inputs: Iterable[str], output: str = "", **settings: Any) -> str:
        """Add a node and return its output's name."""
        number = len(self.before) + len(self.behind)
        output = output or f"keyfold/{number}"
        name = f"keyfold/{operator}{number}"
        self._nodes.append(helper.make_node(operator, list(inputs), [output], name, **settings))
        return output

    def constant(self, values: Any, dtype: Any) -> str:
        """Add a constant and return its name."""
        name = f"keyfold/constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(values, dtype), name))
        return name

    def x(self, name: str, letters: str, kind: int, scaling: Scaling) -> None:
        """Bring x (B,T,F) to the graph's order."""
        value = "x"
        for operator, numbers in (("Sub", scaling.mean), ("Div", scaling.deviation)):
            if numbers:
                value = self.node(operator, [value, self.constant(numbers, np.float32)])
        if letters == "TBF":
            value = self.node("Transpose", [value], perm=[1, 0, 2])
        if letters == "BF":
            value = self.node("Squeeze", [value, self.constant([1], np.int64)])
        self.node("Cast", [value], PREFIX + name, to=kind)

    def state(self, spec: StateSpec, pair: tuple[str, str], rows: int, kind: int) -> None:
        """Bring a state to the graph's order and back."""
        rank = len(spec.dims) + 1
        first = [rows, *(axis for axis in range(rank) if axis != rows)]  # graph -> rows first
        back = [first.index(axis) for axis in range(rank)]
        self._nodes = self.before
        value = self.node("Transpose", [spec.input], perm=back) if rows else spec.input
        self.node("Cast", [value], PREFIX + pair[0], to=kind)
        self._nodes = self.behind
        value = PREFIX + pair[1]
        value = self.node("Transpose", [value], perm=first) if rows else value
        kept = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
        self.node("Cast", [value], spec.output, to=kept)

    def y(self, name: str, letters: str, contract: Contract) -> None:
        """Bring the graph's y to (B,T,O); where it has no T, one step at a time is all it takes."""
        scaling = contract.scaling
        self._nodes = self.behind
        value = self.node("Cast", [PREFIX + name], to=TensorProto.FLOAT)
        order = [letters.index(letter) for letter in "BTO" if letter in letters]
        if order != sorted(order):
            value = self.node("Transpose", [value], perm=order)
        both = self.constant([0, 1], np.int64)
        sizes = self.node("Gather", [self.node("Shape", ["x"]), both])
        outputs = self.constant([contract.outputs], np.int64)
        value = self.node("Reshape", [value, self.node("Concat", [sizes, outputs], axis=0)])
        if scaling.activation == "softmax":
            value = self.node("Softmax", [value], axis=-1)
        if scaling.activation == "sigmoid":
            value = self.node("Sigmoid", [value])
        operators = (("Mul", scaling.output_deviation), ("Add", scaling.output_mean))
        for operator, numbers in operators:
            if numbers:
                value = self.node(operator, [value, self.constant(numbers, np.float32)])
        self.node("Identity", [value], "y")


def _signature(contract: Contract) -> tuple[list[Any], list[Any]]:
    """Return the contract's inputs and outputs."""

    def value(name: str, kind: Any, *dims: Any) -> Any:
        return helper.make_tensor_value_info(name, kind, list(dims))

    inputs = [
        value("x", TensorProto.FLOAT, "B", "T", contract.features),
        value("lengths", TensorProto.INT32, "B"),
    ]
    outputs = [value("y", TensorProto.FLOAT, "B", "T", contract.outputs)]
    for state in contract.states:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(state.dtype))
        inputs.append(value(state.input, kind, "B", *state.dims))
        outputs.append(value(state.output, kind, "B", *state.dims))
    return inputs, outputs
