"""Are the topics there, and do they fit each other? Asked before a worker joins its group.

Owns the rules between the input, output and dead-letter topics. It only reads metadata. Called by
worker/cli.py at start; worker/owner.py applies the same rules again at every ACQUIRE.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError

from keyfold.worker.config import Kafka
from keyfold.worker.errors import SetUpError, TopicError

log = logging.getLogger(__name__)

TRY_AGAIN_S = 2.0


async def check_topics(kafka: Kafka) -> None:
    """Wait for a broker and check the three topics.

    Raises TopicError, and SetUpError when no broker answers within kafka.request_timeout_s.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + kafka.request_timeout_s
    while True:
        try:
            counts = await _partition_counts(kafka)
            break
        except (KafkaError, OSError, ValueError) as error:
            if loop.time() + TRY_AGAIN_S > deadline:
                why = f"kafka.brokers: no answer from {kafka.brokers}: {error}"
                raise SetUpError(why) from error
            log.warning("no answer from %s; trying again in %.0f s", kafka.brokers, TRY_AGAIN_S)
            await asyncio.sleep(TRY_AGAIN_S)
    judge_topics(counts, kafka.input, kafka.output, kafka.dead_letter)


def judge_topics(counts: Mapping[str, int], source: str, output: str, dead_letter: str) -> None:
    """Judge partition counts by topic, 0 or missing: no such topic. Raises TopicError."""
    for name in (source, output, dead_letter):
        if not counts.get(name):
            raise TopicError(
                f"topic {name!r}: expected it to exist, got none; create it "
                "(the worker never creates topics)"
            )
    if counts[output] != counts[source]:
        raise TopicError(
            f"topic {output!r}: expected {counts[source]} partitions like the input {source!r}, "
            f"got {counts[output]}"
        )


async def _partition_counts(kafka: Kafka) -> dict[str, int]:
    client = AIOKafkaClient(bootstrap_servers=[b.strip() for b in kafka.brokers.split(",")])
    # What it says of a broker that does not answer stands in our own line.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    try:
        await client.bootstrap()
        cluster = await client.fetch_all_metadata()
    finally:
        logging.getLogger("aiokafka").setLevel(logging.WARNING)
        await client.close()
    return {topic: len(cluster.partitions_for_topic(topic) or ()) for topic in cluster.topics()}
