"""The rule of section [emit], written out once more for one event at a time.

Owns the oracle's own reading of it, apart from worker/emission.py: which predictions must, may or
must not be in the output topic and in the alert topic, and what a key's state must remember of it.
"May", because the worker's numbers are the offline ones within a tolerance only: so close to a
limit, either answer is right, and both are followed from there on. Called by refold.py,
compare.py and stored_states.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from math import inf, isnan, nan
from typing import Any

import numpy as np

from keyfold.export.bundle import Bundle
from keyfold.export.outputs import OutputSpec
from keyfold.worker.emit_settings import Emit
from keyfold.worker.errors import Crash
from keyfold.worker.verify.offline_key import Stepped
from keyfold.worker.verify.offline_threshold import ROUNDING

MOST = 64  # values that may have been emitted last; above that any one may
NONE_YET = "none yet"  # in place of a value: no prediction of the key was emitted


class Due(IntEnum):
    """Whether a prediction has to be in a topic."""

    NO = 0
    MUST = 1
    MAY = 2  # it depends on the last digits, or on what is gone from the log


@dataclass(frozen=True, slots=True)
class Memory:
    """What a key remembers of its emissions."""

    held: tuple[Due, ...] = ()  # whether the condition held, newest first; at most n
    last: tuple[Any, ...] | None = (NONE_YET,)  # what may have been emitted last; None: anything


@dataclass(frozen=True, slots=True)
class _Value:
    """What an output says, as far as it is sure: a number within a range, or one of some."""

    low: float = nan  # number: NaN: it is null
    high: float = nan  # number
    some: tuple[str, ...] = ()  # label or flag: what it may be; (): it is a number


class OfflineEmit:
    """The rule of one bundle."""

    def __init__(self, emit: Emit, bundle: Bundle) -> None:
        """Prepare. Raises Crash when the bundle's outputs have no such field."""
        outputs = bundle.manifest.outputs
        self._emit, self._outputs = emit, outputs
        self._tolerance = bundle.manifest.tolerance * bundle.golden.scale()
        anomaly = outputs.anomaly
        self._score_tolerance = self._tolerance / min(anomaly.scales) if anomaly else 0.0
        self._columns = dict(_columns(outputs))
        self._path = emit.field or _usual(outputs)
        # Of the largest probabilities: rank -> of which the output tells.
        self._ranks = {f"top.{rank}.probability": rank for rank in range(outputs.top)}
        known = {*self._columns, *self._ranks, "label", "anomaly.flag", "anomaly.score"}
        if outputs.kind == "transcription":
            self._ranks, known = {"probability": 0}, {"symbol", "probability"}
        if self._path not in known:
            raise Crash(f"emit.field: the bundle has no output {self._path!r}")
        self._alerts = bool(emit.alert_topic)
        self._counts = (emit.what == "when" or self._alerts) and emit.n > 1
        self._changes = emit.what == "on_change"

    def judged_as(self, bundle: Bundle) -> OfflineEmit:
        """Return the same rule under a bundle that differs in its tolerance only."""
        return OfflineEmit(self._emit, bundle)

    @property
    def bytes_per_key(self) -> int:
        """Size of what is stored of it for a key: int64 bits, float64 of whether and what."""
        return 8 * self._counts + 16 * self._changes

    def said(self, *, alert: bool) -> str:
        """Return what to look at where a prediction should not be."""
        if alert:
            return f"section [emit]: not the alert's condition on {self._path}"
        return f"section [emit]: what = {self._emit.what!r}, of {self._path}"

    def one(self, stepped: Stepped, memory: Memory) -> tuple[Due, Due, Memory]:
        """Judge an event: what is due in the output and in the alert topic, and what is known then.

        Without an alert topic nothing is due there.
        """
        emit, value = self._emit, self._value(stepped)
        held, last = memory.held, memory.last
        output = Due.MUST
        if self._changes:
            output, last = self._changed(value, last)
        often = Due.NO
        if emit.what == "when" or self._alerts:
            held = (self._holds(value), *held)[: emit.n]
            sure = sum(one is Due.MUST for one in held)
            maybe = sum(one is Due.MAY for one in held)
            often = _due(sure >= emit.k, sure + maybe >= emit.k)
        if emit.what == "when":
            output = often
        return output, often if self._alerts else Due.NO, Memory(held, last)

    def unknown(self) -> tuple[Due, Due]:
        """Return what is due of an event whose key's state does not follow from the records."""
        output = Due.MUST if self._emit.what == "all" else Due.MAY
        return output, Due.MAY if self._alerts else Due.NO

    def difference(self, stored: bytes, memory: Memory) -> tuple[str, str] | None:
        """Return what differs (expected, got) between the bytes of a key's state and the rule."""
        if self._counts:
            bits = int.from_bytes(stored[:8], "little")
            stored = stored[8:]
            for age in range(64):
                want = memory.held[age] if age < len(memory.held) else Due.NO
                if want is not Due.MAY and (bits >> age & 1) != want:
                    return (
                        f"emit.held: the condition {'met' if want else 'not met'} {age} events ago",
                        "the opposite",
                    )
        if self._changes and memory.last is not None:
            any_yet, value = np.frombuffer(stored, "<f8").tolist()
            if not any(self._is_same(any_yet, value, one) for one in memory.last):
                return f"emit.last {memory.last[0]!r}", f"{value!r} ({any_yet:g})"
        return None

    # -- values ------------------------------------------------------------------------------------

    def _value(self, stepped: Stepped) -> _Value:
        y = stepped.y
        if self._path in self._columns:
            number = float(y[self._columns[self._path]])
            return _Value(number - self._tolerance, number + self._tolerance)
        if self._path in self._ranks:
            number = sorted(map(float, y), reverse=True)[self._ranks[self._path]]
            return _Value(number - self._tolerance, number + self._tolerance)
        if self._path == "symbol":  # null: the empty text
            pairs = zip(self._outputs.names, stepped.scores, strict=True)
            return _Value(some=tuple(name for name, may in pairs if may))
        if self._path == "label":
            # Probabilities both of which may be off: of almost equal ones any may be the label.
            best = float(y.max()) - 2 * self._tolerance
            names = self._outputs.names
            return _Value(some=tuple(names[i] for i in range(len(names)) if y[i] >= best))
        if self._outputs.likelihood is not None:
            return self._likelihood_value(stepped.scores, self._outputs.likelihood.threshold)
        score = max((s for s in stepped.scores if not isnan(s)), default=nan)
        off = self._score_tolerance + ROUNDING * score
        if self._path == "anomaly.score":
            return _Value(score - off, score + off)
        if isnan(score):
            return _Value(some=("false",))
        judged = stepped.judged
        if isnan(judged.threshold) or isnan(judged.smoothed):
            return _Value(some=("false", "true"))
        own = self._outputs.anomaly is not None and self._outputs.anomaly.dynamic is not None
        # A threshold of the key's own moves with the errors, as anomaly_reading.py allows it.
        off = off * (14 if own else 1) + ROUNDING * judged.threshold * (14 if own else 1)
        if abs(judged.smoothed - judged.threshold) <= off:
            return _Value(some=("false", "true"))
        return _Value(some=("true" if judged.smoothed > judged.threshold else "false",))

    def _likelihood_value(self, bounds: list[float], threshold: float) -> _Value:
        """Return the score or the flag of a text, from the bounds of its score."""
        low, high = bounds[0], bounds[1]
        low, high = low - ROUNDING * (1 + low), high + ROUNDING * (1 + high)
        if self._path == "anomaly.score":
            return _Value(low, high)
        may = {str(score > threshold).lower() for score in (low, high)}  # of NaN: no
        return _Value(some=tuple(sorted(may)))

    def _holds(self, value: _Value) -> Due:
        emit = self._emit
        if value.some and self._path == "symbol" and not emit.equals:
            return _due("" not in value.some, any(value.some))
        if value.some:
            wanted = str(emit.equals) or "true"
            return _due(value.some == (wanted,), wanted in value.some)
        above = inf if emit.above is None else emit.above
        below = -inf if emit.below is None else emit.below
        if isnan(value.low):
            return Due.NO
        sure = value.low > above or value.high < below
        return _due(sure, value.high > above or value.low < below)

    def _changed(
        self, value: _Value, last: tuple[Any, ...] | None
    ) -> tuple[Due, tuple[Any, ...] | None]:
        """Say whether a value has changed, and what may have been emitted last then."""
        news: list[Any] = list(value.some) or [(value.low, value.high)]
        if last is None:
            return Due.MAY, None
        answers, after = set(), []
        for before in last:
            for new in news:
                answer = self._differs(before, new)
                answers.add(answer)
                if answer is not Due.NO:
                    after.append(new)
                if answer is not Due.MUST:
                    after.append(before)
        left = tuple(dict.fromkeys(after))
        due = answers.pop() if len(answers) == 1 else Due.MAY
        return due, left if len(left) <= MOST else None

    def _differs(self, before: Any, new: Any) -> Due:
        if before == NONE_YET and isinstance(before, str):
            return Due.MUST
        step = self._emit.step
        if step is None:
            return Due.MUST if before != new else Due.NO
        if isnan(before[0]) or isnan(new[0]):
            return Due.MUST if isnan(before[0]) != isnan(new[0]) else Due.NO
        gaps = [abs(a - b) for a in before for b in new]
        apart = new[0] > before[1] or before[0] > new[1]
        least = min(gaps) if apart else 0.0
        return _due(least >= step, max(gaps) >= step)

    def _is_same(self, any_yet: float, value: float, wanted: Any) -> bool:
        if isinstance(wanted, str) and wanted == NONE_YET:
            return any_yet == 0 and value == 0
        if any_yet != 1:
            return False
        if isinstance(wanted, str):
            named = self._path in ("label", "symbol")
            names = self._outputs.names if named else ("false", "true")
            return value == list(names).index(wanted)
        if isnan(wanted[0]):
            return isnan(value)
        return bool(wanted[0] <= value <= wanted[1])


def _due(sure: bool, possible: bool) -> Due:
    return Due.MUST if sure else Due.MAY if possible else Due.NO


def _usual(outputs: OutputSpec) -> str:
    if outputs.likelihood is not None:
        return "anomaly.flag"
    if outputs.kind == "classification":
        return "label"
    if outputs.kind == "transcription":
        return "symbol"
    return "anomaly.flag" if outputs.anomaly is not None else outputs.names[0]


def _columns(outputs: OutputSpec) -> Iterator[tuple[str, int]]:
    """Yield by which path each number of y is named."""
    if outputs.top or outputs.kind == "transcription":
        return  # the output tells the largest alone
    if outputs.forecast is None:
        for number, name in enumerate(outputs.names):
            path = f"probabilities.{number}" if outputs.kind == "classification" else name
            yield path, number
        return
    number = 0
    for field in outputs.forecast.fields:
        for horizon in outputs.forecast.horizons:
            for level in outputs.forecast.quantiles or (None,):
                end = "" if level is None else f".{level:g}"
                yield f"forecast.{field}.{horizon}{end}", number
                number += 1
