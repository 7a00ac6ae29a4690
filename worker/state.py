"""keyfold-state: shows what Redis holds of each partition, and gives a partition's state up.

Owns the operator's side of a HALT: `list` says what is there and what is wrong with it, `reset`
drops a partition's states and begins anew, after saying what that means and asking. It takes the
worker's own settings, talks to Redis through worker/store.py and only reads Kafka.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from redis.exceptions import RedisError
from rich import box
from rich.console import Console
from rich.table import Table

from keyfold.export import bundle as contract
from keyfold.worker import command
from keyfold.worker.config import Config, read_config
from keyfold.worker.errors import Crash
from keyfold.worker.kafka_log import Extent, KafkaLog
from keyfold.worker.lag import committed_offsets
from keyfold.worker.store import LAYOUT, Store

OWNER = "keyfold-state"  # the owner that a reset leaves behind, until a worker acquires


@dataclass(frozen=True, slots=True)
class Line:
    """What is known of one partition."""

    number: int  # of the partition
    extent: Extent  # of its log
    meta: dict[str, str]  # Redis's meta fields and "keys"; empty: no state
    committed: int | None  # the group's offset, None: never set
    problem: str  # what would make a worker HALT; "" when nothing would


def main(argv: list[str] | None = None) -> int:
    """Run keyfold-state; return 0, or 1 when `list` found a problem, 2 when it could not look."""
    arguments = _parser().parse_args(argv)
    return command.run("keyfold-state", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    config = read_config(arguments.config, arguments.set)
    bundle = contract.load(config.worker.bundle).id
    try:
        if arguments.command == "list":
            return _list(config, bundle)
        return _reset(config, bundle, arguments)
    except (RedisError, OSError) as error:
        raise Crash(f"Redis at {_without_password(config.redis.url)}: {error}") from error


# -- list ------------------------------------------------------------------------------------------


def _list(config: Config, bundle: str) -> int:
    lines = asyncio.run(_look(config, bundle))
    console = Console()
    console.print(
        f"group {config.kafka.group}, topic {config.kafka.input}, bundle {bundle}", highlight=False
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("partition", "watermark", "log", "group offset", "keys", "bundle"):
        table.add_column(name, justify="left" if name in ("log", "bundle") else "right")
    for line in lines:
        table.add_row(
            str(line.number), line.meta.get("#W", "-"), f"{line.extent.start}-{line.extent.end}",
            "-" if line.committed is None else str(line.committed),
            line.meta.get("keys", "-"), line.meta.get("#M", "-"),
        )  # fmt: skip
    console.print(table)
    if not any(line.meta or line.committed is not None for line in lines):
        console.print(f"no state of group {config.kafka.group!r} yet", highlight=False)
    for line in lines:
        if line.problem:
            console.print(f"partition {line.number}: {line.problem}", highlight=False)
    return 1 if any(line.problem for line in lines) else 0


async def _look(config: Config, bundle: str) -> list[Line]:
    topic = config.kafka.input
    store = Store.connect(config.redis.url, config.redis.timeout_s, config.kafka.group)
    with KafkaLog(config.kafka.brokers) as log:
        extents = [log.extent(topic, number) for number in range(log.partitions(topic))]
    committed = committed_offsets(config.kafka.brokers, topic, len(extents), config.kafka.group)
    try:
        metas = [await store.meta(topic, number) for number in range(len(extents))]
        count = await store.partition_count(topic)
    finally:
        await store.close()
    recount = "" if count in (None, len(extents)) else (
        f"the states were folded under {count} partitions, the topic has {len(extents)}"
    )  # fmt: skip
    return [
        Line(number, extent, meta, at, recount or _problem(meta, extent, at, bundle))
        for number, (extent, meta, at) in enumerate(zip(extents, metas, committed, strict=True))
    ]


def _problem(meta: dict[str, str], extent: Extent, committed: int | None, bundle: str) -> str:
    """Say what would make a worker HALT, as far as it shows without reading the log."""
    if not meta:
        return "" if committed is None else (
            f"no state in Redis, yet the group has committed offset {committed}"
        )  # fmt: skip
    if meta.get("#V") != LAYOUT:
        return f"expected layout {LAYOUT}, got {meta.get('#V')}"
    if meta.get("#M") != bundle:
        return f"expected bundle {bundle}, got {meta.get('#M')}"
    watermark = int(meta["#W"])
    if watermark < extent.start:
        return f"events {watermark} to {extent.start - 1} are lost to retention"
    if watermark > extent.end:
        return f"the log ends at {extent.end}, below the state (topic created anew?)"
    return ""


# -- reset -----------------------------------------------------------------------------------------


def _reset(config: Config, bundle: str, arguments: argparse.Namespace) -> int:
    lines = asyncio.run(_look(config, bundle))
    if arguments.all:
        chosen: Sequence[Line] = lines
    else:
        chosen = [line for line in lines if line.number in (arguments.partition or ())]
        missing = set(arguments.partition or ()) - {line.number for line in chosen}
        if missing or not chosen:
            raise Crash(
                f"--partition: expected 0 to {len(lines) - 1}, or --all; got {sorted(missing)}"
            )
    begins = {line.number: _begin(arguments.to, line.extent) for line in chosen}
    for line in chosen:
        print(
            f"partition {line.number}: drops {line.meta.get('keys', '0')} key states (folded up to "
            f"offset {line.meta.get('#W', '-')}), begins anew at offset {begins[line.number]} with "
            f"bundle {bundle}"
        )
    print(
        "Every key starts cold; predictions from there on are emitted again, under the same ids. "
        "A running owner of these partitions stops and must be restarted."
    )
    if not (arguments.yes or _agreed()):
        print("nothing was changed")
        return 1
    asyncio.run(_carry_out(config, bundle, begins, recount=arguments.all))
    print("done; a halted worker goes on within seconds")
    return 0


def _begin(to: str, extent: Extent) -> int:
    named = {"earliest": extent.start, "latest": extent.end}
    try:
        begin = named[to] if to in named else int(to)
    except ValueError:
        raise Crash(f"--to: expected earliest, latest or an offset, got {to!r}") from None
    if not extent.start <= begin <= extent.end:
        raise Crash(f"--to: expected an offset from {extent.start} to {extent.end}, got {begin}")
    return begin


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise Crash("expected --yes, or a terminal to ask at")
    return input("Go on? [y/N] ").strip().lower() in ("y", "yes")


async def _carry_out(config: Config, bundle: str, begins: dict[int, int], recount: bool) -> None:
    store = Store.connect(config.redis.url, config.redis.timeout_s, config.kafka.group)
    try:
        for number, begin in begins.items():
            await store.reset(config.kafka.input, number, OWNER, bundle, begin)
        if recount:
            await store.forget_partition_count(config.kafka.input)
    finally:
        await store.close()


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keyfold-state",
        description="Look at the saved state of a worker's group, or reset it.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("list", help="show each partition's watermark, keys and problems")
    reset = commands.add_parser("reset", help="drop partitions' states and begin anew")
    for one in (show, reset):
        one.add_argument("config", nargs="?", type=Path, metavar="worker.toml")
        one.add_argument("--set", action="append", default=[], metavar="SECTION.NAME=VALUE",
                         help="override one setting")  # fmt: skip
    reset.add_argument(
        "--partition", type=int, action="append", metavar="N", help="may be repeated"
    )
    reset.add_argument("--all", action="store_true", help="every partition of the topic; also the "
                       "way on after the number of partitions changed")  # fmt: skip
    reset.add_argument(
        "--to", required=True, metavar="earliest|latest|OFFSET", help="where to begin"
    )
    reset.add_argument("--yes", action="store_true", help="do not ask")
    return parser


if __name__ == "__main__":
    sys.exit(main())
