"""The table of the README: what keyfold reaches, what was asked, what others reach.

Owns the form: markdown, a row for each figure of each task. Pure but for the ledger that it reads.
Called by __main__.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from accuracy.ledger import Ledger, Result, mean
from accuracy.task import Asked, Figures, Task

HEAD = ("Task", "Asked", "keyfold, offline", "streamed", "Runs", "Published", "Simple methods")


def table(ledger: Ledger, measured: Iterable[tuple[Task, str]]) -> str:
    """Return the table of tasks with their settings; those without a result are left out."""
    lines = [_line(HEAD), _line(("---",) * len(HEAD))]
    for task, settings in measured:
        if results := ledger.results(task.name, settings):
            simple = ledger.baselines(task.name, settings) or {}
            lines += [_line(cells) for cells in _rows(task, results, simple)]
    return "\n".join(lines) + "\n"


def _rows(
    task: Task, results: dict[int, Result], simple: Mapping[str, Figures]
) -> Iterable[tuple[str, ...]]:
    names = list(next(iter(results.values()))["offline"])
    for name in sorted(names, key=lambda name: name != task.main):
        asked = [wish for wish in task.asked if wish.figure == name]
        offline = mean(results, "offline", name)
        yield (
            task.title if name == task.main else f"- {name}",
            _verdict(asked, offline),
            _figure(offline, [r["offline"].get(name) for r in results.values()]),
            _streamed(results, name),
            str(len(results)),
            _others(task.published, name),
            _others(simple, name),
        )


def _streamed(results: dict[int, Result], name: str) -> str:
    """Return the mean of what was served; with the seeds, where that is not all of them."""
    served = {seed: result for seed, result in results.items() if "streamed" in result}
    value = mean(served, "streamed", name)
    if value is None:
        return "-"
    which = "" if len(served) == len(results) else f" (seed {', '.join(map(str, served))})"
    return _number(value) + which


def _verdict(asked: list[Asked], value: float | None) -> str:
    if not asked or value is None:
        return ""
    return f"{asked[0]}: {'reached' if asked[0].reached(value) else 'missed'}"


def _figure(value: float | None, runs: list[float | None]) -> str:
    if value is None:
        return "-"
    each = [_number(run) for run in runs if run is not None]
    return _number(value) + (f" ({', '.join(each)})" if len(each) > 1 else "")


def _others(others: Mapping[str, Figures], name: str) -> str:
    return "; ".join(
        f"{who} {_number(figures[name])}" for who, figures in others.items() if name in figures
    )


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 2 else f"{value:.2f}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
