"""Each kind of harm is planted into right states and must be found by keyfold-verify."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from naive_worker import LogRecord, serve
from tiny_bundle import make_tiny_bundle
from verify_case import KEYS, PARTITION, Case, make_case, only

from keyfold.worker.errors import Crash
from keyfold.worker.verify.findings import Fault
from keyfold.worker.verify.stored import check_bundle


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return make_case(make_tiny_bundle(tmp_path))


def spoil(at: int, by: int = 1) -> Callable[[bytes], bytes]:
    """Return a function that changes one byte."""
    return lambda value: value[:at] + bytes([value[at] ^ by]) + value[at + 1 :]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (spoil(0), "version 2"),
        (spoil(1), "version 2, checksum"),
        (spoil(40), "version 2, checksum"),
        (lambda value: value[:-1], "70 bytes"),
        (lambda value: value + b"\0", "70 bytes"),
    ],
)
def test_a_damaged_state_is_found(
    case: Case, change: Callable[[bytes], bytes], expected: str
) -> None:
    case.served.states[b"k1"] = change(case.served.states[b"k1"])
    where, wanted, _ = only(case.verify(), Fault.WRONG_STATE)
    assert where == "key 'k1' in {g:in:2} at watermark 50"
    assert wanted.startswith(expected)


def test_a_state_of_another_key_is_found(case: Case) -> None:
    case.served.states[b"k1"] = case.served.states[b"k2"]
    assert "checksum" in only(case.verify(), Fault.WRONG_STATE)[1]


def without(records: Sequence[LogRecord], offset: int) -> list[LogRecord]:
    """Return records without the one at an offset."""
    return [record for record in records if record.offset != offset]


def test_a_state_that_missed_an_event_is_found(case: Case) -> None:
    wrong = serve(case.bundle, "in", PARTITION, without(case.log, 23))
    case.served.states[b"k1"] = wrong.states[b"k1"]
    where, expected, got = only(case.verify(), Fault.WRONG_STATE)
    assert where.startswith("key 'k1'")
    assert expected.startswith("10 steps")
    assert got.startswith("9 steps")


def test_a_state_with_another_number_is_found(case: Case) -> None:
    values = {"time": 13_000, "a": 9.0, "b": -9.0}
    other = dataclasses.replace(case.log[13], value=json.dumps(values).encode())
    wrong = serve(case.bundle, "in", PARTITION, [*case.log[:13], other, *case.log[14:]])
    case.served.states[b"k1"] = wrong.states[b"k1"]
    findings = case.verify()
    _, expected, got = only(findings, Fault.WRONG_STATE)
    assert expected.startswith("h within 1e-05")
    assert got.startswith("a difference of")
    assert findings.max_abs_state_difference > 1e-5


def test_a_missing_state_is_found(case: Case) -> None:
    case.drop(b"k1")
    where, expected, got = only(case.verify(), Fault.MISSING_STATE)
    assert where.startswith("key 'k1'")
    assert (expected, got) == ("a state of 10 steps, last offset 47", "none")


def test_the_state_of_a_key_never_seen_is_found(case: Case) -> None:
    case.served.states[b"nobody"] = case.served.states[b"k1"]
    case.count()
    assert only(case.verify(), Fault.EXTRA_STATE)[0].startswith("key 'nobody'")


def test_another_record_at_the_watermark_is_found(case: Case) -> None:
    offset, timestamp, crc = case.served.meta["#L"].split(":")
    case.served.meta["#L"] = f"{offset}:{timestamp}:{int(crc) ^ 1}"
    assert "#L" in only(case.verify(), Fault.WRONG_STATE)[0]


def test_states_ahead_of_the_watermark_are_found(case: Case) -> None:
    case.served.meta["#W"] = "30"
    behind = serve(case.bundle, "in", PARTITION, case.log[:20]).meta
    case.served.meta |= {name: behind[name] for name in ("#L", "#S")}
    only(case.verify(), Fault.WRONG_STATE, KEYS)


@pytest.mark.parametrize(("field", "text"), [("#M", "0" * 16), ("#V", "1")])
def test_states_of_another_bundle_or_layout_cannot_be_verified(
    case: Case, field: str, text: str
) -> None:
    case.served.meta[field] = text
    with pytest.raises(Crash, match=f"{field}: expected .*, got {text}"):
        check_bundle(case.stored, case.bundle)
