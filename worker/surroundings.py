"""What the owners of one worker share, and what they need of Kafka.

Declarations, and the one way in which all of them try Redis again: who owns what is said in each
part's own module. Built by worker/app.py, used by worker/owner.py, saver.py and pipeline.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from aiokafka.errors import KafkaError
from redis.exceptions import RedisError, ResponseError

from keyfold.worker.emit import Emitter
from keyfold.worker.errors import RedisRefuses
from keyfold.worker.liveness.kafka_away import waiting_for_kafka
from keyfold.worker.liveness.watchdog import note_waiting
from keyfold.worker.metrics import Metrics
from keyfold.worker.protocol import GroupOffset, Topic
from keyfold.worker.redis.refusals import why_denied
from keyfold.worker.slots import Slots
from keyfold.worker.state_codec import StateCodec
from keyfold.worker.store import Store

log = logging.getLogger(__name__)

RETRY_S = (0.1, 0.2, 0.5, 1.0, 2.0)  # waits between tries; the last repeats

T = TypeVar("T")


class Log(Protocol):
    """What an owner needs of Kafka, on its own partition."""

    async def group_offset(self, topic: str, partition: int) -> GroupOffset | None:
        """Return C, None when the group has none."""

    async def set_group_offset(self, topic: str, partition: int, at: GroupOffset) -> None:
        """Set C; it is a hint, but for INIT_METADATA."""

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """Return the first offset still in the log and the next one to be written."""

    async def offset_at(self, topic: str, partition: int, time_ms: int) -> int | None:
        """Return the offset of the first record as young as this, None when none is."""

    async def partition_counts(self, topics: Sequence[str]) -> dict[str, int]:
        """Return each topic's number of partitions, 0 when it does not exist."""

    async def identify(self, name: str, *, fresh: bool) -> Topic:
        """Return what tells a topic from another one of the same name; 0 partitions: no topic.

        Not `fresh`: what was last known will do, and nobody waits.
        """

    def request_seek(self, owner: Any, offset: int) -> None:
        """Have the intake move the position; it calls owner.sought() afterwards."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What an owner needs of the configuration."""

    output: str  # topic of predictions, must have the input's number of partitions
    dead_letter: str  # topic of rejects, must exist
    start: str  # worker.start: "", "earliest", "latest" or a time
    save_every_s: float  # 0: each turn
    nonce: str  # this worker's
    bundle: str  # whose states they are: bundle id, and that of a rule that remembers
    reset_after_ms: int | None = None  # the bundle's: a key silent for longer starts cold again
    frozen_after_s: float = 10.0  # no question of ACQUIRE takes longer, but for a frozen program
    emit_from: str = ""  # worker.emit_from
    alert: str = ""  # topic of alerts, must have the input's number of partitions; "": none


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all owners of a worker share."""

    store: Store  # Redis
    slots: Slots  # resident states
    codec: StateCodec  # their stored form
    emitter: Emitter  # Kafka, out
    log: Log  # Kafka, positions
    metrics: Metrics  # counters
    settings: Settings  # what was configured
    wake_pipeline: Callable[[], None]  # there is something to do
    crash: Callable[[BaseException], None]  # fail-stop


async def retrying(
    doing: str, call: Callable[[], Awaitable[T]], still: Callable[[], bool]
) -> T | None:
    """Call Redis until it answers, while `still` holds; None when it does no more.

    Raises RedisRefuses when trying again cannot help.
    """
    tries = 0
    while still():
        try:
            return await call()
        except (RedisError, OSError) as error:
            raise_if_refused(error)
            tries = await wait_to_retry(doing, error, tries)
    return None


def raise_if_refused(error: Exception) -> None:
    """Raise RedisRefuses for an error that trying again cannot mend."""
    text = str(error)
    hopeless = isinstance(error, ResponseError) and text.startswith(
        ("WRONGTYPE", "DB index", "invalid DB index")
    )
    # redis.url names a cluster, or Sentinels, where there are none.
    hopeless = hopeless or "cluster support disabled" in text or "command 'SENTINEL'" in text
    denied = why_denied(error)
    if denied is not None:
        raise RedisRefuses(denied) from error
    if hopeless:
        raise RedisRefuses(f"redis.url: Redis refuses: {error}") from error


async def wait_to_retry(doing: str, error: Exception, tries: int) -> int:
    """Say what failed, wait a little longer than the last time, and return the number of tries."""
    note_waiting(error)  # who waits for Redis is not stuck
    wait_s = RETRY_S[min(tries, len(RETRY_S) - 1)]
    # Of a Kafka that is away worker/liveness/kafka_away.py tells, once for all partitions.
    told = isinstance(error, KafkaError) and waiting_for_kafka()
    level = logging.DEBUG if told else logging.WARNING
    log.log(level, "%s: %s: %s; trying again in %.1f s", doing, type(error).__name__, error, wait_s)
    await asyncio.sleep(wait_s)
    return tries + 1
