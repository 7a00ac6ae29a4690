"""C-MAPSS turbofan engines as event logs: one event per engine and flight cycle.

Owns the file format of NASA's "Turbofan Engine Degradation Simulation Data Set" (Saxena et al.
2008): 26 columns of text without a header (unit, cycle, 3 settings, 21 sensors); training engines
run to failure, test engines are cut off earlier, and RUL_*.txt has the cycles they had left. Reads
.txt or .txt.gz. Called by the `dataset cmapss` command.

A key is an engine (`FD001-train-engine-007`); the label `rul` is the cycles left after this one.
Times are made up: an hour a cycle, all engines starting together.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from keyfold.export.errors import Crash
from keyfold.training.datasets.logs import TEST_LOG, TRAIN_LOG, write_log

DOWNLOAD = (
    "Get the data: search the web for 'NASA Prognostics Center of Excellence Data Set Repository', "
    "open number 6, 'Turbofan Engine Degradation Simulation', download and unzip CMAPSSData.zip, "
    "and give its folder here."
)
SETTINGS = tuple(f"setting{i}" for i in range(1, 4))
SENSORS = tuple(f"s{i}" for i in range(1, 22))
COLUMNS = 2 + len(SETTINGS) + len(SENSORS)
INTERVAL_MS = 3_600_000
START_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z


class CmapssError(Crash):
    """A C-MAPSS file is missing or not as documented."""


def write(source: Path, subset: str, folder: Path) -> dict[str, int]:
    """Write train.jsonl and test.jsonl of a subset; return the number of events in each."""
    train, test = (
        _table(source, f"train_{subset}", COLUMNS),
        _table(source, f"test_{subset}", COLUMNS),
    )
    left = _table(source, f"RUL_{subset}", 1)[:, 0]
    engines = len(np.unique(test[:, 0]))
    if len(left) != engines:
        raise CmapssError(
            f"{source}/RUL_{subset}: expected {engines} lines, one per test engine, got {len(left)}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    counts = {}
    for name, table, at_end in (
        (TRAIN_LOG, train, np.zeros(len(np.unique(train[:, 0])))),
        (TEST_LOG, test, left),
    ):
        kind = name.partition(".")[0]
        counts[name] = write_log(folder / name, _events(table, at_end, f"{subset}-{kind}"))
    return counts


def _table(source: Path, stem: str, columns: int) -> NDArray[np.float64]:
    plain, packed = source / f"{stem}.txt", source / f"{stem}.txt.gz"
    file = plain if plain.exists() else packed
    opened: Any = gzip.open if file == packed else open
    try:
        with opened(file, "rt", encoding="ascii") as text:
            table = np.loadtxt(text, ndmin=2)
    except FileNotFoundError as error:
        raise CmapssError(f"{plain}: expected this file or {packed.name}. {DOWNLOAD}") from error
    except (OSError, ValueError) as error:
        raise CmapssError(f"{file}: expected {columns} columns of numbers: {error}") from error
    if table.shape[1] != columns:
        raise CmapssError(f"{file}: expected {columns} columns, got {table.shape[1]}")
    return table


def _events(
    table: NDArray[np.float64], left_at_end: NDArray[np.float64], prefix: str
) -> Iterator[bytes]:
    """Yield lines in time order: cycle by cycle over all engines."""
    units = np.unique(table[:, 0])
    # A cycle's label is the distance to the engine's failure.
    failure = {
        unit: float(table[table[:, 0] == unit, 1].max() + left)
        for unit, left in zip(units.tolist(), left_at_end.tolist(), strict=True)
    }
    for row in table[np.lexsort((table[:, 0], table[:, 1]))].tolist():
        unit, cycle, *values = row
        event = {
            "key": f"{prefix}-engine-{unit:03.0f}",
            "time": START_MS + int(cycle) * INTERVAL_MS,
            "cycle": int(cycle),
            **dict(zip(SETTINGS + SENSORS, values, strict=True)),
            "rul": failure[unit] - cycle,
        }
        yield orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE)
