"""Texts' scores and the largest probabilities on a real Kafka and Valkey: exact through a kill -9.

What a key's next event is judged by is in its state: a worker that took over goes on with it.
Judged from outside by keyfold-verify.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from language_bundle import SCORED, make_language_bundle
from live_worker import Serving
from text_bundle import BROKEN, odd_text, text_event

from keyfold.export.bundle import Bundle

EVENTS, TOP = 900, 5


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a bundle of next symbols; calls take 64 steps."""
    return make_language_bundle(tmp_path_factory.mktemp("bundle"), SCORED, top=TOP, max_steps=64)


@pytest.fixture
def partitions() -> int:
    """Return how many partitions `serving` has."""
    return 2


@pytest.mark.parametrize("outputs", ["at-least-once", "exactly-once"])
@pytest.mark.usefixtures("real_kafka")  # Tansu has no transactions
def test_scores_survive_kills_exactly(serving: Serving, outputs: str) -> None:
    draw = np.random.default_rng(6)
    texts = [odd_text(draw) for _ in range(EVENTS)]
    rejects = sum(BROKEN in text for text in texts)
    serving.send(
        [
            (b"talker-%d" % (draw.zipf(1.3) % 40), text_event(text, 1000 * number))
            for number, text in enumerate(texts)
        ]
    )
    settings: dict[str, Any] = {"worker__outputs": outputs}
    serving.kill_after(150, 2, worker__max_events=30, **settings)
    with serving.running(**settings) as worker:
        serving.wait_saved([worker])
    findings = serving.verify_clean(EVENTS - rejects, exactly_once=outputs == "exactly-once")
    assert findings.to_json()["rejects"] == rejects
    predictions = [json.loads(m.value())["output"] for m in serving.records(serving.output)]
    assert {len(one["top"]) for one in predictions} == {TOP}
    assert {one["anomaly"]["flag"] for one in predictions} == {False, True}
    unscored = [one for one in predictions if one["anomaly"]["score"] is None]
    assert len(unscored) < 40  # only a cold key's empty text has none
