"""Do the brokers allow kafka.session_timeout_s? Asked without joining the group.

Owns one trick of Kafka's protocol: JoinGroup of a member that does not exist is refused, either for
its session timeout or because nobody knows it, and nothing joins. The limits themselves are told
only to who may describe the brokers' settings. Called by worker/cli.py and worker/check/kafka.py;
worker/intake.py says the same of a refusal that comes later.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.errors import CoordinatorNotAvailableError, KafkaError
from aiokafka.protocol.group import JoinGroupRequest, LeaveGroupRequest
from confluent_kafka import KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # it declares no exports
    AdminClient,
    ConfigResource,
    ResourceType,
)

from keyfold.export.connection import Connection
from keyfold.worker.config import Kafka
from keyfold.worker.errors import SetUpError
from keyfold.worker.kafka.farewell import end_at_once
from keyfold.worker.kafka.topics import unheard

ASK_S = 5.0  # of the whole question
AGAIN_S = 0.2  # between two, while there is no coordinator
NOBODY = "keyfold-nobody"  # a member id: brokers give out longer ones
ALLOWED, INVALID_SESSION_TIMEOUT, UNKNOWN_MEMBER = 0, 26, 25  # Kafka's error codes
COME_BACK = (14, 15, 16)  # COORDINATOR_LOAD_IN_PROGRESS, _NOT_AVAILABLE, NOT_COORDINATOR
LEAST, MOST = "group.min.session.timeout.ms", "group.max.session.timeout.ms"


async def check_session_timeout(kafka: Kafka, connection: Connection) -> None:
    """Raise SetUpError when the group's coordinator refuses kafka.session_timeout_s."""
    if await session_timeout_allowed(kafka, connection) is False:
        raise SetUpError(refused(kafka, await asyncio.to_thread(limits_ms, connection)))


async def session_timeout_allowed(kafka: Kafka, connection: Connection) -> bool | None:
    """Return whether the group's coordinator takes kafka.session_timeout_s, None: it did not say.

    A broker that lacks a right, or an answer, says so to other questions.
    """
    client = AIOKafkaClient(**connection.aiokafka())
    end_at_once(client)
    with unheard():
        try:
            async with asyncio.timeout(ASK_S):
                await client.bootstrap()
                code = await _ask(client, kafka)
        except (KafkaError, TimeoutError, OSError):
            return None
        finally:
            await client.close()
    if code == INVALID_SESSION_TIMEOUT:
        return False
    return True if code in (ALLOWED, UNKNOWN_MEMBER) else None


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


def refused(kafka: Kafka, limits: tuple[int, int] | None = None) -> str:
    """Return the line for a session timeout that the brokers do not take."""
    told = "what the brokers allow" if limits is None else (
        f"{limits[0] / 1000:g} to {limits[1] / 1000:g} seconds, which the brokers allow"
    )  # fmt: skip
    return (
        f"kafka.session_timeout_s: expected {told} ({LEAST}, {MOST}), got "
        f"{kafka.session_timeout_s:g}"
    )


async def _ask(client: AIOKafkaClient, kafka: Kafka) -> int:
    timeout_ms = int(kafka.session_timeout_s * 1000)
    # librdkafka has no such question, and aiokafka's own coordinator would join.
    request = JoinGroupRequest(
        kafka.group, timeout_ms, timeout_ms, NOBODY, None, "consumer", [("roundrobin", b"")]
    )
    while True:
        try:
            node = await client.coordinator_lookup(CoordinationType.GROUP, kafka.group)
        except CoordinatorNotAvailableError:
            await asyncio.sleep(AGAIN_S)
            continue
        reply = await client.send(node, request, group=ConnectionGroup.COORDINATION)
        if reply.error_code == ALLOWED:  # a broker that is not Apache's let nobody in
            leaving = LeaveGroupRequest(kafka.group, reply.member_id)
            await client.send(node, leaving, group=ConnectionGroup.COORDINATION)
        if reply.error_code not in COME_BACK:
            return int(reply.error_code)
        await asyncio.sleep(AGAIN_S)
