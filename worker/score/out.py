"""Where scored predictions go: JSON lines as on the output topic, or a Parquet table.

Owns the files' forms and that a file appears only when it is whole. A table has a column for every
member of a prediction; what the output holds is flattened, by dots. Knows nothing of models or
records. Called by cli.py.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import msgspec
import orjson

from keyfold.worker.errors import Crash

STDOUT = "-"
WHOLE = frozenset({"time", "steps"})  # members that are whole numbers
TEXT = frozenset(
    {
        "id",
        "about",
        "key",
        "key_b64",
        "bundle",
        "output.label",
        "output.symbol",
        "output.text",
        "output.anomaly.field",
        "event",
    }
)
EVENT = "event"  # what worker.passthrough repeats, in a table as JSON
TRUTH = frozenset({"cold", "gap", "last", "output.anomaly.flag"})


class _Repeated(msgspec.Struct):
    """A prediction's member "event" as the text that it is."""

    event: msgspec.Raw


_EVENT = msgspec.json.Decoder(_Repeated)


class Writer(Protocol):
    """A place for predictions."""

    def write(self, payloads: Sequence[bytes]) -> None:
        """Add predictions in order."""

    def close(self) -> None:
        """Finish what was written."""


@contextmanager
def writing(out: str, labels: Sequence[str], flag: str = "--out") -> Iterator[Writer]:
    """Open a writer for a file by its ending; `labels` name the classes, if there are any.

    The file, which `flag` names, is written beside its place and moved there at the end; an error
    leaves nothing. Raises Crash: an ending that is none, a place that cannot be written.
    """
    if out == STDOUT:
        yield _Lines(sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    path = Path(out)
    suffix = Path(path.stem).suffix + path.suffix if path.suffix == ".gz" else path.suffix
    partial = path.with_name(f".partial-{path.name}")
    try:
        with partial.open("wb") as file:
            writer = _open(suffix, file, labels, f"{flag} {path}")
            yield writer
            writer.close()
        partial.replace(path)
    except OSError as error:
        raise Crash(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _open(suffix: str, file: Any, labels: Sequence[str], said: str) -> Writer:
    if suffix in (".jsonl", ".ndjson"):
        return _Lines(file)
    if suffix in (".jsonl.gz", ".ndjson.gz"):
        return _Lines(gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1), closes=True)
    if suffix == ".parquet":
        return _Table(file, labels)
    raise Crash(f"{said}: expected .jsonl, .ndjson (.gz too) or .parquet, got {suffix!r}")


class _Lines:
    """Predictions as they are, one a line."""

    def __init__(self, file: Any, *, closes: bool = False) -> None:
        self._file, self._closes = file, closes

    def write(self, payloads: Sequence[bytes]) -> None:
        if payloads:
            self._file.write(b"\n".join(payloads) + b"\n")

    def close(self) -> None:
        if self._closes:
            self._file.close()


class _Table:
    """Predictions as columns; the first part decides which there are."""

    def __init__(self, file: Any, labels: Sequence[str]) -> None:
        try:
            import pyarrow  # heavy, and only this kind of file needs it
            import pyarrow.parquet
        except ImportError as error:
            raise Crash("Parquet needs pyarrow: pip install pyarrow") from error
        self._pyarrow: Any = pyarrow
        self._file, self._labels = file, labels
        self._schema: Any = None
        self._writer: Any = None

    def write(self, payloads: Sequence[bytes]) -> None:
        if not payloads:
            return
        rows = [_flat(payload, self._labels) for payload in payloads]
        if self._writer is None:
            # "key" or "key_b64", and a gap, may come later than in the first part.
            names = list(dict.fromkeys([*rows[0], *(n for row in rows for n in row), "key_b64"]))
            self._schema = self._pyarrow.schema([(name, self._type(name)) for name in names])
            self._writer = self._pyarrow.parquet.ParquetWriter(self._file, self._schema)
        table = {name: [row.get(name) for row in rows] for name in self._schema.names}
        self._writer.write_table(self._pyarrow.table(table, self._schema))

    def close(self) -> None:
        if self._writer is None:
            self._schema = self._pyarrow.schema([("id", self._pyarrow.string())])
            self._writer = self._pyarrow.parquet.ParquetWriter(self._file, self._schema)
        self._writer.close()

    def _type(self, name: str) -> Any:
        if name in WHOLE:
            return self._pyarrow.int64()
        if name in TEXT or (name.startswith("output.top.") and name.endswith(".label")):
            return self._pyarrow.string()
        return self._pyarrow.bool_() if name in TRUTH else self._pyarrow.float32()


def _flat(payload: bytes, labels: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in orjson.loads(payload).items():
        if name == EVENT:
            # As text: a member may be a number in one row and a text in another.
            row[name] = None if value is None else bytes(_EVENT.decode(payload).event).decode()
        elif name != "output":
            row[name] = value
        else:
            _flatten_output(value, labels, row)
    return row


def _flatten_output(output: dict[str, Any], labels: Sequence[str], row: dict[str, Any]) -> None:
    probabilities = output.pop("probabilities", None)
    for rank, entry in enumerate(output.pop("top", ())):
        row |= {f"output.top.{rank}.{name}": value for name, value in entry.items()}
    _flatten("output", output, row)
    if probabilities is not None:
        for label, probability in zip(labels, probabilities, strict=True):
            row[f"output.probabilities.{label}"] = probability


def _flatten(path: str, value: Mapping[str, Any], row: dict[str, Any]) -> None:
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            _flatten(f"{path}.{name}", inner, row)
        else:
            row[f"{path}.{name}"] = inner
