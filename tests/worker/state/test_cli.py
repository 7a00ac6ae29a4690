"""keyfold-state list, inspect and its command line, on a real Kafka and Valkey.

States are planted by hand (tests/support/state_case.py): what is wrong with each is the test.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from state_case import StateCase

from keyfold.worker.state import cli as state
from keyfold.worker.state.store_admin import Admin, new_meta
from keyfold.worker.store import META


@pytest.fixture
def case(empty_case: StateCase) -> StateCase:
    return empty_case


def test_every_meta_field_of_the_layout_is_explained() -> None:
    assert META.keys() == new_meta(0, "bundle").keys()
    assert all(META.values())


# -- list ------------------------------------------------------------------------------------------


def test_list_shows_watermark_log_offset_keys_layout_and_bundle_within_80_columns(
    case: StateCase, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    case.write(12)
    case.plant(0, watermark=10, keys=3)
    case.commit(9)
    assert case.run("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"group {case.group}, topic {case.topic}, bundle {case.bundle.id}"
    row = next(line for line in lines if line.lstrip().startswith("0 "))
    assert row.split() == ["0", "10", "0-12", "9", "3", "2", case.bundle.id]
    assert max(map(len, lines[1:])) <= 80


def test_list_of_an_unused_group_says_so(
    case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    assert case.run("list") == 0
    assert f"no state of group {case.group!r} yet" in capsys.readouterr().out


def test_list_shows_emit_floor_and_lost_ranges_which_are_no_problem(
    case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    case.write(12)
    case.plant(F="11", G="2-4,6-8")
    assert case.run("list") == 0
    out = capsys.readouterr().out
    assert "partition 0: emit floor 11: nothing about offsets below it is emitted" in out
    assert "partition 0: lost to retention: 2-4,6-8; predictions that may miss them say so" in out


@pytest.mark.parametrize(
    ("meta", "problem"),
    [
        ({"V": "1"}, "expected layout 2, got 1"),
        ({"M": "another"}, "expected bundle {bundle}, got another"),
        ({"K": "4"}, "expected 4 key states, got 3"),
        ({"W": "13", "L": ""}, "the log ends at 12, below the state (topic created anew?)"),
        ({"L": "9:1:2"}, "the record at offset 9 is not the one last applied (topic created "
                         "anew?): expected 9:1:2, got {print}"),
        ({"W": "x"}, "expected every meta field, got none of #W"),
    ],
)  # fmt: skip
def test_list_names_what_would_halt_a_worker(
    case: StateCase, capsys: pytest.CaptureFixture[str], meta: dict[str, str], problem: str
) -> None:
    case.write(12)
    case.plant(0, 10, 3, **meta)
    assert case.run("list") == 1
    wanted = problem.format(bundle=case.bundle.id, print=case.prints[0][9])
    assert f"partition 0: {wanted}" in capsys.readouterr().out.splitlines()


def test_list_names_a_missing_state_behind_a_group_offset(
    case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    case.write(12)
    case.commit(9)
    assert case.run("list") == 1
    expected = "partition 0: no state in Redis, yet the group has committed offset 9"
    assert expected in capsys.readouterr().out


def test_list_names_a_missing_meta_field(
    case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    case.write(12)
    case.plant()
    case.redis.hdel(case.name(), "#S", "#G")
    assert case.run("list") == 1
    assert "expected every meta field, got none of #S, #G" in capsys.readouterr().out


@pytest.mark.usefixtures("real_kafka")  # Tansu does not delete records
def test_list_names_events_lost_to_retention(
    case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    case.write(12)
    case.plant(watermark=4)
    case.delete_records(upto=7)
    assert case.run("list") == 1
    assert "partition 0: events 4 to 6 are lost to retention" in capsys.readouterr().out


def test_list_names_another_partition_count_and_another_topic(
    case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    topic = f"{{{case.group}:{case.topic}}}"
    case.redis.hset(topic, mapping={"#N": "3", "#T": "an-old-id"})
    assert case.run("list") == 1
    out = capsys.readouterr().out
    assert (
        "partition 0: the states were folded under 3 partitions, the topic has 2: keys moved "
        "between them"
    ) in out
    if case.kafka.real:
        assert "the topic was created anew: expected topic id an-old-id, got " in out


# -- inspect ---------------------------------------------------------------------------------------


def test_inspect_shows_a_key_s_state_and_its_tensors(
    case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    case.plant(1, watermark=10, keys=3)
    assert case.run("inspect", "--key", "key-2") == 0
    assert capsys.readouterr().out.splitlines() == [
        "partition 1, watermark 10: key 'key-2'",
        "  steps            3",
        "  last offset      2",
        "  last event time  2023-11-14T22:13:20.000Z",
        "  stream time then 2023-11-14T22:13:20.500Z",
        "  gap              no",
        f"  bytes            {38 + 32}",
        "  checksum         good",
        "  tensor h [4]: min -1, max 1, RMS 0.790569",
        "  tensor c [4]: min -1, max 1, RMS 0.790569",
    ]


def test_inspect_finds_every_partition_that_holds_a_key(
    case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    case.plant(0)
    case.plant(1)
    assert case.run("inspect", "--key-b64", "a2V5LTE=") == 0
    out = capsys.readouterr().out
    assert "partition 0, watermark 10: key 'key-1'" in out
    assert "partition 1, watermark 10: key 'key-1'" in out


def test_inspect_of_a_cold_key_says_so(case: StateCase, capsys: pytest.CaptureFixture[str]) -> None:
    case.plant()
    assert case.run("inspect", "--key", "nobody") == 1
    expected = f"no partition of {case.topic} holds a state of key 'nobody': it is cold\n"
    assert capsys.readouterr().out == expected


def test_inspect_names_what_is_wrong_with_a_state(
    case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    case.plant(watermark=1, keys=3)
    states = case.stored()
    case.redis.hset(case.name(), ":key-0", states[b"key-1"])
    case.redis.hset(case.name(), ":key-2", states[b"key-2"][:50])
    assert case.run("inspect", "--key", "key-0") == 1
    out = capsys.readouterr().out
    assert "  checksum         bad" in out
    assert "  the checksum does not fit: a damaged state, or another key's" in out
    assert "  expected events below watermark 1, got offset 1" in out
    assert case.run("inspect", "--key", "key-2") == 1
    assert "  expected 70 bytes, got 50" in capsys.readouterr().out


def test_inspect_explains_a_partition_s_meta_fields(
    case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    case.plant()
    assert case.run("inspect", "--partition", "0") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"partition 0: {case.name()}, 3 key states"
    assert lines[1:3] == [
        "  #W 10",
        "     watermark: the next offset to apply; the states are the fold below it",
    ]
    assert "  #S 1700000000000 (2023-11-14T22:13:20.000Z)" in lines
    assert "  #G none" in lines
    assert len(lines) == 1 + 2 * 13
    assert case.run("inspect", "--partition", "1") == 1
    assert f"partition 1: Redis holds no {case.name(1)}" in capsys.readouterr().out
    assert case.run("inspect", "--partition", "2") == 2
    assert "--partition: expected 0 to 1, got 2" in capsys.readouterr().err


def test_a_key_that_is_no_base64_is_named(
    case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    assert case.run("inspect", "--key-b64", "%") == 2
    assert "--key-b64: expected base64, got '%'" in capsys.readouterr().err


# -- the command line ------------------------------------------------------------------------------


def test_without_redis_the_answer_is_one_line_without_the_password(
    case: StateCase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "password"
    file.write_text("secret")
    login = {"redis__username": "me", "redis__password_file": str(file)}
    assert case.run("list", redis__url="redis://127.0.0.1:1/0", **login) == 2
    err = capsys.readouterr().err
    assert err.startswith("keyfold-state: Redis at redis://127.0.0.1:1/0: ")
    assert "secret" not in err
    assert err.count("\n") == 1


def test_without_a_terminal_a_command_that_changes_something_asks_for_yes(
    case: StateCase, capsys: pytest.CaptureFixture[str]
) -> None:
    case.write(12)
    case.plant()
    before = case.meta()
    assert case.run("reset", "--all", "--to", "earliest") == 2
    assert "expected --yes, or a terminal to ask at" in capsys.readouterr().err
    assert case.meta() == before


@pytest.mark.parametrize("command", ["reset --to earliest", "rebuild", "adopt"])
def test_partitions_must_be_named(
    case: StateCase, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    with pytest.raises(SystemExit):
        case.run(*command.split())
    assert "one of the arguments --partition --all is required" in capsys.readouterr().err
    assert case.run(*command.split(), "--partition", "5", "--yes") == 2
    assert "--partition: expected 0 to 1, or --all; got [5]" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["restore", "worker.toml"], ["snapshot", "worker.toml"]])
def test_a_settings_file_alone_is_no_file_or_folder(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert state.main(arguments) == 2
    assert "expected [worker.toml] " in capsys.readouterr().err


def test_settings_come_from_the_worker_s_file(
    case: StateCase, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "worker.toml"
    file.write_text(
        f'[kafka]\nbrokers = "{case.kafka.address}"\ninput = "{case.topic}"\noutput = "out"\n'
        f'group = "{case.group}"\n[redis]\nurl = "{case.valkey.url}"\n'
        f'[worker]\nbundle = "{case.bundle.path}"\n'
    )
    case.plant()
    assert state.main(["inspect", str(file), "--partition", "0"]) == 0
    assert state.main(["snapshot", str(file), str(tmp_path / "copies")]) == 0
    (copy,) = (tmp_path / "copies").iterdir()
    case.redis.delete(case.name())
    case.write(12)
    assert state.main(["restore", str(file), str(copy), "--yes"]) == 0
    assert len(case.stored()) == 3
    capsys.readouterr()


def test_looking_makes_nothing_in_redis(case: StateCase) -> None:
    with Admin.connect(case.valkey.url, 5.0, case.group) as admin:
        assert admin.look(case.topic, 0) is None
        assert admin.topic(case.topic) is None
    assert case.names() == set()
