"""The smartwatch data set as event logs: physiotherapy exercises, 12.5 events a second.

Owns how the arrays that the PyPI package `seglearn` ships (BSD-3-Clause; Burns et al. 2018,
"Shoulder physiotherapy exercise recognition", CC BY) become keyed events in time order. The package
itself is not imported, since that would need pandas. Called by the `dataset smartwatch` command and
the demo.

A key is a subject's side (`subject-07-left`). Every key does the 7 recorded exercises one after the
other, in an order of its own drawn from a fixed seed, so that the order says nothing about the
label. An event is the mean of 4 readings. Times are made up: all keys start together.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from keyfold.export.errors import Crash
from keyfold.training.datasets.logs import TRAIN_LOG, write_log

FIELDS = ("ax", "ay", "az", "wx", "wy", "wz")  # acceleration in g, angular velocity in rad/s
AVERAGED = 4  # readings (at 50 Hz) in an event: 12.5 Hz still shows every movement of an arm
INTERVAL_MS = 20 * AVERAGED
START_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z
ORDER_SEED = 20
SUBJECTS = range(1, 11)
HELD_OUT = (8, 9, 10)  # subjects; fixed before any model was trained
HELD_OUT_LOG = "held_out.jsonl"


class SmartwatchError(Crash):
    """The data set is not installed, or not as expected."""


def write(folder: Path, held_out: Collection[int] = HELD_OUT) -> dict[str, int]:
    """Write train.jsonl and held_out.jsonl, and return the number of events in each.

    A subject is in one file only, with both sides.
    """
    if unknown := set(held_out) - set(SUBJECTS):
        raise SmartwatchError(f"subject {min(unknown)}: expected one of 1 to {SUBJECTS[-1]}")
    data = _load()
    folder.mkdir(parents=True, exist_ok=True)
    counts = {}
    for name, subjects in (
        (TRAIN_LOG, set(SUBJECTS) - set(held_out)),
        (HELD_OUT_LOG, set(held_out)),
    ):
        streams = [_events(data, subject, side) for subject in sorted(subjects) for side in (0, 1)]
        # Interleaved in time; keys in order within one instant.
        merged = heapq.merge(*streams, key=lambda event: (event[0], event[1]))
        counts[name] = write_log(folder / name, (line for *_, line in merged))
    return counts


def _load() -> dict[str, Any]:
    try:
        package = metadata.distribution("seglearn")
    except metadata.PackageNotFoundError as error:
        raise SmartwatchError(
            "the data set comes with keyfold[local] (package seglearn)"
        ) from error
    file = Path(str(package.locate_file("seglearn/data/watch_dataset.npy")))
    # A pickle, and pickles can run code: this one comes from a package installed on purpose.
    data = np.load(file, allow_pickle=True).item()
    if not isinstance(data, dict) or data.keys() < {"X", "y", "subject", "side", "y_labels"}:
        raise SmartwatchError(f"{file}: expected series, labels, subjects and sides")
    return data


def _events(data: dict[str, Any], subject: int, side: int) -> Iterator[tuple[int, str, bytes]]:
    """Yield (time_ms, key, line) of one key."""
    key = f"subject-{subject:02d}-{('left', 'right')[side]}"
    series = np.flatnonzero((data["subject"] == subject) & (data["side"] == side))
    order = np.random.default_rng((ORDER_SEED, subject, side)).permutation(series)
    time_ms = START_MS
    for number in order.tolist():
        label = data["y_labels"][int(data["y"][number])]
        readings = data["X"][number]
        whole = len(readings) // AVERAGED * AVERAGED  # a rest of up to 3 readings is left out
        means = readings[:whole].reshape(-1, AVERAGED, len(FIELDS)).mean(axis=1)
        for row in np.round(means, 6).tolist():
            event = {"key": key, "time": time_ms, **dict(zip(FIELDS, row, strict=True))}
            line = orjson.dumps({**event, "exercise": label}, option=orjson.OPT_APPEND_NEWLINE)
            yield time_ms, key, line
            time_ms += INTERVAL_MS
