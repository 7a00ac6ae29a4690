"""out/accuracy/results.json: what was measured, with which settings.

Owns the file: a finished (task, seed) is found again unless its settings changed, and a half
written file never stands. Knows nothing of how a result came about. Called by __main__.py.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Result = dict[str, Any]


class Ledger:
    """Results by task and seed."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._content: dict[str, dict[str, Any]] = {}
        if file.exists():
            self._content = json.loads(file.read_text(encoding="utf-8"))

    def find(self, task: str, seed: int, settings: str) -> Result | None:
        """Return a result that was made with these settings; None: there is none."""
        found = self._content.get(task, {}).get("seeds", {}).get(str(seed))
        return found if found is not None and found["settings"] == settings else None

    def keep(self, task: str, seed: int, settings: str, result: Result) -> None:
        """Add a result and write the file."""
        seeds = self._content.setdefault(task, {}).setdefault("seeds", {})
        seeds[str(seed)] = {"settings": settings, **result}
        self._write()

    def keep_baselines(self, task: str, settings: str, figures: Mapping[str, Any]) -> None:
        """Add what simple methods reach."""
        kept = {"settings": settings, "figures": dict(figures)}
        self._content.setdefault(task, {})["baselines"] = kept
        self._write()

    def baselines(self, task: str, settings: str) -> dict[str, dict[str, float]] | None:
        """Return what simple methods reach, by name; None: it is not known with these settings."""
        kept = self._content.get(task, {}).get("baselines", {})
        if kept.get("settings") != settings:
            return None
        figures: dict[str, dict[str, float]] = kept["figures"]
        return figures

    def results(self, task: str, settings: str) -> dict[int, Result]:
        """Return all results made with these settings, by seed."""
        seeds = self._content.get(task, {}).get("seeds", {})
        return {int(s): r for s, r in sorted(seeds.items()) if r["settings"] == settings}

    def _write(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        beside = self._file.with_suffix(".new")
        beside.write_text(json.dumps(self._content, indent=2) + "\n", encoding="utf-8")
        beside.replace(self._file)


def mean(results: dict[int, Result], way: str, figure: str) -> float | None:
    """Return the mean of a figure, `way` being offline or streamed; None: some run lacks it."""
    values = [result.get(way, {}).get(figure) for result in results.values()]
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known and len(known) == len(values) else None
