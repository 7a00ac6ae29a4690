"""A worker that its group does not let in ends and says why; one that was frozen takes no fence."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka.errors import KafkaTimeoutError
from live_worker import Serving, make_events
from memory_log import MemoryLog, event, running
from tiny_bundle import make_tiny_bundle

from keyfold.worker.model import Model
from keyfold.worker.protocol import Phase
from keyfold.worker.surroundings import raise_if_refused
from local.services import ApacheKafka, Valkey


def test_a_session_timeout_that_the_brokers_refuse_is_named(
    tmp_path: Path, real_kafka: ApacheKafka, own_valkey: Valkey, unique_name: Callable[[str], str]
) -> None:
    serving = Serving(tmp_path, real_kafka, own_valkey, make_tiny_bundle(tmp_path), unique_name)
    serving.send(make_events(10, 2))
    worker = serving.worker(kafka__session_timeout_s=0.1)
    assert worker.wait(60) == 2, worker.log_tail()
    assert "kafka.session_timeout_s: expected 1 to 1800 seconds, which the" in worker.log_tail()
    serving.redis.close()


def test_a_worker_frozen_in_the_middle_of_acquire_asks_again_before_it_takes_the_fence(
    tmp_path: Path, valkey: Valkey, unique_name: Callable[[str], str]
) -> None:
    """By then Kafka has told it that it is no member any more: the rightful owner lives on."""

    async def main() -> None:
        model = Model(make_tiny_bundle(tmp_path))
        topic = unique_name("in")
        log = MemoryLog(topic, {topic: 1, "out": 1, "dead": 1})
        log.append(event(0, b"k"))
        async with running(model, log, valkey.url, frozen_after_s=0.05) as worker:
            slow, bounds = [0.1], log.bounds

            async def frozen(topic: str, partition: int) -> tuple[int, int]:
                if slow:
                    await asyncio.sleep(slow.pop())
                    assert await worker.fields() == {}
                return await bounds(topic, partition)

            log.bounds = frozen  # type: ignore[method-assign]
            owner = worker.assign(0)
            await worker.until(lambda: not slow and log.asked == 1)
            assert await worker.fields() == {}
            await worker.until(lambda: owner.partition.phase is Phase.RUN)
            assert owner.partition.fence is not None
            assert owner.partition.fence.number == 1
            assert log.asked >= 3  # again, then where a new group begins

    asyncio.run(main())


@pytest.mark.parametrize(
    "error",
    [
        Exception("cluster: no node says: This instance has cluster support disabled"),
        Exception("no primary by Sentinel h:1: unknown command 'SENTINEL', with args"),
    ],
)
def test_a_redis_of_another_kind_than_its_url_says_is_refused(error: Any) -> None:
    with pytest.raises(Exception, match=r"redis.url: Redis refuses"):
        raise_if_refused(error)
    raise_if_refused(KafkaTimeoutError("later"))
