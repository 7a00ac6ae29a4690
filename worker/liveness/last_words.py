"""What a worker's log says while it stops: that it has, and whether all that it took is saved.

Owns the last line, and that aiokafka is silent from the moment a stop begins: its clients are let
go with questions unanswered, and their ERROR lines read like a crash. After a crash nothing is kept
quiet. Called by worker/cli.py.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol

from keyfold.worker.owner import Owner

log = logging.getLogger(__name__)

# What Faust says of any crash; worker/cli.py says it in one line, or with its own traceback.
FAUSTS = ("Crashed reason=", "We experienced a crash! Reraising original exception")


class App(Protocol):
    """The worker's app, as far as it is asked."""

    failure: BaseException | None  # what a crash was about

    def owners(self) -> list[Owner]:
        """Return the owners of this worker's partitions."""


class LastWords:
    """Watches the stop of Faust's worker."""

    def __init__(self, worker: Any, app: App) -> None:
        self._app = app
        self._owners: list[Owner] = []  # of the partitions that it had when the stop began
        self._stop = worker.stop
        worker.stop = self._stopping

    async def _stopping(self) -> None:
        if self._app.failure is None:
            self._owners = self._owners or self._app.owners()
            logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
        await self._stop()

    def say(self) -> None:
        """Log that the worker has stopped; called at the very end of a stop without a crash."""
        partitions = [owner.partition for owner in self._owners]
        late = [one for one in partitions if one.saved < one.applied]
        if late:
            log.info(
                "stopped, not drained: %d of %d partitions; the next worker replays what was not "
                "saved", len(late), len(partitions),
            )  # fmt: skip
        else:
            log.info("stopped, drained: all that was taken of %d partitions is saved",
                     len(partitions))  # fmt: skip


class Ours(logging.Filter):
    """Lets through what is said for a person who runs a worker."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Drop Faust's crash lines, and what threads answer to an event loop that has ended."""
        if record.name == "concurrent.futures":
            return False
        return not any(words in str(record.msg) for words in FAUSTS)
