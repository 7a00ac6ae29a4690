"""The peers are what they seem: a wrong prediction shows, locks are whole, the list is honest."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_worker import Serving, make_events
from peers import driver, environments, waves
from peers.catalogue import all_peers
from peers.check import Record, mistakes, offline
from peers.interface import Case, Peer, settings
from peers.step import Settings, Step
from tiny_bundle import make_tiny_bundle

from keyfold.export.bundle import Bundle
from local.services import ApacheKafka, Child, ServiceError, Valkey

TOPIC = "in"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Return a bundle of two features."""
    return make_tiny_bundle(tmp_path)


@pytest.fixture
def events() -> list[Record]:
    """Return 40 events of three keys in one partition."""
    draw = np.random.default_rng(0)
    return [
        Record(1, 7 + i, b"key-%d" % draw.integers(3), json.dumps(_event(draw)).encode())
        for i in range(40)
    ]


def _event(draw: np.random.Generator) -> dict[str, float]:
    a, b = draw.normal(size=2).tolist()
    return {"time": 0, "a": a, "b": b}


def _right(bundle: Bundle, events: list[Record]) -> list[Record]:
    predicted = offline(bundle, events)
    return [
        _record(at, event.key, 1, event.offset, predicted[event.key, 1, event.offset])
        for at, event in enumerate(events)
    ]


def _record(at: int, key: bytes, partition: int, offset: int, value: float) -> Record:
    payload = {"about": f"{TOPIC}:{partition}:{offset}", "output": {"value": value}}
    return Record(0, at, key, json.dumps(payload).encode())


def test_right_predictions_have_no_mistakes(bundle: Bundle, events: list[Record]) -> None:
    assert mistakes(bundle, TOPIC, events, _right(bundle, events)) == []


def test_each_kind_of_mistake_is_told(bundle: Bundle, events: list[Record]) -> None:
    right = _right(bundle, events)
    of_one_key = [record for record in right if record.key == right[0].key]
    stranger = _record(99, b"nobody", 1, 7, 0.0)
    off = _record(0, right[0].key, 1, 7, 9.0)
    moved = Record(5, 0, of_one_key[-1].key, of_one_key[-1].value)
    for predictions, expected in [
        (right[1:], ["1 missing"]),
        ([*right, right[3]], ["1 predicted twice"]),
        ([*right, stranger], ["1 about no event of their key"]),
        ([*of_one_key[1::-1], *of_one_key[2:]], ["1 before an earlier one of their key"]),
        ([*of_one_key[:-1], moved], ["1 in another partition than the key's others"]),
    ]:
        mine = events if len(predictions) > len(of_one_key) else _of(events, right[0].key)
        assert mistakes(bundle, TOPIC, mine, predictions) == expected
    assert mistakes(bundle, TOPIC, events, [off, *right[1:]])[0].startswith("off by up to")


def _of(events: list[Record], key: bytes) -> list[Record]:
    return [event for event in events if event.key == key]


def test_waves_and_single_steps_fold_what_the_offline_model_folds(
    bundle: Bundle, events: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = _step(bundle, tmp_path, monkeypatch)
    expected = offline(bundle, events)
    wanted = [expected[event.key, 1, event.offset] for event in events]
    x = [[json.loads(event.value)[name] for name in "ab"] for event in events]
    slots = np.array([int(event.key[4:]) for event in events])
    states = np.tile(np.frombuffer(step.cold, np.float32), (3, 1))
    monkeypatch.setattr(waves, "CHUNK", 2)  # three keys, so that a wave is more than a chunk
    y = waves.fold(step, np.array(x, np.float32), slots, states)
    np.testing.assert_allclose(y, wanted, atol=1e-5)
    kept = dict.fromkeys(range(3), step.cold)
    for values, slot, value in zip(x, slots.tolist(), wanted, strict=True):
        one, kept[slot] = step.one(values, kept[slot])
        assert one == pytest.approx(value, abs=1e-5)
    np.testing.assert_allclose(
        states, [np.frombuffer(kept[i], np.float32) for i in range(3)], atol=1e-5
    )
    several, after = step.several(
        [v for v, slot in zip(x, slots, strict=True) if slot == 0], step.cold
    )
    assert several == pytest.approx(
        [w for w, slot in zip(wanted, slots, strict=True) if slot == 0], abs=1e-5
    )
    assert np.frombuffer(after, np.float32) == pytest.approx(
        np.frombuffer(kept[0], np.float32), abs=1e-5
    )


def _step(bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Step:
    case = Case("host:1", TOPIC, "redis://host:2/0", bundle, folder, 40)
    for name, value in settings(case, "out", "group", folder).items():
        monkeypatch.setenv(name, value)
    read = Settings.read()
    assert (read.input, read.output, read.features) == (TOPIC, "out", ("a", "b"))
    return Step()


NAIVE = """
import json, sys
from confluent_kafka import Consumer, Producer
from peers.step import Settings, Step
settings, step = Settings.read(), Step()
print("up", flush=True)
servers = {"bootstrap.servers": settings.brokers}
producer = Producer(servers | {"partitioner": "murmur2_random"})
consumer = Consumer(servers | {"group.id": settings.group, "auto.offset.reset": "earliest"})
consumer.subscribe([settings.input])
kept = {}
while True:
    message = consumer.poll(0.1)
    producer.poll(0)
    if message is None:
        continue
    key, event = message.key(), json.loads(message.value())
    x = [event[name] for name in settings.features]
    y, kept[key] = step.one(x, kept.get(key, step.cold))
    about = f"{message.topic()}:{message.partition()}:{message.offset()}"
    value = {"about": about, "output": {settings.output_name: y + FAULT}}
    producer.produce(settings.output, json.dumps(value), key)
"""


@pytest.mark.parametrize("fault", [0.0, 0.5])
def test_a_peer_is_measured_checked_and_ended(
    fault: float, real_kafka: ApacheKafka, valkey: Valkey, bundle: Bundle,
    tmp_path: Path, unique_name: Callable[[str], str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    program = tmp_path / "naive.py"
    program.write_text(NAIVE.replace("FAULT", str(fault)))
    peer = Peer(
        "naive", lambda: tmp_path, lambda _: [sys.executable, str(program)], 150, "",
        (("PYTHONPATH", str(environments.HERE.parent)),),
    )  # fmt: skip
    monkeypatch.setattr(driver, "all_peers", lambda: {"naive": peer})
    children: list[Child] = []

    def remembered(*arguments: Any) -> Child:
        children.append(Child(*arguments))
        return children[-1]

    monkeypatch.setattr(driver, "Child", remembered)
    serving = Serving(tmp_path, real_kafka, valkey, bundle, unique_name, 4)
    serving.send(make_events(200, 20))
    case = Case(real_kafka.address, serving.input, valkey.url, bundle, tmp_path, 200)
    assert driver.events_for("naive", case) == 150
    assert driver.measure("naive", case) > 0
    wrong = driver.verify("naive", case)
    assert wrong == [] if fault == 0 else wrong[0].startswith("off by up to 0.5")
    assert [child.exit_code for child in children] == [-9, -9]
    topics = real_kafka.admin().list_topics(timeout=10).topics
    assert not [name for name in topics if name.startswith(f"{serving.input}-naive")]


def test_a_peer_that_ends_is_told_with_its_last_words(
    real_kafka: ApacheKafka, valkey: Valkey, bundle: Bundle,
    tmp_path: Path, unique_name: Callable[[str], str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    command = [sys.executable, "-c", "import sys; sys.exit('no such model')"]
    peer = Peer("broken", lambda: tmp_path, lambda _: command, 150, "")
    monkeypatch.setattr(driver, "all_peers", lambda: {"broken": peer})
    serving = Serving(tmp_path, real_kafka, valkey, bundle, unique_name, 1)
    case = Case(real_kafka.address, serving.input, valkey.url, bundle, tmp_path, 200)
    with pytest.raises(ServiceError, match=r"ended with 1 after 0 of 150(.|\n)*no such"):
        driver.measure("broken", case)


def test_outputs_are_counted_though_the_topic_was_not_there_when_counting_began(
    real_kafka: ApacheKafka, valkey: Valkey, bundle: Bundle,
    tmp_path: Path, unique_name: Callable[[str], str],
) -> None:  # fmt: skip
    serving = Serving(tmp_path, real_kafka, valkey, bundle, unique_name, 3)
    late = unique_name("late")
    counter = driver.Counter(real_kafka.address, late, 3)
    assert counter.records() == 0
    real_kafka.create_topic(late, 3, None)
    serving.send_to(late, make_events(20, 5))
    serving.wait_until(lambda: counter.records() == 20, "20 records to be counted")


def test_every_python_peer_has_a_lock_with_exact_versions() -> None:
    locks = sorted(environments.HERE.glob("*/requirements.txt"))
    assert {path.parent.name for path in locks} <= set(all_peers())
    assert len(locks) == 6
    for path in locks:
        for line in path.read_text().splitlines():
            assert re.fullmatch(r"[a-z0-9._-]+==[\w.]+( ; .+)?", line), f"{path}: {line}"
