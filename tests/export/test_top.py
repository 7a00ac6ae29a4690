"""The largest probabilities alone, in place of all: order, ties, refusals, version."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyfold.export.errors import SpecError
from keyfold.export.events import Caused, PredictionEncoder
from keyfold.export.outputs import OutputSpec
from keyfold.export.predictions import largest

NAMES = ("a", 'b"', "c", "d")


def test_the_prediction_names_the_largest_falling_and_ties_by_number() -> None:
    encoder = PredictionEncoder(OutputSpec("classification", NAMES, top=3), "b", "t")
    y = np.array([[0.25, 0.5, 0.125, 0.125], [0.25, 0.25, 0.25, 0.25]], np.float32)
    written = encoder.encode(0, Caused([1, 2], [b'"key":"k"'] * 2, [0] * 2, [1, 2]), y)
    first, second = (json.loads(one)["output"] for one in written)
    assert first == {
        "label": 'b"',
        "top": [
            {"label": 'b"', "probability": 0.5},
            {"label": "a", "probability": 0.25},
            {"label": "c", "probability": 0.125},
        ],
    }
    assert [one["label"] for one in second["top"]] == ["a", 'b"', "c"]


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9))
def test_the_largest_are_those_that_sorting_would_find(seed: int, columns: int, count: int) -> None:
    draw = np.random.default_rng(seed)
    y = draw.integers(0, 4, (int(draw.integers(0, 7)), columns)).astype(np.float32)
    count = min(count, columns)
    expected = np.argsort(-y, axis=1, kind="stable")[:, :count]
    assert largest(y, count).tolist() == expected.tolist()


def test_top_is_for_as_many_labels_as_there_are() -> None:
    assert OutputSpec.from_json(OutputSpec("classification", NAMES, top=4).to_json()).top == 4
    assert "top" not in OutputSpec("classification", NAMES).to_json()
    with pytest.raises(SpecError, match=r"outputs\.top: expected 0 to 4 for classification, got 5"):
        OutputSpec("classification", NAMES, top=5)
    with pytest.raises(SpecError, match=r"outputs\.top: expected 0 to 0 for regression, got 1"):
        OutputSpec("regression", ("a",), top=1)
