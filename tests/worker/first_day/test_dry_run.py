"""--dry-run shows what a worker would do and does none of it; --max-events stops one drained."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from confluent_kafka.admin import AdminClient
from first_run import FirstRun
from live_worker import Serving, make_events
from tiny_bundle import make_tiny_bundle

from keyfold.worker.first_day.dry_run import prediction_line
from keyfold.worker.kafka.samples import Taken, fair_shares, spread
from keyfold.worker.model import Model
from keyfold.worker.protocol import Record
from keyfold.worker.trial import Trial
from local.services import KafkaService


@pytest.fixture
def first(serving: Serving, capsys: pytest.CaptureFixture[str]) -> FirstRun:
    """Return the commands on a topic without records."""
    return FirstRun(serving, capsys)


def dry_run(first: FirstRun, *words: str) -> tuple[int, list[str]]:
    return first.run(str(first.file), "--dry-run", *words)


def test_predictions_are_those_a_worker_emits(first: FirstRun) -> None:
    serving = first.serving
    serving.send(make_events(200, 9))
    status, lines = dry_run(first)
    assert status == 0
    shown = [line for line in lines if " -> {" in line]
    assert len(shown) == 5
    with serving.running() as worker:
        serving.wait_saved([worker])
    emitted = {prediction_line(message.value()) for message in serving.records(serving.output)}
    assert set(shown) <= emitted
    assert any("200 records: 200 events of 9 keys, 0 rejects" in line for line in lines)
    assert lines[-1] == f"next: keyfold-worker {first.file}"


def test_prediction_is_shown_in_one_line() -> None:
    payload = b'{"id":"t:0:1:0","about":"t:0:1","key":"a\\u0007","output":{"v":0.5},"steps":1}'
    assert prediction_line(payload) == 't:0:1 key "a\\u0007" -> {"v":0.5}'
    assert len(prediction_line(payload.replace(b"0.5", b"5" * 99))) == 80


def test_nothing_is_written_anywhere(first: FirstRun) -> None:
    serving = first.serving
    serving.send([*make_events(100, 5), (b"key-1", b"no event")])
    assert dry_run(first, "--max-events", "60")[0] == 0
    assert serving.records(serving.output) == []
    assert serving.records(serving.dead_letter) == []
    assert serving.redis.dbsize() == 0
    admin = AdminClient({"bootstrap.servers": serving.kafka.address})
    groups = [group.group_id for group in admin.list_consumer_groups().result().valid]
    assert not [name for name in groups if serving.group in name or "keyfold-reader" in name]


def test_rejects_are_counted_by_reason_with_the_first_place(first: FirstRun) -> None:
    serving = first.serving
    event = b'{"time":1700000000000,"a":1,"b":2}'
    serving.send([(b"k", event), (b"k", b'{"time":1,"a":"x","b":2}'), (b"k", b"{]"),
                  (b"k", b'{"time":1,"a":"y","b":2}'), (None, event)], partition=2)  # fmt: skip
    status, lines = dry_run(first)
    assert status == 0
    text = " ".join(line.strip() for line in lines)
    assert "5 records: 1 events of 1 keys, 4 rejects" in text
    assert re.search(rf"2 x .*`\$\.a` \(first at {serving.input}:2:1\)", text)
    assert re.search(rf"1 x .*not valid JSON.*\(first at {serving.input}:2:2\)", text)
    assert re.search(rf"1 x the record's key is null \(first at {serving.input}:2:4\)", text)
    assert f"1 predictions would go to {serving.output}, 4 rejects" in text


def test_topic_of_other_records_is_a_failure_that_says_why(first: FirstRun) -> None:
    first.serving.send([(b"k", b'{"something":"else"}')] * 3)
    status, lines = dry_run(first)
    assert status == 2
    assert lines[-1] == "no record is an event of this bundle: see the reasons above"


def test_topic_without_records_says_so(first: FirstRun) -> None:
    status, lines = dry_run(first)
    assert status == 0
    assert f"no records in {first.serving.input} there: send some" in lines[-2]
    assert lines[-1] == f"keyfold-send LOG --config {first.file}"


def test_number_of_records_is_kept_to(first: FirstRun) -> None:
    first.serving.send(make_events(500, 30))
    _, lines = dry_run(first, "--max-events", "123", "--set", "worker.max_events=10")
    assert any("123 records: 123 events" in line for line in lines)


@pytest.mark.parametrize("most", ["0", "-1", "x"])
def test_number_that_is_none_is_refused(
    first: FirstRun, most: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        dry_run(first, "--max-events", most)
    assert stop.value.code == 2
    assert "--max-events" in capsys.readouterr().err


def test_start_latest_takes_the_newest_records(first: FirstRun) -> None:
    first.serving.send([(b"k", b"old")] * 5 + make_events(5, 1)[:5], partition=0)
    _, lines = dry_run(first, "--max-events", "5", "--set", "worker.start=latest")
    assert any("5 records: 5 events" in line for line in lines)


def test_start_at_a_time_leaves_older_records_out(
    first: FirstRun, real_kafka: KafkaService
) -> None:
    first.serving.send(make_events(5, 1), partition=0)
    _, lines = dry_run(first, "--set", "worker.start=2099-01-01T00:00:00Z")
    assert "there: send some" in lines[-2]
    for start in ("-1d", "-36500d"):  # the latter lies before 1970
        _, lines = dry_run(first, "--set", f"worker.start={start}")
        assert any("5 records: 5 events" in line for line in lines)


def test_lines_fit_80_columns(first: FirstRun) -> None:
    first.serving.send([*make_events(50, 3), (b"k" * 200, make_events(1, 1)[0][1])])
    _, lines = dry_run(first)
    own = [line for line in lines if first.serving.input not in line and "next:" not in line]
    assert max(map(len, own)) <= 80
    assert max(len(line) for line in lines if " -> {" in line) <= 80


def test_events_that_go_back_in_time_and_the_range_of_times_are_told(first: FirstRun) -> None:
    times = (1_700_000_005_000, 1_700_000_001_000, 1_700_000_009_000)
    first.serving.send([(b"k", b'{"time":%d,"a":1,"b":2}' % time) for time in times], partition=1)
    _, lines = dry_run(first)
    text = " ".join(line.strip() for line in lines)
    assert "event times: 2023-11-14T22:13:21Z .. 2023-11-14T22:13:29Z" in text
    place = f"{first.serving.input}:1:1"
    assert f"WARN 1 of 3 events go back in time within their key (first at {place})" in text


def test_broker_that_is_not_there_is_one_line(first: FirstRun) -> None:
    status, lines = dry_run(
        first, "--set", "kafka.brokers=127.0.0.1:1", "--set", "kafka.request_timeout_s=1",
        "--set", "kafka.session_timeout_s=1",
    )  # fmt: skip
    assert status == 2
    assert len(lines) == 1
    assert lines[0].startswith("keyfold-worker: ")
    assert "127.0.0.1:1" in lines[0]


def test_topic_that_is_not_there_is_one_line(first: FirstRun) -> None:
    status, lines = dry_run(first, "--set", "kafka.input=nope")
    assert status == 2
    assert len(lines) == 1
    assert "topic 'nope'" in lines[0]


# -- --max-events alone ----------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", ["at-least-once", "exactly-once"])
def test_worker_stops_drained_after_exactly_so_many_records(serving: Serving, outputs: str) -> None:
    if outputs == "exactly-once" and not serving.kafka.real:
        pytest.skip("needs transactions")
    serving.send(make_events(3000, 20))
    serving.program = ("-m", "keyfold.worker.cli", "--max-events", "1234")
    worker = serving.worker(worker__outputs=outputs)
    assert worker.wait(60) == 0, worker.log_tail()
    last = worker.log.read_text().splitlines()[-1]
    assert "stopped, drained: all that was taken of 4 partitions is saved" in last
    assert sum(serving.watermarks().values()) == 1234
    assert len(serving.records(serving.output)) == 1234
    # The rest is served by the next worker as if nothing had been.
    serving.program = ("-m", "keyfold.worker.cli")
    with serving.running(worker__outputs=outputs) as worker:
        serving.wait_saved([worker])
    serving.verify_clean(3000)


# -- the parts -------------------------------------------------------------------------------------


def test_what_one_partition_lacks_goes_to_the_others() -> None:
    assert fair_shares([10, 10, 10], 9) == [3, 3, 3]
    assert fair_shares([1, 0, 100], 9) == [1, 0, 8]
    assert fair_shares([5, 5], 100) == [5, 5]
    assert fair_shares([], 5) == []
    assert sum(fair_shares([7, 9, 2, 30], 20)) == 20


def test_partitions_are_chosen_evenly() -> None:
    assert spread(3, 5) == [0, 1, 2]
    assert spread(100, 4) == [0, 25, 50, 75]


def test_trial_is_the_same_however_records_are_grouped(tmp_path_factory: object) -> None:
    assert hasattr(tmp_path_factory, "mktemp")
    model = Model(make_tiny_bundle(tmp_path_factory.mktemp("bundle"), reset_after_ms=50))
    records: Sequence[Record] = [
        Taken(i, 1_700_000_000_000 + i, key, value)
        for i, (key, value) in enumerate(make_events(120, 7))
    ]
    whole = Trial(model, "t").run([(0, records)])
    apart = Trial(model, "t")
    pieces = [out for at in range(0, 120, 7) for out in apart.run([(0, records[at : at + 7])])]
    assert [p for _, one in whole for p in one.payloads] == [
        p for _, one in pieces for p in one.payloads
    ]
