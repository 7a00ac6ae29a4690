"""What the brokers' ACLs allow this worker, asked before it joins: nothing is tried or written.

Owns which rights a worker needs; deploy/ACLS.md lists the same, and tests/security holds both
against a broker that allows nothing else. Transactional ids cannot be asked about: those are judged
when worker/transactions.py opens one. Called by topics.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aiokafka.errors import GroupAuthorizationFailedError, TopicAuthorizationFailedError
from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from keyfold.export.connection import Connection
from keyfold.export.refusals import acl
from keyfold.worker.config import Kafka
from keyfold.worker.errors import SetUpError

FORBIDDEN = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED)


def missing_rights(
    kafka: Kafka, connection: Connection, timeout_s: float, alert: str = ""
) -> list[str]:
    """Return a line for each right that is missing, as far as the brokers tell.

    `alert`: topic of alerts, "" for none.

    Blocks. Where nobody listens, or nobody answers such questions, nothing is missing.
    """
    admin = AdminClient({**connection.librdkafka(), "log_level": 0})
    wanted = [(kafka.input, "Read"), (kafka.output, "Write"), (kafka.dead_letter, "Write")]
    wanted += [(alert, "Write")] if alert else []
    asked: Any = {
        name: admin.describe_topics(
            TopicCollection([name]), include_authorized_operations=True, request_timeout=timeout_s
        )[name]
        for name, _ in wanted
    }
    group: Any = admin.describe_consumer_groups(
        [kafka.group], include_authorized_operations=True, request_timeout=timeout_s
    )
    missing = [
        acl(connection, operation, "topic", name)
        for name, operation in wanted
        if _lacks(asked[name], operation)
    ]
    if _lacks(group[kafka.group], "Read"):
        missing.append(acl(connection, "Read", "group", kafka.group))
    return missing


def named_refusal(
    error: BaseException, kafka: Kafka, connection: Connection, alert: str = ""
) -> BaseException:
    """Return what aiokafka raises for a missing right as a SetUpError that names it.

    Rights can be taken away under a running worker. Any other error comes back as it is.
    """
    name = str(error.args[0]) if error.args else ""
    if isinstance(error, TopicAuthorizationFailedError):
        # Of several topics at once it gives a set.
        ours = [t for t in (alert, kafka.output, kafka.dead_letter) if t]
        # The longest first: the name of one may be a part of another's.
        topic = next((t for t in sorted(ours, key=len, reverse=True) if t in name), kafka.input)
        operation = "Read" if topic == kafka.input else "Write"
        return SetUpError(acl(connection, operation, "topic", topic))
    if isinstance(error, GroupAuthorizationFailedError):
        return SetUpError(acl(connection, "Read", "group", kafka.group))
    return error


def _lacks(question: Any, operation: str) -> bool:
    try:
        allowed = set(_names(question.result().authorized_operations))
    except KafkaException as error:
        return error.args[0].code() in FORBIDDEN
    return bool(allowed) and operation.upper() not in allowed


def _names(operations: Any) -> Iterator[str]:
    return (one.name for one in operations or ())
