"""How often and how steadily an unknown log's events come, and where to split it.

Owns the sampling interval, gaps, order and doubles, and the times that part training, validation
and test. Pure: arrays in, one object out. Called by cli.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.training.init.columns import Column, Table
from keyfold.training.init.roles import Roles, groups_of, times_of

GAP = 20.0  # times the usual interval: a gap
REGULAR = 1.5  # the 90th percentile of intervals against the 10th
ENDED = 0.05  # of the log's span: a key that is silent for so long at the end has ended
MANY_KEYS = 8  # whole keys can be held out of so many
TRAIN, VALIDATION = 0.7, 0.85  # shares of the events before which the parts end


@dataclass(frozen=True, slots=True)
class Rhythm:
    """When events come."""

    keys: int  # how many
    shortest: int  # events of the key with the fewest
    longest: int  # events of the key with the most
    interval_s: float  # median seconds between a key's events; 0 without times
    regular: bool  # most intervals are alike
    gaps: int  # intervals longer than GAP times the median
    longest_gap_s: float  # the longest interval
    reset_after_s: float  # lies between usual silences and gaps; 0: no gap
    disorder: int  # rows that come before an earlier row of their key
    doubles: int  # rows with the same key and time as another (long format: and sensor)
    no_time: int  # rows whose time cannot be read
    split_by: str  # "time", "order" or "key"
    split_why: str  # what was seen
    validation_from: str  # ISO 8601, with split_by "time"
    test_from: str  # likewise
    first: str  # ISO 8601, or empty without a calendar
    last: str  # likewise
    validation: int  # events that validation will have, about


def find_rhythm(table: Table, roles: Roles, label: str = "") -> Rhythm:
    """Measure a table's rhythm; `label` is the column to be predicted, if any."""
    times, groups = times_of(roles, table.rows), groups_of(table, roles)
    good = ~np.isnan(times) & (groups >= 0)
    times, groups = times[good], groups[good]
    by_log = np.argsort(groups, kind="stable")
    backwards = (np.diff(times[by_log]) < 0) & (np.diff(groups[by_log]) == 0)
    order = np.lexsort((times, groups))
    same = np.diff(groups[order]) == 0
    steps = np.diff(times[order])[same] / 1000.0 if roles.time is not None else np.zeros(0)
    _, counts = np.unique(groups, return_counts=True)
    moving = steps[steps > 0]
    usual = float(np.median(moving)) if len(moving) else 0.0
    spread = np.quantile(moving, [0.1, 0.9]) if len(moving) else np.ones(2)
    gaps = moving[moving > GAP * usual]
    life = _life(table.columns[label], good, order, groups) if label else ""
    longest = float(moving.max()) if len(moving) else 0.0
    life = life or (_ends(times, groups, 1000.0 * longest) if _has_calendar(roles) else "")
    by, why, bounds, validation = _split(roles, times, groups, life)
    return Rhythm(
        keys=len(counts),
        shortest=int(counts.min()) if len(counts) else 0,
        longest=int(counts.max()) if len(counts) else 0,
        interval_s=usual,
        regular=bool(spread[1] <= REGULAR * spread[0]),
        gaps=len(gaps),
        longest_gap_s=longest,
        reset_after_s=_between(moving, gaps, usual),
        disorder=int(backwards.sum()),
        doubles=_doubles(table, roles, good, (times, groups)),
        no_time=int((~good).sum()),
        split_by=by,
        split_why=why,
        validation_from=bounds[0],
        test_from=bounds[1],
        first=_iso(times.min()) if _has_calendar(roles) and len(times) else "",
        last=_iso(times.max()) if _has_calendar(roles) and len(times) else "",
        validation=validation,
    )


def _has_calendar(roles: Roles) -> bool:
    return roles.time is not None and not roles.time.counts


def _between(moving: NDArray[Any], gaps: NDArray[Any], usual: float) -> float:
    """Return a silence longer than the usual ones and shorter than the gaps, to two digits."""
    if not len(gaps):
        return 0.0
    usual_longest = moving[moving <= GAP * usual].max(initial=usual)
    value = float(np.sqrt(usual_longest * gaps.min()))
    return float(f"{value:.2g}")


def _doubles(table: Table, roles: Roles, good: NDArray[Any], pair: tuple[NDArray[Any], ...]) -> int:
    if roles.time is None:
        return 0
    rows = [*pair]
    if roles.sensor:
        rows.append(table.columns[roles.sensor].codes[good].astype(np.float64))
    return len(pair[0]) - int(np.unique(np.stack(rows), axis=1).shape[1])


def _life(label: Column, good: NDArray[Any], order: NDArray[Any], groups: NDArray[Any]) -> str:
    """Say why a label asks for whole keys to be held out; "": it does not."""
    same = np.diff(groups[order]) == 0
    if not same.any():
        return ""
    if (np.diff(label.identity[good][order])[same] == 0).all():
        return "the label is the same throughout a key: whole keys are held out"
    steps = np.diff(label.numbers[good][order])[same]
    if (steps <= 0).mean() > 0.99:
        return "the label falls to the end of each key: whole keys are held out"
    return ""


def _ends(times: NDArray[Any], groups: NDArray[Any], longest_ms: float) -> str:
    """Say that most keys end before the log does, by more than any silence; "": they do not."""
    if not len(times):
        return ""
    _, places = np.unique(groups, return_inverse=True)
    last = np.full(places.max() + 1, -np.inf)
    np.maximum.at(last, places, times)
    silence = max(longest_ms, ENDED * float(times.max() - times.min()))
    if (last < times.max() - silence).mean() < 0.5:
        return ""
    return "most keys end before the log does, as runs to a failure: whole keys are held out"


def _split(
    roles: Roles, times: NDArray[Any], groups: NDArray[Any], life: str
) -> tuple[str, str, tuple[str, str], int]:
    """Choose how to hold events out: later events, unless keys live one after the other."""
    keys, none = len(np.unique(groups)), ("", "")
    held = round((VALIDATION - TRAIN) * len(groups))
    if life and keys >= MANY_KEYS:
        return "key", life, none, held
    if _has_calendar(roles):
        first, second = np.quantile(times, [TRAIN, VALIDATION])
        early = len(np.unique(groups[times < first]))
        if first < second <= times.max() and early >= 0.5 * keys:
            why = "later events are held out: the model is to know the past of keys it serves"
            return "time", why, (_iso(first), _iso(second)), held
        if keys < MANY_KEYS:
            return "order", "each key's last events are held out", none, held
        return "key", "keys live at different times: whole keys are held out", none, held
    if keys >= MANY_KEYS:
        return "key", "times count from a start: whole keys are held out", none, held
    return "order", "each key's last events are held out", none, held


def _iso(time_ms: float) -> str:
    moment = datetime.fromtimestamp(round(float(time_ms) / 1000.0), UTC)
    return moment.replace(tzinfo=None).isoformat() + "Z"
