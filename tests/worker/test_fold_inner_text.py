"""Events with a text inside are folded the same, bit for bit, however they are grouped.

From records to states: decoded in any pieces, folded in any pieces. Needs no service.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inner_bundle import inner_event, make_inner_bundle, textless_event

from keyfold.export.events import Decoder
from keyfold.worker.fold import Fold
from keyfold.worker.metrics import Metrics
from keyfold.worker.model import Model
from keyfold.worker.rows import Rows
from keyfold.worker.slots import Slots

KEYS, COUNT = 5, 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(make_inner_bundle(tmp_path_factory.mktemp("b")))


def folded(model: Model, values: list[bytes], keys: Any, cuts: list[int]) -> dict[str, Any]:
    """Return outputs, scores, rejects and the states at the end; a cut begins a micro-batch."""
    manifest = model.bundle.manifest
    decode = Decoder(manifest.events, manifest.features, manifest.outputs.targets).decode
    slots = Slots(manifest)
    for number in range(KEYS):
        slots.add(0, b"%d" % number)
    fold, found = Fold(model, slots, Metrics()), dict[str, Any](y=[], scores=[], rejects=[])
    for first, end in zip([0, *cuts], [*cuts, COUNT], strict=True):
        count = end - first
        decoded = decode(values[first:end], [0] * count)
        assert decoded.lengths is None
        mine = keys[first:end].copy()
        mine[list(decoded.rejects)] = -1
        offsets = np.arange(first, end, dtype=np.int64)
        rows = Rows(
            mine, decoded.x, offsets, decoded.times_ms, decoded.times_ms,
            np.zeros((count, len(manifest.outputs.names)), np.float32),
            np.zeros(count, np.int64), {}, decoded.observed, fold.scores(count),
        )  # fmt: skip
        fold.apply(rows)
        found["y"].append(rows.y)
        found["scores"].append(rows.scores)
        found["rejects"] += [(first + row, why) for row, why in sorted(decoded.rejects.items())]
    states = slots.gather(np.arange(KEYS))
    return {"y": np.concatenate(found["y"]), "scores": np.concatenate(found["scores"]),
            "rejects": found["rejects"], **states}  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, COUNT), max_size=COUNT))
def test_grouping_changes_nothing(model: Model, seed: int, cuts: list[int]) -> None:
    draw = np.random.default_rng(seed)
    times = np.cumsum(draw.choice([0, 1, 1000, 90_000], COUNT)) + 10**12
    values = [
        (textless_event if draw.random() < 0.1 else inner_event)(draw, int(time)) for time in times
    ]
    keys = (draw.zipf(1.5, COUNT) % KEYS).astype(np.intp)
    expected = folded(model, values, keys, list(range(1, COUNT)))
    got = folded(model, values, keys, sorted(cuts))
    assert got.pop("rejects") == expected.pop("rejects")
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)
