"""Faults that strike Kafka: brokers and leaders, and the input topic's log itself.

Each is a function of the stage and the planned fault. Those that take records out of the log keep a
copy for the oracle first. Used through faults.py.
"""

from __future__ import annotations

import time

from confluent_kafka import TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    ResourceType,
)

from campaign.archive import Archive
from campaign.kinds import MARKED
from campaign.schedule import Fault
from campaign.stage import Stage

WAIT_S = 20.0
COMPACTED_S = 10.0  # within which the brokers must have compacted something


def broker_kill(stage: Stage, fault: Fault) -> None:
    """SIGKILL a broker and start it again."""
    back = stage.scene.kafka.kill(fault.partition)
    stage.struck(fault)
    stage.later(fault.lasts_s, back)


def leader_move(stage: Stage, fault: Fault) -> None:
    """Let another broker lead a partition of the input and of the output."""
    for topic in (stage.scene.input, stage.scene.output):
        stage.scene.kafka.move_leader(topic, fault.partition % stage.scene.partitions)
    stage.struck(fault, [fault.partition % stage.scene.partitions])


def quiet_weekend(stage: Stage, fault: Fault) -> None:
    """Let retention take everything, which was all served, and start the workers anew."""
    _archive(stage)
    _delete_before(stage, [end for _, end in _extents(stage)])
    stage.struck(fault)
    _kill_all(stage)


def compacted(stage: Stage, fault: Fault) -> None:
    """Let compaction take older records below W of keys that have newer ones."""
    _archive(stage)
    topic = stage.scene.input
    before = sum(len(stage.archive.records(n)) for n in range(stage.scene.partitions))
    _configure(stage, topic, {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.001"})
    stage.struck(fault)
    deadline = time.monotonic() + COMPACTED_S
    while (left := _count_records(stage)) == before and time.monotonic() < deadline:
        time.sleep(0.2)
    stage.notes.append(f"compaction took {before - left} of {before} records")
    # From here on nothing may go: a record that is not served yet would be lost.
    _configure(stage, topic, {"cleanup.policy": "delete"})
    time.sleep(0.5)
    _kill_all(stage)


def bundle_changed(stage: Stage, fault: Fault) -> None:
    """Serve another bundle from now on, with worker.on_bundle_change as the fault's name says."""
    scene, workers = stage.scene, stage.workers
    workers.stay_away()
    stage.notes += workers.stop()
    workers.supervise()
    scene.bundle = scene.foreign_bundle
    workers.change(
        worker__bundle=scene.bundle.path,
        worker__on_bundle_change=fault.kind.removeprefix("bundle-"),
    )
    stage.struck(fault)
    workers.come_back()


def truncated(stage: Stage, fault: Fault) -> None:
    """Let retention overtake the state: records that nobody has served are gone."""
    if fault.kind == MARKED:
        _archive(stage)  # what was served before is still to be judged
    stage.workers.stay_away()
    _kill_all(stage)
    stage.workers.supervise()
    before = stage.scene.kafka.ends(stage.scene.input, stage.scene.partitions)
    stage.sender.paused.clear()
    _wait_for_more(stage, before)
    stage.sender.paused.set()
    time.sleep(0.3)  # the chunk that is being sent
    ends = [end for _, end in _extents(stage)]
    kept = [max(end - 1, was) for end, was in zip(ends, before, strict=True)]
    _delete_before(stage, kept)
    stage.notes.append(f"{sum(kept) - sum(before)} offsets lost")
    stage.struck(fault)
    stage.workers.come_back()
    stage.sender.paused.clear()


def recreated(stage: Stage, fault: Fault) -> None:
    """Delete the input topic and create it anew, with other records at the same offsets."""
    stage.scene.kafka.delete_topic(stage.scene.input)
    stage.scene.create_input()
    stage.struck(fault)


def grown(stage: Stage, fault: Fault) -> None:
    """Give the topics more partitions: keys move between them."""
    scene = stage.scene
    count = scene.partitions + 2
    admin = scene.kafka.admin()  # must outlive the requests
    for topic in (scene.input, scene.output):
        admin.create_partitions([NewPartitions(topic, count)])[topic].result(WAIT_S)
    scene.partitions = count
    stage.struck(fault)


def _extents(stage: Stage) -> list[tuple[int, int]]:
    extents: list[tuple[int, int]] = stage.scene.kafka.extents(
        stage.scene.input, stage.scene.partitions
    )
    return extents


def _archive(stage: Stage) -> None:
    stage.archive.take(stage.scene.kafka.address, stage.scene.input, stage.scene.partitions)


def _delete_before(stage: Stage, offsets: list[int]) -> None:
    wanted = [
        TopicPartition(stage.scene.input, number, offset) for number, offset in enumerate(offsets)
    ]
    admin = stage.scene.kafka.admin()  # must outlive the requests
    for done in admin.delete_records(wanted).values():
        done.result(WAIT_S)


def _kill_all(stage: Stage) -> None:
    for slot in stage.workers.slots:
        if slot.run is not None:
            slot.run.intended = "SIGKILL"
            slot.run.child.kill()


def _wait_for_more(stage: Stage, before: list[int]) -> None:
    """Wait until every partition that gets any has new records, or the traffic is at its end."""
    deadline = time.monotonic() + 4.0
    while time.monotonic() < deadline and stage.sender.is_alive():
        ends = [end for _, end in _extents(stage)]
        pairs = [(end, was) for end, was in zip(ends, before, strict=True) if was]
        if all(end > was + 1 for end, was in pairs):
            return
        time.sleep(0.05)


def _configure(stage: Stage, topic: str, settings: dict[str, str]) -> None:
    changes = [
        ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
        for name, value in settings.items()
    ]
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=changes)
    admin = stage.scene.kafka.admin()  # must outlive the request
    admin.incremental_alter_configs([resource])[resource].result(WAIT_S)


def _count_records(stage: Stage) -> int:
    now = Archive()
    now.take(stage.scene.kafka.address, stage.scene.input, stage.scene.partitions)
    return sum(len(now.records(number)) for number in range(stage.scene.partitions))
