"""What a key's past adds to its inputs before the graph sees them, whatever the weights.

Owns the last known value of a field, the time since the key's last event and the running
standardisation, as tensors of the key's state. Pure numpy; knows neither records nor graphs. The
same events give the same bits however they are grouped into calls, because every operation is
elementwise or runs along the key's own time. Called by training (whole sequences), the worker's
fold (micro-batches) and keyfold-verify.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.features import FeatureSpec
from keyfold.export.states import StateSpec, Tensors, own_state

LAST, TIME, MOMENTS = "front.last", "front.time_ms", "front.moments"
NEVER = np.iinfo(np.int64).min  # event time of a key that had no event

Rows = NDArray[np.float32]  # (B,T,F)
Valid = NDArray[np.bool_]  # (B,T) whether the row has an event there


@dataclass(frozen=True, slots=True)
class _Columns:
    """Which of the F columns need what."""

    last: tuple[int, ...]  # hold a value that a missing one repeats
    fills: tuple[float, ...]  # per `last`: what stands there before there is any value
    scaled: tuple[int, ...]  # are standardised
    absent: tuple[int, ...]  # per `scaled`: column that says missing; -1: none says it
    since: int  # gets the time since the last event; -1: none does


class Front:
    """The part of the fold before the graph, of one feature spec."""

    def __init__(self, columns: _Columns) -> None:
        self._columns = columns
        self._last, self._scaled = list(columns.last), list(columns.scaled)
        self._fills = np.array(columns.fills, np.float32)
        states = []
        if columns.last:
            states.append(own_state(LAST, (len(columns.last),), "float32", float("nan")))
        if columns.since >= 0:
            states.append(own_state(TIME, (), "int64", float(NEVER)))
        if columns.scaled:
            states.append(own_state(MOMENTS, (3, len(columns.scaled)), "float64"))
        self.states: tuple[StateSpec, ...] = tuple(states)  # in storage order

    @classmethod
    def of(cls, features: FeatureSpec) -> Front | None:
        """Return the front of a feature spec; None: nothing depends on the key's past."""
        columns = _columns(features)
        return cls(columns) if columns.last or columns.scaled or columns.since >= 0 else None

    def run(
        self, x: Rows, times_ms: NDArray[np.int64], lengths: NDArray[Any], states: Tensors
    ) -> tuple[Rows, dict[str, NDArray[Any]]]:
        """Finish decoded rows x (B,T,F) of B keys with `lengths` (B,) events each.

        Returns new arrays: x, 0 beyond a row's length, and the states under their names. What
        stands beyond a row's length in x and times_ms is not looked at.
        """
        valid = np.arange(x.shape[1]) < np.asarray(lengths)[:, None]
        x = np.where(valid[:, :, None], x, np.float32(0))
        after: dict[str, NDArray[Any]] = {}
        if self._last:
            x[:, :, self._last], after[LAST] = self._carried(x, valid, lengths, states[LAST])
        if self._columns.since >= 0:
            since, after[TIME] = _since_last(times_ms, valid, lengths, states[TIME])
            x[:, :, self._columns.since] = since
        if self._scaled:
            x[:, :, self._scaled], after[MOMENTS] = self._standardised(x, valid, states[MOMENTS])
        return x, after

    def _carried(
        self, x: Rows, valid: Valid, lengths: NDArray[Any], last: NDArray[np.float32]
    ) -> tuple[Rows, NDArray[np.float32]]:
        """Put the newest known value where one is missing."""
        values = np.concatenate([last[:, None], x[:, :, self._last]], axis=1)
        known = ~np.isnan(values)
        known[:, 1:] &= valid[:, :, None]
        places = np.where(known, np.arange(values.shape[1])[:, None], 0)
        newest = np.take_along_axis(values, np.maximum.accumulate(places, axis=1), axis=1)
        kept = newest[np.arange(len(x)), np.asarray(lengths)]
        shown = np.where(np.isnan(newest[:, 1:]), self._fills, newest[:, 1:])
        return np.where(valid[:, :, None], shown, np.float32(0)), kept

    def _standardised(
        self, x: Rows, valid: Valid, moments: NDArray[np.float64]
    ) -> tuple[Rows, NDArray[np.float64]]:
        """Standardise by the moments of the key's values up to and with each event.

        Welford's recurrence (Technometrics 4, 1962). A missing value changes no moments.
        """
        values = x[:, :, self._scaled].astype(np.float64)
        known = np.broadcast_to(valid[:, :, None], values.shape).copy()
        carried = np.zeros(len(self._scaled), np.bool_)
        for number, column in enumerate(self._columns.absent):
            if column >= 0:
                known[:, :, number] &= x[:, :, column] == 0
                carried[number] = self._scaled[number] in self._columns.last
        count, mean, m2 = moments[:, 0], moments[:, 1], moments[:, 2]
        counts = np.maximum(count[:, None] + np.cumsum(known, axis=1), 1.0)
        means, m2s = np.empty_like(values), np.empty_like(values)
        whole = np.asarray(known.all(axis=(0, 2)))  # whether nothing is missing at t
        for t in range(values.shape[1]):
            value = values[:, t]
            off = value - mean
            moved = mean + off / counts[:, t]
            grown = m2 + off * (value - moved)
            if whole[t]:
                mean, m2 = moved, grown
            else:
                mean = np.where(known[:, t], moved, mean)
                m2 = np.where(known[:, t], grown, m2)
            means[:, t], m2s[:, t] = mean, m2
        spread = np.sqrt(m2s / counts)
        shown = (known | (carried & valid[:, :, None])) & (spread > 0)
        scaled = np.where(shown, (values - means) / np.where(shown, spread, 1.0), 0.0)
        after = np.stack([count + known.sum(axis=1), mean, m2], axis=1)
        return scaled.astype(np.float32), after


def _columns(features: FeatureSpec) -> _Columns:
    last: list[int] = []
    fills: list[float] = []
    scaled: list[int] = []
    absent: list[int] = []
    column = 0
    for field in features.fields:
        width = len(field.value_columns)
        if field.missing == "last":
            last += range(column, column + width)
            fills += [field.fill] * width
        if field.standardise:
            scaled.append(column)
            absent.append(column + width if field.missing != "error" else -1)
        column += len(field.columns)
    since = column if features.since_last else -1
    return _Columns(tuple(last), tuple(fills), tuple(scaled), tuple(absent), since)


def _since_last(
    times_ms: NDArray[np.int64], valid: Valid, lengths: NDArray[Any], last_ms: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    times = np.concatenate([last_ms[:, None], times_ms], axis=1)
    before = np.where(times[:, :-1] == NEVER, times_ms, times[:, :-1])
    seconds = np.where(valid, times_ms - before, 0) / 1000.0
    # log1p of a contiguous array: numpy then treats every element alike, wherever it stands.
    since = np.log1p(np.ascontiguousarray(np.maximum(seconds, 0.0))).astype(np.float32)
    return since, times[np.arange(len(times)), np.asarray(lengths)]
