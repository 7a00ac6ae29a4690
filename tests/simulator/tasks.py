"""What moves in a simulated worker, one await point at a time, and how it asks Redis.

A task is a generator; a command that it has sent may arrive even if the task dies.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simulator.worker import Worker

Steps = Generator[None, None, Any]  # each `yield` is an await point


class Unanswered(Exception):
    """Kafka or Redis did not answer in time; what was asked may have happened."""


class TransactionFailed(Exception):
    """A transaction's outcome is unknown."""


class Task:
    """Something that moves one step at a time."""

    __slots__ = ("inflight", "moves", "worker")

    def __init__(self, worker: Worker, moves: Steps | None = None) -> None:
        self.worker, self.moves = worker, moves
        self.inflight: Callable[[], object] | None = None  # arrives even if the task dies

    @property
    def running(self) -> bool:
        """Whether it is this task that moves right now."""
        return bool(getattr(self.moves, "gi_running", False))


def call(task: Task, do: Callable[[], Any], still: Callable[[], bool]) -> Steps:
    """Ask Redis until it answers, while `still` holds; None when it does no more."""
    world = task.worker.world
    while still():
        task.inflight = do
        yield
        task.inflight = None
        if world.lossy and world.random() < world.lossy:
            world.lose(do)
            yield
            continue
        answer = do()
        yield from world.delay()
        return answer
    return None
