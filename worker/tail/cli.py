"""keyfold-tail: watches a topic of predictions, live at a terminal or line by line in a pipe.

Owns the command line and the reading of the topic; what is shown is laid out by
view.py, lag and rejects are asked for by lag.py. It joins no group and changes
nothing. Called as a console command.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from confluent_kafka import Message
from rich.console import Console
from rich.live import Live

from keyfold.export import settings
from keyfold.export.connection import Connection, Security
from keyfold.worker import command
from keyfold.worker.config import read_config
from keyfold.worker.errors import Crash
from keyfold.worker.kafka.log import KafkaLog
from keyfold.worker.tail.lag import LagWatch, Watched
from keyfold.worker.tail.view import View, read_prediction

POLL_S = 0.1
FRAME_S = 0.1  # between two pictures


def main(argv: list[str] | None = None) -> int:
    """Run keyfold-tail; return the exit status."""
    arguments = _parser().parse_args(argv)
    return command.run("keyfold-tail", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    watched = _watched(arguments)
    with KafkaLog(watched.kafka) as log:
        count = log.partitions(watched.topic)
        if arguments.from_start:
            log.follow(watched.topic, [None] * count)
        else:
            log.follow(watched.topic, [log.extent(watched.topic, p).end for p in range(count)])
        chunks = _chunks(log, arguments.number)
        if arguments.json:
            _print_raw(chunks)
        elif sys.stdout.isatty():
            _show_live(chunks, watched)
        else:
            _print_lines(chunks)
    return 0


def _chunks(log: KafkaLog, number: int | None) -> Iterator[list[Message]]:
    """Yield what comes in, an empty list after a while of nothing; stop after `number` records."""
    left = number
    while left is None or left > 0:
        messages = log.poll(POLL_S)[:left]
        if left is not None:
            left -= len(messages)
        yield messages


def _print_raw(chunks: Iterator[list[Message]]) -> None:
    out = sys.stdout.buffer
    for messages in chunks:
        for message in messages:
            out.write((message.value() or b"") + b"\n")
        if messages:
            out.flush()


def _print_lines(chunks: Iterator[list[Message]]) -> None:
    for messages in chunks:
        for message in messages:
            shown = read_prediction(message.value())
            where = f"{message.topic()}:{message.partition()}:{message.offset()}"
            print(f"{where}: no prediction" if shown is None else shown.line())
        if messages:
            sys.stdout.flush()


def _show_live(chunks: Iterator[list[Message]], watched: Watched) -> None:
    view, drawn, console = View(watched.topic), 0.0, Console()
    with (
        Live(console=console, auto_refresh=False, vertical_overflow="crop") as live,
        LagWatch(watched) as beside,
    ):

        def draw(now: float) -> None:
            size = console.size
            picture = view.render(now, size.width, size.height, beside.around)
            live.update(picture, refresh=True)

        for messages in chunks:
            now = time.monotonic()
            for message in messages:
                view.add(message.value())
            view.arrived(len(messages), now)
            if now - drawn > FRAME_S:
                draw(now)
                drawn = now
        draw(time.monotonic())


def _watched(arguments: argparse.Namespace) -> Watched:
    """Put the settings file and the flags together; flags win."""
    given = arguments
    if given.config is not None:
        flags = [f"kafka.brokers={given.brokers}"] if given.brokers else []
        config = read_config(given.config, flags)
        kafka = config.kafka
        return Watched(
            kafka=config.connection,
            topic=given.topic or kafka.output,
            input=given.input or kafka.input,
            group=given.group or kafka.group,
            dead_letter=given.dead_letter or kafka.dead_letter,
        )
    if given.brokers is None or given.topic is None:
        raise Crash("expected worker.toml, or --brokers and --topic")
    rejects = given.dead_letter or (f"{given.input}.rejects" if given.input else None)
    security = settings.read_section(Security, "security", os.environ)
    connection = Connection(given.brokers, security)
    return Watched(connection, given.topic, given.input, given.group, rejects)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keyfold-tail",
        description="Watch predictions: live at a terminal, elsewhere one line each, shortened to "
        "80 columns (--json: whole).",
        epilog="Exit status: 0 after -n predictions or a closed pipe, 2 when the topic cannot be "
        "read, 130 after Ctrl-C.",
    )
    add = parser.add_argument
    add("config", nargs="?", type=Path, metavar="worker.toml", help="the worker's settings")
    add("--brokers", metavar="HOST:PORT,...", help="Kafka")
    add("--topic", metavar="TOPIC", help="of predictions")
    add("--input", metavar="TOPIC", help="of events, to show the lag")
    add("--group", metavar="NAME", help="consumer group whose lag is shown")
    add("--dead-letter", metavar="TOPIC", help="of rejects (default: the input's name + .rejects)")
    add("--json", action="store_true", help="print each prediction as it is, one per line")
    add("-n", dest="number", type=int, metavar="N", help="stop after N predictions")
    add("--from-start", action="store_true", help="begin with the oldest prediction, not with now")
    return parser


if __name__ == "__main__":
    sys.exit(main())
