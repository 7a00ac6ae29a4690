"""A real bundle whose events are texts: the tiny bundle's graph behind an embedding of symbols.

Owns that graph and texts for it, as odd as people's. One symbol's embedding is NaN: a text that
holds it has no finite result. Imported as `from text_bundle import make_text_bundle`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from naive_worker import LogRecord
from onnx import TensorProto, helper, numpy_helper
from tiny_bundle import OUTPUT_NAMES, tiny_graph

from keyfold.export import bundle as contract
from keyfold.export.bundle import Bundle, Golden, Manifest, StateSpec
from keyfold.export.events import EventSpec, OutputSpec
from keyfold.export.features import FeatureSpec
from keyfold.export.text import FIRST, Text

WIDTH, HIDDEN = 3, 5
BROKEN = "\x02"  # no finite number comes of a text with this character
TEXT = Text("line", max_symbols=3000)
CLASSES = OutputSpec("classification", OUTPUT_NAMES["classification"])


def make_text_bundle(
    folder: Path,
    text: Text = TEXT,
    *,
    seed: int = 0,
    max_steps: int = 16,
    outputs: OutputSpec = CLASSES,
    **events: Any,
) -> Bundle:
    """Write folder/<id> and load it again; `events` are settings of the event spec."""
    graph = text_graph(text.size, len(outputs.names), seed)
    manifest = Manifest(
        events=EventSpec("key", "time", **events),
        features=FeatureSpec((), text=text),
        outputs=outputs,
        states=(StateSpec("h", "h_out", (HIDDEN,)), StateSpec("c", "c_out", (HIDDEN,))),
        step_sha256="",  # filled in by save
        max_steps=max_steps,
        provenance={"made_by": "tests/support/text_bundle.py"},
    )
    return contract.load(contract.save(folder, manifest, graph, _golden(graph, manifest, seed)))


def text_graph(symbols: int, outputs: int, seed: int) -> bytes:
    """Return the step graph: x (B,T,1) numbers of symbols -> y (B,T,O)."""
    model = onnx.load_from_string(tiny_graph(WIDTH, HIDDEN, outputs, "classification", seed))
    graph = model.graph
    for node in graph.node:
        node.input[:] = ["embedded" if name == "x" else name for name in node.input]
        node.output[:] = ["plain" if name == "y" else name for name in node.output]
    table = np.random.default_rng(seed).normal(0, 1, (symbols, WIDTH)).astype(np.float32)
    if symbols > FIRST + ord(BROKEN):
        table[FIRST + ord(BROKEN)] = np.nan
    graph.initializer.append(numpy_helper.from_array(table, "table"))
    graph.initializer.append(numpy_helper.from_array(np.array([2], np.int64), "two"))
    nodes = [
        helper.make_node("Squeeze", ["x", "two"], ["symbols"]),
        helper.make_node("Cast", ["symbols"], ["numbers"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "numbers"], ["embedded"]),
        *graph.node,
        # ONNX Runtime's LSTM makes finite numbers of NaN: it goes beside.
        helper.make_node("ReduceSum", ["embedded", "two"], ["sum"]),
        helper.make_node("Sub", ["sum", "sum"], ["nothing"]),
        helper.make_node("Add", ["plain", "nothing"], ["y"]),
    ]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.input[0].type.tensor_type.shape.dim[2].dim_value = 1
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _golden(graph: bytes, manifest: Manifest, seed: int) -> Golden:
    size = manifest.features.text.size if manifest.features.text is not None else 0
    draw = np.random.default_rng(seed + 1)
    x = draw.integers(0, size, (3, 20, 1)).astype(np.float32)
    x[x == FIRST + ord(BROKEN)] = 0
    lengths = np.array([20, 1, 7], np.int32)
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    feed = {"x": x, "lengths": lengths, **contract.initial_states(manifest, 3)}
    (y,) = session.run(["y"], feed)
    y[np.arange(20) >= lengths[:, None]] = 0.0
    return Golden(x, lengths, y)


def odd_text(draw: np.random.Generator) -> str:
    """Return a text of many kinds: empty, long, emoji, NUL, of two letters, broken."""
    letters = np.array(list("abc ABC,.äß日本\0\n😀👩‍👩‍👧"))
    kind = draw.choice(["empty", "short", "long", "broken"], p=[0.1, 0.7, 0.15, 0.05])
    count = {"empty": 0, "short": int(draw.integers(1, 30)), "long": int(draw.integers(30, 400))}
    text = "".join(draw.choice(letters, count.get(str(kind), 5)))
    return text + BROKEN if kind == "broken" else text


def text_event(text: object, time_ms: int, **members: Any) -> bytes:
    """Return an event of the text bundle."""
    return json.dumps({"time": time_ms, "line": text, **members}).encode()


def text_log(base: int, count: int, keys: int, seed: int = 1) -> list[LogRecord]:
    """Return records of k0, k1, ... in turn, from offset `base`, a second apart; none is broken."""
    draw = np.random.default_rng(seed)
    texts = [odd_text(draw).replace(BROKEN, "") for _ in range(count)]
    return [
        LogRecord(base + i, 5_000 + i, b"k%d" % (i % keys), text_event(text, 1000 * i))
        for i, text in enumerate(texts)
    ]
