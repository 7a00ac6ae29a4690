"""What a run of the benchmark has found: gathered case by case, shown as tables, written as JSON.

Owns the form of both. Knows nothing of how figures come about. Called by run.py.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cases import Case
from figures import Spread, count, ratio, row
from latency import Latency
from memory import Memory

OUT = Path(__file__).resolve().parents[2] / "out" / "bench" / "results.json"
CASE_WIDTHS = (26, 11, 11, 11, 10, 6, 5)
PEER_WIDTHS = (22, 10, 10, 10, 6, 11, 11)
LATENCY_WIDTHS = (30, 12, 10, 10, 10)


@dataclass(slots=True)
class Runs:
    """The runs of one case, or of one peer."""

    rates: list[float] = field(default_factory=list)  # events/s
    cpu_us: list[float] = field(default_factory=list)  # processor time per event
    ceilings: list[float] = field(default_factory=list)  # events/s of ONNX Runtime in that run
    us_per_event: dict[str, float] = field(default_factory=dict)  # by step, in the last run
    verified: str = ""  # "clean: N events", or what is wrong; "": not looked at
    clean: bool | None = None  # whether the predictions are right; None: not looked at

    def to_json(self) -> dict[str, Any]:
        """Return the medians and every run."""
        medians = {"events_per_s": asdict(Spread.of(self.rates))} if self.rates else {}
        if self.cpu_us:
            medians["cpu_us_per_event"] = asdict(Spread.of(self.cpu_us))
        if self.ceilings:
            medians["onnxruntime_alone_events_per_s"] = asdict(Spread.of(self.ceilings))
            medians["share_of_ceiling"] = {"median": ratio(self.rates, self.ceilings)}
        return {**medians, "runs": asdict(self)}


@dataclass(slots=True)
class Results:
    """All figures of one command."""

    setting: dict[str, Any]  # what was asked for, and the machine
    cases: dict[str, Runs] = field(default_factory=dict)  # by the case's name
    described: dict[str, Case] = field(default_factory=dict)  # what those cases are
    peers: dict[str, Runs] = field(default_factory=dict)  # by name
    notes: dict[str, str] = field(default_factory=dict)  # of peers: how they work, why one failed
    latencies: list[Latency] = field(default_factory=list)  # of the default case
    memory: Memory | None = None  # of the default case

    def write(self, file: Path = OUT) -> None:
        """Write everything."""
        found = {
            "setting": self.setting,
            "cases": {
                name: {"case": asdict(self.described[name]), **runs.to_json()}
                for name, runs in self.cases.items()
            },
            "peers": {name: runs.to_json() for name, runs in self.peers.items()},
            "notes": self.notes,
            "latency": [{**asdict(one), "kept_pace": one.kept_pace} for one in self.latencies],
            "memory": None if self.memory is None else asdict(self.memory),
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found, indent=2) + "\n")

    def tables(self) -> list[str]:
        """Return the lines to print."""
        parts = (
            self._case_lines(), self._peer_lines(), self._latency_lines(), self._memory_lines(),
            self._profile_lines(),
        )  # fmt: skip
        return [line for part in parts if part for line in (*part, "")]

    def _case_lines(self) -> list[str]:
        if not self.cases:
            return []
        head = ("keyfold, events/s", "median", "min", "max", "ORT alone", "share", "cpu")
        lines = [row(head, CASE_WIDTHS)]
        for name, runs in self.cases.items():
            rate, top = Spread.of(runs.rates), Spread.of(runs.ceilings)
            mark = {True: "", False: " WRONG", None: " *"}[runs.clean]
            cells = (
                name[: CASE_WIDTHS[0] - 1 - len(mark)] + mark,
                count(rate.median), count(rate.least), count(rate.most), count(top.median),
                f"{100 * ratio(runs.rates, runs.ceilings):.1f}%",
                f"{Spread.of(runs.cpu_us).median:.1f}",
            )  # fmt: skip
            lines.append(row(cells, CASE_WIDTHS))
        lines.append("ORT alone: the step graph, T=1, one thread. cpu: microseconds per event.")
        lines.append(f"decoding and encoding: {self.setting['codec']}, but for 'native off'")
        if any(runs.clean is None for runs in self.cases.values()):
            lines.append("*: keyfold-verify was not asked for")
        else:
            wrong = [name for name, runs in self.cases.items() if not runs.clean]
            said = f"violations in {'; '.join(wrong)}" if wrong else "clean after every case"
            lines.append(f"keyfold-verify: {said}")
        return lines

    def _peer_lines(self) -> list[str]:
        if not self.peers:
            return []
        ours = dict(list(self.cases.items())[: len(PEER_WIDTHS) - 5])  # so many columns
        widths = PEER_WIDTHS[: 5 + len(ours)]
        lines = [row(("events/s", "median", "min", "max", "cpu", *ours), widths)]
        entries = {f"keyfold, {name}": runs for name, runs in ours.items()}
        entries |= {name: runs for name, runs in self.peers.items() if runs.rates}
        for name, runs in sorted(entries.items(), key=lambda entry: -_median(entry[1].rates)):
            rate, is_peer = Spread.of(runs.rates), name in self.peers
            cells = (
                name, count(rate.median), count(rate.least), count(rate.most),
                f"{_median(runs.cpu_us):.1f}",
                *(compared(mine.rates, runs.rates) if is_peer else "" for mine in ours.values()),
            )  # fmt: skip
            lines.append(row(cells, widths))
        failed = [name for name, runs in self.peers.items() if not runs.rates]
        return [
            *lines,
            *(f"{name}: {self.notes.get(name, '')}".splitlines()[0][:80] for name in failed),
            "right: keyfold's rate by the peer's, run by run; below 1 keyfold is the slower",
        ]

    def _latency_lines(self) -> list[str]:
        if not self.latencies:
            return []
        lines = [row(("latency, ms", "events/s", "p50", "p99", "p99.9"), LATENCY_WIDTHS)]
        for one in self.latencies:
            name = f"{one.share:.0%} of the maximum"
            cells = (name, count(one.asked), *(f"{value:.1f}" for value in one.ms.values()))
            lines.append(row(cells, LATENCY_WIDTHS))
            if not one.kept_pace:
                lines.append(f"  the producer reached {count(one.sent)}/s: not that pace")
        return [*lines, "from record timestamp to prediction in a consumer's hands"]

    def _memory_lines(self) -> list[str]:
        if self.memory is None:
            return []
        found = self.memory
        return [
            f"memory per resident key: {found.bytes_per_key:,.0f} bytes, of which "
            f"{found.state_bytes} state (target {found.allowed:,.0f})",
            f"{found.stored_keys:,} keys in Redis: first prediction "
            f"{found.first_prediction_s:.2f} s after assignment",
        ]

    def _profile_lines(self) -> list[str]:
        runs = next(iter(self.cases.values()), None)
        if runs is None or not runs.us_per_event:
            return []
        lines = ["microseconds per event by step (emit and save are waits, they overlap):"]
        return [*lines, *(f"  {name:<10}{us:>8.2f}" for name, us in runs.us_per_event.items())]


def compared(ours: list[float], theirs: list[float]) -> str:
    """Say how many times a peer's rate ours is, and plainly when that is a loss."""
    whole = len(ours) == len(theirs)  # else a peer has failed in some round
    times = ratio(ours, theirs) if whole else _median(ours) / _median(theirs)
    return f"{times:.2f}x" if times >= 1 else f"LOSS {times:.2f}x"


def _median(runs: list[float]) -> float:
    return Spread.of(runs).median
