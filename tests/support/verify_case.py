"""A served partition and its verification, for tests that plant harm into right outputs.

Owns the small log, what a right worker makes of it (naive_worker.py) and the comparison in the
order of worker/verify/verification.py, on values in memory. Used by the tests of keyfold-verify's
parts.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from naive_worker import LogRecord, Served, serve

from keyfold.export import bundle as contract
from keyfold.export.bundle import Bundle
from keyfold.worker.verify.compare import OutputCheck, Place, Strays
from keyfold.worker.verify.dead_letters import DeadLetter, check_dead_letters, parse_dead_letter
from keyfold.worker.verify.findings import Fault, Findings
from keyfold.worker.verify.lost import covered
from keyfold.worker.verify.refold import OfflineStep, Origin, Refold
from keyfold.worker.verify.seams import Seams
from keyfold.worker.verify.stored import Stored
from keyfold.worker.verify.stored_states import check_states

PARTITION, BASE, EVENTS, KEYS = 2, 10, 40, 4
POISON = BASE + 7
NAME = "{g:in:2}"


def expiring(bundle: Bundle, folder: Path, reset_after_ms: int) -> Bundle:
    """Return the bundle with keys that start anew after a silence."""
    events = dataclasses.replace(bundle.manifest.events, reset_after_ms=reset_after_ms)
    manifest = dataclasses.replace(bundle.manifest, events=events)
    step = bundle.step_path.read_bytes()
    return contract.load(contract.save(folder, manifest, step, bundle.golden))


def a_log(bundle: Bundle) -> list[LogRecord]:
    """Return 40 records of 4 keys from offset 10, one of them (offset 17) no event."""
    draw = np.random.default_rng(1)
    log = []
    for i in range(EVENTS):
        values = dict(zip(bundle.manifest.features.columns, draw.normal(size=2), strict=True))
        text = json.dumps({"time": 1000 * i, **values}).encode()
        key = f"k{i % KEYS}".encode() if i % KEYS else b"\xff\x00"
        log.append(LogRecord(BASE + i, 5_000 + i, key, text))
    log[POISON - BASE] = dataclasses.replace(log[POISON - BASE], value=b"{")
    return log


@dataclasses.dataclass
class Case:
    """A served partition and its verification."""

    bundle: Bundle
    step: OfflineStep
    log: list[LogRecord]
    served: Served
    require_from: int | None = None  # in place of the emit floor
    strangers: int = 0  # fields in the hash that are neither meta nor states
    gone: int = 0  # records below this offset have left the log
    passthrough: tuple[str, ...] = ()  # members of the event that predictions repeat
    seams: Seams = dataclasses.field(default_factory=Seams)  # whose predictions they are

    def verify(self, **options: Any) -> Findings:
        """Compare what was served, as worker/verify/verification.py does."""
        findings, strays = Findings(**options), Strays()
        place = self.place
        refold = self._refold(place, findings)
        check = OutputCheck(self.bundle, place, refold, findings, strays)
        for offset, (key, value) in enumerate(self.served.outputs):
            check.prediction(offset, key, value)
        check.finish()
        strays.report(findings)
        letters: dict[int, list[DeadLetter]] = {}
        for number, (key, value, headers) in enumerate(self.served.letters):
            parsed = parse_dead_letter(f"in.rejects:0:{number}", key, value, headers)
            assert parsed is not None
            letters.setdefault(parsed[2], []).append(parsed[3])
        check_dead_letters(place, refold, letters, findings)
        return findings

    @property
    def stored(self) -> Stored:
        """What is in Redis."""
        meta, states = self.served.meta, self.served.states
        return Stored(NAME, meta, states, len(meta) + len(states) + self.strangers)

    @property
    def is_complete(self) -> bool:
        """Whether the log still holds all that was ever folded."""
        return covered(BASE, self.gone, self.stored.lost.ranges)

    @property
    def place(self) -> Place:
        """The partition, as worker/verify/verification.py reads it from Redis."""
        meta = self.served.meta
        return Place(
            "in", "out", PARTITION, BASE, int(meta["#W"]),
            floor=int(meta.get("#F", 0)) if self.require_from is None else self.require_from,
            committed=int(meta.get("#C") or 0),
            start=BASE if self.is_complete else self.gone,
            resets=int(meta.get("#R", 0)),
            seams=self.seams,
        )  # fmt: skip

    def _refold(self, place: Place, findings: Findings) -> Refold:
        stored = self.stored
        origin = Origin(stored.lost, self.is_complete, stored.stream_ms)
        refold = Refold(self.step, origin, self.passthrough)
        unchecked = True
        for r in self.log:
            if r.offset < self.gone:
                continue
            if r.offset >= place.watermark and unchecked:
                check_states(self.bundle, place, refold, self.stored, findings)
                unchecked = False
            refold.fold(r.offset, r.timestamp_ms, r.key, r.value)
        if unchecked:
            check_states(self.bundle, place, refold, self.stored, findings)
        return refold

    def drop(self, key: bytes) -> None:
        """Take a state out of Redis as the worker would."""
        del self.served.states[key]
        self.count()

    def seal(self, key: bytes, value: bytes) -> None:
        """Store a state under a checksum that is right for it."""
        checksum = crc32(value[5:], crc32(key)).to_bytes(4, "little")
        self.served.states[key] = value[:1] + checksum + value[5:]

    def count(self) -> None:
        """Let #K say how many states there are."""
        self.served.meta["#K"] = str(len(self.served.states))

    def number(self, offset: int) -> int:
        """Return the place among the outputs of the prediction for an input offset."""
        id_ = f'"id":"in:{PARTITION}:{offset}:0"'.encode()
        return next(i for i, (_, v) in enumerate(self.served.outputs) if id_ in (v or b""))

    def change(self, offset: int, **members: Any) -> None:
        """Change members of the prediction for an input offset."""
        number = self.number(offset)
        self.served.outputs[number] = changed(self.served.outputs[number], **members)


def changed(original: tuple[bytes | None, bytes | None], **members: Any) -> tuple[Any, bytes]:
    """Return an output with other members."""
    text = json.dumps({**json.loads(original[1] or b""), **members}, separators=(",", ":"))
    return original[0], text.encode()


def make_case(
    bundle: Bundle, log: list[LogRecord] | None = None, lost: tuple[int, int] | None = None
) -> Case:
    """Serve a log (default: a_log) and return it with what came out."""
    log = a_log(bundle) if log is None else log
    return Case(bundle, OfflineStep(bundle), log, serve(bundle, "in", PARTITION, log, lost))


def stored_of(fields: Mapping[bytes, bytes]) -> Stored:
    """Return a partition's hash as keyfold-verify reads it."""
    meta = {f.decode(): v.decode() for f, v in fields.items() if f.startswith(b"#")}
    states = {f[1:]: v for f, v in fields.items() if f.startswith(b":")}
    return Stored("hash", meta, states, len(fields))


def only(findings: Findings, fault: Fault, count: int = 1) -> tuple[str, str, str]:
    """Check that a fault was found so often, and no other; return its first example."""
    assert dict(findings.counts) == {fault: count}
    example = findings.examples[fault][0]
    return example.where, example.expected, example.got
