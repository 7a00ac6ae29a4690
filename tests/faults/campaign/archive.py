"""Keeps the input's records that a fault takes out of the log, so that the oracle can refold them.

Owns a copy of the input topic, and a reader that puts copy and log together again. Faults that
truncate, compact or empty the log take the copy first; oracle.py reads through it.
"""

from __future__ import annotations

from collections.abc import Iterator

from confluent_kafka import Message

from keyfold.worker.kafka.log import Extent, KafkaLog


class Archive:
    """The input's records as they once were, by partition."""

    def __init__(self) -> None:
        self.topic = ""
        self._records: dict[int, list[Message]] = {}
        self._extents: dict[int, Extent] = {}

    def __bool__(self) -> bool:
        return bool(self._extents)

    def take(self, brokers: str, topic: str, partitions: int) -> None:
        """Copy all that the topic holds now."""
        self.topic = topic
        with KafkaLog(brokers) as log:
            for number in range(partitions):
                extent = log.extent(topic, number)
                self._extents[number] = extent
                found = log.read(topic, number, extent.start, extent.end)
                self._records[number] = list(found)

    def extent(self, partition: int) -> Extent:
        """Return what the copy holds of a partition."""
        return self._extents[partition]

    def records(self, partition: int) -> list[Message]:
        """Return the copy of a partition."""
        return self._records[partition]


class ArchivedLog(KafkaLog):
    """A reader of the log that sees the archived records in their old places."""

    archive: Archive  # set by reading_through()

    def extent(self, topic: str, partition: int) -> Extent:
        """Return the extent with the archived part."""
        extent = super().extent(topic, partition)
        if topic != self.archive.topic:
            return extent
        return Extent(min(extent.start, self.archive.extent(partition).start), extent.end)

    def read(self, topic: str, partition: int, start: int, end: int) -> Iterator[Message]:
        """Yield archived records, then those of the log behind them."""
        if topic == self.archive.topic:
            for message in self.archive.records(partition):
                if start <= (message.offset() or 0) < end:
                    yield message
            # What is neither in the copy nor in the log any more was lost.
            log_start = super().extent(topic, partition).start
            start = max(start, self.archive.extent(partition).end, log_start)
        yield from super().read(topic, partition, start, end)


def reading_through(archive: Archive) -> type[KafkaLog]:
    """Return the class of reader that an oracle is to use."""
    if not archive:
        return KafkaLog
    return type("ThisArchivedLog", (ArchivedLog,), {"archive": archive})
