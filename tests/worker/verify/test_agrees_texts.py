"""The worker's pipeline and the oracle agree on random streams of texts, however they are grouped.

Texts are empty, long, broken, of any script; keys expire and are reset. The worker is stopped and
started and keeps few keys in memory. Runs on a real Valkey.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_log import MemoryLog, Rec, running
from naive_worker import LogRecord
from text_bundle import make_text_bundle, odd_text, text_event, text_log
from verify_case import make_case, stored_of

from keyfold.worker.emit_settings import Emit
from keyfold.worker.model import Model
from keyfold.worker.pipeline import MOST_TEXT_BYTES
from keyfold.worker.slots import Slots
from keyfold.worker.verify.compare import OutputCheck, Place, Strays
from keyfold.worker.verify.findings import Fault, Findings
from keyfold.worker.verify.offline_emit import OfflineEmit
from keyfold.worker.verify.refold import NOT_FINITE, OfflineStep, Origin, Refold
from keyfold.worker.verify.stored_states import check_states
from local.services import Valkey

AFTER = 3000  # reset_after_ms
COUNT = 300
SEEDS = range(int(os.environ.get("KEYFOLD_SEEDS", "2")))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("bundle")
    return Model(make_text_bundle(folder, tombstone="reset", reset_after_ms=AFTER))


def stream(seed: int) -> list[Rec]:
    draw = np.random.default_rng(seed)
    now, records = 0, []
    for offset in range(COUNT):
        now += int(draw.choice([0, 10, 100, AFTER + 1], p=[0.4, 0.3, 0.2, 0.1]))
        key = b"k%d" % (draw.zipf(1.3) % 40)
        kind = draw.choice(["event", "tombstone", "reject"], p=[0.9, 0.05, 0.05])
        value = None if kind == "tombstone" else text_event(odd_text(draw), now)
        records.append(Rec(offset, key, text_event(3, now) if kind == "reject" else value, now))
    return records


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("emit", [None, Emit(what="on_change", alert_topic="", field="label")])
def test_worker_and_oracle_agree_on_texts(
    model: Model, log: MemoryLog, valkey: Valkey, seed: int, emit: Emit | None
) -> None:
    async def main() -> None:
        emitted: list[tuple[bytes, dict[str, Any]]] = []
        letters: set[int] = set()
        records = stream(seed)
        for number, upto in enumerate((COUNT // 3, 2 * COUNT // 3, COUNT)):
            log.append(*records[len(log.records.get(0, [])) : upto])
            options: dict[str, Any] = {"max_events": (1, 37, 512)[number], "max_keys": 10}
            options |= {} if emit is None else {"emit": emit}
            async with running(model, log, valkey.url, 0, nonce=f"n{number}", **options) as worker:
                partition = worker.owners[0].partition
                await worker.until(lambda p=partition, u=upto: p.saved >= u, 60.0)  # type: ignore[misc]
                emitted += [(key, prediction) for _, key, prediction in worker.emitter.sent]
                letters |= {offset for _, offset, _ in worker.emitter.letters}
                fields = await worker.fields()
        check(emitted, letters, stored_of(fields))

    def check(emitted: list[tuple[bytes, dict[str, Any]]], letters: set[int], stored: Any) -> None:
        rule = None if emit is None else OfflineEmit(emit, model.bundle)
        origin = Origin(stored.lost, True, stored.stream_ms, letters)
        findings, strays = Findings(), Strays()
        refold = Refold(OfflineStep(model.bundle), origin, (), rule)
        place = Place(log.topic, "out", 0, 0, COUNT)
        for r in log.records[0]:
            refold.fold(r.offset, r.timestamp, r.key, r.value)
        check_states(model.bundle, place, refold, stored, findings)
        outputs = OutputCheck(model.bundle, place, refold, findings, strays)
        for offset, (key, prediction) in enumerate(emitted):
            outputs.prediction(offset, key, json.dumps(prediction).encode())
        outputs.finish()
        strays.report(findings)
        assert findings.violations == 0, findings.to_json()
        assert findings.rejects == len(letters)
        assert NOT_FINITE in {rejected.reason for rejected in refold.rejects.values()}
        assert min(findings.expired, findings.resets) > 0

    asyncio.run(main())


def test_a_micro_batch_of_texts_is_bounded_in_bytes(
    model: Model, log: MemoryLog, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it runs nothing else does: a thousand long texts at once would stop heartbeats."""
    begun: list[Slots] = []
    tick = Slots.tick

    def noted(slots: Slots) -> None:
        begun.append(slots)
        tick(slots)

    monkeypatch.setattr(Slots, "tick", noted)
    texts = [text_event("x" * 2900, 0) for _ in range(100)]

    async def main() -> None:
        log.append(*(Rec(offset, b"k%d" % offset, text, 0) for offset, text in enumerate(texts)))
        async with running(model, log, valkey.url, 0) as worker:
            partition = worker.owners[0].partition
            await worker.until(lambda: partition.saved >= len(texts), 60.0)

    asyncio.run(main())
    total = sum(map(len, texts))
    assert len(begun) >= total // (MOST_TEXT_BYTES + len(texts[0]))


def test_a_changed_symbol_is_found(tmp_path: Path) -> None:
    """The oracle would see a worker that reads another text than the log holds."""
    bundle = make_text_bundle(tmp_path)
    case = make_case(bundle, text_log(10, 40, 4))
    assert case.verify().violations == 0
    at = next(i for i, r in enumerate(case.log) if r.value and b'"line": "\\' in r.value)
    other = case.log[at]
    changed = text_event("other", 1000 * (other.offset - 10))
    case.log[at] = LogRecord(other.offset, other.timestamp_ms, other.key, changed)
    assert case.verify().counts[Fault.WRONG_OUTPUT] > 0
