"""The oracle reads the largest probabilities and texts' scores: near ties, forms, bounds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tiny_bundle import make_tiny_bundle
from verify_case import make_case

from keyfold.export.outputs import Likelihood, OutputSpec
from keyfold.worker.verify.findings import Fault
from keyfold.worker.verify.likelihood_reading import LikelihoodReading
from keyfold.worker.verify.offline_likelihood import LEAST, OfflineLikelihood
from keyfold.worker.verify.top_reading import TopReading

NAMES = ("a", "b", "c", "d")
WANTED = [0.1, 0.4, 0.4005, 0.0995]
READING = TopReading(NAMES, 2, 1e-3)


def output(*pairs: tuple[str, float], label: str = "") -> dict[str, Any]:
    return {
        "label": label or pairs[0][0],
        "top": [{"label": name, "probability": probability} for name, probability in pairs],
    }


@pytest.mark.parametrize(
    "right",
    [
        output(("c", 0.4005), ("b", 0.4)),
        output(("b", 0.4004), ("c", 0.4001)),  # within the tolerance they may change places
        output(("b", 0.4), ("c", 0.4)),
    ],
)
def test_labels_that_are_nearly_equal_may_change_places(right: dict[str, Any]) -> None:
    gap, wrong = READING.difference(WANTED, right)
    assert wrong is None
    assert gap < 1e-3


@pytest.mark.parametrize(
    ("wrong", "expected", "got"),
    [
        (output(("c", 0.4005), ("a", 0.1)), "top 2 'b' 0.4 within 0.001", "'a' 0.1"),
        (output(("b", 0.41), ("c", 0.4)), "top 1 'c' 0.4005 within 0.001", "'b' 0.40"),
        (output(("c", 0.4005), ("d", 0.4)), "top 2 'b' 0.4 within 0.001", "'d' 0.4"),
    ],
)
def test_another_label_or_probability_is_found(
    wrong: dict[str, Any], expected: str, got: str
) -> None:
    _, (found, said) = READING.difference(WANTED, wrong)  # type: ignore[misc]
    assert (found, said[: len(got)]) == (expected, got)


@pytest.mark.parametrize(
    "wrong",
    [
        output(("c", 0.4005)),
        output(("c", 0.4), ("b", 0.4001)),  # rising
        output(("c", 0.4), ("c", 0.4)),
        output(("c", 0.4), ("x", 0.3)),
        output(("c", 0.4), ("b", True)),
        output(("c", 0.4), ("b", 0.3), label="b"),
        {"label": "c", "top": None},
        {"label": "c", "top": [{"label": "c"}, {"label": "b"}]},
    ],
)
def test_another_form_is_found(wrong: dict[str, Any]) -> None:
    assert READING.pairs(wrong) is None


def test_a_repeated_prediction_says_the_same() -> None:
    first = output(("c", 0.4005), ("b", 0.4))
    assert READING.repeats(first, output(("b", 0.4004), ("c", 0.4001)))
    assert not READING.repeats(first, output(("c", 0.42), ("b", 0.4)))
    assert not READING.repeats(first, output(("c", 0.4005), ("b", 0.3)))


def test_a_symbol_s_bounds_are_those_of_its_probability_as_far_as_that_may_be_off() -> None:
    likelihood = OfflineLikelihood(3, 1e-5)
    low, high, least, most = likelihood.bounds([math.nan, 0.5, 0.25])
    assert low < 1.5 * math.log(2) < high
    assert high - low < 1e-4
    assert least < 2 * math.log(2) < most
    low, high, _, _ = likelihood.bounds([0.01])
    assert (low, high) == pytest.approx((-math.log(0.01001), -math.log(0.00999)))
    low, high, _, _ = likelihood.bounds([1e-6])
    assert (low, high) == pytest.approx((-math.log(1.1e-6), -math.log(9e-7)))
    assert likelihood.bounds([1e-9])[1] == -math.log(LEAST)
    assert all(map(math.isnan, likelihood.bounds([math.nan])))


@pytest.mark.parametrize("harm", [0.99, 1.01])
def test_another_score_of_a_rare_symbol_is_found(harm: float) -> None:
    probability = 5e-6  # below the tolerance of an output
    bounds = OfflineLikelihood(3, 1e-5).bounds([0.5, probability])
    right = {"score": (math.log(2) - math.log(5e-6)) / 2, "worst": -math.log(5e-6), "flag": True}
    assert SCORES.difference(bounds, right) is None
    for name in ("score", "worst"):
        wrong = {**right, name: right[name] * harm}
        assert SCORES.difference(bounds, wrong) is not None
        assert not SCORES.repeats(right, wrong)
    for off in (-1e-3, 1e-3):  # relative: what rounding makes of it on another kind of CPU
        other = -math.log(probability * (1 + off))
        again = {**right, "worst": other, "score": (math.log(2) + other) / 2}
        assert SCORES.difference(bounds, again) is None
        assert SCORES.repeats(right, again)


SCORES = LikelihoodReading(
    OutputSpec("classification", NAMES, likelihood=Likelihood(2.0, 0.1)), 1e-5
)


@pytest.mark.parametrize(
    "anomaly",
    [
        None,
        {"score": 1.0, "flag": False},
        {"score": 1.0, "worst": None, "flag": False},
        {"score": None, "worst": None, "flag": 0},
        {"score": -1.0, "worst": 1.0, "flag": False},
        {"score": 2.5, "worst": 3.0, "flag": False},
        {"score": 1.5, "worst": 3.0, "flag": True},
        {"score": 1.5, "worst": 3.0, "flag": 0},
    ],
)
def test_an_anomaly_of_another_form_or_with_another_flag_is_found(anomaly: Any) -> None:
    assert SCORES.form_difference(anomaly) is not None


def test_a_score_on_the_threshold_may_be_flagged_or_not() -> None:
    for flag in (False, True):
        assert SCORES.form_difference({"score": 2.0, "worst": 3.0, "flag": flag}) is None


def test_scores_are_held_to_their_bounds() -> None:
    bounds = [1.0, 1.1, 2.0, 2.1]
    assert SCORES.difference(bounds, {"score": 1.05, "worst": 2.1, "flag": False}) is None
    assert SCORES.difference(bounds, {"score": 1.2, "worst": 2.1, "flag": False}) == (
        "anomaly score from 1 to 1.1", "score 1.2",
    )  # fmt: skip
    assert SCORES.difference(bounds, {"score": 1.1, "worst": 1.5, "flag": False}) is not None
    nothing = {"score": None, "worst": None, "flag": False}
    assert SCORES.difference([None] * 4, nothing) is None
    assert SCORES.difference([None] * 4, {"score": 1.0, "worst": 1.0, "flag": False}) is not None
    assert SCORES.difference(bounds, nothing) == ("anomaly score 1.0", "score None")
    assert SCORES.repeats(nothing, nothing)
    one = {"score": 1.0, "worst": 2.0, "flag": False}
    assert SCORES.repeats(one, {**one, "score": 1.00001})
    assert not SCORES.repeats(one, {**one, "score": 1.01})
    assert not SCORES.repeats(one, nothing)


def test_the_largest_of_plain_events_are_verified(tmp_path: Path) -> None:
    outputs = OutputSpec("classification", ("calm", "odd", "wild"), top=2)
    case = make_case(make_tiny_bundle(tmp_path, kind="classification", outputs=outputs))
    assert case.verify().violations == 0
    said = json.loads(case.served.outputs[5][1] or b"")["output"]
    assert len(said["top"]) == 2
    offset = int(json.loads(case.served.outputs[5][1] or b"")["id"].split(":")[2])
    said["top"][1]["probability"] -= 0.01
    case.change(offset, output=said)
    assert case.verify().counts == {Fault.WRONG_OUTPUT: 1}
