"""Section [emit] of the worker's settings: which predictions go out, and which are alerts.

Owns the names of these settings and the contradictions that show without a bundle; what a field is,
worker/emission.py asks of the bundle. Part of worker/config.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Literal

MAX_EVENTS = 64  # of "k of n": one bit each of an int64


@dataclass(frozen=True, slots=True)
class Emit:
    """Which predictions are emitted.

    `what` says what the output topic gets; `alert_topic` gets those that meet the condition.
    """

    what: Literal["all", "on_change", "when"] = "all"  # of the output topic
    field: str = ""  # of the output, by path; default: label, anomaly.flag or the only value
    above: float | None = None  # condition: the value is above this number
    below: float | None = None  # or below this one
    equals: str | bool = ""  # condition on a label, or "true" (the default) or "false" of a flag
    k: int = 1  # the condition must have held at k
    n: int = 1  # of the key's last n events, this one included
    step: float | None = None  # on_change of a number: least difference from the last one emitted
    alert_topic: str = ""  # gets what meets the condition, besides the output topic; "": no alerts

    def __post_init__(self) -> None:
        if isinstance(self.equals, bool):
            object.__setattr__(self, "equals", str(self.equals).lower())
        if self.alert_topic and self.what == "when":
            raise ValueError(
                "alert_topic: expected emit.what = all or on_change, got 'when': both topics would "
                "hold the same predictions; what goes to the alert topic is what meets the "
                "condition, emit.what says what goes to the output topic"
            )
        self._check_condition()
        if self.step is not None and self.what != "on_change":
            raise ValueError(f"step: expected emit.what = 'on_change', got {self.what!r}")
        if self.step is not None and not 0 < self.step < float("inf"):
            raise ValueError(f"step: expected a number above 0, got {self.step}")
        if self.field and self.what == "all" and not self.has_condition:
            raise ValueError(
                "field: expected emit.what = on_change or when, or emit.alert_topic; with neither "
                "every prediction is emitted"
            )

    @property
    def has_condition(self) -> bool:
        """Whether anything goes by the condition."""
        return self.what == "when" or bool(self.alert_topic)

    def _check_condition(self) -> None:
        given = {"above": self.above, "below": self.below, "equals": self.equals or None}
        for name, value in given.items():
            if value is not None and not self.has_condition:
                raise ValueError(
                    f"{name}: expected emit.what = 'when' or emit.alert_topic, got what = "
                    f"{self.what!r} and no alert topic: nothing goes by this condition"
                )
        for name in ("above", "below"):
            number = given[name]
            if isinstance(number, float) and not isfinite(number):
                raise ValueError(f"{name}: expected a finite number, got {number}")
        if self.above is not None and self.below is not None and self.below > self.above:
            raise ValueError(
                f"below: expected at most emit.above ({self.above:g}), got {self.below:g}: every "
                "value would be above the one or below the other"
            )
        if self.equals and (self.above is not None or self.below is not None):
            raise ValueError("equals: expected this, or emit.above and emit.below, not both")
        if not 1 <= self.n <= MAX_EVENTS:
            raise ValueError(f"n: expected 1 to {MAX_EVENTS}, got {self.n}")
        if not 1 <= self.k <= self.n:
            raise ValueError(f"k: expected 1 to emit.n ({self.n}), got {self.k}")
        if self.n > 1 and not self.has_condition:
            raise ValueError(
                "n: expected emit.what = 'when' or emit.alert_topic, got neither: nothing goes by "
                "a condition"
            )
