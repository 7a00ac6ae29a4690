"""Event logs as raw records, a few thousand at a time: JSON lines, CSV, Parquet, a Kafka topic.

Owns where records come from and how a row of a table is written as the JSON that the worker would
receive, so that everything downstream decodes one format with one codec. Knows nothing of features
or labels. Called by data.py.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from keyfold.export.errors import Crash
from keyfold.training.config import Kafka

CHUNK = 16_384  # records read at a time: bounds the memory that raw text takes


class SourceError(Crash):
    """An event log cannot be read."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive records of one log."""

    source: str  # file or topic, for messages
    places: Sequence[str]  # "line 7", "row 7" or "partition 0 offset 7"
    keys: Sequence[bytes | None] | None  # Kafka record keys; None: the key is a field of the value
    values: Sequence[bytes | None]  # JSON
    timestamps_ms: NDArray[np.int64]  # the records' own timestamps; 0 where a file has none


def read_files(files: Sequence[str]) -> Iterator[Chunk]:
    """Read event logs in order. Raises SourceError: a missing file, an unknown kind of file."""
    readers = {".jsonl": _lines, ".ndjson": _lines, ".csv": _csv, ".parquet": _parquet}
    for file in map(Path, files):
        suffix = Path(file.stem).suffix if file.suffix == ".gz" else file.suffix
        if suffix not in readers:
            raise SourceError(f"{file}: expected one of {', '.join(readers)}, got {suffix!r}")
        if not file.is_file():
            raise SourceError(f"{file}: expected an event log, got no such file")
        yield from readers[suffix](file)


def _open(file: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(file) if file.suffix == ".gz" else file.open("rb"))


def _chunks(source: str, what: str, values: Iterator[bytes], first: int) -> Iterator[Chunk]:
    numbered = enumerate(values, first)
    while some := list(itertools.islice(numbered, CHUNK)):
        places = [f"{what} {number}" for number, _ in some]
        zeros = np.zeros(len(some), np.int64)
        yield Chunk(source, places, None, [value for _, value in some], zeros)


def _lines(file: Path) -> Iterator[Chunk]:
    with _open(file) as stream:
        yield from _chunks(str(file), "line", (line.rstrip(b"\r\n") for line in stream), 1)


def _csv(file: Path) -> Iterator[Chunk]:
    with _open(file) as stream, io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
        rows = csv.DictReader(text)
        values = (
            orjson.dumps({name: _cell(cell) for name, cell in row.items() if name is not None})
            for row in rows
        )
        yield from _chunks(str(file), "row", values, 1)


def _cell(text: str | None) -> float | int | str | None:
    """Read a CSV cell as JSON would show it: a number where it looks like one; empty is null."""
    if not text:
        return None
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        # "007" and an over-long integer are names, not numbers.
        return text if kind is int and (str(number) != text or abs(number) >= 2**63) else number
    return text


def _parquet(file: Path) -> Iterator[Chunk]:
    import pyarrow.parquet  # heavy, and only this kind of file needs it

    with closing(pyarrow.parquet.ParquetFile(file)) as table:
        rows = (
            orjson.dumps(row, option=orjson.OPT_NAIVE_UTC | orjson.OPT_SERIALIZE_NUMPY)
            for part in table.iter_batches(batch_size=CHUNK)
            for row in part.to_pylist()
        )
        yield from _chunks(str(file), "row", rows, 1)


def read_topic(kafka: Kafka) -> Iterator[Chunk]:
    """Read a topic's records between two offsets or times, one partition after the other.

    A key lives in one partition, so its events arrive in offset order. Only committed transactions
    are read. Raises SourceError: no such topic, or silence for `timeout_s` before the end.
    """
    import confluent_kafka  # only this source needs it

    consumer = confluent_kafka.Consumer(
        {
            "bootstrap.servers": kafka.brokers,
            "group.id": "keyfold-train",  # required by the client; offsets are never stored
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
        }
    )
    with closing(consumer):
        try:
            topics = consumer.list_topics(kafka.topic, timeout=kafka.timeout_s).topics
            found = topics[kafka.topic]
            if found.error is not None or not found.partitions:
                raise SourceError(f"topic {kafka.topic}: {found.error or 'no partitions'}")
            for partition in sorted(found.partitions):
                yield from _read_partition(consumer, kafka, partition)
        except confluent_kafka.KafkaException as error:
            raise SourceError(f"topic {kafka.topic} at {kafka.brokers}: {error}") from error


def _read_partition(consumer: Any, kafka: Kafka, partition: int) -> Iterator[Chunk]:
    from confluent_kafka import TopicPartition

    low, high = consumer.get_watermark_offsets(
        TopicPartition(kafka.topic, partition), timeout=kafka.timeout_s
    )
    start = max(low, _offset(consumer, kafka, partition, kafka.start, (low, high)))
    end = min(high, _offset(consumer, kafka, partition, kafka.end, (low, high)))
    if start >= end:
        return
    consumer.assign([TopicPartition(kafka.topic, partition, start)])
    position = start
    while position < end:
        records, position = _poll(consumer, kafka, end)
        records = [record for record in records if record.offset() < end]
        if records:
            yield Chunk(
                kafka.topic,
                [f"partition {partition} offset {record.offset()}" for record in records],
                [record.key() for record in records],
                [record.value() for record in records],
                np.array([record.timestamp()[1] for record in records], np.int64),
            )


def _poll(consumer: Any, kafka: Kafka, end: int) -> tuple[list[Any], int]:
    """Return the next records and the position after them (`end` at the partition's end)."""
    from confluent_kafka import KafkaError, KafkaException

    deadline = time.monotonic() + kafka.timeout_s
    while True:
        polled = consumer.consume(CHUNK, timeout=1.0)
        records = [record for record in polled if record.error() is None]
        for error in (record.error() for record in polled if record.error() is not None):
            # The end is also reached when the last offsets are transaction markers.
            if error.code() != KafkaError._PARTITION_EOF:
                raise KafkaException(error)
            return records, end
        if records:
            return records, records[-1].offset() + 1
        if time.monotonic() > deadline:
            raise SourceError(
                f"topic {kafka.topic}: expected records up to offset {end}, "
                f"got none for {kafka.timeout_s} s"
            )


def _offset(
    consumer: Any, kafka: Kafka, partition: int, bound: str, watermarks: tuple[int, int]
) -> int:
    from confluent_kafka import TopicPartition

    if bound in ("earliest", "latest"):
        return watermarks[bound == "latest"]
    if bound.isdigit():
        return int(bound)
    wanted = TopicPartition(kafka.topic, partition, parse_time(bound))
    (found,) = consumer.offsets_for_times([wanted], timeout=kafka.timeout_s)
    return int(found.offset) if found.offset >= 0 else watermarks[1]  # no record that late


def parse_time(text: str) -> int:
    """Read an ISO 8601 time as UTC epoch ms; without an offset it is UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise SourceError(f"expected a time in ISO 8601, got {text!r}") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)
