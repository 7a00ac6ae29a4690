"""One Keras recurrent layer as one fused ONNX operator, with its states named.

Owns the correspondence between Keras's and ONNX's LSTM, GRU and simple recurrent layers: order of
gates, biases, activations. Pure translation of weights into nodes; it does not know the rest of the
model. Called by convert.py.

ONNX operators: https://onnx.ai/onnx/operators/ (LSTM, GRU, RNN, opset 14).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from keyfold.export.bundle import StateSpec
from keyfold.export.errors import Crash

OPERATORS = {"LSTM": "LSTM", "GRU": "GRU", "SimpleRNN": "RNN"}  # Keras class -> ONNX operator
STATES = {"LSTM": ("h", "c"), "GRU": ("h",), "RNN": ("h",)}  # in the operator's order
ACTIVATIONS = {"tanh": "Tanh", "sigmoid": "Sigmoid", "relu": "Relu"}
AXIS0, AXIS1 = "axis0", "axis1"  # constants [0] and [1] that the nodes use

Floats = NDArray[np.float32]


class ConvertError(Crash):
    """The model cannot become a step graph."""


@dataclass(frozen=True, slots=True)
class Fused:
    """A recurrent layer in ONNX."""

    nodes: list[Any]  # tap{n} (B,T,I) and states -> gap{n} (B,T,H) and states
    constants: list[Any]  # its weights
    states: list[StateSpec]  # its state tensors, (H,) each


def is_recurrent(layer: Any) -> bool:
    """Tell whether a layer is one that this module translates."""
    return type(layer).__name__ in OPERATORS


def state_names(layer: Any) -> tuple[str, ...]:
    """Return the short names of a layer's state tensors."""
    return STATES[OPERATORS[type(layer).__name__]]


def is_bounded(layer: Any) -> bool:
    """Tell whether a layer's states stay finite whatever comes, as those of squashed sums do."""
    return "relu" not in _activation_names(layer)


def check(layer: Any) -> None:
    """Raise ConvertError where a layer is set up in a way that cannot be stepped or fused."""
    for setting, expected in (
        ("return_sequences", True),
        ("go_backwards", False),
        ("stateful", False),
    ):
        if getattr(layer, setting) is not expected:
            raise ConvertError(
                f"layer {layer.name!r}: expected {setting}={expected}, "
                f"got {getattr(layer, setting)}"
            )
    if is_recurrent(layer):
        check_inner(layer)


def check_inner(layer: Any) -> None:
    """Raise ConvertError where a layer computes what no operator does."""
    for name in _activation_names(layer):
        if name not in ACTIVATIONS:
            raise ConvertError(
                f"layer {layer.name!r}: expected activations among {', '.join(ACTIVATIONS)}, "
                f"got {name}"
            )


def fuse(layer: Any, number: int) -> Fused:
    """Translate recurrent layer `number`, with its states. Its weights must exist."""
    n, states = number, state_names(layer)
    # The operator wants (T,B,I) and (1,B,H); the graph is batch first throughout.
    nodes = [helper.make_node("Transpose", [f"tap{n}"], [f"tap{n}_t"], perm=[1, 0, 2])]
    nodes += [helper.make_node("Unsqueeze", [f"{s}{n}", AXIS0], [f"{s}{n}_in"]) for s in states]
    given = ["lengths", *(f"{s}{n}_in" for s in states)]
    nodes.append(_operator(layer, n, given, [f"Y{n}", *(f"{s}{n}_last" for s in states)]))
    nodes += [
        *(helper.make_node("Squeeze", [f"{s}{n}_last", AXIS0], [f"{s}{n}_out"]) for s in states),
        helper.make_node("Squeeze", [f"Y{n}", AXIS1], [f"Y{n}_t"]),
        helper.make_node("Transpose", [f"Y{n}_t"], [f"gap{n}"], perm=[1, 0, 2]),
    ]
    specs = [StateSpec(f"{s}{n}", f"{s}{n}_out", (layer.units,)) for s in states]
    return Fused(nodes, _constants(layer, n), specs)


def fuse_inner(layer: Any, number: int) -> Fused:
    """Translate recurrent layer `number` that goes through windows (N,W,I) from zeros to (N,H).

    With return_sequences to (N,W,H).
    """
    n = number
    if layer.return_sequences:
        return Fused(
            [
                helper.make_node("Transpose", [f"tap{n}"], [f"tap{n}_t"], perm=[1, 0, 2]),
                _operator(layer, n, [], [f"Y{n}"]),
                helper.make_node("Squeeze", [f"Y{n}", AXIS1], [f"Y{n}_t"]),
                helper.make_node("Transpose", [f"Y{n}_t"], [f"gap{n}"], perm=[1, 0, 2]),
            ],
            _constants(layer, n),
            [],
        )
    nodes = [
        helper.make_node("Transpose", [f"tap{n}"], [f"tap{n}_t"], perm=[1, 0, 2]),
        _operator(layer, n, [], ["", f"Y{n}"], "reverse" if layer.go_backwards else "forward"),
        helper.make_node("Squeeze", [f"Y{n}", AXIS0], [f"gap{n}"]),
    ]
    return Fused(nodes, _constants(layer, n), [])


def _operator(
    layer: Any, n: int, given: list[str], outputs: list[str], direction: str = "forward"
) -> Any:
    operator = OPERATORS[type(layer).__name__]
    attributes: dict[str, Any] = {
        "hidden_size": layer.units,
        "activations": [ACTIVATIONS[name] for name in _activation_names(layer)],
    }
    if direction != "forward":
        attributes["direction"] = direction
    if operator == "GRU":
        attributes["linear_before_reset"] = int(layer.reset_after)
    inputs = [f"tap{n}_t", f"W{n}", f"R{n}", f"B{n}", *given]
    return helper.make_node(operator, inputs, outputs, name=layer.name, **attributes)


def _constants(layer: Any, n: int) -> list[Any]:
    kernel, recurrent, bias = _weights(layer, OPERATORS[type(layer).__name__])
    return [
        numpy_helper.from_array(np.ascontiguousarray(values[None], np.float32), f"{name}{n}")
        for name, values in (("W", kernel.T), ("R", recurrent.T), ("B", bias))
    ]


def _activation_names(layer: Any) -> list[str]:
    """Return the names in the operator's order: gates, then candidate, then an LSTM's output."""
    activation = layer.activation.__name__
    if OPERATORS[type(layer).__name__] == "RNN":
        return [activation]
    gates = [layer.recurrent_activation.__name__]
    return [*gates, *[activation] * len(state_names(layer))]


def _weights(layer: Any, operator: str) -> tuple[Floats, Floats, Floats]:
    """Return W (I,G*H), R (H,G*H) and the two biases (2*G*H,) in the operator's gate order."""
    kernel, recurrent, *rest = layer.get_weights()
    bias = rest[0].reshape(-1) if rest else np.zeros(kernel.shape[1], np.float32)
    if operator == "LSTM":
        kernel, recurrent, bias = (_iofc(w, layer.units) for w in (kernel, recurrent, bias))
    # Keras has one bias, but for a GRU with reset_after, whose bias already is both in a row.
    both = bias if len(bias) == 2 * kernel.shape[1] else np.concatenate([bias, np.zeros_like(bias)])
    return kernel, recurrent, both


def _iofc(weights: Floats, units: int) -> Floats:
    """Reorder an LSTM's gates from Keras's i, f, c, o to ONNX's i, o, f, c."""
    i, f, c, o = (weights[..., g * units : (g + 1) * units] for g in range(4))
    return np.concatenate([i, o, f, c], axis=-1)
