"""Before Redis has answered a worker does not join: what it says meanwhile, and how it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import pytest
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as Away

from keyfold.worker.errors import RedisRefuses
from keyfold.worker.redis import first_answer
from keyfold.worker.redis.first_answer import FirstAnswer

LINE = (
    "redis.url: no answer from redis://there:1/0 (ConnectionError: gone): start Redis, or set it "
    "right; until it has answered once this worker does not join group 'g' and serves nothing"
)


class Redis:
    """Gives these answers, then the last of them for ever."""

    def __init__(self, *answers: Exception | Sequence[str]) -> None:
        self.answers, self.asked = list(answers), 0
        self.failed: list[BaseException] = []

    async def look(self) -> Sequence[str]:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def service(self) -> FirstAnswer:
        return FirstAnswer(self.look, ("redis://there:1/0", "g"), self.failed.append)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_answer, "RETRY_S", (0.001,))


def test_it_starts_when_redis_answers_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    redis = Redis(Away("gone"), Away("gone"), ["maxmemory-policy is odd"])

    async def main() -> None:
        service = redis.service()
        assert service.waits_because == ""
        await asyncio.wait_for(service.start(), 20)
        assert service.waits_because == ""
        await service.stop()

    with caplog.at_level(logging.INFO, "keyfold"):
        asyncio.run(main())
    assert caplog.messages == [
        LINE, "Redis at redis://there:1/0 answers: joining group 'g'", "maxmemory-policy is odd",
    ]  # fmt: skip


def test_the_line_is_said_again_but_not_at_every_try(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis = Redis(Away("gone"))

    async def main(lines: int, tries: int) -> str:
        service = redis.service()
        starting = asyncio.ensure_future(service.start())
        async with asyncio.timeout(20):
            while caplog.messages.count(LINE) < lines or redis.asked < tries:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        why = service.waits_because
        await service.stop()
        await asyncio.wait_for(starting, 2)
        return why

    assert asyncio.run(main(1, 20)) == (
        "waiting for Redis at redis://there:1/0: ConnectionError: gone"
    )
    assert caplog.messages.count(LINE) == 1
    monkeypatch.setattr(first_answer, "SAY_EVERY_S", 0.05)
    asyncio.run(main(4, 0))
    assert not redis.failed


def test_a_redis_that_never_replies_does_not_keep_a_worker_that_is_to_stop() -> None:
    async def hang() -> Sequence[str]:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def main() -> None:
        failed: list[BaseException] = []
        service = FirstAnswer(hang, ("redis://there:1/0", "g"), failed.append)
        starting = asyncio.ensure_future(service.start())
        await asyncio.sleep(0)
        await service.stop()
        await asyncio.wait_for(starting, 2)

    asyncio.run(main())


def test_a_redis_that_refuses_ends_the_worker() -> None:
    redis = Redis(Away("gone"), AuthenticationError("WRONGPASS invalid"))

    async def main() -> None:
        service = redis.service()
        starting = asyncio.ensure_future(service.start())
        async with asyncio.timeout(20):
            while not redis.failed:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        await service.stop()
        await asyncio.wait_for(starting, 2)

    asyncio.run(main())
    (refused,) = redis.failed
    assert isinstance(refused, RedisRefuses)
    assert "redis.username, redis.password: " in str(refused)
    assert redis.asked == 2
