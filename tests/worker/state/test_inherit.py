"""States of another bundle: refused by default, inherited by a fine-tune of the same parent only.

keyfold-state adopt --inherit (where they are) and inherit (a new group), on a real Kafka and Valkey
with states planted by hand. With workers: test_inherit_serving.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fine_tune import fine_tuned, named
from state_case import StateCase
from tiny_bundle import make_tiny_bundle

from keyfold.export.bundle import Bundle
from keyfold.worker.handover.ownership import Handovers
from keyfold.worker.handover.store import HandoverAdmin
from keyfold.worker.state import cli as state
from keyfold.worker.state import inherit as inheriting
from keyfold.worker.state import inherited
from keyfold.worker.state.store_admin import Admin


class Tuned:
    """A planted group whose bundle is a parent, and a child of it."""

    def __init__(self, case: StateCase, folder: Path) -> None:
        self.case, self.parent = case, case.bundle
        self.child = fine_tuned(folder / "child", case.bundle)
        self.folder, self.newcomer = folder, f"{case.group}-new"

    def adopt(self, *arguments: str, bundle: Bundle | None = None, **settings: str) -> int:
        """Run keyfold-state adopt with the child's settings."""
        served = str((bundle or self.child).path)
        return self.case.run("adopt", "--yes", *arguments, worker__bundle=served, **settings)

    def inherit(self, *, new: dict[str, Any] | None = None, **old: Any) -> int:
        """Run keyfold-state inherit; `new` and `old` are section__name = value."""
        taken = {
            "kafka__group": self.newcomer, "worker__bundle": str(self.child.path),
            "worker__emit_from": "handover", **(new or {}),
        }  # fmt: skip
        files = [self.file("old", **old), self.file("new", **taken)]
        return state.main(["inherit", *files, "--yes"])

    def file(self, name: str, **settings: Any) -> str:
        """Write a settings file."""
        case = self.case
        wanted = {
            "kafka__brokers": case.kafka.address, "kafka__input": case.topic,
            "kafka__output": "out", "kafka__group": case.group, "redis__url": case.valkey.url,
            "worker__bundle": str(case.bundle.path), **settings,
        }  # fmt: skip
        path = self.folder / f"{name}.toml"
        path.write_text(
            "\n".join(f"{k.replace('__', '.')} = {json.dumps(v)}" for k, v in wanted.items())
        )
        return str(path)

    def new_meta(self, partition: int = 0) -> dict[str, str]:
        """Return what the new group has of a partition."""
        name = f"{{{self.newcomer}:{self.case.topic}:{partition}}}"
        found: Any = self.case.redis.hgetall(name)
        return {f.decode(): v.decode() for f, v in found.items() if f.startswith(b"#")}

    def new_states(self, partition: int = 0) -> dict[bytes, bytes]:
        """Return the new group's states."""
        name = f"{{{self.newcomer}:{self.case.topic}:{partition}}}"
        found: Any = self.case.redis.hgetall(name)
        return {f[1:]: v for f, v in found.items() if f.startswith(b":")}

    @property
    def records(self) -> HandoverAdmin:
        return HandoverAdmin(self.case.redis, self.case.topic, "out")


@pytest.fixture
def tuned(case: StateCase, tmp_path: Path) -> Tuned:
    return Tuned(case, tmp_path)


# -- adopt -----------------------------------------------------------------------------------------


def test_another_bundle_s_states_are_refused_and_the_flag_is_named(
    tuned: Tuned, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned.case.plant()
    before = tuned.case.meta()
    assert tuned.adopt("--partition", "0") == 2
    parent = tuned.parent.id
    assert capsys.readouterr().err == (
        f"keyfold-state: partition 0: expected states of bundle {tuned.child.id}, got those of "
        f"{parent}: another bundle's are warmed up anew by replay (keyfold-state rebuild, or a new "
        f"group); only a fine-tune of it may go on with them: --inherit bundles/{parent}\n"
    )
    assert tuned.case.meta() == before


def test_states_kept_under_other_emit_settings_are_refused(
    tuned: Tuned, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned.case.plant(M=f"{tuned.parent.id}+0123abcd")
    assert tuned.case.run("adopt", "--partition", "0", "--yes") == 2
    assert "they were kept under other [emit] settings (behind the +)" in capsys.readouterr().err


def test_fine_tune_goes_on_with_its_parent_s_states_where_they_are(
    tuned: Tuned, capsys: pytest.CaptureFixture[str]
) -> None:
    case = tuned.case
    case.plant(watermark=10, keys=3, F="4", R="1", G="1-2")
    before, states = case.meta(), case.stored()
    assert tuned.adopt("--partition", "0", "--inherit", str(tuned.parent.path)) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        f"partition 0: bundle {tuned.child.id} goes on at offset 10 with 3 key states of its "
        f"parent {tuned.parent.id}\n"
    )
    assert "keyfold-verify checks them with --parent and the parent's bundle: keep it." in out
    assert case.meta() == before | {
        "#E": "8", "#O": "keyfold-state", "#M": tuned.child.id, "#K": "4",
        "#I": f"{tuned.parent.id}@10",
    }  # fmt: skip
    assert case.stored() == states
    bundle = {"worker__bundle": str(tuned.child.path)}
    assert case.run("list", **bundle) == 0
    listed = " ".join(capsys.readouterr().out.split())
    assert f"inherited: folded by bundle {tuned.parent.id} below offset 10" in listed
    assert case.run("inspect", "--partition", "0", **bundle) == 0
    shown = capsys.readouterr().out
    assert "3 key states" in shown
    assert f"  #I {tuned.parent.id}@10\n" in shown


def test_a_fine_tune_of_a_fine_tune_remembers_both(tuned: Tuned, tmp_path: Path) -> None:
    case = tuned.case
    case.plant(watermark=10)
    assert tuned.adopt("--partition", "0", "--inherit", str(tuned.parent.path)) == 0
    third = fine_tuned(tmp_path / "third", tuned.child, seed=5)
    case.redis.hset(case.name(), "#W", "11")
    path = str(tuned.child.path)
    assert tuned.adopt("--partition", "0", "--inherit", path, bundle=third) == 0
    assert case.meta()["#I"] == f"{tuned.parent.id}@10,{tuned.child.id}@11"
    assert case.meta()["#K"] == "4"


def test_a_bundle_that_names_no_parent_or_another_one_inherits_nothing(
    tuned: Tuned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned.case.plant()
    parent, before = make_tiny_bundle(tmp_path), tuned.case.meta()
    assert parent.id == tuned.parent.id
    stranger = make_tiny_bundle(tmp_path / "stranger", seed=8)
    asked = ("--partition", "0", "--inherit", str(parent.path))
    assert tuned.adopt(*asked, bundle=stranger) == 2
    assert capsys.readouterr().err == (
        f"keyfold-state: bundle {stranger.id}: expected one that names {parent.id} as its parent "
        "(keyfold-train --parent), got one that names none\n"
    )
    other = named(stranger, {"run": "r", "weights_sha256": "ab" * 32})
    assert tuned.adopt(*asked, bundle=other) == 2
    assert f"{parent.id} (made before bundles named their weights)" in capsys.readouterr().err
    named(parent, None, weights_sha256="cd" * 32)
    assert tuned.adopt(*asked, bundle=other) == 2
    assert capsys.readouterr().err == (
        f"keyfold-state: bundle {other.id}: expected one that names {parent.id} (weights "
        "cdcdcdcdcdcd) as its parent, got one that names weights abababababab (run r)\n"
    )
    assert tuned.case.meta() == before
    named(stranger, {"run": "r", "weights_sha256": "cd" * 32})
    assert tuned.adopt(*asked, bundle=stranger) == 0


def test_states_of_a_third_bundle_are_not_inherited(
    tuned: Tuned, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned.case.plant(M="another")
    assert tuned.adopt("--partition", "0", "--inherit", str(tuned.parent.path)) == 2
    assert (
        f"partition 0: expected states of bundle {tuned.parent.id}, got those of another\n"
    ) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"hidden": 5}, "states: expected what its parent"),
        ({"features": ("a",)}, "features"),
        ({"kind": "classification"}, "outputs.kind: expected what its parent"),
        ({"reset_after_ms": 5000}, "events.reset_after_ms: expected what its parent"),
    ],
)
def test_a_child_that_keeps_other_states_is_refused(
    tuned: Tuned,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    shape: dict[str, Any],
    said: str,
) -> None:
    tuned.case.plant()
    child = fine_tuned(tmp_path / "other", tuned.parent, **shape)
    assert tuned.adopt("--all", "--inherit", str(tuned.parent.path), bundle=child) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert err.endswith("it cannot go on with the parent's states\n")


WAY = (
    "what is out may move beyond the states at any moment, and stays the parent's; begin a new "
    "group with them: keyfold-state inherit OLD.toml NEW.toml, then handover OLD.toml NEW.toml\n"
)


def test_exactly_once_outputs_are_inherited_in_a_new_group_only(
    tuned: Tuned, capsys: pytest.CaptureFixture[str]
) -> None:
    """All is saved as far as a look can tell; a transaction that ends after it changes that."""
    case, asked = tuned.case, ("--partition", "0", "--inherit", str(tuned.parent.path))
    case.plant(watermark=10)
    case.commit(10, "keyfold:r0")
    before = case.meta()
    assert tuned.adopt(*asked, worker__outputs="exactly-once") == 2
    assert capsys.readouterr().err == (
        "keyfold-state: --inherit: expected at-least-once outputs, got exactly-once "
        f"(worker.outputs): {WAY}"
    )
    assert case.meta() == before
    # Nor do other settings than those of the worker that had the states help.
    case.plant(watermark=10, C="10")
    before = case.meta()
    assert tuned.adopt(*asked) == 2
    assert capsys.readouterr().err.endswith(f"exactly-once (the states' last owner): {WAY}")
    assert case.meta() == before
    case.redis.hset(case.name(), "#C", "")  # as the first at-least-once owner leaves it
    assert tuned.adopt(*asked) == 0


@pytest.mark.usefixtures("real_kafka")  # Tansu forgets a group offset's metadata
def test_predictions_beyond_the_state_are_not_predicted_again_by_another_bundle(
    tuned: Tuned, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned.case.plant(watermark=10, R="1")
    tuned.case.commit(12, "keyfold:r1")
    assert tuned.adopt("--partition", "0", "--inherit", str(tuned.parent.path)) == 2
    assert (
        "partition 0: expected all that is out to be saved, got predictions up to offset 11 and a "
        "state up to 10: run the parent's worker until it has caught up, stop it (SIGTERM)"
    ) in capsys.readouterr().err


def test_states_that_moved_since_they_were_looked_at_are_not_inherited(tuned: Tuned) -> None:
    case = tuned.case
    case.plant(watermark=10)
    with Admin.connect(case.valkey.url, 5.0, case.group) as admin:
        held = admin.look(case.topic, 0)
        assert held is not None
        case.redis.hset(case.name(), "#W", "11")
        before = case.meta()
        assert not inherited.go_on(admin, case.topic, 0, held, tuned.child.id)
        assert case.meta() == before


def test_what_is_inherited_survives_a_snapshot_and_ends_with_a_rebuild(
    tuned: Tuned, tmp_path: Path
) -> None:
    case, folder = tuned.case, tmp_path / "snapshots"
    case.plant(watermark=10, keys=3)
    bundle = {"worker__bundle": str(tuned.child.path)}
    assert tuned.adopt("--partition", "0", "--inherit", str(tuned.parent.path)) == 0
    inherits = case.meta()
    assert case.run("snapshot", str(folder), "--partition", "0", **bundle) == 0
    assert case.run("rebuild", "--partition", "0", "--yes", **bundle) == 0
    assert "#I" not in case.meta()
    assert case.meta()["#K"] == "0"
    (file,) = folder.iterdir()
    assert case.run("restore", str(file), "--yes", **bundle) == 0
    assert case.meta()["#I"] == inherits["#I"]
    assert case.meta()["#K"] == "4"
    assert case.run("list", **bundle) == 0


# -- inherit ---------------------------------------------------------------------------------------


def test_new_group_begins_with_the_states_and_waits_for_the_outputs(
    tuned: Tuned, capsys: pytest.CaptureFixture[str]
) -> None:
    case = tuned.case
    case.plant(0, watermark=10, keys=3, F="4", R="1", C="9", G="1-2")
    case.plant(1, watermark=0, keys=0)
    case.redis.hset(f"{{{case.group}:{case.topic}}}", mapping={"#N": "2"})
    before = case.meta(), case.stored()
    assert tuned.inherit() == 0
    out = capsys.readouterr().out
    assert (
        f"partition 0: group '{tuned.newcomer}' (bundle {tuned.child.id}) begins at offset 10 or "
        f"soon after it with 3 key states of group '{case.group}' (its parent {tuned.parent.id})\n"
    ) in out
    assert f"It emits nothing until keyfold-state handover; group '{case.group}' goes on" in out
    assert (case.meta(), case.stored()) == before, "the old group's fence stays untouched"
    assert tuned.new_meta() == before[0] | {
        "#E": "1", "#O": "keyfold-state", "#M": tuned.child.id, "#F": "0", "#C": "", "#R": "0",
        "#K": "4", "#I": f"{tuned.parent.id}@10",
    }  # fmt: skip
    assert tuned.new_states() == before[1]
    assert tuned.new_meta(1)["#K"] == "1"
    assert case.redis.hget(f"{{{tuned.newcomer}:{case.topic}}}", "#N") == b"2"
    for partition in (0, 1):
        assert tuned.records.read(partition).waiting == (tuned.newcomer,)


def test_the_group_waits_for_the_outputs_before_it_has_a_state(
    tuned: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a worker that starts in between emits what is the old group's."""
    for partition in (0, 1):
        tuned.case.plant(partition, watermark=0)
    begin, waited = inherited.begin, []

    def begin_seen(*arguments: Any) -> bool:
        waited.append(tuned.records.read(arguments[1][1]).waiting)
        return begin(*arguments)

    monkeypatch.setattr(inheriting, "begin", begin_seen)
    assert tuned.inherit() == 0
    assert waited == [(tuned.newcomer,)] * 2


def test_new_group_with_an_output_topic_of_its_own_emits_from_there_on(
    tuned: Tuned, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for partition in (0, 1):
        tuned.case.plant(partition, watermark=0 if partition else 10)
    new = {"kafka__output": "other", "worker__emit_from": ""}
    begin = inherited.begin
    monkeypatch.setattr(inheriting, "begin", lambda *arguments: False)
    assert tuned.inherit(new=new) == 2
    assert "waits for the outputs" not in capsys.readouterr().err
    monkeypatch.setattr(inheriting, "begin", begin)
    assert tuned.inherit(new=new) == 0
    assert tuned.new_meta()["#F"] == "10"
    assert tuned.records.read(0) == Handovers()


def test_files_that_do_not_belong_together_are_refused(
    tuned: Tuned, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned.case.plant()
    for new, said in (
        ({"kafka__input": "x"}, "kafka.input: expected the same in both files, got 'x' in the"),
        ({"kafka__group": tuned.case.group}, "kafka.group: expected two groups"),
        ({"worker__emit_from": "now"}, "worker.emit_from: expected 'handover', or none with an"),
        ({"worker__emit_from": ""}, "got none: both groups would emit there"),
        ({"worker__bundle": str(tuned.parent.path)}, "got one that names none"),
    ):
        assert tuned.inherit(new=new) == 2
        assert said in capsys.readouterr().err
    assert tuned.new_meta() == {}


def test_a_group_that_has_begun_is_not_replaced(
    tuned: Tuned, capsys: pytest.CaptureFixture[str]
) -> None:
    case = tuned.case
    for partition in (0, 1):
        case.plant(partition, watermark=0)
    case.group, old = tuned.newcomer, case.group
    case.plant(0, watermark=5, M=tuned.child.id)
    case.group = old
    before = tuned.new_meta()
    assert tuned.inherit() == 2
    assert (
        f"partition 0: expected group '{tuned.newcomer}' to be new, got a state of it: give the "
        "new bundle a kafka.group of its own"
    ) in capsys.readouterr().err
    assert tuned.new_meta() == before
    case.redis.delete(f"{{{tuned.newcomer}:{case.topic}:0}}")
    case.group = tuned.newcomer
    case.commit(5)
    case.group = old
    assert tuned.inherit() == 2
    assert "got a group offset of it" in capsys.readouterr().err


def test_a_state_that_came_since_the_look_is_not_replaced(
    tuned: Tuned, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = tuned.case
    for partition in (0, 1):
        case.plant(partition, watermark=0)
    name, begin = f"{{{tuned.newcomer}:{case.topic}:0}}", inherited.begin

    def begin_late(*arguments: Any) -> bool:
        case.redis.hset(name, "#W", "0")  # a worker of the group has started
        return begin(*arguments)

    monkeypatch.setattr(inheriting, "begin", begin_late)
    assert tuned.inherit() == 2
    err = capsys.readouterr().err
    assert "got a state of it since this command began" in err
    assert err.endswith(
        f"(group '{tuned.newcomer}' stays noted as one that waits for the outputs: group "
        f"'{case.group}' goes on as it is, and this command may be run again)\n"
    )
    assert err.count("\n") == 1
    assert tuned.new_meta() == {"#W": "0"}
    noted = tuned.records.read(0)
    assert noted.waiting == (tuned.newcomer,)
    assert noted.emits(case.group, 0), "as the line says"
    case.redis.delete(name)
    monkeypatch.setattr(inheriting, "begin", begin)
    assert tuned.inherit() == 0, "as the line says"
    assert tuned.records.read(0) == noted
    assert not list(case.redis.scan_iter(match=f"*{tuned.newcomer}*inherit*"))


def test_a_killed_command_is_run_again(tuned: Tuned, capsys: pytest.CaptureFixture[str]) -> None:
    case = tuned.case
    for partition in (0, 1):
        case.plant(partition, watermark=0)
    assert tuned.inherit() == 0
    case.redis.delete(f"{{{tuned.newcomer}:{case.topic}:1}}")
    first = tuned.new_meta(0)
    case.redis.hset(case.name(0), "#W", "3")  # its worker goes on
    capsys.readouterr()
    assert tuned.inherit() == 0
    assert "has inherited some partitions already: they stay as they are" in capsys.readouterr().out
    assert tuned.new_meta(0) == first
    assert tuned.new_meta(1)["#I"] == f"{tuned.parent.id}@0"


def test_what_a_worker_would_halt_on_is_not_handed_on(
    tuned: Tuned, capsys: pytest.CaptureFixture[str]
) -> None:
    case = tuned.case
    case.plant(1, watermark=0)
    for meta, said in (
        ({"K": "4"}, "expected 4 key states, got 3"),
        ({"L": "9:1:2"}, f"group '{case.group}': the record at offset 9 is not the one last"),
        ({"M": "another"}, f"expected states of bundle {tuned.parent.id}, got those of another"),
        ({"M": f"{tuned.parent.id}+0123abcd"}, "expected the [emit] settings under which the"),
        ({"W": "20"}, "the state ends at offset 20, the log goes from 0 to 12"),
    ):
        case.plant(0, 10, 3, **meta)
        assert tuned.inherit() == 2
        assert f"partition 0: {said}" in capsys.readouterr().err
    assert tuned.new_meta() == {}


def test_a_group_that_had_the_outputs_before_is_refused(
    tuned: Tuned, capsys: pytest.CaptureFixture[str]
) -> None:
    case, group = tuned.case, tuned.newcomer
    for partition in (0, 1):
        case.plant(partition, watermark=0)
    proposed = Handovers().wait("other").propose(group, "other", 3)
    seam = proposed.ready(group).ready("other").decide(proposed.proposal.number)  # type: ignore[union-attr]
    assert seam is not None
    empty = tuned.records.read(0)
    assert tuned.records.swap(0, empty, seam) == seam
    assert tuned.inherit() == 2
    assert f"expected a group that never had the outputs, got '{group}'" in capsys.readouterr().err
    assert tuned.new_meta() == {}
