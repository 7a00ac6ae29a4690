"""The end of a worker's stop: by when it has ended, and whether all that it took is saved.

Owns the last line, the latest moment of a stop, and that aiokafka is silent from the moment it
begins: its clients are let go with questions unanswered, and their ERROR lines read like a crash.
After a crash nothing is kept quiet, and worker/app.py owns the latest moment. Called by
worker/cli.py.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any, Protocol

from keyfold.worker.owner import Owner

log = logging.getLogger(__name__)

# What Faust says of any crash; worker/cli.py says it in one line, or with its own traceback.
FAUSTS = ("Crashed reason=", "We experienced a crash! Reraising original exception")


# Of a stop, behind the drain: for leaving the group and closing connections. Whoever is away by
# then (Kafka, Redis or both) is not waited for: the next worker replays what is not saved.
LEAVE_S = 5.0


class App(Protocol):
    """The worker's app, as far as it is asked."""

    failure: BaseException | None  # what a crash was about

    def owners(self) -> list[Owner]:
        """Return the owners of this worker's partitions."""


class LastWords:
    """Watches the stop of Faust's worker."""

    def __init__(
        self, worker: Any, app: App, limit_s: float, leave: Callable[[int], object] = os._exit
    ) -> None:
        """Prepare it; `limit_s`: the longest stop, which `leave` ends with this status."""
        self._app, self._limit_s, self._leave = app, limit_s, leave
        self._owners: list[Owner] = []  # of the partitions that it had when the stop began
        self._stop = worker.stop
        self._late: threading.Timer | None = None
        self._said = threading.Lock()  # held for ever by who says the last line
        worker.stop = self._stopping

    async def _stopping(self) -> None:
        if self._app.failure is None:
            self._owners = self._owners or self._app.owners()
            logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
            if self._late is None:
                # A thread: the event loop, or a client in it, may be what does not end.
                self._late = threading.Timer(self._limit_s, self._cut)
                self._late.daemon = True
                self._late.start()
        await self._stop()

    def _cut(self) -> None:
        if self._app.failure is None and self._said.acquire(blocking=False):
            self._log(f"; Kafka or Redis did not answer within {self._limit_s:g} s")
            self._leave(0)

    def say(self) -> None:
        """Log that the worker has stopped; called at the very end of a stop without a crash."""
        if self._said.acquire(blocking=False):
            self._log("")

    def _log(self, more: str) -> None:
        partitions = [owner.partition for owner in self._owners]
        late = [one for one in partitions if one.saved < one.applied]
        if late:
            log.info(
                "stopped, not drained: %d of %d partitions; the next worker replays what was not "
                "saved%s", len(late), len(partitions), more,
            )  # fmt: skip
        else:
            log.info("stopped, drained: all that was taken of %d partitions is saved%s",
                     len(partitions), more)  # fmt: skip


class Ours(logging.Filter):
    """Lets through what is said for a person who runs a worker."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Drop Faust's crash lines, and what threads answer to an event loop that has ended."""
        if record.name == "concurrent.futures":
            return False
        return not any(words in str(record.msg) for words in FAUSTS)
