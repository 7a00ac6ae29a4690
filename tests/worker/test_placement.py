"""When a key starts cold again: by a tombstone, by its own silence, by the partition's stream time.

The rules are part of the fold, so each case runs in every way a log can be cut: one micro-batch or
many, keys kept, evicted or read by another worker. Runs the real pipeline on a real Valkey with a
step that can fail; the reference is a plain loop written down here.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_log import MemoryLog, Rec, Worker, running
from multiplier import make_multiplier

from keyfold.export.events import MAX_KEY_BYTES, EventSpec
from keyfold.worker.model import Model
from keyfold.worker.protocol import Held
from keyfold.worker.state_codec import StateCodec
from keyfold.worker.store import Store
from local.services import Valkey

AFTER = 1000  # reset_after_ms
ON_TIME = 10**9  # a record timestamp that lets the event time count
AGES_AGO = -(2**63) + 5  # a record timestamp; what lies between it and now is no int64
K, Z = b"k", b"z"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    events = EventSpec(time_field="time", tombstone="reset", reset_after_ms=AFTER)
    return Model(make_multiplier(tmp_path_factory.mktemp("bundle"), events))


@dataclass(frozen=True, slots=True)
class Ev:
    """What a test says of a record; its offset is its place."""

    key: bytes | None
    time: int  # event time
    a: float | None = 2.0  # 0: the step is not finite; None: the value lacks it, a reject
    timestamp: int = ON_TIME  # the record's own

    def record(self, offset: int) -> Rec:
        """Write it."""
        members = {"time": self.time} if self.a is None else {"a": self.a, "time": self.time}
        return Rec(offset, self.key, json.dumps(members).encode(), self.timestamp)


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A record without a value."""

    key: bytes
    timestamp: int = ON_TIME

    def record(self, offset: int) -> Rec:
        """Write it."""
        return Rec(offset, self.key, None, self.timestamp)


@dataclass(slots=True)
class Outcome:
    """What came out of a log."""

    predictions: dict[int, dict[str, Any]] = field(default_factory=dict)  # by offset
    rejects: set[int] = field(default_factory=set)  # offsets
    states: dict[bytes, tuple[int, int, int, int]] = field(default_factory=dict)  # key -> see below
    stream: str = ""  # #S
    left: int | None = None  # fields of the hash that are states

    def take(self, worker: Worker) -> None:
        """Add what a worker emitted."""
        for _, _, payload in worker.emitter.sent:
            self.predictions[int(payload["id"].split(":")[-2])] = payload
        self.rejects |= {offset for _, offset, _ in worker.emitter.letters}

    async def look(self, worker: Worker) -> None:
        """Add what Redis holds: steps, last offset, last event time, stream time at that event."""
        stored = await worker.stored()
        codec = StateCodec(worker.model.bundle.manifest)
        states = codec.unpack(list(stored), list(stored.values()), 1 << 60)
        columns = (states.steps, states.offsets, states.times_ms, states.touched_ms)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        self.states = dict(zip(stored, rows, strict=True))
        meta = await worker.meta()
        self.stream = meta["#S"]
        assert meta["#K"] == meta["keys"] == str(len(stored))


Way = dict[str, Any]
WAYS: dict[str, Way] = {
    "in one micro-batch": {},
    "one event at a time": {"max_events": 1},
    "two events at a time": {"max_events": 2},
    "evicted after each event": {"evict": True},
    "by another worker after each event": {"restart": True},
}


async def serve(model: Model, url: str, events: Sequence[Ev | Tombstone], way: Way) -> Outcome:
    """Serve a log in one of the ways."""
    topic = f"in-{uuid.uuid4().hex}"
    log, outcome = MemoryLog(topic, {topic: 1, "out": 1, "dead": 1}), Outcome()
    records = [event.record(offset) for offset, event in enumerate(events)]
    options = dict(way)
    evict, restart = options.pop("evict", False), options.pop("restart", False)
    pieces = [[record] for record in records] if evict or restart else [records]
    while pieces:
        async with running(model, log, url, 0, **options) as worker:
            while pieces:
                log.append(*pieces.pop(0))
                await worker.until_saved(log.records[0][-1].offset + 1)
                if restart:
                    break
                if evict:
                    worker.slots.tick()
                    worker.slots.evict(0, {0: worker.owners[0].partition.saved})
                    assert len(worker.slots) == 0
            assert worker.crashes == []
            outcome.take(worker)
            await outcome.look(worker)
    return outcome


# One line per case: the log, and for each record the steps of its prediction, 0 for a reject, None
# for a tombstone.
CASES: dict[str, tuple[list[Ev | Tombstone], list[int | None]]] = {
    "a silence of just reset_after": ([Ev(K, 0), Ev(K, AFTER)], [1, 2]),
    "a silence of a millisecond more": ([Ev(K, 0), Ev(K, AFTER + 1)], [1, 1]),
    "a stream time of just reset_after": ([Ev(K, 0), Ev(Z, AFTER), Ev(K, 500)], [1, 1, 2]),
    "a stream time of a millisecond more": ([Ev(K, 0), Ev(Z, AFTER + 1), Ev(K, 500)], [1, 1, 1]),
    "its own event moves the stream time too": (
        [Ev(K, 900), Ev(K, 0), Ev(K, AFTER)], [1, 2, 3]
    ),
    "a silence from an event that came late": (
        [Ev(K, AFTER + 1), Ev(K, 0), Ev(K, AFTER + 1)], [1, 2, 1]
    ),
    "a silence from an event that came late, told in one micro-batch": (
        [Ev(K, AFTER + 1), Ev(Z, 0), Ev(K, 0), Ev(K, AFTER + 1)], [1, 1, 2, 1]
    ),
    "several silences": (
        [Ev(K, 0), Ev(K, 1001), Ev(Z, 1002), Ev(K, 1002), Ev(K, 3000), Ev(Z, 3001), Ev(K, 3001)],
        [1, 1, 1, 2, 1, 1, 2],
    ),
    "an event time far in the future counts as its record's timestamp": (
        [Ev(K, 0), Ev(Z, 10**15, timestamp=500), Ev(K, 10), Ev(Z, 20)], [1, 1, 2, 2]
    ),
    "a timestamp in the future counts as its event's time": (
        [Ev(K, 0), Ev(Z, 500, timestamp=10**15), Ev(K, 10)], [1, 1, 2]
    ),
    # Alone and beside a silence that is told at once, Z's: the same.
    "a timestamp ages before every event": (
        [Ev(K, 0, timestamp=AGES_AGO), Ev(K, 500), Ev(Z, 0), Ev(Z, 5000)], [1, 1, 1, 1]
    ),
    "a timestamp ages before every event, and nothing else that is silent": (
        [Ev(K, 0, timestamp=AGES_AGO), Ev(K, 500), Ev(K, 600)], [1, 1, 2]
    ),
    "a reject moves no stream time": (
        [Ev(K, 0), Ev(Z, 9000, None), Ev(None, 9000), Ev(b"x" * (MAX_KEY_BYTES + 1), 9000),
         Ev(K, 9000, None), Ev(K, AFTER)],
        [1, 0, 0, 0, 0, 2],
    ),
    "a tombstone moves no stream time": ([Ev(K, 0), Tombstone(Z), Ev(K, AFTER)], [1, None, 2]),
    "a step that is not finite moves the stream time": (
        [Ev(K, 0), Ev(Z, AFTER + 1, 0.0), Ev(K, 500)], [1, 0, 1]
    ),
    "a step that is not finite is a sign of life": (
        [Ev(K, 0), Ev(K, 900, 0.0), Ev(K, 1900), Ev(K, 2901)], [1, 0, 2, 1]
    ),
    "a step that is not finite after a silence leaves its key cold": (
        [Ev(K, 0), Ev(K, 2000, 0.0), Ev(K, 2001), Ev(K, 2002)], [1, 0, 1, 2]
    ),
    "a step that is not finite on a cold key leaves nothing": (
        [Ev(K, 0, 0.0), Ev(K, 5000, 0.0), Ev(K, 5001)], [0, 0, 1]
    ),
    "a tombstone before a silence": (
        [Ev(K, 0), Tombstone(K), Ev(K, 5000), Ev(K, 5001)], [1, None, 1, 2]
    ),
    "a tombstone after a silence": (
        [Ev(K, 0), Ev(K, 5000), Tombstone(K), Ev(K, 5001), Ev(K, 6002)], [1, 1, None, 1, 1]
    ),
    "tombstones and silences together": (
        [Ev(K, 0), Ev(Z, 0), Tombstone(K), Ev(K, 1), Ev(Z, 1001), Ev(K, 1002), Tombstone(Z),
         Tombstone(K), Ev(Z, 1003)],
        [1, 1, None, 1, 1, 1, None, None, 1],
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_key_starts_cold_again_after(model: Model, valkey: Valkey, case: str, way: str) -> None:
    events, wanted = CASES[case]
    outcome = asyncio.run(serve(model, valkey.url, events, WAYS[way]))
    steps = {offset: p["steps"] for offset, p in outcome.predictions.items()}
    assert steps == {offset: steps for offset, steps in enumerate(wanted) if steps}
    assert outcome.rejects == {offset for offset, steps in enumerate(wanted) if steps == 0}
    assert all(p["cold"] is (p["steps"] == 1) for p in outcome.predictions.values())
    assert outcome == reference(events)


# -- any log, in any way ---------------------------------------------------------------------------


def reference(events: Sequence[Ev | Tombstone]) -> Outcome:
    """Fold a log, one record after the other."""
    keys: dict[bytes, tuple[int, int, int, int, float]] = {}
    outcome, stream = WithoutCollected(), None
    for offset, event in enumerate(events):
        key = event.key
        if isinstance(event, Tombstone):
            keys.pop(event.key, None)
            continue
        if key is None or len(key) > MAX_KEY_BYTES or event.a is None:
            outcome.rejects.add(offset)
            continue
        now = min(event.time, event.timestamp)
        stream = now if stream is None else max(stream, now)
        state = keys.pop(key, None)
        if state and (event.time - state[2] > AFTER or stream - state[3] > AFTER):
            state = None
        if event.a == 0.0:
            outcome.rejects.add(offset)
            if state:
                keys[key] = (*state[:2], event.time, stream, state[4])
            continue
        steps, product = (state[0] + 1, state[4] * event.a) if state else (1, event.a)
        keys[key] = (steps, offset, event.time, stream, product)
        outcome.predictions[offset] = {"steps": steps, "value": 1 / product}
    outcome.states = {key: state[:4] for key, state in keys.items()}
    outcome.stream = "" if stream is None else str(stream)
    return outcome


class WithoutCollected(Outcome):
    """The reference: equal to an outcome that lacks some states that would start cold anyway."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Outcome):
            return NotImplemented
        said = {
            offset: {"steps": p["steps"], "value": p["output"]["value"]}
            for offset, p in other.predictions.items()
        }
        missing = self.states.keys() - other.states.keys()
        stream = int(self.stream or 0)
        return (
            said == self.predictions
            and other.rejects == self.rejects
            and other.stream == self.stream
            and other.states.items() <= self.states.items()
            and all(stream - self.states[key][3] > AFTER for key in missing)
        )


TIMES = st.sampled_from([0, 1, 400, 999, 1000, 1001, 1500, 2001, 3000, 10**9])
STAMPS = st.sampled_from([ON_TIME, 0, 1000, 2500])
KEYS = st.sampled_from([b"k", b"z", b"y"])
LOGS = st.lists(
    st.one_of(
        st.builds(Ev, KEYS, TIMES, st.sampled_from([2.0, 0.5, 1.0]), STAMPS),
        st.builds(Ev, KEYS, TIMES, st.sampled_from([0.0, None]), STAMPS),
        st.builds(Tombstone, KEYS),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=40, deadline=None)
@given(LOGS, st.sampled_from([1, 2, 3, 7, 100]), st.sampled_from([0, 2, 100]))
def test_outcome_does_not_depend_on_how_a_log_is_cut_into_micro_batches(
    model: Model, valkey: Valkey, events: list[Ev | Tombstone], max_events: int, max_keys: int
) -> None:
    way = {"max_events": max_events, "max_keys": max_keys}
    assert asyncio.run(serve(model, valkey.url, events, way)) == reference(events)


@settings(max_examples=8, deadline=None)
@given(LOGS, st.sampled_from(["evict", "restart"]))
def test_outcome_does_not_depend_on_what_is_in_memory(
    model: Model, valkey: Valkey, events: list[Ev | Tombstone], how: str
) -> None:
    assert asyncio.run(serve(model, valkey.url, events, {how: True})) == reference(events)


# -- what is collected in the background -----------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_collected_key_starts_cold_just_like_one_that_was_not(
    model: Model, valkey: Valkey, way: str
) -> None:
    events: list[Ev | Tombstone] = [Ev(K, 0), Ev(Z, 5000), Ev(K, 4500), Ev(K, 4600)]
    before = asyncio.run(serve(model, valkey.url, events[:2], WAYS[way]))
    assert before.states.keys() == {Z}  # in every way: the save that moved S collected it
    after = asyncio.run(serve(model, valkey.url, events, WAYS[way]))
    assert [p["steps"] for _, p in sorted(after.predictions.items())] == [1, 1, 1, 2]
    assert after == reference(events)


def test_key_is_collected_a_millisecond_after_its_time_and_not_before(
    model: Model, valkey: Valkey
) -> None:
    for time, kept in ((AFTER, {K, Z}), (AFTER + 1, {Z})):
        outcome = asyncio.run(serve(model, valkey.url, [Ev(K, 0), Ev(Z, time)], {"max_events": 1}))
        assert outcome.states.keys() == kept


def test_bundle_without_reset_after_collects_nothing(tmp_path: Path, valkey: Valkey) -> None:
    model = Model(make_multiplier(tmp_path, EventSpec(time_field="time")))
    events: list[Ev | Tombstone] = [Ev(K, 0), Ev(Z, 10**8), Ev(K, 10**8)]
    outcome = asyncio.run(serve(model, valkey.url, events, {"max_events": 1}))
    assert outcome.states == {K: (2, 2, 10**8, 10**8), Z: (1, 1, 10**8, 10**8)}


class CountingStore(Store):
    """Remembers how many states there were after each save."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.found: list[int] = []

    async def save(self, *args: Any) -> tuple[Held, int]:
        held, cursor = await super().save(*args)
        assert held.keys == held.found
        self.found.append(held.found)
        return held, cursor


def test_redis_stays_flat_however_many_keys_come_and_go(model: Model, valkey: Valkey) -> None:
    """Some 1,000 keys live at any time, more than Redis would scan at once; 9,000 have lived."""

    async def main() -> None:
        topic = f"in-{uuid.uuid4().hex}"
        log = MemoryLog(topic, {topic: 1, "out": 1, "dead": 1})
        log.append(*(Ev(b"%d" % i, i).record(i) for i in range(9000)))
        options: dict[str, Any] = {"max_events": 30, "store_class": CountingStore}
        async with running(model, log, valkey.url, 0, **options) as worker:
            await worker.until_saved(9000)
            store = worker.store
            assert isinstance(store, CountingStore)
            assert len(store.found) > 50
            assert 1000 < max(store.found) < 3 * 1000
            assert (await worker.meta())["#K"] == str(store.found[-1])

    asyncio.run(main())
