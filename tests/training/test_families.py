"""Every family of networks: trained, saved, exported, the same however its events are grouped."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras_marks import KERAS

from keyfold.export.events import OutputSpec
from keyfold.export.motion import Motion
from keyfold.export.settings import SettingsError
from keyfold.training.config import Fit, Model
from keyfold.training.data import Sequence
from keyfold.training.split import Part

keras = pytest.importorskip("keras")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from keyfold.export.convert import convert, in_float64, load_model, reference  # noqa: E402
from keyfold.export.own_cell import CellError  # noqa: E402
from keyfold.export.verify import Model as Truth  # noqa: E402
from keyfold.export.verify import Proof, verify  # noqa: E402
from keyfold.training.evaluate import predict  # noqa: E402
from keyfold.training.fit import fit  # noqa: E402
from keyfold.training.losses import cross_entropy, squared_error  # noqa: E402
from keyfold.training.model import ModelError, Network, build, check_ids  # noqa: E402
from keyfold.training.scaling import Scaling  # noqa: E402

pytestmark = KERAS
VALUE = OutputSpec("regression", ("value",))
CLASSES = OutputSpec("classification", ("p", "q", "r"))
SCALING = Scaling((0.5, 0.0), (0.5, 1.0), 0.5, 0.5)  # of a coin flip and of noise
FAMILIES = {
    "simple_rnn, tanh": Model("simple_rnn", (8, 6)),
    "simple_rnn, relu": Model("simple_rnn", (8,), activation="relu"),
    "gru, reset after": Model("gru", (8,)),
    "gru, reset before": Model("gru", (8, 8), reset_after=False, residual=True),
    "lstm, residual and norm": Model(
        units=(8, 8), residual=True, norm="layer", recurrent_dropout=0.1, dropout=0.1
    ),
    "additive attention": Model(units=(8,), attention="additive", window=6),
    "multiplicative attention": Model("gru", (8,), attention="multiplicative", window=6),
    "transformer": Model(family="transformer", units=(8,), window=6, heads=2, dropout=0.1),
    "transformer, shared keys": Model(
        family="transformer", units=(8,), window=6, heads=4, kv_heads=2
    ),
    "bidirectional": Model(family="bidirectional", units=(6,), window=6),
    "bidirectional, summed": Model(
        "gru", (6,), family="bidirectional", window=6, merge="sum", dense=4
    ),
    "bidirectional, looking ahead": Model(
        family="bidirectional", units=(6,), window=6, look_ahead=2
    ),
    "bidirectional, looking ahead twice": Model(
        "gru", (6, 5), family="bidirectional", window=5, look_ahead=1, merge="sum"
    ),
    "frames": Model(family="frames", units=(8,), filters=(4,), kernel=2, stride=1),
}


def echoes(count: int, length: int, seed: int, delay: int = 3) -> Part:
    """Sequences whose label is the first feature `delay` events ago: it takes memory to know it."""
    draw = np.random.default_rng(seed)
    sequences = []
    for i in range(count):
        x = np.stack([draw.integers(0, 2, length), draw.normal(size=length)], 1)
        labels = np.concatenate([np.full(delay, np.nan), x[:-delay, 0]])
        times = np.zeros(length, np.int64)
        sequences.append(Sequence(f"k{i}", x.astype(np.float32), times, labels.astype(np.float32)))
    return Part(tuple(sequences), (0,) * count)


@cache
def trained(model: Model) -> tuple[Network, tuple[float, ...]]:
    """Train until it has learned; return the network and its validation losses."""
    passes = 25
    keras.utils.set_random_seed(3)
    network = build(model, SCALING, VALUE)
    how = Fit(seed=3, rows=8, window=20, passes=passes, patience=passes, learning_rate=0.01)
    history = fit(
        network, (echoes(16, 60, 1), echoes(4, 60, 2)), how, squared_error(SCALING.label_deviation)
    )
    return network, history.validation_loss


def proven(keras_model: Any, motion: Motion | None = None) -> Proof:
    """Export and compare over 1,200 carried steps, in all of verify's groupings."""
    converted = convert(keras_model)
    types = {node.op_type for node in onnx.load_from_string(converted.onnx).graph.node}
    assert not {"Loop", "Scan", "If"} & types
    truth = Truth(
        reference(keras_model),
        reference(in_float64(keras_model)),
        SCALING.mean,
        SCALING.deviation,
        motion,
    )
    return verify(converted.onnx, converted.states, truth)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_trained_saved_and_exported_exactly(name: str, tmp_path: Path) -> None:
    network, _ = trained(FAMILIES[name])
    network.whole.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    part = echoes(3, 50, seed=4)
    # What training carries from window to window is what the saved model computes at once.
    for got, sequence in zip(predict(network, part), part.sequences, strict=True):
        np.testing.assert_allclose(got, reference(loaded)(sequence.x[None])[0], atol=2e-5)
    proof = proven(loaded)
    assert proof.identical
    assert proof.steps >= 1_000


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_learns_what_takes_memory(name: str) -> None:
    """Without memory the loss stays at 1: the label is a coin flip of three events ago."""
    _, losses = trained(FAMILIES[name])
    assert min(losses) < 0.5


@pytest.mark.parametrize("name", FAMILIES)
def test_every_weight_of_a_family_has_a_gradient(name: str) -> None:
    tf = pytest.importorskip("tensorflow")
    keras.utils.set_random_seed(3)
    network = build(FAMILIES[name], SCALING, CLASSES)
    x = np.random.default_rng(0).normal(size=(4, 12, 2)).astype(np.float32)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(network.whole(x)[..., 0] ** 2)
    weights = network.whole.trainable_variables
    for weight, gradient in zip(
        weights, tape.gradient(loss, [w.value for w in weights]), strict=True
    ):
        assert gradient is not None, weight.path
        assert np.isfinite(np.asarray(gradient)).all(), weight.path
        assert np.abs(np.asarray(gradient)).max() > 0, weight.path


@st.composite
def architectures(draw: Any) -> Model:
    """Draw a small network of any family."""
    family = draw(st.sampled_from(["recurrent", "transformer", "bidirectional", "frames"]))
    width = draw(st.integers(1, 3)) * 4
    units = (width,) * draw(st.integers(1, 2))
    window = draw(st.integers(2, 9))
    cell = draw(st.sampled_from(["lstm", "gru", "simple_rnn"]))
    if family == "transformer":
        heads, kept = draw(st.sampled_from([(1, 1), (2, 1), (4, 2), (4, 4)]))
        return Model(family=family, units=units, window=window, heads=heads, kv_heads=kept)
    if family == "bidirectional":
        merge = draw(st.sampled_from(["concat", "sum"]))
        return Model(cell, units, family=family, window=window, merge=merge)
    attention = draw(st.sampled_from(["", "additive", "multiplicative"]))
    return Model(
        cell,
        units,
        family=family,
        dense=draw(st.sampled_from([0, 3])),
        attention=attention,
        window=window if attention else 0,
        residual=draw(st.booleans()),
        norm=draw(st.sampled_from(["", "layer"])),
        reset_after=draw(st.booleans()) or cell != "gru",
        kernel=1 if family == "frames" else 5,
    )


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(architectures(), st.integers(0, 1000))
def test_any_small_network_is_exported_exactly(model: Model, seed: int) -> None:
    keras.utils.set_random_seed(seed)
    network = build(model, SCALING, CLASSES)
    assert proven(network.whole).identical


def ids(count: int, length: int, seed: int) -> Part:
    """Sequences of whole numbers, 0 to 2, whose label is the one two events ago."""
    draw = np.random.default_rng(seed)
    sequences = []
    for i in range(count):
        x = draw.integers(0, 3, length).astype(np.float32)
        labels = np.concatenate([np.full(2, np.nan, np.float32), x[:-2]])
        sequences.append(Sequence(f"k{i}", x[:, None], np.zeros(length, np.int64), labels))
    return Part(tuple(sequences), (0,) * count)


@pytest.mark.parametrize("family", ["recurrent", "transformer"])
def test_whole_numbers_are_looked_up_learned_and_exported(family: Any) -> None:
    keras.utils.set_random_seed(3)
    window = 6 if family == "transformer" else 0
    model = Model(family=family, units=(16,), window=window, embedding=5, tokens=3)
    scaling = Scaling((1.0,), (0.8,), 0.0, 1.0)
    network = build(model, scaling, CLASSES)
    how = Fit(seed=3, rows=8, window=20, passes=20, patience=20, learning_rate=0.02)
    history = fit(network, (ids(16, 60, 1), ids(4, 60, 2)), how, cross_entropy)
    assert min(history.validation_loss) < 0.3  # a guess has log 3 = 1.1
    part = ids(4, 60, 2)
    motion = Motion.of([s.x for s in part.sequences], scaling.mean, scaling.deviation)
    assert proven(network.whole, motion).identical
    unknown = np.array([[[0.0], [3.0], [1.0]]], np.float32)
    assert np.isnan(network.whole.predict_on_batch(unknown)).any(axis=2).tolist() == [
        [False, True, False]
    ]


@pytest.mark.parametrize("wrong", [3.0, -1.0, 0.5])
def test_training_events_that_hold_no_id_are_refused(wrong: float) -> None:
    model = Model(units=(4,), embedding=5, tokens=3)
    good = ids(2, 9, 1).sequences
    check_ids(model, good)
    x = good[1].x.copy()
    x[4] = wrong
    with pytest.raises(ModelError, match=f"from 0 to 2 in every event, got {wrong:g} under key"):
        check_ids(model, (good[0], replace(good[1], x=x)))
    check_ids(Model(units=(4,)), (replace(good[1], x=x),))


def test_a_users_own_cell_is_trained_saved_and_stepped_once_a_call(tmp_path: Path) -> None:
    network, losses = trained(Model("own_cells:minimal", (8,)))
    assert min(losses) < 0.5
    network.whole.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    part = echoes(3, 50, seed=4)
    for got, sequence in zip(predict(network, part), part.sequences, strict=True):
        np.testing.assert_allclose(got, reference(loaded)(sequence.x[None])[0], atol=2e-5)
    converted = convert(loaded)
    assert converted.max_steps == 1
    session = ort.InferenceSession(converted.onnx, providers=["CPUExecutionProvider"])
    x = np.concatenate([echoes(1, 1000, seed).sequences[0].x[None] for seed in range(4)])
    states = {s.input: np.full((4, *s.dims), s.initial, np.float32) for s in converted.states}
    ys = []
    for t in range(1000):
        feed = {"x": x[:, t : t + 1], "lengths": np.ones(4, np.int32), **states}
        y, *after = session.run(["y", *(s.output for s in converted.states)], feed)
        states = {s.input: value for s, value in zip(converted.states, after, strict=True)}
        ys.append(y)
    np.testing.assert_allclose(np.concatenate(ys, 1), reference(loaded)(x), atol=2e-5)


def test_a_stack_of_a_users_cells_carries_all_their_states() -> None:
    keras.utils.set_random_seed(3)
    network = build(Model("own_cells:stacked", (4, 3)), SCALING, VALUE)
    assert network.state_units == (4, 4, 4, 3, 3, 3)
    part = echoes(3, 50, seed=4)
    for got, sequence in zip(predict(network, part), part.sequences, strict=True):
        whole = network.whole.predict_on_batch(sequence.x[None])[0]
        np.testing.assert_allclose(got, whole, atol=2e-5)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"cell": "rnn"}, "cell: expected one of lstm, gru, simple_rnn or package.module:function"),
        ({"cell": "gru", "memory": 9}, "memory: expected 0 with cell = 'gru', got 9"),
        ({"activation": "relu"}, "activation: expected 'tanh' with cell = 'lstm', got 'relu'"),
        ({"reset_after": False}, "reset_after: expected True with cell = 'lstm', got False"),
        (
            {"cell": "m:f", "recurrent_dropout": 0.1},
            "recurrent_dropout: expected 0.0 with cell = 'm:f', got 0.1",
        ),
        ({"recurrent_dropout": 1.0}, "recurrent_dropout: expected 0 <="),
        ({"window": 8}, "window: expected 0 with attention = '' and family = 'recurrent', got 8"),
        ({"attention": "additive"}, "window: expected at least 2 events with attention"),
        ({"family": "transformer"}, "window: expected at least 2 events"),
        (
            {"family": "transformer", "window": 4, "attention": "additive"},
            "attention: expected '' with family = 'transformer', got 'additive'",
        ),
        (
            {"family": "transformer", "window": 4, "cell": "gru"},
            "cell: expected none with family = 'transformer', got 'gru'",
        ),
        (
            {"family": "transformer", "window": 4, "heads": 3},
            "heads: expected units in equal heads, .* got 64 units, 3 heads and 3 kv_heads",
        ),
        (
            {"family": "transformer", "window": 4, "units": (8, 16)},
            "units: expected equal numbers with family = 'transformer'",
        ),
        ({"residual": True, "units": (8, 16)}, "units: expected equal numbers with residual"),
        ({"merge": "sum"}, "merge: expected 'concat' with family = 'recurrent', got 'sum'"),
        ({"kernel": 3}, "kernel: expected 5 with family = 'recurrent', got 3"),
        ({"family": "frames", "filters": ()}, "filters, kernel, stride: expected positive numbers"),
        (
            {"family": "bidirectional", "window": 4, "cell": "m:f"},
            "cell: expected one of lstm, gru, simple_rnn with family = 'bidirectional'",
        ),
        ({"tokens": 4}, "embedding: expected it and tokens positive together"),
        (
            {"embedding": 4, "tokens": 9, "input_noise": 0.1},
            "embedding: expected input_noise = 0 with it",
        ),
        (
            {"embedding": 4, "tokens": 9, "family": "frames"},
            "embedding: expected another family than 'frames'",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused_by_name(
    given: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        Model(**given)


@pytest.mark.parametrize(
    ("model", "error", "expected"),
    [
        (
            Model(family="transformer", units=(64, 64), window=128),
            ModelError,
            "expected states of at most 65536 bytes a key, got 130056: lower model.window",
        ),
        (Model(embedding=4, tokens=9), ModelError, "expected one feature, .* got 2 columns"),
        (
            Model(family="frames", filters=(4, 4), kernel=2),
            SettingsError,
            "model.kernel: expected at most 1, .* convolution 2 of 2, got 2",
        ),
        (Model("own_cells:nothing"), CellError, "expected a Keras layer with state_size"),
    ],
)
def test_a_network_that_cannot_be_served_is_refused_before_training(
    model: Model, error: type[Exception], expected: str
) -> None:
    with pytest.raises(error, match=expected):
        build(model, SCALING, VALUE)


def test_a_family_is_read_back_from_json_as_it_was() -> None:
    model = Model(family="frames", units=(8, 8), filters=(4,))
    as_json: dict[str, Any] = json.loads(json.dumps(asdict(model)))
    assert Model(**as_json) == model
