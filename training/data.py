"""An event log becomes one sequence per key, in log order, decoded as the worker decodes.

Owns the step from raw records to arrays, and the report of rejects by file, row and field. It knows
the contract (events, features) but neither Keras nor how sequences are split. Called by the
commands. Raw text is dropped chunk by chunk, so memory follows the number of events and features,
not the size of the log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from keyfold.export.errors import Crash, Reject
from keyfold.export.events import Decoder, EventSpec, OutputSpec
from keyfold.export.features import FeatureSpec
from keyfold.training.config import Config, Data
from keyfold.training.labels import Labels
from keyfold.training.sources import Chunk, read_files, read_topic

SHOWN_REJECTS = 10  # in a report; the others are counted


class DataError(Crash):
    """An event log does not hold what the settings say."""


@dataclass(frozen=True, slots=True)
class Sequence:
    """One key's events in log order, from a cold start to its next one."""

    key: str  # for people and patterns; bytes that are no UTF-8 are shown escaped
    x: NDArray[np.float32]  # (T,F) unscaled features
    times_ms: NDArray[np.int64]  # (T,) event times
    labels: NDArray[np.float32]  # (T,) label, or class number; NaN: no label

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True, slots=True)
class EventLog:
    """A whole log, decoded."""

    events: EventSpec  # how it was decoded
    features: FeatureSpec  # columns of every x
    outputs: OutputSpec  # what the labels mean
    sequences: tuple[Sequence, ...]  # by first appearance; a key that starts anew has several
    sha256: str  # of the records read, in order
    records: int  # read, rejects included
    rejected: int  # of these
    rejects: tuple[str, ...]  # the first SHOWN_REJECTS: file, row, field, why

    @property
    def count(self) -> int:
        """How many events the sequences hold."""
        return sum(map(len, self.sequences))


def read_log(config: Config) -> EventLog:
    """Read the log that the settings name. Raises SourceError or DataError."""
    if config.kafka.topic:
        return build(config.data, read_topic(config.kafka), keyed=True)
    return build(config.data, read_files(config.data.files), keyed=False)


def build(data: Data, chunks: Iterable[Chunk], *, keyed: bool) -> EventLog:
    """Decode chunks of records. `keyed`: the record key is the key, as on Kafka.

    Raises DataError: more rejects than data.max_reject_share allows, or no event at all.
    """
    features = FeatureSpec(data.features)
    # On Kafka key_field names what a log file would call the key; the worker does not read it.
    events = EventSpec(
        data.key_field, data.time_field, data.time_unit, data.tombstone, data.reset_after_ms
    )
    labels = Labels(data, keyed)
    columns = _Columns(data.tombstone == "reset", data.reset_after_ms)
    decoder = Decoder(events, features)
    for chunk in chunks:
        columns.add(chunk, decoder, labels)
    _check(columns, data)
    return EventLog(
        events,
        features,
        labels.outputs(),
        tuple(columns.sequences(labels)),
        columns.digest.hexdigest(),
        columns.records,
        columns.rejected,
        tuple(columns.rejects),
    )


def _check(columns: _Columns, data: Data) -> None:
    report = "".join(f"\n  {reject}" for reject in columns.rejects)
    if columns.rejected > data.max_reject_share * columns.records:
        raise DataError(
            f"the event log: expected at most {data.max_reject_share:.1%} rejects "
            f"(data.max_reject_share), got {columns.rejected} of {columns.records} records:{report}"
        )
    if not columns.names:
        raise DataError("the event log: expected events, got none")


@dataclass(slots=True)
class _Columns:
    """Decoded chunks, as columns of arrays."""

    resets: bool  # a null value ends its key's sequence
    reset_after_ms: int | None = None  # so does a longer silence of the key, by its own event times
    x: list[NDArray[np.float32]] = field(default_factory=list)  # per chunk (N,F)
    times_ms: list[NDArray[np.int64]] = field(default_factory=list)  # per chunk (N,)
    owners: list[NDArray[np.int64]] = field(default_factory=list)  # per chunk (N,): sequence number
    labels: list[NDArray[np.float32]] = field(default_factory=list)  # per chunk (N,)
    names: list[str] = field(default_factory=list)  # sequence number -> key
    current: dict[bytes, int] = field(default_factory=dict)  # key -> its newest sequence
    last_ms: list[int] = field(default_factory=list)  # sequence number -> time of its last event
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)  # over what was read
    records: int = 0  # read
    rejected: int = 0  # of these
    rejects: list[str] = field(default_factory=list)  # the first few, with their place

    def add(self, chunk: Chunk, decoder: Decoder, labels: Labels) -> None:
        """Decode a chunk and keep what is good of it."""
        decoded = decoder.decode(chunk.values, chunk.timestamps_ms)
        owners = np.full(len(chunk.values), -1, np.int64)
        targets = np.full(len(chunk.values), np.nan, np.float32)
        keys = chunk.keys or [None] * len(chunk.values)
        for row, (key, value) in enumerate(zip(keys, chunk.values, strict=True)):
            self.digest.update(b"%b\0%b\n" % (key or b"", value or b""))
            try:
                if value is None and self.resets and key is not None:
                    self.current.pop(key, None)
                    continue
                if row in decoded.rejects:
                    raise Reject(decoded.rejects[row])
                key, targets[row] = labels.read(key, value or b"")
                owners[row] = self._owner(key, int(decoded.times_ms[row]))
            except Reject as reject:
                self._note(f"{chunk.source}, {chunk.places[row]}: {reject}")
        self.records += len(chunk.values)
        good = owners >= 0
        self.x.append(decoded.x[good])
        self.times_ms.append(decoded.times_ms[good])
        self.owners.append(owners[good])
        self.labels.append(targets[good])

    def _owner(self, key: bytes, time_ms: int) -> int:
        """Return the number of the sequence that a key's next event belongs to."""
        number = self.current.get(key)
        if number is None or self._is_silent(time_ms - self.last_ms[number]):
            number = self.current[key] = len(self.names)
            self.names.append(key.decode(errors="backslashreplace"))
            self.last_ms.append(time_ms)
        self.last_ms[number] = time_ms
        return number

    def _is_silent(self, gap_ms: int) -> bool:
        return self.reset_after_ms is not None and gap_ms > self.reset_after_ms

    def _note(self, reject: str) -> None:
        self.rejected += 1
        if len(self.rejects) < SHOWN_REJECTS:
            self.rejects.append(reject)

    def sequences(self, labels: Labels) -> Iterator[Sequence]:
        """Gather each key's rows, in log order."""
        owners = np.concatenate(self.owners)
        order = np.argsort(owners, kind="stable")  # stable: log order within a key
        ends = np.cumsum(np.bincount(owners, minlength=len(self.names)))
        x, times_ms = np.concatenate(self.x), np.concatenate(self.times_ms)
        targets = labels.final(np.concatenate(self.labels))
        for name, rows in zip(self.names, np.split(order, ends[:-1]), strict=True):
            yield Sequence(name, x[rows], times_ms[rows], targets[rows])
