"""One training run from settings to folder, top to bottom like a lab protocol.

Owns the order: read, split, scale, build, fit, measure, save; and what a person sees meanwhile. The
steps are in their own modules. Called by the `keyfold-train` command.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import keras
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from keyfold.training import run
from keyfold.training.config import Config
from keyfold.training.data import EventLog, build, read_log
from keyfold.training.evaluate import Metrics, measure, predict
from keyfold.training.fit import Report, cross_entropy, fit, squared_error
from keyfold.training.model import build as build_network
from keyfold.training.model import learn_scaling
from keyfold.training.sources import read_files
from keyfold.training.split import Part, split

PARTS = ("train", "validation", "test")


def train(config: Config, name: str, runs: Path, console: Console) -> Path:
    """Train as the settings say and return the run's folder. Raises Crash with the reason."""
    began = time.monotonic()
    log = read_log(config)
    _show_log(log, console)
    parts = split(log.sequences, config.split)
    chosen = dict(zip(PARTS, (parts.train, parts.validation, parts.test), strict=True))
    for part_name, part in chosen.items():
        if not part.events:
            continue
        console.print(f"{part_name:>10}: {part.events:,} events of {len(part.keys):,} keys")

    keras.utils.set_random_seed(config.fit.seed)
    cap = config.data.label_cap
    # Only what counts for training: with a split by time, later events are not in this part.
    scaling = learn_scaling(parts.train.sequences, log.outputs, cap)
    network = build_network(config.model, scaling, log.outputs)
    regression = log.outputs.kind == "regression"
    loss = squared_error(scaling.label_deviation, cap) if regression else cross_entropy
    with _progress(config.fit.passes, console) as report:
        history = fit(network, (parts.train, parts.validation), config.fit, loss, report)

    metrics = {
        part_name: measure(predict(network, part), part, log.outputs, cap)
        for part_name, part in chosen.items()
        if part.events
    }
    folder = run.new_folder(runs, name, datetime.now())
    seconds = time.monotonic() - began
    held_out = {
        part_name: list(part.keys) for part_name, part in chosen.items() if part_name != "train"
    }
    report_file = {"metrics": metrics, "seconds": round(seconds, 1), "held_out_keys": held_out}
    run.save(folder, config, log, (network, scaling, history), report_file)
    show_metrics(metrics, console)
    console.print(
        f"kept pass {history.best_pass} of {len(history.train_loss)}; {seconds:.0f} s in all"
    )
    console.print(f"run: {folder}  (also {folder.parent / run.LATEST})", soft_wrap=True)
    console.print(f"next: keyfold-export {folder}", soft_wrap=True)
    return folder


def evaluate(folder: Path, files: tuple[str, ...], console: Console) -> Metrics:
    """Measure a run's model on other logs, in which every event counts."""
    saved = run.load(folder)
    log = build(saved.data, read_files(files), keyed=False)
    _show_log(log, console)
    part = Part(log.sequences, (0,) * len(log.sequences))
    metrics = measure(predict(saved.network, part), part, saved.outputs, saved.data.label_cap)
    show_metrics({"these logs": metrics}, console)
    return metrics


def _show_log(log: EventLog, console: Console) -> None:
    console.print(f"  read: {log.records:,} records, {log.rejected:,} rejects")
    for reject in log.rejects:
        console.print(f"    {reject}", highlight=False, markup=False, soft_wrap=True)


def show_metrics(metrics: dict[str, Metrics], console: Console) -> None:
    """Print one line for each part."""
    for name, values in metrics.items():
        shown = ", ".join(
            f"{metric} {value:.4g}" for metric, value in values.items() if metric != "events"
        )
        console.print(f"{name:>10}: {shown}", highlight=False, soft_wrap=True)


@contextmanager
def _progress(passes: int, console: Console) -> Iterator[Report]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=passes)
        best = [float("inf")]

        def report(number: int, train_loss: float, validation_loss: float, is_best: bool) -> None:
            best[0] = validation_loss if is_best else best[0]
            text = f"loss {train_loss:.4f} validation {validation_loss:.4f} best {best[0]:.4f}"
            bar.update(task, completed=number, description=text)

        yield report
