"""A worker that stops says so, and aiokafka's lines about the stop are kept quiet."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from keyfold.worker.liveness.last_words import LastWords

AIOKAFKA = logging.getLogger("aiokafka")


@pytest.fixture(autouse=True)
def level_as_before() -> Iterator[None]:
    before = AIOKAFKA.level
    yield
    AIOKAFKA.setLevel(before)


def stopped(
    caplog: pytest.LogCaptureFixture, failure: Exception | None, *cursors: tuple[int, int]
) -> list[str]:
    """Return what is logged when a worker with partitions at (saved, applied) stops."""
    owners = [
        SimpleNamespace(partition=SimpleNamespace(saved=saved, applied=applied))
        for saved, applied in cursors
    ]

    async def stop() -> None:
        AIOKAFKA.error("Unable to update metadata from [1]")
        app.owners = list  # a drained consumer has none

    app: Any = SimpleNamespace(failure=failure, owners=lambda: list(owners))
    worker: Any = SimpleNamespace(stop=stop)
    words = LastWords(worker, app, 60.0)
    with caplog.at_level(logging.INFO):
        asyncio.run(worker.stop())
        asyncio.run(worker.stop())  # Faust may call it again
        words.say()
    return caplog.messages


def test_a_drained_stop_is_one_line_without_aiokafkas(caplog: pytest.LogCaptureFixture) -> None:
    assert stopped(caplog, None, (5, 5), (0, 0)) == [
        "stopped, drained: all that was taken of 2 partitions is saved"
    ]


def test_a_stop_that_was_not_drained_in_time_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert stopped(caplog, None, (5, 5), (3, 9)) == [
        "stopped, not drained: 1 of 2 partitions; the next worker replays what was not saved"
    ]


def test_after_a_crash_nothing_is_kept_quiet(caplog: pytest.LogCaptureFixture) -> None:
    assert "Unable to update metadata from [1]" in stopped(caplog, RuntimeError("no Kafka"))


@pytest.mark.parametrize(("applied", "said"), [
    (5, "stopped, drained: all that was taken of 1 partitions is saved"),
    (9, "stopped, not drained: 1 of 1 partitions; the next worker replays what was not saved"),
])  # fmt: skip
def test_a_stop_that_hangs_is_cut_at_its_limit_and_says_so_once(
    caplog: pytest.LogCaptureFixture, applied: int, said: str
) -> None:
    owner = SimpleNamespace(partition=SimpleNamespace(saved=5, applied=applied))
    left: list[int] = []
    cut = threading.Event()

    async def hang() -> None:
        assert cut.wait(20)  # which blocks the event loop, too

    def leave(status: int) -> None:
        left.append(status)
        cut.set()

    app: Any = SimpleNamespace(failure=None, owners=lambda: [owner])
    worker: Any = SimpleNamespace(stop=hang)
    words = LastWords(worker, app, 0.05, leave)
    with caplog.at_level(logging.INFO):
        asyncio.run(worker.stop())
        words.say()
    assert left == [0]
    assert caplog.messages == [f"{said}; Kafka or Redis did not answer within 0.05 s"]


def test_a_crash_within_a_stop_is_not_called_a_stop() -> None:
    begun, cut = threading.Event(), threading.Event()

    async def crash() -> None:
        app.failure = RuntimeError("lost")
        begun.set()

    app: Any = SimpleNamespace(failure=None, owners=list)
    worker: Any = SimpleNamespace(stop=crash)
    words = LastWords(worker, app, 0.05, lambda _: cut.set())
    asyncio.run(worker.stop())
    assert words._late is not None
    words._late.join(20)
    assert begun.is_set()
    assert not cut.is_set()
