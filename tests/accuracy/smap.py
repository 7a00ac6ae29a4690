"""SMAP telemetry: anomalies found by keyfold's own forecasts and scores.

Owns what is judged: ranges of anomalous steps in each channel's test file (ranges.py), found by

- `flag`: the prediction's own `anomaly.flag`, as it is served;
- `score`: `anomaly.score`, smoothed, above a threshold of each channel's own: the largest smoothed
  score of its training file times a factor. The factor is learned on training files, too: how much
  larger scores of their last fifth are than all before, in nine of ten channels.
  When this rule took the place of a fixed factor (1.5), the simple methods had been judged on the
  test files (last value 0.48, moving z-score 0.53), the model had not.

The simple methods are judged with the same smoothing, rule and counting: the distance from the last
value, and from a moving mean in moving deviations.
"""

from __future__ import annotations

import json
import lzma
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accuracy.ranges import Count, Range, count, flagged_ranges
from accuracy.task import TEST, TRAIN, Answers, Asked, Events, Figures, Task
from numpy.typing import NDArray

from keyfold.training.datasets import smap

SMOOTHING = 0.05  # weight of the newest error in the moving average, about 30 steps of memory
LATER = 0.2  # share of a training file, at its end, that shows how scores grow
COMMON = 0.9  # share of channels whose growth is taken for usual
COLD = 100  # steps of a training file that are left out
REACH = 100  # steps: alerts nearer to each other are one, as telemanom's error buffer has it
LEAST = 1e-6  # of a channel that never moves
WINDOW = 250  # steps of the moving mean and deviation: telemanom's history
Numbers = NDArray[np.float64]


def prepare(source: Path, folder: Path) -> None:
    """Unpack the archive, if there is one, and write the logs."""
    archive = source / "smap.tar.xz"
    if not archive.exists():
        smap.write(source, folder)
        return
    with tempfile.TemporaryDirectory() as unpacked:
        with lzma.open(archive) as stream, tarfile.open(fileobj=stream) as files:
            files.extractall(unpacked, filter="data")
        smap.write(Path(unpacked), folder)


def judge(events: Events, answers: Answers) -> Figures:
    """Count ranges by the flags that were served, and by scores above their channel's threshold."""
    own, channels = Count(), []
    for channel, steps in events.items():
        given = [answer["anomaly"] for answer in answers[channel]]
        flags = [bool(one["flag"]) for one in given]
        scores = np.nan_to_num(np.array([one["score"] for one in given], np.float64))
        first = next(place for place, event in enumerate(steps) if "anomaly" in event)
        truth = flagged_ranges([event["anomaly"] is True for event in steps[first:]], 1)
        own += count(truth, flagged_ranges(flags[first:], REACH))
        channels.append(Channel(smoothed(scores), first, truth))
    flagged = {f"flag {name}": value for name, value in own.figures().items()}
    return {**by_threshold(channels), **flagged}


def simple_methods(folder: Path) -> dict[str, Figures]:
    """Judge two scores that need no model."""
    values, truths = _values(folder)
    channels: dict[str, list[Channel]] = {"last value": [], "moving z-score": []}
    for name, (before, after) in values.items():
        series = np.concatenate([before, after])
        for method, scores in (
            ("last value", np.abs(np.diff(series, prepend=series[:1]))),
            ("moving z-score", moving_z(series)),
        ):
            channels[method].append(Channel(smoothed(scores), len(before), truths[name]))
    return {method: by_threshold(those) for method, those in channels.items()}


@dataclass(frozen=True, slots=True)
class Channel:
    """Scores of a channel and what is true of it."""

    level: Numbers  # (T,) smoothed scores: the training file, then the test file
    first: int  # step of the test file
    truth: list[Range]  # anomalies, in steps of the test file

    @property
    def largest(self) -> float:
        """The largest score of the training file."""
        return max(float(self.level[min(COLD, self.first - 1) : self.first].max()), LEAST)

    @property
    def growth(self) -> float:
        """How much larger scores at the training file's end are than those before."""
        later = self.first - max(1, round(LATER * self.first))
        before = self.level[min(COLD, later - 1) : later]
        return float(self.level[later : self.first].max()) / max(float(before.max()), LEAST)


def by_threshold(channels: list[Channel]) -> Figures:
    """Count ranges of scores above their channel's threshold."""
    factor = max(1.0, float(np.quantile([channel.growth for channel in channels], COMMON)))
    counts = Count()
    for channel in channels:
        flags = channel.level[channel.first :] > factor * channel.largest
        counts += count(channel.truth, flagged_ranges(flags.tolist(), REACH))
    return {**counts.figures(), "factor": factor}


def moving_z(series: Numbers) -> Numbers:
    """Return each value's distance from the WINDOW values before it, in their deviations."""
    scores = np.zeros(len(series))
    for step in range(2, len(series)):
        past = series[max(0, step - WINDOW) : step]
        scores[step] = abs(series[step] - past.mean()) / max(float(past.std()), 1e-3)
    return scores


def smoothed(scores: Numbers) -> Numbers:
    """Return the moving average of scores, from the first on."""
    averages = np.empty_like(scores)
    average = float(scores[0])
    for step, score in enumerate(scores.tolist()):
        average += SMOOTHING * (score - average)
        averages[step] = average
    return averages


def _values(folder: Path) -> tuple[dict[str, tuple[Numbers, Numbers]], Mapping[str, list[Range]]]:
    parts: dict[str, tuple[list[float], list[float]]] = {}
    marks: dict[str, list[bool]] = {}
    for place, name in enumerate((TRAIN, TEST)):
        with (folder / name).open(encoding="utf-8") as log:
            for event in map(json.loads, log):
                parts.setdefault(event["key"], ([], []))[place].append(event[smap.VALUE])
                if place:
                    marks.setdefault(event["key"], []).append(event["anomaly"])
    values = {key: (np.array(before), np.array(after)) for key, (before, after) in parts.items()}
    return values, {key: flagged_ranges(flags, 1) for key, flags in marks.items()}


TASKS = (
    Task(
        name="smap",
        title="SMAP anomalies, F0.5 over ranges",
        source="smap",
        config="smap",
        prepare=prepare,
        judge=judge,
        main="f0.5",
        seeds=1,
        streamed=(TRAIN, TEST),
        asked=(Asked("f0.5", 0.855, is_least=True),),
        baselines=simple_methods,
        published={
            "telemanom (Hundman 2018)": {"f0.5": 0.855, "precision": 0.855, "recall": 0.855}
        },
    ),
)
