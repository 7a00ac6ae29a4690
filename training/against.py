"""A new model against the one in service, on the same newest events.

Owns finding the earlier run (by its folder, or by the bundle that was made of it), judging both
with the same code, and the verdict. Called by train.py for a retraining job; keyfold-export reads
the verdict from metrics.json and refuses a worse model.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keyfold.export import bundle as contract
from keyfold.export.errors import Crash
from keyfold.export.outputs import OutputSpec
from keyfold.training import run
from keyfold.training.config import Config
from keyfold.training.delayed import with_labels
from keyfold.training.evaluate import measure, predict
from keyfold.training.forecast import judge
from keyfold.training.reread import as_seen, read_for
from keyfold.training.sources import Chunk
from keyfold.training.split import Part, split, whole

SHOWN_NAMES = 5  # of outputs in a message
Judged = tuple[Part, Seq[NDArray[np.float32]]]  # a part and a model's outputs for it


class AgainstError(Crash):
    """Two models cannot be compared."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which of two models is better on the same events."""

    earlier: str  # the run in service
    measure: str  # what was compared; less is better
    new: float  # of the model just trained
    old: float  # of the earlier one
    events: int  # judged

    @property
    def is_worse(self) -> bool:
        """Whether the new model is worse."""
        return not self.new <= self.old


def run_of(path: Path, runs: Path, option: str = "--against") -> Path:
    """Return the folder of an earlier run, given it or a bundle made of it; `option` named it."""
    if (path / run.SPEC).is_file():
        return path.resolve()
    if not (path / contract.MANIFEST).is_file():
        raise AgainstError(f"{option} {path}: expected a training run's folder, or a bundle's")
    name = contract.load(path).manifest.provenance.get("run")
    if not name or not (runs / str(name) / run.SPEC).is_file():
        raise AgainstError(
            f"{option} {path}: expected the run it was made of, {name}, in {runs} (--out), got none"
        )
    return (runs / str(name)).resolve()


def compare(
    earlier: tuple[Path, Seq[Chunk]], config: Config, judged: Judged, outputs: OutputSpec
) -> Verdict:
    """Judge both models on the part that the new one was held out from."""
    folder, chunks = earlier
    saved = run.load(folder)
    check_comparable(outputs, saved.outputs)
    log = read_for(saved, chunks, keyed=bool(config.kafka.topic))
    log = as_seen(saved, with_labels(log, config))
    parts = split(log.sequences, config.split)
    part = parts.test if parts.test.events else parts.validation
    y = predict(saved.network, whole(log.sequences))
    mine = [y[n][: len(s)] for n, s in zip(part.origins, part.sequences, strict=True)]
    return _verdict(folder.name, (judged, outputs), ((part, mine), saved.outputs))


def check_comparable(new: OutputSpec, old: OutputSpec) -> None:
    """Refuse an earlier model whose errors do not measure the same. Raises AgainstError."""
    if new.kind != old.kind:
        raise AgainstError(f"--against: expected a run of kind {new.kind!r}, got {old.kind!r}")
    # Each of them changes which labels are judged, and so what their mean is of.
    for name in ("answers", "read", "delay"):
        expected, got = getattr(new, name), getattr(old, name)
        if expected != got:
            raise AgainstError(
                f"--against: expected a run with outputs.{name} = {expected!r}, got {got!r}"
            )
    # Of forecasts the fields and horizons that both have are compared, in the fields' own units.
    if new.kind != "forecast" and new.names != old.names:
        raise AgainstError(
            f"--against: expected a run with the same outputs.names, {_shown(new, old)}, got "
            f"{_shown(old, new)}: errors over other names do not compare (--parent keeps a run's)"
        )


def _shown(mine: OutputSpec, other: OutputSpec) -> str:
    """Return how many names there are, and the first that the other has not at their place."""
    known = set(other.names)
    lacking = [name for name in mine.names if name not in known]
    shown = ", ".join(map(repr, lacking[:SHOWN_NAMES]))
    more = ", ..." if len(lacking) > SHOWN_NAMES else ""
    return f"{len(mine.names)} with {shown or 'no other name'}{more}"


def _verdict(name: str, new: tuple[Judged, OutputSpec], old: tuple[Judged, OutputSpec]) -> Verdict:
    kind = new[1].kind
    if kind == "forecast":
        return _forecasts(name, new, old)
    measures = {"regression": "rmse", "transcription": "symbol_error_rate"}
    what = measures.get(kind, "cross_entropy")
    found = [measure(list(y), part, spec) for (part, y), spec in (new, old)]
    if what not in found[0] or what not in found[1]:
        raise AgainstError("--against: expected labelled events in the held-out part, got none")
    events = int(found[0]["events"])
    return Verdict(name, what, float(found[0][what]), float(found[1][what]), events)


def _forecasts(
    name: str, new: tuple[Judged, OutputSpec], old: tuple[Judged, OutputSpec]
) -> Verdict:
    """Compare the forecasts that both models make, each in units of the truth's deviation."""
    both = []
    for (part, y), spec in (new, old):
        if spec.forecast is None:
            raise AgainstError("--against: expected forecasts, got none")
        both.append({worth.name: worth for worth in judge(y, part, spec.forecast)})
    shared = [n for n in both[0] if n in both[1] and both[0][n].deviation > 0]
    if not shared:
        raise AgainstError("--against: expected a run that forecasts the same fields, got another")
    deviations = np.array([both[0][n].deviation for n in shared])
    errors = [
        float(np.sqrt(np.mean(np.square([found[n].model for n in shared] / deviations))))
        for found in both
    ]
    return Verdict(name, "error", errors[0], errors[1], max(both[0][n].events for n in shared))
