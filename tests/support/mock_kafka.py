"""A Kafka broker inside this very program: librdkafka's mock cluster.

Good enough for one producer and one reader in unit tests; it has no working groups and forgets old
records above 5 MiB a partition, so integration tests use a real broker. Topics come into being when
they are first asked for, with 4 partitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from confluent_kafka import Producer

PARTITIONS = 4


class MockKafka:
    """A mock cluster of one broker, alive inside a `with` statement."""

    def __enter__(self) -> Self:
        self._host = Producer(
            {"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 2}
        )
        broker = next(iter(self._host.list_topics(timeout=5).brokers.values()))
        self.brokers = f"{broker.host}:{broker.port}"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del self._host

    def create(self, *topics: str) -> None:
        """Bring topics into being."""
        for topic in topics:
            self._host.list_topics(topic, timeout=5)

    def write(
        self, topic: str, partition: int, records: Sequence[tuple[bytes | None, bytes | None]]
    ) -> None:
        """Write records (key, value) to one partition."""
        self.create(topic)
        for key, value in records:
            self._host.produce(topic, value, key, partition)
        assert self._host.flush(10) == 0
