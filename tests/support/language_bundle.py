"""A real bundle that predicts the next symbol of texts, scores them, or writes the largest alone.

Owns that bundle: the text bundle's graph with as many outputs as there are symbols. Imported as
`from language_bundle import make_language_bundle`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from text_bundle import HIDDEN, text_graph

from keyfold.export import bundle as contract
from keyfold.export.bundle import Bundle, Golden, Manifest, StateSpec
from keyfold.export.events import EventSpec, OutputSpec
from keyfold.export.features import FeatureSpec
from keyfold.export.outputs import Likelihood
from keyfold.export.text import Text

TEXT = Text("line", "byte", max_symbols=3000)
SCORED = Likelihood(5.58, 0.3)  # an untrained model of 258 symbols: log(258) = 5.55


def make_language_bundle(
    folder: Path,
    likelihood: Likelihood | None = SCORED,
    *,
    top: int = 0,
    max_steps: int = 16,
    seed: int = 0,
    **events: Any,
) -> Bundle:
    """Write folder/<id> and load it again; `events` are settings of the event spec."""
    graph = text_graph(TEXT.size, TEXT.size, seed)
    manifest = Manifest(
        events=EventSpec("key", "time", **events),
        features=FeatureSpec((), text=TEXT),
        outputs=OutputSpec("classification", TEXT.names, top=top, likelihood=likelihood),
        states=(StateSpec("h", "h_out", (HIDDEN,)), StateSpec("c", "c_out", (HIDDEN,))),
        step_sha256="",  # filled in by save
        max_steps=max_steps,
        provenance={"made_by": "tests/support/language_bundle.py"},
    )
    return contract.load(contract.save(folder, manifest, graph, _golden(graph, manifest, seed)))


def _golden(graph: bytes, manifest: Manifest, seed: int) -> Golden:
    x = np.random.default_rng(seed + 1).integers(10, TEXT.size, (3, 20, 1)).astype(np.float32)
    lengths = np.array([20, 1, 7], np.int32)
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    feed = {"x": x, "lengths": lengths, **contract.initial_states(manifest, 3)}
    (y,) = session.run(["y"], feed)
    y[np.arange(20) >= lengths[:, None]] = 0.0
    return Golden(x, lengths, y)
