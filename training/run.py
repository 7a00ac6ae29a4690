"""The folder of a training run: what was trained, on what, how, and how good it is.

Owns the folder's file names and their form. A run holds everything that export needs (model.keras
and spec.json) and everything that a person asks later (config, data hash, versions, metrics, loss
curve). Knows no training loop. Called by the commands; export reads the same files by its own
reader, since it may not import training.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from keyfold.export import layers as _layers  # noqa: F401 - registers what model.keras may hold
from keyfold.export.errors import Crash
from keyfold.export.events import OutputSpec
from keyfold.export.features import FeatureSpec
from keyfold.export.lineage import WEIGHTS, weights_sha256
from keyfold.export.motion import Motion
from keyfold.training import gradients
from keyfold.training.conditions import Conditions
from keyfold.training.config import Config, Data, Forecast, Model
from keyfold.training.data import EventLog
from keyfold.training.fit import History
from keyfold.training.forecast import Ahead
from keyfold.training.model import Network, build
from keyfold.training.scaling import Scaling
from keyfold.training.sources import form_of

MODEL, SPEC, CONFIG, METRICS, CURVE, PICTURE = (
    "model.keras",
    "spec.json",
    "config.json",
    "metrics.json",
    "loss.png",
    "forecast.png",
)
LATEST = "latest"  # a link to the newest run
TEXTS = ("text", "target")  # sections of the settings


class RunError(Crash):
    """A training run's folder is missing or not as it was written."""


def new_folder(runs: Path, name: str, now: datetime) -> Path:
    """Make an empty folder for a run; the time in its name is for people."""
    stem = f"{name}-{now:%Y%m%d-%H%M%S}"
    for number in range(1000):
        folder = runs / (f"{stem}-{number}" if number else stem)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise RunError(f"{runs}: expected a free name like {stem}, got none")


def save(
    folder: Path,
    config: Config,
    log: EventLog,
    trained: tuple[Network, Scaling, History],
    report: Mapping[str, Any],
) -> None:
    """Write a run's files and point `latest` at it. `report` goes into metrics.json."""
    network, scaling, history = trained
    network.whole.save(folder / MODEL)
    _write(folder / CONFIG, config.record())  # without secrets
    spec = {
        "events": log.events.to_json(),
        "features": log.features.to_json(),
        "outputs": log.outputs.to_json(),
        "scaling": asdict(scaling),
        "label_cap": config.data.label_cap,
    }
    _write(folder / SPEC, spec)
    data = {
        "sha256": log.sha256,
        "table": form_of(config.data).to_json(),
        "records": log.records,
        "events": log.count,
        "keys": len({sequence.key for sequence in log.sequences}),
        "rejected": log.rejected,
        "rejects": list(log.rejects),
    }
    versions = {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }
    weights = {WEIGHTS: weights_sha256(network.whole.get_weights())}
    draw_losses(history, folder / CURVE)
    gradients.write(history.gradients, config.fit.clip_norm, folder)
    passes = asdict(history)
    del passes["gradients"]  # have a file of their own
    _write(
        folder / METRICS,
        {**report, **weights, "data": data, "versions": versions, "history": passes},
    )
    link = folder.parent / LATEST
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name, target_is_directory=True)


@dataclass(frozen=True, slots=True)
class Run:
    """A loaded run."""

    network: Network  # with the trained weights
    data: Data  # the settings it was trained with
    forecast: Forecast  # likewise
    features: FeatureSpec  # with what was learned of the inputs
    outputs: OutputSpec  # what its outputs mean
    scaling: Scaling  # learned before the weights
    model: Model  # the settings that it was built by
    texts: Mapping[str, Mapping[str, Any]]  # sections of how texts become symbols, as they were


def load(folder: Path) -> Run:
    """Load a training run. Raises RunError."""
    spec, config = _read(folder / SPEC), _read(folder / CONFIG)
    outputs = OutputSpec.from_json(spec["outputs"])
    saved = spec["scaling"]
    scaling = Scaling(
        tuple(saved["mean"]),
        tuple(saved["deviation"]),
        saved["label_mean"],
        saved["label_deviation"],
        _ahead(saved.get("ahead")),
        Motion.from_json(saved["motion"]) if saved.get("motion") else None,
        conditions=Conditions.from_json(saved["conditions"]) if saved.get("conditions") else None,
        symbols=saved.get("symbols", 0),
        width=saved.get("width", 0),
    )
    settings = Model(**_tuples(config["model"]))
    network = build(settings, scaling, outputs)
    network.whole.set_weights(keras.models.load_model(folder / MODEL).get_weights())
    data = _tuples(config["data"])
    if outputs.kind == "classification":
        data["classes"] = outputs.names  # as they were found, if the settings named none
    forecast = Forecast(**_tuples(config.get("forecast", {})))
    features = FeatureSpec.from_json(spec["features"])
    texts = {name: config.get(name, {}) for name in TEXTS}
    return Run(network, Data(**data), forecast, features, outputs, scaling, settings, texts)


def _tuples(section: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in section.items()
    }


def _ahead(saved: Mapping[str, Any] | None) -> Ahead | None:
    return None if saved is None else Ahead(**_tuples(saved))


def draw_losses(history: History, file: Path) -> None:
    """Draw the loss curve."""
    # The object interface: pyplot would need a display or a global switch.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    passes = range(1, len(history.train_loss) + 1)
    axes.plot(passes, history.train_loss, label="train (with dropout)")
    axes.plot(passes, history.validation_loss, label="validation")
    axes.axvline(max(1, history.best_pass), linestyle=":", color="grey", label="kept")
    axes.set(xlabel="pass over the training sequences", ylabel="loss", yscale="log")
    axes.legend()
    figure.savefig(file, dpi=110)


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: expected a training run's file, got {error}") from error
    if not isinstance(content, dict):
        raise RunError(f"{file}: expected a JSON object")
    return content
