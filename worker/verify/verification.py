"""One verification: which topics and states are read, in which order, and compared with what.

Owns that order, and where a partition's fold begins when part of its log is gone. Per partition:
the states, then the ends of the outputs, then the end of the input, so that whatever was put out
was caused by what is read, also beside a running worker. Counts come from topics and Redis only;
nothing of the worker's pipeline, schedule, slots or store is used. Called by cli.py (the
command), the demo and tests.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from confluent_kafka import Message

from keyfold.export import bundle as contract
from keyfold.export.connection import Connection
from keyfold.worker.emission import Emission, joined
from keyfold.worker.emit_settings import Emit
from keyfold.worker.errors import Crash, TopicError
from keyfold.worker.kafka.log import Extent, KafkaLog
from keyfold.worker.redis.url import Access
from keyfold.worker.verify.archive import Archive, Entry
from keyfold.worker.verify.compare import OutputCheck, Place, Strays
from keyfold.worker.verify.dead_letters import DeadLetter, check_dead_letters, parse_dead_letter
from keyfold.worker.verify.findings import Fault, Findings
from keyfold.worker.verify.formers import check_judged, check_named, formers, load_parents
from keyfold.worker.verify.lost import Lost, covered
from keyfold.worker.verify.offline_emit import OfflineEmit
from keyfold.worker.verify.refold import OfflineStep, Origin, Refold
from keyfold.worker.verify.seams import Seams, read_seams
from keyfold.worker.verify.stored import Stored, StoredGroup, check_bundle
from keyfold.worker.verify.stored_states import check_states

TICK_EVERY = 256  # records between two looks at the progress bar

# partitions done (with a fraction), all partitions, records read
Tick = Callable[[float, int, int], None]


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be verified."""

    bundle: Path  # folder
    kafka: Connection | str  # how it is reached
    input: str  # topic of events
    output: str  # topic of predictions
    dead_letter: str  # topic of rejects; it need not exist as long as there are none
    group: str  # whose states
    redis: Access | str | None = None  # None: compare topics only, up to the end of the input
    from_offset: int | None = None  # without Redis: where the fold began; None: the oldest event
    exactly_once: bool = False  # duplicates are violations
    # Every event from this offset on must have been predicted rightly, even below #F (a rebuild).
    require_from: int | None = None
    archive: Path | None = None  # records kept before they left the log (archive.py)
    examples: int = 3  # kept of each violation
    passthrough: tuple[str, ...] = ()  # members of the event that predictions repeat
    emit: Emit = field(default_factory=Emit)  # which predictions go out
    parents: tuple[Path, ...] = ()  # bundles whose states a fine-tune may have inherited


def verify(target: Target, tick: Tick = lambda done, of, records: None) -> Findings:
    """Refold and compare every partition. Safe beside a running worker.

    Raises Crash when the comparison cannot be made: no such topic or state, another bundle's state,
    events that are no longer in the log.
    """
    step = OfflineStep(contract.load(target.bundle))
    group = StoredGroup(target.redis, target.group) if target.redis is not None else None
    with KafkaLog(target.kafka) as log:
        return _Verification(target, step, log, group, tick).run()


@dataclass(frozen=True, slots=True)
class _Begin:
    """Where a partition's fold begins and what is known of what was before."""

    place: Place  # what is compared
    first: int  # the first record to be folded, in the archive or the log
    origin: Origin  # what had happened before it


class _Verification:
    def __init__(
        self,
        target: Target,
        step: OfflineStep,
        log: KafkaLog,
        group: StoredGroup | None,
        tick: Tick,
    ) -> None:
        self._target, self._step, self._log, self._group = target, step, log, group
        self._tick = tick
        self._findings = Findings(target.exactly_once, target.examples, group is not None)
        self._strays, self._stray_alerts = Strays(), Strays()
        rule = Emission.of(target.emit, step.bundle.manifest.outputs)  # refuses what does not fit
        self._owner = joined(step.bundle, rule)
        self._parents = load_parents(target.parents, None if rule is None else target.emit)
        self._rule = None if rule is None else OfflineEmit(target.emit, step.bundle)
        self._count = log.partitions(target.input)
        self._letters = _DeadLetters(log, target, self._count, self._findings)
        self._archive = Archive.load(target.archive) if target.archive is not None else None
        self._read = 0  # records so far

    def run(self) -> Findings:
        """Verify one partition after the other: memory holds one partition's events at most."""
        target = self._target
        for name in filter(None, (target.output, target.emit.alert_topic)):
            outputs = self._log.partitions(name)
            if outputs != self._count:
                raise TopicError(
                    f"topic {name!r}: expected {self._count} partitions as in "
                    f"{target.input!r}, got {outputs}"
                )
        if self._group is not None and not self._group.knows(target.input, self._count):
            raise Crash(
                f"Redis holds no state of group {target.group!r} on topic {target.input!r}: "
                "has its worker ever run? (keyfold-state list tells more; --no-state compares the "
                "topics alone)"
            )
        named = None
        if self._group is not None and self._parents:
            named = self._group.inherited(target.input, self._count)
        check_named(self._parents, named, target.group)
        for partition in range(self._count):
            self._partition(partition)
        self._strays.report(self._findings)
        self._stray_alerts.report(self._findings)
        if self._group is None:
            check_judged(self._step.bundle, self._findings.counts[Fault.WRONG_OUTPUT])
        return self._findings

    def _partition(self, partition: int) -> None:
        target, findings = self._target, self._findings
        stored = self._group.read(target.input, partition) if self._group is not None else None
        output = self._log.extent(target.output, partition)
        alerts = self._alert_extent(partition)
        self._letters.catch_up()
        source = self._log.extent(target.input, partition)
        letters = self._letters.about(partition)
        begin = self._begin(partition, stored, source, letters)
        place = begin.place
        refold = self._refold(begin, stored, source, output.end - output.start)
        check = OutputCheck(self._step.bundle, place, refold, findings, self._strays)
        done, total = source.end - place.base, source.end - place.base + output.end - output.start
        for message in self._log.read(target.output, partition, output.start, output.end):
            check.prediction(_offset(message), message.key(), message.value())
            done += 1
            self._progress(partition, done, total)
        check.finish()
        self._check_alerts(place, refold, alerts)
        check_dead_letters(place, refold, letters, findings)
        self._tick(partition + 1, self._count, self._read)

    def _alert_extent(self, partition: int) -> Extent | None:
        topic = self._target.emit.alert_topic
        return self._log.extent(topic, partition) if topic else None

    def _check_alerts(self, place: Place, refold: Refold, extent: Extent | None) -> None:
        """Compare a partition of the alert topic."""
        if extent is None:
            return
        topic = self._target.emit.alert_topic
        place = replace(place, output=topic, alerts=True)
        check = OutputCheck(self._step.bundle, place, refold, self._findings, self._stray_alerts)
        for message in self._log.read(topic, place.partition, extent.start, extent.end):
            check.prediction(_offset(message), message.key(), message.value())
        check.finish()

    def _begin(
        self, partition: int, stored: Stored | None, source: Extent, rejected: Container[int]
    ) -> _Begin:
        """Decide where the fold begins. Raises Crash when too much of the log is gone."""
        target = self._target
        if stored is None:
            base = source.start if target.from_offset is None else target.from_offset
            floor, watermark, committed, resets, lost = 0, source.end, 0, 0, Lost()
        else:
            check_bundle(stored, self._step.bundle, self._owner)
            base, watermark, lost = stored.number("#B"), stored.number("#W"), stored.lost
            floor, committed = stored.number_or("#F", 0), stored.number_or("#C", 0)
            resets = stored.number_or("#R", 0)
        if target.require_from is not None:
            floor = target.require_from
            if floor < base:
                raise Crash(
                    f"{target.input}:{partition}: expected the fold to begin at or below offset "
                    f"{floor}, from where on predictions are required, got {base}"
                )
        first, complete = self._first(partition, base, source.start, lost)
        most = None if stored is None else stored.stream_ms
        start = base if complete else first
        place = Place(
            target.input, target.output, partition, base, watermark, floor, committed, start,
            resets, self._seams(partition, rejected),
        )  # fmt: skip
        before = formers(stored, first, self._parents, self._step.bundle)
        self._findings.inherited += bool(before)
        return _Begin(place, first, Origin(lost, complete, most, rejected, before))

    def _seams(self, partition: int, rejected: Container[int]) -> Seams:
        target = self._target
        if self._group is None:
            return Seams(target.group)
        topics = (target.input, target.output)
        return read_seams(self._group.redis, target.group, topics, partition, rejected)

    def _first(self, partition: int, base: int, start: int, lost: Lost) -> tuple[int, bool]:
        """Return the first record there is, and whether none before it was ever folded."""
        kept = self._archive.ranges(partition) if self._archive is not None else []
        if covered(base, start, [*kept, *lost.ranges]):
            return base, True
        if start <= lost.end:
            return start, False
        raise Crash(
            f"{self._target.input}:{partition}: expected all events since offset {base}, where the "
            f"fold began, got a log that begins at {start}: nothing to compare with "
            "(keyfold-state list shows the partitions; --archive FILE brings kept records)"
        )

    def _records(self, begin: _Begin, source: Extent) -> Iterator[Entry]:
        """Yield the records of the archive, then those of the log."""
        partition, first = begin.place.partition, begin.first
        if self._archive is not None and first < source.start:
            yield from self._archive.read(partition, first, source.start)
        first = max(first, source.start)
        for message in self._log.read(begin.place.input, partition, first, source.end):
            yield Entry(_offset(message), message.timestamp()[1], message.key(), message.value())

    def _refold(self, begin: _Begin, stored: Stored | None, source: Extent, more: int) -> Refold:
        """Fold a partition's events and, at the watermark, compare the states."""
        place, findings = begin.place, self._findings
        refold = Refold(
            self._step, begin.origin, self._target.passthrough, self._rule,
            f"{place.input}:{place.partition}",
        )  # fmt: skip
        unchecked = stored
        total = max(source.end - place.base + more, 1)
        for record in self._records(begin, source):
            if unchecked is not None and record.offset >= place.watermark:
                check_states(self._step.bundle, place, refold, unchecked, findings)
                unchecked = None
            refold.fold(*record)
            findings.waiting += record.offset >= place.watermark
            self._progress(place.partition, record.offset - place.base, total)
        if unchecked is not None:
            check_states(self._step.bundle, place, refold, unchecked, findings)
        if self._group is not None and stored is None and len(refold):
            findings.add(
                Fault.MISSING_STATE,
                f"{place.input}:{place.partition}",
                f"states and a watermark of group {self._target.group!r}",
                "none in Redis",
            )
        if place.watermark > source.end:
            where = f"{place.input}:{place.partition}: watermark"
            findings.add(Fault.WRONG_STATE, where, f"at most {source.end}", str(place.watermark))
        return refold

    def _progress(self, partition: int, done: int, total: int) -> None:
        self._read += 1
        if self._read % TICK_EVERY == 0:
            self._tick(partition + min(done / total, 1.0), self._count, self._read)


class _DeadLetters:
    """The dead letters about one input topic, by the record they are about."""

    def __init__(self, log: KafkaLog, target: Target, sources: int, findings: Findings) -> None:
        self._log, self._target, self._findings = log, target, findings
        self._sources = sources  # partitions of the input
        self._about: dict[int, dict[int, list[DeadLetter]]] = {}
        try:
            count = log.partitions(target.dead_letter)
        except TopicError:
            count = 0
        self._next: list[int | None] = [None] * count

    def catch_up(self) -> None:
        """Read what has come since the last call."""
        for partition, following in enumerate(self._next):
            extent = self._log.extent(self._target.dead_letter, partition)
            start = extent.start if following is None else following
            for message in self._log.read(self._target.dead_letter, partition, start, extent.end):
                self._take(message)
            self._next[partition] = extent.end

    def about(self, partition: int) -> Mapping[int, list[DeadLetter]]:
        """Return, by offset, the dead letters about an input partition's records."""
        return self._about.pop(partition, {})

    def _take(self, message: Message) -> None:
        where = f"{message.topic()}:{message.partition()}:{message.offset()}"
        headers = cast("list[tuple[str, bytes | None]]", message.headers() or [])
        parsed = parse_dead_letter(where, message.key(), message.value(), headers)
        if parsed is None:
            self._findings.add(Fault.UNEXPECTED, where, "a dead letter", "no keyfold headers")
        elif parsed[0] == self._target.input:
            _, partition, offset, letter = parsed
            if partition not in range(self._sources):
                got = f"about partition {partition}"
                self._findings.add(Fault.UNEXPECTED, where, "about a partition of the input", got)
                return
            self._about.setdefault(partition, {}).setdefault(offset, []).append(letter)


def _offset(message: Message) -> int:
    offset = message.offset()
    if offset is None:
        raise Crash("Kafka: a record without an offset")
    return offset
