"""keyfold-worker repartition: each record once, under its field, where Java would put it."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import pytest
from confluent_kafka import (
    OFFSET_END,
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    ResourceType,
)
from first_run import FirstRun
from live_worker import Serving

from keyfold.worker.check.key_placement import java_partition
from keyfold.worker.config import Config, read_config
from keyfold.worker.emit import DEFAULT_MESSAGE_BYTES
from keyfold.worker.key_field import KeyReader
from keyfold.worker.repartition import begin as begin_module
from keyfold.worker.repartition import cli as repartition
from keyfold.worker.repartition.begin import Begin, Place
from keyfold.worker.repartition.merge import Merge
from keyfold.worker.repartition.session import Session
from keyfold.worker.repartition.work import Again, Work
from local.services import Child

RAW_PARTITIONS = 3


@pytest.fixture
def first(serving: Serving, capsys: pytest.CaptureFixture[str]) -> FirstRun:
    """Return the commands; the tests fill a topic of their own."""
    if not serving.kafka.real:
        pytest.skip("needs transactions")
    return FirstRun(serving, capsys)


@pytest.fixture
def raw(first: FirstRun) -> str:
    """Return an empty topic that is keyed by something else."""
    name = f"{first.serving.input}-raw"
    first.serving.kafka.create_topic(name, RAW_PARTITIONS, None)
    return name


def fill(first: FirstRun, raw: str, count: int, seed: int = 0) -> None:
    """Write records of 20 machines, spread over the partitions, some of them without the field."""
    rng = random.Random(seed)
    begin = int(time.time() * 1000) - count  # older ones would be gone by retention
    producer = Producer({"bootstrap.servers": first.serving.kafka.address})
    for number in range(count):
        event: dict[str, Any] = {"time": 1_700_000_000_000 + number, "a": number, "b": 1, "n": seed}
        if rng.random() > 0.02:
            event["key"] = rng.choice([f"pump-{rng.randrange(20)}", rng.randrange(5)])
        value = json.dumps(event).encode() if rng.random() > 0.01 else b"no JSON"
        producer.produce(
            raw, value, f"site-{number % 2}".encode(), rng.randrange(RAW_PARTITIONS),
            timestamp=begin + number, headers=[("n", str(number).encode())],
        )  # fmt: skip
        producer.poll(0)
    assert producer.flush(30) == 0


def start(first: FirstRun, raw: str, *words: str) -> Child:
    """Start a repartition."""
    command = [sys.executable, "-m", "keyfold.worker.cli", "repartition", str(first.file),
               "--from", raw, *words]  # fmt: skip
    folder = first.serving.folder
    return Child(command, folder / f"repartition-{len(list(folder.iterdir()))}.log")


def finish(first: FirstRun, raw: str, *words: str) -> str:
    """Run one to the topic's end; return its log."""
    child = start(first, raw, "--once", *words)
    assert child.wait(90) == 0, child.log_tail()
    return child.log.read_text()


def compare(first: FirstRun, raw: str) -> int:
    """Compare the topics record by record; return how many records were moved."""
    serving = first.serving
    came, letters = serving.records(serving.input), serving.records(serving.dead_letter)
    origin = {_identity(m): m for m in serving.records(raw)}
    keyed = {i: m for i, m in origin.items() if _key(m) is not None}
    assert sorted(map(_identity, came)) == sorted(keyed)
    for message in came:
        source = keyed[_identity(message)]
        assert message.key() == _key(source)
        assert message.partition() == java_partition(message.key(), serving.partitions)
        assert (message.value(), message.timestamp()) == (source.value(), source.timestamp())
    _in_order(came, keyed)
    told = [(h["keyfold-topic"], int(h["keyfold-partition"]), int(h["keyfold-offset"]))
            for h in (dict(m.headers()) for m in letters)]  # fmt: skip
    places = [(m.topic().encode(), m.partition(), m.offset())
              for i, m in origin.items() if i not in keyed]  # fmt: skip
    assert sorted(told) == sorted(places)
    by_place = {(m.partition(), m.offset()): m for m in origin.values()}
    for message, (_, partition, offset) in zip(letters, told, strict=True):
        source = by_place[partition, offset]
        assert (message.key(), message.value()) == (source.key(), source.value())
    return len(came)


def _identity(message: Any) -> int:
    return int(dict(message.headers())["n"])


def _key(message: Any) -> bytes | None:
    try:
        key = json.loads(message.value()).get("key")
    except ValueError:
        return None
    return None if key is None else str(key).encode()


def _in_order(came: list[Any], keyed: dict[int, Any]) -> None:
    """A key's records of one partition come in the order they had there."""
    last: dict[tuple[bytes, int], int] = {}
    for message in came:
        source = keyed[_identity(message)]
        place = (message.key(), source.partition())
        assert last.get(place, -1) < source.offset()
        last[place] = source.offset()


def test_each_record_goes_where_its_key_belongs(first: FirstRun, raw: str) -> None:
    fill(first, raw, 2000)
    log = finish(first, raw)
    moved = compare(first, raw)
    assert 1900 < moved < 2000
    assert f"{moved:,} records of {raw} went to {first.serving.input}" in log
    # In the order of the timestamps though the keys lay in three partitions.
    by_key: dict[bytes, list[int]] = {}
    for message in first.serving.records(first.serving.input):
        by_key.setdefault(message.key(), []).append(message.timestamp()[1])
    assert all(times == sorted(times) for times in by_key.values())


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the program runs after it."""


class Mortal(Session):
    """A session that dies in its third transaction, before or after one of its steps."""

    step, after = "", False
    times = 0

    def _ask(self, what: str, call: Callable[..., Any], *arguments: Any) -> None:
        self.times += what == self.step
        if self.times == 3 and not self.after and what == self.step:
            raise Killed
        super()._ask(what, call, *arguments)
        if self.times == 3 and what == self.step:
            raise Killed


class Untold:
    """Nobody wants it to stop."""

    asked = False


class Impatient:
    """Wants it to stop after a while."""

    def __init__(self) -> None:
        self._until = time.monotonic() + 20

    @property
    def asked(self) -> bool:
        return time.monotonic() > self._until


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", ["begin", "positions", "end"])
def test_dead_at_any_step_of_a_transaction_it_loses_and_doubles_nothing(
    first: FirstRun, raw: str, step: str, after: bool
) -> None:
    fill(first, raw, 5000)
    config = read_config(first.file, (), {})
    made = repartition.work_of(config, first.serving.bundle, raw, "key", "0")
    mortal = Mortal(config, made)
    mortal.step, mortal.after = step, after
    with pytest.raises(Killed), mortal:
        mortal.run(Untold(), once=True)
    assert 0 < made.done < 5000
    finish(first, raw)
    compare(first, raw)


def test_killed_again_and_again_it_loses_and_doubles_nothing(first: FirstRun, raw: str) -> None:
    rng = random.Random(7)
    fill(first, raw, 30_000)
    for _ in range(2):
        child = start(first, raw, "--set", "kafka.session_timeout_s=6")
        before = len(first.serving.records(first.serving.input))
        beyond = before + rng.randrange(500, 4000)
        first.serving.wait_until(
            lambda beyond=beyond: sum(first.serving.ends().values()) > beyond,  # type: ignore[misc]
            "records to be moved", [child],
        )  # fmt: skip
        child.kill()
    finish(first, raw, "--set", "kafka.session_timeout_s=6")
    compare(first, raw)


def test_two_instances_share_the_partitions_and_survive_each_other(
    first: FirstRun, raw: str
) -> None:
    fill(first, raw, 20_000)
    short = ("--set", "kafka.session_timeout_s=6")
    one = start(first, raw, "--instance", "a", *short)
    first.serving.wait_until(
        lambda: sum(first.serving.ends().values()) > 500, "records to be moved", [one]
    )
    two = start(first, raw, "--instance", "b", *short)
    first.serving.wait_until(
        lambda: sum(first.serving.ends().values()) > 6000, "records to be moved", [one, two]
    )
    one.kill()
    finish(first, raw, "--instance", "c", *short)
    two.stop()
    assert two.exit_code == 0, two.log_tail()
    finish(first, raw, "--instance", "a", *short)
    compare(first, raw)


def test_done_is_not_said_while_another_instance_holds_what_was_not_moved(
    first: FirstRun, raw: str
) -> None:
    fill(first, raw, 300)
    first.settings["kafka"]["session_timeout_s"] = 6.0
    first.write()
    group, given = f"{first.serving.group}-repartition", list[TopicPartition]()
    # Else whichever of the two gets partition 0 would have to make them.
    stand(first, raw, dict.fromkeys(range(RAW_PARTITIONS), 0))
    address = first.serving.kafka.address
    holder = Consumer(
        {"bootstrap.servers": address, "group.id": group, "enable.auto.commit": False}
    )
    holder.subscribe([raw], on_assign=lambda _, where: given.extend(where))
    child = start(first, raw, "--once")
    deadline = time.monotonic() + 90
    while child.exit_code is None and time.monotonic() < deadline:
        holder.poll(0.1)
    assert child.wait(1) == 2, child.log_tail()
    assert "another instance's and hold records that are not moved yet" in child.log_tail()
    holder.close()
    finish(first, raw)
    assert compare(first, raw)


def test_what_stands_behind_the_last_record_in_another_s_partitions_is_no_record(
    first: FirstRun, raw: str
) -> None:
    # Whoever writes in transactions leaves their marks, which no position passes.
    address = first.serving.kafka.address
    producer = Producer({"bootstrap.servers": address, "transactional.id": raw})
    producer.init_transactions(30)
    producer.begin_transaction()
    for number in range(30):
        value = json.dumps({"key": "k", "time": number, "a": 1, "b": 1})
        headers: list[tuple[str, str | bytes | None]] = [("n", str(number).encode())]
        producer.produce(raw, value, b"site", number % RAW_PARTITIONS, headers=headers)
    producer.commit_transaction(30)
    short = ("--set", "kafka.session_timeout_s=6")
    other = start(first, raw, "--instance", "a", *short)
    first.serving.wait_until(
        lambda: len(first.serving.records(first.serving.input)) == 30, "records moved", [other]
    )
    finish(first, raw, "--instance", "b", *short)
    assert other.exit_code is None, other.log_tail()
    other.stop()
    assert compare(first, raw) == 30


def test_second_of_the_same_name_ends_the_first_in_one_line(first: FirstRun, raw: str) -> None:
    fill(first, raw, 10)
    one = start(first, raw)
    first.serving.wait_until(
        lambda: len(first.serving.records(first.serving.input)) > 5, "records", [one]
    )
    two = start(first, raw)
    first.serving.wait_until(lambda: "positions in group" in two.log.read_text(), "two", [two])
    # The fence shows in the first one's next transaction, whichever of the two gets the records.
    for seed in range(1, 200):
        fill(first, raw, 30, seed)
        if one.wait(0.3) is not None:
            break
    assert one.exit_code == 2, one.log_tail()
    assert "give each of several its own --instance" in one.log_tail()
    two.stop()


def test_stop_ends_behind_a_transaction_and_the_next_one_goes_on(first: FirstRun, raw: str) -> None:
    fill(first, raw, 3000)
    child = start(first, raw)
    first.serving.wait_until(
        lambda: sum(first.serving.ends().values()) > 100, "records to be moved", [child]
    )
    child.stop()
    assert child.exit_code == 0, child.log_tail()
    fill(first, raw, 0)
    finish(first, raw)
    compare(first, raw)


def forget(first: FirstRun) -> None:
    """Do what Kafka does to the offsets of a group that has not run for 7 days."""
    group = f"{first.serving.group}-repartition"
    admin = AdminClient({"bootstrap.servers": first.serving.kafka.address})
    admin.delete_consumer_groups([group])[group].result(30)


def lose(first: FirstRun, raw: str) -> None:
    """Do what retention does to old records."""
    admin = AdminClient({"bootstrap.servers": first.serving.kafka.address})
    everything = [TopicPartition(raw, number, OFFSET_END) for number in range(RAW_PARTITIONS)]
    for one in admin.delete_records(everything).values():
        one.result(30)


def refused(first: FirstRun, raw: str) -> str:
    """Expect it to end at once, and return the one line that says why."""
    child = start(first, raw, "--once")
    assert child.wait(60) == 2, child.log_tail()
    return child.log.read_text().splitlines()[-1]


def test_positions_that_kafka_forgot_move_nothing_twice(first: FirstRun, raw: str) -> None:
    fill(first, raw, 200)
    finish(first, raw)
    forget(first)
    line = refused(first, raw)
    assert f"group {first.serving.group}-repartition has no positions in {raw}" in line
    assert f"{first.serving.input} holds records" in line
    assert "give --from-start" in line
    compare(first, raw)
    # From its end: what is there was moved, and nothing that comes afterwards is left out, though
    # nobody repeats the flag.
    finish(first, raw, "--from-end")
    fill(first, raw, 50, seed=1)
    before = len(first.serving.records(first.serving.input))
    finish(first, raw)
    assert 40 <= len(first.serving.records(first.serving.input)) - before <= 50


def test_from_start_begins_anew_where_there_is_no_position(first: FirstRun, raw: str) -> None:
    fill(first, raw, 200)
    finish(first, raw)
    once = len(first.serving.records(first.serving.input))
    finish(first, raw, "--from-start")
    assert len(first.serving.records(first.serving.input)) == once
    forget(first)
    finish(first, raw, "--from-start")
    assert len(first.serving.records(first.serving.input)) == 2 * once


def stand(first: FirstRun, raw: str, positions: dict[int, int]) -> None:
    """Give the group these positions and no others."""
    group = f"{first.serving.group}-repartition"
    admin = AdminClient({"bootstrap.servers": first.serving.kafka.address})
    where = [TopicPartition(raw, number, offset) for number, offset in positions.items()]
    asked = admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, where)])
    asked[group].result(30)


@pytest.mark.parametrize("lost", [0, 1])
def test_partitions_without_a_position_beside_some_with_one_move_nothing_twice(
    first: FirstRun, raw: str, lost: int
) -> None:
    fill(first, raw, 200)
    finish(first, raw)
    forget(first)
    ends = {}
    for message in first.serving.records(raw):
        ends[message.partition()] = message.offset() + 1
    there = ends.pop(lost)
    stand(first, raw, ends)
    line = refused(first, raw)
    assert f"{first.serving.group}-repartition has no positions in partitions {lost} of {raw}" in (
        line
    )
    assert f"(lost, or the topic has grown), but {first.serving.input} holds records" in line
    assert "give --from-start" in line
    compare(first, raw)
    finish(first, raw, "--from-start")
    came = [*first.serving.records(first.serving.input),
            *first.serving.records(first.serving.dead_letter)]  # fmt: skip
    assert len(came) == 200 + there


def test_a_new_partition_without_records_begins_as_it_is(first: FirstRun, raw: str) -> None:
    fill(first, raw, 200)
    finish(first, raw)
    admin = AdminClient({"bootstrap.servers": first.serving.kafka.address})
    admin.create_partitions([NewPartitions(raw, RAW_PARTITIONS + 1)])[raw].result(30)
    finish(first, raw)
    compare(first, raw)


def known_work(first: FirstRun, raw: str) -> tuple[Config, Work]:
    """Write some records and make the group known, without positions; return settings and work."""
    fill(first, raw, 30)
    know_group(first, raw)
    config = read_config(first.file, (), {})
    return config, repartition.work_of(config, first.serving.bundle, raw, "key", "0")


@contextmanager
def beginning(first: FirstRun, raw: str) -> Iterator[tuple[Begin, Work]]:
    """Stand where an instance looks for its first positions."""
    config, made = known_work(first, raw)
    address = first.serving.kafka.address
    with closing(Consumer({"bootstrap.servers": address, "group.id": made.group})) as consumer:
        yield Begin(config, made, consumer, 10.0), made


def test_who_has_not_partition_0_waits_for_the_first_positions(first: FirstRun, raw: str) -> None:
    with beginning(first, raw) as (begin, _):
        # Who has it makes those of all, so that some without one are never just another's.
        assert [(p.partition, p.known) for p in begin.places([0])] == [
            (0, False), (1, False), (2, False),
        ]  # fmt: skip
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(begin.places, [1, 2])
            stand(first, raw, {0: 0, 1: 1, 2: 2})
            assert asked.result() == [Place(1, 1, known=True), Place(2, 2, known=True)]


def test_only_who_has_partition_0_makes_first_positions(
    first: FirstRun, raw: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who makes them late would set back what another has moved meanwhile."""
    monkeypatch.setattr(begin_module, "AWAIT_S", 0.3)
    with beginning(first, raw) as (begin, made):
        for flag in ("", "start", "end"):
            made.begin = flag
            with pytest.raises(Again) as told:
                begin.places([1, 2])
            assert str(told.value) == (
                f"group {made.group} has no positions in partitions 1, 2 of {raw}: whoever has "
                "partition 0 makes them (is there another instance, and does it go on?)"
            )
        made.begin = ""
        stand(first, raw, {0: 0, 2: 2})
        with pytest.raises(Again, match="in partitions 1 of"):
            begin.places([1, 2])
        # A position that retention has overtaken is its holder's own to make anew.
        made.begin = "start"
        stand(first, raw, {0: 0, 1: 99, 2: 2})
        assert begin.places([1, 2]) == [Place(1, 0, known=False, was=99), Place(2, 2, known=True)]


def test_first_positions_never_replace_what_was_set_meanwhile(first: FirstRun, raw: str) -> None:
    config, made = known_work(first, raw)
    address = first.serving.kafka.address
    session = Session(config, made)
    with closing(session._consumer):
        session._producer.init_transactions(30)
        places = session._begin.places([0])
        assert [place.known for place in places] == [False] * RAW_PARTITIONS
        stand(first, raw, {1: 5})  # whoever has partition 1 was faster, and has moved 5 records
        session._settle(places, [0])
        assert positions(address, made.group, raw) == {0: 0, 1: 5, 2: 0}
        forget(first)
        stand(first, raw, {0: 3})
        with pytest.raises(Again, match=f"{raw}:0: its position has changed meanwhile"):
            session._settle(places, [0])
    assert positions(address, made.group, raw) == {0: 3}


def test_an_instance_without_partition_0_begins_when_the_other_has_made_its_position(
    first: FirstRun, raw: str
) -> None:
    """Two begin at once: whoever gets partition 0 makes all first positions, late or not."""
    fill(first, raw, 2000)
    both = [start(first, raw, "--instance", name) for name in "ab"]
    serving = first.serving
    serving.wait_until(
        lambda: len(serving.records(serving.input)) + len(serving.records(serving.dead_letter))
        >= 2000,
        "records moved", both,
    )  # fmt: skip
    for child in both:
        child.stop()
        assert child.exit_code == 0, child.log_tail()
    compare(first, raw)


def know_group(first: FirstRun, raw: str) -> None:
    """Wait until a broker that has just begun looks after the group, which has no positions."""

    def answers() -> bool:
        try:
            return positions(address, group, raw) == {}
        except KafkaException:
            return False

    address, group = first.serving.kafka.address, f"{first.serving.group}-repartition"
    first.serving.wait_until(answers, "the group", [])


def positions(address: str, group: str, raw: str) -> dict[int, int]:
    """Return the group's positions."""
    with closing(Consumer({"bootstrap.servers": address, "group.id": group})) as consumer:
        asked = [TopicPartition(raw, number) for number in range(RAW_PARTITIONS)]
        found = consumer.committed(asked, 20)
    return {one.partition: one.offset for one in found if one.offset >= 0}


def test_records_lost_to_retention_are_told_before_anything_goes_on(
    first: FirstRun, raw: str
) -> None:
    fill(first, raw, 200)
    finish(first, raw)
    fill(first, raw, 200, seed=1)
    lose(first, raw)
    fill(first, raw, 50, seed=2)
    before = len(first.serving.records(first.serving.input))
    line = refused(first, raw)
    assert f"{raw}:" in line
    assert "were deleted (retention) before they were moved: give --from-start" in line
    assert len(first.serving.records(first.serving.input)) == before
    finish(first, raw, "--from-start")
    assert 40 <= len(first.serving.records(first.serving.input)) - before <= 50


def test_retention_that_overtakes_a_running_one_is_told(first: FirstRun, raw: str) -> None:
    config = read_config(first.file, (), {})
    made = repartition.work_of(config, first.serving.bundle, raw, "key", "0")
    fill(first, raw, 20)
    with Session(config, made) as session:
        session.run(Untold(), once=True)
        session._consumer.pause([TopicPartition(raw, number) for number in range(RAW_PARTITIONS)])
        fill(first, raw, 200, seed=1)
        lose(first, raw)
        fill(first, raw, 20, seed=2)
        session._consumer.resume([TopicPartition(raw, number) for number in range(RAW_PARTITIONS)])
        with pytest.raises(Again, match=raw):
            session.run(Impatient(), once=False)
    assert "were deleted (retention)" in refused(first, raw)


def test_dead_in_its_first_transaction_it_begins_without_a_flag(first: FirstRun, raw: str) -> None:
    # Offsets of the target are taken then, by records that no reader of committed ones sees.
    fill(first, raw, 200)
    config = read_config(first.file, (), {})
    made = repartition.work_of(config, first.serving.bundle, raw, "key", "0")
    session = Session(config, made)
    session._settle = lambda places, ours: None  # type: ignore[method-assign]
    session._positions = lambda behind: end(session)  # type: ignore[method-assign]
    with pytest.raises(Killed), session:
        session.run(Untold(), once=True)
    finish(first, raw)
    compare(first, raw)


def end(session: Session) -> None:
    """Die when all records of a transaction have come to the brokers."""
    session._producer.flush(30)
    raise Killed


def set_limit(first: FirstRun, topic: str, limit: int) -> None:
    """Set a topic's max.message.bytes."""
    admin = AdminClient({"bootstrap.servers": first.serving.kafka.address})
    entry = ConfigEntry(
        "max.message.bytes", str(limit), incremental_operation=AlterConfigOpType.SET
    )
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin.incremental_alter_configs([resource])[resource].result(30)


@pytest.mark.parametrize("least", ["input", "dead_letter"])
def test_no_request_is_larger_than_the_least_topic_takes(
    first: FirstRun, raw: str, least: str
) -> None:
    topic = getattr(first.serving, least)
    set_limit(first, topic, 20_000)
    fill(first, raw, 2000)
    producer = Producer({"bootstrap.servers": first.serving.kafka.address})
    for number, name in ((5000, "key"), (5001, "other")):
        value = json.dumps({name: "m", "x": "y" * 100_000})
        headers: list[tuple[str, str | bytes | None]] = [("n", str(number).encode())]
        producer.produce(raw, value, b"site", 0, timestamp=int(time.time() * 1000), headers=headers)
    assert producer.flush(30) == 0
    finish(first, raw)
    serving = first.serving
    came, letters = serving.records(serving.input), serving.records(serving.dead_letter)
    assert len(came) + len(letters) == 2002
    # Whole where the topic takes it, cut where it does not.
    sizes = [len(m.value()) for m in (*came, *letters) if len(m.value()) > 15_000]
    assert [size > 100_000 for size in sizes] == (
        [True, True] if least == "input" else [True, False]
    )


def test_what_was_repartitioned_is_served_and_verified(first: FirstRun, raw: str) -> None:
    fill(first, raw, 600)
    finish(first, raw)
    moved = compare(first, raw)
    _, report = first.check()
    assert report.of("FAIL") == []
    assert "the record key is the field 'key' in all" in report.of("ok", "keys")[-1]
    with first.serving.running() as worker:
        first.serving.wait_saved([worker])
    # The rejects of the repartition lie in the same topic, and are not taken for the worker's.
    first.serving.verify_clean(moved)


REFUSED = {
    "no such topic": (["--from", "nope"], "topic 'nope': expected it at"),
    "own topic": (["--from", "{input}"], "--from: expected another topic than the worker's own"),
    "no settings": (["--set", "kafka.brokers=", "--from", "x"], "kafka.brokers: expected a name"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(first: FirstRun, case: str) -> None:
    words, expected = REFUSED[case]
    words = [word.format(input=first.serving.input) for word in words]
    status, lines = first.run("repartition", str(first.file), *words)
    assert status == 2
    assert len(lines) == 1
    assert lines[0].startswith("keyfold-worker repartition: ")
    assert expected in lines[0]


# -- a record's new key ----------------------------------------------------------------------------


class Raw:
    """A record as confluent-kafka gives it."""

    def __init__(self, value: bytes | None, key: bytes | None = b"old", stamp: int = 5) -> None:
        self._value, self._key, self._stamp = value, key, stamp

    def value(self) -> bytes | None:
        return self._value

    def key(self) -> bytes | None:
        return self._key

    def headers(self) -> list[tuple[str, bytes]]:
        return [("h", b"1")]

    def timestamp(self) -> tuple[int, int]:
        return 1, self._stamp

    def topic(self) -> str:
        return "raw"

    def partition(self) -> int:
        return 2

    def offset(self) -> int:
        return 41


@pytest.fixture
def work(bundle: Any) -> Work:
    """Return work that keys by a nested field."""
    reader = KeyReader("id.machine", bundle.manifest.events)
    limits = {"in": 5000, "dead": 2000}
    return Work("raw", "in", "dead", "g", "t", "b", "id.machine", reader, limits)


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (b'{"id":{"machine":"m1"}}', b"m1"),
        (b'{"id":{"machine":7}}', b"7"),
        (b'{"id":{"machine":7.0}}', b"7"),
        (b'{"id":{"machine":1.5}}', b"1.5"),
        (b'{"id.machine":"own"}', b"own"),
        (b'{"id":{"machine":"\xc3\xa4"}}', "ä".encode()),
        (b'{"id":{"machine":""}}', b""),
    ],
)
def test_key_is_the_field_s_text(work: Work, value: bytes, key: bytes) -> None:
    moved = work.moved(Raw(value))  # type: ignore[arg-type]
    assert (moved.topic, moved.key, moved.value) == ("in", key, value)
    assert (moved.headers, moved.timestamp_ms) == ([("h", b"1")], 5)


@pytest.mark.parametrize(
    "value",
    [None, b"", b"[]", b"{}", b'{"id":3}', b'{"id":{"machine":null}}', b'{"id":{"machine":true}}',
     b'{"id":{"machine":[1]}}', b"\xff"],
)  # fmt: skip
def test_record_without_the_field_is_a_reject_as_it_came(work: Work, value: bytes | None) -> None:
    moved = work.moved(Raw(value))  # type: ignore[arg-type]
    assert (moved.topic, moved.key, moved.value) == ("dead", b"old", value)
    headers = dict(moved.headers)
    assert (headers["keyfold-topic"], headers["keyfold-partition"]) == (b"raw", b"2")
    assert headers["keyfold-offset"] == b"41"
    assert b"no key: the record's value" in (headers["keyfold-reason"] or b"")


def test_record_too_large_for_the_input_is_a_reject_that_is_cut(work: Work) -> None:
    value = b'{"id":{"machine":"m"},"x":"' + b"y" * 9000 + b'"}'
    moved = work.moved(Raw(value))  # type: ignore[arg-type]
    assert moved.topic == "dead"
    assert moved.size <= 2000
    assert dict(moved.headers)["keyfold-truncated"] == str(len(value)).encode()
    assert value.startswith(moved.value or b"")


def test_key_above_64_kib_is_a_reject(work: Work) -> None:
    work.limits = {"in": DEFAULT_MESSAGE_BYTES, "dead": DEFAULT_MESSAGE_BYTES}
    moved = work.moved(Raw(b'{"id":{"machine":"' + b"k" * 70_000 + b'"}}'))  # type: ignore[arg-type]
    assert moved.topic == "dead"
    assert b"longer than 65536 bytes" in (dict(moved.headers)["keyfold-reason"] or b"")


# -- merging ---------------------------------------------------------------------------------------


def stamps(taken: list[tuple[int, Raw]]) -> list[tuple[int, int]]:
    return [(number, record.timestamp()[1]) for number, record in taken]


def test_records_come_in_the_order_of_their_timestamps() -> None:
    merge: Merge[Raw] = Merge()
    merge.assign([0, 1])
    for number, stamp in ((0, 3), (0, 4), (0, 9), (1, 1), (1, 5)):
        merge.add(number, Raw(b"", stamp=stamp))
    merge.end(0)
    merge.end(1)
    assert stamps(merge.take(4)) == [(1, 1), (0, 3), (0, 4), (1, 5)]
    assert not merge.done()
    assert stamps(merge.take(4)) == [(0, 9)]
    assert merge.done()


def test_it_waits_for_a_partition_that_has_more() -> None:
    merge: Merge[Raw] = Merge()
    merge.assign([0, 1])
    merge.add(0, Raw(b"", stamp=3))
    assert merge.take(5) == []
    merge.add(1, Raw(b"", stamp=1))
    assert stamps(merge.take(5)) == [(1, 1)]  # what 1 has next may come before 0's
    merge.end(1)
    assert stamps(merge.take(5)) == [(0, 3)]


def test_records_of_a_partition_given_up_are_dropped() -> None:
    merge: Merge[Raw] = Merge()
    merge.assign([0])
    merge.add(0, Raw(b""))
    merge.assign([1])
    merge.add(0, Raw(b""))
    merge.end(1)
    assert merge.take(5) == []
    assert merge.done()


def test_partitions_far_ahead_are_told() -> None:
    merge: Merge[Raw] = Merge()
    merge.assign([0, 1])
    for _ in range(3):
        merge.add(1, Raw(b""))
    assert merge.full(3) == [1]
    assert merge.full(4) == []
