"""The worker's pipeline and the oracle agree on texts' scores and on the largest probabilities.

Texts are empty, long, broken, of any script; keys expire and are reset; the worker is stopped and
started. What was emitted is then changed, and the oracle finds each change. Runs on a real Valkey.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from language_bundle import SCORED, make_language_bundle
from memory_log import MemoryLog, Rec, running
from text_bundle import odd_text, text_event
from verify_case import stored_of

from keyfold.worker.emit_settings import Emit
from keyfold.worker.model import Model
from keyfold.worker.verify.compare import OutputCheck, Place, Strays
from keyfold.worker.verify.findings import Fault, Findings
from keyfold.worker.verify.offline_emit import OfflineEmit
from keyfold.worker.verify.refold import OfflineStep, Origin, Refold
from keyfold.worker.verify.stored_states import check_states
from local.services import Valkey

AFTER = 3000  # reset_after_ms
COUNT = 200
TOP = 3
SEEDS = range(int(os.environ.get("KEYFOLD_SEEDS", "1")))
EMITS = [
    None,
    Emit("when", "anomaly.flag"),
    Emit("on_change", "anomaly.score", step=0.05),
    Emit("when", f"top.{TOP - 1}.probability", above=0.0165),
]
Predictions = list[tuple[bytes, dict[str, Any]]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Model]:
    """Return models by how many probabilities they write; all score texts."""
    folder = tmp_path_factory.mktemp("bundles")
    settings: dict[str, Any] = {"tombstone": "reset", "reset_after_ms": AFTER}
    return {top: Model(make_language_bundle(folder, SCORED, top=top, **settings)) for top in (0, 3)}


def stream(seed: int) -> list[Rec]:
    draw = np.random.default_rng(seed)
    now, records = 0, []
    for offset in range(COUNT):
        now += int(draw.choice([0, 10, 100, AFTER + 1], p=[0.4, 0.3, 0.2, 0.1]))
        key = b"k%d" % (draw.zipf(1.3) % 20)
        kind = draw.choice(["event", "tombstone", "reject"], p=[0.9, 0.05, 0.05])
        value = None if kind == "tombstone" else text_event(odd_text(draw), now)
        records.append(Rec(offset, key, text_event(3, now) if kind == "reject" else value, now))
    return records


@dataclass
class Ran:
    """What a worker made of a stream, and its judgement."""

    model: Model
    emit: Emit | None
    topic: str
    records: list[Rec]
    emitted: Predictions
    fields: dict[bytes, bytes]

    def findings(self, emitted: Predictions | None = None) -> Findings:
        rule = None if self.emit is None else OfflineEmit(self.emit, self.model.bundle)
        stored, findings, strays = stored_of(self.fields), Findings(), Strays()
        refold = Refold(
            OfflineStep(self.model.bundle), Origin(stored.lost, True, stored.stream_ms), (), rule
        )
        place = Place(self.topic, "out", 0, 0, COUNT)
        for r in self.records:
            refold.fold(r.offset, r.timestamp, r.key, r.value)
        check_states(self.model.bundle, place, refold, stored, findings)
        outputs = OutputCheck(self.model.bundle, place, refold, findings, strays)
        for offset, (key, prediction) in enumerate(self.emitted if emitted is None else emitted):
            outputs.prediction(offset, key, json.dumps(prediction).encode())
        outputs.finish()
        strays.report(findings)
        return findings


async def run(model: Model, log: MemoryLog, url: str, seed: int, emit: Emit | None) -> Ran:
    emitted: Predictions = []
    records = stream(seed)
    for number, upto in enumerate((COUNT // 3, 2 * COUNT // 3, COUNT)):
        log.append(*records[len(log.records.get(0, [])) : upto])
        options: dict[str, Any] = {"max_events": (1, 37, 512)[number], "max_keys": 10}
        options |= {} if emit is None else {"emit": emit}
        async with running(model, log, url, 0, nonce=f"n{number}", **options) as worker:
            partition = worker.owners[0].partition
            await worker.until(lambda p=partition, u=upto: p.saved >= u, 60.0)  # type: ignore[misc]
            emitted += [(key, prediction) for _, key, prediction in worker.emitter.sent]
            fields = await worker.fields()
    return Ran(model, emit, log.topic, records, emitted, fields)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("emit", EMITS)
def test_worker_and_oracle_agree_on_scores(
    models: dict[int, Model], log: MemoryLog, valkey: Valkey, seed: int, emit: Emit | None
) -> None:
    ran = asyncio.run(run(models[TOP], log, valkey.url, seed, emit))
    findings = ran.findings()
    assert findings.violations == 0, findings.to_json()
    assert min(findings.rejects, findings.resets, findings.expired) > 0
    outputs = [prediction["output"] for _, prediction in ran.emitted]
    assert {len(output["top"]) for output in outputs} == {TOP}
    if emit is None:
        scores = [output["anomaly"]["score"] for output in outputs]
        assert None in scores  # a cold key's empty text
        assert len({output["anomaly"]["flag"] for output in outputs}) == 2
    else:
        assert 0 < len(outputs) < findings.events


def _swapped(output: dict[str, Any]) -> None:
    one, other = output["top"][:2]
    one["label"], other["label"] = other["label"], one["label"]
    output["label"] = one["label"]


def _left_out(output: dict[str, Any]) -> None:
    output["top"].pop()


def _another(output: dict[str, Any]) -> None:
    """The largest is left out, the others move up: each probability is its label's own."""
    output["top"] = [*output["top"][1:], output["top"][-1]]
    output["label"] = output["top"][0]["label"]


def _flagged(output: dict[str, Any]) -> None:
    output["anomaly"]["flag"] = not output["anomaly"]["flag"]


def _scored(output: dict[str, Any]) -> None:
    output["anomaly"] |= {"score": 5.0, "flag": False}


def _worse(output: dict[str, Any]) -> None:
    output["anomaly"]["worst"] += 0.5


def _nulled(output: dict[str, Any]) -> None:
    output["anomaly"] = {"score": None, "worst": None, "flag": False}


HARM = [_swapped, _left_out, _another, _flagged, _scored, _worse, _nulled]


def test_the_oracle_finds_every_change_of_top_and_anomaly(
    models: dict[int, Model], log: MemoryLog, valkey: Valkey
) -> None:
    ran = asyncio.run(run(models[TOP], log, valkey.url, 1, None))

    def apart(output: dict[str, Any]) -> float:
        return float(output["top"][0]["probability"] - output["top"][1]["probability"])

    # A prediction whose largest probabilities differ by more than the tolerance, and with a score.
    place = max(
        (i for i, (_, p) in enumerate(ran.emitted) if p["output"]["anomaly"]["score"] is not None),
        key=lambda i: apart(ran.emitted[i][1]["output"]),
    )
    assert apart(ran.emitted[place][1]["output"]) > 1e-4
    for harm in HARM:
        emitted = copy.deepcopy(ran.emitted)
        harm(emitted[place][1]["output"])
        assert dict(ran.findings(emitted).counts) == {Fault.WRONG_OUTPUT: 1}, harm.__name__


def test_the_oracle_finds_another_newest_output_in_a_state(
    models: dict[int, Model], log: MemoryLog, valkey: Valkey
) -> None:
    ran = asyncio.run(run(models[0], log, valkey.url, 2, None))
    assert ran.findings().violations == 0
    field = next(name for name in ran.fields if name.startswith(b":"))
    state = ran.fields[field]
    body = state[5:-4] + np.float32(0.5).tobytes()  # of the newest output's last symbol
    checksum = crc32(body, crc32(field[1:])).to_bytes(4, "little")
    ran.fields[field] = state[:1] + checksum + body
    found = ran.findings()
    assert dict(found.counts) == {Fault.WRONG_STATE: 1}
    assert "back.next" in found.examples[Fault.WRONG_STATE][0].expected


def test_all_probabilities_stand_beside_a_score(
    models: dict[int, Model], log: MemoryLog, valkey: Valkey
) -> None:
    ran = asyncio.run(run(models[0], log, valkey.url, 3, None))
    assert ran.findings().violations == 0
    assert set(ran.emitted[0][1]["output"]) == {"label", "probabilities", "anomaly"}
