"""What keyfold-tail shows: the newest prediction per key, rates, and the numbers around them.

Owns how a prediction looks to a person, on one line and as a row of the live view. Pure: time and
numbers of the log are arguments, no topic is read and nothing is printed here. Called by
cli.py.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from keyfold.worker.columns import WIDTH

BARS = "▁▂▃▄▅▆▇█"
HISTORY = 60  # values kept per key, for the sparkline
MAX_KEYS = 5_000  # kept; the longest unseen are forgotten
RATE_OVER_S = 5.0  # sliding window of the rate
FRAME_LINES = 4  # of the view that are not keys
NAMES = (16, 12, 8, 5, 3)  # columns that a name is cut to, one after the other, until it fits
LEAST_KEY, LEAST_BARS = 8, 8  # columns, however narrow the terminal
OUTPUT = 34  # columns that a long key leaves to the output
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Part:
    """One value of an output."""

    name: str  # of what it is about; may be cut
    after: str  # the value
    before: str = ""  # such as "score 0.83 ("

    def text(self, most: int) -> str:
        """Return the value with a name of at most so many columns."""
        return f"{self.before}{_cut(self.name, most)}{self.after}"


@dataclass(frozen=True, slots=True)
class Shown:
    """A prediction as a person sees it."""

    key: str  # UTF-8, or base64 of other bytes
    time: str  # event time, ISO 8601 UTC
    parts: Sequence[Part]  # of the output, the most important first
    signal: float  # what the sparkline draws: first value, top probability or anomaly score
    bounded: bool  # the signal is a probability, 0..1
    steps: int  # of the key, this one included
    cold: bool  # the key had no history

    @property
    def output(self) -> str:
        """The whole output: "value 0.8231", "odd 97%", or "score 0.83 (temp)  temp+1 20.1"."""
        return "  ".join(part.text(len(part.name)) for part in self.parts)

    def fit(self, width: int) -> str:
        """Return as much of the output as fits, with its first two values if names can be cut."""
        whole = self.output
        if len(whole) <= width:
            return whole
        for most in NAMES:
            texts = [part.text(most) for part in self.parts]
            if len("  ".join(texts[:2])) <= width:
                break
        taken = len(texts)
        while taken > 1 and len("  ".join(texts[:taken])) > width:
            taken -= 1
        text = "  ".join(texts[:taken])
        more = " …" if taken < len(texts) and len(text) + 2 <= width else ""
        return _cut(text + more, width)

    def line(self, width: int = WIDTH) -> str:
        """Return the prediction as one line of text."""
        rest = f"  step {self.steps}" + ("  cold" if self.cold else "")
        room = width - len(self.time) - len(rest) - 4
        key = _cut(self.key, max(LEAST_KEY, room - min(len(self.output), OUTPUT)))
        return f"{self.time}  {key}  {self.fit(room - len(key))}{rest}"


def read_prediction(value: bytes | None) -> Shown | None:
    """Read a prediction's JSON; None: the record is none."""
    try:
        members: Any = orjson.loads(value or b"")
        output = members["output"]
        if "probabilities" in output or "top" in output:
            parts, signal, bounded = _classes(output)
        elif output.keys() - {"text"} == {"symbol", "probability"}:
            symbol, signal, bounded = output["symbol"], output["probability"], True
            parts = [Part(symbol or "-", f" {signal:.0%}")]
            parts += [Part(output["text"], "")] if "text" in output else []
        elif isinstance(output.get("forecast"), dict):
            (parts, signal), bounded = _forecast(output), False
        else:
            numbers = list(output.values())
            signal, bounded = numbers[0], False
            parts = [Part(name, f" {number:.5g}") for name, number in output.items()]
        return Shown(
            key=members["key"] if "key" in members else members["key_b64"],
            time=_iso(members["time"]),
            parts=parts,
            signal=float(signal),
            bounded=bounded,
            steps=members["steps"],
            cold=members["cold"],
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, IndexError, OverflowError):
        return None


def _classes(output: Any) -> tuple[list[Part], float, bool]:
    """Return the parts of a classification, how unlikely a text is first, and what is drawn."""
    top = output.get("top")
    best = max(output["probabilities"]) if top is None else top[0]["probability"]
    parts = [Part(output["label"], f" {best:.0%}")]
    parts += [Part(one["label"], f" {one['probability']:.0%}") for one in (top or ())[1:]]
    anomaly = output.get("anomaly")
    if anomaly is None:
        return parts, best, True
    word, score = "ANOMALY" if anomaly["flag"] else "score", anomaly["score"]
    said = Part("no score", "") if score is None else Part("", "", f"{word} {score:.3g}")
    return [said, *parts], score or 0.0, False


def _forecast(output: Any) -> tuple[list[Part], float]:
    """Return the parts of a forecast, anomaly first, and what the sparkline draws of it."""
    shown: list[tuple[Part, float]] = []
    anomaly = output.get("anomaly")
    if anomaly is not None:
        word, score = "ANOMALY" if anomaly["flag"] else "score", anomaly["score"]
        part = Part("no score", "")
        if score is not None:
            part = Part(anomaly["field"], ")", f"{word} {score:.3g} (")
        shown.append((part, score or 0.0))
    for name, ahead in output["forecast"].items():
        horizon, value = next(iter(ahead.items()))
        if isinstance(value, dict):  # quantiles: the one in the middle
            value = list(value.values())[len(value) // 2]
        shown.append((Part(name, f"+{horizon} {value:.5g}"), value))
    return [part for part, _ in shown], shown[0][1]


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: max(most - 1, 0)]}…"


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
        entries = list(itertools.islice(reversed(self._keys.values()), rows))
        # 6 + 12 for steps and time, 4 for the gaps. A long key leaves the output most of the rest.
        rest = width - 22
        longest_key = max((cell_len(e.newest.key) for e in entries), default=0)
        longest = max((cell_len(e.newest.output) for e in entries), default=0)
        key = max(min(longest_key, rest - LEAST_BARS - min(longest, OUTPUT)), LEAST_KEY)
        output = max(min(longest, rest - LEAST_BARS - key), LEAST_KEY)
        spark = max(min(rest - key - output, HISTORY), LEAST_BARS)
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), width=width)
        table.add_column("key", no_wrap=True, width=key, overflow="ellipsis")
        table.add_column("output", no_wrap=True, width=output, overflow="ellipsis")
        table.add_column("steps", justify="right", width=6, no_wrap=True)
        table.add_column("event time", width=12, no_wrap=True)
        table.add_column("", width=spark, no_wrap=True)
        for entry in entries:
            shown = entry.newest
            table.add_row(
                Text(shown.key),
                Text(shown.fit(output)),
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
