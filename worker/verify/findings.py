"""What a verification has found: counts, the first examples of each violation, the report.

Owns the names of the violations, which of them make a verification fail, and how they are shown to
a person and written as JSON. It decides nothing about records. Filled in by compare.py and
stored.py, shown by cli.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


class Fault(StrEnum):
    """A way in which outputs or states break the promise."""

    LOST = "lost"
    DUPLICATE = "duplicate"
    CONFLICT = "conflicting"
    ORDER = "out of order"
    CROSS_KEY = "cross-key"
    WRONG_OUTPUT = "wrong output"
    UNEXPECTED = "unexpected"
    WRONG_STATE = "wrong state"
    MISSING_STATE = "missing state"
    EXTRA_STATE = "extra state"


MEANINGS = {  # with the name and the count, a line of at most 80 columns
    Fault.LOST: "no prediction, or a reject without its dead letter",
    Fault.DUPLICATE: "the same prediction again",
    Fault.CONFLICT: "the same id again with another content",
    Fault.ORDER: "a key's earlier event predicted after a later one",
    Fault.CROSS_KEY: "another key or another partition than the event's",
    Fault.WRONG_OUTPUT: "not what the offline fold predicts",
    Fault.UNEXPECTED: "a prediction or dead letter that nothing asks for",
    Fault.WRONG_STATE: "a stored state is not the offline fold",
    Fault.MISSING_STATE: "a key was folded, but no state is stored",
    Fault.EXTRA_STATE: "a state is stored, but the key has none offline",
}


@dataclass(frozen=True, slots=True)
class Example:
    """One violation, for a person to look at."""

    where: str  # topic:partition:offset, or the key and the Redis hash
    expected: str  # offline
    got: str  # online


@dataclass(slots=True)
class Findings:
    """The result of one verification, filled in as it goes."""

    exactly_once: bool = False  # a duplicate is a violation
    keep: int = 3  # examples kept of each fault
    with_states: bool = True  # whether stored states are compared, too
    events: int = 0  # input records that were stepped
    resets: int = 0  # tombstones that reset a key
    rejects: int = 0  # input records that cannot be events
    predictions: int = 0  # records of the output topic, all of them
    alerts: int = 0  # records of the alert topic
    dead_letters: int = 0  # records of the dead-letter topic about this input topic
    expired: int = 0  # times that a silent key started anew
    before_base: int = 0  # outputs about events before the first one folded: not checked
    below_floor: int = 0  # outputs about events below the emit floor: not checked
    # Outputs and states that no longer follow from the records there are: form and order checked.
    unverifiable: int = 0
    collected: int = 0  # states of silent keys that are not in Redis any more, rightly so
    lost_records: int = 0  # in a range given up as lost, but still at hand: left out
    others: int = 0  # outputs that another group owes (a handover): present and in order is all
    inherited: int = 0  # partitions that went on with a parent bundle's states
    repeated_by_reset: int = 0  # predictions emitted again because an operator asked for it
    # Events without an answer: the last ones of a look-ahead, those of sessions that are open.
    pending: int = 0
    waiting: int = 0  # records at or above the watermark: not due yet
    states: int = 0  # stored states that were compared
    max_abs_difference: float = 0.0  # of an output number from the offline fold
    max_abs_state_difference: float = 0.0  # of a state tensor's number
    counts: Counter[Fault] = field(default_factory=Counter)  # violations and duplicates
    examples: dict[Fault, list[Example]] = field(default_factory=dict)  # the first few

    def add(self, fault: Fault, where: str, expected: str, got: str) -> None:
        """Count a fault and keep it as an example while there is room."""
        self.counts[fault] += 1
        kept = self.examples.setdefault(fault, [])
        if len(kept) < self.keep:
            kept.append(Example(_cut(where), _cut(expected), _cut(got)))

    def is_violation(self, fault: Fault) -> bool:
        """Say whether a fault fails the verification."""
        return fault is not Fault.DUPLICATE or self.exactly_once

    @property
    def violations(self) -> int:
        """How many violations were found."""
        return sum(n for fault, n in self.counts.items() if self.is_violation(fault))

    def to_json(self) -> dict[str, Any]:
        """Return the counts under stable names, and the examples.

        `wrong_states` counts all states that are wrong: missing and extra ones are among them.
        """
        counts = self.counts
        missing, extra = counts[Fault.MISSING_STATE], counts[Fault.EXTRA_STATE]
        return {
            "clean": self.violations == 0,
            "violations": self.violations,
            "events": self.events,
            "resets": self.resets,
            "rejects": self.rejects,
            "predictions": self.predictions,
            "alerts": self.alerts,
            "dead_letters": self.dead_letters,
            "expired": self.expired,
            "before_base": self.before_base,
            "below_floor": self.below_floor,
            "unverifiable": self.unverifiable,
            "collected": self.collected,
            "lost_records": self.lost_records,
            "repeated_by_reset": self.repeated_by_reset,
            "inherited": self.inherited,
            "others": self.others,
            "pending": self.pending,
            "waiting": self.waiting,
            "states": self.states,
            "lost": counts[Fault.LOST],
            "duplicates": counts[Fault.DUPLICATE],
            "conflicts": counts[Fault.CONFLICT],
            "out_of_order": counts[Fault.ORDER],
            "cross_key": counts[Fault.CROSS_KEY],
            "wrong_outputs": counts[Fault.WRONG_OUTPUT],
            "unexpected": counts[Fault.UNEXPECTED],
            "wrong_states": counts[Fault.WRONG_STATE] + missing + extra,
            "missing_states": missing,
            "extra_states": extra,
            "max_abs_difference": self.max_abs_difference,
            "max_abs_state_difference": self.max_abs_state_difference,
            "exactly_once": self.exactly_once,
            "examples": {
                fault.value: [
                    {"where": e.where, "expected": e.expected, "got": e.got} for e in examples
                ]
                for fault, examples in self.examples.items()
            },
        }

    def show(self, console: Console) -> None:
        """Print the report."""
        for line in self._notes():
            console.print(line, highlight=False)
        console.print(self._table())
        for fault, examples in self.examples.items():
            for example in examples if self.is_violation(fault) else ():
                console.print(Text(f"{fault}: {example.where}", style="bold"))
                console.print(Text(f"    expected  {example.expected}"))
                console.print(Text(f"    got       {example.got}"))
        console.print(self._verdict())
        if self.waiting:
            console.print(
                f"so far: {_count(self.waiting, 'record')} at or above the watermarks wait to be "
                "served and saved",
                highlight=False,
            )

    def _notes(self) -> Iterator[str]:
        """Yield what was counted, and what of it was not compared."""
        yield (
            f"{_count(self.events, 'event')}, {_count(self.rejects, 'reject')}, "
            f"{_count(self.resets, 'reset')}; {_count(self.predictions, 'prediction')}, "
            f"{_count(self.dead_letters, 'dead letter')}, {_count(self.states, 'state')}"
        )
        for number, what in (
            (self.alerts, "alerts in their topic"),
            (self.expired, "times a silent key started anew"),
            (self.collected, "states of silent keys are collected, as they may be"),
            (self.inherited, "partitions went on with a parent's states: folded by it up to there"),
            (self.repeated_by_reset, "predictions were emitted again after a reset, as asked for"),
            (self.lost_records, "records of lost ranges are at hand and left out, as online"),
            (self.others, "outputs are another group's (handover): once, in order, not compared"),
            (self.pending, "events have no answer: last ones of a look-ahead, open sessions"),
            (self.before_base, "outputs are about events before the first one folded: not checked"),
            (self.below_floor, "outputs are below the emit floor: not checked"),
            (self.unverifiable, "outputs and states follow from lost events: only form and order "
             "checked"),
        ):  # fmt: skip
            if number:
                yield f"{number:,} {what}"

    def _verdict(self) -> Text:
        if self.violations:
            return Text(f"NOT CLEAN: {_count(self.violations, 'violation')}", style="bold red")
        what = (
            "prediction and state is" if self.with_states else "prediction (no state compared) is"
        )
        unchecked = self.before_base + self.below_floor + self.unverifiable
        if not unchecked:
            return Text(f"CLEAN: every {what} the offline fold", style="bold green")
        rest = f"not checked: {self.unverifiable:,} unverifiable, {self.below_floor:,} below the "
        rest += f"emit floor, {self.before_base:,} before the first event folded"
        return Text(f"CLEAN: every {what} the offline fold, where it can be; {rest}", "bold yellow")

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column("finding")
        table.add_column("count", justify="right")
        table.add_column("meaning")
        for fault, meaning in MEANINGS.items():
            if not self.is_violation(fault):
                meaning += " (at-least-once: allowed)"
            bad = self.counts[fault] and self.is_violation(fault)
            table.add_row(
                fault.value, f"{self.counts[fault]:,}", meaning, style="red" if bad else ""
            )
        table.add_row("max |difference|", f"{self.max_abs_difference:.3g}", "of an output number")
        table.add_row(
            "max |difference|", f"{self.max_abs_state_difference:.3g}", "of a stored state's number"
        )
        return table


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _cut(text: str, most: int = 200) -> str:
    """Keep a line readable: a key may be as long as a record."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"
