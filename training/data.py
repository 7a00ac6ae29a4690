"""An event log becomes one sequence per key, decoded as the worker decodes.

Owns the step from raw records to arrays, their order, and the report of rejects by file, row and
field. It knows the contract (events, features) but neither Keras nor how sequences are split; what
is learned from the training part (means, categories) comes after it, in learned.py. Called by the
commands. Raw text is dropped chunk by chunk, so memory follows the number of events and features,
not the size of the log; where an event is a text, that is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from keyfold.export.column_names import LOOKED_AT, absent_names
from keyfold.export.columns import category_text
from keyfold.export.errors import Crash
from keyfold.export.event_spec import NUMERIC_UNITS
from keyfold.export.events import EventSpec, OutputSpec
from keyfold.export.features import FeatureSpec, Field, LongForm
from keyfold.export.tables import is_csv
from keyfold.export.text import Text
from keyfold.training.config import Config, Data, Forecast
from keyfold.training.documents import Read, Reader
from keyfold.training.histories import Histories, Rows
from keyfold.training.labels import Aside, Labels
from keyfold.training.rows import prepared
from keyfold.training.sequence import Sequence as Sequence
from keyfold.training.sources import Chunk, read_files, read_topic

SHOWN_REJECTS = 10  # in a report; the others are counted
UNKNOWN = "\0"  # stands for a category's values before they are learned


class DataError(Crash):
    """An event log does not hold what the settings say."""


@dataclass(frozen=True, slots=True)
class EventLog:
    """A whole log, decoded."""

    events: EventSpec  # how it was decoded
    features: FeatureSpec  # columns of every x
    meaning: OutputSpec | None  # of the labels; None: not known yet
    sequences: tuple[Sequence, ...]  # by first appearance; a key that starts anew has several
    sha256: str  # of the records read, in order
    records: int  # read, rejects included
    rejected: int  # of these
    rejects: tuple[str, ...]  # the first SHOWN_REJECTS: file, row, field, why
    disordered: int = 0  # rows that stood before an earlier row of their key
    is_sorted: bool = True  # such rows were put in order; False: a topic's are left as they are
    joined: tuple[str, ...] = ()  # what became of labels in a log of their own, for people
    words: tuple[tuple[str, ...], ...] = ()  # per category: the texts that `texts` numbers
    targets: tuple[str, ...] = ()  # fields that `observed` holds
    doubled: int = 0  # rows of files in the second pass of an hour that the time zone has twice
    unknown: tuple[str, ...] = ()  # keys of which data.static has no row
    transcripts: tuple[tuple[str, ...], ...] = ()  # of a transcription: what labels number
    target: Text | None = None  # events are pairs of texts: how what answers them is said
    next_symbols: bool = False  # events are texts, and what is predicted is their next symbol

    @property
    def outputs(self) -> OutputSpec:
        """What is predicted. Raises DataError where the labels did not say it."""
        if self.meaning is None:
            raise DataError("data.label: expected at least two classes in the event log, got fewer")
        return self.meaning

    @property
    def count(self) -> int:
        """How many events the sequences hold."""
        return sum(sequence.events for sequence in self.sequences)


def read_chunks(config: Config) -> Iterator[Chunk]:
    """Read the records that the settings name. Raises Crash with the reason."""
    if config.kafka.topic:
        return read_topic(config.kafka, config.connection, config.data)
    return read_files(config.data.files, config.data)


def read_log(
    config: Config, chunks: Iterable[Chunk] | None = None, features: FeatureSpec | None = None
) -> EventLog:
    """Decode the log that the settings name, or these chunks of it. Raises Crash.

    `features`: see build.
    """
    chunks = read_chunks(config) if chunks is None else chunks
    keyed = bool(config.kafka.topic)
    # A child's log may be short: nothing need have ended in it. A topic's ends may come yet.
    expected = [] if keyed or features is not None else ["end_field"]
    expected += [] if config.labels.files else ["label"]
    if features is None and config.data.text:
        features = spec_of(config.data, config.read_text)
    log = build(
        config.data, chunks, keyed=keyed, forecast=config.forecast, features=features,
        expected=expected,
    )  # fmt: skip
    return replace(log, target=config.said_text)


def spec_of(data: Data, text: Text | None = None) -> FeatureSpec:
    """Return the settings' feature spec, without what training learns."""
    fields = []
    for name in data.features:
        missing = data.missing
        missing = "mask" if name in data.missing_mask else missing
        missing = "last" if name in data.missing_last else missing
        if name in data.categories:
            fields.append(Field(name, "category", (UNKNOWN,), missing))
        elif name in data.booleans:
            fields.append(Field(name, "boolean", missing=missing))
        else:
            standardise = name in data.standardise_by_key
            fields.append(Field(name, missing=missing, standardise=standardise))
    long = LongForm(data.long_name, data.long_value) if data.long_name else None
    return FeatureSpec(tuple(fields), data.since_last, long, text)


def targets_of(data: Data, forecast: Forecast) -> tuple[str, ...]:
    """Return the fields that are forecast; none with a label."""
    if data.label or not data.features:
        return ()
    aside = {*data.booleans, *data.categories, *data.standardise_by_key}
    found = forecast.fields or tuple(name for name in data.features if name not in aside)
    if not found:
        raise DataError("forecast.fields: expected numbers among data.features, got none")
    return found


def build(
    data: Data,
    chunks: Iterable[Chunk],
    *,
    keyed: bool,
    forecast: Forecast | None = None,
    features: FeatureSpec | None = None,
    expected: Seq[str] = (),
) -> EventLog:
    """Decode chunks of records. `keyed`: the record key is the key, as on Kafka.

    `features` are a trained run's; without them x holds what training can know before it has
    learned. `expected`: which of "label" and "end_field" name a member that some event must have.
    Raises DataError: such a member is absent, more rejects than data.max_reject_share allows, or
    no event at all.
    """
    spec = features or spec_of(data)
    events = data.events()
    targets = targets_of(data, forecast or Forecast())
    # The hook, if any, has been called by `prepared`; a topic's values are JSON by now.
    reader = Reader(replace(events.of_files, decoder=""), spec, targets, data.target_text)
    labels = Labels(data, keyed)
    columns = _Columns(data.tombstone == "reset", [{} for _ in data.categories])
    unknown: set[str] = set()
    rows: dict[str, Seq[bytes | None]] = {}  # the first of every source
    for chunk in prepared(chunks, data, unknown):
        rows.setdefault(chunk.source, chunk.values[:LOOKED_AT])
        columns.add(chunk, reader, labels)
    # A CSV's first line names all that there can be; of other events some may just lack a member.
    tables = (features is None or bool(data.text)) and not keyed and all(map(is_csv, rows))
    strict = tables and not data.static and not data.decoder
    if strict or not columns.has_events:
        asked = [f.name for f in spec.fields if strict or f.missing == "error"]
        asked += [name for name in (data.text, data.target_text) if name]
        _check_members(rows, data, asked, keyed=keyed)
    # They may be rare: what says that there is none is the whole log.
    _check_rare(rows, data, [name for name in expected if not columns.has_any(name)])
    _check(columns, data)
    is_text = data.time_field is not None and data.time_unit not in NUMERIC_UNITS
    zone = data.time_zone if is_text else "UTC"
    # A topic has its own order, in which the worker serves it.
    histories = Histories(data.reset_after_ms, zone, sort=not keyed)
    return EventLog(
        events=events,
        features=spec,
        meaning=labels.outputs() if data.label and labels.is_usable else None,
        sequences=tuple(_sequences(columns, labels, histories)),
        sha256=columns.digest.hexdigest(),
        records=columns.records,
        rejected=columns.rejected,
        rejects=tuple(columns.rejects),
        disordered=histories.disordered,
        is_sorted=not keyed,
        doubled=histories.doubled,
        words=tuple(tuple(words) for words in columns.words),
        targets=targets,
        unknown=tuple(sorted(unknown)),
        transcripts=labels.transcripts,
        next_symbols=bool(data.text and not (data.label or data.features or data.target_text)),
    )


def _check_members(
    rows: Mapping[str, Seq[bytes | None]], data: Data, fields: Iterable[str], *, keyed: bool
) -> None:
    """Refuse a setting that names a member which no event has: ten rejects would say less."""
    asked = [("time_field", data.time_field or ""), ("key_field", "" if keyed else data.key_field)]
    asked += [("long_name", data.long_name), ("long_value", data.long_value)]
    settings = {data.text: "text", data.target_text: "target_text"}
    asked += [] if data.long_name else [(settings.get(name, "features"), name) for name in fields]
    _check_absent(rows, asked)


def _check_rare(rows: Mapping[str, Seq[bytes | None]], data: Data, settings: Seq[str]) -> None:
    """Refuse what would be no error otherwise: events without a label, keys that never end."""
    _check_absent(rows, [(name, getattr(data, name)) for name in settings])


def _check_absent(rows: Mapping[str, Seq[bytes | None]], asked: Iterable[tuple[str, str]]) -> None:
    """Refuse the first of these settings and their members which no row has."""
    values = (value for some in rows.values() for value in some)
    absent, there = absent_names(values, [name for _, name in asked if name])
    for setting, name in asked:
        if name in absent:
            raise DataError(
                f"data.{setting}: expected a column of {next(iter(rows))}, got {name!r}; there "
                f"are: {there}"
            )


def _check(columns: _Columns, data: Data) -> None:
    report = "".join(f"\n  {reject}" for reject in columns.rejects)
    if columns.rejected > data.max_reject_share * columns.records:
        raise DataError(
            f"the event log: expected at most {data.max_reject_share:.1%} rejects "
            f"(data.max_reject_share), got {columns.rejected} of {columns.records} records:{report}"
        )
    if not columns.has_events:
        raise DataError("the event log: expected events, got none")


@dataclass(slots=True)
class _Columns:
    """Decoded chunks, as columns of arrays."""

    resets: bool  # a null value ends its key's sequence
    words: list[dict[str, int]]  # per category: text -> number, by first appearance
    x: list[NDArray[np.float32]] = field(default_factory=list)  # per chunk (N,F)
    times_ms: list[NDArray[np.int64]] = field(default_factory=list)  # per chunk (N,)
    owners: list[NDArray[np.int64]] = field(default_factory=list)  # per chunk (N,): see Rows
    ends: list[NDArray[np.bool_]] = field(default_factory=list)  # per chunk (N,): of a history
    learned: list[NDArray[np.bool_]] = field(default_factory=list)  # (N,) False: an end, no event
    labels: list[NDArray[np.float32]] = field(default_factory=list)  # per chunk (N,)
    observed: list[NDArray[np.float32]] = field(default_factory=list)  # per chunk (N,K), if any
    texts: list[NDArray[np.int32]] = field(default_factory=list)  # per chunk (N,C); -1: missing
    documents: list[str] = field(default_factory=list)  # of events, where an event is a text
    answers: list[str] = field(default_factory=list)  # likewise, where a text answers it
    names: list[str] = field(default_factory=list)  # owner's number -> key
    current: dict[bytes, int] = field(default_factory=dict)  # key -> its number; see Rows
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)  # over what was read
    records: int = 0  # read
    rejected: int = 0  # of these
    rejects: list[str] = field(default_factory=list)  # the first few, with their place

    def add(self, chunk: Chunk, reader: Reader, labels: Labels) -> None:
        """Decode a chunk and keep what is good of it."""
        read = reader.read(chunk.values, chunk.timestamps_ms)
        decoded, aside = read.rows, labels.read(chunk)
        rejects = {**aside.rejects, **read.rejects, **chunk.rejects}
        # The worker serves an event whose label is refused here, and ends its key's history there.
        closing = self._closing(read, {**read.unserved, **chunk.rejects})
        owners = np.full(len(chunk.values), -1, np.int64)
        learned = np.zeros(len(chunk.values), np.bool_)
        for row, (key, value) in enumerate(zip(aside.keys, chunk.values, strict=True)):
            self.digest.update(b"%b\0%b\n" % (key or b"", value or b""))
            if value is None and self.resets and key is not None:
                self.current.pop(key, None)
            elif row in rejects or key is None:
                self._note(f"{chunk.source}, {chunk.places[row]}: {rejects.get(row, 'no key')}")
                if key is not None and closing[row]:
                    owners[row] = self._owner(key)
            else:
                owners[row], learned[row] = self._owner(key), True
        self.records += len(chunk.values)
        good = owners >= 0
        self.x.append(decoded.x[good])
        self.documents += read.documents(good)
        self.answers += read.answers(good)
        self.times_ms.append(decoded.times_ms[good])
        self.owners.append(owners[good])
        self.ends.append(closing[good])
        self.learned.append(learned[good])
        self.labels.append(aside.labels[good])
        if decoded.observed is not None:
            self.observed.append(decoded.observed[good])
        if self.words:
            self.texts.append(self._numbered(aside)[good])

    def has_any(self, setting: str) -> bool:
        """Whether any row has a label, or ends its key's history."""
        if setting == "end_field":
            return any(ends.any() for ends in self.ends)
        return not all(np.isnan(labels).all() for labels in self.labels)

    @property
    def has_events(self) -> bool:
        """Whether any row is more than an end."""
        return any(learned.any() for learned in self.learned)

    @staticmethod
    def _closing(read: Read, unserved: Mapping[int, str]) -> NDArray[np.bool_]:
        """Say which of a chunk's rows (N,) end their key's history where they are served."""
        ends = read.rows.ends
        closing = np.zeros(len(read.rows.x), np.bool_) if ends is None else ends.copy()
        closing[list(unserved)] = False
        return closing

    def _owner(self, key: bytes) -> int:
        """Return the number of what a key's next event belongs to."""
        number = self.current.get(key)
        if number is None:
            number = self.current[key] = len(self.names)
            self.names.append(key.decode(errors="backslashreplace"))
        return number

    def _numbered(self, aside: Aside) -> NDArray[np.int32]:
        numbers = np.full((len(aside.keys), len(self.words)), -1, np.int32)
        for column, (words, values) in enumerate(zip(self.words, aside.texts, strict=True)):
            for row, value in enumerate(values):
                if (text := category_text(value)) is not None:
                    numbers[row, column] = words.setdefault(text, len(words))
        return numbers

    def _note(self, reject: str) -> None:
        self.rejected += 1
        if len(self.rejects) < SHOWN_REJECTS:
            self.rejects.append(reject)


def _sequences(columns: _Columns, labels: Labels, histories: Histories) -> Iterator[Sequence]:
    """Gather each key's rows in order, cut where the key begins anew."""
    x, times_ms = np.concatenate(columns.x), np.concatenate(columns.times_ms)
    targets = labels.final(np.concatenate(columns.labels))
    observed = np.concatenate(columns.observed) if columns.observed else None
    texts = np.concatenate(columns.texts) if columns.texts else None
    documents, answers = columns.documents, columns.answers
    ends, learned = np.concatenate(columns.ends), np.concatenate(columns.learned)
    all_rows = Rows(np.concatenate(columns.owners), times_ms, ends, learned)
    for name, rows in histories.pieces(columns.names, all_rows):
        yield Sequence(
            name,
            x[rows],
            times_ms[rows],
            targets[rows],
            None if observed is None else observed[rows],
            None if texts is None else texts[rows],
            documents=tuple(map(documents.__getitem__, rows.tolist())) if documents else (),
            answers=tuple(map(answers.__getitem__, rows.tolist())) if answers else (),
        )
