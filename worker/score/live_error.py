"""PURE: predictions against labels that came later, joined by key and time; errors by day.

Owns the join and the sums. As in training, the label of an event is the first one of its key at or
after it, not later than a given time, and before the key starts anew. That is told by `cold` in the
predictions, in their order: one that was not emitted (emit.what = "when") parts nothing. The one
of a session tells when the session ended, not when it began: it parts at the session's last event.
Of a text's symbols the last one's prediction is compared. Knows predictions' members, no topics or
files. Called by labels.py.
"""

from __future__ import annotations

import math
from array import array
from base64 import b64decode
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from typing import Any, NamedTuple

from keyfold.export.columns import category_text
from keyfold.export.label_join import LabelJoin
from keyfold.export.outputs import OutputSpec
from keyfold.worker.errors import Reject

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY_MS = 86_400_000
MOST_NAMES = 20  # of outputs in a message


@dataclass(slots=True)
class History:
    """The labels of one key."""

    times_ms: array[int] = field(default_factory=lambda: array("q"))  # ascending once sorted
    values: list[float | str] = field(default_factory=list)  # one per time

    def add(self, time_ms: int, value: float | str) -> None:
        """Add a label, in any order."""
        self.times_ms.append(time_ms)
        self.values.append(value)

    def sort(self) -> None:
        """Bring the labels into the order of their times; of equal ones the first stays first."""
        order = sorted(range(len(self.values)), key=self.times_ms.__getitem__)
        self.values = [self.values[at] for at in order]
        self.times_ms = array("q", [self.times_ms[at] for at in order])

    def at(self, time_ms: int, within_ms: int) -> tuple[int, float | str] | None:
        """Return the first label at or after a time, not later than `within_ms` behind it.

        Its own time comes with it.
        """
        place = bisect_left(self.times_ms, time_ms)
        if place == len(self.values) or self.times_ms[place] - time_ms > within_ms:
            return None
        return self.times_ms[place], self.values[place]


@dataclass(slots=True)
class Errors:
    """Sums over predictions."""

    predictions: int = 0  # seen
    labelled: int = 0  # with a label
    right: int = 0  # of classes
    absolute: float = 0.0  # sum of differences
    square: float = 0.0  # sum of their squares

    def add(self, other: Errors) -> None:
        """Add another one's sums."""
        self.predictions += other.predictions
        self.labelled += other.labelled
        self.right += other.right
        self.absolute += other.absolute
        self.square += other.square

    def metrics(self, classifies: bool) -> dict[str, float | None]:
        """Return what a person asks for; None where there was no label."""
        count = self.labelled
        if classifies:
            return {"accuracy": self.right / count if count else None}
        return {
            "rmse": math.sqrt(self.square / count) if count else None,
            "mae": self.absolute / count if count else None,
        }


class Found(NamedTuple):  # ordered by its time
    """A prediction and its label, unless its key starts anew before that."""

    label_ms: int  # when the label came
    day: int  # of the prediction
    right: bool  # of classes
    gap: float  # of numbers


class LiveError:
    """Compares predictions with the labels of their keys."""

    def __init__(
        self,
        labels: Mapping[bytes, History],
        within_ms: int,
        name: str = "",
        outputs: OutputSpec | None = None,
    ) -> None:
        self._labels, self._within_ms = labels, within_ms
        self._name = name  # of the output; "": the only one
        self._outputs = outputs  # of the bundle that predicted; None: it is not known
        self.classifies = False  # as the predictions say
        self.days: dict[int, Errors] = {}  # number of the day since 1970 -> its errors
        self._open: dict[bytes, list[Found]] = {}  # by key, each a heap
        self._used: dict[str, set[int]] = {}  # of keys with predictions: times of their labels

    def add(self, prediction: Mapping[str, Any]) -> None:
        """Compare the next prediction, as a record or as a row of a scored table.

        Raises Reject: it is no prediction, or not one that a label can be compared with.
        """
        try:
            key = prediction["key"]
            key = b64decode(prediction["key_b64"]) if key is None else key.encode()
            time_ms = prediction["time"]
        except KeyError:
            key, time_ms = self._other_key(prediction)
        predicted = self._predicted(prediction)
        if self._is_early(prediction):
            return
        day = self.days.setdefault(time_ms // DAY_MS, Errors())
        day.predictions += 1
        self._settle(key, time_ms)
        answers = "event" if self._outputs is None else self._outputs.answers
        if prediction.get("cold") is True or answers == "session":
            self._open.pop(key, None)  # what is found of a key's next life says nothing of this one
        history = self._labels.get(key)
        if history is not None:
            self._used.setdefault(_shown(key), set())
        found = None if history is None else history.at(time_ms, self._within_ms)
        if found is None or predicted is None:
            return
        label_ms, label = found
        right = self.classifies and predicted == label_text(label)
        if isinstance(label, str) and not self.classifies:
            raise Reject("expected a number as the label of a regression, got text")
        gap = 0.0 if self.classifies or isinstance(label, str) else abs(predicted - label)
        heappush(self._open.setdefault(key, []), Found(label_ms, time_ms // DAY_MS, right, gap))

    def finish(self) -> None:
        """Take in what is left: there is no further prediction."""
        for key in self._open:
            self._settle(key, None)

    def _settle(self, key: bytes, before_ms: int | None) -> None:
        """Take in what a key's labels say that came before a time (None: ever)."""
        found = self._open.get(key, [])
        while found and (before_ms is None or found[0].label_ms < before_ms):
            one = heappop(found)
            self._used[_shown(key)].add(one.label_ms)
            day = self.days[one.day]
            day.labelled += 1
            day.right += one.right
            day.absolute += one.gap
            day.square += one.gap * one.gap

    def total(self) -> Errors:
        """Return the sums over all days, of what was taken in."""
        total = Errors()
        for day in self.days.values():
            total.add(day)
        return total

    def join(self) -> LabelJoin:
        """Say what became of the labels."""
        times = ((_shown(key), history.times_ms) for key, history in self._labels.items())
        return LabelJoin.of(times, self._used)

    def _is_early(self, prediction: Mapping[str, Any]) -> bool:
        """Say whether a later symbol of the same text is predicted for as well.

        Raises Reject: what there is of the bundle does not tell.
        """
        is_last = prediction.get("last") is True
        if self._outputs is None and is_last:
            raise Reject(
                'expected --bundle with predictions that hold "last", got none: only the bundle '
                "says whether they answer sessions or every symbol of a text"
            )
        return self._outputs is not None and self._outputs.read == "every" and not is_last

    @staticmethod
    def _other_key(prediction: Mapping[str, Any]) -> tuple[bytes, int]:
        try:
            return b64decode(prediction["key_b64"]), prediction["time"]
        except (KeyError, TypeError, ValueError) as error:
            raise Reject("expected a prediction with key and time, got something else") from error

    def _predicted(self, prediction: Mapping[str, Any]) -> Any:
        """Return the number or class that was predicted."""
        output = prediction.get("output")
        if not isinstance(output, Mapping):  # a row of a table: output.NAME
            output = {n[7:]: v for n, v in prediction.items() if n.startswith("output.")}
        if output.keys() - {"text"} == {"symbol", "probability"}:
            raise Reject(
                "expected predictions of a number or a class, got symbols: keyfold-train evaluate "
                "compares those with transcripts"
            )
        if "label" in output and not self._name:
            self.classifies = True
            return output["label"]
        output = dict(_flat(output, ""))
        # What is null is missing now and then, such as the score of a key's first event.
        names = [
            n for n, value in output.items() if value is None or isinstance(value, int | float)
        ]
        if (not self._name and len(names) != 1) or (self._name and self._name not in names):
            wanted = f"output {self._name!r}" if self._name else "one output, or --output NAME"
            shown = ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")
            raise Reject(f"expected {wanted}, got {shown or 'no number'}")
        return output[self._name or names[0]]


def _shown(key: bytes) -> str:
    return key.decode(errors="backslashreplace")


def _flat(members: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield an output's members by their paths, as the columns of a scored table are named."""
    for name, value in members.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def label_of(value: Any) -> float | str | None:
    """Return a label as it is kept: a finite number or a text; None: there is none."""
    if value is None or isinstance(value, list | dict):
        return None
    if isinstance(value, bool):
        return category_text(value)
    if isinstance(value, str):
        return value
    return value if math.isfinite(value) else None  # an integer may be a class: as it is


def label_text(label: float | str) -> str:
    """Return the class that a label names; 3 and 3.0 are both "3", as in training."""
    return category_text(label) or ""


def day_text(day: int) -> str:
    """Return a day as a person reads it, UTC."""
    try:
        return (EPOCH + timedelta(days=day)).strftime("%Y-%m-%d")
    except OverflowError:
        return f"day {day}"
