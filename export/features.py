"""The feature spec: which fields of an event become the model's inputs, and in which order.

Owns the fields (numbers, booleans, categories; what a missing value means; or one text, see
text.py) and the names of the model's columns, so that training, verification and serving cannot
disagree about them. It knows
nothing of records, Kafka or models; scaling by the training data is not done here but inside the
graph, and what needs a key's past in front.py. Called by decode (which members to read), by
training (whole logs) and by the worker's pipeline (a micro-batch).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from keyfold.export.errors import SpecError
from keyfold.export.text import Text

FLOAT32_MAX = float(np.finfo(np.float32).max)
SINCE_LAST = "seconds since last"  # the column that `since_last` adds

Kind = Literal["number", "boolean", "category"]
Missing = Literal["error", "mask", "last"]


@dataclass(frozen=True, slots=True)
class Field:
    """One member of an event and the columns it becomes."""

    name: str  # path of the member: "temp", "readings.temp"; a member named with the dot wins
    kind: Kind = "number"  # category: one column per value
    values: tuple[str, ...] = ()  # category: its values; any other one is a zero in every column
    missing: Missing = "error"  # null or absent: a reject, `fill`, or the key's last value
    fill: float = 0.0  # number, boolean: for a missing value (standardised: 0, the key's mean)
    standardise: bool = False  # number: by the running mean and deviation of the key

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise self._error("expected kind 'number', 'boolean' or 'category'", self.kind)
        if self.missing not in get_args(Missing):
            raise self._error("expected missing 'error', 'mask' or 'last'", self.missing)
        if (self.kind == "category") != bool(self.values):
            raise self._error("expected values for a category, and for nothing else", self.values)
        if len(set(self.values)) != len(self.values):
            raise self._error("expected distinct values", self.values)
        if not all(isinstance(value, str) for value in self.values):
            raise self._error("expected values as text", self.values)
        if self.standardise and self.kind != "number":
            raise self._error("expected kind 'number' to standardise", self.kind)
        if not abs(self.fill) <= FLOAT32_MAX or (self.fill and self.kind == "category"):
            raise self._error("expected fill as a finite number, none for a category", self.fill)

    def _error(self, expected: str, got: object) -> SpecError:
        return SpecError(f"features: field {self.name!r}: {expected}, got {got!r}")

    @property
    def is_plain(self) -> bool:
        """Whether this is a required number and nothing else, as in manifests of version 1.0."""
        return self == Field(self.name)

    @property
    def value_columns(self) -> tuple[str, ...]:
        """Names of the columns that hold the value."""
        if self.kind != "category":
            return (self.name,)
        return tuple(f"{self.name}={value}" for value in self.values)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all its columns; the last one says 1 where the event's value is missing."""
        return self.value_columns + ((f"{self.name}?",) if self.missing != "error" else ())

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's form; what is not set does not stand in it."""
        data: dict[str, Any] = {"name": self.name, "kind": self.kind}
        if self.values:
            data["values"] = list(self.values)
        if self.missing != "error":
            data["missing"] = self.missing
        if self.fill:
            data["fill"] = self.fill
        if self.standardise:
            data["standardise"] = True
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Field:
        """Read the manifest's form. Raises SpecError on what this version does not know."""
        unknown = set(data) - {"name", "kind", "values", "missing", "fill", "standardise"}
        if unknown:
            raise SpecError(f"features: field {data.get('name')!r}: unknown {sorted(unknown)}")
        return cls(**{**data, "values": tuple(data.get("values", ()))})


@dataclass(frozen=True, slots=True)
class LongForm:
    """Events that hold one sensor's value each."""

    name: str  # path of the member that says which field this is
    value: str  # path of the member that holds its value


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """The model's input fields, in tensor order."""

    fields: tuple[Field, ...]  # in the order of their columns
    since_last: bool = False  # a last column: log1p of the seconds since the key's last event
    long: LongForm | None = None  # one sensor per event; None: all fields in every event
    text: Text | None = None  # of a width: beside the fields; else alone, of several steps

    def __post_init__(self) -> None:
        fields = bool(self.fields) or self.since_last
        if self.text is not None and not self.text.width and fields:
            raise SpecError("features.text: expected nothing beside a text, got fields")
        if self.text is not None and self.long is not None:
            raise SpecError("features.text: expected no long form beside a text, got one")
        if self.text is not None and self.text.field in [field.name for field in self.fields]:
            raise SpecError(
                f"features.text: expected a member that is no field too, got {self.text.field!r}"
            )
        if not self.fields and self.text is None:
            raise SpecError("features: expected at least one field, got none")
        for what, names in (("", [f.name for f in self.fields]), ("columns ", self.columns)):
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise SpecError(f"features: {what}named more than once: {', '.join(repeated)}")
        required = [field.name for field in self.fields if field.missing == "error"]
        if self.long is not None and required:
            raise SpecError(
                "features: expected missing 'last' or 'mask' for every field of the long form, "
                f"got 'error' for {', '.join(required)}"
            )

    @classmethod
    def numbers(cls, *names: str) -> FeatureSpec:
        """Return a spec of plain required numbers."""
        return cls(tuple(Field(name) for name in names))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the model's F columns; those of a text hold numbers of symbols, and end it."""
        return (*self.plain_columns, *(self.text.columns if self.text is not None else ()))

    @property
    def plain_columns(self) -> tuple[str, ...]:
        """Names of the columns that hold no symbols."""
        columns = [column for field in self.fields for column in field.columns]
        return (*columns, *((SINCE_LAST,) if self.since_last else ()))

    @property
    def unrolled(self) -> Text | None:
        """The text whose symbols are a step each; None: an event is one step."""
        return None if self.text is None or self.text.width else self.text

    @property
    def inner(self) -> Text | None:
        """The text that is read within its event's one step; None: there is none."""
        return self.text if self.text is not None and self.text.width else None

    @property
    def is_plain(self) -> bool:
        """Whether it has required numbers only, as every manifest of version 1.0."""
        plain = all(field.is_plain for field in self.fields)
        return plain and not self.since_last and self.long is None and self.text is None

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's form; what is not used does not stand in it."""
        data: dict[str, Any] = {"fields": [field.to_json() for field in self.fields]}
        if self.since_last:
            data["since_last"] = True
        if self.long is not None:
            data["long"] = {"name": self.long.name, "value": self.long.value}
        if self.text is not None:
            data["text"] = self.text.to_json()
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FeatureSpec:
        """Read the manifest's form. Raises SpecError on a kind this version does not know."""
        long, text = data.get("long"), data.get("text")
        return cls(
            tuple(Field.from_json(field) for field in data["fields"]),
            data.get("since_last", False),
            None if long is None else LongForm(long["name"], long["value"]),
            None if text is None else Text.from_json(text),
        )


def encode(
    names: Sequence[str], values: NDArray[np.float64]
) -> tuple[NDArray[np.float32], dict[int, str]]:
    """Turn N rows of required numbers (N,F) float64, named `names`, into rows (N,F) float32.

    Returns the rows and, by row number, why a row cannot be used: a value that is not finite or
    that overflows float32. Such a row holds unusable numbers and must not be stepped.
    """
    unusable = ~(np.abs(values) <= FLOAT32_MAX)  # also true for NaN
    if not unusable.any():
        return values.astype(np.float32), {}
    reasons = {
        int(row): _why_unusable(names, values[row], unusable[row])
        for row in np.flatnonzero(unusable.any(axis=1))
    }
    return np.where(unusable, 0.0, values).astype(np.float32), reasons


def _why_unusable(
    names: Sequence[str], row: NDArray[np.float64], unusable: NDArray[np.bool_]
) -> str:
    column = int(np.argmax(unusable))
    problem = "is not finite" if not np.isfinite(row[column]) else "overflows float32"
    return f"field {names[column]!r} {problem}"
