"""Operating conditions are found in training events, and features are scaled within them."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from numpy.typing import NDArray

from keyfold.training.conditions import Conditions, ConditionsError, learn_conditions

CENTRES = np.array([[0.0, 100.0], [10.0, 60.0], [20.0, 100.0]])


def events(count: int = 600) -> NDArray[np.float32]:
    """Columns 0 and 2 tell the condition, 1 moves within it, 3 is constant within it."""
    draw = np.random.default_rng(1)
    which = draw.integers(len(CENTRES), size=count)
    told = CENTRES[which] + draw.normal(0.0, 0.01, (count, 2))
    moving = 1000.0 * which + (1.0 + which) * draw.normal(size=count)
    steady = 500.0 + 7.0 * which
    return np.stack([told[:, 0], moving, told[:, 1], steady], axis=1).astype(np.float32)


def test_centres_are_found_where_the_events_are() -> None:
    learned = learn_conditions([events()], (0, 2), 3)
    assert np.allclose(learned.centres, CENTRES, atol=0.01)
    assert learned == learn_conditions([events()], (0, 2), 3)


def test_a_feature_has_its_own_mean_and_deviation_in_each_condition() -> None:
    learned = learn_conditions([events()[:100], events()[100:]], (0, 2), 3)
    means, deviations = np.array(learned.means), np.array(learned.deviations)
    assert np.allclose(means[:, 1], [0.0, 1000.0, 2000.0], atol=0.5)
    assert np.allclose(deviations[:, 1], [1.0, 2.0, 3.0], rtol=0.15)
    assert np.allclose(means[:, 3], [500.0, 507.0, 514.0])
    assert (deviations[:, 3] == 1.0).all()  # it never changes: not blown up


def test_what_tells_the_condition_stays_visible_to_the_network() -> None:
    x = events()
    learned = learn_conditions([x], (0, 2), 3)
    for column in (0, 2):
        assert len({row[column] for row in learned.means}) == 1
        assert learned.deviations[0][column] == pytest.approx(x[:, column].std(), rel=1e-4)


def test_fewer_conditions_than_named_are_refused() -> None:
    x = events()
    x[:, [0, 2]] = np.round(x[:, [0, 2]])
    with pytest.raises(ConditionsError, match=r"data\.condition_count: expected at most 3.*got 4"):
        learn_conditions([x], (0, 2), 4)


def test_conditions_survive_json() -> None:
    learned = learn_conditions([events()], (0, 2), 3)
    assert Conditions.from_json(json.loads(json.dumps(asdict(learned)))) == learned


@pytest.mark.tensorflow
def test_the_scale_layer_leaves_what_an_event_differs_from_its_condition() -> None:
    pytest.importorskip("keras")
    from keyfold.export.outputs import OutputSpec
    from keyfold.training.data import Sequence
    from keyfold.training.scaling import learn_scaling, scale_layer, with_conditions

    x = events()
    sequence = Sequence("k", x, np.zeros(len(x), np.int64), np.zeros(len(x), np.float32))
    plain = learn_scaling([sequence], OutputSpec("regression", ("y",)))
    scaled = np.asarray(scale_layer(plain)(x))
    by_condition = np.asarray(scale_layer(with_conditions(plain, [sequence], (0, 2), 3))(x))
    which = np.round(x[:, 0] / 10.0)
    within = [
        [part[which == number, 1].std() for number in range(3)] for part in (scaled, by_condition)
    ]
    assert max(within[0]) < 0.01
    assert np.allclose(within[1], 1.0, atol=1e-3)
    assert np.allclose(by_condition[:, [0, 2]], scaled[:, [0, 2]], atol=1e-5)
