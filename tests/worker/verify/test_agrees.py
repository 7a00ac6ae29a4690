"""The worker's pipeline and the oracle, written apart from each other, agree on random streams.

Streams hold what decides about expiry: events early and late, clocks that are wrong, tombstones,
rejects, steps that are not finite. Those of bundles with a front and a back miss values, too. The
worker is stopped and started and keeps few keys in memory.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import numpy as np
import pytest
from diverging import MAX, DivergingModel, DivergingStep
from inner_bundle import inner_event, make_inner_bundle
from keyed_bundle import keyed_outputs, make_keyed_bundle, messy_event
from memory_log import MemoryLog, Rec, Worker, running
from tiny_bundle import make_tiny_bundle
from verify_case import stored_of

from keyfold.export.events import Dynamic, OutputSpec
from keyfold.worker.model import Model
from keyfold.worker.partition import Rules
from keyfold.worker.verify.compare import OutputCheck, Place, Strays
from keyfold.worker.verify.findings import Fault, Findings
from keyfold.worker.verify.lost import covered
from keyfold.worker.verify.refold import NOT_FINITE, Origin, Refold
from keyfold.worker.verify.stored_states import check_states
from local.services import Valkey

AFTER = 3000  # reset_after_ms
COUNT = 900
SEEDS = range(int(os.environ.get("KEYFOLD_SEEDS", "3")))


@pytest.fixture(scope="module", params=["plain", "keyed", "dynamic", "symbols", "text"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("bundle")
    expiring: dict[str, Any] = {"tombstone": "reset", "reset_after_ms": AFTER}
    if request.param == "plain":
        return DivergingModel(make_tiny_bundle(folder, **expiring))
    if request.param == "symbols":
        symbols = OutputSpec("transcription", ("", "a", "b", "c"))
        return DivergingModel(make_tiny_bundle(folder, outputs=symbols, **expiring))
    if request.param == "text":
        return DivergingModel(make_inner_bundle(folder, **expiring))
    own = Dynamic(window=12, smoothing=0.5, warm_up=3) if request.param == "dynamic" else None
    outputs = keyed_outputs(quantiles=() if own else (0.1, 0.5), dynamic=own)
    return DivergingModel(make_keyed_bundle(folder, outputs, **expiring))


def stream(model: Model, seed: int) -> list[Rec]:
    draw = np.random.default_rng(seed)
    now, records = 0, []
    for offset in range(COUNT):
        now += int(
            draw.choice([0, 1, 10, 100, AFTER - 1, AFTER, AFTER + 1], p=[0.1, 0.1] + [0.16] * 5)
        )
        key = b"k%d" % (draw.zipf(1.3) % 40)
        time = now + int(draw.choice([0, -AFTER, AFTER, 10**9], p=[0.8, 0.1, 0.08, 0.02]))
        timestamp = now + int(draw.choice([0, -AFTER, 5], p=[0.8, 0.1, 0.1]))
        a, b = (float(v) for v in draw.normal(0, 1, 2))
        kind = draw.choice(["event", "tombstone", "reject", "infinite"], p=[0.85, 0.05, 0.05, 0.05])
        if kind == "infinite":
            a, b = MAX, MAX * float(draw.choice([-1, 1]))
        value = None if kind == "tombstone" else event_of(model, draw, time, a, b)
        records.append(Rec(offset, key, b"{" if kind == "reject" else value, timestamp))
    return records


def event_of(model: Model, draw: np.random.Generator, time: int, a: float, b: float) -> bytes:
    if model.bundle.manifest.features.inner is not None:
        return inner_event(draw, time, a=a)
    if is_keyed(model):
        return messy_event(draw, time, a=a)
    return json.dumps({"a": a, "b": b, "time": time}).encode()


def is_keyed(model: Model) -> bool:
    return model.bundle.manifest.outputs.forecast is not None


def check_anomalies(emitted: list[tuple[bytes, dict[str, Any]]]) -> None:
    """The stream did hold what a back is for."""
    anomalies = [prediction["output"]["anomaly"] for _, prediction in emitted]
    cold = [p["output"]["anomaly"]["score"] for _, p in emitted if p["cold"]]
    assert set(cold) == {None}
    assert {a["flag"] for a in anomalies if a["score"] is not None} == {True, False}
    assert {a["field"] for a in anomalies} == {"temp", "rpm", None}


async def until_saved(worker: Worker, upto: int) -> None:
    """Wait longer than other tests: hundreds of micro-batches of one event are saved here."""
    partition = worker.owners[0].partition
    await worker.until(lambda: partition.saved >= upto, 60.0)


async def judged(
    worker: Worker,
    emitted: list[tuple[bytes, dict[str, Any]]],
    letters: set[int],
    gone: int = 0,
) -> Findings:
    """Compare what was emitted and saved with the oracle's fold of the records from `gone` on."""
    stored = stored_of(await worker.fields())
    complete = covered(0, gone, stored.lost.ranges)
    origin = Origin(stored.lost, complete, stored.stream_ms, letters)
    findings, strays = Findings(), Strays()
    refold = Refold(DivergingStep(worker.model.bundle), origin)
    place = Place(worker.log.topic, "out", 0, 0, COUNT, start=gone)
    for r in worker.log.records[0]:
        if r.offset >= gone:
            refold.fold(r.offset, r.timestamp, r.key, r.value)
    check_states(worker.model.bundle, place, refold, stored, findings)
    check = OutputCheck(worker.model.bundle, place, refold, findings, strays)
    for offset, (key, prediction) in enumerate(emitted):
        check.prediction(offset, key, json.dumps(prediction).encode())
    check.finish()
    strays.report(findings)
    if not gone:
        assert NOT_FINITE in {rejected.reason for rejected in refold.rejects.values()}
    return findings


@pytest.mark.parametrize("seed", SEEDS)
def test_worker_and_oracle_agree(model: Model, log: MemoryLog, valkey: Valkey, seed: int) -> None:
    async def main() -> None:
        records = stream(model, seed)
        emitted: list[tuple[bytes, dict[str, Any]]] = []
        letters: set[int] = set()
        for number, upto in enumerate((COUNT // 3, 2 * COUNT // 3, COUNT)):
            log.append(*records[len(log.records.get(0, [])) : upto])
            options = {"nonce": f"n{number}", "max_events": (1, 37, 512)[number], "max_keys": 10}
            async with running(model, log, valkey.url, 0, **options) as worker:
                await until_saved(worker, upto)
                emitted += [(key, prediction) for _, key, prediction in worker.emitter.sent]
                letters |= {offset for _, offset, _ in worker.emitter.letters}
                if upto == COUNT:
                    findings = await judged(worker, emitted, letters)
        assert findings.violations == 0, findings.to_json()
        assert findings.counts[Fault.DUPLICATE] == 0
        assert findings.rejects == len(letters)
        # The stream did hold what it is for.
        assert min(findings.expired, findings.resets, findings.collected) > 0
        if is_keyed(model):
            check_anomalies(emitted)

    asyncio.run(main())


@pytest.mark.parametrize("seed", SEEDS)
def test_worker_and_oracle_agree_behind_lost_ranges(
    model: Model, log: MemoryLog, valkey: Valkey, seed: int
) -> None:
    async def main() -> None:
        emitted: list[tuple[bytes, dict[str, Any]]] = []
        letters: set[int] = set()
        records = stream(model, seed)
        for number, upto in enumerate((300, 600, COUNT)):
            # Between two workers retention takes 50 records that none of them has seen.
            log.starts[0] = 0 if number == 0 else 300 * number + 50
            log.records[0] = [r for r in records[:upto] if r.offset >= log.starts[0]]
            options = {"nonce": f"n{number}", "max_events": (37, 1, 64)[number], "max_keys": 10}
            rules = Rules(mark_lost=True)
            async with running(model, log, valkey.url, 0, rules=rules, **options) as worker:
                await until_saved(worker, upto)
                emitted += [(key, prediction) for _, key, prediction in worker.emitter.sent]
                letters |= {offset for _, offset, _ in worker.emitter.letters}
                if upto == COUNT:
                    log.records[0] = records
                    whole = await judged(worker, emitted, letters)
                    rest = await judged(worker, emitted, letters, gone=log.starts[0])
        assert whole.violations == 0, whole.to_json()
        assert rest.violations == 0, rest.to_json()
        assert (whole.lost_records, whole.unverifiable) == (100, 0)
        assert 0 < rest.unverifiable < len(emitted)

    asyncio.run(main())
