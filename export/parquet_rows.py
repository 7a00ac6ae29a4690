"""The rows of a Parquet file as the JSON objects that a producer would send.

Owns what JSON has instead of a column's values, and why a row has no JSON. Knows neither row
numbers nor what becomes of such a row. Called by tables.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson

PART = 16_384  # rows read at a time: bounds memory


def parquet_rows(path: Path) -> Iterator[bytes | str]:
    """Yield each row as JSON, or as text: why it has none.

    Raises ImportError without pyarrow, ValueError or TypeError: the file cannot be read.
    """
    import pyarrow  # heavy, and only this kind of file needs it
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for part in table.iter_batches(batch_size=PART):
                for row in _values(_whole_us(part)):
                    yield row if isinstance(row, str) else _json(row)
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from error


def _whole_us(part: Any) -> Any:
    """Round times in ns, which Python's datetime does not have, down to us."""
    import pyarrow

    fields = [
        pyarrow.field(field.name, pyarrow.timestamp("us", field.type.tz))
        if pyarrow.types.is_timestamp(field.type) and field.type.unit == "ns"
        else field
        for field in part.schema
    ]
    return pyarrow.Table.from_batches([part]).cast(pyarrow.schema(fields), safe=False)


def _values(part: Any) -> Iterator[Any]:
    """Yield rows as mappings, or as text: why one is none."""
    try:
        yield from part.to_pylist()
        return
    except UnicodeDecodeError:
        pass  # in one of them: look for it
    for at in range(part.num_rows):
        try:
            yield from part.slice(at, 1).to_pylist()
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            yield f"expected text in {error.encoding}, got byte 0x{byte:02x}"


def _json(row: Any) -> bytes | str:
    try:
        return orjson.dumps(row, _plain, orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as error:
        # orjson gives what _plain raised as the cause.
        return f"has no form in JSON: {error.__cause__ or error}"


def _plain(value: Any) -> Any:
    """Return what JSON has instead of a value of a Parquet column."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise TypeError("a column of bytes that are no text") from error
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, time):
        return value.isoformat()
    raise TypeError(f"a column of {type(value).__name__}")
