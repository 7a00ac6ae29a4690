"""What a person sees of a training run, in a terminal of 80 columns.

Owns wording, tables and the progress bar; computes nothing. Called by train.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from keyfold.export.outputs import Anomaly, OutputSpec
from keyfold.training.against import Verdict
from keyfold.training.data import EventLog
from keyfold.training.evaluate import Metrics
from keyfold.training.fit import History, Report
from keyfold.training.forecast import ABOVE, LEAST_SCORES, Worth
from keyfold.training.run import LATEST
from keyfold.training.split import Part
from keyfold.training.transcripts import Untaught

MOST_LINES = 16  # of a table of forecasts
NAME = 22  # columns of a forecast's name


def log(read: EventLog, console: Console) -> None:
    """Say what was read, and what of it is odd."""
    console.print(f"  read: {read.records:,} records, {read.rejected:,} rejects", highlight=False)
    for reject in read.rejects:
        console.print(f"    {reject}", highlight=False, markup=False, soft_wrap=True)
    for line in read.joined:
        console.print(f"  labels: {line}", highlight=False, markup=False, soft_wrap=True)
    if read.disordered:
        console.print(
            f"  warning: {read.disordered:,} rows stood before an earlier row of their key; "
            + ("sorted by time" if read.is_sorted else "kept in the topic's order, as when served"),
            highlight=False,
            soft_wrap=True,
        )
    if read.doubled:
        console.print(
            f"  warning: {read.doubled:,} rows are in an hour that {read.events.time_zone} has "
            "twice: kept in the log's order, as when served",
            highlight=False,
            soft_wrap=True,
        )
    if read.unknown:
        console.print(
            f"  warning: {len(read.unknown):,} keys have no row in data.static, such as "
            f"{read.unknown[0]!r}",
            highlight=False,
            markup=False,
        )


def parts(chosen: Mapping[str, Part], console: Console) -> None:
    """Say how much there is of each part."""
    for name, part in chosen.items():
        keys = len(part.keys)
        console.print(
            f"{name:>10}: {part.events:,} events of {keys:,} key{'' if keys == 1 else 's'}",
            highlight=False,
        )


def sessions(events: Seq[int], console: Console) -> None:
    """Say how many sessions there are: with a wrong end or time unit far too few or too many."""
    console.print(
        f"{'sessions':>10}: {len(events):,} (median {median(events):g} events)", highlight=False
    )


def untaught(found: Untaught, console: Console) -> None:
    """Say which sequences of a transcription are judged, but teach nothing."""
    for count, why in (
        (found.unknown, "hold symbols that the training part does not have"),
        (found.short, "have fewer events than their symbols need (one each, and one between equal"),
    ):
        if count:
            end = ")" if "(" in why else ""
            console.print(f"  note: {count:,} sequences {why}{end}", highlight=False)
            console.print("    they are judged, but teach nothing", highlight=False)


def steady(log: EventLog, forecast: Seq[str], console: Console) -> None:
    """Say which fields are not forecast, of those that could be."""
    if names := [name for name in log.targets if name not in forecast]:
        console.print(
            f"  not forecast, for they never change within a key: {', '.join(names)}",
            highlight=False,
            markup=False,
        )


def worth(worths: Seq[Worth], part: str, console: Console) -> None:
    """Show, value by value, whether the model beats what needs no model."""
    shown = sorted((w for w in worths if w.events), key=lambda w: w.skill)
    if len(shown) > MOST_LINES:
        console.print(f"  the {MOST_LINES} worst of {len(shown)} forecasts; all: metrics.json")
    head = f"{'value':<{NAME}} {'model':>10} {'last value':>10} {'key mean':>10} {'skill':>7}"
    console.print(f"  errors (RMS, {part}):\n  {head}", highlight=False)
    for item in shown[:MOST_LINES]:
        name = item.name if len(item.name) <= NAME else f"{item.name[: NAME - 3]}..."
        console.print(
            f"  {name:<{NAME}} {item.model:>10.4g} {item.last_value:>10.4g} "
            f"{item.key_mean:>10.4g} {item.skill:>7.0%}",
            highlight=False,
            markup=False,
        )


def metrics(found: Mapping[str, Metrics], outputs: OutputSpec, console: Console) -> None:
    """Print one line for each part, and what the numbers of a forecast mean."""
    for name, values in found.items():
        shown = ", ".join(
            f"{metric} {value:.4g}" for metric, value in values.items()
            if metric not in ("events", "error_last_value", "error_key_mean")
        )  # fmt: skip
        console.print(f"{name:>10}: {shown}", highlight=False, soft_wrap=True)
    skilled = [found[name] for name in ("test", "validation") if "skill" in found.get(name, {})]
    judged = skilled[0] if skilled else None
    if judged is None:
        return
    skill = judged["skill"]
    said = f"removes {skill:.0%} of the squared error of the best naive forecast"
    if skill <= 0.02:
        said = "is no better than the naive forecast: it finds nothing to learn here"
    console.print(f"  the model {said}", highlight=False)
    if outputs.anomaly is not None:
        _anomaly(outputs.anomaly, found.get("validation", {}), console)


def _anomaly(anomaly: Anomaly, validation: Metrics, console: Console) -> None:
    share = f"{validation.get('flagged', anomaly.rate):.2%} of validation"
    said = f"a score above {anomaly.threshold:.3g} is flagged, {share}"
    if anomaly.dynamic is not None:
        said = f"a score above its key's own threshold is flagged, {share}"
    console.print(f"  anomaly: {said}", highlight=False)
    events = int(validation.get("events", 0))
    if events < LEAST_SCORES:
        console.print(
            f"    warning: {events:,} validation events are too few to calibrate scores;\n"
            "    train with more data",
            highlight=False,
        )
    elif events * anomaly.rate < 1:
        console.print(
            f"    warning: the threshold is the largest score of only {events:,} validation "
            "events, so\n    that none of them is flagged; give more data, or a larger "
            f"forecast.anomaly_rate:\n    {ABOVE / events:.2g} flags about {ABOVE} of them",
            highlight=False,
        )


def naive(found: Mapping[str, Metrics], console: Console) -> None:
    """Say what needs no model: where a label is named, the training mean or the usual class."""
    for name, values in found.items():
        shown = ", ".join(f"{metric} {v:.4g}" for metric, v in values.items() if metric != "events")
        console.print(f"{'naive':>10}: {shown} ({name})", highlight=False, soft_wrap=True)


def against(verdict: Verdict, part: str, console: Console) -> None:
    """Say whether the new model is better than the earlier one."""
    word = "worse than" if verdict.is_worse else "no worse than"
    console.print(f"  {word} {verdict.earlier}:", highlight=False, soft_wrap=True)
    console.print(
        f"    {verdict.measure} {verdict.new:.4g} against {verdict.old:.4g} ({part}, "
        f"{verdict.events:,} events)",
        highlight=False,
    )


def parent(name: str, history: History, console: Console) -> None:
    """Say whether training has bettered the weights that it began with."""
    if history.best_pass:
        said = f"from the weights of {name}, better on validation than they are"
    else:
        said = f"no pass was better on validation than {name}: its weights are kept"
    console.print(said, highlight=False, soft_wrap=True)


def resumed(folder: Path, console: Console) -> None:
    """Say which run is gone on with."""
    console.print(f"going on with {folder}", highlight=False, soft_wrap=True)


def unfinished(folder: Path, console: Console) -> None:
    """Say that there is a run that could be gone on with."""
    console.print(
        f"note: {folder} was not finished; --resume goes on with it",
        highlight=False,
        soft_wrap=True,
    )


def gradients(verdict: str | None, console: Console) -> None:
    """Say that gradients fade or grow, if they do."""
    if verdict is not None:
        console.print(f"  {verdict}", highlight=False, markup=False, soft_wrap=True)


def end(history: History, seconds: float, folder: Path, console: Console) -> None:
    """Say what was kept and what to do next."""
    kept = f"kept pass {history.best_pass} of {len(history.train_loss)}"
    console.print(f"{kept}; {seconds:.0f} s in all", highlight=False)
    console.print(f"run: {folder}  (also {folder.parent / LATEST})", soft_wrap=True)
    console.print(f"next: keyfold-export {folder}", soft_wrap=True)


@contextmanager
def progress(passes: int, console: Console) -> Iterator[Report]:
    """Show a bar with the time that is left if every pass is needed."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=passes)
        best = [float("inf")]

        def report(number: int, train_loss: float, validation_loss: float, is_best: bool) -> None:
            best[0] = validation_loss if is_best else best[0]
            text = f"loss {train_loss:.4f} valid {validation_loss:.4f} best {best[0]:.4f}"
            bar.update(task, completed=number, description=text)

        yield report
