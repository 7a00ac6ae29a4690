"""One training run from settings to folder, top to bottom like a lab protocol.

Owns the order: read, split, learn the inputs, scale, build, fit, measure, save. The steps are in
their own modules, what a person sees meanwhile in show.py. Called by the `keyfold-train` command.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from keyfold.export.outputs import Forecast, OutputSpec
from keyfold.export.text import Text
from keyfold.training import gradients, run, show
from keyfold.training import parent as parents
from keyfold.training.against import check_comparable, compare, run_of
from keyfold.training.answers import answered, asked
from keyfold.training.config import Config, SettingsError
from keyfold.training.ctc import ctc_loss
from keyfold.training.data import EventLog, read_chunks, read_log
from keyfold.training.delayed import with_labels
from keyfold.training.evaluate import Metrics, measure, naive_metrics, predict
from keyfold.training.fit import History, Watch, fit
from keyfold.training.forecast import calibrate, changing, judge, learn_ahead, with_truth
from keyfold.training.kept import checkpoint_of, fit_in
from keyfold.training.learned import learn
from keyfold.training.likelihood import calibrate as calibrate_texts
from keyfold.training.likelihood import check_room
from keyfold.training.losses import (
    Loss,
    class_weights,
    cross_entropy,
    forecast_error,
    squared_error,
    weighted_cross_entropy,
)
from keyfold.training.model import Network, check_ids
from keyfold.training.model import build as build_network
from keyfold.training.parent import Parent
from keyfold.training.pictures import draw_forecasts
from keyfold.training.reread import as_read_by, as_seen, read_for
from keyfold.training.scaling import Scaling, learn_scaling, with_conditions
from keyfold.training.sources import Chunk, read_files
from keyfold.training.split import Part, split, whole
from keyfold.training.transcripts import check_whole, learn_symbols, untaught

PARTS = ("train", "validation", "test")
Outputs = list[NDArray[np.float32]]  # of each sequence of a part: (T,O)
Task = tuple[Network, tuple[Part, Part], Loss]  # what is fitted, on what, by which loss


@dataclass(frozen=True, slots=True)
class Study:
    """A log, ready to be learned from."""

    log: EventLog  # as the model sees it
    outputs: OutputSpec  # what is predicted
    parts: Mapping[str, Part]  # by name, those that have events


@dataclass(frozen=True, slots=True)
class Earlier:
    """Earlier runs, or the bundles made of them; None: none."""

    against: Path | None = None  # to be judged on the same held-out events
    parent: Path | None = None  # whose weights are begun with
    resume: Path | None = None  # begun, not finished, and to be gone on with


NONE = Earlier()


def train(
    config: Config, name: str, runs: Path, console: Console, earlier_runs: Earlier = NONE
) -> Path:
    """Train as the settings say and return the run's folder. Raises Crash with the reason."""
    began = time.monotonic()
    _check(config)
    against = earlier_runs.against
    parent = None if earlier_runs.parent is None else parents.load(earlier_runs.parent, runs)
    if parent is not None:
        config = parents.taken_over(config, parent)
    weights = "" if parent is None else parent.weights_sha256
    if earlier_runs.resume is not None:
        checkpoint_of(earlier_runs.resume, config, weights).check_settings()
    # Both models are to be judged on the same records; a topic grows meanwhile.
    chunks = None if against is None else list(read_chunks(config))
    earlier = None if against is None else run_of(against, runs)
    study = prepare(config, console, chunks, parent)
    if earlier is not None:  # before the long part
        check_comparable(study.outputs, run.load(earlier).outputs)
    scaling, task = _begun(study, config, parent)
    network = task[0]
    folder = earlier_runs.resume or run.new_folder(runs, name, datetime.now())
    checkpoint = checkpoint_of(folder, config, weights)
    history = fit_in(folder, checkpoint, task, config.fit, console)

    y = predict(network, whole(study.log.sequences))
    study = _calibrated(study, y, config, parent)
    metrics = {
        part_name: measure(_of(y, part), part, study.outputs, config.data.label_cap)
        for part_name, part in study.parts.items()
    }
    details = _details(study, y)
    if earlier is not None and chunks is not None:
        last, part = list(study.parts.items())[-1]  # the test part, if there is one
        verdict = compare((earlier, chunks), config, (part, _of(y, part)), study.outputs)
        details["against"] = asdict(verdict)
        show.against(verdict, last, console)
    if parent is not None:
        details["parent"] = parent.record
        show.parent(parent.name, history, console)
    seconds = time.monotonic() - began
    report_file = {"metrics": metrics, "seconds": round(seconds, 1), **details}
    log = replace(study.log, meaning=study.outputs)
    run.save(folder, config, log, (network, scaling, history), report_file)
    checkpoint.remove()
    _report((study, y), metrics, folder, console)
    show.gradients(gradients.verdict(history.gradients), console)
    show.end(history, seconds, folder, console)
    return folder


def fitted(study: Study, config: Config, watch: Watch) -> History:
    """Fit a new network to a study and tell what happened; nothing is written."""
    _check(config)
    _, (network, parts, loss) = _begun(study, config, None)
    return fit(network, parts, config.fit, loss, watch)


def _begun(study: Study, config: Config, parent: Parent | None) -> tuple[Scaling, Task]:
    """Return the scaling, and what is fitted on what by which loss, all of it by the seed."""
    check_ids(config.model, study.log.sequences)
    keras.utils.set_random_seed(config.fit.seed)
    scaling = _scaling(study, config) if parent is None else parent.run.scaling
    network = _network(config, scaling, study.outputs, parent)
    if config.outputs.likelihood:
        check_room(network.state_units, study.outputs)
    parts = (study.parts["train"], study.parts["validation"])
    if study.outputs.kind == "transcription":
        check_whole(parts, config.fit.window)
    return scaling, (network, parts, loss_of(config, scaling, study))


def _check(config: Config) -> None:
    """Refuse settings that contradict each other, before anything is read."""
    if config.fit.class_weights and config.data.kind != "classification":
        raise SettingsError(
            "fit.class_weights: expected data.kind = 'classification' with it, got "
            f"{config.data.kind or 'forecasts'}"
        )


def _report(
    found: tuple[Study, Outputs], metrics: Mapping[str, Metrics], folder: Path, console: Console
) -> None:
    """Draw and print how good the model is, beside what needs no model."""
    study, y = found
    last = list(study.parts)[-1]
    part, forecast = study.parts[last], study.outputs.forecast
    if forecast is not None:
        draw_forecasts((part, _of(y, part)), study.outputs, folder / run.PICTURE)
        show.worth(judge(_of(y, part), part, forecast), last, console)
    show.metrics(metrics, study.outputs, console)
    if forecast is None:
        naive = naive_metrics(study.parts["train"], part, study.outputs)
        show.naive({last: naive}, console)


def _network(
    config: Config, scaling: Scaling, outputs: OutputSpec, parent: Parent | None
) -> Network:
    network = build_network(config.model, scaling, outputs)
    if parent is None:
        return network
    network.whole.set_weights(parent.run.network.whole.get_weights())
    return replace(network, starts_worthy=True)


def prepare(
    config: Config,
    console: Console,
    chunks: Sequence[Chunk] | None = None,
    parent: Parent | None = None,
) -> Study:
    """Read, join, split and finish a log, with a parent's inputs or with what the log teaches."""
    features = None if parent is None else parent.run.features
    log = with_labels(read_log(config, chunks, features), config)
    show.log(log, console)
    # Only what counts for training teaches: split by time, that part has no later events.
    train_part = split(log.sequences, config.split).train
    if parent is None:
        log = learn(log, train_part, config.text, config.target)
    else:
        log = as_read_by(parent.run, log)
    if not config.data.label and config.data.features:
        settings = config.forecast
        fields = settings.fields or changing(log, train_part)
        show.steady(log, fields, console)
        log = with_truth(log, Forecast(fields, settings.horizons, settings.quantiles))
    if config.data.kind == "transcription":
        log = learn_symbols(log, train_part, config.data.classes)
        show.untaught(untaught(log.sequences), console)
    log = answered(log, asked(log.outputs, config))
    if config.outputs.answers == "session":
        show.sessions([sequence.events for sequence in log.sequences], console)
    parts = split(log.sequences, config.split)
    chosen = dict(zip(PARTS, (parts.train, parts.validation, parts.test), strict=True))
    chosen = {name: part for name, part in chosen.items() if part.events}
    show.parts(chosen, console)
    return Study(log, _written(log.outputs, config, log.target), chosen)


def _written(outputs: OutputSpec, config: Config, target: Text | None) -> OutputSpec:
    """Return what is predicted, as predictions are to hold it."""
    top = config.outputs.top
    if top > len(outputs.names):
        raise SettingsError(
            f"outputs.top: expected at most {len(outputs.names)}, so many labels there are, got "
            f"{top}"
        )
    if config.generate.most or target is not None:
        spec = config.generate.spec(config.model.window)
        return replace(outputs, top=top, generate=spec, target=target)
    return replace(asked(outputs, config), top=top)


def _scaling(study: Study, config: Config) -> Scaling:
    train_part = study.parts["train"]
    text = study.log.features.text
    scaling = learn_scaling(train_part.sequences, study.outputs, config.data.label_cap, text)
    if names := config.data.conditions:
        columns = tuple(study.log.features.columns.index(name) for name in names)
        count = config.data.condition_count
        scaling = with_conditions(scaling, train_part.sequences, columns, count)
    if study.outputs.forecast is None:
        return scaling
    ahead = learn_ahead(study.log.features, study.outputs.forecast, train_part)
    return replace(scaling, ahead=ahead)


def loss_of(config: Config, scaling: Scaling, study: Study) -> Loss:
    """Return what the settings say is to be made small."""
    outputs, given = study.outputs, config.fit
    if outputs.kind == "transcription":
        return ctc_loss
    if scaling.ahead is not None and outputs.forecast is not None:
        return forecast_error(scaling.ahead, outputs.forecast.quantiles)
    if outputs.kind == "regression":
        return squared_error(scaling.label_deviation, config.data.label_cap)
    if not given.class_weights:
        return cross_entropy
    weights = class_weights(given.weights_of_labels, outputs.names, study.parts["train"])
    return weighted_cross_entropy(weights)


def _of(y: Outputs, part: Part) -> Outputs:
    """Return a part's share of the outputs of all sequences."""
    return [y[n][: len(s)] for n, s in zip(part.origins, part.sequences, strict=True)]


def _calibrated(study: Study, y: Outputs, config: Config, parent: Parent | None = None) -> Study:
    forecast, part = study.outputs.forecast, study.parts["validation"]
    if config.outputs.likelihood:
        likelihood = calibrate_texts(_of(y, part), part, config.outputs.anomaly_rate)
        return replace(study, outputs=replace(study.outputs, likelihood=likelihood))
    if forecast is None or not config.forecast.anomaly:
        return study
    # With a threshold of its own a key's state holds past scores, in units of the scales.
    before = None if parent is None else parent.run.outputs.anomaly
    kept = before.scales if before is not None and before.dynamic is not None else None
    anomaly = calibrate(_of(y, part), part, forecast, config.forecast, kept)
    return replace(study, outputs=replace(study.outputs, anomaly=anomaly))


def _details(study: Study, y: Outputs) -> dict[str, object]:
    """Return what metrics.json says beside the metrics."""
    held_out = {name: list(part.keys) for name, part in study.parts.items() if name != "train"}
    held_out.setdefault("test", [])
    details: dict[str, object] = {"held_out_keys": held_out}
    judged = {name: part for name, part in study.parts.items() if name != "train"}
    if (forecast := study.outputs.forecast) is not None:
        details["forecasts"] = {
            name: [
                {**asdict(worth), "skill": worth.skill}
                for worth in judge(_of(y, part), part, forecast)
            ]
            for name, part in judged.items()
        }
    else:
        train_part = study.parts["train"]
        details["naive"] = {
            name: naive_metrics(train_part, part, study.outputs) for name, part in judged.items()
        }
    return details


def evaluate(folder: Path, files: tuple[str, ...], console: Console) -> Metrics:
    """Measure a run's model on other logs, in which every event counts."""
    saved = run.load(folder)
    log = read_for(saved, read_files(files, saved.data), keyed=False)
    show.log(log, console)
    part = whole(as_seen(saved, log).sequences)
    metrics = measure(predict(saved.network, part), part, saved.outputs, saved.data.label_cap)
    show.metrics({"these logs": metrics}, saved.outputs, console)
    return metrics
