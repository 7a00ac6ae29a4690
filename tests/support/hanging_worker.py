"""A `keyfold-worker` that hangs in one place as soon as a file exists, for tests of the watchdog.

Owns the ways to hang. Run as a program: HANG names the place, HANG_FILE the file; the arguments are
keyfold-worker's.

    fetch      the intake's fetch never returns           fetcher   Faust's fetcher ends silently
    thread     aiokafka's thread is blocked               step      a micro-batch never ends
    loop       a micro-batch blocks the event loop        emit      an output's ack never comes
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiokafka.consumer.fetcher import Fetcher

from keyfold.worker import cli, emit, intake, pipeline

PLACES: dict[str, tuple[type, str]] = {
    "fetch": (intake.Consumer, "_fetch_once"),
    "fetcher": (intake.Consumer, "_fetch_once"),
    "thread": (Fetcher, "fetched_records"),
    "step": (pipeline.Pipeline, "micro_batch"),
    "loop": (pipeline.Pipeline, "micro_batch"),
    "emit": (emit.Emitter, "send"),
}


def hang_in(place: str, file: Path) -> None:
    """Have one method of the worker hang once `file` exists."""
    owner, name = PLACES[place]
    original: Callable[..., Awaitable[Any]] = getattr(owner, name)

    async def method(*arguments: Any, **options: Any) -> Any:
        if file.exists():  # noqa: ASYNC240 - a look at the disk, in a test
            if place == "fetcher":
                raise asyncio.CancelledError
            while place in ("loop", "thread"):
                time.sleep(3600)  # noqa: ASYNC251 - this is the fault
            await asyncio.get_running_loop().create_future()
        return await original(*arguments, **options)

    setattr(owner, name, method)


if __name__ == "__main__":
    hang_in(os.environ["HANG"], Path(os.environ["HANG_FILE"]))
    sys.exit(cli.main())
