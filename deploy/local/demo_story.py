"""What a person reads while the demo runs: each step's what, why and time, within 80 columns.

Owns the look of the terminal: headings, notes, the progress bar (only where a person watches) and
the failure. Knows nothing of Kafka, models or what the steps do. Used by the other demo modules.
"""

from __future__ import annotations

import shlex
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

WIDTH = 80
INDENT = 7  # of everything below a step's line


class DemoError(RuntimeError):
    """The demo cannot go on; the message says what happened, and where to look."""


class Story:
    """Tells one run of the demo, from its first line to its last."""

    def __init__(self) -> None:
        """Begin to count the time."""
        self.began = time.monotonic()
        self.interactive = sys.stdout.isatty()
        self.console = Console(width=min(WIDTH, Console().width), highlight=False)

    @property
    def elapsed_s(self) -> float:
        """Return the seconds since the beginning."""
        return time.monotonic() - self.began

    def title(self, what: str, why: str) -> None:
        """Print the demo's name and promise."""
        self.console.print(Text(what, style="bold"))
        self.console.print(Text(why, style="dim"))

    def step(self, what: str, why: str, command: Sequence[str] = ()) -> None:
        """Announce a step, with the command a person could type."""
        clock = f"{int(self.elapsed_s) // 60:2d}:{int(self.elapsed_s) % 60:02d}"
        self.console.print()
        self.console.print(Text.assemble((f"{clock}  ", "cyan"), (what, "bold")))
        self.note(why, "dim")
        if command:
            self.note(f"$ {typed(command)}", "green")
        sys.stdout.flush()  # before a program of this step writes to the same terminal

    def note(self, text: str, style: str = "") -> None:
        """Add some text to the current step."""
        indent = " " * INDENT
        lines = textwrap.fill(
            text, self.console.width, initial_indent=indent, subsequent_indent=indent,
            break_on_hyphens=False, break_long_words=False,
        )  # fmt: skip
        self.console.print(Text(lines, style=style))

    def quote(self, lines: Sequence[str]) -> None:
        """Show lines of some program, cut at the terminal's edge instead of wrapped."""
        for line in lines:
            text = Text(" " * INDENT + line)
            text.truncate(self.console.width, overflow="ellipsis")
            self.console.print(text)

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show how far something is, where a person watches; yield the function that says so."""
        columns = (
            TextColumn(" " * (INDENT - 1) + "{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
        )
        with Progress(
            *columns, console=self.console, transient=True, disable=not self.interactive
        ) as progress:
            task = progress.add_task(what, total=total)
            yield lambda done: progress.update(task, completed=min(done, total))

    def failed(self, why: str) -> None:
        """Print the end of a demo that could not go on."""
        self.console.print()
        self.console.print(Text(f"The demo failed after {self.elapsed_s:.0f} s", style="bold red"))
        print(why, file=sys.stderr, flush=True)


def typed(command: Sequence[str]) -> str:
    """Return a command as a person would type it: the program's name, paths from here."""
    here = f"{Path.cwd()}/"
    program, *arguments = command
    return shlex.join([Path(program).name, *(part.replace(here, "") for part in arguments)])
