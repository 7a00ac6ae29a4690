"""The rows of a log along the worker's own path, and what came of them.

Owns the counts, the notes about the rows' order and which rejects are named. The path itself is
worker/trial.py's, the rows and their order rows.py's, the files out.py's. Called by cli.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import orjson

from keyfold.export.events import Decoder
from keyfold.export.tables import Row
from keyfold.worker.emission import Emission
from keyfold.worker.emit import DeadLetter, Outputs
from keyfold.worker.generation import most_events
from keyfold.worker.model import Model
from keyfold.worker.protocol import Record
from keyfold.worker.score.out import Writer
from keyfold.worker.score.rows import Recorder, RowRecord, Source, chunks, sort_by_time
from keyfold.worker.trial import Trial

SHOWN = 5  # rejects named when no file takes them
_TIME = re.compile(rb',"time":(-?\d+),')  # quotes inside a key are escaped: this is no part of one

Tick = Callable[[int], None]


@dataclass(slots=True)
class Scored:
    """What came of a log."""

    rows: int = 0  # read
    predictions: int = 0  # written
    alerts: int = 0  # told, written or not
    rejects: int = 0  # of rows
    keys: int = 0  # seen
    pending: str = ""  # what of it has no answer yet, for people
    disordered: int = 0  # events that stood behind a later one of their key
    first_disordered: int = 0  # row of the first of them
    shown: list[str] = field(default_factory=list)  # the first rejects: file, row, field, why


@dataclass(frozen=True, slots=True)
class Sinks:
    """Where everything goes."""

    predictions: Writer  # what the output topic would hold
    rejects: Any = None  # a file for what is no event; None: they are only counted
    alerts: Writer | None = None  # what the alert topic would hold; None: they are only counted


@dataclass(frozen=True, slots=True)
class Served:
    """What a worker's settings say of predictions; the defaults: every one, as it is."""

    passthrough: Sequence[str] = ()  # members of the event that they repeat
    rule: Emission | None = None  # which are written; None: all


def score(
    source: Source, model: Model, sinks: Sinks, tick: Tick, *,
    served: Served = Served(), sort: bool = False,
) -> Scored:  # fmt: skip
    """Write the prediction of every event of a log, in the order of its rows (`sort`: of time).

    Memory grows with the keys, not the events. Raises TableError naming file and row.
    """
    manifest = model.bundle.manifest
    trial = Trial(model, source.name, served.passthrough, served.rule)
    recorder = Recorder(source, manifest.events)
    scored = Scored()
    straight = manifest.outputs.is_straight
    order = _Order(scored, model, every_event_is_predicted=served.rule is None and straight)
    rows: Iterator[Row] = source.rows()
    if sort:
        rows = sort_by_time(rows, recorder, manifest.features)
    for some in chunks(rows, most_events(model.bundle)):
        records = recorder.records(some)
        for _, outputs in trial.run([(0, cast(Sequence[Record], records))]):
            sinks.predictions.write(outputs.payloads)
            if sinks.alerts is not None:
                sinks.alerts.write(outputs.alerts)
            scored.predictions += len(outputs.payloads)
            scored.alerts += len(outputs.alerts)
            order.note(records, outputs)
            _note_rejects(scored, source, outputs.dead_letters, sinks.rejects)
        scored.rows += len(records)
        tick(scored.rows)
    scored.keys, scored.pending = len(trial.slots), trial.pending
    return scored


class _Order:
    """Counts the events that are earlier than one of their key before them."""

    def __init__(self, scored: Scored, model: Model, *, every_event_is_predicted: bool) -> None:
        manifest = model.bundle.manifest
        self._scored = scored
        self._last: dict[bytes, int] = {}  # the latest event time by key
        self._timed = manifest.events.time_field is not None
        # Where some events are told of by no prediction, their times have to be read once more.
        decoder = Decoder(manifest.events, manifest.features)
        self._decoder = None if every_event_is_predicted else decoder

    def note(self, records: Sequence[RowRecord], outputs: Outputs) -> None:
        """Take the next rows, and what came of them."""
        if not self._timed:
            return
        if self._decoder is not None:
            decoded = self._decoder.decode([record.value for record in records], [0] * len(records))
            for place, (record, now) in enumerate(zip(records, decoded.times_ms, strict=True)):
                is_event = record.key is not None and place not in decoded.rejects
                if is_event and self._is_first_late(record.key or b"", int(now)):
                    self._scored.first_disordered = record.offset
            return
        for key, payload in zip(outputs.keys, outputs.payloads, strict=True):
            found = _TIME.search(payload)
            if self._is_first_late(key, int(found[1]) if found is not None else 0):
                about = orjson.loads(payload)["about"]
                self._scored.first_disordered = int(about.rpartition(":")[2])

    def _is_first_late(self, key: bytes, now: int) -> bool:
        """Take an event; say whether it is the first that is earlier than one before it."""
        if now >= self._last.get(key, now):
            self._last[key] = now
            return False
        self._scored.disordered += 1
        return self._scored.disordered == 1


def _note_rejects(
    scored: Scored, source: Source, letters: Sequence[DeadLetter], rejects: Any
) -> None:
    for letter in letters:
        reason = letter.reason
        if letter.key is None and source.key_field is not None:
            reason = f"field {source.key_field!r}: expected a key, got none"
        scored.rejects += 1
        if len(scored.shown) < SHOWN:
            scored.shown.append(f"{source.place(letter.offset)}: {reason}")
        if rejects is not None:
            line = {"file": source.name, "row": letter.offset, "reason": reason}
            rejects.write(orjson.dumps(line) + b"\n")
