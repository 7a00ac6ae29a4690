"""A fine-tune goes on with its parent's states, served on a real Kafka and Valkey.

Judged twice: every prediction against a fold written here (the parent's graph below the seam, from
there on the child's from the same tensors), and all of it by keyfold-verify with --parent; without
the parent, or with another seam, keyfold-verify must not call it right.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fine_tune import fine_tuned
from live_worker import Serving, make_events
from tiny_bundle import make_tiny_bundle

from keyfold.export.bundle import Bundle
from keyfold.worker.emit_settings import Emit
from keyfold.worker.errors import Crash
from keyfold.worker.state import cli as state
from keyfold.worker.verify import cli as verify_command
from keyfold.worker.verify.findings import Findings
from keyfold.worker.verify.offline_step import OfflineStep
from keyfold.worker.verify.verification import Target, verify

Seams = dict[int, int]  # partition -> offset of the child's first event


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_tiny_bundle(tmp_path_factory.mktemp("parents"))


@pytest.fixture
def partitions() -> int:
    return 2


@pytest.fixture
def child(tmp_path: Path, bundle: Bundle) -> Bundle:
    return fine_tuned(tmp_path / "child", bundle)


def folded(serving: Serving, folds: tuple[Bundle, Bundle], seams: Seams) -> dict[str, float]:
    """Return by id what the child predicts from the seams on, run from the parent's states."""
    before, after = (OfflineStep(one) for one in folds)
    tensors: dict[tuple[int, bytes], Any] = {}
    found = {}
    for message in serving.records(serving.input):
        number, offset = message.partition(), message.offset()
        if message.value() == b"no event":
            continue
        event = json.loads(message.value())
        x = np.array([[event["a"], event["b"]]], np.float32)
        step = before if offset < seams[number] else after
        key = number, message.key()
        y, tensors[key] = step.one(x, tensors.get(key) or step.cold())
        if step is after:
            found[f"{serving.input}:{number}:{offset}:0"] = float(y[0])
    return found


def predicted(serving: Serving, bundle: Bundle) -> dict[str, float]:
    """Return by id what a bundle has predicted in the output topic."""
    found = [json.loads(message.value()) for message in serving.records(serving.output)]
    return {one["id"]: one["output"]["value"] for one in found if one["bundle"] == bundle.id}


def check_fold(serving: Serving, folds: tuple[Bundle, Bundle], seams: Seams) -> None:
    """Compare each of the child's predictions with the fold written here."""
    wanted, got = folded(serving, folds, seams), predicted(serving, folds[1])
    assert wanted.keys() == got.keys()
    assert all(abs(wanted[one] - got[one]) < 1e-4 for one in wanted)


def seams_of(serving: Serving) -> Seams:
    """Return from which offset on each partition's fold is the child's, as Redis says."""
    found: Mapping[int, Any] = {
        number: serving.redis.hget(serving.hash_name(number), "#I")
        for number in range(serving.partitions)
    }
    return {number: int(text.decode().rpartition("@")[2]) for number, text in found.items()}


def refused_without_parent(serving: Serving, parent: Bundle, **options: Any) -> None:
    """Expect keyfold-verify to judge nothing."""
    with pytest.raises(Crash, match="nothing from there on can be judged without it") as refused:
        serving.verify(**options)
    assert str(refused.value).endswith(f"--parent bundles/{parent.id}")


def shifted(serving: Serving, by: int, **options: Any) -> Findings:
    """Verify with seams that Redis tells wrong by so many offsets; then as it was."""
    names = [serving.hash_name(number) for number in range(serving.partitions)]
    before: list[Any] = [serving.redis.hget(name, "#I") for name in names]
    for name, text in zip(names, before, strict=True):
        moved = re.sub(rb"@(\d+)$", lambda m: b"@%d" % (int(m[1]) + by), text)
        serving.redis.hset(name, "#I", moved)
    findings = serving.verify(**options)
    for name, text in zip(names, before, strict=True):
        serving.redis.hset(name, "#I", text)
    return findings


def files(old: Serving, new: Serving) -> list[str]:
    """Write the settings of two groups on the same topics."""
    paths = []
    for name, one, more in (("old", old, ""), ("new", new, 'emit_from = "handover"\n')):
        path = old.folder / f"{name}.toml"
        path.write_text(
            f"[kafka]\nbrokers = {json.dumps(one.kafka.address)}\n"
            f"input = {json.dumps(one.input)}\noutput = {json.dumps(one.output)}\n"
            f"group = {json.dumps(one.group)}\n"
            f"[worker]\nbundle = {json.dumps(str(one.bundle.path))}\n{more}"
            f"[redis]\nurl = {json.dumps(one.valkey.url)}\n"
        )
        paths.append(str(path))
    return paths


@pytest.mark.parametrize("outputs", ["at-least-once", "exactly-once"])
def test_new_group_goes_on_from_the_old_one_s_states_and_takes_the_outputs(
    serving: Serving, child: Bundle, outputs: str
) -> None:
    old, new = serving, copy.copy(serving)
    new.group, new.bundle = f"{old.group}-new", child
    folds = old.bundle, child
    both = files(old, new)
    serving.send(make_events(1000, 20))
    with old.running(worker__outputs=outputs) as first:
        old.wait_saved([first])
        assert state.main(["inherit", *both, "--yes"]) == 0  # while the old worker serves
        seams = seams_of(new)
        assert sum(seams.values()) == 1000
        serving.send(make_events(20, 20, seed=1, begin=1000))
        new._workers += 100  # its logs have names of their own
        second = new.worker(worker__emit_from="handover", worker__outputs=outputs)
        for one in (old, new):
            one.wait_saved([first, second])
        assert len(predicted(serving, child)) == 0, "it waits for the outputs"
        second.kill()  # its successor goes on at W like any worker
        with new.running(worker__emit_from="handover", worker__outputs=outputs) as second:
            assert state.main(["handover", *both, "--yes"]) == 0
            serving.send(make_events(480, 20, seed=2, begin=1020))
            for one in (old, new):
                one.wait_saved([first, second])
    wanted, got = folded(serving, folds, seams), predicted(serving, child)
    assert len(got) == 480
    assert all(abs(wanted[one] - got[one]) < 1e-4 for one in got)
    parents = (old.bundle.path,)
    once = outputs == "exactly-once"
    findings = new.verify_clean(1500, parents=parents, exactly_once=once)
    assert (findings.inherited, findings.others, findings.states) == (2, 1020, 20)
    assert old.verify_clean(1500, exactly_once=once).inherited == 0
    refused_without_parent(new, old.bundle)
    assert shifted(new, -20, parents=parents).violations
    assert verify_command.main([both[1]]) == 2
    assert verify_command.main([both[1], "--parent", str(parents[0])]) == 0


def test_what_is_out_beyond_the_inherited_states_stays_the_old_group_s(
    serving: Serving, child: Bundle
) -> None:
    """Why a new group inherits with exactly-once outputs where adopt --inherit must not."""
    old, new = serving, copy.copy(serving)
    new.group, new.bundle = f"{old.group}-new", child
    new._workers += 100  # its logs have names of their own
    once, both = {"worker__outputs": "exactly-once"}, files(old, new)
    parents = (old.bundle.path,)
    serving.send(make_events(300, 20))
    with old.running(**once) as first:
        old.wait_saved([first])
    with old.running(**once, worker__save_every_ms="60000") as first:
        serving.send(make_events(300, 20, seed=1, begin=300))
        old.wait_until(lambda: len(predicted(old, old.bundle)) == 600, "predictions", [first])
        assert state.main(["inherit", *both, "--yes"]) == 0
        assert sum(seams_of(new).values()) == 300, "300 more are out and not saved"
        with new.running(worker__emit_from="handover", **once) as second:
            assert state.main(["handover", *both, "--yes"]) == 0
            serving.send(make_events(200, 20, seed=2, begin=600))
            old.wait_until(lambda: len(predicted(old, child)) == 200, "outputs", [first, second])
    assert len(predicted(old, old.bundle)) == 600
    findings = new.verify_clean(800, parents=parents, exactly_once=True)
    assert (findings.inherited, findings.others) == (2, 600)
    old.verify_clean(800, exactly_once=True)


@pytest.mark.parametrize("emit", [Emit(), Emit("on_change", step=0.2)])
def test_group_goes_on_with_a_fine_tune_where_it_is(
    serving: Serving, child: Bundle, tmp_path: Path, emit: Emit
) -> None:
    parent, settings = serving.bundle, dict[str, Any]()
    flags: list[str] = []
    if emit.what != "all":
        settings |= {"emit__what": emit.what, "emit__step": str(emit.step)}
        flags = ["--set=emit.what=on_change", "--set=emit.step=0.2"]
    serving.send([*make_events(1000, 20), (b"key-1", b"no event")])
    with serving.running(**settings) as worker:
        serving.wait_saved([worker])
    serving.bundle = child
    with serving.running(**settings) as worker:
        serving.wait_until(
            lambda: worker.log.read_text().count("the state belongs to another bundle") >= 2,
            "HALTs", [worker],
        )  # fmt: skip
        assert serving.state("adopt", "--all", "--yes", *flags) == 2
        asked = ("--inherit", str(parent.path), *flags)
        assert serving.state("adopt", "--all", "--yes", *asked) == 0
        seams = seams_of(serving)
        serving.send([*make_events(500, 20, seed=1, begin=1000), (b"key-1", b"no event")])
        serving.wait_saved([worker])
        assert serving.state("list", *flags) == 0
    if emit.what == "all":
        check_fold(serving, (parent, child), seams)
    options = {"emit": emit}
    parents = (parent.path,)
    findings = serving.verify_clean(1500, parents=parents, **options)
    assert (findings.inherited, findings.rejects, findings.dead_letters) == (2, 2, 2)
    assert findings.predictions == 1500 or emit.what != "all"
    refused_without_parent(serving, parent, **options)
    stranger = fine_tuned(tmp_path / "stranger", parent, seed=9)
    with pytest.raises(Crash, match=f"has inherited .{parent.id}., got {stranger.id}: leave it"):
        serving.verify(parents=(parent.path, stranger.path), **options)
    assert shifted(serving, 20, parents=parents, **options).violations
    assert shifted(serving, -20, parents=parents, **options).violations


def test_states_of_an_exactly_once_worker_are_refused_whatever_the_settings_say(
    serving: Serving, child: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    serving.send(make_events(200, 20))
    with serving.running(worker__outputs="exactly-once") as worker:
        serving.wait_saved([worker])
    parent, serving.bundle = serving.bundle, child
    asked = ("adopt", "--all", "--yes", "--inherit", str(parent.path))
    assert serving.state(*asked) == 2
    assert "exactly-once (the states' last owner)" in capsys.readouterr().err
    assert serving.state(*asked, "--set=worker.outputs=exactly-once") == 2
    assert "exactly-once (worker.outputs)" in capsys.readouterr().err


def test_without_redis_predictions_of_a_fine_tune_are_not_called_wrong(
    serving: Serving, child: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    serving.send(make_events(300, 20))
    with serving.running() as worker:
        serving.wait_saved([worker])
    findings = serving.verify_clean(300)
    assert findings.states
    said = r"has inherited .none., got .*: leave it out"
    with pytest.raises(Crash, match=said):
        serving.verify(parents=(child.path,))
    parent, serving.bundle = serving.bundle, child
    assert serving.state("adopt", "--all", "--yes", "--inherit", str(parent.path)) == 0
    with serving.running() as worker:
        serving.send(make_events(300, 20, seed=1, begin=300))
        serving.wait_saved([worker])
    said = r"whether it went on with its parent's states only Redis knows: verify without --no-st"
    settings = files(serving, serving)[0]
    with pytest.raises(Crash, match=said):
        verify(
            Target(
                child.path, serving.kafka.address, serving.input, serving.output,
                serving.dead_letter, serving.group,
            )
        )  # fmt: skip
    assert verify_command.main([settings, "--no-state"]) == 2
    asked = [settings, "--no-state", "--parent", str(parent.path)]
    capsys.readouterr()
    assert verify_command.main(asked) == 2
    assert "which events it folded only Redis knows" in capsys.readouterr().err
    assert verify_command.main([settings, "--parent", str(parent.path)]) == 0
