"""`make bench`: keyfold on a real Kafka, beside ONNX Runtime alone and, with --peers, its peers.

Owns the command, the order of measuring and what is measured at all. Every round takes each case
once, right after the ceiling of its own model, so that both see the same weather. Prints tables,
writes out/bench/results.json. The cases are in cases.py; see --help.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import SETTINGS, Bench
from cases import DEFAULT, PURE, Case, chosen, servable
from ceiling import ceiling
from figures import Spread
from latency import SHARES, latency
from machine import Pinned, described
from memory import memory
from peers import driver
from peers import interface as peer_side
from results import OUT, Results, Runs

from keyfold.worker import native
from local.services import ApacheKafka, ServiceError, Valkey

PARTS = ("speed", "latency", "memory")
QUICK_PEERS = ("confluent", "quix")


@dataclass(frozen=True, slots=True)
class Asked:
    """What this run is to find."""

    cases: tuple[Case, ...]  # in the table's order; the first one is compared with peers
    peers: tuple[str, ...]  # by name
    parts: frozenset[str]  # of PARTS
    events: int  # per serving
    verified: int  # events that keyfold-verify looks at; 0: none
    whole: Case | None  # the case of which it looks at all events
    runs: int  # of everything
    seconds: float  # of each pace of latency
    shares: tuple[float, ...]  # of the maximum
    keys: tuple[int, int, int]  # few, many, stored: see memory.py


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return 1 when keyfold-verify found violations."""
    options = _parser().parse_args(argv)
    asked = ask(options)
    for name in asked.peers:
        driver.prepare(name)
    results = Results({"asked": vars(options), "machine": described()})
    pinned = Pinned(options.pin)
    pinned.settle()
    with (
        tempfile.TemporaryDirectory(prefix="keyfold-bench-") as folder,
        ApacheKafka(jvm=(), settings=SETTINGS) as kafka,
        Valkey() as valkey,
    ):
        bench = Bench(Path(folder), kafka, valkey, pinned)
        results.setting |= {
            "codec": "native module" if native.available() else "pure Python",
            "broker": kafka.description, "partitions": bench.partitions, "pinned": pinned.core,
            "acks": "all, idempotent", "events": asked.events, "runs": asked.runs,
        }  # fmt: skip
        try:
            _measure(bench, asked, results)
        finally:  # what was found stays found when something fails, or at Ctrl-C
            results.write()
    print("\n".join(results.tables()))
    print(f"written to {OUT}")
    return int(any(runs.clean is False for runs in results.cases.values()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench ARGS=...")
    add = parser.add_argument
    add("--events", type=int, help="per serving (default: 2,000,000; quick: 1,000,000)")
    add("--runs", type=int, help="of everything (default: 3; with peers 5; quick: 1)")
    add("--case", action="append", default=[], help="only cases with this in their names")
    add("--part", action="append", default=[], choices=PARTS, help="only this part")
    add("--peers", action="store_true", help="also the peers (PEERS=1)")
    add("--peer", action="append", default=[], choices=driver.available(), help="only this one")
    add("--quick", action="store_true", help="the default case, two peers, once (QUICK=1)")
    add("--pin", action="store_true", help="a worker, and a peer, on one core of its own")
    add("--verified", type=int, default=100_000, metavar="N",
        help="keyfold-verify after each case over a topic of so many events of its kind, the first "
        "case (unless quick) over all it has served; 0: not at all (default: 100,000)")  # fmt: skip
    add("--seconds", type=float, help="of each pace of latency (default: 20; quick: 5)")
    return parser


def ask(options: argparse.Namespace) -> Asked:
    """Turn the command line into what is measured."""
    peers = tuple(options.peer) or (driver.available() if options.peers else ())
    if options.quick:
        peers = tuple(options.peer) or QUICK_PEERS
    cases: tuple[Case, ...]
    if options.case:
        cases = chosen(options.case)
    elif peers:  # they are compared on equal terms: one program, its default policy
        cases = tuple(case for case in (DEFAULT, PURE) if servable(case))
    else:
        cases = chosen([])
    parts = frozenset(options.part or (("speed",) if peers else PARTS))
    if options.quick:
        cases, parts = cases[:1], frozenset(options.part or ("speed", "latency"))
    return Asked(
        cases=cases,
        peers=peers,
        parts=parts,
        events=options.events or (1_000_000 if options.quick else 2_000_000),
        verified=options.verified,
        whole=None if options.quick else cases[0],
        runs=options.runs or (1 if options.quick else 5 if peers else 3),
        seconds=options.seconds or (5.0 if options.quick else 20.0),
        shares=(0.5,) if options.quick else SHARES,
        keys=(5_000, 20_000, 20_000) if options.quick else (10_000, 300_000, 1_000_000),
    )


def _measure(bench: Bench, asked: Asked, results: Results) -> None:
    if "speed" in asked.parts:
        for run in range(asked.runs):
            for case in asked.cases:
                _serve(bench, asked, case, run, results)
            for name in asked.peers:
                _serve_peer(bench, asked, name, results)
    case = asked.cases[0]
    if "latency" in asked.parts:
        rates = results.cases[case.name].rates if case.name in results.cases else [
            bench.serve(bench.filled(case, asked.events), case).rate
        ]  # fmt: skip
        for share in asked.shares:
            pace = share * Spread.of(rates).median
            _say(f"latency at {pace:,.0f} events/s")
            results.latencies.append(latency(bench, case, share, pace, asked.seconds))
    if "memory" in asked.parts:
        _say("memory")
        results.memory = memory(bench, case, *asked.keys)


def _serve(bench: Bench, asked: Asked, case: Case, run: int, results: Results) -> None:
    """Take one run of a case, verified if it is the last."""
    runs = results.cases.setdefault(case.name, Runs())
    results.described[case.name] = case
    with bench.pinned.here():
        runs.ceilings.append(ceiling(bench.bundle(case)))
    serving = bench.filled(case, asked.events)
    served = bench.serve(serving, case)
    if not served.rate:
        raise SystemExit(f"{case.name}: all was saved at the first look: expected more --events")
    runs.rates.append(served.rate)
    runs.cpu_us.append(served.cpu_us)
    runs.us_per_event = served.us_per_event
    _say(f"run {run + 1}: {case.name}: {served.rate:,.0f}/s, ORT alone {runs.ceilings[-1]:,.0f}/s")
    if run == asked.runs - 1 and asked.verified:
        whole = asked.events if case == asked.whole else min(asked.verified, asked.events)
        if whole < asked.events:
            bench.forget(serving)
            serving = bench.filled(case, whole)
            bench.serve(serving, case)
        _say(f"keyfold-verify: {case.name}, {whole:,} events")
        wrong = bench.verify(serving, case)
        runs.clean, runs.verified = not wrong, wrong or f"clean: {whole} events"
    bench.forget(serving)


def _serve_peer(bench: Bench, asked: Asked, name: str, results: Results) -> None:
    """Take one run of a peer; one that fails is told of and tried again in the next round."""
    runs = results.peers.setdefault(name, Runs())
    serving = bench.filled(asked.cases[0], asked.events)
    case = peer_side.Case(
        bench.kafka.address, serving.input, bench.valkey.url, serving.bundle, bench.folder,
        asked.events,
    )  # fmt: skip
    try:
        with bench.pinned.measured():
            found = driver.measure_closely(name, case)
        runs.rates.append(found.rate)
        runs.cpu_us.append(found.cpu_us)
        _say(f"  {name}: {found.rate:,.0f}/s over {driver.events_for(name, case):,} events")
    except ServiceError as error:
        results.notes[name] = f"failed: {error}"
        _say(f"  {name} failed: {error}")
    bench.forget(serving)


def _say(text: Any) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
