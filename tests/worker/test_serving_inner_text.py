"""Texts beside numbers on a real Kafka and Valkey: exact through a kill -9.

Texts are empty, long, of any script or none at all, values are missing, keys silent for long and
reset; workers die in the middle. Judged from outside by keyfold-verify.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from inner_bundle import inner_event, make_inner_bundle, textless_event
from live_worker import Serving

from keyfold.export.bundle import Bundle

DAY_MS = 86_400_000
EVENTS = 6_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return the inner bundle, whose keys start anew after a day of silence."""
    folder = tmp_path_factory.mktemp("bundle")
    return make_inner_bundle(folder, tombstone="reset", reset_after_ms=DAY_MS, hidden=8)


@pytest.fixture
def partitions() -> int:
    """Return how many partitions `serving` has."""
    return 2


def records() -> list[tuple[bytes | None, bytes | None]]:
    """Return events of 100 keys over some days; some are no events."""
    draw = np.random.default_rng(3)
    now = 1_700_000_000_000
    found: list[tuple[bytes | None, bytes | None]] = []
    for number in range(EVENTS):
        now += int(draw.choice([0, 500, 60_000, DAY_MS // 10], p=[0.4, 0.4, 0.17, 0.03]))
        key = b"caller-%d" % (draw.zipf(1.3) % 100)
        value: bytes | None = inner_event(draw, now)
        if number % 500 == 7:
            value = None
        elif number % 100 == 8:
            value = textless_event(draw, now)
        found.append((key, value))
    return found


@pytest.mark.parametrize("outputs", ["at-least-once", "exactly-once"])
@pytest.mark.usefixtures("real_kafka")  # Tansu has no transactions
def test_texts_beside_numbers_survive_kills_exactly(serving: Serving, outputs: str) -> None:
    serving.send(records())
    settings = {"worker__outputs": outputs}
    serving.kill_after(600, 2, worker__max_events=150, **settings)
    with serving.running(**settings) as worker:
        serving.wait_saved([worker])
    rejects, resets = EVENTS // 100, EVENTS // 500
    count = EVENTS - rejects - resets
    findings = serving.verify_clean(count, exactly_once=outputs == "exactly-once")
    report = findings.to_json()
    assert (report["rejects"], report["resets"]) == (rejects, resets)
    assert report["expired"] > 0
    predictions = [json.loads(message.value()) for message in serving.records(serving.output)]
    assert len({prediction["id"] for prediction in predictions}) == count
    letters = serving.records(serving.dead_letter)
    reasons = {dict(message.headers())["keyfold-reason"].decode() for message in letters}
    assert "field 'said.line': expected a text, got none" in reasons
    assert "field 'said.line': expected a text, got a number" in reasons
