"""Which predictions go to the output topic and which to the alert topic, as a part of the fold.

Owns the rule of section [emit]: the value it looks at, the condition at k of the key's last n
events, the change since the key's last emitted prediction; and the tensors of a key's state that
remember them, so that no crash, replay or eviction changes what is emitted. Pure numpy; the same
events give the same verdicts however they are grouped into calls. Called by worker/fold.py;
keyfold-verify has the rule once more in worker/verify/offline_emit.py.

The memory goes on at every step, also where nothing is emitted (a replay, below emit_from, while
another group has the outputs). A reject changes nothing; a key that starts cold has no memory.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from keyfold.export.bundle import Bundle
from keyfold.export.outputs import OutputSpec
from keyfold.export.settings import SettingsError
from keyfold.export.states import StateSpec, Tensors, own_state
from keyfold.worker.emit_settings import Emit

HELD, LAST = "emit.held", "emit.last"
OUTPUT, ALERT = 1, 2  # bits of a verdict
ID_LENGTH = 8  # hex digits of SHA-256
NUMBERS = ("number", "top", "score")  # kinds of fields

Values = NDArray[np.float64]  # (B,T)
Verdicts = NDArray[np.uint8]  # (B,T) OUTPUT and ALERT


@dataclass(frozen=True, slots=True)
class Field:
    """What of an output is looked at."""

    path: str  # as in the settings: "rul", "label", "probabilities.2", "anomaly.flag"
    # number, top (of the largest), label, symbol, flag (fixed threshold), own_flag, score
    kind: str
    column: int = -1  # number: of y; top: how many are larger
    threshold: float = 0.0  # flag: of the manifest
    labels: tuple[str, ...] = ()  # label, symbol: names, in the order of y's columns

    def of(self, y: NDArray[np.float32], scores: NDArray[np.float32] | None) -> Values:
        """Return the values of y (B,T,O) and scores (B,T,S): flags 0 or 1, labels their number."""
        if self.kind == "number":
            values: Values = y[..., self.column].astype(np.float64)
            return values
        if self.kind == "label":
            return np.asarray(y.argmax(axis=-1), np.float64)
        if self.kind == "top":
            place = y.shape[-1] - 1 - self.column
            return np.partition(y, place, axis=-1)[..., place].astype(np.float64)
        if scores is None:
            raise RuntimeError(f"emit.field {self.path!r}: expected scores, got none")
        if self.kind in ("score", "symbol"):
            return scores[..., 0].astype(np.float64)
        if self.kind == "own_flag":
            return (scores[..., 3] > scores[..., 2]).astype(np.float64)
        return (scores[..., 0].astype(np.float64) > self.threshold).astype(np.float64)


class Emission:
    """The rule of one worker and one bundle."""

    def __init__(self, emit: Emit, field: Field) -> None:
        """Prepare; `emit` and `field` fit each other (Emission.of sees to that)."""
        self._emit, self._field = emit, field
        self._equals = _number_of(emit, field)
        self._changes = emit.what == "on_change"
        self._remembers = emit.has_condition and emit.n > 1
        self._mask = np.uint64(2**emit.n - 1)
        states = []
        if self._remembers:
            states.append(own_state(HELD, (), "int64"))
        if self._changes:  # whether there is any, and its value (NaN: null)
            states.append(own_state(LAST, (2,), "float64"))
        self.states: tuple[StateSpec, ...] = tuple(states)  # in storage order

    @classmethod
    def of(cls, emit: Emit, outputs: OutputSpec) -> Self | None:
        """Return the rule for a bundle's outputs; None: every prediction goes out, and no alert.

        Raises SettingsError for settings that do not fit the bundle.
        """
        if emit.what == "all" and not emit.has_condition:
            return None
        if not outputs.is_straight:
            raise SettingsError(
                "[emit]: expected what = 'all' and no alert_topic with a bundle that does not "
                "answer each event once, about itself (sessions, look-ahead, read = 'every', "
                "generate)"
            )
        field = _field(emit, outputs)
        _check_fits(emit, field)
        return cls(emit, field)

    @property
    def id(self) -> str:
        """What tells the memory of this rule from that of another; "" without a memory."""
        if not self.states:
            return ""
        emit = self._emit
        condition = [emit.above, emit.below, self._equals, emit.k, emit.n]
        said = [
            self._field.path, emit.what, emit.step, condition if emit.has_condition else None,
        ]  # fmt: skip
        return sha256(json.dumps(said).encode()).hexdigest()[:ID_LENGTH]

    @property
    def said(self) -> str:
        """The rule in words."""
        emit, path = self._emit, self._field.path
        which = {
            "all": "every prediction is emitted",
            "on_change": f"a prediction is emitted when {path} changes"
            + (f" by {emit.step:g} or more" if emit.step is not None else ""),
            "when": f"a prediction is emitted when {self._condition}",
        }[emit.what]
        if not emit.alert_topic:
            return which
        return f"{which}; it is an alert, to {emit.alert_topic} too, when {self._condition}"

    @property
    def _condition(self) -> str:
        emit, path = self._emit, self._field.path
        equals = emit.equals or ("" if self._equals is None else "true")
        tests = [f"is {equals}"] if equals else []
        tests += ["is there"] if self._field.kind == "symbol" and not equals else []
        tests += [f"is above {emit.above:g}"] if emit.above is not None else []
        tests += [f"is below {emit.below:g}"] if emit.below is not None else []
        often = f" at {emit.k} of the key's last {emit.n} events" if emit.n > 1 else ""
        return f"{path} {' or '.join(tests)}{often}"

    def run(
        self,
        y: NDArray[np.float32],
        scores: NDArray[np.float32] | None,
        lengths: NDArray[Any],
        states: Tensors,
    ) -> tuple[Verdicts, dict[str, NDArray[Any]]]:
        """Judge the events whose outputs are y (B,T,O) and scores (B,T,S).

        Returns verdicts (B,T) and the states under their names. What stands beyond a row's length
        is not looked at, and is 0 in the result.
        """
        values = self._field.of(y, scores)
        valid = np.arange(y.shape[1]) < np.asarray(lengths)[:, None]
        verdicts = np.zeros(values.shape, np.uint8)
        after: dict[str, NDArray[Any]] = {}
        if self._changes:
            changed, after[LAST] = self._changed(values, valid, states[LAST])
            verdicts |= np.where(changed, OUTPUT, 0).astype(np.uint8)
        if not self._emit.has_condition:
            return verdicts, after
        holds = self._meets(values) & valid
        if self._remembers:
            holds, after[HELD] = self._often(holds, valid, states[HELD])
        to = OUTPUT if self._emit.what == "when" else ALERT
        verdicts |= np.where(holds, to, 0).astype(np.uint8)
        if self._emit.what == "all":
            verdicts |= np.where(valid, OUTPUT, 0).astype(np.uint8)
        return verdicts, after

    def _meets(self, values: Values) -> NDArray[np.bool_]:
        """Say where the condition holds; where there is no value (NaN) it does not."""
        if self._equals is not None:
            return np.asarray(values == self._equals)
        if self._field.kind == "symbol":  # any
            return np.asarray(values > 0)
        meets = np.zeros(values.shape, np.bool_)
        if self._emit.above is not None:
            meets |= values > self._emit.above
        if self._emit.below is not None:
            meets |= values < self._emit.below
        return meets

    def _often(
        self, holds: NDArray[np.bool_], valid: NDArray[np.bool_], held: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Say where the condition has held often enough; the newest event is the lowest bit."""
        bits, often = held.astype(np.uint64), np.zeros(holds.shape, np.bool_)
        for t in range(holds.shape[1]):
            now = ((bits << np.uint64(1)) | holds[:, t].astype(np.uint64)) & self._mask
            bits = np.where(valid[:, t], now, bits)
            often[:, t] = (np.bitwise_count(bits) >= self._emit.k) & valid[:, t]
        return often, bits.astype(np.int64)

    def _changed(
        self, values: Values, valid: NDArray[np.bool_], last: Values
    ) -> tuple[NDArray[np.bool_], Values]:
        """Say where the value differs from that of the key's last emitted prediction."""
        any_yet, before = last[:, 0] > 0, last[:, 1]
        changed = np.zeros(values.shape, np.bool_)
        for t in range(values.shape[1]):
            value = values[:, t]
            if self._emit.step is None:
                differs = value != before
            else:
                differs = np.abs(value - before) >= self._emit.step
                differs |= np.isnan(value) != np.isnan(before)
            changed[:, t] = (differs | ~any_yet) & valid[:, t]
            before = np.where(changed[:, t], value, before)
            any_yet = any_yet | changed[:, t]
        return changed, np.stack([any_yet.astype(np.float64), before], axis=1)


def identity(bundle: Bundle, emit: Emit) -> str:
    """Return whose states they are, as Redis notes it: the bundle's id, and that of the rule.

    Raises SettingsError for settings that do not fit the bundle.
    """
    return joined(bundle, Emission.of(emit, bundle.manifest.outputs))


def joined(bundle: Bundle, rule: Emission | None) -> str:
    """Return the same for a rule that is known already."""
    return f"{bundle.id}+{rule.id}" if rule is not None and rule.id else bundle.id


def remembered(bundle: Bundle, emit: Emit) -> tuple[StateSpec, ...]:
    """Return the tensors that the rule adds to a key's state. Raises SettingsError."""
    rule = Emission.of(emit, bundle.manifest.outputs)
    return () if rule is None else rule.states


def _field(emit: Emit, outputs: OutputSpec) -> Field:
    """Find the field that the settings name, or that goes without saying."""
    fields = {field.path: field for field in fields_of(outputs)}
    path = emit.field
    if not path:
        if outputs.anomaly is not None or outputs.likelihood is not None:
            path = "anomaly.flag"
        elif "label" in fields and outputs.kind == "classification":
            path = "label"
        elif outputs.kind == "transcription":
            path = "symbol"
        elif len(fields) == 1:
            (path,) = fields
    if path not in fields:
        got = repr(path) if path else "none, and several could be meant"
        raise SettingsError(f"emit.field: expected one of {', '.join(fields)}, got {got}")
    return fields[path]


def fields_of(outputs: OutputSpec) -> list[Field]:
    """Return all that a rule can go by, the most telling first."""
    names = outputs.names
    if outputs.kind == "classification":
        numbers = [Field(f"probabilities.{i}", "number", i) for i in range(len(names))]
        if outputs.top:
            numbers = [Field(f"top.{i}.probability", "top", i) for i in range(outputs.top)]
        found = [Field("label", "label", labels=tuple(names)), *numbers]
        if outputs.likelihood is not None:
            flag = Field("anomaly.flag", "flag", threshold=outputs.likelihood.threshold)
            found = [flag, Field("anomaly.score", "score"), *found]
        return found
    if outputs.kind == "transcription":
        return [Field("symbol", "symbol", labels=names), Field("probability", "top", 0)]
    if outputs.forecast is None:
        return [Field(name, "number", i) for i, name in enumerate(names)]
    forecast, anomaly = outputs.forecast, outputs.anomaly
    ends = [f".{level:g}" for level in forecast.quantiles] or [""]
    paths = [
        f"forecast.{name}.{horizon}{end}"
        for name in forecast.fields
        for horizon in forecast.horizons
        for end in ends
    ]
    found = [Field(path, "number", i) for i, path in enumerate(paths)]
    if anomaly is None:
        return found
    kind = "flag" if anomaly.dynamic is None else "own_flag"
    flag = Field("anomaly.flag", kind, threshold=anomaly.threshold)
    return [flag, Field("anomaly.score", "score"), *found]


def _check_fits(emit: Emit, field: Field) -> None:
    number = field.kind in NUMBERS
    named = {"label": "a label", "symbol": "a symbol"}
    what = "a number" if number else named.get(field.kind, "a flag")
    where = f"emit.field {field.path!r} is {what}"
    if number:
        if emit.equals:
            raise SettingsError(f"emit.equals: expected emit.above or emit.below: {where}")
        if emit.what == "on_change" and emit.step is None:
            raise SettingsError(
                f"emit.step: expected the least difference that counts as a change: {where}"
            )
        if emit.has_condition and emit.above is None and emit.below is None:
            raise SettingsError(f"emit.above or emit.below: expected a number, got none: {where}")
        return
    for name in ("above", "below", "step"):
        if getattr(emit, name) is not None:
            raise SettingsError(f"emit.{name}: expected none: {where}")
    if emit.has_condition:
        _check_equals(emit, field, where)


def _check_equals(emit: Emit, field: Field, where: str) -> None:
    if not emit.equals and (field.kind == "symbol" or not field.labels):
        return  # the condition is that there is a symbol, or that the flag is true
    allowed = field.labels[1:] if field.kind == "symbol" else field.labels or ("true", "false")
    if emit.equals not in allowed:
        raise SettingsError(
            f"emit.equals: expected one of {', '.join(allowed)}, got "
            f"{emit.equals if emit.equals else 'none'}: {where}"
        )


def _number_of(emit: Emit, field: Field) -> float | None:
    """Return the value that `equals` stands for; None: the condition is another one."""
    if field.kind in NUMBERS or not emit.has_condition:
        return None
    if field.kind == "symbol" and not emit.equals:
        return None
    if field.labels:
        return float(field.labels.index(str(emit.equals)))
    return 0.0 if emit.equals == "false" else 1.0
