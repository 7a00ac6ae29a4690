"""Bundles that answer by symbols, on a real Kafka and Valkey: exact through a kill -9.

Workers die in the middle of answers; the next one repeats the same symbols, sampled ones too.
Judged from outside by keyfold-verify.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from live_worker import Serving
from speaking_bundle import make_answering_bundle, make_speaking_bundle
from text_bundle import BROKEN, odd_text, text_event

from keyfold.export.bundle import Bundle
from keyfold.export.generation import Generate

EVENTS, EVERY = 500, 200  # records, and of how many one is a tombstone
MOST = 20  # symbols of an answer


@pytest.fixture(scope="module", params=["sampled", "decoded"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a model of next symbols that samples, or one with a decode graph."""
    folder = tmp_path_factory.mktemp("bundle")
    if request.param == "sampled":
        return make_speaking_bundle(folder, Generate(MOST, 0.7), tombstone="reset")
    return make_answering_bundle(folder, Generate(MOST, 1.0, 4), tombstone="reset")


@pytest.fixture
def partitions() -> int:
    """Return how many partitions `serving` has."""
    return 2


def records() -> tuple[list[tuple[bytes | None, bytes | None]], int]:
    """Return texts of 30 keys, and how many of them are rejects."""
    draw = np.random.default_rng(5)
    found: list[tuple[bytes | None, bytes | None]] = []
    rejects = 0
    for number in range(EVENTS):
        text: object = 12 if number % 150 == 7 else odd_text(draw)
        value = None if number % EVERY == 13 else text_event(text, 1000 * number)
        rejects += value is not None and (not isinstance(text, str) or BROKEN in text)
        found.append((b"talker-%d" % (draw.zipf(1.3) % 30), value))
    return found, rejects


@pytest.mark.parametrize("outputs", ["at-least-once", "exactly-once"])
@pytest.mark.usefixtures("real_kafka")  # Tansu has no transactions
def test_answers_survive_kills_exactly(serving: Serving, outputs: str) -> None:
    sent, rejects = records()
    resets = -(-(EVENTS - 13) // EVERY)
    serving.send(sent)
    settings = {"worker__outputs": outputs}
    serving.kill_after(60, 2, worker__max_events=20, **settings)
    with serving.running(**settings) as worker:
        serving.wait_saved([worker])
    exactly_once = outputs == "exactly-once"
    findings = serving.verify()
    assert findings.violations == 0, findings.to_json()
    report = findings.to_json()
    assert (report["rejects"], report["resets"]) == (rejects, resets)
    assert report["events"] == EVENTS - rejects - resets
    _check_answers(
        [json.loads(m.value()) for m in serving.records(serving.output)], exactly_once=exactly_once
    )


def _check_answers(predictions: list[dict[str, object]], *, exactly_once: bool) -> None:
    """Every repetition says the same; with exactly-once outputs there is none."""
    said = Counter(json.dumps(prediction) for prediction in predictions)
    assert len({str(prediction["id"]) for prediction in predictions}) == len(said)
    if exactly_once:
        assert set(said.values()) == {1}
        # An answer's symbols stand one behind the other.
        ids = [str(prediction["id"]).rsplit(":", 1) for prediction in predictions]
        for (one, index), (other, following) in pairwise(ids):
            assert int(following) == (int(index) + 1 if one == other else 0)
