"""One task with one seed: train, judge offline, export, serve, judge what came out.

Owns the order of the public commands, and what a result depends on: another config, other logs or
another way to judge ask for a new run. Called by __main__.py.
"""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accuracy.streamed import stream
from accuracy.task import TEST, TRAIN, Answers, Events, Task

FOLDER = Path(__file__).resolve().parent
OFFLINE = FOLDER / "offline.py"  # a command of its own
CONFIGS = FOLDER.parents[1] / "training" / "configs"
LOWEST = ("nice", "-n", "19")  # of priority: training may take the machine only when it is idle


@dataclass(frozen=True, slots=True)
class Place:
    """Where a task's files are."""

    task: Task  # what is measured
    folder: Path  # of its logs and runs

    @property
    def config(self) -> Path:
        """Its training config."""
        return CONFIGS / f"{self.task.config}.toml"

    @property
    def streamed(self) -> tuple[Path, ...]:
        """Logs that are served."""
        return tuple(self.folder / name for name in self.task.streamed)

    def settings(self) -> str:
        """Return a digest of all that a result depends on, beside the code of keyfold itself."""
        source = sys.modules[self.task.judge.__module__].__file__
        begun = (OFFLINE, Path(__file__), *([Path(source)] if source is not None else []))
        code = sorted(set().union(*map(sources, begun)))
        return _digest(self.config, self.folder / TRAIN, self.folder / TEST, *code)

    def training_settings(self) -> str:
        """Return a digest of what a training run depends on."""
        return _digest(self.config, self.folder / TRAIN)


def sources(file: Path) -> set[Path]:
    """Return a file and all that it imports of this folder."""
    found: set[Path] = set()
    waiting = [file.resolve()]
    while waiting:
        one = waiting.pop()
        found.add(one)
        for node in ast.walk(ast.parse(one.read_bytes())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("accuracy."):
                other = FOLDER / f"{str(node.module).removeprefix('accuracy.')}.py"
                waiting += [other] if other not in found else []
    return found


def _digest(*files: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def read_events(logs: tuple[Path, ...]) -> Events:
    """Return each key's events, log behind log."""
    events: dict[str, list[dict[str, Any]]] = {}
    for file in logs:
        with file.open(encoding="utf-8") as log:
            for event in map(json.loads, log):
                events.setdefault(event["key"], []).append(event)
    return events


def run(place: Place, seed: int, *, serve: bool = True) -> dict[str, Any]:
    """Train, unless that is done, and judge; return what results.json keeps of it."""
    task, folder = place.task, place.folder / f"seed-{seed}"
    trained, seconds = trained_run(place, seed)
    metrics = json.loads((trained / "metrics.json").read_text(encoding="utf-8"))["metrics"]
    result: dict[str, Any] = {"training_s": seconds, "validation": metrics.get("validation")}
    events = read_events(place.streamed)
    result["offline"] = task.judge(events, _offline(trained, folder / "offline.json", place))
    if not serve:
        return result
    exported = folder / "bundles" / trained.name
    if not list(exported.glob("*/manifest.json")):
        _keyfold("export", str(trained), "--out", str(exported))
    (bundle,) = [path.parent for path in exported.glob("*/manifest.json")]
    streamed = stream(bundle, place.streamed)
    result["streamed"] = task.judge(events, streamed.answers)
    result["violations"] = streamed.violations
    result["max_abs_difference"] = streamed.max_abs_difference
    return result


def trained_run(place: Place, seed: int) -> tuple[Path, float]:
    """Return the training run and its seconds; one that was finished before is found again."""
    folder, settings = place.folder / f"seed-{seed}", place.training_settings()
    note = folder / "trained.json"
    if note.exists():
        found = json.loads(note.read_text(encoding="utf-8"))
        if found["settings"] == settings:
            return Path(found["run"]), found["seconds"]
    begun = time.monotonic()
    data = f"data.files={json.dumps([str(place.folder / TRAIN)])}"
    sets = ["--set", data, "--set", f"fit.seed={seed}"]
    _keyfold("train", str(place.config), *sets, "--out", str(folder / "runs"))
    seconds = time.monotonic() - begun
    trained = (folder / "runs" / "latest").resolve()
    content = {"settings": settings, "run": str(trained), "seconds": seconds}
    note.write_text(json.dumps(content), encoding="utf-8")
    return trained, seconds


def _offline(trained: Path, out: Path, place: Place) -> Answers:
    logs = map(str, place.streamed)
    command = [sys.executable, "-m", "accuracy.offline", str(trained), str(out), *logs]
    subprocess.run([*LOWEST, *command], check=True)
    answers: Answers = json.loads(out.read_text(encoding="utf-8"))
    return answers


def _keyfold(command: str, *arguments: str) -> None:
    program = str(Path(sys.executable).with_name(f"keyfold-{command}"))
    subprocess.run([*LOWEST, program, *arguments], check=True, stdout=subprocess.DEVNULL)
