"""How unlikely texts are: by hand, in any grouping, and what the contract refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from language_bundle import SCORED, TEXT, make_language_bundle
from text_bundle import make_text_bundle

from keyfold.export import bundle as contract
from keyfold.export.describe import describe
from keyfold.export.errors import BundleError, SpecError
from keyfold.export.events import Caused, PredictionEncoder
from keyfold.export.likelihood import LEAST, NEXT, Surprise, nats, scores
from keyfold.export.outputs import Likelihood, OutputSpec
from keyfold.export.states import cold

OUTPUTS = OutputSpec("classification", ("<end>", "<unknown>", "a"), likelihood=Likelihood(1.5, 0.1))


def test_a_symbol_is_judged_by_the_output_before_it_and_the_first_by_the_keys_last_one() -> None:
    surprise = Surprise(3)
    y = np.array([[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]], np.float32)
    symbols, lengths = np.array([[2, 0]], np.float32), np.array([2], np.int32)
    before = {NEXT: np.array([[0.125, 0.5, 0.375]], np.float32)}
    likely, after = surprise.run(y, symbols, lengths, before)
    assert likely.tolist() == [[0.375, 0.5]]
    assert after[NEXT].tolist() == y[:, 1].tolist()
    likely, _ = surprise.run(y, symbols, lengths, cold(surprise.states, 1))
    assert np.isnan(likely[0, 0])
    assert likely[0, 1] == 0.5


def test_an_event_scores_the_mean_and_the_largest_of_what_is_judged() -> None:
    found = scores(
        nats(np.array([np.nan, 0.5, 0.25, np.nan, 1.0], np.float32)), np.array([3, 1, 1])
    )
    np.testing.assert_allclose(found[0], [1.5 * math.log(2), 2 * math.log(2)], rtol=1e-6)
    assert np.isnan(found[1]).all()  # a cold key's empty text: nothing is judged
    assert found[2].tolist() == [0.0, 0.0]


def test_what_float32_cannot_tell_counts_as_the_least() -> None:
    found = nats(np.array([0.0, 1e-30, 1.0 + 1e-6], np.float32))
    assert found.tolist() == [-math.log(LEAST), -math.log(LEAST), 0.0]


@given(st.integers(0, 2**32 - 1))
def test_a_score_has_the_same_bits_wherever_its_event_stands(seed: int) -> None:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 40, int(draw.integers(1, 12)))
    likely = draw.random(int(lengths.sum()), np.float32)
    together = scores(nats(likely), lengths)
    alone = [
        scores(nats(some), np.array([len(some)]))[0]
        for some in np.split(likely, np.cumsum(lengths)[:-1])
    ]
    assert together.tobytes() == np.array(alone).tobytes()


def test_the_prediction_says_score_worst_and_flag() -> None:
    encoder = PredictionEncoder(OUTPUTS, "b", "t")
    y = np.array([[0.5, 0.25, 0.25]] * 3, np.float32)
    written = encoder.encode(
        0, Caused([1, 2, 3], [b'"key":"k"'] * 3, [0] * 3, [1, 2, 3]), y,
        np.array([[np.nan, np.nan], [1.5, 3.0], [1.75, 2.0]], np.float32),
    )  # fmt: skip
    assert [json.loads(one)["output"]["anomaly"] for one in written] == [
        {"score": None, "worst": None, "flag": False},
        {"score": 1.5, "worst": 3.0, "flag": False},
        {"score": 1.75, "worst": 2.0, "flag": True},
    ]
    assert json.loads(written[0])["output"]["label"] == "<end>"


def test_a_bundle_that_scores_texts_keeps_the_newest_output_and_needs_version_1_3(
    tmp_path: Path,
) -> None:
    bundle = make_language_bundle(tmp_path)
    manifest = bundle.manifest
    assert manifest.version == "1.3"
    assert manifest.kept[-1].input == NEXT
    assert manifest.kept[-1].dims == (TEXT.size,)
    assert manifest.outputs.likelihood == SCORED
    assert "mean of -log(probability)" in " ".join(describe(bundle).split())
    assert make_text_bundle(tmp_path).manifest.version == "1.2"  # as ever


def test_only_next_symbols_are_scored(tmp_path: Path) -> None:
    bundle = make_text_bundle(tmp_path)
    data = json.loads((bundle.path / contract.MANIFEST).read_text())
    data["outputs"]["likelihood"] = {"threshold": 1.0, "rate": 0.1}
    (bundle.path / contract.MANIFEST).write_text(json.dumps(data))
    with pytest.raises(BundleError, match=r"expected features\.text and its symbols as outputs"):
        contract.load(bundle.path)
    with pytest.raises(SpecError, match="next symbols alone, got 'regression'"):
        OutputSpec("regression", ("a",), likelihood=Likelihood(1.0, 0.1))
    with pytest.raises(SpecError, match="threshold of at least 0 and a rate from 0 to 1, got -1"):
        Likelihood(-1.0, 0.1)
