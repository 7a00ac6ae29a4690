"""Which session timeouts the brokers allow, and the line for one that they do not take.

Owns the names of their two settings, which only those may read who have DescribeConfigs on the
cluster. It does not try to join: a broker that is not Apache's may let the one in who only asks,
and the group then waits for it. Called by worker/check/kafka.py and, once a group has refused its
member, by worker/intake.py.
"""

from __future__ import annotations

from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # it declares no exports
    AdminClient,
    ConfigResource,
    ResourceType,
)

from keyfold.export.connection import Connection
from keyfold.worker.config import Kafka

ASK_S = 5.0  # of each of the two questions
LEAST, MOST = "group.min.session.timeout.ms", "group.max.session.timeout.ms"


def limits_ms(connection: Connection) -> tuple[int, int] | None:
    """Return the least and the greatest session timeout, None where the brokers do not tell.

    Blocks.
    """
    admin = AdminClient({**connection.librdkafka(), "log_level": 0})
    try:
        broker = next(iter(admin.list_topics(timeout=ASK_S).brokers))
        resource = ConfigResource(ResourceType.BROKER, str(broker))
        asked: Any = admin.describe_configs([resource], request_timeout=ASK_S)[resource]
        found = asked.result()
        return int(found[LEAST].value), int(found[MOST].value)
    except (KafkaException, KeyError, StopIteration, TypeError, ValueError):
        return None


def refused(kafka: Kafka, limits: tuple[int, int] | None) -> str:
    """Return the line for a session timeout that the brokers do not take."""
    told = "what the brokers allow" if limits is None else (
        f"{limits[0] / 1000:g} to {limits[1] / 1000:g} seconds, which the brokers allow"
    )  # fmt: skip
    return (
        f"kafka.session_timeout_s: expected {told} ({LEAST}, {MOST}), got "
        f"{kafka.session_timeout_s:g}"
    )
