"""Members of an event become the model's columns: missing values, booleans, categories, long form.

Owns what a value means and the reason when it cannot be used; such a reason names the field and
never quotes the value. Units and text are not guessed: "12.5" is no number. Called by decode.py for
every spec beyond plain required numbers, and by training for the text of a category.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyfold.export.errors import Reject, SpecError
from keyfold.export.features import FLOAT32_MAX, FeatureSpec, Field, LongForm

Column = Sequence[Any]  # a member's N values; None: missing
_BOOLEANS: dict[Any, float] = {True: 1.0, False: 0.0, "true": 1.0, "false": 0.0}  # 1 equals True
_LONGEST_INTEGER = 8192  # bits
LONGEST_WORD = 5
SHOWN = 12  # names in a message


class Rejects(dict[int, str]):
    """Row -> the first reason why it cannot be an event."""

    def note(self, row: int, reason: str) -> None:
        """Keep the first reason."""
        self.setdefault(row, reason)


def category_text(value: str | int | float | bool | None) -> str | None:
    """Return the text that a category's value is compared by; 3 and 3.0 are both "3"."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        # From 2**53 on not every integer is a float: such a number is no exact name.
        exact = value.is_integer() and abs(value) < 2**53
        return str(int(value)) if exact else repr(value)
    # Python refuses to write longer integers; nobody gave such a name.
    return str(value) if value.bit_length() <= _LONGEST_INTEGER else "a huge number"


def check_targets(features: FeatureSpec, targets: Sequence[str]) -> None:
    """Raise SpecError for a target that no number can be observed of."""
    for field in features.fields:
        if field.kind == "category" and field.name in targets:
            raise SpecError(
                "outputs.forecast.fields: expected numbers or booleans, got category "
                f"{field.name!r}"
            )


class Columns:
    """Turns the values of fields into the model's columns and the observed targets."""

    def __init__(self, features: FeatureSpec, targets: Sequence[str] = ()) -> None:
        self._features = features
        known = {field.name: field for field in features.fields}
        extra = [name for name in dict.fromkeys(targets) if name not in known]
        # Whatever is only observed may be missing.
        self.fields = (*features.fields, *(Field(name, missing="mask") for name in extra))
        names = [field.name for field in self.fields]
        check_targets(features, targets)
        self._observed = [names.index(name) for name in targets]
        self._known = {name: number for number, name in enumerate(names)}

    def spread(
        self, long: LongForm, sensors: Column, values: Column, rejects: Rejects
    ) -> list[Column]:
        """Turn the long form's two members into the columns of the fields."""
        columns: list[list[Any]] = [[None] * len(values) for _ in self.fields]
        shown = ", ".join(list(self._known)[:SHOWN]) + (", ..." if len(self._known) > SHOWN else "")
        for row, (sensor, value) in enumerate(zip(sensors, values, strict=True)):
            name = category_text(sensor) if isinstance(sensor, str | int | float) else None
            if name is None:
                rejects.note(row, f"field {long.name!r} is missing")
            elif name not in self._known:
                rejects.note(row, f"field {long.name!r}: expected one of {shown}, got another")
            else:
                columns[self._known[name]][row] = value
        return list(columns)

    def build(
        self, columns: Sequence[Column], rejects: Rejects, count: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Turn a column of N = `count` values per field into x (N,F) and the observed (N,K).

        x holds NaN where a value is missing and the front repeats the last one, and 0 where
        another writes: the front, a text.
        """
        x = np.zeros((count, len(self._features.columns)), np.float32)
        raw: dict[int, NDArray[np.float64]] = {}
        at = 0
        for number, (field, column) in enumerate(zip(self.fields, columns, strict=True)):
            is_feature = number < len(self._features.fields)
            width = len(field.value_columns)
            if field.kind == "category":
                missing = _one_hot(field, column, x[:, at : at + width], rejects)
            else:
                raw[number] = self._floats(field, column, rejects)
                missing = np.isnan(raw[number])
                if is_feature:
                    x[:, at] = np.where(missing, field.fill, raw[number])
            if is_feature:
                _mark(field, missing, x[:, at : at + len(field.columns)], rejects)
                at += len(field.columns)
        if not self._observed:
            return x, None
        observed = np.stack([raw[number] for number in self._observed], axis=1)
        return x, observed.astype(np.float32)

    def _floats(self, field: Field, column: Column, rejects: Rejects) -> NDArray[np.float64]:
        """Return numbers that fit float32, NaN where one is missing or a reject."""
        name = field.name if self._features.long is None else self._features.long.value
        if field.kind == "number" and set(map(type, column)) <= {float, type(None)}:
            values = np.array(column, np.float64)  # None becomes NaN
        else:
            read = _boolean if field.kind == "boolean" else as_number
            values = np.full(len(column), np.nan)
            for row, value in enumerate(column):
                if value is not None:
                    try:
                        values[row] = read(value)
                    except Reject as reject:
                        rejects.note(row, f"field {name!r}: {reject}")
        large = np.abs(values) > FLOAT32_MAX
        if large.any():
            for place in np.flatnonzero(large):
                rejects.note(int(place), f"field {name!r} overflows float32")
            values[large] = np.nan
        return values


def as_number(value: Any) -> float:
    """Return a JSON number as a float, infinity if it is too large. Raises Reject."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Reject(f"expected a number, got {kind_of(value)}")
    try:
        return float(value)
    except OverflowError:
        return math.inf  # the integer is larger than any float


def _boolean(value: Any) -> float:
    # A table's text knows no booleans: the words are accepted, in any case.
    word = value.lower() if isinstance(value, str) and len(value) <= LONGEST_WORD else value
    if isinstance(word, str | int | float) and word in _BOOLEANS:
        return _BOOLEANS[word]
    raise Reject(f"expected true, false, 1 or 0, got {kind_of(value, 'another ')}")


def kind_of(value: Any, other: str = "") -> str:
    """Say what a member is, for a reject: never its value."""
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, str):
        return f"{other or 'a '}text"
    return f"{other or 'a '}number" if isinstance(value, int | float) else "an object or array"


def _one_hot(
    field: Field, column: Column, x: NDArray[np.float32], rejects: Rejects
) -> NDArray[np.bool_]:
    """Write a category's columns into x (N,values); return where it is missing."""
    numbers = {value: number for number, value in enumerate(field.values)}
    for row, value in enumerate(column):
        if value is not None and not isinstance(value, str | int | float):
            rejects.note(row, f"field {field.name!r}: expected a category, got {kind_of(value)}")
            continue
        number = numbers.get(category_text(value) or "") if value is not None else None
        if number is not None:
            x[row, number] = 1.0
    return np.array([value is None for value in column], np.bool_)


def _mark(
    field: Field, missing: NDArray[np.bool_], x: NDArray[np.float32], rejects: Rejects
) -> None:
    """Say in a field's columns x (N,columns) where its value is missing."""
    if not missing.any():
        return
    if field.missing == "error":
        for row in np.flatnonzero(missing):
            rejects.note(int(row), f"field {field.name!r} is missing")
        return
    x[missing, -1] = 1.0
    if field.missing == "last":
        x[missing, :-1] = np.nan
