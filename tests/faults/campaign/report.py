"""What a campaign tells: a line per schedule, a table at the end, and out/faults/report.json.

Owns the form of the report only. Used by __main__.py.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from campaign.measure import percentile
from campaign.oracle import VIOLATIONS
from campaign.result import Result

WIDTH = 80
KILLS = ("kill", "kill-at-point")


@dataclass(frozen=True, slots=True)
class Setting:
    """What a report says of the campaign as a whole."""

    command: str  # that runs it again
    versions: Mapping[str, str]  # of what it ran on
    date: str  # UTC
    folder: Path  # of the report


def line(number: int, of: int, result: Result) -> str:
    """Return one schedule's line of at most 80 columns."""
    plan = result.schedule
    mode = "exactly-once" if plan.outputs == "exactly-once" else "at-least-1"
    verdict = "ok" if result.good else "FAILED"
    kinds = ",".join(dict.fromkeys(fault.kind for fault in plan.faults))
    text = (
        f"{number:>3}/{of} seed {plan.seed} {verdict} {result.outcome} {result.seconds:.0f} s "
        f"{plan.store} {plan.workers}w {mode} {kinds}"
    )
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"


def repeat_command(seed: int) -> str:
    """Return the command that repeats one schedule."""
    return f"make faults SEED={seed} N=1"


def explain(result: Result, folder: Path, arguments: str = "") -> list[str]:
    """Return what is to be said of a failing schedule."""
    said = [f"    {problem}" for problem in result.problems]
    if result.violations:
        said.append(f"    the oracle found {dict(result.violations)}")
    extra = f" ARGS={arguments!r}" if arguments else ""
    return [
        *said,
        f"    logs: {folder}",
        f"    repeat: {repeat_command(result.schedule.seed)}{extra}",
    ]


def summary(results: Sequence[Result], setting: Setting) -> dict[str, Any]:
    """Return the report as it is written."""
    struck = Counter(kind for result in results for kind in result.struck)
    times: dict[str, list[float]] = defaultdict(list)
    for result in results:
        for recovery in result.recoveries:
            times[recovery.kind].append(recovery.seconds)
    # Where an operator had to act, the time to the next prediction says nothing of the worker.
    by_themselves = [r for r in results if r.outcome == "healed"]
    kills = [r.seconds for result in by_themselves for r in result.recoveries if r.kind in KILLS]
    found = Counter[str]()
    for result in results:
        found.update(result.violations)
    at_least_once = [r for r in by_themselves if r.schedule.outputs == "at-least-once"]
    kinds = (*VIOLATIONS, *sorted(found.keys() - set(VIOLATIONS)))
    crashes = sum(r.crashes for r in at_least_once)
    return {
        "command": setting.command,
        "date": setting.date,
        "versions": dict(setting.versions),
        "schedules": len(results),
        "outcomes": dict(Counter(r.outcome for r in results)),
        "failed_seeds": [r.schedule.seed for r in results if not r.good],
        "events": sum(r.events for r in results),
        "faults": dict(struck.most_common()),
        "faults_in_all": struck.total(),
        "violations": {kind: found[kind] for kind in kinds},
        "recovery_s": {kind: _times(values) for kind, values in sorted(times.items()) if values},
        "kill_to_next_prediction_s": _times(kills),
        "session_timeouts_s": sorted({r.schedule.session_timeout_s for r in results}),
        "killed_workers": sum(r.crashes for r in results),
        "replayed_events_per_crash": (
            sum(r.duplicates for r in at_least_once) / crashes if crashes else None
        ),
        "unintended_exits": dict(sum((Counter(r.exits) for r in results), Counter[str]())),
        "runs": [_run(result) for result in results],
    }


def _times(values: Sequence[float]) -> dict[str, Any]:
    return {
        "count": len(values),
        "p50": percentile(values, 0.5),
        "p99": percentile(values, 0.99),
        "max": max(values, default=None),
    }


def _run(result: Result) -> dict[str, Any]:
    return {
        "seed": result.schedule.seed,
        "good": result.good,
        "expected": str(result.schedule.expected),
        "outcome": result.outcome,
        "problems": result.problems,
        "violations": dict(result.violations),
        "examples": result.examples,
        "struck": result.struck,
        "recoveries_s": [[r.kind, r.seconds] for r in result.recoveries],
        "crashes": result.crashes,
        "exits": result.exits,
        "events": result.events,
        "duplicates": result.duplicates,
        "notes": result.notes,
        "seconds": round(result.seconds, 1),
        "schedule": result.schedule.to_json() | {"expected": str(result.schedule.expected)},
    }


def write(report: Mapping[str, Any], folder: Path) -> Path:
    """Write report.json."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return path


def show(report: Mapping[str, Any], console: Console) -> None:
    """Print the summary."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="faults and recoveries")
    for name in ("fault", "struck", "measured", "p50 s", "p99 s", "max s"):
        table.add_column(name, justify="left" if name == "fault" else "right")
    for kind, count in report["faults"].items():
        times = report["recovery_s"].get(kind, {})
        cells = [f"{times[n]:.2f}" if n in times else "-" for n in ("p50", "p99", "max")]
        table.add_row(kind, str(count), str(times.get("count", 0)), *cells)
    console.print(table)
    kills, say = report["kill_to_next_prediction_s"], console.print
    if kills["count"]:
        say(
            f"SIGKILL to the next prediction: p50 {kills['p50']:.2f} s, p99 {kills['p99']:.2f} s, "
            f"{kills['count']} measured (session timeouts {report['session_timeouts_s']} s)",
            highlight=False,
        )
    replayed = report["replayed_events_per_crash"]
    if replayed is not None:
        say(f"replayed events per crash: {replayed:.1f}", highlight=False)
    wrong = {kind: count for kind, count in report["violations"].items() if count}
    failed = report["failed_seeds"]
    say(
        f"{report['schedules']} schedules, {report['events']:,} events, "
        f"{report['faults_in_all']} faults; outcomes {report['outcomes']}",
        highlight=False,
    )
    say(f"violations: {wrong or 'none'}", style="red" if wrong else "green", highlight=False)
    if failed:
        say(f"FAILED seeds: {', '.join(map(str, failed))}", style="bold red", highlight=False)
