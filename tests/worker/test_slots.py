"""The slots: found by partition and key, never shared, never leaking one key's state to another.

A model-based test runs random operations against a plain dictionary; the rest are single promises
about what counts as changed and what may be dropped. Needs nothing but numpy.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from keyed_bundle import make_keyed_bundle
from tiny_bundle import make_tiny_bundle

from keyfold.export.bundle import Manifest, StateSpec
from keyfold.export.events import EventSpec, OutputSpec
from keyfold.export.features import FeatureSpec
from keyfold.worker.slots import Slots, as_rows
from keyfold.worker.state_codec import States

MANIFEST = Manifest(
    EventSpec(),
    FeatureSpec.numbers("a"),
    OutputSpec("regression", ("y",)),
    (StateSpec("s", "s_out", (2,), initial=0.5),),
    "",
)


@pytest.fixture
def slots() -> Slots:
    return Slots(MANIFEST)


def step(slots: Slots, partition: int, key: bytes, value: float, offset: int) -> int:
    """Apply an event to a resident or cold key, as the pipeline does."""
    found = slots.of(partition).get(key)
    slot = slots.add(partition, key) if found is None else found
    rows = as_rows([slot])
    slots.scatter(rows, {"s": np.full((1, 2), value, np.float32)})
    slots.steps[rows] += np.uint64(1)
    slots.offsets[rows] = offset
    slots.mark(partition, rows, offset + 1)
    return slot


def changed_keys(slots: Slots, partition: int) -> list[bytes]:
    return sorted(slots.keys[row] for row in slots.changed(partition))


def test_added_key_is_cold() -> None:
    slots = Slots(MANIFEST)
    slot = slots.add(3, b"k")
    assert slots.of(3) == {b"k": slot}
    assert slots.gather(as_rows([slot]))["s"].tolist() == [[0.5, 0.5]]
    assert (slots.steps[slot], slots.offsets[slot], slots.times_ms[slot]) == (0, -1, 0)
    assert changed_keys(slots, 3) == []


def test_a_slot_used_again_has_forgotten_what_its_key_kept_around_the_graph(
    tmp_path: Path,
) -> None:
    slots = Slots(make_keyed_bundle(tmp_path).manifest)
    old = as_rows([slots.add(0, b"k")])
    cold = slots.gather(old)
    assert np.isnan(cold["front.last"]).all()
    assert np.isnan(cold["back.forecast"]).all()
    assert cold["front.time_ms"].tolist() == [np.iinfo(np.int64).min]
    assert not cold["front.moments"].any()
    slots.scatter(old, {name: np.ones_like(tensor) for name, tensor in cold.items()})
    slots.drop(0)
    new = as_rows([slots.add(1, b"other")])
    assert new == old
    np.testing.assert_equal(slots.gather(new), cold)


def test_same_key_of_two_partitions_has_two_slots(slots: Slots) -> None:
    assert step(slots, 0, b"k", 1.0, 0) != step(slots, 1, b"k", 2.0, 0)
    assert len(slots) == 2


def test_freed_slot_starts_cold_again_for_another_key(slots: Slots) -> None:
    old = step(slots, 0, b"k", 9.0, 7)
    slots.times_ms[old], slots.touched_ms[old], slots.gaps[old] = 5, 6, True
    slots.drop(0)
    new = slots.add(1, b"other")
    assert new == old
    assert slots.gather(as_rows([new]))["s"].tolist() == [[0.5, 0.5]]
    assert (slots.steps[new], slots.offsets[new]) == (0, -1)
    assert (slots.times_ms[new], slots.touched_ms[new], slots.gaps[new]) == (0, 0, False)
    assert changed_keys(slots, 0) == changed_keys(slots, 1) == []


def test_slot_that_moved_to_another_partition_is_saved_by_that_one_only(slots: Slots) -> None:
    step(slots, 0, b"k", 9.0, 7)
    slots.mark(1, np.empty(0, np.intp), 0)
    touched_by_0 = slots.of(0)[b"k"]
    slots.retire(touched_by_0)  # a tombstone's key left it, partition 0 has it in its list
    slots.of(0).pop(b"k")
    assert step(slots, 1, b"z", 1.0, 0) == touched_by_0
    assert changed_keys(slots, 0) == []
    assert changed_keys(slots, 1) == [b"z"]


def test_growing_keeps_every_state() -> None:
    slots = Slots(MANIFEST)
    for number in range(5000):
        step(slots, number % 3, b"%d" % number, float(number), number)
    for number in range(5000):
        row = as_rows([slots.of(number % 3)[b"%d" % number]])
        assert slots.gather(row)["s"][0, 0] == number
        assert slots.keys[row[0]] == b"%d" % number
    assert len({slot for p in range(3) for slot in slots.of(p).values()}) == 5000


def test_snapshot_is_a_copy_and_makes_the_keys_unchanged(slots: Slots) -> None:
    slot = step(slots, 0, b"k", 1.0, 4)
    step(slots, 1, b"k", 2.0, 5)
    saved = slots.snapshot(0, slots.changed(0))
    step(slots, 0, b"k", 3.0, 6)
    assert isinstance(saved, States)
    assert saved.tensors["s"].tolist() == [[1.0, 1.0]]
    assert (saved.steps.tolist(), saved.offsets.tolist()) == ([1], [4])
    assert changed_keys(slots, 0) == [b"k"]
    slots.snapshot(0, as_rows([slot]))
    assert changed_keys(slots, 0) == []
    assert changed_keys(slots, 1) == [b"k"]


def test_fill_sets_the_states_just_added(slots: Slots) -> None:
    rows = as_rows([slots.add(0, b"a"), slots.add(0, b"b")])
    states = States(
        np.array([1, 2], np.uint64),
        np.array([3, 4]),
        np.array([5, 6]),
        np.array([7, 8]),
        np.array([False, True]),
        {"s": np.array([[1, 2], [3, 4]], np.float32)},
    )
    slots.fill(rows, states)
    assert slots.gather(rows[::-1])["s"].tolist() == [[3, 4], [1, 2]]
    assert slots.steps[rows].tolist() == [1, 2]
    assert (slots.offsets[rows].tolist(), slots.times_ms[rows].tolist()) == ([3, 4], [5, 6])
    assert (slots.touched_ms[rows].tolist(), slots.gaps[rows].tolist()) == ([7, 8], [False, True])
    assert changed_keys(slots, 0) == []


# -- eviction --------------------------------------------------------------------------------------


def resident(slots: Slots, partitions: Iterable[int]) -> set[bytes]:
    return {key for partition in partitions for key in slots.of(partition)}


def save(slots: Slots, partition: int) -> None:
    slots.snapshot(partition, slots.changed(partition))


def test_least_recently_used_saved_key_is_evicted_first(slots: Slots) -> None:
    for offset, key in enumerate((b"a", b"b", b"c")):
        slots.tick()
        step(slots, 0, key, 1.0, offset)
    step(slots, 0, b"a", 1.0, 3)
    save(slots, 0)
    slots.tick()
    assert slots.evict(2, {0: 4}) == 1
    assert resident(slots, [0]) == {b"a", b"c"}


def test_key_with_unsaved_changes_is_never_evicted(slots: Slots) -> None:
    step(slots, 0, b"changed", 1.0, 0)
    slots.tick()
    assert slots.evict(0, {0: 100}) == 0


def test_key_whose_save_is_in_flight_is_never_evicted(slots: Slots) -> None:
    step(slots, 0, b"k", 1.0, 10)
    save(slots, 0)  # sent, but W is still 10
    slots.tick()
    assert slots.evict(0, {0: 10}) == 0
    assert slots.evict(0, {0: 11}) == 1


def test_key_that_was_reset_is_not_evicted_before_redis_has_forgotten_its_state(
    slots: Slots,
) -> None:
    # Its slot has no event: only the end of the micro-batch that reset it tells when it is saved.
    reset = slots.add(0, b"k")
    slots.mark(0, as_rows([reset]), 11)
    save(slots, 0)
    slots.tick()
    assert slots.evict(0, {0: 10}) == 0
    assert slots.evict(0, {0: 11}) == 1


def test_key_used_by_this_micro_batch_is_never_evicted(slots: Slots) -> None:
    slots.tick()
    slots.add(0, b"k")
    assert slots.evict(0, {0: 100}) == 0


def test_key_of_a_partition_without_a_watermark_is_never_evicted(slots: Slots) -> None:
    # Being drained: its owner is no longer listed, its slots are still there.
    for partition in (0, 1, 5):
        step(slots, partition, b"k%d" % partition, 1.0, 0)
        save(slots, partition)
    slots.tick()
    assert slots.evict(1, {0: 1}) == 1
    assert resident(slots, [0, 1, 5]) == {b"k1", b"k5"}
    assert slots.evict(1, {}) == 0


def test_evicting_everything_leaves_the_free_slots_alone(slots: Slots) -> None:
    for number in range(40):
        step(slots, 0, b"%d" % number, 1.0, number)
    save(slots, 0)
    slots.tick()
    assert slots.evict(0, {0: 40}) == 40
    assert len(slots) == 0
    assert slots.evict(0, {0: 40}) == 0


# -- all together ----------------------------------------------------------------------------------

KEYS = st.sampled_from([b"", b"a", b"b", b"c", b"\xff"])
PARTITIONS = st.sampled_from([0, 1, 4])


class SlotsAgainstADictionary(RuleBasedStateMachine):
    """Random lives of slots; `memory` and `redis` say what must be where."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots(MANIFEST)
        self.memory: dict[tuple[int, bytes], float] = {}
        self.unsaved: set[tuple[int, bytes]] = set()
        self.offset = 0

    @rule(partition=PARTITIONS, key=KEYS)
    def step(self, partition: int, key: bytes) -> None:
        self.offset += 1
        self.slots.tick()
        step(self.slots, partition, key, float(self.offset), self.offset)
        self.memory[partition, key] = float(self.offset)
        self.unsaved.add((partition, key))

    @rule(partition=PARTITIONS, key=KEYS)
    def reset(self, partition: int, key: bytes) -> None:
        self.slots.tick()
        old = self.slots.of(partition).get(key)
        new = self.slots.add(partition, key)
        self.slots.mark(partition, as_rows([new]), self.offset + 1)
        if old is not None:
            self.slots.retire(old)
        self.memory[partition, key] = 0.5
        self.unsaved.add((partition, key))

    @rule(partition=PARTITIONS)
    def save(self, partition: int) -> None:
        rows = self.slots.changed(partition)
        wanted = {(partition, self.slots.keys[row]) for row in rows.tolist()}
        assert wanted == {place for place in self.unsaved if place[0] == partition}
        self.slots.snapshot(partition, rows)
        self.unsaved -= wanted

    @rule(partition=PARTITIONS)
    def drop(self, partition: int) -> None:
        self.slots.drop(partition)
        self.memory = {p: v for p, v in self.memory.items() if p[0] != partition}
        self.unsaved = {p for p in self.unsaved if p[0] != partition}

    @rule(most=st.integers(0, 4))
    def evict(self, most: int) -> None:
        self.slots.tick()
        self.slots.evict(most, dict.fromkeys((0, 1, 4), self.offset + 1))
        left = {(p, key) for p in (0, 1, 4) for key in self.slots.of(p)}
        assert self.unsaved <= left <= set(self.memory)
        assert len(left) <= max(most, len(self.unsaved))
        self.memory = {place: self.memory[place] for place in left}

    @invariant()
    def every_key_has_its_own_slot_and_state(self) -> None:
        places = {(p, key): s for p in (0, 1, 4) for key, s in self.slots.of(p).items()}
        assert places.keys() == self.memory.keys()
        assert len(set(places.values())) == len(places) == len(self.slots)
        for place, slot in places.items():
            assert self.slots.tensors["s"][slot].tolist() == [self.memory[place]] * 2
            assert self.slots.keys[slot] == place[1]


SlotsAgainstADictionary.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestSlots = SlotsAgainstADictionary.TestCase


def test_slots_of_a_real_bundle_hold_its_tensors(tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path, hidden=3)
    slots = Slots(bundle.manifest)
    rows = as_rows([slots.add(0, b"a"), slots.add(0, b"b")])
    assert {name: t.shape for name, t in slots.gather(rows).items()} == {"h": (2, 3), "c": (2, 3)}
