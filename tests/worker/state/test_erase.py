"""keyfold-state erase: the tombstone's place, the wait, the receipt.

On a real Kafka and Valkey; the worker's part (moving W, dropping the state) is done by hand here,
and by a real worker in test_serving.py.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import Producer
from java_keys import JAVA_MURMUR2
from state_case import StateCase
from tiny_bundle import make_tiny_bundle

from keyfold.export.bundle import Bundle
from keyfold.worker.kafka.log import KafkaLog
from keyfold.worker.state.erase import default_partition, murmur2
from keyfold.worker.state_codec import StateCodec, States
from local.services import KafkaService


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles"), tombstone="reset")


def last_record(case: StateCase, partition: int) -> tuple[int, bytes | None, bytes | None]:
    """Return offset, key and value of a partition's last record."""
    with KafkaLog(case.kafka.address) as log:
        end = log.extent(case.topic, partition).end
        (message,) = log.read(case.topic, partition, end - 1, end)
        key, value = message.key(), message.value()
        assert not isinstance(key, str)
        assert not isinstance(value, str)
        return end - 1, key, value


@contextmanager
def served(case: StateCase, fold: Callable[[], object]) -> Iterator[None]:
    """Do a worker's part beside the command: once the tombstone is there, fold and move W."""

    def serve() -> None:
        with KafkaLog(case.kafka.address) as log:
            while log.extent(case.topic, 0).end < 13:
                pass
        fold()
        case.redis.hset(case.name(), "#W", "14")

    worker = threading.Thread(target=serve)
    worker.start()
    yield
    worker.join()


@pytest.mark.parametrize(("key", "expected"), JAVA_MURMUR2.items())
def test_murmur2_is_the_java_client_s(key: bytes, expected: int) -> None:
    assert murmur2(key) == expected & 0xFFFFFFFF


def test_the_default_partition_is_where_a_producer_puts_the_key(
    kafka: KafkaService, unique_name: Callable[[str], str]
) -> None:
    topic = unique_name("in")
    kafka.create_topic(topic, 7, None)
    found: dict[bytes, int] = {}
    producer = Producer(
        {
            "bootstrap.servers": kafka.address,
            "partitioner": "murmur2_random",
            "on_delivery": lambda _, message: found.update({message.key(): message.partition()}),
        }
    )
    keys = [bytes(range(length)) for length in range(1, 40)]
    for key in keys:
        producer.produce(topic, b"x", key)
    assert producer.flush(20) == 0
    assert found == {key: default_partition(key, 7) for key in keys}


def test_without_a_worker_the_tombstone_is_written_and_the_rest_is_said(
    case: StateCase, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    case.plant(0)
    case.plant(1, watermark=0)
    receipt = tmp_path / "receipt.json"
    flags = ("--timeout", "0.1", "--receipt", str(receipt), "--yes")
    assert case.run("erase", "--key", "key-1", *flags) == 1
    assert capsys.readouterr().out == (
        f"key 'key-1': writes a tombstone (null value) to {case.topic}:0, {case.topic}:1\n"
        "A worker that passes it drops the key's state; the key's next event starts cold.\n"
        "The key's events and predictions in Kafka go by the topics' own retention or compaction; "
        "snapshots taken before still hold the state until they are removed.\n"
        f"tombstone written: {case.topic}:0, offset 12\n"
        f"tombstone written: {case.topic}:1, offset 0\n"
        f"not seen within 0.1 s: {case.topic}:0: expected the watermark at 13, got 10; "
        f"{case.topic}:1: expected the watermark at 1, got none\n"
        "The tombstone stays in the log: a worker that passes it drops the state. Then run\n"
        "this again for a receipt.\n"
    )
    assert not receipt.exists(), "a receipt proves something or is not there"
    assert last_record(case, 0) == (12, b"key-1", None)
    assert last_record(case, 1) == (0, b"key-1", None)


def test_a_key_without_a_state_is_erased_where_its_events_would_be(
    case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    key = b"\xff\x01\x02"
    number = default_partition(key, 2)
    assert case.run("erase", "--key-b64", "/wEC", "--timeout", "0.1", "--yes") == 1
    out = capsys.readouterr().out
    assert f"key /wEC (base64): writes a tombstone (null value) to {case.topic}:{number}\n" in out
    assert (
        "No partition holds a state of it: this is where Java's default partitioner puts it "
        "(murmur2).\n"
    ) in out
    assert f"{case.topic}:{number}: expected the watermark at " in out
    assert last_record(case, number)[1:] == (key, None)


def test_the_receipt_says_when_which_tombstone_was_passed_and_never_the_key(
    case: StateCase, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    case.plant(0, watermark=10, keys=3)
    receipt = tmp_path / "receipt.json"
    with served(case, lambda: case.redis.hdel(case.name(), ":key-1")):
        assert case.run("erase", "--key", "key-1", "--receipt", str(receipt), "--yes") == 0
    digest = hashlib.sha256(b"key-1").hexdigest()
    out = capsys.readouterr().out
    assert out.endswith(f"erased: key with SHA-256 {digest}\nreceipt: {receipt}\n")
    found = json.loads(receipt.read_text())
    assert found.pop("seen_at").endswith("+00:00")
    assert found == {
        "receipt": "keyfold-erasure", "version": 1, "key_sha256": digest, "topic": case.topic,
        "group": case.group, "bundle": case.bundle.id,
        "partitions": [
            {"partition": 0, "tombstone_offset": 12, "watermark": 14, "state": "absent"},
            {"partition": 1, "tombstone_offset": None, "watermark": None, "state": "absent"},
        ],
    }  # fmt: skip
    assert "key-1" not in receipt.read_text()


def test_a_key_that_came_back_since_counts_as_erased_and_the_receipt_says_so(
    case: StateCase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case.plant(0, watermark=10, keys=1)
    newer = case.states(1, first_offset=13)[b"key-0"]
    receipt = tmp_path / "receipt.json"
    with served(case, lambda: case.redis.hset(case.name(), ":key-0", newer)):
        assert case.run("erase", "--key", "key-0", "--receipt", str(receipt), "--yes") == 0
    place, _ = json.loads(receipt.read_text())["partitions"]
    assert place["state"] == "begun anew by events after the tombstone"
    capsys.readouterr()


def mark(case: StateCase, key: bytes, offset: int, steps: int = 0) -> bytes:
    """Return what a tombstone leaves behind a lost range: a state of no steps and no numbers."""
    manifest = case.bundle.manifest
    tensors = {s.input: np.zeros((1, 4), np.float32) for s in manifest.states}
    number, time_ms = np.array([offset], np.int64), np.array([1_700_000_000_000], np.int64)
    states = States(
        np.array([steps], np.uint64), number, time_ms, time_ms, np.zeros(1, np.bool_), tensors
    )
    (packed,) = StateCodec(manifest).pack([key], states)
    return packed


def test_behind_a_lost_range_the_mark_of_the_tombstone_counts_as_erased(
    case: StateCase, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    case.plant(0, watermark=10, keys=1, G="2-4")
    receipt, left = tmp_path / "receipt.json", mark(case, b"key-0", 12)
    with served(case, lambda: case.redis.hset(case.name(), ":key-0", left)):
        assert case.run("erase", "--key", "key-0", "--receipt", str(receipt), "--yes") == 0
    assert "erased: key with SHA-256 " in capsys.readouterr().out
    assert receipt.exists()


@pytest.mark.parametrize(
    ("offset", "steps"),
    [
        (11, 0),  # of an earlier tombstone: this one has changed nothing yet
        (12, 1),  # no tombstone makes a step
    ],
)
def test_no_other_state_passes_for_the_mark_of_the_tombstone(
    case: StateCase, capsys: pytest.CaptureFixture[str], tmp_path: Path, offset: int, steps: int
) -> None:
    case.plant(0, watermark=10, keys=1, G="2-4")
    receipt, left = tmp_path / "receipt.json", mark(case, b"key-0", offset, steps)
    flags = ("--timeout", "1", "--receipt", str(receipt), "--yes")
    with served(case, lambda: case.redis.hset(case.name(), ":key-0", left)):
        assert case.run("erase", "--key", "key-0", *flags) == 1
    assert f"{case.topic}:0: the state is still in Redis" in capsys.readouterr().out
    assert not receipt.exists()


def test_a_damaged_mark_is_no_proof(
    case: StateCase, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    case.plant(0, watermark=10, keys=1, G="2-4")
    left = bytearray(mark(case, b"key-0", 12))
    left[-1] ^= 1  # a tensor's: offset and steps still read well
    with served(case, lambda: case.redis.hset(case.name(), ":key-0", bytes(left))):
        assert case.run("erase", "--key", "key-0", "--timeout", "1", "--yes") == 1
    assert f"{case.topic}:0: the state is still in Redis" in capsys.readouterr().out


def test_a_bundle_without_tombstones_cannot_erase(
    case: StateCase, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plain = make_tiny_bundle(tmp_path)
    flags = ("erase", "--key", "key-1", "--yes")
    assert case.run(*flags, worker__bundle=str(plain.path)) == 2
    assert (
        f"bundle {plain.id}: events.tombstone: expected 'reset', got 'reject': a null value resets "
        "no key under this bundle"
    ) in capsys.readouterr().err
    with KafkaLog(case.kafka.address) as log:
        assert log.extent(case.topic, 0).end == 12, "nothing was written"


def test_a_state_that_stays_though_the_tombstone_was_passed_is_not_called_erased(
    case: StateCase, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    case.plant(0, watermark=10, keys=1)
    receipt = tmp_path / "receipt.json"
    flags = ("--timeout", "1", "--receipt", str(receipt), "--yes")
    with served(case, lambda: None):
        assert case.run("erase", "--key", "key-0", *flags) == 1
    assert f"{case.topic}:0: the state is still in Redis" in capsys.readouterr().out
    assert not receipt.exists()


def test_a_watermark_of_another_log_proves_nothing(
    case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    case.plant(0, watermark=20, keys=1)
    assert case.run("erase", "--key", "key-0", "--yes") == 2
    assert (
        f"{case.topic}:0: expected a watermark up to 12, where the log ends, got 20: it is of "
        "another log; see keyfold-state list"
    ) in capsys.readouterr().err


def test_a_partition_that_is_being_folded_again_may_still_bring_the_key(
    case: StateCase, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """During a rebuild no partition holds the key: the default one alone would prove nothing."""
    key = next(k for i in range(9) if default_partition(k := b"key-%d" % i, 2) == 0)
    case.write(5, partition=1)
    case.plant(0, watermark=10, keys=0)
    case.plant(1, watermark=2, keys=0, F="5")
    receipt = tmp_path / "receipt.json"
    flags = ("erase", "--key", key.decode(), "--receipt", str(receipt), "--yes", "--timeout", "1")
    with served(case, lambda: None):
        assert case.run(*flags) == 1
    assert f"{case.topic}:1: expected the watermark at 5, got 2" in capsys.readouterr().out
    assert not receipt.exists()


def test_a_state_that_appears_where_no_tombstone_was_written_is_named(
    case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    key = next(k for i in range(9) if default_partition(k := b"key-%d" % i, 2) == 0)
    case.plant(0, watermark=10, keys=0)
    case.plant(1, watermark=0, keys=0)
    state = case.states(9)[key]
    flags = ("erase", "--key", key.decode(), "--yes", "--timeout", "1")
    with served(case, lambda: case.redis.hset(case.name(1), b":" + key, state)):
        assert case.run(*flags) == 1
    assert (
        f"{case.topic}:1: holds a state of the key too, but no tombstone was written there"
    ) in capsys.readouterr().out
