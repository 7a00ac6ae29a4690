"""What reads a text inside its event: learned, exported, the same however events are grouped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras_marks import KERAS

from keyfold.export.events import OutputSpec
from keyfold.export.settings import SettingsError
from keyfold.export.text import END, FIRST
from keyfold.training.config import Fit, Model, read_config
from keyfold.training.data import Sequence
from keyfold.training.split import Part

keras = pytest.importorskip("keras")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from keyfold.export.convert import convert, in_float64, load_model, reference  # noqa: E402
from keyfold.export.text_layers import (  # noqa: E402
    Convolved,
    Pooled,
    ReadThrough,
    Symbols,
    pooled,
)
from keyfold.export.verify import Model as Truth  # noqa: E402
from keyfold.export.verify import Proof, verify  # noqa: E402
from keyfold.training.evaluate import predict  # noqa: E402
from keyfold.training.fit import fit  # noqa: E402
from keyfold.training.losses import cross_entropy  # noqa: E402
from keyfold.training.model import Network, build  # noqa: E402
from keyfold.training.scaling import Scaling  # noqa: E402

pytestmark = KERAS
WIDTH, SYMBOLS = 5, 7
CLASSES = OutputSpec("classification", ("p", "q"))
BESIDE = Scaling((0.5,), (0.5,), 0.0, 1.0, symbols=SYMBOLS, width=WIDTH)
ALONE = Scaling((), (), 0.0, 1.0, symbols=SYMBOLS, width=WIDTH)
SMALL: dict[str, Any] = {"units": (8,), "embedding": 4, "encoder_units": 6}
MODELS = {
    "pools": Model("gru", encoders=("max", "mean"), **SMALL),
    "convolution": Model(encoder_widths=(2, 9), **SMALL),  # also wider than the text
    "gru": Model("gru", encoders=("gru",), encoder_dropout=0.1, **SMALL),
    "bi_lstm, pooled": Model(encoders=("bi_lstm",), encoder_pool="max", **SMALL),
    "all, noise, attention": Model(
        "gru", encoders=("mean", "bi_gru", "convolution"), attention="additive", window=4,
        input_noise=0.1, encoder_widths=(3,), **SMALL,
    ),
    "transformer": Model(family="transformer", heads=2, window=4, encoders=("max",), **SMALL),
}  # fmt: skip


def texts(draw: np.random.Generator, count: int) -> Any:
    lengths = draw.integers(0, WIDTH + 1, (count, 1))
    symbols = draw.integers(FIRST, SYMBOLS, (count, WIDTH))
    return np.where(np.arange(WIDTH) < lengths, symbols, END).astype(np.float32)


def echoes(count: int, seed: int, *, beside: bool = True) -> Part:
    """Sequences whose label says if the text of two events ago held one certain symbol.

    With a number beside the text, one of two symbols, as that event's number said.
    """
    draw = np.random.default_rng(seed)
    sequences = []
    for number in range(count):
        symbols, switch = texts(draw, 50), draw.integers(0, 2, 50) * beside
        is_it = (symbols == FIRST + switch[:, None]).any(axis=1)
        labels = np.concatenate([np.full(2, np.nan), is_it[:-2]]).astype(np.float32)
        x = np.concatenate([switch[:, None], symbols], 1)[:, not beside :].astype(np.float32)
        sequences.append(Sequence(f"k{number}", x, np.zeros(50, np.int64), labels))
    return Part(tuple(sequences), (0,) * count)


def made(model: Model, scaling: Scaling = BESIDE, seed: int = 3) -> Network:
    keras.utils.set_random_seed(seed)
    return build(model, scaling, CLASSES)


def proven(keras_model: Any, scaling: Scaling = BESIDE) -> Proof:
    """Export and compare over 1,200 carried steps, in all of verify's groupings."""
    converted = convert(keras_model)
    types = {node.op_type for node in onnx.load_from_string(converted.onnx).graph.node}
    assert not {"Loop", "Scan", "If"} & types
    truth = Truth(
        reference(keras_model), reference(in_float64(keras_model)), scaling.mean,
        scaling.deviation, None, scaling.symbols, scaling.width,
    )  # fmt: skip
    return verify(converted.onnx, converted.states, truth, max_steps=converted.max_steps)


@pytest.mark.parametrize("name", MODELS)
def test_a_text_inside_is_exported_exactly(name: str, tmp_path: Path) -> None:
    network = made(MODELS[name])
    # Biases begin at zero and vectors of symbols small: give them something to get wrong.
    draw = np.random.default_rng(1)
    network.whole.set_weights(
        [w + draw.normal(0, 0.3, w.shape).astype(w.dtype) if w.dtype.kind == "f" else w
         for w in network.whole.get_weights()]
    )  # fmt: skip
    network.whole.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    part = echoes(3, seed=4)
    for got, sequence in zip(predict(network, part), part.sequences, strict=True):
        np.testing.assert_allclose(got, reference(loaded)(sequence.x[None])[0], atol=2e-5)
    proof = proven(loaded)
    assert proof.identical
    assert convert(loaded).onnx == convert(load_model(tmp_path / "model.keras")).onnx


@pytest.mark.parametrize("name", ["pools", "convolution", "bi_lstm, pooled"])
def test_an_encoder_learns_what_takes_text_number_and_memory(name: str) -> None:
    network = made(replace(MODELS[name], units=(16,), embedding=8, encoder_units=12))
    how = Fit(seed=3, rows=16, window=25, passes=20, patience=20, learning_rate=0.02)
    history = fit(network, (echoes(32, 1), echoes(6, 2)), how, cross_entropy)
    assert min(history.validation_loss) < 0.3, history.validation_loss  # a guess has 0.68


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_has_a_gradient(name: str) -> None:
    tf = pytest.importorskip("tensorflow")
    network = made(MODELS[name])
    x = np.stack([sequence.x for sequence in echoes(4, 1).sequences])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(network.whole(x)[..., 0] ** 2)
    weights = network.whole.trainable_variables
    gradients = tape.gradient(loss, [w.value for w in weights])
    for weight, gradient in zip(weights, gradients, strict=True):
        assert gradient is not None, weight.path
        assert np.abs(np.asarray(tf.convert_to_tensor(gradient))).max() > 0, weight.path


def test_a_text_may_be_all_that_an_event_is() -> None:
    network = made(MODELS["convolution"], ALONE)
    part = echoes(2, seed=1, beside=False)
    assert predict(network, part)[0].shape == (50, 2)
    assert proven(network.whole, ALONE).identical


ENCODERS: dict[str, Any] = {
    "mean": lambda: Pooled(("mean",)),
    "max": lambda: Pooled(("max",)),
    "convolved": lambda: Convolved(5, (1, 2, 4)),
    "lstm": lambda: ReadThrough("lstm", 5, both=False),
    "both gru": lambda: ReadThrough("gru", 5),
    "both gru, pooled": lambda: ReadThrough("gru", 5, pool=True),
}


def encode(name: str) -> Any:
    """Return an encoder of symbols (B,T,N), the same for any N, with weights that are no zeros."""
    table, layer = Symbols(SYMBOLS, 4), ENCODERS[name]()
    drawn: dict[str, Any] = {}

    def run(symbols: Any) -> Any:
        symbols = np.asarray(symbols, np.float32)
        fresh = layer if "weights" not in drawn else ENCODERS[name]()
        z = table(symbols)
        fresh([symbols, z])
        if "weights" not in drawn:
            draw = np.random.default_rng(5)
            table.table.assign(draw.normal(0, 1, table.table.shape))
            drawn["weights"] = [draw.normal(0, 1, w.shape) for w in fresh.get_weights()]
        fresh.set_weights(drawn["weights"])
        return np.asarray(fresh([symbols, table(symbols)]))

    return run


@pytest.mark.parametrize("name", ENCODERS)
def test_places_without_a_symbol_change_nothing(name: str) -> None:
    run = encode(name)
    symbols = texts(np.random.default_rng(2), 12).reshape(3, 4, WIDTH)
    longer = np.concatenate([symbols, np.full((3, 4, 6), END, np.float32)], axis=2)
    # Of the padding's own vector nothing is to be seen either: it is the table's first.
    np.testing.assert_allclose(run(symbols), run(longer), atol=2e-6)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_empty_text_is_all_zeros(name: str) -> None:
    symbols = np.full((2, 3, WIDTH), END, np.float32)
    assert not encode(name)(symbols).any()


@pytest.mark.parametrize("name", ["convolved", "lstm", "both gru"])
def test_the_order_of_symbols_counts(name: str) -> None:
    y = encode(name)([[[2, 3, 4, 0, 0], [4, 3, 2, 0, 0]]])
    assert np.abs(y[0, 0] - y[0, 1]).max() > 0.01


def test_reading_backwards_is_reading_a_turned_text() -> None:
    symbols = np.array([[[2, 3, 4, 0, 0], [4, 3, 2, 0, 0]]], np.float32)
    layer, z = ReadThrough("gru", 3), Symbols(SYMBOLS, 4)(symbols)
    layer([symbols, z])
    layer.directions[1].set_weights(layer.directions[0].get_weights())
    y = np.asarray(layer([symbols, z]))
    np.testing.assert_allclose(y[0, 0, 3:], y[0, 1, :3], atol=1e-6)
    np.testing.assert_allclose(y[0, 1, 3:], y[0, 0, :3], atol=1e-6)


def test_means_and_maxima_are_those_of_the_symbols_alone() -> None:
    z = np.array([[[-1.0, 5.0], [-3.0, 1.0], [9.0, 9.0]]], np.float32)
    there = np.array([[[1.0], [1.0], [0.0]]], np.float32)
    assert np.asarray(pooled(z, there, "mean")).tolist() == [[-2.0, 3.0]]
    assert np.asarray(pooled(z, there, "max")).tolist() == [[-1.0, 5.0]]


def test_what_is_no_symbol_does_not_end_the_program() -> None:
    network = made(MODELS["convolution"])
    x = np.full((1, 2, 1 + WIDTH), np.nan, np.float32)
    x[0, 0], x[0, 1, 1:] = 1e9, -4.0
    network.whole.predict_on_batch(x)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Symbols(0, 3), "expected symbols and a width, got 0 and 3"),
        (lambda: Pooled(("sum",)), "expected some of mean, max"),
        (lambda: Convolved(4, ()), "expected filters and widths"),
        (lambda: ReadThrough("simple_rnn", 4), "expected lstm or gru and units"),
    ],
)
def test_a_layer_that_cannot_be_is_refused(make: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        make()


def test_a_call_has_as_many_steps_as_its_texts_leave_room_for() -> None:
    narrow, wide = Convolved(4, (2,)), Convolved(100, (3, 4, 5))
    narrow.build([(None, None, 4), (None, None, 4, 8)])
    wide.build([(None, None, 32), (None, None, 32, 100)])
    assert (narrow.most_steps, wide.most_steps) == (512, 6)
    model = replace(MODELS["convolution"], encoder_units=200, embedding=500)
    assert convert(made(model).whole).max_steps < 100


def test_a_text_that_takes_too_much_memory_is_refused_before_training() -> None:
    wide = replace(BESIDE, width=1024)
    with pytest.raises(SettingsError, match=r"text\.width, .* at most 262,144 .* got 569,344: low"):
        made(replace(MODELS["convolution"], encoder_units=128), replace(wide, symbols=9))
    made(MODELS["convolution"], wide)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"encoders": ()}, "encoders: expected some of mean, max, convolution, gru"),
        ({"encoders": ("mean", "mean")}, "encoders: expected some of .* each once"),
        ({"encoders": ("rnn",)}, r"encoders: .* got \['rnn'\]"),
        ({"encoder_units": 0}, "encoder_units, encoder_widths: expected positive"),
        ({"encoder_widths": (3, 3)}, "encoder_widths: expected each once"),
        ({"encoder_dropout": 1.0}, "encoder_dropout: expected 0 <="),
    ],
)
def test_settings_of_encoders_are_refused_by_name(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Model(**given)


DATA = '[data]\nfiles = ["a.csv"]\n[split]\nby = "order"\nvalidation_share = 0.1\n'
LABEL = ("data.label=y", "data.kind=regression")


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (("data.features=a", "data.text=t"), r"data\.features: .* got both: with text\.width"),
        (("data.text=t", "data.since_last=true", "data.time_field=z"), "got both"),
        (("data.text=t", "text.width=8"), r"data\.label: expected one, or data\.features, with"),
        (("data.features=t", "data.text=t"), "text: expected a member that is no feature too"),
        (("data.text=t", "model.encoders=mean", *LABEL), r"model\.encoders: .* without text\.wid"),
        (("data.text=t", "text.width=8", "model.family=frames", *LABEL), "another family than"),
        (("data.text=t", "text.width=8", "model.input_noise=1", *LABEL), "input_noise = 0 with"),
        (("data.text=t", "text.width=8", "model.tokens=9", "model.embedding=4", *LABEL),
         r"model\.tokens: expected none"),
        (("data.text=t", "text.width=1", *LABEL), r"text\.width: expected 0, or 2 to 1024, got 1"),
        (("data.text=t", "data.features=a", "text.width=8", "data.format=packed"),
         "text: expected none in packed records"),
        (("data.text=t", "data.features=a", "text.width=8", "data.long_name=n",
          "data.long_value=v"), "text: expected no long_name"),
    ],
)  # fmt: skip
def test_settings_that_contradict_a_text_inside_are_refused(
    tmp_path: Path, sets: tuple[str, ...], expected: str
) -> None:
    file = tmp_path / "training.toml"
    file.write_text(DATA, encoding="utf-8")
    with pytest.raises(SettingsError, match=expected):
        read_config(file, sets, environment={})


def test_symbols_are_drawn_for_the_proof_as_texts_are() -> None:
    from keyfold.export.verify import _draw_inputs

    truth = Truth(lambda x: x, lambda x: x, (5.0,), (0.1,), None, SYMBOLS, WIDTH)
    x = _draw_inputs(np.random.default_rng(0), truth, 4, 300)
    assert x.shape == (4, 300, 1 + WIDTH)
    assert abs(float(x[..., 0].mean()) - 5) < 0.1
    filled = x[..., 1:] != END
    assert set(filled.sum(axis=2).ravel().tolist()) == set(range(WIDTH + 1))
    assert (filled[..., :-1] >= filled[..., 1:]).all()
    assert set(x[..., 1:][filled].tolist()) == set(range(FIRST, SYMBOLS))
    json.dumps(x[0, 0].tolist())
