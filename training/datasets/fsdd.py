"""Free spoken digits as event logs: one event per 25 ms of raw samples of a recording.

Owns the reading of the Free Spoken Digit Dataset (github.com/Jakobovski/free-spoken-digit-dataset,
CC BY-SA 4.0): six people say each digit fifty times, 8,000 samples a second. Called by the
`dataset fsdd` and `dataset fsdd-strings` commands and tests/accuracy.

`write`: a key is a recording (`7_jackson_32`), `digit` stands in every event, `digit_at_end` in the
last one only. `write_strings`: a key is a string of three to five digits by one speaker, silence
between them, and its last event says them as `words`; every recording is in one string. The test
logs are the data set's official test, takes 0 to 4. A last event is filled up with silence. Times
are made up: 25 ms an event, one key after the other; so is the order, drawn from a fixed seed.
"""

from __future__ import annotations

import io
import re
import tarfile
import wave
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from keyfold.export.errors import Crash
from keyfold.training.datasets.logs import TEST_LOG, TRAIN_LOG, write_log

DOWNLOAD = (
    "Get the data: github.com/Jakobovski/free-spoken-digit-dataset; give the folder that holds "
    "recordings/, or fsdd.tar.xz made of it."
)
RATE_HZ = 8_000
SAMPLES = 200  # of an event: 25 ms
FIELDS = tuple(f"s{number}" for number in range(1, SAMPLES + 1))
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEST_TAKES = 5  # the first ones, as the data set's own README splits it
INTERVAL_MS = 25
START_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z
ORDER_SEED = 9
LEAST_DIGITS, MOST_DIGITS = 3, 5  # of a string
LEAST_SILENCE, MOST_SILENCE = 800, 3_200  # samples before, between and behind its digits
HISS = 2.0  # deviation of the silence's samples: recordings are never all zeros
NAME = re.compile(r"([0-9])_([a-z]+)_([0-9]+)\.wav")

Samples = NDArray[np.int16]


class FsddError(Crash):
    """A file is missing or not as documented."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One digit, said once."""

    digit: int  # 0 to 9
    speaker: str  # first name
    take: int  # from 0
    samples: Samples  # (N,)

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return f"{self.digit}_{self.speaker}_{self.take}"


@dataclass(frozen=True, slots=True)
class _Key:
    """One key's samples and what its events say beside them."""

    name: str  # the key
    samples: Samples  # (N,)
    each: dict[str, str]  # members of every event
    last: dict[str, str]  # members of the last event


def write(source: Path, folder: Path) -> dict[str, int]:
    """Write train.jsonl and test.jsonl, a recording a key; return the number of events in each."""
    return _write(folder, {name: map(_single, some) for name, some in _parts(source).items()})


def write_strings(source: Path, folder: Path) -> dict[str, int]:
    """Write the same for strings of digits."""
    parts = _parts(source)
    return _write(folder, {name: _strings(some, name[:-6]) for name, some in parts.items()})


def _write(folder: Path, keys: dict[str, Iterable[_Key]]) -> dict[str, int]:
    folder.mkdir(parents=True, exist_ok=True)
    return {name: write_log(folder / name, _events(some)) for name, some in keys.items()}


def _parts(source: Path) -> dict[str, list[Recording]]:
    """Return the recordings of both logs, each in an order drawn once."""
    recordings = sorted(_recordings(source), key=lambda one: one.name)
    draw = np.random.default_rng(ORDER_SEED)
    drawn = [recordings[number] for number in draw.permutation(len(recordings)).tolist()]
    return {
        TRAIN_LOG: [one for one in drawn if one.take >= TEST_TAKES],
        TEST_LOG: [one for one in drawn if one.take < TEST_TAKES],
    }


def _recordings(source: Path) -> Iterator[Recording]:
    archive = source / "fsdd.tar.xz"
    found = _files(source / "recordings") if not archive.exists() else _members(archive)
    count = 0
    for name, content in found:
        if (known := NAME.fullmatch(name)) is None:
            continue
        count += 1
        yield Recording(int(known[1]), known[2], int(known[3]), _samples(name, content))
    if not count:
        raise FsddError(f"{source}: expected recordings such as 7_jackson_32.wav. {DOWNLOAD}")


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for file in sorted(folder.glob("*.wav")):
        yield file.name, file.read_bytes()


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(archive) as files:
        for member in files:
            content = files.extractfile(member)
            if content is not None:
                yield member.name.rpartition("/")[2], content.read()


def _samples(name: str, content: bytes) -> Samples:
    try:
        with wave.open(io.BytesIO(content)) as file:
            form = file.getframerate(), file.getnchannels(), file.getsampwidth()
            frames = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise FsddError(f"{name}: expected a WAV file: {error}") from None
    if form != (RATE_HZ, 1, 2) or not frames:
        raise FsddError(
            f"{name}: expected {RATE_HZ} samples a second, one channel, two bytes each, got "
            f"{form} and {len(frames)} bytes"
        )
    return np.frombuffer(frames, "<i2").astype(np.int16)


def _single(recording: Recording) -> _Key:
    word = WORDS[recording.digit]
    each = {"digit": word, "speaker": recording.speaker}
    return _Key(recording.name, recording.samples, each, {"digit_at_end": word})


def _strings(recordings: list[Recording], kind: str) -> Iterator[_Key]:
    """Put recordings of one speaker one behind the other, three to five at a time."""
    draw = np.random.default_rng(ORDER_SEED)
    for speaker in sorted({recording.speaker for recording in recordings}):
        left = [recording for recording in recordings if recording.speaker == speaker]
        number = 0
        while left:
            counts = range(LEAST_DIGITS, MOST_DIGITS + 1)
            # What is left behind it must make a string, too.
            fitting = [n for n in counts if len(left) == n or len(left) - n >= LEAST_DIGITS]
            count = int(draw.choice(fitting or [len(left)]))
            some, left = left[:count], left[count:]
            pieces = [_silence(draw)]
            for recording in some:
                pieces += [recording.samples, _silence(draw)]
            words = " ".join(WORDS[recording.digit] for recording in some)
            number += 1
            name = f"{kind}-{speaker}-{number:03d}"
            yield _Key(name, np.concatenate(pieces), {"speaker": speaker}, {"words": words})


def _silence(draw: np.random.Generator) -> Samples:
    count = int(draw.integers(LEAST_SILENCE, MOST_SILENCE + 1))
    return np.rint(draw.normal(0.0, HISS, count)).astype(np.int16)


def _events(keys: Iterable[_Key]) -> Iterator[bytes]:
    time_ms = START_MS
    for key in keys:
        count = -(-len(key.samples) // SAMPLES)
        filled = np.zeros(count * SAMPLES, np.int16)
        filled[: len(key.samples)] = key.samples
        for row, samples in enumerate(filled.reshape(count, SAMPLES).tolist(), 1):
            event = {"key": key.name, "time": time_ms, **dict(zip(FIELDS, samples, strict=True))}
            event |= key.each | (key.last if row == count else {})
            yield orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE)
            time_ms += INTERVAL_MS
