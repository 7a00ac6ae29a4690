"""The worker's pipeline and the oracle agree where an event causes no prediction, or several.

Sessions, look-ahead and answers at every symbol, over random streams with all that may end a key's
history, and steps that are not finite. The worker is stopped and started and keeps few keys in
memory. Runs on a real Valkey.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diverging import MAX, DivergingModel, DivergingStep
from memory_log import MemoryLog, Rec, running
from text_bundle import CLASSES, TEXT, make_text_bundle, odd_text, text_event
from tiny_bundle import make_tiny_bundle
from verify_case import stored_of

from keyfold.export.events import OutputSpec
from keyfold.worker.model import Model
from keyfold.worker.partition import Rules
from keyfold.worker.verify.compare import OutputCheck, Place, Strays
from keyfold.worker.verify.findings import Fault, Findings
from keyfold.worker.verify.lost import covered
from keyfold.worker.verify.refold import NOT_FINITE, OfflineStep, Origin, Refold
from keyfold.worker.verify.stored import Stored
from keyfold.worker.verify.stored_states import check_states
from local.services import Valkey

AFTER = 3000  # reset_after_ms
COUNT = 600
DELAY = 3
SEEDS = range(int(os.environ.get("KEYFOLD_SEEDS", "2")))
ENDS: dict[str, Any] = {"tombstone": "reset", "reset_after_ms": AFTER, "end_field": "bye"}
ENDINGS: list[dict[str, Any]] = [
    {}, {"bye": True}, {"bye": "x"}, {"bye": None}, {"bye": False}, {"bye": 0},
]  # fmt: skip

Emitted = list[tuple[bytes, dict[str, Any]]]
Kept = tuple[Stored, set[int]]  # states, and offsets of dead letters


@dataclass(frozen=True)
class Served:
    """A bundle as the worker and as the oracle step it."""

    model: Model
    step: OfflineStep

    @property
    def outputs(self) -> OutputSpec:
        """What its outputs mean."""
        return self.model.bundle.manifest.outputs

    @property
    def is_text(self) -> bool:
        """Whether its events are texts."""
        return self.model.bundle.manifest.features.text is not None


def served_of(kind: str, folder: Path) -> Served:
    if kind.startswith("text"):
        how: Any = {"read": "every"} if kind == "text, every symbol" else {"answers": "session"}
        outputs = OutputSpec(CLASSES.kind, CLASSES.names, **how)
        bundle = make_text_bundle(folder, TEXT, outputs=outputs, **ENDS)
        return Served(Model(bundle), OfflineStep(bundle))
    new: dict[str, Any] = {"answers": "session"} if kind == "session" else {"delay": DELAY}
    outputs = OutputSpec("regression", ("value",), **new)
    bundle = make_tiny_bundle(folder, outputs=outputs, **ENDS)
    return Served(DivergingModel(bundle), DivergingStep(bundle))


@pytest.fixture(scope="module", params=["session", "late", "text, every symbol", "text, session"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return served_of(request.param, tmp_path_factory.mktemp("bundle"))


def stream(served: Served, seed: int) -> list[Rec]:
    draw = np.random.default_rng(seed)
    now, records = 0, []
    # Look-ahead answers nothing before a key's fourth event: few keys, whose histories end rarely.
    keys, often = (5, 0.2) if served.outputs.delay else (30, 1.0)
    for offset in range(COUNT):
        silence = 0.05 * often
        now += int(
            draw.choice(
                [0, 1, 10, 100, AFTER, AFTER + 1],
                p=[0.4 - 2 * silence, 0.2, 0.2, 0.2, silence, silence],
            )
        )
        key = b"k%d" % (draw.zipf(1.3) % keys)
        time = now + int(draw.choice([0, -AFTER, AFTER], p=[1 - 2 * silence, silence, silence]))
        kind = draw.choice(["event", "tombstone", "reject", "infinite"], p=[0.83, 0.06, 0.05, 0.06])
        a, b = (float(v) for v in draw.normal(0, 1, 2))
        a, b = (MAX, MAX) if kind == "infinite" else (a, b)
        ends = 0.15 * often
        end = ENDINGS[draw.choice(6, p=[0.9 - ends, ends * 2 / 3, ends / 3, 0.04, 0.03, 0.03])]
        if served.is_text:
            event = text_event(odd_text(draw)[:60], time, **end)
        else:
            event = json.dumps({"a": a, "b": b, "time": time, **end}).encode()
        value = {"tombstone": None, "reject": b"{"}.get(str(kind), event)
        records.append(Rec(offset, key, value, now))
    return records


def judged(
    served: Served, records: list[Rec], emitted: Emitted, kept: Kept, gone: int = 0
) -> tuple[Findings, Refold]:
    """Compare with the oracle's fold of the records from `gone` on."""
    stored, letters = kept
    origin = Origin(stored.lost, covered(0, gone, stored.lost.ranges), stored.stream_ms, letters)
    findings, strays = Findings(), Strays()
    topic = next((p["about"].partition(":")[0] for _, p in emitted), "in")
    refold = Refold(served.step, origin)
    place = Place(topic, "out", 0, 0, COUNT, start=gone)
    for r in records:
        if r.offset >= gone:
            refold.fold(r.offset, r.timestamp, r.key, r.value)
    check_states(served.model.bundle, place, refold, stored, findings)
    check = OutputCheck(served.model.bundle, place, refold, findings, strays)
    for offset, (key, prediction) in enumerate(emitted):
        check.prediction(offset, key, json.dumps(prediction).encode())
    check.finish()
    strays.report(findings)
    return findings, refold


async def serve(
    served: Served, log: MemoryLog, url: str, records: list[Rec], **options: Any
) -> tuple[Emitted, Kept]:
    """Serve the records by three workers one after the other; retention may go along."""
    emitted: Emitted = []
    letters: set[int] = set()
    for number, upto in enumerate((COUNT // 3, 2 * COUNT // 3, COUNT)):
        if options:  # between two workers retention takes records that none of them has seen
            log.starts[0] = 0 if number == 0 else COUNT // 3 * number + 30
        log.records[0] = [r for r in records[:upto] if r.offset >= log.starts.get(0, 0)]
        grouped = {"max_events": (1, 37, 512)[number], "max_keys": 10, "nonce": f"n{number}"}
        async with running(served.model, log, url, 0, **grouped, **options) as worker:
            partition = worker.owners[0].partition
            await worker.until(lambda p=partition, u=upto: p.saved >= u, 60.0)  # type: ignore[misc]
            emitted += [(key, prediction) for _, key, prediction in worker.emitter.sent]
            letters |= {offset for _, offset, _ in worker.emitter.letters}
            fields = await worker.fields()
    return emitted, (stored_of(fields), letters)


@pytest.mark.parametrize("seed", SEEDS)
def test_worker_and_oracle_agree(served: Served, log: MemoryLog, valkey: Valkey, seed: int) -> None:
    records = stream(served, seed)
    emitted, kept = asyncio.run(serve(served, log, valkey.url, records))
    findings, refold = judged(served, records, emitted, kept)
    assert findings.violations == 0, findings.to_json()
    assert findings.counts[Fault.DUPLICATE] == 0
    assert len(emitted) == len(refold.book)
    # The stream did hold what it is for.
    assert NOT_FINITE in {rejected.reason for rejected in refold.rejects.values()}
    assert min(findings.expired, findings.resets) > 0
    check_form(served, records, emitted, findings)


def check_form(served: Served, records: list[Rec], emitted: Emitted, findings: Findings) -> None:
    told = [prediction for _, prediction in emitted]
    indexes = [int(one["id"].rpartition(":")[2]) for one in told]
    of_itself = [one["id"].rpartition(":")[0] == one["about"] for one in told]
    steps = sum(one["steps"] for one in told)
    if served.outputs.answers == "session":
        assert {True, False} == set(of_itself)  # ended by its own marker, and by what came next
        assert set(indexes) == {0, 1}  # one record ended two sessions
        assert all("last" in one for one in told if one["id"].endswith(":1"))
        assert steps + findings.pending == findings.events  # each event is in one answered session
        assert any(records[int(i.split(":")[2])].value is None for i in (p["id"] for p in told))
    elif served.outputs.delay:
        assert (any(of_itself), set(indexes)) == (False, {0})
        assert "last" not in told[0]
        assert len(told) + findings.pending == findings.events
        assert findings.pending > 0
    else:
        assert all(of_itself)
        assert max(indexes) > 1
        ends = [one for one in told if one.get("last")]
        assert len(ends) == findings.events
        assert steps > findings.events


@pytest.mark.parametrize("seed", SEEDS)
def test_worker_and_oracle_agree_behind_lost_ranges(
    served: Served, log: MemoryLog, valkey: Valkey, seed: int
) -> None:
    records = stream(served, seed)
    rules = Rules(mark_lost=True)
    emitted, kept = asyncio.run(serve(served, log, valkey.url, records, rules=rules))
    whole, _ = judged(served, records, emitted, kept)
    rest, _ = judged(served, records, emitted, kept, gone=log.starts[0])
    assert whole.violations == 0, whole.to_json()
    assert rest.violations == 0, rest.to_json()
    assert whole.lost_records == 60
    # Behind its own tombstone a key is known again, unless it may have expired since then.
    resets = [(r.key, r.offset) for r in records[log.starts[0] :] if r.value is None]
    assert any(_is_behind(*one, *reset) for one in emitted for reset in resets)
    assert 0 < rest.unverifiable < len(emitted)


def _is_behind(key: bytes, prediction: dict[str, Any], reset: bytes | None, offset: int) -> bool:
    return key == reset and int(prediction["about"].rpartition(":")[2]) > offset


@pytest.mark.parametrize("harm", ["lost", "about", "last", "index", "output", "order"])
def test_a_wrong_answer_of_a_session_is_found(
    log: MemoryLog, valkey: Valkey, tmp_path: Path, harm: str
) -> None:
    served = served_of("session", tmp_path)
    records = stream(served, 0)
    emitted, kept = asyncio.run(serve(served, log, valkey.url, records))
    at = next(i for i, (_, one) in enumerate(emitted) if one["id"].endswith(":1"))
    key, second = emitted[at]
    other = {
        "lost": Fault.LOST, "about": Fault.WRONG_OUTPUT, "last": Fault.WRONG_OUTPUT,
        "index": Fault.UNEXPECTED, "output": Fault.WRONG_OUTPUT, "order": Fault.ORDER,
    }[harm]  # fmt: skip
    if harm == "lost":
        del emitted[at]
    elif harm == "order":
        emitted[at - 1], emitted[at] = emitted[at], emitted[at - 1]
    else:
        changed = {
            "about": {"about": second["about"].rpartition(":")[0] + ":0"},
            "last": {"last": False},
            "index": {"id": second["id"][:-1] + "7"},
            "output": {"output": {"value": second["output"]["value"] + 1}},
        }[harm]
        emitted[at] = key, {**second, **changed}
    findings, _ = judged(served, records, emitted, kept)
    assert findings.counts[other] == 1, findings.to_json()
