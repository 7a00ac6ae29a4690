"""`make demo` and `make demo-quick`: a model serves a keyed stream, is killed, and loses nothing.

Owns the order of the steps and the exit status: 0 when everything was as promised, 1 when not, 130
after Ctrl-C. Each step is in a module of its own (demo_*.py). `--quick` serves the bundle in demo/
and needs no TensorFlow. Nothing that it starts outlives it. Not part of the wheel.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

# Run as a plain script; `deploy` is on the path of pytest and mypy anyway.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from keyfold.export import bundle as contract
from keyfold.export.errors import Crash
from local.demo_learn import Learned, learn
from local.demo_programs import keyfold, require, run_shown
from local.demo_report import Page, write_report
from local.demo_scene import Scene, open_scene
from local.demo_score import Score, score
from local.demo_serve import FIRST_LOG, SECOND_LOG, Stream, serve
from local.demo_story import DemoError, Story
from local.demo_summary import Run, Summary, show, summarise
from local.services import ServiceError

ROOT = Path(__file__).resolve().parents[2]  # of the repository
QUICK = Path("deploy/local/demo")  # holds the small bundle and its events
LOG_LINES = 10  # of each worker, shown when something was not as promised
STREAMING_S = 16  # of the full demo: event time passes so much faster


@dataclass(frozen=True, slots=True)
class Play:
    """What is served, and what it is compared with."""

    title: str  # of the report
    about: str  # what the events are, for the report
    bundle: Path  # folder
    log: Path  # of events
    label: str  # the events' field that holds the truth
    pace: tuple[str, str]  # of keyfold-send
    learned: Learned | None  # how the model came to be; None: it came with the repository


def main(argv: list[str] | None = None) -> int:
    """Run a demo and return the exit status."""
    arguments = _parser().parse_args(argv)
    folder = Path(arguments.out or ROOT / "out" / ("demo-quick" if arguments.quick else "demo"))
    # Every command shown can be typed there; paths in settings are short and mean something.
    folder = _from_root(folder.resolve())
    os.chdir(ROOT)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    story = Story()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in ("summary.json", "verify.json", "report.html"):
            (folder / old).unlink(missing_ok=True)
        return _run(folder, arguments, story)
    except KeyboardInterrupt:
        story.console.print("\nInterrupted; everything that was started is stopped.")
        return 130
    except (DemoError, ServiceError, Crash) as error:
        story.failed(str(error))
        return 1


def _run(folder: Path, arguments: argparse.Namespace, story: Story) -> int:
    story.title(
        "keyfold demo" + (", quick" if arguments.quick else ""),
        "A recurrent model serves a keyed stream. Its worker is killed. Nothing is lost.",
    )
    with open_scene(folder, arguments.brokers, story) as scene:
        play = _quick() if arguments.quick else _full(folder, story)
        summary = _play(play, scene, story)
    return 1 if summary.problems() else 0


def _quick() -> Play:
    return Play(
        title="Water tanks: is the level rising, steady or falling?",
        about="Made-up readings of twelve tanks, one number each. A single reading says nothing "
        "about where the level is going: only the readings before it do, and of these the model "
        "has nothing but its hidden state.",
        bundle=QUICK / "bundle",
        log=QUICK / "events.jsonl",
        label="trend",
        pace=("--rate", "400"),
        learned=None,
    )


def _full(folder: Path, story: Story) -> Play:
    learned = learn(folder, story)
    return Play(
        title="Smartwatch: which exercise is it?",
        about="Accelerations and turning rates of three people's left and right wrists, 12.5 "
        "events a second, during seven shoulder exercises: pendulum (PEN), abduction (ABD), "
        "forward elevation (FEL), internal and external rotation (IR, ER), trapezius extension "
        "(TRAP) and upright row (ROW). At every event an LSTM says which one it is. Data: "
        "seglearn.",
        bundle=learned.bundle,
        log=learned.held_out,
        label="exercise",
        pace=("--time-lapse", f"{learned.held_out_s / STREAMING_S:.1f}"),
        learned=learned,
    )


def _play(play: Play, scene: Scene, story: Story) -> Summary:
    with play.log.open("rb") as log:
        events = sum(1 for _ in log)
    stream = Stream(play.log, events, play.pace)
    served = serve(scene, stream, play.bundle, story)
    verified = _verify(scene, story)
    names = contract.load(play.bundle).manifest.outputs.names
    scored = score(scene, play.label, names)
    baselines = play.learned.baselines if play.learned is not None else {}
    run = Run(served, scene.broker, story.elapsed_s)
    summary = summarise(verified, scored, baselines, run)
    _hand_over(play, scene, (summary, scored, served.killed_ms), story)
    return summary


def _verify(scene: Scene, story: Story) -> Path:
    """Run keyfold-verify; return its file. Violations are left to the summary."""
    file = scene.folder / "verify.json"
    command = [keyfold("verify"), str(scene.config), "--json", str(file)]
    story.step(
        "Verify: run the model offline and compare everything",
        "Every key is folded again from the input topic, one event at a time, in plain ONNX "
        "Runtime; then every prediction and every state in Valkey is compared.",
        command,
    )
    status = run_shown(command)
    if not file.exists():
        require(command, status or 1)
    return file


def _hand_over(play: Play, scene: Scene, results: tuple[Summary, Score, int], story: Story) -> None:
    summary, scored, killed_ms = results
    files = scene.folder / "summary.json", scene.folder / "report.html"
    summary.write(files[0])
    history = play.learned.history if play.learned is not None else None
    page = Page(play.title, play.about, history, killed_ms)
    files[1].write_text(write_report(page, summary, scored), encoding="utf-8")
    show(summary, len(scored.traces), story)
    if summary.problems():
        for log in (scene.folder / FIRST_LOG, scene.folder / SECOND_LOG):
            story.note(f"End of {log}:")
            story.quote(log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:])
    story.console.print(f"Report: {files[1]}   Numbers: {files[0]}")


def _from_root(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="demo.py", description="Train, export, serve, kill, verify: the whole line, once."
    )
    parser.add_argument(
        "--quick", action="store_true", help="serve the small bundle in demo/, without TensorFlow"
    )
    parser.add_argument(
        "--brokers", metavar="HOST:PORT,...",
        help="use your own Kafka instead of the embedded broker; the demo's topics there are "
        "removed at the end",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER",
        help="of logs and results (default: out/demo, or out/demo-quick)",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
