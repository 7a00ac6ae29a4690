"""Compares a partition's stored states and meta fields with the offline fold.

Owns an own reading of one stored state, on purpose apart from worker/state_codec.py, which wrote
it: version u8, checksum u32, flags u8, steps u64, last offset i64, last event time i64, stream time
at the last event i64, tensors; little-endian. Pure. Called by verification.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from keyfold.export.bundle import Bundle
from keyfold.worker.verify.compare import Place
from keyfold.worker.verify.findings import Fault, Findings
from keyfold.worker.verify.lost import Gap
from keyfold.worker.verify.offline_recognition import BEST, is_possible
from keyfold.worker.verify.offline_threshold import ROUNDING, SPREAD
from keyfold.worker.verify.prediction import show_key
from keyfold.worker.verify.refold import KeyState, Refold, Sure
from keyfold.worker.verify.stored import INHERITED, META, Stored

VERSION = 2
# version, checksum, flags, steps, last offset, last event time, stream time at the last event
HEAD = struct.Struct("<BIBQqqq")
CHECKED_FROM = 5  # the checksum covers the key and all behind itself
FLAG_GAP = 1  # the history may miss lost events
FRONT, BACK = AROUND_THE_GRAPH = ("front.", "back.")  # tensors that no graph has, by their names
COPIED = ("back.answer_ms", "back.late_offsets", "back.late_ms")  # of events, exactly
THRESHOLD = "back.moving"  # a moving average and the key's own threshold
Difference = tuple[str, str]  # expected, got


@dataclass(frozen=True, slots=True)
class _Head:
    flags: int  # bit 0: FLAG_GAP
    steps: int  # since cold
    offset: int  # of the last event stepped
    time_ms: int  # event time of the last event
    touched_ms: int  # stream time right after it


def check_states(
    bundle: Bundle, place: Place, refold: Refold, stored: Stored, findings: Findings
) -> None:
    """Compare the states stored at the watermark with the fold of all events below it."""
    for field, expected, got in _meta_differences(place, refold, stored):
        findings.add(Fault.WRONG_STATE, f"{stored.name} {field}", expected, got)
    reader = _Reader(bundle, place, refold, findings)
    for key, state in refold.states.items():
        value = stored.states.get(key)
        where = f"key {show_key(key)} in {stored.name} at watermark {place.watermark}"
        if value is not None:
            findings.states += 1
            findings.unverifiable += not state.known
            difference = reader.difference(key, value, state)
            if difference is not None:
                findings.add(Fault.WRONG_STATE, where, *difference)
        elif _may_be_collected(refold, state):
            findings.collected += 1
        else:
            expected = f"a state of {state.steps} steps, last offset {state.offset}"
            findings.add(Fault.MISSING_STATE, where, expected, "none")
    _check_markers(place, refold, stored, findings)
    for key in stored.states.keys() - refold.states.keys():
        _check_extra(reader, place, key, stored, findings)


def _check_markers(place: Place, refold: Refold, stored: Stored, findings: Findings) -> None:
    """Behind a lost range a state without steps must say that a key is known to be cold."""
    for key, cleared in refold.cleared.items():
        if cleared.at >= refold.lost.end >= 0 and key not in stored.states:
            where = f"key {show_key(key)} in {stored.name} at watermark {place.watermark}"
            expected = "a state of no steps: behind a lost range it says that the key is cold"
            findings.add(Fault.MISSING_STATE, where, expected, "none")


def _check_extra(
    reader: _Reader, place: Place, key: bytes, stored: Stored, findings: Findings
) -> None:
    """Judge a stored state of a key that has none offline."""
    refold, value = reader.refold, stored.states[key]
    where = f"key {show_key(key)} in {stored.name} at watermark {place.watermark}"
    if reader.is_marker(key, value):
        return
    if refold.complete or key in refold.cleared:
        findings.add(Fault.EXTRA_STATE, where, "none: no event, or a reset", "a state")
        return
    findings.unverifiable += 1  # its events are gone from the log
    difference = None if key in refold.unsure else reader.old_difference(key, value, place)
    if difference is not None:
        findings.add(Fault.WRONG_STATE, where, *difference)


def _may_be_collected(refold: Refold, state: KeyState) -> bool:
    """Say whether a key's state need not be there; behind a lost range nothing is collected."""
    if not refold.collects:
        return False
    was_before = refold.lost.end < 0 or state.seen < refold.lost.end
    return was_before and refold.silent(state) is not Sure.NO


def _meta_differences(
    place: Place, refold: Refold, stored: Stored
) -> Iterator[tuple[str, str, str]]:
    """Yield the field, what it should be and what it is."""
    meta, keys = stored.meta, len(stored.states)
    wanted = META | ({INHERITED} & meta.keys())
    counted = keys + (INHERITED in meta)
    if meta.keys() != wanted:
        yield "fields", f"exactly {_names(wanted)}", _names(meta)
    if meta.get("#K") != str(counted):
        yield "number of key states", f"{meta.get('#K')} (#K, as saved)", f"{counted}"
    if stored.fields != len(wanted) + keys:
        yield "HLEN", f"{len(wanted)} meta fields and {keys} states", f"{stored.fields} fields"
    got = meta.get("#L", "")
    last = refold.offset(len(refold) - 1) if len(refold) else -1
    # A loss takes the record away that the fingerprint is about.
    if got != refold.fingerprint and (got or last >= refold.lost.end):
        yield "#L (offset:timestamp:crc of the last record)", refold.fingerprint, got
    low, high = "", ""
    if refold.stream_ms is not None:
        low, high = map(str, refold.stream_range(refold.stream_ms))
    got = meta.get("#S", "")
    if got == low == high or _is_between(low, got, high, open_end=not refold.complete):
        return
    yield "#S (stream time)", low if low == high else f"{low or 'any'} to {high}", repr(got)


def _names(fields: Any) -> str:
    return " ".join(sorted(fields)) or "none"


def _is_between(low: str, text: str, high: str, *, open_end: bool) -> bool:
    """Say whether a stream time is possible where part of the log is gone."""
    if not open_end:
        return False
    try:
        return (not low or int(low) <= int(text)) and (not high or int(text) <= int(high))
    except ValueError:
        return not low and not text


class _Allowed:
    """By how much numbers of a state may be off."""

    def __init__(self, bundle: Bundle) -> None:
        self._tolerance = bundle.manifest.tolerance
        self._output = self._tolerance * bundle.golden.scale()
        anomaly = bundle.manifest.outputs.anomaly
        scales = anomaly.scales if anomaly is not None else (1.0,)
        self._score = SPREAD * self._output / min(scales)

    def of(self, name: str, want: NDArray[Any]) -> float:
        """Return by how much a tensor's numbers may be off."""
        if name.startswith(FRONT) or name == "back.count":
            return 0.0  # whatever the weights: copies and exact sums, in the same order
        if name in COPIED:
            return 0.0
        if name in ("back.forecast", "back.next", "back.answer"):
            return self._output  # what the graph put out
        if name.startswith(BACK):
            return self._score + SPREAD * ROUNDING * float(np.nanmax(want, initial=0.0))
        return self._tolerance * max(
            1.0, float(np.sqrt(np.mean(np.square(want, dtype=np.float64))))
        )


class _Reader:
    """Takes the states stored at a watermark apart."""

    def __init__(self, bundle: Bundle, place: Place, refold: Refold, findings: Findings) -> None:
        self._specs, self._watermark = bundle.manifest.kept, place.watermark
        self._by_since: dict[int, _Allowed] = {}  # by who folded when a key was cold last
        self._rule_at = HEAD.size + bundle.manifest.state_bytes
        self._size = self._rule_at + (refold.rule.bytes_per_key if refold.rule is not None else 0)
        self.refold, self._findings = refold, findings

    def difference(self, key: bytes, value: bytes, state: KeyState) -> Difference | None:
        """Return the first difference (expected, got) from the offline state."""
        head = self._head(key, value)
        if not isinstance(head, _Head):
            return head
        wrong = self._head_difference(head, state)
        if wrong or not state.known:
            return wrong
        wrong = self._tensor_difference(value, state)
        if wrong or self.refold.rule is None:
            return wrong
        return self.refold.rule.difference(value[self._rule_at :], state.memory)

    def old_difference(self, key: bytes, value: bytes, place: Place) -> Difference | None:
        """Return what is wrong with the state of a key whose events are all gone."""
        head = self._head(key, value)
        if not isinstance(head, _Head):
            return head
        if head.offset >= place.start or self.refold.lost.holds(head.offset):
            return "a last offset before what the log holds, and not lost", str(head.offset)
        return None if head.steps else ("1 step or more", "0")

    def is_marker(self, key: bytes, value: bytes) -> bool:
        """Say whether this only remembers, after a loss, that a key without steps is cold."""
        head, refold = self._head(key, value), self.refold
        end, cleared = refold.lost.end, refold.cleared.get(key)
        if not isinstance(head, _Head) or head.steps or end < 0:
            return False
        if refold.complete and cleared is None:
            return False
        is_exact = cleared is not None and cleared.at >= end
        return is_exact or head.flags == FLAG_GAP or head.offset < end

    def _head(self, key: bytes, value: bytes) -> _Head | Difference:
        if len(value) != self._size:
            return f"{self._size} bytes", f"{len(value)}"
        version, checksum, flags, *rest = HEAD.unpack_from(value)
        wanted = crc32(key + value[CHECKED_FROM:])
        if version != VERSION or checksum != wanted:
            return (
                f"version {VERSION}, checksum {wanted}",
                f"version {version}, checksum {checksum}",
            )
        if flags & ~FLAG_GAP:
            return f"flags 0 or {FLAG_GAP}", f"flags {flags}"
        return _Head(flags, *rest)

    def _head_difference(self, head: _Head, state: KeyState) -> Difference | None:
        steps = state.steps if state.known else max(head.steps, state.steps)
        if (head.steps, head.offset, head.time_ms) != (steps, state.offset, state.time_ms):
            return (
                f"{steps} steps, last offset {state.offset}, last time {state.time_ms}",
                f"{head.steps} steps, last offset {head.offset}, last time {head.time_ms}",
            )
        low, high = self.refold.stream_range(state.touched_ms)
        if not low <= head.touched_ms <= high:
            wanted = str(low) if low == high else f"{low} to {high}"
            return f"stream time {wanted} at the last event", str(head.touched_ms)
        # A state older than the last loss is flagged when it is used next, at the latest.
        if head.offset >= self.refold.lost.end and state.gap is not Gap.MAYBE:
            wanted_flags = FLAG_GAP if state.gap is Gap.ALWAYS else 0
            if head.flags != wanted_flags:
                return f"flags {wanted_flags} (1: may miss lost events)", f"flags {head.flags}"
        return None

    def _tensor_difference(self, value: bytes, state: KeyState) -> Difference | None:
        start, allowed = HEAD.size, self._allowed(state)
        # Behind the tensors that are stored there may be more, known offline only.
        for spec, tensor in zip(self._specs, state.tensors, strict=False):
            kind = np.dtype(spec.dtype).newbyteorder("<")
            count = spec.bytes_per_key // kind.itemsize
            got: NDArray[Any] = np.frombuffer(value, kind, count, start)
            start += spec.bytes_per_key
            want = tensor[0].ravel()
            if spec.input == BEST:
                if is_possible(int(got[0]), state.tensors):
                    continue
                return f"{BEST} {int(want[0])}", str(int(got[0]))
            if spec.input == THRESHOLD and not state.tensors[-1][0]:
                got, want = got[:1], want[:1]  # the threshold may be another one, too
            difference = self._one_difference(spec.input, got, want, allowed)
            if difference is not None:
                return difference
        return None

    def _one_difference(
        self, name: str, got: NDArray[Any], want: NDArray[Any], limits: _Allowed
    ) -> Difference | None:
        """Compare one tensor's numbers with those of the fold."""
        same = got == want
        if name.startswith(AROUND_THE_GRAPH):
            same |= np.isnan(got) & np.isnan(want)  # "never seen"; a graph's state is never that
        gaps = np.where(same, 0.0, np.abs(got.astype(np.float64) - want.astype(np.float64)))
        gap = float(gaps.max(initial=0.0))
        worst = self._findings.max_abs_state_difference
        self._findings.max_abs_state_difference = max(worst, gap)
        allowed = limits.of(name, want)
        if gap <= allowed:
            return None
        return f"{name} within {allowed:.2g} of the fold", f"a difference of {gap:.3g}"

    def _allowed(self, state: KeyState) -> _Allowed:
        if state.since not in self._by_since:
            judge = self.refold.judge(self._watermark, state.since)
            self._by_since[state.since] = _Allowed(judge)
        return self._by_since[state.since]
