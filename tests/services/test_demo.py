"""The promises of deploy/local/demo.py: it shows what it says, fails loudly, leaves nothing."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from local.demo_plots import timeline
from local.demo_score import NOTHING, Trace
from local.demo_summary import Summary

DEMO = Path(__file__).resolve().parents[2] / "deploy" / "local" / "demo.py"
DEADLINE_S = 120.0

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

CLEAN = Summary(
    events=100, predictions=103, lost=0, duplicates=3, conflicts=0, wrong_states=0,
    other_violations=0, max_abs_difference=0.0, accuracy=0.9, accuracy_majority=0.4,
    accuracy_nonrecurrent=0.7, waited=50, events_per_s=1000.0, broker="none", seconds=1.0,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Running:
    """A demo that was started."""

    program: subprocess.Popen[str]  # its stdout is a pipe

    def read_until(self, words: str) -> str:
        """Read what it prints up to a line with these words."""
        said = []
        for line in self.program.stdout or ():
            said.append(line)
            if words in line:
                return "".join(said)
        raise AssertionError(f"expected {words!r}, got {''.join(said)}")

    def programs(self) -> list[int]:
        """Return pidfds of the demo and of all that it has started, at any depth."""
        parents = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile
                stat = (folder / "stat").read_text()
                # "pid (name) state ppid ...", and the name may hold anything
                parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
        mine = {self.program.pid}
        while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
            mine |= more
        return [os.pidfd_open(pid) for pid in mine]


def all_end(programs: list[int]) -> bool:
    """Tell whether all of these end in time; blocks without polling, and closes the pidfds."""
    with ExitStack() as stack:
        for descriptor in programs:
            stack.callback(os.close, descriptor)
        return all(_ends(descriptor) for descriptor in programs)


def _ends(descriptor: int) -> bool:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(DEADLINE_S * 1000))


@contextmanager
def quick_demo(out: Path, **environment: str) -> Iterator[Running]:
    """Start the quick demo with its results, and whatever it leaves, in `out`."""
    out.mkdir(exist_ok=True)
    program = subprocess.Popen(
        [sys.executable, str(DEMO), "--quick", "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(out), **environment},
    )
    with program:
        try:
            yield Running(program)
        finally:
            program.kill()


@pytest.mark.integration
@linux
def test_quick_demo_survives_the_kill_without_tensorflow(tmp_path: Path) -> None:
    forbidden = tmp_path / "forbidden"
    forbidden.mkdir()
    for name in ("tensorflow", "keras"):
        (forbidden / f"{name}.py").write_text("raise ImportError('not in the quick demo')\n")
    out = tmp_path / "out"

    with quick_demo(out, PYTHONPATH=str(forbidden)) as demo:
        said = demo.read_until("the steps go on")
        programs = demo.programs()
        said += demo.program.communicate(timeout=DEADLINE_S)[0]

    assert demo.program.returncode == 0, said
    assert len(programs) >= 4  # the demo, Kafka, Valkey, the second worker
    assert all_end(programs)
    assert max(map(len, said.splitlines())) <= 80
    summary = json.loads((out / "summary.json").read_text())
    assert summary["events"] == 3000
    assert summary["predictions"] == 3000 + summary["duplicates"]
    assert (summary["lost"], summary["conflicts"], summary["wrong_states"]) == (0, 0, 0)
    assert summary["accuracy"] > 0.8 > summary["accuracy_majority"]
    assert summary["events_per_s"] > 0
    report = (out / "report.html").read_text()
    assert "SIGKILL" in report
    assert not re.search(r"(src|href)\s*=|@import|url\(", report), "expected it self-contained"


@pytest.mark.integration
@linux
@pytest.mark.parametrize(
    ("stage", "how"),
    [
        ("Start a worker", signal.SIGINT),
        ("Stream the events", signal.SIGTERM),
        ("Kill the worker", signal.SIGINT),
    ],
)
def test_interrupted_demo_leaves_nothing_running(
    stage: str, how: signal.Signals, tmp_path: Path
) -> None:
    with quick_demo(tmp_path) as demo:
        demo.read_until(stage)
        programs = demo.programs()
        demo.program.send_signal(how)
        said, _ = demo.program.communicate(timeout=DEADLINE_S)

    assert demo.program.returncode == 130, said
    assert "Traceback" not in said
    assert len(programs) >= 3
    assert all_end(programs)


@pytest.mark.integration
@linux
def test_killed_demo_leaves_nothing_running(tmp_path: Path) -> None:
    with quick_demo(tmp_path) as demo:
        demo.read_until("Stream the events")
        programs = demo.programs()
        demo.program.kill()

    assert len(programs) >= 4  # the demo, Kafka, Valkey, the worker
    assert all_end(programs)


@pytest.mark.integration
@linux
def test_demo_shows_the_log_of_a_worker_that_ends(tmp_path: Path) -> None:
    with quick_demo(tmp_path, KEYFOLD_WORKER__MAX_EVENTS="0") as demo:
        said, _ = demo.program.communicate(timeout=DEADLINE_S)

    assert demo.program.returncode == 1
    assert "worker-1.log" in said
    assert "max_events: expected at least 1" in said


def test_clean_run_has_no_problems() -> None:
    assert CLEAN.problems() == []


@pytest.mark.parametrize(
    "spoilt",
    [
        replace(CLEAN, lost=2),
        replace(CLEAN, conflicts=2),
        replace(CLEAN, wrong_states=2),
        replace(CLEAN, other_violations=2),
    ],
)
def test_any_violation_fails_the_demo(spoilt: Summary) -> None:
    assert len(spoilt.problems()) == 1


def test_model_that_does_not_beat_a_baseline_fails_the_demo() -> None:
    assert "without memory" in replace(CLEAN, accuracy_nonrecurrent=0.9).problems()[0]
    assert "majority" in replace(CLEAN, accuracy_majority=0.95).problems()[0]


def test_timeline_marks_the_kill_and_what_never_came() -> None:
    classes = np.array([0, 0, 1, 1])
    predicted = np.array([0, 0, 1, NOTHING])
    emitted = np.array([10, 20, 30, 0])
    trace = Trace("a<b", np.arange(4) * 1000, classes, predicted, emitted)

    picture = timeline([trace], killed_ms=25)

    assert "a&lt;b" in picture
    assert picture.count("SIGKILL") == 1
    assert 'fill="#222222"/>' in picture  # the missing prediction
