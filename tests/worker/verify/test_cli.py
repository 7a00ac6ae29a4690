"""keyfold-verify: its report, its JSON and its command line."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from tiny_bundle import make_tiny_bundle
from verify_case import Case, make_case

from keyfold.worker.verify import cli as command


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


def test_a_redis_url_with_a_password_is_refused_as_a_flag(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command.main(["--redis", "redis://user:hunter2@h:6379/0"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "everybody on this machine can see a flag (ps); give redis.url_file" in line
    assert "hunter2" not in line


def test_an_offset_is_refused_where_redis_knows_it(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = f"--brokers=127.0.0.1:1 --input=i --output=o --bundle={case.bundle.path}".split()
    assert command.main([*flags, "--from-offset=3"]) == 2
    assert "--no-state" in capsys.readouterr().err


def report_of(case: Case) -> str:
    printed = io.StringIO()
    case.verify().show(Console(file=printed, width=200))
    return printed.getvalue()


def test_the_report_is_clean_without_reserve_only_if_everything_was_checked(case: Case) -> None:
    assert "CLEAN: every prediction and state is the offline fold\n" in report_of(case)
    case.served.meta["#F"] = "15"
    text = report_of(case)
    assert "CLEAN: every prediction and state is the offline fold, where it can be; " in text
    assert "not checked: 0 unverifiable, 5 below the emit floor, 0 before the first" in text
    assert "5 outputs are below the emit floor: not checked" in text


@pytest.mark.parametrize(
    ("settings", "flags", "expected"),
    [
        ("", [], False),
        ('outputs = "exactly-once"', [], True),
        ('outputs = "exactly-once"', ["--no-exactly-once"], False),
        ("", ["--exactly-once"], True),
    ],
)
def test_exactly_once_is_what_the_worker_s_settings_say(
    tmp_path: Path, settings: str, flags: list[str], expected: bool
) -> None:
    file = tmp_path / "worker.toml"
    file.write_text(
        '[kafka]\nbrokers = "h:1"\ninput = "i"\noutput = "o"\ngroup = "g"\n'
        f'[worker]\nbundle = "b"\n{settings}\n',
        encoding="utf-8",
    )
    arguments = command._parser().parse_args([str(file), *flags, "--require-from=7"])
    target = command._target(arguments)
    assert (target.exactly_once, target.require_from) == (expected, 7)
