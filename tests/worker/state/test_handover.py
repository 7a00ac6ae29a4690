"""keyfold-state handover without workers: what it refuses, withdraws and says, and what list shows.

With workers: tests/worker/handover/test_serving.py. What is decided:
tests/worker/handover/test_ownership.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from state_case import StateCase

from keyfold.worker.handover.ownership import Handovers
from keyfold.worker.handover.store import HandoverAdmin
from keyfold.worker.state import cli as state

WAITS = Handovers().wait("new")
PROPOSED = WAITS.propose("old", "new", 12)


class Files:
    """The settings files of an old and a new group, and their record."""

    def __init__(self, case: StateCase, folder: Path) -> None:
        self._case, self._folder = case, folder
        self.old, self.new = self.file("old"), self.file("new")
        self.records = HandoverAdmin(case.redis, case.topic, "out")

    def file(self, group: str, **kafka: str) -> str:
        """Write a settings file."""
        case = self._case
        kafka = {
            "brokers": case.kafka.address, "input": case.topic, "output": "out", "group": group,
            **kafka,
        }  # fmt: skip
        lines = [f"{name} = {json.dumps(value)}" for name, value in kafka.items()]
        path = self._folder / f"{group}-{len(list(self._folder.iterdir()))}.toml"
        path.write_text(
            "[kafka]\n" + "\n".join(lines) + f"\n[redis]\nurl = {json.dumps(case.valkey.url)}\n"
            f"[worker]\nbundle = {json.dumps(str(case.bundle.path))}\n"
        )
        return str(path)

    def set(self, record: Handovers, partition: int = 0) -> None:
        """Write a record."""
        assert self.records.swap(partition, self.records.read(partition), record) == record

    def run(self, *arguments: str) -> int:
        """Run keyfold-state handover."""
        return state.main(["handover", self.old, self.new, *arguments])


@pytest.fixture
def files(case: StateCase, tmp_path: Path) -> Files:
    return Files(case, tmp_path)


def handed_over(record: Handovers = PROPOSED) -> Handovers:
    assert record.proposal is not None
    after = record.ready("old").ready("new").decide(record.proposal.number)
    assert after is not None
    return after


def test_files_that_do_not_belong_together_are_refused_by_the_setting(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    for new, why in (
        (files.file("new", input="other"), "kafka.input: expected the same in both files"),
        (files.file("new", output="other"), "kafka.output: expected the same in both files"),
        (files.old, "kafka.group: expected two groups, got 'old' in both files"),
    ):
        assert state.main(["handover", files.old, new, "--yes"]) == 2
        assert why in capsys.readouterr().err


def test_group_that_does_not_wait_is_refused_and_told_how_to_begin(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    files.set(WAITS)  # of partition 0 only
    assert files.run("--yes") == 2
    assert capsys.readouterr().err == (
        "keyfold-state: partition 1: group 'new' does not wait for a handover: begin it as a new "
        "group with worker.emit_from = handover, and let its worker catch up\n"
    )


def test_third_group_that_has_the_outputs_is_named(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    for partition in (0, 1):
        third = WAITS.propose("third", "new", 1).ready("third").ready("new").decide(2)
        assert third is not None
        files.set(handed_over(third.propose("new", "old", 5)), partition)
    other = files.file("another")
    assert state.main(["handover", other, files.new, "--yes"]) == 2
    assert "expected group 'another' to have the outputs, got 'old'" in capsys.readouterr().err


def test_without_workers_it_says_who_did_not_come_and_leaves_no_proposal(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    for partition in (0, 1):
        files.set(WAITS, partition)
    assert files.run("--yes", "--timeout", "0.3") == 1
    text = capsys.readouterr().out
    assert "partition 0: at offset 12 or soon after it" in text
    assert (
        "partition 0: not handed over, nothing has changed: group 'old' and group 'new' did not "
        "come to offset 12 (does it run, has it caught up?)"
    ) in text
    for partition in (0, 1):
        record = files.records.read(partition)
        assert record.proposal is None
        assert not record.seams


def test_without_a_yes_nothing_is_proposed(
    files: Files, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for partition in (0, 1):
        files.set(WAITS, partition)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: "n")
    assert files.run() == 1
    assert "nothing was changed" in capsys.readouterr().out
    assert files.records.read(0) == WAITS


def test_what_is_handed_over_is_found_so_by_a_second_command(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    for partition in (0, 1):
        files.set(handed_over(), partition)
    assert files.run("--yes") == 0
    text = capsys.readouterr().out
    assert "partition 1: group 'new' has the outputs from 12 on already" in text
    assert text.endswith("partition 1: group 'new' from offset 12 on\ndone\n")


def test_cancel_withdraws_what_a_killed_command_has_left(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    files.set(PROPOSED)
    assert files.run("--cancel") == 0
    assert capsys.readouterr().out == "partition 0: withdrawn\npartition 1: nothing is proposed\n"
    assert files.records.read(0).proposal is None


def test_list_shows_whose_predictions_the_outputs_are(
    files: Files, case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    case.plant()
    shown = {}
    for name, record in (("waits", WAITS), ("proposed", PROPOSED), ("agreed", handed_over())):
        files.set(record)
        for group, file in (("old", files.old), ("new", files.new)):
            state.main(["list", file])
            lines = capsys.readouterr().out.splitlines()
            shown[name, group] = [
                line
                for line in lines
                if line.startswith("partition") and ("handover" in line or "outputs" in line)
            ]
    assert shown == {
        ("waits", "old"): [],
        ("waits", "new"): [
            "partition 0: emits nothing: waits for keyfold-state handover"
        ],
        ("proposed", "old"): [
            "partition 0: a handover to group 'new' at offset 12 is proposed"
        ],
        ("proposed", "new"): [
            "partition 0: emits nothing: waits for keyfold-state handover",
            "partition 0: a handover to group 'new' at offset 12 is proposed",
        ],
        ("agreed", "old"): [
            "partition 0: outputs: group 'new' from offset 12 on; this group has those about "
            "offsets 0-11"
        ],
        ("agreed", "new"): [
            "partition 0: outputs: group 'new' from offset 12 on; this group has those about "
            "offsets 12 on"
        ],
    }  # fmt: skip


def test_reset_after_the_topic_was_made_anew_keeps_who_has_the_outputs(
    files: Files, case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    case.group = "old"
    case.plant(watermark=99)  # beyond this log's end: of another one
    files.set(handed_over())
    command = ["reset", files.old, "--partition", "0", "--to", "earliest", "--yes"]
    assert state.main(command) == 0
    record = files.records.read(0)
    assert (record.emits("new", 0), record.emits("old", 0)) == (True, False)
    capsys.readouterr()
