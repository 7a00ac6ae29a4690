"""Reads a group offset that no transaction is about to change: OffsetFetch with require_stable.

Owns that one request of Kafka's protocol (KIP-447, version 7), because no library here can be asked
for it: aiokafka 0.14 stops at version 3; confluent-kafka 2.16's admin client dies (SIGSEGV in
rd_kafka_cgrp_op) when the group's coordinator has moved, and what it and its consumer give as an
offset's metadata reads past the end. It knows nothing of transactions. Called by
worker/transactions.py.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiokafka.client import ConnectionGroup, CoordinationType
from aiokafka.errors import CoordinatorNotAvailableError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)

from keyfold.worker.protocol import GroupOffset

AGAIN_S = 0.02  # between two questions
# Answers that change by themselves: COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE,
# NOT_COORDINATOR, and UNSTABLE_OFFSET_COMMIT: a transaction with this offset is not settled yet.
COME_BACK = (14, 15, 16, 88)


class _Response(Response):  # type: ignore[misc]  # aiokafka is untyped here
    API_KEY = 9
    API_VERSION = 7
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            CompactArray(
                ("topic", CompactString("utf-8")),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("offset", Int64),
                        ("leader_epoch", Int32),
                        ("metadata", CompactString("utf-8")),
                        ("error_code", Int16),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("error_code", Int16),
        ("tags", TaggedFields),
    )


class _Struct(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 9
    API_VERSION = 7
    RESPONSE_TYPE = _Response
    SCHEMA = Schema(
        ("group", CompactString("utf-8")),
        (
            "topics",
            CompactArray(
                ("topic", CompactString("utf-8")),
                ("partitions", CompactArray(Int32)),
                ("tags", TaggedFields),
            ),
        ),
        ("require_stable", Boolean),
        ("tags", TaggedFields),
    )


class StableOffsetFetch(Request[_Struct]):  # type: ignore[misc]
    """OffsetFetch for one partition, with require_stable."""

    API_KEY = 9

    def __init__(self, group: str, topic: str, partition: int) -> None:
        self._fields: tuple[Any, ...] = (group, [(topic, [partition], {})], True, {})

    def build(self, request_struct_class: type[_Struct]) -> _Struct:
        """Return what is sent."""
        return request_struct_class(*self._fields)


async def stable_group_offset(
    client: Any, group: str, topic: str, partition: int
) -> GroupOffset | None:
    """Ask the group's coordinator until the offset is stable; None: the group has none.

    `client` is aiokafka's. The caller bounds the time. Raises KafkaError.
    """
    request = StableOffsetFetch(group, topic, partition)
    while True:
        try:
            node = await client.coordinator_lookup(CoordinationType.GROUP, group)
        except CoordinatorNotAvailableError:
            await asyncio.sleep(AGAIN_S)
            continue
        reply = await client.send(node, request, group=ConnectionGroup.COORDINATION)
        code = reply.error_code
        if not code:
            ((_, ((_, offset, _, metadata, code, _),), _),) = reply.topics
            if not code:
                return GroupOffset(offset, metadata or "") if offset >= 0 else None
        if code not in COME_BACK:
            raise for_code(code)()
        await asyncio.sleep(AGAIN_S)
