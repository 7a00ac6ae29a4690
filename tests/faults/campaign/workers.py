"""The worker programs of one schedule: started, watched and started again as a supervisor would.

Owns the slots (one program each), the extra programs of storms and foreign bundles, and what their
logs say. It never judges. Used by run.py and the faults.
"""

from __future__ import annotations

import random
import re
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from local.services import Child

PROGRAM = Path(__file__).parents[1] / "fatal_worker.py"
_DEATH = re.compile(r"^FATAL (\d+) dies at (\S+)$", re.MULTILINE)
_NONCE = re.compile(r"^FATAL \d+ nonce (\S+)$", re.MULTILINE)
CRASHED = "worker stops: "  # the product's log line of a fail-stop
_HALT = re.compile(r"^.* (\S+): HALT: (.*)$", re.MULTILINE)


@dataclass(slots=True)
class Run:
    """One worker program from its start to its end."""

    child: Child
    order: Path  # file that tells it where to die
    serves: bool = True  # with the schedule's own bundle
    ended: bool = False  # its end was noted
    intended: str = ""  # why it was ended by us; "" it was not

    @property
    def log(self) -> str:
        """Return all it has said."""
        return self.child.log.read_text(errors="replace")

    @property
    def nonce(self) -> str:
        """Return the nonce it owns partitions under, "" before the first one."""
        found = _NONCE.search(self.log)
        return found[1] if found else ""

    @property
    def death(self) -> tuple[int, str] | None:
        """Return when (ms) and where it killed itself."""
        found = _DEATH.search(self.log)
        return (int(found[1]), found[2]) if found else None


@dataclass(frozen=True, slots=True)
class Ended:
    """A program that has ended, as the supervisor saw it."""

    run: Run
    slot: int | None  # None: an extra one
    code: int  # exit status, negative: the signal


@dataclass(slots=True)
class Slot:
    """A place that a program should always fill."""

    run: Run | None = None
    back_at: float = 0.0  # not started before this, by the monotonic clock
    back_s: float = 0.3  # how long the next one that ends stays away
    history: list[Run] = field(default_factory=list)


class Workers:
    """The programs of one schedule."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        count: int,
        program: Path = PROGRAM,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._folder, self._settings = folder, dict(settings)
        self._program, self._env = program, dict(env or {})
        self.slots = [Slot() for _ in range(count)]
        self.extras: list[Run] = []
        self._number = 0
        self._random = random.Random(0)

    @property
    def runs(self) -> list[Run]:
        """Return every program so far that serves the schedule's own bundle."""
        everything = [run for slot in self.slots for run in slot.history] + self.extras
        return [run for run in everything if run.serves]

    def start(self, **changed: Any) -> Run:
        """Start one program beside the slots; `changed` settings have __ for the dot."""
        self._number += 1
        settings = self._settings | {n.replace("__", "."): v for n, v in changed.items()}
        flags = [f"--set={name}={value}" for name, value in settings.items()]
        order = self._folder / f"worker-{self._number}.order"
        env = {**self._env, "KEYFOLD_FATAL_FILE": str(order), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(self._program), *flags]
        return Run(Child(command, self._folder / f"worker-{self._number}.log", env), order)

    def change(self, **changed: Any) -> None:
        """Change settings (with __ for the dot) of all programs that are started from now on."""
        self._settings |= {name.replace("__", "."): value for name, value in changed.items()}

    def fill(self) -> None:
        """Start a program in every slot that is empty and whose time has come."""
        for slot in self.slots:
            if slot.run is None and time.monotonic() >= slot.back_at:
                slot.run = self.start()
                slot.history.append(slot.run)

    def supervise(self) -> list[Ended]:
        """Note the programs that have ended since the last call, and fill their slots again."""
        ended = []
        for number, slot in enumerate(self.slots):
            run = slot.run
            if run is not None and (code := run.child.exit_code) is not None:
                run.ended, slot.run = True, None
                slot.back_at = time.monotonic() + slot.back_s
                ended.append(Ended(run, number, code))
        for run in self.extras:
            if not run.ended and (code := run.child.exit_code) is not None:
                run.ended = True
                ended.append(Ended(run, None, code))
        self.fill()
        return ended

    def come_back(self) -> None:
        """Let every slot be filled at once from now on."""
        for slot in self.slots:
            slot.back_at, slot.back_s = 0.0, 0.1

    def stay_away(self) -> None:
        """Let no slot be filled until come_back()."""
        for slot in self.slots:
            slot.back_at = slot.back_s = float("inf")

    def end_extras(self) -> None:
        """Let the programs beside the slots go."""
        for run in self.extras:
            if run.child.exit_code is None:
                run.intended = "no longer wanted"
                run.child.signal(signal.SIGCONT)
                run.child.signal(signal.SIGTERM)

    def disarm(self) -> None:
        """Take back every order to die."""
        for run in self.runs:
            run.order.unlink(missing_ok=True)

    def halts(self) -> list[str]:
        """Return "partition: why" of every HALT in the logs, in order per program."""
        return [f"{found[1]}: {found[2]}" for run in self.runs for found in _HALT.finditer(run.log)]

    def owner_of(self, nonce: str) -> Run | None:
        """Return the program with this nonce."""
        return next((run for run in self.runs if nonce and run.nonce == nonce), None)

    def stop(self) -> list[str]:
        """End all by SIGTERM; return what was wrong with how they ended."""
        alive = [s.run for s in self.slots if s.run is not None] + self.extras
        alive = [run for run in alive if run.child.exit_code is None]
        for run in alive:
            run.intended = "the end"
            run.child.signal(signal.SIGTERM)
        problems = []
        for run in alive:
            code = run.child.wait(20)
            unborn = code == -signal.SIGTERM and not run.nonce  # it did not listen for it yet
            crashed = CRASHED in run.log  # before it was asked to stop
            if code != 0 and not unborn and not crashed:
                run.child.kill()
                what = "did not stop on SIGTERM" if code is None else f"stopped with status {code}"
                problems.append(f"{run.child.log.name}: {what}")
            run.ended = True
        return problems

    def kill(self) -> None:
        """End all at once."""
        for run in [s.run for s in self.slots if s.run is not None] + self.extras:
            run.child.kill()
