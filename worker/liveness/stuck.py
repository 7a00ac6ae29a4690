"""PURE: decides that a worker is alive but consumes nothing. No I/O, no clock, no threads.

Owns the clocks: since when W of each owned partition stands still, since when the log is known to
hold more, since when the event loop has not answered. Times are seconds of one monotonic clock and
come as arguments, like everything else that is known. Asked by watchdog.py.

A partition is stuck when for `limit_s` its W stood still while each answer about the log's end was
above W. It is not stuck while an operator has to resolve a HALT, while Kafka does not answer the
watchdog itself, or while the worker says that it waits for Redis: ending it would mend nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ASK_PARTS = 8  # the log's end is asked for every limit/8 ...
QUIET_PARTS = 4  # ... of partitions whose W has stood still for limit/4
LATE_PARTS = 4  # who comes limit/4 later than due was frozen meanwhile
NEVER_S = float("-inf")


@dataclass(frozen=True, slots=True)
class Reading:
    """What an owned partition shows at one instant."""

    number: int  # of the partition
    owner: object  # whose it is: under another one all clocks begin anew
    phase: str  # for the message
    saved: int  # W
    halted: bool  # an operator's turn


@dataclass(frozen=True, slots=True)
class Stuck:
    """A partition that ought to move and does not."""

    number: int  # of the partition
    phase: str  # where it stands
    saved: int  # W
    end: int  # of the log, committed records only
    unmoved_s: float  # since W last moved

    def __str__(self) -> str:
        return (
            f"{self.number} in {self.phase}: W {self.saved} has not moved for "
            f"{self.unmoved_s:.0f} s though the log ends at {self.end}"
        )


@dataclass(slots=True)
class _Clock:
    """What is known of one partition."""

    reading: Reading  # the newest
    moved_s: float  # when W last moved, or was first seen
    behind_s: float | None = None  # since when the log is known to hold more than W
    end: int = 0  # of the log, as last heard
    nothing_below: int = 0  # between W and here there is nothing to apply


class Judge:
    """The clocks of one worker, and what follows from them."""

    def __init__(self, limit_s: float, now_s: float) -> None:
        self._limit_s = limit_s  # may be infinite
        self._clocks: dict[int, _Clock] = {}
        self._begun_s = self._beat_s = now_s
        self._excused_s = self._asked_s = NEVER_S

    # -- what is known -----------------------------------------------------------------------------

    def begin(self, now_s: float) -> None:
        """Begin all clocks now."""
        self._begun_s = now_s

    def look(self, now_s: float, readings: Sequence[Reading]) -> None:
        """Take what the event loop just showed of the partitions owned now."""
        self._beat_s = now_s
        before, self._clocks = self._clocks, {}
        for reading in readings:
            clock = before.get(reading.number)
            if (
                clock is None
                or clock.reading.owner is not reading.owner
                or clock.reading.saved != reading.saved
            ):
                # A step back counts too: lost writes are being replayed.
                clock = _Clock(reading, now_s)
            clock.reading = reading
            self._clocks[reading.number] = clock

    def excuse(self, at_s: float) -> None:
        """Take note that the worker waited for Redis at `at_s`: no partition is stuck by then."""
        self._excused_s = max(self._excused_s, at_s)

    def lived(self, now_s: float, took_s: float, due_s: float) -> None:
        """Take note that something took `took_s` that should take at most `due_s`.

        Much more means that the whole program was frozen (SIGSTOP, a suspended machine): what stood
        still then stood still for no fault of its own, so all clocks begin anew.
        """
        if took_s - due_s > self._limit_s / LATE_PARTS:
            self.begin(now_s)

    # -- what follows ------------------------------------------------------------------------------

    def stalled_s(self, now_s: float) -> float | None:
        """Return since how many seconds the event loop is stuck, None when it is not."""
        silent_s = now_s - max(self._beat_s, self._begun_s)
        return silent_s if silent_s >= self._limit_s else None

    def to_ask(self, now_s: float) -> list[int]:
        """Return the partitions whose log end must be known now; mostly none."""
        if now_s - self._asked_s < self._limit_s / ASK_PARTS:
            return []
        quiet = [
            number
            for number, clock in self._clocks.items()
            if not clock.reading.halted and now_s - clock.moved_s >= self._limit_s / QUIET_PARTS
        ]
        if quiet:
            self._asked_s = now_s
        return quiet

    def answered(self, now_s: float, asked: Sequence[int], ends: Mapping[int, int]) -> list[Stuck]:
        """Take the log ends (absent: no answer) of partitions asked about; return the stuck."""
        stuck = []
        for number in asked:
            clock = self._clocks.get(number)
            if clock is None:
                continue  # revoked meanwhile
            end = clock.end = ends.get(number, 0)
            if end <= max(clock.reading.saved, clock.nothing_below):
                clock.behind_s = None
                continue
            if clock.behind_s is None:
                clock.behind_s = now_s
            since_s = max(clock.behind_s, self._begun_s, self._excused_s)
            if now_s - since_s >= self._limit_s:
                reading = clock.reading
                unmoved_s = now_s - clock.moved_s
                stuck.append(Stuck(number, reading.phase, reading.saved, end, unmoved_s))
        return stuck

    def nothing_to_apply(self, stuck: Stuck) -> None:
        """Take note that no record lies between a partition's W and the log's end.

        Markers of transactions, aborted and compacted records move the end but never W.
        """
        clock = self._clocks.get(stuck.number)
        if clock is not None:
            clock.nothing_below, clock.behind_s = stuck.end, None

    def not_now(self) -> None:
        """Begin all partitions' clocks anew: the last look found Kafka away."""
        for clock in self._clocks.values():
            clock.behind_s = None

    def readings(self) -> list[Reading]:
        """Return what was shown last."""
        return [clock.reading for clock in self._clocks.values()]

    # -- for the health page -----------------------------------------------------------------------

    def unmoved_s(self, number: int, saved: int, now_s: float) -> float | None:
        """Return the seconds since a partition's W, now `saved`, last moved, None: not known."""
        clock = self._clocks.get(number)
        if clock is None:
            return None
        return now_s - clock.moved_s if clock.reading.saved == saved else 0.0

    def log_end(self, number: int) -> int:
        """Return a partition's log end as last heard, 0 when it was not asked for."""
        clock = self._clocks.get(number)
        return 0 if clock is None else clock.end
