"""The offline fold: the rules that make a record an event, a reset or a reject."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_bundle import make_tiny_bundle

from keyfold.export import bundle as contract
from keyfold.export.bundle import Bundle
from keyfold.worker.verify.refold import NOT_FINITE, Kind, OfflineStep, Refold, record_digest


def event(a: float = 0.5, b: float = -0.5, time: float = 1000) -> bytes:
    return json.dumps({"a": a, "b": b, "time": time}).encode()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle"))


def kinds(refold: Refold) -> list[Kind]:
    return [refold.kind(position) for position in range(len(refold))]


def test_a_key_is_folded_as_the_graph_runs_over_its_whole_sequence(bundle: Bundle) -> None:
    golden, step = bundle.golden, OfflineStep(bundle)
    refold = Refold(step)
    length = int(golden.lengths[0])
    for t in range(length):
        x = golden.x[0, t].astype(float)
        refold.fold(2 * t, 0, b"k", event(x[0], x[1], 10 + t))
        refold.fold(2 * t + 1, 0, b"other", event(1.0, 1.0))
    for t in range(length):
        position = refold.position(2 * t)
        assert position is not None
        expected = refold.expected(position)
        assert (expected.key, expected.steps, expected.time_ms) == (b"k", t + 1, 10 + t)
        assert expected.output == golden.y[0, t].tolist()
    state = refold.states[b"k"]
    assert (state.steps, state.offset, state.time_ms) == (length, 2 * length - 2, 9 + length)


def test_a_graph_that_needs_two_rows_gives_the_same_fold(bundle: Bundle, tmp_path: Path) -> None:
    manifest = dataclasses.replace(bundle.manifest, min_rows=2)
    path = contract.save(tmp_path, manifest, bundle.step_path.read_bytes(), bundle.golden)
    one, two = Refold(OfflineStep(bundle)), Refold(OfflineStep(contract.load(path)))
    for offset in range(5):
        for refold in (one, two):
            refold.fold(offset, 0, b"k", event(offset))
    for position in range(5):
        assert one.expected(position) == two.expected(position)
    for a, b in zip(one.states[b"k"].tensors, two.states[b"k"].tensors, strict=True):
        np.testing.assert_array_equal(a[0], b[0])


def test_a_null_key_is_a_reject_and_an_empty_one_is_not(bundle: Bundle) -> None:
    refold = Refold(OfflineStep(bundle))
    refold.fold(0, 0, None, event())
    refold.fold(1, 0, b"", event())
    assert kinds(refold) == [Kind.REJECT, Kind.EVENT]
    assert refold.rejects[0].reason == "the record's key is null"
    assert refold.keys == [b""]


@pytest.mark.parametrize("value", [None, b"", b"{", b"[]", b"{}", event(1e39)])
def test_what_cannot_be_decoded_is_a_reject_and_moves_nothing(
    bundle: Bundle, value: bytes | None
) -> None:
    refold = Refold(OfflineStep(bundle))
    refold.fold(0, 0, b"k", event())
    before = refold.states[b"k"].tensors
    refold.fold(1, 0, b"k", value)
    assert kinds(refold) == [Kind.EVENT, Kind.REJECT]
    assert refold.states[b"k"].tensors is before
    assert refold.states[b"k"].offset == 0


def test_a_tombstone_resets_its_key_only(tmp_path: Path) -> None:
    refold = Refold(OfflineStep(make_tiny_bundle(tmp_path, tombstone="reset")))
    for offset, (key, value) in enumerate(
        [(b"k", event()), (b"j", event()), (b"k", None), (b"k", event()), (b"j", event())]
    ):
        refold.fold(offset, 0, key, value)
    assert kinds(refold) == [Kind.EVENT, Kind.EVENT, Kind.RESET, Kind.EVENT, Kind.EVENT]
    assert refold.expected(3) == dataclasses.replace(refold.expected(0))
    assert refold.expected(4).steps == 2


def test_a_tombstone_of_a_null_key_is_a_reject(tmp_path: Path) -> None:
    refold = Refold(OfflineStep(make_tiny_bundle(tmp_path, tombstone="reset")))
    refold.fold(0, 0, None, None)
    assert kinds(refold) == [Kind.REJECT]


def test_a_key_reset_at_last_has_no_state(tmp_path: Path) -> None:
    refold = Refold(OfflineStep(make_tiny_bundle(tmp_path, tombstone="reset")))
    refold.fold(0, 0, b"k", event())
    refold.fold(1, 0, b"k", None)
    refold.fold(2, 0, b"never stepped", None)
    assert refold.states == {}


class Diverging(OfflineStep):
    """A step whose second call leads to an infinite output or state."""

    calls = 0
    in_state = False

    def one(
        self, x: NDArray[np.float32], tensors: list[NDArray[Any]]
    ) -> tuple[NDArray[np.float32], list[NDArray[Any]]]:
        """Step, but not to a finite number the second time."""
        y, after = super().one(x, tensors)
        self.calls += 1
        if self.calls == 2:
            (after[1] if self.in_state else y)[...] = np.inf
        return y, after


@pytest.mark.parametrize("in_state", [False, True])
def test_a_step_that_is_not_finite_is_a_reject_and_moves_nothing(
    bundle: Bundle, in_state: bool
) -> None:
    step, plain = Diverging(bundle), Refold(OfflineStep(bundle))
    step.in_state = in_state
    refold = Refold(step)
    for offset in range(3):
        refold.fold(offset, 0, b"k", event(offset))
        if offset != 1:
            plain.fold(offset, 0, b"k", event(offset))
    assert kinds(refold) == [Kind.EVENT, Kind.REJECT, Kind.EVENT]
    assert refold.rejects[1].reason == NOT_FINITE
    assert refold.expected(2) == plain.expected(1)


def test_a_first_step_that_is_not_finite_leaves_the_key_cold(bundle: Bundle) -> None:
    step = Diverging(bundle)
    step.calls = 1
    refold = Refold(step)
    refold.fold(0, 0, b"k", event())
    assert refold.states == {}
    refold.fold(1, 0, b"k", event())
    assert refold.expected(1).steps == 1


def test_without_a_time_field_the_record_timestamp_is_the_event_time(tmp_path: Path) -> None:
    refold = Refold(OfflineStep(make_tiny_bundle(tmp_path, time_field=None)))
    refold.fold(0, 77, b"k", event())
    assert refold.expected(0).time_ms == 77


def test_offsets_may_have_gaps(bundle: Bundle) -> None:
    refold = Refold(OfflineStep(bundle))
    for offset in (3, 4, 9):
        refold.fold(offset, 0, b"k", event())
    assert [refold.position(offset) for offset in (2, 3, 4, 5, 9, 10)] == [
        None,
        0,
        1,
        None,
        2,
        None,
    ]
    assert refold.offset(2) == 9


def test_the_fingerprint_marks_where_the_key_ends_and_what_is_null(bundle: Bundle) -> None:
    digests = {
        record_digest(key, value)
        for key, value in [(b"k", None), (b"k", b""), (None, b"k"), (b"", b"k"), (b"kv", b"")]
    }
    assert len(digests) == 5
    refold = Refold(OfflineStep(bundle))
    refold.fold(5, 7, b"k", None)
    body = b"\x01\0\0\0k\xff\xff\xff\xff"
    assert refold.fingerprint == f"5:7:{crc32(body)}"
