"""The snapshot file: its bytes, and that no damage goes unnoticed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from keyfold.worker.state.snapshot_file import (
    Header,
    SnapshotError,
    entries,
    read_header,
    verify,
    write,
)

STATES = [(b"key-1", b"a state"), (b"", b"of an empty key"), (b"\xff\x00", b"x" * 300)]
HEADER = Header(
    "group", "in", 3, "bundle", "2", {"#W": "10", "#K": "3"}, 3, 4, "an-id",
    "2026-11-20T10:11:12.123+00:00",
)  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.keyfold"
    write(path, HEADER, STATES)
    return path


def test_what_was_written_is_read_back(file: Path) -> None:
    assert verify(file) == read_header(file) == HEADER
    assert list(entries(file)) == STATES
    assert HEADER.watermark == 10


def test_the_bytes_are_as_documented(tmp_path: Path) -> None:
    path = tmp_path / "b.keyfold"
    size = write(path, dataclasses.replace(HEADER, count=1), [(b"k", b"state")])
    data = path.read_bytes()
    assert size == len(data)
    assert data[:19] == b"keyfold-snapshot 1\n"
    (length,) = struct.unpack("<I", data[19:23])
    header = json.loads(data[23 : 23 + length])
    assert (header["group"], header["partition"], header["meta"]["#W"]) == ("group", 3, "10")
    assert data[23 + length : -32] == struct.pack("<II", 1, 5) + b"kstate"
    assert data[-32:] == hashlib.sha256(data[:-32]).digest()


def test_every_flipped_byte_is_found(file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    spoiled = tmp_path / "spoiled.keyfold"
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 0x41
        spoiled.write_bytes(changed)
        with pytest.raises(SnapshotError):
            verify(spoiled)


def test_every_cut_and_anything_appended_is_found(file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    spoiled = tmp_path / "spoiled.keyfold"
    for end in range(len(data)):
        spoiled.write_bytes(data[:end])
        with pytest.raises(SnapshotError):
            verify(spoiled)
    spoiled.write_bytes(data + b"x")
    with pytest.raises(SnapshotError, match="expected its end behind the SHA-256"):
        verify(spoiled)


def test_what_changed_since_it_was_verified_is_found_while_it_is_read(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-40] ^= 1  # in the last state
    file.write_bytes(data)
    read = entries(file)
    with pytest.raises(SnapshotError, match="damaged: expected SHA-256"):
        list(read)


def test_the_error_says_what_is_wrong(tmp_path: Path, file: Path) -> None:
    other = tmp_path / "other.keyfold"
    other.write_text("not a snapshot at all\n")
    with pytest.raises(SnapshotError, match=r"expected a snapshot beginning with 'keyfold-snapshot "
                                            r"1', got another file"):  # fmt: skip
        verify(other)
    with pytest.raises(SnapshotError, match="expected a snapshot, got: No such file"):
        verify(tmp_path / "none.keyfold")
    other.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(SnapshotError, match=r"cut short: expected \d+ more bytes, got \d+"):
        verify(other)


def test_a_write_that_fails_leaves_the_older_file_and_nothing_else(file: Path) -> None:
    before = file.read_bytes()

    def failing() -> Iterator[tuple[bytes, bytes]]:
        yield STATES[0]
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        write(file, HEADER, failing())
    with pytest.raises(SnapshotError, match="expected 3 states, got 2"):
        write(file, HEADER, STATES[:2])
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]
