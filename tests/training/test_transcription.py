"""Symbols whose places nobody knows: the loss, whole sequences, what teaches, and a small task."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("keras")

import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras_marks import KERAS
from numpy.typing import NDArray

from keyfold.training.cli import main
from keyfold.training.config import SettingsError, read_config
from keyfold.training.ctc import ctc_loss, whole_windows
from keyfold.training.data import DataError, EventLog, build
from keyfold.training.edit_distance import edits
from keyfold.training.sequence import Sequence
from keyfold.training.settings_data import Data
from keyfold.training.sources import read_files
from keyfold.training.split import whole
from keyfold.training.transcription import measure_symbols, recognised
from keyfold.training.transcripts import check_whole, learn_symbols, untaught, with_symbols
from keyfold.training.windows import Piece

pytestmark = KERAS


def probabilities(rows: int, steps: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    y = np.random.default_rng(seed).random((rows, steps, columns)).astype(np.float32)
    return np.asarray(y / y.sum(axis=2, keepdims=True))


def by_all_paths(y: NDArray[np.float32], wanted: list[int]) -> float:
    """Add up every path of columns that says what is wanted."""
    total = 0.0
    for path in itertools.product(range(y.shape[1]), repeat=len(y)):
        if [column for column, _ in itertools.groupby(path) if column] == wanted:
            total += float(np.prod([y[step, column] for step, column in enumerate(path)]))
    return -float(np.log(total))


def test_the_loss_is_that_of_all_paths_that_say_the_symbols() -> None:
    y = probabilities(4, 5, 3)
    labels = np.array([[5, 2, 1, 2], [4, 2, 1, 1], [5, 0, 9, 9], [1, 1, 2, 0]], np.float32)
    compiled = tf.function(ctc_loss, autograph=False)
    want = [
        by_all_paths(y[0], [1, 2]), by_all_paths(y[1, :4], [1, 1]),
        by_all_paths(y[2], []), by_all_paths(y[3, :1], [2]),
    ]  # fmt: skip
    np.testing.assert_allclose(compiled(labels, y), want, rtol=1e-4)


def test_what_stands_beyond_a_rows_length_changes_neither_loss_nor_gradient() -> None:
    labels = np.array([[3, 1, 1], [3, 0, 0]], np.float32)
    found = []
    for padding in (1, 2):
        y = np.concatenate([probabilities(2, 3, 3), probabilities(2, 4, 3, padding)], axis=1)
        given_y = tf.constant(y)
        with tf.GradientTape() as tape:
            tape.watch(given_y)
            loss = ctc_loss(labels, given_y)
        found.append((loss.numpy(), tape.gradient(loss, given_y).numpy()))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1][:, :3], found[1][1][:, :3])
    assert not found[0][1][:, 3:].any()


def sequence(key: str, events: int, *symbols: int) -> Sequence:
    labels = np.full(events, np.nan, np.float32)
    labels[-1] = len(symbols)
    x = np.arange(events, dtype=np.float32)[:, None]
    times = np.zeros(events, np.int64)
    return Sequence(key, x, times, labels, transcript=np.array(symbols, np.int32))


def test_windows_hold_whole_sequences_side_by_side() -> None:
    some = [sequence("a", 5, 1, 2), sequence("b", 2), sequence("c", 3, 1)]
    silent = replace(some[2], labels=np.full(3, np.nan, np.float32))
    pieces = [Piece(index, 0, 0) for index in range(3)]
    short, long = whole_windows([*some[:2], silent], pieces, 2)
    # Sorted by length; a sequence that does not count has neither symbols nor weight.
    np.testing.assert_array_equal(short.labels, [[2, 0, 0], [3, 0, 0]])
    np.testing.assert_array_equal(short.weights, [1, 0])
    np.testing.assert_array_equal(short.x[:, :, 0], [[0, 1, 1], [0, 1, 2]])
    np.testing.assert_array_equal(long.labels, [[5, 2, 1, 2], [5, 0, 0, 0]])
    np.testing.assert_array_equal(long.weights, [1, 0])  # the second row is idle
    assert short.fresh.all()
    assert long.fresh.all()


def log_of(folder: Path, rows: list[dict[str, Any]], **data: Any) -> EventLog:
    file = folder / "log.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    spec = Data(("x",), label="said", kind="transcription", files=(str(file),), **data)
    return build(spec, read_files(spec.files, spec), keyed=False)


def test_the_symbols_of_a_sequence_are_those_of_all_its_labels_in_order(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"key": "a", "x": 1, "said": "left  right"},
        {"key": "b", "x": 1, "said": ["left", 7]},
        {"key": "a", "x": 2, "said": None},
        {"key": "a", "x": 3, "said": "left"},
        {"key": "c", "x": 1},
        {"key": "d", "x": 1, "said": ""},
    ]
    log = log_of(tmp_path, rows)
    log = learn_symbols(log, whole(log.sequences))
    assert log.outputs.names == ("", "7", "left", "right")
    found = {s.key: None if s.transcript is None else s.transcript.tolist() for s in log.sequences}
    assert found == {"a": [2, 3, 2], "b": [2, 1], "c": None, "d": []}
    counting = {s.key: bool((~np.isnan(s.labels)).any()) for s in log.sequences}
    assert counting == {"a": True, "b": False, "c": False, "d": True}
    left = untaught(log.sequences)
    assert (left.unknown, left.short) == (0, 1)  # b has two symbols and one event


def test_a_text_may_be_characters_and_a_blank_stands_between_equal_ones(tmp_path: Path) -> None:
    rows = [{"key": "a", "x": 1}, {"key": "a", "x": 2, "said": "oo"}]
    rows += [{"key": "b", "x": n, **({"said": "oo"} if n == 2 else {})} for n in range(3)]
    log = log_of(tmp_path, rows, symbols="characters")
    log = learn_symbols(log, whole(log.sequences))
    assert log.outputs.names == ("", "o")
    assert [bool(np.isnan(s.labels[-1])) for s in log.sequences] == [True, False]


def test_symbols_are_learned_from_the_training_part_alone(tmp_path: Path) -> None:
    rows = [{"key": "a", "x": 1, "said": "left"}, {"key": "b", "x": 1, "said": "right"}]
    log = log_of(tmp_path, rows)
    train = whole(log.sequences[:1])
    log = learn_symbols(log, train)
    assert log.outputs.names == ("", "left")
    (other,) = log.sequences[1:]
    assert other.transcript is not None
    assert other.transcript.tolist() == [-1]
    assert untaught(log.sequences).unknown == 1
    # It is judged all the same: what is not known cannot be recognised.
    found = measure_symbols([probabilities(1, 1, 2)[0]], whole([other]))
    assert found["symbol_error_rate"] == 1.0
    assert "ctc_loss" not in found
    with pytest.raises(DataError, match=r"data\.label: expected symbols in the training part"):
        learn_symbols(replace(log, transcripts=((),) * 2), train)


def test_symbols_that_the_settings_do_not_name_are_rejects(tmp_path: Path) -> None:
    rows = [{"key": "a", "x": 1, "said": "left"}, {"key": "a", "x": 1, "said": ["up"]}]
    log = log_of(tmp_path, rows, classes=("right", "left"), max_reject_share=0.5)
    assert "expected symbols of data.classes, got another one" in log.rejects[0]
    log = learn_symbols(log, whole(log.sequences), ("right", "left"))
    assert log.outputs.names == ("", "right", "left")


def test_an_empty_entry_in_a_list_is_a_reject(tmp_path: Path) -> None:
    log = log_of(tmp_path, [{"key": "a", "x": 1, "said": ["a", None]}, {"key": "a", "x": 1}],
                 max_reject_share=0.5)  # fmt: skip
    assert "field 'said': expected symbols, got an empty one or null in the list" in log.rejects[0]


def test_a_key_that_starts_anew_has_several_sequences(tmp_path: Path) -> None:
    rows = [{"key": "a", "t": 1000 * t, "x": 1, **({"said": "b"} if t in (2, 9) else {})}
            for t in (0, 1, 2, 7, 8, 9)]  # fmt: skip
    log = log_of(tmp_path, rows, time_field="t", reset_after_s=3.0)
    log = learn_symbols(log, whole(log.sequences))
    said = [s.transcript.tolist() for s in log.sequences if s.transcript is not None]
    assert said == [[1], [1]]


def test_a_sequence_longer_than_the_window_is_refused_by_its_key() -> None:
    part = whole([sequence("short", 3, 1), sequence("long-one", 70, 1)])
    check_whole([part], 70)
    with pytest.raises(SettingsError, match=r"fit\.window: expected at least 70, .*'long-one'"):
        check_whole([part], 64)


@given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 3), max_size=8))
@settings(max_examples=80)
def test_edits_are_levenshteins(got: list[int], truth: list[int]) -> None:
    def plain(a: list[int], b: list[int]) -> int:
        if not a or not b:
            return len(a) + len(b)
        table = np.zeros((len(a) + 1, len(b) + 1), int)
        table[:, 0], table[0] = range(len(a) + 1), range(len(b) + 1)
        for i, j in itertools.product(range(1, len(a) + 1), range(1, len(b) + 1)):
            change = table[i - 1, j - 1] + (a[i - 1] != b[j - 1])
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, change)
        return int(table[-1, -1])

    assert edits(got, truth) == plain(got, truth)


def test_metrics_count_edits_by_symbols() -> None:
    best = np.eye(3, dtype=np.float32)
    y = [best[[0, 1, 1, 0, 2]], best[[1, 1]]]
    assert [recognised(one) for one in y] == [[1, 2], [1]]
    part = whole([sequence("a", 5, 1, 2), sequence("b", 2, 2, 1)])
    found = measure_symbols(y, part)
    assert found["events"] == 2
    assert found["symbols"] == 4
    assert found["symbol_error_rate"] == 0.25
    assert found["sequences_right"] == 0.5
    assert measure_symbols([], whole([])) == {"events": 0}


CONFIG = """
[data]
files = ["log.jsonl"]
features = ["x", "y"]
label = "said"
kind = "transcription"

[split]
by = "key"
validation_share = 0.2

[model]
cell = "gru"
units = [16]

[fit]
rows = 16
window = 32
passes = 40
patience = 40
learning_rate = 0.02
"""


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("[split]\nby = \"key\"", "[split]\nby = \"order\""), r"split\.by: expected 'key' with"),
        (("[fit]", "[fit]\nstretch = 64"), r"fit\.stretch: expected 0 with data\.kind"),
        (("[fit]", "[fit]\nrandom_start = 0.1"), r"fit\.random_start: expected 0 with"),
        (("[fit]", "[fit]\nskip_first = 2"), r"fit\.skip_first: expected 0 with"),
        (("[split]", "[labels]\nfiles = [\"a.csv\"]\n[split]"), r"labels\.files: expected none"),
        (("transcription", "regression\"\nsymbols = \"characters"), "symbols: expected kind = 'tr"),
        (("[split]", "label_cap = 2.0\n[split]"), "label_cap: expected none for kind = 'trans"),
        (('features = ["x", "y"]', 'text = "line"'), r"data\.text: expected features with"),
    ],
)  # fmt: skip
def test_settings_that_take_sequences_apart_are_refused(
    tmp_path: Path, change: tuple[str, str], expected: str
) -> None:
    assert change[0] in CONFIG
    file = tmp_path / "training.toml"
    file.write_text(CONFIG.replace(*change, 1), encoding="utf-8")
    with pytest.raises(SettingsError, match=expected):
        read_config(file, [], {})


def bumps(keys: int, seed: int) -> list[dict[str, Any]]:
    """Return sequences in which bumps of either member say "up" or "side", silence between."""
    draw = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for key in range(keys):
        x: list[tuple[float, float]] = []
        said = draw.choice(["up", "side"], int(draw.integers(1, 4))).tolist()
        for word in said:
            bump = (1.0, 0.0) if word == "up" else (0.0, 1.0)
            x += [(0.0, 0.0)] * int(draw.integers(1, 4)) + [bump] * int(draw.integers(2, 4))
        x.append((0.0, 0.0))
        noise = draw.normal(0, 0.1, (len(x), 2))
        for (a, b), (e, f) in zip(x, noise, strict=True):
            rows.append({"key": f"k{seed}-{key}", "x": a + e, "y": b + f})
        rows[-1]["said"] = " ".join(said)
    return rows


def test_a_run_learns_where_symbols_are_and_evaluates_other_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, rows in (("log.jsonl", bumps(120, 1)), ("other.jsonl", bumps(30, 2))):
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "training.toml").write_text(CONFIG, encoding="utf-8")
    assert main(["training.toml"]) == 0
    said = capsys.readouterr().out
    assert "naive: symbols" in said
    metrics = json.loads((tmp_path / "runs/latest/metrics.json").read_text())
    assert metrics["metrics"]["validation"]["symbol_error_rate"] < 0.1
    assert metrics["naive"]["validation"]["symbol_error_rate"] == 1.0
    spec = json.loads((tmp_path / "runs/latest/spec.json").read_text())
    assert spec["outputs"] == {"kind": "transcription", "names": ["", "side", "up"]}
    assert main(["evaluate", "runs/latest", "other.jsonl", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["symbol_error_rate"] < 0.1
    assert main(["training.toml", "--set", "fit.window=4"]) == 1
    assert "fit.window: expected at least" in capsys.readouterr().err
    # A fine-tune begins with the weights, and must be no worse than they are.
    tune = ["--parent", "runs/latest", "--against", "runs/latest", "--set", "fit.passes=1"]
    assert main(["training.toml", *tune]) == 0
    assert "symbol_error_rate" in capsys.readouterr().out


def test_a_run_that_was_ended_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from keyfold.training import checkpoint

    monkeypatch.chdir(tmp_path)
    text = "".join(f"{json.dumps(row)}\n" for row in bumps(40, 3))
    (tmp_path / "log.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "training.toml").write_text(CONFIG, encoding="utf-8")
    short = ["training.toml", "--set", "fit.passes=3"]
    assert main([*short, "--out", "whole"]) == 0
    saved = checkpoint.Checkpoint.save
    count = [0]

    def ends(self: Any, *arguments: Any) -> None:
        saved(self, *arguments)
        count[0] += 1
        if count[0] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.Checkpoint, "save", ends)
    assert main([*short, "--out", "cut"]) == 130
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main([*short, "--out", "cut", "--resume"]) == 0
    whole_run, cut_run = (
        json.loads((tmp_path / name / "latest/metrics.json").read_text())
        for name in ("whole", "cut")
    )
    assert whole_run["weights_sha256"] == cut_run["weights_sha256"]


def test_with_symbols_of_a_run_nothing_is_learned_anew(tmp_path: Path) -> None:
    log = log_of(tmp_path, [{"key": "a", "x": 1, "said": "left"}])
    outputs = learn_symbols(log, whole(log.sequences)).outputs
    other = log_of(tmp_path, [{"key": "b", "x": 1, "said": "right"}])
    (found,) = with_symbols(other, outputs).sequences
    assert found.transcript is not None
    assert found.transcript.tolist() == [-1]
