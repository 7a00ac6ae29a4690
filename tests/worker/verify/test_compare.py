"""Each kind of harm is planted into right predictions and must be found by keyfold-verify."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from naive_worker import serve
from text_bundle import CLASSES, TEXT, make_text_bundle, text_event
from tiny_bundle import make_tiny_bundle
from verify_case import BASE, EVENTS, KEYS, PARTITION, Case, a_log, changed, make_case, only

from keyfold.export.events import OutputSpec
from keyfold.worker.verify.compare import OutputCheck, Place, Strays
from keyfold.worker.verify.findings import Fault, Findings
from keyfold.worker.verify.refold import OfflineStep, Refold


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return make_case(make_tiny_bundle(tmp_path))


def test_right_outputs_and_states_are_clean(case: Case) -> None:
    findings = case.verify()
    assert not findings.counts
    assert (findings.events, findings.rejects, findings.predictions) == (39, 1, 39)
    assert (findings.states, findings.dead_letters) == (KEYS, 1)
    assert findings.max_abs_difference == 0.0  # the same steps, one at a time, on both sides
    assert findings.max_abs_state_difference == 0.0


def test_right_classifications_are_clean(tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path, kind="classification")
    findings = make_case(bundle).verify()
    assert not findings.counts


def test_a_wrong_label_is_a_wrong_output(tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path, kind="classification")
    case = make_case(bundle)
    output = json.loads(case.served.outputs[case.number(20)][1] or b"")["output"]
    worst = int(np.argmin(output["probabilities"]))
    case.change(20, output={**output, "label": bundle.manifest.outputs.names[worst]})
    where, expected, got = only(case.verify(), Fault.WRONG_OUTPUT)
    assert where == "in:2:20"
    assert expected.startswith("label")
    assert got.startswith(f"label {bundle.manifest.outputs.names[worst]!r}")


def test_tombstones_that_reset_are_clean_and_leave_no_state(tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path, tombstone="reset")
    log = a_log(bundle)
    for reset in (12, 19, 47):  # k2, k1, and k1's last record
        log[reset - BASE] = dataclasses.replace(log[reset - BASE], value=None)
    log[-1] = dataclasses.replace(log[-1], value=None)
    case = make_case(bundle, log)
    findings = case.verify()
    assert not findings.counts
    assert (findings.resets, findings.states) == (4, KEYS - 2)
    case.served.states[b"k3"] = case.served.states[b"k2"]
    case.count()
    assert only(case.verify(), Fault.EXTRA_STATE)[0].startswith("key 'k3'")


def test_predictions_above_the_watermark_are_compared_but_not_demanded(case: Case) -> None:
    behind = serve(case.bundle, "in", PARTITION, case.log[:30])
    case.served.meta, case.served.states = behind.meta, behind.states
    assert not case.verify().counts
    case.served.outputs.pop()
    assert not case.verify().counts
    case.change(45, steps=99)
    assert only(case.verify(), Fault.WRONG_OUTPUT)[0] == "in:2:45"


def test_a_lost_prediction_is_found(case: Case) -> None:
    del case.served.outputs[case.number(23)]
    where, expected, got = only(case.verify(), Fault.LOST)
    assert (where, expected, got) == ("in:2:23", "a prediction for key 'k1'", "none")


def test_a_repeated_prediction_is_no_violation_of_at_least_once(case: Case) -> None:
    case.served.outputs += case.served.outputs[20:25]
    findings = case.verify()
    only(findings, Fault.DUPLICATE, 5)
    assert findings.violations == 0


def test_a_repeated_prediction_violates_exactly_once(case: Case) -> None:
    case.served.outputs.append(case.served.outputs[20])
    findings = case.verify(exactly_once=True)
    only(findings, Fault.DUPLICATE)
    assert findings.violations == 1


def test_a_repetition_within_the_tolerance_is_a_duplicate(case: Case) -> None:
    output = case.served.outputs[20]
    value = json.loads(output[1] or b"")["output"]["value"]
    case.served.outputs.append(changed(output, output={"value": value + 1e-7}))
    only(case.verify(), Fault.DUPLICATE)


def test_a_repetition_with_another_content_conflicts(case: Case) -> None:
    case.served.outputs.append(changed(case.served.outputs[20], output={"value": 0.25}))
    where, _, got = only(case.verify(), Fault.CONFLICT)
    assert where.startswith("in:2:3")
    assert got.startswith("0.25 at out:2:39")


def test_a_right_prediction_after_a_wrong_one_conflicts(case: Case) -> None:
    right = case.served.outputs[20]
    case.served.outputs[20] = changed(right, output={"value": 0.25})
    case.served.outputs.append(right)
    assert dict(case.verify().counts) == {Fault.WRONG_OUTPUT: 1, Fault.CONFLICT: 1}


def test_predictions_of_a_key_out_of_order_are_found(case: Case) -> None:
    first, second = case.number(21), case.number(25)  # both k3
    outputs = case.served.outputs
    outputs[first], outputs[second] = outputs[second], outputs[first]
    where, expected, _ = only(case.verify(), Fault.ORDER)
    assert where == "in:2:21"
    assert "offset 25" in expected


def test_keys_may_overtake_each_other(case: Case) -> None:
    case.served.outputs.sort(key=lambda output: output[0] or b"")
    assert not case.verify().counts


@pytest.mark.parametrize("other", [b"k2", None, b""])
def test_a_prediction_under_another_record_key_is_found(case: Case, other: bytes | None) -> None:
    number = case.number(23)
    case.served.outputs[number] = (other, case.served.outputs[number][1])
    where, expected, got = only(case.verify(), Fault.CROSS_KEY)
    assert (where, expected) == ("in:2:23", "key 'k1'")
    assert "record key" in got


def test_a_prediction_that_names_another_key_is_found(case: Case) -> None:
    case.change(23, key="k2")
    assert only(case.verify(), Fault.CROSS_KEY)[0] == "in:2:23"


def test_a_binary_key_shown_as_text_is_found(case: Case) -> None:
    case.change(22, key="k2")
    assert only(case.verify(), Fault.CROSS_KEY)[0] == "in:2:22"


def test_a_prediction_in_another_partition_is_misplaced_and_not_lost(case: Case) -> None:
    place = Place("in", "out", PARTITION, BASE, BASE + EVENTS)
    other = dataclasses.replace(place, partition=0)
    findings, strays = Findings(), Strays()
    stray = case.served.outputs.pop(case.number(23))
    refold, empty = Refold(case.step), Refold(case.step)
    for r in case.log:
        refold.fold(r.offset, r.timestamp_ms, r.key, r.value)
    check = OutputCheck(case.bundle, place, refold, findings, strays)
    for offset, (key, value) in enumerate(case.served.outputs):
        check.prediction(offset, key, value)
    check.finish()
    OutputCheck(case.bundle, other, empty, findings, strays).prediction(0, *stray)
    strays.report(findings)
    where, expected, got = only(findings, Fault.CROSS_KEY)
    assert (where, expected, got) == ("in:2:23", "a prediction in partition 2", "at out:0:0")


def test_a_misplaced_prediction_excuses_no_other_one_of_its_cause(tmp_path: Path) -> None:
    outputs = OutputSpec(CLASSES.kind, CLASSES.names, read="every")
    bundle = make_text_bundle(tmp_path, TEXT, outputs=outputs)
    refold, findings, strays = Refold(OfflineStep(bundle)), Findings(), Strays()
    refold.fold(0, 5, b"k", text_event("abc", 5))
    OutputCheck(bundle, Place("in", "out", 0, 0, 1), refold, findings, strays).finish()
    empty, other = Refold(OfflineStep(bundle)), Place("in", "out", 1, 0, 0)
    stray = OutputCheck(bundle, other, empty, findings, strays)
    stray.prediction(0, b"k", b'{"id": "in:0:0:1"}')
    strays.report(findings)
    assert dict(findings.counts) == {Fault.CROSS_KEY: 1, Fault.LOST: len(refold.book) - 1}


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"output": {"value": 0.25}}, "value"),
        ({"output": {"other": 0.25}}, "an output of value"),
        ({"output": {"value": None}}, "an output of value"),
        ({"output": [0.25]}, "an output of value"),
        ({"steps": 9}, "steps 4"),
        ({"steps": 4.0}, "steps 4"),
        ({"cold": True}, "cold False"),
        ({"cold": 0}, "cold False"),
        ({"time": 1}, "time 13000"),
        ({"bundle": "0" * 16}, "bundle"),
        ({"about": "in:2:22"}, "about 'in:2:23'"),
        ({"surprise": 1}, "no further members"),
    ],
)
def test_a_wrong_prediction_is_found(case: Case, members: dict[str, Any], expected: str) -> None:
    case.change(23, **members)
    findings = case.verify()
    where, wanted, _ = only(findings, Fault.WRONG_OUTPUT)
    assert where == "in:2:23"
    assert wanted.startswith(expected)


def test_the_largest_difference_is_reported(case: Case) -> None:
    value = json.loads(case.served.outputs[case.number(23)][1] or b"")["output"]["value"]
    case.change(23, output={"value": value + 0.5})
    assert case.verify().max_abs_difference == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("members", "where"),
    [
        ({"id": "in:2:17:0"}, "in:2:17"),  # a reject
        ({"id": "in:2:999:0"}, "in:2:999"),  # no record
        ({"id": "in:2:23:1"}, "out:2:12"),  # an index that is not in use
        ({"id": "elsewhere:2:23:0"}, "out:2:12"),
        ({"id": 7}, "out:2:12"),
    ],
)
def test_a_prediction_that_nothing_asks_for_is_found(
    case: Case, members: dict[str, Any], where: str
) -> None:
    number = case.number(23)
    case.served.outputs.insert(number, changed(case.served.outputs[number], **members))
    assert only(case.verify(), Fault.UNEXPECTED)[0] == where


@pytest.mark.parametrize("value", [None, b"", b"{", b"[]", b"\xff"])
def test_an_output_record_that_is_no_prediction_is_found(case: Case, value: bytes | None) -> None:
    case.served.outputs.append((b"k1", value))
    assert only(case.verify(), Fault.UNEXPECTED)[0] == "out:2:39"


def test_outputs_of_events_before_the_base_are_counted_and_left_alone(case: Case) -> None:
    case.served.outputs.append(changed(case.served.outputs[0], id="in:2:3:0"))
    findings = case.verify()
    assert not findings.counts
    assert findings.before_base == 1
