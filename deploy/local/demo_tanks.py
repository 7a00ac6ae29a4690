"""Made-up water tanks: the event logs behind `make demo-quick`, and nothing measured anywhere.

`python deploy/local/demo_tanks.py FOLDER` writes train.jsonl (to learn from) and events.jsonl
(other tanks, to serve). A reading tells the level, with noise; whether it is rising, steady or
falling is only in the readings before it, so that a model without a memory has nothing to go by.
Drawn from fixed seeds: every run writes the same bytes. demo/README.md says what is made of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

START_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z
INTERVAL_MS = 10_000  # between two readings of a tank
SLOPES = {"rising": 0.4, "steady": 0.0, "falling": -0.4}  # of the level, % per reading
NOISE = 0.8  # standard deviation of a reading, %
LOW, HIGH = 5.0, 95.0  # % of a tank's height that the level stays within
SHORTEST, LONGEST = 20, 70  # readings that a trend lasts


@dataclass(frozen=True, slots=True)
class Log:
    """One event log."""

    file: str  # its name
    tanks: range  # their numbers, which are also their seeds
    readings: int  # of each tank


LOGS = (Log("train.jsonl", range(101, 181), 500), Log("events.jsonl", range(1, 13), 250))


def main(folder: Path) -> None:
    """Write both logs."""
    folder.mkdir(parents=True, exist_ok=True)
    for log in LOGS:
        tanks = [list(readings(number, log.readings)) for number in log.tanks]
        with (folder / log.file).open("w", encoding="utf-8") as file:
            # Interleaved in time: one reading of every tank, then the next one of every tank.
            for moment in zip(*tanks, strict=True):
                file.writelines(moment)
        print(f"{folder / log.file}: {len(tanks) * log.readings:,} events of {len(tanks)} tanks")


def readings(number: int, count: int) -> Iterator[str]:
    """Yield one tank's readings as JSON lines."""
    draw = np.random.default_rng(number)
    level, trend, left = draw.uniform(20, 80), "steady", 0
    offset_ms = int(draw.integers(INTERVAL_MS))
    for i in range(count):
        after = level + SLOPES[trend]
        if left == 0 or not LOW < after < HIGH:
            # The next trend is another one, and one that there is room for.
            trends = [t for t in SLOPES if t != trend and LOW < level + SLOPES[t] < HIGH]
            trend, left = str(draw.choice(trends)), int(draw.integers(SHORTEST, LONGEST))
        level, left = level + SLOPES[trend], left - 1
        event = {
            "key": f"tank-{number:02d}",
            "time": START_MS + i * INTERVAL_MS + offset_ms,
            "level": round(level + draw.normal(0, NOISE), 2),
            "trend": trend,
        }
        yield json.dumps(event, separators=(",", ":")) + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: demo_tanks.py FOLDER")
    main(Path(sys.argv[1]))
