"""The fold with a front and a back: exact in any grouping, and what the oracle says event by event.

What the key remembers beside the graph's tensors (last values, moments, its last event's time, the
forecast of its next event) moves with the step or not at all. Needs no service.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keyed_bundle import keyed_outputs, make_keyed_bundle, messy_event
from multiplier import make_multiplier
from numpy.typing import NDArray

from keyfold.export.bundle import Bundle
from keyfold.export.events import Anomaly, Decoded, Decoder, Dynamic, Forecast, OutputSpec
from keyfold.export.features import FeatureSpec, Field
from keyfold.worker.fold import Fold
from keyfold.worker.metrics import Metrics
from keyfold.worker.model import Model
from keyfold.worker.rows import NOT_FINITE, Rows
from keyfold.worker.slots import Slots
from keyfold.worker.verify.offline_key import Event, OfflineKey, Stepped
from keyfold.worker.verify.offline_step import OfflineStep


class World:
    """A model, its slots and a fold over them."""

    def __init__(self, model: Model, keys: int) -> None:
        self.slots, self.first = Slots(model.bundle.manifest), 0
        for number in range(keys):
            self.slots.add(0, b"%d" % number)
        self.fold = Fold(model, self.slots, Metrics())
        self.width = len(model.bundle.manifest.outputs.names)

    def apply(self, slots: NDArray[np.intp], events: Decoded) -> Rows:
        """Fold the next events."""
        count, offsets = len(slots), np.arange(self.first, self.first + len(slots))
        self.first += count
        rows = Rows(
            slots.copy(), events.x, offsets, events.times_ms, events.times_ms,
            np.zeros((count, self.width), np.float32), np.zeros(count, np.int64), {},
            events.observed, self.fold.scores(count),
        )  # fmt: skip
        self.fold.apply(rows)
        return rows


def decoded(bundle: Bundle, count: int, seed: int) -> Decoded:
    draw = np.random.default_rng(seed)
    times = np.cumsum(draw.choice([0, 1, 40, 1000, 86_400_000, -500], count)) + 10**12
    manifest = bundle.manifest
    events = Decoder(manifest.events, manifest.features, manifest.outputs.targets).decode(
        [messy_event(draw, int(time)) for time in times], [0] * count
    )
    assert events.rejects == {}
    return events


def part(events: Decoded, rows: NDArray[np.intp]) -> Decoded:
    observed = None if events.observed is None else events.observed[rows]
    return Decoded(events.x[rows], events.times_ms[rows], {}, observed)


def offline(
    bundle: Bundle, slots: NDArray[np.intp], events: Decoded
) -> tuple[list[Stepped | None], dict[int, list[NDArray[Any]]]]:
    """Return what the oracle says of each event, and the last tensors of each slot."""
    key = OfflineKey(OfflineStep(bundle))
    found: list[Stepped | None] = []
    tensors: dict[int, list[NDArray[Any]]] = {}
    for row, slot in enumerate(slots.tolist()):
        seen = None if events.observed is None else events.observed[row]
        event = Event(events.x[row], int(events.times_ms[row]), seen)
        stepped = key.one(event, tensors.setdefault(slot, key.cold()))
        found.append(stepped)
        if stepped is not None:
            tensors[slot] = stepped.tensors
    return found, tensors


@pytest.fixture(scope="module", params=["fixed", "dynamic"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    own = Dynamic(window=12, smoothing=0.5, warm_up=3) if request.param == "dynamic" else None
    return Model(make_keyed_bundle(tmp_path_factory.mktemp("b"), keyed_outputs(dynamic=own)))


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 24, 60]), st.integers(0, 600),
    st.integers(1, 5),
)  # fmt: skip
def test_any_grouping_gives_the_same_bits_and_what_the_oracle_says(
    model: Model, seed: int, keys: int, count: int, micro_batches: int
) -> None:
    draw = np.random.default_rng(seed)
    slots = (draw.zipf(1.4, count) % keys).astype(np.intp)
    events = decoded(model.bundle, count, seed)
    grouped, single = World(model, keys), World(model, keys)
    ones = [single.apply(slots[[i]], part(events, np.array([i]))) for i in range(count)]
    parts = [
        grouped.apply(slots[some], part(events, some))
        for some in np.array_split(np.arange(count), micro_batches)
    ]
    for name in ("y", "scores", "steps"):
        mine = [getattr(rows, name) for rows in parts]
        np.testing.assert_array_equal(
            np.concatenate(mine), np.concatenate([mine[0][:0], *(getattr(r, name) for r in ones)])
        )
    for name, tensor in grouped.slots.tensors.items():
        np.testing.assert_array_equal(tensor[:keys], single.slots.tensors[name][:keys])
    _agrees_with_the_oracle(model, grouped, (slots, events), np.concatenate([p.y for p in parts]))


def _agrees_with_the_oracle(
    model: Model, world: World, stream: tuple[NDArray[np.intp], Decoded], y: NDArray[np.float32]
) -> None:
    stepped, tensors = offline(model.bundle, *stream)
    for row, one in enumerate(stepped):
        assert one is not None
        np.testing.assert_allclose(y[row], one.y, rtol=1e-6, atol=1e-6)
    names = [spec.input for spec in model.bundle.manifest.kept]
    for slot, wanted in tensors.items():
        for name, tensor in zip(names, wanted, strict=False):  # then what is not stored
            got = world.slots.tensors[name][slot]
            if name.startswith("front."):
                np.testing.assert_array_equal(got, tensor[0])
            else:
                np.testing.assert_allclose(got, tensor[0], rtol=1e-6, atol=1e-6)


def test_scores_are_the_oracle_s(model: Model) -> None:
    slots = (np.arange(300) % 7).astype(np.intp)
    events = decoded(model.bundle, 300, 5)
    scores = World(model, 7).apply(slots, events).scores
    assert scores is not None
    flagged = 0
    for row, one in enumerate(offline(model.bundle, slots, events)[0]):
        assert one is not None
        known = [score for score in one.scores if not np.isnan(score)]
        if not known:
            assert np.isnan(scores[row, :2]).all()
            continue
        assert scores[row, 0] == pytest.approx(max(known), rel=1e-5)
        assert one.scores[int(scores[row, 1])] == pytest.approx(max(known), rel=1e-5)
        flagged += scores[row, 0] > 2.5
    assert np.isnan(scores[:7, 0]).all(), "a key's first event has no forecast"
    assert 0 < flagged < 290


# -- a step that is rejected -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def multiplier(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Return a model with front and back whose output is infinite for an event of value 0."""
    features = FeatureSpec((Field("a", missing="last", fill=1.0), Field("t", standardise=True)))
    outputs = OutputSpec.of_forecast(Forecast(("a",)), Anomaly((1.0,), 1.0, 0.1))
    return Model(make_multiplier(tmp_path_factory.mktemp("m"), features=features, outputs=outputs))


def of_values(*rows: tuple[float, float]) -> Decoded:
    """Return events of (a, t), one second apart; a may be NaN."""
    x = np.array([(a, np.isnan(a), t) for a, t in rows], np.float32)
    times = 1000 * np.arange(1, len(rows) + 1)
    return Decoded(x, times, {}, x[:, :1].copy())


def kept(world: World, slot: int = 0) -> dict[str, Any]:
    return {name: tensor[slot].tolist() for name, tensor in world.slots.tensors.items()}


def test_a_rejected_step_leaves_front_graph_and_back_as_they_were(multiplier: Model) -> None:
    world = World(multiplier, 1)
    here = np.zeros(1, np.intp)
    world.apply(here, of_values((2.0, 5.0)))
    before = kept(world)
    rejected = world.apply(here, of_values((0.0, 9.0)))
    assert rejected.rejects == {0: NOT_FINITE}
    assert kept(world) == before
    assert before["front.last"] == [2.0]
    assert before["front.moments"] == [[1.0], [5.0], [0.0]]
    assert before["back.forecast"] == [0.5]


def test_events_behind_a_rejected_one_of_the_same_call_go_on_from_before_it(
    multiplier: Model,
) -> None:
    here = np.zeros(4, np.intp)
    nan = float("nan")
    world, without = World(multiplier, 1), World(multiplier, 1)
    rows = world.apply(here, of_values((2.0, 5.0), (0.0, 9.0), (nan, 6.0), (3.0, 7.0)))
    want = without.apply(here[:3], of_values((2.0, 5.0), (nan, 6.0), (3.0, 7.0)))
    assert rows.rejects == {1: NOT_FINITE}
    assert kept(world) == kept(without)
    good = [0, 2, 3]
    np.testing.assert_array_equal(rows.y[good], want.y)
    assert rows.scores is not None
    assert want.scores is not None
    np.testing.assert_array_equal(rows.scores[good], want.scores)
    assert rows.steps.tolist() == [1, 0, 2, 3]


def test_a_rejected_event_takes_nothing_from_the_other_keys_of_its_call(
    multiplier: Model,
) -> None:
    world, alone = World(multiplier, 2), World(multiplier, 2)
    both = np.arange(2)
    first = of_values((2.0, 5.0), (4.0, 6.0))
    world.apply(both, first)
    alone.apply(both, first)
    rows = world.apply(both, of_values((0.0, 9.0), (3.0, 7.0)))
    want = alone.apply(both[1:], of_values((3.0, 7.0)))
    assert rows.rejects == {0: NOT_FINITE}
    assert rows.scores is not None
    assert want.scores is not None
    np.testing.assert_array_equal(rows.scores[1], want.scores[0])
    assert rows.scores[1].tolist() == [2.75, 0.0]
    assert kept(world, 1) == kept(alone, 1)


def test_a_first_event_that_is_rejected_leaves_the_key_cold(multiplier: Model) -> None:
    world, fresh = World(multiplier, 1), World(multiplier, 1)
    world.apply(np.zeros(1, np.intp), of_values((0.0, 5.0)))
    np.testing.assert_equal(kept(world), kept(fresh))


def test_scoring_without_observed_values_is_refused_by_both(multiplier: Model) -> None:
    events = of_values((2.0, 5.0))
    blind = Decoded(events.x, events.times_ms, {}, None)
    with pytest.raises(RuntimeError, match="expected observed values"):
        World(multiplier, 1).apply(np.zeros(1, np.intp), blind)
    with pytest.raises(RuntimeError, match="expected observed values"):
        offline(multiplier.bundle, np.zeros(1, np.intp), blind)


# -- a back alone ----------------------------------------------------------------------------------


def test_a_back_without_a_front_scores_too(tmp_path: Path) -> None:
    outputs = keyed_outputs(quantiles=())
    targets = FeatureSpec.numbers("temp", "rpm")
    model = Model(make_keyed_bundle(tmp_path, outputs, features=targets))
    x = np.random.default_rng(0).normal(0, 1, (60, 2)).astype(np.float32)
    events = Decoded(x, np.arange(60), {}, x)
    slots = (np.arange(60) % 2).astype(np.intp)
    scores = World(model, 2).apply(slots, events).scores
    assert scores is not None
    assert np.isnan(scores[:2]).all()
    assert (scores[2:, 0] >= 0).all()
