"""Events as packed numbers: little-endian float32 in the features' order, and nothing else.

Owns the layout: with a time field the event time comes first, as a little-endian int64 in the event
spec's time unit. Only required numbers can stand in it. Many values are read at once, which is what
the format is for. Called by formats.py (one value) and decode.py (many).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from keyfold.export.columns import Rejects
from keyfold.export.errors import Reject, SpecError
from keyfold.export.event_spec import EventSpec
from keyfold.export.features import FeatureSpec, encode
from keyfold.export.formats import decode_one, json_text


class Packed:
    """Numbers one behind the other; see formats.Format."""

    name = "packed float32"
    shallow = -1  # one at a time, here: decode.py reads many by `table`

    def __init__(self, events: EventSpec, names: Sequence[str]) -> None:
        self._names, self._time = list(names), events.time_field
        if self._time in self._names:
            raise SpecError(
                f"events.time_field: expected no feature with packed records, got {self._time!r}"
            )
        timed = [("time", "<i8")] if self._time is not None else []
        self._layout = np.dtype([*timed, ("x", "<f4", (len(self._names),))])
        members = [*self._names, *([self._time] if self._time is not None else [])]
        self._row = msgspec.defstruct(
            "Row",
            [(f"c{number}", float) for number in range(len(members))],
            rename={f"c{number}": name for number, name in enumerate(members)},
        )
        self._event: Any = msgspec.json.Decoder(self._row).decode

    def table(
        self, values: Sequence[bytes | None], rejects: Rejects
    ) -> tuple[NDArray[np.float32], NDArray[np.float64] | None]:
        """Return N values' numbers (N,F), 0 where unusable, and their times (N,) if they hold them.

        Of what is no event `rejects` says why, by row.
        """
        size = self._layout.itemsize
        try:
            right = set(map(len, values)) <= {size}  # type: ignore[arg-type]
        except TypeError:  # a null value
            right = False
        if not right:
            values = [self._sized(row, value, rejects) for row, value in enumerate(values)]
        table = np.frombuffer(b"".join(values), self._layout)  # type: ignore[arg-type]
        x = table["x"].astype(np.float32)
        if not np.isfinite(x).all():
            for row, column in zip(*np.nonzero(~np.isfinite(x)), strict=True):
                rejects.note(int(row), f"field {self._names[column]!r} is not finite")
            x[~np.isfinite(x)] = 0.0
        return x, table["time"].astype(np.float64) if self._time is not None else None

    def _sized(self, row: int, value: bytes | None, rejects: Rejects) -> bytes:
        """Return a value, or zeros for one of another length."""
        size = self._layout.itemsize
        if value is not None and len(value) == size:
            return value
        if value is None:
            rejects.note(row, "the record's value is null")
        else:
            rejects.note(row, f"the record's value: expected {self._what()}, got {len(value)}")
        return bytes(size)

    def _what(self) -> str:
        time = "a time and " if self._time is not None else ""
        return f"{self._layout.itemsize} bytes ({time}{len(self._names)} float32)"

    def decoder(self, row: Any) -> Callable[[bytes], Any]:
        """See Format."""
        decode = msgspec.json.Decoder(row).decode
        return lambda value: decode(self.to_json(value))

    def is_too_deep(self, value: bytes) -> bool:
        """See Format."""
        return False

    def to_json(self, value: bytes) -> bytes:
        """See Format."""
        rejects = Rejects()
        x, _ = self.table([value], rejects)
        if rejects:
            raise Reject(rejects[0])
        event: dict[str, Any] = dict(zip(self._names, x[0].tolist(), strict=True))
        if self._time is not None:
            event[self._time] = int(np.frombuffer(value, self._layout)["time"][0])
        return json_text(event)

    def of_json(self, event: bytes) -> bytes:
        """See Format."""
        numbers = msgspec.structs.astuple(decode_one(self._event, event))
        count = len(self._names)
        x, unusable = encode(self._names, np.array([numbers[:count]]))
        if unusable:
            raise Reject(unusable[0])
        packed = np.zeros(1, self._layout)
        packed["x"] = x
        if self._time is not None:
            time = numbers[count]
            if not (time.is_integer() and abs(time) < 2**63):
                raise Reject(f"field {self._time!r}: expected a whole number in packed records")
            packed["time"] = int(time)
        return packed.tobytes()


def check_packed(features: FeatureSpec, targets: Sequence[str]) -> None:
    """Raise SpecError, by name, for what packed numbers cannot hold."""
    for field in features.fields:
        if field.kind != "number" or field.missing != "error":
            raise SpecError(
                f"events.format: expected required numbers in packed records, got {field.name!r}: "
                f"{field.kind}, missing {field.missing!r}"
            )
    names = {field.name for field in features.fields}
    for name in targets:
        if name not in names:
            raise SpecError(
                f"events.format: expected a feature in packed records, got {name!r}, which is "
                "forecast"
            )
