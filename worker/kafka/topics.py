"""Are the topics there, do they fit each other, are they still the same ones?

Owns the rules between the input, output, alert and dead-letter topics, and topic ids. It only reads
metadata. Called by worker/cli.py before a worker joins its group, by worker/answers.py at every
ACQUIRE, and by worker/state/survey.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaConnectionError, KafkaError
from confluent_kafka import KafkaError as ClientError
from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from keyfold.export.connection import Connection
from keyfold.export.refusals import why_refused
from keyfold.worker.config import Kafka
from keyfold.worker.errors import Crash, SetUpError, TopicError
from keyfold.worker.kafka.farewell import end_at_once
from keyfold.worker.kafka.rights import missing_rights

log = logging.getLogger(__name__)

TRY_AGAIN_S = 2.0
SAY_EVERY_S = 10.0  # while no broker answers
ASK_S = 5.0
# What a broker answers that does not know topic ids.
NO_IDS = (ClientError.UNSUPPORTED_VERSION, ClientError._UNSUPPORTED_FEATURE)


class NoBroker(Crash):
    """No broker answers: nothing to set right, as far as we can tell, but to try again."""


async def check_topics(kafka: Kafka, connection: Connection | None = None, alert: str = "") -> None:
    """Wait for a broker that lets us in, and check rights, the three topics and that of alerts.

    Without `connection` the brokers of `kafka` are plaintext ones. Raises TopicError, SetUpError
    when a broker refuses us, and NoBroker when none answers within kafka.request_timeout_s.
    """
    connection = connection or Connection(kafka.brokers)
    counts = await _reach(kafka, connection)
    if connection.security.protocol != "plaintext":
        missing = await asyncio.to_thread(missing_rights, kafka, connection, ASK_S, alert)
        if missing:
            more = f" ({len(missing) - 1} more rights are missing)" if missing[1:] else ""
            raise SetUpError(f"{missing[0]}{more}")
    judge_topics(counts, kafka.input, kafka.output, kafka.dead_letter, alert)


async def _reach(kafka: Kafka, connection: Connection) -> dict[str, int]:
    """Return all topics' partition counts, once told. Raises SetUpError, NoBroker."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    say_at_s = 0.0  # after the start
    while True:
        try:
            return await _partition_counts(connection)
        except (KafkaError, OSError, ValueError) as error:
            refusal = await asyncio.to_thread(why_refused, connection, ASK_S)
            why = str(error) if refusal is None else refusal.text
            waited_s = loop.time() - start
            if refusal is not None and waited_s >= refusal.patience_s:
                raise SetUpError(why) from error
            if waited_s + TRY_AGAIN_S > kafka.request_timeout_s:
                text = f"kafka.brokers: no answer from {connection}: {why}"
                raise NoBroker(text) from error
            if waited_s >= say_at_s:
                say_at_s = waited_s + SAY_EVERY_S
                log.warning("no answer from %s: %s; trying again", connection, why)
            await asyncio.sleep(TRY_AGAIN_S)


def judge_topics(
    counts: Mapping[str, int], source: str, output: str, dead_letter: str, alert: str = ""
) -> None:
    """Judge partition counts by topic, 0 or missing: no such topic. Raises TopicError."""
    for name in (source, output, dead_letter, alert):
        if name and not counts.get(name):
            raise TopicError(
                f"topic {name!r}: expected it to exist, got none; create it "
                "(the worker never creates topics)"
            )
    for name in (output, alert):
        if name and counts[name] != counts[source]:
            raise TopicError(
                f"topic {name!r}: expected {counts[source]} partitions like the input {source!r}, "
                f"got {counts[name]}"
            )


@contextmanager
def unheard() -> Iterator[None]:
    """Keep aiokafka's own lines back: what it says of a broker without an answer, our line says."""
    logger = logging.getLogger("aiokafka")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


async def _partition_counts(connection: Connection) -> dict[str, int]:
    client = AIOKafkaClient(**connection.aiokafka())
    end_at_once(client)
    with unheard():
        try:
            await client.bootstrap()
            cluster = await client.fetch_all_metadata()
        finally:
            await client.close()
    return {topic: len(cluster.partitions_for_topic(topic) or ()) for topic in cluster.topics()}


def ask_topic_id(
    admin: AdminClient, name: str, timeout_s: float, wait_s: float | None = None
) -> str:
    """Return a topic's id, "" where the broker tells none. Raises KafkaConnectionError: no answer.

    Blocks until the client gives up after `timeout_s` and says why, but no longer than `wait_s`.
    """
    try:
        asked = admin.describe_topics(TopicCollection([name]), request_timeout=timeout_s)
        return str(asked[name].result(wait_s).topic_id or "")
    except KafkaException as error:
        reason = error.args[0]
        if reason.code() in NO_IDS:
            return ""
        raise KafkaConnectionError(f"id of topic {name!r}: {reason.str()}") from error
    except TimeoutError as error:
        raise KafkaConnectionError(f"id of topic {name!r}: no answer") from error


class TopicIds:
    """Kafka's ids of topics: one deleted and created anew under its name has another one."""

    def __init__(self, kafka: Connection) -> None:
        self._kafka = kafka
        self._admin: AdminClient | None = None

    async def of(self, name: str) -> str:
        """Return a topic's id, "" where the broker tells none. Raises KafkaError: no answer.

        One question at a time: aiokafka 0.14 knows no topic ids, and librdkafka's call blocks.
        """
        return await asyncio.to_thread(self._ask, name)

    def _ask(self, name: str) -> str:
        if self._admin is None:
            self._admin = AdminClient({**self._kafka.librdkafka(), "log_level": 0})
        return ask_topic_id(self._admin, name, ASK_S, ASK_S)
