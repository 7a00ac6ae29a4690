"""The oracle's reading of section [emit]: right about every worker within the tolerance.

A worker's numbers are the offline ones but for their last digits; where these decide, the oracle
must take either answer, and follow both until they meet again.
"""

from __future__ import annotations

from math import nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyed_bundle import SCALES, THRESHOLD, make_keyed_bundle
from numpy.typing import NDArray
from tiny_bundle import make_tiny_bundle

from keyfold.export.bundle import Bundle
from keyfold.export.states import cold
from keyfold.worker.emission import ALERT, OUTPUT, Emission
from keyfold.worker.emit_settings import Emit
from keyfold.worker.verify.offline_emit import MOST, Due, Memory, OfflineEmit
from keyfold.worker.verify.offline_key import UNJUDGED, Stepped
from keyfold.worker.verify.offline_threshold import Judged


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return {
        "number": make_tiny_bundle(folder),
        "label": make_tiny_bundle(folder, kind="classification"),
        "keyed": make_keyed_bundle(folder),
    }


def stepped(*y: float) -> Stepped:
    return Stepped(np.array(y, np.float32), [], UNJUDGED, [])


def scored(score: float) -> Stepped:
    """Return an event of the keyed bundle with one score, judged by the fixed threshold."""
    return Stepped(np.zeros(12, np.float32), [score, nan], Judged(THRESHOLD, score), [])


def dues(rule: OfflineEmit, *events: Stepped) -> list[Due]:
    memory, found = Memory(), []
    for event in events:
        due, _, memory = rule.one(event, memory)
        found.append(due)
    return found


NUMBERS = [
    Emit("when", above=1.0),
    Emit("when", above=1.0, below=-1.0, k=2, n=4),
    Emit("on_change", step=0.5),
    Emit("on_change", above=0.5, k=3, n=5, step=1.0, alert_topic="alerts"),
]
LABELS = [
    Emit("on_change"),
    Emit("when", equals="odd", k=2, n=3),
    Emit("when", "probabilities.2", above=0.5),
]
NOISE = st.integers(-9, 9).map(lambda n: n / 10)  # in tolerances


def check_allows(
    bundle: Bundle, emit: Emit, y: NDArray[np.float64], off: NDArray[np.float64]
) -> None:
    """Whatever a worker does whose numbers are off by `off` tolerances is allowed."""
    tolerance = bundle.manifest.tolerance * bundle.golden.scale()
    exact, online = y.astype(np.float32), (y + off * tolerance).astype(np.float32)
    rule, oracle = Emission.of(emit, bundle.manifest.outputs), OfflineEmit(emit, bundle)
    assert rule is not None
    states, memory = cold(rule.states, 1), Memory()
    for now, said in zip(online, exact, strict=True):
        verdicts, states = rule.run(now[None, None], None, np.array([1]), states)
        output, alert, memory = oracle.one(stepped(*said), memory)
        for due, bit in ((output, OUTPUT), (alert, ALERT)):
            assert due is Due.MAY or (due is Due.MUST) == bool(verdicts[0, 0] & bit)
        stored = b"".join(states[spec.input].tobytes() for spec in rule.states)
        assert len(stored) == oracle.bytes_per_key
        assert oracle.difference(stored, memory) is None


@given(st.sampled_from(NUMBERS), st.lists(st.tuples(st.integers(-4, 4), NOISE), max_size=60))
def test_no_worker_within_the_tolerance_is_blamed(
    bundles: dict[str, Bundle], emit: Emit, events: list[tuple[int, float]]
) -> None:
    # Multiples of the limits: each comparison is a tie but for the last digits.
    y = np.array([[n / 2] for n, _ in events]).reshape(-1, 1)
    check_allows(bundles["number"], emit, y, np.array([[o] for _, o in events]).reshape(-1, 1))


ROW = st.tuples(*[st.sampled_from([0.0, 0.25, 0.5])] * 3, NOISE, NOISE, NOISE)


@given(st.sampled_from(LABELS), st.lists(ROW, max_size=40))
def test_no_worker_is_blamed_for_one_of_two_equal_labels(
    bundles: dict[str, Bundle], emit: Emit, rows: list[tuple[float, ...]]
) -> None:
    both = np.array(rows).reshape(-1, 6)
    check_allows(bundles["label"], emit, both[:, :3], both[:, 3:])


def test_only_the_last_digits_make_it_unsure(bundles: dict[str, Bundle]) -> None:
    rule = OfflineEmit(Emit("when", above=1.0), bundles["number"])
    events = [stepped(n) for n in (0.999, 1.0, 1.001)]
    assert dues(rule, *events) == [Due.NO, Due.MAY, Due.MUST]
    twice = OfflineEmit(Emit("when", above=1.0, k=2, n=3), bundles["number"])
    events = [stepped(n) for n in (2, 1.0, 2, 0, 0, 2)]
    assert dues(twice, *events) == [Due.NO, Due.MAY, Due.MUST, Due.MAY, Due.NO, Due.NO]


def test_what_was_emitted_last_is_sure_again_after_a_jump(bundles: dict[str, Bundle]) -> None:
    rule = OfflineEmit(Emit("on_change", step=1.0), bundles["number"])
    events = [stepped(n) for n in (0, 1.0, 1.5, 9.0, 9.5, 10.5)]
    # At 1.5 it depends on whether 1.0 was emitted: 0 to 1.5 is a change, 1.0 to 1.5 is none.
    wanted = [Due.MUST, Due.MAY, Due.MAY, Due.MUST, Due.NO, Due.MUST]
    assert dues(rule, *events) == wanted


def test_too_many_possibilities_are_anything(bundles: dict[str, Bundle]) -> None:
    rule = OfflineEmit(Emit("on_change", step=1.0), bundles["number"])
    memory = Memory(last=tuple((float(n), float(n)) for n in range(MOST)))
    due, _, memory = rule.one(stepped(MOST / 2 + 0.5), memory)
    assert due is Due.MAY
    many = Memory(last=tuple((n / MOST, n / MOST) for n in range(MOST + 1)))
    _, _, memory = rule.one(stepped(0.0), many)
    assert memory.last is None
    assert rule.one(stepped(50.0), memory)[0] is Due.MAY
    assert rule.difference(b"\0" * 16, memory) is None


def test_flags_and_scores_are_judged_like_the_prediction_s(bundles: dict[str, Bundle]) -> None:
    flag = OfflineEmit(Emit("when"), bundles["keyed"])
    scores = [nan, THRESHOLD - 0.01, THRESHOLD, THRESHOLD + 0.01]
    events = [scored(score) for score in scores]
    assert dues(flag, *events) == [Due.NO, Due.NO, Due.MAY, Due.MUST]
    score = OfflineEmit(Emit("on_change", "anomaly.score", step=1.0), bundles["keyed"])
    events = [scored(n) for n in (nan, nan, 0.0, 0.5, 2.0, nan)]
    wanted = [Due.MUST, Due.NO, Due.MUST, Due.NO, Due.MUST, Due.MUST]
    assert dues(score, *events) == wanted
    assert min(SCALES) < 1  # errors in deviations: off by more than outputs are
    below = OfflineEmit(Emit("when", "anomaly.score", below=1.0), bundles["keyed"])
    assert dues(below, scored(nan), scored(0.5)) == [Due.NO, Due.MUST]


def test_a_threshold_that_is_not_sure_makes_the_flag_unsure(bundles: dict[str, Bundle]) -> None:
    flag = OfflineEmit(Emit("on_change"), bundles["keyed"])
    unsure = Stepped(np.zeros(12, np.float32), [1.0, nan], Judged(nan, nan), [])
    first, again = scored(0.0), scored(9.0)
    assert dues(flag, first, unsure, first, again) == [Due.MUST, Due.MAY, Due.MAY, Due.MUST]


def test_an_event_whose_past_is_gone_may_be_emitted_or_not(bundles: dict[str, Bundle]) -> None:
    assert OfflineEmit(Emit("when", above=1.0), bundles["number"]).unknown() == (Due.MAY, Due.NO)
    alerts = Emit("all", above=1.0, alert_topic="a")
    assert OfflineEmit(alerts, bundles["number"]).unknown() == (Due.MUST, Due.MAY)
