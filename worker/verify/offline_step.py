"""The bundle's step graph, run by keyfold-verify for one event at a time.

Owns one ONNX Runtime session and the proof, at load, that it reproduces the golden sequences. It
knows the contract of keyfold.export only, nothing of the worker's own model, slots or schedule.
Called by refold.py.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from keyfold.export import bundle as contract
from keyfold.export.bundle import Bundle, Tensors
from keyfold.export.errors import BundleError


class OfflineStep:
    """The bundle's step graph for one event, proven against the golden sequences at load."""

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self.rows = manifest.min_rows  # R
        self._session = _open(bundle)
        self._inputs = [state.input for state in manifest.states]
        self._wanted = ["y", *(state.output for state in manifest.states)]
        self._feed: dict[str, NDArray[Any]] = {"lengths": np.ones(self.rows, np.int32)}
        contract.check_signature(
            bundle,
            {value.name: (value.type, list(value.shape)) for value in self._session.get_inputs()},
            {value.name: (value.type, list(value.shape)) for value in self._session.get_outputs()},
        )
        contract.check_golden(bundle, self.call)

    def judged_as(self, bundle: Bundle) -> OfflineStep:
        """Return the same graph under a bundle that differs in its tolerance only."""
        other = copy(self)
        other.bundle = bundle
        return other

    def cold(self) -> list[NDArray[Any]]:
        """Return the tensors (R,*dims) of a key without history."""
        tensors = contract.initial_states(self.bundle.manifest, self.rows)
        return [tensors[name] for name in self._inputs]

    def one(
        self, x: NDArray[np.float32], tensors: list[NDArray[Any]]
    ) -> tuple[NDArray[np.float32], list[NDArray[Any]]]:
        """Step one event x (1,F) from `tensors`, untouched; return y (O,) and new tensors."""
        feed = self._feed
        # All R rows are the same event: whatever min_rows is, row 0 cannot tell.
        feed["x"] = (x if self.rows == 1 else np.repeat(x, self.rows, 0))[:, None]
        feed.update(zip(self._inputs, tensors, strict=True))
        y, *after = self._session.run(self._wanted, feed)
        return y[0, 0], after

    def call(
        self, x: NDArray[np.float32], lengths: NDArray[np.int32], states: Tensors
    ) -> tuple[NDArray[np.float32], Tensors]:
        """Step B rows of up to T steps each: for golden sequences."""
        rows = len(x)
        feed = {"x": x, "lengths": lengths, **states}
        if rows < self.rows:
            feed = {name: np.resize(values, (self.rows, *values.shape[1:]))
                    for name, values in feed.items()}  # fmt: skip
        y, *after = self._session.run(self._wanted, feed)
        return y[:rows], {
            name: value[:rows] for name, value in zip(self._inputs, after, strict=True)
        }


def _open(bundle: Bundle) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    try:
        return ort.InferenceSession(
            bundle.step_path.read_bytes(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's own exception classes have no common root
        raise BundleError(f"{bundle.step_path}: ONNX Runtime cannot load it: {error}") from error
