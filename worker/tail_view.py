"""What keyfold-tail shows: the newest prediction per key, rates, and the numbers around them.

Owns how a prediction looks to a person, on one line and as a row of the live view. Pure: time and
numbers of the log are arguments, no topic is read and nothing is printed here. Called by
worker/tail.py.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

BARS = "▁▂▃▄▅▆▇█"
HISTORY = 60  # values kept per key, for the sparkline
MAX_KEYS = 5_000  # kept; the longest unseen are forgotten
RATE_OVER_S = 5.0  # sliding window of the rate
FRAME_LINES = 4  # of the view that are not keys
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Shown:
    """A prediction as a person sees it."""

    key: str  # UTF-8, or base64 of other bytes
    time: str  # event time, ISO 8601 UTC
    output: str  # "value 0.8231", "odd 97 %", or "score 0.83 (temp)  temp+1 20.1"
    signal: float  # what the sparkline draws: first value, top probability or anomaly score
    bounded: bool  # the signal is a probability, 0..1
    steps: int  # of the key, this one included
    cold: bool  # the key had no history

    def line(self) -> str:
        """Return the prediction as one line of text."""
        return f"{self.time}  {self.key}  {self.output}  step {self.steps}" + (
            "  cold" if self.cold else ""
        )


def read_prediction(value: bytes | None) -> Shown | None:
    """Read a prediction's JSON; None: the record is none."""
    try:
        members: Any = orjson.loads(value or b"")
        output = members["output"]
        if "probabilities" in output:
            signal, bounded = max(output["probabilities"]), True
            text = f"{output['label']} {signal:.0%}"
        elif isinstance(output.get("forecast"), dict):
            (text, signal), bounded = _forecast(output), False
        else:
            numbers = list(output.values())
            signal, bounded = numbers[0], False
            text = "  ".join(f"{name} {number:.5g}" for name, number in output.items())
        return Shown(
            key=members["key"] if "key" in members else members["key_b64"],
            time=_iso(members["time"]),
            output=text,
            signal=float(signal),
            bounded=bounded,
            steps=members["steps"],
            cold=members["cold"],
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, IndexError, OverflowError):
        return None


def _forecast(output: Any) -> tuple[str, float]:
    """Return the text of a forecast, anomaly first, and what the sparkline draws of it."""
    shown: list[tuple[str, float]] = []
    anomaly = output.get("anomaly")
    if anomaly is not None:
        word, score = "ANOMALY" if anomaly["flag"] else "score", anomaly["score"]
        text = "no score" if score is None else f"{word} {score:.3g} ({anomaly['field']})"
        shown.append((text, score or 0.0))
    for name, ahead in output["forecast"].items():
        horizon, value = next(iter(ahead.items()))
        if isinstance(value, dict):  # quantiles: the one in the middle
            value = list(value.values())[len(value) // 2]
        shown.append((f"{name}+{horizon} {value:.5g}", value))
    return "  ".join(text for text, _ in shown), shown[0][1]


@dataclass(frozen=True, slots=True)
class Around:
    """Numbers of the log beside the predictions; None: not known."""

    lag: int | None = None  # input records that are not served yet
    rejects: int | None = None  # records in the dead-letter topic


@dataclass(slots=True)
class _Key:
    newest: Shown
    history: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))


class View:
    """Collects predictions and lays them out."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._keys: OrderedDict[str, _Key] = OrderedDict()  # the most recently seen key last
        self._arrivals: deque[tuple[float, int]] = deque()  # (time, predictions)
        self._began: float | None = None
        self.predictions = 0  # seen so far
        self.unreadable = 0  # records that are no prediction

    def add(self, value: bytes | None) -> None:
        """Take a record of the output topic."""
        shown = read_prediction(value)
        if shown is None:
            self.unreadable += 1
            return
        self.predictions += 1
        entry = self._keys.setdefault(shown.key, _Key(shown))
        entry.newest = shown
        entry.history.append(shown.signal)
        self._keys.move_to_end(shown.key)
        if len(self._keys) > MAX_KEYS:
            self._keys.popitem(last=False)

    def arrived(self, count: int, now_s: float) -> None:
        """Note that records came in, for the rate."""
        if self._began is None:
            self._began = now_s
        if count:
            self._arrivals.append((now_s, count))
        while self._arrivals and now_s - self._arrivals[0][0] > RATE_OVER_S:
            self._arrivals.popleft()

    def rate(self, now_s: float) -> float:
        """Return records per second over the last few seconds."""
        if self._began is None:
            return 0.0
        # A view that has just begun would otherwise show the first records as a huge rate.
        over = min(RATE_OVER_S, max(now_s - self._began, 1.0))
        return sum(count for at, count in self._arrivals if now_s - at <= RATE_OVER_S) / over

    def render(self, now_s: float, width: int, height: int, around: Around) -> RenderableType:
        """Lay the view out for a terminal of `width` x `height` characters."""
        head = [
            self._topic,
            f"{self.rate(now_s):,.0f}/s",
            f"{self.predictions:,} predictions",
            f"{len(self._keys):,} keys",
        ]
        if around.lag is not None:
            head.append(f"lag {around.lag:,}")
        if around.rejects is not None:
            head.append(f"{around.rejects:,} rejects")
        if self.unreadable:
            head.append(f"{self.unreadable:,} unreadable")
        title = Text(" · ".join(head), style="bold", overflow="ellipsis", no_wrap=True)
        return Group(title, self._table(width, max(height - FRAME_LINES, 1)))

    def _table(self, width: int, rows: int) -> Table:
        # 6 + 12 for steps and time, 4 for the gaps; key and output share the half of the rest.
        spark = max(min((width - 22) // 3, HISTORY), 8)
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), width=width)
        table.add_column("key", no_wrap=True, ratio=2, overflow="ellipsis")
        table.add_column("output", no_wrap=True, ratio=3, overflow="ellipsis")
        table.add_column("steps", justify="right", width=6, no_wrap=True)
        table.add_column("event time", width=12, no_wrap=True)
        table.add_column("", width=spark, no_wrap=True)
        for entry, _ in zip(reversed(self._keys.values()), range(rows), strict=False):
            shown = entry.newest
            table.add_row(
                Text(shown.key),
                Text(shown.output),
                Text(f"{shown.steps}"),
                Text(shown.time[11:23]),
                Text(sparkline(list(entry.history)[-spark:], shown.bounded), style="cyan"),
                style="dim" if shown.cold else "",
            )
        return table


def sparkline(values: list[float], bounded: bool) -> str:
    """Draw values as bars; `bounded` ones from 0 to 1, others from their least to their largest."""
    low, high = (0.0, 1.0) if bounded else (min(values), max(values))
    if high <= low:
        return BARS[3] * len(values)
    top = len(BARS) - 1
    return "".join(BARS[max(0, min(top, round((v - low) / (high - low) * top)))] for v in values)


def _iso(time_ms: int) -> str:
    moment = EPOCH + timedelta(milliseconds=time_ms)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
