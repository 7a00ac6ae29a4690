"""Topics of a Kafka, whether it is one broker or several.

Owns what kafka.py's brokers and kafka_cluster.py's cluster offer alike to tests and benchmarks.
Knows nothing of how a broker is run.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from .child import ServiceError
from .service import PROBE_INTERVAL_S

ADMIN_TIMEOUT_S = 30.0


class KafkaBrokers(ABC):
    """What one broker and a cluster of them offer to tests and benchmarks."""

    name: ClassVar[str]
    real: ClassVar[bool]
    copies: int = 1  # replication factor of the topics that are created

    @property
    @abstractmethod
    def address(self) -> str:
        """Return what clients bootstrap from."""

    @property
    @abstractmethod
    def description(self) -> str:
        """Return name and version for reports."""

    def admin(self) -> AdminClient:
        """Return a new admin client."""
        return AdminClient({"bootstrap.servers": self.address, "log_level": 0})

    def create_topic(
        self, topic: str, partitions: int = 1, config: Mapping[str, str] | None = None
    ) -> None:
        """Create a topic and return once every partition has a leader and all its copies.

        Raises: ServiceError when the broker refuses, an existing topic included.
        """
        admin = self.admin()
        wanted = NewTopic(
            topic, partitions, replication_factor=self.copies, config=dict(config or {})
        )
        try:
            admin.create_topics([wanted])[topic].result(ADMIN_TIMEOUT_S)
        except KafkaException as error:
            raise ServiceError(f"{self.name} did not create topic {topic!r}: {error}") from error
        deadline = time.monotonic() + ADMIN_TIMEOUT_S
        while time.monotonic() < deadline:
            known = admin.list_topics(topic, timeout=ADMIN_TIMEOUT_S).topics[topic].partitions
            ready = [p for p in known.values() if p.leader >= 0 and len(p.isrs) == self.copies]
            if len(ready) == partitions:
                return
            time.sleep(PROBE_INTERVAL_S)
        raise ServiceError(f"topic {topic!r} has no leaders after {ADMIN_TIMEOUT_S:g} s")

    def delete_topic(self, topic: str) -> None:
        """Delete a topic. Raises: ServiceError when the broker refuses."""
        try:
            admin = self.admin()  # must outlive the request
            admin.delete_topics([topic])[topic].result(ADMIN_TIMEOUT_S)
        except KafkaException as error:
            raise ServiceError(f"{self.name} did not delete topic {topic!r}: {error}") from error
