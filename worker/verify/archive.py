"""Keeps a topic's records in a file, so that keyfold-verify can fold what retention took meanwhile.

Owns the file's form: JSON lines, each a record or, behind a partition's records, the range that
they are all of. Several calls add to one file. Knows records, not events. Written by tests and
campaigns while the records are still there; read by verification.py (--archive FILE).
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from keyfold.export.connection import Connection
from keyfold.worker.errors import Crash
from keyfold.worker.kafka.log import KafkaLog
from keyfold.worker.verify.lost import Range


class Entry(NamedTuple):
    """A record, as the oracle folds it."""

    offset: int  # in its partition
    timestamp_ms: int  # the record's own
    key: bytes | None  # record key
    value: bytes | None  # None: a tombstone


class Archive:
    """Records kept of one topic."""

    def __init__(self) -> None:
        self._records: dict[int, dict[int, Entry]] = {}  # partition -> offset -> record
        self._ranges: dict[int, list[Range]] = {}  # partition -> offsets of which all are kept

    @classmethod
    def load(cls, file: Path) -> Archive:
        """Read a file; one that is not there yet holds nothing. Raises Crash."""
        archive = cls()
        try:
            with file.open(encoding="utf-8") as lines:
                for line in lines:
                    archive._take(json.loads(line))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Crash(f"{file}: not readable as an archive: {error}") from error
        return archive

    def ranges(self, partition: int) -> list[Range]:
        """Return the ranges of offsets of which all records are kept."""
        return self._ranges.get(partition, [])

    def read(self, partition: int, start: int, end: int) -> Iterator[Entry]:
        """Yield the records kept with offsets in [start, end), in order."""
        kept = self._records.get(partition, {})
        for offset in sorted(kept):
            if start <= offset < end:
                yield kept[offset]

    def _take(self, line: dict[str, Any]) -> None:
        partition = int(line["partition"])
        if "from" in line:
            self._ranges.setdefault(partition, []).append((int(line["from"]), int(line["to"])))
            return
        entry = Entry(
            int(line["offset"]), int(line["timestamp"]), _bytes(line["key"]), _bytes(line["value"])
        )
        self._records.setdefault(partition, {})[entry.offset] = entry


def keep_log(kafka: Connection | str, topic: str, file: Path) -> int:
    """Add to a file what a topic holds and the file does not; return how many records that were."""
    kept = Archive.load(file)
    count = 0
    with KafkaLog(kafka) as log, file.open("a", encoding="utf-8") as out:
        for partition in range(log.partitions(topic)):
            extent = log.extent(topic, partition)
            begin = max([extent.start, *(end for _, end in kept.ranges(partition))])
            for message in log.read(topic, partition, begin, extent.end):
                line = {
                    "partition": partition, "offset": message.offset(),
                    "timestamp": message.timestamp()[1],
                    "key": _text(message.key()), "value": _text(message.value()),
                }  # fmt: skip
                out.write(json.dumps(line) + "\n")
                count += 1
            if begin < extent.end:
                line = {"partition": partition, "from": begin, "to": extent.end}
                out.write(json.dumps(line) + "\n")
    return count


def _text(content: bytes | str | None) -> str | None:
    plain = content.encode() if isinstance(content, str) else content
    return None if plain is None else b64encode(plain).decode()


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else b64decode(text, validate=True)
