"""keyfold-state: looks at saved states, resolves HALTs, copies states away and back, erases a key.

Owns the command line and the exit status; what each command does is in the modules beside it, by
noun. It takes the worker's own settings. Called as a console command.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from redis.exceptions import RedisError

from keyfold.worker import command
from keyfold.worker.config import Config, read_config
from keyfold.worker.errors import Crash
from keyfold.worker.redis.refusals import explain
from keyfold.worker.state.adopt import adopt
from keyfold.worker.state.erase import erase
from keyfold.worker.state.handover import handover
from keyfold.worker.state.inherit import inherit
from keyfold.worker.state.inspection import inspect
from keyfold.worker.state.listing import list_partitions
from keyfold.worker.state.rebuild import rebuild
from keyfold.worker.state.reset import reset
from keyfold.worker.state.restore import restore
from keyfold.worker.state.snapshot import snapshot
from keyfold.worker.state.store_admin import Admin

EPILOG = "Exit status: 0 done, 1 problems found or declined, 2 could not."
Command = Callable[[Config, Admin, argparse.Namespace], int]


def main(argv: list[str] | None = None) -> int:
    """Run keyfold-state; return 0, or 1 for problems found or declined, 2 when it could not."""
    arguments = _parser().parse_args(argv)
    return command.run("keyfold-state", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    _sort_positionals(arguments)
    config = read_config(arguments.config, arguments.set)
    run: Command = arguments.run
    try:
        with Admin.connect(
            config.redis.access, config.redis.timeout_s, config.kafka.group
        ) as admin:
            return run(config, admin, arguments)
    except RedisError as error:
        raise Crash(explain(error, config.redis.access)) from error


def _sort_positionals(arguments: argparse.Namespace) -> None:
    """Tell the settings file from the paths behind it: argparse cannot, both may be one or none."""
    paths: list[Path] | None = getattr(arguments, "paths", None)
    if paths is None:
        return
    arguments.config = paths.pop(0) if paths and paths[0].suffix == ".toml" else None
    wanted = "DIR" if arguments.run is snapshot else "FILE..."
    if not paths or (arguments.run is snapshot and len(paths) > 1):
        got = " ".join(map(str, paths)) or "none"
        raise Crash(f"expected [worker.toml] {wanted}, got {got} behind the settings")
    arguments.files, arguments.folder = paths, paths[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keyfold-state",
        description="Look after the saved state of a worker's group.",
        epilog=EPILOG,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Command, help_: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=help_, description=f"{help_}.", epilog=EPILOG)
        one.set_defaults(run=run)
        return one

    _add_looking(add)
    _add_resolving(add)
    _add_copying(add)
    _add_handover(add)
    one = add("erase", erase, "have one key forgotten: tombstone, wait, receipt")
    _settings(one)
    _key(one.add_mutually_exclusive_group(required=True))
    one.add_argument("--timeout", type=_positive, default=60.0, metavar="SECONDS",
                     help="longest wait for the worker to pass it (default: 60)")  # fmt: skip
    one.add_argument("--receipt", type=Path, metavar="FILE", help="write a receipt, JSON")
    _yes(one)
    return parser


def _add_looking(add: Callable[[str, Command, str], argparse.ArgumentParser]) -> None:
    _settings(add("list", list_partitions, "show each partition's watermark, keys and problems"))
    one = add("inspect", inspect, "show one key's state, or a partition's meta fields")
    _settings(one)
    which = one.add_mutually_exclusive_group(required=True)
    _key(which)
    which.add_argument("--partition", type=int, metavar="N", help="the partition")


def _add_resolving(add: Callable[[str, Command, str], argparse.ArgumentParser]) -> None:
    one = add("reset", reset, "give partitions' states up and begin anew")
    _settings(one)
    _partitions(one)
    one.add_argument("--to", required=True, metavar="earliest|latest|OFFSET", help="where to begin")
    one.add_argument("--emit-again", action="store_true",
                     help="exactly-once outputs: emit again what is out already")  # fmt: skip
    _yes(one)
    one = add("rebuild", rebuild, "fold partitions again without emitting what is out already")
    _settings(one)
    _partitions(one)
    one.add_argument("--from", dest="start", metavar="earliest|OFFSET|SNAPSHOT",
                     help="where to begin (default: where the old fold began, or the oldest record "
                     "retained)")  # fmt: skip
    one.add_argument("--emit-from", metavar="OFFSET|latest",
                     help="emit from here on (default: from the old watermark)")  # fmt: skip
    _yes(one)
    one = add(
        "adopt",
        adopt,
        "take states over as they are: another log or output position, or a "
        "fine-tuned bundle (--inherit)",
    )
    _settings(one)
    _partitions(one)
    one.add_argument("--inherit", type=Path, metavar="PARENT_BUNDLE",
                     help="the bundle that folded them: worker.bundle is a fine-tune of it "
                     "(keyfold-train --parent) and goes on with its states; not with exactly-once "
                     "outputs (see inherit)")  # fmt: skip
    _yes(one)


def _add_copying(add: Callable[[str, Command, str], argparse.ArgumentParser]) -> None:
    one = add("snapshot", snapshot, "copy partitions' states to files in a folder")
    one.usage = "%(prog)s [worker.toml] DIR [--partition N] [--every SECONDS] [--keep COUNT] ..."
    _paths(one, "DIR")
    one.add_argument("--partition", type=int, action="append", metavar="N",
                     help="may be repeated (default: all)")  # fmt: skip
    one.add_argument("--every", type=_positive, metavar="SECONDS",
                     help="again and again, until SIGTERM")  # fmt: skip
    one.add_argument("--keep", type=_count, metavar="COUNT",
                     help="remove a partition's oldest files beyond so many")  # fmt: skip
    one = add("restore", restore, "put snapshots back, perhaps into another Redis")
    one.usage = "%(prog)s [worker.toml] FILE... [--yes] [--set SECTION.NAME=VALUE]"
    _paths(one, "FILE")
    _yes(one)


def _add_handover(add: Callable[[str, Command, str], argparse.ArgumentParser]) -> None:
    one = add(
        "inherit",
        inherit,
        "begin a new group with an old one's states, to serve a fine-tune of "
        "its bundle (keyfold-train --parent) without a replay",
    )
    one.add_argument("old", type=Path, metavar="OLD.toml", help="settings of the group that has "
                     "the states; it goes on")  # fmt: skip
    one.add_argument("config", type=Path, metavar="NEW.toml",
                     help="settings of the new group: worker.emit_from = \"handover\", or an "
                     "output topic of its own")  # fmt: skip
    _set(one)
    _yes(one)
    one = add(
        "handover", handover, "give one group's outputs to another, at one offset per partition"
    )
    one.add_argument("old", type=Path, metavar="OLD.toml", help="settings of the group that emits")
    one.add_argument("config", type=Path, metavar="NEW.toml",
                     help="settings of the group that takes over")  # fmt: skip
    _set(one)
    which = one.add_mutually_exclusive_group()
    which.add_argument("--back", action="store_true", help="from NEW back to OLD")
    which.add_argument("--cancel", action="store_true",
                       help="withdraw what a killed command has proposed")  # fmt: skip
    one.add_argument("--timeout", type=_positive, default=60.0, metavar="SECONDS",
                     help="longest wait for the workers (default: 60)")  # fmt: skip
    _yes(one)


def _settings(one: argparse.ArgumentParser) -> None:
    one.add_argument("config", nargs="?", type=Path, metavar="worker.toml")
    _set(one)


def _set(one: argparse.ArgumentParser) -> None:
    one.add_argument("--set", action="append", default=[], metavar="SECTION.NAME=VALUE",
                     help="override one setting")  # fmt: skip


def _paths(one: argparse.ArgumentParser, what: str) -> None:
    one.add_argument("paths", nargs="+", type=Path, metavar=what,
                     help="worker.toml may stand before it")  # fmt: skip
    _set(one)


def _partitions(one: argparse.ArgumentParser) -> None:
    which = one.add_mutually_exclusive_group(required=True)
    which.add_argument("--partition", type=int, action="append", metavar="N",
                       help="may be repeated")  # fmt: skip
    which.add_argument("--all", action="store_true", help="every partition of the topic")


def _key(which: argparse._MutuallyExclusiveGroup) -> None:
    which.add_argument("--key", metavar="K", help="the key as text")
    which.add_argument("--key-b64", metavar="B", help="the key's bytes in base64")


def _yes(one: argparse.ArgumentParser) -> None:
    one.add_argument("--yes", action="store_true", help="do not ask")


def _positive(text: str) -> float:
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"expected a positive number of seconds, got {text!r}")
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {text!r}")
    return number


if __name__ == "__main__":
    sys.exit(main())
