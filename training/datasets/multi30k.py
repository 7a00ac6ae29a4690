"""The Multi30k data set as event logs: one event per image description, English and German.

Owns the reading of train, val and test_2016_flickr (.en and .de, also .gz; Elliott et al. 2016,
arXiv 1605.00459: 29,000, 1,014 and 1,000 pairs). Called by the `dataset multi30k` command and
tests/accuracy.

A key is a pair (`train-00001`, `val-00001`, `test-00001`): validation is named by its keys. Times
are made up, a second apart.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from keyfold.export.errors import Crash
from keyfold.training.datasets.logs import TEST_LOG, TRAIN_LOG, write_log

DOWNLOAD = (
    "Get the data: data/task1/raw of github.com/multi30k/dataset; give the folder with train.en, "
    "train.de, val.* and test_2016_flickr.* (also .gz) here."
)
LOGS = {TRAIN_LOG: ("train", "val"), TEST_LOG: ("test_2016_flickr",)}
LANGUAGES = ("en", "de")
START_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z
_OPEN: dict[str, Any] = {"": open, ".gz": gzip.open}


class Multi30kError(Crash):
    """A file is missing or not as documented."""


def write(source: Path, folder: Path) -> dict[str, int]:
    """Write train.jsonl (with validation) and test.jsonl; return the number of events in each."""
    parts = {name: [(part, _pairs(source, part)) for part in LOGS[name]] for name in LOGS}
    folder.mkdir(parents=True, exist_ok=True)
    return {name: write_log(folder / name, _events(of)) for name, of in parts.items()}


def _pairs(source: Path, part: str) -> list[tuple[str, ...]]:
    """Return the lines of a part, one of each language beside the other."""
    columns = [_lines(source, f"{part}.{language}") for language in LANGUAGES]
    if len({len(lines) for lines in columns}) > 1:
        counts = ", ".join(f"{len(lines):,}" for lines in columns)
        raise Multi30kError(f"{source / part}: expected as many lines of each language: {counts}")
    return list(zip(*columns, strict=True))


def _lines(source: Path, name: str) -> list[str]:
    for ending, opened in _OPEN.items():
        file = source / f"{name}{ending}"
        if file.exists():
            with opened(file, "rt", encoding="utf-8", newline="\n") as text:
                return [line.strip() for line in text]
    raise Multi30kError(f"{source / name}: expected this file. {DOWNLOAD}")


def _events(parts: list[tuple[str, list[tuple[str, ...]]]]) -> Iterator[bytes]:
    time_ms = START_MS
    for part, pairs in parts:
        for number, texts in enumerate(pairs, 1):
            event = {"key": f"{part.partition('_')[0]}-{number:05d}", "time": time_ms}
            event |= dict(zip(LANGUAGES, texts, strict=True))
            yield orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE)
            time_ms += 1000
