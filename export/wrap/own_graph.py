"""Somebody's own ONNX graph, read and asked: its names, sizes and element types.

Owns the reading (weights in other files, old operator sets, comments) and the copies of a graph
whose sizes are free or whose recurrent operators heed lengths. It knows nothing of keyfold's
contract beyond the element types of states. Called by layout.py, adapt.py and cli.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner
import onnx.version_converter
from onnx import TensorProto, helper

from keyfold.export.errors import Crash
from keyfold.export.states import DTYPES

OLDEST_OPSET = 13  # older graphs give axes as attributes: converted
NEW_OPSET = 17
RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
LENGTHS_AT = 4  # number of the input sequence_lens of the recurrent operators
# Element types of numbers that can stand for float32 (x, y) or be kept as float32 (states).
FLOATS = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT16: "float16",
}
WHOLE = {TensorProto.INT32: "int32", TensorProto.INT64: "int64"}


class WrapError(Crash):
    """A model cannot be brought under the contract as it is."""


@dataclass(frozen=True, slots=True)
class Names:
    """Which of the graph's inputs and outputs is what."""

    x: str  # the event's numbers
    y: str  # what is predicted
    states: tuple[tuple[str, str], ...]  # input and output of each state tensor
    lengths: str | None = None  # number of steps of each row; None: the graph takes none


def read_graph(file: Path) -> Any:
    """Read an ONNX file, its weights in other files included, without comments and functions.

    Raises WrapError: no such file, no ONNX, an operator set that cannot be raised.
    """
    try:
        model = onnx.load(file)
    except FileNotFoundError as error:
        raise WrapError(f"{file}: expected an ONNX model: {error}") from error
    except onnx.checker.ValidationError as error:  # weights in a file beside that is not there
        raise WrapError(
            f"{file}: expected its weights in a file beside it: {first_line(error)} Copy both "
            "(PyTorch's newer exporter writes model.onnx and model.onnx.data), or export with "
            "external_data=False"
        ) from error
    except Exception as error:  # protobuf's and onnx's own classes have no common root
        raise WrapError(f"{file}: expected an ONNX model, got something else: {error}") from error
    if not model.graph.output:
        raise WrapError(f"{file}: expected an ONNX model, got one without outputs")
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    found = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if found < OLDEST_OPSET:
        try:
            model = onnx.version_converter.convert_version(model, NEW_OPSET)
        except Exception as error:
            raise WrapError(
                f"{file}: expected operator set {OLDEST_OPSET} or later, got {found}, which cannot "
                f"be raised: {error}; export it again with opset_version={NEW_OPSET}"
            ) from error
    _strip(model)
    return model


def inputs_of(model: Any) -> dict[str, Any]:
    """Return the graph's true inputs by name; old graphs list their weights among them."""
    constants = {constant.name for constant in model.graph.initializer}
    return {value.name: value for value in model.graph.input if value.name not in constants}


def dims_of(value: Any) -> list[int | str]:
    """Return a tensor's dimensions: numbers, and names ("" where none was given) of free ones."""
    return [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param
        for dim in value.type.tensor_type.shape.dim
    ]


def element(value: Any) -> int:
    """Return a tensor's element type, one of TensorProto's numbers."""
    return int(value.type.tensor_type.elem_type)


def kept_dtype(value: Any) -> str:
    """Return numpy's name of the type that a state of the graph is kept in.

    float16 is kept as float32, which holds all its values. Raises WrapError.
    """
    kinds = {**FLOATS, **WHOLE, TensorProto.FLOAT16: "float32"}
    if element(value) not in kinds:
        raise WrapError(
            f"state {value.name!r}: expected elements {', '.join(DTYPES)} or float16, got "
            f"{TensorProto.DataType.Name(element(value)).lower()}"
        )
    return kinds[element(value)]


def freed(model: Any, names: Names) -> Any:
    """Return a copy whose x, y and states say nothing of their sizes, so that any may be tried."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]  # they hold the sizes that the exporter saw
    free = {names.x, names.y, names.lengths, *(name for pair in names.states for name in pair)}
    for value in (*copy.graph.input, *copy.graph.output):
        if value.name in free:
            for dim in value.type.tensor_type.shape.dim:
                dim.Clear()
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    return copy


def with_lengths(model: Any) -> Any | None:
    """Return a copy whose recurrent operators heed a new input `lengths` (B,) int32.

    PyTorch's exporter leaves that input out; with it, rows of different lengths can run in one
    call. None: there is no such operator, or something else in the graph loops.
    """
    nodes = [node for node in model.graph.node if node.op_type in RECURRENT]
    others = [node for node in model.graph.node if node.op_type in ("Loop", "Scan", "If")]
    given = [node for node in nodes if len(node.input) > LENGTHS_AT and node.input[LENGTHS_AT]]
    if not nodes or others or given:
        return None
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    name = "keyfold_lengths"
    copy.graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT32, [None]))
    for node in copy.graph.node:
        if node.op_type in RECURRENT:
            while len(node.input) <= LENGTHS_AT:
                node.input.append("")
            node.input[LENGTHS_AT] = name
    return copy


def bodies_of(attribute: Any) -> list[Any]:
    """Return the graphs that an operator's attribute holds: a loop's body, both sides of an If."""
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def first_line(error: object) -> str:
    """Return an error's first line that says something."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line), type(error).__name__)


def _strip(model: Any) -> None:
    """Drop comments: exporters write the paths of their user's sources there."""
    _clear([model])
    _strip_graph(model.graph)


def _strip_graph(graph: Any) -> None:
    values = (*graph.input, *graph.output, *graph.value_info)
    _clear([graph, *graph.node, *graph.initializer, *values])
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        attribute.ClearField("doc_string")
        for body in bodies_of(attribute):
            _strip_graph(body)


def _clear(parts: Iterable[Any]) -> None:
    for part in parts:
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
