"""The worker's answers and the oracle's agree on random streams, however events are grouped.

Texts are empty, long, broken, of any script; keys expire and are reset. The worker is stopped and
started and keeps few keys in memory. Runs on a real Valkey.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_log import MemoryLog, Rec, running
from speaking_bundle import make_answering_bundle, make_speaking_bundle
from text_bundle import odd_text, text_event
from verify_case import stored_of

from keyfold.export.bundle import Bundle
from keyfold.export.generation import Chooser, Generate
from keyfold.worker.generation import MOST_SAID
from keyfold.worker.model import Model
from keyfold.worker.slots import Slots
from keyfold.worker.verify.compare import OutputCheck, Place, Strays
from keyfold.worker.verify.findings import Fault, Findings
from keyfold.worker.verify.refold import NOT_FINITE, OfflineStep, Origin, Refold
from keyfold.worker.verify.stored_states import check_states
from local.services import Valkey

AFTER = 3000  # reset_after_ms
COUNT = 150
Tensor = np.ndarray[Any, Any]
SEEDS = range(int(os.environ.get("KEYFOLD_SEEDS", "1")))
EVENTS: dict[str, Any] = {"tombstone": "reset", "reset_after_ms": AFTER}
MAKERS: dict[str, Callable[[Path], Bundle]] = {
    "sampled": lambda folder: make_speaking_bundle(folder, Generate(9, 1.0, 50), **EVENTS),
    "greedy": lambda folder: make_speaking_bundle(folder, Generate(5), **EVENTS),
    "decoded anew": lambda folder: make_answering_bundle(folder, **EVENTS),
    "decoded in a dialogue": lambda folder: make_answering_bundle(folder, anew=False, **EVENTS),
}


def stream(seed: int) -> list[Rec]:
    """Return events, tombstones and rejects of about 40 keys."""
    draw = np.random.default_rng(seed)
    now, records = 0, []
    for offset in range(COUNT):
        now += int(draw.choice([0, 10, 100, AFTER + 1], p=[0.4, 0.3, 0.2, 0.1]))
        key = b"k%d" % (draw.zipf(1.3) % 40)
        kind = draw.choice(["event", "tombstone", "reject"], p=[0.9, 0.05, 0.05])
        if offset % 50 == 49:  # the longest that each symbol may show, or one byte more: a reject
            key, kind = b"x" * (1024 + offset % 4 // 2), "event"
        value = None if kind == "tombstone" else text_event(odd_text(draw), now)
        records.append(Rec(offset, key, text_event(3, now) if kind == "reject" else value, now))
    return records


async def served(
    model: Model, log: MemoryLog, valkey: Valkey, records: list[Rec], most: tuple[int, ...]
) -> tuple[list[tuple[bytes, dict[str, Any]]], set[int], Any]:
    """Serve the records, one worker behind the other; return predictions, rejects and states."""
    emitted: list[tuple[bytes, dict[str, Any]]] = []
    letters: set[int] = set()
    fields: Any = None
    for number, events in enumerate(most):
        upto = len(records) * (number + 1) // len(most)
        log.append(*records[len(log.records.get(0, [])) : upto])
        options: dict[str, Any] = {"max_events": events, "max_keys": 10}
        async with running(model, log, valkey.url, 0, nonce=f"n{number}", **options) as worker:
            partition = worker.owners[0].partition
            await worker.until(lambda p=partition, u=upto: p.saved >= u, 60.0)  # type: ignore[misc]
            emitted += [(key, prediction) for _, key, prediction in worker.emitter.sent]
            letters |= {offset for _, offset, _ in worker.emitter.letters}
            fields = await worker.fields()
    return emitted, letters, stored_of(fields)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", MAKERS)
def test_worker_and_oracle_agree_on_answers(
    tmp_path: Path, log: MemoryLog, valkey: Valkey, seed: int, kind: str
) -> None:
    model = Model(MAKERS[kind](tmp_path))
    records = stream(seed)
    emitted, letters, stored = asyncio.run(served(model, log, valkey, records, (1, 37, 512)))
    findings = judged(model.bundle, log, emitted, letters, stored)
    assert findings.violations == 0, findings.to_json()
    assert findings.rejects == len(letters)
    assert min(findings.expired, findings.resets) > 0
    lasts = [prediction for _, prediction in emitted if prediction.get("last")]
    assert len(lasts) == findings.events < len(emitted)
    assert all(("text" in p["output"]) == ("last" in p) for _, p in emitted)
    _check_that_another_answer_is_found(model.bundle, log, emitted, letters, stored)


def judged(
    bundle: Bundle, log: MemoryLog, emitted: list[Any], letters: set[int], stored: Any
) -> Findings:
    """Hold what a worker made of the log to the oracle."""
    origin = Origin(stored.lost, True, stored.stream_ms, letters)
    findings, strays = Findings(), Strays()
    refold = Refold(OfflineStep(bundle), origin, (), None, f"{log.topic}:0")
    place = Place(log.topic, "out", 0, 0, COUNT)
    for r in log.records[0]:
        refold.fold(r.offset, r.timestamp, r.key, r.value)
    check_states(bundle, place, refold, stored, findings)
    outputs = OutputCheck(bundle, place, refold, findings, strays)
    for offset, (key, prediction) in enumerate(emitted):
        outputs.prediction(offset, key, json.dumps(prediction).encode())
    outputs.finish()
    strays.report(findings)
    assert NOT_FINITE in {rejected.reason for rejected in refold.rejects.values()}
    return findings


def _check_that_another_answer_is_found(
    bundle: Bundle, log: MemoryLog, emitted: list[Any], letters: set[int], stored: Any
) -> None:
    """The judge does look at symbols, texts and how many there are."""
    names = bundle.manifest.outputs.names
    at = next(n for n, (_, p) in enumerate(emitted) if "last" not in p)
    key, prediction = emitted[at]
    output = prediction["output"]
    other = next(name for name in names if name != output["symbol"])
    changed = [*emitted]
    changed[at] = key, {**prediction, "output": {**output, "symbol": other}}
    findings = judged(bundle, log, changed, letters, stored)
    assert findings.counts[Fault.WRONG_OUTPUT] == 1
    findings = judged(bundle, log, emitted[:at] + emitted[at + 1 :], letters, stored)
    assert findings.counts[Fault.LOST] == 1
    last = next(n for n, (_, p) in enumerate(emitted) if "last" in p)
    key, prediction = emitted[last]
    changed = [*emitted]
    changed[last] = key, {**prediction, "output": {**prediction["output"], "text": "another"}}
    findings = judged(bundle, log, changed, letters, stored)
    assert findings.counts[Fault.WRONG_OUTPUT] == 1


@pytest.mark.parametrize("kind", [Generate(9, 1.0), Generate(9, 0.5, 200), Generate(9)])
@pytest.mark.parametrize("seed", SEEDS)
def test_other_last_digits_may_choose_another_symbol(
    tmp_path: Path, log: MemoryLog, valkey: Valkey, monkeypatch: pytest.MonkeyPatch,
    seed: int, kind: Generate,
) -> None:  # fmt: skip
    """As on another kind of CPU: what follows is held to the symbol that was said."""
    # The two likeliest symbols are seldom close: to see it happen takes more.
    most = 1e-4 if kind.temperature else 5e-4
    bundle = make_speaking_bundle(tmp_path, kind, tolerance=most, **EVENTS)
    choose, others = Chooser.choose, [0]

    def rounded(chooser: Chooser, y: Tensor, numbers: Tensor) -> Any:
        # Half of the symbols are a little likelier: as far as shares of all can move.
        off = np.where(np.arange(y.shape[1]) < y.shape[1] // 2, most, -most)
        said = choose(chooser, (y * (1 + off)).astype(np.float32), numbers)
        others[0] += int((said[0] != choose(chooser, y, numbers)[0]).sum())
        return said

    monkeypatch.setattr(Chooser, "choose", rounded)
    emitted, letters, stored = asyncio.run(
        served(Model(bundle), log, valkey, stream(seed), (1, 37, 512))
    )
    findings = judged(bundle, log, emitted, letters, stored)
    assert others[0] > 0 or seed > 0  # the first stream did hold it
    assert findings.violations == 0, findings.to_json()
    assert findings.unverifiable == 0
    _check_that_another_answer_is_found(bundle, log, emitted, letters, stored)


def test_answers_do_not_depend_on_who_is_answered_beside(
    tmp_path: Path, log: MemoryLog, valkey: Valkey
) -> None:
    """One event a micro-batch or all in one: the same symbols, probabilities to the last bit."""
    model = Model(make_speaking_bundle(tmp_path, Generate(12, temperature=0.8)))
    records = [Rec(n, b"k%d" % (n % 7), text_event(f"text {n}", n), n) for n in range(60)]

    async def main(most: int) -> list[Any]:
        emitted, _, _ = await served(model, log, valkey, records, (most,))
        log.records.clear()
        return sorted(emitted, key=lambda one: [int(n) for n in one[1]["id"].split(":")[2:]])

    one = asyncio.run(main(1))
    assert len({prediction["output"]["symbol"] for _, prediction in one}) > 10
    valkey.client().flushall()
    assert asyncio.run(main(512)) == one


def test_a_micro_batch_says_so_many_symbols_at_most(
    tmp_path: Path, log: MemoryLog, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it runs nothing else does: a thousand long answers at once would stop heartbeats."""
    begun: list[Slots] = []
    tick = Slots.tick

    def noted(slots: Slots) -> None:
        begun.append(slots)
        tick(slots)

    monkeypatch.setattr(Slots, "tick", noted)
    model = Model(make_speaking_bundle(tmp_path, Generate(512, temperature=1.0)))
    records = [Rec(n, b"k%d" % n, text_event("text", n), n) for n in range(60)]
    asyncio.run(served(model, log, valkey, records, (512,)))
    assert len(begun) >= len(records) / (MOST_SAID // 512)
