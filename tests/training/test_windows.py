"""Windows go through every event of every sequence once, in order, and mark cold lanes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from keyfold.training.data import Sequence
from keyfold.training.windows import Piece, windows


def sequences(lengths: list[int]) -> list[Sequence]:
    return [
        Sequence(
            f"k{i}",
            (1000 * i + np.arange(n, dtype=np.float32))[:, None],
            np.zeros(n, np.int64),
            np.arange(n, dtype=np.float32),
        )
        for i, n in enumerate(lengths)
    ]


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    rows=st.integers(1, 5),
    length=st.integers(1, 12),
)
def test_every_event_is_met_once_and_in_order(lengths: list[int], rows: int, length: int) -> None:
    given_sequences = sequences(lengths)
    pieces = [Piece(index, 0, 0) for index in range(len(lengths))]
    met: dict[int, list[float]] = {index: [] for index in range(len(lengths))}
    for window in windows(given_sequences, pieces, rows, length):
        for lane, owner in enumerate(window.owner.tolist()):
            real = window.weights[lane] == 1
            if owner < 0:
                assert not real.any()
                continue
            assert bool(window.fresh[lane]) == (not met[owner])
            met[owner] += window.x[lane, real, 0].tolist()
    assert met == {i: s.x[:, 0].tolist() for i, s in enumerate(given_sequences)}


def test_a_long_sequence_does_not_hold_up_short_ones() -> None:
    pieces = [Piece(index, 0, 0) for index in range(5)]
    owners = [w.owner.tolist() for w in windows(sequences([8, 2, 2, 2, 2]), pieces, 2, 2)]
    assert owners == [[0, 1], [0, 2], [0, 3], [0, 4]]


def test_padding_and_events_without_a_label_weigh_nothing() -> None:
    (one,) = sequences([5])
    one.labels[1] = np.nan
    (window,) = windows([one], [Piece(0, 0, 0)], 4, 8)
    assert window.weights.tolist() == [[1, 0, 1, 1, 1, 0, 0, 0]]
    assert np.isfinite(window.labels).all()


def test_a_piece_starts_late_and_counts_later() -> None:
    (window,) = windows(sequences([6]), [Piece(0, 2, 4)], 1, 8)
    assert window.x[0, :4, 0].tolist() == [2, 3, 4, 5]
    assert window.weights.tolist() == [[0, 0, 1, 1, 0, 0, 0, 0]]


def test_a_piece_may_end_before_its_sequence() -> None:
    pieces = [Piece(0, 0, 0, 3), Piece(0, 3, 4, 6)]
    found = list(windows(sequences([9]), pieces, 2, 4))
    assert [w.owner.tolist() for w in found] == [[0, 0]]
    assert found[0].x[:, :3, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found[0].weights.tolist() == [[1, 1, 1, 0], [0, 1, 1, 0]]


def test_forecasts_weigh_value_by_value() -> None:
    (one,) = sequences([3])
    labels = np.array([[1, np.nan], [np.nan, 2], [3, 4]], np.float32)
    (window,) = windows([replace(one, labels=labels)], [Piece(0, 0, 1)], 1, 3)
    assert window.weights.tolist() == [[[0, 0], [0, 1], [1, 1]]]
