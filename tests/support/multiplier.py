"""A real bundle whose state is the product of its key's numbers and whose output is 1 / that.

Owns the step graph of tests about results that are not finite: a number 0 makes the output
infinite, large ones make the state overflow. It is no recurrent op, so its max_steps is 1. Knows
the contract (keyfold.export) and ONNX; imported as `from multiplier import make_multiplier`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from keyfold.export import bundle as contract
from keyfold.export.bundle import Bundle, Golden, Manifest, StateSpec
from keyfold.export.events import EventSpec, OutputSpec
from keyfold.export.features import FeatureSpec


def make_multiplier(
    folder: Path,
    events: EventSpec | None = None,
    features: FeatureSpec | None = None,
    outputs: OutputSpec | None = None,
) -> Bundle:
    """Write folder/<id> and load it again; its feature is the field "a".

    Of other `features` the graph sees the first column alone; `outputs` has one column.
    """
    value = helper.make_tensor_value_info
    features = features or FeatureSpec.numbers("a")
    width = len(features.columns)
    graph = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["s", "one"], ["s3"]),
            helper.make_node("Gather", ["x", "first"], ["a"], axis=2),
            helper.make_node("Mul", ["a", "s3"], ["product"]),
            helper.make_node("Div", ["unit", "product"], ["y"]),
            helper.make_node("ReduceMax", ["product"], ["s_out"], axes=[1], keepdims=0),
        ],
        "multiplier",
        [
            value("x", TensorProto.FLOAT, ["B", "T", width]),
            value("lengths", TensorProto.INT32, ["B"]),
            value("s", TensorProto.FLOAT, ["B", 1]),
        ],
        [value("y", TensorProto.FLOAT, ["B", "T", 1]), value("s_out", TensorProto.FLOAT, ["B", 1])],
        [
            helper.make_tensor("one", TensorProto.INT64, [1], [1]),
            helper.make_tensor("unit", TensorProto.FLOAT, [1], [1.0]),
            helper.make_tensor("first", TensorProto.INT64, [1], [0]),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(proto)
    manifest = Manifest(
        events or EventSpec(),
        features,
        outputs or OutputSpec("regression", ("value",)),
        (StateSpec("s", "s_out", (1,), initial=1.0),),
        "",
        max_steps=1,
    )
    golden = Golden(
        np.full((2, 1, width), 2, np.float32),
        np.ones(2, np.int32),
        np.full((2, 1, 1), 0.5, np.float32),
    )
    return contract.load(contract.save(folder, manifest, proto.SerializeToString(), golden))
