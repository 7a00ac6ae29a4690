"""What trains, what chooses and what reports is never mixed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyfold.training.config import Split
from keyfold.training.data import DataError, Sequence
from keyfold.training.split import Parts, split


def sequence(key: str, times_ms: list[int]) -> Sequence:
    count = len(times_ms)
    x = np.arange(count, dtype=np.float32)[:, None]
    return Sequence(key, x, np.array(times_ms, np.int64), np.zeros(count, np.float32))


SEQUENCES = [sequence(f"k{i:02d}", [0, 1000, 2000, 3000]) for i in range(20)]


def keys(parts: Parts) -> list[tuple[str, ...]]:
    return [part.keys for part in (parts.train, parts.validation, parts.test)]


@given(seed=st.integers(0, 1000), validation=st.integers(1, 8), test=st.integers(0, 8))
def test_a_split_by_key_never_puts_a_key_into_two_parts(
    seed: int, validation: int, test: int
) -> None:
    settings = Split("key", validation_share=validation / 20, test_share=test / 20, seed=seed)
    parts = split(SEQUENCES, settings)
    together = [key for part in keys(parts) for key in part]
    assert sorted(together) == [s.key for s in SEQUENCES]
    assert [len(part) for part in keys(parts)] == [20 - validation - test, validation, test]


def test_a_drawn_split_depends_on_the_seed_and_not_on_the_order_of_the_log() -> None:
    settings = Split("key", validation_share=0.25, seed=3)
    assert keys(split(SEQUENCES, settings)) == keys(split(SEQUENCES[::-1], settings))
    other = Split("key", validation_share=0.25, seed=4)
    assert keys(split(SEQUENCES, settings)) != keys(split(SEQUENCES, other))


def test_named_keys_are_held_out_and_the_rest_is_drawn_from_what_is_left() -> None:
    settings = Split("key", validation_keys=("k0[0-2]",), test_keys=("k1*",), test_share=0.5)
    train, validation, test = keys(split(SEQUENCES, settings))
    assert validation == ("k00", "k01", "k02")
    assert set(test) >= {f"k1{i}" for i in range(10)}
    assert len(test) == 10 + round(0.5 * 7)
    assert not set(train) & set(validation) | set(train) & set(test)


def test_a_key_that_started_anew_stays_in_one_part() -> None:
    twice = [*SEQUENCES, sequence("k00", [4000])]
    parts = split(twice, Split("key", validation_keys=("k00",)))
    assert len(parts.validation.sequences) == 2
    assert "k00" not in parts.train.keys


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Split("key", validation_keys=("k99",)), r"validation_keys: expected a key like 'k99'"),
        (Split("key", validation_keys=("k00",), test_keys=("k00",)), "'k00' is in"),
        (Split("key", validation_keys=("*",)), "expected events to train with"),
        (Split("key", validation_share=0.01), "expected events to validation with"),
        (Split("time", validation_from="1970-01-02"), "expected events to validation with"),
        (
            Split("time", validation_from="1970-01-02", test_from="1970-01-01"),
            r"split\.test_from",
        ),
    ],
)
def test_a_split_that_cannot_be_is_refused(settings: Split, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        split(SEQUENCES, settings)


def test_a_split_by_time_folds_earlier_events_but_judges_only_later_ones() -> None:
    settings = Split("time", validation_from="1970-01-01T00:00:02", test_from="1970-01-01T00:00:03")
    parts = split([sequence("k", [0, 1000, 2000, 3000, 4000])], settings)
    shapes = [
        (len(part.sequences[0]), part.counts_from, part.events)
        for part in (parts.train, parts.validation, parts.test)
    ]
    assert shapes == [(2, (0,), 2), (3, (2,), 1), (5, (3,), 2)]


def test_an_event_out_of_time_order_does_not_leak_into_training() -> None:
    settings = Split("time", validation_from="1970-01-01T00:00:02")
    parts = split([sequence("k", [0, 2000, 1000, 3000])], settings)
    # The late 1000 follows an event of the validation part in the log, so it belongs to that part.
    assert parts.train.events == 1
    assert parts.validation.events == 3


def test_a_split_by_order_holds_out_each_keys_last_events() -> None:
    parts = split(SEQUENCES, Split(by="order", validation_share=0.25, test_share=0.25))
    assert [part.events for part in (parts.train, parts.validation, parts.test)] == [40, 20, 20]
    assert parts.test.counts_from == (3,) * 20
    assert all(len(s) == 3 for s in parts.validation.sequences)
    assert parts.validation.origins == tuple(range(20))


def test_a_split_by_time_may_go_by_shares_of_all_events() -> None:
    parts = split(SEQUENCES, Split(by="time", validation_share=0.25, test_share=0.25))
    assert [part.events for part in (parts.train, parts.validation, parts.test)] == [40, 20, 20]
    first = min(int(s.times_ms[-1]) for s in parts.test.sequences)
    assert first > max(int(s.times_ms[-1]) for s in parts.validation.sequences)


def test_a_split_by_order_counts_all_events_of_a_key_that_started_anew() -> None:
    pieces = [[0, 1, 2], [10, 11, 12, 13], [20], [30, 31]]
    twice = [sequence("k", times) for times in pieces]
    parts = split(twice, Split(by="order", validation_share=0.3, test_share=0.3))
    counted = [
        [t for s, a in zip(p.sequences, p.counts_from, strict=True) for t in s.times_ms[a:]]
        for p in (parts.train, parts.validation, parts.test)
    ]
    assert counted == [[0, 1, 2, 10], [11, 12, 13], [20, 30, 31]]
    assert [p.origins for p in (parts.train, parts.validation, parts.test)] == [
        (0, 1),
        (1,),
        (2, 3),
    ]
    assert parts.validation.counts_from == (1,)  # its state comes from the events before
