"""keyfold-state snapshot: consistent copies of partitions in files, once or on a schedule.

Owns the files' names, what is kept and the loop; their form is snapshot_file.py's. It changes
nothing in Redis but a copy beside the partition, which goes again. Called by cli.py.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from confluent_kafka import KafkaException
from redis.exceptions import RedisError

from keyfold.worker.config import Config
from keyfold.worker.errors import Crash
from keyfold.worker.kafka.log import KafkaLog
from keyfold.worker.protocol import Topic
from keyfold.worker.state import snapshot_file as snapshots
from keyfold.worker.state.consent import FOUND_PROBLEMS
from keyfold.worker.state.snapshot_file import SUFFIX, Header, SnapshotError
from keyfold.worker.state.store_admin import Admin, Copy
from keyfold.worker.state.survey import group_offsets, topic_identity
from keyfold.worker.store import LAYOUT


def snapshot(config: Config, admin: Admin, arguments: argparse.Namespace) -> int:
    """Write one file a partition into a folder; with --every again and again until SIGTERM."""
    folder: Path = arguments.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Crash(f"{folder}: expected a folder to write to, got: {error.strerror}") from error

    def round_() -> int:
        return take(config, admin, folder, arguments.partition or (), arguments.keep)

    if arguments.every is None:
        return round_()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    repeat(round_, arguments.every, stop)
    return 0


def repeat(round_: Callable[[], int], every_s: float, stop: threading.Event) -> None:
    """Call `round_` at an interval, whatever becomes of it, until `stop` is set."""
    due_s = time.monotonic()
    while not stop.is_set():
        try:
            round_()
        except (Crash, RedisError, KafkaException, OSError) as error:
            print(f"keyfold-state: {error}; trying again in time", file=sys.stderr, flush=True)
        # A round that took longer than the interval leaves out the ones it was in the way of.
        due_s = max(due_s + every_s, time.monotonic())
        stop.wait(due_s - time.monotonic())


def take(
    config: Config, admin: Admin, folder: Path, numbers: Sequence[int], keep: int | None
) -> int:
    """Write a snapshot of each partition; 1 when one that should have a state has none or half."""
    topic, kafka = config.kafka.input, config.connection
    with KafkaLog(kafka) as log:
        count = log.partitions(topic)
    for number in numbers:
        if not 0 <= number < count:
            raise Crash(f"--partition: expected 0 to {count - 1}, got {number}")
    committed = group_offsets(kafka, topic, count, config.kafka.group)
    now = Topic(count, topic_identity(kafka, topic))
    healthy = True
    for number in numbers or range(count):
        with admin.copy(topic, number) as copy:
            problem = _problem(copy)
            if copy is None and committed[number] is None:
                print(f"partition {number}: no state yet, nothing to copy", flush=True)
            elif copy is None or problem:
                healthy = False
                print(f"partition {number}: not copied: {problem}", flush=True)
            else:
                header = _header(admin.group, topic, number, copy, now)
                path, size = _write(folder, header, copy)
                print(
                    f"partition {number}: {header.count} key states up to offset "
                    f"{header.watermark} -> {path} ({size} bytes)",
                    flush=True,
                )
                if keep is not None:
                    remove_old(folder, header, keep)
    return 0 if healthy else FOUND_PROBLEMS


def _problem(copy: Copy | None) -> str:
    """Say why a copy is not worth keeping: restored, a worker would HALT on it."""
    if copy is None:
        return "no state in Redis, yet the group has committed an offset"
    held = copy.held
    if held.meta.get("#V") != LAYOUT:
        return f"expected layout {LAYOUT}, got {held.meta.get('#V')}"
    if held.meta.get("#K") != str(held.counted):
        return f"expected {held.meta.get('#K')} key states, got {held.counted}"
    return ""


def _header(group: str, topic: str, number: int, copy: Copy, now: Topic) -> Header:
    meta = copy.held.meta
    taken = datetime.now(UTC).isoformat(timespec="milliseconds")
    return Header(
        group, topic, number, meta["#M"], meta["#V"], dict(meta), copy.held.states,
        now.partitions, now.identity, taken,
    )  # fmt: skip


def _write(folder: Path, header: Header, copy: Copy) -> tuple[Path, int]:
    path = folder / file_name(header)
    return path, snapshots.write(path, header, copy.entries)


def file_name(header: Header) -> str:
    """Return a name that sorts by time and says what is in the file."""
    moment = datetime.fromisoformat(header.taken)
    stamp = f"{moment:%Y%m%dT%H%M%S}{moment.microsecond // 1000:03d}Z"
    return f"{stamp}-{header.topic}-p{header.partition}-w{header.watermark}{SUFFIX}"


def remove_old(folder: Path, newest: Header, keep: int) -> None:
    """Remove all but the newest `keep` files of a snapshot's group, topic and partition."""
    mine = f"-{newest.topic}-p{newest.partition}-w"
    of_partition = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        if mine not in path.name:
            continue
        try:
            header = snapshots.read_header(path)
        except SnapshotError:
            continue  # not ours to judge
        same = (header.group, header.topic, header.partition)
        if same == (newest.group, newest.topic, newest.partition):
            of_partition.append(path)
    for path in of_partition[:-keep]:
        path.unlink(missing_ok=True)
        print(f"partition {newest.partition}: removed {path.name}", flush=True)
