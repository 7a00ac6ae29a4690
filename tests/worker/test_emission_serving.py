"""Section [emit] on a real Kafka and Valkey: killed workers emit what the rule says, no more.

Judged from outside by a reader of committed records and keyfold-verify's oracle.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from live_worker import Serving, make_events
from tiny_bundle import make_tiny_bundle

from keyfold.worker.config import read_config
from keyfold.worker.emit_settings import Emit
from keyfold.worker.errors import Crash
from keyfold.worker.first_day.dry_run import dry_run
from keyfold.worker.verify import cli as verify
from local.services import Child

pytestmark = pytest.mark.usefixtures("real_kafka")


@pytest.fixture
def partitions() -> int:
    return 2


@pytest.mark.parametrize("outputs", ["at-least-once", "exactly-once"])
def test_killed_workers_emit_by_the_rule(
    serving: Serving, unique_name: Callable[[str], str], outputs: str
) -> None:
    alerts = unique_name("alerts")
    serving.kafka.create_topic(alerts, 2, None)
    emit = Emit("on_change", above=0.4, k=2, n=3, step=0.25, alert_topic=alerts)
    events = make_events(16_000, 200, skew="zipf")
    settings: dict[str, Any] = {
        "worker__outputs": outputs, "emit__what": emit.what, "emit__above": emit.above,
        "emit__k": emit.k, "emit__n": emit.n, "emit__step": emit.step,
        "emit__alert_topic": alerts, "worker__max_resident_keys": 50,
    }  # fmt: skip
    for number, save_every_ms in enumerate((0, 200, 0)):
        serving.send([*events[5000 * number : 5000 * (number + 1)], (b"key-1", b"no json")])
        serving.kill_after(
            1000, worker__max_events=200, worker__save_every_ms=save_every_ms, **settings
        )
    serving.send(events[15_000:])
    with serving.running(**settings) as worker:
        serving.wait_saved([worker])
    exactly_once = outputs == "exactly-once"
    findings = serving.verify_clean(len(events), emit=emit, exactly_once=exactly_once)
    out, told = serving.records(serving.output), serving.records(alerts)
    assert 0 < len({(m.partition(), m.value()) for m in out}) < len(events)
    assert 0 < len(told) == findings.alerts
    assert {(m.key(), m.partition()) for m in told} <= {(m.key(), m.partition()) for m in out}
    if exactly_once:
        assert findings.counts.total() == 0
        ids = [json.loads(m.value())["id"] for m in told]
        assert len(set(ids)) == len(ids)
    # Held to another rule the same topics are wrong, and the states are another's.
    with pytest.raises(Crash, match=r"behind the \+: other \[emit\] settings"):
        serving.verify(emit=Emit("on_change", step=0.5))


def test_the_command_verifies_by_the_settings_file(
    serving: Serving, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serving.send(make_events(300, 10))
    file = tmp_path / "worker.toml"
    file.write_text(
        f'[kafka]\nbrokers = "{serving.kafka.address}"\ninput = "{serving.input}"\n'
        f'output = "{serving.output}"\ngroup = "{serving.group}"\n'
        f'[redis]\nurl = "{serving.valkey.url}"\n[worker]\nbundle = "{serving.bundle.path}"\n'
        '[emit]\nwhat = "when"\nbelow = 0.1\nk = 2\nn = 2\n'
    )
    with serving.running(emit__what="when", emit__below=0.1, emit__k=2, emit__n=2) as worker:
        serving.wait_saved([worker])
    assert verify.main([str(file)]) == 0
    file.write_text(file.read_text().replace("below = 0.1", "below = 5.0"))
    assert verify.main([str(file)]) == 2
    assert "other [emit] settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("partitions_of_alerts", "said"),
    [(0, "expected it to exist, got none"), (3, "expected 2 partitions like the input")],
)
def test_a_worker_whose_alert_topic_does_not_fit_says_so(
    serving: Serving, unique_name: Callable[[str], str], partitions_of_alerts: int, said: str
) -> None:
    alerts = unique_name("alerts")
    if partitions_of_alerts:
        serving.kafka.create_topic(alerts, partitions_of_alerts, None)
    worker = serving.worker(emit__alert_topic=alerts, emit__above=1.0)
    assert worker.wait(30) == 2, worker.log_tail()
    assert f"topic {alerts!r}: {said}" in worker.log_tail()


def test_a_field_that_the_bundle_lacks_is_refused_before_the_worker_joins(
    serving: Serving,
) -> None:
    worker = serving.worker(emit__what="when", emit__field="rul", emit__above=1.0)
    assert worker.wait(30) == 2, worker.log_tail()
    assert "emit.field: expected one of value, got 'rul'" in worker.log_tail()


def test_a_dry_run_says_what_would_go_out(
    serving: Serving, capsys: pytest.CaptureFixture[str]
) -> None:
    serving.send(make_events(200, 10))
    flags = [
        f"kafka.brokers={serving.kafka.address}", f"kafka.input={serving.input}",
        f"kafka.output={serving.output}", f"worker.bundle={serving.bundle.path}",
        "worker.start=earliest", "emit.what=on_change", "emit.step=0.5", "emit.above=0.4",
        "emit.alert_topic=alerts",
    ]  # fmt: skip
    assert dry_run(read_config(None, flags, {}), "worker.toml", 200) == 0
    said = capsys.readouterr().out
    lines = re.findall(r"^ +(\d+) (?:predictions would|alerts to)", said, re.MULTILINE)
    counts = [int(number) for number in lines]
    assert len(counts) == 2
    assert 0 < min(counts) <= max(counts) < 200


def test_a_rebuild_is_the_way_to_another_rule(
    serving: Serving, capsys: pytest.CaptureFixture[str]
) -> None:
    events = make_events(800, 10)
    serving.send(events[:500])
    with serving.running() as worker:
        serving.wait_saved([worker])
    emit = Emit("on_change", step=0.5)
    rule = {"emit__what": "on_change", "emit__step": 0.5}
    flags = ["--set=emit.what=on_change", "--set=emit.step=0.5"]
    with serving.running(**rule) as worker:
        serving.wait_until(
            lambda: worker.log.read_text().count("other settings in [emit]") >= 2, "HALTs", [worker]
        )
    assert serving.state("list", *flags) == 1
    assert f"expected bundle {serving.bundle.id}+" in "".join(capsys.readouterr().out.split("\n"))
    assert serving.state("adopt", "--partition", "0", "--yes", *flags) == 2
    said = "they were kept under other [emit] settings (behind the +): keyfold-state rebuild"
    assert said in capsys.readouterr().err
    for partition in ("0", "1"):
        assert serving.state("rebuild", "--partition", partition, "--yes", *flags) == 0
    with serving.running(**rule) as worker:
        serving.send(events[500:])
        serving.wait_saved([worker])
    findings = serving.verify_clean(800, emit=emit)
    # What was out stays out and is not looked at; then the rule goes on where the states are.
    assert findings.below_floor == 500
    assert 500 < findings.predictions < 800
    capsys.readouterr()
    assert serving.state("inspect", "--key", "key-0", *flags) == 0
    assert "tensor emit.last [2]: min " in capsys.readouterr().out


def test_after_a_handover_each_group_s_part_is_by_the_rule(
    serving: Serving, unique_name: Callable[[str], str], tmp_path: Path
) -> None:
    alerts = unique_name("alerts")
    serving.kafka.create_topic(alerts, 2, None)
    emit = Emit("on_change", above=0.2, k=2, n=3, step=0.25, alert_topic=alerts)
    rule: dict[str, Any] = {
        "emit__what": emit.what, "emit__above": 0.2, "emit__k": 2, "emit__n": 3,
        "emit__step": 0.25, "emit__alert_topic": alerts,
    }  # fmt: skip
    new = copy.copy(serving)
    new.group, new.bundle = f"{serving.group}-new", make_tiny_bundle(tmp_path, seed=7, hidden=6)
    new._workers = 100  # its logs have names of their own
    files = []
    for name, one in (("old", serving), ("new", new)):
        files.append(tmp_path / f"{name}.toml")
        files[-1].write_text(
            f'[kafka]\nbrokers = "{one.kafka.address}"\ninput = "{one.input}"\n'
            f'output = "{one.output}"\ngroup = "{one.group}"\n'
            f'[redis]\nurl = "{one.valkey.url}"\n[worker]\nbundle = "{one.bundle.path}"\n'
            f'[emit]\nwhat = "on_change"\nabove = 0.2\nk = 2\nn = 3\nstep = 0.25\n'
            f'alert_topic = "{alerts}"\n'
        )
    events = make_events(900, 12)
    serving.send(events[:400])
    with (
        serving.running(**rule) as first,
        new.running(worker__emit_from="handover", **rule) as then,
    ):
        serving.wait_saved([first])
        new.wait_saved([then])
        command = [sys.executable, "-m", "keyfold.worker.state.cli", "handover", *map(str, files)]
        done = Child([*command, "--yes"], tmp_path / "handover.log")
        assert done.wait(60) == 0, done.log_tail()
        serving.send(events[400:])
        serving.wait_saved([first])
        new.wait_saved([then])
    bundles = [json.loads(m.value())["bundle"] for m in serving.records(serving.output)]
    assert set(bundles) == {serving.bundle.id, new.bundle.id}
    assert len(bundles) < len(events)
    for one in (serving, new):
        findings = one.verify_clean(len(events), emit=emit)
        assert findings.others > 0
