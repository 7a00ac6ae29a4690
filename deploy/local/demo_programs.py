"""The commands of keyfold as the demo runs them: own programs that never outlive it.

Owns where the commands are, their environment, and a program that writes to this terminal; programs
that write to a log file are `services.Child`. Knows nothing of what the commands do. Used by the
demo's steps.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from local.demo_story import DemoError, typed
from local.services import Child

STOP_S = 5.0  # longest wait for a program that was asked to stop
POLL_S = 0.1
SHOW_CURSOR = "\x1b[?25h"
# TensorFlow's start-up notices are for its developers.
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}

_BOUND_EXEC = Path(__file__).with_name("services") / "bound_exec.py"


def keyfold(name: str) -> str:
    """Return the path of a keyfold command of this very environment."""
    path = Path(sys.executable).with_name(f"keyfold-{name}")
    if not path.exists():
        raise DemoError(f"expected {path}, got none: is keyfold installed in this environment?")
    return str(path)


def run_shown(command: Sequence[str]) -> int:
    """Run a program on this terminal and return its exit status."""
    with Shown(command) as program:
        return program.wait()


def require(command: Sequence[str], status: int) -> None:
    """Raise DemoError unless a program ended well."""
    if status != 0:
        raise DemoError(f"{typed(command)}\nended with exit status {status}")


def await_child(child: Child, timeout_s: float) -> None:
    """Wait for a logged program to end well. Raises DemoError with the end of its log."""
    if child.wait(timeout_s) is None:
        raise failure(child, f"did not end within {timeout_s:.0f} s")
    if child.exit_code != 0:
        raise failure(child, f"ended with exit status {child.exit_code}")


def failure(child: Child, what: str) -> DemoError:
    """Return the error about a logged program, with the end of its log."""
    return DemoError(f"{typed(child.command)}\n{what}; end of {child.log}:\n{child.log_tail()}")


class Shown:
    """A program that writes to this terminal, to be used in a `with` statement.

    It has a session of its own: Ctrl-C reaches the demo alone, which then stops it.
    """

    def __init__(self, command: Sequence[str]) -> None:
        """Prepare `command`."""
        self._command = [sys.executable, "-I", "-S", str(_BOUND_EXEC), str(os.getpid()), *command]
        self._popen: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it."""
        sys.stdout.flush()
        self._popen = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **QUIET},
            start_new_session=True,
        )
        return self

    def wait(self, until: Callable[[], bool] = lambda: False) -> int:
        """Return its exit status once it has ended, or stop it once `until` says so."""
        while (status := self._running().poll()) is None:
            if until():
                return self.stop()
            time.sleep(POLL_S)
        return status

    def stop(self) -> int:
        """End it, by force if it does not leave, and tidy the terminal up."""
        popen = self._running()
        # Not SIGINT: a program that is still importing answers that with a traceback.
        popen.terminate()
        try:
            popen.wait(STOP_S)
        except subprocess.TimeoutExpired:
            popen.kill()
        if sys.stdout.isatty():
            print(SHOW_CURSOR, flush=True)  # it may have been drawing a live picture
        return popen.wait()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave nothing of it behind."""
        if self._running().poll() is None:
            self.stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._popen is None:
            raise DemoError("a program was used before it was started")
        return self._popen
