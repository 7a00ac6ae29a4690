"""Events that are texts in training: tokenizers fitted on the training part, rows per symbol."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keyfold.export.errors import Crash
from keyfold.export.text import FIRST, UNKNOWN, Reader, Text, spelt
from keyfold.training import vocabulary
from keyfold.training.config import Config, Data, SettingsError, Split, read_config
from keyfold.training.config import Text as Settings
from keyfold.training.data import DataError, EventLog, read_log
from keyfold.training.learned import finished, learn
from keyfold.training.split import split

LINES: dict[str, list[tuple[str, str | None]]] = {  # key -> texts and labels
    "a": [("good day", "yes"), ("", "no"), ("bad", "no")],
    "b": [("good", "yes"), ("zzz bad", "no")],
    "c": [("qqq", None), ("day", "yes")],
}
BY_KEY = Split("key", validation_keys=("c",))


def write(folder: Path) -> str:
    file = folder / "log.jsonl"
    rows = [
        {"key": key, "time": 1000 * number, "line": text, "mood": mood}
        for number in range(3)
        for key, lines in LINES.items()
        for text, mood in lines[number : number + 1]
    ]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(file)


def config(folder: Path, text: Settings | None = None, label: str = "mood") -> Config:
    kind: Any = "classification" if label else ""
    data = Data(text="line", label=label, kind=kind, files=(write(folder),), time_field="time")
    return Config(data, BY_KEY, text=text or Settings())


def learned(config: Config) -> EventLog:
    log = read_log(config)
    return learn(log, split(log.sequences, config.split).train, config.text)


def test_a_vocabulary_is_learned_from_the_training_part_alone(tmp_path: Path) -> None:
    text = learned(config(tmp_path)).features.text
    assert text is not None
    assert set(text.symbols) == set("good day bad zzz")
    assert text.symbols[:2] == ("d", "o")  # the most frequent first


def test_a_label_stands_at_the_end_symbol_of_its_event(tmp_path: Path) -> None:
    log = learned(config(tmp_path))
    a, _, c = log.sequences
    assert a.ends is not None
    assert a.ends.tolist() == [9, 10, 14]
    assert (a.events, len(a), log.count) == (3, 14, 7)
    assert a.x[a.ends - 1, 0].tolist() == [0, 0, 0]
    names = log.outputs.names
    assert [names[int(label)] for label in a.labels[a.ends - 1]] == ["yes", "no", "no"]
    assert np.isnan(a.labels).sum() == 11
    assert a.times_ms[[8, 9, 10]].tolist() == [0, 1000, 2000]
    assert c.x[:4, 0].tolist() == [1, 1, 1, 0]  # unknown letters
    assert np.isnan(c.labels[3])  # an event without a label shapes the state only


def test_without_a_label_the_next_symbol_is_what_is_predicted(tmp_path: Path) -> None:
    log = learned(config(tmp_path, Settings("byte"), label=""))
    a = log.sequences[0]
    assert a.labels[:-1].tolist() == a.x[1:, 0].tolist()
    assert np.isnan(a.labels[-1])
    assert (len(log.outputs.names), log.outputs.names[FIRST + ord("g")]) == (258, "g")
    assert np.isnan(a.head(9).labels[-1])  # of what comes after its head it knows nothing


@pytest.mark.parametrize("how", ["order", "time"])
def test_a_log_is_split_between_events(tmp_path: Path, how: Any) -> None:
    settings = Split(how, validation_share=0.34)
    log = read_log(config(tmp_path))
    before = split(log.sequences, settings)
    after = split(learn(log, before.train, Settings()).sequences, settings)
    for one, other in zip(
        (before.train, before.validation), (after.train, after.validation), strict=True
    ):
        assert one.events == other.events > 0
        assert [s.events for s in one.sequences] == [s.events for s in other.sequences]
        for sequence, start in zip(other.sequences, other.counts_from, strict=True):
            assert sequence.ends is not None
            assert start in {0, *sequence.ends.tolist()}


LONG = {  # tokenizer -> the most symbols of a text, so that "good day" is left out
    "byte": 7,
    "char": 7,
    "word": 1,
}


@pytest.mark.parametrize("tokenizer", LONG)
def test_a_text_beyond_the_limit_is_left_out_as_it_is_when_served(
    tmp_path: Path, tokenizer: Any
) -> None:
    most = LONG[tokenizer]
    settings = config(tmp_path, Settings(tokenizer, max_symbols=most))
    log = learned(replace(settings, data=replace(settings.data, max_reject_share=0.3)))
    got = 2 if tokenizer == "word" else 8
    assert log.rejects[0].endswith(
        f"line 1: expected at most {most} symbols (features.text.max_symbols), got {got}"
    )
    assert log.rejected == 7 - log.count == (2 if tokenizer == "word" else 1)


@pytest.mark.parametrize("tokenizer", LONG)
def test_texts_beyond_the_limit_count_among_the_rejects_that_are_allowed(
    tmp_path: Path, tokenizer: Any
) -> None:
    with pytest.raises(DataError, match=r"expected at most 1\.0% rejects"):
        read_log(config(tmp_path, Settings(tokenizer, max_symbols=LONG[tokenizer])))


def test_a_key_of_texts_beyond_the_limit_alone_changes_no_split(tmp_path: Path) -> None:
    """Left out later, it would have had a share of the keys: another one's would be learned."""
    file = tmp_path / "log.jsonl"
    rows = [{"key": f"k{n}", "line": chr(97 + n) * (30 if n == 0 else 3)} for n in range(20)]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = Data(text="line", files=(str(file),), max_reject_share=0.1)
    by_key = Split("key", validation_share=0.3)
    log = learned(Config(data, by_key, text=Settings("char", max_symbols=10)))
    train = split(log.sequences, by_key).train
    assert log.features.text is not None
    assert {one.key for one in train.sequences} == {
        f"k{ord(symbol) - 97}" for symbol in log.features.text.symbols
    }


def test_a_trained_tokenizer_reads_other_logs(tmp_path: Path) -> None:
    settings = config(tmp_path)
    trained = learned(settings)
    other = finished(read_log(settings, features=trained.features))
    for one, two in zip(trained.sequences, other.sequences, strict=True):
        assert np.array_equal(one.x, two.x)
        assert np.array_equal(one.labels, two.labels, equal_nan=True)


def test_rare_symbols_and_those_beyond_the_size_are_unknown() -> None:
    texts = ["b a a", "c a b"]
    assert vocabulary.fit(Text("t", "word"), Settings("word", size=4), texts).symbols == ("a", "b")
    rare = vocabulary.fit(Text("t", "word"), Settings("word", min_count=3), texts)
    assert rare.symbols == ("a",)
    lower = vocabulary.fit(Text("t", "char", lower=True), Settings(lower=True), ["Aa"])
    assert lower.symbols == ("a",)


def test_texts_without_symbols_teach_nothing() -> None:
    with pytest.raises(Crash, match="expected symbols in the training part's texts"):
        vocabulary.fit(Text("t", "word"), Settings("word"), ["", " "])


def test_byte_pairs_are_learned_by_the_library_and_read_without_it() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    texts = ["the cat, the hat", "a cät 日本 \t that  hat", "the, the; there"] * 3
    found = vocabulary.fit(Text("t", "bpe"), Settings("bpe", size=290), texts)
    assert 10 < len(found.merges) <= 290 - 258
    assert vocabulary.fit(Text("t", "bpe"), Settings("bpe", size=290), texts) == found
    for text in ("the there, 日本 hat", "", "  \n the\0 cät", "unheard of", *texts):
        symbols = Reader(found).read(text)[:-1].astype(int).tolist()
        assert symbols == by_library(tokenizers, found, text)
    assert len(Reader(found).read("the there")) < len("the there")


def by_library(tokenizers: Any, text: Text, value: str) -> list[int]:
    """Merge by the library's own code, over the merges of a bundle."""
    letters = {byte: letter for letter, byte in vocabulary.letters()}
    spell = ["".join(letters[byte] for byte in piece) for piece in spelt(text.merges)]
    numbers = {piece: number for number, piece in enumerate(spell)}
    merges = [(spell[one - FIRST], spell[other - FIRST]) for one, other in text.merges]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(numbers, merges))
    tokenizer.pre_tokenizer = vocabulary.pre_tokenizer()
    return [FIRST + number for number in tokenizer.encode(value).ids]


def test_byte_pairs_without_the_library_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(Crash, match=r"pip install 'keyfold\[text\]'"):
        vocabulary.fit(Text("t", "bpe"), Settings("bpe"), ["a"])


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ('[data]\nfiles = ["a.csv"]\n[split]\nby = "order"\nvalidation_share = 0.1',
         r"data\.features: expected names of features, or one text \(data\.text\), got neither"),
        ('[data]\nfiles = ["a.csv"]\nfeatures = ["a"]\ntext = "b"\n[split]\nby = "order"\n'
         "validation_share = 0.1", r"data\.features: .* got both"),
        ('[data]\nfiles = ["a.csv"]\nfeatures = ["a"]\n[text]\nsize = 9\n[split]\nby = "order"\n'
         "validation_share = 0.1", r"\[text\]: expected data\.text"),
        ('[data]\nfiles = ["a.csv"]\ntext = "a"\n[forecast]\nhorizons = [1, 2]\n[split]\n'
         'by = "order"\nvalidation_share = 0.1', r"\[forecast\]: expected none with data\.text"),
        ('[data]\nfiles = ["a.csv"]\nfeatures = ["a"]\nlabel = "b"\nkind = "regression"\n[model]\n'
         'embedding = 4\n[split]\nby = "order"\nvalidation_share = 0.1',
         r"model\.embedding: expected it and tokens positive together"),
        ('[data]\nfiles = ["a.csv"]\ntext = "a"\n[model]\nembedding = 4\ntokens = 9\n[split]\n'
         'by = "order"\nvalidation_share = 0.1', r"model\.tokens: expected none with data\.text"),
        ('[data]\nfiles = ["a.csv"]\ntext = "a"\nkind = "forecast"\n[split]\nby = "order"\n'
         "validation_share = 0.1", r"data\.label: expected a field with kind = 'forecast'"),
        ('[data]\nfiles = ["a.csv"]\ntext = "a"\n[text]\ntokenizer = "bpe"\nsize = 200\n[split]\n'
         'by = "order"\nvalidation_share = 0.1', r"text\.size: expected at least 258 with 'bpe'"),
        ('[data]\nfiles = ["a.csv"]\ntext = "a"\n[text]\ntokenizer = "byte"\nsize = 300\n[split]\n'
         'by = "order"\nvalidation_share = 0.1',
         r"text\.size: expected another tokenizer than 'byte' with it, got 300"),
        ('[data]\nfiles = ["a.csv"]\ntext = "a"\n[text]\ntokenizer = "byte"\nmin_count = 2\n'
         '[split]\nby = "order"\nvalidation_share = 0.1', r"text\.min_count: expected another"),
        ('[data]\nfiles = ["a.csv"]\ntext = "a"\n[model]\ninput_noise = 0.1\n[split]\n'
         'by = "order"\nvalidation_share = 0.1', r"model: expected input_noise = 0 with"),
        ('[data]\nfiles = ["a.csv"]\ntext = "a"\n[model]\nfamily = "frames"\n[split]\n'
         'by = "order"\nvalidation_share = 0.1', r"model: expected another family than 'frames'"),
        ('[data]\nfiles = ["a.csv"]\ntext = "a"\n[generate]\ntemperature = 0.8\n[split]\n'
         'by = "order"\nvalidation_share = 0.1', r"generate\.most: expected how many symbols"),
        ('[data]\nfiles = ["a.csv"]\ntext = "a"\nformat = "packed"\n[split]\nby = "order"\n'
         "validation_share = 0.1", r"data\.text: expected none in packed records"),
    ],
)  # fmt: skip
def test_settings_that_contradict_a_text_are_refused(
    tmp_path: Path, lines: str, expected: str
) -> None:
    file = tmp_path / "training.toml"
    file.write_text(lines, encoding="utf-8")
    with pytest.raises(SettingsError, match=expected):
        read_config(file, environment={})


def test_a_column_that_no_event_has_is_refused_by_its_setting(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    file.write_text("key,line\na,hello\n", encoding="utf-8")
    settings = Config(Data(text="words", files=(str(file),)), BY_KEY)
    with pytest.raises(Crash, match=r"data\.text: expected a column of .*got 'words'"):
        read_log(settings)


@pytest.mark.tensorflow
def test_next_symbols_are_measured_without_keeping_all_probabilities(tmp_path: Path) -> None:
    pytest.importorskip("keras")
    from keyfold.training.evaluate import judged, measure

    log = learned(config(tmp_path, Settings("byte"), label=""))
    part = split(log.sequences, BY_KEY).validation
    draw = np.random.default_rng(0)
    y = [draw.dirichlet(np.ones(258), len(s)).astype(np.float32) for s in part.sequences]
    y[0][0, int(part.sequences[0].labels[0])] = 1.0
    small = [judged(got, s.labels) for got, s in zip(y, part.sequences, strict=True)]
    assert small[0].shape == (len(part.sequences[0]), 2)
    assert measure(small, part, log.outputs) == measure(y, part, log.outputs)
    (sequence,) = part.sequences
    known = sequence.labels[:-1].astype(int)
    right = y[0][:-1].argmax(axis=1) == known
    found = measure(y, part, log.outputs)
    assert found["events"] == len(known)
    assert found["accuracy"] == pytest.approx(right.mean())
    likelihood = y[0][np.arange(len(known)), known]
    assert found["cross_entropy"] == pytest.approx(-np.log(likelihood + 1e-7).mean(), rel=1e-5)


@pytest.mark.tensorflow
def test_an_unknown_symbol_is_never_foretold(tmp_path: Path) -> None:
    pytest.importorskip("keras")
    from keyfold.training.evaluate import judged, measure

    log = learned(config(tmp_path, Settings("char"), label=""))
    part = split(log.sequences, BY_KEY).validation  # texts of letters that training has not seen
    (sequence,) = part.sequences
    known = sequence.labels[:-1].astype(int)
    y = [np.eye(len(log.outputs.names), dtype=np.float32)[np.append(known, 0)]]
    for outputs in (y, [judged(y[0], sequence.labels)]):
        found = measure(outputs, part, log.outputs)
        assert found["accuracy"] == pytest.approx((known != UNKNOWN).mean())
        assert 0 < (known == UNKNOWN).sum() < len(known) == found["events"]
