"""Real bundles that answer by symbols: the text bundle's graph as a model of next symbols, and two.

Owns a bundle whose step graph answers itself, and one with a decode graph that answers in symbols
of its own, beginning from what the step graph holds. Imported as `from speaking_bundle import ...`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from text_bundle import BROKEN, HIDDEN, text_graph

from keyfold.export import bundle as contract
from keyfold.export.bundle import Bundle, Golden, Manifest, StateSpec, Tensors
from keyfold.export.decode_graph import DecodeGraph, GoldenAnswers
from keyfold.export.events import EventSpec, OutputSpec
from keyfold.export.features import FeatureSpec
from keyfold.export.generation import Generate
from keyfold.export.manifest import TOLERANCE
from keyfold.export.text import FIRST, Text

READ = Text("line", max_symbols=3000)  # bytes
SPOKEN = Text("answer", "word", ("ja", "nein", "vielleicht", "doch", "äh"))
MOST = 12
STATES = (StateSpec("h", "h_out", (HIDDEN,)), StateSpec("c", "c_out", (HIDDEN,)))
LENGTHS = np.array([20, 1, 7], np.int32)


def make_speaking_bundle(
    folder: Path,
    generate: Generate | None = None,
    *,
    seed: int = 0,
    tolerance: float = TOLERANCE,
    **events: Any,
) -> Bundle:
    """Write a model of next bytes that generates and load it; `events`: of the event spec."""
    generate = generate or Generate(MOST, temperature=1.0)
    graph = text_graph(READ.size, READ.size, seed)
    outputs = OutputSpec("classification", READ.names, generate=generate)
    manifest = replace(_manifest(outputs, events), tolerance=tolerance)
    golden = _golden(graph, manifest, READ.size, contract.initial_states(manifest, 3))
    return contract.load(contract.save(folder, manifest, graph, Golden(*golden[:3])))


def make_answering_bundle(
    folder: Path,
    generate: Generate | None = None,
    *,
    anew: bool = True,
    seed: int = 0,
    **events: Any,
) -> Bundle:
    """Write a bundle that reads bytes and answers in words, and load it.

    The decode graph's h and c begin as those that reading left.
    """
    generate = generate or Generate(MOST, temperature=1.0, top_k=5)
    read, said = (
        text_graph(READ.size, 4, seed), text_graph(SPOKEN.size, SPOKEN.size, seed + 7)
    )  # fmt: skip
    decode = DecodeGraph(STATES, ("h", "c"), width=4, anew=anew)
    outputs = OutputSpec("classification", SPOKEN.names, generate=generate, target=SPOKEN)
    manifest = _manifest(outputs, events, decode)
    x, lengths, y, states = _golden(read, manifest, READ.size, contract.initial_states(manifest, 3))
    answers = GoldenAnswers(*_golden(said, manifest, SPOKEN.size, decode.begun(states, len(x)))[:3])
    golden = Golden(x, lengths, y, answers)
    return contract.load(contract.save(folder, manifest, read, golden, said))


def _manifest(
    outputs: OutputSpec, events: dict[str, Any], decode: DecodeGraph | None = None
) -> Manifest:
    return Manifest(
        events=EventSpec("key", "time", **events),
        features=FeatureSpec((), text=READ),
        outputs=outputs,
        states=STATES,
        step_sha256="",  # filled in by save
        max_steps=16,
        provenance={"made_by": "tests/support/speaking_bundle.py"},
        decode=decode,
    )


def _golden(
    graph: bytes, manifest: Manifest, size: int, states: Tensors
) -> tuple[Any, Any, Any, Tensors]:
    draw = np.random.default_rng(len(manifest.outputs.names))
    x = draw.integers(0, size, (3, 20, 1)).astype(np.float32)
    x[x == FIRST + ord(BROKEN)] = 0
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    y, h, c = session.run(["y", "h_out", "c_out"], {"x": x, "lengths": LENGTHS, **states})
    y[np.arange(20) >= LENGTHS[:, None]] = 0.0
    return x, LENGTHS, y, {"h": h, "c": c}
