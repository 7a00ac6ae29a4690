"""keyfold-state against real workers on a real Kafka and Valkey: every way out of a HALT heals.

Judged by keyfold-verify's oracle.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition
from live_worker import Serving, make_events
from tiny_bundle import make_tiny_bundle

from keyfold.export.bundle import Bundle
from local.services import Child, Valkey

Records = list[tuple[bytes | None, bytes | None]]  # keys and values


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles"), tombstone="reset")


@pytest.fixture
def partitions() -> int:
    return 2


def halted(serving: Serving, worker: Child, count: int, why: str) -> None:
    """Wait for so many HALTs and expect their words."""
    serving.wait_until(lambda: worker.log.read_text().count("HALT: ") >= count, "HALTs", [worker])
    assert why in worker.log.read_text()


def some_key(serving: Serving, partition: int) -> bytes:
    """Return a key that a partition holds a state of."""
    return next(f[1:] for f in serving.fields(partition) if f.startswith(b":"))


def snapshots(serving: Serving) -> list[str]:
    """Take a snapshot of each partition; return the files."""
    copies = serving.folder / "copies"
    assert serving.state("snapshot", str(copies)) == 0
    return [str(path) for path in copies.iterdir()]


def snapshots_before(serving: Serving, worker: Child, more: Records) -> list[str]:
    """Take a snapshot of each partition when all is saved, then save more; return the files."""
    serving.wait_saved([worker])
    files = snapshots(serving)
    serving.send(more)
    serving.wait_saved([worker])
    return files


def test_rebuild_after_a_state_vanished_folds_again_without_emitting(serving: Serving) -> None:
    events = make_events(3000, 40)
    serving.send(events)
    serving.serve_all()
    predictions = len(serving.records(serving.output))
    serving.redis.hdel(serving.hash_name(0), b":" + some_key(serving, 0))
    with serving.running() as worker:
        halted(serving, worker, 1, "key states are missing or too many")
        assert serving.state("list") == 1
        assert serving.state("rebuild", "--partition", "0", "--yes") == 0
        serving.send(make_events(500, 40, seed=1, begin=3000))
        serving.wait_saved([worker])
        assert serving.state("list") == 0
    findings = serving.verify_clean(len(events) + 500)
    assert findings.predictions == predictions + 500, "nothing was emitted twice"


def test_snapshots_restored_after_redis_was_emptied_heal_by_replay(serving: Serving) -> None:
    serving.send(make_events(2000, 40))
    with serving.running() as worker:
        files = snapshots_before(serving, worker, make_events(1000, 40, seed=1, begin=2000))
        serving.redis.flushall()
        halted(serving, worker, 2, "keyfold-state restore worker.toml SNAPSHOT")
        assert serving.state("restore", *files, "--yes") == 0
        serving.wait_saved([worker])
        assert serving.state("list") == 0
    serving.verify_clean(3000)


def test_snapshots_restored_into_another_redis_are_served_there(serving: Serving) -> None:
    serving.send(make_events(2000, 40))
    serving.serve_all()
    files = snapshots(serving)
    with Valkey() as other:
        serving.redis.close()
        serving.valkey, serving.redis = other, other.client()
        assert serving.state("restore", *files, "--yes") == 0
        serving.send(make_events(1000, 40, seed=1, begin=2000))
        serving.serve_all(redis__url=other.url)
        findings = serving.verify_clean(3000)
        assert findings.predictions == 3000


def test_rebuild_from_a_snapshot_folds_the_rest_without_emitting(serving: Serving) -> None:
    serving.send(make_events(1000, 40))
    with serving.running() as worker:
        files = snapshots_before(serving, worker, make_events(1000, 40, seed=1, begin=1000))
    for file in files:
        number = "0" if "-p0-" in Path(file).name else "1"
        assert serving.state("rebuild", "--partition", number, "--from", file, "--yes") == 0
    serving.serve_all()
    assert serving.verify_clean(2000).predictions == 2000


def test_an_erased_key_stays_erased_through_a_rollback_and_its_replay(
    serving: Serving, tmp_path: Path
) -> None:
    receipt = tmp_path / "receipt.json"
    serving.send(make_events(1000, 20))
    with serving.running() as worker:
        serving.wait_saved([worker])
        partition = next(p for p in (0, 1) if b":key-3" in serving.fields(p))
        older = serving.redis.dump(serving.hash_name(partition))
        erase = ("erase", "--key", "key-3", "--receipt", str(receipt), "--yes")
        assert serving.state(*erase) == 0
        assert b":key-3" not in serving.fields(partition)
        places = json.loads(receipt.read_text())["partitions"]
        place = next(one for one in places if one["tombstone_offset"] is not None)
        assert (place["partition"], place["state"]) == (partition, "absent")
        assert place["tombstone_offset"] < place["watermark"]
        assert isinstance(older, bytes)
        serving.redis.restore(serving.hash_name(partition), 0, older, replace=True)
        assert b":key-3" in serving.fields(partition), "the rollback brought it back"
        serving.wait_saved([worker])
        assert b":key-3" not in serving.fields(partition)
        assert serving.state("inspect", "--key", "key-3") == 1
    assert serving.verify_clean(1000).resets == 1


def test_rebuild_folds_another_bundle_s_states_anew_and_verifies(
    serving: Serving, tmp_path: Path
) -> None:
    serving.send(make_events(500, 20))
    serving.serve_all()
    serving.bundle = make_tiny_bundle(tmp_path, seed=1, tombstone="reset")
    with serving.running() as worker:
        halted(serving, worker, 2, "keyfold-state rebuild worker.toml --partition")
        assert serving.state("rebuild", "--all", "--yes") == 0
        serving.wait_saved([worker])
        assert len(serving.records(serving.output)) == 500, "the old predictions stand"
        for partition in (0, 1):
            assert serving.redis.hget(serving.hash_name(partition), "#B") == b"0"
        assert serving.state("list") == 0


def test_scheduled_snapshots_survive_a_redis_that_is_away(serving: Serving, tmp_path: Path) -> None:
    serving.send(make_events(200, 20))
    serving.serve_all()
    copies = tmp_path / "copies"
    flags = [
        f"--set=kafka.brokers={serving.kafka.address}", f"--set=kafka.input={serving.input}",
        f"--set=kafka.output={serving.output}", f"--set=kafka.group={serving.group}",
        f"--set=redis.url={serving.valkey.url}", f"--set=worker.bundle={serving.bundle.path}",
        "--set=redis.timeout_s=1",
    ]  # fmt: skip
    loop = ["snapshot", str(copies), "--every", "0.2", "--keep", "2"]
    log = tmp_path / "snapshots.log"
    child = Child([sys.executable, "-m", "keyfold.worker.state.cli", *loop, *flags], log)
    try:
        serving.wait_until(lambda: len(list(copies.glob("*"))) >= 4, "snapshots", [child])
        serving.valkey.kill()
        serving.wait_until(lambda: "trying again in time" in log.read_text(), "an error", [child])
        rounds = log.read_text().count("partition 0: removed")
        serving.valkey.start()
        serving.wait_until(
            lambda: log.read_text().count("partition 0: removed") > rounds, "more", [child]
        )
        child.signal(signal.SIGTERM)
        assert child.wait(20) == 0, child.log_tail()
    finally:
        child.kill()
    for partition in (0, 1):
        assert len(list(copies.glob(f"*-p{partition}-w*.keyfold"))) == 2


# -- exactly-once outputs --------------------------------------------------------------------------

EXACTLY_ONCE = {"worker__outputs": "exactly-once"}
TOLD = "--set=worker.outputs=exactly-once"


@pytest.mark.usefixtures("real_kafka")  # the embedded broker knows no transactions
def test_with_exactly_once_outputs_restore_rebuild_and_reset_repeat_nothing(
    serving: Serving,
) -> None:
    serving.send(make_events(500, 20))
    with serving.running(**EXACTLY_ONCE) as worker:
        files = snapshots_before(serving, worker, make_events(500, 20, seed=1, begin=500))
    serving.redis.flushall()
    for command in (
        ["restore", *files],
        ["rebuild", "--all", "--from", "earliest"],
        ["reset", "--all", "--to", "earliest"],
    ):
        assert serving.state(*command, "--yes", TOLD) == 0
        serving.serve_all(**EXACTLY_ONCE)
        findings = serving.verify_clean(1000, exactly_once=True)
        assert findings.predictions == 1000, command
    assert serving.state("reset", "--all", "--to", "earliest", "--emit-again", "--yes", TOLD) == 0
    serving.serve_all(**EXACTLY_ONCE)
    assert serving.verify_clean(1000).predictions == 2000, "told to"


@pytest.mark.usefixtures("real_kafka")  # the embedded broker knows no transactions
def test_adopt_ends_the_halt_after_exactly_once_outputs_lost_their_position(
    serving: Serving,
) -> None:
    serving.send(make_events(500, 20))
    serving.serve_all(**EXACTLY_ONCE)
    consumer = Consumer({"bootstrap.servers": serving.kafka.address, "group.id": serving.group})
    consumer.commit(
        offsets=[TopicPartition(serving.input, p, 1) for p in (0, 1)], asynchronous=False
    )
    consumer.close()
    serving.send(make_events(100, 20, seed=1, begin=500))
    with serving.running(**EXACTLY_ONCE) as worker:
        halted(serving, worker, 2, "keyfold-state adopt worker.toml --partition")
        assert serving.state("adopt", "--all", "--yes", TOLD) == 0
        serving.wait_saved([worker])
    assert serving.verify_clean(600, exactly_once=True).predictions == 600
