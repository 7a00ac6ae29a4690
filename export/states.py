"""What a tensor of a key's state is: names, dimensions, element type, value for a cold key.

Owns that description and nothing else. The graph's tensors stand in the manifest; front.py and
anomaly.py add what the fold keeps outside the graph. Called by bundle, front and anomaly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# numpy's name of a state tensor's element type -> ONNX's
DTYPES = {"float32": "float", "float64": "double", "int32": "int32", "int64": "int64"}
OWN_PREFIXES = ("front.", "back.")  # of tensors that are no part of a graph

Tensors = Mapping[str, NDArray[Any]]  # state input name -> (B, *dims)


@dataclass(frozen=True, slots=True)
class StateSpec:
    """One tensor of a key's state and the pair of graph names that carries it."""

    input: str  # graph input, also the tensor's name everywhere else
    output: str  # graph output with the tensor after the step; outside the graph: `input` again
    dims: tuple[int, ...]  # without the rows: (B, *dims) in the graph
    dtype: str = "float32"  # numpy name, little-endian when stored
    initial: float = 0.0  # every element's value for a cold key

    @property
    def bytes_per_key(self) -> int:
        """Size of this tensor for one key."""
        return math.prod(self.dims) * np.dtype(self.dtype).itemsize

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's form."""
        return {
            "input": self.input,
            "output": self.output,
            "dtype": self.dtype,
            "dims": list(self.dims),
            "initial": self.initial,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StateSpec:
        """Read the manifest's form. Raises KeyError or TypeError on another form."""
        dims = tuple(data["dims"])
        return cls(data["input"], data["output"], dims, data["dtype"], data["initial"])


def own_state(
    name: str, dims: tuple[int, ...], dtype: str = "float32", initial: float = 0.0
) -> StateSpec:
    """Return the description of a tensor that is no part of a graph."""
    return StateSpec(name, name, dims, dtype, initial)


def cold(specs: Sequence[StateSpec], rows: int) -> dict[str, NDArray[Any]]:
    """Return the tensors of `rows` cold keys: (rows, *dims) by name."""
    return {spec.input: np.full((rows, *spec.dims), spec.initial, spec.dtype) for spec in specs}
