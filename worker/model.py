"""The ONNX Runtime step: (x, lengths, states) -> (y, new states).

Owns sessions, their checks against the manifest at load, and the runtime's edges: B = 0 aborts the
process and is never asked for, fewer rows than the manifest's `min_rows` are padded. It knows the
contract, not the family of the model; whose rows they are is the caller's business. Called by the
pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from keyfold.export import bundle as contract
from keyfold.export.bundle import Bundle, StateSpec, Tensors
from keyfold.export.errors import BundleError

Signature = Mapping[str, tuple[str, list[Any]]]  # name -> (type, dims)


class Graph:
    """A graph with states, ready to run on one thread."""

    def __init__(self, path: Path, states: Sequence[StateSpec], min_rows: int) -> None:
        self._min_rows = min_rows
        self._states = [(state.input, state.output) for state in states]
        self._output_names = ["y", *(output for _, output in self._states)]
        self._session = _session(path)

    @property
    def _ends(self) -> tuple[Signature, Signature]:
        """Inputs and outputs, as the contract compares them."""
        return _signature(self._session.get_inputs()), _signature(self._session.get_outputs())

    def step(
        self, x: NDArray[np.float32], lengths: NDArray[np.int32], states: Tensors
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
        """Run B >= 1 rows of up to T steps: x (B,T,F), lengths (B,) -> y (B,T,O), new states.

        Beyond a row's length y holds nothing of meaning. States are keyed by graph input name;
        what else is among them, a front's or a back's, is left out.
        """
        rows = len(x)
        feed: dict[str, NDArray[Any]] = {"x": x, "lengths": lengths}
        for name, _ in self._states:
            feed[name] = states[name]
        if rows < self._min_rows:
            feed = {name: _pad(values, self._min_rows) for name, values in feed.items()}
        y, *after = cast("list[NDArray[Any]]", self._session.run(self._output_names, feed))
        new = {name: value[:rows] for (name, _), value in zip(self._states, after, strict=True)}
        return y[:rows], new


class Model(Graph):
    """A bundle's step graph, and its decode graph if it has one."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        manifest, self.decode = bundle.manifest, _decode(bundle)
        super().__init__(bundle.step_path, manifest.states, manifest.min_rows)
        contract.check_signature(bundle, *self._ends)
        self.golden_difference = contract.check_golden(bundle, self.step)
        if self.decode is not None:
            contract.check_decode_signature(bundle, *self.decode._ends)
            said = contract.check_answers(bundle, self.step, self.decode.step)
            self.golden_difference = max(self.golden_difference, said)

    @classmethod
    def load(cls, folder: Path) -> Model:
        """Load and prove a bundle. Raises BundleError: what, where, expected, got."""
        return cls(contract.load(folder))


def _decode(bundle: Bundle) -> Graph | None:
    decode = bundle.manifest.decode
    return None if decode is None else Graph(bundle.decode_path, decode.states, decode.min_rows)


def _pad(values: NDArray[Any], rows: int) -> NDArray[Any]:
    """Repeat the last row until there are `rows`."""
    return np.concatenate([values, np.repeat(values[-1:], rows - len(values), axis=0)])


def _session(path: Path) -> Any:
    options = ort.SessionOptions()
    # One process per core, one thread each: more threads rarely pay at these sizes (FACTS).
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BundleError(f"{path}: ONNX Runtime cannot load it: {error}") from error


def _signature(values: Sequence[Any]) -> Signature:
    return {value.name: (value.type, list(value.shape)) for value in values}
