"""Families that are no plain stack of LSTMs, served on a real Kafka and Valkey through a kill -9.

Each carries another kind of state: keys and values of the last events, a ring of inputs, a user's
own cell that takes one step a call. Judged from outside by keyfold-verify.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from live_worker import Serving, make_events

from keyfold.export import bundle as contract
from keyfold.export.bundle import Bundle, Golden, Manifest
from keyfold.export.event_spec import EventSpec
from keyfold.export.features import FeatureSpec
from keyfold.export.outputs import OutputSpec
from keyfold.training.settings_model import Model

keras = pytest.importorskip("keras")
ort = pytest.importorskip("onnxruntime")
from keyfold.export.convert import convert  # noqa: E402
from keyfold.training.model import build  # noqa: E402
from keyfold.training.scaling import Scaling  # noqa: E402

pytestmark = pytest.mark.tensorflow
FAMILIES = {
    "transformer": Model(family="transformer", units=(16,), window=8, kv_heads=2),
    "bidirectional": Model(family="bidirectional", units=(6,), window=8),
    "a user's own cell": Model("own_cells:minimal", (8,)),
}


@pytest.fixture(params=FAMILIES)
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Bundle:
    """Return an untrained network of the family as a bundle, its own outputs as golden ones."""
    keras.utils.set_random_seed(6)
    outputs = OutputSpec("regression", ("value",))
    made = build(FAMILIES[request.param], Scaling((0.0, 0.0), (1.0, 1.0), 0.0, 1.0), outputs).whole
    graph = convert(made)
    x = np.random.default_rng(0).normal(size=(3, 12, 2)).astype(np.float32)
    golden = Golden(x, np.full(3, 12, np.int32), np.asarray(made(x)))
    manifest = Manifest(
        events=EventSpec("key", "time", "ms", "reject", None),
        features=FeatureSpec.numbers("a", "b"),
        outputs=outputs,
        states=graph.states,
        step_sha256="",  # filled in by save
        min_rows=2,
        max_steps=graph.max_steps,
    )
    return contract.load(contract.save(tmp_path / "bundles", manifest, graph.onnx, golden))


def test_a_family_survives_kills_exactly(serving: Serving) -> None:
    events = make_events(6_000, 60, skew="zipf")  # hot keys: bursts, or many waves
    serving.send(events)
    serving.kill_after(500, 2, worker__max_events=100)
    with serving.running() as worker:
        serving.wait_saved([worker])
    serving.verify_clean(len(events))
