"""What exporters write that a step cannot keep: sizes of the example, operators nobody can run.

Owns the loosening of sizes that an exporter took from its example, where that changes nothing else,
and the refusal of operators in training mode and of recurrent ones that nobody can step. It
knows what torch.onnx.export writes, and neither names nor layouts. Called by cli.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
from onnx import TensorProto, helper, numpy_helper

from keyfold.export.wrap.own_graph import FLOATS, RECURRENT, WrapError, dims_of, element

WEIGHTS_AT = 1  # number of the input W of the recurrent operators
MODE_AT = 2  # number of the input training_mode of Dropout
BOUNDED = frozenset({"sigmoid", "tanh", "hardsigmoid", "softsign"})  # activations, of any case


def check_operators(model: Any, several: bool) -> None:
    """Raise WrapError for an operator in training mode, or a recurrent one that cannot be stepped.

    ONNX Runtime ends the whole program, without a word, when it is given an LSTM of float16.
    """
    constants = constants_of(model)
    kinds = {name: constant.data_type for name, constant in constants.items()}
    kinds |= {value.name: element(value) for value in _inferred(model).graph.value_info}
    for node in model.graph.node:
        settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        _check_mode(node, settings, constants)
        if node.op_type not in RECURRENT:
            continue
        kind = kinds.get(node.input[WEIGHTS_AT]) or TensorProto.FLOAT
        if kind != TensorProto.FLOAT:
            raise WrapError(
                f"graph: {node.op_type}: expected float32, got "
                f"{FLOATS.get(kind) or TensorProto.DataType.Name(kind).lower()}, which ONNX "
                "Runtime cannot run; export the model in float32 (PyTorch: net.float())"
            )
        direction = settings.get("direction", b"").decode()
        if several and direction in ("bidirectional", "reverse"):
            raise WrapError(
                f"graph: {node.op_type}: expected one that reads forward, got direction "
                f"{direction}: it needs events that have not come yet; train one without "
                "(PyTorch: bidirectional=False)"
            )


def unbounded(model: Any) -> str:
    """Return a recurrent operator's activation by which a state may become infinite; "": none."""
    for node in model.graph.node:
        if node.op_type not in RECURRENT:
            continue
        for attribute in node.attribute:
            if attribute.name == "activations":
                found = [name.decode() for name in attribute.strings]
                if free := [name for name in found if name.lower() not in BOUNDED]:
                    return f"{node.op_type} with {free[0]}"
    return ""


def _check_mode(node: Any, settings: Mapping[str, Any], constants: Mapping[str, Any]) -> None:
    mode = settings.get("training_mode", 0)
    if node.op_type == "Dropout" and len(node.input) > MODE_AT and node.input[MODE_AT] in constants:
        mode = numpy_helper.to_array(constants[node.input[MODE_AT]]).item()
    if mode:
        raise WrapError(
            f"graph: {node.op_type}: expected evaluation mode, got training mode; export "
            "model.eval()"
        )


def loosened(model: Any) -> Any:
    """Return a copy whose Reshape nodes keep leading sizes as they come.

    PyTorch's newer exporter writes the sizes of its example there, (4, 2, 5) for 4 steps of 2 rows,
    where one of them is 1 or was not said to be free. In those sizes the copy computes the same;
    whether it does in others is proven like everything else.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    inferred = _inferred(model).graph
    dims = {v.name: dims_of(v) for v in (*inferred.value_info, *inferred.input)}
    targets = constants_of(model)
    for number, node in enumerate(copy.graph.node):
        if node.op_type != "Reshape" or node.input[1] not in targets:
            continue
        target = numpy_helper.to_array(targets[node.input[1]]).tolist()
        kept = _kept(dims.get(node.input[0], []), target)
        if kept == target:
            continue
        name = f"keyfold_sizes_{number}"
        copy.graph.initializer.append(numpy_helper.from_array(np.array(kept, np.int64), name))
        node.input[1] = name
        settings = [a for a in node.attribute if a.name != "allowzero"]
        del node.attribute[:]
        node.attribute.extend(settings)
    return copy


def constants_of(model: Any) -> dict[str, Any]:
    """Return the tensors that a graph holds, by name."""
    held = {constant.name: constant for constant in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            held[node.output[0]] = node.attribute[0].t
    return held


def _kept(before: Sequence[int | str], target: list[int]) -> list[int]:
    """Return a Reshape's target with 0, "as it is", for its leading sizes that are the input's."""
    if 0 in target:
        return target
    kept = list(target)
    for axis, (size, wanted) in enumerate(zip(before, target, strict=False)):
        if size == wanted:
            kept[axis] = 0
        elif wanted != -1 or not _same_numbers(before[axis + 1 :], target[axis + 1 :]):
            break  # -1 is this size where what follows holds as many numbers
    return kept


def _same_numbers(one: Sequence[int | str], two: Sequence[int]) -> bool:
    sizes = [size for size in one if isinstance(size, int)]
    return len(sizes) == len(one) and math.prod(sizes) == math.prod(two)


def _inferred(model: Any) -> Any:
    """Return the model with sizes and types of what is inside, as far as they can be told."""
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # noqa: BLE001 - too large, or somebody's own operator: do without
        return model
