"""A silent key starts anew, by event time or by stream time, and never a millisecond too early."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from naive_worker import LogRecord, serve
from numpy.typing import NDArray
from tiny_bundle import make_tiny_bundle
from verify_case import BASE, PARTITION, Case, expiring, make_case, only

from keyfold.export.bundle import Bundle
from keyfold.worker.verify.findings import Fault
from keyfold.worker.verify.refold import Kind, OfflineStep, Refold

AFTER = 1000  # reset_after_ms
ON_TIME = 10**9  # a record timestamp that lets event time alone decide


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return expiring(make_tiny_bundle(tmp_path, tombstone="reset"), tmp_path, AFTER)


def value(time: int, a: float = 0.5) -> bytes:
    return json.dumps({"a": a, "b": -0.5, "time": time}).encode()


class Diverging(OfflineStep):
    """A step that does not end at a finite number where a test says so."""

    diverges = False

    def one(
        self, x: NDArray[np.float32], tensors: list[NDArray[Any]]
    ) -> tuple[NDArray[np.float32], list[NDArray[Any]]]:
        """Step, but not to a finite number."""
        y, after = super().one(x, tensors)
        if self.diverges:
            y = y * np.float32(np.inf)
        return y, after


class Fold:
    """A refold that takes events as key and time, and says which step of the key each one was."""

    def __init__(self, bundle: Bundle) -> None:
        self.step = Diverging(bundle)
        self.refold = Refold(self.step)
        self.offset = 0

    def event(self, key: bytes, time: int, timestamp: int = ON_TIME, *, ok: bool = True) -> int:
        """Return the key's steps; 0: a reject."""
        self.step.diverges = not ok
        self.record(key, value(time), timestamp)
        position = len(self.refold) - 1
        is_event = self.refold.kind(position) is Kind.EVENT
        return self.refold.expected(position).steps if is_event else 0

    def record(self, key: bytes | None, value: bytes | None, timestamp: int = ON_TIME) -> None:
        self.refold.fold(self.offset, timestamp, key, value)
        self.offset += 1


@pytest.fixture
def fold(bundle: Bundle) -> Fold:
    return Fold(bundle)


def test_a_key_expires_one_ms_after_the_limit_and_not_at_it(fold: Fold) -> None:
    assert [fold.event(b"k", t) for t in (0, 1000, 2000, 3001, 3002)] == [1, 2, 3, 1, 2]
    assert fold.refold.expired == 1


def test_an_expired_key_predicts_as_one_never_seen(fold: Fold) -> None:
    for key, time in ((b"k", 0), (b"k", 1), (b"k", 1002), (b"new", 1002)):
        fold.event(key, time)
    last, new = fold.refold.expected(2), fold.refold.expected(3)
    assert (last.steps, last.output) == (new.steps, new.output) == (1, new.output)


def test_without_a_limit_no_key_expires(tmp_path: Path) -> None:
    fold = Fold(make_tiny_bundle(tmp_path))
    assert [fold.event(b"k", t) for t in (0, 10**12)] == [1, 2]
    assert fold.refold.stream_ms == ON_TIME


def test_a_late_event_of_a_key_expires_by_stream_time_alone(fold: Fold) -> None:
    # The key's own times are close, but the stream went on in between.
    fold.event(b"k", 0)
    fold.event(b"other", 1000)
    assert fold.event(b"k", 1) == 2  # touched at 1000 now
    fold.event(b"other", 2001)
    assert fold.event(b"k", 2) == 1


def test_the_event_itself_moves_the_stream_before_its_key_is_judged(fold: Fold) -> None:
    fold.event(b"k", 0)
    fold.event(b"k", 5000, 0)  # own gap: it starts anew, the stream stands at 0
    assert fold.event(b"k", 4000, 1001) == 1  # own gap is negative; the stream is at 1001 now


def test_a_key_is_touched_at_the_stream_time_not_at_its_own(fold: Fold) -> None:
    fold.event(b"other", 5000)
    assert fold.event(b"k", 100) == 1  # far behind the stream
    fold.event(b"other", 5900)
    assert fold.event(b"k", 200) == 2  # 900 after it was touched, not 5,800


def test_own_time_counts_from_the_key_s_last_event_not_its_latest(fold: Fold) -> None:
    fold.event(b"k", 3000, 0)
    fold.event(b"k", 0, 0)
    assert fold.event(b"k", 1001, 0) == 1


def test_a_time_in_the_future_does_not_move_the_stream_past_the_record_timestamp(
    fold: Fold,
) -> None:
    fold.event(b"k", 0, 0)
    fold.event(b"broken clock", 10**12, 50)
    assert fold.refold.stream_ms == 50
    assert fold.event(b"k", 60, 60) == 2


@pytest.mark.parametrize(
    ("key", "value_"),
    [(b"j", b"{"), (None, value(9999)), (b"j", None)],
    ids=["bad", "null", "dead"],
)
def test_rejects_and_tombstones_do_not_move_the_stream(
    fold: Fold, key: bytes | None, value_: bytes | None
) -> None:
    fold.event(b"k", 0)
    fold.record(key, value_)
    assert fold.refold.stream_ms == 0
    assert fold.event(b"k", 1) == 2


def test_a_reject_of_a_key_does_not_touch_it(fold: Fold) -> None:
    fold.event(b"k", 0)
    fold.record(b"k", b"{")
    fold.event(b"other", 1001)
    assert fold.event(b"k", 0) == 1


def test_a_step_that_is_not_finite_touches_its_key_and_moves_the_stream(fold: Fold) -> None:
    fold.event(b"k", 0)
    before = fold.refold.states[b"k"].tensors
    assert fold.event(b"k", 900, ok=False) == 0
    state = fold.refold.states[b"k"]
    assert (state.steps, state.offset, state.time_ms, state.touched_ms) == (1, 0, 900, 900)
    assert state.tensors is before
    assert fold.event(b"k", 1900) == 2


def test_an_expired_key_whose_step_is_not_finite_has_no_state(fold: Fold) -> None:
    fold.event(b"k", 0)
    assert fold.event(b"k", 1001, ok=False) == 0
    assert fold.refold.states == {}
    assert fold.refold.stream_ms == 1001
    assert fold.event(b"k", 1002) == 1


def test_a_key_without_state_is_not_touched_by_a_step_that_is_not_finite(fold: Fold) -> None:
    assert fold.event(b"k", 0, ok=False) == 0
    assert (fold.refold.states, fold.refold.stream_ms) == ({}, 0)


def test_a_record_timestamp_that_is_no_event_time_is_a_reject_here_as_for_a_worker(
    tmp_path: Path,
) -> None:
    untimed = make_tiny_bundle(tmp_path, time_field=None, reset_after_ms=AFTER)
    stamps = [0, 2**63 - 1, -(2**63), 500, 1501]
    log = [LogRecord(BASE + i, stamp, b"k", value(0, i)) for i, stamp in enumerate(stamps)]
    case = make_case(untimed, log)
    assert len(case.served.letters) == 2
    assert case.served.meta["#S"] == "1501"
    findings = case.verify()
    assert not findings.counts
    assert findings.expired == 1
    fold = Fold(untimed)
    for record in log:
        fold.record(record.key, record.value, record.timestamp_ms)
    assert [reject.reason for reject in fold.refold.rejects.values()] == [
        "the record's timestamp, its event time, is out of range"
    ] * 2


# -- the same, judged by what a worker has left behind ---------------------------------------------


def a_case(bundle: Bundle, *events: tuple[bytes, int]) -> Case:
    """Serve events of (key, time)."""
    return make_case(bundle, log_of(*events))


def log_of(*events: tuple[bytes, int]) -> list[LogRecord]:
    return [LogRecord(BASE + i, ON_TIME, key, value(t, i)) for i, (key, t) in enumerate(events)]


EVENTS = ((b"k", 0), (b"k", 500), (b"j", 1501), (b"k", 1502))  # the last one starts anew


def test_an_expired_key_started_anew_is_clean(bundle: Bundle) -> None:
    findings = a_case(bundle, *EVENTS).verify()
    assert not findings.counts
    assert (findings.expired, findings.states, findings.max_abs_difference) == (1, 2, 0.0)


def served_with(tmp_path: Path, case: Case, reset_after_ms: int) -> Case:
    """Return the case as a worker with another limit would have served it, under the same id."""
    other = expiring(make_tiny_bundle(tmp_path, tombstone="reset"), tmp_path, reset_after_ms)
    wrong = serve(other, "in", PARTITION, case.log)
    wrong.meta["#M"] = case.bundle.id
    wrong.outputs = [
        (key, (text or b"").replace(other.id.encode(), case.bundle.id.encode()))
        for key, text in wrong.outputs
    ]
    case.served = wrong
    return case


@pytest.mark.parametrize(
    ("last", "reset_after_ms", "expected"),
    [
        (1501, AFTER + 1, "steps 1"),  # not reset: a millisecond too patient
        (1500, AFTER - 1, "steps 3"),  # reset a millisecond too early
    ],
)
def test_a_worker_that_expires_a_key_too_late_or_too_early_is_found(
    bundle: Bundle, tmp_path: Path, last: int, reset_after_ms: int, expected: str
) -> None:
    case = a_case(bundle, (b"k", 0), (b"k", 500), (b"k", last))
    assert not case.verify().counts
    findings = served_with(tmp_path, case, reset_after_ms).verify()
    assert findings.counts == {Fault.WRONG_OUTPUT: 1, Fault.WRONG_STATE: 1}
    assert findings.examples[Fault.WRONG_OUTPUT][0].expected == expected


def test_a_worker_that_goes_by_the_key_s_own_time_alone_is_found(bundle: Bundle) -> None:
    log = log_of((b"k", 0), (b"j", 1001), (b"k", 1))
    # Without the other key's event there is no stream to expire by.
    wrong = serve(bundle, "in", PARTITION, [log[0], log[2]])
    case = make_case(bundle, log)
    assert not case.verify().counts
    case.served.outputs[2] = wrong.outputs[1]
    where, expected, got = only(case.verify(), Fault.WRONG_OUTPUT)
    assert (where, expected, got) == ("in:2:12", "steps 1", "steps 2 at out:2:2")


def test_the_state_of_a_silent_key_may_be_collected_and_is_counted(bundle: Bundle) -> None:
    case = a_case(bundle, (b"k", 0), (b"j", 1001))
    case.drop(b"k")
    findings = case.verify()
    assert not findings.counts
    assert (findings.collected, findings.states) == (1, 1)


def test_a_state_collected_one_ms_too_early_is_missing(bundle: Bundle) -> None:
    case = a_case(bundle, (b"k", 0), (b"j", 1000))
    case.drop(b"k")
    assert only(case.verify(), Fault.MISSING_STATE)[0].startswith("key 'k'")


def test_a_silent_key_s_state_that_is_still_there_must_be_right(bundle: Bundle) -> None:
    case = a_case(bundle, (b"k", 0), (b"j", 1001))
    case.served.states[b"k"] = case.served.states[b"j"]
    assert only(case.verify(), Fault.WRONG_STATE)[0].startswith("key 'k'")


def test_collection_does_not_excuse_a_state_that_stream_time_has_not_passed(
    bundle: Bundle,
) -> None:
    # The key's own next event would expire it, but the stream has not moved on.
    case = make_case(
        bundle,
        [LogRecord(BASE, 0, b"k", value(0)), LogRecord(BASE + 1, 0, b"j", value(9000))],
    )
    case.drop(b"k")
    only(case.verify(), Fault.MISSING_STATE)


@pytest.mark.parametrize("stream", ["1501", "1503", "", "soon"])
def test_another_stream_time_than_the_fold_s_is_found(bundle: Bundle, stream: str) -> None:
    case = a_case(bundle, *EVENTS)
    assert case.served.meta["#S"] == "1502"
    case.served.meta["#S"] = stream
    where, expected, got = only(case.verify(), Fault.WRONG_STATE)
    assert (where, expected, got) == ("{g:in:2} #S (stream time)", "1502", repr(stream))


@pytest.mark.parametrize("at", range(5, 38))
def test_every_byte_of_a_state_s_head_counts(bundle: Bundle, at: int) -> None:
    case = a_case(bundle, *EVENTS)
    damaged = bytearray(case.served.states[b"k"])
    damaged[at] ^= 1
    case.seal(b"k", bytes(damaged))
    only(case.verify(), Fault.WRONG_STATE)
