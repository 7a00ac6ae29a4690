"""keyfold-worker check's questions to the records: are they events of this bundle, and well keyed?

Owns how many records are looked at and the words of the answers. It reads, no more. Called by
cli.py.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

import numpy as np

from keyfold.export.events import Decoder
from keyfold.worker.check.event_look import time_range
from keyfold.worker.check.key_placement import CRC32, MURMUR2, Keys, survey_keys
from keyfold.worker.check.report import Finding, fail, ok, warn
from keyfold.worker.columns import shortened
from keyfold.worker.config import Config
from keyfold.worker.first_day.dry_run import without_places
from keyfold.worker.kafka.samples import Sample, Taken, both_ends, open_log, spread
from keyfold.worker.key_field import KeyReader, agreement, configured_key_field, two_ways_out
from keyfold.worker.model import Model

PARTITIONS = 16  # looked at, evenly over their numbers
MOST = 100  # of the oldest and of the newest records of each
REASONS = 4  # of rejects, shown
AHEAD_S = 60.0  # an event time so far behind its record's timestamp is a clock's fault
SHOWN_KEY = 40  # columns of a key


class RecordSide:
    """The questions to the records of the input topic."""

    def __init__(
        self, config: Config, file: str, model: Callable[[], Model],
        counts: Callable[[], Mapping[str, int]],
    ) -> None:  # fmt: skip
        self._config, self._file, self._model, self._counts = config, file, model, counts
        self._samples: list[Sample] = []

    def events(self) -> Iterator[Finding]:
        """Decode the newest records as the worker would."""
        topic = self._config.kafka.input
        with open_log(self._config) as log:
            places = spread(self._counts()[topic], PARTITIONS)
            early, late = both_ends(log, topic, MOST, places)
        self._samples = [*early, *late]
        records = [record for sample in late for record in sample.records]
        if not records:
            yield warn(
                f"{topic} holds no records yet: send some (from a file: keyfold-send LOG --config "
                f"{self._file}), then check again"
            )
            return
        yield from self._judge(records, [
            f"{topic}:{sample.partition}:{record.offset}" for sample in late
            for record in sample.records
        ])  # fmt: skip

    def keys(self) -> Iterator[Finding]:
        """Ask where the producers put their keys, and whether the key is the right one."""
        topic = self._config.kafka.input
        partitions = self._counts()[topic]
        seen: dict[int, list[bytes | None]] = {}
        for sample in self._samples:
            seen.setdefault(sample.partition, []).extend(record.key for record in sample.records)
        found = survey_keys(seen, partitions)
        if not found.records:
            yield ok("no records, no keys")
            return
        yield from _null_keys(found)
        if found.keys:
            yield from _placement(found, partitions, topic)
            yield from self._key_field()

    def _judge(self, records: Sequence[Taken], places: Sequence[str]) -> Iterator[Finding]:
        manifest = self._model().bundle.manifest
        resets = manifest.events.tombstone == "reset"
        kept = [i for i, r in enumerate(records) if not (resets and r.value is None)]
        stamps = np.array([records[i].timestamp for i in kept], np.int64)
        decoded = Decoder(manifest.events, manifest.features).decode(
            [records[i].value for i in kept], stamps
        )
        good = [row for row in range(len(kept)) if row not in decoded.rejects]
        said = f"{len(good)} of the {len(records)} newest records are events"
        tombstones = len(records) - len(kept)
        said += f", {tombstones} are tombstones" if tombstones else ""
        yield ok(said) if good or tombstones else fail(f"{said}: wrong topic, or wrong bundle")
        reasons: Counter[str] = Counter()
        first: dict[str, str] = {}
        for row, why in sorted(decoded.rejects.items()):
            reasons[without_places(why)] += 1
            first.setdefault(without_places(why), places[kept[row]])
        for reason, times in reasons.most_common(REASONS):
            yield warn(f"{times} rejects: {reason} (first at {first[reason]})")
        if good and manifest.events.time_field is not None:
            yield ok(time_range(decoded.times_ms[good]))
            yield _clock(decoded.times_ms[good], stamps[good])

    def _key_field(self) -> Iterator[Finding]:
        """Compare the record key with the field that should be the key."""
        events = self._model().bundle.manifest.events
        configured = configured_key_field(self._config)
        field = configured or events.key_field
        if not field:
            return
        topic = self._config.kafka.input
        sampled = ((sample.partition, sample.records) for sample in self._samples)
        found = agreement(KeyReader(field, events), topic, sampled)
        if found.differ:
            yield fail(two_ways_out(field, found, topic, self._file))
        elif found.records:
            yield ok(f"the record key is the field {field!r} in all {found.records} records")
        elif configured:
            yield fail(
                f"kafka.key_field: no record has text or a number in {field!r}: the name of the "
                "field that is to be the record key is expected"
            )
        if found.records and found.without:
            yield warn(
                f"{found.without} of {found.records + found.without} records have no text or "
                f"number {field!r}: whether their key is right was not seen"
            )


def _clock(times_ms: np.ndarray, stamps: np.ndarray) -> Finding:
    """Compare event times with the records' timestamps and with this machine's clock."""
    newest_ms, now_ms = int(times_ms.max()), int(time.time() * 1000)
    year = _year(newest_ms)
    if not 1990 <= year <= 2200:
        return warn(
            f"the newest event time is in the year {year}: are the events' times in the unit that "
            "the bundle was trained with (events.time_unit in its manifest)?"
        )
    ahead_s = float((times_ms - stamps).max()) / 1000
    if ahead_s > AHEAD_S and newest_ms > now_ms:
        return warn(
            f"event times are up to {_span(ahead_s)} ahead of their records' timestamps: a clock "
            "in the future makes other keys look silent; see the producers' clocks"
        )
    behind_s = float(np.median(stamps - times_ms)) / 1000
    return ok(f"event times are {_span(behind_s)} behind their records' timestamps (median)")


def _year(time_ms: int) -> int:
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).year
    except (OverflowError, ValueError, OSError):
        return 9999 if time_ms > 0 else 0


def _span(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if abs(seconds) >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"


def _null_keys(found: Keys) -> Iterator[Finding]:
    if found.null:
        text = f"{found.null} of {found.records} records have no key: each of them is a reject"
        yield (warn if found.keys else fail)(f"{text}; let the producers set the record key")


def _placement(found: Keys, partitions: int, topic: str) -> Iterator[Finding]:
    if found.split:
        key, where = next(iter(found.split.items()))
        yield fail(
            f"key_in_two_partitions: {len(found.split)} of {found.keys} keys were seen in two "
            f"partitions, such as {shown(key)} in {' and '.join(map(str, where))}: each is two "
            "histories now; let all producers use one partitioner, and refill the topic by "
            "keyfold-worker repartition"
        )
    if partitions == 1:
        yield ok(f"{found.keys} keys, one partition")
        return
    whole = [name for name, count in found.fits.items() if count == found.keys]
    if len(whole) == 1:
        yield _one_partitioner(found, whole[0])
    elif whole:
        yield ok(f"{found.keys} keys: too few to tell by which partitioner they were placed")
    elif not found.split:
        told = ", ".join(f"{count} by {name}" for name, count in found.fits.items())
        yield warn(
            f"{found.keys} keys of {topic}: {told}, {found.neither} by neither: several "
            "partitioners, or partitions were added; a key may come to be in two partitions"
        )


def _one_partitioner(found: Keys, name: str) -> Finding:
    if name == MURMUR2:
        return ok(f"{found.keys} keys, all placed by {MURMUR2}")
    return warn(
        f"{found.keys} keys, all placed by {CRC32}: a Java producer or keyfold-send would put "
        "them elsewhere; set partitioner=murmur2_random where there will be both"
    )


def shown(key: bytes) -> str:
    """Show a key as text, or as hexadecimal digits."""
    try:
        return shortened(repr(key.decode()), SHOWN_KEY)
    except UnicodeDecodeError:
        return shortened(f"0x{key.hex()}", SHOWN_KEY)
