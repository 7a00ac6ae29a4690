"""keyfold-verify: refolds every key offline and compares what the worker has put out and stored.

Owns the command line, the progress bar and the exit status; the verification itself is in
verification.py. Called as a console command.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from keyfold.export import bundle as contract
from keyfold.worker import command
from keyfold.worker.config import read_config
from keyfold.worker.errors import Crash
from keyfold.worker.verify.verification import Target, verify

__all__ = ["Target", "main", "verify"]

VIOLATED = 1


def main(argv: list[str] | None = None) -> int:
    """Run keyfold-verify; return 0: clean, 1: violations, 2: could not verify."""
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["score"]:
        from keyfold.worker.score import cli as score

        return score.main(given[1:])
    if given[:1] == ["labels"]:
        from keyfold.worker.score import labels

        return labels.main(given[1:])
    arguments = _parser().parse_args(given)
    return command.run("keyfold-verify", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    target = _target(arguments)
    columns = (
        TextColumn("verify"), BarColumn(), TextColumn("{task.fields[text]}"), TimeElapsedColumn()
    )  # fmt: skip
    stderr = Console(stderr=True)
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task("", total=None, text="")

        def tick(done: float, of: int, records: int) -> None:
            text = f"partition {min(int(done) + 1, of)}/{of}, {records:,} records"
            bar.update(task, completed=done, total=of, text=text)

        findings = verify(target, tick)
    if arguments.json is not None:
        head = {"bundle": contract.load(target.bundle).id, "input": target.input}
        text = json.dumps({**head, **findings.to_json()}, indent=2)
        try:
            arguments.json.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise Crash(f"{arguments.json}: cannot be written: {error.strerror}") from error
    findings.show(Console())
    return VIOLATED if findings.violations else 0


def _target(arguments: argparse.Namespace) -> Target:
    """Put the settings file, the environment and the flags together."""
    names = {
        "bundle": "worker.bundle",
        "brokers": "kafka.brokers",
        "input": "kafka.input",
        "output": "kafka.output",
        "dead_letter": "kafka.dead_letter",
        "group": "kafka.group",
        "redis": "redis.url",
    }
    given = {name: getattr(arguments, name) for name in names}
    flags = [f"{names[name]}={value}" for name, value in given.items() if value is not None]
    config = read_config(arguments.config, flags)
    if arguments.from_offset is not None and arguments.state:
        raise Crash("--from-offset: Redis knows where the fold began; use it with --no-state")
    exactly_once = arguments.exactly_once
    if exactly_once is None:
        exactly_once = config.worker.exactly_once
    return Target(
        bundle=config.worker.bundle,
        kafka=config.connection,
        input=config.kafka.input,
        output=config.kafka.output,
        dead_letter=config.kafka.dead_letter,
        group=config.kafka.group,
        redis=config.redis.access if arguments.state else None,
        from_offset=arguments.from_offset,
        exactly_once=exactly_once,
        require_from=arguments.require_from,
        archive=arguments.archive,
        examples=arguments.examples,
        passthrough=config.worker.passthrough,
        emit=config.emit,
        parents=tuple(arguments.parent),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keyfold-verify",
        description="Refold every key of the input topic offline, one event at a time in plain "
        "ONNX Runtime, and compare the predictions, dead letters and stored states with it. "
        "It only reads, and may run beside the worker.",
        epilog="Exit status: 0 clean, 1 violations found, 2 could not verify. Other "
        "commands: keyfold-verify score (predictions of a log file, without Kafka) and "
        "keyfold-verify labels (their error, once labels have come).",
    )
    add = parser.add_argument
    add("config", nargs="?", type=Path, metavar="worker.toml", help="the worker's settings")
    add("--bundle", metavar="FOLDER", help="what was served (worker.bundle)")
    add("--brokers", metavar="HOST:PORT,...", help="Kafka (kafka.brokers)")
    add("--input", metavar="TOPIC", help="events (kafka.input)")
    add("--output", metavar="TOPIC", help="predictions (kafka.output)")
    add("--dead-letter", metavar="TOPIC", help="rejects (default: the input's name + .rejects)")
    add("--group", metavar="NAME", help="consumer group whose states are compared (kafka.group)")
    add("--redis", metavar="URL", help="where the states are (redis.url)")
    add("--state", action=argparse.BooleanOptionalAction, default=True,
        help="compare the states in Redis; without, every event of the input must have been "
        "predicted")  # fmt: skip
    add("--from-offset", type=int, metavar="N",
        help="with --no-state: where the fold began (default: the oldest event)")  # fmt: skip
    add("--require-from", type=int, metavar="N",
        help="every event from this offset on must have been predicted rightly, even below the "
        "emit floor that a rebuild has set")  # fmt: skip
    add("--archive", type=Path, metavar="FILE",
        help="records kept before they left the log (verify.archive.keep_log)")  # fmt: skip
    add("--parent", type=Path, action="append", default=[], metavar="BUNDLE",
        help="of a fine-tune that inherited states: the bundle that folded them (may be repeated); "
        "the events below the seam are folded by it, the others from its states")  # fmt: skip
    add("--exactly-once", action=argparse.BooleanOptionalAction,
        help="a duplicate is a violation (default: as worker.outputs says)")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write the counts as JSON")
    add("--examples", type=int, default=3, metavar="N", help="shown of each violation (default: 3)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
