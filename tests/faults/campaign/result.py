"""What became of one schedule: filled in by run.py, told by report.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from campaign.measure import Recovery
from campaign.schedule import Schedule


@dataclass(slots=True)
class Result:
    """What became of one schedule."""

    schedule: Schedule
    outcome: str = "not run"  # healed, HALT (then healed), or what went wrong
    problems: list[str] = field(default_factory=list)  # empty: as stated
    violations: Mapping[str, int] = field(default_factory=dict)  # the oracle's, by kind
    examples: object = None  # of violations
    struck: list[str] = field(default_factory=list)  # kinds of the faults that did strike
    recoveries: list[Recovery] = field(default_factory=list)
    crashes: int = 0  # workers that were killed
    exits: dict[str, int] = field(default_factory=dict)  # unintended ends, by what was said
    events: int = 0  # that the oracle refolded
    duplicates: int = 0  # predictions that stand in the output again
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether everything was as stated."""
        return not self.problems and not self.violations
