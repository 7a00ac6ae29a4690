"""`keyfold-worker`: reads the settings and runs the app under Faust's worker.

Owns the command line, the log's form and the exit status: 0 after a drained stop, 2 for settings or
a bundle that cannot be served, 70 after a crash or when no broker answers at the start. The
commands around a worker (COMMANDS) have modules of their own, each with a `main`; several workers
at once have a parent (processes.py).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import logging
import logging.config
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from keyfold.export.errors import Crash
from keyfold.worker import command
from keyfold.worker.config import Config, SettingsError, read_config
from keyfold.worker.errors import SetUpError

if TYPE_CHECKING:
    from keyfold.worker.app import App

EX_USAGE = 2
REDIS_SOON_S = 2.0  # longest first look at Redis
EX_INTERRUPTED = 130  # as a shell says it of SIGINT
LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"  # of the log
COMMANDS = {"init": "first_day.init", "check": "check.cli", "repartition": "repartition.cli"}


def main(argv: list[str] | None = None) -> int:
    """Run a worker until it is told to stop, or one of the commands around it."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # `keyfold-worker worker.toml` is the usual call, so it is no subcommand.
    module = COMMANDS.get(arguments[0]) if arguments else None
    if module is None:
        return _serve(arguments)
    # Imported late: --help answers at once.
    run: Callable[[list[str]], int] = importlib.import_module(f"keyfold.worker.{module}").main
    return command.run(f"keyfold-worker {arguments[0]}", lambda: run(arguments[1:]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keyfold-worker",
        description="Serve a bundle on a keyed Kafka topic.",
        epilog="Other commands: keyfold-worker init --help (write a worker.toml), keyfold-worker "
        "check --help (look at everything it needs), keyfold-worker repartition --help.",
    )
    parser.add_argument("config", nargs="?", type=Path, help="worker.toml")
    parser.add_argument(
        "--dry-run", action="store_true",
        help="run the model over some records of the log and say what would come of them; writes "
        "nothing to Kafka or Redis",
    )  # fmt: skip
    parser.add_argument(
        "--max-events", type=_positive, metavar="N",
        help="stop after N records, drained; with --dry-run: look at N (default 1000)",
    )  # fmt: skip
    parser.add_argument(
        "--processes", type=_positive, metavar="N",
        help="run N workers of the group, one per core; short for --set worker.processes=N",
    )  # fmt: skip
    # Given by the parent of several workers to each of them.
    parser.add_argument("--number", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--look", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.NAME=VALUE",
        help="override one setting; so does the environment: KEYFOLD_SECTION__NAME",
    )  # fmt: skip
    parser.add_argument(
        "--log-level", default="info", choices=["debug", "info", "warning", "error"]
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {text}")
    return number


def _serve(words: list[str]) -> int:
    arguments = _parser().parse_args(words)
    file = str(arguments.config or "worker.toml")
    if arguments.processes:
        arguments.set.append(f"worker.processes={arguments.processes}")
    if arguments.dry_run:  # which joins nothing: one program looks, whatever worker.processes says
        return command.run("keyfold-worker", lambda: _dry_run(arguments, file))
    if arguments.look:
        return command.run("keyfold-worker", lambda: _look(arguments))
    try:
        config = read_config(arguments.config, arguments.set)
        if config.worker.processes > 1 and arguments.number is None:
            return _serve_several(config, arguments, words)
        loop, app = _prepare(config, arguments, file)
    except Crash as error:
        print(f"keyfold-worker: {error}", file=sys.stderr)
        return _status_before_it_joined(error)
    except KeyboardInterrupt:
        print("keyfold-worker: interrupted before it joined", file=sys.stderr)
        return EX_INTERRUPTED
    return _run(app, loop, arguments.log_level)


def _status_before_it_joined(error: Crash) -> int:
    from keyfold.worker.app import EX_CRASH
    from keyfold.worker.kafka.topics import NoBroker

    return EX_CRASH if isinstance(error, NoBroker) else EX_USAGE


def _prepare(
    config: Config, arguments: argparse.Namespace, file: str
) -> tuple[asyncio.AbstractEventLoop, App]:
    """Return an app whose surroundings were looked at. Raises Crash."""
    # Imported late: --help and a wrong setting answer at once.
    from keyfold.worker import processes_member as member
    from keyfold.worker.app import create_app
    from keyfold.worker.first_day.stop_after import stop_after
    from keyfold.worker.kafka.topics import check_topics
    from keyfold.worker.key_field import expect_key_field
    from keyfold.worker.liveness.health import check_port
    from keyfold.worker.redis.refusals import check_redis

    number, several = arguments.number, config.worker.processes
    if number is not None:
        config = member.settings_of(config, number)
        logging.config.dictConfig(_logging(arguments.log_level))  # as Faust does it, later
    check_port(config.worker.web_port)

    # Before the app: Faust's services take the event loop when they are made.
    loop = _new_event_loop()
    app = create_app(config, file)
    topics = check_topics(config.kafka, config.connection, config.emit.alert_topic)
    loop.run_until_complete(topics)
    if number == 0:
        member.say_if_idle(config, several)
    # One that does not answer is waited for in the app, behind the pages that tell of it.
    soon_s = min(config.redis.timeout_s, REDIS_SOON_S)
    loop.run_until_complete(check_redis(config.redis.access, soon_s))
    expect_key_field(config, app.model.bundle.manifest.events, file)
    if arguments.max_events:
        stop_after(app.pipeline, arguments.max_events)
    return loop, app


def _run(app: App, loop: asyncio.AbstractEventLoop, log_level: str) -> int:
    """Serve until the worker is told to stop; return the exit status."""
    from keyfold.worker.app import EX_CRASH
    from keyfold.worker.liveness.last_words import LEAVE_S, LastWords

    _tune_garbage_collection()
    worker = app.Worker(
        loglevel=log_level, loop=loop, redirect_stdouts=False, quiet=True,
        logging_config=_logging(log_level), blocking_timeout=0,
    )  # fmt: skip
    worker.spinner = None  # no progress bar, no cursor escapes: this is a service's log
    last_words = LastWords(worker, app, app.config.worker.drain_s + LEAVE_S)
    try:
        worker.execute_from_commandline()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 0
    except Exception as error:  # noqa: BLE001 - the seam: Faust re-raises what it crashed on
        app.failure = app.failure or error
        status = EX_CRASH
    if app.failure is not None:
        if not isinstance(app.failure, Crash):  # nobody foresaw it: its place is all there is
            traceback.print_exception(app.failure)
        print(f"keyfold-worker: {app.failure}", file=sys.stderr)
        return EX_USAGE if isinstance(app.failure, SetUpError) else EX_CRASH
    if app.crashed:
        return EX_CRASH
    last_words.say()
    return status


def _serve_several(config: Config, arguments: argparse.Namespace, words: list[str]) -> int:
    if arguments.max_events:
        raise SettingsError(
            "--max-events: counts the records of one worker, but worker.processes is "
            f"{config.worker.processes}; add --processes 1"
        )
    from keyfold.worker import processes

    logging.basicConfig(format=LINE, level=arguments.log_level.upper())
    return processes.run(config, words)


def _look(arguments: argparse.Namespace) -> int:
    config = read_config(arguments.config, arguments.set)
    from keyfold.worker.first_look import look

    return look(config)


def _dry_run(arguments: argparse.Namespace, file: str) -> int:
    config = read_config(arguments.config, arguments.set)
    from keyfold.worker.first_day.dry_run import dry_run

    return dry_run(config, file, arguments.max_events)


def _new_event_loop() -> asyncio.AbstractEventLoop:
    import uvloop

    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    return loop


def _tune_garbage_collection() -> None:
    """Look for cycles seldom: each fetched record is an object that the collector would visit.

    With Python's own thresholds a full fetch of records costs a third of the time of its events.
    """
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


def _logging(level: str) -> dict[str, object]:
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "line": {"format": LINE},
        },
        "filters": {
            "ours": {"()": "keyfold.worker.liveness.last_words.Ours"},
            "quiet": {"()": "keyfold.worker.liveness.kafka_away.Quiet"},
        },
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "filters": ["ours", "quiet"],
                "stream": "ext://sys.stderr",
                "formatter": "line",
            },
        },
        "loggers": {
            # Faust's and aiokafka's own lines are for their developers.
            name: {"level": logging.WARNING}
            for name in ("aiokafka", "faust", "mode")
        },
        "root": {"level": level.upper(), "handlers": ["stderr"]},
    }


if __name__ == "__main__":
    raise SystemExit(main())
