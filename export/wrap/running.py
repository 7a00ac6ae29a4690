"""ONNX Runtime runs somebody's graph: the session, its words, and the sizes that it does run in.

Owns what is ONNX Runtime's own: how a session is opened here, its messages without what only its
developers read, and the search for sizes where a graph runs though it does not in others. It knows
no layout. Called by layout.py and step.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from keyfold.export.wrap.own_graph import FLOATS, WHOLE, WrapError, dims_of, element, first_line

FATAL_ONLY = 4  # ONNX Runtime's log level: what fails here is expected to
MOST_STEPS = 64  # of an unrolled loop that is looked for
LONGEST = 200  # characters of a message
# Where in its sources a check failed, and which: "/onnxruntime_src/... a == b was false. "
CHECKED = re.compile(r"^/\S+\.(?:h|cc):\d+ .*? was false\. ")
EXPORT_HINT = (
    "export it with dynamic axes (torch.onnx.export: dynamic_axes or dynamic_shapes) and an "
    "example of 2 rows and 1 step"
)


def quiet_session(graph: bytes) -> Any:
    """Open a graph on one thread, as the worker does. Raises WrapError."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = FATAL_ONLY
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise WrapError(f"graph: ONNX Runtime cannot load it: {said(error)}") from error


def said(error: Exception) -> str:
    """Return what ONNX Runtime says without its file names and codes."""
    text = first_line(error).rpartition("Status Message: ")[2]
    return CHECKED.sub("", text)[:LONGEST].rstrip(". ")


def why_fixed(session: Any, x: Any, others: Sequence[Any]) -> str:
    """Return a hint where a graph does run, but in sizes that the exporter wrote into it."""
    rows = {size for value in others for size in dims_of(value) if not isinstance(size, int)}
    for steps in range(1, MOST_STEPS + 1):
        feed = {}
        for value in (x, *others):
            shape = [
                size if isinstance(size, int) else 2 if size in rows else steps
                for size in dims_of(value)
            ]
            feed[value.name] = np.ones(shape, {**FLOATS, **WHOLE}[element(value)])
        try:
            session.run(None, feed)
        except Exception:  # noqa: BLE001 - ONNX Runtime's exceptions have no common root
            continue
        shown = ", ".join(str(size) for size in feed[x.name].shape)
        return f"; it runs as ({shown}) only: {EXPORT_HINT}"
    return ""
