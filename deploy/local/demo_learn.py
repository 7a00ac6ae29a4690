"""How the full demo comes to its bundle: data, training, export with parity, baselines.

Owns these commands' order and where their results are. They run as programs of their own, as a
person would run them; TensorFlow is loaded there and never here. Called by demo.py.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local.demo_programs import QUIET, await_child, keyfold, require, run_shown
from local.demo_story import DemoError, Story
from local.services import Child

CONFIG = Path("training/configs/smartwatch.toml")
BASELINES = Path(__file__).with_name("demo_baselines.py")
BASELINES_S = 180.0  # longest wait


@dataclass(frozen=True, slots=True)
class Learned:
    """A trained and exported model, and what it has to beat."""

    bundle: Path  # folder
    held_out: Path  # event log of the subjects that were not trained on
    held_out_s: float  # event time from its first to its last event
    baselines: Mapping[str, float]  # "majority", "nonrecurrent" -> accuracy on the held-out log
    history: Mapping[str, Any]  # losses by pass over the training sequences


def learn(folder: Path, story: Story) -> Learned:
    """Train and export. Raises DemoError when a command fails."""
    data, runs, bundles = folder / "data", folder / "runs", folder / "bundles"
    for old in (runs, bundles):
        shutil.rmtree(old, ignore_errors=True)
    _prepare(data, story)
    train, held_out = data / "train.jsonl", data / "held_out.jsonl"
    _train(train, runs, story)
    baselines = folder / "baselines.json"
    child = _start_baselines((train, held_out), baselines)
    try:
        bundle = _export(runs / "latest", bundles, story)
        story.note("Meanwhile, a net without memory was trained on the same events.")
        await_child(child, BASELINES_S)
    finally:
        child.kill()
    metrics = _read(runs / "latest" / "metrics.json")
    return Learned(bundle, held_out, _span_s(held_out), _read(baselines), metrics["history"])


def _prepare(data: Path, story: Story) -> None:
    command = [keyfold("train"), "dataset", "smartwatch", str(data)]
    story.step(
        "Prepare the data: exercises recorded at a smartwatch",
        "10 people, both wrists, 7 exercises, 12.5 events a second; a key is one person's wrist. "
        "Three people are held out: the model never sees them before it serves them.",
        command,
    )
    require(command, run_shown(command))


def _train(log: Path, runs: Path, story: Story) -> None:
    command = [
        keyfold("train"), str(CONFIG), "--set", f"data.files={log}", "--out", str(runs),
    ]  # fmt: skip
    story.step(
        "Train the LSTM",
        "It is asked for the exercise at every single reading; what it knows of the past is its "
        "hidden state, carried from reading to reading.",
        command,
    )
    require(command, run_shown(command))


def _export(run: Path, bundles: Path, story: Story) -> Path:
    command = [keyfold("export"), str(run), "--out", str(bundles)]
    story.step(
        "Export to ONNX, with proof",
        "One graph for single events and for bursts. It is refused unless it computes what "
        "Keras does, step by step with carried states.",
        command,
    )
    require(command, run_shown(command))
    found = [path.parent for path in bundles.glob("*/manifest.json")]
    if len(found) != 1:
        raise DemoError(f"{bundles}: expected one bundle, got {len(found)}")
    return found[0]


def _start_baselines(logs: tuple[Path, Path], result: Path) -> Child:
    result.unlink(missing_ok=True)
    log = result.with_suffix(".log")
    log.unlink(missing_ok=True)
    command = [sys.executable, str(BASELINES), str(CONFIG), *map(str, logs), str(result)]
    return Child(command, log, QUIET)


def _span_s(log: Path) -> float:
    with log.open("rb") as lines:
        times = [json.loads(line)["time"] for line in lines]
    return float(max(times) - min(times)) / 1000


def _read(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DemoError(f"{file}: expected results, got {error}") from error
    return content
