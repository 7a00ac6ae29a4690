"""`make faults`: runs N schedules from consecutive seeds and tells what came of them.

Owns the command line and the exit status: 0 when every schedule went as stated and the oracle found
nothing, 1 otherwise.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import confluent_kafka
import redis
from rich.console import Console

from campaign import report
from campaign.bundles import Bundles
from campaign.kinds import KINDS
from campaign.result import Result
from campaign.run import run_schedule
from campaign.schedule import Allowed, Schedule, make_schedule
from campaign.services import Services

FOLDER = Path("out/faults")


def main(argv: list[str] | None = None) -> int:
    """Run a campaign."""
    arguments = _parser().parse_args(argv)
    console = Console(soft_wrap=True)
    with Services(arguments.brokers) as services, TemporaryDirectory() as folder:
        allowed = _restrict(services.allowed(), arguments)
        bundles = Bundles(Path(folder))
        seeds = range(arguments.seed, arguments.seed + arguments.n)
        schedules = [make_schedule(seed, allowed) for seed in seeds]
        if arguments.show:
            for schedule in schedules:
                console.print_json(data=schedule.to_json())
            return 0
        say = partial(console.print, highlight=False, markup=False)
        say(f"{services.kafka.description}; {len(schedules)} schedules from seed {arguments.seed}")
        results = campaign(schedules, services, bundles, say, _restrictions(arguments))
        setting = report.Setting(
            command=_command(arguments),
            versions=_versions(services),
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            folder=FOLDER,
        )
    written = report.summary(results, setting)
    report.show(written, console)
    say(f"report: {report.write(written, FOLDER)}")
    return 0 if all(result.good for result in results) else 1


def campaign(
    schedules: list[Schedule],
    services: Services,
    bundles: Bundles,
    say: Callable[[str], None],
    restrictions: str = "",
) -> list[Result]:
    """Run schedules one after the other; only a failing one keeps its folder.

    `restrictions`: the arguments without which a seed gives another schedule.
    """
    results = []
    for number, schedule in enumerate(schedules, 1):
        folder = FOLDER / str(schedule.seed)
        shutil.rmtree(folder, ignore_errors=True)
        result = run_schedule(schedule, services, bundles, folder)
        results.append(result)
        say(report.line(number, len(schedules), result))
        if result.good:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            for text in report.explain(result, folder, restrictions):
                say(text)
    return results


def _restrict(allowed: Allowed, arguments: argparse.Namespace) -> Allowed:
    kinds = tuple(arguments.kinds.split(",")) if arguments.kinds else allowed.kinds
    unknown = sorted(set(kinds) - KINDS.keys())
    if unknown:
        raise SystemExit(f"--kinds: expected some of {', '.join(KINDS)}; got {', '.join(unknown)}")
    return replace(
        allowed,
        kinds=kinds,
        stores=tuple(arguments.stores.split(",")) if arguments.stores else allowed.stores,
        outputs=tuple(arguments.outputs.split(",")) if arguments.outputs else allowed.outputs,
    )


def _restrictions(arguments: argparse.Namespace) -> str:
    wished = {name: getattr(arguments, name) for name in ("kinds", "stores", "outputs")}
    words = [f"--{name} {value}" for name, value in wished.items() if value]
    return " ".join(words + ([f"--brokers {arguments.brokers}"] if arguments.brokers != 3 else []))


def _command(arguments: argparse.Namespace) -> str:
    words = ["make", "faults", f"N={arguments.n}", f"SEED={arguments.seed}"]
    wished = _restrictions(arguments)
    return shlex.join([*words, f"ARGS={wished}"] if wished else words)


def _versions(services: Services) -> dict[str, str]:
    return {
        "keyfold": importlib.metadata.version("keyfold"),
        "kafka": services.kafka.description,
        "python": sys.version.split()[0],
        "confluent-kafka": str(confluent_kafka.__version__),
        "redis-py": str(redis.__version__),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make faults", description="Break real workers, Kafka and Redis; then ask the oracle."
    )
    add = parser.add_argument
    add("--n", type=int, default=20, help="schedules (N=)")
    add("--seed", type=int, default=1, help="the first one's seed; the others follow (SEED=)")
    add("--kinds", default="", metavar="A,B", help=f"only these faults: {', '.join(KINDS)}")
    add("--stores", default="", metavar="A,B", help="only these: plain, replicated, cluster")
    add("--outputs", default="", metavar="A,B", help="only these: at-least-once, exactly-once")
    add("--brokers", type=int, default=3, help="Kafka brokers (default: 3)")
    add("--show", action="store_true", help="print the schedules and run nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
