"""Where a new group begins and from where it emits: words, times, what is noted and what is not.

The settings' words are pure; what they come to is asked of a log in memory and a real Valkey, then
of a real Kafka.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from time import monotonic as steady
from typing import Any

import pytest
from confluent_kafka import Producer
from live_worker import Serving
from memory_log import MemoryLog, Rec, running

from keyfold.export.bundle import Bundle
from keyfold.worker import answers as answers_module
from keyfold.worker.beginning import Moment, moment, problem_with_emit_from, problem_with_start
from keyfold.worker.model import Model
from keyfold.worker.protocol import GroupOffset
from local.services import Valkey

DAY_MS = 86_400_000
NOW_MS = 1_795_000_000_000


# -- words and times -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "at_ms"),
    [
        ("-7d", NOW_MS - 7 * DAY_MS),
        ("-12h", NOW_MS - DAY_MS // 2),
        ("-30m", NOW_MS - 1_800_000),
        ("-10s", NOW_MS - 10_000),
        ("now", NOW_MS),
        ("2026-11-21T08:00:00Z", 1_795_248_000_000),
        ("2026-11-21T08:00:00", 1_795_248_000_000),  # naive: UTC
        ("2026-11-21T09:00:00+01:00", 1_795_248_000_000),
        ("2026-11-21", 1_795_219_200_000),
        ("2026-11-21T08:00:00.250Z", 1_795_248_000_250),
    ],
)
def test_times_are_read(text: str, at_ms: int) -> None:
    assert moment(text).at(NOW_MS) == at_ms


def test_only_relative_times_depend_on_the_present() -> None:
    assert moment("2026-11-21").at_ms is not None
    assert moment("-7d") == Moment(ago_ms=7 * DAY_MS)


@pytest.mark.parametrize("text", ["", "earliest", "latest", "-7d", "2026-11-21"])
def test_start_takes_words_and_times(text: str) -> None:
    assert problem_with_start(text) == ""


@pytest.mark.parametrize("text", ["", "now", "handover", "-1d", "2026-11-21T08:00:00Z"])
def test_emit_from_takes_words_and_times(text: str) -> None:
    assert problem_with_emit_from(text) == ""


@pytest.mark.parametrize("text", ["now", "7d", "-7", "-7w", "--7d", "yesterday", "2026-13-01"])
def test_anything_else_is_refused_with_what_is_expected(text: str) -> None:
    assert problem_with_start(text) == (
        "expected earliest, latest, a time like 2026-11-21T08:00:00Z, or -7d, -12h, -30m; "
        f"got {text!r}"
    )
    wrong = "latest" if text == "now" else text
    assert problem_with_emit_from(wrong) == (
        "expected now, a time like 2026-11-21T08:00:00Z, or -7d, -12h, -30m, or handover; "
        f"got {wrong!r}"
    )


# -- offsets ---------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Set the wall clock; the first item is what it shows, in seconds."""
    shown = [NOW_MS / 1000]

    class Clock:
        time = staticmethod(lambda: shown[0])
        monotonic = staticmethod(steady)

    monkeypatch.setattr(answers_module, "time", Clock)
    return shown


def hourly(first: int, count: int) -> list[Rec]:
    """Return records of which the last one is an hour old; each is an hour older than the next."""
    begin = NOW_MS - count * 3_600_000
    return [
        Rec(first + i, b"k%d" % (i % 3),
            json.dumps({"time": 1000 * i, "a": i / 7, "b": -i / 5}).encode(),
            begin + i * 3_600_000)
        for i in range(count)
    ]  # fmt: skip


def begun(
    model: Model, log: MemoryLog, valkey: Valkey, count: int, **settings: Any
) -> tuple[dict[str, str], list[int]]:
    """Run a new group until it is at the log's end; return its meta fields and offsets emitted."""

    async def main() -> tuple[dict[str, str], list[int]]:
        async with running(model, log, valkey.url, 0, **settings) as worker:
            await worker.until_saved(count)
            emitted = [int(id_.split(":")[-2]) for id_ in worker.emitter.ids()]
            return await worker.meta(), emitted

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("start", "begin"),
    [("earliest", 2), ("-5h", 17), ("-90m", 21), ("-10s", 22), ("-9d", 2),
     ("2026-11-18T05:06:40Z", 22 - 6), ("-36500d", 2), ("1969-12-31T00:00:00Z", 2)],
)  # fmt: skip
def test_new_group_begins_at_the_first_record_as_young_as_that(
    model: Model, log: MemoryLog, valkey: Valkey, clock: list[float], start: str, begin: int
) -> None:
    log.append(*hourly(2, 20))
    log.starts[0] = 2
    meta, emitted = begun(model, log, valkey, 22, start=start)
    assert (meta["#B"], meta["#F"]) == (str(begin), "0")
    assert emitted == [*range(begin, 22)]


@pytest.mark.parametrize(("emit_from", "floor"), [("-5h", 17), ("now", 22), ("-9d", 0), ("", 0)])
def test_new_group_folds_silently_up_to_emit_from(
    model: Model, log: MemoryLog, valkey: Valkey, clock: list[float], emit_from: str, floor: int
) -> None:
    log.append(*hourly(2, 20))
    log.starts[0] = 2
    meta, emitted = begun(model, log, valkey, 22, emit_from=emit_from)
    assert (meta["#B"], meta["#F"]) == ("2", str(floor))
    assert emitted == [*range(max(floor, 2), 22)]
    assert meta["keys"] == "3"


def test_relative_time_means_the_same_for_partitions_that_begin_later(
    model: Model, log: MemoryLog, valkey: Valkey, clock: list[float]
) -> None:
    log.counts[log.topic] = log.counts["out"] = 2
    for partition in (0, 1):
        log.append(*hourly(0, 20), partition=partition)

    async def main() -> None:
        async with running(model, log, valkey.url, 0, start="-5h", emit_from="-2h") as worker:
            await worker.until_saved(20)
            clock[0] += 3 * 3600  # a partition that is acquired hours later
            worker.assign(1)
            await worker.until_saved(20, 1)
            for partition in (0, 1):
                meta = await worker.meta(partition)
                assert (meta["#B"], meta["#F"]) == ("15", "18")

    asyncio.run(main())


def test_restart_resolves_nothing_again_though_redis_lost_everything_before_the_first_save(
    model: Model, log: MemoryLog, valkey: Valkey, clock: list[float]
) -> None:
    log.append(*hourly(0, 20))
    settings = {"start": "-5h", "emit_from": "-2h"}
    log.offsets[0] = GroupOffset(15, "keyfold:init:f18")  # as a worker that was killed left it
    clock[0] += 4 * 3600
    meta, emitted = begun(model, log, valkey, 20, **settings)
    assert (meta["#B"], meta["#F"]) == ("15", "18")
    assert emitted == [18, 19]


def test_restart_of_a_group_that_has_saved_looks_at_no_setting(
    model: Model, log: MemoryLog, valkey: Valkey, clock: list[float]
) -> None:
    log.append(*hourly(0, 20))
    begun(model, log, valkey, 20, start="-5h", emit_from="-2h")
    log.append(Rec(20, b"k1", b'{"time": 99000, "a": 1, "b": 1}', NOW_MS))
    meta, emitted = begun(model, log, valkey, 21, start="earliest", emit_from="now")
    assert (meta["#B"], meta["#F"]) == ("15", "18")
    assert emitted == [20]


# -- a real Kafka ----------------------------------------------------------------------------------


@pytest.fixture
def partitions() -> int:
    return 2


def test_times_are_resolved_by_the_timestamps_of_kafka_s_records_and_verified(
    serving: Serving, bundle: Bundle, tmp_path: Path
) -> None:
    producer = Producer({"bootstrap.servers": serving.kafka.address})
    for i in range(100):
        value = json.dumps({"time": 1000 * i, "a": i / 9, "b": 1.0}).encode()
        at_ms = 1_700_000_000_000 + i * 60_000
        producer.produce(serving.input, value, b"k%d" % (i % 5), partition=i % 2, timestamp=at_ms)
    assert producer.flush(30) == 0
    # Partition 0 has the even minutes, partition 1 the odd ones.
    settings = {
        "worker__start": "2023-11-14T22:33:20Z",  # minute 20
        "worker__emit_from": "2023-11-14T22:44:20Z",  # minute 31
    }
    with serving.running(None, **settings) as worker:
        serving.wait_saved([worker])
    floors = [serving.redis.hmget(serving.hash_name(n), "#B", "#F") for n in (0, 1)]
    assert floors == [[b"10", b"16"], [b"10", b"15"]]
    findings = serving.verify_clean(80)
    assert (findings.predictions, findings.below_floor) == (69, 0)
    with serving.running(None, worker__start="earliest", worker__emit_from="now"):
        assert serving.watermarks() == {0: 50, 1: 50}
    # A time beyond the log's end is its end.
    serving.group = f"{serving.group}-late"
    with serving.running(None, worker__start="2030-01-01") as worker:
        serving.wait_saved([worker])
    assert serving.redis.hget(serving.hash_name(0), "#B") == b"50"
