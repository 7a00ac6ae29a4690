"""keyfold-send: keys and partitions, the pace, and what is said when it fails."""

from __future__ import annotations

import gzip
import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from java_keys import JAVA_MURMUR2
from mock_kafka import PARTITIONS, MockKafka
from tiny_bundle import make_tiny_bundle

from keyfold.worker.errors import Crash, TopicError
from keyfold.worker.kafka.log import KafkaLog
from keyfold.worker.send import cli as command
from keyfold.worker.send import sender
from keyfold.worker.send.event_log import Entry
from keyfold.worker.send.sender import Clock, Pace, create_topic, partition_count, send

LINES = b'{"key": "k1", "time": 1, "a": 0.10}\n\n{"key": 7, "time": 2.5, "a": 2}\n'


@pytest.fixture(scope="module")
def kafka() -> Iterator[MockKafka]:
    with MockKafka() as mock:
        yield mock


def records(kafka: MockKafka, topic: str) -> list[tuple[int, bytes | None, bytes | None]]:
    """Return a topic's records: partition, key, value."""
    with KafkaLog(kafka.brokers) as log:
        return [
            (partition, message.key(), message.value())
            for partition in range(log.partitions(topic))
            for message in log.read(topic, partition, 0, log.extent(topic, partition).end)
        ]


def flags_to(kafka: MockKafka, topic: str) -> list[str]:
    """Create a topic; return the flags that send to it events keyed by their member `key`."""
    kafka.create(topic)
    return ["--brokers", kafka.brokers, "--topic", topic, "--key", "key"]


# -- keys, partitions, acks ------------------------------------------------------------------------


def test_a_key_goes_to_the_partition_that_java_clients_choose(kafka: MockKafka) -> None:
    kafka.create("partitions")
    sent = send(kafka.brokers, "partitions", [Entry(key, b"{}", 0.0) for key in JAVA_MURMUR2])
    assert (sent.events, sent.idempotent) == (len(JAVA_MURMUR2), True)
    got = {key: partition for partition, key, _ in records(kafka, "partitions")}
    assert got == {key: (h & 0x7FFFFFFF) % PARTITIONS for key, h in JAVA_MURMUR2.items()}


def test_events_of_a_key_keep_their_order(kafka: MockKafka) -> None:
    kafka.create("order")
    send(kafka.brokers, "order", (Entry(b"k", b"%d" % i, 0.0) for i in range(3000)))
    assert [value for _, _, value in records(kafka, "order")] == [b"%d" % i for i in range(3000)]


@pytest.mark.parametrize(
    ("flag", "needed"), [("--key", []), ("--time", []), ("--time", ["--sort"])]
)
def test_a_column_that_is_not_there_is_told_with_those_that_are(
    kafka: MockKafka, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    flag: str, needed: list[str],
) -> None:  # fmt: skip
    log = tmp_path / "log.csv"
    log.write_text("key,zeit,a\n" + "k,1,2\n" * 20)
    kafka.create("columns")
    where = ["--brokers", kafka.brokers, "--topic", "columns", "--key", "key", *needed]
    assert command.main([str(log), *where, flag, "Zeit"]) == 2
    assert capsys.readouterr().err == (
        f"keyfold-send: {flag}: expected a column of {log}, got 'Zeit'; there are: key, zeit, a\n"
    )
    assert records(kafka, "columns") == []


def test_what_stands_before_a_bad_line_is_sent(
    kafka: MockKafka, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(LINES + b"{}\n")
    flags = flags_to(kafka, "bad")
    assert command.main([str(log), *flags]) == 2
    error = capsys.readouterr().err
    assert error == (
        f"keyfold-send: {log}, line 4: field 'key': expected text or a number, got none "
        "(after 2 events were sent); to go on, put it right, then --from-row 4; or --from-row 4 "
        "--skip-broken leaves it out\n"
    )
    assert {key for _, key, _ in records(kafka, "bad")} == {b"k1", b"7"}


@pytest.mark.parametrize("sort", [[], ["--sort"]])
def test_going_on_as_told_sends_every_other_event_once(
    kafka: MockKafka, tmp_path: Path, capsys: pytest.CaptureFixture[str], sort: list[str]
) -> None:
    topic = f"go-on{len(sort)}"
    log = tmp_path / "log.jsonl"
    rows = [b'{"key": "k", "time": %d}' % i for i in (5, 3, 4)]
    log.write_bytes(b"\n".join([rows[0], b"", rows[1], b'{"time": 4}', rows[2]]))
    flags = [*flags_to(kafka, topic), "--time", "time", *sort]
    assert command.main([str(log), *flags]) == 2
    error = capsys.readouterr().err
    told = re.search(r"; or (.*) leaves it out", error)
    assert told is not None
    assert told[1] == (
        "--sort --from-row 2 --skip-broken" if sort else "--from-row 4 --skip-broken"
    )
    assert command.main([str(log), *flags, *told[1].split()]) == 0
    assert f"{log}, line 4: field 'key'" in capsys.readouterr().err
    order = [rows[1], rows[2], rows[0]] if sort else rows
    assert [value for _, _, value in records(kafka, topic)] == order


def test_broken_rows_that_are_left_out_are_counted_and_the_first_ones_shown(
    kafka: MockKafka, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(LINES + b"{}\n" * 7)
    flags = [*flags_to(kafka, "skip"), "--skip-broken"]
    assert command.main([str(log), *flags]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "keyfold-send: 7 broken rows were left out:"
    assert lines[1] == f"  {log}, line 4: field 'key': expected text or a number, got none"
    assert lines[6] == "  and 2 more"
    assert lines[7].startswith("keyfold-send: 2 events to skip")
    assert {key for _, key, _ in records(kafka, "skip")} == {b"k1", b"7"}


def test_a_file_that_breaks_off_says_where_to_go_on(
    kafka: MockKafka, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.csv"
    log.write_text("key,a\nk,1\nk,2,3\nk,4\n")
    flags = flags_to(kafka, "cells")
    assert command.main([str(log), *flags]) == 2
    said = capsys.readouterr().err
    assert said.endswith(
        "(after 1 events were sent); to go on, put it right, then --from-row 2; or --from-row 2 "
        "--skip-broken leaves it out\n"
    )
    assert command.main([str(log), *flags, "--from-row", "2", "--skip-broken"]) == 0
    assert f"{log}, row 2: expected 2 cells" in capsys.readouterr().err
    assert [value for _, _, value in records(kafka, "cells")] == [
        b'{"key":"k","a":1}', b'{"key":"k","a":4}',
    ]  # fmt: skip
    (tmp_path / "half.csv.gz").write_bytes(gzip.compress(b"key,a\nk,1\n" * 9000)[:-20])
    assert command.main([str(tmp_path / "half.csv.gz"), *flags, "--skip-broken"]) == 2
    assert re.search(r"to go on, put it right, then --from-row \d+\n", capsys.readouterr().err)


@pytest.mark.parametrize("sort", [[], ["--sort"]])
def test_rows_that_are_no_rows_or_no_text_are_left_out_and_named(
    kafka: MockKafka, tmp_path: Path, capsys: pytest.CaptureFixture[str], sort: list[str]
) -> None:
    topic = f"no-rows{len(sort)}"
    log = tmp_path / "log.csv"
    log.write_bytes(b"key,t,a\nk,1,x\nk,2,3,4\n\nk,3,\xfc\nk,5,\xc3\xbc\n\xff,6,1\nk,4,y\n")
    flags = [*flags_to(kafka, topic), "--time", "t", *sort]
    assert command.main([str(log), *flags, "--skip-broken"]) == 0
    said = capsys.readouterr().err
    assert "3 broken rows were left out:\n" in said
    assert f"  {log}, row 2: expected 3 cells as in the first line, got 4; is ',' the" in said
    for row, byte in ((3, "fc"), (5, "ff")):
        assert (
            f"  {log}, row {row}: expected text in utf-8, got byte 0x{byte}; save the file as "
            "UTF-8 or name its encoding: --csv-encoding, in training.toml data.csv_encoding\n"
        ) in said
    sent = [json.loads(value or b"")["a"] for _, _, value in records(kafka, topic)]
    assert sent == (["x", "y", "ü"] if sort else ["x", "ü", "y"])
    if not sort:  # those before the first one are nobody's business any more
        assert command.main([str(log), *flags, "--skip-broken", "--from-row", "4"]) == 0
        assert "1 broken rows were left out:\n" in capsys.readouterr().err


def test_a_time_zone_that_has_an_hour_twice_keeps_its_passes_apart(
    kafka: MockKafka, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    night = [f"2025-10-26 {h:02d}:{m}:00" for h in (2, 2, 3) for m in (10, 30, 59)]
    rows = [f"{key},{at},{n}\n" for n, at in enumerate(night) for key in ("x", "y")]
    log = tmp_path / "log.csv"
    log.write_text("key,t,a\n" + "".join([*rows, "x,2025-10-26 01:00:00,-1\n"]))
    flags = [*flags_to(kafka, "night"), "--time", "t"]
    zone = ["--time-unit", "iso", "--time-zone", "Europe/Berlin", "--sort"]
    assert command.main([str(log), *flags, *zone]) == 0
    told = [json.loads(value or b"") for _, _, value in records(kafka, "night")]
    assert [one["a"] for one in told if one["key"] == "x"] == list(range(-1, 9))
    assert [one["a"] for one in told if one["key"] == "y"] == list(range(9))
    assert (
        "keyfold-send: 4 events are earlier than one of their key before them (first: row 7): the "
        "time zone has their hour twice, and the second pass comes behind the first\n"
    ) in capsys.readouterr().err


def test_times_as_numbers_that_were_sorted_are_not_taken_for_those_of_two_passes(
    kafka: MockKafka, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"key":"k","t":1400}\n{"key":"k","t":1200}\n')  # of the same millisecond
    flags = [*flags_to(kafka, "microseconds"), "--time", "t"]
    assert command.main([str(log), *flags, "--time-unit", "us", "--sort"]) == 0
    assert "earlier" not in capsys.readouterr().err


def test_a_time_zone_that_is_none_is_refused(
    kafka: MockKafka, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--brokers", kafka.brokers, "--topic", "night", "--key", "k", "--time-zone", "Mars"]
    assert command.main([str(tmp_path / "log.csv"), *flags]) == 2
    assert "'Mars'" in capsys.readouterr().err


def test_events_that_go_back_in_time_are_warned_of_and_can_be_sorted(
    kafka: MockKafka, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kafka.create("unsorted")
    kafka.create("sorted")
    bundle = make_tiny_bundle(tmp_path)
    log = tmp_path / "log.jsonl"
    # No features, a key of its own, and a time that is none: only the order of a key matters.
    rows = [b'{"key": "%s", "time": %s}' % row for row in (
        (b"a", b"5"), (b"b", b"1"), (b"a", b"4"), (b"a", b'"noon"'), (b"a", b"3"), (b"a", b"5"),
    )]  # fmt: skip
    log.write_bytes(b"\n".join(rows))
    flags = ["--brokers", kafka.brokers, "--bundle", str(bundle.path)]
    assert command.main([str(log), *flags, "--topic", "unsorted"]) == 0
    assert (
        "keyfold-send: warning: 2 events are earlier than one of their key before them (first: row "
        "3); --sort puts them in order\n"
    ) in capsys.readouterr().err
    assert command.main([str(log), *flags, "--topic", "sorted", "--sort"]) == 0
    assert "earlier" not in capsys.readouterr().err
    sent = [value for _, key, value in records(kafka, "sorted") if key == b"a"]
    assert sent == [rows[4], rows[2], rows[3], rows[0], rows[5]]


def test_sorting_needs_a_time(
    kafka: MockKafka, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.jsonl").write_bytes(LINES)
    flags = [*flags_to(kafka, "timeless"), "--sort"]
    assert command.main([str(tmp_path / "log.jsonl"), *flags]) == 2
    assert "keyfold-send: --sort: expected --time FIELD" in capsys.readouterr().err


def test_standard_input_is_sent_up_to_the_limit(
    kafka: MockKafka, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LINES)))
    flags = [*flags_to(kafka, "stdin"), "--limit", "1"]
    assert command.main(["-", *flags]) == 0
    assert [key for _, key, _ in records(kafka, "stdin")] == [b"k1"]
    assert "1 events to stdin" in capsys.readouterr().err


def test_the_fields_names_come_from_a_bundle(kafka: MockKafka, tmp_path: Path) -> None:
    kafka.create("bundle")
    bundle = make_tiny_bundle(tmp_path)
    log = tmp_path / "log.jsonl"
    log.write_bytes(LINES)
    flags = ["--brokers", kafka.brokers, "--topic", "bundle", "--bundle", str(bundle.path)]
    assert command.main([str(log), *flags, "--time-lapse", "1e9"]) == 0
    assert len(records(kafka, "bundle")) == 2


def test_a_missing_topic_is_refused_and_not_created(
    kafka: MockKafka, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.jsonl").write_bytes(LINES)
    flags = ["--brokers", kafka.brokers, "--topic", "nowhere", "--key", "key"]
    assert command.main([str(tmp_path / "log.jsonl"), *flags]) == 2
    assert "--create-partitions" in capsys.readouterr().err
    assert partition_count(kafka.brokers, "nowhere") is None


def test_an_existing_topic_must_have_the_partitions_asked_for(kafka: MockKafka) -> None:
    kafka.create("there")
    create_topic(kafka.brokers, "there", PARTITIONS)
    with pytest.raises(TopicError, match="expected 3 partitions, got 4"):
        create_topic(kafka.brokers, "there", 3)


@pytest.mark.parametrize("flags", [["--rate", "0"], ["--rate", "1", "--time-lapse", "1"]])
def test_a_contradictory_pace_is_refused(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(["log", "--brokers", "b", "--topic", "t", *flags])
    assert stop.value.code == 2
    assert "--rate" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "said"), [([], "--key"), (["--key", "k"], "--time")])
def test_a_missing_field_name_is_asked_for(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["log", "--brokers", "b", "--topic", "t", "--time-lapse", "2", *flags]
    assert command.main(argv) == 2
    assert capsys.readouterr().err.startswith(f"keyfold-send: {said}")


# -- brokers that cannot be idempotent, deliveries that fail ---------------------------------------


class FakeProducer:
    """Stands in for confluent-kafka's: refuses what `refuses` says, and remembers the rest."""

    refuses = "idempotence"
    made: list[FakeProducer]

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.written: list[bytes] = []
        self._acks: list[KafkaError | None] = []
        self.made.append(self)

    def produce(self, topic: str, value: bytes, key: bytes) -> None:
        """Take a record."""
        if self.refuses == "idempotence" and self.settings["enable.idempotence"]:
            error = KafkaError(KafkaError.UNSUPPORTED_VERSION, "no such request", fatal=True)
            self.settings["error_cb"](error)
            raise KafkaException(error)
        self.written.append(value)
        failed = self.refuses == "third" and len(self.written) == 3
        self._acks.append(KafkaError(KafkaError._MSG_TIMED_OUT) if failed else None)

    def poll(self, timeout: float) -> int:
        """Hand out acks."""
        return self.flush(timeout)

    def flush(self, timeout: float) -> int:
        """Hand out acks."""
        for error in self._acks:
            self.settings["on_delivery"](error, None)
        self._acks.clear()
        return 0


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeProducer]:
    monkeypatch.setattr(FakeProducer, "made", [], raising=False)
    monkeypatch.setattr(sender, "Producer", FakeProducer)
    return FakeProducer


def test_a_broker_without_idempotence_is_used_without_it_and_that_is_logged(
    fake: type[FakeProducer], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        sent = send("b", "t", [Entry(b"k", b"1", 0.0), Entry(b"k", b"2", 0.0)])
    assert (sent.events, sent.idempotent) == (2, False)
    first, second = fake.made
    assert (first.settings["enable.idempotence"], first.written) == (True, [])
    assert second.written == [b"1", b"2"]
    assert second.settings["max.in.flight"] == 1
    assert "refuses idempotent producers" in caplog.text


def test_an_event_that_is_not_delivered_ends_the_sending(
    fake: type[FakeProducer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "refuses", "third")
    with pytest.raises(Crash, match=r"topic 't' at b: not delivered: .* \(2 events were\)"):
        send("b", "t", [Entry(b"k", b"%d" % i, 0.0) for i in range(3)])


# -- pace ------------------------------------------------------------------------------------------


def due(pace: Pace, times_ms: list[float], now_s: float) -> list[float]:
    """Return when events are due after the first one, as seen at one instant."""
    clock = Clock(pace)
    clock_times = [clock.due_in(Entry(b"", b"", time), now_s) for time in times_ms]
    return [round(seconds, 6) for seconds in clock_times]


def test_a_rate_spaces_events_evenly() -> None:
    assert due(Pace(rate=10), [5, 5, 5], 100.0) == [0.0, 0.1, 0.2]


def test_a_time_lapse_follows_event_time_faster() -> None:
    assert due(Pace(time_lapse=10), [1000, 2000, 1500, 6000], 100.0) == [0.0, 0.1, 0.05, 0.5]


def test_a_late_event_is_due_at_once_and_the_pace_catches_up() -> None:
    clock = Clock(Pace(rate=10))
    assert clock.due_in(Entry(b"", b"", 0), 100.0) == 0.0
    assert clock.due_in(Entry(b"", b"", 0), 105.0) < 0
    assert clock.due_in(Entry(b"", b"", 0), 100.1) == pytest.approx(0.1)


def test_without_a_pace_nothing_waits() -> None:
    assert due(Pace(), [0, 9e9], 100.0) == [0.0, 0.0]
