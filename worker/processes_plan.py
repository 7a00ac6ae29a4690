"""PURE: what the parent of several workers does next. No I/O, no clock, no signals.

Owns when a worker is started again, when all are told to stop, when the rest is killed, and the
exit status of the whole. Times are seconds of one monotonic clock and come as arguments. Asked by
processes.py, which carries out the orders.

A worker that crashed lost nothing and is started again, after a pause that grows while it goes on
crashing; one that needs a person (2) ends all, unless it was started again: what is wrong then was
right before, and the others may still serve. One that somebody told to stop stays away.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from signal import SIGINT, SIGTERM, Signals

FIRST_PAUSE_S = 1.0  # before a worker that crashed is started again; doubled by each crash ...
LONGEST_PAUSE_S = 30.0  # ... up to this ...
LONG_RUN_S = 60.0  # ... and forgotten after so long a run
EX_USAGE, EX_CRASH = 2, 70  # exit statuses of a worker, and of all of them together
# After a drained stop; and what one ends with that was told to before it could listen.
TOLD = frozenset({0, -SIGTERM, -SIGINT, 130})


class What(Enum):
    """What is to be done with a worker."""

    START = "start"
    STOP = "stop"  # SIGTERM: it drains
    KILL = "kill"
    TELL = "tell"  # a person; nothing is done
    WARN = "warn"  # the same, of something that should not be


@dataclass(frozen=True, slots=True)
class Order:
    """One thing to be done."""

    what: What  # is done
    number: int  # of the worker
    words: str = ""  # for the log, with TELL and WARN


@dataclass(slots=True)
class _Worker:
    """What is known of one of them."""

    due_s: float | None = 0.0  # when it is to be started, None: it runs, or stays away
    running: bool = False  # it was started and has not ended
    begun_s: float = 0.0  # its last start
    pause_s: float = 0.0  # before that start


class Plan:
    """The lives of workers 0 to count - 1, from their first start to the end of all."""

    def __init__(self, count: int, stop_s: float) -> None:
        """Begin with none running; `stop_s`: longest stop, after which the rest is killed."""
        self._workers = [_Worker() for _ in range(count)]
        self._stop_s = stop_s
        self._kill_at_s: float | None = None  # known once all are to stop
        self.status = 0  # exit status of the whole, when all is over

    # -- what happens ------------------------------------------------------------------------------

    def stop(self, now_s: float) -> list[Order]:
        """Take note that all are to stop; a second time says nothing new."""
        if self._stopping:
            return []
        self._kill_at_s = now_s + self._stop_s
        for worker in self._workers:
            worker.due_s = None
        return self._each_running(What.STOP)

    def ended(self, number: int, status: int, now_s: float) -> list[Order]:
        """Take note that a worker ended with `status`, negative: of a signal."""
        worker = self._workers[number]
        worker.running = False
        if status == EX_USAGE and not worker.pause_s:
            self.status = EX_USAGE
            told = Order(What.WARN, number, "cannot serve before something is set right (status 2)")
            return [told, *self.stop(now_s)]
        if self._stopping:
            return [] if status in TOLD else self._failed_to_stop(number, status)
        if status in TOLD:
            words = "was told to stop, and is not started again"
            return [Order(What.TELL, number, words)]
        worker.pause_s = _pause_s(worker.pause_s, now_s - worker.begun_s)
        worker.due_s = now_s + worker.pause_s
        words = f"{_named(status)}; it is started again in {worker.pause_s:g} s"
        return [Order(What.WARN, number, words)]

    # -- what follows ------------------------------------------------------------------------------

    def due(self, now_s: float) -> list[Order]:
        """Return what the clock asks for: starts, and after a stop that took too long the end."""
        if self._kill_at_s is not None and now_s >= self._kill_at_s:
            self._kill_at_s = float("inf")
            return self._each_running(What.KILL)
        orders = []
        for number, worker in enumerate(self._workers):
            if worker.due_s is not None and now_s >= worker.due_s:
                worker.due_s, worker.running, worker.begun_s = None, True, now_s
                orders.append(Order(What.START, number))
        return orders

    def wait_s(self, now_s: float) -> float | None:
        """Return in how many seconds `due` has something to say, None: not by itself."""
        moments = [worker.due_s for worker in self._workers if worker.due_s is not None]
        if self._kill_at_s is not None:
            moments.append(self._kill_at_s)
        first_s = min(moments, default=float("inf"))
        return None if first_s == float("inf") else max(0.0, first_s - now_s)

    @property
    def over(self) -> bool:
        """Whether none runs and none will."""
        return not any(worker.running or worker.due_s is not None for worker in self._workers)

    @property
    def _stopping(self) -> bool:
        return self._kill_at_s is not None

    def _failed_to_stop(self, number: int, status: int) -> list[Order]:
        self.status = self.status or EX_CRASH
        return [Order(What.WARN, number, f"{_named(status)} while it was to stop")]

    def _each_running(self, what: What) -> list[Order]:
        return [Order(what, n) for n, worker in enumerate(self._workers) if worker.running]


def _pause_s(before_s: float, ran_s: float) -> float:
    if before_s == 0 or ran_s >= LONG_RUN_S:
        return FIRST_PAUSE_S
    return min(2 * before_s, LONGEST_PAUSE_S)


def _named(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    known = -status in set(Signals)
    return f"was ended by {Signals(-status).name if known else f'signal {-status}'}"
