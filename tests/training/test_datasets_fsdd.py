"""Recordings become keys, chunks of samples events; strings of digits use each recording once."""

from __future__ import annotations

import json
import tarfile
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keyfold.training.cli import main
from keyfold.training.datasets import fsdd
from keyfold.training.datasets.fsdd import SAMPLES, WORDS, FsddError

SPEAKERS = ("ann", "bob")
TAKES = 8


def record(folder: Path, name: str, samples: list[int], rate: int = 8000) -> None:
    with wave.open(str(folder / name), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.array(samples, "<i2").tobytes())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a data set of two people and eight takes; each recording's samples are its own."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    (folder / "README.md").write_text("no recording")
    number = 1000
    for speaker in SPEAKERS:
        for digit in range(10):
            for take in range(TAKES):
                number += 1
                record(folder, f"{digit}_{speaker}_{take}.wav", [number] * (SAMPLES + take))
    return tmp_path


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def by_key(file: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for event in read(file):
        found.setdefault(event["key"], []).append(event)
    return found


def test_a_recording_is_a_key_and_a_chunk_of_samples_an_event(source: Path) -> None:
    counts = fsdd.write(source, source / "out")
    test = by_key(source / "out" / "test.jsonl")
    assert len(test) == 2 * 10 * 5  # takes 0 to 4
    assert len(by_key(source / "out" / "train.jsonl")) == 2 * 10 * 3
    assert counts["test.jsonl"] == 20 * (1 + 4 * 2)
    one, two = test["7_bob_3"]
    assert [one["digit"], two["digit"]] == ["seven", "seven"]
    assert ("digit_at_end" in one, two["digit_at_end"]) == (False, "seven")
    value = one["s1"]
    assert [one[name] for name in fsdd.FIELDS] == [value] * SAMPLES
    # The last event is filled up with silence.
    assert [two[name] for name in fsdd.FIELDS] == [value] * 3 + [0] * (SAMPLES - 3)


def test_strings_use_every_recording_of_a_speaker_once(source: Path) -> None:
    fsdd.write_strings(source, source)
    for name, takes in (("train.jsonl", range(5, 8)), ("test.jsonl", range(5))):
        strings = by_key(source / name)
        words: list[str] = []
        for key, events in strings.items():
            speakers = {event["speaker"] for event in events}
            assert len(speakers) == 1
            assert next(iter(speakers)) in key
            said = events[-1]["words"].split()
            assert 3 <= len(said) <= 5
            assert not any("words" in event for event in events[:-1])
            words += said
        assert sorted(words) == sorted(2 * len(takes) * list(WORDS))
    # No recording is in both logs: their samples are known by their value.
    heard = [
        {abs(event[field]) for event in read(source / name) for field in fsdd.FIELDS}
        for name in ("train.jsonl", "test.jsonl")
    ]
    loud = [{value for value in values if value > 1000} for values in heard]
    assert len(loud[0]) == 60
    assert len(loud[1]) == 100
    assert not loud[0] & loud[1]


def test_times_rise_and_what_is_drawn_is_drawn_once(source: Path) -> None:
    for write in (fsdd.write, fsdd.write_strings):
        write(source, source)
        text = (source / "train.jsonl").read_bytes()
        times = [event["time"] for event in read(source / "train.jsonl")]
        assert times == sorted(set(times))
        write(source, source)
        assert (source / "train.jsonl").read_bytes() == text


def test_an_archive_is_read_as_the_folder_is(source: Path) -> None:
    fsdd.write(source, source / "a")
    packed = source / "packed"
    packed.mkdir()
    with tarfile.open(packed / "fsdd.tar.xz", "w:xz") as archive:
        archive.add(source / "recordings", "./recordings")
    fsdd.write(packed, source / "b")
    for name in ("train.jsonl", "test.jsonl"):
        assert (source / "a" / name).read_bytes() == (source / "b" / name).read_bytes()


def test_the_commands_write_the_logs(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("fsdd", "fsdd-strings"):
        out = source / kind
        assert main(["dataset", kind, str(source), str(out)]) == 0
        assert f"{out / 'train.jsonl'}: " in capsys.readouterr().out


def test_missing_recordings_are_named_with_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(FsddError, match=r"expected recordings such as 7_jackson_32\.wav.*github"):
        fsdd.write(tmp_path, tmp_path)


def test_a_recording_of_another_form_is_refused_by_its_name(source: Path) -> None:
    record(source / "recordings", "0_ann_0.wav", [1, 2], rate=16000)
    with pytest.raises(FsddError, match=r"0_ann_0\.wav: expected 8000 samples a second.*16000"):
        fsdd.write(source, source)
    (source / "recordings" / "0_ann_0.wav").write_bytes(b"RIFFnothing")
    with pytest.raises(FsddError, match=r"0_ann_0\.wav: expected a WAV file"):
        fsdd.write(source, source)
