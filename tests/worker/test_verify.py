"""keyfold-verify: its report, its JSON and its command line."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from tiny_bundle import make_tiny_bundle
from verify_case import Case, make_case

from keyfold.worker import verify as command


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return make_case(make_tiny_bundle(tmp_path))


def test_the_report_names_each_violation_and_its_first_examples(case: Case) -> None:
    case.served.outputs.append(case.served.outputs[3])
    for offset in (20, 21, 22, 23):
        case.change(offset, steps=99)
    printed = io.StringIO()
    case.verify(keep=2).show(Console(file=printed, width=200))
    text = printed.getvalue()
    assert "NOT CLEAN: 4 violations" in text
    assert text.count("wrong output: in:2:2") == 2
    assert "at-least-once: allowed" in text
    assert "39 events, 1 reject, 0 resets; 40 predictions, 1 dead letter, 4 states" in text


def test_the_json_counts_missing_and_extra_states_as_wrong_ones(case: Case) -> None:
    case.served.states[b"nobody"] = case.served.states.pop(b"k1")
    data = json.loads(json.dumps(case.verify().to_json()))
    assert (data["wrong_states"], data["missing_states"], data["extra_states"]) == (2, 1, 1)
    assert (data["clean"], data["violations"], data["lost"], data["conflicts"]) == (False, 2, 0, 0)


def test_a_missing_setting_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--brokers", "127.0.0.1:1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("keyfold-verify: ")
    assert "kafka.input is required" in error
    assert error.count("\n") == 1


def test_an_offset_is_refused_where_redis_knows_it(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = f"--brokers=127.0.0.1:1 --input=i --output=o --bundle={case.bundle.path}".split()
    assert command.main([*flags, "--from-offset=3"]) == 2
    assert "--no-state" in capsys.readouterr().err
