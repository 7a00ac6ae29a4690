"""Conversations become keys, utterances events; from folders or from the archive alike."""

from __future__ import annotations

import json
import lzma
import tarfile
from pathlib import Path
from typing import Any

import pytest

from keyfold.training.cli import main
from keyfold.training.datasets import swda
from keyfold.training.datasets.swda import SwdaError

CONVERSATIONS = {
    "train/2006.txt": "B|Hi.|fp\n",
    "train/2005.txt": "A|Okay.|o\nA|Well, no|sd\nB|Uh-huh.|b\n",
    "val/2347.txt": "A|Yes.|aa\n",
    "test/2121.txt": "A|So?|qy\nB|No.|nn\n",
}


def write_folder(folder: Path, changed: dict[str, str] | None = None) -> Path:
    for name, content in {**CONVERSATIONS, **(changed or {})}.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    return folder


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_conversation_is_a_key_and_an_utterance_an_event(tmp_path: Path) -> None:
    counts = swda.write(write_folder(tmp_path / "in"), tmp_path / "out")
    assert counts == {"train.jsonl": 5, "test.jsonl": 2}
    events = read(tmp_path / "out" / "train.jsonl")
    assert [event["key"] for event in events] == [*["train-2005"] * 3, "train-2006", "val-2347"]
    assert [event["same_speaker"] for event in events] == [False, True, False, False, False]
    assert (events[1]["utterance"], events[1]["speaker"], events[1]["act"]) == (
        "Well, no",
        "A",
        "sd",
    )
    times = [event["time"] for event in events]
    assert times == sorted(set(times))
    assert {event["key"] for event in read(tmp_path / "out" / "test.jsonl")} == {"test-2121"}


def test_the_archive_gives_the_same_logs(tmp_path: Path) -> None:
    folder, packed = write_folder(tmp_path / "in"), tmp_path / "packed"
    packed.mkdir()
    with (
        lzma.open(packed / "swda.tar.xz", "wb") as stream,
        tarfile.open(fileobj=stream, mode="w") as files,
    ):
        for name in ("test", "train", "val"):
            files.add(folder / name, f"./{name}")
        files.add(folder / "test" / "2121.txt", "./test_set.txt")
    for source, out in ((folder, "a"), (packed, "b")):
        swda.write(source, tmp_path / out)
    for log in ("train.jsonl", "test.jsonl"):
        assert (tmp_path / "a" / log).read_bytes() == (tmp_path / "b" / log).read_bytes()


def test_the_command_writes_the_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["dataset", "swda", str(write_folder(tmp_path / "in")), str(out)]) == 0
    assert f"{out / 'train.jsonl'}: 5 events" in capsys.readouterr().out


def test_a_missing_part_is_named_with_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(SwdaError, match=r"expected conversations in test, got none.*Switchboard"):
        swda.write(tmp_path, tmp_path / "out")


def test_a_line_of_another_shape_is_refused_by_its_place(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"val/2347.txt": "A|Yes.|aa\nA|a|b|c\n"})
    with pytest.raises(SwdaError, match=r"val/2347\.txt, line 2: expected speaker\|.*got 4 cells"):
        swda.write(folder, tmp_path / "out")
