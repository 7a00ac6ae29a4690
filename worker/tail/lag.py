"""Asks, beside a live view, how far a group is behind and how many rejects there are.

Owns a thread of its own, because a broker may take its time to answer while the view goes on. The
group's offset is a hint (Redis holds the truth), good enough to look at. Called by cli.py.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from confluent_kafka import Consumer, KafkaException, TopicPartition

from keyfold.export.connection import Connection
from keyfold.worker.errors import Crash
from keyfold.worker.kafka.log import KafkaLog
from keyfold.worker.tail.view import Around

ASK_EVERY_S = 2.0
TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Watched:
    """What a view is about."""

    kafka: Connection  # how it is reached
    topic: str  # of predictions
    input: str | None = None  # of events, for the lag
    group: str | None = None  # whose lag
    dead_letter: str | None = None  # of rejects


class LagWatch:
    """Keeps `around` up to date while it is open, to be used in a `with` statement."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keyfold-lag", daemon=True)
        self.around = Around()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()

    def _run(self) -> None:
        watched = self._watched
        with KafkaLog(watched.kafka, TIMEOUT_S) as log:
            while not self._stop.is_set():
                try:
                    if watched.input and watched.group:
                        lag = group_lag(log, watched.kafka, watched.input, watched.group)
                        self.around = replace(self.around, lag=lag)
                    if watched.dead_letter:
                        rejects = _held(log, watched.dead_letter)
                        self.around = replace(self.around, rejects=rejects)
                except (Crash, KafkaException):
                    # Not worth ending the view for: it shows the last answer and asks again.
                    pass
                self._stop.wait(ASK_EVERY_S)


def group_lag(log: KafkaLog, kafka: Connection | str, topic: str, group: str) -> int:
    """Return how many records of a topic a group has not committed yet."""
    lag = 0
    offsets = committed_offsets(kafka, topic, log.partitions(topic), group)
    for partition, offset in enumerate(offsets):
        extent = log.extent(topic, partition)
        lag += max(extent.end - max(offset or 0, extent.start), 0)
    return lag


def committed_offsets(
    kafka: Connection | str, topic: str, partitions: int, group: str
) -> list[int | None]:
    """Return a group's offset of each partition, None where it has none."""
    consumer = Consumer(
        {
            **Connection.of(kafka).librdkafka(),
            "group.id": group,  # asked about, not joined: nothing is subscribed
            "enable.auto.commit": False,
            "log_level": 2,
        }
    )
    try:
        places = [TopicPartition(topic, partition) for partition in range(partitions)]
        found = consumer.committed(places, timeout=TIMEOUT_S)
        return [place.offset if place.offset >= 0 else None for place in found]
    finally:
        consumer.close()


def _held(log: KafkaLog, topic: str) -> int:
    extents = [log.extent(topic, partition) for partition in range(log.partitions(topic))]
    return sum(extent.end - extent.start for extent in extents)
