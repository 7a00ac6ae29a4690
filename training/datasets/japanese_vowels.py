"""The Japanese Vowels data set as event logs: one event per frame of an utterance.

Owns the reading of the UEA archive's JapaneseVowels_TRAIN.ts and _TEST.ts (also .xz, .gz; Kudo,
Toyama, Shimbo 1999): nine men say two vowels, 12 linear prediction coefficients a frame. Called by
the `dataset japanese-vowels` command and tests/accuracy.

A key is an utterance (`train-utterance-007`), `speaker` is in every event, `speaker_at_end` in the
last one only. Times are made up: 6.4 ms a frame, utterances one after the other; so is their order,
drawn from a fixed seed, since the files are sorted by speaker.
"""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from keyfold.export.errors import Crash
from keyfold.training.datasets.logs import TEST_LOG, TRAIN_LOG, write_log

DOWNLOAD = (
    "Get the data: JapaneseVowels of the UEA multivariate archive at timeseriesclassification.com, "
    "or of the PyPI package aeon; give the folder with JapaneseVowels_TRAIN.ts and _TEST.ts here."
)
FIELDS = tuple(f"c{i}" for i in range(1, 13))
INTERVAL_US = 6_400
START_US = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z
ORDER_SEED = 9
_OPEN: dict[str, Any] = {"": open, ".gz": gzip.open, ".xz": lzma.open}


class JapaneseVowelsError(Crash):
    """A file is missing or not as documented."""


def write(source: Path, folder: Path) -> dict[str, int]:
    """Write train.jsonl and test.jsonl; return the number of events in each."""
    parts = {
        name: _utterances(source, f"JapaneseVowels_{kind}.ts")
        for name, kind in ((TRAIN_LOG, "TRAIN"), (TEST_LOG, "TEST"))
    }
    folder.mkdir(parents=True, exist_ok=True)
    counts = {}
    for name, utterances in parts.items():
        lines = _events(utterances, name.partition(".")[0])
        counts[name] = write_log(folder / name, lines)
    return counts


def _utterances(source: Path, name: str) -> list[tuple[NDArray[np.float64], str]]:
    """Return frames (T,12) and speaker of every utterance of a file."""
    for ending, opened in _OPEN.items():
        file = source / f"{name}{ending}"
        if file.exists():
            with opened(file, "rt", encoding="utf-8") as text:
                lines = list(text)
            break
    else:
        raise JapaneseVowelsError(f"{source / name}: expected this file. {DOWNLOAD}")
    found = []
    for number, line in enumerate(lines, 1):
        if line.startswith(("#", "@")) or not line.strip():
            continue
        *columns, speaker = line.strip().split(":")
        try:
            frames = np.array([column.split(",") for column in columns], np.float64).T
        except ValueError as error:
            raise JapaneseVowelsError(f"{file}, line {number}: expected numbers: {error}") from None
        if frames.ndim != 2 or frames.shape[1] != len(FIELDS):
            raise JapaneseVowelsError(
                f"{file}, line {number}: expected {len(FIELDS)} columns of one length and a "
                f"speaker, got {len(columns)} columns"
            )
        found.append((frames, speaker))
    return found


def _events(utterances: list[tuple[NDArray[np.float64], str]], kind: str) -> Iterator[bytes]:
    time_us = START_US
    order = np.random.default_rng(ORDER_SEED).permutation(len(utterances))
    for place, number in enumerate(order.tolist()):
        frames, speaker = utterances[number]
        for row, values in enumerate(frames.tolist(), 1):
            event = {
                "key": f"{kind}-utterance-{place + 1:03d}",
                "time": time_us,
                **dict(zip(FIELDS, values, strict=True)),
                "speaker": speaker,
            }
            if row == len(frames):
                event["speaker_at_end"] = speaker
            yield orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE)
            time_us += INTERVAL_US
