"""keyfold-send: streams an event log into a Kafka topic, keyed as Java clients would key it.

Owns the command line and the progress line; reading is in worker/event_log.py, sending in
worker/sender.py. A bundle is only asked for the names of its key and time fields. Called as a
console command.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn

from keyfold.export import bundle as contract
from keyfold.worker import command
from keyfold.worker.errors import Crash, TopicError
from keyfold.worker.event_log import Fields, read_log
from keyfold.worker.sender import Pace, create_topic, partition_count, send


def main(argv: list[str] | None = None) -> int:
    """Run keyfold-send; return the exit status."""
    arguments = _parser().parse_args(argv)
    return command.run("keyfold-send", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    logging.basicConfig(format="keyfold-send: %(message)s", level=logging.WARNING)
    fields = _fields(arguments)
    if arguments.create_partitions is not None:
        create_topic(arguments.brokers, arguments.topic, arguments.create_partitions)
    elif partition_count(arguments.brokers, arguments.topic) is None:
        raise TopicError(
            f"topic {arguments.topic!r}: no such topic; --create-partitions N makes it"
        )
    entries = itertools.islice(read_log(arguments.log, fields), arguments.limit)
    stderr = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task, begin = bar.add_task(""), time.monotonic()

        def tick(sent: int) -> None:
            rate = sent / max(time.monotonic() - begin, 1e-9)
            bar.update(task, description=f"{sent:,} events sent, {rate:,.0f}/s")

        pace = Pace(arguments.rate, arguments.time_lapse)
        sent = send(arguments.brokers, arguments.topic, entries, pace, tick)
    rate = sent.events / max(sent.seconds, 1e-9)
    print(
        f"keyfold-send: {sent.events:,} events to {arguments.topic} in {sent.seconds:.1f} s "
        f"({rate:,.0f}/s)",
        file=sys.stderr,
    )
    return 0


def _fields(arguments: argparse.Namespace) -> Fields:
    key, when, unit = arguments.key, arguments.time, arguments.time_unit
    if arguments.bundle is not None:
        spec = contract.load(arguments.bundle).manifest.events
        key, when, unit = key or spec.key_field, when or spec.time_field, unit or spec.time_unit
    if key is None:
        raise Crash("--key: expected the field that holds the key, or a --bundle that names it")
    if arguments.time_lapse is None:
        return Fields(key)
    if when is None:
        raise Crash("--time-lapse: expected --time FIELD, or a --bundle that names it")
    return Fields(key, when, {"ms": 1.0, "s": 1000.0}[unit or "ms"])


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
        "topic. Each row becomes one record: a JSON object under the key field's text.",
        epilog="Exit status: 0 all events acked, 2 not all could be sent.",
    )
    add = parser.add_argument
    add("log", metavar="LOG", help='the event log; "-": JSON lines on standard input')
    add("--brokers", required=True, metavar="HOST:PORT,...", help="Kafka")
    add("--topic", required=True, help="where to")
    add("--bundle", type=Path, metavar="FOLDER", help="take key and time field from its manifest")
    add("--key", metavar="FIELD", help="the field that holds the key")
    add("--time", metavar="FIELD", help="the field that holds the event time, for --time-lapse")
    add("--time-unit", choices=("ms", "s"), help="of that field, since 1970 (default: ms)")
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument("--rate", type=_positive(float), metavar="N", help="events a second")
    pace.add_argument("--time-lapse", type=_positive(float), metavar="X",
        help="let event time pass X times faster than real time")  # fmt: skip
    add("--limit", type=_positive(int), metavar="N", help="stop after N events")
    add("--create-partitions", type=_positive(int), metavar="N",
        help="create the topic with N partitions unless it has them")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
