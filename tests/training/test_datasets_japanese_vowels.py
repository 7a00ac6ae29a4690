"""Utterances become keys, frames become events; a speaker is judged at the last one."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from keyfold.training.cli import main
from keyfold.training.datasets import japanese_vowels
from keyfold.training.datasets.japanese_vowels import JapaneseVowelsError

HEAD = "#about\n@problemName JapaneseVowels\n@classLabel true 1 2\n@data\n"


def utterance(speaker: int, frames: int) -> str:
    columns = [",".join(f"{c}.{t}" for t in range(frames)) for c in range(12)]
    return f"{':'.join(columns)}:{speaker}\n"


def write_folder(folder: Path, ending: str = "") -> Path:
    opened: Any = {"": open, ".gz": gzip.open, ".xz": lzma.open}[ending]
    for kind, lines in (("TRAIN", [(1, 2), (2, 3), (2, 4)]), ("TEST", [(2, 3)])):
        with opened(folder / f"JapaneseVowels_{kind}.ts{ending}", "wt", encoding="utf-8") as file:
            file.write(HEAD + "".join(utterance(*line) for line in lines))
    return folder


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("ending", ["", ".gz", ".xz"])
def test_an_utterance_is_a_key_and_a_frame_an_event(tmp_path: Path, ending: str) -> None:
    counts = japanese_vowels.write(write_folder(tmp_path, ending), tmp_path / "out")
    assert counts == {"train.jsonl": 9, "test.jsonl": 3}
    frames = read(tmp_path / "out" / "test.jsonl")
    assert [frame["c12"] for frame in frames] == [11.0, 11.1, 11.2]
    assert {frame["key"] for frame in frames} == {"test-utterance-001"}
    assert [frame.get("speaker_at_end") for frame in frames] == [None, None, "2"]
    assert {frame["speaker"] for frame in frames} == {"2"}


def test_times_rise_and_the_order_of_utterances_is_drawn_once(tmp_path: Path) -> None:
    japanese_vowels.write(write_folder(tmp_path), tmp_path)
    text = (tmp_path / "train.jsonl").read_bytes()
    times = [event["time"] for event in read(tmp_path / "train.jsonl")]
    assert times == sorted(set(times))
    japanese_vowels.write(tmp_path, tmp_path)
    assert (tmp_path / "train.jsonl").read_bytes() == text


def test_the_command_writes_the_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["dataset", "japanese-vowels", str(write_folder(tmp_path)), str(out)]) == 0
    assert f"{out / 'train.jsonl'}: 9 events" in capsys.readouterr().out


def test_a_missing_file_is_named_with_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(JapaneseVowelsError, match=r"JapaneseVowels_TRAIN\.ts: expected.*aeon"):
        japanese_vowels.write(tmp_path, tmp_path)


def test_a_line_of_another_shape_is_refused_by_its_number(tmp_path: Path) -> None:
    file = write_folder(tmp_path) / "JapaneseVowels_TRAIN.ts"
    file.write_text(HEAD + "1.0,2.0:3.0,4.0:1\n", encoding="utf-8")
    with pytest.raises(JapaneseVowelsError, match=r"TRAIN\.ts, line 5: expected 12 .*got 2"):
        japanese_vowels.write(tmp_path, tmp_path)
    file.write_text(HEAD + "1.0,x:1\n", encoding="utf-8")
    with pytest.raises(JapaneseVowelsError, match=r"line 5: expected numbers"):
        japanese_vowels.write(tmp_path, tmp_path)
