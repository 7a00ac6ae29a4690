"""ONNX graphs as torch.onnx.export writes them, made without PyTorch, and the same nets in numpy.

Owns the shapes and nodes that nn.LSTM and nn.GRU with explicit states came out as from torch 2.15.0
(looked at on 2026-11-21): states (layers, rows, units), one operator per layer over slices of them,
no lengths; by the older exporter (dynamo=False, opset 17) and the newer one (dynamo=True, opset
20). Torch itself is not needed. The reference computes PyTorch's own formulas in float64. Used by
the tests of `keyfold-export wrap`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Floats = NDArray[np.float32]
Kind = Literal["LSTM", "GRU"]
GATES = {"LSTM": 4, "GRU": 3}
# PyTorch has i, f, g, o and r, z, n; ONNX has i, o, f, c and z, r, h.
TO_ONNX = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}
ROWS, STEPS = 2, 4  # of the example that the newer exporter saw


@dataclass(frozen=True, slots=True)
class TorchNet:
    """nn.LSTM or nn.GRU and nn.Linear, as a PyTorch user writes them."""

    kind: Kind = "LSTM"  # of the recurrent layers
    layers: int = 1  # stacked
    batch_first: bool = True  # as nn.LSTM's argument
    features: int = 3  # F
    hidden: int = 5  # H
    outputs: int = 2  # O
    free: bool = True  # exported with dynamic_axes or dynamic_shapes
    newer: bool = False  # exported with dynamo=True, torch's default since 2.9
    seed: int = 0  # of the weights

    @property
    def states(self) -> tuple[str, ...]:
        """Names of the state inputs."""
        return ("h0", "c0") if self.kind == "LSTM" else ("h0",)

    @property
    def pairs(self) -> list[str]:
        """What --states is given."""
        return [f"{name}:{name[0]}n" for name in self.states]

    def weights(self, layer: int) -> list[Floats]:
        """Return weight_ih, weight_hh, bias_ih and bias_hh of a layer, in PyTorch's order."""
        draw = np.random.default_rng((self.seed, layer))
        width, gates = self.features if layer == 0 else self.hidden, GATES[self.kind] * self.hidden
        shapes = ((gates, width), (gates, self.hidden), (gates,), (gates,))
        return [draw.uniform(-0.6, 0.6, shape).astype(np.float32) for shape in shapes]

    def linear(self) -> tuple[Floats, Floats]:
        """Return the last layer's weight (O,H) and bias (O,)."""
        draw = np.random.default_rng((self.seed, 99))
        weight = draw.uniform(-1, 1, (self.outputs, self.hidden)).astype(np.float32)
        return weight, draw.uniform(-1, 1, self.outputs).astype(np.float32)

    def run(self, x: NDArray[Any], initial: float = 0.0) -> NDArray[np.float64]:
        """Return y (R,T,O) for x (R,T,F), rows first, from initial states, in float64."""
        y = x.astype(np.float64)
        for layer in range(self.layers):
            cell = _lstm if self.kind == "LSTM" else _gru
            y = cell(y, self.weights(layer), self.hidden, initial)
        weight, bias = self.linear()
        return np.asarray(y @ weight.T + bias)

    def export(self) -> Any:
        """Return the model as torch.onnx.export(net, (x, h0, c0), ...) writes it."""
        nodes: list[Any] = []
        constants: list[Any] = []
        value = "input"
        if self.batch_first:
            nodes.append(_node("Transpose", ["input"], ["/rnn/Transpose_output_0"], perm=[1, 0, 2]))
            value = "/rnn/Transpose_output_0"
        for layer in range(self.layers):
            value = self._layer(layer, value, nodes, constants)
        if self.layers > 1:
            nodes += [
                _node("Concat", [f"/rnn/{s}_{n}" for n in range(self.layers)], [f"{s}n"], axis=0)
                for s in (name[0] for name in self.states)
            ]
        if self.batch_first:
            nodes.append(_node("Transpose", [value], ["/rnn/last"], perm=[1, 0, 2]))
            value = "/rnn/last"
        weight, bias = self.linear()
        constants += [_constant("onnx::MatMul_99", weight.T), _constant("fc.bias", bias)]
        added = ["fc.bias", "/fc/MatMul_output_0"]
        nodes += [
            _node("MatMul", [value, "onnx::MatMul_99"], ["/fc/MatMul_output_0"]),
            _node("Add", added[::-1] if self.newer else added, ["output"]),
        ]
        graph = helper.make_graph(nodes, "main_graph", *self._signature(), constants)
        opset = helper.make_opsetid("", 20 if self.newer else 17)
        model = helper.make_model(
            graph, opset_imports=[opset], ir_version=10 if self.newer else 8,
            producer_name="pytorch",
        )  # fmt: skip
        onnx.checker.check_model(model)
        return model

    def _layer(self, layer: int, x: str, nodes: list[Any], constants: list[Any]) -> str:
        names = []
        for state in self.states:
            name = state
            if self.layers > 1 or self.newer:
                name = f"/rnn/Slice_{state}_{layer}"
                bounds = [f"{name}_{end}" for end in ("start", "end", "axes")]
                for bound, number in zip(bounds, (layer, layer + 1, 0), strict=True):
                    constants.append(numpy_helper.from_array(np.array([number], np.int64), bound))
                nodes.append(_node("Slice", [state, *bounds], [name]))
            names.append(name)
        kernel, recurrent, *biases = self.weights(layer)
        order = TO_ONNX[self.kind]
        prefix = f"onnx::{self.kind}_{layer}"
        for name, values in (
            ("W", _gates(kernel, order)), ("R", _gates(recurrent, order)),
            ("B", np.concatenate([_gates(bias, order) for bias in biases])),
        ):  # fmt: skip
            constants.append(_constant(f"{prefix}{name}", values[None]))
        weights = [f"{prefix}{name}" for name in "WRB"]
        one = self.layers == 1
        ends = [f"{s[0]}n" if one else f"/rnn/{s[0]}_{layer}" for s in self.states]
        settings: dict[str, Any] = {"linear_before_reset": 1} if self.kind == "GRU" else {}
        if self.newer:
            settings |= {"direction": "forward", "layout": 0}
        out = f"/rnn/{self.kind}_{layer}_output_0"
        nodes.append(
            _node(self.kind, [x, *weights, "", *names], [out, *ends], hidden_size=self.hidden,
                  **settings)
        )  # fmt: skip
        if self.newer:
            return self._merged(out, nodes, constants)
        axis = f"/rnn/axis_{layer}"
        constants.append(numpy_helper.from_array(np.array([1], np.int64), axis))
        nodes.append(_node("Squeeze", [out, axis], [f"{out}_squeezed"]))
        return f"{out}_squeezed"

    def _merged(self, out: str, nodes: list[Any], constants: list[Any]) -> str:
        """Merge the axes of directions and units, as the newer exporter does.

        Sizes that are not free, which every size of 1 in the example becomes, are written down.
        """
        turned, sizes, merged = (f"{out}_{part}" for part in ("turned", "sizes", "merged"))
        nodes.append(_node("Transpose", [out], [turned], perm=[0, 2, 1, 3]))
        if self.free:
            bounds = [f"{out}_{number}" for number in range(5)]
            for number, bound in enumerate(bounds):
                constants.append(numpy_helper.from_array(np.array([number], np.int64), bound))
            one = [f"{sizes}_{number}" for number in range(4)]
            nodes.append(_node("Shape", [turned], [f"{sizes}_all"], start=0))
            nodes += [
                _node("Slice", [f"{sizes}_all", bounds[n], bounds[n + 1]], [one[n]])
                for n in range(4)
            ]
            nodes.append(_node("Mul", one[2:], [f"{sizes}_product"]))
            nodes.append(_node("Concat", [*one[:2], f"{sizes}_product"], [sizes], axis=0))
        else:
            shape = np.array([STEPS, ROWS, self.hidden], np.int64)
            constants.append(numpy_helper.from_array(shape, sizes))
        nodes.append(_node("Reshape", [turned, sizes], [merged], allowzero=int(not self.free)))
        return merged

    def _signature(self) -> tuple[list[Any], list[Any]]:
        fixed = (ROWS, STEPS) if self.newer else (1, 1)
        rows, steps = ("batch", "seq") if self.free else fixed
        order: list[Any] = [rows, steps] if self.batch_first else [steps, rows]
        state = [self.layers, rows, self.hidden]
        inputs = [_value("input", [*order, self.features])]
        outputs = [_value("output", [*order, self.outputs])]
        inputs += [_value(name, state) for name in self.states]
        outputs += [_value(f"{name[0]}n", state) for name in self.states]
        return inputs, outputs


def _lstm(
    x: NDArray[np.float64], weights: list[Floats], hidden: int, initial: float
) -> NDArray[np.float64]:
    kernel, recurrent, one, two = (w.astype(np.float64) for w in weights)
    h = c = np.full((len(x), hidden), initial)
    ys = []
    for t in range(x.shape[1]):
        gates = x[:, t] @ kernel.T + one + h @ recurrent.T + two
        i, f, g, o = (gates[:, n * hidden : (n + 1) * hidden] for n in range(4))
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(c)
        ys.append(h)
    return np.stack(ys, axis=1)


def _gru(
    x: NDArray[np.float64], weights: list[Floats], hidden: int, initial: float
) -> NDArray[np.float64]:
    kernel, recurrent, one, two = (w.astype(np.float64) for w in weights)
    h = np.full((len(x), hidden), initial)
    ys = []
    for t in range(x.shape[1]):
        a, b = x[:, t] @ kernel.T + one, h @ recurrent.T + two
        (ar, az, an), (br, bz, bn) = (np.split(g, 3, axis=1) for g in (a, b))
        r, z = _sigmoid(ar + br), _sigmoid(az + bz)
        h = (1 - z) * np.tanh(an + r * bn) + z * h
        ys.append(h)
    return np.stack(ys, axis=1)


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-x))


def _gates(weights: NDArray[Any], order: tuple[int, ...]) -> NDArray[Any]:
    parts = np.split(weights, len(order), axis=0)
    return np.concatenate([parts[n] for n in order])


def _node(operator: str, inputs: list[str], outputs: list[str], **settings: Any) -> Any:
    return helper.make_node(operator, inputs, outputs, **settings)


def _constant(name: str, values: NDArray[Any]) -> Any:
    return numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name)


def _value(name: str, dims: list[Any]) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
