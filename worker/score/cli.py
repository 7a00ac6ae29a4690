"""keyfold-verify score: the predictions of a whole log file, without Kafka and Redis.

Owns the command line, the progress bar and the report. The rows go through the worker's own
pipeline (worker/trial.py), from cold states; ids are file:0:row:0, and the rows' numbers are those
of the error messages. Called by worker/verify/cli.py.
"""

from __future__ import annotations

import argparse
import gc
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from keyfold.export.tables import Row
from keyfold.worker import command
from keyfold.worker.emit import DeadLetter
from keyfold.worker.errors import Crash
from keyfold.worker.model import Model
from keyfold.worker.protocol import Record
from keyfold.worker.score.out import STDOUT, Writer, writing
from keyfold.worker.score.rows import STDIN, Recorder, Source, chunks, sort_by_time
from keyfold.worker.send.file_form import add_form_flags, form_of
from keyfold.worker.trial import Trial

SHOWN = 5  # rejects named when no file takes them
SAMPLE_BYTES = 1 << 20  # of a log, from which its number of rows is guessed
_TIME = re.compile(rb',"time":(-?\d+),')  # quotes inside a key are escaped: this is no part of one

Tick = Callable[[int], None]


@dataclass(slots=True)
class Scored:
    """What came of a log."""

    rows: int = 0  # read
    predictions: int = 0  # written
    rejects: int = 0  # of rows
    keys: int = 0  # seen
    disordered: int = 0  # events that stood behind a later one of their key
    first_disordered: int = 0  # row of the first of them
    shown: list[str] = field(default_factory=list)  # the first rejects: file, row, field, why


def main(argv: Sequence[str]) -> int:
    """Run the command; return 0: all rows are scored or rejected, 2: they could not be."""
    arguments = _parser().parse_args(argv)
    return command.run("keyfold-verify score", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    model = Model.load(arguments.bundle)
    events = model.bundle.manifest.events
    form = form_of(arguments, model.bundle)
    source = Source(arguments.log, arguments.key or events.key_field, form)
    _check(arguments, model)
    begin = time.monotonic()
    outputs = model.bundle.manifest.outputs
    labels = outputs.names if outputs.kind == "classification" else ()
    with (
        _seldom_collecting(),
        _progress(source) as tick,
        writing(arguments.out, labels) as writer,
        _open_rejects(arguments.rejects) as rejects,
    ):
        scored = score(source, model, writer, rejects, tick, sort=arguments.sort)
    _report(scored, time.monotonic() - begin, arguments)
    return 0


def score(
    source: Source, model: Model, writer: Writer, rejects: Any, tick: Tick, *, sort: bool = False
) -> Scored:
    """Write the prediction of every event of a log, in the order of its rows (`sort`: of time).

    `rejects` is a file for what is no event, or None. Memory grows with the keys, not the events.
    Raises TableError naming file and row.
    """
    manifest = model.bundle.manifest
    trial, recorder = Trial(model, source.name), Recorder(source, manifest.events)
    scored, last = Scored(), dict[bytes, int]()
    rows: Iterator[Row] = source.rows()
    if sort:
        rows = sort_by_time(rows, manifest.events, manifest.features)
    for some in chunks(rows):
        records = recorder.records(some)
        for _, outputs in trial.run([(0, cast(Sequence[Record], records))]):
            writer.write(outputs.payloads)
            scored.predictions += len(outputs.payloads)
            if manifest.events.time_field is not None:
                _note_order(scored, last, outputs.keys, outputs.payloads)
            _note_rejects(scored, source, outputs.dead_letters, rejects)
        scored.rows += len(records)
        tick(scored.rows)
    scored.keys = len(trial.slots)
    return scored


def _note_order(
    scored: Scored, last: dict[bytes, int], keys: Sequence[bytes], payloads: Sequence[bytes]
) -> None:
    """Count the events that are earlier than one of their key before them."""
    for key, payload in zip(keys, payloads, strict=True):
        found = _TIME.search(payload)
        now = int(found[1]) if found is not None else 0
        if now >= last.get(key, now):
            last[key] = now
            continue
        scored.disordered += 1
        if not scored.first_disordered:
            scored.first_disordered = int(orjson.loads(payload)["about"].rpartition(":")[2])


def _note_rejects(
    scored: Scored, source: Source, letters: Sequence[DeadLetter], rejects: Any
) -> None:
    for letter in letters:
        reason = letter.reason
        if letter.key is None and source.key_field is not None:
            reason = f"field {source.key_field!r}: expected a key, got none"
        scored.rejects += 1
        if len(scored.shown) < SHOWN:
            scored.shown.append(f"{source.place(letter.offset)}: {reason}")
        if rejects is not None:
            line = {"file": source.name, "row": letter.offset, "reason": reason}
            rejects.write(orjson.dumps(line) + b"\n")


def _check(arguments: argparse.Namespace, model: Model) -> None:
    """Raise Crash where the arguments contradict each other or the bundle."""
    if arguments.sort and model.bundle.manifest.events.time_field is None:
        raise Crash("--sort: expected a bundle with a time field, got one that goes by the record")
    paths = [Path(p).resolve() for p in (arguments.log, arguments.out, arguments.rejects)
             if p is not None and p != STDIN]  # fmt: skip
    if len(set(paths)) < len(paths):
        raise Crash("--out, --rejects: expected other files than the log and each other")


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


def _report(scored: Scored, seconds: float, arguments: argparse.Namespace) -> None:
    def say(text: str) -> None:
        print(f"keyfold-verify score: {text}", file=sys.stderr)

    where = "standard output" if arguments.out == STDOUT else arguments.out
    say(
        f"{scored.rows:,} rows, {scored.predictions:,} predictions of {scored.keys:,} keys to "
        f"{where} in {seconds:.1f} s ({scored.rows / max(seconds, 1e-9):,.0f}/s)"
    )
    if scored.disordered:
        say(
            f"warning: {scored.disordered:,} events are earlier than one of their key before them "
            f"(first: row {scored.first_disordered}); --sort puts them in order"
        )
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
    add("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    add("--out", required=True, metavar="FILE", help='predictions: .jsonl (.gz too) or .parquet; '
        '"-": JSON lines on standard output')  # fmt: skip
    add("--rejects", type=Path, metavar="FILE", help="JSON lines of file, row and reason")
    add("--sort", action="store_true", help="go by event time instead of the rows' order (keeps "
        "the log in a temporary file)")  # fmt: skip
    add("--key", metavar="FIELD", help="where the key is (default: as the bundle says)")
    add_form_flags(parser)
    return parser
