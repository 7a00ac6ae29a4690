"""The checkpoint of a training in progress: one file, whole or not there at all.

Owns its form, when it is due, and the refusal to go on with what another training began: the
settings, the data and the libraries have to be those it began with, else the weights would be
neither the one nor the other. Knows nothing of what the arrays mean. Called by fit.py (save, load)
and train.py (where it is).
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import re
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.errors import Crash
from keyfold.training.split import Part

CHECKPOINT = "checkpoint.npz"  # in the run's folder, as long as the run is not finished
ABOUT = "about"  # the file's member that holds JSON; the others are arrays
PASS_S = 1.0  # ends of passes that follow each other faster are not all saved
# These change no weight: they may differ from those that the run began with.
FREE = ("fit.save_every_s", "fit.tensorboard", "kafka.brokers", "kafka.timeout_s")
SHOWN = 60  # characters of a value in a message


class CheckpointError(Crash):
    """A training cannot be gone on with."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a training needs to go on."""

    about: Mapping[str, Any]  # numbers and names, as JSON holds them
    arrays: Mapping[str, NDArray[Any]]  # by name


class Checkpoint:
    """The checkpoint of one run."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        every_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`settings`: all that decides the weights but the data; by section, or single values."""
        self._file = folder / CHECKPOINT
        self._settings = plain(settings)
        self._every_s = every_s
        self._clock = clock
        self._saved = clock()
        self._held = -1  # the folder's file descriptor, while it is ours

    def hold(self) -> None:
        """Keep the run for this program until it ends. Raises CheckpointError: another has it."""
        folder = self._file.parent
        held = os.open(folder, os.O_RDONLY)
        if not _lock(held):
            os.close(held)
            raise CheckpointError(f"--resume {folder}: expected a run at rest, got one in training")
        self._held = held

    def is_due(self, *, pass_ends: bool = False) -> bool:
        """Say whether it is time to save again."""
        wait = min(self._every_s, PASS_S) if pass_ends else self._every_s
        return self._clock() - self._saved >= wait

    def save(self, data: str, snapshot: Snapshot) -> None:
        """Replace the file, so that a kill at any moment leaves the old one or the new one."""
        about = {"settings": self._settings, "data": data, "state": snapshot.about}
        held = io.BytesIO()
        text = np.frombuffer(json.dumps(about).encode(), np.uint8)
        np.savez(held, allow_pickle=False, **{ABOUT: text}, **snapshot.arrays)
        beside = self._file.with_suffix(".part")
        with beside.open("wb") as file:
            file.write(held.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._file)
        self._saved = self._clock()

    def load(self, data: str) -> Snapshot | None:
        """Return what was saved, None before the first time. Raises CheckpointError."""
        if not self._file.exists():
            return None
        snapshot = self._read()
        if (began := snapshot.about["data"]) != data:
            raise self._refused("the events", f"those with SHA-256 {began[:12]}", data[:12])
        return Snapshot(snapshot.about["state"], snapshot.arrays)

    def check_settings(self) -> None:
        """See that the run began with these settings. Raises CheckpointError: which one differs."""
        began = self._read().about["settings"]
        for name in [*began, *(name for name in self._settings if name not in began)]:
            expected, got = began.get(name), self._settings.get(name)
            if expected != got and name not in FREE:
                raise self._refused(name, _shown(expected), _shown(got))

    def remove(self) -> None:
        """Delete the file and let go: the run is finished, or will never be."""
        self._file.unlink(missing_ok=True)
        self._file.with_suffix(".part").unlink(missing_ok=True)
        self.let_go()

    def let_go(self) -> None:
        """Let another program have the run."""
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def _read(self) -> Snapshot:
        try:
            with np.load(self._file, allow_pickle=False) as held:
                arrays = {name: held[name] for name in held.files}
            return Snapshot(json.loads(arrays.pop(ABOUT).tobytes()), arrays)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise CheckpointError(
                f"{self._file}: expected a checkpoint, got {error}: train without --resume"
            ) from error

    def _refused(self, what: str, expected: str, got: str) -> CheckpointError:
        return CheckpointError(
            f"--resume {self._file.parent}: {what}: expected {expected}, as it began, got {got}: "
            "train without --resume"
        )


def unfinished(runs: Path, stem: str) -> Path | None:
    """Return the newest run of a config that was begun, not finished, and is not in training."""
    mine = re.compile(re.escape(stem) + r"-\d{8}-\d{6}.*")
    found = [file.parent for file in runs.glob(f"*/{CHECKPOINT}")]
    for folder in sorted((f for f in found if mine.fullmatch(f.name)), reverse=True):
        held = os.open(folder, os.O_RDONLY)
        try:
            if _lock(held):
                return folder
        finally:
            os.close(held)
    return None


def _lock(held: int) -> bool:
    """Lock an open file or folder for this program; say whether it was free."""
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks
    return True


def data_sha256(parts: Iterable[Part]) -> str:
    """Return the SHA-256 of all events that training and validation see."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr((len(part.sequences), part.counts_from)).encode())
        for sequence in part.sequences:
            said = () if sequence.transcript is None else (sequence.transcript,)
            for array in (sequence.x, sequence.labels, *said):
                digest.update(repr(array.shape).encode())
                digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as section.name, as JSON gives them back."""
    flat: dict[str, Any] = {}
    for section, value in settings.items():
        if isinstance(value, Mapping):
            flat |= {f"{section}.{name}": item for name, item in value.items()}
        else:
            flat[section] = value
    plain: dict[str, Any] = json.loads(json.dumps(flat, default=str))
    return plain


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
