"""ONNX Runtime alone: events per second of a bundle's step graph, and of nothing else.

One thread, one step per row (T=1), the best of three widths, io-binding: inputs and outputs are
arrays made before, so that a call allocates nothing. It reads no event and keeps no key's state,
and no worker can be faster. Called by run.py.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnxruntime as ort

from keyfold.export.bundle import Bundle, initial_states

ROWS = (128, 256, 512)
WARM_UP_CALLS = 3


def ceiling(bundle: Bundle, seconds: float = 0.9) -> float:
    """Return events/s of the best width; `seconds` are shared by the widths."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(
        bundle.step_path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    return max(_rate(session, bundle, rows, seconds / len(ROWS)) for rows in ROWS)


def _rate(session: Any, bundle: Bundle, rows: int, seconds: float) -> float:
    binding, _kept = bound(session, bundle, rows)
    for _ in range(WARM_UP_CALLS):
        session.run_with_iobinding(binding)
    begun, calls = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        session.run_with_iobinding(binding)
        calls += 1
    return rows * calls / (time.perf_counter() - begun)


def bound(session: Any, bundle: Bundle, rows: int) -> tuple[Any, dict[str, Any]]:
    """Bind arrays to every input and output; they must live as long as the binding."""
    manifest = bundle.manifest
    x = np.random.default_rng(0).normal(size=(rows, 1, len(manifest.features.columns)))
    arrays = {
        "x": x.astype(np.float32),
        "lengths": np.ones(rows, np.int32),
        **initial_states(manifest, rows),
    }
    binding = session.io_binding()
    for name, values in arrays.items():
        binding.bind_cpu_input(name, values)
    arrays["y"] = np.empty((rows, 1, len(manifest.outputs.names)), np.float32)
    for state in manifest.states:
        arrays[state.output] = np.empty((rows, *state.dims), state.dtype)
    for name in ("y", *(state.output for state in manifest.states)):
        values = arrays[name]
        binding.bind_output(name, "cpu", 0, values.dtype, list(values.shape), values.ctypes.data)
    return binding, arrays
