"""The Switchboard Dialogue Act corpus as event logs: one event per utterance of a conversation.

Owns the reading of the files that github.com/NathanDuran/Switchboard-Corpus makes of the corpus
(Jurafsky et al. 1997, Stolcke et al. 2000, arXiv cs/0006023): folders train, val and test, or
swda.tar.xz with them, a file a conversation, a line `speaker|utterance|act` an utterance, 41 acts.
Called by the `dataset swda` command and tests/accuracy.

A key is a conversation with its part (`val-2347`): train.jsonl holds train and val, test.jsonl
test. `same_speaker` says whether the utterance before it is by the same speaker. Times are made up:
4 s an utterance, conversations one after the other.
"""

from __future__ import annotations

import lzma
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import orjson

from keyfold.export.errors import Crash
from keyfold.training.datasets.logs import TEST_LOG, TRAIN_LOG, write_log

DOWNLOAD = (
    "Get the data: the folder swda_data of github.com/NathanDuran/Switchboard-Corpus (licence CC "
    "BY-NC-SA 3.0); give the folder with train, val and test, or with swda.tar.xz, here."
)
ARCHIVE = "swda.tar.xz"
PARTS = {"train": TRAIN_LOG, "val": TRAIN_LOG, "test": TEST_LOG}
INTERVAL_MS = 4_000
START_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z

Conversation = tuple[str, str, str]  # part, name, content


class SwdaError(Crash):
    """A file is missing or not as documented."""


def write(source: Path, folder: Path) -> dict[str, int]:
    """Write train.jsonl and test.jsonl; return the number of events in each."""
    found = sorted(_read(source), key=lambda one: ([*PARTS].index(one[0]), one[1]))
    if missing := sorted(set(PARTS) - {part for part, _, _ in found}):
        raise SwdaError(f"{source}: expected conversations in {missing[0]}, got none. {DOWNLOAD}")
    folder.mkdir(parents=True, exist_ok=True)
    counts = {}
    for log in dict.fromkeys(PARTS.values()):
        some = [one for one in found if PARTS[one[0]] == log]
        counts[log] = write_log(folder / log, _events(some))
    return counts


def _read(source: Path) -> Iterator[Conversation]:
    archive = source / ARCHIVE
    if not archive.exists():
        for part in PARTS:
            for file in (source / part).glob("*.txt"):
                yield part, file.stem, file.read_text(encoding="utf-8")
        return
    with lzma.open(archive) as stream, tarfile.open(fileobj=stream) as files:
        for member in files:
            path = PurePosixPath(member.name)
            content = files.extractfile(member)
            if path.parent.name in PARTS and path.suffix == ".txt" and content is not None:
                yield path.parent.name, path.stem, content.read().decode("utf-8")


def _events(conversations: Iterable[Conversation]) -> Iterator[bytes]:
    time_ms = START_MS
    for part, name, content in conversations:
        before = ""
        for number, line in enumerate(content.splitlines(), 1):
            cells = line.split("|")
            if len(cells) != 3:
                raise SwdaError(
                    f"{part}/{name}.txt, line {number}: expected speaker|utterance|act, got "
                    f"{len(cells)} cells"
                )
            speaker, utterance, act = cells
            event = {
                "key": f"{part}-{name}",
                "time": time_ms,
                "speaker": speaker,
                "same_speaker": speaker == before,
                "utterance": utterance,
                "act": act,
            }
            yield orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE)
            before = speaker
            time_ms += INTERVAL_MS
