"""`keyfold-train dataset KIND FOLDER OUT`: public data sets become event logs.

Owns the table of data sets on the command line; a new one is a line of PLAIN. Knows nothing of how
they are read. Called by training/cli.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from keyfold.training.datasets import (
    adfa_ld,
    cmapss,
    fsdd,
    japanese_vowels,
    multi30k,
    shakespeare,
    smap,
    smartwatch,
    swda,
)


@dataclass(frozen=True, slots=True)
class Plain:
    """A data set that is written from one folder or file into one folder."""

    said: str  # what it is
    download: str  # where it is to be had
    source: str  # what to give
    write: Callable[[Path, Path], Mapping[str, int]]  # (source, out) -> events by log


PLAIN = {
    "japanese-vowels": Plain(
        "nine speakers, by utterance", japanese_vowels.DOWNLOAD,
        "folder with JapaneseVowels_TRAIN.ts and _TEST.ts", japanese_vowels.write,
    ),
    "smap": Plain(
        "NASA satellite telemetry with anomalies", smap.DOWNLOAD,
        "folder with train/, test/ and the labels", smap.write,
    ),
    "fsdd": Plain(
        "spoken digits, a recording a key", fsdd.DOWNLOAD,
        "folder with recordings/ or fsdd.tar.xz", fsdd.write,
    ),
    "fsdd-strings": Plain(
        "spoken digits, three to five one behind the other", fsdd.DOWNLOAD,
        "folder with recordings/ or fsdd.tar.xz", fsdd.write_strings,
    ),
    "adfa-ld": Plain(
        "traces of system calls, normal ones and attacks", adfa_ld.DOWNLOAD,
        "folder with ADFA-LD.zip", adfa_ld.write,
    ),
    "multi30k": Plain(
        "image descriptions, English and German", multi30k.DOWNLOAD,
        "folder with train.en, train.de, val.* and test_2016_flickr.*", multi30k.write,
    ),
    "shakespeare": Plain(
        "a text, a line an event, to be learned by character", shakespeare.DOWNLOAD,
        "file with the text", shakespeare.write,
    ),
    "swda": Plain(
        "dialogue acts, a conversation a key", swda.DOWNLOAD,
        "folder with train/, val/ and test/ or swda.tar.xz", swda.write,
    ),
}  # fmt: skip


def main(arguments: list[str]) -> int:
    """Write the logs of one data set and say how large they are."""
    given = _parser().parse_args(arguments)
    if given.kind == "cmapss":
        counts: Mapping[str, int] = cmapss.write(given.folder, given.subset, given.out)
    elif given.kind == "smartwatch":
        counts = smartwatch.write(given.out, given.hold_out)
    else:
        counts = PLAIN[given.kind].write(given.folder, given.out)
    for name, events in counts.items():
        print(f"{given.out / name}: {events:,} events")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keyfold-train dataset", description="Turn a public data set into event logs."
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    turbofan = kinds.add_parser(
        "cmapss", help="NASA turbofan engine degradation (C-MAPSS)", description=cmapss.DOWNLOAD
    )
    turbofan.add_argument("folder", type=Path, help="folder with train_FD001.txt (or .gz) etc.")
    turbofan.add_argument("out", type=Path, help="folder for train.jsonl and test.jsonl")
    turbofan.add_argument("--subset", default="FD001", help="FD001 (default) to FD004")
    for name, data in PLAIN.items():
        kind = kinds.add_parser(name, help=data.said, description=data.download)
        kind.add_argument("folder", type=Path, help=data.source)
        kind.add_argument("out", type=Path, help="folder for train.jsonl and test.jsonl")
    watch = kinds.add_parser("smartwatch", help="exercises at a smartwatch, from package seglearn")
    watch.add_argument("out", type=Path, help="folder for train.jsonl and held_out.jsonl")
    watch.add_argument(
        "--hold-out", type=int, nargs="+", default=list(smartwatch.HELD_OUT), metavar="SUBJECT"
    )
    return parser
