"""Gradient norms by layer and by events back: measured right, and said when they fade or grow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("keras")
import tensorflow as tf

from keyfold.training.gradients import (
    Gradients,
    Norms,
    PassNorms,
    lag_norms,
    verdict,
    write,
)
from keyfold.training.windows import Window

pytestmark = pytest.mark.tensorflow


def window(weights: Any, *, fresh: bool = False) -> Window:
    weights = np.array(weights, np.float32)
    rows, steps = weights.shape
    return Window(
        x=np.ones((rows, steps, 1), np.float32),
        labels=np.zeros((rows, steps), np.float32),
        weights=weights,
        fresh=np.full(rows, fresh),
        owner=np.arange(rows),
        at=np.zeros(rows, np.int64),
    )


def leaky(keep: float) -> Any:
    """A net whose state is `keep` of the last one plus x, and whose output is the state."""

    def step(x: Any, states: list[Any]) -> tuple[Any, list[Any]]:
        state = keep * states[0] + x[:, 0]
        return state[:, None], [state]

    return step


def plain_sum(_: Any, y: Any) -> Any:
    return y[..., 0]


@pytest.mark.parametrize("keep", [0.5, 1.0, 2.0])
def test_the_norm_k_events_back_is_the_derivative_k_events_back(keep: float) -> None:
    found = lag_norms(leaky(keep), plain_sum, window(np.ones((2, 6))), [tf.zeros((2, 1))])
    np.testing.assert_allclose(found, keep ** np.arange(1, 7), rtol=1e-6)


def test_rows_are_aligned_at_the_last_event_that_counts() -> None:
    weights = np.zeros((3, 6))
    weights[0, 1] = weights[1, 4] = 1  # the third row counts nowhere
    found = lag_norms(leaky(0.5), plain_sum, window(weights), [tf.zeros((3, 1))])
    np.testing.assert_allclose(found, 0.5 ** np.arange(1, 6), rtol=1e-6)


def test_what_lies_before_a_sequence_begins_is_not_looked_at() -> None:
    found = lag_norms(
        leaky(0.5), plain_sum, window(np.ones((1, 6)), fresh=True), [tf.zeros((1, 1))]
    )
    np.testing.assert_allclose(found, 0.5 ** np.arange(1, 6), rtol=1e-6)


def test_a_window_in_which_nothing_counts_tells_nothing() -> None:
    assert lag_norms(leaky(0.5), plain_sum, window(np.zeros((2, 4))), [tf.zeros((2, 1))]) == ()


class _Weight:
    def __init__(self, path: str) -> None:
        self.path = path


def test_norms_of_a_pass_are_by_layer_before_clipping() -> None:
    norms = Norms([_Weight("a/kernel"), _Weight("a/bias"), _Weight("b/kernel")])
    for scale in (1.0, 3.0):
        gradients = [tf.constant([[3.0 * scale]]), tf.constant([0.0]), tf.constant([4.0 * scale])]
        assert float(norms.add(gradients, 10.0)) == pytest.approx(5.0 * scale)
    taken = norms.taken()
    assert taken.mean == pytest.approx(10.0)
    assert taken.largest == pytest.approx(15.0)
    assert taken.clipped == 0.5
    assert taken.layers == pytest.approx({"a": 3 * 5**0.5, "b": 4 * 5**0.5})
    assert norms.taken() == PassNorms(0.0, 0.0, 0.0, {"a": 0.0, "b": 0.0})


def test_fading_and_growing_gradients_are_said_in_one_line() -> None:
    steps = np.arange(32)
    assert verdict(Gradients(lags_after=tuple(0.95**steps))) is None
    fading = verdict(Gradients(lags_after=tuple(0.2**steps)))
    assert fading is not None
    assert fading.startswith("gradients vanish: under 1% beyond 3 of 32 events back")
    growing = verdict(Gradients(lags_after=tuple(1.5**steps)))
    assert growing is not None
    assert growing.startswith("gradients explode: 287,627 times larger 32 events back than one")
    assert "\n" not in fading + growing
    broken = verdict(Gradients(lags_after=(1.0, np.inf, np.nan, 1.0)))
    assert broken == "gradients explode: their norms are not finite"


def test_windows_too_short_or_without_gradients_say_nothing() -> None:
    assert verdict(Gradients()) is None
    assert verdict(Gradients(lags_after=(1.0, 0.0))) is None
    assert verdict(Gradients(lags_after=(0.0,) * 8)) is None


def test_a_run_folder_gets_numbers_and_a_picture(tmp_path: Path) -> None:
    passes = (PassNorms(1.0, 2.0, 0.5, {"a": 0.5, "b": 0.0}),) * 2
    write(Gradients(passes, (1.0, 0.1), (1.0, 0.0)), 1.0, tmp_path)
    read = json.loads((tmp_path / "gradients.json").read_text(encoding="utf-8"))
    assert read["lags_before"] == [1.0, 0.1]
    assert read["passes"][0]["layers"] == {"a": 0.5, "b": 0.0}
    assert read["clip_norm"] == 1.0
    assert (tmp_path / "gradients.png").read_bytes().startswith(b"\x89PNG")
    write(Gradients(), 1.0, tmp_path)  # nothing was measured
