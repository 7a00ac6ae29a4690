"""The `keyfold-train` command: train from a config, prepare a data set, evaluate a run.

Owns arguments, the progress bar and what is printed; the work is in the modules. Exit status 0, or
1 with one line that says what, where, expected, got. TensorFlow is loaded only by the commands that
need it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from keyfold.export.errors import Crash
from keyfold.training.settings_fit import WIDE

NEWEST = Path()  # --resume without a run's name
STDERR = 2  # as C++ writes to it, past sys.stderr


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # `keyfold-train CONFIG.toml` is the usual call, so it is no subcommand.
    commands = {"init": _init, "dataset": _dataset, "evaluate": _evaluate, "search": _search}
    command = commands.get(arguments[0]) if arguments else None
    try:
        return command(arguments[1:]) if command is not None else _train(arguments)
    except Crash as crash:
        print(f"keyfold-train: {crash}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("keyfold-train: interrupted", file=sys.stderr)
        return 130


def _train(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="keyfold-train",
        description="Train a recurrent model on an event log.",
        epilog="First: keyfold-train init LOG, which writes the config. Other commands: "
        "keyfold-train search --help, keyfold-train evaluate --help, keyfold-train dataset --help.",
    )
    parser.add_argument("config", type=Path, help="settings (TOML)")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of training runs")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.NAME=VALUE", help="override one"
    )
    parser.add_argument(
        "--against", type=Path, metavar="RUN_OR_BUNDLE", help="judge an earlier model as well"
    )
    parser.add_argument(
        "--parent",
        type=Path,
        metavar="RUN_OR_BUNDLE",
        help="begin with an earlier model's weights"
        " and keep its inputs, scaling and outputs: a fine-tune, which may go on with its states",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const=NEWEST,
        type=Path,
        metavar="RUN",
        help="go on with a run that was killed, as if it had not been; without RUN with the newest "
        "unfinished one of this config, or begin one if there is none",
    )
    given = parser.parse_args(arguments)
    _check_out(given.out)
    from keyfold.training.config import read_config

    config = read_config(given.config, given.set)
    _prepare_tensorflow(config.fit.threads, config.model.units)
    from keyfold.training.train import Earlier, train

    console = Console()
    resume = _resumed(given, console)
    earlier = Earlier(given.against, given.parent, resume)
    train(config, given.config.stem, given.out, console, earlier)
    return 0


def _check_out(out: Path) -> None:
    """Refuse, before a long log is read, a folder that no run can be written to."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise Crash(f"--out {out}: expected a folder, or a name for one, got the file {there}")


def _resumed(given: argparse.Namespace, console: Console) -> Path | None:
    """Return the folder of the run that is gone on with, None for a new run."""
    from keyfold.training import show
    from keyfold.training.checkpoint import unfinished
    from keyfold.training.kept import begun

    newest = unfinished(given.out, given.config.stem)
    resume = newest if given.resume == NEWEST else given.resume
    if resume is not None:
        show.resumed(resume, console)
        return begun(resume)
    if newest is not None:
        show.unfinished(newest, console)
    return None


def _search(arguments: list[str]) -> int:
    from keyfold.training.search_cli import main as search

    return search(arguments, _prepare_tensorflow)


def _init(arguments: list[str]) -> int:
    from keyfold.training.init import cli as init

    return init.main(arguments)


def _evaluate(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="keyfold-train evaluate", description="Measure a training run on other event logs."
    )
    parser.add_argument("run", type=Path, help="a training run's folder, such as runs/latest")
    parser.add_argument("logs", nargs="+", help="event logs: .jsonl, .csv, .parquet (also .gz)")
    parser.add_argument("--json", action="store_true", help="print the metrics as JSON, only")
    given = parser.parse_args(arguments)
    _prepare_tensorflow(threads=2)
    from keyfold.training.train import evaluate

    metrics = evaluate(given.run, tuple(given.logs), Console(quiet=given.json))
    if given.json:
        print(json.dumps(metrics))
    return 0


def _dataset(arguments: list[str]) -> int:
    from keyfold.training.datasets.cli import main as dataset

    return dataset(arguments)


def _prepare_tensorflow(threads: int, units: tuple[int, ...] = ()) -> None:
    """Load TensorFlow quietly, on few threads: more do not help at these sizes.

    `units`: of the layers that will be trained. oneDNN's matrix products make wide ones 1.5 to 2
    times faster and narrow ones hardly (see CONTRIBUTING.md); their last digits differ.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    wide = max(units, default=0) >= WIDE
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1" if wide else "0")
    with _held_back():
        import tensorflow as tf

    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError:
        pass  # already running, as when called a second time from one program: keep its threads


@contextmanager
def _held_back() -> Iterator[None]:
    """Hold back what a library says on stderr while it is loaded; show it if that fails."""
    sys.stderr.flush()
    kept = os.dup(STDERR)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), STDERR)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, STDERR)
            os.close(kept)
