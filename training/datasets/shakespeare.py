"""A book as event logs of lines: tinyshakespeare, or another text that is learned by character.

Owns how a text becomes events: one for each line, without its line break, whose place the end
symbol takes that closes every event. So the symbols of the log are the text's characters, one for
one, and a loss per symbol is a loss per character. Called by the `dataset shakespeare` command and
tests/accuracy.

The last `test_share` of the characters becomes test.jsonl, one key ("test") from a cold start on;
of the rest the last tenth has keys `validation-...` in train.jsonl. There keys are pieces of about
PIECE characters, side by side in training. Of tinyshakespeare (Karpathy, char-rnn) the last tenth
is what nanoGPT calls its validation. Times are made up: a second a line.
"""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from keyfold.export.errors import Crash
from keyfold.training.datasets.logs import TEST_LOG, TRAIN_LOG, write_log

DOWNLOAD = (
    "Get the data: data/tinyshakespeare/input.txt of github.com/karpathy/char-rnn, or any other "
    "text in UTF-8; give the file (.xz and .gz too)."
)
PIECE = 4000  # characters of a key, about
TEST_SHARE, VALIDATION_SHARE = 0.1, 0.1
START_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z
INTERVAL_MS = 1000
_OPEN: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}


class TextError(Crash):
    """A file is missing or no text."""


def write(file: Path, folder: Path, test_share: float = TEST_SHARE) -> dict[str, int]:
    """Write train.jsonl and test.jsonl of a text; return the number of events in each."""
    text = _read(file)
    train, test = _cut(text, test_share)
    train, validation = _cut(train, VALIDATION_SHARE)
    folder.mkdir(parents=True, exist_ok=True)
    keyed = [*_pieces("train", train), *_pieces("validation", validation)]
    counts = {TRAIN_LOG: write_log(folder / TRAIN_LOG, _events(keyed))}
    last = [("test", line) for line in lines(test)]
    return {**counts, TEST_LOG: write_log(folder / TEST_LOG, _events(last))}


def lines(text: str) -> list[str]:
    """Return a text's lines; only a line feed ends one. An end symbol stands for each of them."""
    return text.removesuffix("\n").split("\n")


def _read(file: Path) -> str:
    try:
        with _OPEN.get(file.suffix, open)(file, "rb") as stream:
            text: str = stream.read().decode()
    except OSError as error:
        raise TextError(f"{file}: expected this file: {error}. {DOWNLOAD}") from error
    except (UnicodeDecodeError, lzma.LZMAError, EOFError) as error:
        raise TextError(f"{file}: expected a text in UTF-8, got {error}") from error
    if len(text) < 100:
        raise TextError(f"{file}: expected a text of 100 characters or more, got {len(text)}")
    return text


def _cut(text: str, share: float) -> tuple[str, str]:
    """Cut off the last share of the characters, as nanoGPT does: at a character, not at a line."""
    at = int(len(text) * (1.0 - share))
    return text[:at], text[at:]


def _pieces(name: str, text: str) -> Iterator[tuple[str, str]]:
    """Yield each line with its key."""
    number, size = 0, 0
    for line in lines(text):
        if size >= PIECE:
            number, size = number + 1, 0
        size += len(line) + 1
        yield f"{name}-{number:03d}", line


def _events(keyed: list[tuple[str, str]]) -> Iterator[bytes]:
    for number, (key, line) in enumerate(keyed):
        event = {"key": key, "time": START_MS + number * INTERVAL_MS, "line": line}
        yield orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE)
