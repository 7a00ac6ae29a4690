"""What the converters write: a training log and a test log of lines of JSON.

Owns the files' names and the writing. It must not know any data set. Called by its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

TRAIN_LOG, TEST_LOG = "train.jsonl", "test.jsonl"


def write_log(file: Path, lines: Iterable[bytes]) -> int:
    """Write lines, each with its end, to a new file; return how many there were."""
    with file.open("wb") as log:
        return sum(1 for line in lines if log.write(line))
