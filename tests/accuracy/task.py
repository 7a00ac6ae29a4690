"""What a task of `make accuracy` is: where its events come from and how its answers are judged.

Owns the form only; each task is a file of its own beside this one. Pure. Called by all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Answers = Mapping[str, list[dict[str, Any]]]  # key -> the output of each of its events, in order
Events = Mapping[str, list[dict[str, Any]]]  # key -> its events, in order
Figures = dict[str, float]
TRAIN, TEST = "train.jsonl", "test.jsonl"  # what `prepare` writes into the task's folder


@dataclass(frozen=True, slots=True)
class Asked:
    """A figure that has to be reached."""

    figure: str  # its name
    limit: float  # to be reached
    is_least: bool  # at least so much; otherwise at most

    def reached(self, value: float) -> bool:
        """Say whether a value is good enough."""
        return value >= self.limit if self.is_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.is_least else '<='} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Task:
    """One data set, one training config, one way to judge."""

    name: str  # on the command line and in the table
    title: str  # what is measured, for the table
    source: str  # folder of the data set below DATA
    config: str  # training config below training/configs
    prepare: Callable[[Path, Path], object]  # (source, folder): write train.jsonl and test.jsonl
    judge: Callable[[Events, Answers], Figures]  # of the streamed logs' events
    main: str  # the figure that stands in the table
    seeds: int = 3  # of a whole measurement
    streamed: tuple[str, ...] = (TEST,)  # logs that are served, one behind the other
    asked: tuple[Asked, ...] = ()  # targets
    # (folder with the logs) -> figures of simple methods, by name
    baselines: Callable[[Path], Mapping[str, Figures]] | None = None
    published: Mapping[str, Figures] = field(default_factory=dict)  # by source
