"""The offline fold: one partition's records through plain ONNX Runtime, one event at a time.

Owns what keyfold-verify holds the worker to: the rules that make a record an event, a reset or a
reject, when a silent key expires, and the expected prediction and state of every key. It knows the
bundle and the codecs of keyfold.export only; it must share no scheduling, slot, state-layout or
pipeline code with the worker, and it does no I/O on topics or Redis. Called by
verification.py and by tests.

Expiry. The stream time of a partition is the running maximum over its events of min(event time,
record timestamp); a key is touched at the stream time right after its event. A key starts anew at
an event that comes, by event time or by stream time, more than events.reset_after_ms after the
key's last one.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from math import isnan, nan
from zlib import crc32

import numpy as np

from keyfold.export.bundle import Bundle
from keyfold.export.events import MAX_KEY_BYTES, Decoder, why_no_key
from keyfold.export.formats import format_for
from keyfold.worker.verify.folded import (
    NOT_EXACT,
    OPEN,
    Cleared,
    Expected,
    KeyState,
    Kind,
    Origin,
    Rejected,
    Sure,
)
from keyfold.worker.verify.formers import Folders, Former
from keyfold.worker.verify.lost import Gap, Lost
from keyfold.worker.verify.offline_answers import Answering, Book, EventByEvent
from keyfold.worker.verify.offline_emit import Due, OfflineEmit
from keyfold.worker.verify.offline_key import UNJUDGED, Event, OfflineKey, Stepped
from keyfold.worker.verify.offline_step import OfflineStep
from keyfold.worker.verify.offline_threshold import Judged
from keyfold.worker.verify.repeated import Repeated

__all__ = [
    "NOT_FINITE", "Expected", "KeyState", "Kind", "OfflineStep", "Origin", "Refold", "Rejected",
    "Sure", "record_digest",
]  # fmt: skip

NOT_FINITE = "the step's result is not finite"
NO_KEY = -1
FOR_EVER = 1 << 62  # no offset is so large
OFTEN_SHOWN = 1_024  # bytes of a key that each of an event's symbols shows


class Refold:
    """The fold of one partition's records and everything it leads one to expect."""

    def __init__(
        self,
        step: OfflineStep,
        origin: Origin | None = None,
        passthrough: Sequence[str] = (),
        rule: OfflineEmit | None = None,
        place: str = "",
    ) -> None:
        """Begin; `place`: topic:partition of the records, in their ids."""
        manifest, self._place = step.bundle.manifest, place
        self._origin = origin or Origin()
        # Who folds from which offset on: one bundle, but where its states were inherited.
        self._folders = Folders([*self._origin.formers, Former(step, FOR_EVER, rule)])
        self._folder = 0  # who does now
        self._key: OfflineKey = self._folders.of(0, 0).key
        self._decoder = Decoder(manifest.events, manifest.features, self._key.targets)
        form = format_for(manifest.events, manifest.features)
        often = manifest.outputs.read == "every" or manifest.outputs.generate is not None
        self._most_key_bytes = OFTEN_SHOWN if often else MAX_KEY_BYTES
        self._repeated = Repeated(passthrough, form, often=often) if passthrough else None
        # Of what is emitted; None: every prediction, and no alert.
        self.rule = self._folders.of(0, 0).rule
        self._due = array("b")  # per record: output and alert, where a rule says it
        self._events = array("q")  # digests of what is repeated, if anything is
        self._resets = manifest.events.tombstone == "reset"
        self._expiry = manifest.events.reset_after_ms
        self._width = 0 if manifest.outputs.generate is not None else len(manifest.outputs.names)
        # Columns, one entry per record: a list of objects would cost ten times the memory.
        self._offsets, self._kinds, self._key_numbers = array("q"), array("b"), array("i")
        self._times, self._steps, self._outputs = array("q"), array("q"), array("f")
        self._gaps, self._known = array("b"), array("b")
        self._since = array("i")  # KeyState.since
        self._scores, self._judged = array("f"), array("d")  # of bundles that score events
        self._numbers: dict[bytes, int] = {}
        self.keys: list[bytes] = []  # key number -> record key
        self._answering = Answering(manifest.outputs, self.keys)
        # A session's answer has to be given when its key comes back: its state is kept till then.
        self.collects = manifest.outputs.answers != "session"
        self.states: dict[bytes, KeyState] = {}  # warm keys only
        # Keys known to be cold, and why; kept only after a loss.
        self.cleared: dict[bytes, Cleared] = {}
        self.unsure: set[bytes] = set()  # keys of which even this is not known any more
        self._keeps_cleared = bool(self._origin.lost.ranges) or not self._origin.complete
        self.rejects: dict[int, Rejected] = {}  # offset -> what must be a dead letter
        self.fingerprint = ""  # "offset:timestamp:crc32" of the last record, as in Redis
        self.stream_ms: int | None = None  # stream time; None: no event yet
        self.expired = 0  # times that a silent key started anew
        self.skipped = 0  # records of lost ranges: left out, as the worker did
        self._blank = Stepped(
            np.zeros(self._width, np.float32), [nan] * self._key.fields, UNJUDGED, []
        )

    def __len__(self) -> int:
        return len(self._offsets)

    @property
    def events(self) -> int:
        """How many of the records were events."""
        return self._kinds.count(Kind.EVENT)

    @property
    def complete(self) -> bool:
        """Whether the records are all that was ever folded."""
        return self._origin.complete

    @property
    def lost(self) -> Lost:
        """The offsets that were never applied."""
        return self._origin.lost

    def bundle_at(self, offset: int) -> Bundle:
        """Return whose prediction the event at an offset has."""
        return self.judge(offset, self._folders.number(offset))

    def judge(self, offset: int, since: int) -> Bundle:
        """Return who folds at an offset, with the tolerance of a key cold since `since` folded."""
        number = self._folders.number(offset)
        return self._folders.of(number, min(since, number)).bundle

    def judge_at(self, position: int) -> Bundle:
        """Return whose prediction a number of the book is, with its key's tolerance."""
        if (answers := self._answering.answers) is not None:
            return self.judge(answers.cause(position), answers.since(position))
        return self.judge(self._offsets[position], self._since[position])

    def _hand_on(self, offset: int) -> None:
        """Let the bundle that folds from `offset` on go on with the states there are."""
        for number in range(self._folder + 1, self._folders.number(offset) + 1):
            self._folder, folder = number, self._folders.of(number, number)
            self._key, self.rule = folder.key, folder.rule
            for state in self.states.values():
                state.tensors = self._key.taken_over(state.tensors)

    def fold(self, offset: int, timestamp_ms: int, key: bytes | None, value: bytes | None) -> None:
        """Apply the next record of the partition; offsets must increase."""
        self._hand_on(offset)
        if self._origin.lost.holds(offset):
            self.skipped += 1
            return
        self.fingerprint = f"{offset}:{timestamp_ms}:{record_digest(key, value)}"
        no_key = why_no_key(key, self._most_key_bytes)
        if key is None or no_key is not None:
            self._reject(offset, no_key or "", key, value)
        elif value is None and self._resets:
            self._end(key, offset)
            self._append(offset, Kind.RESET, self._number(key))
            self._append_output(self._blank)
        else:
            decoded = self._decoder.decode([value], [timestamp_ms])
            if decoded.rejects:
                self._reject(offset, decoded.rejects[0], key, value)
            else:
                time_ms = int(decoded.times_ms[0])
                moved = min(time_ms, timestamp_ms)
                self.stream_ms = moved if self.stream_ms is None else max(self.stream_ms, moved)
                observed = None if decoded.observed is None else decoded.observed[0]
                x = decoded.x[0] if decoded.lengths is None else decoded.x
                ends = decoded.ends is not None and bool(decoded.ends[0])
                name = f"{self._place}:{offset}"
                self._apply(offset, key, value, Event(x, time_ms, observed, offset, name))
                if ends:
                    self._end(key, offset)
        if key is not None and self._answering.has_any:
            event = self._events[-1] if self._repeated is not None else 0
            self._answering.tell(offset, self._number(key), event)

    def _end(self, key: bytes, offset: int) -> None:
        """Let a key start anew behind a record."""
        state = self.states.get(key)
        if state is not None:
            self._answering.ends(state, self._origin.lost.before(offset))
        elif not (self._origin.complete or key in self.cleared):
            self._answering.may_end()
        self._clear(key, Cleared(offset))

    @property
    def pending(self) -> int:
        """How many events have no answer: behind a look-ahead, or in sessions that are open."""
        return self._answering.pending(self.states.values())

    @property
    def is_straight(self) -> bool:
        """Whether each event causes one prediction, about itself."""
        return self._answering.answers is None

    @property
    def book(self) -> Book:
        """The predictions that are expected."""
        answers = self._answering.answers
        return EventByEvent(self) if answers is None else answers

    def stream_range(self, ms: int) -> tuple[int, int]:
        """Return the least and most that a stream time can be which is `ms` by these records."""
        most = self._origin.stream_most
        return ms, ms if self._origin.complete or most is None else max(ms, most)

    def silent(self, state: KeyState) -> Sure:
        """Say whether the stream has moved past a key's expiry: its state need not be kept."""
        if self._expiry is None or self.stream_ms is None:
            return Sure.NO
        # What is gone had some stream time s; max(s, now) - max(s, touched) only falls with s.
        (low_now, high_now) = self.stream_range(self.stream_ms)
        (low, high) = self.stream_range(state.touched_ms)
        if high_now - high > self._expiry:
            return Sure.YES
        return Sure.OPEN if low_now - low > self._expiry else Sure.NO

    def position(self, offset: int) -> int | None:
        """Return the number of the record at `offset`, or None when there is none."""
        found = bisect_left(self._offsets, offset)
        if found == len(self._offsets) or self._offsets[found] != offset:
            return None
        return found

    def kind(self, position: int) -> Kind:
        """Say what the record at a position is."""
        return Kind(self._kinds[position])

    def offset(self, position: int) -> int:
        """Return the offset of the record at a position."""
        return self._offsets[position]

    def due(self, position: int, *, alert: bool = False) -> Due:
        """Say whether the event at a position has to be in the output topic, or the alert one."""
        if self.rule is None:
            return Due.NO if alert else Due.MUST
        return Due(self._due[2 * position + alert])

    def expected(self, position: int) -> Expected:
        """Return what must have been predicted for the event at a position."""
        number = self._key_numbers[position]
        start, first = position * self._width, position * self._key.fields
        scores = self._scores[first : first + self._key.fields]
        return Expected(
            self.keys[number],
            number,
            self._times[position],
            self._steps[position],
            self._outputs[start : start + self._width].tolist(),
            [None if isnan(score) else score for score in scores],
            Judged(*self._judged[2 * position : 2 * position + 2]) if scores else UNJUDGED,
            self._events[position] if self._repeated is not None else 0,
            Gap(self._gaps[position]),
            bool(self._known[position]),
        )

    def _apply(self, offset: int, key: bytes, value: bytes | None, event: Event) -> None:
        time_ms = event.time_ms
        state = self._before(key, offset, time_ms)
        stepped: Stepped | None = self._blank
        folder = self._folders.of(self._folder, state.since)
        if state.known:
            stepped = folder.key.one(event, state.tensors)
        elif offset in self._origin.rejected:
            stepped = None
        if stepped is None and state.steps == 0:
            # It was cold, or has just become so: it stays cold.
            if state.known:
                at = {Gap.NEVER: offset, Gap.ALWAYS: NOT_EXACT, Gap.MAYBE: OPEN}[state.gap]
                self._clear(key, Cleared(at, time_ms, self.stream_ms or 0))
            elif self.states.pop(key, None) is not None:
                self.unsure.add(key)  # it has expired, or is as it was before
            self._reject(offset, NOT_FINITE, key, value)
            return
        state.time_ms, state.touched_ms, state.seen = time_ms, self.stream_ms or 0, offset
        self.states[key] = state
        self.cleared.pop(key, None)
        self.unsure.discard(key)
        if stepped is None:
            self._reject(offset, NOT_FINITE, key, value)
            return
        state.steps += 1
        state.offset, state.answered_ms = offset, time_ms
        self._answering.stepped(event, state, stepped)
        due = (Due.NO, Due.NO) if folder.rule is None else folder.rule.unknown()
        if state.known:
            state.tensors = stepped.tensors
            if folder.rule is not None:
                output, alert, state.memory = folder.rule.one(stepped, state.memory)
                due = output, alert
        self._append(offset, Kind.EVENT, self._number(key), state)
        if self.rule is not None:
            self._due[-2:] = array("b", due)
        self._append_output(stepped, value)

    def _before(self, key: bytes, offset: int, time_ms: int) -> KeyState:
        """Return the state that a key's event at `offset` is stepped from."""
        end = self._origin.lost.before(offset)
        state = self.states.get(key)
        if state is None:
            return self._from_nothing(key, end, time_ms)
        stale = state.seen < end  # the lost range may hold later events of the key
        expired = self._expired(state, time_ms)
        if expired is Sure.YES:
            self.expired += 1
            self._answering.ends(state, end)
            if stale:  # a state older than the loss proves no silence: cold, but not exact
                return self._cold(Gap.ALWAYS)
            # Since the loss there was no more of the key than a step that was not finite: a worker
            # may go by the state's offset.
            return self._cold(Gap.MAYBE if state.offset < end else Gap.NEVER)
        if expired is Sure.OPEN:
            self._answering.may_end()
            state.known, state.steps = False, 0
            state.gap = Gap.MAYBE if state.gap is Gap.ALWAYS else state.gap
        if stale:
            state.gap = Gap.ALWAYS
        return state

    def _from_nothing(self, key: bytes, end: int, time_ms: int) -> KeyState:
        """Return the state of a key without one; `end`: of the last lost range before its event."""
        cleared = self.cleared.get(key)
        known = self._origin.complete or cleared is not None
        if not known and self._expiry is not None:
            self._answering.may_end()
        gap = Gap.ALWAYS
        if key in self.unsure:
            gap = Gap.NEVER if end < 0 else Gap.MAYBE
        elif end < 0 or (cleared is not None and cleared.at >= end):
            gap = Gap.NEVER
        elif cleared is not None and cleared.at == OPEN:
            gap = Gap.MAYBE
        elif cleared is not None and cleared.at == NOT_EXACT:
            # Silent since a step that was not finite, it is cold whatever was lost before that.
            since = self._cold(gap)
            since.time_ms, since.touched_ms = cleared.time_ms, cleared.touched_ms
            gap = Gap.MAYBE if self._expired(since, time_ms) is Sure.YES else Gap.ALWAYS
        return self._cold(gap, known=known)

    def _expired(self, state: KeyState, time_ms: int) -> Sure:
        if self._expiry is not None and time_ms - state.time_ms > self._expiry:
            return Sure.YES
        return self.silent(state)

    def _cold(self, gap: Gap, *, known: bool = True) -> KeyState:
        return KeyState(0, -1, 0, 0, -1, gap, known, self._key.cold(), since=self._folder)

    def _clear(self, key: bytes, at: Cleared) -> None:
        self.states.pop(key, None)
        self.unsure.discard(key)
        if self._keeps_cleared:
            self.cleared[key] = at

    def _reject(self, offset: int, reason: str, key: bytes | None, value: bytes | None) -> None:
        self.rejects[offset] = Rejected(reason, record_digest(key, value), len(value or b""))
        self._append(offset, Kind.REJECT, NO_KEY)
        self._append_output(self._blank)

    def _append(self, offset: int, kind: Kind, number: int, state: KeyState | None = None) -> None:
        self._offsets.append(offset)
        self._kinds.append(kind)
        self._key_numbers.append(number)
        self._times.append(0 if state is None else state.time_ms)
        self._steps.append(0 if state is None else state.steps)
        self._gaps.append(Gap.NEVER if state is None else state.gap)
        self._known.append(state is None or state.known)
        self._since.append(0 if state is None else state.since)
        if self.rule is not None:
            self._due.extend((Due.NO, Due.NO))

    def _append_output(self, stepped: Stepped, value: bytes | None = None) -> None:
        self._outputs.frombytes(stepped.y[: self._width].tobytes())
        if self._repeated is not None:
            self._events.append(self._repeated.digest(value))
        if self._key.fields:
            self._scores.extend(stepped.scores)
            self._judged.extend((stepped.judged.threshold, stepped.judged.smoothed))

    def _number(self, key: bytes) -> int:
        number = self._numbers.setdefault(key, len(self.keys))
        if number == len(self.keys):
            self.keys.append(key)
        return number


def record_digest(key: bytes | None, value: bytes | None) -> int:
    """Return the CRC-32 over a record's key and value, each behind its length (-1: null)."""
    digest = 0
    for part in (key, value):
        length = -1 if part is None else len(part)
        digest = crc32(part or b"", crc32(struct.pack("<i", length), digest))
    return digest
