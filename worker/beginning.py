"""PURE: where a new group begins and from where on it emits, as worker.start and emit_from say it.

Owns the words and times that the two settings take and what they mean in ms; which offset that is,
the log tells (worker/answers.py asks it once per partition). It reads no clock. Used by
worker/config.py, worker/answers.py and whoever else looks for an offset by time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

STARTS = ("", "earliest", "latest")
HANDOVER = "handover"  # emits nothing until keyfold-state handover gives it the outputs
EMIT_FROMS = ("", HANDOVER)
NOW = "now"
_UNITS_MS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000}
_AGO = re.compile(r"-(\d{1,9})([dhms])")
_TIMES = "a time like 2026-11-21T08:00:00Z, or -7d, -12h, -30m"


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in time, or how long before some present one."""

    at_ms: int | None = None  # ms since 1970, UTC; None: told relative to a present
    ago_ms: int = 0  # so long before that present

    def at(self, now_ms: int) -> int:
        """Return it in ms since 1970, UTC."""
        return now_ms - self.ago_ms if self.at_ms is None else self.at_ms


def moment(text: str) -> Moment:
    """Read an ISO 8601 time (naive: UTC), "-7d", "-12h", "-30m", "-10s" or "now".

    Raises ValueError.
    """
    if text == NOW:
        return Moment()
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return Moment(ago_ms=int(ago[1]) * _UNITS_MS[ago[2]])
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    return Moment(at_ms=round(time.timestamp() * 1000))


def problem_with_start(text: str) -> str:
    """Say what is wrong with worker.start, "" when nothing is."""
    if text in STARTS or (text != NOW and _is_moment(text)):
        return ""
    return f"expected earliest, latest, {_TIMES}; got {text!r}"


def problem_with_emit_from(text: str) -> str:
    """Say what is wrong with worker.emit_from, "" when nothing is."""
    if text in EMIT_FROMS or _is_moment(text):
        return ""
    return f"expected now, {_TIMES}, or handover; got {text!r}"


def _is_moment(text: str) -> bool:
    try:
        moment(text)
    except (ValueError, OverflowError):
        return False
    return True
