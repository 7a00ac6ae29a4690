"""Sessions, look-ahead and answers at every symbol on a real Kafka: exact through kill -9.

A session ends by its marker, by a tombstone, or when its key's next event shows that it was over;
workers die between the events that it is made of. Judged from outside by keyfold-verify, and by
counting what was answered.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_worker import Serving
from text_bundle import BROKEN, CLASSES, TEXT, make_text_bundle, odd_text, text_event
from tiny_bundle import make_tiny_bundle

from keyfold.export.bundle import Bundle
from keyfold.export.events import OutputSpec

EVENTS, KEYS = 1500, 60
AFTER = 60_000  # ms of silence that end a session
DELAY = 4
ENDS: dict[str, Any] = {"tombstone": "reset", "reset_after_ms": AFTER, "end_field": "bye"}
KINDS = ["session", "late", "every"]
ENDINGS: list[dict[str, Any]] = [{}, {"bye": True}, {"bye": None}]

Records = list[tuple[bytes | None, bytes | None]]


@pytest.fixture(scope="module", params=KINDS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a bundle that does not answer each event once, about itself."""
    folder = tmp_path_factory.mktemp("bundle")
    return bundle_of(request.param, folder)


def bundle_of(kind: str, folder: Path) -> Bundle:
    if kind == "every":
        outputs = OutputSpec(CLASSES.kind, CLASSES.names, read="every")
        return make_text_bundle(folder, TEXT, max_steps=64, outputs=outputs, **ENDS)
    how: dict[str, Any] = {"answers": "session"} if kind == "session" else {"delay": DELAY}
    outputs = OutputSpec("regression", ("value",), **how)
    return make_tiny_bundle(folder, outputs=outputs, **ENDS)


@pytest.fixture
def partitions() -> int:
    """Return how many partitions `serving` has."""
    return 2


def records(bundle: Bundle) -> Records:
    """Return events of 60 keys, some of which end their key's history."""
    draw, found, now = np.random.default_rng(3), Records(), 0
    for number in range(EVENTS):
        now += int(draw.choice([10, 500, AFTER // 20], p=[0.5, 0.4, 0.1]))
        end = ENDINGS[draw.choice(3, p=[0.85, 0.1, 0.05])]
        key = b"user-%d" % (draw.zipf(1.3) % KEYS)
        if bundle.manifest.features.text is not None:
            text = odd_text(draw).replace(BROKEN, "")
            value: bytes | None = text_event(text[:80], now, **end)
        else:
            a, b = draw.normal(size=2).tolist()
            value = json.dumps({"a": a, "b": b, "time": now, **end}).encode()
        value = None if number % 100 == 13 else b"{" if number % 100 == 57 else value
        found.append((key, value))
    return found


@pytest.mark.parametrize("outputs", ["at-least-once", "exactly-once"])
@pytest.mark.usefixtures("real_kafka")  # Tansu has no transactions
def test_answers_survive_kills_exactly(serving: Serving, bundle: Bundle, outputs: str) -> None:
    sent = records(bundle)
    serving.send(sent)
    settings = {"worker__outputs": outputs}
    # Few keys in memory: a session goes on from what Redis has kept of it.
    few = {"worker__max_events": 40, "worker__max_resident_keys": 10}
    serving.kill_after(200, 2, **few, **settings)
    with serving.running(**settings) as worker:
        serving.wait_saved([worker])
    events = sum(value is not None and value != b"{" for _, value in sent)
    findings = serving.verify_clean(events, exactly_once=outputs == "exactly-once")
    assert findings.expired > 0
    predictions = {}
    for message in serving.records(serving.output):
        prediction = json.loads(message.value())
        predictions[prediction["id"]] = prediction
    check(bundle, predictions, sent, findings.pending)


def check(bundle: Bundle, predictions: dict[str, Any], sent: Records, pending: int) -> None:
    """Count what was answered, from outside of both judges."""
    events = sum(value is not None and value != b"{" for _, value in sent)
    told = [*predictions.values()]
    spec = bundle.manifest.outputs
    if spec.answers == "session":
        ended = sum(json.loads(v).get("bye") is True for _, v in sent if v and v != b"{")
        by_itself = Counter(one["id"].rpartition(":")[0] == one["about"] for one in told)
        assert by_itself[True] == ended
        assert by_itself[False] > 0
        assert {int(i.rpartition(":")[2]) for i in predictions} == {0, 1}
        assert sum(one["steps"] for one in told) + pending == events
    elif spec.delay:
        assert len(told) + pending == events
        assert not any(one["id"].rpartition(":")[0] == one["about"] for one in told)
    else:
        assert sum(one.get("last", False) for one in told) == events
        assert len(told) > 3 * events
