"""Says for whom a consumer group waits, when it gives this worker no partitions for long.

Kafka gives out partitions when every member has joined again: one that runs and does not poll keeps
all of them waiting for its max.poll.interval.ms, and no client says a word. Owns the clock and the
line; it decides nothing. Used by worker/intake.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from confluent_kafka import ConsumerGroupState, KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from keyfold.export.connection import Connection
from keyfold.export.refusals import acl

log = logging.getLogger(__name__)

LONG_S = 7.0  # a group usually takes three; so long after a look without a line is the next
WORKERS_S = 20.0  # workers may drain before they let go: above worker.drain_s, and its default
SAY_EVERY_S = 30.0
ASK_S = 2.0  # of the question who is in the group
SHOWN = 4  # members
# Errors that end when the group's coordinator is back.
COORDINATOR_AWAY = (
    KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE,
    KafkaError._TIMED_OUT, KafkaError._TIMED_OUT_QUEUE, KafkaError._WAIT_COORD,
    KafkaError.REQUEST_TIMED_OUT, KafkaError.BROKER_NOT_AVAILABLE, KafkaError.NETWORK_EXCEPTION,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
)  # fmt: skip


class GroupWait:
    """The wait of one worker for its group."""

    def __init__(self, kafka: Connection, group: str, client_id: str) -> None:
        """Prepare it; `client_id` is that of keyfold's workers."""
        self._kafka, self._group, self._client_id = kafka, group, client_id
        self._admin: AdminClient | None = None
        self._since_s: float | None = None  # by the loop's clock; None: it does not wait
        self._next_s = 0.0  # when the brokers are asked next

    async def look(self, *, joined: bool, member: str) -> None:
        """Take note that the group has given out its partitions, or not; say it when it takes long.

        `member`: this worker's id in the group.
        """
        now_s = asyncio.get_running_loop().time()
        if joined:
            self._since_s = None
            return
        if self._since_s is None:
            self._since_s, self._next_s = now_s, now_s + LONG_S
        if now_s < self._next_s:
            return
        waited_s = now_s - self._since_s
        who = await asyncio.to_thread(self._who, member, waited_s)
        self._next_s = now_s + (SAY_EVERY_S if who else LONG_S)
        if who:
            log.warning(
                "kafka.group: %r has given out no partitions for %.0f s: %s",
                self._group, waited_s, who,
            )  # fmt: skip

    def _who(self, member: str, waited_s: float) -> str:
        """Return who is in the group, and what to do; "": there is nothing to say."""
        if self._admin is None:
            self._admin = AdminClient({**self._kafka.librdkafka(), "log_level": 0})
        asked: Any = self._admin.describe_consumer_groups([self._group], request_timeout=ASK_S)
        try:
            found = asked[self._group].result()
        except KafkaException as error:
            return self._why_unanswered(error.args[0])
        others = [one for one in found.members if one.member_id != member]
        if not others or found.state is ConsumerGroupState.STABLE:
            return ""
        foreign = [one for one in others if one.client_id != self._client_id]
        if not foreign:
            return "" if waited_s < WORKERS_S else (
                f"waiting until {_named(others)}, workers like this one, have let go of their "
                "partitions; end the one that does not answer on its page /live"
            )  # fmt: skip
        return (
            f"waiting for {_named(foreign)}, no worker of keyfold, which does not join again; "
            "stop that program or choose another kafka.group (Kafka goes on without it when its "
            "max.poll.interval.ms is over)"
        )

    def _why_unanswered(self, error: KafkaError) -> str:
        if error.code() in COORDINATOR_AWAY:
            return f"its coordinator does not answer ({error.str()}); waiting for Kafka"
        if error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
            return acl(self._kafka, "Read", "group", self._group)
        return f"the brokers do not say for whom it waits: {error.str()}"


def _named(members: Sequence[Any]) -> str:
    counts = Counter(_shown(members))
    named = [name if times == 1 else f"{times} times {name}" for name, times in counts.items()]
    more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
    return ", ".join(named[:SHOWN]) + more


def _shown(members: Sequence[Any]) -> Iterator[str]:
    return (f"client {one.client_id!r} at {str(one.host).lstrip('/')}" for one in members)
