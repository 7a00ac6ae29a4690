"""States without a bound: an event is rejected or not whatever shares its call.

A network may be infinite between two events and come back, so that a call of several steps would
end well where one step at a time would not. Real networks, converted as they are exported; of the
worker the fold alone. Needs no service.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras_marks import KERAS

from keyfold.export import bundle as contract
from keyfold.export.bundle import Bundle, Golden, Manifest
from keyfold.export.events import EventSpec, OutputSpec
from keyfold.export.features import FeatureSpec
from keyfold.training.settings_model import Model as Settings
from keyfold.worker.fold import Fold
from keyfold.worker.metrics import Metrics
from keyfold.worker.model import Model
from keyfold.worker.rows import NOT_FINITE, Rows
from keyfold.worker.slots import Slots

keras = pytest.importorskip("keras")
from keyfold.export.convert import convert  # noqa: E402
from keyfold.training.model import build  # noqa: E402
from keyfold.training.scaling import Scaling  # noqa: E402

pytestmark = KERAS


def bundle_of(network: Any, folder: Path) -> Bundle:
    graph = convert(network)
    x = np.zeros((2, 3, 1), np.float32)
    golden = Golden(x, np.full(2, 3, np.int32), np.asarray(network(x)))
    manifest = Manifest(
        EventSpec("key", None), FeatureSpec.numbers("a"), OutputSpec("regression", ("value",)),
        graph.states, "", min_rows=2, max_steps=graph.max_steps,
    )  # fmt: skip
    return contract.load(contract.save(folder, manifest, graph.onnx, golden))


def folded(bundle: Bundle, values: list[float], at_once: int) -> tuple[dict[int, str], Any, Any]:
    """Return the rejects of one key's events, its outputs and its tensors, so many at once."""
    slots = Slots(bundle.manifest)
    slots.add(0, b"key")
    fold, outputs = Fold(Model(bundle), slots, Metrics()), []
    rejects: dict[int, str] = {}
    for first in range(0, len(values), at_once):
        x = np.array(values[first : first + at_once], np.float32)[:, None]
        offsets = np.arange(first, first + len(x))
        rows = Rows(
            np.zeros(len(x), np.intp), x, offsets, offsets, offsets,
            np.zeros((len(x), 1), np.float32), np.zeros(len(x), np.int64), {},
        )  # fmt: skip
        fold.apply(rows)
        rejects |= {first + row: why for row, why in rows.rejects.items()}
        outputs += rows.y[rows.slots >= 0].tolist()
    return rejects, outputs, {name: tensor[0].tolist() for name, tensor in slots.tensors.items()}


def test_a_state_that_is_infinite_between_two_events_rejects_the_first_however_they_come(
    tmp_path: Path,
) -> None:
    x = keras.Input((None, 1))
    layer = keras.layers.SimpleRNN(1, activation="relu", return_sequences=True)
    network = keras.Model(x, keras.layers.Dense(1, activation="relu")(layer(x)))
    # The state of the largest numbers is infinite, the output never is, and the next event ends it.
    ones = np.ones((1, 1), np.float32)
    network.set_weights([2 * ones, -ones, np.zeros(1), -ones, np.zeros(1)])
    bundle = bundle_of(network, tmp_path)
    values = [1.0, 3e38, 1.0, 0.5]
    alone, together = folded(bundle, values, 1), folded(bundle, values, 4)
    assert alone[0] == {1: NOT_FINITE}
    assert together == alone


WINDOWS = {
    "transformer": Settings(family="transformer", units=(8,), window=4, heads=2),
    "bidirectional": Settings(family="bidirectional", units=(6,), window=4),
    "attention": Settings(units=(6,), attention="additive", window=4),
    "attention over relu": Settings(
        "simple_rnn", (6,), attention="multiplicative", window=4, activation="relu"
    ),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_the_largest_numbers_within_a_window_are_rejected_however_they_come(
    tmp_path: Path, name: str
) -> None:
    """They are infinite once scaled, and a call of many steps ends with another window."""
    keras.utils.set_random_seed(4)
    scaling = Scaling((0.0,), (0.1,), 0.0, 1.0)
    network = build(WINDOWS[name], scaling, OutputSpec("regression", ("value",))).whole
    bundle = bundle_of(network, tmp_path)
    values = np.random.default_rng(4).normal(0, 0.1, 60).tolist()
    for place in (0, 7, 8, 30, 58):
        values[place] = 3e38 * (-1) ** place
    alone = folded(bundle, values, 1)
    for at_once in (2, 7, 60):
        assert folded(bundle, values, at_once) == alone
