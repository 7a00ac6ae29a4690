"""Event logs as raw records, a few thousand at a time: JSON lines, CSV, Parquet, a Kafka topic.

Owns where records come from; how a row of a table is written as JSON is export/tables.py's. Knows
nothing of features or labels. Called by data.py.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.connection import Connection
from keyfold.export.errors import Crash, Reject
from keyfold.export.formats import Format, format_of
from keyfold.export.refusals import acl, ask
from keyfold.export.tables import MISSING, TableForm, read_rows, row_name
from keyfold.training.config import Kafka
from keyfold.training.settings_data import Data

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
    rejects: Mapping[int, str] = field(default_factory=dict)  # row -> why it is no event


def form_of(data: Data) -> TableForm:
    """Return how the settings say that CSV files are written."""
    return TableForm(
        data.csv_separator,
        data.csv_decimal,
        data.csv_encoding,
        MISSING | set(data.null_words),
        data.text,
    )


def read_files(files: Sequence[str], data: Data | None = None) -> Iterator[Chunk]:
    """Read event logs in order. Raises TableError: a missing file, an unknown kind of file."""
    form = TableForm() if data is None else form_of(data)
    for file in files:
        path = Path(file)
        what, rows = row_name(path), read_rows(path, form)
        while some := list(itertools.islice(rows, CHUNK)):
            places = [f"{what} {number}" for number, _ in some]
            zeros = np.zeros(len(some), np.int64)
            yield Chunk(file, places, None, [value for _, value in some], zeros)


def read_topic(
    kafka: Kafka, connection: Connection | None = None, data: Data | None = None
) -> Iterator[Chunk]:
    """Read a topic's records between two offsets or times, one partition after the other.

    A key lives in one partition, so its events arrive in offset order. Only committed transactions
    are read. Without `connection` the brokers of `kafka` are plaintext ones; values in the format
    that `data` says become JSON. Raises SourceError: no such topic, or silence for `timeout_s`
    before the end; Crash: the brokers refuse us.
    """
    chunks = _read_topic(kafka, connection)
    if data is None or data.format == "json":
        return chunks
    form = format_of(data.events(), data.members)
    return (_as_json(chunk, form) for chunk in chunks)


def _as_json(chunk: Chunk, form: Format) -> Chunk:
    values: list[bytes | None] = []
    rejects = dict(chunk.rejects)
    for row, value in enumerate(chunk.values):
        try:
            values.append(None if value is None else form.to_json(value))
        except Reject as reject:
            rejects[row] = str(reject)
            values.append(b"{}")
    return replace(chunk, values=values, rejects=rejects)


def _read_topic(kafka: Kafka, connection: Connection | None) -> Iterator[Chunk]:
    import confluent_kafka  # only this source needs it

    connection = connection or Connection(kafka.brokers)
    consumer = confluent_kafka.Consumer(
        {
            **connection.librdkafka(),
            "error_cb": lambda error: None,  # what matters comes back as errors
            "log_level": 2,
            "group.id": "keyfold-train",  # required by the client; offsets are never stored
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
        }
    )
    with closing(consumer):
        try:
            found = ask(
                connection,
                lambda limit_s: consumer.list_topics(kafka.topic, timeout=limit_s).topics,
                kafka.timeout_s,
                (confluent_kafka.KafkaException,),
            )[kafka.topic]
            if found.error is not None and found.error.code() in _forbidden():
                raise SourceError(acl(connection, "Describe", "topic", kafka.topic))
            if found.error is not None or not found.partitions:
                raise SourceError(f"topic {kafka.topic}: {found.error or 'no partitions'}")
            for partition in sorted(found.partitions):
                yield from _read_partition(consumer, kafka, partition)
        except confluent_kafka.KafkaException as error:
            if error.args[0].code() in _forbidden():
                raise SourceError(acl(connection, "Read", "topic", kafka.topic)) from error
            why = error.args[0].str()
            raise SourceError(f"topic {kafka.topic} at {connection}: {why}") from error


def _forbidden() -> tuple[int, ...]:
    from confluent_kafka import KafkaError

    return (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED)


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
            if error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
                continue  # of the group that we never join
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


def parse_time(text: str, now: datetime | None = None) -> int:
    """Read a time as UTC epoch ms: ISO 8601 (without an offset it is UTC), or -7d, -12h, -30m."""
    if (found := re.fullmatch(r"-(\d{1,6})([dhm])", text)) is not None:
        ago = timedelta(**{{"d": "days", "h": "hours", "m": "minutes"}[found[2]]: int(found[1])})
        return round(((now or datetime.now(UTC)) - ago).timestamp() * 1000)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise SourceError(f"expected a time in ISO 8601, or one like -7d, got {text!r}") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)
