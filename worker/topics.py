"""Are the topics there, do they fit each other, are they still the same ones?

Owns the rules between the input, output and dead-letter topics, and topic ids. It only reads
metadata. Called by worker/cli.py before a worker joins its group, and by worker/answers.py at every
ACQUIRE.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaConnectionError, KafkaError
from confluent_kafka import KafkaError as ClientError
from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from keyfold.worker.config import Kafka
from keyfold.worker.errors import SetUpError, TopicError

log = logging.getLogger(__name__)

TRY_AGAIN_S = 2.0
ASK_S = 5.0
# What a broker answers that does not know topic ids.
NO_IDS = (ClientError.UNSUPPORTED_VERSION, ClientError._UNSUPPORTED_FEATURE)


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


class TopicIds:
    """Kafka's ids of topics: one deleted and created anew under its name has another one."""

    def __init__(self, kafka: Kafka) -> None:
        self._brokers = kafka.brokers
        self._admin: AdminClient | None = None

    async def of(self, name: str) -> str:
        """Return a topic's id, "" where the broker tells none. Raises KafkaError: no answer.

        One question at a time: aiokafka 0.14 knows no topic ids, and librdkafka's call blocks.
        """
        return await asyncio.to_thread(self._ask, name)

    def _ask(self, name: str) -> str:
        if self._admin is None:
            self._admin = AdminClient({"bootstrap.servers": self._brokers, "log_level": 0})
        asked = self._admin.describe_topics(TopicCollection([name]), request_timeout=ASK_S)
        try:
            return str(asked[name].result(ASK_S).topic_id)
        except KafkaException as error:
            reason = error.args[0]
            if reason.code() in NO_IDS:
                return ""
            raise KafkaConnectionError(f"id of topic {name!r}: {reason.str()}") from error
        except TimeoutError as error:
            raise KafkaConnectionError(f"id of topic {name!r}: no answer") from error
