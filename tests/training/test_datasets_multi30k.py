"""Image descriptions become events: a pair a key, validation and test named by it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from keyfold.training.cli import main
from keyfold.training.datasets import multi30k
from keyfold.training.datasets.multi30k import Multi30kError

PAIRS = {
    "train": [("A man.", "Ein Mann."), ("Two dogs", "Zwei Hunde ")],
    "val": [("A hat.\u2028", "Ein Hut.")],
    "test_2016_flickr": [("A “cat”.", "Eine Katze.")],
}


def write_folder(folder: Path, ending: str = "") -> Path:
    opened: Any = gzip.open if ending else open
    for part, pairs in PAIRS.items():
        for number, language in enumerate(("en", "de")):
            with opened(folder / f"{part}.{language}{ending}", "wt", encoding="utf-8") as file:
                file.write("".join(f"{pair[number]}\n" for pair in pairs))
    return folder


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_pair_is_a_key_of_its_own(tmp_path: Path, ending: str) -> None:
    out = tmp_path / "out"
    assert multi30k.write(write_folder(tmp_path, ending), out) == {
        "train.jsonl": 3,
        "test.jsonl": 1,
    }
    train, test = read(out / "train.jsonl"), read(out / "test.jsonl")
    assert [event["key"] for event in train] == ["train-00001", "train-00002", "val-00001"]
    assert [event["key"] for event in test] == ["test-00001"]
    assert (train[1]["en"], train[1]["de"]) == ("Two dogs", "Zwei Hunde")
    assert train[1]["time"] - train[0]["time"] == 1000


def test_the_command_writes_both_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["dataset", "multi30k", str(write_folder(tmp_path)), str(out)]) == 0
    assert "train.jsonl: 3 events" in capsys.readouterr().out


def test_languages_of_different_length_and_missing_files_are_said(tmp_path: Path) -> None:
    with pytest.raises(Multi30kError, match=r"train.en: expected this file. Get the data"):
        multi30k.write(tmp_path, tmp_path / "out")
    write_folder(tmp_path)
    (tmp_path / "val.de").write_text("Ein Hut.\nNoch einer.\n", encoding="utf-8")
    with pytest.raises(Multi30kError, match="val: expected as many lines of each language: 1, 2"):
        multi30k.write(tmp_path, tmp_path / "out")
