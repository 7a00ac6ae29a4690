"""The benchmark's pure parts: figures, cases, what is asked for, tables of 80 columns."""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import fields, replace
from pathlib import Path

import cases
import numpy as np
import onnxruntime as ort
import pytest
import run
import traffic
from cases import CASES, DEFAULT, Case, Traffic, chosen, servable
from ceiling import bound, ceiling
from figures import Spread, percentile, ratio, row
from latency import Latency
from machine import Pinned, cpu_s, described, resident_bytes
from memory import Memory
from models import make_model
from results import CASE_WIDTHS, PEER_WIDTHS, Results, Runs, compared

from keyfold.export.bundle import initial_states
from keyfold.export.events import Decoder
from keyfold.worker import native
from keyfold.worker.config import Worker
from keyfold.worker.model import Model
from local.services import Child


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(n) for n in range(1, 1001)]
    assert [percentile(values, p) for p in (50, 99, 99.9, 100)] == [500, 990, 999, 1000]
    assert percentile([7.0], 99.9) == 7.0
    with pytest.raises(ValueError, match="a percentile needs at least one value, got none"):
        percentile([], 50)


def test_a_ratio_is_taken_run_by_run() -> None:
    """In slow weather both are slow: the medians of the rates would say 1.5 here."""
    assert ratio([100.0, 300.0, 50.0], [50.0, 150.0, 25.0]) == 2.0
    with pytest.raises(ValueError, match="zip"):
        ratio([1.0], [1.0, 2.0])
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)


def test_a_loss_is_told_as_plainly_as_a_win() -> None:
    assert compared([150.0], [100.0]) == "1.50x"
    assert compared([50.0], [100.0]) == "LOSS 0.50x"
    assert compared([150.0, 150.0], [100.0]) == "1.50x"  # it has failed once


def test_a_row_cuts_its_name_and_never_a_figure() -> None:
    assert row(("a name", "1"), (5, 4)) == "a na    1"
    assert row(("a", "1,000,000"), (5, 4)) == "a    1,000,000"
    with pytest.raises(ValueError, match="expected at most 80 columns, got 81"):
        row(("a", "b"), (80, 1))
    assert sum(CASE_WIDTHS) <= 80
    assert sum(PEER_WIDTHS) <= 80


def test_each_case_changes_one_thing_of_the_default() -> None:
    known = {item.name for item in fields(Case)} - {"name", "traffic"}
    for case in CASES[1:]:
        changed = [name for name in known if getattr(case, name) != getattr(DEFAULT, name)]
        changed += [
            item.name
            for item in fields(Traffic)
            if getattr(case.traffic, item.name) != getattr(DEFAULT.traffic, item.name)
        ]
        assert len(changed) == 1 + (case.name == "H 256, native off"), case.name
    assert len({case.name for case in CASES}) == len(CASES)


def test_a_case_is_left_out_where_the_worker_does_it_anyway_or_cannot() -> None:
    default = Worker(Path("bundle")).save_every_ms
    assert not servable(replace(DEFAULT, save_every_ms=default))
    assert servable(replace(DEFAULT, save_every_ms=default + 100))
    assert servable(cases.PURE) == native.available()
    assert servable(DEFAULT)


def test_cases_are_chosen_by_words_of_their_names() -> None:
    assert [case.name for case in chosen(["zipf", "1k"])] == ["zipf 1.0", "1k keys"]
    with pytest.raises(SystemExit, match="--case 'zopf': expected a part of one of: default"):
        chosen(["zopf"])


def _asked(*words: str) -> run.Asked:
    return run.ask(run._parser().parse_args(words))


def test_what_is_measured_follows_from_peers_and_quick() -> None:
    assert _asked().parts == frozenset(run.PARTS)
    assert (_asked().runs, _asked().events, _asked().cases) == (3, 2_000_000, chosen([]))
    peers = _asked("--peers")
    assert (peers.runs, peers.parts, peers.cases[0]) == (5, frozenset(["speed"]), DEFAULT)
    assert {"confluent", "quix", "kafka_streams"} <= set(peers.peers)
    quick = _asked("--quick")
    assert (quick.whole, _asked().whole) == (None, DEFAULT)
    assert (quick.runs, quick.cases, quick.peers) == (1, (DEFAULT,), ("confluent", "quix"))
    assert _asked("--peer", "quix", "--runs", "2").peers == ("quix",)


def test_a_topic_is_skewed_and_its_events_are_what_the_model_wants(tmp_path: Path) -> None:
    zipf = Traffic(keys=1000, skew="zipf")
    keys = traffic.keys_of(zipf, 0, 20_000)
    shares = [keys.count(b"key-%d" % n) / 20_000 for n in (0, 1, 9)]
    expected = np.array([1, 1 / 2, 1 / 10]) / sum(1 / n for n in range(1, 1001))
    assert shares == pytest.approx(expected, rel=0.15)
    assert traffic.keys_of(zipf, 0, 10) == keys[:10] == traffic.keys_of(zipf, 0, 10)
    manifest = make_model(tmp_path).manifest
    values = traffic.values_of(Traffic(), 100, 3)
    decoded = Decoder(manifest.events, manifest.features).decode(values, [0] * 3)
    assert not decoded.rejects
    assert decoded.times_ms.tolist() == [traffic.FIRST_MS + n for n in (100, 101, 102)]
    assert json.loads(values[0])["s7"] == pytest.approx(float(decoded.x[0, 7]))


@pytest.mark.parametrize("layers", [(16,), (8, 12)])
def test_the_ceiling_runs_the_very_graph_that_the_worker_runs(
    tmp_path: Path, layers: tuple[int, ...]
) -> None:
    bundle = make_model(tmp_path, layers)
    assert bundle.manifest.state_bytes == 2 * 4 * sum(layers)
    session = ort.InferenceSession(bundle.step_path.read_bytes())
    binding, arrays = bound(session, bundle, 5)
    session.run_with_iobinding(binding)
    y, states = Model(bundle).step(
        arrays["x"], arrays["lengths"], initial_states(bundle.manifest, 5)
    )
    assert np.array_equal(arrays["y"], y)
    for state in bundle.manifest.states:
        assert np.array_equal(arrays[state.output], states[state.input])
    assert ceiling(bundle, 0.03) > 0


def test_processor_time_is_that_of_a_whole_session(tmp_path: Path) -> None:
    """A worker of several processes is a program that starts others."""
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint('burnt', flush=True)\ninput()"
    text = (
        "import subprocess, sys\n"
        f"p = subprocess.Popen([sys.executable, '-c', {burn!r}], stdin=subprocess.PIPE)\np.wait()"
    )
    child = Child([sys.executable, "-c", text], tmp_path / "log")
    try:
        while "burnt" not in child.log_tail():
            assert child.exit_code is None, child.log_tail()
        assert cpu_s(child.pid) >= 0.3
    finally:
        child.kill()
    assert resident_bytes(os.getpid()) > 1 << 20
    assert described()["versions"]["onnxruntime"] == ort.__version__


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_what_is_measured_has_a_core_and_the_rest_keeps_off_it(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    pinned = Pinned(True)

    def cores_of_a_child() -> set[int]:
        child = Child([sys.executable, "-c", "input()"], tmp_path / "log")
        try:
            return os.sched_getaffinity(child.pid)
        finally:
            child.kill()

    try:
        assert cores_of_a_child() == before  # which also makes the thread that starts children
        pinned.settle()
        assert cores_of_a_child() == os.sched_getaffinity(0) == before - {pinned.core}
        with pinned.measured():
            assert cores_of_a_child() == {pinned.core}
        with pinned.measured(processes=2):
            assert cores_of_a_child() == before
        with pinned.here():
            assert os.sched_getaffinity(0) == {pinned.core}
        assert cores_of_a_child() == before - {pinned.core}
    finally:
        for thread in threading.enumerate():
            os.sched_setaffinity(thread.native_id or 0, before)


def _found() -> Results:
    results = Results({"codec": "native module"})
    good = Runs([150_000.0, 140_000.0], [6.0, 6.2], [2.5e6, 2.4e6], {"decode": 0.9}, "clean", True)
    results.cases = {DEFAULT.name: good, "H 256": replace(good, verified="1: lost", clean=False)}
    results.described = {DEFAULT.name: DEFAULT, "H 256": Case("H 256", layers=(256,))}
    results.peers = {"fast": Runs([300_000.0, 280_000.0], [2.0, 2.1]), "broken": Runs()}
    results.notes = {"broken": "failed: " + "why " * 40}
    results.latencies = [Latency(0.8, 120_000.0, 90_000.0, {"p50": 3.0, "p99": 25.2, "p99.9": 60})]
    results.memory = Memory(290_000, 801.4, 512, 1_000_000, 0.2)
    return results


def test_the_tables_fit_a_terminal_and_hide_nothing() -> None:
    lines = _found().tables()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for expected in (
        "H 256 WRONG", "keyfold-verify: violations in H 256", "LOSS 0.50x",
        "broken: failed: why", "the producer reached 90,000/s: not that pace", "25.2",
        "memory per resident key: 801 bytes, of which 512 state (target 866)",
        "first prediction 0.20 s after assignment", "  decode        0.90",
    ):  # fmt: skip
        assert expected in text


def test_peers_stand_beside_a_single_case_too() -> None:
    """As QUICK=1 has it."""
    results = _found()
    results.cases = {DEFAULT.name: results.cases[DEFAULT.name]}
    text = "\n".join(results.tables())
    assert "LOSS 0.50x" in text
    assert "keyfold, default" in text


def test_the_file_holds_medians_and_every_run(tmp_path: Path) -> None:
    file = tmp_path / "out" / "results.json"
    _found().write(file)
    found = json.loads(file.read_text())
    case = found["cases"][DEFAULT.name]
    assert case["events_per_s"] == {"median": 145_000, "least": 140_000, "most": 150_000}
    assert case["runs"]["rates"] == [150_000, 140_000]
    assert case["case"]["layers"] == [64]
    assert case["share_of_ceiling"]["median"] == pytest.approx(0.0592, abs=1e-4)
    assert found["peers"]["broken"] == {"runs": found["peers"]["broken"]["runs"]}
    assert found["latency"][0]["kept_pace"] is False
    assert found["memory"]["bytes_per_key"] == 801.4
