"""NASA's SMAP telemetry as event logs: one event per channel and time step.

Owns the layout of telemanom's data (Hundman et al. 2018): train/CHANNEL.npy and test/CHANNEL.npy of
shape (T,25), column 0 the telemetry value and the rest one-hot commands, and
labeled_anomalies.csv with the ranges of anomalies in each test file. Called by the `dataset smap`
command and tests/accuracy.

A key is a channel (`P-1`). train.jsonl holds what is free of anomalies; test.jsonl goes on with the
same keys and has `anomaly`, true or false. Times are made up: a minute a step, all channels side by
side, each test file right behind its training file. Channels are taken as they lie in the files; a
channel named twice in the table has the ranges of both rows.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from keyfold.export.errors import Crash
from keyfold.training.datasets.logs import TEST_LOG, TRAIN_LOG, write_log

DOWNLOAD = (
    "Get the data: telemanom's README (github.com/khundman/telemanom) says where; give the folder "
    "with train/, test/ and labeled_anomalies.csv here."
)
VALUE = "value"
COMMANDS = tuple(f"command{i}" for i in range(1, 25))
LABELS = "labeled_anomalies.csv"
INTERVAL_MS = 60_000
START_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z

Table = NDArray[np.float64]  # (T,25)


class SmapError(Crash):
    """A file is missing or not as documented."""


def write(source: Path, folder: Path) -> dict[str, int]:
    """Write train.jsonl and test.jsonl of all SMAP channels; return the events in each."""
    ranges = anomalies(source)
    train = {channel: _table(source / "train" / f"{channel}.npy") for channel in ranges}
    test = {channel: _table(source / "test" / f"{channel}.npy") for channel in ranges}
    folder.mkdir(parents=True, exist_ok=True)
    counts = {}
    for name, tables in ((TRAIN_LOG, train), (TEST_LOG, test)):
        begins = {channel: len(train[channel]) if tables is test else 0 for channel in ranges}
        marked = ranges if tables is test else {}
        counts[name] = write_log(folder / name, _events(tables, begins, marked))
    return counts


def anomalies(source: Path) -> dict[str, list[tuple[int, int]]]:
    """Return each SMAP channel's ranges of anomalous steps of its test file, ends included."""
    file = source / LABELS
    try:
        with file.open(encoding="utf-8", newline="") as text:
            rows = [row for row in csv.DictReader(text) if row["spacecraft"] == "SMAP"]
        found: dict[str, list[tuple[int, int]]] = {}
        for row in rows:
            ranges = [(int(a), int(b)) for a, b in orjson.loads(row["anomaly_sequences"])]
            found.setdefault(row["chan_id"], []).extend(ranges)
    except FileNotFoundError as error:
        raise SmapError(f"{file}: expected this file. {DOWNLOAD}") from error
    except (KeyError, ValueError, TypeError) as error:
        raise SmapError(
            f"{file}: expected columns chan_id, spacecraft and anomaly_sequences, got {error!r}"
        ) from error
    return {channel: sorted(ranges) for channel, ranges in sorted(found.items())}


def _table(file: Path) -> Table:
    try:
        table: Table = np.load(file).astype(np.float64)
    except FileNotFoundError as error:
        raise SmapError(f"{file}: expected this file. {DOWNLOAD}") from error
    except ValueError as error:
        raise SmapError(f"{file}: expected an array: {error}") from error
    if table.ndim != 2 or table.shape[1] != 1 + len(COMMANDS):
        raise SmapError(f"{file}: expected shape (T, {1 + len(COMMANDS)}), got {table.shape}")
    return table


def _events(
    tables: dict[str, Table], begins: dict[str, int], marked: dict[str, list[tuple[int, int]]]
) -> Iterator[bytes]:
    """Yield lines step by step over all channels."""
    for step in range(max(map(len, tables.values()))):
        for channel, table in tables.items():
            if step >= len(table):
                continue
            value, *commands = table[step].tolist()
            event = {
                "key": channel,
                "time": START_MS + (begins[channel] + step) * INTERVAL_MS,
                VALUE: value,
                **{name: int(sent) for name, sent in zip(COMMANDS, commands, strict=True)},
            }
            if marked:
                event["anomaly"] = any(a <= step <= b for a, b in marked[channel])
            yield orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE)
