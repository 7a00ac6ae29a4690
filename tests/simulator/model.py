"""Records, key states, and the truth about them: the fold of a log that everything is held against.

A state is the list of the events that were folded into it, each stamped with the bundle that folded
it, so that any wrong, missing, doubled or reordered event shows. Knows neither Redis nor workers.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import NamedTuple, Protocol

REJECT = b"not an event"  # a record's value that cannot be decoded
BUNDLES = 16  # more than a schedule ever has


@dataclass(slots=True)  # not frozen: the protocol's Record does not promise it
class Record:
    """One record of the input log."""

    offset: int  # in its partition
    timestamp: int  # of the record, ms
    key: bytes | None  # whose event it is
    value: bytes | None  # None: a tombstone
    time: int  # of the event, ms
    uid: int  # tells it from every other record of any log


class State(NamedTuple):
    """One key's state."""

    history: tuple[int, ...]  # the events folded: uid and bundle of each
    offset: int  # of the last event
    time: int  # of the last event, ms
    touched: int  # stream time at the last event, ms
    gap: bool  # its history may miss events


def stream_after(stream: int | None, record: Record) -> int | None:
    """Return the stream time after a record."""
    if record.value is None or record.value == REJECT:
        return stream
    at = min(record.time, record.timestamp)
    return at if stream is None or at > stream else stream


def expired(state: State, record: Record, stream: int, reset_after: int | None) -> bool:
    """Say whether an event finds its key's state expired."""
    return (
        reset_after is not None
        and bool(state.history)
        and (record.time - state.time > reset_after or stream - state.touched > reset_after)
    )


def step(
    state: State | None, record: Record, stream: int, bundle: int, reset_after: int | None
) -> State:
    """Fold one event into its key's state; `stream` includes the event."""
    if state is None or expired(state, record, stream, reset_after):
        history: tuple[int, ...] = ()
        gap = False
    else:
        history, gap = state.history, state.gap
    stamped = (*history, record.uid * BUNDLES + bundle)
    return State(stamped, record.offset, record.time, stream, gap)


class Output(NamedTuple):
    """A prediction or a dead letter."""

    offset: int  # of its event
    key: bytes | None  # of its event
    history: tuple[int, ...] | None  # of the state behind it; None: a dead letter
    gap: bool  # whether it says that events may be missing


class History(Protocol):
    """What the truth needs of a log."""

    records: list[Record]  # all that were ever appended, in offset order
    offsets: list[int]  # theirs
    gone: set[int]  # offsets taken by compaction


@dataclass(slots=True)
class Truth:
    """The truth after some records."""

    states: dict[bytes, State]  # of all keys that have one
    stream: int | None  # stream time, ms
    last: Record | None  # the last record folded here


class Lineage:
    """What a partition's states and outputs must be from some beginning on.

    Another one begins whenever something is given up: by an operator, another bundle or retention.
    """

    __slots__ = (
        "_begin", "_index", "_skipped", "_upto", "bundle", "era", "floor", "log",
        "lost_upto", "now", "offsets", "outputs", "reset_after", "restarted", "start",
    )  # fmt: skip

    def __init__(
        self,
        log: History,
        start: int,
        bundle: int,
        reset_after: int | None,
        era: int,
        floor: int = 0,
        base: Truth | None = None,
        lost_upto: int = 0,
    ) -> None:
        self.log, self.start, self.bundle = log, start, bundle
        self.reset_after, self.era, self.floor = reset_after, era, floor
        self.lost_upto = lost_upto  # end of the last lost range; 0: none
        self._begin = base or Truth({}, None, None)
        self._skipped = frozenset(log.gone)  # compacted before the fold began
        self.outputs: dict[int, tuple[bytes | None, tuple[int, ...] | None, bool | None]] = {}
        self.offsets: list[int] = []  # of outputs, in order
        self.restarted: set[bytes] = set()  # keys reset since the loss: whether flagged is open
        self._rewind()

    def _rewind(self) -> None:
        begin = self._begin
        self.now = Truth(dict(begin.states), begin.stream, begin.last)
        self._upto = self.start
        self._index = bisect_left(self.log.offsets, self.start)

    def at(self, watermark: int) -> Truth:
        """Return the truth at a watermark; valid until the next call."""
        if watermark < self._upto:
            self._rewind()
        self._upto = watermark
        log, index = self.log, self._index
        records = log.records
        while index < len(records) and records[index].offset < watermark:
            record = records[index]
            index += 1
            if record.offset >= self.start and record.offset not in self._skipped:
                self._fold(record)
        self._index = index
        return self.now

    def _fold(self, record: Record) -> None:
        now, key, offset = self.now, record.key, record.offset
        now.last = record
        now.stream = stream_after(now.stream, record)
        if key is None or record.value is None:
            now.states.pop(key or b"", None)
            self.restarted.add(key or b"")
            return
        history: tuple[int, ...] | None = None
        gap: bool | None = False
        if record.value != REJECT:
            before = now.states.get(key)
            after = step(before, record, now.stream or 0, self.bundle, self.reset_after)
            if before is not None and len(after.history) == 1:
                self.restarted.add(key)
            now.states[key] = after
            history = after.history
            if self.lost_upto:
                gap = None if key in self.restarted else True
        if offset not in self.outputs:
            self.offsets.append(offset)
            self.outputs[offset] = (key, history, gap)

    def expected(
        self, offset: int
    ) -> tuple[bytes | None, tuple[int, ...] | None, bool | None] | None:
        """Return what must be put out about an offset (gap None: either); None: nothing."""
        if offset not in self.outputs:
            self.at(max(self._upto, offset + 1))
        return self.outputs.get(offset)

    def outputs_between(self, low: int, high: int) -> list[int]:
        """Return the offsets in [low, high) about which there must be outputs."""
        low = max(low, self.floor, self.start)
        if high > self._upto:
            self.at(high)
        return self.offsets[bisect_left(self.offsets, low) : bisect_left(self.offsets, high)]
