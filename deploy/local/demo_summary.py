"""What came out of a demo: the numbers, what of them is wrong, and how a person reads them.

Owns summary.json's keys, the conditions for success and the table at the end. Counts of lost,
conflicting and wrong come from keyfold-verify's own file; nothing is counted twice here. Called by
demo.py; the report shows the same numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from local.demo_score import Score
from local.demo_serve import Served
from local.demo_story import DemoError, Story

GOOD, BAD = "green", "bold red"


@dataclass(frozen=True, slots=True)
class Summary:
    """The content of summary.json."""

    events: int  # on the input topic
    predictions: int  # on the output topic, duplicates included
    lost: int  # events without a prediction
    duplicates: int  # the same id with the same value again: allowed, at least once
    conflicts: int  # the same id with another value
    wrong_states: int  # states in Valkey that are not the offline fold
    other_violations: int  # whatever else keyfold-verify found: order, keys, values
    max_abs_difference: float  # of a predicted number from the offline fold
    accuracy: float  # of the streamed predictions
    accuracy_majority: float  # of one constant answer
    accuracy_nonrecurrent: float | None  # of a net that sees one event; None: not trained here
    waited: int  # events that waited while no worker served
    events_per_s: float  # of the second worker, from taking over until all these were saved
    broker: str  # which Kafka
    seconds: float  # of the whole demo

    def write(self, file: Path) -> None:
        """Write summary.json."""
        file.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    def problems(self) -> list[str]:
        """Return what keeps the demo from having succeeded."""
        found = [
            f"{value:,} {what}"
            for value, what in (
                (self.lost, "lost"),
                (self.conflicts, "conflicting"),
                (self.wrong_states, "wrong states"),
                (self.other_violations, "other violations"),
            )
            if value
        ]
        baselines = {"the majority": self.accuracy_majority}
        if self.accuracy_nonrecurrent is not None:
            baselines["the model without memory"] = self.accuracy_nonrecurrent
        for name, accuracy in baselines.items():
            if not self.accuracy > accuracy:
                found.append(f"accuracy {self.accuracy:.1%} does not beat {name}, {accuracy:.1%}")
        return found


@dataclass(frozen=True, slots=True)
class Run:
    """What the summary needs to know of how it went."""

    served: Served  # the kill and what came after
    broker: str  # which Kafka
    seconds: float  # of the whole demo


def summarise(verified: Path, score: Score, baselines: Mapping[str, float], run: Run) -> Summary:
    """Put keyfold-verify's file, the score and the baselines together."""
    try:
        found: dict[str, Any] = json.loads(verified.read_text(encoding="utf-8"))
    except OSError as error:
        raise DemoError(f"{verified}: expected keyfold-verify's counts, got none") from error
    lost, conflicts, wrong = found["lost"], found["conflicts"], found["wrong_states"]
    return Summary(
        events=sum(len(trace.truth) for trace in score.traces),
        predictions=found["predictions"],
        lost=lost,
        duplicates=found["duplicates"],
        conflicts=conflicts,
        wrong_states=wrong,
        other_violations=found["violations"] - lost - conflicts - wrong,
        max_abs_difference=found["max_abs_difference"],
        accuracy=score.accuracy,
        accuracy_majority=baselines.get("majority", score.accuracy_majority),
        accuracy_nonrecurrent=baselines.get("nonrecurrent"),
        waited=run.served.waited,
        events_per_s=round(run.served.waited / run.served.caught_up_s, 1),
        broker=run.broker,
        seconds=round(run.seconds, 1),
    )


def show(summary: Summary, keys: int, story: Story) -> None:
    """Print the table at the end."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    for what, value, meaning, style in _rows(summary, keys):
        table.add_row(what, Text(value, style=style), meaning)
    story.console.print()
    story.console.print(Text("Summary", style="bold"))
    story.console.print(table)
    for problem in summary.problems():
        story.console.print(Text(f"NOT AS PROMISED: {problem}", style=BAD))
    if not summary.problems():
        text = "Nothing lost, nothing wrong: as if there had been no kill."
        story.console.print(Text(text, style="bold green"))


def _rows(s: Summary, keys: int) -> list[tuple[str, str, str, str]]:
    def zero(value: int) -> str:
        return BAD if value else GOOD

    without = (
        f"; without memory {s.accuracy_nonrecurrent:.1%}"
        if s.accuracy_nonrecurrent is not None
        else ""
    )
    rows = [
        ("events", f"{s.events:,}", f"of {keys} keys the model never saw in training", ""),
        ("predictions", f"{s.predictions:,}", "on the output topic", ""),
        ("lost", f"{s.lost:,}", "events without a prediction", zero(s.lost)),
        ("duplicates", f"{s.duplicates:,}", "same id, same value: repeated after the kill", ""),
        ("conflicts", f"{s.conflicts:,}", "same id, another value", zero(s.conflicts)),
        ("wrong states", f"{s.wrong_states:,}", "in Valkey, of all keys", zero(s.wrong_states)),
        ("largest difference", f"{s.max_abs_difference:.2g}", "to the model run offline", ""),
        ("accuracy", f"{s.accuracy:.1%}", f"majority {s.accuracy_majority:.1%}{without}", ""),
        (
            "events/s",
            f"{s.events_per_s:,.0f}",
            f"on the {s.waited:,} that had waited, all saved",
            "",
        ),
        ("time", f"{s.seconds:.0f} s", f"broker: {s.broker}", ""),
    ]
    if s.other_violations:
        rows.insert(6, ("other violations", f"{s.other_violations:,}", "see above", BAD))
    return rows
