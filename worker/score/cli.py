"""keyfold-verify score: the predictions of a whole log file, without Kafka and Redis.

Owns the command line, the progress bar and the report. The rows go through the worker's own
pipeline (scoring.py), from cold states; ids are file:0:row:0, and the rows' numbers are those of
the error messages. With a worker's settings the files hold what its topics would. Called by
worker/verify/cli.py.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from keyfold.export import bundle as contract
from keyfold.worker import command
from keyfold.worker.config import Config, read_config
from keyfold.worker.emission import Emission
from keyfold.worker.errors import Crash
from keyfold.worker.model import Model
from keyfold.worker.score.out import STDOUT, Writer, writing
from keyfold.worker.score.rows import STDIN, Source
from keyfold.worker.score.scoring import Scored, Served, Sinks, Tick, score
from keyfold.worker.send.file_form import add_form_flags, form_of
from keyfold.worker.send.report import order_warning

SAMPLE_BYTES = 1 << 20  # of a log, from which its number of rows is guessed


def main(argv: Sequence[str]) -> int:
    """Run the command; return 0: all rows are scored or rejected, 2: they could not be."""
    arguments = _parser().parse_args(argv)
    return command.run("keyfold-verify score", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    config = _config(arguments)
    model = _load(arguments.bundle or _expected(config).worker.bundle)
    manifest = model.bundle.manifest
    form = form_of(arguments, model.bundle)
    configured = "" if config is None else config.kafka.key_field
    key_field = arguments.key or configured or manifest.events.key_field
    source = Source(arguments.log, key_field, form)
    served = Served()
    if config is not None:
        rule = Emission.of(config.emit, manifest.outputs)
        served = Served(config.worker.passthrough, rule)
    _check(arguments, model, config)
    begin = time.monotonic()
    labels = manifest.outputs.names if manifest.outputs.kind == "classification" else ()
    with (
        _seldom_collecting(),
        _progress(source) as tick,
        writing(arguments.out, labels) as writer,
        _open_alerts(arguments.alerts, labels) as alerts,
        _open_rejects(arguments.rejects) as rejects,
    ):
        sinks = Sinks(writer, rejects, alerts)
        scored = score(source, model, sinks, tick, served=served, sort=arguments.sort)
    _report(scored, time.monotonic() - begin, arguments, served)
    return 0


def _config(arguments: argparse.Namespace) -> Config | None:
    """Return the worker's settings, where they are asked for."""
    if arguments.config is None and arguments.set:
        raise Crash("--set: expected --config worker.toml too, whose setting it overrides")
    return None if arguments.config is None else read_config(arguments.config, arguments.set)


def _expected(config: Config | None) -> Config:
    if config is None:
        raise Crash("expected BUNDLE, or --config worker.toml that names it, got neither")
    return config


def _load(folder: Path) -> Model:
    """Load a bundle to run over rows, which are JSON whatever its topic holds."""
    bundle = contract.load(folder)
    events = bundle.manifest.events.of_files
    return Model(replace(bundle, manifest=replace(bundle.manifest, events=events)))


def _check(arguments: argparse.Namespace, model: Model, config: Config | None) -> None:
    """Raise Crash where the arguments contradict each other, the bundle or the settings."""
    if arguments.alerts is not None and (config is None or not config.emit.alert_topic):
        raise Crash("--alerts: expected --config worker.toml with emit.alert_topic")
    if arguments.sort and model.bundle.manifest.events.time_field is None:
        raise Crash("--sort: expected a bundle with a time field, got one that goes by the record")
    outs = (arguments.out, arguments.alerts, arguments.rejects)
    paths = [Path(p).resolve() for p in (arguments.log, *outs) if p is not None and p != STDIN]
    if len(set(paths)) < len(paths) or arguments.out == arguments.alerts:
        raise Crash("--out, --alerts, --rejects: expected other files than the log and each other")


@contextmanager
def _seldom_collecting() -> Iterator[None]:
    """Let Python look for garbage cycles seldom: one object a row would keep it busy."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, 20, 100)  # as worker/cli.py
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextmanager
def _open_alerts(out: str | None, labels: Sequence[str]) -> Iterator[Writer | None]:
    if out is None:
        yield None
        return
    with writing(out, labels, "--alerts") as writer:
        yield writer


@contextmanager
def _open_rejects(path: Path | None) -> Iterator[Any]:
    if path is None:
        with nullcontext() as nothing:
            yield nothing
        return
    try:
        with path.open("wb") as file:
            yield file
    except OSError as error:
        raise Crash(f"{path}: cannot be written: {error.strerror or error}") from error


@contextmanager
def _progress(source: Source) -> Iterator[Tick]:
    stderr = Console(stderr=True)
    columns = (
        TextColumn("score"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        total = _guess_rows(source) if stderr.is_terminal else None
        task, begin = bar.add_task("", total=total, text=""), time.monotonic()

        def tick(rows: int) -> None:
            rate = rows / max(time.monotonic() - begin, 1e-9)
            least = None if total is None else max(total, rows)
            bar.update(task, completed=rows, total=least, text=f"{rows:,} rows, {rate:,.0f}/s")

        yield tick


def _guess_rows(source: Source) -> int | None:
    """Guess a log's number of rows from its first megabyte; None: it cannot be told."""
    path = Path(source.log)
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            return int(pyarrow.parquet.read_metadata(path).num_rows)
        if source.log == STDIN or path.suffix == ".gz":
            return None
        with path.open("rb") as file:
            sample = file.read(SAMPLE_BYTES)
        return path.stat().st_size * sample.count(b"\n") // max(len(sample), 1)
    except (OSError, ValueError, ImportError):
        return None  # whoever reads the rows says what is wrong


def _report(scored: Scored, seconds: float, arguments: argparse.Namespace, served: Served) -> None:
    def say(text: str) -> None:
        print(f"keyfold-verify score: {text}", file=sys.stderr)

    where = "standard output" if arguments.out == STDOUT else arguments.out
    say(
        f"{scored.rows:,} rows, {scored.predictions:,} predictions of {scored.keys:,} keys to "
        f"{where} in {seconds:.1f} s ({scored.rows / max(seconds, 1e-9):,.0f}/s)"
    )
    if served.rule is not None:
        say(f"[emit] of {arguments.config}: {served.rule.said}")
    if scored.alerts:
        where = (
            f"to {arguments.alerts}" if arguments.alerts else "left out; --alerts FILE keeps them"
        )
        say(f"{scored.alerts:,} alerts {where}")
    if scored.pending:
        say(scored.pending)
    if scored.disordered:
        say(order_warning(scored.disordered, scored.first_disordered, is_sorted=arguments.sort))
    if scored.rejects:
        kept = "" if arguments.rejects is None else f", in {arguments.rejects}"
        say(f"{scored.rejects:,} rejects{kept}:")
        for line in scored.shown:
            print(f"  {line}", file=sys.stderr)
        if scored.rejects > len(scored.shown):
            hint = "" if arguments.rejects else "; --rejects FILE keeps them all"
            print(f"  and {scored.rejects - len(scored.shown):,} more{hint}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keyfold-verify score",
        description="Predict for every event of a log file (.csv, .tsv, .jsonl, .ndjson or "
        ".parquet; .gz too), as a worker would from cold states: without Kafka, without Redis.",
        epilog="A prediction's id is FILE:0:ROW:0, rows counted from 1. Without a time field there "
        "is no time. A silence (reset_after) is told by the key's own times, as in training. "
        "Exit status: 0 done, rejects and all, 2 could not be done.",
    )
    add = parser.add_argument
    add("log", metavar="LOG", help='the log; "-": JSON lines on standard input')
    add("bundle", nargs="?", type=Path, metavar="BUNDLE",
        help="the bundle's folder (default: worker.bundle)")  # fmt: skip
    add("--out", required=True, metavar="FILE", help='predictions: .jsonl (.gz too) or .parquet; '
        '"-": JSON lines on standard output')  # fmt: skip
    add("--config", type=Path, metavar="worker.toml", help="write what that worker would: by its "
        "[emit], worker.passthrough and kafka.key_field (default: every prediction)")  # fmt: skip
    add("--set", action="append", default=[], metavar="SECTION.NAME=VALUE",
        help="override one of its settings")  # fmt: skip
    add("--alerts", metavar="FILE", help="what its alert topic would hold; a form of --out's")
    add("--rejects", type=Path, metavar="FILE", help="JSON lines of file, row and reason")
    add("--sort", action="store_true", help="go by event time instead of the rows' order (keeps "
        "the log in a temporary file)")  # fmt: skip
    add("--key", metavar="FIELD", help="where the key is (default: as the bundle says)")
    add_form_flags(parser)
    return parser
