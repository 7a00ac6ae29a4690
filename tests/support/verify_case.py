"""A served partition and its verification, for tests that plant harm into right outputs.

Owns the small log, what a right worker makes of it (naive_worker.py) and the comparison in the
order of worker/verification.py, on values in memory. Used by the tests of keyfold-verify's parts.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
from naive_worker import LogRecord, Served, serve

from keyfold.export.bundle import Bundle
from keyfold.worker.compare import OutputCheck, Place, Strays
from keyfold.worker.dead_letters import DeadLetter, check_dead_letters, parse_dead_letter
from keyfold.worker.findings import Fault, Findings
from keyfold.worker.refold import OfflineStep, Refold
from keyfold.worker.stored import Stored, check_states

PARTITION, BASE, EVENTS, KEYS = 2, 10, 40, 4
POISON = BASE + 7
NAME = "{g:in:2}"


def a_log(bundle: Bundle) -> list[LogRecord]:
    """Return 40 records of 4 keys from offset 10, one of them (offset 17) no event."""
    draw = np.random.default_rng(1)
    log = []
    for i in range(EVENTS):
        values = dict(zip(bundle.manifest.features.fields, draw.normal(size=2), strict=True))
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

    def verify(self, **options: Any) -> Findings:
        """Compare what was served, as worker/verification.py does."""
        findings, strays = Findings(**options), Strays()
        watermark = int(self.served.meta["#W"])
        place = Place("in", "out", PARTITION, BASE, watermark)
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
        check_dead_letters(self.bundle, place, refold, letters, findings)
        return findings

    def _refold(self, place: Place, findings: Findings) -> Refold:
        refold = Refold(self.step)
        stored = Stored(NAME, self.served.meta, self.served.states)
        for r in self.log:
            if r.offset == place.watermark:
                check_states(self.bundle, place, refold, stored, findings)
            refold.fold(r.offset, r.timestamp_ms, r.key, r.value)
        if self.log[-1].offset < place.watermark:
            check_states(self.bundle, place, refold, stored, findings)
        return refold

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
    return original[0], json.dumps({**json.loads(original[1] or b""), **members}).encode()


def make_case(bundle: Bundle, log: list[LogRecord] | None = None) -> Case:
    """Serve a log (default: a_log) and return it with what came out."""
    log = a_log(bundle) if log is None else log
    return Case(bundle, OfflineStep(bundle), log, serve(bundle, "in", PARTITION, log))


def only(findings: Findings, fault: Fault, count: int = 1) -> tuple[str, str, str]:
    """Check that a fault was found so often, and no other; return its first example."""
    assert dict(findings.counts) == {fault: count}
    example = findings.examples[fault][0]
    return example.where, example.expected, example.got
