"""keyfold-worker check: each thing that is wrong is one finding that says what to do.

On a plain broker; what a secured one refuses is in test_secured.py.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient
from first_run import FirstRun, Report
from live_worker import Serving, make_events
from tiny_bundle import make_tiny_bundle

from keyfold.export import bundle as contract
from keyfold.export.bundle import Manifest
from keyfold.export.events import EventSpec, OutputSpec
from keyfold.worker.check.redis import commands, grant
from keyfold.worker.check.report import Finding, Question, ask_all, ok, within
from keyfold.worker.config import read_config
from keyfold.worker.errors import Crash
from local.services import KafkaService, Valkey, free_ports

EVENT = b'{"time":1700000000000,"a":1,"b":2}'


@pytest.fixture
def first(serving: Serving, capsys: pytest.CaptureFixture[str]) -> FirstRun:
    """Return the commands on a topic without records."""
    return FirstRun(serving, capsys)


def granted(first: FirstRun) -> str:
    """Return the rules that check would tell."""
    config = read_config(first.file, (), {})
    return grant(config, first.serving.bundle.manifest)


def only(texts: list[str]) -> str:
    """Return the one text that there must be."""
    assert len(texts) == 1, texts
    return texts[0]


# -- all is well -----------------------------------------------------------------------------------


def test_all_is_well_and_the_next_command_is_told(
    first: FirstRun, real_kafka: KafkaService
) -> None:
    first.serving.send(make_events(300, 40))
    status, report = first.check()
    assert (report.of("FAIL"), report.of("WARN"), report.of("skip")) == ([], [], [])
    assert status == 0
    assert "all placed by murmur2" in " ".join(report.of("ok", "keys"))
    next_line = f"0 FAIL, 0 WARN; next: keyfold-worker {first.file} --dry-run --max-events 1000"
    assert report.lines[-1] == next_line


def test_nothing_is_changed(first: FirstRun) -> None:
    serving = first.serving
    serving.send(make_events(50, 5))
    before = serving.ends()
    outputs = "exactly-once" if serving.kafka.real else "at-least-once"
    assert first.check(f"worker.outputs={outputs}")[0] == 0
    assert serving.redis.dbsize() == 0
    assert serving.ends() == before
    assert serving.records(serving.output) == []
    admin = AdminClient({"bootstrap.servers": serving.kafka.address})
    groups = [group.group_id for group in admin.list_consumer_groups().result().valid]
    assert not [name for name in groups if serving.group in name or "keyfold-reader" in name]


def test_topic_without_records_is_a_warning(first: FirstRun, real_kafka: KafkaService) -> None:
    status, report = first.check()
    assert status == 0
    warning = only(report.of("WARN"))
    assert "holds no records yet" in warning
    assert f"keyfold-send LOG --config {first.file})" in warning


# -- settings, bundle, port ------------------------------------------------------------------------


def test_settings_that_cannot_be_read_are_one_line(first: FirstRun) -> None:
    first.settings["kafka"]["brokerz"] = "x"
    first.write()
    status, lines = first.run("check", str(first.file))
    assert status == 2
    assert only(lines).startswith("keyfold-worker check: ")
    assert "unknown setting kafka.brokerz" in lines[0]


def test_what_is_emitted_and_the_alert_topic_are_looked_at(
    first: FirstRun, unique_name: Callable[[str], str]
) -> None:
    alerts = unique_name("alerts")
    sets = ("emit.above=0.5", "emit.k=2", "emit.n=3", f"emit.alert_topic={alerts}")
    assert "every prediction is emitted" in only(first.check()[1].of("ok", "emit"))
    status, report = first.check(*sets)
    assert status == 2
    assert f"topic {alerts!r}: none that we may see; create it" in only(report.of("FAIL"))
    first.serving.kafka.create_topic(alerts, 3, None)
    assert f"topic {alerts!r}: expected 4 partitions" in only(first.check(*sets)[1].of("FAIL"))
    first.serving.kafka.delete_topic(alerts)
    alerts = unique_name("more-alerts")
    first.serving.kafka.create_topic(alerts, 4, None)
    status, report = first.check(*sets[:3], f"emit.alert_topic={alerts}")
    assert (status, report.of("FAIL")) == (0, [])
    assert only(report.of("ok", "emit")) == (
        f"every prediction is emitted; it is an alert, to {alerts} too, when value is above 0.5 at "
        "2 of the key's last 3 events; adds 8 bytes to the state of a key"
    )
    assert f"{alerts} 4" in only([t for t in report.of("ok", "topics") if "partitions each" in t])
    status, report = first.check("emit.what=when", "emit.field=rul", "emit.above=1")
    assert status == 2
    assert report.of("FAIL", "emit") == ["emit.field: expected one of value, got 'rul'"]


def test_bundle_that_was_altered_fails_and_the_rest_is_looked_at(
    first: FirstRun, tmp_path: Path
) -> None:
    made = make_tiny_bundle(tmp_path / "bundles", seed=5)
    (made.path / "step.onnx").write_bytes(b"other")
    status, report = first.check(f"worker.bundle={made.path}")
    assert status == 2
    assert "step.onnx: expected SHA-256" in only(report.of("FAIL"))
    assert report.of("skip", "records") == ["not looked at: needs bundle"]
    assert report.of("ok", "topics")


def test_decoder_hook_that_cannot_be_imported_fails_though_the_topic_is_empty(
    first: FirstRun, tmp_path: Path
) -> None:
    made = make_tiny_bundle(tmp_path / "bundles")
    manifest = replace(made.manifest, events=EventSpec(decoder="nowhere_at_all:decode"))
    step, folder = made.step_path.read_bytes(), tmp_path / "hooked"
    saved = contract.save(folder, manifest, step, made.golden)
    status, report = first.check(f"worker.bundle={saved}")
    assert status == 2
    assert "'nowhere_at_all:decode': No module named 'nowhere_at_all'" in only(report.of("FAIL"))
    assert report.of("skip", "records") == ["not looked at: needs bundle"]


def test_port_that_is_taken_fails(first: FirstRun) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, report = first.check(f"worker.web_port={port}")
    assert status == 2
    assert f"expected a free port on 127.0.0.1, got {port}" in only(report.of("FAIL", "web port"))


# -- Kafka -----------------------------------------------------------------------------------------


def test_broker_that_is_away_hides_nothing_else_and_takes_no_longer_than_allowed(
    first: FirstRun,
) -> None:
    begun = time.monotonic()
    status, report = first.check(
        f"kafka.brokers=127.0.0.1:{free_ports(1)[0]}", "kafka.request_timeout_s=3",
        "kafka.session_timeout_s=3",
    )  # fmt: skip
    assert time.monotonic() - begun < 8
    assert status == 2
    assert "Connection refused" in only(report.of("FAIL"))
    assert report.of("ok", "redis")
    assert report.of("skip", "keys")


def test_missing_topics_are_all_named_with_the_commands_that_create_them(
    first: FirstRun,
) -> None:
    status, report = first.check("kafka.output=nope", "kafka.dead_letter=nor-this")
    assert status == 2
    texts = report.of("FAIL")
    assert [text.split(":")[0] for text in texts] == ["topic 'nope'", "topic 'nor-this'"]
    assert "--create --topic nope --partitions 4" in texts[0]
    assert report.of("skip", "records") == ["not looked at: needs topics"]


def test_output_with_other_partitions_fails(first: FirstRun) -> None:
    first.serving.kafka.create_topic(f"{first.serving.output}-3", 3, None)
    status, report = first.check(f"kafka.output={first.serving.output}-3")
    assert status == 2
    assert "expected 4 partitions like the input" in only(report.of("FAIL"))


def test_compacted_input_and_short_retention_are_warnings(first: FirstRun) -> None:
    if not first.serving.kafka.real:
        pytest.skip("needs topic settings")
    name = f"{first.serving.input}-compact"
    first.serving.kafka.create_topic(
        name, 4, {"cleanup.policy": "compact", "retention.ms": "3600000"}
    )
    first.serving.kafka.create_topic(f"{name}.rejects", 1, None)
    status, report = first.check(f"kafka.input={name}")
    assert status == 0
    texts = report.of("WARN", "topics")
    assert "cleanup.policy compact removes events" in texts[0]
    assert "keeps its records for 0.0417 days" in texts[1]


def test_topic_too_small_for_a_prediction_fails(first: FirstRun) -> None:
    if not first.serving.kafka.real:
        pytest.skip("needs topic settings")
    name = f"{first.serving.output}-small"
    first.serving.kafka.create_topic(name, 4, {"max.message.bytes": "100"})
    status, report = first.check(f"kafka.output={name}")
    assert status == 2
    assert f"{name} takes 100: raise its max.message.bytes" in only(report.of("FAIL", "sizes"))


def test_large_keys_that_would_not_fit_are_a_warning(first: FirstRun) -> None:
    if not first.serving.kafka.real:
        pytest.skip("needs topic settings")
    name = f"{first.serving.output}-small"
    first.serving.kafka.create_topic(name, 4, {"max.message.bytes": "20000"})
    _, report = first.check(f"kafka.output={name}")
    assert "bytes will not fit" in only(report.of("WARN", "sizes"))


def test_group_with_other_programs_fails(first: FirstRun, real_kafka: KafkaService) -> None:
    serving = first.serving
    other = Consumer(
        {"bootstrap.servers": serving.kafka.address, "group.id": serving.group,
         "auto.offset.reset": "earliest"}
    )  # fmt: skip
    try:
        assigned: list[object] = []
        other.subscribe([serving.input], on_assign=lambda consumer, where: assigned.extend(where))
        while not assigned:
            other.poll(0.2)
        status, report = first.check()
    finally:
        other.close()
    assert status == 2
    text = only(report.of("FAIL", "group"))
    assert "1 members that are no keyfold workers" in text
    assert "choose another kafka.group" in text


def test_workers_in_the_group_are_a_warning(first: FirstRun, real_kafka: KafkaService) -> None:
    first.serving.send(make_events(20, 3))
    with first.serving.running():
        status, report = first.check()
    assert status == 0
    assert "has 1 workers now" in only(report.of("WARN", "group"))


def test_session_timeout_that_the_brokers_refuse_fails_and_nothing_joins(
    first: FirstRun, real_kafka: KafkaService
) -> None:
    status, report = first.check("kafka.session_timeout_s=0.5")
    assert status == 2
    assert only(report.of("FAIL")) == (
        "kafka.session_timeout_s: expected 1 to 1800 seconds, which the brokers allow "
        "(group.min.session.timeout.ms, group.max.session.timeout.ms), got 0.5"
    )
    report = first.check()[1]
    assert only(report.of("ok", "session")) == "a session timeout of 10 s is allowed"
    admin = AdminClient({"bootstrap.servers": real_kafka.address})
    groups = admin.list_consumer_groups().result().valid
    assert first.serving.group not in [group.group_id for group in groups]


def test_a_worker_says_of_a_refused_session_timeout_one_line(
    first: FirstRun, real_kafka: KafkaService
) -> None:
    worker = first.serving.worker(kafka__session_timeout_s=0.5)
    assert worker.wait(30) == 2, worker.log_tail()
    line = worker.log.read_text().splitlines()[-1]
    assert line.startswith("keyfold-worker: kafka.session_timeout_s: expected 1 to 1800 seconds")


def test_a_broker_of_several_that_is_away_leaves_no_line_of_a_client_s(
    first: FirstRun, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiokafka.conn.random.shuffle", lambda hosts: None)  # who is away first
    away = f"127.0.0.1:{free_ports(1)[0]}"
    assert first.check(f"kafka.brokers={away},{first.serving.kafka.address}")[0] == 0
    assert caplog.messages == []


# -- Redis -----------------------------------------------------------------------------------------


def test_redis_that_is_away_hides_nothing_else(first: FirstRun) -> None:
    status, report = first.check(f"redis.url=redis://127.0.0.1:{free_ports(1)[0]}/0")
    assert status == 2
    assert "refused" in only(report.of("FAIL"))
    assert report.of("ok", "topics")
    assert report.of("skip", "states") == ["not looked at: needs redis"]


def test_redis_that_evicts_fails_and_says_what_to_set(first: FirstRun) -> None:
    first.serving.redis.config_set("maxmemory-policy", "allkeys-lru")
    status, report = first.check()
    assert status == 2
    text = only(report.of("FAIL"))
    assert "maxmemory-policy allkeys-lru throws states away: CONFIG SET maxmemory-policy" in text


def test_redis_without_an_append_only_file_is_a_warning(first: FirstRun) -> None:
    first.serving.redis.config_set("appendonly", "no")
    status, report = first.check()
    assert status == 0
    assert "appendonly is off" in only(report.of("WARN", "redis"))


def test_redis_that_is_nearly_full_is_a_warning(first: FirstRun) -> None:
    used = int(first.serving.redis.info("memory")["used_memory"])
    first.serving.redis.config_set("maxmemory", used + 300_000)
    _, report = first.check()
    assert "give Redis more memory" in only(report.of("WARN", "memory"))


@pytest.fixture
def user(own_valkey: Valkey, tmp_path: Path) -> Iterator[Callable[..., dict[str, str]]]:
    """Return a function that makes an ACL user and returns the settings that name it."""
    with own_valkey.client() as client:

        def make(rules: str, password: str = "right") -> dict[str, str]:
            client.execute_command("ACL", "SETUSER", "kf", "reset", "on", ">right", *rules.split())
            secret = tmp_path / "password"
            secret.write_text(password)
            return {
                "redis.url": f"redis://{own_valkey.address}/0", "redis.username": "kf",
                "redis.password_file": str(secret),
            }  # fmt: skip

        yield make


def flags(settings: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in settings.items()]


def test_wrong_redis_password_fails_without_showing_it(
    first: FirstRun, user: Callable[..., dict[str, str]]
) -> None:
    status, report = first.check(*flags(user("~* +@all", "guessed-wrong")))
    assert status == 2
    assert "Redis refuses 'kf': expected the name and the password" in only(report.of("FAIL"))
    assert "guessed-wrong" not in "\n".join(report.lines)


def test_missing_redis_rights_are_named(
    first: FirstRun, user: Callable[..., dict[str, str]]
) -> None:
    status, report = first.check(*flags(user("~* +@all -hset -hlen")))
    assert status == 2
    text = only(report.of("FAIL", "rights"))
    name = first.serving.hash_name(0)
    assert f"forbids this user HSET {name}, HLEN {name}; allow it: ACL SETUSER kf" in text
    assert granted(first) in text


def test_redis_user_that_may_call_no_stored_script_fails(
    first: FirstRun, user: Callable[..., dict[str, str]]
) -> None:
    status, report = first.check(*flags(user("~* +@all -evalsha")))
    assert status == 2
    assert "forbids this user EVALSHA; allow it: ACL SETUSER kf" in only(
        report.of("FAIL", "rights")
    )


def test_predictions_of_another_group_in_the_output_topic_are_a_warning(first: FirstRun) -> None:
    first.serving.send(make_events(20, 3))
    first.serving.send_to(first.serving.output, [(b"k", b"{}")])
    status, report = first.check()
    assert status == 0
    text = only(report.of("WARN", "states"))
    assert f"{first.serving.output} holds predictions, yet group" in text
    assert not first.check("worker.emit_from=now")[1].of("WARN", "states")


def test_redis_user_without_the_group_s_names_fails(
    first: FirstRun, user: Callable[..., dict[str, str]]
) -> None:
    status, report = first.check(*flags(user("~other:* +@all")))
    assert status == 2
    assert "allow" in only(report.of("FAIL", "rights"))


def test_rights_that_are_told_are_enough_for_a_worker(
    first: FirstRun, user: Callable[..., dict[str, str]]
) -> None:
    settings = user(granted(first))
    first.serving.send(make_events(50, 5))
    status, report = first.check(*flags(settings))
    assert (status, report.of("FAIL")) == (0, [])
    under_scored = {name.replace(".", "__"): value for name, value in settings.items()}
    with first.serving.running(**under_scored) as worker:
        first.serving.wait_saved([worker])
    assert first.check(*flags(settings))[0] == 0


def test_rights_that_are_told_are_those_of_the_documents(tmp_path: Path) -> None:
    sets = ["kafka.brokers=b:1", "kafka.input=engines", "kafka.output=engines-rul",
            "kafka.group=engines-rul", f"worker.bundle={tmp_path}"]  # fmt: skip
    text = (Path(__file__).parents[3] / "deploy" / "ACLS.md").read_text(encoding="utf-8")
    listed = [set(line.split()) for line in text.splitlines() if "ACL SETUSER keyfold on" in line]
    frame = {"ACL", "SETUSER", "keyfold", "on", ">PASSWORD", "resetkeys", "resetchannels",
             "nocommands"}  # fmt: skip

    def told(manifest: Manifest, *more: str) -> set[str]:
        return set(grant(read_config(None, [*sets, *more], {}), manifest).split())

    assert told(make_tiny_bundle(tmp_path).manifest) == listed[0] - frame
    all_that_may_be = make_tiny_bundle(tmp_path, tombstone="reset", reset_after_ms=5).manifest
    everything = told(all_that_may_be, "worker.start=-7d", "worker.emit_from=handover")
    assert everything == listed[1] - frame


def test_what_the_settings_and_the_bundle_need_is_asked_for(tmp_path: Path) -> None:
    sets = ["kafka.brokers=b:1", "kafka.input=i", "kafka.output=o", f"worker.bundle={tmp_path}"]
    plain = make_tiny_bundle(tmp_path).manifest
    silent = make_tiny_bundle(tmp_path, reset_after_ms=5).manifest
    deleting = make_tiny_bundle(tmp_path, tombstone="reset").manifest

    def extra(manifest: Manifest, *more: str) -> set[str]:
        return {name for name, *_ in commands(read_config(None, [*sets, *more], {}), manifest)}

    least = extra(plain)
    assert extra(silent) - least == {"HDEL", "HSCAN"}
    assert extra(deleting) - least == {"HDEL"}
    assert extra(make_tiny_bundle(tmp_path, end_field="bye").manifest) - least == {"HDEL"}
    outputs = OutputSpec("regression", ("value",), answers="session")
    sessions = make_tiny_bundle(tmp_path, outputs=outputs, reset_after_ms=5).manifest
    assert extra(sessions) - least == {"HDEL"}  # none is collected while it is open
    assert extra(plain, "worker.start=-7d") - least == {"HGET"}


# -- states ----------------------------------------------------------------------------------------


def test_states_of_another_bundle_fail(first: FirstRun, tmp_path: Path) -> None:
    first.serving.send(make_events(50, 5))
    with first.serving.running() as worker:
        first.serving.wait_saved([worker])
    assert "goes on from there" in only(first.check()[1].of("ok", "states"))
    other = make_tiny_bundle(tmp_path / "bundles", seed=77)
    status, report = first.check(f"worker.bundle={other.path}")
    assert status == 2
    texts = report.of("FAIL", "states")
    assert f"expected bundle {other.id}, got {first.serving.bundle.id}" in texts[0]
    assert "use another kafka.group for this bundle" in texts[-1]


def test_states_that_are_gone_fail(first: FirstRun) -> None:
    first.serving.send(make_events(50, 5))
    with first.serving.running() as worker:
        first.serving.wait_saved([worker])
    first.serving.redis.flushall()
    status, report = first.check()
    assert status == 2
    assert "no state in Redis, yet the group has committed" in report.of("FAIL", "states")[0]


def test_start_that_is_not_set_fails_where_the_group_is_new_as_the_worker_does(
    first: FirstRun,
) -> None:
    first.serving.send(make_events(50, 5))
    status, report = first.check("worker.start=")
    assert status == 2
    text = only(report.of("FAIL"))
    assert text.startswith("worker.start is not set, and group ")
    assert "neither state nor offset in 4 of 4 partitions" in text
    assert "set it to earliest or latest, or to a time or -7d" in text
    assert not report.of("ok", "states")
    with first.serving.running() as worker:
        first.serving.wait_saved([worker])
    status, report = first.check("worker.start=")
    assert (status, report.of("FAIL")) == (0, [])
    assert "goes on from there" in only(report.of("ok", "states"))


@pytest.mark.parametrize("start", ["2099-01-01T00:00:00Z", "-1s"])
def test_start_behind_the_youngest_record_is_a_warning(first: FirstRun, start: str) -> None:
    serving = first.serving
    assert not first.check(f"worker.start={start}")[1].of("WARN", "states")  # an empty topic
    old_ms = int(time.time() * 1000) - 60_000
    producer = Producer({"bootstrap.servers": serving.kafka.address})
    producer.produce(serving.input, EVENT, b"k", timestamp=old_ms)
    assert producer.flush(10) == 0
    status, report = first.check(f"worker.start={start}")
    assert status == 0
    assert only(report.of("WARN", "states")) == (
        f"worker.start {start}: {serving.input} holds no record as young as that; a worker begins "
        "at the log's end as it finds it, as with latest"
    )
    assert not first.check("worker.start=-1h")[1].of("WARN", "states")


# -- records ---------------------------------------------------------------------------------------


def test_rejects_are_told_by_field_with_the_first_place(first: FirstRun) -> None:
    serving = first.serving
    serving.send([(b"k", EVENT)] * 3 + [(b"k", b'{"time":1700000000000,"a":1}')] * 2, partition=1)
    status, report = first.check()
    assert status == 0
    text = only(report.of("WARN", "records"))
    assert text.startswith("2 rejects: ")
    assert "`b`" in text
    assert f"(first at {serving.input}:1:3)" in text
    assert "3 of the 5 newest records are events" in report.of("ok", "records")[0]


def test_records_of_another_kind_fail(first: FirstRun) -> None:
    first.serving.send([(b"k", b'{"quite":"different"}')] * 4)
    status, report = first.check()
    assert status == 2
    assert "0 of the 4 newest records are events: wrong topic" in only(report.of("FAIL"))


def test_time_in_another_unit_is_a_warning(first: FirstRun) -> None:
    first.serving.send([(b"k", b'{"time":1700000000,"a":1,"b":2}')])
    status, report = first.check()
    assert status == 0
    assert "in the year 1970: are the events' times in" in only(report.of("WARN", "records"))
    text = "event times: 1970-01-20T16:13:20Z .. 1970-01-20T16:13:20Z"
    assert text in report.of("ok", "records")


def test_clock_in_the_future_is_a_warning(first: FirstRun) -> None:
    ahead = int((time.time() + 10_000) * 1000)
    first.serving.send([(b"k", b'{"time":%d,"a":1,"b":2}' % ahead)])
    status, report = first.check()
    assert status == 0
    assert "event times are up to 2.8 hours ahead" in only(report.of("WARN", "records"))


# -- keys ------------------------------------------------------------------------------------------


def test_key_in_two_partitions_fails_with_how_many_and_an_example(first: FirstRun) -> None:
    for partition in (0, 3):
        first.serving.send([(b"pump-7", EVENT)], partition=partition)
    status, report = first.check()
    assert status == 2
    text = only(report.of("FAIL", "keys"))
    assert text.startswith("key_in_two_partitions: 1 of 1 keys were seen in two partitions, ")
    assert "'pump-7' in 0 and 3" in text


def test_keys_of_librdkafka_s_default_partitioner_are_a_warning(first: FirstRun) -> None:
    producer = Producer({"bootstrap.servers": first.serving.kafka.address})
    for number in range(40):
        producer.produce(first.serving.input, EVENT, f"key-{number}".encode())
    assert producer.flush(30) == 0
    status, report = first.check()
    assert status == 0
    assert "40 keys, all placed by CRC32" in only(report.of("WARN", "keys"))


def test_records_without_a_key_are_counted(first: FirstRun) -> None:
    first.serving.send([(b"k", EVENT), (None, EVENT), (None, EVENT)])
    status, report = first.check()
    assert status == 0
    assert "2 of 3 records have no key" in only(report.of("WARN", "keys"))
    first.serving.redis.flushall()


def test_topic_without_any_key_fails(first: FirstRun) -> None:
    first.serving.send([(None, EVENT)] * 3)
    status, report = first.check()
    assert status == 2
    assert "3 of 3 records have no key" in only(report.of("FAIL", "keys"))


def test_key_that_is_not_the_bundle_s_key_field_fails_with_two_ways_out(first: FirstRun) -> None:
    event = json.dumps({**json.loads(EVENT), "key": "pump-7"}).encode()  # the field is named key
    first.serving.send([(b"site-1", event)] * 2 + [(b"pump-7", event)])
    status, report = first.check()
    assert status == 2
    text = only(report.of("FAIL", "keys"))
    assert "the record key is not the field 'key' in 2 of 3 records" in text
    assert "let the producers set it as the record key" in text
    assert f"keyfold-worker repartition {first.file} --from THEIR_TOPIC" in text


def test_records_without_the_key_field_are_counted_beside_the_others(first: FirstRun) -> None:
    event = json.dumps({**json.loads(EVENT), "key": 7.0}).encode()
    first.serving.send([(b"7", event)] * 3 + [(b"x", EVENT)] * 2)
    status, report = first.check()
    assert status == 0
    assert "the record key is the field 'key' in all 3 records" in report.of("ok", "keys")
    assert "2 of 5 records have no text or number 'key'" in only(report.of("WARN", "keys"))


def test_key_field_that_no_record_has_fails(first: FirstRun) -> None:
    first.serving.send(make_events(20, 3))
    status, report = first.check("kafka.key_field=machine")
    assert status == 2
    text = "kafka.key_field: no record has text or a number in 'machine'"
    assert text in " ".join(report.of("FAIL"))


def test_key_that_is_the_bundle_s_key_field_is_told(first: FirstRun) -> None:
    event = json.dumps({**json.loads(EVENT), "key": 7}).encode()
    first.serving.send([(b"7", event)] * 3)
    status, report = first.check()
    assert status == 0
    assert "the record key is the field 'key' in all 3 records" in report.of("ok", "keys")


# -- the report ------------------------------------------------------------------------------------


def test_question_that_fails_hides_no_other() -> None:
    def broken() -> Iterator[Finding]:
        yield ok("begins well")
        raise RuntimeError("oops")

    def refused() -> Iterator[Finding]:
        raise redis.ConnectionError("nobody there")

    def crashed() -> Iterator[Finding]:
        raise Crash("what, where")

    lines: list[str] = []
    counts = ask_all(
        [
            Question("a", broken), Question("b", refused, ()), Question("c", crashed),
            Question("d", lambda: iter([ok("fine")]), ("c",)),
            Question("e", lambda: iter([ok("fine")]), ("d",)),
            Question("f", lambda: iter([ok("fine")])),
        ],
        lines.append,
    )  # fmt: skip
    assert counts == {"ok": 2, "WARN": 0, "FAIL": 3, "skip": 2}
    report = Report(lines)
    assert report.of("FAIL") == [
        "keyfold's own fault, please report it: RuntimeError: oops", "nobody there", "what, where",
    ]  # fmt: skip
    assert report.of("ok", "f") == ["fine"]


def test_long_findings_are_wrapped_to_80_columns() -> None:
    lines: list[str] = []
    ask_all([Question("long", lambda: iter([ok("word " * 60)]))], lines.append)
    assert max(map(len, lines)) <= 80
    assert all(line.startswith(" " * 16) for line in lines[1:])


def test_answer_that_takes_too_long_is_not_waited_for() -> None:
    never = threading.Event()
    begun = time.monotonic()
    assert within(never.wait, 0.1) is None
    assert time.monotonic() - begun < 5
    never.set()
    assert within(lambda: 3, 5) == 3
    with pytest.raises(Crash, match="why"):
        within(lambda: fails("why"), 5)


def fails(why: str) -> None:
    raise Crash(why)
