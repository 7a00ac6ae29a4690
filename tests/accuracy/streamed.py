"""Answers of a bundle, taken from the output topic of a worker on a real Kafka.

Owns one serving: own Kafka and Valkey, the logs sent, a worker until all is saved, keyfold-verify
over all of it. Called by one_run.py.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from live_worker import Serving

from keyfold.export import bundle as contract
from keyfold.worker.send.event_log import Fields, read_log
from local.services import ApacheKafka, Valkey

LIMIT_S = 900.0


@dataclass(frozen=True, slots=True)
class Streamed:
    """What was predicted, and what keyfold-verify says of it."""

    answers: dict[str, list[dict[str, Any]]]  # key -> the output of each of its events, in order
    violations: int  # predictions or states that are not those of the offline model
    max_abs_difference: float  # of any output from verify's own


def stream(bundle: Path, logs: tuple[Path, ...]) -> Streamed:
    """Serve the logs' events."""
    loaded = contract.load(bundle)
    events = [e for log in logs for e in read_log(str(log), Fields(key="key"))]
    with tempfile.TemporaryDirectory() as folder, ApacheKafka() as kafka, Valkey() as valkey:
        serving = Serving(Path(folder), kafka, valkey, loaded, lambda kind: f"accuracy-{kind}")
        serving.send([(e.key, e.value) for e in events])
        with serving.running() as worker:
            serving.wait_saved([worker], LIMIT_S)
        findings = serving.verify()
        answers: dict[str, list[dict[str, Any]]] = {}
        # A key's predictions lie in one partition, in the order of its events.
        for record in serving.records(serving.output):
            prediction = json.loads(record.value())
            answers.setdefault(prediction["key"], []).append(prediction["output"])
    return Streamed(answers, findings.violations, findings.max_abs_difference)
