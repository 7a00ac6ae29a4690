"""The meta fields of a partition's hash: all of them there, and each as the fold says."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_bundle import make_tiny_bundle
from verify_case import KEYS, Case, make_case, only

from keyfold.worker.errors import Crash
from keyfold.worker.verify.findings import Fault
from keyfold.worker.verify.stored import META


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return make_case(make_tiny_bundle(tmp_path))


def test_the_layout_has_thirteen_meta_fields(case: Case) -> None:
    assert len(META) == 13
    assert case.served.meta.keys() == META


@pytest.mark.parametrize("missing", ["#C", "#E", "#F", "#G", "#O", "#R"])
def test_a_missing_meta_field_is_found(case: Case, missing: str) -> None:
    del case.served.meta[missing]
    findings = case.verify()
    # It is missing among the fields, and in their number.
    where, expected, got = only(findings, Fault.WRONG_STATE, 2)
    assert (where, missing in expected, missing in got) == ("{g:in:2} fields", True, False)


@pytest.mark.parametrize("number", [str(KEYS - 1), str(KEYS + 1), "", "many"])
def test_another_number_of_states_than_told_is_found(case: Case, number: str) -> None:
    case.served.meta["#K"] = number
    where, expected, got = only(case.verify(), Fault.WRONG_STATE)
    assert where.startswith("{g:in:2} number of key states")
    assert (expected, got) == (f"{number} (#K, as saved)", f"{KEYS}")


def test_a_state_deleted_behind_the_worker_s_back_is_found_twice(case: Case) -> None:
    del case.served.states[b"k1"]
    assert case.verify().counts == {Fault.WRONG_STATE: 1, Fault.MISSING_STATE: 1}


def test_a_field_that_is_neither_meta_nor_state_is_found(case: Case) -> None:
    case.strangers = 1
    where, expected, got = only(case.verify(), Fault.WRONG_STATE)
    assert (where, expected) == ("{g:in:2} HLEN", f"13 meta fields and {KEYS} states")
    assert got == f"{13 + KEYS + 1} fields"


def test_a_flag_that_is_not_in_use_is_found(case: Case) -> None:
    state = case.served.states[b"k1"]
    case.seal(b"k1", state[:5] + b"\2" + state[6:])
    assert only(case.verify(), Fault.WRONG_STATE)[1:] == ("flags 0 or 1", "flags 2")


def test_a_gap_flag_without_a_loss_is_found(case: Case) -> None:
    state = case.served.states[b"k1"]
    case.seal(b"k1", state[:5] + b"\1" + state[6:])
    assert only(case.verify(), Fault.WRONG_STATE)[2] == "flags 1"


def test_lost_ranges_that_cannot_be_read_stop_the_verification(case: Case) -> None:
    case.served.meta["#G"] = "12"
    with pytest.raises(Crash, match="#G: expected FROM-TO, got '12'"):
        case.verify()
