"""A short fault campaign on real services, and that its verdict is red when something is wrong."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from campaign import report
from campaign.bundles import Bundles
from campaign.result import Result
from campaign.run import run_schedule
from campaign.schedule import Allowed, Schedule, make_schedule
from campaign.services import Services
from rich.console import Console

from local.services import missing_for_kafka, wanted_version

pytestmark = pytest.mark.integration

BROKEN = Path(__file__).with_name("broken_worker.py")
SHORT_S = 4.0


@pytest.fixture(scope="module")
def services() -> Iterator[Services]:
    missing = missing_for_kafka(wanted_version())
    if missing:
        pytest.skip(f"needs a real Apache Kafka: {' and '.join(missing)}")
    with Services() as running:
        yield running


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    return Bundles(tmp_path_factory.mktemp("bundles"))


def short(seed: int, store: str, kinds: str, outputs: str) -> Schedule:
    """Return a schedule of some kinds whose faults strike within SHORT_S."""
    allowed = Allowed(stores=(store,), kinds=tuple(kinds.split(",")), outputs=(outputs,))
    plan = make_schedule(seed, allowed)
    part = SHORT_S / plan.duration_s
    faults = tuple(replace(fault, at_s=fault.at_s * part) for fault in plan.faults)
    traffic = replace(plan.traffic, events=1500)
    return replace(plan, duration_s=SHORT_S, faults=faults, workers=2, traffic=traffic)


@pytest.mark.parametrize(
    ("seed", "store", "kinds", "outputs"),
    [
        (1, "plain", "kill-at-point,redis-stall,kafka-slow", "exactly-once"),
        (2, "cluster", "kill,rollback,redis-kill", "at-least-once"),
        (3, "replicated", "failover-lagging", "at-least-once"),
        (4, "plain", "hash-deleted", "exactly-once"),
    ],
)
def test_a_schedule_heals_or_halts_as_stated(
    seed: int,
    store: str,
    kinds: str,
    outputs: str,
    services: Services,
    bundles: Bundles,
    tmp_path: Path,
) -> None:
    schedule = short(seed, store, kinds, outputs)
    result = run_schedule(schedule, services, bundles, tmp_path)
    assert result.good, report.explain(result, tmp_path)
    assert result.struck, "a schedule in which no fault struck proves nothing"
    assert result.events > 500
    assert result.outcome == ("HALT, healed" if schedule.cure else "healed")


def test_a_worker_that_loses_predictions_turns_the_verdict_red(
    services: Services, bundles: Bundles, tmp_path: Path
) -> None:
    schedule = replace(short(5, "plain", "sigterm", "at-least-once"), save_every_ms=0)
    result = run_schedule(schedule, services, bundles, tmp_path, program=BROKEN)
    assert result.violations["lost"] > 0
    assert not result.good
    written = report.summary([result], setting(tmp_path))
    assert written["failed_seeds"] == [5]
    assert written["violations"]["lost"] == result.violations["lost"]
    said = "".join(report.explain(result, tmp_path, "--stores plain"))
    assert "make faults SEED=5 N=1 ARGS='--stores plain'" in said


def setting(folder: Path) -> report.Setting:
    return report.Setting("make faults", {"kafka": "4"}, "2026-01-01", folder)


def test_the_report_is_written_and_shown_and_lines_fit_a_terminal(tmp_path: Path) -> None:
    good = Result(make_schedule(1, Allowed()), outcome="healed", struck=["kill", "kill"], events=7)
    bad = Result(make_schedule(2, Allowed()), problems=["expected no HALT, got 1"])
    written = report.summary([good, bad], setting(tmp_path))
    assert json.loads(report.write(written, tmp_path).read_text()) == json.loads(
        json.dumps(written)
    )
    assert (written["faults"], written["failed_seeds"]) == ({"kill": 2}, [2])
    assert not any(written["violations"].values())
    for result in (good, bad):
        assert len(report.line(1, 2, result)) <= report.WIDTH
    shown = io.StringIO()
    report.show(written, Console(file=shown, width=report.WIDTH))
    assert "FAILED seeds: 2" in shown.getvalue()
    assert max(map(len, shown.getvalue().splitlines())) <= report.WIDTH
