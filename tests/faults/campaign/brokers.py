"""The Kafka of a campaign behind one face: three brokers, or one where that must do.

Owns what can be done to brokers and topics as a whole; the programs are deploy/local/services.
Used by services.py and kafka_faults.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

from local.services import ApacheKafka, KafkaCluster, Proxy, ServiceError

SETTINGS = {
    "log.cleaner.backoff.ms": "200",  # compaction looks for work so often
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
}


class Brokers:
    """One or three brokers, each behind a proxy for those who want a bad network."""

    def __init__(self, count: int) -> None:
        """Start them."""
        self.count = count
        self._service: Any = (
            KafkaCluster(count, settings=SETTINGS, proxied=True)
            if count > 1
            else ApacheKafka(settings=SETTINGS, proxied=True)
        )
        self._service.start()
        self.description: str = self._service.description
        self._looks = Consumer(
            {
                "bootstrap.servers": self.address,
                "group.id": "campaign-looks",  # required, never joined
                "isolation.level": "read_committed",
                "topic.metadata.refresh.interval.ms": 1000,  # topics grow, and are made anew
                "topic.metadata.refresh.sparse": False,
                "log_level": 2,
            }
        )

    @property
    def address(self) -> str:
        """Return the brokers' own addresses."""
        return str(self._service.address)

    @property
    def proxied_address(self) -> str:
        """Return the addresses behind the proxies."""
        return str(self._service.proxied_address)

    @property
    def _members(self) -> list[Any]:
        return list(self._service.brokers) if self.count > 1 else [self._service]

    def network(self) -> list[Proxy]:
        """Return the proxies."""
        return [broker.proxy for broker in self._members]

    def admin(self) -> Any:
        """Return a new admin client."""
        return self._service.admin()

    def create_topic(
        self, topic: str, partitions: int, config: Mapping[str, str] | None = None
    ) -> None:
        """Create a topic and return once it can be written."""
        self._service.create_topic(topic, partitions, config)

    def delete_topic(self, topic: str) -> None:
        """Delete a topic and return once it is gone."""
        admin = self.admin()
        self._service.delete_topic(topic)
        deadline = time.monotonic() + 20
        while topic in admin.list_topics(timeout=10).topics:
            if time.monotonic() > deadline:
                raise ServiceError(f"topic {topic!r} is still there 20 s after it was deleted")
            time.sleep(0.05)

    def kill(self, index: int) -> Callable[[], None]:
        """SIGKILL a broker; return what brings it back."""
        broker = self._members[index % self.count]
        broker.kill()
        return lambda: broker.start() and None

    def move_leader(self, topic: str, partition: int) -> None:
        """Let another broker lead a partition; one that is away cannot."""
        with suppress(ServiceError, KafkaException):
            self._service.move_leader(topic, partition)

    def revive(self) -> None:
        """Bring every broker back and heal the network."""
        for proxy in self.network():
            proxy.heal()
        for broker in self._members:
            if not broker.running:
                broker.start()
        if self.count > 1:
            self._service.wait_for_brokers()

    def ends(self, topic: str, partitions: int) -> list[int]:
        """Return the next offset of each partition, as far as no transaction is open."""
        return [end for _, end in self.extents(topic, partitions)]

    def extents(self, topic: str, partitions: int) -> list[tuple[int, int]]:
        """Return the first and the next offset of each partition."""
        self._looks.list_topics(topic, 5)  # or it may not know a partition that was added
        found = []
        for number in range(partitions):
            where = TopicPartition(topic, number)
            start, end = _patiently(lambda w=where: self._looks.get_watermark_offsets(w, 5))  # type: ignore[misc]
            found.append((start, end))
        return found

    def close(self) -> None:
        """End them."""
        self._looks.close()
        self._service.close()


def _patiently(ask: Callable[[], Any], tries: int = 5) -> Any:
    """Ask a broker again when its leader is just being elected."""
    for left in reversed(range(tries)):
        try:
            return ask()
        except KafkaException:
            if not left:
                raise
            time.sleep(0.5)
    raise AssertionError("unreachable")
