"""May we open transactions? Asked of the brokers without opening one.

Owns one trick of Kafka's protocol: AddOffsetsToTxn of a producer that does not exist is authorised
first and refused afterwards, so that the refusal tells our rights and nothing is changed. Called by
kafka.py; librdkafka and aiokafka have no question for it.
"""

from __future__ import annotations

import asyncio

from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.errors import (
    CoordinatorNotAvailableError,
    GroupAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)
from aiokafka.protocol.transaction import AddOffsetsToTxnRequest

from keyfold.export.connection import Connection

NOBODY = -2  # a producer id that no broker gives out
AGAIN_S = 0.2  # between two questions while the brokers make up their mind
# COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE, NOT_COORDINATOR, CONCURRENT_TRANSACTIONS
COME_BACK = (14, 15, 16, 51)
REFUSED = {
    GroupAuthorizationFailedError.errno: ("Read", "group"),
    TransactionalIdAuthorizationFailed.errno: ("Write", "transactional-id"),
}


def missing_right(
    connection: Connection, identity: str, group: str, timeout_s: float
) -> tuple[str, str] | None:
    """Return the operation and the kind of resource that a transaction would lack, None: nothing.

    Raises KafkaError, TimeoutError.
    """

    async def asking() -> tuple[str, str] | None:
        client = AIOKafkaClient(**connection.aiokafka())
        async with asyncio.timeout(timeout_s):
            try:
                await client.bootstrap()
                return await _ask(client, identity, group)
            finally:
                await client.close()

    return asyncio.run(asking())


async def _ask(client: AIOKafkaClient, identity: str, group: str) -> tuple[str, str] | None:
    request = AddOffsetsToTxnRequest(identity, NOBODY, 0, group)
    while True:
        try:
            node = await client.coordinator_lookup(CoordinationType.TRANSACTION, identity)
            reply = await client.send(node, request, group=ConnectionGroup.COORDINATION)
        except TransactionalIdAuthorizationFailed:
            return "Write", "transactional-id"  # which brings Describe with it
        except CoordinatorNotAvailableError:
            await asyncio.sleep(AGAIN_S)
            continue
        if reply.error_code not in COME_BACK:
            return REFUSED.get(reply.error_code)
        await asyncio.sleep(AGAIN_S)
