"""A thread that ends a worker which is alive but consumes nothing, so that the group takes over.

Owns the thread and the exit; stuck.py decides, log_probe.py asks Kafka. It shares no
lock, task or client with what it watches: the event loop, Faust and aiokafka may hang and it still
acts. What it cannot see is a program in which no Python thread runs at all; the page /live does not
answer then. Made by worker/app.py; worker/surroundings.py says when the worker waits for Redis.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from keyfold.export.connection import Connection
from keyfold.worker.liveness.log_probe import CONFIRM_TIMEOUT_S, LogProbe
from keyfold.worker.liveness.stuck import Judge, Reading, Stuck
from keyfold.worker.protocol import Phase

if TYPE_CHECKING:
    from keyfold.worker.owner import Owner  # it imports surroundings, which imports this module

log = logging.getLogger(__name__)

TICK_S = 1.0  # longest time between two looks
ASK_TIMEOUT_S = 10.0  # longest wait for the log's ends
CONFIRM_QUESTIONS = 3  # of LogProbe.has_record
LAST_WORDS_S = 5.0  # a log that takes no line any more does not keep the program alive
FRAMES = 4  # of a stuck event loop's stack in the log
MOVING = (Phase.RUN, Phase.REWIND, Phase.DRAIN)

WAITING_FOR_S = 8.0  # an error so old was overcome: tries come more often
_waited_for_redis_s = float("-inf")
_waiting_for = ""  # what that error said


def note_waiting(error: BaseException) -> None:
    """Note that something failed and will be tried again: if it was Redis, nobody is stuck.

    An error of Kafka's does not count: the watchdog asks Kafka itself, and a client that fails
    while Kafka answers is just what it looks for.
    """
    global _waited_for_redis_s, _waiting_for  # one worker per program
    if isinstance(error, RedisError | ConnectionError):
        _waited_for_redis_s, _waiting_for = time.monotonic(), f"{type(error).__name__}: {error}"


def waiting_for_redis() -> str:
    """Say why the worker waits for Redis, "" when it does not."""
    recent = time.monotonic() - _waited_for_redis_s < WAITING_FOR_S
    return f"Redis: {_waiting_for}" if recent else ""


def reading(owner: Owner) -> Reading:
    """Return what the watchdog has to know of an owned partition."""
    partition = owner.partition
    # A resolved HALT is called one until a save or an audit succeeded: such a RUN is watched.
    halted = owner.halted and partition.phase not in MOVING
    return Reading(partition.number, owner, partition.phase.value, partition.saved, halted)


@dataclass(frozen=True, slots=True)
class Watched:
    """What a watchdog watches."""

    kafka: Connection  # how it is reached
    topic: str  # of events
    group: str  # whose coordinator must answer as well before Kafka counts as there
    limit_s: float  # no progress in spite of lag for so long; infinite: never ends the worker


class Watchdog:
    """Looks after one worker from a thread of its own."""

    def __init__(
        self,
        watched: Watched,
        read: Callable[[], Sequence[Reading]],
        leave: Callable[[], object],
    ) -> None:
        """Prepare it; `read` is called in the event loop, `leave` ends the program at once."""
        self._watched, self._read, self._leave = watched, read, leave
        self._judge = Judge(watched.limit_s, time.monotonic())
        self._kafka = LogProbe(watched.kafka, watched.topic, watched.group)
        self._tick_s = min(TICK_S, watched.limit_s / 8)
        self._stop = threading.Event()
        self._shown: Sequence[Reading] | None = None  # by the event loop, since the last look
        self._called = False  # the event loop owes an answer
        self.failure = ""  # why nothing is watched any more

    async def run(self) -> None:
        """Watch this event loop until cancelled."""
        loop = asyncio.get_running_loop()
        arguments = (loop, threading.get_ident())
        threading.Thread(
            target=self._run, args=arguments, name="keyfold-watchdog", daemon=True
        ).start()
        try:
            await loop.create_future()
        finally:
            self._stop.set()

    # -- for the health page -----------------------------------------------------------------------

    def unmoved_s(self, number: int, saved: int) -> float | None:
        """Return the seconds since a partition's W, now `saved`, last moved, None: not known."""
        return self._judge.unmoved_s(number, saved, time.monotonic())

    def log_end(self, number: int) -> int:
        """Return a partition's log end as the watchdog last heard it, 0 when it did not ask."""
        return self._judge.log_end(number)

    # -- the thread --------------------------------------------------------------------------------

    def _run(self, loop: asyncio.AbstractEventLoop, loop_thread: int) -> None:
        try:
            self._judge.begin(time.monotonic())
            while not (self._stop.is_set() or loop.is_closed()):
                self._tick(loop, loop_thread)
        except Exception as error:  # the seam: /live says that nobody watches
            self.failure = f"the watchdog failed: {type(error).__name__}: {error}"
            log.exception("watchdog")
        finally:
            self._kafka.close()

    def _tick(self, loop: asyncio.AbstractEventLoop, loop_thread: int) -> None:
        self._call(loop)
        with self._due_in(self._tick_s):
            self._stop.wait(self._tick_s)
        if self._stop.is_set():
            return
        self._look()
        now_s = time.monotonic()
        silent_s = self._judge.stalled_s(now_s)
        if silent_s is not None:
            self._end(
                f"the event loop has not answered for {silent_s:.0f} s, in {where(loop_thread)}; "
                f"as last seen: {self._everything()}"
            )
            return
        asked = self._judge.to_ask(now_s)
        if asked:
            stuck = self._judge.answered(time.monotonic(), asked, self._ends(asked))
            if stuck:
                self._confirm(loop, stuck)

    def _call(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ask the event loop to show its partitions, unless it still owes an answer."""
        if not self._called:
            self._called = True
            with suppress(RuntimeError):  # it was closed
                loop.call_soon_threadsafe(self._show)

    def _show(self) -> None:
        """Called in the event loop: that this runs shows that the loop goes round."""
        self._shown, self._called = self._read(), False

    def _look(self) -> None:
        shown, self._shown = self._shown, None
        if shown is not None:
            self._judge.look(time.monotonic(), shown)
        self._judge.excuse(_waited_for_redis_s)

    def _ends(self, numbers: Sequence[int]) -> Mapping[int, int]:
        timeout_s = min(self._watched.limit_s / 4, ASK_TIMEOUT_S)
        with self._due_in(timeout_s):
            return self._kafka.ends(numbers, timeout_s)

    def _confirm(self, loop: asyncio.AbstractEventLoop, suspects: Sequence[Stuck]) -> None:
        """Leave if there really is a record to apply, Kafka is there, and nothing has moved."""
        self._call(loop)
        for suspect in suspects:
            with self._due_in(CONFIRM_QUESTIONS * CONFIRM_TIMEOUT_S):
                waits = self._kafka.has_record(suspect.number, suspect.saved)
            if waits is None:
                self._judge.not_now()
                return
            if not waits:
                self._judge.nothing_to_apply(suspect)
                continue
            self._look()  # the questions took their time
            ends = {stuck.number: stuck.end for stuck in suspects}
            still = self._judge.answered(time.monotonic(), list(ends), ends)
            if suspect.number in {stuck.number for stuck in still}:
                self._end("; ".join(f"{self._watched.topic}:{stuck}" for stuck in still))
            return

    def _everything(self) -> str:
        readings = self._judge.readings()
        ends = self._ends([reading.number for reading in readings])
        return ", ".join(
            f"{self._watched.topic}:{r.number} in {r.phase} at W {r.saved}, log end "
            f"{ends.get(r.number, 'unknown')}"
            for r in readings
        ) or "no partitions"  # fmt: skip

    def _end(self, why: str) -> None:
        """Say why and end the program, whatever the log or the event loop do."""
        self._stop.set()
        words = threading.Thread(
            target=log.critical,
            args=("worker is stuck and leaves for another one to take over: %s", why),
            daemon=True,
        )
        words.start()
        words.join(LAST_WORDS_S)
        self._leave()

    @contextmanager
    def _due_in(self, due_s: float) -> Iterator[None]:
        """Notice that the whole program was frozen while something was done."""
        begun_s = time.monotonic()
        try:
            yield
        finally:
            now_s = time.monotonic()
            self._judge.lived(now_s, now_s - begun_s, due_s)


def where(thread: int) -> str:
    """Return what a thread is doing, innermost call first."""
    frame = sys._current_frames().get(thread)
    calls: list[str] = []
    while frame is not None and len(calls) < FRAMES:
        code = frame.f_code
        calls.append(f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_name}")
        frame = frame.f_back
    return " < ".join(calls) or "no Python code"
