"""A retrained bundle takes the outputs over on a real Kafka and Valkey, and gives them back.

Records arrive all the while; the command and both workers are killed in the middle. Judged by the
output topic itself (which bundle has predicted which offset) and by keyfold-verify for both groups.
"""

from __future__ import annotations

import copy
import json
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from live_worker import Serving, make_events
from tiny_bundle import make_tiny_bundle

from keyfold.export.bundle import Bundle
from keyfold.worker.handover.ownership import Handovers
from keyfold.worker.handover.store import handover_name
from local.services import Child

ONCE_AND_MORE = ["at-least-once", "exactly-once"]


@pytest.fixture(scope="module")
def retrained(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_tiny_bundle(tmp_path_factory.mktemp("retrained"), seed=7, hidden=6)


@pytest.fixture
def partitions() -> int:
    return 2


class Two:
    """An old group and a new one on the same topics."""

    def __init__(self, old: Serving, retrained: Bundle, outputs: str) -> None:
        self.old, self.new = old, copy.copy(old)
        self.new.group, self.new.bundle = f"{old.group}-new", retrained
        self.outputs, self.sent = outputs, 0
        for name, one in (("old", old), ("new", self.new)):
            (old.folder / f"{name}.toml").write_text(
                f"[kafka]\nbrokers = {json.dumps(old.kafka.address)}\n"
                f"input = {json.dumps(old.input)}\noutput = {json.dumps(old.output)}\n"
                f"group = {json.dumps(one.group)}\n"
                f"[worker]\nbundle = {json.dumps(str(one.bundle.path))}\n"
                f"[redis]\nurl = {json.dumps(old.valkey.url)}\n"
            )

    def start(self, one: Serving) -> Child:
        """Start a worker of a group."""
        settings: dict[str, Any] = {"worker__outputs": self.outputs}
        if one is self.new:
            settings["worker__emit_from"] = "handover"
            one._workers += 100  # its logs have names of their own
        return one.worker(None, **settings)

    def command(self, *flags: str) -> Child:
        """Start keyfold-state handover."""
        folder = self.old.folder
        files = [str(folder / "old.toml"), str(folder / "new.toml")]
        program = [sys.executable, "-m", "keyfold.worker.state.cli", "handover", *files, "--yes"]
        return Child([*program, *flags], folder / f"command-{self.sent}-{len(flags)}.log")

    def hand_over(self, *flags: str) -> None:
        """Run keyfold-state handover to its end."""
        command = self.command(*flags)
        assert command.wait(90) == 0, command.log_tail()

    def record(self, partition: int) -> Handovers:
        """Return a partition's record."""
        name = handover_name(self.old.input, self.old.output, partition)
        value: Any = self.old.redis.get(name)
        return Handovers.parse((value or b"").decode())

    def records(self) -> list[Handovers]:
        return [self.record(number) for number in range(self.old.partitions)]

    def send(self, count: int) -> None:
        """Send some events."""
        self.old.send(make_events(count, 40, seed=self.sent, begin=self.sent))
        self.sent += count

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Send events all the while."""
        stop = threading.Event()

        def send() -> None:
            while not stop.wait(0.05):
                self.send(20)

        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def wait_saved(self, *workers: Child) -> None:
        self.old.wait_saved(workers)
        self.new.wait_saved(workers)

    def check(self) -> None:
        """Compare each prediction's bundle with the record; then have keyfold-verify judge both."""
        by_offset: dict[tuple[int, int], list[str]] = defaultdict(list)
        for message in self.old.records(self.old.output):
            prediction = json.loads(message.value())
            _, partition, offset, _ = prediction["id"].rsplit(":", 3)
            by_offset[int(partition), int(offset)].append(prediction["bundle"])
        assert len(by_offset) == self.sent  # no gap
        bundles = {one.group: one.bundle.id for one in (self.old, self.new)}
        records = self.records()
        for (partition, offset), found in by_offset.items():
            (group,) = (g for g in bundles if records[partition].emits(g, offset))
            assert set(found) == {bundles[group]}, (partition, offset, records[partition])
            if self.outputs == "exactly-once":
                assert len(found) == 1, (partition, offset)
        for one in (self.old, self.new):
            exactly_once = self.outputs == "exactly-once"
            findings = one.verify_clean(self.sent, exactly_once=exactly_once)
            assert findings.others


@pytest.mark.parametrize("outputs", ONCE_AND_MORE)
def test_outputs_change_hands_at_one_offset_though_everybody_is_killed_on_the_way_and_back_again(
    serving: Serving, retrained: Bundle, outputs: str
) -> None:
    two = Two(serving, retrained, outputs)
    two.send(2000)
    old, new = two.start(two.old), two.start(two.new)
    try:
        two.wait_saved(old, new)
        assert two.new.verify().predictions == 2000  # of the old group: the new one is silent
        with two.sending():
            # The new group's worker and the command die while a proposal stands.
            new.kill()
            command = two.command("--timeout", "30")
            serving.wait_until(
                lambda: all(record.proposal is not None for record in two.records()),
                "the proposals", [old],
            )  # fmt: skip
            command.kill()
            new = two.start(two.new)
            two.hand_over()
            assert [record.last for record in two.records()] == [two.new.group] * 2
            # Neither replays across the seam what is the other's.
            old.kill()
            new.kill()
            old, new = two.start(two.old), two.start(two.new)
        two.wait_saved(old, new)
        two.check()
        with two.sending():
            command = two.command("--back", "--timeout", "60")
            serving.wait_until(
                lambda: any(record.proposal is not None for record in two.records()),
                "a proposal", [old, new],
            )  # fmt: skip
            old.kill()  # who is to have the outputs again
            old = two.start(two.old)
            if command.wait(90) != 0:
                two.hand_over("--back")
            assert [record.last for record in two.records()] == [two.old.group] * 2
        two.wait_saved(old, new)
        two.check()
    finally:
        for child in (old, new):
            child.kill()


def test_stopped_old_group_is_named_and_nothing_changes(
    serving: Serving, retrained: Bundle, tmp_path: Path
) -> None:
    two = Two(serving, retrained, "at-least-once")
    two.send(200)
    old, new = two.start(two.old), two.start(two.new)
    try:
        two.wait_saved(old, new)
        old.signal(signal.SIGTERM)
        assert old.wait(30) == 0
        command = two.command("--timeout", "3")
        assert command.wait(60) == 1
        assert "nothing has changed" in command.log_tail()
        assert f"group {two.old.group!r} did not come to offset" in command.log_tail()
        assert all(not r.seams and r.proposal is None for r in two.records())
        old = two.start(two.old)
        two.hand_over()
        two.send(200)
        two.wait_saved(old, new)
        two.check()
    finally:
        for child in (old, new):
            child.kill()
