"""The machine that figures are taken on: its description, processor time, cores, memory.

Owns what is read from the operating system (Linux's /proc). Called by run.py and bench.py.
"""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "keyfold", "onnxruntime", "numpy", "faust-streaming", "aiokafka", "confluent-kafka", "redis",
)  # fmt: skip


def described() -> dict[str, Any]:
    """Return what a reader must know to compare figures."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],  # of others: nothing was measured yet
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def cpu_s(session: int) -> float:
    """Return the seconds that all threads of all programs of a session have computed.

    A `Child` is the leader of a session, so its pid names the session, of which its own children
    are, too. Programs that have ended no longer count.
    """
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if int(fields[3]) == session:
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """Return the memory that a program holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Pinned:
    """One core for what is measured, the others for the services and for us."""

    def __init__(self, wanted: bool) -> None:
        cores = sorted(os.sched_getaffinity(0))
        if wanted and len(cores) < 2:
            raise SystemExit("--pin: expected at least two cores, got one")
        self.core = cores[-1] if wanted else None
        self._all, self._others = set(cores), set(cores) - {self.core}

    def settle(self) -> None:
        """Keep ourselves, and the services that are started next, off the core."""
        _place(self._others)

    @contextmanager
    def measured(self, processes: int = 1) -> Iterator[None]:
        """Start programs on the core; several get all cores."""
        if self.core is None:
            yield
            return
        _place_children({self.core} if processes == 1 else self._all)
        try:
            yield
        finally:
            _place_children(self._others)

    @contextmanager
    def here(self) -> Iterator[None]:
        """Run this thread on the core."""
        if self.core is not None:
            os.sched_setaffinity(0, {self.core})
        try:
            yield
        finally:
            os.sched_setaffinity(0, self._others)


def _place(cores: set[int]) -> None:
    for thread in threading.enumerate():
        if thread.native_id is not None:
            os.sched_setaffinity(thread.native_id, cores)


def _place_children(cores: set[int]) -> None:
    """Set where children begin: they inherit it from the thread that starts them."""
    for thread in threading.enumerate():
        if thread.name.startswith("child-spawner") and thread.native_id is not None:
            os.sched_setaffinity(thread.native_id, cores)


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
