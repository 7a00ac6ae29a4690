"""keyfold-send: streams an event log into a Kafka topic, keyed as Java clients would key it.

Owns the command line and the progress line; reading is in event_log.py, sending in
sender.py, what is odd about rows in report.py. A bundle is only asked for the
names of its key and time fields. Called as a console command.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn

from keyfold.export import bundle as contract
from keyfold.export import settings
from keyfold.export.column_names import LOOKED_AT, absent_names
from keyfold.export.connection import Connection, Security
from keyfold.export.event_spec import NUMERIC_UNITS, EventSpec
from keyfold.export.features import FeatureSpec, Field
from keyfold.export.formats import JSON, Format, format_for
from keyfold.export.tables import Row, read_rows
from keyfold.worker import command
from keyfold.worker.config import read_config
from keyfold.worker.errors import Crash, TopicError
from keyfold.worker.score.rows import Recorder, Source, sort_by_time
from keyfold.worker.send.event_log import STDIN, Entry, EventLogError, Excerpt, Fields, read_log
from keyfold.worker.send.file_form import add_form_flags, form_of
from keyfold.worker.send.report import RowReport
from keyfold.worker.send.sender import Pace, Sent, create_topic, partition_count, send


def main(argv: list[str] | None = None) -> int:
    """Run keyfold-send; return the exit status."""
    arguments = _parser().parse_args(argv)
    return command.run("keyfold-send", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    logging.basicConfig(format="keyfold-send: %(message)s", level=logging.WARNING)
    place = _place(arguments)
    fields = replace(_fields(arguments, place.bundle), record=_record(place.written))
    _check_columns(arguments, fields)
    if arguments.create_partitions is not None:
        create_topic(place.kafka, place.topic, arguments.create_partitions)
    elif partition_count(place.kafka, place.topic) is None:
        may = ""
        if place.kafka.security.sasl:
            may = f"; or {place.kafka.security.username!r} lacks the ACL Describe (or Write) on it"
        raise TopicError(
            f"topic {place.topic!r}: no such topic; --create-partitions N makes it{may}"
        )
    report = RowReport(is_sorted=arguments.sort)
    # What is sorted is in order, but for an hour that clocks show twice.
    in_order = fields.time is None or (arguments.sort and fields.time_unit in NUMERIC_UNITS)
    excerpt = Excerpt(
        arguments.from_row,
        _sorting(arguments.log, fields) if arguments.sort else None,
        report.note_broken if arguments.skip_broken else None,
        (lambda row, entry: None) if in_order else report.note_order,
    )
    entries = itertools.islice(read_log(arguments.log, fields, excerpt), arguments.limit)
    try:
        sent = _send(place, entries, Pace(arguments.rate, arguments.time_lapse))
    except EventLogError as error:
        raise Crash(f"{error}{_how_to_go_on(error, arguments)}") from error
    finally:
        for line in report.lines():
            _say(line)
    rate = sent.events / max(sent.seconds, 1e-9)
    _say(f"{sent.events:,} events to {place.topic} in {sent.seconds:.1f} s ({rate:,.0f}/s)")
    return 0


def _send(place: _Place, entries: Iterator[Entry], pace: Pace) -> Sent:
    """Send with a progress line."""
    stderr = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task, begin = bar.add_task(""), time.monotonic()

        def tick(sent: int) -> None:
            rate = sent / max(time.monotonic() - begin, 1e-9)
            bar.update(task, description=f"{sent:,} events sent, {rate:,.0f}/s")

        return send(place.kafka, place.topic, entries, pace, tick)


def _say(line: str) -> None:
    print(line if line.startswith(" ") else f"keyfold-send: {line}", file=sys.stderr)


def _how_to_go_on(error: EventLogError, arguments: argparse.Namespace) -> str:
    if error.begin is None:
        return ""
    begin = f"{'--sort ' if arguments.sort else ''}--from-row {error.begin}"
    if arguments.skip_broken:
        return f"; to go on, put it right, then {begin}"
    return f"; to go on, put it right, then {begin}; or {begin} --skip-broken leaves it out"


def _sorting(log: str, fields: Fields) -> Callable[[Iterator[Row]], Iterator[Row]]:
    """Return what puts rows in the order of their times, whatever else they hold."""
    if fields.time is None:
        raise Crash("--sort: expected --time FIELD, or a --bundle that names it")
    events = EventSpec(None, fields.time, fields.time_unit, time_zone=fields.time_zone)
    anything = FeatureSpec((Field(fields.time, "category", ("",), "mask"),))
    recorder = Recorder(Source(log, fields.key, fields.form), events)
    return lambda rows: sort_by_time(rows, recorder, anything)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the events go."""

    kafka: Connection  # how it is reached
    topic: str  # of events
    bundle: Path | None  # whose fields they have, None: only the flags say
    written: Path | None  # bundle in whose format they are written, None: as JSON


def _place(arguments: argparse.Namespace) -> _Place:
    """Put the settings file, the environment and the flags together; flags win."""
    given, environment = arguments, os.environ
    if given.config is not None:
        flags = {"kafka.brokers": given.brokers, "kafka.input": given.topic}
        config = read_config(given.config, [f"{n}={v}" for n, v in flags.items() if v])
        # With --key a bundle may not be there yet; where it is, only flags differ from it.
        written = given.bundle or config.worker.bundle
        needed = given.bundle is not None or given.key is None or written.exists()
        return _Place(config.connection, config.kafka.input, written if needed else None, written)
    brokers = given.brokers or environment.get("KEYFOLD_KAFKA__BROKERS")
    topic = given.topic or environment.get("KEYFOLD_KAFKA__INPUT")
    if not brokers or not topic:
        raise Crash("expected --config worker.toml, or --brokers and --topic")
    security = settings.read_section(Security, "security", environment)
    return _Place(Connection(brokers, security), topic, given.bundle, given.bundle)


def _fields(arguments: argparse.Namespace, bundle: Path | None) -> Fields:
    key, when, unit = arguments.key, arguments.time, arguments.time_unit
    zone, served = arguments.time_zone, None if bundle is None else contract.load(bundle)
    if served is not None:
        spec = served.manifest.events
        key, when, unit = key or spec.key_field, when or spec.time_field, unit or spec.time_unit
        zone = zone or spec.time_zone
    form = form_of(arguments, served)
    if key is None and served is None:
        raise Crash("--key: expected the field that holds the key, or a --bundle that names it")
    needed = arguments.time_lapse is not None
    if needed and when is None:
        raise Crash("--time-lapse: expected --time FIELD, or a --bundle that names it")
    said = EventSpec(time_unit=unit or "ms", time_zone=zone or "UTC")  # which refuses what is none
    return Fields(key, when, said.time_unit, said.time_zone, form, needed)


def _check_columns(arguments: argparse.Namespace, fields: Fields) -> None:
    """Refuse names that none of a file's first rows has: every row would be broken, or unsorted."""
    path, given = Path(arguments.log), arguments
    if given.log == STDIN or not path.is_file():
        return
    asked = {"--key": fields.key}
    if given.time or given.sort or given.time_lapse is not None:
        asked["--time"] = fields.time
    rows = read_rows(path, fields.form, lambda number, why: None)  # who reads all of them tells it
    first = (row for _, row in itertools.islice(rows, LOOKED_AT))
    absent, there = absent_names(first, [name for name in asked.values() if name is not None])
    for flag, name in asked.items():
        if name in absent:
            raise Crash(f"{flag}: expected a column of {path}, got {name!r}; there are: {there}")


def _record(bundle: Path | None) -> Format:
    """Return the format that the bundle's records have, JSON where there is no bundle yet."""
    if bundle is None or not bundle.exists():
        return JSON
    manifest = contract.load(bundle).manifest
    if manifest.events.decoder:
        return JSON  # only the user's function knows how its records are written
    return format_for(manifest.events, manifest.features)


def _positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        number = kind(text)
        if not number > 0:
            raise ValueError(text)
        return number

    parse.__name__ = "positive number"  # argparse: "invalid positive number value"
    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keyfold-send",
        description="Stream an event log (.jsonl, .ndjson, .csv or .parquet; .gz too) into a Kafka "
        "topic. Each row becomes one record under the key field's text: a JSON object, or what the "
        "bundle's format says.",
        epilog="Exit status: 0 all events acked, 2 not all could be sent.",
    )
    add = parser.add_argument
    add("log", metavar="LOG", help='the event log; "-": JSON lines on standard input')
    add("--config", type=Path, metavar="worker.toml",
        help="take brokers, [security], input topic and bundle from there")  # fmt: skip
    add("--brokers", metavar="HOST:PORT,...", help="Kafka (kafka.brokers)")
    add("--topic", help="where to (kafka.input)")
    add("--bundle", type=Path, metavar="FOLDER", help="take key and time field from its manifest")
    add("--key", metavar="FIELD", help="the field that holds the key")
    add("--time", metavar="FIELD", help="the field that holds the event time, for --time-lapse, "
        "--sort and the warning of rows that go back in time")  # fmt: skip
    add("--time-unit", metavar="UNIT",
        help="of that field: ms, s, us or ns since 1970, iso, or a strptime pattern (default: the "
        "bundle's, or ms)")  # fmt: skip
    add("--time-zone", metavar="ZONE", help="of times that name none, such as Europe/Berlin "
        "(default: the bundle's, or UTC)")  # fmt: skip
    add_form_flags(parser)
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument("--rate", type=_positive(float), metavar="N", help="events a second")
    pace.add_argument("--time-lapse", type=_positive(float), metavar="X",
        help="let event time pass X times faster than real time")  # fmt: skip
    add("--sort", action="store_true", help="go by event time instead of the rows' order (keeps "
        "the log in a temporary file)")  # fmt: skip
    add("--skip-broken", action="store_true", help="leave out rows that cannot be sent, and say "
        "which (default: the first one ends the sending)")  # fmt: skip
    add("--from-row", type=_positive(int), default=1, metavar="N",
        help="begin with this row, counted from 1 (with --sort: in the order of time)")  # fmt: skip
    add("--limit", type=_positive(int), metavar="N", help="stop after N events")
    add("--create-partitions", type=_positive(int), metavar="N",
        help="create the topic with N partitions unless it has them")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
