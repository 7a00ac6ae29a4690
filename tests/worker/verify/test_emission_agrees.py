"""What a worker emits under section [emit], held to the oracle's own reading of the rule.

Random streams with tombstones, silences, rejects and steps that are not finite go through the
pipeline; the worker is killed, keeps few keys in memory and replays.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from diverging import MAX, DivergingModel, DivergingStep
from keyed_bundle import keyed_outputs, make_keyed_bundle, messy_event
from memory_log import MemoryLog, Rec, RecordingEmitter, Worker, running
from tiny_bundle import make_tiny_bundle
from verify_case import stored_of

from keyfold.export.bundle import Bundle
from keyfold.export.events import Dynamic, OutputSpec
from keyfold.worker.emit_settings import Emit
from keyfold.worker.model import Model
from keyfold.worker.partition import Rules
from keyfold.worker.protocol import Phase
from keyfold.worker.verify.compare import OutputCheck, Place, Strays
from keyfold.worker.verify.findings import Fault, Findings
from keyfold.worker.verify.lost import covered
from keyfold.worker.verify.offline_emit import Due, OfflineEmit
from keyfold.worker.verify.refold import Origin, Refold
from keyfold.worker.verify.stored import Stored
from keyfold.worker.verify.stored_states import check_states
from local.services import Valkey

AFTER, COUNT = 3000, 400
SYMBOLS = OutputSpec("transcription", ("", "a", "b", "c"))
Pairs = list[tuple[bytes, dict[str, Any]]]  # key, prediction


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("bundle")
    expiring: dict[str, Any] = {"tombstone": "reset", "reset_after_ms": AFTER}
    own = keyed_outputs(quantiles=(), dynamic=Dynamic(window=12, smoothing=0.5, warm_up=3))
    return {
        "number": DivergingModel(make_tiny_bundle(folder, **expiring)),
        "label": DivergingModel(make_tiny_bundle(folder, kind="classification", **expiring)),
        "symbols": DivergingModel(make_tiny_bundle(folder, outputs=SYMBOLS, **expiring)),
        "keyed": DivergingModel(make_keyed_bundle(folder, keyed_outputs(), **expiring)),
        "dynamic": DivergingModel(make_keyed_bundle(folder, own, **expiring)),
    }


CASES = [
    ("number", Emit("when", above=0.3)),
    ("number", Emit("when", above=0.3, below=-0.3, k=2, n=3)),
    ("number", Emit("on_change", step=0.4)),
    ("number", Emit("on_change", above=0.2, k=3, n=64, step=0.4, alert_topic="alerts")),
    ("label", Emit("on_change")),
    ("label", Emit("all", equals="odd", k=2, n=2, alert_topic="alerts")),
    ("label", Emit("when", "probabilities.1", above=0.35)),
    ("symbols", Emit("when")),
    ("symbols", Emit("when", equals="b", k=1, n=3)),
    ("symbols", Emit("on_change", alert_topic="alerts", equals="a")),
    ("symbols", Emit("when", "probability", above=0.6)),
    ("keyed", Emit("when", k=1, n=4)),
    ("keyed", Emit("on_change", "anomaly.score", above=1.0, step=0.5, alert_topic="alerts")),
    ("dynamic", Emit("on_change", k=2, n=5, alert_topic="alerts")),
]  # fmt: skip
NAMES = ["-".join(filter(None, (m, e.what, e.field, f"{e.k}of{e.n}"))) for m, e in CASES]


def stream(model: Model, seed: int) -> list[Rec]:
    draw, now, records = np.random.default_rng(seed), 0, []
    for offset in range(COUNT):
        now += int(draw.choice([0, 1, 10, 100, AFTER + 1], p=[0.2, 0.3, 0.3, 0.15, 0.05]))
        key = b"k%d" % (draw.zipf(1.4) % 20)
        a, b = (float(v) for v in draw.normal(0, 1, 2))
        kind = draw.choice(["event", "tombstone", "reject", "infinite"], p=[0.88, 0.04, 0.04, 0.04])
        a = MAX if kind == "infinite" else a
        value: bytes | None = b"{"
        if kind == "tombstone":
            value = None
        elif kind != "reject" and model.bundle.manifest.outputs.forecast is not None:
            value = messy_event(draw, now, a=a)
        elif kind != "reject":
            value = json.dumps(
                {"a": a, "b": MAX if kind == "infinite" else b, "time": now}
            ).encode()
        records.append(Rec(offset, key, value, now))
    return records


def pairs(sent: list[tuple[int, bytes, dict[str, Any]]]) -> Pairs:
    return [(key, prediction) for _, key, prediction in sent]


@dataclasses.dataclass
class Judge:
    """What the oracle says of a worker's outputs under one rule."""

    bundle: Bundle
    emit: Emit
    records: list[Rec]
    letters: set[int] = dataclasses.field(default_factory=set)
    gone: int = 0  # records below are not in the log any more
    floor: int = 0  # nothing is owed below
    unsure: int = 0  # verdicts on the last stream that were neither yes nor no

    async def findings(self, worker: Worker, out: Pairs, alerts: Pairs) -> Findings:
        """Compare topics and states."""
        return self.of(stored_of(await worker.fields()), worker.log.topic, out, alerts)

    def of(self, stored: Stored, topic: str, out: Pairs, alerts: Pairs) -> Findings:
        """Compare outputs and stored states with the fold."""
        findings, strays = Findings(), Strays()
        complete = covered(0, self.gone, stored.lost.ranges)
        origin = Origin(stored.lost, complete, stored.stream_ms, self.letters)
        rule = OfflineEmit(self.emit, self.bundle)
        refold = Refold(DivergingStep(self.bundle), origin, (), rule)
        place = Place(topic, "out", 0, 0, COUNT, self.floor, start=self.gone)
        for r in self.records:
            if r.offset >= self.gone:
                refold.fold(r.offset, r.timestamp, r.key, r.value)
        both = [refold.due(i, alert=a) for i in range(len(refold)) for a in (False, True)]
        self.unsure = both.count(Due.MAY)
        check_states(self.bundle, place, refold, stored, findings)
        check = OutputCheck(self.bundle, place, refold, findings, strays)
        for offset, (key, prediction) in enumerate(out):
            check.prediction(offset, key, json.dumps(prediction).encode())
        check.finish()
        place = dataclasses.replace(place, output="alerts", alerts=True)
        check = OutputCheck(self.bundle, place, refold, findings, strays)
        for offset, (key, prediction) in enumerate(alerts):
            check.prediction(offset, key, json.dumps(prediction).encode())
        check.finish()
        strays.report(findings)
        return findings


def a_log(topic: str) -> MemoryLog:
    return MemoryLog(topic, {topic: 1, "out": 1, "dead": 1, "alerts": 1})


@pytest.mark.parametrize(("name", "emit"), CASES, ids=NAMES)
@pytest.mark.parametrize("exactly_once", [False, True], ids=["at-least-once", "exactly-once"])
def test_worker_and_oracle_agree_on_what_is_emitted(
    models: dict[str, Model], name: str, emit: Emit, exactly_once: bool, valkey: Valkey,
    unique_name: Callable[[str], str],
) -> None:  # fmt: skip
    async def main() -> None:
        model, log = models[name], a_log(unique_name("in"))
        records = stream(model, 5)
        emitters: list[RecordingEmitter] = []
        findings = Findings()
        for number, upto in enumerate((COUNT // 3, 2 * COUNT // 3, COUNT)):
            log.append(*records[len(log.records.get(0, [])) : upto])
            options: dict[str, Any] = {
                "nonce": f"n{number}", "max_events": (1, 37, 16)[number], "max_keys": 5,
                "emit": emit, "rules": Rules(exactly_once=exactly_once),
            }  # fmt: skip
            async with running(model, log, valkey.url, 0, **options) as worker:
                emitters.append(worker.emitter)
                partition = worker.owners[0].partition
                # The first two are stopped dead in the middle; what they had is replayed.
                until = upto if upto == COUNT else upto - 60
                await worker.until(lambda: partition.saved >= until, 60.0)  # noqa: B023
                if upto == COUNT:
                    judge = Judge(model.bundle, emit, records)
                    out = [pair for emitter in emitters for pair in pairs(emitter.sent)]
                    alerts = [pair for emitter in emitters for pair in pairs(emitter.alerts)]
                    findings = await judge.findings(worker, out, alerts)
        assert findings.violations == 0, findings.to_json()
        assert judge.unsure <= (COUNT if name == "dynamic" else 3)
        if exactly_once:
            assert findings.counts[Fault.DUPLICATE] == 0
        check_holds_both(emit, out, alerts, findings)

    asyncio.run(main())


def check_holds_both(emit: Emit, out: Pairs, alerts: Pairs, findings: Findings) -> None:
    """The stream did hold what is emitted and what is not, and what resets a key."""
    assert min(findings.expired, findings.resets, findings.rejects) > 0
    distinct = {p["id"] for _, p in out}
    assert (
        len(distinct) == findings.events
        if emit.what == "all"
        else (0 < len(distinct) < findings.events)
    )
    assert (0 < len({p["id"] for _, p in alerts}) < findings.events) == bool(emit.alert_topic)


def test_worker_and_oracle_agree_behind_a_lost_range(
    models: dict[str, Model], valkey: Valkey, unique_name: Callable[[str], str]
) -> None:
    async def main() -> None:
        model, log = models["number"], a_log(unique_name("in"))
        emit = Emit("on_change", above=0.2, k=2, n=3, step=0.4, alert_topic="alerts")
        records = stream(model, 6)
        emitters: list[RecordingEmitter] = []
        letters: set[int] = set()
        for number, upto in enumerate((200, COUNT)):
            log.starts[0] = 250 * number
            log.records[0] = [r for r in records[:upto] if r.offset >= log.starts[0]]
            options = {"nonce": f"n{number}", "max_events": 16, "emit": emit}
            rules = Rules(mark_lost=True)
            async with running(model, log, valkey.url, 0, rules=rules, **options) as worker:
                emitters.append(worker.emitter)
                await worker.until_saved(upto)
                letters |= {offset for _, offset, _ in worker.emitter.letters}
                if upto == COUNT:
                    judge = Judge(model.bundle, emit, records, letters)
                    out = [pair for e in emitters for pair in pairs(e.sent)]
                    alerts = [pair for e in emitters for pair in pairs(e.alerts)]
                    whole = await judge.findings(worker, out, alerts)
                    judge.gone = 250
                    rest = await judge.findings(worker, out, alerts)
        assert whole.violations == 0, whole.to_json()
        assert rest.violations == 0, rest.to_json()
        assert (whole.lost_records, rest.unverifiable > 0) == (50, True)

    asyncio.run(main())


def test_what_is_folded_silently_is_remembered(
    models: dict[str, Model], valkey: Valkey, unique_name: Callable[[str], str]
) -> None:
    """Below emit_from nothing goes out, but the memory goes on: no key begins anew there."""

    async def main() -> None:
        model, log = models["label"], a_log(unique_name("in"))
        records = stream(model, 7)
        log.append(*records)
        emit = Emit("on_change")
        async with running(model, log, valkey.url, 0, emit=emit, group="whole") as worker:
            await worker.until_saved(COUNT)
            whole = pairs(worker.emitter.sent)
        floor = 200
        log = a_log(log.topic)  # another group's offsets
        log.append(*records)
        log.offset_at = at(floor)  # type: ignore[method-assign]
        options = {"emit": emit, "group": "late", "emit_from": "2026-01-01T00:00:00Z"}
        async with running(model, log, valkey.url, 0, **options) as worker:
            await worker.until_saved(COUNT)
            late = pairs(worker.emitter.sent)
            judge = Judge(model.bundle, emit, records, floor=floor)
            findings = await judge.findings(worker, late, [])
        assert late == [(k, p) for k, p in whole if int(p["id"].split(":")[2]) >= floor]
        assert findings.violations == 0, findings.to_json()

    asyncio.run(main())


def at(offset: int) -> Any:
    async def offset_at(topic: str, partition: int, time_ms: int) -> int | None:
        return offset

    return offset_at


def test_states_of_another_rule_are_not_taken_over(
    models: dict[str, Model], valkey: Valkey, unique_name: Callable[[str], str]
) -> None:
    async def main() -> None:
        model, log = models["number"], a_log(unique_name("in"))
        log.append(*stream(model, 8))
        async with running(model, log, valkey.url, 0) as worker:
            await worker.until_saved(COUNT)
            plain = await worker.fields()
        sizes = {len(value) for field, value in plain.items() if field.startswith(b":")}
        assert sizes == {worker.codec.bytes_per_state}
        assert plain[b"#M"].decode() == model.bundle.id
        # A rule without a memory reads and writes the very same states.
        async with running(model, log, valkey.url, 0, emit=Emit("when", above=0.1)) as worker:
            await worker.until(lambda: worker.owners[0].partition.phase is Phase.RUN)
        async with running(model, log, valkey.url, 0, emit=Emit("on_change", step=1.0)) as worker:
            await worker.until_phase(Phase.HALT)
            said = worker.owners[0].partition.halted
        assert said is not None
        assert said.startswith(
            "the state belongs to another bundle, or was kept under other settings in [emit] "
            f"(behind the +): expected {model.bundle.id}+"
        )
        assert "keyfold-state rebuild" in said

    asyncio.run(main())


@pytest.mark.parametrize("where", ["out", "alerts"])
def test_the_oracle_finds_what_is_missing_and_what_should_not_be_there(
    models: dict[str, Model], where: str, valkey: Valkey, unique_name: Callable[[str], str]
) -> None:
    async def main() -> None:
        model, log = models["number"], a_log(unique_name("in"))
        records = stream(model, 9)
        log.append(*records)
        emit = Emit("on_change", above=0.2, k=2, n=3, step=0.4, alert_topic="alerts")
        every = Emit("all", above=-9.0, alert_topic="alerts")
        async with running(model, log, valkey.url, 0, emit=every, group="all") as worker:
            await worker.until_saved(COUNT)
            everything = pairs(worker.emitter.sent)
        log = a_log(log.topic)  # another group's offsets
        log.append(*records)
        async with running(model, log, valkey.url, 0, emit=emit) as worker:
            await worker.until_saved(COUNT)
            sent = {"out": pairs(worker.emitter.sent), "alerts": pairs(worker.emitter.alerts)}
            judge = Judge(model.bundle, emit, records)
            assert not (await judge.findings(worker, **sent)).counts
            whole = sent[where]
            sent[where] = whole[:10] + whole[11:]
            lost = await judge.findings(worker, **sent)
            ids = {prediction["id"] for _, prediction in whole}
            sent[where] = [*whole, next(p for p in everything[-9:] if p[1]["id"] not in ids)]
            more = await judge.findings(worker, **sent)
        assert lost.counts == {Fault.LOST: 1}
        assert lost.examples[Fault.LOST][0].where == whole[10][1]["about"]
        assert more.counts[Fault.UNEXPECTED] == 1
        said = more.examples[Fault.UNEXPECTED][0].expected
        assert said.startswith("none: section [emit]: ")

    asyncio.run(main())


@pytest.mark.parametrize("at_byte", [0, 8, 16], ids=["held", "whether", "value"])
def test_a_memory_that_is_not_the_rule_s_is_found(
    models: dict[str, Model], at_byte: int, valkey: Valkey, unique_name: Callable[[str], str]
) -> None:
    async def main() -> None:
        model, log = models["number"], a_log(unique_name("in"))
        records = stream(model, 10)
        log.append(*records)
        emit = Emit("on_change", above=0.2, k=2, n=3, step=0.4, alert_topic="alerts")
        async with running(model, log, valkey.url, 0, emit=emit) as worker:
            await worker.until_saved(COUNT)
            fields = await worker.fields()
            out, alerts = pairs(worker.emitter.sent), pairs(worker.emitter.alerts)
            slot = next(iter(worker.slots.of(0).values()))
            key = worker.slots.keys[slot]
            tensors = worker.slots.snapshot(0, np.array([slot]))
        assert b":" + key in fields
        changed = {name: values.copy() for name, values in tensors.tensors.items()}
        if at_byte == 0:
            changed["emit.held"] ^= 1
        else:
            changed["emit.last"][0, at_byte // 8 - 1] += 1.0
        states = dataclasses.replace(tensors, tensors=changed)
        fields[b":" + key] = worker.codec.pack([key], states)[0]
        judge = Judge(model.bundle, emit, records)
        findings = judge.of(stored_of(fields), log.topic, out, alerts)
        assert findings.counts == {Fault.WRONG_STATE: 1}
        assert findings.examples[Fault.WRONG_STATE][0].expected.startswith("emit.")

    asyncio.run(main())
