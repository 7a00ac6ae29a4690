"""The feature spec: which fields of an event become the model's inputs, and in which order.

Owns the step from decoded field values to the tensor row the model sees, so that training,
verification and serving cannot disagree about it. It knows nothing of records, Kafka or models;
scaling is not done here but inside the graph. Called by events (which fields to decode), by
training (whole logs) and by the worker's pipeline (a micro-batch).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.errors import SpecError

FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """The model's input fields, in tensor order."""

    fields: tuple[str, ...]  # JSON field names of an event, all numbers, all required

    def __post_init__(self) -> None:
        if not self.fields:
            raise SpecError("features: expected at least one field, got none")
        repeated = sorted({name for name in self.fields if self.fields.count(name) > 1})
        if repeated:
            raise SpecError(f"features: named more than once: {', '.join(repeated)}")

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's form."""
        return {"fields": [{"name": name, "kind": "number"} for name in self.fields]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FeatureSpec:
        """Read the manifest's form. Raises SpecError on a kind this version does not know."""
        for field in data["fields"]:
            if field.get("kind") != "number":
                raise SpecError(
                    f"features: field {field.get('name')!r}: expected kind 'number', "
                    f"got {field.get('kind')!r}"
                )
        return cls(tuple(field["name"] for field in data["fields"]))


def encode(
    spec: FeatureSpec, values: NDArray[np.float64]
) -> tuple[NDArray[np.float32], dict[int, str]]:
    """Turn N rows of field values (N,F) float64 into the model's rows (N,F) float32.

    Returns the rows and, by row number, why a row cannot be used: a value that is not finite or
    that overflows float32. Such a row holds unusable numbers and must not be stepped.
    """
    unusable = ~(np.abs(values) <= FLOAT32_MAX)  # also true for NaN
    if not unusable.any():
        return values.astype(np.float32), {}
    reasons = {
        int(row): _why_unusable(spec.fields, values[row], unusable[row])
        for row in np.flatnonzero(unusable.any(axis=1))
    }
    return np.where(unusable, 0.0, values).astype(np.float32), reasons


def _why_unusable(
    fields: Sequence[str], row: NDArray[np.float64], unusable: NDArray[np.bool_]
) -> str:
    column = int(np.argmax(unusable))
    problem = "is not finite" if not np.isfinite(row[column]) else "overflows float32"
    return f"field {fields[column]!r} {problem}"
