"""The serving path on a real Kafka and Valkey: the promise, kept through what goes wrong.

Workers run as child programs and are judged from outside by keyfold-verify's oracle.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka.admin import NewPartitions  # type: ignore[attr-defined]
from live_worker import Serving, make_events
from tiny_bundle import make_tiny_bundle

from local.services import KafkaService, Valkey, free_ports

either_way = pytest.mark.usefixtures("either_way")


@either_way
def test_every_event_is_predicted_and_every_state_is_the_offline_fold(serving: Serving) -> None:
    serving.send(make_events(5000, 200, skew="zipf"))
    with serving.running() as worker:
        serving.wait_saved([worker])
        on = os.environ["KEYFOLD_WORKER__NATIVE"] == "on"
        codec = "native module" if on else "pure Python"
        assert f"decoding and encoding: {codec}" in worker.log.read_text()
    serving.verify_clean(5000)


@either_way
@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
def test_compressed_input_is_served(serving: Serving, compression: str) -> None:
    serving.send(make_events(500, 20), compression)
    with serving.running() as worker:
        serving.wait_saved([worker])
    serving.verify_clean(500)


def test_a_prediction_is_a_pure_function_of_log_and_bundle(serving: Serving) -> None:
    serving.send(make_events(20, 3))
    with serving.running() as worker:
        serving.wait_saved([worker])
    first = next(m for m in serving.records(serving.output) if m.offset() == 0)
    prediction = json.loads(first.value())
    assert prediction.keys() == {
        "id", "about", "key", "time", "output", "steps", "cold", "bundle"
    }  # fmt: skip
    place = f"{serving.input}:{first.partition()}:0"
    assert (prediction["id"], prediction["about"]) == (f"{place}:0", place)
    assert prediction["key"].encode() == first.key()
    assert (prediction["steps"], prediction["cold"]) == (1, True)
    assert prediction["bundle"] == serving.bundle.id


@either_way
def test_a_killed_worker_is_followed_by_one_that_goes_on_where_redis_says(
    serving: Serving,
) -> None:
    events = make_events(40_000, 500, skew="zipf")
    serving.send(events)
    serving.kill_after(1000, 3, worker__max_events=200)
    with serving.running() as worker:
        serving.wait_saved([worker])
    serving.verify_clean(len(events))


def test_write_behind_survives_a_kill_by_replaying(serving: Serving) -> None:
    events = make_events(30_000, 300)
    serving.send(events)
    serving.kill_after(2000, worker__max_events=500, worker__save_every_ms=300)
    with serving.running(worker__save_every_ms=300) as worker:
        serving.wait_saved([worker])
    findings = serving.verify_clean(len(events))
    assert findings.counts.total() == findings.predictions - len(events)  # duplicates, no more


def test_two_workers_share_the_partitions_and_hand_them_over(serving: Serving) -> None:
    events = make_events(60_000, 400)
    serving.send(events[:20_000])
    first = serving.worker(worker__max_events=200)
    serving.wait_until(lambda: sum(serving.watermarks().values()) > 1000, "a save", [first])
    second = serving.worker(worker__max_events=200)
    serving.send(events[20_000:40_000])
    serving.wait_until(
        lambda: "acquired at watermark" in second.log.read_text(),
        "the second worker to get partitions", [first, second],
    )  # fmt: skip
    first.stop()
    assert first.exit_code == 0, first.log_tail()
    serving.send(events[40_000:])
    serving.wait_saved([second])
    second.stop()
    assert second.exit_code == 0, second.log_tail()
    serving.verify_clean(len(events))


def test_sigterm_drains_and_the_next_worker_repeats_nothing(serving: Serving) -> None:
    events = make_events(20_000, 100)
    serving.send(events)
    worker = serving.worker(worker__max_events=200)
    serving.wait_until(lambda: sum(serving.watermarks().values()) > 1000, "a save", [worker])
    worker.signal(signal.SIGTERM)
    assert worker.wait(20) == 0, worker.log_tail()
    assert sum(serving.watermarks().values()) < len(events), "stopped in the middle"
    with serving.running() as worker:
        serving.wait_saved([worker])
    findings = serving.verify_clean(len(events))
    assert findings.predictions == len(events)


@either_way
def test_poison_records_go_to_the_dead_letter_topic_and_the_rest_goes_on(serving: Serving) -> None:
    good = make_events(300, 10)
    poison: list[tuple[bytes | None, bytes | None]] = [
        (b"key-1", b"not json"),
        (b"key-1", b'{"time":1,"a":"text","b":1}'),
        (b"key-2", b'{"time":1,"a":1e39,"b":1}'),
        (b"key-3", b"\xff\xfe"),
        (b"key-3", None),
        (b"key-4", b""),
        (None, b'{"time":1,"a":1,"b":1}'),
        (None, None),
        (b"big", b'"' + b"x" * 900_000 + b'"'),
        (b"k" * 70_000, b'{"time":1,"a":1,"b":1}'),
        (b"key-5", b'{"time":1,"a":1,"b":1,"c":' + b"[" * 5000 + b"]" * 5000 + b"}"),
    ]
    serving.send([*good[:150], *poison, *good[150:]])
    with serving.running() as worker:
        serving.wait_saved([worker])
    findings = serving.verify_clean(len(good))
    assert findings.rejects == len(poison)
    letters = serving.records(serving.dead_letter)
    assert {(m.key(), m.value()) for m in letters} == set(poison)
    reasons = {(m.key(), m.value()): dict(m.headers())["keyfold-reason"] for m in letters}
    assert reasons[poison[1]] == (
        b"the event does not match the feature spec: Expected `float`, got `str` - at `$.a`"
    )
    assert reasons[poison[2]] == b"field 'a' overflows float32"
    assert reasons[poison[6]] == b"the record's key is null"
    assert reasons[poison[9]] == b"the record's key is longer than 65536 bytes"
    assert reasons[poison[10]] == b"the record's value is nested more than 200 deep"


@pytest.mark.usefixtures("real_kafka")  # Tansu neither limits records nor grows topics
def test_a_reject_too_large_for_the_dead_letter_topic_is_cut_and_marked(serving: Serving) -> None:
    serving.kafka.delete_topic(serving.dead_letter)
    serving.kafka.create_topic(serving.dead_letter, 1, {"max.message.bytes": "600000"})
    serving.send([(b"big", b'"' + b"x" * 900_000 + b'"'), *make_events(10, 2)])
    with serving.running() as worker:
        serving.wait_saved([worker])
    (letter,) = serving.records(serving.dead_letter)
    assert dict(letter.headers())["keyfold-truncated"] == b"900002"
    assert len(letter.value()) == 512 * 1024


def test_without_start_and_without_state_the_worker_refuses_and_says_what_to_set(
    serving: Serving,
) -> None:
    worker = serving.worker(worker__start="")
    assert worker.wait(30) == 2, worker.log_tail()
    assert "worker.start is not set: set it to 'earliest' or 'latest'" in worker.log_tail()


def test_a_redis_emptied_under_a_committed_group_halts_and_nothing_restarts_from_zero(
    serving: Serving,
) -> None:
    events = make_events(2000, 50)
    serving.send(events)
    with serving.running() as worker:
        serving.wait_saved([worker])
    predictions = len(serving.records(serving.output))
    serving.redis.flushall()
    with serving.running() as worker:
        serving.wait_until(lambda: worker.log_tail().count("HALT") >= 4, "four HALTs", [worker])
        assert "the state is gone from Redis" in worker.log_tail()
        assert "keyfold-state reset worker.toml --partition" in worker.log_tail()
    assert len(serving.records(serving.output)) == predictions
    assert serving.watermarks() == dict.fromkeys(range(4), 0)


def test_a_redis_emptied_under_a_running_worker_halts_it(serving: Serving) -> None:
    serving.send(make_events(2000, 50))
    with serving.running() as worker:
        serving.wait_saved([worker])
        serving.redis.flushall()
        serving.wait_until(lambda: worker.log_tail().count("HALT") >= 4, "four HALTs", [worker])


def test_redis_restored_to_an_older_snapshot_heals_by_replay(serving: Serving) -> None:
    events = make_events(30_000, 100)
    serving.send(events[:10_000])
    with serving.running(worker__max_events=500) as worker:
        serving.wait_saved([worker])
        snapshot = {p: serving.redis.dump(serving.hash_name(p)) for p in range(4)}
        serving.send(events[10_000:20_000])
        serving.wait_saved([worker])
        for partition, dump in snapshot.items():
            assert isinstance(dump, bytes)
            serving.redis.restore(serving.hash_name(partition), 0, dump, replace=True)
        serving.send(events[20_000:])
        serving.wait_saved([worker])
        assert "Redis lost writes" in worker.log.read_text()
    serving.verify_clean(len(events))


def test_a_topic_created_anew_halts(serving: Serving) -> None:
    serving.send(make_events(2000, 50))
    with serving.running() as worker:
        serving.wait_saved([worker])
    serving.kafka.delete_topic(serving.input)
    serving.kafka.create_topic(serving.input, serving.partitions, None)
    serving.send(make_events(4000, 50, seed=1))
    with serving.running() as worker:
        serving.wait_until(lambda: worker.log_tail().count("HALT") >= 4, "four HALTs", [worker])
        assert "the topic was created anew" in worker.log_tail()
    assert serving.state("reset", "--all", "--to", "earliest", "--yes") == 0
    with serving.running() as worker:
        serving.wait_saved([worker])


def test_another_bundle_halts(serving: Serving, tmp_path: Path) -> None:
    serving.send(make_events(500, 20))
    with serving.running() as worker:
        serving.wait_saved([worker])
    other = make_tiny_bundle(tmp_path, seed=1)
    with serving.running(worker__bundle=other.path) as worker:
        serving.wait_until(lambda: worker.log_tail().count("HALT") >= 4, "four HALTs", [worker])
        assert "the state belongs to another bundle" in worker.log_tail()
    serving.verify_clean(500)


def test_a_missing_output_topic_is_named(serving: Serving) -> None:
    worker = serving.worker(kafka__output="no-such-topic")
    assert worker.wait(30) == 2, worker.log_tail()
    assert "topic 'no-such-topic': expected it to exist" in worker.log_tail()


def test_tombstones_reset_a_key_as_part_of_the_fold(
    tmp_path: Path, kafka: KafkaService, own_valkey: Valkey, unique_name: Callable[[str], str]
) -> None:
    bundle = make_tiny_bundle(tmp_path, tombstone="reset")
    serving = Serving(tmp_path, kafka, own_valkey, bundle, unique_name, partitions=2)
    records = make_events(3000, 10)
    for place in range(0, 3000, 50):
        records[place] = (records[place][0], None)
    serving.send(records)
    serving.kill_after(300, worker__max_events=100)
    with serving.running() as worker:
        serving.wait_saved([worker])
    findings = serving.verify_clean(3000 - 60)
    assert findings.resets == 60


def test_an_operators_reset_ends_a_halt_without_a_restart(serving: Serving) -> None:
    events = make_events(2000, 50)
    serving.send(events)
    with serving.running() as worker:
        serving.wait_saved([worker])
    serving.redis.flushall()
    with serving.running() as worker:
        serving.wait_until(lambda: worker.log_tail().count("HALT") >= 4, "four HALTs", [worker])
        assert serving.state("list") == 1
        assert serving.state("reset", "--all", "--to", "earliest", "--yes") == 0
        serving.wait_saved([worker])
        assert serving.state("list") == 0
    findings = serving.verify_clean(len(events))
    assert findings.predictions == 2 * len(events)


def test_a_reset_under_a_running_worker_stops_it_before_it_does_harm(serving: Serving) -> None:
    events = make_events(1000, 50)
    serving.send(events)
    worker = serving.worker()
    serving.wait_saved([worker])
    assert serving.state("reset", "--partition", "0", "--to", "earliest", "--yes") == 0
    assert worker.wait(30) not in (0, None), worker.log_tail()
    assert "another worker, or an" in worker.log.read_text()
    with serving.running() as worker:
        serving.wait_saved([worker])
    serving.verify_clean(len(events))


@pytest.mark.usefixtures("real_kafka")  # Tansu neither limits records nor grows topics
def test_a_topic_that_grew_halts_every_partition(serving: Serving) -> None:
    serving.send(make_events(500, 20))
    with serving.running() as worker:
        serving.wait_saved([worker])
    for topic in (serving.input, serving.output):
        admin = serving.kafka.admin()
        admin.create_partitions([NewPartitions(topic, 6)])[topic].result(20)
    with serving.running() as worker:
        serving.wait_until(lambda: worker.log.read_text().count("HALT") >= 6, "HALTs", [worker])
        assert "number of partitions changed" in worker.log_tail()
        assert "--all --to earliest" in worker.log_tail()


def test_rewinds_under_load_never_mix_an_old_position_with_a_new_one(serving: Serving) -> None:
    """The seek-during-fetch trap: W perfect, states wrong (FACTS, the protocol)."""
    events = make_events(60_000, 200)
    with serving.running(worker__max_events=300) as worker:
        for begin in range(0, len(events), 10_000):
            dumps = {p: serving.redis.dump(serving.hash_name(p)) for p in range(4)}
            serving.send(events[begin : begin + 10_000])
            serving.wait_until(
                lambda begin=begin: sum(serving.watermarks().values()) > begin + 2000,  # type: ignore[misc]
                "progress", [worker],
            )  # fmt: skip
            for partition, dump in dumps.items():
                if isinstance(dump, bytes):
                    serving.redis.restore(serving.hash_name(partition), 0, dump, replace=True)
        serving.wait_saved([worker])
    serving.verify_clean(len(events))


def test_an_agent_on_another_topic_of_the_same_app_works(
    serving: Serving, unique_name: Callable[[str], str], tmp_path: Path
) -> None:
    other, echo = unique_name("other"), unique_name("echo")
    for topic in (other, echo):
        serving.kafka.create_topic(topic, 2, None)
    (tmp_path / "their_agents.py").write_text(
        f"""
def add(app):
    echo = app.topic({echo!r}, value_type=bytes)

    @app.agent(app.topic({other!r}, value_type=bytes, value_serializer='raw'))
    async def shout(stream):
        async for value in stream:
            await echo.send(value=value.upper())
"""
    )
    serving.send(make_events(2000, 50))
    serving.send_to(other, [(b"k", b"word-%d" % i) for i in range(100)])
    env = {"PYTHONPATH": str(tmp_path)}
    with serving.running(env, worker__agents="their_agents:add") as worker:
        serving.wait_saved([worker])
        serving.wait_until(lambda: len(serving.records(echo)) >= 100, "the echo", [worker])
    assert {m.value() for m in serving.records(echo)} == {b"WORD-%d" % i for i in range(100)}
    serving.verify_clean(2000)


def test_an_agent_on_the_input_topic_is_refused(serving: Serving, tmp_path: Path) -> None:
    (tmp_path / "their_agents.py").write_text(
        f"""
def add(app):
    @app.agent(app.topic({serving.input!r}))
    async def steal(stream):
        async for value in stream:
            pass
"""
    )
    worker = serving.worker({"PYTHONPATH": str(tmp_path)}, worker__agents="their_agents:add")
    assert worker.wait(30) == 2
    assert "expected another topic: the pipeline serves this one" in worker.log_tail()


def test_verify_finds_a_planted_conflict_loss_and_wrong_state(serving: Serving) -> None:
    serving.send(make_events(300, 10))
    with serving.running() as worker:
        serving.wait_saved([worker])
    serving.verify_clean(300)
    victim = serving.records(serving.output)[0]
    forged = json.loads(victim.value())
    forged["output"]["value"] += 0.5
    serving.send_to(
        serving.output, [(victim.key(), json.dumps(forged).encode())], victim.partition()
    )
    name = serving.hash_name(victim.partition())
    field = b":" + victim.key()
    state = serving.redis.hget(name, field)
    assert isinstance(state, bytes)
    serving.redis.hset(name, field, state[:-1] + bytes([state[-1] ^ 1]))
    report = serving.verify().to_json()
    assert (report["conflicts"], report["wrong_states"], report["lost"]) == (1, 1, 0), report
    lost = serving.send_past_the_worker(make_events(1, 1, seed=5), victim.partition())
    assert serving.verify().to_json()["lost"] == lost == 1


def test_health_says_which_partition_halted(serving: Serving) -> None:
    port = free_ports(1)[0]
    serving.send(make_events(200, 20))
    with serving.running(worker__web_port=port) as worker:
        serving.wait_saved([worker])
        serving.wait_until(lambda: serving.get(port, "/health")[0] == 200, "health", [worker])
        body = serving.get(port, "/health")[1]
        assert body["partitions"] == dict.fromkeys("0123", "run")
        assert (body["totals"]["events"], body["totals"]["halts"]) == (200, 0)
        assert serving.get(port, "/table/")[0] == 404
        serving.redis.flushall()
        serving.wait_until(lambda: serving.get(port, "/health")[0] == 503, "health", [worker])
        halted = serving.get(port, "/health")[1]["halted"]
        assert "the state is gone from Redis" in next(iter(halted.values()))


def test_a_worker_frozen_beyond_its_session_stops_when_it_wakes(serving: Serving) -> None:
    events = make_events(40_000, 200)
    serving.send(events[:20_000])
    frozen = serving.worker(worker__max_events=100)
    serving.wait_until(lambda: sum(serving.watermarks().values()) > 2000, "a save", [frozen])
    frozen.signal(signal.SIGSTOP)
    with serving.running() as successor:
        serving.send(events[20_000:])
        serving.wait_saved([successor])
        frozen.signal(signal.SIGCONT)
        assert frozen.wait(30) == 70, frozen.log_tail()
    assert "another worker, or an" in frozen.log.read_text()
    serving.verify_clean(len(events))


def test_a_redis_that_refuses_the_password_is_named_without_showing_it(
    serving: Serving, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text("hunter2")
    worker = serving.worker(redis__username="nobody", redis__password_file=file)
    assert worker.wait(30) == 2, worker.log_tail()
    assert "redis.username, redis.password: Redis refuses 'nobody'" in worker.log_tail()
    assert "hunter2" not in worker.log.read_text()


def test_a_redis_killed_and_restarted_under_load_costs_nothing(serving: Serving) -> None:
    events = make_events(40_000, 200)
    serving.send(events[:20_000])
    with serving.running(worker__max_events=300) as worker:
        serving.wait_until(lambda: sum(serving.watermarks().values()) > 2000, "a save", [worker])
        serving.valkey.kill()
        serving.send(events[20_000:])
        serving.valkey.start()
        serving.wait_saved([worker])
    serving.verify_clean(len(events))


def test_verify_says_how_much_is_not_served_yet(serving: Serving) -> None:
    serving.send(make_events(100, 10))
    with serving.running() as worker:
        serving.wait_saved([worker])
    serving.send(make_events(50, 10, seed=1))
    findings = serving.verify()
    assert (findings.violations, findings.waiting) == (0, 50)


def test_a_halt_is_reported_once_and_not_as_resolved_while_it_lasts(serving: Serving) -> None:
    serving.send(make_events(100, 10))
    with serving.running() as worker:
        serving.wait_saved([worker])
    for partition in range(4):
        name = serving.hash_name(partition)
        for field in serving.fields(partition):
            if field.startswith(b":"):
                serving.redis.hset(name, field, b"damaged")
    serving.send(make_events(100, 10, seed=1))
    with serving.running() as worker:
        serving.wait_until(lambda: worker.log.read_text().count("HALT") >= 4, "HALTs", [worker])
        serving.wait_until(
            lambda: worker.log.read_text().count("acquired at") >= 8, "another try", [worker]
        )
    log = worker.log.read_text()
    assert "a stored state is damaged" in log
    assert (log.count("HALT: "), log.count("no longer halted")) == (4, 0)
