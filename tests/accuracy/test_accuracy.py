"""The harness of `make accuracy`: what is run again, what the table says, how tasks judge."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accuracy import cmapss, fsdd, japanese_vowels, one_run, smap
from accuracy.__main__ import main
from accuracy.ledger import Ledger, mean
from accuracy.one_run import Place, read_events, sources, trained_run
from accuracy.table import table
from accuracy.task import Asked, Task

RESULT = {"offline": {"rmse": 12.5, "raw": 14.0}, "streamed": {"rmse": 12.5}, "violations": 0}


def task(**changes: Any) -> Task:
    return Task(
        **{
            "name": "engines",
            "title": "Engines, RMSE",
            "source": "engines",
            "config": "cmapss_fd001",
            "prepare": lambda source, folder: None,
            "judge": cmapss.judge,
            "main": "rmse",
            "asked": (Asked("rmse", 13.0, is_least=False),),
            "published": {"Zheng 2017": {"rmse": 16.14}},
            **changes,
        }
    )


def place(folder: Path, **changes: Any) -> Place:
    for name in ("train.jsonl", "test.jsonl"):
        (folder / name).write_text('{"key":"a","rul":1}\n', encoding="utf-8")
    return Place(task(**changes), folder)


def test_a_finished_run_is_found_again_after_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    Ledger(file).keep("engines", 2, "s1", RESULT)
    again = Ledger(file)
    assert again.find("engines", 2, "s1") == {"settings": "s1", **RESULT}
    assert again.find("engines", 1, "s1") is None
    assert again.find("others", 2, "s1") is None
    again.keep_baselines("engines", "s1", {"mean": {"rmse": 40.0}})
    assert Ledger(file).baselines("engines", "s1") == {"mean": {"rmse": 40.0}}
    assert Ledger(file).baselines("engines", "s2") is None
    assert not list(tmp_path.glob("*.new"))


def test_changed_settings_ask_for_a_new_run(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "results.json")
    before = place(tmp_path).settings()
    ledger.keep("engines", 1, before, RESULT)
    assert place(tmp_path).settings() == before
    other = [place(tmp_path, config="cmapss_fd003").settings()]
    other.append(place(tmp_path, judge=japanese_vowels.judge).settings())
    (tmp_path / "train.jsonl").write_text('{"key":"a","rul":2}\n', encoding="utf-8")
    other.append(Place(task(), tmp_path).settings())
    assert len({before, *other}) == 4
    assert [ledger.find("engines", 1, settings) for settings in other] == [None] * 3


def test_a_result_depends_on_what_its_judge_and_its_run_are_made_of() -> None:
    names = {file.name for file in sources(Path(str(smap.__file__)))}
    assert names == {"smap.py", "ranges.py", "task.py"}
    names = {file.name for file in sources(Path(str(one_run.__file__)))}
    assert names == {"one_run.py", "streamed.py", "task.py"}


def test_another_way_to_predict_offline_asks_for_a_new_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = place(tmp_path).settings()
    changed = tmp_path / "offline.py"
    changed.write_bytes(one_run.OFFLINE.read_bytes() + b"\n")
    monkeypatch.setattr(one_run, "OFFLINE", changed)
    assert place(tmp_path).settings() != before


def test_what_was_trained_before_a_kill_is_not_trained_again(tmp_path: Path) -> None:
    where = place(tmp_path)
    (tmp_path / "seed-1").mkdir()
    note = {"settings": where.training_settings(), "run": str(tmp_path / "run"), "seconds": 5.0}
    (tmp_path / "seed-1" / "trained.json").write_text(json.dumps(note), encoding="utf-8")
    assert trained_run(where, 1) == (tmp_path / "run", 5.0)
    (tmp_path / "test.jsonl").write_text('{"key":"other"}\n', encoding="utf-8")
    assert trained_run(where, 1) == (tmp_path / "run", 5.0)
    (tmp_path / "train.jsonl").write_text('{"key":"other"}\n', encoding="utf-8")
    with pytest.raises(subprocess.CalledProcessError):  # by keyfold-train: no such training log
        trained_run(where, 1)


def test_a_mean_is_that_of_all_seeds_or_none() -> None:
    results = {1: {"offline": {"rmse": 12.0}}, 2: {"offline": {"rmse": 14.0}, "streamed": {}}}
    assert mean(results, "offline", "rmse") == 13.0
    assert mean(results, "streamed", "rmse") is None
    assert mean({1: {"streamed": {"rmse": 1.0}}, 2: {}}, "streamed", "rmse") is None


def test_the_table_says_what_was_asked_and_whether_it_was_reached(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "results.json")
    ledger.keep_baselines("engines", "s", {"training mean": {"rmse": 40.0}})
    ledger.keep("engines", 1, "s", RESULT)
    ledger.keep("engines", 2, "s", {"offline": {"rmse": 12.7, "raw": 15.0}})
    ledger.keep("engines", 3, "old", {**RESULT, "offline": {"rmse": 1.0, "raw": 1.0}})
    _, _, main, second = table(ledger, [(task(), "s")]).splitlines()
    assert main == (
        "| Engines, RMSE | <= 13: reached | 12.60 (12.50, 12.70) | 12.50 (seed 1) | 2 "
        "| Zheng 2017 16.14 | training mean 40.00 |"
    )
    assert second == "| - raw |  | 14.50 (14.00, 15.00) | - | 2 |  |  |"
    strict = task(asked=(Asked("rmse", 12.0, is_least=False),))
    assert "<= 12: missed" in table(ledger, [(strict, "s")])


def test_missing_data_is_one_line_that_says_where_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tmp_path), "--task", "japanese-vowels", "--out", str(tmp_path / "out")]
    assert main(arguments) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("accuracy: ")
    assert "JapaneseVowels_TRAIN.ts: expected this file" in error


def test_events_are_read_log_behind_log(tmp_path: Path) -> None:
    files = (tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    for number, file in enumerate(files):
        file.write_text(f'{{"key":"k","n":{number}}}\n' * 2, encoding="utf-8")
    assert [event["n"] for event in read_events(files)["k"]] == [0, 0, 1, 1]


def test_an_engine_is_judged_at_its_last_cycle_on_both_kinds_of_labels() -> None:
    events = {"a": [{"rul": 9.0}, {"rul": 8.0}], "b": [{"rul": 145.0}]}
    answers = {"a": [{"rul": 0.0}, {"rul": 11.0}], "b": [{"rul": 121.0}]}
    figures = cmapss.judge(events, answers)
    assert figures["capped"] == pytest.approx(math.sqrt((3**2 + 4**2) / 2))
    assert figures["raw"] == pytest.approx(math.sqrt((3**2 + 24**2) / 2))


def test_an_utterance_is_judged_at_its_last_frame() -> None:
    events = {"a": [{"speaker": "1"}] * 2, "b": [{"speaker": "2"}]}
    answers = {"a": [{"label": "2"}, {"label": "1"}], "b": [{"label": "1"}]}
    assert japanese_vowels.judge(events, answers) == {"accuracy": 0.5}


def test_spoken_digits_are_judged_at_the_last_event_and_strings_by_edits() -> None:
    events: dict[str, list[dict[str, Any]]]
    events = {"a": [{"digit": "one"}] * 2, "b": [{"digit": "two"}]}
    answers = {"a": [{"label": "two"}, {"label": "one"}], "b": [{"label": "one"}]}
    assert fsdd.judge(events, answers) == {"accuracy": 0.5}
    strings: dict[str, list[dict[str, Any]]]
    strings = {"a": [{}, {"words": "one two two"}], "b": [{"words": "nine"}]}
    told: dict[str, list[dict[str, Any]]]
    told = {"a": [{"symbol": "one"}, {"symbol": None}], "b": [{"symbol": "nine"}]}
    assert fsdd.judge_strings(strings, told) == {"symbol error rate": 0.5, "strings right": 0.5}


def channel(size: int, spike: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A channel of 200 training and 300 test steps with one anomaly, and answers to it."""
    steps: list[dict[str, Any]] = [{"value": 0.0} for _ in range(200)]
    steps += [{"value": 0.0, "anomaly": 100 <= place < 140} for place in range(300)]
    scores = np.ones(500)
    scores[200 + spike : 230 + spike] = size
    scores[0] = math.nan
    given = [{"anomaly": {"score": None if math.isnan(s) else s, "flag": s > 4}} for s in scores]
    return steps, given


@pytest.mark.parametrize(
    ("size", "spike", "precision", "recall"),
    [(9, 110, 1.0, 1.0), (9, 250, 0.0, 0.0), (1, 110, 0.0, 0.0)],
)
def test_scores_are_judged_by_their_channels_own_validation_part(
    size: int, spike: int, precision: float, recall: float
) -> None:
    steps, given = channel(size, spike)
    figures = smap.judge({"c": steps}, {"c": given})
    assert (figures["precision"], figures["recall"]) == (precision, recall)
    assert (figures["flag precision"], figures["flag recall"]) == (precision, recall)


def test_the_moving_z_score_sees_the_past_only() -> None:
    series = np.array([0.0, 2.0, 0.0, 2.0, 6.0, 0.0])
    scores = smap.moving_z(series)
    assert scores[4] == pytest.approx(5.0)  # mean 1, deviation 1
    assert (smap.moving_z(np.append(series, 99.0))[:6] == scores).all()


def test_simple_methods_find_a_jump_in_a_quiet_channel(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    for name, steps in (("train.jsonl", 300), ("test.jsonl", 400)):
        values = draw.normal(size=steps)
        marks = {} if name == "train.jsonl" else {"anomaly": False}
        rows: list[dict[str, Any]] = [{"key": "c", "value": v, **marks} for v in values.tolist()]
        if marks:
            for step in range(200, 260):
                rows[step] |= {"value": 30.0 * (-1) ** step, "anomaly": True}
        (tmp_path / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for figures in smap.simple_methods(tmp_path).values():
        assert (figures["precision"], figures["recall"], figures["f0.5"]) == (1.0, 1.0, 1.0)


def test_the_factor_is_how_scores_usually_grow_and_the_test_file_has_no_say() -> None:
    def channel_of(later: float, tested: float) -> smap.Channel:
        level = np.concatenate([np.ones(800), np.full(200, later), np.full(500, tested)])
        return smap.Channel(level, 1000, [])

    usual = [channel_of(0.5, 9.0) for _ in range(9)]
    assert smap.by_threshold(usual)["factor"] == 1.0  # never below what was seen
    grown = [channel_of(3.0, 0.0) for _ in range(10)]
    assert smap.by_threshold([*usual, *grown])["factor"] == pytest.approx(3.0)
    assert smap.by_threshold([*usual, channel_of(100.0, 0.0)])["factor"] < 11.0
