"""The snapshot file: one partition's states at one watermark, with a proof that it is whole.

Owns the form of the file, version 1:

    b"keyfold-snapshot 1\\n"
    length u32 | header, JSON: group, topic, partition, bundle, meta fields, number of states, ...
    for each state: length of the key u32 | length of the state u32 | key | state
    SHA-256 of all before it

little-endian. Knows files, not Redis or Kafka. Called by snapshot.py, restore.py and rebuild.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from struct import Struct
from typing import Any, BinaryIO

from keyfold.worker.errors import Crash

MAGIC = b"keyfold-snapshot 1\n"
SUFFIX = ".keyfold"
_HEADER = Struct("<I")
_LENGTHS = Struct("<II")
_DIGEST_BYTES = 32
# Beyond these a length is damage, not a header, key (export/events.py) or state (export/bundle.py).
_MAX_HEADER_BYTES = 1 << 24
_MAX_PART_BYTES = 1 << 20


class SnapshotError(Crash):
    """A file is not a whole snapshot, or not one for here."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a snapshot is of."""

    group: str  # consumer group
    topic: str  # input
    partition: int  # of the input
    bundle: str  # bundle id
    layout: str  # of the states
    meta: Mapping[str, str]  # all meta fields of the partition's hash
    count: int  # key states in the file
    partitions: int  # of the topic
    identity: str  # Kafka's topic id, "" where the broker tells none
    taken: str  # when, ISO 8601 UTC

    @property
    def watermark(self) -> int:
        """Return W."""
        return int(self.meta["#W"])


def write(path: Path, header: Header, states: Iterable[tuple[bytes, bytes]]) -> int:
    """Write a snapshot: whole under its name, or not at all. Returns its size in bytes.

    Raises SnapshotError when `states` are not as many as the header says, and OSError.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            size = _write(file, header, states)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    _sync(path.parent)
    return size


def _write(file: BinaryIO, header: Header, states: Iterable[tuple[bytes, bytes]]) -> int:
    digest = hashlib.sha256()
    size = 0

    def put(data: bytes) -> None:
        nonlocal size
        digest.update(data)
        file.write(data)
        size += len(data)

    text = json.dumps(asdict(header)).encode()
    put(MAGIC + _HEADER.pack(len(text)) + text)
    count = 0
    for key, value in states:
        put(_LENGTHS.pack(len(key), len(value)) + key + value)
        count += 1
    if count != header.count:
        raise SnapshotError(f"{file.name}: expected {header.count} states, got {count}")
    file.write(digest.digest())
    return size + _DIGEST_BYTES


def _sync(folder: Path) -> None:
    """Have the new name on the disk too, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_header(path: Path) -> Header:
    """Return what a snapshot claims to be of, unproved. Raises SnapshotError."""
    with _opened(path) as file:
        return _Reader(path, file).header()


def verify(path: Path) -> Header:
    """Read a snapshot from end to end and return its header. Raises SnapshotError."""
    with _opened(path) as file:
        reader = _Reader(path, file)
        header = reader.header()
        for _ in reader.states(header.count):
            pass
        reader.finish()
    return header


def entries(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yield a snapshot's (key, stored state). Raises SnapshotError."""
    with _opened(path) as file:
        reader = _Reader(path, file)
        header = reader.header()
        yield from reader.states(header.count)
        reader.finish()  # it may have changed since it was verified


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise SnapshotError(f"{path}: expected a snapshot, got: {error.strerror}") from error
    with file:
        yield file


class _Reader:
    """Takes a snapshot apart and sums it up on the way."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._digest = hashlib.sha256()

    def header(self) -> Header:
        if self._file.read(len(MAGIC)) != MAGIC:
            raise SnapshotError(
                f"{self._path}: expected a snapshot beginning with {MAGIC.decode().strip()!r}, "
                "got another file"
            )
        self._digest.update(MAGIC)
        (length,) = _HEADER.unpack(self._take(_HEADER.size))
        self._check_length(length, _MAX_HEADER_BYTES)
        try:
            members: dict[str, Any] = json.loads(self._take(length))
            return Header(**members)
        except (ValueError, TypeError) as error:
            raise SnapshotError(f"{self._path}: the header is damaged: {error}") from error

    def states(self, count: int) -> Iterator[tuple[bytes, bytes]]:
        for _ in range(count):
            key, value = _LENGTHS.unpack(self._take(_LENGTHS.size))
            self._check_length(max(key, value), _MAX_PART_BYTES)
            yield self._take(key), self._take(value)

    def finish(self) -> None:
        wanted, got = self._digest.hexdigest(), self._file.read(_DIGEST_BYTES).hex()
        if got != wanted:
            raise SnapshotError(f"{self._path}: damaged: expected SHA-256 {wanted}, got {got}")
        if self._file.read(1):
            raise SnapshotError(f"{self._path}: damaged: expected its end behind the SHA-256")

    def _take(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) != size:
            raise SnapshotError(
                f"{self._path}: cut short: expected {size} more bytes, got {len(data)}"
            )
        self._digest.update(data)
        return data

    def _check_length(self, length: int, most: int) -> None:
        if length > most:
            raise SnapshotError(
                f"{self._path}: damaged: expected a length up to {most}, got {length}"
            )
