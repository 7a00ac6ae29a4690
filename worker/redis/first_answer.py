"""Keeps a worker out of its consumer group until its Redis has answered once.

In the group it would hold partitions that others could serve. Owns the waiting and what is said
meanwhile; it knows nothing of Kafka. A service of Faust's that starts behind the web server, whose
pages tell why, and before the consumer, which joins. Made by worker/app.py.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import faust
from redis.exceptions import RedisError

from keyfold.worker.errors import Crash
from keyfold.worker.liveness.watchdog import note_waiting
from keyfold.worker.surroundings import RETRY_S, raise_if_refused

log = logging.getLogger(__name__)

SAY_EVERY_S = 30.0  # the line about a Redis that does not answer


class FirstAnswer(faust.Service):  # type: ignore[misc]  # Faust imports it lazily
    """Waits for the first answer of one Redis."""

    logger = logging.getLogger("faust.keyfold")  # as Faust's other services here

    def __init__(
        self,
        look: Callable[[], Awaitable[Sequence[str]]],
        said: tuple[str, str],
        fail: Callable[[BaseException], None],
        **options: Any,
    ) -> None:
        """Prepare it; `look` asks Redis and returns what in its settings can lose states.

        It raises where nobody answers: of a cluster, one server that does is enough.
        `said`: where Redis is, and the group that is not joined. `fail` ends the worker.
        """
        super().__init__(**options)
        self._look, (self._where, self._group), self._fail = look, said, fail
        self._said_s = float("-inf")  # when the line was last said, by the loop's clock
        self.waits_because = ""  # why the group is not joined yet

    async def on_start(self) -> None:
        """Wait until Redis answers, or until the worker is stopped."""
        self.waits_because = f"waiting for Redis at {self._where}"
        tries = 0
        while not self.should_stop:
            try:
                answer = await self.wait(self._ask())
            except Crash as error:
                self._fail(error)
                await self.wait_until_stopped()
                return
            except (RedisError, OSError) as error:
                self._say(f"{type(error).__name__}: {error}")
                note_waiting(error)
                await self.sleep(RETRY_S[min(tries, len(RETRY_S) - 1)])
                tries += 1
                continue
            if not answer.stopped:
                self.waits_because = ""
                if tries:
                    log.info("Redis at %s answers: joining group %r", self._where, self._group)
                for problem in answer.result:
                    log.warning("%s", problem)
            return

    async def _ask(self) -> Sequence[str]:
        try:
            return await self._look()
        except (RedisError, OSError) as error:
            raise_if_refused(error)
            raise

    def _say(self, why: str) -> None:
        self.waits_because = f"waiting for Redis at {self._where}: {why}"
        now_s = self.loop.time()
        if now_s - self._said_s < SAY_EVERY_S:
            return
        self._said_s = now_s
        log.warning(
            "redis.url: no answer from %s (%s): start Redis, or set it right; until it has "
            "answered once this worker does not join group %r and serves nothing",
            self._where, why, self._group,
        )  # fmt: skip
