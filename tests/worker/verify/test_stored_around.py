"""What a stored state holds around the graph's tensors: harm in it is found, "never seen" is none.

The front's numbers do not depend on weights and must be those of the fold; the back's come from the
graph and may differ as outputs may.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from keyed_bundle import keyed_log, make_keyed_bundle
from naive_worker import serve
from verify_case import BASE, PARTITION, Case, make_case, only

from keyfold.worker.verify.findings import Fault
from keyfold.worker.verify.stored_states import HEAD

KEY = b"k1"


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return make_case(make_keyed_bundle(tmp_path), keyed_log(BASE, 40, 4))


def place(case: Case, name: str) -> int:
    """Return where a tensor begins in a stored state."""
    at = HEAD.size
    for spec in case.bundle.manifest.kept:
        if spec.input == name:
            return at
        at += spec.bytes_per_key
    raise AssertionError(name)


def put(case: Case, name: str, form: str, change: float, number: int = 0) -> float:
    """Add to one number of a tensor; return what it was."""
    value = bytearray(case.served.states[KEY])
    at = place(case, name) + number * struct.calcsize(form)
    (before,) = struct.unpack_from(form, value, at)
    struct.pack_into(form, value, at, type(before)(before + change))
    case.seal(KEY, bytes(value))
    return float(before)


@pytest.mark.parametrize(
    ("name", "form", "change"),
    [
        ("front.last", "<f", 1e-4),
        ("front.last", "<f", float("nan")),
        ("front.time_ms", "<q", 1),
        ("front.time_ms", "<q", -1),
        ("front.moments", "<d", 1.0),
        ("front.moments", "<d", float("nan")),
        ("back.forecast", "<f", 1e-3),
        ("back.forecast", "<f", float("nan")),
        ("back.forecast", "<f", float("inf")),
        ("h", "<f", 1e-3),
        ("h", "<f", float("nan")),
        ("c", "<f", float("inf")),
    ],
)
def test_a_wrong_number_around_the_graph_or_in_it_is_found(
    case: Case, name: str, form: str, change: float
) -> None:
    put(case, name, form, change)
    findings = case.verify()
    where, expected, got = only(findings, Fault.WRONG_STATE)
    assert where.startswith("key 'k1'")
    assert expected.startswith(f"{name} within ")
    assert got.startswith("a difference of ")


def test_the_least_wrong_moment_is_found(case: Case) -> None:
    value = bytearray(case.served.states[KEY])
    at = place(case, "front.moments") + 16  # a mean
    (mean,) = struct.unpack_from("<d", value, at)
    struct.pack_into("<d", value, at, np.nextafter(mean, 9.0))
    case.seal(KEY, bytes(value))
    assert only(case.verify(), Fault.WRONG_STATE)[1].startswith("front.moments within 0 of")


def test_a_forecast_within_the_tolerance_is_right(case: Case) -> None:
    put(case, "back.forecast", "<f", 5e-6)
    findings = case.verify()
    assert not findings.counts
    assert 1e-6 < findings.max_abs_state_difference < 1e-5


def test_a_value_never_seen_is_no_harm(tmp_path: Path) -> None:
    log = keyed_log(BASE, 4, 4)
    case = make_case(make_keyed_bundle(tmp_path), log)
    lasts = [
        np.frombuffer(value, "<f4", 5, place(case, "front.last"))
        for value in case.served.states.values()
    ]
    assert np.isnan(lasts).any(), "the log has keys that missed a value from the start"
    assert not case.verify().counts


def test_a_value_forgotten_is_found(tmp_path: Path) -> None:
    """NaN is legal only where the key has never had the value."""
    case = make_case(make_keyed_bundle(tmp_path), keyed_log(BASE, 40, 4))
    value = bytearray(case.served.states[KEY])
    at = place(case, "front.last")
    assert not np.isnan(struct.unpack_from("<f", value, at)[0])
    struct.pack_into("<f", value, at, float("nan"))
    case.seal(KEY, bytes(value))
    assert only(case.verify(), Fault.WRONG_STATE)[1].startswith("front.last within ")


def test_a_front_that_missed_an_event_is_found(case: Case) -> None:
    """The front of one event less under the head and graph of all events."""
    without = [record for record in case.log if record.offset != BASE + 33]
    behind = serve(case.bundle, "in", PARTITION, without).states[KEY]
    start = place(case, "front.last")
    end = place(case, "back.forecast")
    value = case.served.states[KEY]
    case.seal(KEY, value[:start] + behind[start:end] + value[end:])
    assert only(case.verify(), Fault.WRONG_STATE)[1].startswith("front.")


def test_a_state_without_what_is_around_the_graph_is_found(case: Case) -> None:
    value = case.served.states[KEY]
    case.seal(KEY, value[: place(case, "front.last")])
    _, expected, _ = only(case.verify(), Fault.WRONG_STATE)
    assert expected == f"{len(value)} bytes"
