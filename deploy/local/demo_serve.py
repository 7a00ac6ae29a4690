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

from keyfold.worker.kafka.log import KafkaLog
from keyfold.worker.verify.stored import StoredGroup
from local.demo_programs import QUIET, Shown, await_child, failure, keyfold
from local.demo_scene import Scene
from local.demo_story import Story
from local.services import Child

PATIENCE_S = 60.0  # without any progress: then something hangs
LOOK_S = 0.1
FINE_S = 0.005  # between two looks while the rate is measured
FIRST_LOG, SECOND_LOG = "worker-1.log", "worker-2.log"
TAILED = 6  # predictions shown of the second worker


@dataclass(frozen=True, slots=True)
class Stream:
    """What is sent, and how fast."""

    log: Path  # event log
    events: int  # in it
    pace: tuple[str, str]  # flag of keyfold-send and its value


@dataclass(frozen=True, slots=True)
class Served:
    """What cannot be read from the topics afterwards."""

    killed_ms: int  # when the first worker was killed, UTC epoch ms
    waited: int  # events that no worker had saved when the second one took over
    caught_up_s: float  # from then until all of them were served and saved


@dataclass(frozen=True, slots=True)
class _Saved:
    """What Valkey holds at one moment."""

    partitions: int  # that a worker has taken at least once
    events: int  # sum of the watermarks: events in the saved states
    fences: int  # sum of the fence numbers: grows when a worker takes a partition
    at_s: float  # the moment, of the monotonic clock


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
    """Serve the whole stream with two workers; kill the first one half way.

    Every program has ended when this returns, also after an error.
    """
    scene.write_config(bundle)
    with ExitStack() as stack:
        watch = _Watch(stack.enter_context(KafkaLog(scene.brokers)), scene.predictions)
        states = stack.enter_context(closing(StoredGroup(scene.redis, scene.group)))
        act = _Act(scene, stream, story, watch, states, stack)
        first = act.start_worker()
        sender = act.start_sender(bundle)
        act.serve_half(first, sender)
        first.kill()
        killed_ms = time.time_ns() // 1_000_000
        waited, caught_up_s = act.serve_rest(sender)
    return Served(killed_ms, waited, caught_up_s)


@dataclass(frozen=True, slots=True)
class _Act:
    """The scene, what is streamed through it, and who watches."""

    scene: Scene
    stream: Stream
    story: Story
    watch: _Watch  # of the predictions
    states: StoredGroup  # in Valkey
    stack: ExitStack  # ends every program

    def start_worker(self) -> Child:
        """Start the first worker; return once it has taken every partition."""
        command = [keyfold("worker"), str(self.scene.config)]
        self.story.step(
            "Start a worker",
            "A program of its own: each key's hidden state in memory, saved to Valkey. Its log: "
            f"{self.scene.folder / FIRST_LOG}",
            command,
        )
        worker = self._start(command, FIRST_LOG)
        alive = _Patience(worker)
        while (taken := self._saved().partitions) < self.scene.partitions:
            alive.check(taken)
            time.sleep(LOOK_S)
        return worker

    def start_sender(self, bundle: Path) -> Child:
        """Begin to stream the events."""
        log, events = self.stream.log, self.stream.events
        command = [
            keyfold("send"), str(log), "--brokers", self.scene.brokers, "--topic",
            self.scene.events, "--bundle", str(bundle), *self.stream.pace,
        ]  # fmt: skip
        what = f"{events:,} events; those of all keys are interleaved in time."
        self.story.step("Stream the events", what, command)
        return self._start(command, "send.log")

    def serve_half(self, worker: Child, sender: Child) -> None:
        """Return once half of the predictions are there."""
        watch, half = self.watch, self.stream.events // 2
        alive = _Patience(worker)

        def reached() -> bool:
            if sender.exit_code not in (None, 0):
                await_child(sender, 0)
            alive.check(watch.look())
            return watch.predictions >= half

        if self.story.interactive:
            # A person watches: the live view, until half of it has gone by.
            with Shown([keyfold("tail"), str(self.scene.config)]) as view:
                view.wait(reached)
        while not reached():
            pass  # looking waits for what comes

    def serve_rest(self, sender: Child) -> tuple[int, float]:
        """Let a second worker go on; return once it has saved everything and has ended.

        Returns how many events had waited for it, and the seconds it took to save them all.
        """
        scene, story = self.scene, self.story
        command = [keyfold("worker"), str(scene.config)]
        story.step(
            "Kill the worker: SIGKILL, no chance to say goodbye",
            f"After {self.watch.look():,} predictions, some not saved yet. Events keep coming. "
            "A second worker starts; Kafka gives it the partitions once it misses the first.",
            command,
        )
        tail = self._start([keyfold("tail"), str(scene.config), "-n", str(TAILED)], "tail.log")
        worker = self._start(command, SECOND_LOG)
        caught_up = self._await_saved(worker, sender)
        tail.wait(1.0)
        story.note("The second worker's first predictions (keyfold-tail): the steps go on.")
        story.quote(tail.log.read_text(encoding="utf-8").splitlines())
        story.note(f"All {self.stream.events:,} events are served and saved.")
        worker.stop()
        if worker.exit_code != 0:
            raise failure(worker, f"ended with exit status {worker.exit_code} after SIGTERM")
        return caught_up

    def _await_saved(self, worker: Child, sender: Child) -> tuple[int, float]:
        """Return once every event is sent and saved; measure from the take-over to there."""
        alive = _Patience(worker)
        total, taken = None, None
        before = self._saved()
        with self.story.bar("saved", self.stream.events) as show:
            while True:
                saved = self._saved()
                if taken is None and saved.fences > before.fences:
                    taken = saved
                if total is None and sender.exit_code is not None:
                    await_child(sender, 0)
                    total = self._sent()
                if total is not None and saved.events >= total:
                    begin = taken or before
                    return total - begin.events, saved.at_s - begin.at_s
                show(saved.events)
                alive.check(saved.events)
                time.sleep(FINE_S)

    def _saved(self) -> _Saved:
        """Return what the partitions' hashes in Valkey say now."""
        found = [self.states.read(self.scene.events, p) for p in range(self.scene.partitions)]
        there = [stored for stored in found if stored is not None]
        return _Saved(
            len(there),
            sum(stored.number("#W") for stored in there),
            sum(stored.number("#E") for stored in there),
            time.monotonic(),
        )

    def _sent(self) -> int:
        """Return how many records the input topic holds: a sender's retry may have added some."""
        with KafkaLog(self.scene.brokers) as log:
            extents = [log.extent(self.scene.events, p) for p in range(self.scene.partitions)]
        return sum(extent.end for extent in extents)

    def _start(self, command: list[str], log: str) -> Child:
        path = self.scene.folder / log
        path.unlink(missing_ok=True)
        child = Child(command, path, QUIET)
        self.stack.callback(child.kill)
        return child


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
