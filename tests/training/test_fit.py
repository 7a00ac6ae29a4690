"""The training loop: carried states, masks, stopping, determinism."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from keyfold.export.events import OutputSpec
from keyfold.training.config import Fit, Model
from keyfold.training.data import Sequence
from keyfold.training.split import Part

keras = pytest.importorskip("keras")
from keyfold.training.evaluate import measure, predict  # noqa: E402
from keyfold.training.fit import (  # noqa: E402
    FitError,
    History,
    cross_entropy,
    fit,
    shuffled_pieces,
    squared_error,
)
from keyfold.training.model import Network, build  # noqa: E402
from keyfold.training.scaling import Scaling  # noqa: E402

pytestmark = pytest.mark.tensorflow
VALUE = OutputSpec("regression", ("value",))
SCALING = Scaling((0.5,), (0.5,), 0.5, 0.5)  # of coin flips
FIT = Fit(seed=5, rows=4, window=8, passes=3, patience=3, learning_rate=0.01)


def echoes(count: int, lengths: tuple[int, ...], seed: int, delay: int = 3) -> Part:
    """Sequences whose label is the feature `delay` events ago: it takes memory to know it."""
    draw = np.random.default_rng(seed)
    sequences = []
    for i in range(count):
        x = draw.integers(0, 2, lengths[i % len(lengths)]).astype(np.float32)
        labels = np.concatenate([np.full(delay, np.nan, np.float32), x[:-delay]])
        times = np.zeros(len(x), np.int64)
        sequences.append(Sequence(f"k{i}", x[:, None], times, labels))
    return Part(tuple(sequences), (0,) * count)


def train(
    settings: Fit, part: Part, validation: Part, model: Model | None = None, loss: Any = None
) -> tuple[Network, History]:
    keras.utils.set_random_seed(settings.seed)
    network = build(model or Model(units=(8,)), SCALING, VALUE)
    loss = loss or squared_error(SCALING.label_deviation)
    return network, fit(network, (part, validation), settings, loss)


def weights(network: Network) -> list[Any]:
    return list(network.whole.get_weights())


def test_memory_across_windows_is_used_by_the_forward_pass() -> None:
    part = echoes(3, (40, 25, 33), seed=1)
    network, _ = train(FIT, part, part)
    whole = [network.whole.predict_on_batch(s.x[None])[0] for s in part.sequences]
    for got, expected in zip(predict(network, part), whole, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_the_loss_with_short_windows_equals_the_loss_of_whole_sequences() -> None:
    part = echoes(5, (40, 25, 33), seed=1)
    losses = [
        train(replace(FIT, passes=1, learning_rate=1e-12, window=window), part, part)[1]
        for window in (1, 7, 64)
    ]
    for history in losses[1:]:
        assert history.train_loss[0] == pytest.approx(losses[0].train_loss[0], rel=1e-5)
        assert history.validation_loss[0] == pytest.approx(losses[0].validation_loss[0], rel=1e-5)


def test_a_model_learns_what_takes_memory() -> None:
    settings = replace(FIT, passes=40, patience=40, window=16, learning_rate=0.02)
    part, other = echoes(16, (40, 56), seed=1, delay=2), echoes(8, (40,), seed=2, delay=2)
    network, _ = train(settings, part, other)
    assert measure(predict(network, other), other, VALUE)["rmse"] < 0.2  # guessing gives 0.5


def test_the_same_seed_gives_the_same_weights() -> None:
    settings = replace(FIT, random_start=0.5, average=0.9)
    model = Model(units=(8,), dropout=0.3, input_noise=0.1)
    part = echoes(6, (30, 17), seed=1)
    first, second = (train(settings, part, part, model) for _ in range(2))
    other, _ = train(replace(settings, seed=6), part, part, model)
    assert first[1] == second[1]
    pairs = zip(weights(first[0]), weights(second[0]), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)
    assert not np.array_equal(weights(first[0])[0], weights(other)[0])


@pytest.mark.parametrize("how", ["skip_first", "counts_from", "no label"])
def test_what_does_not_count_changes_no_weight(how: str) -> None:
    part = echoes(4, (30, 17), seed=1)
    early = np.arange(30) < 9
    lost = [replace(s, labels=np.where(early[: len(s)], np.nan, s.labels)) for s in part.sequences]
    wild = [replace(s, labels=np.where(early[: len(s)], 7e3, s.labels)) for s in part.sequences]
    counts_from = (9,) * 4 if how == "counts_from" else part.counts_from
    settings = replace(FIT, skip_first=9 if how == "skip_first" else 0)
    changed = lost if how == "no label" else wild
    expected, _ = train(FIT, Part(tuple(lost), part.counts_from), part)
    got, _ = train(settings, Part(tuple(changed), counts_from), part)
    pairs = zip(weights(expected), weights(got), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


def test_the_best_weights_are_put_back() -> None:
    part, other = echoes(8, (40,), seed=1), echoes(4, (40,), seed=2)
    settings = replace(FIT, passes=12, patience=2, learning_rate=0.3)  # bound to overshoot
    network, history = train(settings, part, other)
    assert history.best_pass < len(history.validation_loss)
    assert history.best_pass == 1 + int(np.argmin(history.validation_loss))
    assert len(history.validation_loss) <= history.best_pass + settings.patience
    rmse = measure(predict(network, other), other, VALUE)["rmse"] / SCALING.label_deviation
    assert rmse**2 == pytest.approx(min(history.validation_loss), rel=1e-4)


def test_averaged_weights_are_what_is_judged_and_kept() -> None:
    part = echoes(8, (40,), seed=1)
    plain, _ = train(replace(FIT, passes=2), part, part)
    averaged, history = train(replace(FIT, passes=2, average=0.9), part, part)
    assert not np.array_equal(weights(plain)[0], weights(averaged)[0])
    rmse = measure(predict(averaged, part), part, VALUE)["rmse"] / SCALING.label_deviation
    assert rmse**2 == pytest.approx(min(history.validation_loss), rel=1e-4)


def test_a_loss_that_is_not_finite_stops_with_advice() -> None:
    part = echoes(2, (20,), seed=1)
    with pytest.raises(FitError, match=r"pass 1: the loss is not finite; lower fit\.learning_rate"):
        train(FIT, part, part, loss=lambda labels, y: y[..., 0] * np.nan)


def test_a_part_without_labels_is_refused() -> None:
    part = echoes(2, (20,), seed=1)
    blank = Part(
        tuple(replace(s, labels=np.full(len(s), np.nan, np.float32)) for s in part.sequences),
        part.counts_from,
    )
    with pytest.raises(FitError, match="train: expected events with labels"):
        train(FIT, blank, part)
    with pytest.raises(FitError, match="validation: expected events with labels"):
        train(FIT, part, blank)


def test_labels_above_the_cap_count_as_the_cap() -> None:
    loss = squared_error(2.0, label_cap=10.0)
    labels = np.array([[50.0, 4.0]], np.float32)
    y = np.array([[[12.0], [4.0]]], np.float32)
    assert loss(labels, y).numpy().tolist() == [[1.0, 0.0]]


def test_cross_entropy_is_the_surprise_in_nats() -> None:
    y = np.array([[[0.5, 0.5], [0.25, 0.75]]], np.float32)
    got = cross_entropy(np.array([[0.0, 1.0]], np.float32), y)
    np.testing.assert_allclose(got, -np.log([[0.5, 0.75]]), rtol=1e-5)


def test_random_starts_leave_events_and_change_each_pass() -> None:
    part = echoes(6, (30,), seed=1)
    draw = np.random.default_rng(0)
    settings = replace(FIT, random_start=0.8, skip_first=2)
    first, second = (shuffled_pieces(part, settings, draw) for _ in range(2))
    assert first != second
    for piece in (*first, *second):
        assert 0 <= piece.start <= 24
        assert piece.counts_from == piece.start + 2
