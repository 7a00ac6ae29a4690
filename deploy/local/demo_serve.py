"""The middle of the demo: events stream, a worker serves them, is killed, and another one goes on.

Owns when the worker is killed and when all is saved, and the failures on the way (a worker that
ends, a partition that does not get on). Knows the scene and the commands, nothing of models or
scores. Called by demo.py.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from keyfold.worker.kafka_log import KafkaLog
from keyfold.worker.stored import StoredGroup

from local.demo_programs import QUIET, Shown, await_child, failure, keyfold
from local.demo_scene import Scene
from local.demo_story import DemoError, Story
from local.services import Child

PATIENCE_S = 60.0  # without any progress: then something hangs
LOOK_S = 0.1
TAILED = 6  # predictions shown of the second worker


@dataclass(frozen=True, slots=True)
class Stream:
    """What is sent, and how fast."""

    log: Path  # event log
    events: int  # in it
    pace: tuple[str, str]  # flag of keyfold-send and its value
    partitions: int  # of the topics


@dataclass(frozen=True, slots=True)
class Served:
    """What happened."""

    killed_ms: int  # when the first worker was killed, UTC epoch ms
    seen_before: int  # predictions on the topic just before


class _Watch:
    """Counts what arrives on the output topic."""

    def __init__(self, log: KafkaLog, topic: str) -> None:
        self._log = log
        self.predictions = 0
        self._log.follow(topic, [None] * log.partitions(topic))

    def look(self) -> int:
        """Take in what has come; return how many predictions there are."""
        come = self._log.poll(LOOK_S)
        while come:
            self.predictions += len(come)
            come = self._log.poll(0)
        return self.predictions


def serve(scene: Scene, stream: Stream, bundle: Path, story: Story) -> Served:
    """Serve the whole stream with two workers, the first of which is killed half way."""
    scene.write_config(bundle)
    sending = [
        keyfold("send"), str(stream.log), "--brokers", scene.brokers, "--topic", scene.events,
        "--bundle", str(bundle), *stream.pace,
    ]  # fmt: skip
    working = [keyfold("worker"), str(scene.config)]
    with ExitStack() as stack:
        watch = _Watch(stack.enter_context(KafkaLog(scene.brokers)), scene.predictions)
        story.step(
            "Stream the events, and serve them",
            f"{stream.events:,} events of all keys, interleaved in time. The worker is a program "
            "of its own: each key's state in memory, saved to Valkey.",
            working,
        )
        first = _start(stack, working, scene.folder / "worker-1.log")
        story.note(f"$ {Path(sending[0]).name} {stream.log.name} ...", "green")
        sender = _start(stack, sending, scene.folder / "send.log")
        _serve_half(scene, stream.events // 2, (watch, first, sender), story)
        first.kill()
        served = Served(time.time_ns() // 1_000_000, watch.look())
        story.step(
            "Kill the worker: SIGKILL, no chance to say goodbye",
            f"After {served.seen_before:,} predictions, some not saved yet. Events keep coming. A "
            "second worker starts; Kafka gives it the partitions once it misses the first.",
            working,
        )
        tail = [keyfold("tail"), str(scene.config), "-n", str(TAILED)]
        tailing = _start(stack, tail, scene.folder / "tail.log")  # at the end of what is there now
        second = _start(stack, working, scene.folder / "worker-2.log")
        _await_saved(scene, stream, (watch, second, sender), story)
        story.note("The second worker's first predictions (keyfold-tail): the steps go on.")
        tailing.wait(LOOK_S)
        story.quote(tailing.log.read_text(encoding="utf-8").splitlines())
        story.note(f"All {stream.events:,} events are served and saved; the worker is stopped.")
        second.stop()
        if second.exit_code != 0:
            raise failure(second, f"ended with exit status {second.exit_code} after SIGTERM")
    return served


def _start(stack: ExitStack, command: list[str], log: Path) -> Child:
    log.unlink(missing_ok=True)
    child = Child(command, log, QUIET)
    stack.callback(child.kill)
    return child


def _serve_half(
    scene: Scene, half: int, players: tuple[_Watch, Child, Child], story: Story
) -> None:
    """Return once half of the predictions are there."""
    watch, worker, sender = players
    alive = _Patience(worker)

    def reached() -> bool:
        if sender.exit_code not in (None, 0):
            await_child(sender, 0)
        alive.check(watch.look())
        return watch.predictions >= half

    if story.interactive:
        # A person watches: the live view, until half of it has gone by.
        with Shown([keyfold("tail"), str(scene.config)]) as view:
            view.wait(reached)
    with story.bar("predictions", half) as show:
        while not reached():
            show(watch.predictions)


def _await_saved(
    scene: Scene, stream: Stream, players: tuple[_Watch, Child, Child], story: Story
) -> None:
    """Return once every event is sent, and every partition's watermark is at its end."""
    watch, worker, sender = players
    alive = _Patience(worker)
    with (
        closing(StoredGroup(scene.redis, scene.group)) as states,
        story.bar("saved", stream.events) as show,
    ):
        total, saved = None, 0
        while total is None or saved < total:
            if total is None and sender.exit_code is not None:
                await_child(sender, 0)
                total = _sent(scene, stream.partitions)
            saved = _watermarks(states, scene, stream.partitions)
            show(saved)
            # Predictions are progress too: while the sender is slow, or before the first save.
            alive.check(saved + watch.look())


def _sent(scene: Scene, partitions: int) -> int:
    """Return how many records the input topic holds: a sender's retry may have added some."""
    with KafkaLog(scene.brokers) as log:
        return sum(log.extent(scene.events, partition).end for partition in range(partitions))


def _watermarks(states: StoredGroup, scene: Scene, partitions: int) -> int:
    """Return how many records the saved states are the fold of."""
    found = (states.read(scene.events, partition) for partition in range(partitions))
    return sum(stored.number("#W") for stored in found if stored is not None)


class _Patience:
    """Gives up on a worker that has ended, or that does not get on."""

    def __init__(self, worker: Child) -> None:
        self._worker = worker
        self._best = -1
        self._since = time.monotonic()

    def check(self, progress: int) -> None:
        """Raise DemoError, with the end of the worker's log, when there is no hope."""
        now = time.monotonic()
        if progress > self._best:
            self._best, self._since = progress, now
        if self._worker.exit_code is not None:
            raise failure(self._worker, f"ended with exit status {self._worker.exit_code}")
        if now - self._since > PATIENCE_S:
            raise failure(self._worker, f"did not get on for {PATIENCE_S:.0f} s")
