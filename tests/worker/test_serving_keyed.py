"""A bundle with a front and a back on a real Kafka and Valkey: exact through a kill -9.

Values are missing, categories unheard of, keys silent for long and reset; workers die in the
middle. Judged from outside by keyfold-verify.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from keyed_bundle import make_keyed_bundle, messy_event
from live_worker import Serving

from keyfold.export.bundle import Bundle
from keyfold.worker.verify import cli as verify
from keyfold.worker.verify.findings import Fault

DAY_MS = 86_400_000
EVENTS = 10_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return the keyed bundle, whose keys start anew after a day of silence."""
    folder = tmp_path_factory.mktemp("bundle")
    return make_keyed_bundle(folder, tombstone="reset", reset_after_ms=DAY_MS, hidden=8)


@pytest.fixture
def partitions() -> int:
    """Return how many partitions `serving` has."""
    return 2


def records(seed: int) -> list[tuple[bytes | None, bytes | None]]:
    """Return events of 100 keys over some days, each in its own time; some are no events."""
    draw = np.random.default_rng(seed)
    now = 1_700_000_000_000
    found: list[tuple[bytes | None, bytes | None]] = []
    for number in range(EVENTS):
        now += int(draw.choice([0, 500, 60_000, DAY_MS // 40], p=[0.4, 0.4, 0.19, 0.01]))
        key = b"machine-%d" % (draw.zipf(1.3) % 100)
        value: bytes | None = messy_event(draw, now - int(draw.choice([0, 90_000])))
        if number % 500 == 7:
            value = None
        elif number % 500 == 8:
            value = messy_event(draw, now, a="text")
        found.append((key, value))
    return found


@pytest.mark.parametrize("outputs", ["at-least-once", "exactly-once"])
@pytest.mark.usefixtures("real_kafka")  # Tansu has no transactions
def test_front_and_back_survive_kills_exactly(
    serving: Serving, tmp_path: Path, outputs: str
) -> None:
    serving.send(records(1))
    settings = {"worker__outputs": outputs, "worker__passthrough": "rpm,load.now"}
    serving.kill_after(800, 2, worker__max_events=200, **settings)
    with serving.running(**settings) as worker:
        serving.wait_saved([worker])
    report = verified(serving, tmp_path, outputs)
    assert (report["events"], report["rejects"], report["resets"]) == (EVENTS - 40, 20, 20)
    assert report["expired"] > 0
    assert report["states"] > 0
    assert report["duplicates"] == 0 or outputs == "at-least-once"
    _check_predictions(serving)
    _check_that_a_changed_back_is_found(serving)


def verified(serving: Serving, folder: Path, outputs: str) -> Any:
    """Run keyfold-verify with a settings file and return its report."""
    settings, report = folder / "worker.toml", folder / "report.json"
    settings.write_text(
        f'[kafka]\nbrokers = "{serving.kafka.address}"\ninput = "{serving.input}"\n'
        f'output = "{serving.output}"\ngroup = "{serving.group}"\n'
        f'[redis]\nurl = "{serving.valkey.url}"\n[worker]\nbundle = "{serving.bundle.path}"\n'
        f'outputs = "{outputs}"\npassthrough = ["rpm", "load.now"]\n',
        encoding="utf-8",
    )
    status = verify.main([str(settings), f"--json={report}"])
    text = report.read_text(encoding="utf-8")
    assert status == 0, text
    return json.loads(text)


def _check_predictions(serving: Serving) -> None:
    predictions = [json.loads(m.value()) for m in serving.records(serving.output)]
    assert {p["event"]["load.now"] is None for p in predictions} == {True, False}
    outputs = [prediction["output"] for prediction in predictions]
    anomalies = [output["anomaly"] for output in outputs]
    assert {anomaly["field"] for anomaly in anomalies} == {"temp", "rpm", None}
    assert {anomaly["flag"] for anomaly in anomalies} == {True, False}
    assert outputs[0]["forecast"].keys() == {"temp", "rpm"}


def _check_that_a_changed_back_is_found(serving: Serving) -> None:
    """The last bytes of a state are the back's, which no graph sees."""
    name = serving.hash_name(0)
    field = next(f for f in serving.fields(0) if f.startswith(b":"))
    state = serving.redis.hget(name, field)
    assert isinstance(state, bytes)
    body = state[5:-1] + bytes([state[-1] ^ 1])
    checksum = crc32(body, crc32(field[1:])).to_bytes(4, "little")
    serving.redis.hset(name, field, state[:1] + checksum + body)
    findings = serving.verify(passthrough=("rpm", "load.now"))
    assert findings.to_json()["wrong_states"] == 1
    assert findings.examples[Fault.WRONG_STATE][0].expected.startswith("back.forecast within")
