"""The training loop: carried states, masks, stopping, determinism."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from keyfold.export.events import OutputSpec
from keyfold.export.settings import SettingsError
from keyfold.training.config import Fit, Model
from keyfold.training.data import Sequence
from keyfold.training.split import Part

keras = pytest.importorskip("keras")
from keyfold.training.evaluate import measure, predict  # noqa: E402
from keyfold.training.fit import History, Watch, fit  # noqa: E402
from keyfold.training.losses import (  # noqa: E402
    class_weights,
    cross_entropy,
    squared_error,
    weighted_cross_entropy,
)
from keyfold.training.model import Network, build  # noqa: E402
from keyfold.training.optimizer import learning_rate, make_optimizer  # noqa: E402
from keyfold.training.pieces import count_windows, shuffled_pieces  # noqa: E402
from keyfold.training.scaling import Scaling  # noqa: E402
from keyfold.training.trainer import FitError  # noqa: E402
from keyfold.training.windows import windows  # noqa: E402

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


CLASSES = OutputSpec("classification", ("p", "q", "r"))


def labelled(seed: int, *, one_hot: bool = False, shares: tuple[float, ...] = (1, 1, 1)) -> Part:
    """Sequences whose label is one of three, as a number or as a row with a one."""
    draw = np.random.default_rng(seed)
    sequences = []
    for i in range(4):
        x = draw.normal(size=(30, 1)).astype(np.float32)
        numbers = draw.choice(3, 30, p=np.array(shares) / sum(shares))
        labels = (np.eye(3)[numbers] if one_hot else numbers).astype(np.float32)
        labels[:4] = np.nan
        sequences.append(Sequence(f"k{i}", x, np.zeros(30, np.int64), labels))
    return Part(tuple(sequences), (0,) * 4)


def classifier(part: Part, loss: Any, settings: Fit = FIT) -> tuple[Network, History]:
    keras.utils.set_random_seed(settings.seed)
    network = build(Model(units=(6,)), SCALING, CLASSES)
    return network, fit(network, (part, part), settings, loss)


def test_class_numbers_and_one_hot_rows_train_the_same_model() -> None:
    sparse, history = classifier(labelled(1), cross_entropy)
    one_hot, same = classifier(labelled(1, one_hot=True), cross_entropy)
    assert same.train_loss == pytest.approx(history.train_loss, rel=1e-5)
    assert same.validation_loss == pytest.approx(history.validation_loss, rel=1e-5)
    for a, b in zip(weights(sparse), weights(one_hot), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_weights_of_classes_count_the_same_for_numbers_and_one_hot_rows() -> None:
    loss = weighted_cross_entropy((1.0, 2.0, 3.0))
    y = np.array([[[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]], np.float32)
    numbers = loss(np.array([[2.0, 1.0]], np.float32), y).numpy()
    np.testing.assert_allclose(numbers, [[-3 * np.log(0.5), -2 * np.log(0.3)]], rtol=1e-5)
    rows = loss(np.eye(3, dtype=np.float32)[[[2, 1]]], y).numpy()
    np.testing.assert_allclose(rows.mean(axis=2), numbers, rtol=1e-5)


def test_balanced_classes_weigh_the_same_in_all_and_one_on_average() -> None:
    part = labelled(3, shares=(8, 1, 1))
    weights_of = np.array(class_weights({}, ("p", "q", "r"), part))
    labels = np.concatenate([s.labels[4:] for s in part.sequences]).astype(int)
    counts = np.bincount(labels, minlength=3)
    np.testing.assert_allclose(weights_of * counts, counts.sum() / 3)
    unseen = class_weights({}, ("p", "q", "r", "s"), part)
    assert unseen[3] == max(unseen)


def test_named_weights_of_classes_are_relative_and_unknown_names_refused() -> None:
    part = labelled(3)
    got = class_weights({"q": 5.0}, ("p", "q", "r"), part)
    assert got[1] / got[0] == pytest.approx(5.0)
    assert got[0] == got[2]
    with pytest.raises(SettingsError, match=r"fit\.class_weights: expected labels among 'p', 'q'"):
        class_weights({"x": 5.0}, ("p", "q", "r"), part)
    with pytest.raises(SettingsError, match="expected a weight above 0 for a label that training"):
        class_weights({"p": 0.0, "q": 0.0, "r": 0.0}, ("p", "q", "r"), part)


def test_weights_of_classes_move_the_model_towards_the_rare_one() -> None:
    part = labelled(3, shares=(8, 1, 1))
    settings = replace(FIT, passes=8)
    loss = weighted_cross_entropy(class_weights({}, ("p", "q", "r"), part))
    shares = []
    for chosen in (cross_entropy, loss):
        network, _ = classifier(part, chosen, settings)
        shares.append(np.concatenate(predict(network, part))[:, 1:].mean())
    assert shares[1] > 1.5 * shares[0]


@pytest.mark.parametrize(
    "changed",
    [
        {"optimizer": "adamw", "weight_decay": 0.5},
        {"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.05},
        {"optimizer": "rmsprop", "momentum": 0.5},
    ],
)
def test_every_optimizer_learns(changed: dict[str, Any]) -> None:
    part = echoes(8, (40,), seed=1, delay=1)
    _, history = train(replace(FIT, passes=12, patience=12, **changed), part, part)
    assert history.validation_loss[-1] < 0.9 * history.validation_loss[0]


def test_weight_decay_pulls_matrices_and_leaves_biases() -> None:
    matrix, bias = keras.Variable(np.ones((2, 2))), keras.Variable(np.ones(2))
    optimizer = make_optimizer(
        replace(FIT, optimizer="adamw", weight_decay=0.5, learning_rate=0.1), [matrix, bias]
    )
    zeros = [keras.ops.zeros((2, 2)), keras.ops.zeros(2)]
    optimizer.apply_gradients(zip(zeros, [matrix, bias], strict=True))
    np.testing.assert_allclose(matrix.numpy(), 0.95)
    np.testing.assert_allclose(bias.numpy(), 1.0)


def rates(settings: Fit, gone: tuple[float, ...], drops: int = 0) -> list[float]:
    return [learning_rate(settings, passes, drops) / settings.learning_rate for passes in gone]


def test_schedules_are_what_their_names_say() -> None:
    cosine = replace(FIT, passes=10, schedule="cosine", lowest=0.1, patience=9)
    step = replace(cosine, schedule="step", decay_after=2, decay=0.5)
    plateau = replace(step, schedule="plateau")
    assert rates(cosine, (0.0, 5.0, 10.0)) == pytest.approx([1.0, 0.55, 0.1])
    assert rates(step, (0.1, 2.0, 2.1, 4.0, 4.1, 10.0)) == [1.0, 1.0, 0.5, 0.5, 0.25, 0.1]
    assert rates(plateau, (7.0,), drops=2) == [0.25]
    warm = replace(cosine, warm_up=2.0)
    assert rates(warm, (0.5, 1.0, 2.0, 6.0, 10.0)) == pytest.approx([0.25, 0.5, 1.0, 0.55, 0.1])


def test_a_schedule_is_what_training_goes_by() -> None:
    part = echoes(6, (40,), seed=1)
    settings = replace(FIT, passes=4, patience=4, schedule="cosine", warm_up=1.0)
    network, history = train(settings, part, part)
    expected = [settings.learning_rate * share for share in (1.0, 0.75, 0.25, 0.0)]
    assert history.learning_rate == pytest.approx(expected)
    constant, _ = train(replace(FIT, passes=4, patience=4), part, part)
    assert not np.array_equal(weights(network)[0], weights(constant)[0])


def test_a_plateau_lowers_the_learning_rate() -> None:
    part, other = echoes(6, (40,), seed=1), echoes(4, (40,), seed=2)
    settings = replace(
        FIT, passes=9, patience=9, schedule="plateau", decay=0.5, decay_after=2, learning_rate=0.3
    )
    _, history = train(settings, part, other)
    best, drops = np.inf, 0
    since = 0
    for loss, rate in zip(history.validation_loss, history.learning_rate, strict=True):
        assert rate == pytest.approx(0.3 * 0.5**drops)
        since = 0 if loss < best else since + 1
        best = min(best, loss)
        if since == 2:
            drops, since = drops + 1, 0
    assert drops


@pytest.mark.parametrize("stretch", [0, 12])
def test_the_updates_of_a_pass_are_counted_before_it(stretch: int) -> None:
    part = echoes(7, (40, 25, 33, 5), seed=1)
    settings = replace(FIT, random_start=0.7, stretch=stretch)
    draw = np.random.default_rng(0)
    for rows in (1, 3, 50):
        pieces = shuffled_pieces(part, settings, draw)
        made = sum(1 for _ in windows(part.sequences, pieces, rows, 8))
        assert count_windows(part.sequences, pieces, rows, 8) == made


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"momentum": 0.9}, "momentum: expected 0 with optimizer = 'adam', got 0.9"),
        ({"weight_decay": 0.1}, "weight_decay: expected 0 with optimizer = 'adam', got 0.1"),
        ({"momentum": 1.0, "optimizer": "sgd"}, "momentum: expected 0 <= momentum < 1, got 1.0"),
        ({"warm_up": 100.0}, "warm_up: expected fewer passes than passes = 100, got 100.0"),
        ({"decay": 1.5}, "decay: expected 0 < decay < 1, got 1.5"),
        ({"decay": 0.2}, "decay: expected schedule = 'step' or 'plateau' with it, got 'constant'"),
        (
            {"decay_after": 2, "schedule": "cosine"},
            "decay_after: expected schedule = 'step' or 'plateau' with it, got 'cosine'",
        ),
        ({"lowest": 0.1}, "lowest: expected 0 with schedule = 'constant', got 0.1"),
        (
            {"schedule": "plateau", "patience": 5, "decay_after": 5},
            "decay_after: expected fewer passes than patience = 5 with schedule = 'plateau', got 5",
        ),
        ({"clip_norm": 0.0}, "clip_norm: expected above 0, got 0.0"),
        ({"learning_rate": -1.0}, "learning_rate: expected at least 0, got -1.0"),
        ({"class_weights": ("up",)}, "class_weights: expected 'balanced' or one label=NUMBER"),
        ({"class_weights": "up=1,up=2"}, "class_weights: expected 'balanced' or one label=NUMBER"),
        ({"class_weights": ("up=nan",)}, "class_weights: expected 'balanced' or one label=NUMBER"),
    ],
)
def test_contradictions_in_fit_are_refused_by_name(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Fit(**settings)


def test_weights_of_classes_may_be_given_in_any_form_of_a_setting() -> None:
    for fit_settings in (Fit(class_weights="a=b=2,c=0.5"), Fit(class_weights=("a=b=2", "c=0.5"))):
        assert fit_settings.weights_of_labels == {"a=b": 2.0, "c": 0.5}
        assert not fit_settings.is_balanced
    for fit_settings in (Fit(class_weights="balanced"), Fit(class_weights=("balanced",))):
        assert fit_settings.weights_of_labels == {}
        assert fit_settings.is_balanced


def test_every_pass_is_logged_by_name() -> None:
    logged: list[tuple[int, set[str]]] = []
    part = echoes(3, (20,), seed=1)
    keras.utils.set_random_seed(1)
    network = build(Model(units=(4,)), SCALING, VALUE)
    watch = Watch(log=lambda number, numbers: logged.append((number, set(numbers))))
    fit(network, (part, part), replace(FIT, passes=2), squared_error(0.5), watch)
    names = {"loss/train", "loss/validation", "learning_rate", "gradients/all"}
    names |= {"gradients/recurrent0", "gradients/value"}
    assert logged == [(1, names), (2, names)]
