"""Pairs of texts in training: rows of a source and its answer, whole windows, refused settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keyfold.export.text import END, FIRST
from keyfold.training.config import Config, Data, Fit, Generate, Model, SettingsError, Split
from keyfold.training.config import Text as Settings
from keyfold.training.data import DataError, EventLog, read_log
from keyfold.training.learned import learn
from keyfold.training.pairs import NONE, POOL, pair_windows
from keyfold.training.split import split
from keyfold.training.windows import Piece

PAIRS = [
    ("a", "one two", "eins zwei"), ("b", "two", "zwei zwei zwei"), ("c", "three one", "drei"),
    ("a", "", "eins"), ("b", "one two one two one", "eins"), ("c", "one", ""),
]  # fmt: skip
SEQ2SEQ = Model(family="seq2seq", attention="additive", window=6, units=(8,))
WORDS = Settings(tokenizer="word")


def config(folder: Path, **changes: Any) -> Config:
    file = folder / "log.jsonl"
    rows = [{"key": key, "en": source, "de": answer} for key, source, answer in PAIRS]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = Data(text="en", target_text="de", files=(str(file),))
    given = {"model": SEQ2SEQ, "text": WORDS, "target": WORDS, **changes}
    return Config(given.pop("data", data), Split("key", validation_keys=("c",)), **given)


@pytest.mark.parametrize("tokenizer", ["word", "bpe"])  # known before it is learned, and after
def test_a_source_longer_than_the_window_is_told_by_the_setting_that_bounds_it(
    tmp_path: Path, tokenizer: Any
) -> None:
    file = tmp_path / "long.jsonl"
    pairs = [("abc"[n % 3], "q w e r t z" if n == 7 else "q w", "eins") for n in range(9)]
    rows = [{"key": key, "en": source, "de": answer} for key, source, answer in pairs]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = Data(text="en", target_text="de", files=(str(file),), max_reject_share=0.5)
    text = Settings(tokenizer=tokenizer, size=300)
    log = learned(config(tmp_path, data=data, text=text))
    assert len(log.rejects) == 1
    assert (
        "expected at most 5 symbols (model.window less its end, text.max_symbols)"
        in (log.rejects[0])
    )


def test_an_answer_that_no_event_has_is_told_with_the_columns_there_are(tmp_path: Path) -> None:
    asked = config(tmp_path)
    with pytest.raises(DataError) as error:
        read_log(replace(asked, data=replace(asked.data, target_text="du")))
    assert str(error.value) == (
        f"data.target_text: expected a column of {asked.data.files[0]}, got 'du'; there are: key, "
        "en, de"
    )


def learned(config: Config) -> EventLog:
    log = read_log(config)
    return learn(log, split(log.sequences, config.split).train, config.text, config.target)


def test_each_pair_is_a_sequence_of_its_own(tmp_path: Path) -> None:
    log = learned(config(tmp_path))
    assert log.features.text is not None
    assert log.target is not None
    assert log.features.text.symbols == ("one", "two")  # of the training part
    assert log.target.symbols == ("zwei", "eins")
    assert log.outputs.names == ("<end>", "<unknown>", "zwei", "eins")
    assert [one.key for one in log.sequences] == ["a", "a", "b", "b", "c", "c"]
    first = log.sequences[0]
    one, two, zwei, eins = FIRST, FIRST + 1, FIRST, FIRST + 1
    assert first.x.tolist() == [[one, END], [two, eins], [END, zwei]]
    assert first.labels.tolist() == [eins, zwei, END]
    assert first.is_pair
    assert first.events == 1


def test_the_shorter_side_is_padded_with_nothing(tmp_path: Path) -> None:
    log = learned(config(tmp_path))
    empty, long = log.sequences[1], log.sequences[3]
    assert empty.x[:, 0].tolist() == [END, NONE]
    assert long.x[:, 1].tolist() == [END, FIRST + 1, *[NONE] * 4]
    assert np.isnan(long.labels[2:]).all()
    assert long.labels[:2].tolist() == [FIRST + 1, END]


def test_a_source_longer_than_the_window_is_a_reject(tmp_path: Path) -> None:
    given = config(tmp_path, model=replace(SEQ2SEQ, window=5))
    given = replace(given, data=replace(given.data, max_reject_share=0.5))
    log = learned(given)
    assert (log.count, log.rejected) == (5, 1)
    assert log.features.text is not None
    assert log.features.text.max_symbols == 4
    assert "expected at most 4 symbols" in log.rejects[0]


def test_an_event_without_an_answer_teaches_nothing(tmp_path: Path) -> None:
    given = config(tmp_path)
    Path(given.data.files[0]).write_text(
        '{"key":"a","en":"one","de":"eins"}\n{"key":"c","en":"one","de":"eins"}\n'
        '{"key":"a","en":"one"}\n{"key":"a","en":"one","de":3}\n',
        encoding="utf-8",
    )
    log = read_log(replace(given, data=replace(given.data, max_reject_share=0.6)))
    assert (log.count, log.rejected) == (2, 2)
    assert "field 'de': expected a text, got none" in log.rejects[0]
    assert "field 'de': expected a text, got a number" in log.rejects[1]


def test_a_window_holds_whole_pairs_and_no_more_steps_than_they_need(tmp_path: Path) -> None:
    sequences = learned(config(tmp_path)).sequences
    pieces = [Piece(number, 0, 0) for number in range(len(sequences))]
    cut = list(pair_windows(sequences, pieces, 2))
    found = sorted(int(owner) for window in cut for owner in window.owner)
    assert found == list(range(len(sequences)))
    for window in cut:
        lengths = [len(sequences[owner]) for owner in window.owner]
        assert window.x.shape[1] == max(lengths)
        assert window.fresh.all()
        for lane, owner in enumerate(window.owner.tolist()):
            sequence = sequences[owner]
            known = ~np.isnan(sequence.labels)
            assert window.weights[lane].sum() == known.sum()
            assert (window.labels[lane, : len(sequence)][known] == sequence.labels[known]).all()
            assert (window.x[lane, len(sequence) :] == NONE).all()
    assert max(max(map(len, sequences)) - window.x.shape[1] for window in cut) > 0


def test_a_window_that_is_not_full_keeps_its_rows(tmp_path: Path) -> None:
    sequences = learned(config(tmp_path)).sequences
    pieces = [Piece(number % len(sequences), 0, 0) for number in range(4 * POOL + 1)]
    windows = list(pair_windows(sequences, pieces, 4))
    assert {len(window.x) for window in windows} == {4}
    assert sum(int((window.owner >= 0).sum()) for window in windows) == len(pieces)
    idle = next(window for window in windows if (window.owner < 0).any())
    assert idle.weights[idle.owner < 0].sum() == 0
    assert (idle.x[idle.owner < 0, 0, 0] >= 0).all()  # of a source without symbols nothing is last


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": Model()}, "model.family: expected 'seq2seq' with data.target_text"),
        ({"data": Data(text="en", files=("f.jsonl",)), "target": Settings()},
         "model.family: expected 'seq2seq' with data.target_text, and only there"),
        ({"data": Data(text="en", files=("f.jsonl",)), "model": Model()},
         r"\[target\]: expected it with data.target_text alone"),
        ({"fit": Fit(stretch=4)}, "fit.stretch: expected 0 with data.target_text: pairs stay"),
        ({"fit": Fit(random_start=0.5)}, "fit.random_start: expected 0"),
        ({"target": Settings(width=4)}, "text.width, target.width: expected 0"),
        ({"data": Data(features=("a",), files=("f.jsonl",)), "model": Model(), "text": Settings(),
          "target": Settings(), "generate": Generate(3)},
         r"\[generate\]: expected data.text and neither a label nor features"),
    ],
)  # fmt: skip
def test_settings_that_make_no_pairs_are_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        config(tmp_path, **changes)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"family": "seq2seq", "window": 4}, "attention, window: expected"),
        ({"family": "seq2seq", "window": 4, "attention": "additive", "cell": "simple_rnn"},
         "cell 'lstm' or 'gru' with family = 'seq2seq', got 'additive', 4 and 'simple_rnn'"),
        ({"family": "seq2seq", "attention": "additive"}, "window of the most symbols of a source"),
        ({"family": "seq2seq"}, "at least 2, and cell 'lstm' or 'gru' with family = 'seq2seq', "
         "got '', 0 and 'lstm'"),
        ({"family": "seq2seq", "window": 4, "attention": "additive", "norm": "layer"}, "norm"),
    ],
)  # fmt: skip
def test_networks_that_cannot_be_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Model(**settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"text": "", "features": ("a",)}, "target_text: expected data.text with it"),
        ({"label": "b", "kind": "classification"}, "target_text: expected data.text with it"),
        ({"target_text": "en"}, "target_text: expected another member than text, got 'en'"),
    ],
)
def test_an_answer_needs_a_source_of_its_own(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Data(**{"text": "en", "target_text": "de", "files": ("f.jsonl",), **settings})


def test_pairs_are_split_by_key(tmp_path: Path) -> None:
    given = config(tmp_path)
    with pytest.raises(SettingsError, match=r"split.by: expected 'key' with data.target_text"):
        replace(given, split=Split("order", validation_share=0.2))


def test_as_many_symbols_are_said_as_the_settings_allow() -> None:
    assert Generate().spec(48).most == 96
    assert Generate(7).spec(48).most == 7
    with pytest.raises(ValueError, match="most: expected 1 to 512, got 513"):
        Generate(513)
