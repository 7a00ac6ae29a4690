"""Forecasts and anomalies: each kind of harm in them must be found, and a tie is no harm."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from keyed_bundle import THRESHOLD, keyed_log, keyed_outputs, make_keyed_bundle
from verify_case import BASE, Case, make_case, only

from keyfold.export.events import Anomaly, Dynamic, Forecast, OutputSpec
from keyfold.worker.verify.anomaly_reading import AnomalyReading
from keyfold.worker.verify.findings import Fault, Findings
from keyfold.worker.verify.offline_key import UNJUDGED
from keyfold.worker.verify.output_reading import OutputReading
from keyfold.worker.verify.refold import Refold

AT = BASE + 133  # an event with a score in the log below
EVENTS = 160  # of 4 keys
OUTPUTS = {
    "mean": keyed_outputs(quantiles=()),
    "quantiles": keyed_outputs(),
    "dynamic": keyed_outputs(dynamic=Dynamic(window=20, smoothing=0.4, warm_up=8)),
}


@pytest.fixture(params=OUTPUTS)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    bundle = make_keyed_bundle(tmp_path, OUTPUTS[request.param])
    return make_case(bundle, keyed_log(BASE, EVENTS, 4))


def output(case: Case, offset: int = AT) -> dict[str, Any]:
    """Return a prediction's output."""
    found: dict[str, Any] = json.loads(case.served.outputs[case.number(offset)][1] or b"")["output"]
    return found


def test_right_forecasts_and_anomalies_are_clean(case: Case) -> None:
    findings = case.verify()
    assert not findings.counts
    assert (findings.predictions, findings.states, findings.unverifiable) == (EVENTS, 4, 0)
    assert findings.max_abs_difference == 0.0
    assert findings.max_abs_state_difference < 1e-12  # of a threshold: another order of sums
    scores = [output(case, BASE + i)["anomaly"]["score"] for i in range(EVENTS)]
    assert scores[:4] == [None] * 4
    assert len([score for score in scores if score is not None]) > EVENTS // 2
    flags = {output(case, BASE + i)["anomaly"]["flag"] for i in range(EVENTS)}
    assert flags == {True, False}


@pytest.mark.parametrize("path", [("temp", "1"), ("temp", "3"), ("rpm", "1"), ("rpm", "3")])
def test_a_wrong_forecast_is_found(case: Case, path: tuple[str, str]) -> None:
    wrong = output(case)
    at = wrong["forecast"][path[0]]
    name = f"{path[0]}+{path[1]}"
    if isinstance(at[path[1]], dict):
        at[path[1]]["0.9"] += 0.01
        name += "@0.9"
    else:
        at[path[1]] += 0.01
    case.change(AT, output=wrong)
    where, expected, _ = only(case.verify(), Fault.WRONG_OUTPUT)
    assert where == f"in:2:{AT}"
    assert expected.startswith(f"{name} ")


def forms(right: dict[str, Any]) -> list[Any]:
    """Return outputs that are none of this bundle's."""
    bad: list[Any] = [None, [], {}, {"forecast": right["forecast"]}, {**right, "more": 1}]
    others: list[Any] = [None, [], {}, 1.5, "x"]
    bad += [{**right, "forecast": other} for other in others]
    changes: list[Callable[[Any], Any]] = [
        lambda f: f.pop("temp"),
        lambda f: f.update(load=f["temp"]),
        lambda f: f.update(temp=None),
        lambda f: f["temp"].pop("3"),
        lambda f: f["temp"].update({"2": f["temp"]["1"]}),
        lambda f: f["temp"].update({"1": None}),
        lambda f: f["temp"].update({"1": True}),
        lambda f: f["temp"].update({"1": {}}),
        lambda f: f["temp"].update({"1": {"0.1": 1.0}}),
    ]
    for change in changes:
        one = copy.deepcopy(right)
        change(one["forecast"])
        bad.append(one)
    return bad


def test_an_output_of_another_form_is_found(case: Case) -> None:
    right = copy.deepcopy(output(case))
    for wrong in forms(right):
        case.change(AT, output=wrong)
        _, expected, got = only(case.verify(), Fault.WRONG_OUTPUT)
        assert expected.startswith("an output of temp+1")
        assert got.startswith("another form")
    case.change(AT, output=right)
    assert not case.verify().counts


@pytest.mark.parametrize("factor", [1.001, 0.999, 0.1, 3.0, 0.0])
def test_a_wrong_score_is_found(case: Case, factor: float) -> None:
    wrong = output(case)
    wrong["anomaly"]["score"] *= factor
    if "threshold" not in wrong["anomaly"]:
        wrong["anomaly"]["flag"] = wrong["anomaly"]["score"] > THRESHOLD
    case.change(AT, output=wrong)
    assert only(case.verify(), Fault.WRONG_OUTPUT)[1].startswith("anomaly score ")


def test_a_flag_that_is_not_what_the_score_says_is_found(case: Case) -> None:
    wrong = output(case)
    wrong["anomaly"]["flag"] = not wrong["anomaly"]["flag"]
    case.change(AT, output=wrong)
    assert only(case.verify(), Fault.WRONG_OUTPUT)[1].startswith("anomaly flag ")


@pytest.mark.parametrize("case", ["dynamic"], indirect=True)
def test_another_threshold_of_the_key_s_own_is_found(case: Case) -> None:
    right = output(case)
    for name, factor in (("threshold", 1.01), ("smoothed", 1.001), ("threshold", 0.5)):
        wrong = copy.deepcopy(right)
        wrong["anomaly"][name] *= factor
        wrong["anomaly"]["flag"] = wrong["anomaly"]["smoothed"] > wrong["anomaly"]["threshold"]
        case.change(AT, output=wrong)
        assert only(case.verify(), Fault.WRONG_OUTPUT)[1].startswith(f"anomaly {name} ")


@pytest.mark.parametrize("case", ["dynamic"], indirect=True)
def test_nearly_every_choice_of_a_threshold_is_sure_enough_to_be_judged(case: Case) -> None:
    refold = Refold(case.step)
    for record in case.log:
        refold.fold(record.offset, record.timestamp_ms, record.key, record.value)
    judged = [refold.expected(position).judged for position in range(len(refold))]
    own = [output(case, BASE + i)["anomaly"] for i in range(EVENTS)]
    pairs = list(zip(judged, own, strict=True))
    unsure = sum("threshold" in anomaly and math.isnan(one.threshold) for one, anomaly in pairs)
    assert unsure < EVENTS / 10
    assert len({one.threshold for one in judged if not math.isnan(one.threshold)}) > 4


def test_the_name_of_another_field_is_found(case: Case) -> None:
    wrong = output(case)
    other = {"temp": "rpm", "rpm": "temp"}[wrong["anomaly"]["field"]]
    wrong["anomaly"]["field"] = other
    case.change(AT, output=wrong)
    _, expected, got = only(case.verify(), Fault.WRONG_OUTPUT)
    assert expected.startswith("anomaly field ")
    assert got.startswith(f"field {other!r}")


def test_a_score_that_is_kept_back_is_found(case: Case) -> None:
    wrong = output(case)
    wrong["anomaly"] = {"score": None, "field": None, "flag": False}
    case.change(AT, output=wrong)
    assert only(case.verify(), Fault.WRONG_OUTPUT)[2].startswith("score None at")


def test_a_score_of_a_key_s_first_event_is_found(case: Case) -> None:
    wrong = output(case, BASE)
    assert wrong["anomaly"] == {"score": None, "field": None, "flag": False}
    wrong["anomaly"] = {**output(case)["anomaly"], "field": "temp"}
    case.change(BASE, output=wrong)
    assert only(case.verify(), Fault.WRONG_OUTPUT)[1] == "anomaly score None"


def test_a_repetition_with_another_score_conflicts_and_one_within_the_tolerance_does_not(
    case: Case,
) -> None:
    again = case.served.outputs[case.number(AT)]
    for factor, fault in ((1 + 1e-7, Fault.DUPLICATE), (1.5, Fault.CONFLICT)):
        members = json.loads(again[1] or b"")
        anomaly = members["output"]["anomaly"]
        anomaly["score"] *= factor
        if "threshold" not in anomaly:
            anomaly["flag"] = anomaly["score"] > THRESHOLD
        case.served.outputs.append((again[0], json.dumps(members).encode()))
        only(case.verify(), fault)
        case.served.outputs.pop()


def test_where_the_state_is_not_known_the_form_is_checked_all_the_same(case: Case) -> None:
    reading, right = OutputReading(case.bundle, Findings()), copy.deepcopy(output(case))
    assert reading.form_difference(right) is None
    assert reading.repeats(right, right)
    for wrong in forms(right):
        assert reading.form_difference(wrong) is not None
        assert not reading.repeats(right, wrong)
    other = copy.deepcopy(right)
    other["anomaly"] |= {"score": right["anomaly"]["score"] + 1}
    assert not reading.repeats(right, other)
    for change, same in ((1e-6, True), (1e-3, False)):
        again = copy.deepcopy(right)
        ahead = again["forecast"]["rpm"]
        ahead = ahead["3"] if isinstance(ahead["3"], dict) else ahead
        ahead[max(ahead)] += change
        assert reading.repeats(right, again) is same


# -- the anomaly by itself -------------------------------------------------------------------------


@pytest.fixture
def reading() -> AnomalyReading:
    """Return a reading with two fields, threshold 2 and 1e-5 of tolerance in scores of the 2nd."""
    spec = OutputSpec.of_forecast(Forecast(("p", "q")), Anomaly((100.0, 1.0), 2.0, 0.1))
    return AnomalyReading(spec, 1e-5)


def judge(
    reading: AnomalyReading, scores: list[float | None], score: Any, field: Any, flag: Any
) -> str | None:
    """Return what should have been there; None: all is right."""
    anomaly = {"score": score, "field": field, "flag": flag}
    difference = reading.form_difference(anomaly) or reading.difference(scores, UNJUDGED, anomaly)
    return None if difference is None else difference[0]


def test_of_equal_scores_any_may_give_the_field(reading: AnomalyReading) -> None:
    for scores in ([1.0, 1.0], [1.0, 1.000008], [1.000001, 1.0]):
        for field, score in (("p", scores[0]), ("q", scores[1]), ("q", max(scores))):
            assert judge(reading, list(scores), score, field, False) is None
    assert judge(reading, [1.0, 1.0001], 1.0001, "p", False) == "anomaly field 'q'"
    assert judge(reading, [1.0001, 1.0], 1.0001, "q", False) == "anomaly field 'p'"
    assert judge(reading, [None, 1.0], 1.0, "p", False) == "anomaly field 'q'"


def test_the_tolerance_of_a_score_is_that_of_its_field(reading: AnomalyReading) -> None:
    assert judge(reading, [0.1, 1.0], 1.000009, "q", False) is None
    assert judge(reading, [1.0, 0.1], 1.000009, "p", False) is not None


@pytest.mark.parametrize("score", [2.0 - 9e-6, 2.0 + 9e-6])
def test_a_score_within_the_tolerance_of_the_threshold_is_flagged_as_it_was_computed(
    reading: AnomalyReading, score: float
) -> None:
    """Offline it may lie on the other side of the threshold."""
    flag = score > 2.0
    for offline in (2.0 - 5e-6, 2.0, 2.0 + 5e-6):
        if abs(offline - score) < 1e-5:
            assert judge(reading, [None, offline], score, "q", flag) is None
            wanted = judge(reading, [None, offline], score, "q", not flag) or ""
            assert wanted.startswith(f"anomaly flag {str(flag).lower()}: ")


@pytest.mark.parametrize("score", [2.0, 2.0 + 1e-7, 2.0 - 1e-7])
@pytest.mark.parametrize("flag", [True, False])
def test_rounding_to_float32_at_the_threshold_is_no_wrong_flag(
    reading: AnomalyReading, score: float, flag: bool
) -> None:
    assert judge(reading, [None, score], score, "q", flag) is None


@pytest.mark.parametrize(
    ("anomaly", "expected"),
    [
        (None, "an anomaly"),
        ({}, "anomaly {'score': None"),
        ({"score": 1.0, "field": "p"}, "an anomaly of field, flag, score"),
        ({"score": 1.0, "field": "p", "flag": 0}, "anomaly flag false: 1.0 against the"),
        ({"score": 2.0, "field": "p", "flag": 1}, "anomaly flag false: 2.0 against the"),
        ({"score": 1.0, "field": "p", "flag": None}, "anomaly flag false: 1.0 against the"),
        ({"score": "1", "field": "p", "flag": True}, "an anomaly score of 0 or more"),
        ({"score": True, "field": "p", "flag": True}, "an anomaly score of 0 or more"),
        ({"score": -0.1, "field": "p", "flag": False}, "an anomaly score of 0 or more"),
        ({"score": 1.0, "field": None, "flag": False}, "an anomaly field of p, q"),
        ({"score": 1.0, "field": "r", "flag": False}, "an anomaly field of p, q"),
        ({"score": 1.0, "field": ["p"], "flag": False}, "an anomaly field of p, q"),
        ({"score": None, "field": "p", "flag": False}, "anomaly {'score': None"),
        ({"score": None, "field": None, "flag": True}, "anomaly {'score': None"),
        ({"score": None, "field": None, "flag": 0}, "anomaly {'score': None"),
    ],
)
def test_an_anomaly_of_another_form_is_found(
    reading: AnomalyReading, anomaly: Any, expected: str
) -> None:
    difference = reading.form_difference(anomaly)
    assert difference is not None
    assert difference[0].startswith(expected)
