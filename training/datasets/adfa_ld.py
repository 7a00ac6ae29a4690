"""ADFA-LD, traces of system calls, as event logs: one event per piece of a trace.

Owns the reading of ADFA-LD.zip (Creech and Hu 2013): a folder of normal traces to train on, one of
normal traces to judge by and one of attacks, each trace a file of numbers of system calls. Called
by the `dataset adfa-ld` command and tests/accuracy.

A key is a trace (`UTD-0001`, `UVD-0001`, `Web_Shell_3/UAD-...-1`), an event a piece of at most
PIECE calls as a text of words. train.jsonl has the normal traces to train on; test.jsonl the
others, with `attack`, true or false, in an order drawn from a fixed seed. Times are made up: a
second a piece.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson

from keyfold.export.errors import Crash
from keyfold.training.datasets.logs import TEST_LOG, TRAIN_LOG, write_log

DOWNLOAD = (
    "Get the data: ADFA-LD of UNSW (cite Creech and Hu 2013), or its copy at "
    "github.com/verazuo/a-labelled-version-of-the-ADFA-LD-dataset; give the folder with "
    "ADFA-LD.zip here."
)
ARCHIVE = "ADFA-LD.zip"
TRAIN, NORMAL, ATTACKS = "Training_Data_Master", "Validation_Data_Master", "Attack_Data_Master"
PIECE = 128  # calls of an event
START_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z
INTERVAL_MS = 1000
ORDER_SEED = 9

Traces = dict[str, list[str]]  # name of a trace -> its calls


class AdfaError(Crash):
    """The archive is missing or not as documented."""


def write(source: Path, folder: Path) -> dict[str, int]:
    """Write train.jsonl and test.jsonl; return the number of events in each."""
    traces = read(source)
    folder.mkdir(parents=True, exist_ok=True)
    counts = {TRAIN_LOG: write_log(folder / TRAIN_LOG, _events(traces[TRAIN], {}))}
    judged = {**traces[NORMAL], **traces[ATTACKS]}
    names = list(judged)
    order = np.random.default_rng(ORDER_SEED).permutation(len(names)).tolist()
    mixed = {names[place]: judged[names[place]] for place in order}
    marks = {name: name in traces[ATTACKS] for name in mixed}
    return {**counts, TEST_LOG: write_log(folder / TEST_LOG, _events(mixed, marks))}


def read(source: Path) -> dict[str, Traces]:
    """Return the traces of each of the three folders, sorted by name."""
    found: dict[str, Traces] = {TRAIN: {}, NORMAL: {}, ATTACKS: {}}
    file = source / ARCHIVE
    try:
        with zipfile.ZipFile(file) as archive:
            for name in sorted(archive.namelist()):
                kind, trace = _place(name)
                if kind in found:
                    found[kind][trace] = archive.read(name).decode().split()
    except FileNotFoundError as error:
        raise AdfaError(f"{file}: expected this file. {DOWNLOAD}") from error
    except (zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise AdfaError(f"{file}: expected an archive of texts, got {error}") from error
    for kind, traces in found.items():
        if not traces:
            raise AdfaError(f"{file}: expected traces in {kind}/, got none. {DOWNLOAD}")
        for trace, calls in traces.items():
            if not calls or not all(call.isdecimal() for call in calls):
                raise AdfaError(f"{file}, {trace}: expected numbers of system calls")
    return found


def _place(name: str) -> tuple[str, str]:
    """Return the folder and the trace's name of an archive's member; ("", ""): it is no trace."""
    parts = Path(name).parts
    if len(parts) < 3 or not name.endswith(".txt"):
        return "", ""
    return parts[1], "/".join(parts[2:]).removesuffix(".txt")


def _events(traces: Traces, marks: dict[str, bool]) -> Iterator[bytes]:
    number = 0
    for name, calls in traces.items():
        for first in range(0, len(calls), PIECE):
            event: dict[str, object] = {
                "key": name,
                "time": START_MS + number * INTERVAL_MS,
                "calls": " ".join(calls[first : first + PIECE]),
            }
            if marks:
                event["attack"] = marks[name]
            number += 1
            yield orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE)
