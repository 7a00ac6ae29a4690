"""keyfold-worker worker.toml --dry-run: the worker's own path over some records, nothing written.

Owns which records are taken, and the report. It joins no group, sets no offset, writes nothing to
Kafka or Redis and does not read the states there: every key starts cold. Called by worker/cli.py.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from keyfold.worker.beginning import STARTS, moment
from keyfold.worker.check.event_look import EventLook
from keyfold.worker.columns import shortened, wrapped
from keyfold.worker.config import Config
from keyfold.worker.emission import Emission
from keyfold.worker.emit import Outputs
from keyfold.worker.kafka.log import Extent
from keyfold.worker.kafka.samples import Sample, fair_shares, from_starts, offsets_at, open_log
from keyfold.worker.key_field import expect_key_field
from keyfold.worker.model import Model
from keyfold.worker.protocol import Record
from keyfold.worker.trial import Trial

MOST = 1000  # records taken when nobody says how many
SHOWN = 5  # predictions printed
REASONS = 8  # reasons of rejects printed
NOTHING_FITS = 2  # exit status when no record is an event
STEPS = ("decode", "schedule", "step", "encode")  # of the path that runs here


@dataclass(slots=True)
class _Found:
    """What came out so far."""

    predictions: int = 0  # that would be emitted
    alerts: int = 0  # that would go to the alert topic
    shown: list[str] = field(default_factory=list)  # the first predictions
    reasons: Counter[str] = field(default_factory=Counter)  # of rejects
    example: dict[str, str] = field(default_factory=dict)  # reason -> where the first one is


def dry_run(config: Config, settings_file: str, most: int | None) -> int:
    """Run up to `most` records through decode, fold and encode and say what would come of them.

    Returns the exit status. Raises Crash: no broker, no topic, no bundle, another key field.
    """
    model = Model.load(config.worker.bundle)
    expect_key_field(config, model.bundle.manifest.events, settings_file)
    samples, begin = _records(config, most or MOST)
    count = sum(len(sample.records) for sample in samples)
    print(f"dry run of bundle {model.bundle.id} on topic {config.kafka.input}, {begin}")
    print("nothing is written and no group is joined; every key starts cold")
    if not count:
        print(f"\nno records in {config.kafka.input} there: send some, then try again:")
        print(f"keyfold-send LOG --config {settings_file}")
        return 0
    rule = Emission.of(config.emit, model.bundle.manifest.outputs)
    trial = Trial(model, config.kafka.input, config.worker.passthrough, rule)
    found, look = _Found(), EventLook(model.bundle.manifest, config.kafka.input)
    for sample in samples:
        look.add(sample)
    for micro_batch in _micro_batches(samples, config.worker.max_events):
        for number, outputs in trial.run(micro_batch):
            _note(found, config.kafka.input, number, outputs)
    print()
    for line in found.shown:
        print(line)
    for line in _summary(config, trial, found, count):
        print(line)
    for warns, text in look.findings():
        for line in wrapped(f"{'WARN' if warns else '':>9} ", text):
            print(line)
    if not trial.metrics.events:
        print("\nno record is an event of this bundle: see the reasons above")
        return NOTHING_FITS
    print(f"\nnext: keyfold-worker {settings_file}")
    return 0


def _records(config: Config, most: int) -> tuple[list[Sample], str]:
    """Take records from worker.start on; where that is `latest`, the newest ones."""
    topic, start = config.kafka.input, config.worker.start
    with open_log(config) as log:
        extents = [log.extent(topic, number) for number in range(log.partitions(topic))]
        if start == "latest":
            shares = fair_shares([extent.end - extent.start for extent in extents], most)
            ranges = [
                Extent(e.end - share, e.end) for e, share in zip(extents, shares, strict=True)
            ]
            begin = "its newest records (start = latest)"
        elif start in STARTS:
            ranges, begin = extents, "from its oldest record"
        else:
            at_ms = moment(start).at(int(time.time() * 1000))
            offsets = offsets_at(config, len(extents), at_ms)
            ranges = [
                Extent(max(e.start, e.end if offset is None else offset), e.end)
                for e, offset in zip(extents, offsets, strict=True)
            ]
            begin = f"from {start}"
        return from_starts(log, topic, ranges, most), begin


def _micro_batches(
    samples: Sequence[Sample], most: int
) -> Iterator[list[tuple[int, Sequence[Record]]]]:
    """Cut records into micro-batches of at most `most`, fairly over partitions."""
    piece = max(most // max(len(samples), 1), 1)
    cut = [
        [(s.partition, s.records[at : at + piece]) for at in range(0, len(s.records), piece)]
        for s in samples
    ]
    for together in itertools.zip_longest(*cut):
        yield [share for share in together if share is not None]


def _note(found: _Found, topic: str, number: int, outputs: Outputs) -> None:
    found.predictions += len(outputs.payloads)
    found.alerts += len(outputs.alerts)
    for payload in outputs.payloads[: max(SHOWN - len(found.shown), 0)]:
        found.shown.append(prediction_line(payload))
    for letter in outputs.dead_letters:
        reason = without_places(letter.reason)
        found.reasons[reason] += 1
        found.example.setdefault(reason, f"{topic}:{number}:{letter.offset}")


def prediction_line(payload: bytes) -> str:
    """Show a prediction in one line: where from, whose, what."""
    said = json.loads(payload)
    key = said.get("key", said.get("key_b64"))
    output = json.dumps(said["output"], ensure_ascii=False, separators=(",", ":"))
    return shortened(f"{said['about']} key {json.dumps(key, ensure_ascii=False)} -> {output}")


def without_places(reason: str) -> str:
    """Return a reject's reason without what differs from record to record."""
    return re.sub(r" \(byte \d+\)", "", reason)


def _summary(config: Config, trial: Trial, found: _Found, count: int) -> Iterator[str]:
    metrics, keys = trial.metrics, len(trial.slots)
    rejects = sum(found.reasons.values())
    yield ""
    yield f"{count:>9,} records: {metrics.events:,} events of {keys:,} keys, {rejects:,} rejects"
    if metrics.resets:
        yield f"{metrics.resets:>9,} times a key started cold again (silence, tombstone, end)"
    for reason, times in found.reasons.most_common(REASONS):
        yield from wrapped(f"{times:>9,} x ", f"{reason} (first at {found.example[reason]})")
    if len(found.reasons) > REASONS:
        yield f"          and {len(found.reasons) - REASONS} further reasons"
    if metrics.events:
        spent = {name: metrics.profile()[name] for name in STEPS}
        rate = 1e6 / max(sum(spent.values()), 1e-9)
        steps = ", ".join(f"{name} {us / 1000:.4f}" for name, us in spent.items())
        yield f"{rate:>9,.0f} events/s without Kafka and Redis; milliseconds per event:"
        yield f"          {steps}"
    yield (
        f"{found.predictions:>9,} predictions would go to {config.kafka.output}, "
        f"{rejects:,} rejects to {config.kafka.dead_letter}"
    )
    if trial.pending:
        yield from wrapped(" " * 10, trial.pending)
    if config.emit.alert_topic:
        yield f"{found.alerts:>9,} alerts to {config.emit.alert_topic}"
