"""A bundle that recognises symbols on a real Kafka and Valkey: each told once, through a kill -9.

Judged from outside by keyfold-verify, and by a reading of the topic with a few lines of its own.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from live_worker import Serving, make_events
from tiny_bundle import make_tiny_bundle

from keyfold.export.bundle import Bundle
from keyfold.export.events import OutputSpec
from keyfold.worker.emit_settings import Emit
from keyfold.worker.verify.findings import Fault

pytestmark = pytest.mark.usefixtures("real_kafka")
EVENTS = 6000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a bundle of three symbols."""
    symbols = OutputSpec("transcription", ("", "a", "b", "c"))
    return make_tiny_bundle(
        tmp_path_factory.mktemp("bundle"), outputs=symbols, tombstone="reset", reset_after_ms=2000
    )


@pytest.fixture
def partitions() -> int:
    """Return how many partitions `serving` has."""
    return 2


def told(serving: Serving) -> dict[str, Any]:
    """Return each event's prediction's output by its id, repetitions once."""
    found: dict[str, Any] = {}
    for record in serving.records(serving.output):
        prediction = json.loads(record.value())
        found[prediction["id"]] = prediction["output"]
    return found


@pytest.mark.parametrize("outputs", ["at-least-once", "exactly-once"])
def test_symbols_survive_kills_exactly(serving: Serving, outputs: str) -> None:
    settings: dict[str, Any] = {
        "worker__outputs": outputs, "worker__max_resident_keys": 20, "worker__max_events": 100,
    }  # fmt: skip
    serving.send([*make_events(EVENTS, 60, skew="zipf"), (b"key-1", None)])
    serving.kill_after(500, 2, **settings)
    serving.serve_all(**settings)
    serving.verify_clean(EVENTS, exactly_once=outputs == "exactly-once")
    found = told(serving)
    assert len(found) == EVENTS
    assert {output["symbol"] for output in found.values()} == {None, "a", "b", "c"}


def test_symbols_alone_may_be_emitted(serving: Serving) -> None:
    settings = {"emit__what": "when", "worker__max_events": 100}
    serving.send(make_events(EVENTS, 60, skew="zipf"))
    serving.kill_after(500, **settings)
    serving.serve_all(**settings)
    serving.verify_clean(EVENTS, emit=Emit("when"))
    found = told(serving)
    assert 0 < len(found) < EVENTS
    assert {output["symbol"] for output in found.values()} == {"a", "b", "c"}
    # Without the rule every event owes a prediction: the judge does miss those that tell none.
    assert serving.verify().counts[Fault.LOST] == EVENTS - len(found)
