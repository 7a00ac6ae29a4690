"""Texts and traces become event logs: every character, every call, and what is missing is named."""

from __future__ import annotations

import json
import lzma
import zipfile
from pathlib import Path
from typing import Any

import pytest

from keyfold.training.cli import main
from keyfold.training.datasets import adfa_ld, shakespeare


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_line_is_an_event_and_pieces_of_a_text_are_keys(tmp_path: Path) -> None:
    text = "".join(f"line {number}\n\n" for number in range(1000)) + "\r\nlast"
    (tmp_path / "book.txt.xz").write_bytes(lzma.compress(text.encode()))
    counts = shakespeare.write(tmp_path / "book.txt.xz", tmp_path, 0.2)
    train, test = (read(tmp_path / name) for name in ("train.jsonl", "test.jsonl"))
    assert counts == {"train.jsonl": len(train), "test.jsonl": len(test)}
    assert [event["line"] for event in test[-3:]] == ["", "\r", "last"]
    assert {event["key"] for event in test} == {"test"}
    assert {event["key"] for event in train} == {"train-000", "train-001", "validation-000"}
    first = [event["line"] for event in train if event["key"] == "train-000"]
    size = sum(len(line) + 1 for line in first)
    assert shakespeare.PIECE <= size <= shakespeare.PIECE + 10
    assert train[1]["time"] - train[0]["time"] == shakespeare.INTERVAL_MS


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(shakespeare.TextError, match=r"no\.txt: expected this file: .*Get the data"):
        shakespeare.write(tmp_path / "no.txt", tmp_path)
    (tmp_path / "a.txt").write_bytes(b"\xff" * 200)
    with pytest.raises(shakespeare.TextError, match=r"a\.txt: expected a text in UTF-8, got"):
        shakespeare.write(tmp_path / "a.txt", tmp_path)
    (tmp_path / "b.txt").write_text("short")
    with pytest.raises(
        shakespeare.TextError, match="expected a text of 100 characters or more, go"
    ):
        shakespeare.write(tmp_path / "b.txt", tmp_path)


def archive(folder: Path, **changed: str) -> Path:
    """Write an archive of a normal trace, another one and an attack; return its folder."""
    calls = " ".join(map(str, range(300)))
    members = {
        "ADFA-LD/Training_Data_Master/UTD-1.txt": calls,
        "ADFA-LD/Validation_Data_Master/UVD-1.txt": "6 6 63 ",
        "ADFA-LD/Attack_Data_Master/Adduser_1/UAD-1.txt": "3 4",
        "ADFA-LD/readme.txt": "no trace",
        "__MACOSX/ADFA-LD/._x.txt": "no trace either",
        **changed,
    }
    with zipfile.ZipFile(folder / adfa_ld.ARCHIVE, "w") as file:
        for name, content in members.items():
            if content:
                file.writestr(name, content)
    return folder


def test_a_trace_is_a_key_and_its_pieces_are_events(tmp_path: Path) -> None:
    archive(tmp_path)
    assert adfa_ld.write(tmp_path, tmp_path / "out") == {"train.jsonl": 3, "test.jsonl": 2}
    train, test = (read(tmp_path / "out" / name) for name in ("train.jsonl", "test.jsonl"))
    assert {event["key"] for event in train} == {"UTD-1"}
    pieces = [event["calls"].split() for event in train]
    assert [len(piece) for piece in pieces] == [adfa_ld.PIECE, adfa_ld.PIECE, 300 - 256]
    assert [int(call) for piece in pieces for call in piece] == [*range(300)]
    assert all("attack" not in event for event in train)
    found = {event["key"]: (event["calls"], event["attack"]) for event in test}
    assert found == {"UVD-1": ("6 6 63", False), "Adduser_1/UAD-1": ("3 4", True)}


def test_an_archive_of_another_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(adfa_ld.AdfaError, match=r"ADFA-LD\.zip: expected this file\. Get the data"):
        adfa_ld.write(tmp_path, tmp_path)
    archive(tmp_path, **{"ADFA-LD/Validation_Data_Master/UVD-1.txt": "6 x"})
    with pytest.raises(adfa_ld.AdfaError, match=r"UVD-1: expected numbers of system calls"):
        adfa_ld.write(tmp_path, tmp_path)
    archive(tmp_path, **{"ADFA-LD/Validation_Data_Master/UVD-1.txt": ""})
    with pytest.raises(adfa_ld.AdfaError, match=r"expected traces in Validation_Data_Master/, got"):
        adfa_ld.write(tmp_path, tmp_path)
    (tmp_path / adfa_ld.ARCHIVE).write_bytes(b"no archive")
    with pytest.raises(adfa_ld.AdfaError, match="expected an archive of texts, got"):
        adfa_ld.write(tmp_path, tmp_path)


def test_the_commands_write_the_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["dataset", "adfa-ld", str(archive(tmp_path)), str(out)]) == 0
    assert f"{out / 'test.jsonl'}: 2 events" in capsys.readouterr().out
    (tmp_path / "a.txt").write_text("to be or not to be\n" * 50)
    assert main(["dataset", "shakespeare", str(tmp_path / "a.txt"), str(out)]) == 0
    assert f"{out / 'test.jsonl'}: 5 events" in capsys.readouterr().out
